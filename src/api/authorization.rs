//! Acting for a user: whom they may act as, and doing for them what they may not do themselves.

use std::cell::RefCell;
use std::collections::HashSet;

use pgrx::prelude::*;

use crate::error::Error;
use crate::journal::own_tables;
use crate::pg::acl;
use crate::pg::acl::Access;
use crate::pg::command::command_cache::Moment;
use crate::pg::values::encoding;
use crate::pg::values::encoding::{Text, in_server_encoding, list};

/// Whether the present role can act as the one of that name.
pub fn may_act_as(role: &str) -> bool {
    let name = in_server_encoding(role);
    // SAFETY: syscache look-ups in a transaction.
    unsafe {
        let role = pg_sys::get_role_oid(name.as_ptr(), true);
        role != pg_sys::InvalidOid && pg_sys::is_member_of_role(pg_sys::GetUserId(), role)
    }
}

/// Whether the present role may do what a subscription's owner may.
pub fn owns(owner: &str) -> bool {
    // SAFETY: a syscache look-up in a transaction. A superuser sees to those, too, whose owner is gone.
    unsafe { pg_sys::superuser() || may_act_as(owner) }
}

/// Whether the present role sees what belongs to anybody, as row-level security has it.
pub fn sees_everything() -> bool {
    // SAFETY: syscache look-ups in a transaction.
    unsafe { pg_sys::superuser() || pg_sys::has_bypassrls_privilege(pg_sys::GetUserId()) }
}

/// Whether the present role is shown what belongs to the one of that name; none: to nobody any more.
#[pg_extern(sql = false)]
fn sees(owner: Option<Text>) -> bool {
    if sees_everything() {
        return true;
    }
    let Some(role) = owner.map(|owner| acl::role_of(&owner.0)).filter(|role| *role != pg_sys::InvalidOid)
    else {
        return false;
    };
    // SAFETY: a syscache look-up in a transaction.
    unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), role) }
}

/// Whether the present role may do what the owner of that name may, and so is shown the owner's URLs.
#[pg_extern(sql = false)]
fn may_act_for(owner: Option<Text>) -> bool {
    // SAFETY: a syscache look-up in a transaction.
    owner.map_or(unsafe { pg_sys::superuser() }, |owner| owns(&owner.0))
}

/// The subscriptions that the present role is shown.
pub enum Visible {
    /// All.
    All,
    /// These.
    Only(HashSet<i64>),
}

impl Visible {
    /// Those of now.
    pub fn now() -> Result<Visible, Error> {
        if sees_everything() {
            return Ok(Visible::All);
        }
        // Row-level security shows what is to be seen.
        Ok(Spi::connect(|client| {
            let rows = client.select("SELECT id FROM pgwh.subscriptions", None, &[])?;
            let ids = rows.map(|row| Ok(row.get::<i64>(1)?.unwrap_or_default()));
            ids.collect::<spi::Result<_>>().map(Visible::Only)
        })?)
    }

    /// Whether it is one of them.
    pub fn has(&self, subscription: i64) -> bool {
        match self {
            Visible::All => true,
            Visible::Only(ids) => ids.contains(&subscription),
        }
    }
}

/// So many are asked for one by one in a command before all that the role is shown are looked for.
const MOST_ASKED_FOR: u32 = 16;

thread_local! {
    /// What a role was shown in the command that runs: a view asks of each of its rows.
    static SHOWN: RefCell<Option<Shown>> = const { RefCell::new(None) };
}

struct Shown {
    moment: Moment,
    role: pg_sys::Oid,
    asked: u32,
    all: Option<Visible>,
}

