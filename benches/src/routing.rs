//! What many subscriptions cost: 100,000 with a filter each on one table, 1,000 tables with 10 each, and 10,000 that are
//! disabled.

use std::time::{Duration, Instant};

use harness::{Client, Cluster, DECODER, DISPATCHER, Receiver, Stop};

const TABLE: &str =
    "CREATE TABLE notifications (id bigint PRIMARY KEY, user_id bigint NOT NULL, message text)";
/// How many rows are written for each rate, and how often: the median counts.
const ROWS: u64 = 60_000;
const TURNS: u64 = 41;
/// How many subscriptions are made in one transaction.
const TRANSACTION: u64 = 10_000;

pub(crate) fn run(subscriptions: u64) {
    one_table(subscriptions);
    many_tables(1_000, 10);
    disabled(10_000);
}

fn stage() -> (Cluster, Receiver, Client) {
    let cluster = crate::setup().start();
    cluster.each(&["CREATE EXTENSION pgstream_hooks", TABLE]);
    let receiver = crate::receiver(0);
    let client = cluster.connect();
    (cluster, receiver, client)
}

fn one_table(subscriptions: u64) {
    let (alone, its_receiver, mut its_client) = stage();
    subscribe_users(&mut its_client, &its_receiver, 1, 1, "user_id >= 0");

    let (cluster, receiver, mut client) = stage();
    let before = decoder_memory(&cluster);
    let begin = Instant::now();
    subscribe_users(&mut client, &receiver, 1, TRANSACTION.min(subscriptions), "user_id = %s");
    let made = begin.elapsed();
    println!(
        "routing: {} subscriptions made in one transaction in {:.1} s",
        TRANSACTION.min(subscriptions),
        made.as_secs_f64()
    );
    for from in (TRANSACTION + 1..=subscriptions).step_by(TRANSACTION as usize) {
        subscribe_users(
            &mut client,
            &receiver,
            from,
            (from + TRANSACTION - 1).min(subscriptions),
            "user_id = %s",
        );
    }
    let many = Burst { cluster: &cluster, receiver: &receiver, client: &mut client, users: subscriptions };
    let one = Burst { cluster: &alone, receiver: &its_receiver, client: &mut its_client, users: 1 };
    println!(
        "    {subscriptions} subscriptions user_id = N, against one subscription: {}",
        compare(many, one)
    );
    drop((alone, its_receiver, its_client));
    let after = decoder_memory(&cluster);
    println!(
        "    the decoder takes {:.0} MB more, {:.0} bytes a subscription",
        (after - before) / 1e6,
        (after - before) / subscriptions as f64
    );
    let mut usual: Vec<Duration> =
        (0..20).map(|n| first_event(&receiver, &mut client, 20_000_000 + n, 1 + n)).collect();
    usual.sort();
    let mut took: Vec<Duration> =
        (0..20).map(|n| one_more(&receiver, &mut client, subscriptions + 1 + n)).collect();
    took.sort();
    println!(
        "    one more takes effect, from its commit to its first event: median {:?}, longest {:?}; an event of one that is there takes {:?} and {:?}",
        took[10], took[19], usual[10], usual[19]
    );
    looked_at(&mut client);
    drop(client);
    cluster.stop(Stop::Fast);
    let begin = Instant::now();
    cluster.begin();
    let began = begin.elapsed();
    first_event(&receiver, &mut cluster.connect(), 30_000_000, 7);
    println!(
        "    the server takes connections {began:?} after its start, and an event has arrived after {:?}",
        begin.elapsed()
    );
}

