//! `LOCK TABLE` on tables of the extension. They hold what belongs to all roles, so a mode that others wait for, in any session
//! and in the workers, is for those who own them.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::authorization;
use crate::error::Error;
use crate::pg::command::parse_tree::items;

/// Whether a utility statement locks tables in a mode that keeps others from reading or writing them.
///
/// # Safety
/// `node` is a utility statement's parse tree.
pub unsafe fn may_block(node: *mut pg_sys::Node) -> bool {
    // SAFETY: as the caller promises; the cast follows the tag.
    unsafe {
        (*node).type_ == pg_sys::NodeTag::T_LockStmt
            && (*node.cast::<pg_sys::LockStmt>()).mode > pg_sys::ShareUpdateExclusiveLock as i32
    }
}

/// Refuses such a statement of an ordinary role about a table of the extension, or a view of one: its tables are locked, too.
///
/// # Safety
/// The statement is one that [`may_block`]; a transaction is in progress.
pub unsafe fn check(node: *mut pg_sys::Node) {
    // SAFETY: as the caller promises; relations are looked up without a lock, and one that is gone is the server's to report.
    unsafe {
        let command = &*node.cast::<pg_sys::LockStmt>();
        if pg_sys::superuser() || crate::journal::extension().is_none() || authorization::is_owner() {
            return;
        }
        for relation in items(command.relations) {
            let flags = pg_sys::RVROption::RVR_MISSING_OK;
            let lock = pg_sys::NoLock as _;
            let relation =
                pg_sys::RangeVarGetRelidExtended(relation.cast(), lock, flags, None, std::ptr::null_mut());
            if relation == pg_sys::InvalidOid {
                continue;
            }
            match table_of_ours(relation) {
                Ok(None) => {}
                Ok(Some(table)) => {
                    let mode = mode_name(command.mode).to_owned();
                    ErrorReport::from(Error::TableLock { table, mode }).report(PgLogLevel::ERROR);
                }
                Err(error) => ErrorReport::from(Error::from(error)).report(PgLogLevel::ERROR),
            }
        }
    }
}

/// The first of the extension's tables among the relation and, of a view, what it reads.
fn table_of_ours(relation: pg_sys::Oid) -> spi::Result<Option<String>> {
    const QUERY: &str = "
        WITH RECURSIVE locked AS (
            SELECT $1 AS relation
            UNION
            SELECT d.refobjid FROM locked l
                JOIN pg_catalog.pg_rewrite r ON r.ev_class OPERATOR(pg_catalog.=) l.relation
                JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass
                    AND d.objid OPERATOR(pg_catalog.=) r.oid
                    AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass)
        SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
        FROM locked l
            JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) l.relation
            JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE n.nspname OPERATOR(pg_catalog.=) ANY ('{pgwh,pgwh_internal}') AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}')
        ORDER BY c.relname LIMIT 1";
    Spi::connect(|client| {
        let found = client.select(QUERY, Some(1), &[relation.into()])?;
        if found.is_empty() { Ok(None) } else { found.first().get_one::<String>() }
    })
}

/// A lock mode that [`may_block`], as `LOCK TABLE` spells it.
fn mode_name(mode: i32) -> &'static str {
    match mode as u32 {
        pg_sys::ShareLock => "SHARE",
        pg_sys::ShareRowExclusiveLock => "SHARE ROW EXCLUSIVE",
        pg_sys::ExclusiveLock => "EXCLUSIVE",
        _ => "ACCESS EXCLUSIVE",
    }
}
