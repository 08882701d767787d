//! Everything at once, for as long as you like: a random workload, endpoints that fail at random, and somebody who kills,
//! stops, edits and fills disks. At the end, every committed change has arrived at each subscription that wanted it, in
//! order by key, and nothing else has.
//!
//! `PGWH_SEED` repeats a run's choices (not its timing), `PGWH_TORTURE_SECONDS` says how long: `make torture SECONDS=3600`.

mod chaos;
mod endpoint;
mod truth;
mod workload;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use chaos::Chaos;
use endpoint::Endpoint;
use fastrand::Rng;
use harness::{Cluster, DISPATCHER, Setup, SmallDisk, eventually};
use truth::{Ledger, Want, disagreements};
use workload::{Shared, TABLES, Worker};

const WORKERS: u64 = 3;
/// How long nothing may arrive of what piled up, once all is calm.
const LONG: Duration = Duration::from_secs(120);

const ALL: &[&str] = &["plain", "whole", "pairs", "parted", "lines", "bulk"];
const EVERY: &[&str] = &["insert", "update", "delete"];

/// Name, tables, actions, whether in order, faults of a thousand requests, and how it is sent.
type Subscribed = (&'static str, &'static [&'static str], &'static [&'static str], bool, u32, &'static str);
const SUBSCRIPTIONS: [Subscribed; 5] = [
    ("single", ALL, EVERY, true, 120, "batch_size => 1"),
    ("batched", ALL, EVERY, true, 120, "batch_size => 20, batch_wait => '20 ms'"),
    (
        "strict",
        &["pairs", "parted"],
        &["insert", "update"],
        true,
        15,
        "ordering => 'strict', batch_size => 20",
    ),
    ("changes", &["whole", "plain"], &["update", "delete"], true, 120, "batch_size => 1, max_in_flight => 4"),
    ("unordered", &["lines", "bulk"], EVERY, false, 60, "ordering => 'none', batch_size => 20"),
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn every_committed_change_arrives_in_order_and_nothing_else() {
    let seed = number("PGWH_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let seconds = number("PGWH_TORTURE_SECONDS").unwrap_or(60);
    println!("PGWH_SEED={seed} PGWH_TORTURE_SECONDS={seconds}");
    let disk = SmallDisk::mount(512).inspect_err(|reason| println!("the disk is not filled: {reason}")).ok();
    let cluster = Setup::new().set("pgwh.retention = '20s'").start();
    cluster.each(&["CREATE EXTENSION pgstream_hooks", TABLES]);
    if let Some(disk) = &disk {
        move_journal(&cluster, disk);
    }
    let mut rng = Rng::with_seed(seed);
    let endpoints: Vec<Endpoint> = SUBSCRIPTIONS
        .iter()
        .map(|(name, _, _, _, faults, _)| Endpoint::open(name, rng.u64(..), *faults))
        .collect();
    for ((name, tables, actions, _, _, rest), endpoint) in SUBSCRIPTIONS.iter().zip(&endpoints) {
        let tables: Vec<_> = tables.iter().map(|table| format!("public.{table}")).collect();
        cluster.sql(&format!(
            "SELECT pgwh.subscribe('{}', name => '{name}', tables => '{{{}}}', event_types => '{{{}}}', timeout => '500 ms',
               retry_schedule => array_fill('200 ms'::interval, '{{40}}'), {rest})",
            endpoint.url(),
            tables.join(","),
            actions.join(",")
        ));
    }
    let wants: Vec<Want> = SUBSCRIPTIONS
        .iter()
        .map(|(name, tables, actions, ordered, ..)| Want {
            name,
            tables: tables.to_vec(),
            actions: actions.to_vec(),
            ordered: *ordered,
        })
        .collect();
    let (wants, ledger, over) = (RwLock::new(wants), Mutex::new(Ledger::default()), AtomicBool::new(false));
    let full = AtomicBool::new(false);
    let shared = Shared { cluster: &cluster, wants: &wants, ledger: &ledger, over: &over, full: &full };
    let mut chaos = Chaos {
        cluster: &cluster,
        endpoints: &endpoints,
        wants: &wants,
        disk: disk.as_ref(),
        over: &over,
        full: &full,
        rng,
        done: BTreeMap::new(),
    };
    std::thread::scope(|scope| {
        for number in 1..=WORKERS {
            let shared = &shared;
            scope.spawn(move || Worker::new(number, seed).run(shared));
        }
        // Who panics here must not leave the others at work.
        let disturbed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            chaos.run(Instant::now() + Duration::from_secs(seconds));
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = disturbed {
            std::panic::resume_unwind(panic);
        }
    });
    println!("chaos: {:?}", chaos.done);
    drop(chaos);
    reckon(&cluster, &endpoints, &wants.into_inner().unwrap(), &ledger.into_inner().unwrap());
    // The disk goes last: the server is on it.
    drop(cluster);
    drop(disk);
}

/// Waits until everything should have arrived, and compares.
fn reckon(cluster: &Cluster, endpoints: &[Endpoint], wants: &[Want], ledger: &Ledger) {
    for endpoint in endpoints {
        let name = endpoint.name;
        let (mut came, mut since) = (0, Instant::now());
        loop {
            let reached = cluster.try_rows(&format!("SELECT pgwh.wait('{name}', '20 s')"));
            if reached.is_ok_and(|rows| rows == [[Some("t".to_owned())]]) {
                break;
            }
            let state = cluster.rows(&format!("SELECT to_jsonb(s) FROM pgwh.status s WHERE name = '{name}'"));
            println!("not yet: {state:?}");
            // What is sent again counts: what is newer waits for that.
            let requests = endpoint.seen.lock().unwrap().requests;
            if requests > came {
                (came, since) = (requests, Instant::now());
            }
            assert!(since.elapsed() < LONG, "what is pending at {name} does not arrive");
        }
    }
    println!("{} transactions with {} changes were committed", ledger.transactions, ledger.changes);
    let mut wrong = Vec::new();
    for (endpoint, want) in endpoints.iter().zip(wants) {
        let seen = endpoint.seen.lock().unwrap();
        println!(
            "{}: {} requests, {} events, {} of them different",
            want.name,
            seen.requests,
            seen.events,
            seen.distinct()
        );
        let all = disagreements(want, ledger, &seen);
        let count = all.len();
        wrong.extend(all.into_iter().take(20).map(|text| format!("{}: {text} ({count} in all)", want.name)));
    }
    let dead = cluster.rows("SELECT to_jsonb(d) FROM pgwh.dead_letters d LIMIT 5");
    assert!(wrong.is_empty(), "{}\ndead letters: {dead:?}", wrong.join("\n"));
    assert!(dead.is_empty(), "{dead:?}");
    cluster.wait_true("SELECT bool_and(pending = 0 AND dead = 0 AND state = 'active') FROM pgwh.status");
    cluster.wait_confirmed();
    let log = cluster.log();
    for trouble in ["PANIC:", "panicked at", "TRAP:", "could not be decoded"] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(trouble)).take(5).collect();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    }
}

/// Puts the journal's tables where there is little room, while nobody writes them.
fn move_journal(cluster: &Cluster, disk: &SmallDisk) {
    let location = disk.tablespace();
    cluster.sql(&format!("CREATE TABLESPACE small LOCATION '{}'", location.display()));
    cluster.sql("ALTER SYSTEM SET pgwh.enabled = off");
    cluster.reload();
    eventually("no dispatcher", || cluster.processes(DISPATCHER).is_empty().then_some(()));
    let moves = cluster.column(
        "SELECT format('ALTER %s %s SET TABLESPACE small', CASE c.relkind WHEN 'r' THEN 'TABLE' ELSE 'INDEX' END, c.oid::regclass)
         FROM pg_class c JOIN pg_inherits ON inhrelid = c.oid
         WHERE c.relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND c.relkind IN ('r', 'i')",
    );
    assert!(!moves.is_empty(), "the journal has slices");
    cluster.sql(&moves.join("; "));
    cluster.sql("ALTER SYSTEM RESET pgwh.enabled");
    cluster.reload();
    cluster.process(DISPATCHER);
}
