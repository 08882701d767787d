//! A subscription gets the changes for which its filter is true.

mod conditions;
mod failures;
mod health;
mod oracle;
mod table_changes;
mod validation;

use harness::{Cluster, Event, Receiver};

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, total numeric, status text, user_id bigint, tags text[], doc jsonb)",
    );
    (cluster, Receiver::start().unwrap())
}

/// `action key` of each event, in the order of commit.
fn told(events: &[Event]) -> Vec<String> {
    let mut events: Vec<&Event> = events.iter().collect();
    events.sort_by_key(|event| event.place());
    events.iter().map(|event| format!("{} {}", event.text("action"), event["key"]["id"])).collect()
}
