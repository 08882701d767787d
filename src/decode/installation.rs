//! The installation of the extension in this database.

use std::ffi::CString;

use pgrx::pg_sys;

use crate::pg::process::bgworker;

/// What tells this installation of the extension from others.
pub struct Installation {
    /// Drawn at CREATE EXTENSION.
    pub id: String,
    /// `pgwh_internal.installed()`.
    pub installed: String,
    /// The oid of `pgwh.subscriptions`.
    pub subscriptions: pg_sys::Oid,
    /// The oid of `pgwh_internal.schema_changes`.
    pub schema_changes: pg_sys::Oid,
    /// What seals messages of our own.
    pub message_key: String,
    /// The extension's oid.
    pub extension: pg_sys::Oid,
    /// The name that the dispatcher has noted for the slot, if it has.
    noted_slot: Option<CString>,
}

impl Installation {
    /// The name of its slot in a database.
    pub fn slot_name(&self, database: pg_sys::Oid) -> CString {
        self.noted_slot.clone().unwrap_or_else(|| bgworker::default_slot_name(database, &self.id))
    }

    /// Reads it; inside a transaction that may use our tables.
    pub fn read(extension: pg_sys::Oid) -> Installation {
        let read = || -> pgrx::spi::Result<Option<Installation>> {
            pgrx::Spi::connect(|client| {
                let rows = client.select(
                    "SELECT i.id::text, pgwh_internal.installed(), 'pgwh.subscriptions'::regclass::oid,
                         'pgwh_internal.schema_changes'::regclass::oid, k.key, i.slot_name
                     FROM pgwh_internal.installation i, pgwh_internal.message_key k",
                    Some(1),
                    &[],
                )?;
                let Some(row) = rows.into_iter().next() else { return Ok(None) };
                Ok(Some(Installation {
                    id: row.get(1)?.unwrap_or_default(),
                    installed: row.get(2)?.unwrap_or_default(),
                    subscriptions: row.get(3)?.unwrap_or_default(),
                    schema_changes: row.get(4)?.unwrap_or_default(),
                    message_key: row.get(5)?.unwrap_or_default(),
                    extension,
                    noted_slot: row.get::<String>(6)?.and_then(|name| CString::new(name).ok()),
                }))
            })
        };
        match read() {
            Ok(Some(installation)) => installation,
            Ok(None) => pgrx::error!("pgwh_internal.installation or pgwh_internal.message_key has no row"),
            Err(error) => pgrx::error!("pgwh_internal.installation cannot be read: {error}"),
        }
    }
}
