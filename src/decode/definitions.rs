//! Tables whose definitions a transaction changes, as they were before it: the comparison with what they are at its commit
//! shows which subscriptions lose a table by it.

use std::collections::HashSet;

use pgrx::pg_sys::{self, Oid};

use super::filter::fit;
use super::filter::fit::Fits;
use super::routing::router::{Condition, Interest, Level, Router, Terms};
use super::routing::{lineage, privileges};
use crate::event::TableName;
use crate::pg::values::encoding;

/// What a transaction changes in the catalogs, by its invalidation messages.
#[derive(Default)]
pub struct Invalidated {
    /// Relations.
    tables: HashSet<Oid>,
    /// Whether schemas are among it.
    schemas: bool,
    /// Whether roles or their memberships are.
    roles: bool,
    /// Whether labels of enums are.
    enums: bool,
}

/// Definitions before a transaction.
#[derive(Default)]
pub struct Definitions {
    /// Those that there were.
    pub tables: Vec<Definition>,
    /// Tables without one: they are new.
    pub new: Vec<Oid>,
    /// The names of all schemas, if any of them is changed.
    schemas: Vec<(Oid, String)>,
    /// Whether labels of enums are changed.
    pub has_enums: bool,
}

/// What matters of a table's definition.
pub struct Definition {
    /// The table.
    pub table: Oid,
    /// The table, and those above it.
    pub levels: Vec<Level>,
    /// Whether its changes are in the write-ahead log.
    pub is_logged: bool,
    /// Subscriptions to which a wildcard gives it, and whose owners may read it.
    pub readers: Vec<i64>,
    /// Subscriptions to which a wildcard gives it, and their conditions, which fit it.
    pub fitting: Vec<(i64, Condition)>,
    /// Its columns.
    pub columns: fit::Columns,
}

impl Invalidated {
    /// What a transaction that is about to be handed over changes.
    ///
    /// # Safety
    /// The server passed it to a callback.
    pub unsafe fn by(txn: *mut pg_sys::ReorderBufferTXN) -> Invalidated {
        // SAFETY: as the caller promises.
        unsafe {
            if (*txn).invalidations.is_null() {
                return Invalidated::default();
            }
            Self::of(std::slice::from_raw_parts((*txn).invalidations, (*txn).ninvalidations as usize))
        }
    }

    /// What these messages tell.
    fn of(messages: &[pg_sys::SharedInvalidationMessage]) -> Invalidated {
        use pg_sys::SysCacheIdentifier::{AUTHMEMROLEMEM, AUTHOID, ENUMOID, NAMESPACEOID};
        let mut changed = Invalidated::default();
        for message in messages {
            // SAFETY: which member a message has is said by its id (`sinval.h`).
            match unsafe { i32::from(message.id) } {
                pg_sys::SHAREDINVALRELCACHE_ID => {
                    // SAFETY: as above.
                    let (database, table) = unsafe { (message.rc.dbId, message.rc.relId) };
                    // SAFETY: a global of this process.
                    if database == unsafe { pg_sys::MyDatabaseId } {
                        changed.tables.insert(table);
                    }
                }
                id if id == NAMESPACEOID as i32 => changed.schemas = true,
                id if id == AUTHOID as i32 || id == AUTHMEMROLEMEM as i32 => changed.roles = true,
                id if id == ENUMOID as i32 => changed.enums = true,
                _ => {}
            }
        }
        changed
    }

    /// What the messages of a transaction of another database tell that concerns this one: roles are all databases' own.
    pub fn elsewhere(messages: &[pg_sys::SharedInvalidationMessage]) -> Invalidated {
        let Invalidated { roles, .. } = Self::of(messages);
        Invalidated { roles, ..Invalidated::default() }
    }

    /// Whether there is anything.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && !self.schemas && !self.roles && !self.enums
    }
}

