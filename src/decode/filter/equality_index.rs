//! The equalities in a filter, `column = constant` or `column IN (…)`: what an index can answer.
//!
//! The index only narrows down who is asked: equal values have equal hashes, by the operator's own hash functions and
//! collation, and who is found is still asked for the whole filter.

use pgrx::pg_sys::{self, Datum, FmgrInfo, NodeTag, Oid};

use super::analyze::Uses;
use super::node::{evaluate, prepare, uses_of};
use super::tuple_slots::Rows;
use crate::pg::command::parse_tree::nodes;

/// What rows must be equal to, for the filter to be true.
pub struct Equality {
    parts: Vec<Part>,
}

/// An expression over the row that must equal one over constants and parameters.
struct Part {
    row: Side,
    value: Side,
    uses: Uses,
    collation: Oid,
    /// What the value is an array of, one of which must be equal.
    element: Option<Element>,
}

struct Side {
    state: *mut pg_sys::ExprState,
    hash: Box<FmgrInfo>,
}

struct Element {
    type_oid: Oid,
    length: i16,
    by_value: bool,
    align: std::ffi::c_char,
}

/// Where in an index to look for those whom a row concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKey {
    /// Here.
    Hash(u64),
    /// Nowhere: NULL equals nothing.
    Nowhere,
    /// Everywhere, since a value isn't known.
    Everywhere,
}

impl Equality {
    /// The equalities among conditions that must all be true: all that are with one value or, without such, the first with
    /// a list.
    ///
    /// # Safety
    /// The clauses are resolved. What is made lives in the current memory context, which must outlive the result.
    pub unsafe fn find(clauses: &[*mut pg_sys::Node]) -> Option<Equality> {
        // SAFETY: as the caller promises.
        unsafe {
            let mut parts: Vec<Part> = clauses.iter().filter_map(|clause| Part::single(*clause)).collect();
            if parts.is_empty() {
                parts.extend(clauses.iter().find_map(|clause| Part::list(*clause)));
            }
            (!parts.is_empty()).then_some(Equality { parts })
        }
    }

    /// Where to look for who is concerned by these rows. Raises what the filter raises.
    ///
    /// # Safety
    /// As [`super::compile::Compiled::ask`].
    pub unsafe fn of_rows(&mut self, rows: &Rows) -> RowKey {
        if self.parts.iter().any(|part| !rows.knows(&part.uses)) {
            return RowKey::Everywhere;
        }
        let mut hash = 0;
        for part in &mut self.parts {
            // SAFETY: as the caller promises.
            unsafe {
                let Some(datum) = evaluate(part.row.state, rows.context) else { return RowKey::Nowhere };
                hash = mix(hash, part.row.hash(part.collation, datum));
            }
        }
        RowKey::Hash(hash)
    }

    /// Where in an index the filter belongs whose parameters are set: nowhere, if it is never true. Raises what the
    /// filter raises.
    ///
    /// # Safety
    /// As [`super::compile::Compiled::ask`].
    pub unsafe fn of_values(&mut self, rows: &Rows) -> Vec<u64> {
        let mut hash = 0;
        for part in &mut self.parts {
            // SAFETY: as the caller promises.
            unsafe {
                let Some(datum) = evaluate(part.value.state, rows.context) else { return Vec::new() };
                if let Some(element) = &part.element {
                    let of_one = |datum| mix(0, part.value.hash(part.collation, datum));
                    let mut hashes: Vec<u64> = element.each(datum).into_iter().map(of_one).collect();
                    hashes.sort_unstable();
                    hashes.dedup();
                    return hashes;
                }
                hash = mix(hash, part.value.hash(part.collation, datum));
            }
        }
        vec![hash]
    }
}

