//! What another server's log says is no word on this server's own tables: a trigger on each of them that fires for sessions
//! that replicate drops the rows that such a session applies.

use pgrx::AllocatedByRust;
use pgrx::pg_sys::panic::{ErrorReport, ErrorReportable};
use pgrx::prelude::*;

use crate::error::Error;
use crate::pg::compat;
use crate::pg::compat::DO_NOT_REPLICATE;

type Tuple<'a> = PgHeapTuple<'a, AllocatedByRust>;

/// BEFORE INSERT, UPDATE OR DELETE on each table of `pgwh`, enabled for replicas: keeps rows out that come from another
/// server.
#[pg_trigger(sql = false)]
fn accept_local<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Tuple<'a>>, Error> {
    let row = || match trigger.new().or_else(|| trigger.old()) {
        _ if is_applied() => Ok(None),
        Some(row) => Ok(Some(row.into_owned())),
        None => Err(Error::Internal("a trigger has no row".to_owned())),
    };
    Ok(row().map_err(ErrorReport::from).unwrap_or_report())
}

/// Whether the command that runs applies what another server's log says: it is a replication worker's, or one of a session
/// that replays an origin. What a function does in there, a trigger of the user's for example, happens on this server.
pub fn is_applied() -> bool {
    let origin = compat::session_origin();
    // SAFETY: both read the state of this process.
    let replays = unsafe { pg_sys::IsLogicalWorker() } || (origin != 0 && origin != DO_NOT_REPLICATE);
    replays && !is_inside_function()
}

/// Whether a function has connected to SPI, through which it runs its commands.
fn is_inside_function() -> bool {
    // SAFETY: looks for a name that nothing has; nothing is changed.
    let answer = unsafe { pg_sys::SPI_unregister_relation(c"pgwh: no such relation".as_ptr()) };
    answer != pg_sys::SPI_ERROR_UNCONNECTED
}