impl Definitions {
    /// What is changed, as it is now.
    ///
    /// # Safety
    /// A transaction is in progress, with a historic snapshot from before the changes.
    pub unsafe fn of(changed: &Invalidated, router: &Router) -> Definitions {
        let mut before = Definitions::default();
        // SAFETY: as the caller promises.
        unsafe {
            let has_enums = changed.enums;
            before.has_enums = has_enums;
            for table in &changed.tables {
                let fits = Some(Fits::new(has_enums));
                match Definition::of(*table, router, fits) {
                    Some(definition) => before.tables.push(definition),
                    None => before.new.push(*table),
                }
            }
            // A right may be one by way of a schema or of another role, and a type is one of many tables.
            if (changed.schemas || changed.roles || has_enums) && router.has_wildcards() {
                let others = all_tables(|_| true).into_iter().filter(|oid| !changed.tables.contains(oid));
                let others = others
                    .filter_map(|oid| Definition::of(oid, router, has_enums.then(|| Fits::new(true))))
                    .filter(|it| !it.readers.is_empty() || !it.fitting.is_empty());
                before.tables.extend(others);
            }
            if changed.schemas {
                before.schemas = all_schemas();
            }
        }
        before
    }

    /// Whether nothing was found that a transaction may take away.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.new.is_empty() && self.schemas.is_empty()
    }

    /// The definition of a table, if it is among them.
    pub fn table(&self, table: Oid) -> Option<&Definition> {
        self.tables.iter().find(|known| known.table == table)
    }

    /// Whether a schema of that oid is among what may have another name.
    pub fn has_schema(&self, schema: Oid) -> bool {
        self.schemas.iter().any(|(known, _)| *known == schema)
    }

    /// Other tables, which have another name now because their schema has.
    ///
    /// # Safety
    /// A transaction is in progress, with a historic snapshot from after the changes.
    pub unsafe fn moved(&self) -> Vec<Definition> {
        let mut moved = Vec::new();
        // SAFETY: as the caller promises.
        unsafe {
            for (schema, name) in &self.schemas {
                let now = pg_sys::get_namespace_name(*schema);
                if now.is_null() || encoding::utf8(std::ffi::CStr::from_ptr(now).to_bytes()) == name.as_str()
                {
                    continue;
                }
                for table in all_tables(|form| form.relnamespace == *schema) {
                    if self.table(table).is_some() {
                        continue;
                    }
                    let mut level = lineage::level(table);
                    level.name.schema.clone_from(name);
                    moved.push(Definition {
                        table,
                        levels: vec![level],
                        is_logged: is_logged(table),
                        readers: Vec::new(),
                        fitting: Vec::new(),
                        columns: Vec::new(),
                    });
                }
            }
        }
        moved
    }
}

impl Definition {
    /// The definition of a table now; none when it is no table that lasts. Without `fits`, no condition is judged.
    ///
    /// # Safety
    /// A transaction is in progress.
    unsafe fn of(table: Oid, router: &Router, fits: Option<Fits>) -> Option<Definition> {
        // SAFETY: as the caller promises.
        unsafe {
            if !matches!(pg_sys::get_rel_relkind(table) as u8, b'r' | b'p')
                || pg_sys::get_rel_persistence(table) as u8 == pg_sys::RELPERSISTENCE_TEMP
            {
                return None;
            }
            let levels = lineage::of(table);
            // A partition is read by way of the tables above it, and has their columns.
            let wild = router
                .declared_interests(&levels)
                .filter(|(interest, _)| !interest.is_named && interest.is_of_rows() && interest.level == 0);
            let wild: Vec<_> = wild.collect();
            let (mut readers, mut fitting, mut columns) = (Vec::new(), Vec::new(), Vec::new());
            if !wild.is_empty() {
                let reader = Reader::of(table);
                let may_read = |(_, terms): &&(Interest, Terms<'_>)| reader.why_not(terms).is_none();
                readers.extend(wild.iter().filter(may_read).map(|(interest, _)| interest.subscription));
                if let Some(mut fits) = fits {
                    fitting.extend(wild.iter().filter_map(|(interest, terms)| {
                        let condition = terms.condition?;
                        let fits = reader.misfit(&mut fits, interest, condition).is_none();
                        fits.then(|| (interest.subscription, condition.clone()))
                    }));
                    columns = reader.columns();
                }
            }
            Some(Definition { table, levels, is_logged: is_logged(table), readers, fitting, columns })
        }
    }
}

/// A table that is open, to see who may read it, and whose conditions fit it.
pub struct Reader(pg_sys::Relation);

impl Reader {
    /// Opens a table.
    ///
    /// # Safety
    /// A transaction is in progress, with a historic snapshot: nothing is locked.
    pub unsafe fn of(table: Oid) -> Reader {
        // SAFETY: as the caller promises; a relation that is gone is null.
        Reader(unsafe { pg_sys::RelationIdGetRelation(table) })
    }

