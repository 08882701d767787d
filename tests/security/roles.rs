//! Ordinary roles, with the grants that a subscriber needs.

use harness::{Cluster, Receiver};

/// What a role that subscribes needs at least, and more: functions that only the extension calls.
const GRANTS: &[&str] = &[
    "GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO %",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO %",
    "GRANT SELECT ON pgwh_internal.installation, pgwh.status, pgwh.events, pgwh.deliveries, pgwh.attempts, pgwh.dead_letters, \
     pgwh.replays, pgwh.backfills, pgwh.gaps TO %",
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO %",
];

/// A cluster with a table.
pub fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    (cluster, Receiver::start().unwrap())
}

/// Makes roles that may read it.
pub fn create_roles(cluster: &Cluster, names: &[&str]) {
    for name in names {
        cluster.sql(&format!(
            "CREATE ROLE {name} LOGIN; GRANT CREATE ON DATABASE postgres TO {name}; GRANT SELECT ON t TO {name}"
        ));
        grant(cluster, name);
    }
}

/// A cluster with such roles, which have no table yet.
pub fn stage_with_roles(names: &[&str]) -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    for name in names {
        cluster.sql(&format!("CREATE ROLE {name} LOGIN"));
        grant(&cluster, name);
    }
    (cluster, Receiver::start().unwrap())
}

/// Grants a role what it needs.
pub fn grant(cluster: &Cluster, role: &str) {
    for grant in GRANTS {
        cluster.sql(&grant.replace('%', role));
    }
}
