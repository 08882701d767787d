//! Expressions of conditions: how they are prepared and evaluated, and which columns they use.

use std::ffi::c_void;

use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum, NodeTag};

use super::analyze::Uses;
use crate::pg::compat;

/// Makes an expression ready to be evaluated.
///
/// # Safety
/// `node` is an expression; what is made lives in the current memory context.
pub unsafe fn prepare(node: *mut pg_sys::Node) -> *mut pg_sys::ExprState {
    // SAFETY: as the caller promises.
    unsafe { pg_sys::ExecInitExpr(pg_sys::expression_planner(node.cast()), std::ptr::null_mut()) }
}

/// The expression's value; none: NULL.
///
/// # Safety
/// `state` is of [`prepare`], and the context has the rows and parameters that it looks at.
pub unsafe fn evaluate(state: *mut pg_sys::ExprState, context: *mut pg_sys::ExprContext) -> Option<Datum> {
    let mut is_null = false;
    // SAFETY: as the caller promises.
    let datum = unsafe { compat::evaluate(state, context, &mut is_null) };
    (!is_null).then_some(datum)
}

/// The columns that an expression looks at, once its variables are those of a condition.
///
/// # Safety
/// `node` is an expression out of [`super::analyze::resolve`].
pub unsafe fn uses_of(node: *mut pg_sys::Node) -> Uses {
    let mut uses = Uses::default();
    // SAFETY: as the caller promises.
    unsafe { compat::walk(node, collect_uses, (&raw mut uses).cast()) };
    uses
}

#[pg_guard]
unsafe extern "C-unwind" fn collect_uses(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    // SAFETY: the walker passes nodes, and the context is that of `uses_of`.
    unsafe {
        if node.is_null() {
            return false;
        }
        if (*node).type_ == NodeTag::T_Var {
            let var = &*node.cast::<pg_sys::Var>();
            let uses = &mut *context.cast::<Uses>();
            let is_new = var.varno == pg_sys::OUTER_VAR;
            if is_new { &mut uses.new } else { &mut uses.old }.insert(var.varattno);
        }
        pg_sys::expression_tree_walker(node, Some(collect_uses), context)
    }
}
