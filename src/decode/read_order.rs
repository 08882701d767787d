//! The order in which the rows of a table are read, a position in it, and what that position depends on.
//!
//! A position is good only for the order that it was taken in. With each position goes what that order was made of (its
//! [definition](ReadOrder::definition)); when the table has another one by then, it is read again from its start.

use std::cell::OnceCell;
use std::ffi::{CStr, CString};

use pgrx::PgOid;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::spi::{self, OwnedPreparedStatement, Spi};
use serde_json::Value;

use super::row_key::{Identity, has_deferrable_key, identity_of, is_identity_lost, remedy, told_key};
use crate::pg::compat;
use crate::pg::values::encoding;

/// Takes a table, the constraint's index, and for each column its number, base type, operator and collation. The first
/// element stands for the constraint: a key that was dropped and added again is another one, since rows could get other keys in
/// between without a trace in write-ahead log. Each of the others stands for a column. An ALTER TABLE that may give a column other
/// values or another order writes its row of `pg_attribute`, also when the type stays the same.
const DEFINITION: &str = r#"
    SELECT ARRAY[(SELECT coalesce(max(oid::bigint), 0) FROM pg_constraint WHERE conrelid = $1 AND conindid = $2)]
        || ARRAY(SELECT hashtextextended(concat_ws(' ', a.attnum, a.xmin, a.atttypid, a.atttypmod, o.operator, o.sorted_by,
                c.collversion, pg_collation_actual_version(c.oid),
                CASE c.oid WHEN 100 THEN concat_ws(' ', d.datcollversion, pg_database_collation_actual_version(d.oid)) END,
                (SELECT string_agg(e.enumlabel::text, ' ' ORDER BY e.enumsortorder) FROM pg_enum e
                 WHERE e.enumtypid = o.type)) COLLATE "C", 0)
            FROM unnest($3, $4, $5, $6) WITH ORDINALITY o (number, type, operator, sorted_by, place)
            JOIN pg_attribute a ON a.attrelid = $1 AND a.attnum = o.number
            LEFT JOIN pg_collation c ON c.oid = o.sorted_by
            LEFT JOIN pg_database d ON d.datname = current_database()
            ORDER BY o.place)"#;

/// The access method of B-trees (`BTREE_AM_OID`, pg_am.dat).
const BTREE: Oid = Oid::from_u32(403);

thread_local! {
    static DEFINITION_PLAN: OnceCell<OwnedPreparedStatement> = const { OnceCell::new() };
}

/// The columns that rows are read in the order of: together they tell rows apart.
pub struct ReadOrder {
    /// The columns, the first one first.
    pub columns: Vec<OrderColumn>,
    /// The schema of what compares them, when it is not the server's own.
    pub operator_schema: Option<CString>,
    /// The table's name, as SQL spells it.
    pub table: String,
    /// The index of the key.
    index: Oid,
}

/// A column of such an order.
pub struct OrderColumn {
    /// Counted from 1.
    pub number: i16,
    /// Its type, of a domain the base type.
    pub type_oid: Oid,
    /// The collation of the key, if that is not the column's own.
    pub collation: Option<Oid>,
    /// The collation that counts.
    effective_collation: Oid,
    /// The operator that says which of two values is greater.
    operator: Oid,
    /// The operator by which the key tells values apart, if it is a B-tree's; none for a column that is not of the key.
    key_equality: Option<Oid>,
}

/// Why a table cannot be read row by row, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The reason.
    pub reason: String,
    /// What to type; none when nothing can be done about the table.
    pub remedy: Option<String>,
}

impl Unreadable {
    fn new(reason: String, remedy: Option<String>) -> Unreadable {
        Unreadable { reason, remedy }
    }
}

impl ReadOrder {
    /// The order of a table's key, after that of the column `order_by`, of which `start` is the least value.
    ///
    /// # Errors
    ///
    /// Why there is none.
    ///
    /// # Safety
    /// The relation is open.
    pub unsafe fn of(
        relation: pg_sys::Relation,
        order_by: Option<&str>,
        start: Option<&str>,
    ) -> Result<ReadOrder, Unreadable> {
        // SAFETY: as the caller promises.
        unsafe {
            let (index, mut columns) = key_of(relation)?;
            if let Some(wanted) = order_by {
                let first = order_by_column(relation, wanted)?;
                if start.is_none() {
                    require_not_null(relation, first.number)?;
                }
                let of_key = columns.iter().position(|column| column.number == first.number);
                let first = of_key.map(|place| columns.remove(place)).unwrap_or(first);
                columns.insert(0, first);
            }
            let operator_schema = operator_schema(&mut columns)?;
            Ok(ReadOrder { columns, operator_schema, table: names(relation).1, index })
        }
    }

