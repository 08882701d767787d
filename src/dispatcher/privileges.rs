//! Whether an event may be sent still: what was captured while its subscription's owner might read it waits, perhaps for
//! long, and must not leave when that is over.
//!
//! Looked at right before a request is made. What was found is kept until the server's caches tell that something about
//! tables or roles has changed, which they do before the command that changed it is done.

use std::cell::Cell;
use std::sync::Arc;

use pgrx::pg_sys::{self, Oid};
use rustc_hash::FxHashMap;

use crate::decode::routing::router::Grantee;
use crate::event::Event;
use crate::pg::acl;
use crate::pg::acl::{Access, Lack};
use crate::pg::process::bgworker;

/// So many are kept, whoever has them.
const FEW: usize = 64;

thread_local! {
    /// Counts what the caches tell.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// What was found of roles and tables.
pub struct Permission {
    /// By oid of the table: a hundred thousand subscriptions may belong to one role.
    found: FxHashMap<Arc<Grantee>, FxHashMap<u32, Found>>,
    /// Those that no subscription has any more are forgotten when there are so many. Who was refused is not: of a table
    /// that is gone meanwhile nobody could say so again.
    tidy_at: usize,
}

struct Found {
    /// As of how many changes.
    at: u64,
    refusal: Option<String>,
}

impl Permission {
    /// Nothing is known yet. Registers with the caches, so at most once a process.
    pub fn new() -> Permission {
        let caches = {
            use pg_sys::SysCacheIdentifier::{AUTHMEMROLEMEM, AUTHOID, DATABASEOID, NAMESPACEOID};
            [AUTHMEMROLEMEM, AUTHOID, DATABASEOID, NAMESPACEOID]
        };
        // SAFETY: the callbacks are functions of this library, which is never unloaded.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::null());
            for cache in caches {
                pg_sys::CacheRegisterSyscacheCallback(cache as _, Some(role_changed), pg_sys::Datum::null());
            }
        }
        Permission { found: FxHashMap::default(), tidy_at: FEW }
    }

    /// Hears of what has been committed until now. Outside of any transaction.
    pub fn refresh(&self) {
        // The beginning of a transaction takes up what the caches are told.
        bgworker::in_bare_transaction(|| ());
    }

    /// Why an event may not be sent now; none when it may. `again`: it is not sent for the first time. Outside of any
    /// transaction.
    pub fn refusal(&mut self, grantee: &Arc<Grantee>, event: &Event, again: bool) -> Option<String> {
        if !event.action.is_of_rows() {
            return None;
        }
        let table = event.relation.oid;
        if let Some(found) = self.found.get(grantee).and_then(|known| known.get(&table))
            && found.at == CHANGES.get()
        {
            return found.refusal.clone();
        }
        self.tidy();
        let known = self.found.entry(Arc::clone(grantee)).or_default();
        let judged = bgworker::in_bare_transaction(|| judge(grantee, event));
        let refusal = match judged {
            Some(refusal) => refusal,
            // Of a table that is gone nobody can say any more who may read it.
            None => match known.get(&table) {
                Some(found) => found.refusal.clone(),
                None => again.then(|| "its table is gone, and with it who may read it".to_owned()),
            },
        };
        known.insert(table, Found { at: CHANGES.get(), refusal: refusal.clone() });
        refusal
    }

    fn tidy(&mut self) {
        if self.found.len() >= self.tidy_at {
            self.found.retain(|grantee, known| {
                Arc::strong_count(grantee) > 1 || known.values().any(|found| found.refusal.is_some())
            });
            self.tidy_at = FEW.max(2 * self.found.len());
        }
    }
}

/// Why the event may not be sent, if at all; none when its table is gone.
fn judge(grantee: &Grantee, event: &Event) -> Option<Option<String>> {
    let relation = &event.relation;
    let role = acl::role_of(&grantee.owner);
    let table = Oid::from(relation.oid);
    // A partition may be gone, and who may read it through what it was a part of may still.
    let access = [table, Oid::from(relation.root_oid)]
        .into_iter()
        .find(|table| acl::exists(*table))
        .map(|there| (there == table, acl::of(there, role)));
    let (is_itself, access) = access?;
    let name = relation.name(usize::MAX);
    let why = match access {
        Access::All => return Some(None),
        Access::Columns(_) if !is_itself => "may not read all of",
        access @ Access::Columns(_) => {
            let shown =
                relation.columns.iter().filter(|column| grantee.is_shown(&column.name, column.is_key));
            if access.covers(shown.map(|column| column.number)) {
                return Some(None);
            }
            "may not read some columns of"
        }
        Access::Nothing(Lack::RowSecurity) => "is shown some rows only of",
        Access::Nothing(Lack::Role) => "does not exist, and may not read",
        Access::Nothing(Lack::Schema | Lack::Select) => "may not read",
    };
    Some(Some(format!("the owner \"{}\" {why} {}.{}", grantee.owner, name.schema, name.table)))
}

unsafe extern "C-unwind" fn relation_changed(_: pg_sys::Datum, _: Oid) {
    CHANGES.set(CHANGES.get() + 1);
}

unsafe extern "C-unwind" fn role_changed(_: pg_sys::Datum, _: i32, _: u32) {
    CHANGES.set(CHANGES.get() + 1);
}