/// How long looking at the subscriptions takes by what is asked of them, and how long at the table that they are in.
fn looked_at(client: &mut Client) {
    let view = "SELECT * FROM pgwh.status()";
    for (what, query) in [
        ("the table alone", "SELECT count(*), max(filter) FROM pgwh.subscriptions".to_owned()),
        ("by name", format!("{view} WHERE name = 'user-7'")),
        ("by a pattern of names", format!("{view} WHERE name LIKE 'user-77_'")),
        ("how many", "SELECT count(*) FROM pgwh.status()".to_owned()),
        ("by what is pending", format!("{view} WHERE pending > 0")),
        ("by state", format!("{view} WHERE state <> 'active'")),
        ("how many in each state", "SELECT state, count(*) FROM pgwh.status() GROUP BY state".to_owned()),
        ("by reason", format!("{view} WHERE reason IS NOT NULL")),
        ("all of all", format!("SELECT count(s::text) FROM ({view}) s")),
        ("health", "SELECT * FROM pgwh.health()".to_owned()),
    ] {
        let mut took: Vec<Duration> = (0..5)
            .map(|_| {
                let begin = Instant::now();
                client.query(&query, &[]).expect("a look");
                begin.elapsed()
            })
            .collect();
        took.sort();
        println!("    status, {what}: {:.1} ms", took[2].as_secs_f64() * 1e3);
    }
}

/// Subscriptions of the users `first` to `last`, each to what its filter says.
fn subscribe_users(client: &mut Client, receiver: &Receiver, first: u64, last: u64, filter: &str) {
    let url = receiver.url("/users");
    client
        .batch_execute(&format!(
            "INSERT INTO pgwh.subscriptions (name, url, tables, event_types, filter, headers, timeout, max_in_flight)
             SELECT 'user-' || n, '{url}', '{{notifications}}', '{{insert}}', format('{filter}', n), '{{}}', '15 s', 64
             FROM generate_series({first}, {last}) n"
        ))
        .expect("users are subscribed");
}

/// How fast it went.
struct Rate {
    /// Events a second.
    events: f64,
    /// Processor time of decoder and dispatcher, its threads included, for an event: it depends less on what else the
    /// machine does.
    each: Duration,
}

/// A cluster that is sent rows for so many users in turn.
struct Burst<'a> {
    cluster: &'a Cluster,
    receiver: &'a Receiver,
    client: &'a mut Client,
    users: u64,
}

impl Burst<'_> {
    fn write(&mut self, first: u64, rows: u64) {
        let users = self.users;
        for from in (first..first + rows).step_by(10_000) {
            let to = (from + 10_000).min(first + rows) - 1;
            let sql = format!(
                "INSERT INTO notifications SELECT n, 1 + n::bigint * 7919 % {users}, 'hello' FROM generate_series({from}, {to}) n"
            );
            self.client.batch_execute(&sql).expect("rows go in");
        }
    }

    fn warm_up(&mut self) {
        self.write(0, 20_000);
        self.receiver.wait_for(20_000, Duration::from_secs(600)).expect("the warm-up arrives");
        self.receiver.clear();
    }

    fn rate(&mut self, turn: u64) -> Rate {
        let cpu = |cluster: &Cluster| cluster.process(DECODER).cpu() + cluster.process(DISPATCHER).cpu();
        let before = cpu(self.cluster);
        self.write(100_000 * turn, ROWS);
        self.receiver.wait_for(ROWS, Duration::from_secs(600)).expect("all arrive");
        let each = (cpu(self.cluster) - before) / ROWS as u32;
        let stats = self.receiver.stats();
        self.receiver.clear();
        let events = match (stats.first, stats.last) {
            (Some(first), Some(last)) => ROWS as f64 / (last - first).as_secs_f64(),
            _ => f64::NAN,
        };
        Rate { events, each }
    }
}

/// One against the other, in turns, since the machine is now faster and now slower: the turn whose ratio is the median.
fn compare(mut this: Burst<'_>, mut that: Burst<'_>) -> String {
    this.warm_up();
    that.warm_up();
    let mut turns: Vec<(Rate, Rate)> = (1..=TURNS).map(|turn| (this.rate(turn), that.rate(turn))).collect();
    let ratio = |(this, that): &(Rate, Rate)| this.events / that.events;
    turns.sort_by(|one, other| ratio(one).total_cmp(&ratio(other)));
    let (least, most) = (ratio(&turns[0]), ratio(&turns[turns.len() - 1]));
    let (this, that) = &turns[turns.len() / 2];
    format!(
        "{:.0} events/s against {:.0} ({}, between {least:.2} and {most:.2} in {TURNS} turns), {:?} of processor time an event against {:?}",
        this.events,
        that.events,
        crate::ratio(this.events, that.events),
        this.each,
        that.each
    )
}

