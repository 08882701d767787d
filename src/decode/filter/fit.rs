//! Whether the condition of a subscription fits a table to which a wildcard leads. A table that it does not fit is left out; one
//! that it fitted before is missed.

use std::collections::HashMap;

use pgrx::pg_sys;

use super::analyze;
use super::analyze::Bare;
use super::normalize::Shape;
use crate::decode::routing::router::{Condition, Interest};
use crate::decode::routing::table_pattern::TablePattern;
use crate::event::Action;
use crate::pg::compat;
use crate::pg::lineage;
use crate::pg::memory_context::Memory;
use crate::pg::subtransaction::in_subtransaction;
use crate::pg::values::encoding;
use crate::pg::values::encoding::in_server_encoding;

/// What was found of one table, by what conditions have in common that fit it alike.
pub struct Fits {
    known: HashMap<Alike, Option<String>>,
    /// Whether each literal is judged; else filters that differ in literals are taken to fit alike, unless a literal is the
    /// reason that one does not.
    are_exact: bool,
}

#[derive(PartialEq, Eq, Hash)]
struct Alike {
    shape: Option<String>,
    changed: Option<Vec<String>>,
    bare: [bool; 2],
    is_of_updates: bool,
}

impl Fits {
    /// Of a table of which nothing was found yet.
    pub fn new(are_exact: bool) -> Fits {
        Fits { known: HashMap::new(), are_exact }
    }

    /// Why the condition does not fit the table.
    ///
    /// # Safety
    /// The relation is open, and a transaction is in progress.
    pub unsafe fn misfit(
        &mut self,
        relation: pg_sys::Relation,
        interest: &Interest,
        condition: &Condition,
    ) -> Option<String> {
        let alike = Alike {
            shape: condition.filter.as_deref().map(|filter| match self.are_exact {
                true => filter.to_owned(),
                false => Shape::of(filter).text,
            }),
            changed: condition.changed.clone(),
            bare: [is_of_new_rows(interest), interest.wants(Action::Delete)],
            is_of_updates: interest.wants(Action::Update),
        };
        if let Some(known) = self.known.get(&alike) {
            return known.clone();
        }
        // SAFETY: as the caller promises.
        let (reason, is_of_a_value) = unsafe { judge(relation, interest, condition) }.unzip();
        if is_of_a_value != Some(true) {
            self.known.insert(alike, reason.clone());
        }
        reason
    }
}

fn is_of_new_rows(interest: &Interest) -> bool {
    [Action::Insert, Action::Update, Action::Truncate].into_iter().any(|action| interest.wants(action))
}

/// Why it does not fit, and whether a value is the reason.
unsafe fn judge(
    relation: pg_sys::Relation,
    interest: &Interest,
    condition: &Condition,
) -> Option<(String, bool)> {
    // SAFETY: the relation is open.
    let (table, columns) = unsafe { ((*relation).rd_id, columns(relation)) };
    let table = || TablePattern::exactly(&lineage::name_of(table));
    let lacks = |name: &&String| !columns.iter().any(|(_, column, ..)| column == *name);
    if interest.wants(Action::Update)
        && let Some(name) = condition.changed.iter().flatten().find(lacks)
    {
        let reason = format!("its list changed does not fit {}: column \"{name}\" does not exist", table());
        return Some((reason, false));
    }
    let filter = in_server_encoding(condition.filter.as_deref()?);
    let memory = Memory::new(c"pgwh fit");
    let meanings =
        [(Bare::New, is_of_new_rows(interest)), (Bare::Old, interest.wants(Action::Delete))].into_iter();
    let raised = meanings.filter(|(_, is_wanted)| *is_wanted).find_map(|(bare, _)| {
        // SAFETY: as the caller promises.
        let resolved = in_subtransaction(memory.context(), || unsafe {
            analyze::resolve(&filter, relation, bare).map(|_| ())
        });
        resolved.and_then(|inner| inner).err()
    })?;
    Some((format!("its filter does not fit {}: {}", table(), raised.message), raised.is_of_a_value()))
}

/// What decides of a table's columns whether a condition fits: number, name, type and its modifier.
pub type Columns = Vec<(i16, String, pg_sys::Oid, i32)>;

/// The columns of a table.
///
/// # Safety
/// The relation is open.
pub unsafe fn columns(relation: pg_sys::Relation) -> Columns {
    // SAFETY: as the caller promises.
    unsafe {
        let desc = (*relation).rd_att;
        let attributes = (0..(*desc).natts as usize).map(|place| compat::attribute(desc, place));
        attributes
            .filter(|attribute| !attribute.attisdropped)
            .map(|it| (it.attnum, encoding::name(&it.attname), it.atttypid, it.atttypmod))
            .collect()
    }
}
