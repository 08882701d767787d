//! What a subscription's owner must be allowed to read: each table, and of it each column that payloads show and that
//! conditions look at. Judged when somebody subscribes, and by the decoder again as of each change.

use std::cell::RefCell;
use std::sync::Arc;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::filter_check::{Conditions, Lock, name_of, without_numbers};
use super::tables::tables_of;
use crate::decode::routing::privileges;
use crate::decode::routing::privileges::Missing;
use crate::decode::routing::router::{Condition, Grantee, Terms};
use crate::error::Error;
use crate::event::event_type::MESSAGE_PREFIX;
use crate::pg::acl::{Access, Lack};
use crate::pg::command::command_cache::Found;
use crate::pg::values::composite::Row;
use crate::pg::values::detoasted_arg::{Key, Stored};
use crate::pg::values::encoding::Text;
use crate::pg::{acl, compat};

thread_local! {
    /// What reads nothing that its owner may not read.
    static PERMITTED: RefCell<Found<Claim, ()>> = RefCell::default();
    /// Owners, and lists of tables that they may read as a whole.
    static OPEN: RefCell<Found<Key, ()>> = RefCell::default();
    /// What was found of others, whatever numbers are in their filters.
    static JUDGED: RefCell<Found<Key, Option<Arc<Denial>>>> = RefCell::default();
}

/// What a subscription reads, and on whose behalf.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    grantee: Grantee,
    conditions: Conditions,
}

/// A table that may not be read.
pub struct Denied {
    /// Its name, as SQL spells it.
    pub table: String,
    /// Whether a pattern without a wildcard leads to it.
    pub is_named: bool,
    /// The role, as SQL spells it.
    owner: String,
    missing: Missing,
    /// What is missing, in words.
    why: String,
    /// Whether the table is the role's own, which says that its policies hold for that, too.
    is_forced: bool,
}

impl Claim {
    /// What a subscription of that owner reads.
    pub fn new(
        owner: String,
        conditions: Conditions,
        columns: Option<Vec<String>>,
        exclude_columns: Option<Vec<String>>,
    ) -> Claim {
        let key_columns = conditions.key_columns.clone();
        Claim { grantee: Grantee { owner, columns, exclude_columns, key_columns }, conditions }
    }

    /// Refuses what reads a table, or messages, that the owner may not.
    pub fn check(&self) -> Result<(), Error> {
        let listens = self.conditions.event_types.iter().any(|word| word.starts_with(MESSAGE_PREFIX));
        if listens && !acl::may_read_log(acl::role_of(&self.grantee.owner)) {
            return Err(Error::MayNotListen(self.grantee.owner.clone()));
        }
        // Of many that are made in one command, most are the same but for numbers.
        let remembered = self.without_numbers();
        if PERMITTED.with_borrow(|permitted| permitted.get(&remembered)).is_some() {
            return Ok(());
        }
        let lock = |is_named| if is_named { Lock::Brief } else { Lock::IfFree };
        let denied = self.denied(MAX_DENIED_LISTED, lock)?;
        if denied.is_empty() {
            PERMITTED.with_borrow_mut(|permitted| permitted.add(remembered, ()));
            return Ok(());
        }
        Err(refusal(&denied))
    }

    /// Tables of today that the owner may not read as it is wanted, so many at most; those that are named before others.
    fn denied(&self, limit: usize, lock: impl Fn(bool) -> Lock) -> Result<Vec<Denied>, Error> {
        if !self.conditions.event_types.iter().any(|word| ROWS.contains(&word.as_str())) {
            return Ok(Vec::new());
        }
        let role = acl::role_of(&self.grantee.owner);
        if acl::is_superuser(role) {
            return Ok(Vec::new());
        }
        let (mut named, mut others) = (Vec::new(), Vec::new());
        for (table, is_named) in tables_of(&self.conditions.tables)? {
            if let Some(missing) = self.missing(table, role, lock(is_named)) {
                let denied = self.deny(table, is_named, missing);
                let list = if is_named { &mut named } else { &mut others };
                // Partitions stand for the table above them.
                if list.len() < limit && list.iter().all(|known: &Denied| known.why != denied.why) {
                    list.push(denied);
                }
                if named.len() == limit {
                    break;
                }
            }
        }
        named.append(&mut others);
        named.truncate(limit);
        Ok(named)
    }

    /// Refuses one table that the owner may not read.
    pub fn check_table(&self, table: pg_sys::Oid) -> Result<(), Error> {
        match self.missing(table, acl::role_of(&self.grantee.owner), Lock::Brief) {
            Some(missing) => Err(refusal(&[self.deny(table, true, missing)])),
            None => Ok(()),
        }
    }

    fn deny(&self, table: pg_sys::Oid, is_named: bool, missing: Missing) -> Denied {
        let owner = pgrx::spi::quote_identifier(&self.grantee.owner);
        let table = self.table_to_grant(table);
        let is_forced = compat::owns_table(table, acl::role_of(&self.grantee.owner));
        let why = missing.words(table, &self.grantee);
        Denied { table: name_of(table), is_named, owner, missing, why, is_forced }
    }

    fn missing(&self, table: pg_sys::Oid, role: pg_sys::Oid, lock: Lock) -> Option<Missing> {
        match acl::of(table, role) {
            Access::All => return None,
            Access::Nothing(lack) => return acl::exists(table).then_some(Missing::Table(lack)),
            Access::Columns(_) => {}
        }
        let Conditions { filter, changed, .. } = &self.conditions;
        let condition = Condition { filter: filter.as_deref().map(Arc::from), changed: changed.clone() };
        let grantee = Arc::new(self.grantee.clone());
        let terms = Terms { condition: Some(&condition), grantee: &grantee };
        // SAFETY: what is opened is closed.
        unsafe {
            let relation = lock.open(table);
            if relation.is_null() {
                return None;
            }
            let missing = compat::with_settings_of_filters(|| privileges::missing(relation, &terms));
            lock.close(relation);
            missing
        }
    }

