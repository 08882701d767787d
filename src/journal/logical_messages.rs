//! Logical messages of the extension's own in the write-ahead log.

use std::cell::RefCell;

use pgrx::{Spi, pg_sys};

use super::own_tables;
use crate::error::Error;
use crate::event::message_auth::{Kind, Sealer};
use crate::pg::compat;

/// Writes a message of ours, in the encoding of the database, into write-ahead log.
pub fn write(kind: Kind, content: &[u8]) -> Result<(), Error> {
    // SAFETY: reads shared memory; the transaction in progress is given an xid if it has none.
    let xid = unsafe {
        if pg_sys::RecoveryInProgress() {
            return Err(Error::OnStandby);
        }
        pg_sys::GetTopTransactionId()
    };
    let message = with_sealer(|sealer| sealer.seal(kind, xid.into_inner(), content))?;
    compat::log_message(kind.prefix(), &message);
    Ok(())
}

/// Calls with what seals messages of this database, which stays the same as long as its table does.
pub fn with_sealer<T>(action: impl FnOnce(&Sealer) -> T) -> Result<T, Error> {
    thread_local! {
        static KNOWN: RefCell<Option<(pg_sys::Oid, Sealer)>> = const { RefCell::new(None) };
    }
    let table = own_tables::oid_of(c"message_key");
    if KNOWN.with_borrow(|known| known.as_ref().is_none_or(|(of, _)| *of != table)) {
        let key = Spi::connect(|client| {
            client
                .select("SELECT key FROM pgwh_internal.message_key", Some(1), &[])?
                .first()
                .get_one::<String>()
        })?
        .ok_or_else(|| Error::Internal("pgwh_internal.message_key has no row".to_owned()))?;
        KNOWN.set(Some((table, Sealer::new(key.as_bytes()))));
    }
    KNOWN
        .with_borrow(|known| known.as_ref().map(|(_, sealer)| action(sealer)))
        .ok_or_else(|| Error::Internal("no message can be sealed".to_owned()))
}