fn mix(hash: u64, next: u32) -> u64 {
    (hash.rotate_left(23) ^ u64::from(next)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Part {
    unsafe fn single(clause: *mut pg_sys::Node) -> Option<Part> {
        // SAFETY: the tag says what the node is.
        unsafe {
            if (*clause).type_ != NodeTag::T_OpExpr {
                return None;
            }
            let operation = &*clause.cast::<pg_sys::OpExpr>();
            Part::new(operation.opno, operation.args, operation.inputcollid, None)
        }
    }

    unsafe fn list(clause: *mut pg_sys::Node) -> Option<Part> {
        // SAFETY: the tag says what the node is.
        unsafe {
            if (*clause).type_ != NodeTag::T_ScalarArrayOpExpr {
                return None;
            }
            let operation = &*clause.cast::<pg_sys::ScalarArrayOpExpr>();
            let array = nodes(operation.args).nth(1).filter(|_| operation.useOr)?;
            let type_oid = pg_sys::get_element_type(pg_sys::getBaseType(pg_sys::exprType(array)));
            let mut element = Element { type_oid, length: 0, by_value: false, align: 0 };
            if type_oid == Oid::INVALID {
                return None;
            }
            let Element { length, by_value, align, .. } = &mut element;
            pg_sys::get_typlenbyvalalign(type_oid, length, by_value, align);
            Part::new(operation.opno, operation.args, operation.inputcollid, Some(element))
        }
    }

    /// The part, when the operator is an equality whose sides can be hashed, one over the row and one without.
    unsafe fn new(
        operator: Oid,
        arguments: *mut pg_sys::List,
        collation: Oid,
        element: Option<Element>,
    ) -> Option<Part> {
        // SAFETY: as the caller promises; look-ups in the system cache.
        unsafe {
            let mut arguments = nodes(arguments);
            let (left, right) = (arguments.next()?, arguments.next()?);
            let (mut left_hash, mut right_hash) = (Oid::INVALID, Oid::INVALID);
            if !pg_sys::op_hashjoinable(operator, pg_sys::exprType(left))
                || !pg_sys::get_op_hash_functions(operator, &mut left_hash, &mut right_hash)
            {
                return None;
            }
            let (left_uses, right_uses) = (uses_of(left), uses_of(right));
            let is_row = |node, uses: &Uses| *uses != Uses::default() && !has_parameters(node);
            let is_value = |uses: &Uses| *uses == Uses::default();
            let (row, value, uses) = if is_row(left, &left_uses) && is_value(&right_uses) {
                ((left, left_hash), (right, right_hash), left_uses)
            } else if is_row(right, &right_uses) && is_value(&left_uses) && element.is_none() {
                ((right, right_hash), (left, left_hash), right_uses)
            } else {
                return None;
            };
            let side = |(node, hash)| Side { state: prepare(node), hash: function(hash) };
            Some(Part { row: side(row), value: side(value), uses, collation, element })
        }
    }
}

impl Side {
    unsafe fn hash(&mut self, collation: Oid, datum: Datum) -> u32 {
        // SAFETY: a hash function takes a value of its type.
        unsafe { pg_sys::FunctionCall1Coll(&mut *self.hash, collation, datum).value() as u32 }
    }
}

impl Element {
    /// The elements of an array that are not NULL, which equals nothing.
    unsafe fn each(&self, array: Datum) -> Vec<Datum> {
        let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        // SAFETY: the value is an array of this type; what is returned are as many values and flags.
        unsafe {
            pg_sys::deconstruct_array(
                pg_sys::pg_detoast_datum(array.cast_mut_ptr()).cast(),
                self.type_oid,
                self.length.into(),
                self.by_value,
                self.align,
                &mut values,
                &mut nulls,
                &mut count,
            );
            (0..count as usize).filter(|n| !*nulls.add(*n)).map(|n| *values.add(n)).collect()
        }
    }
}

/// The function, with what it caches in the current memory context.
unsafe fn function(oid: Oid) -> Box<FmgrInfo> {
    // SAFETY: a global of this process.
    let context = unsafe { pg_sys::CurrentMemoryContext };
    crate::decode::encode::value::function_info(oid, context)
}

/// Whether there is a parameter in the expression.
unsafe fn has_parameters(node: *mut pg_sys::Node) -> bool {
    // SAFETY: as the caller promises.
    unsafe { is_parameter(node, std::ptr::null_mut()) }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn is_parameter(node: *mut pg_sys::Node, context: *mut std::ffi::c_void) -> bool {
    // SAFETY: the walker passes nodes.
    unsafe {
        !node.is_null()
            && ((*node).type_ == NodeTag::T_Param
                || pg_sys::expression_tree_walker(node, Some(is_parameter), context))
    }
}