    /// What the owner of a subscription may not read that it wants; none when nothing is missing, or there is no table.
    pub fn why_not(&self, terms: &Terms<'_>) -> Option<String> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the relation is open, which takes a transaction.
        unsafe {
            privileges::missing(self.0, terms).map(|missing| missing.words((*self.0).rd_id, terms.grantee))
        }
    }

    /// Why the condition of a subscription does not fit the table.
    pub fn misfit(&self, fits: &mut Fits, interest: &Interest, condition: &Condition) -> Option<String> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the relation is open, which takes a transaction.
        unsafe { fits.misfit(self.0, interest, condition) }
    }

    /// The columns of the table.
    pub fn columns(&self) -> fit::Columns {
        // SAFETY: the relation is open.
        if self.0.is_null() { Vec::new() } else { unsafe { fit::columns(self.0) } }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: it is open.
            unsafe { pg_sys::RelationClose(self.0) };
        }
    }
}

/// Whether the changes of a table are in the write-ahead log. In a transaction.
pub fn is_logged(table: Oid) -> bool {
    // SAFETY: syscache look-ups. A partitioned table has no rows of its own.
    unsafe {
        pg_sys::get_rel_persistence(table) as u8 == pg_sys::RELPERSISTENCE_PERMANENT
            || pg_sys::get_rel_relkind(table) as u8 == pg_sys::RELKIND_PARTITIONED_TABLE
    }
}

/// The table of that name, or the invalid oid. In a transaction.
pub fn table_of(name: &TableName) -> Oid {
    let (schema, table) =
        (encoding::in_server_encoding(&name.schema), encoding::in_server_encoding(&name.table));
    // SAFETY: syscache look-ups by C strings.
    unsafe {
        match pg_sys::get_namespace_oid(schema.as_ptr(), true) {
            pg_sys::InvalidOid => pg_sys::InvalidOid,
            schema => pg_sys::get_relname_relid(table.as_ptr(), schema),
        }
    }
}

/// The tables that are in no log and yet last.
///
/// # Safety
/// A transaction is in progress.
pub unsafe fn unlogged_tables() -> Vec<Oid> {
    // SAFETY: as the caller promises.
    unsafe { all_tables(|form| form.relpersistence as u8 == pg_sys::RELPERSISTENCE_UNLOGGED) }
}

/// The tables that last, partitioned ones too.
///
/// # Safety
/// A transaction is in progress.
unsafe fn all_tables(is_wanted: impl Fn(&pg_sys::FormData_pg_class) -> bool) -> Vec<Oid> {
    let mut tables = Vec::new();
    // SAFETY: as the caller promises; rows of the catalog are of this form.
    unsafe {
        scan(pg_sys::RelationRelationId, |tuple| {
            let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
            if matches!(form.relkind as u8, b'r' | b'p')
                && form.relpersistence as u8 != pg_sys::RELPERSISTENCE_TEMP
                && is_wanted(form)
            {
                tables.push(form.oid);
            }
        });
    }
    tables
}

/// # Safety
/// A transaction is in progress.
unsafe fn all_schemas() -> Vec<(Oid, String)> {
    let mut schemas = Vec::new();
    // SAFETY: as the caller promises; rows of the catalog are of this form.
    unsafe {
        scan(pg_sys::NamespaceRelationId, |tuple| {
            let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_namespace>();
            schemas.push((form.oid, encoding::name(&form.nspname)));
        });
    }
    schemas
}

/// Shows each row of a catalog, as the catalog's snapshot has it.
///
/// # Safety
/// A transaction is in progress.
unsafe fn scan(catalog: Oid, mut show: impl FnMut(pg_sys::HeapTuple)) {
    // SAFETY: as the caller promises; what is opened is closed, by the transaction if an ERROR comes between.
    unsafe {
        let relation = pg_sys::table_open(catalog, pg_sys::AccessShareLock as _);
        let none = (pg_sys::InvalidOid, std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(relation, none.0, false, none.1, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            show(tuple);
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as _);
    }
}