    /// What a position in this order depends on: first the key, then each column. Inside a transaction with an active snapshot.
    ///
    /// # Errors
    ///
    /// When catalogs cannot be read.
    pub fn definition(&self, table: Oid) -> spi::Result<Vec<i64>> {
        let list = |get: fn(&OrderColumn) -> Oid| self.columns.iter().map(get).collect::<Vec<Oid>>();
        let numbers: Vec<i16> = self.columns.iter().map(|column| column.number).collect();
        let arguments: [DatumWithOid<'_>; 6] = [
            table.into(),
            self.index.into(),
            numbers.into(),
            list(|column| column.type_oid).into(),
            list(|column| column.operator).into(),
            list(|column| column.effective_collation).into(),
        ];
        Spi::connect(|client| {
            DEFINITION_PLAN.with(|plan| {
                let plan = match plan.get() {
                    Some(plan) => plan,
                    None => {
                        let (oid, oids) = (PgOid::from(pg_sys::OIDOID), PgOid::from(pg_sys::OIDARRAYOID));
                        let numbers = PgOid::from(pg_sys::INT2ARRAYOID);
                        let prepared =
                            client.prepare(DEFINITION, &[oid, oid, numbers, oids, oids, oids])?.keep();
                        plan.get_or_init(|| prepared)
                    }
                };
                Ok(client.select(plan, Some(1), &arguments)?.first().get::<Vec<i64>>(1)?.unwrap_or_default())
            })
        })
    }

    /// Where a row stands, as JSON text.
    ///
    /// # Safety
    /// The tuple is a row as `desc` describes it.
    pub unsafe fn position_of(&self, tuple: pg_sys::HeapTuple, desc: pg_sys::TupleDesc) -> String {
        let values = self.columns.iter().map(|column| {
            // SAFETY: as the caller promises; none of these columns is null.
            unsafe {
                let value = pg_sys::SPI_getvalue(tuple, desc, column.number.into());
                if value.is_null() { Value::from("") } else { written(CStr::from_ptr(value)) }
            }
        });
        Value::from_iter(values).to_string()
    }

    /// The values of a position. Raises when a type takes no such text.
    ///
    /// # Errors
    ///
    /// When it is no position in this order.
    pub fn values_at(&self, position: &str) -> Result<Vec<Datum>, String> {
        let values: Vec<Value> = serde_json::from_str(position).unwrap_or_default();
        if values.len() != self.columns.len() {
            return Err(format!("the position {position} is none of this table"));
        }
        Ok(self
            .columns
            .iter()
            .zip(&values)
            .map(|(column, value)| input(column.type_oid, &read(value)))
            .collect())
    }
}

/// A value's text as JSON: a string, or its bytes where they are no text (SQL_ASCII).
fn written(value: &CStr) -> Value {
    let bytes = value.to_bytes();
    if encoding::must_be_converted() || std::str::from_utf8(bytes).is_ok() {
        Value::from(encoding::utf8(bytes))
    } else {
        Value::from(bytes.to_vec())
    }
}

fn read(value: &Value) -> CString {
    match value {
        Value::String(text) => encoding::in_server_encoding(text),
        Value::Array(bytes) => {
            let bytes: Vec<u8> = bytes
                .iter()
                .filter_map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok()))
                .collect();
            CString::new(bytes).unwrap_or_default()
        }
        _ => CString::default(),
    }
}

