//! What of a condition calls a function: as its author wrote it, and what to write instead.

use std::ffi::{CStr, c_char};

use pgrx::pg_sys::{self, NodeTag, Oid};

use crate::pg::command::parse_tree::nodes;

/// What a node calls, as its author wrote it: who writes a cast or an operator knows nothing of the function behind it.
pub enum Called {
    Function(String),
    Operator { name: String, with_zone: bool },
    Cast { from: String, to: String, from_enum: bool, with_zone: bool },
}

impl Called {
    /// # Safety
    /// The node is one of a condition, which calls the function.
    pub unsafe fn by(node: *mut pg_sys::Node, function: Oid) -> Called {
        use pg_sys::CoercionForm::{COERCE_EXPLICIT_CAST, COERCE_IMPLICIT_CAST};
        // SAFETY: as the caller promises; the tag says what the node is, and all operators begin alike.
        unsafe {
            match (*node).type_ {
                NodeTag::T_OpExpr | NodeTag::T_DistinctExpr | NodeTag::T_NullIfExpr => {
                    let call = &*node.cast::<pg_sys::OpExpr>();
                    Called::operator(call.opno, call.args)
                }
                NodeTag::T_ScalarArrayOpExpr => {
                    let call = &*node.cast::<pg_sys::ScalarArrayOpExpr>();
                    Called::operator(call.opno, call.args)
                }
                NodeTag::T_CoerceViaIO => {
                    let cast = &*node.cast::<pg_sys::CoerceViaIO>();
                    Called::cast(cast.arg.cast(), node)
                }
                NodeTag::T_FuncExpr => {
                    let call = &*node.cast::<pg_sys::FuncExpr>();
                    let is_cast = matches!(call.funcformat, COERCE_EXPLICIT_CAST | COERCE_IMPLICIT_CAST);
                    match nodes(call.args).next().filter(|_| is_cast) {
                        Some(from) => Called::cast(from, node),
                        None => Called::Function(owned(pg_sys::get_func_name(function))),
                    }
                }
                _ => Called::Function(owned(pg_sys::get_func_name(function))),
            }
        }
    }

    unsafe fn operator(operator: Oid, arguments: *mut pg_sys::List) -> Called {
        // SAFETY: as `by`.
        unsafe {
            let with_zone = nodes(arguments).any(|node| has_zone(pg_sys::exprType(node)));
            Called::Operator { name: owned(pg_sys::get_opname(operator)), with_zone }
        }
    }

    unsafe fn cast(from: *mut pg_sys::Node, to: *mut pg_sys::Node) -> Called {
        // SAFETY: as `by`.
        unsafe {
            let (from, to) = (pg_sys::exprType(from), pg_sys::exprType(to));
            Called::Cast {
                from: owned(pg_sys::format_type_be(from)),
                to: owned(pg_sys::format_type_be(to)),
                from_enum: pg_sys::type_is_enum(pg_sys::getBaseType(from)),
                with_zone: has_zone(from) || has_zone(to),
            }
        }
    }

    pub fn in_words(&self) -> String {
        match self {
            Called::Function(name) => format!("{name}()"),
            Called::Operator { name, .. } => format!("the operator {name}"),
            Called::Cast { from, to, .. } => format!("the cast from {from} to {to}"),
        }
    }

    /// What to write instead of something that is not immutable.
    pub fn instead(&self) -> &'static str {
        match self {
            Called::Cast { from_enum: true, .. } => "Compare the enum itself, for example: status = 'ok'",
            Called::Cast { with_zone: true, .. } | Called::Operator { with_zone: true, .. } => {
                "What it gives depends on the session's time zone. Say which is meant, for example: created_at AT TIME ZONE 'UTC'"
            }
            Called::Function(name) if name.contains("to_ts") || name.ends_with("to_tsquery") => {
                "What it gives depends on a setting. Say which configuration is meant, for example: to_tsvector('english', body)"
            }
            Called::Function(name) if ["concat", "concat_ws", "format"].contains(&name.as_str()) => {
                "What it gives can depend on settings of the session. Join texts by ||, for example: first || ' ' || last = 'Ada Lovelace'"
            }
            Called::Function(name) if TIMES.contains(&name.as_str()) => {
                "A filter is asked when a change is committed, so now() is the time of that change. Leave it out, or have a transform return NULL for what is not to be sent."
            }
            _ => {
                "A filter may not depend on the time, the session or its settings. Use another function, or compare the columns themselves."
            }
        }
    }
}

/// Functions that give the time.
const TIMES: [&str; 7] = [
    "now",
    "transaction_timestamp",
    "statement_timestamp",
    "clock_timestamp",
    "timeofday",
    "age",
    "pg_postmaster_start_time",
];

/// Whether a type's values look different in another time zone.
fn has_zone(type_oid: Oid) -> bool {
    [pg_sys::TIMESTAMPTZOID, pg_sys::TIMETZOID].contains(&type_oid)
}

/// A name of the catalogs.
unsafe fn owned(name: *const c_char) -> String {
    if name.is_null() {
        return String::new();
    }
    // SAFETY: the caller passes a name that ends in NUL.
    unsafe { crate::pg::values::encoding::utf8(CStr::from_ptr(name).to_bytes()).into_owned() }
}
