//! `ALTER TABLE … DISABLE TRIGGER ALL` and `ENABLE TRIGGER ALL` on tables of the extension, as `pg_dump --data-only
//! --disable-triggers` has them. The second would leave triggers that do not fire for replication, so that rows of another
//! server get in from then on: the triggers stay as they are, and rows that are restored go through them.

use std::ffi::CStr;

use pgrx::pg_sys;

use crate::journal::own_tables;
use crate::pg::command::notice::Notice;
use crate::pg::command::parse_tree::items;
use crate::pg::values::encoding;

/// Whether a utility statement does nothing but enable or disable triggers of a table that it does not name.
///
/// # Safety
/// `node` is a utility statement's parse tree.
pub unsafe fn may_switch(node: *mut pg_sys::Node) -> bool {
    use pg_sys::AlterTableType::{
        AT_DisableTrigAll, AT_DisableTrigUser, AT_EnableTrigAll, AT_EnableTrigUser,
    };
    // SAFETY: as the caller promises; the casts follow the tag, and commands of ALTER TABLE are of this type.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_AlterTableStmt {
            return false;
        }
        let mut commands = items((*node.cast::<pg_sys::AlterTableStmt>()).cmds).peekable();
        commands.peek().is_some()
            && commands.all(|command| {
                let subtype = (*command.cast::<pg_sys::AlterTableCmd>()).subtype;
                [AT_EnableTrigAll, AT_EnableTrigUser, AT_DisableTrigAll, AT_DisableTrigUser]
                    .contains(&subtype)
            })
    }
}

/// Whether such a statement is about a table of the extension, and is to be passed over.
///
/// # Safety
/// The statement is one that [`may_switch`]; a transaction is in progress.
pub unsafe fn are_kept(node: *mut pg_sys::Node) -> bool {
    // SAFETY: as the caller promises; the relation is looked up without a lock, and one that is gone is the server's to report.
    unsafe {
        if crate::journal::extension().is_none() {
            return false;
        }
        let relation = (*node.cast::<pg_sys::AlterTableStmt>()).relation;
        let (flags, lock) = (pg_sys::RVROption::RVR_MISSING_OK, pg_sys::NoLock as _);
        let relation = pg_sys::RangeVarGetRelidExtended(relation, lock, flags, None, std::ptr::null_mut());
        let name = pg_sys::get_rel_name(relation);
        // Others than superusers are refused by the command itself.
        if name.is_null() || !pg_sys::superuser() || own_tables::oid_of(CStr::from_ptr(name)) != relation {
            return false;
        }
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation));
        let name = pg_sys::quote_qualified_identifier(schema, name);
        let name = encoding::utf8(CStr::from_ptr(name).to_bytes()).into_owned();
        Notice::new(format!("triggers of table {name} stay enabled"))
            .detail("They keep rows that replication brings from another server out of the table.")
            .report();
        true
    }
}