/// How long a subscription that is made now takes until it gets what is committed right behind it.
fn one_more(receiver: &Receiver, client: &mut Client, user: u64) -> Duration {
    subscribe_users(client, receiver, user, user, "user_id = %s");
    first_event(receiver, client, 10_000_000 + user, user)
}

/// How long a row for a user takes to arrive, its commit included.
fn first_event(receiver: &Receiver, client: &mut Client, id: u64, user: u64) -> Duration {
    let count = receiver.count();
    let begin = Instant::now();
    client
        .batch_execute(&format!("INSERT INTO notifications VALUES ({id}, {user}, 'first')"))
        .expect("a row goes in");
    receiver.wait_for(count + 1, Duration::from_secs(60)).expect("it arrives");
    begin.elapsed()
}

fn many_tables(tables: u64, each: u64) {
    let (cluster, receiver, mut client) = stage();
    let url = receiver.url("/tables");
    client
        .batch_execute(&format!(
            "DO $$ BEGIN FOR n IN 1..{tables} LOOP EXECUTE format('CREATE TABLE t_%s (id bigint PRIMARY KEY)', n); END LOOP; END $$;"
        ))
        .expect("tables are made");
    client
        .batch_execute(&format!(
            "INSERT INTO pgwh.subscriptions (name, url, tables, event_types, headers, timeout, max_in_flight)
             SELECT format('t_%s-%s', n, m), '{url}', ARRAY[format('public.t_%s', n)], '{{insert}}', '{{}}', '15 s', 16
             FROM generate_series(1, {tables}) n, generate_series(1, {each}) m"
        ))
        .expect("they are subscribed");
    let write = |client: &mut Client, id: u64| {
        client
            .batch_execute(&format!(
                "DO $$ BEGIN FOR n IN 1..{tables} LOOP EXECUTE format('INSERT INTO t_%s VALUES ({id})', n); END LOOP; END $$;"
            ))
            .expect("rows go in");
    };
    let mut took = Vec::new();
    for id in 1..=3 {
        let begin = Instant::now();
        write(&mut client, id);
        receiver.wait_for(id * tables * each, Duration::from_secs(600)).expect("all arrive");
        took.push(begin.elapsed());
    }
    println!(
        "    {tables} tables with {each} subscriptions each: a row in each reaches all {} in {:.2} s, the first time in {:.2} s",
        tables * each,
        took[2].as_secs_f64(),
        took[0].as_secs_f64()
    );
    drop(cluster);
}

fn disabled(subscriptions: u64) {
    let (alone, its_receiver, mut its_client) = stage();
    subscribe_users(&mut its_client, &its_receiver, 1, 1, "user_id >= 0");
    let (cluster, receiver, mut client) = stage();
    subscribe_users(&mut client, &receiver, 1, 1, "user_id >= 0");
    let url = receiver.url("/disabled");
    client
        .batch_execute(&format!(
            "INSERT INTO pgwh.subscriptions (name, url, tables, event_types, headers, timeout, max_in_flight, enabled)
             SELECT 'disabled-' || n, '{url}', '{{*.*}}', '{{insert}}', '{{}}', '15 s', 16, false
             FROM generate_series(1, {subscriptions}) n"
        ))
        .expect("they are subscribed");
    let beside = Burst { cluster: &cluster, receiver: &receiver, client: &mut client, users: 1 };
    let alone = Burst { cluster: &alone, receiver: &its_receiver, client: &mut its_client, users: 1 };
    println!(
        "    one subscription beside {subscriptions} to *.* that are disabled, against alone: {}",
        compare(beside, alone)
    );
}

/// RssAnon of the decoder, in bytes.
fn decoder_memory(cluster: &Cluster) -> f64 {
    cluster.process(DECODER).memory() as f64
}
