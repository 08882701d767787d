//! What tells the rows of a table apart: to people, and in write-ahead log.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};

use crate::event::KeyKind;
use crate::pg::compat;
use crate::pg::values::encoding;

/// What write-ahead log has of the old row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The key's columns, when the key changed and in a delete.
    Key,
    /// All columns.
    Full,
    /// Nothing.
    Nothing,
}

/// An index of a table.
struct Index {
    oid: Oid,
    name: String,
    /// The attribute numbers of its columns; 0 stands for an expression.
    columns: Vec<i16>,
    is_primary: bool,
    is_unique: bool,
    /// Whether it is checked at once, so that Postgres takes it for a key.
    is_immediate: bool,
}

/// What write-ahead log has of old rows, and the numbers of the columns that it has in any case.
///
/// # Safety
/// `relation` is open.
pub unsafe fn identity_of(relation: pg_sys::Relation) -> (Identity, Vec<i16>) {
    // SAFETY: as the caller promises.
    unsafe {
        let identity = match (*(*relation).rd_rel).relreplident as u8 {
            pg_sys::REPLICA_IDENTITY_FULL => Identity::Full,
            pg_sys::REPLICA_IDENTITY_NOTHING => Identity::Nothing,
            _ => Identity::Key,
        };
        (identity, columns_of(logged_key(relation)))
    }
}

/// The attribute numbers of the columns that the key of an event shows, and what is known of them: those of the replica
/// identity's index, or else of the primary key, also of a deferrable one, of which write-ahead log knows nothing.
///
/// # Safety
/// `relation` is open, and a transaction is in progress.
pub unsafe fn event_key(relation: pg_sys::Relation) -> (Vec<i16>, KeyKind) {
    // SAFETY: as the caller promises.
    unsafe {
        let (identity, logged) = identity_of(relation);
        let is_logged = !logged.is_empty();
        let columns = if is_logged { logged } else { columns_of(deferrable_key(relation)) };
        let kind = match identity {
            Identity::Full if columns.is_empty() => KeyKind::WholeRow,
            Identity::Full => KeyKind::Logged,
            Identity::Nothing => KeyKind::Unlogged,
            Identity::Key if is_logged || columns.is_empty() => KeyKind::Logged,
            Identity::Key => KeyKind::Unlogged,
        };
        (columns, kind)
    }
}

/// The index of the key by which write-ahead log tells which row changed or is gone; the invalid OID when there is none.
///
/// # Safety
/// `relation` is open, and a transaction is in progress.
pub unsafe fn told_key(relation: pg_sys::Relation) -> Oid {
    // SAFETY: as the caller promises.
    unsafe {
        match (identity_of(relation).0, logged_key(relation)) {
            (Identity::Nothing, _) => Oid::INVALID,
            (Identity::Full, Oid::INVALID) => deferrable_key(relation),
            (_, logged) => logged,
        }
    }
}

/// What to type so that write-ahead log tells which rows change. `table`: its name in SQL.
///
/// # Safety
/// `relation` is open, and a transaction is in progress.
pub unsafe fn remedy(relation: pg_sys::Relation, table: &str) -> String {
    // SAFETY: as the caller promises.
    unsafe {
        let is_full = identity_of(relation).0 == Identity::Full;
        let is_default =
            is_full || (*(*relation).rd_rel).relreplident as u8 == pg_sys::REPLICA_IDENTITY_DEFAULT;
        if compat::primary_key_index(relation) != Oid::INVALID {
            return format!("ALTER TABLE {table} REPLICA IDENTITY DEFAULT;");
        }
        let indexes = indexes(relation);
        if indexes.iter().any(|index| index.is_primary) {
            return format!("ALTER TABLE {table} REPLICA IDENTITY FULL;");
        }
        let tells_apart = |index: &&Index| index.is_unique && are_not_null(relation, &index.columns);
        if let Some(index) = indexes.iter().filter(tells_apart).find(|index| index.is_immediate && !is_full) {
            let name = quoted(&index.name);
            return format!("ALTER TABLE {table} REPLICA IDENTITY USING INDEX {name};");
        }
        let columns =
            indexes.iter().find(tells_apart).map(|index| names(relation, &index.columns).join(", "));
        // Without columns that tell rows apart, one of the usual name may do, or is added.
        let desc = (*relation).rd_att;
        let has_id = (0..(*desc).natts as usize)
            .map(|place| compat::attribute(desc, place))
            .any(|attribute| !attribute.attisdropped && encoding::name(&attribute.attname) == "id");
        let mut column = String::new();
        let key = match columns.or(has_id.then(|| "id".to_owned())) {
            Some(columns) => format!("ADD PRIMARY KEY ({columns})"),
            None => match topmost(relation) {
                None => "ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY".to_owned(),
                // A column is added at the top, and a key to each: no identity is inherited.
                Some(top) => {
                    column = format!("ALTER TABLE {top} ADD COLUMN IF NOT EXISTS id bigserial; ");
                    "ADD PRIMARY KEY (id)".to_owned()
                }
            },
        };
        match is_default {
            true => format!("{column}ALTER TABLE {table} {key};"),
            false => format!("{column}ALTER TABLE {table} {key}, REPLICA IDENTITY DEFAULT;"),
        }
    }
}

