//! A renderer: runs the functions that subscriptions name, so that one that takes its time holds up nobody but its own
//! subscription. The dispatcher starts renderers as it needs them; one ends when the dispatcher lets go of it.

use std::time::Duration;

use pgrx::{pg_guard, pg_sys};

use super::user_function::{self, Call};
use crate::ipc::frame::FrameReader;
use crate::ipc::render::{Ask, By, Shaped, write_answer};
use crate::pg::compat;
use crate::pg::process::bgworker;
use crate::pg::shm_mq::Pair;

/// Bytes of each of the two queues between dispatcher and renderer.
pub const QUEUE: usize = 128 * 1024;

/// The renderer's main function; the argument is the database's oid.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgwh_renderer_main(argument: pg_sys::Datum) {
    compat::install_signal_handlers();
    bgworker::connect(pg_sys::Oid::from(argument.value() as u32));
    // A function sees what its owner may see, no more and with no error.
    bgworker::pin(&[(c"row_security", c"on")]);
    let Ok(mut pair) = Pair::attach(bgworker::extra(), QUEUE) else { return };
    let mut frames = FrameReader::default();
    loop {
        match frames.next_frame().map(|frame| frame.map(Ask::read)) {
            Ok(Some(Ok(ask))) => {
                bgworker::see_to_interrupts();
                if pair.sender().send(&answer(&ask)).is_err() {
                    return;
                }
            }
            Ok(None) => {
                bgworker::report_idle(c"waiting for events");
                let Ok(piece) = pair.receiver().await_piece() else { return };
                frames.push(piece);
            }
            Ok(Some(Err(error))) | Err(error) => {
                pgrx::error!("the dispatcher of this database is not understood: {error}")
            }
        }
    }
}

fn answer(ask: &Ask) -> Vec<u8> {
    bgworker::report_busy(c"running functions of subscriptions");
    let shaped: Vec<Shaped> =
        ask.events.iter().map(|event| bgworker::in_transaction(|| shape(ask, event))).collect();
    // Advisory locks of the session are all that outlives a rollback.
    // SAFETY: releases what this process holds.
    unsafe { pg_sys::LockReleaseSession(pg_sys::USER_LOCKMETHOD as _) };
    let mut out = Vec::new();
    if let Err(too_long) = write_answer(&mut out, &shaped) {
        let by = if ask.transform.is_some() { By::Transform } else { By::Route };
        let failed = Shaped::Failed { by, message: too_long.to_string() };
        // So few words fit into a frame.
        let _ = write_answer(&mut out, &vec![failed; shaped.len()]);
    }
    out
}

/// Puts an event through a subscription's functions. Inside a transaction.
pub fn shape(ask: &Ask, event: &[u8]) -> Shaped {
    let call = |by, function: &Option<String>| match function {
        Some(function) => {
            let call = Call { function, owner: &ask.owner, limit: ask.limit };
            user_function::call(call, event).map_err(|message| Shaped::Failed { by, message })
        }
        None => Ok(None),
    };
    let body = match call(By::Transform, &ask.transform) {
        Ok(None) if ask.transform.is_some() => return Shaped::Dropped,
        Ok(body) => body,
        Err(failed) => return failed,
    };
    match call(By::Route, &ask.route) {
        Ok(route) => Shaped::Ready { body, route },
        Err(failed) => failed,
    }
}

/// How long an event may take at most.
pub fn most(ask: &Ask) -> Duration {
    let calls = u32::from(ask.transform.is_some()) + u32::from(ask.route.is_some());
    ask.limit * calls
}
