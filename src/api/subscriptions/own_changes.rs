//! Changes of the transaction that subscribes: a subscription gets what is committed after it, so not these.

use std::cell::Cell;
use std::collections::HashSet;

use pgrx::prelude::*;

use super::filter_check::name_of;
use super::tables;
use crate::api::authorization::with_plain_names;
use crate::error::Error;
use crate::pg::command::notice::Notice;

thread_local! {
    /// The transaction that was last looked at: of many subscriptions in one transaction, the first reports.
    static REPORTED: Cell<pg_sys::TransactionId> = const { Cell::new(pg_sys::InvalidTransactionId) };
}

/// The transaction's id, if it has written before this call.
pub fn writing_transaction() -> Option<pg_sys::TransactionId> {
    // SAFETY: reads the state of the present transaction.
    let xid = unsafe { pg_sys::GetTopTransactionIdIfAny() };
    (xid != pg_sys::InvalidTransactionId).then_some(xid)
}

/// Reports which tables of the new subscription the transaction has changed.
pub fn report(xid: pg_sys::TransactionId, name: &str, subscribed: &[String]) -> Result<(), Error> {
    if REPORTED.replace(xid) == xid {
        return Ok(());
    }
    let changed = with_plain_names(|| {
        Ok(Spi::connect(|client| {
            let query = "SELECT relid FROM pg_stat_xact_user_tables
                WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 AND schemaname <> 'pgwh'";
            let rows = client.select(query, None, &[])?;
            rows.map(|row| row.get::<pg_sys::Oid>(1)).collect::<Result<Vec<_>, _>>()
        })?)
    })?;
    if changed.is_empty() {
        return Ok(());
    }
    let subscribed: HashSet<pg_sys::Oid> =
        tables::tables_of(subscribed)?.into_iter().map(|(table, _)| table).collect();
    let of_both = changed.into_iter().flatten().filter(|table| subscribed.contains(table));
    let mut names: Vec<String> = of_both.map(name_of).collect();
    if names.is_empty() {
        return Ok(());
    }
    names.sort();
    Notice::new(format!("changes that this transaction has made are not sent to subscription \"{name}\""))
        .detail(format!(
            "It has changed {}, and a subscription gets what is committed after it.",
            names.join(", ")
        ))
        .hint(format!(
            "To send the rows that are there, after COMMIT: SELECT pgwh.backfill('{}');",
            name.replace('\'', "''")
        ))
        .report();
    Ok(())
}
