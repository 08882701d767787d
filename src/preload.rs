//! Preloading: shared memory, hooks and the launcher are set up while the server starts.

use pgrx::{pg_guard, pg_sys};

use crate::bgworkers::launcher;
use crate::decode::wal::decoding_loop;
use crate::hooks::{prepared_transactions, utility};
use crate::pg::process::cluster_fingerprint;
use crate::shmem::{commit_signal, registry};

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
    commit_signal::init(prepared_transactions::note, utility::let_back);
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
