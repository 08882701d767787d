//! Copies of a database or cluster: `pgwh.adopt`, and where we are.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::authorization::{as_owner, sees_everything, with_plain_names};
use crate::api::command_queue::tell;
use crate::api::preconditions;
use crate::api::subscriptions::subscribe::require_capture;
use crate::error::Error;
use crate::gucs;
use crate::http::Problem;
use crate::journal::CommandKind;
use crate::pg::process::cluster_fingerprint;
use crate::pg::process::machine::{NameOrigin, OwnMark};
use crate::pg::values::encoding::Text;

/// Timeline and place of this cluster, see `pgwh_internal.home()`.
#[pg_extern(sql = false)]
fn place() -> String {
    cluster_fingerprint::here()
}

/// What a hint says of a machine that has nothing of its own.
const NAME_IT: &str = "Start the server with a name of its own, for example: postgres -c pgwh.server_identity=production. Then once: SELECT pgwh.adopt();";

/// What a hint says of a name that a copy may have, too.
const SET_OUTSIDE: &str = "Set it on the server's command line, or in a configuration file outside of the data directory and its file system, and restart the server.";

/// By what a copy of the data directory is noticed, how strong that is, and what to set.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn copy_detection()
-> TableIterator<'static, (name!(ok, bool), name!(detail, String), name!(hint, Option<&'static str>))> {
    let machine = cluster_fingerprint::machine();
    let own = match machine.own() {
        OwnMark::Id(_) | OwnMark::CopiedId(_) => "/etc/machine-id",
        OwnMark::ImageId(_) | OwnMark::HostName(_) => "the host name",
    };
    let (ok, detail, hint) = match (machine.name_origin(), machine.own()) {
        (Some(NameOrigin::Outside), _) => (
            true,
            "strong: this server has a name, pgwh.server_identity, that a copy of its data directory does not have".to_owned(),
            None,
        ),
        (Some(NameOrigin::SameFileSystem), _) => (
            true,
            format!("weak: pgwh.server_identity is set in a file on the file system of the data directory, which a copy of that has, too, so {own} counts as well"),
            Some(SET_OUTSIDE),
        ),
        (Some(NameOrigin::OptionsFile), _) => (
            true,
            format!("weak: pgwh.server_identity is from postmaster.opts in the data directory, which pg_ctl restart reads and a copy has, too, so {own} counts as well"),
            Some("Stop the server, and start it with the name on the command line, for example: pg_ctl start -o '-c pgwh.server_identity=production'"),
        ),
        (None, _) if gucs::server_identity().is_some() => (
            false,
            "pgwh.server_identity is set in a file in the data directory, which a copy has, too, and does not count".to_owned(),
            Some(SET_OUTSIDE),
        ),
        (None, OwnMark::Id(_)) => (
            true,
            "strong: /etc/machine-id; a copy of the whole machine is noticed when pgwh.server_identity differs".to_owned(),
            None,
        ),
        (None, OwnMark::CopiedId(_)) => (
            true,
            "weak: /etc/machine-id, which is on the file system of the data directory, so a copy of that has it, too".to_owned(),
            Some(NAME_IT),
        ),
        (None, OwnMark::ImageId(_)) => (
            true,
            "weak: the host name, since /etc/machine-id is part of this container's image; a container with another host name is held".to_owned(),
            Some(NAME_IT),
        ),
        (None, OwnMark::HostName(_)) => (
            true,
            "weak: the host name, since this machine has no /etc/machine-id; a machine or container with another host name is held".to_owned(),
            Some(NAME_IT),
        ),
    };
    TableIterator::once((ok, detail, hint))
}

/// Arms all held subscriptions here; returns how many.
#[pg_extern(sql = false)]
fn adopt(pending: Option<Text>) -> Result<i64, ErrorReport> {
    preconditions::changes()?;
    let discard = match pending.as_ref().map(|word| word.0.trim()) {
        None => return Err(Error::Missing("pending").into()),
        Some("send") => false,
        Some("discard") => true,
        Some(other) => {
            return Err(Error::Refused(Problem {
                message: "unknown way to treat what is pending".to_owned(),
                detail: format!("pending is \"{other}\"; there are send and discard."),
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
                "UPDATE pgwh.subscriptions SET home = pgwh_internal.home() WHERE home <> pgwh_internal.home() RETURNING 1",
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
    as_owner(|| {
        Ok(Spi::run(
            "UPDATE pgwh_internal.installation SET home = pgwh_internal.home() WHERE home <> pgwh_internal.home()",
        )?)
    })?;
    Ok(adopted)
}

fn held() -> Result<Vec<i64>, Error> {
    Ok(Spi::connect(|client| {
        let rows = client.select(
            "SELECT id FROM pgwh.subscriptions WHERE home <> pgwh_internal.home() ORDER BY id",
            None,
            &[],
        )?;
        rows.map(|row| Ok(row.get::<i64>(1)?.unwrap_or_default())).collect::<pgrx::spi::Result<_>>()
    })?)
}
