//! `pg_dump` by whoever could dump before: it locks each table, and reads those of subscriptions with `row_security` off, which
//! refuses where row-level security would leave out rows. Of our tables a dump has what its role may see.

use std::ffi::{CStr, CString, c_int};
use std::ptr;

use pgrx::{Spi, pg_sys};

use crate::journal::own_tables;
use crate::pg::command::parse_tree::items;
use crate::pg::compat;

/// The tables whose rows a dump has.
const DUMPED: [&CStr; 2] = [c"subscriptions", c"secrets"];

/// A utility statement as it is to be run.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Run {
    /// The statement, or another in its place.
    pub statement: *mut pg_sys::PlannedStmt,
    /// The level of settings to close when it is done; 0 when nothing was set.
    level: c_int,
}

impl Run {
    /// The statement as it is.
    pub fn unchanged(statement: *mut pg_sys::PlannedStmt) -> Run {
        Run { statement, level: 0 }
    }

    /// The statement has run.
    pub fn done(self) {
        if self.level > 0 {
            // SAFETY: closes what `with_row_security` has opened; an ERROR has the end of the transaction close it.
            unsafe { pg_sys::AtEOXact_GUC(true, self.level) };
        }
    }
}

/// Whether a utility statement may be one of a dump.
///
/// # Safety
/// `node` is a utility statement's parse tree.
pub unsafe fn may_be_of_dump(node: *mut pg_sys::Node) -> bool {
    // SAFETY: as the caller promises; the cast follows the tag, and the settings are globals of this process.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_LockStmt => {
                (*node.cast::<pg_sys::LockStmt>()).mode == pg_sys::AccessShareLock as i32
            }
            pg_sys::NodeTag::T_CopyStmt => is_dump() && !(*node.cast::<pg_sys::CopyStmt>()).is_from,
            pg_sys::NodeTag::T_DeclareCursorStmt => is_dump(),
            _ => false,
        }
    }
}

/// Whether the session is one of `pg_dump`, or looks like it.
fn is_dump() -> bool {
    // SAFETY: globals of this process.
    unsafe {
        let name = pg_sys::application_name;
        !pg_sys::row_security || (!name.is_null() && CStr::from_ptr(name) == c"pg_dump")
    }
}

/// What is to run in the place of such a statement.
///
/// # Safety
/// The statement is one that [`may_be_of_dump`]; a transaction is in progress.
pub unsafe fn before(statement: *mut pg_sys::PlannedStmt) -> Run {
    // SAFETY: as the caller promises; each cast follows the node's tag.
    unsafe {
        let node = (*statement).utilityStmt;
        match (*node).type_ {
            pg_sys::NodeTag::T_LockStmt => lock(statement),
            pg_sys::NodeTag::T_CopyStmt => copy(statement),
            _ => declare(statement),
        }
    }
}

/// A dump locks all tables, also those of which it has no rows: those of ours that the role may not read are left out.
unsafe fn lock(statement: *mut pg_sys::PlannedStmt) -> Run {
    // SAFETY: as the caller promises; what is changed is a copy.
    unsafe {
        let relations = (*(*statement).utilityStmt.cast::<pg_sys::LockStmt>()).relations;
        if !items(relations).any(|relation| is_ours(relation.cast()).is_some()) || !is_installed() {
            return Run::unchanged(statement);
        }
        let statement = pg_sys::copyObjectImpl(statement.cast()).cast::<pg_sys::PlannedStmt>();
        let command = (*statement).utilityStmt.cast::<pg_sys::LockStmt>();
        let mut kept = ptr::null_mut();
        for relation in items((*command).relations) {
            if is_ours(relation.cast()).is_none_or(may_lock) {
                kept = pg_sys::lappend(kept, relation);
            }
        }
        (*command).relations = kept;
        Run::unchanged(statement)
    }
}

/// Of tables that the role may not read a dump has no rows, and of others those that row-level security shows.
unsafe fn copy(statement: *mut pg_sys::PlannedStmt) -> Run {
    // SAFETY: as the caller promises; what is changed is a copy.
    unsafe {
        let command = (*statement).utilityStmt.cast::<pg_sys::CopyStmt>();
        let relation =
            if (*command).relation.is_null() { first_from((*command).query) } else { (*command).relation };
        let Some(table) = is_ours(relation).filter(|table| DUMPED.contains(table)) else {
            return Run::unchanged(statement);
        };
        if !is_installed() {
            return Run::unchanged(statement);
        }
        if may_read(table) {
            return with_row_security(statement);
        }
        let statement = pg_sys::copyObjectImpl(statement.cast()).cast::<pg_sys::PlannedStmt>();
        let command = (*statement).utilityStmt.cast::<pg_sys::CopyStmt>();
        (*command).relation = ptr::null_mut();
        (*command).attlist = ptr::null_mut();
        (*command).query = (*parsed(&nothing(1))).stmt;
        Run::unchanged(statement)
    }
}