    /// Of a partition the topmost table above it, unless it is named itself.
    fn table_to_grant(&self, table: pg_sys::Oid) -> pg_sys::Oid {
        let name = name_of(table);
        // SAFETY: syscache look-ups in a transaction; the table is a partition.
        let root = unsafe {
            let is_part = !self.conditions.tables.contains(&name) && pg_sys::get_rel_relispartition(table);
            is_part.then(|| compat::partition_ancestors(table).pop()).flatten()
        };
        root.unwrap_or(table)
    }

    fn without_numbers(&self) -> Claim {
        Claim { conditions: self.conditions.without_numbers(), ..self.clone() }
    }
}

/// How many tables that may not be read a refusal lists.
const MAX_DENIED_LISTED: usize = 10;

/// Kinds of events that bring rows.
const ROWS: [&str; 5] = ["insert", "update", "delete", "truncate", "read"];

impl Denied {
    /// In words, and what to type.
    fn words(&self) -> (String, String) {
        let Denied { table, owner, missing, .. } = self;
        let cure = match missing {
            Missing::Table(Lack::Role) => {
                "UPDATE pgwh.subscriptions SET owner = current_user WHERE ...".to_owned()
            }
            Missing::Table(Lack::Schema) => {
                let schema = table.split('.').next().unwrap_or_default();
                format!("GRANT USAGE ON SCHEMA {schema} TO {owner};")
            }
            Missing::Table(Lack::Select) => format!("GRANT SELECT ON {table} TO {owner};"),
            Missing::Table(Lack::RowSecurity) if self.is_forced => {
                format!("ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY; or: ALTER ROLE {owner} BYPASSRLS;")
            }
            Missing::Table(Lack::RowSecurity) => format!(
                "Let it belong to the owner of {table} or to a role with BYPASSRLS, or: ALTER ROLE {owner} BYPASSRLS;"
            ),
            Missing::Columns(columns) => {
                let columns: Vec<String> = columns.iter().map(pgrx::spi::quote_identifier).collect();
                format!("GRANT SELECT ({}) ON {table} TO {owner};", columns.join(", "))
            }
        };
        (self.why.clone(), cure)
    }
}

/// Refuses tables that may not be read, one at least.
fn refusal(denied: &[Denied]) -> Error {
    let tables: Vec<String> = denied.iter().map(|denied| denied.table.clone()).collect();
    let (reasons, mut cures): (Vec<String>, Vec<String>) = denied.iter().map(Denied::words).unzip();
    // One GRANT on a schema helps all of its tables.
    cures.dedup();
    let pronoun = if tables.len() == 1 { "it" } else { "them" };
    let why = format!("The subscription cannot have {pronoun}: {}.", reasons.join("; "));
    Error::MayNotRead { tables, why, cure: cures.join(" ") }
}

/// Why a subscription gets nothing of a table today, what to type, and whether that table is one that it names.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)]
fn permission_problem(
    owner: Option<Text>,
    tables: Option<Stored>,
    event_types: Option<Stored>,
    filter: Option<Stored>,
    changed: Option<Stored>,
    columns: Option<Stored>,
    exclude_columns: Option<Stored>,
    key_columns: Option<Stored>,
) -> Result<Option<Row>, ErrorReport> {
    let owner = owner.unwrap_or_default().0;
    let role = acl::role_of(&owner);
    if acl::is_superuser(role) {
        return Ok(None);
    }
    let whole = Key::new().and(Some(owner.as_bytes())).and_stored(&tables);
    if OPEN.with_borrow(|open| open.get(&whole)).is_some() {
        return Ok(None);
    }
    let filter = filter.as_ref().map(Stored::text);
    let terms = [&tables, &event_types, &changed, &columns, &exclude_columns, &key_columns];
    let key = terms.into_iter().fold(Key::new().and(Some(owner.as_bytes())), Key::and_stored);
    let key = key.and(filter.as_deref().map(without_numbers).as_deref().map(str::as_bytes));
    if let Some(known) = JUDGED.with_borrow(|judged| judged.get(&key)) {
        return Ok(known.as_deref().map(Denial::row));
    }
    let conditions = Conditions::read(&tables, &event_types, filter, &changed, &key_columns);
    let may_read = |(table, _): &(pg_sys::Oid, bool)| matches!(acl::of(*table, role), Access::All);
    if tables_of(&conditions.tables)?.iter().all(may_read) {
        OPEN.with_borrow_mut(|open| open.add(whole, ()));
        return Ok(None);
    }
    let texts = |stored: &Option<Stored>| stored.as_ref().map(Stored::texts);
    let denied = Claim::new(owner, conditions, texts(&columns), texts(&exclude_columns))
        .denied(1, |_| Lock::IfFree)?;
    let denial = denied.first().map(|denied| Arc::new(Denial::of(denied)));
    JUDGED.with_borrow_mut(|judged| judged.add(key, denial.clone()));
    Ok(denial.as_deref().map(Denial::row))
}

/// What is told of a table that may not be read.
struct Denial {
    why: String,
    cure: String,
    stops: bool,
}

impl Denial {
    fn of(denied: &Denied) -> Denial {
        let (why, cure) = denied.words();
        Denial { why, cure, stops: denied.is_named }
    }

    fn row(&self) -> Row {
        Row::with_capacity(3)
            .and(Text::from(self.why.as_str()))
            .and(Text::from(self.cure.as_str()))
            .and(self.stops)
    }
}
