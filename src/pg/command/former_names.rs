//! What the running command renames, moves or takes apart, as it was before: event triggers see the state after the command.

use std::cell::RefCell;
use std::ffi::CStr;

use pgrx::pg_guard;
use pgrx::pg_sys::{self, Oid};

use crate::pg::command::parse_tree::items;
use crate::pg::compat;
use crate::pg::lineage;
use crate::pg::values::encoding;

/// A schema, or a relation in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerName {
    /// The name of the schema.
    pub schema: String,
    /// The name of the relation; none for the schema itself.
    pub relation: Option<String>,
}

#[derive(Default)]
struct Former {
    name: Option<FormerName>,
    /// Tables that are parted from those of the command, and what is below or above them.
    tables: Vec<Oid>,
    /// Whether the command commits transactions of its own.
    is_concurrent: bool,
}

thread_local! {
    static FORMER: RefCell<Former> = RefCell::default();
}

/// Whether a utility command may give something another name, or take a table from its parent.
///
/// # Safety
/// `node` is a utility statement's parse tree.
pub unsafe fn may_be_noted(node: *mut pg_sys::Node) -> bool {
    // SAFETY: as the caller promises.
    let tag = unsafe { (*node).type_ };
    matches!(
        tag,
        pg_sys::NodeTag::T_RenameStmt
            | pg_sys::NodeTag::T_AlterObjectSchemaStmt
            | pg_sys::NodeTag::T_AlterTableStmt
    )
}

/// Notes the state before such a command.
///
/// # Safety
/// A command that [`may_be_noted`] is about to run, so a transaction is in progress.
#[pg_guard]
pub unsafe extern "C-unwind" fn note(node: *mut pg_sys::Node) {
    // SAFETY: as the caller promises; each cast follows the node's tag.
    let former = unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_RenameStmt => {
                let rename = &*node.cast::<pg_sys::RenameStmt>();
                let name = match rename.renameType {
                    pg_sys::ObjectType::OBJECT_SCHEMA if !rename.subname.is_null() => {
                        let schema = encoding::utf8(CStr::from_ptr(rename.subname).to_bytes()).into_owned();
                        Some(FormerName { schema, relation: None })
                    }
                    pg_sys::ObjectType::OBJECT_TABLE
                    | pg_sys::ObjectType::OBJECT_FOREIGN_TABLE
                    | pg_sys::ObjectType::OBJECT_VIEW
                    | pg_sys::ObjectType::OBJECT_MATVIEW => name_of(rename.relation),
                    _ => None,
                };
                Former { name, ..Former::default() }
            }
            pg_sys::NodeTag::T_AlterObjectSchemaStmt => {
                let name = name_of((*node.cast::<pg_sys::AlterObjectSchemaStmt>()).relation);
                Former { name, ..Former::default() }
            }
            _ => parted((*node.cast::<pg_sys::AlterTableStmt>()).cmds),
        }
    };
    FORMER.set(former);
}

/// A transaction has ended, and with it the command, unless that is one that commits on its way.
pub fn transaction_ended() {
    if FORMER.with_borrow(|former| !former.is_concurrent) {
        forget();
    }
}

/// The command is done.
pub fn forget() {
    FORMER.with_borrow_mut(|former| {
        if former.name.is_some() || !former.tables.is_empty() {
            *former = Former::default();
        }
    });
}

/// The name of what the command names otherwise.
pub fn name() -> Option<FormerName> {
    FORMER.with_borrow(|former| former.name.clone())
}

/// The tables that the command parts from its own.
pub fn tables() -> Vec<Oid> {
    FORMER.with_borrow(|former| former.tables.clone())
}

/// # Safety
/// Null, or the name of a relation in a statement that is about to run.
unsafe fn name_of(relation: *mut pg_sys::RangeVar) -> Option<FormerName> {
    // SAFETY: as the caller promises.
    let table = unsafe { find(relation) }?;
    let name = lineage::name_of(table);
    Some(FormerName { schema: name.schema, relation: Some(name.table) })
}

/// The partitions that are detached, each with its own partitions; or the parents that a child leaves, and those above them.
///
/// # Safety
/// The subcommands of ALTER TABLE.
unsafe fn parted(commands: *mut pg_sys::List) -> Former {
    let mut former = Former::default();
    // SAFETY: as the caller promises; each cast follows the subcommand's type.
    unsafe {
        for command in items(commands) {
            let command = &*command.cast::<pg_sys::AlterTableCmd>();
            match command.subtype {
                pg_sys::AlterTableType::AT_DetachPartition
                | pg_sys::AlterTableType::AT_DetachPartitionFinalize => {
                    let detach = &*command.def.cast::<pg_sys::PartitionCmd>();
                    former.is_concurrent = detach.concurrent;
                    let partition = find(detach.name).into_iter();
                    former.tables.extend(partition.flat_map(|table| compat::partition_tree(table)));
                }
                pg_sys::AlterTableType::AT_DropInherit => {
                    if let Some(parent) = find(command.def.cast()) {
                        former.tables.push(parent);
                        former.tables.extend(lineage::ancestors(parent));
                    }
                }
                _ => {}
            }
        }
    }
    former
}

/// # Safety
/// Null, or the name of a relation in a statement that is about to run.
unsafe fn find(relation: *mut pg_sys::RangeVar) -> Option<Oid> {
    if relation.is_null() {
        return None;
    }
    let (flags, lock) = (pg_sys::RVROption::RVR_MISSING_OK, pg_sys::NoLock as _);
    // SAFETY: as the caller promises; without a lock nothing is waited for.
    let table =
        unsafe { pg_sys::RangeVarGetRelidExtended(relation, lock, flags, None, std::ptr::null_mut()) };
    (table != Oid::INVALID).then_some(table)
}