/// The same of a cursor, by which a dump reads with `--inserts`. Its query has been analyzed by now: who may not use the
/// schema has failed.
unsafe fn declare(statement: *mut pg_sys::PlannedStmt) -> Run {
    // SAFETY: as the caller promises; the query of a cursor is analyzed before the command runs.
    unsafe {
        let query = (*(*statement).utilityStmt.cast::<pg_sys::DeclareCursorStmt>()).query;
        if query.is_null() || (*query).type_ != pg_sys::NodeTag::T_Query {
            return Run::unchanged(statement);
        }
        let mut relations = items((*query.cast::<pg_sys::Query>()).rtable)
            .map(|entry| (*entry.cast::<pg_sys::RangeTblEntry>()).relid)
            .filter(|oid| *oid != pg_sys::InvalidOid);
        let table =
            relations.find_map(|oid| DUMPED.into_iter().find(|table| oid == own_tables::oid_of(table)));
        let Some(table) = table.filter(|_| is_installed()) else { return Run::unchanged(statement) };
        if may_read(table) {
            return with_row_security(statement);
        }
        let statement = pg_sys::copyObjectImpl(statement.cast()).cast::<pg_sys::PlannedStmt>();
        let command = (*statement).utilityStmt.cast::<pg_sys::DeclareCursorStmt>();
        // A dump looks whether it gets as many columns as it has asked for.
        let is_column = |entry: &*mut std::ffi::c_void| !(*entry.cast::<pg_sys::TargetEntry>()).resjunk;
        let columns = items((*query.cast::<pg_sys::Query>()).targetList).filter(is_column).count();
        let text = nothing(columns);
        let (types, environment) = (ptr::null(), ptr::null_mut());
        let nothing = pg_sys::parse_analyze_fixedparams(parsed(&text), text.as_ptr(), types, 0, environment);
        (*command).query = nothing.cast();
        Run::unchanged(statement)
    }
}

/// A query without rows, which a dump reads in the place of a table that its role may not read. It has no constants, whose
/// places in the text others look at.
fn nothing(columns: usize) -> CString {
    let columns = vec!["oid"; columns].join(", ");
    let query = format!("SELECT {columns} FROM pg_catalog.pg_class WHERE oid OPERATOR(pg_catalog.<>) oid");
    CString::new(query).unwrap_or_default()
}

/// The parse tree of a query.
unsafe fn parsed(query: &CStr) -> *mut pg_sys::RawStmt {
    // SAFETY: parses one statement, which makes a list of one.
    unsafe {
        let parsed = pg_sys::raw_parser(query.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
        items(parsed).next().map_or(ptr::null_mut(), <*mut std::ffi::c_void>::cast)
    }
}

unsafe fn with_row_security(statement: *mut pg_sys::PlannedStmt) -> Run {
    // SAFETY: as functions with a SET clause do it (`fmgr_security_definer` in fmgr.c).
    unsafe {
        let level = pg_sys::NewGUCNestLevel();
        pg_sys::set_config_option(
            c"row_security".as_ptr(),
            c"on".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
        Run { statement, level }
    }
}

/// The name of the table, if it is spelled as one of our schema.
unsafe fn is_ours<'a>(relation: *mut pg_sys::RangeVar) -> Option<&'a CStr> {
    // SAFETY: null, or a node of the statement, whose names are C strings.
    unsafe {
        if relation.is_null() || (*relation).schemaname.is_null() {
            return None;
        }
        [c"pgwh", c"pgwh_internal"]
            .contains(&CStr::from_ptr((*relation).schemaname))
            .then(|| CStr::from_ptr((*relation).relname))
    }
}

/// The first table of a plain query.
unsafe fn first_from(query: *mut pg_sys::Node) -> *mut pg_sys::RangeVar {
    // SAFETY: null, or a parse tree; each cast follows the node's tag.
    unsafe {
        if query.is_null() || (*query).type_ != pg_sys::NodeTag::T_SelectStmt {
            return ptr::null_mut();
        }
        let from = items((*query.cast::<pg_sys::SelectStmt>()).fromClause).next();
        let table = from.filter(|node| (*node.cast::<pg_sys::Node>()).type_ == pg_sys::NodeTag::T_RangeVar);
        table.map_or(ptr::null_mut(), <*mut std::ffi::c_void>::cast)
    }
}

fn is_installed() -> bool {
    crate::journal::extension().is_some()
}

/// Whether the present role may lock the table as a dump does; true where it is not there, for the server to say so.
fn may_lock(table: &CStr) -> bool {
    // SAFETY: syscache look-ups in a transaction.
    unsafe {
        let (role, oid) = (pg_sys::GetUserId(), own_tables::oid_of(table));
        let select = pg_sys::ACL_SELECT as pg_sys::AclMode;
        oid == pg_sys::InvalidOid
            || compat::may_use_schema(pg_sys::get_rel_namespace(oid), role)
                && pg_sys::pg_class_aclcheck(oid, role, select) == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// Whether the present role may read rows of the table, which takes the function that policies call, too.
fn may_read(table: &CStr) -> bool {
    const MAY_CALL: &str = "
        SELECT pg_catalog.has_function_privilege(p.oid, 'EXECUTE') FROM pg_catalog.pg_proc p
            JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
        WHERE n.nspname OPERATOR(pg_catalog.=) 'pgwh_internal' AND p.proname OPERATOR(pg_catalog.=) 'sees'";
    let may_call = || Spi::connect(|client| client.select(MAY_CALL, Some(1), &[])?.first().get_one::<bool>());
    may_lock(table) && may_call().ok().flatten().unwrap_or_default()
}
