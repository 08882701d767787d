//! The processes: what runs, and how they find and wake each other.

pub(crate) mod backfiller;
pub mod decoder;
mod launcher;
pub mod renderer;
pub mod user_function;

use crate::hooks::utility;
use crate::pg::process::cluster_fingerprint;
use crate::shmem::{commit_signal, registry};
use std::cell::Cell;

use pgrx::{pg_guard, pg_sys};

use crate::decode::wal::decoding_loop;

static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Sets up shared memory, hooks and the launcher, while the server preloads.
pub fn init() {
    // SAFETY: single-threaded start-up of the server; the previous hooks are kept and called.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request_memory);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(attach_memory);
        cluster_fingerprint::init();
        // A cluster being upgraded is started to be read, not to send.
        if pg_sys::IsBinaryUpgrade {
            decoding_loop::allow_plugin_in_upgrade();
            return;
        }
    }
    commit_signal::init();
    utility::init();
    launcher::register();
}

#[pg_guard]
unsafe extern "C-unwind" fn request_memory() {
    // SAFETY: the hook that was there before ours.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
    }
    registry::request();
}

#[pg_guard]
unsafe extern "C-unwind" fn attach_memory() {
    // SAFETY: the hook that was there before ours.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
    }
    registry::attach();
}

thread_local! {
    static ON_EXIT: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// Has the action run when this process ends, however it ends, while shared memory is still attached.
pub(crate) fn at_exit(action: fn()) {
    ON_EXIT.set(Some(action));
    // SAFETY: the callback is a function of this library; it runs before the process leaves shared memory.
    unsafe { pg_sys::before_shmem_exit(Some(run_at_exit), pg_sys::Datum::null()) };
}

#[pg_guard]
unsafe extern "C-unwind" fn run_at_exit(_code: std::ffi::c_int, _argument: pg_sys::Datum) {
    if let Some(action) = ON_EXIT.take() {
        action();
    }
}