/// The columns that tell rows apart, also in write-ahead log, and their index.
///
/// # Safety
/// The relation is open.
unsafe fn key_of(relation: pg_sys::Relation) -> Result<(Oid, Vec<OrderColumn>), Unreadable> {
    // SAFETY: as the caller promises; the index is open while it is looked at.
    unsafe {
        let (name, sql_name) = names(relation);
        let missing = || {
            let reason = match identity_of(relation).0 {
                Identity::Nothing => {
                    format!(
                        "table {name} has REPLICA IDENTITY NOTHING, so write-ahead log does not say which rows change"
                    )
                }
                _ if has_deferrable_key(relation) => {
                    format!(
                        "the primary key of table {name} is deferrable, so write-ahead log does not say which rows change"
                    )
                }
                _ if is_identity_lost(relation) => {
                    format!(
                        "the replica identity index of table {name} was dropped, so write-ahead log does not say which rows change"
                    )
                }
                _ => format!(
                    "table {name} has no primary key and no replica identity index to read it in the order of"
                ),
            };
            Unreadable::new(reason, Some(remedy(relation, &sql_name)))
        };
        let oid = told_key(relation);
        if oid == Oid::INVALID {
            return Err(missing());
        }
        let index = pg_sys::RelationIdGetRelation(oid);
        if index.is_null() {
            return Err(missing());
        }
        let form = &*(*index).rd_index;
        let numbers = form.indkey.values.as_slice(form.indnkeyatts as usize);
        let columns = numbers.iter().enumerate().map(|(place, number)| {
            let (family, opclass_type) =
                (*(*index).rd_opfamily.add(place), *(*index).rd_opcintype.add(place));
            let strategy = pg_sys::BTEqualStrategyNumber as i16;
            let is_btree = (*(*index).rd_rel).relam == BTREE;
            let equality =
                is_btree.then(|| pg_sys::get_opfamily_member(family, opclass_type, opclass_type, strategy));
            column(relation, *number, Some(*(*index).rd_indcollation.add(place)), equality)
        });
        let columns = columns.collect();
        pg_sys::RelationClose(index);
        Ok((oid, columns))
    }
}

/// # Safety
/// The relation is open.
unsafe fn order_by_column(relation: pg_sys::Relation, wanted: &str) -> Result<OrderColumn, Unreadable> {
    // SAFETY: as the caller promises.
    unsafe {
        let desc = (*relation).rd_att;
        let found = (0..(*desc).natts as usize)
            .map(|place| compat::attribute(desc, place))
            .find(|attribute| !attribute.attisdropped && encoding::name(&attribute.attname) == wanted);
        match found {
            Some(found) => Ok(column(relation, found.attnum, None, None)),
            None => {
                Err(Unreadable::new(format!("there is no column {wanted} to read in the order of"), None))
            }
        }
    }
}

/// Refuses a column whose nulls have no place in its order.
///
/// # Safety
/// The relation is open, and has such a column.
unsafe fn require_not_null(relation: pg_sys::Relation, number: i16) -> Result<(), Unreadable> {
    // SAFETY: as the caller promises.
    unsafe {
        let attribute = compat::attribute((*relation).rd_att, number as usize - 1);
        if attribute.attnotnull {
            return Ok(());
        }
        let column = encoding::name(&attribute.attname);
        let quoted = pgrx::spi::quote_identifier(&column);
        let remedy = format!("ALTER TABLE {} ALTER COLUMN {quoted} SET NOT NULL;", names(relation).1);
        let reason =
            format!("rows whose {column} is null have no place in its order; \"start\" leaves them out");
        Err(Unreadable::new(reason, Some(remedy)))
    }
}

/// # Safety
/// The relation is open, and has such a column.
unsafe fn column(
    relation: pg_sys::Relation,
    number: i16,
    collation: Option<Oid>,
    key_equality: Option<Oid>,
) -> OrderColumn {
    // SAFETY: as the caller promises.
    unsafe {
        let attribute = compat::attribute((*relation).rd_att, number as usize - 1);
        let own = attribute.attcollation;
        let collation = collation.filter(|collation| *collation != Oid::INVALID);
        OrderColumn {
            number,
            type_oid: pg_sys::getBaseType(attribute.atttypid),
            collation: collation.filter(|collation| *collation != own),
            effective_collation: collation.unwrap_or(own),
            operator: Oid::INVALID,
            key_equality,
        }
    }
}