/// Whether the present role is shown the subscription.
pub fn is_visible(subscription: i64) -> Result<bool, Error> {
    if sees_everything() {
        return Ok(true);
    }
    // SAFETY: reads the state of this process.
    let (moment, role) = (Moment::now(), unsafe { pg_sys::GetUserId() });
    // Taken out meanwhile, since a query asks, too.
    let known = SHOWN.take().filter(|shown| shown.moment == moment && shown.role == role);
    let mut shown = known.unwrap_or(Shown { moment, role, asked: 0, all: None });
    shown.asked += 1;
    if shown.asked > MOST_ASKED_FOR && shown.all.is_none() {
        shown.all = Some(Visible::now()?);
    }
    let is_visible = match &shown.all {
        Some(all) => all.has(subscription),
        None => is_shown(subscription)?,
    };
    SHOWN.set(Some(shown));
    Ok(is_visible)
}

fn is_shown(subscription: i64) -> Result<bool, Error> {
    let query = "SELECT FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1";
    Ok(Spi::connect(|client| {
        Ok::<_, spi::Error>(!client.select(query, Some(1), &[subscription.into()])?.is_empty())
    })?)
}

/// The columns of a table that the present role may read, by name; none: all.
#[pg_extern(sql = false)]
fn readable_columns(relation: pg_sys::Oid) -> Option<Vec<Text>> {
    // SAFETY: reads the state of this process.
    match acl::of(relation, unsafe { pg_sys::GetUserId() }) {
        Access::All => None,
        Access::Nothing(_) => Some(Vec::new()),
        Access::Columns(numbers) => Some(list(&acl::names_of(relation, numbers))),
    }
}

/// Runs the action as the extension's owner, where names without a schema mean the server's own. For what nobody else may
/// read or write; the caller has been judged before.
pub fn as_owner<T>(action: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    // SAFETY: as checks of foreign keys do it (`ri_PerformCheck` in ri_triggers.c); should the action raise, the end of
    // the transaction gives the role back.
    unsafe {
        let (mut role, mut context) = (pg_sys::InvalidOid, 0);
        pg_sys::GetUserIdAndSecContext(&mut role, &mut context);
        pg_sys::SetUserIdAndSecContext(owner(), context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32);
        let done = with_plain_names(action);
        pg_sys::SetUserIdAndSecContext(role, context);
        done
    }
}

/// Whether the present role has the privileges of the extension's owner.
///
/// # Safety
/// A transaction is in progress, and the extension is here.
pub unsafe fn is_owner() -> bool {
    // SAFETY: as the caller promises; a syscache look-up.
    unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), owner()) }
}

/// Who owns `pgwh.secrets`.
///
/// # Safety
/// A transaction is in progress.
unsafe fn owner() -> pg_sys::Oid {
    // SAFETY: as the caller promises; syscache look-ups whose result is copied.
    unsafe {
        let table = own_tables::oid_of(c"secrets");
        let cache = pg_sys::SysCacheIdentifier::RELOID as _;
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(table));
        if tuple.is_null() {
            pgrx::error!("pgstream_hooks: pgwh.secrets is not there");
        }
        let owner = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relowner;
        pg_sys::ReleaseSysCache(tuple);
        owner
    }
}

/// Runs the action where names without a schema mean the server's own, whatever the caller's search path is.
pub fn with_plain_names<T>(action: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    // SAFETY: as functions with a SET clause do it (`fmgr_security_definer` in fmgr.c): the level is closed when the
    // action is done, or by the end of the transaction when it raises.
    unsafe {
        let level = pg_sys::NewGUCNestLevel();
        pg_sys::set_config_option(
            c"search_path".as_ptr(),
            c"pg_catalog, pg_temp".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
        let done = action();
        pg_sys::AtEOXact_GUC(true, level);
        done
    }
}

/// The name of the present role.
pub fn own_name() -> String {
    // SAFETY: a syscache look-up in a transaction; the name is a copy, or null.
    unsafe {
        let name = pg_sys::GetUserNameFromId(pg_sys::GetUserId(), true);
        if name.is_null() {
            String::new()
        } else {
            encoding::utf8(std::ffi::CStr::from_ptr(name).to_bytes()).into_owned()
        }
    }
}
