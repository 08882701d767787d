//! DROP ROLE of a role that has privileges in the schemas of the extension: one error with what to type, where the server
//! would list each function.

use std::ffi::CStr;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::table_guard::look;
use crate::error::Error;
use crate::pg::values::encoding;

/// On how many objects of the extension's schemas a role has privileges, and how many subscriptions it owns. DROP ROLE fails where the first
/// is not zero.
const DEPENDENT: &str = "
    SELECT (SELECT count(*) FROM pg_catalog.pg_shdepend d
        JOIN pg_catalog.pg_database b ON b.oid OPERATOR(pg_catalog.=) d.dbid AND b.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
        WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_authid'::pg_catalog.regclass
            AND d.refobjid OPERATOR(pg_catalog.=) $1 AND d.deptype OPERATOR(pg_catalog.=) 'a'
            AND (d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.objid OPERATOR(pg_catalog.=) ANY ('{pgwh,pgwh_internal}'::pg_catalog.regnamespace[])
                OR d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass AND EXISTS (SELECT FROM pg_catalog.pg_proc p
                    WHERE p.oid OPERATOR(pg_catalog.=) d.objid AND p.pronamespace OPERATOR(pg_catalog.=) ANY ('{pgwh,pgwh_internal}'::pg_catalog.regnamespace[]))
                OR d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass AND EXISTS (SELECT FROM pg_catalog.pg_class c
                    WHERE c.oid OPERATOR(pg_catalog.=) d.objid AND c.relnamespace OPERATOR(pg_catalog.=) ANY ('{pgwh,pgwh_internal}'::pg_catalog.regnamespace[])))),
        (SELECT count(*) FROM pgwh.subscriptions s WHERE s.owner OPERATOR(pg_catalog.=) $2)";

/// Refuses a command that drops a role with privileges in these schemas; the server would refuse it, too.
///
/// # Safety
/// `node` is the parse tree of a DROP ROLE that is about to run in a transaction.
pub unsafe fn before(node: *const pg_sys::DropRoleStmt) {
    // SAFETY: as the caller promises; the roles are a list of RoleSpec nodes, whose names live as long as the tree.
    let names: Vec<&CStr> = unsafe {
        let is_here = !pg_sys::RecoveryInProgress()
            && pg_sys::get_extension_oid(c"pgstream_hooks".as_ptr(), true) != pg_sys::InvalidOid;
        let roles = (*node).roles;
        let count = if !is_here || roles.is_null() { 0 } else { (*roles).length as usize };
        (0..count)
            .map(|n| &*(*(*roles).elements.add(n)).ptr_value.cast::<pg_sys::RoleSpec>())
            .filter(|role| {
                role.roletype == pg_sys::RoleSpecType::ROLESPEC_CSTRING && !role.rolename.is_null()
            })
            .map(|role| CStr::from_ptr(role.rolename))
            .collect()
    };
    for name in names {
        // SAFETY: a syscache look-up in a transaction.
        let role = unsafe { pg_sys::get_role_oid(name.as_ptr(), true) };
        if role == pg_sys::InvalidOid {
            continue;
        }
        let name = encoding::utf8(name.to_bytes()).into_owned();
        let dependent = look("what depends on the role", || {
            Ok(Spi::connect(|client| {
                client
                    .select(DEPENDENT, Some(1), &[role.into(), encoding::argument(name.as_str())])?
                    .first()
                    .get_two::<i64, i64>()
            })?)
        });
        if let Some((Some(objects @ 1..), subscriptions)) = dependent {
            let subscriptions = subscriptions.unwrap_or_default();
            let refusal = Error::RoleHasPrivileges { role: name, objects, subscriptions };
            ErrorReport::from(refusal).report(PgLogLevel::ERROR);
        }
    }
}
