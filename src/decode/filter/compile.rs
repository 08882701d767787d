//! Filters of one shape, compiled once for a relation: their literals are parameters.

use std::ffi::{CStr, c_void};

use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum, NodeTag, Oid};
use smallvec::SmallVec;

use super::analyze;
use super::analyze::{Bare, Uses};
use super::equality_index::Equality;
use super::node::{evaluate, prepare, uses_of};
use super::normalize::{Literal, LiteralValue};
use super::tuple_slots::Rows;
use crate::pg::command::parse_tree::nodes;
use crate::pg::compat;
use crate::pg::subtransaction::Raised;

/// A filter that can be asked of rows.
pub struct Compiled {
    conjuncts: Vec<Conjunct>,
    /// The parts that an index can answer.
    pub equality: Option<Equality>,
    parameters: pg_sys::ParamListInfo,
    kinds: Kinds,
}

/// One of the conditions that must all be true.
struct Conjunct {
    state: *mut pg_sys::ExprState,
    uses: Uses,
}

/// The type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    type_oid: Oid,
    typmod: i32,
    length: i16,
    by_value: bool,
    input: Oid,
    io_parameter: Oid,
}

/// The types that the literals of a filter have in a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kinds(Vec<Kind>);

/// The value of a parameter.
pub enum Value {
    /// It is the datum.
    Inline(Datum),
    /// The datum points to it; in words, so that it is aligned.
    Stored(Box<[u64]>),
}

/// The values of a filter's parameters: mostly one, which then is at hand with the filter.
pub type Values = SmallVec<[Value; 1]>;

impl Value {
    fn datum(&self) -> Datum {
        match self {
            Value::Inline(datum) => *datum,
            Value::Stored(words) => Datum::from(words.as_ptr()),
        }
    }
}

/// What a filter says of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is true.
    Yes,
    /// It is false or NULL.
    No,
    /// It cannot be said, since write-ahead log doesn't have the value of this column.
    Unknown(String),
}

impl Compiled {
    /// Compiles a filter for a relation. With `literals`, they become parameters; none when they cannot: then the filter
    /// has to be compiled without. Raises what the parser and the planner raise.
    ///
    /// # Errors
    ///
    /// When the filter may not run within decoding.
    ///
    /// # Safety
    /// `relation` is open and a transaction is in progress. What is compiled lives in the current memory context, which
    /// must outlive the result.
    pub unsafe fn new(
        text: &CStr,
        literals: &[Literal],
        relation: pg_sys::Relation,
        bare: Bare,
    ) -> Result<Option<Compiled>, Raised> {
        // SAFETY: as the caller promises.
        unsafe {
            let condition = analyze::resolve(text, relation, bare)?;
            let Some(kinds) = parametrise(condition.node, literals) else { return Ok(None) };
            let parameters = pg_sys::makeParamList(kinds.0.len() as i32);
            for (place, kind) in kinds.0.iter().enumerate() {
                *(*parameters).params.as_mut_ptr().add(place) = pg_sys::ParamExternData {
                    value: Datum::null(),
                    isnull: false,
                    pflags: 0,
                    ptype: kind.type_oid,
                };
            }
            let clauses: Vec<_> = nodes(pg_sys::make_ands_implicit(condition.node.cast())).collect();
            let equality = Equality::find(&clauses);
            let conjuncts = clauses.into_iter().map(|node| {
                let uses = uses_of(node);
                Conjunct { state: prepare(node), uses }
            });
            Ok(Some(Compiled { conjuncts: conjuncts.collect(), equality, parameters, kinds }))
        }
    }

    /// The literals of another filter of the same shape as parameters. Raises when one is no value of its type.
    ///
    /// # Safety
    /// A transaction is in progress.
    pub unsafe fn values(&self, literals: &[Literal]) -> Values {
        let pairs = self.kinds.0.iter().zip(literals);
        // SAFETY: as the caller promises; the kinds were found by literals of these kinds.
        pairs.map(|(kind, literal)| unsafe { keep(kind, kind.read(&literal.value)) }).collect()
    }

