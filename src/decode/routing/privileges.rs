//! Who may get changes of a relation: those whose owners may read what they would get.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use pgrx::pg_sys::{self, Oid};

use super::router::{Condition, Grantee, Terms};
use super::table_pattern::TablePattern;
use crate::decode::filter::analyze;
use crate::decode::filter::analyze::Bare;
use crate::decode::row_key::event_key;
use crate::pg::acl::{Access, Lack};
use crate::pg::lineage;
use crate::pg::memory_context::Memory;
use crate::pg::subtransaction::in_subtransaction;
use crate::pg::values::encoding;
use crate::pg::{acl, compat};

/// What was found of a relation, for all who are interested in it.
#[derive(Default)]
pub struct Permits {
    known: HashMap<Arc<Grantee>, Access>,
    /// Owners who were found to lack something.
    denied: BTreeSet<String>,
}

impl Permits {
    /// Whether what is allowed of the relation now is what was allowed when it was found.
    pub fn still_hold(&self, table: Oid) -> bool {
        self.known.iter().all(|(grantee, access)| look(table, grantee) == *access)
    }

    /// Whether rows of the relation may be sent on these terms.
    ///
    /// # Safety
    /// The relation is open, and a transaction is in progress.
    pub unsafe fn allow(&mut self, relation: pg_sys::Relation, key: &[i16], terms: &Terms<'_>) -> bool {
        // SAFETY: as the caller promises.
        let is_allowed = match unsafe { self.of((*relation).rd_id, terms.grantee) } {
            Access::All => return true,
            Access::Nothing(_) => false,
            // SAFETY: as the caller promises.
            access => unsafe { access.covers(needed(relation, key, terms)) },
        };
        if !is_allowed && !self.denied.contains(&terms.grantee.owner) {
            self.denied.insert(terms.grantee.owner.clone());
        }
        is_allowed
    }

    /// Owners who may not read all that their subscriptions want of the relation.
    pub fn denied(&self) -> &BTreeSet<String> {
        &self.denied
    }

    /// The same without a look at the relation; none when it takes one. In a transaction.
    pub fn allow_all(&mut self, table: Oid, terms: &Terms<'_>) -> Option<bool> {
        match self.of(table, terms.grantee) {
            // Perhaps it is not there yet.
            Access::Nothing(_) if !acl::exists(table) => None,
            Access::All => Some(true),
            Access::Nothing(_) => Some(false),
            Access::Columns(_) => None,
        }
    }

    fn of(&mut self, table: Oid, grantee: &Arc<Grantee>) -> &Access {
        self.known.entry(Arc::clone(grantee)).or_insert_with(|| look(table, grantee))
    }
}

fn look(table: Oid, grantee: &Grantee) -> Access {
    acl::of(table, acl::role_of(&grantee.owner))
}

/// What an owner lacks to read what a subscription wants of a table.
pub enum Missing {
    /// All of it.
    Table(Lack),
    /// These columns, by name.
    Columns(Vec<String>),
}

impl Missing {
    /// In words.
    pub fn words(&self, table: Oid, grantee: &Grantee) -> String {
        let owner = pgrx::spi::quote_identifier(&grantee.owner);
        let table_name = TablePattern::exactly(&lineage::name_of(table));
        match self {
            Missing::Table(Lack::Role) => format!("its owner {owner} does not exist"),
            Missing::Table(Lack::Schema) => {
                format!("its owner {owner} may not use the schema of {table_name}")
            }
            Missing::Table(Lack::Select) => format!("its owner {owner} may not read {table_name}"),
            Missing::Table(Lack::RowSecurity) if compat::owns_table(table, acl::role_of(&grantee.owner)) => {
                format!("row-level security is forced on {owner}, too, who owns {table_name}")
            }
            Missing::Table(Lack::RowSecurity) => {
                format!("row-level security shows its owner {owner} some rows of {table_name} only")
            }
            Missing::Columns(columns) => {
                let columns: Vec<String> = columns.iter().map(pgrx::spi::quote_identifier).collect();
                format!("its owner {owner} may not read {} of {table_name}", columns.join(", "))
            }
        }
    }
}

/// What the owner lacks to read what is wanted of the relation; none when it is allowed.
///
/// # Safety
/// The relation is open, and a transaction is in progress.
pub unsafe fn missing(relation: pg_sys::Relation, terms: &Terms<'_>) -> Option<Missing> {
    // SAFETY: as the caller promises.
    unsafe {
        let allowed = match look((*relation).rd_id, terms.grantee) {
            Access::All => return None,
            Access::Nothing(lack) => return Some(Missing::Table(lack)),
            Access::Columns(allowed) => allowed,
        };
        let missing: Vec<String> = needed(relation, &event_key(relation).0, terms)
            .difference(&allowed)
            .map(|number| match usize::try_from(number - 1) {
                Ok(place) => encoding::name(&compat::attribute((*relation).rd_att, place).attname),
                // A row as a whole.
                Err(_) => "*".to_owned(),
            })
            .collect();
        (!missing.is_empty()).then_some(Missing::Columns(missing))
    }
}

/// The columns that must be readable.
///
/// # Safety
/// The relation is open, and a transaction is in progress.
unsafe fn needed(relation: pg_sys::Relation, key: &[i16], terms: &Terms<'_>) -> BTreeSet<i16> {
    let Terms { condition, grantee } = terms;
    let is_changed = |name: &String| {
        condition.and_then(|it| it.changed.as_ref()).is_some_and(|changed| changed.contains(name))
    };
    // SAFETY: as the caller promises.
    unsafe {
        let desc = (*relation).rd_att;
        let attributes = (0..(*desc).natts as usize).map(|place| compat::attribute(desc, place));
        let mut needed: BTreeSet<i16> = attributes
            .filter(|attribute| !attribute.attisdropped)
            .map(|attribute| (encoding::name(&attribute.attname), attribute.attnum))
            .filter(|(name, number)| grantee.is_shown(name, key.contains(number)) || is_changed(name))
            .map(|(_, number)| number)
            .collect();
        if let Some(condition) = condition {
            needed.extend(looked_at(condition, relation));
        }
        needed
    }
}

/// The columns that a filter looks at. What cannot be resolved is refused where it is judged.
unsafe fn looked_at(condition: &Condition, relation: pg_sys::Relation) -> BTreeSet<i16> {
    let Some(filter) = &condition.filter else { return BTreeSet::new() };
    let memory = Memory::new(c"pgwh permits");
    let uses = in_subtransaction(memory.context(), || {
        let filter = encoding::in_server_encoding(filter);
        // SAFETY: the relation is open.
        unsafe { analyze::resolve(&filter, relation, Bare::New).map(|condition| condition.uses) }
    });
    match uses {
        Ok(Ok(uses)) => uses.new.into_iter().chain(uses.old).collect(),
        _ => BTreeSet::new(),
    }
}
