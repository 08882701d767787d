//! Rows of `pgwh.secrets`, read and written without a statement: what signs requests is never a parameter that an audit of
//! statements logs, nor in the stream of a reader of the log. What the table's triggers do for statements is done here, too.

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;

use super::authorization::as_owner;
use crate::api::command_queue::tell;
use crate::error::Error;
use crate::gucs;
use crate::http::Identity;
use crate::http::signature::SigningKey;
use crate::journal::CommandKind;
use crate::journal::write::heap::{StoredRow, Table};
use crate::pg::values::encoding::Text;
use crate::secret::{Keys, stored_secret};

const TABLE: &str = "secrets";

/// The table's columns.
mod column {
    pub const SUBSCRIPTION_ID: i16 = 1;
    pub const SECRET: i16 = 2;
    pub const PREVIOUS_SECRET: i16 = 3;
    pub const PREVIOUS_UNTIL: i16 = 4;
    pub const HEADERS: i16 = 5;
    pub const CLIENT_CERTIFICATE: i16 = 6;
}

/// What the table has of a subscription, as it is stored: each text may be sealed.
#[derive(Default)]
pub struct SecretRow {
    /// The key that signs.
    pub secret: Option<String>,
    /// The key before.
    pub previous_secret: Option<String>,
    /// Until when that signs, too, in microseconds since 2000.
    pub previous_until: Option<i64>,
    /// Values of sensitive headers, as JSON.
    pub headers: Option<String>,
    /// Certificate and private key for mutual TLS, in PEM.
    pub client_certificate: Option<String>,
}

impl SecretRow {
    fn of(row: &StoredRow) -> SecretRow {
        let text = |column| row.get::<Text>(column).map(String::from);
        SecretRow {
            secret: text(column::SECRET),
            previous_secret: text(column::PREVIOUS_SECRET),
            previous_until: row.get(column::PREVIOUS_UNTIL),
            headers: text(column::HEADERS),
            client_certificate: text(column::CLIENT_CERTIFICATE),
        }
    }

    /// Checked and sealed, as it is to be stored.
    fn sealed(self, id: i64) -> Result<SecretRow, Error> {
        let keys = gucs::encryption_keys().map_err(Error::Sealed)?;
        let seal =
            |column, text: Option<String>| text.map(|text| sealed(&keys, id, column, text)).transpose();
        Ok(SecretRow {
            secret: seal("secret", self.secret)?,
            previous_secret: seal("previous_secret", self.previous_secret)?,
            previous_until: self.previous_until,
            headers: seal("headers", self.headers)?,
            client_certificate: seal("client_certificate", self.client_certificate)?,
        })
    }
}

/// What a column is to hold: refuses what cannot sign, and seals.
pub fn sealed(keys: &Option<Keys>, id: i64, column: &str, text: String) -> Result<String, Error> {
    // What comes sealed from a dump stays so until there is a key that opens it.
    let Ok(text) = stored_secret::open(keys.as_ref(), id, column, &text) else { return Ok(text) };
    match column {
        "headers" => {}
        "client_certificate" => drop(Identity::parse(&text)?),
        _ => drop(SigningKey::parse(&text)?),
    }
    stored_secret::seal(keys.as_ref(), id, column, text).map_err(Error::Sealed)
}

/// What is stored of a subscription; nothing when there is no row. The caller has judged who asks.
pub fn read(id: i64) -> SecretRow {
    let table = Table::open_to_read(TABLE);
    let row = table.find(column::SUBSCRIPTION_ID, id).map(|row| SecretRow::of(&row)).unwrap_or_default();
    table.close();
    row
}

/// Changes what is stored of a subscription, and has its requests made by that. The caller has judged who asks.
///
/// Two calls for one subscription come one after the other, and the second finds what the first left.
pub fn change(id: i64, change: impl FnOnce(&mut SecretRow) -> Result<(), Error>) -> Result<(), Error> {
    lock_subscription(id)?;
    let mut table = Table::open(TABLE);
    let found = table.find(column::SUBSCRIPTION_ID, id);
    let mut row = found.as_ref().map(SecretRow::of).unwrap_or_default();
    change(&mut row)?;
    let row = row.sealed(id)?;
    let text = |text: &Option<String>| text.as_deref().map(Text::from);
    match found {
        Some(mut stored) => {
            stored.set(column::SECRET, text(&row.secret));
            stored.set(column::PREVIOUS_SECRET, text(&row.previous_secret));
            stored.set(column::PREVIOUS_UNTIL, row.previous_until);
            stored.set(column::HEADERS, text(&row.headers));
            stored.set(column::CLIENT_CERTIFICATE, text(&row.client_certificate));
            table.replace(stored);
        }
        None => table.insert(|| {
            [
                id.into_datum(),
                text(&row.secret).into_datum(),
                text(&row.previous_secret).into_datum(),
                row.previous_until.into_datum(),
                text(&row.headers).into_datum(),
                text(&row.client_certificate).into_datum(),
            ]
        }),
    }
    table.close();
    tell(CommandKind::Reload { subscription: id })
}

/// Keeps others from deleting the subscription, as the foreign key would, and from changing its secrets, until the end of the
/// transaction. A lock of the row takes no room in the server's table of locks, however many subscriptions a transaction has.
fn lock_subscription(id: i64) -> Result<(), Error> {
    as_owner(|| {
        let query = "SELECT FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE";
        let arguments: [DatumWithOid<'_>; 1] = [id.into()];
        let is_there = Spi::connect_mut(|client| {
            Ok::<_, spi::Error>(!client.update(query, Some(1), &arguments)?.is_empty())
        })?;
        match is_there {
            true => Ok(()),
            false => Err(Error::Internal(format!("subscription {id} is gone"))),
        }
    })
}
