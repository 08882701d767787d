//! What the server decodes when nothing is done with it: `pgoutput` through SQL.

use std::time::Instant;

use crate::burst::write;

/// Changes a second, of so many rows.
pub(crate) fn rate(rows: u64) -> f64 {
    let cluster = crate::setup().not_preloaded().start();
    cluster.each(&[
        crate::ORDERS,
        "CREATE PUBLICATION orders FOR TABLE orders",
        "SELECT pg_create_logical_replication_slot('bare', 'pgoutput')",
    ]);
    write(&mut cluster.connect(), 0, rows);
    // The first look warms the caches, and leaves the slot where it is.
    let look = |function: &str, limit: &str| {
        let sql = format!(
            "SELECT count(*) FROM {function}('bare', NULL, {limit}, 'proto_version', '1', 'publication_names', 'orders')"
        );
        let begin = Instant::now();
        cluster.value(&sql);
        begin.elapsed()
    };
    look("pg_logical_slot_peek_binary_changes", "20000");
    rows as f64 / look("pg_logical_slot_get_binary_changes", "NULL").as_secs_f64()
}
