//! What a call says that waits for another transaction, which has created, changed or deleted a subscription of the same name and is
//! still open.

use std::time::{Duration, Instant};

use pgrx::{Spi, pg_sys};

use crate::api::authorization::as_owner;
use crate::error::Error;
use crate::journal::own_tables;
use crate::pg::command::notice::Notice;
use crate::pg::process::bgworker;
use crate::pg::values::encoding;
use crate::pg::values::encoding::Texts;

/// How long such a transaction is waited for before anything is said of it.
const SILENCE: Duration = Duration::from_secs(2);
/// How often it is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// `pgwh.subscriptions.name`.
const NAME_COLUMN: i16 = 2;

/// Waits for such a transaction for a while, and then says in a NOTICE which it is: what comes next waits for its end.
pub fn notice_wait(name: &str) -> Result<(), Error> {
    let since = Instant::now();
    while let Some(transaction) = open_transaction(name) {
        if since.elapsed() >= SILENCE {
            return report(name, transaction);
        }
        bgworker::pause(LOOK_INTERVAL);
    }
    Ok(())
}

/// The open transaction of another session that has written the row of that name, if there is one.
fn open_transaction(name: &str) -> Option<pg_sys::TransactionId> {
    let (table, index) =
        (own_tables::oid_of(c"subscriptions"), own_tables::oid_of(c"subscriptions_name_key"));
    if table == pg_sys::InvalidOid || index == pg_sys::InvalidOid {
        return None;
    }
    // SAFETY: a transaction is in progress; what is opened is closed, by its end if an ERROR comes between.
    unsafe {
        let table = pg_sys::table_open(table, pg_sys::AccessShareLock as _);
        let name = pg_sys::cstring_to_text(encoding::in_server_encoding(name).as_ptr());
        let mut condition = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyEntryInitialize(
            &mut condition,
            0,
            NAME_COLUMN,
            pg_sys::BTEqualStrategyNumber as _,
            pg_sys::InvalidOid,
            pg_sys::DEFAULT_COLLATION_OID,
            pg_sys::F_TEXTEQ.into(),
            pg_sys::Datum::from(name),
        );
        let mut found = None;
        // It shows rows that are not committed, and says whose they are.
        let mut dirty = pg_sys::SnapshotData {
            snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY,
            ..Default::default()
        };
        let scan = pg_sys::systable_beginscan(table, index, true, &mut dirty, 1, &mut condition);
        while found.is_none() && !pg_sys::systable_getnext(scan).is_null() {
            let writers = [dirty.xmin, dirty.xmax];
            found = writers.into_iter().find(|writer| *writer != pg_sys::InvalidTransactionId);
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, pg_sys::AccessShareLock as _);
        found
    }
}

fn report(name: &str, transaction: pg_sys::TransactionId) -> Result<(), Error> {
    const HOLDER: &str = "
        SELECT CASE WHEN a.pid IS NOT NULL THEN format('process %s (%s, %s)', a.pid, a.usename, a.state)
                ELSE format('prepared transaction %L', p.gid) END,
            CASE WHEN a.pid IS NOT NULL THEN format('SELECT pg_terminate_backend(%s);', a.pid)
                ELSE format('ROLLBACK PREPARED %L;', p.gid) END
        FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
            LEFT JOIN pg_prepared_xacts p ON l.pid IS NULL AND p.transaction = l.transactionid
        WHERE l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock' AND l.transactionid = $1
            AND (a.pid IS NOT NULL OR p.gid IS NOT NULL)";
    let holder = as_owner(|| {
        Ok(Spi::connect(|client| match client.select(HOLDER, Some(1), &[transaction.into()])?.next() {
            Some(row) => Ok::<_, pgrx::spi::Error>(row.text(1)?.zip(row.text(2)?)),
            None => Ok(None),
        })?)
    })?;
    // A transaction that has ended meanwhile needs no word.
    if let Some((who, cure)) = holder {
        Notice::new(format!("waiting for another transaction that concerns subscription \"{name}\""))
            .detail(format!("It has created, changed or deleted the subscription and is still open: {who}."))
            .hint(format!("To end it: {cure}"))
            .report();
    }
    Ok(())
}