/// The table at the top of those that this one inherits its columns from, or passes them on as, by its name in SQL; none when
/// it stands alone.
///
/// # Safety
/// `relation` is open, and a transaction is in progress.
unsafe fn topmost(relation: pg_sys::Relation) -> Option<String> {
    // SAFETY: as the caller promises; the names of a table that has gone meanwhile are null.
    unsafe {
        let form = &*(*relation).rd_rel;
        let mut top = (*relation).rd_id;
        // Partitions, too, have one parent or none, and parents form no circle.
        while let Some(parent) = compat::parents(top).first() {
            top = *parent;
        }
        if top == (*relation).rd_id && !form.relhassubclass {
            return None;
        }
        let (schema, name) =
            (pg_sys::get_namespace_name(pg_sys::get_rel_namespace(top)), pg_sys::get_rel_name(top));
        if schema.is_null() || name.is_null() {
            return None;
        }
        let name = pg_sys::quote_qualified_identifier(schema, name);
        Some(encoding::utf8(CStr::from_ptr(name).to_bytes()).into_owned())
    }
}

/// Whether an index is named as the replica identity, and is gone.
///
/// # Safety
/// `relation` is open.
pub unsafe fn is_identity_lost(relation: pg_sys::Relation) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        (*(*relation).rd_rel).relreplident as u8 == pg_sys::REPLICA_IDENTITY_INDEX
            && pg_sys::RelationGetReplicaIndex(relation) == Oid::INVALID
    }
}

/// Whether the table has a primary key that Postgres takes for none, since it is deferrable.
///
/// # Safety
/// `relation` is open, and a transaction is in progress.
pub unsafe fn has_deferrable_key(relation: pg_sys::Relation) -> bool {
    // SAFETY: as the caller promises.
    unsafe { deferrable_key(relation) != Oid::INVALID }
}

/// The index of the replica identity, or else of the primary key, unless that is deferrable.
///
/// # Safety
/// `relation` is open.
unsafe fn logged_key(relation: pg_sys::Relation) -> Oid {
    // SAFETY: as the caller promises.
    unsafe {
        let by_index = (*(*relation).rd_rel).relreplident as u8 == pg_sys::REPLICA_IDENTITY_INDEX;
        if by_index { pg_sys::RelationGetReplicaIndex(relation) } else { compat::primary_key_index(relation) }
    }
}

/// The index of a deferrable primary key, where no other index is named as the replica identity.
///
/// # Safety
/// `relation` is open, and a transaction is in progress.
unsafe fn deferrable_key(relation: pg_sys::Relation) -> Oid {
    // SAFETY: as the caller promises.
    unsafe {
        if (*(*relation).rd_rel).relreplident as u8 == pg_sys::REPLICA_IDENTITY_INDEX {
            return Oid::INVALID;
        }
        let found = indexes(relation).into_iter().find(|index| index.is_primary && !index.is_immediate);
        found.map_or(Oid::INVALID, |index| index.oid)
    }
}

/// The attribute numbers of an index' key; empty for the invalid OID, and when it is gone.
unsafe fn columns_of(index: Oid) -> Vec<i16> {
    // SAFETY: as the caller promises.
    unsafe { index_of(index).map(|index| index.columns).unwrap_or_default() }
}

/// The valid indexes of a table that hold all of its rows.
///
/// # Safety
/// `relation` is open, and a transaction is in progress.
unsafe fn indexes(relation: pg_sys::Relation) -> Vec<Index> {
    // SAFETY: as the caller promises.
    unsafe { compat::index_list(relation).into_iter().filter_map(|oid| index_of(oid)).collect() }
}

/// An index, if it is valid and holds all rows.
unsafe fn index_of(oid: Oid) -> Option<Index> {
    if oid == Oid::INVALID {
        return None;
    }
    // SAFETY: indexes are opened as pgoutput does, without a lock, since under a historic snapshot they are only read from
    // the caches (`relcache.c`, RelationGetIdentityKeyBitmap).
    unsafe {
        let relation = pg_sys::RelationIdGetRelation(oid);
        if relation.is_null() {
            return None;
        }
        let form = &*(*relation).rd_index;
        let is_whole = pg_sys::heap_attisnull(
            (*relation).rd_indextuple,
            pg_sys::Anum_pg_index_indpred as i32,
            std::ptr::null_mut(),
        );
        let index = Index {
            oid,
            name: encoding::name(&(*(*relation).rd_rel).relname),
            columns: form.indkey.values.as_slice(form.indnkeyatts as usize).to_vec(),
            is_primary: form.indisprimary,
            is_unique: form.indisunique,
            is_immediate: form.indimmediate,
        };
        let is_usable = form.indisvalid && is_whole;
        pg_sys::RelationClose(relation);
        is_usable.then_some(index)
    }
}

/// # Safety
/// `relation` is open.
unsafe fn are_not_null(relation: pg_sys::Relation, columns: &[i16]) -> bool {
    columns.iter().all(|number| {
        // SAFETY: as the caller promises.
        *number > 0 && unsafe { compat::attribute((*relation).rd_att, *number as usize - 1).attnotnull }
    })
}

/// The columns as SQL spells them.
///
/// # Safety
/// `relation` is open, and has columns of these numbers.
unsafe fn names(relation: pg_sys::Relation, columns: &[i16]) -> Vec<String> {
    let name = |number: &i16| {
        // SAFETY: as the caller promises.
        quoted(&encoding::name(unsafe {
            &compat::attribute((*relation).rd_att, *number as usize - 1).attname
        }))
    };
    columns.iter().map(name).collect()
}

/// A name as SQL spells it.
fn quoted(name: &str) -> String {
    pgrx::spi::quote_identifier(name)
}