/// The relation's name, and as SQL spells it with its schema.
///
/// # Safety
/// The relation is open.
unsafe fn names(relation: pg_sys::Relation) -> (String, String) {
    // SAFETY: as the caller promises.
    unsafe {
        let form = &*(*relation).rd_rel;
        let schema = pg_sys::get_namespace_name(form.relnamespace);
        let quoted = pg_sys::quote_qualified_identifier(schema, form.relname.data.as_ptr());
        (encoding::name(&form.relname), encoding::utf8(CStr::from_ptr(quoted).to_bytes()).into_owned())
    }
}

/// Finds what compares each column, and the schema of that operator; none for the server's own.
fn operator_schema(columns: &mut [OrderColumn]) -> Result<Option<CString>, Unreadable> {
    let several = columns.len() > 1;
    let mut schema = None;
    for column in columns {
        // SAFETY: look-ups in the type cache and in catalogs.
        unsafe {
            let wanted = pg_sys::TYPECACHE_GT_OPR | pg_sys::TYPECACHE_EQ_OPR;
            let entry = pg_sys::lookup_type_cache(column.type_oid, wanted as i32);
            column.operator = (*entry).gt_opr;
            let type_name = || {
                encoding::utf8(CStr::from_ptr(pg_sys::format_type_be(column.type_oid)).to_bytes())
                    .into_owned()
            };
            if column.operator == Oid::INVALID {
                return Err(Unreadable::new(format!("values of type {} have no order", type_name()), None));
            }
            // Rows that are equal in the order, and not in the key, would be skipped where a chunk ends between them.
            if column.key_equality.is_some_and(|equality| equality != (*entry).eq_opr) {
                let reason = format!(
                    "the key tells values of type {} apart that are equal in their order",
                    type_name()
                );
                return Err(Unreadable::new(reason, None));
            }
            if column.operator.to_u32() >= pg_sys::FirstGenbkiObjectId {
                if several {
                    let reason = "a key of several columns must have types of the server's own".to_owned();
                    return Err(Unreadable::new(reason, None));
                }
                let function = pg_sys::get_opcode(column.operator);
                let name = pg_sys::get_namespace_name(pg_sys::get_func_namespace(function));
                schema = (!name.is_null()).then(|| CStr::from_ptr(name).to_owned());
            }
        }
    }
    Ok(schema)
}

/// Why a table cannot be read chunk by chunk; none when it can.
///
/// Raises when the column's type takes no such text as `start`.
pub fn unreadable(table: Oid, order_by: Option<&str>, start: Option<&str>) -> Option<Unreadable> {
    // SAFETY: opened and closed; null when the table is gone.
    unsafe {
        let relation = pg_sys::try_relation_open(table, pg_sys::AccessShareLock as _);
        if relation.is_null() {
            return None;
        }
        let problem = ReadOrder::of(relation, order_by, start).map(|order| {
            if let (Some(first), Some(start)) = (order.columns.first(), start) {
                input(first.type_oid, &encoding::in_server_encoding(start));
            }
        });
        pg_sys::relation_close(relation, pg_sys::AccessShareLock as _);
        problem.err()
    }
}

/// Whether a table has no rows, not even such as nobody sees yet; also when it is gone.
pub fn is_empty(table: Oid) -> bool {
    // SAFETY: opened and closed; null when the table is gone.
    unsafe {
        let relation = pg_sys::try_relation_open(table, pg_sys::AccessShareLock as _);
        if relation.is_null() {
            return true;
        }
        let is_empty = has_no_rows(relation);
        pg_sys::relation_close(relation, pg_sys::AccessShareLock as _);
        is_empty
    }
}

/// Whether an open table has no rows.
///
/// # Safety
/// The relation is open, and is a table.
pub unsafe fn has_no_rows(relation: pg_sys::Relation) -> bool {
    // SAFETY: as the caller promises.
    unsafe { pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM) == 0 }
}

/// A value that was written as text. Raises when the type takes no such text.
pub fn input(type_oid: Oid, value: &CStr) -> Datum {
    let (mut function, mut parameter) = (Oid::INVALID, Oid::INVALID);
    // SAFETY: the type exists; its input function is given a C string in the database's encoding.
    unsafe {
        pg_sys::getTypeInputInfo(type_oid, &mut function, &mut parameter);
        pg_sys::OidInputFunctionCall(function, value.as_ptr().cast_mut(), parameter, -1)
    }
}