    /// Puts a member's parameters in place.
    ///
    /// # Safety
    /// The values were made by [`Compiled::values`] and outlive their use.
    pub unsafe fn set(&self, values: &[Value], rows: &Rows) {
        // SAFETY: the list has as many parameters as there are kinds.
        unsafe {
            (*rows.context).ecxt_param_list_info = self.parameters;
            for (place, value) in values.iter().enumerate().take(self.kinds.0.len()) {
                (*(*self.parameters).params.as_mut_ptr().add(place)).value = value.datum();
            }
        }
    }

    /// What the filter says of the rows, by the parameters that were set. What is certain needs no value that isn't
    /// known. Raises what the filter raises.
    ///
    /// # Safety
    /// The rows are those of the relation that it was compiled for, and have been filled. A transaction is in progress.
    pub unsafe fn ask(&self, rows: &Rows) -> Answer {
        let mut unknown = None;
        for conjunct in &self.conjuncts {
            match rows.unknown_of(&conjunct.uses) {
                Some(column) => unknown = unknown.or(Some(column)),
                // SAFETY: as the caller promises.
                None => match unsafe { evaluate(conjunct.state, rows.context) } {
                    Some(datum) if datum.value() as u8 != 0 => {}
                    _ => return Answer::No,
                },
            }
        }
        unknown.map_or(Answer::Yes, Answer::Unknown)
    }
}

/// Puts a parameter in the place of each literal; none when that cannot be. Nothing is changed then.
unsafe fn parametrise(node: *mut pg_sys::Node, literals: &[Literal]) -> Option<Kinds> {
    // SAFETY: as `Compiled::new`; constants are nodes of their own, larger than parameters.
    unsafe {
        let kinds = Kinds::of(node, literals)?;
        let constants = constants_of(node);
        for (place, literal) in literals.iter().enumerate() {
            for constant in made_by(literal, &constants) {
                become_parameter(constant, place as i32 + 1);
            }
        }
        Some(kinds)
    }
}

impl Kinds {
    /// Those of a filter's literals; none when one has no constant of its own, or not one that it makes by itself.
    ///
    /// # Safety
    /// `node` is an expression out of [`analyze::resolve`], and a transaction is in progress.
    pub unsafe fn of(node: *mut pg_sys::Node, literals: &[Literal]) -> Option<Kinds> {
        // SAFETY: as the caller promises.
        unsafe {
            let constants = constants_of(node);
            let mut kinds = Vec::with_capacity(literals.len());
            for literal in literals {
                let mut own = made_by(literal, &constants);
                let kind = Kind::of(&*own.next()?, &literal.value)?;
                if !own.all(|other| Kind::of(&*other, &literal.value) == Some(kind)) {
                    return None;
                }
                kinds.push(kind);
            }
            Some(Kinds(kinds))
        }
    }

    /// Whether it is certain, without asking the types, that literals of another filter of the same shape are values, too.
    pub fn surely_take(&self, literals: &[Literal]) -> bool {
        self.0.len() == literals.len()
            && self.0.iter().zip(literals).all(|(kind, literal)| match &literal.value {
                LiteralValue::Integer(_) | LiteralValue::Bigint(_) => true,
                LiteralValue::Text(_) if kind.type_oid == pg_sys::TEXTOID => true,
                LiteralValue::Text(_) if kind.type_oid == pg_sys::VARCHAROID => kind.typmod < 0,
                LiteralValue::Text(text) => kind.type_oid == pg_sys::UUIDOID && is_plain_uuid(text),
            })
    }
}

/// Whether it is a UUID as it is usually written; the type takes others, too (`string_to_uuid`, uuid.c).
fn is_plain_uuid(text: &str) -> bool {
    let fits = |(place, byte): (usize, u8)| match place {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

/// The constants in an expression.
unsafe fn constants_of(node: *mut pg_sys::Node) -> Vec<*mut pg_sys::Const> {
    let mut constants = Vec::new();
    // SAFETY: the caller passes an expression.
    unsafe { compat::walk(node, collect_constants, (&raw mut constants).cast()) };
    constants
}

/// Those that were made where a literal stands.
unsafe fn made_by<'a>(
    literal: &Literal,
    constants: &'a [*mut pg_sys::Const],
) -> impl Iterator<Item = *mut pg_sys::Const> + use<'a> {
    let place = literal.offset as i32;
    // SAFETY: the caller passes nodes that are there.
    constants.iter().copied().filter(move |constant| unsafe { (**constant).location } == place)
}

