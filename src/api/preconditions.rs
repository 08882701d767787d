//! What must be so before a call may change anything: this server takes changes, and library and SQL fit together.

use std::cell::Cell;

use pgrx::pg_sys;

use crate::error::Error;
use crate::{journal, version};

thread_local! {
    // A library is loaded for the life of a session, and never fits SQL that it has not updated.
    static FITS: Cell<bool> = const { Cell::new(false) };
}

/// Refuses on a standby, and where library and SQL don't fit.
pub fn changes() -> Result<(), Error> {
    primary()?;
    fitting()
}

/// Refuses on a standby.
pub fn primary() -> Result<(), Error> {
    // SAFETY: reads a flag in shared memory.
    match unsafe { pg_sys::RecoveryInProgress() } {
        true => Err(Error::OnStandby),
        false => Ok(()),
    }
}

/// Refuses where library and SQL don't fit.
pub fn fitting() -> Result<(), Error> {
    if !FITS.get() {
        let sql = journal::extension_version().unwrap_or_default();
        if !version::fits(&sql) {
            return Err(Error::Versions(sql));
        }
        FITS.set(true);
    }
    Ok(())
}
