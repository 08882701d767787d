//! Copies of a database or cluster: `pgwh.adopt`, and where we are.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::acting::{as_owner, sees_everything, with_plain_names};
use super::again::tell;
use super::gate;
use super::subscribe::require_capture;
use crate::decode::text::Text;
use crate::error::Error;
use crate::journal::CommandKind;
use crate::send::Problem;
use crate::worker::place;

/// Timeline and place of this cluster, see `pgwh.home()`.
#[pg_extern(sql = false)]
fn place() -> String {
    place::here()
}

/// Arms all held subscriptions here; returns how many.
#[pg_extern(sql = false)]
fn adopt(pending: Option<Text>) -> Result<i64, ErrorReport> {
    gate::changes()?;
    let discard = match pending.as_ref().map(|word| word.0.trim()) {
        None => return Err(Error::Missing("pending").into()),
        Some("send") => false,
        Some("discard") => true,
        Some(other) => {
            return Err(Error::Refused(Problem {
                message: "unknown way to treat what is pending".to_owned(),
                detail: format!("pending is {other:?}; there are send and discard."),
                hint: "For example: SELECT pgwh.adopt(pending => 'discard');".to_owned(),
            })
            .into());
        }
    };
    // While the transaction has no xid; what then still stands in the way is judged row by row.
    let _ = require_capture();
    let adopted = with_plain_names(|| {
        if discard {
            for id in held()? {
                tell(CommandKind::Discard { subscription: id, upto: None })?;
            }
        }
        let adopted = Spi::connect_mut(|client| {
            let rows = client.update(
                "UPDATE pgwh.subscriptions SET home = pgwh.home() WHERE home <> pgwh.home() RETURNING 1",
                None,
                &[],
            )?;
            Ok::<_, pgrx::spi::Error>(rows.len())
        })?;
        Ok(adopted as i64)
    })?;
    // What a role that has subscriptions of its own only says of them says nothing of the cluster.
    if !sees_everything() {
        return Ok(adopted);
    }
    as_owner(|| Ok(Spi::run("UPDATE pgwh.installation SET home = pgwh.home() WHERE home <> pgwh.home()")?))?;
    Ok(adopted)
}

fn held() -> Result<Vec<i64>, Error> {
    Ok(Spi::connect(|client| {
        let rows = client.select(
            "SELECT id FROM pgwh.subscriptions WHERE home <> pgwh.home() ORDER BY id",
            None,
            &[],
        )?;
        rows.map(|row| Ok(row.get::<i64>(1)?.unwrap_or_default())).collect::<pgrx::spi::Result<_>>()
    })?)
}