#[pg_guard]
unsafe extern "C-unwind" fn collect_constants(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    // SAFETY: the walker passes nodes, and the context is that of `constants_of`.
    unsafe {
        if node.is_null() {
            return false;
        }
        if (*node).type_ == NodeTag::T_Const {
            let constants = &mut *context.cast::<Vec<*mut pg_sys::Const>>();
            if !constants.contains(&node.cast()) {
                constants.push(node.cast());
            }
        }
        pg_sys::expression_tree_walker(node, Some(collect_constants), context)
    }
}

/// Turns a constant into a parameter, in its place.
unsafe fn become_parameter(constant: *mut pg_sys::Const, number: i32) {
    const { assert!(size_of::<pg_sys::Param>() <= size_of::<pg_sys::Const>()) };
    // SAFETY: every node has memory of its own, and this one has room for the other.
    unsafe {
        let before = std::ptr::read(constant);
        std::ptr::write(
            constant.cast(),
            pg_sys::Param {
                xpr: pg_sys::Expr { type_: NodeTag::T_Param },
                paramkind: pg_sys::ParamKind::PARAM_EXTERN,
                paramid: number,
                paramtype: before.consttype,
                paramtypmod: before.consttypmod,
                paramcollid: before.constcollid,
                location: before.location,
            },
        );
    }
}

impl Kind {
    /// The kind of a constant that the literal makes; none when it makes another value.
    unsafe fn of(constant: &pg_sys::Const, literal: &LiteralValue) -> Option<Kind> {
        let fits = match literal {
            LiteralValue::Integer(_) => constant.consttype == pg_sys::INT4OID,
            LiteralValue::Bigint(_) => constant.consttype == pg_sys::INT8OID,
            LiteralValue::Text(_) => constant.consttype != pg_sys::UNKNOWNOID,
        };
        if !fits || constant.constisnull {
            return None;
        }
        let (mut input, mut io_parameter) = (Oid::INVALID, Oid::INVALID);
        // SAFETY: a catalog look-up; both values are of the constant's type.
        unsafe {
            pg_sys::getTypeInputInfo(constant.consttype, &mut input, &mut io_parameter);
            let kind = Kind {
                type_oid: constant.consttype,
                typmod: constant.consttypmod,
                length: constant.constlen as i16,
                by_value: constant.constbyval,
                input,
                io_parameter,
            };
            let same =
                compat::datum_image_eq(kind.read(literal), constant.constvalue, kind.by_value, kind.length);
            same.then_some(kind)
        }
    }

    /// The literal's value, as the parser makes it (`make_const`, `coerce_type`). Raises when it is none.
    unsafe fn read(&self, literal: &LiteralValue) -> Datum {
        match literal {
            LiteralValue::Integer(number) => Datum::from(*number),
            LiteralValue::Bigint(number) => Datum::from(*number),
            LiteralValue::Text(text) => {
                let text = crate::pg::values::encoding::in_server_encoding(text);
                // SAFETY: an input function takes a string that ends in NUL.
                unsafe {
                    let text = text.as_ptr().cast_mut();
                    pg_sys::OidInputFunctionCall(self.input, text, self.io_parameter, self.typmod)
                }
            }
        }
    }
}

/// A copy of the value that outlives memory contexts.
unsafe fn keep(kind: &Kind, datum: Datum) -> Value {
    if kind.by_value {
        return Value::Inline(datum);
    }
    // SAFETY: the datum is a value of the kind's type, so it has as many bytes as that says.
    unsafe {
        let size = compat::datum_size(datum, kind.by_value, kind.length);
        let mut words = vec![0u64; size.div_ceil(size_of::<u64>())];
        std::ptr::copy_nonoverlapping(datum.cast_mut_ptr::<u8>(), words.as_mut_ptr().cast(), size);
        Value::Stored(words.into_boxed_slice())
    }
}
