//! Who writes: transactions of all kinds, whatever happens to the server, and a ledger of those that were committed.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use fastrand::Rng;
use harness::Cluster;
use postgres::Client;

use crate::truth::{Change, Ledger, Want};

/// The tables, and one that tells of each transaction whether it was committed.
pub const TABLES: &str = "
    CREATE TABLE plain (id bigint PRIMARY KEY, version bigint);
    CREATE TABLE whole (id bigint PRIMARY KEY, version bigint, filling text DEFAULT repeat('x', 100));
    ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE pairs (a bigint, b text, version bigint, PRIMARY KEY (a, b));
    CREATE TABLE parted (id bigint, region int, version bigint, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE parted_0 PARTITION OF parted FOR VALUES IN (0);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
    CREATE TABLE lines (id bigint, version bigint);
    CREATE TABLE bulk (id bigint PRIMARY KEY, version bigint);
    CREATE SCHEMA private;
    CREATE TABLE private.transactions (n bigint PRIMARY KEY)";

/// The tables with rows that are changed one by one.
const CHANGED: [&str; 4] = ["plain", "whole", "pairs", "parted"];
/// Rows of each table that a worker changes again and again.
const HOT: u64 = 5;
/// The rows that are there besides: when there are more, some go.
const COLD: usize = 60;

/// What workers share.
pub struct Shared<'a> {
    pub cluster: &'a Cluster,
    /// Held for reading while a transaction runs, so that who holds it for writing may change what is wanted.
    pub wants: &'a RwLock<Vec<Want>>,
    pub ledger: &'a Mutex<Ledger>,
    pub over: &'a AtomicBool,
    /// So much is pending that nothing is to be added.
    pub full: &'a AtomicBool,
}

/// Ends the work of all when one of them panics.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// The rows of a worker as it knows them: versions by table and key (`5`, or `5,x` of two columns).
type Rows = BTreeMap<(&'static str, String), u64>;

/// A range of `bulk`, first and last.
type Range = Option<(u64, u64)>;

/// One session's work. Its rows are its own, so what it commits to them is all that happens to them.
pub struct Worker {
    number: u64,
    rng: Rng,
    rows: Rows,
    range: Range,
    /// Counts up with each change: versions, keys and transactions never repeat.
    clock: u64,
}

/// A transaction to be.
#[derive(Default)]
struct Plan {
    sql: String,
    /// Lines to COPY at its end.
    copy: String,
    changes: Vec<Change>,
}

impl Worker {
    pub fn new(number: u64, seed: u64) -> Self {
        let rng = Rng::with_seed(seed.wrapping_mul(31).wrapping_add(number));
        Self { number, rng, rows: Rows::new(), range: None, clock: 0 }
    }

    /// Works until it is over.
    pub fn run(mut self, shared: &Shared) {
        let _alarm = Alarm(shared.over);
        let mut client = shared.cluster.connect();
        while !shared.over.load(Ordering::Relaxed) {
            // For the whole transaction: what is wanted stays what it is until it is known to be committed or not.
            let wants = shared.wants.read().unwrap();
            let (rows, range) = (self.rows.clone(), self.range);
            let plan = self.plan();
            let commits = self.rng.u32(0..10) > 0;
            let number = self.tick();
            if self.happens(shared.cluster, &mut client, &plan, number, commits) {
                shared.ledger.lock().unwrap().commit(&plan.changes, &wants);
            } else {
                (self.rows, self.range) = (rows, range);
            }
            drop(wants);
            std::thread::sleep(Duration::from_millis(self.rng.u64(0..40)));
            while shared.full.load(Ordering::Relaxed) && !shared.over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Runs a transaction; whether it was committed, whatever became of the session.
    fn happens(
        &mut self,
        cluster: &Cluster,
        client: &mut Client,
        plan: &Plan,
        number: u64,
        commits: bool,
    ) -> bool {
        let mark = format!("BEGIN; INSERT INTO private.transactions VALUES ({number}); {}", plan.sql);
        let end = if commits { "COMMIT" } else { "ROLLBACK" };
        let done = client.batch_execute(&mark).and_then(|()| {
            if !plan.copy.is_empty() {
                let mut writer = client.copy_in("COPY lines FROM STDIN")?;
                // What went wrong is told by finish.
                let _ = writer.write_all(plan.copy.as_bytes());
                writer.finish()?;
            }
            client.batch_execute(end)
        });
        let Err(error) = done else { return commits };
        if let Some(code) = error.code().map(|code| code.code()) {
            assert!(code.starts_with("57P"), "the workload is wrong: {error:?} in {mark}");
        }
        // An answer that was lost tells nothing, but the table does.
        loop {
            *client = cluster.connect();
            let sql = format!("SELECT count(*) FROM private.transactions WHERE n = {number}");
            if let Ok(row) = client.query_one(&sql, &[]) {
                return row.get::<_, i64>(0) == 1;
            }
        }
    }

    fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        match self.rng.u32(0..100) {
            0..4 => self.copied(&mut plan),
            4 => self.large(&mut plan),
            _ => {
                for _ in 0..self.rng.u32(1..6) {
                    match self.rng.u32(0..8) {
                        0 => self.undone(&mut plan),
                        1 => self.nested(&mut plan),
                        _ => self.change(&mut plan),
                    }
                }
            }
        }
        plan
    }

    /// Changes that are rolled back to a savepoint: they never were.
    fn undone(&mut self, plan: &mut Plan) {
        let rows = self.rows.clone();
        let mut inner = Plan::default();
        for _ in 0..self.rng.u32(1..4) {
            self.change(&mut inner);
        }
        plan.sql += &format!("SAVEPOINT a; {} ROLLBACK TO a; ", inner.sql);
        self.rows = rows;
    }

    /// Changes of a subtransaction that is released.
    fn nested(&mut self, plan: &mut Plan) {
        plan.sql += "SAVEPOINT b; ";
        self.change(plan);
        plan.sql += "RELEASE b; ";
    }

    fn copied(&mut self, plan: &mut Plan) {
        for _ in 0..self.rng.u32(1..50) {
            let (id, version) = (self.unused(), self.tick());
            plan.copy += &format!("{id}\t{version}\n");
            plan.changes.push(change("lines", "insert", format!("lines {id}"), format!("insert {version}")));
        }
    }

    /// Many rows at once: they come, are changed, and go.
    fn large(&mut self, plan: &mut Plan) {
        let (action, first, last) = match self.range {
            None => {
                let first = self.unused();
                self.clock += 1_000;
                ("insert", first, first + self.rng.u64(100..1_000))
            }
            Some((first, last)) => (if self.rng.bool() { "update" } else { "delete" }, first, last),
        };
        let base = self.tick();
        plan.sql += &match action {
            "insert" => {
                format!("INSERT INTO bulk SELECT n, {base} FROM generate_series({first}, {last}) n; ")
            }
            "update" => format!("UPDATE bulk SET version = {base} WHERE id BETWEEN {first} AND {last}; "),
            _ => format!("DELETE FROM bulk WHERE id BETWEEN {first} AND {last}; "),
        };
        let what = if action == "delete" { "delete".to_owned() } else { format!("{action} {base}") };
        plan.changes
            .extend((first..=last).map(|id| change("bulk", action, format!("bulk {id}"), what.clone())));
        self.range = (action != "delete").then_some((first, last));
    }

    /// One row, made, changed, given another key or deleted.
    fn change(&mut self, plan: &mut Plan) {
        let table = CHANGED[self.rng.usize(0..CHANGED.len())];
        let key = self.some_key(table);
        let version = self.tick();
        let row = format!("{table} {key}");
        let Some(before) = self.rows.get(&(table, key.clone())).copied() else {
            self.rows.insert((table, key.clone()), version);
            plan.sql += &format!(
                "INSERT INTO {table} ({}, version) VALUES ({}, {version}); ",
                columns(table),
                values(&key)
            );
            plan.changes.push(change(table, "insert", row, format!("insert {version}")));
            return;
        };
        let condition = format!("({}) = ({})", columns(table), values(&key));
        let cold = self.rows.len() > COLD + HOT as usize * CHANGED.len();
        match self.rng.u32(0..10) {
            0..6 if !cold => {
                self.rows.insert((table, key), version);
                plan.sql += &format!("UPDATE {table} SET version = {version} WHERE {condition}; ");
                plan.changes.push(change(table, "update", row, format!("update {version}")));
            }
            6..8 if !cold => {
                let other = self.free_key(table, &key);
                let target = format!("{table} {other}");
                self.rows.remove(&(table, key.clone()));
                self.rows.insert((table, other.clone()), version);
                plan.sql += &format!(
                    "UPDATE {table} SET ({}, version) = ROW ({}, {version}) WHERE {condition}; ",
                    columns(table),
                    values(&other)
                );
                // From one partition to another it is a delete and an insert.
                if table == "parted" && key.split_once(',').unzip().1 != other.split_once(',').unzip().1 {
                    plan.changes.push(change(table, "delete", row, "delete".to_owned()));
                    plan.changes.push(change(table, "insert", target, format!("insert {version}")));
                } else {
                    plan.changes.push(Change {
                        table,
                        action: "update",
                        marks: vec![
                            (row, format!("becomes {target} {version}")),
                            (target, format!("moved {version}")),
                        ],
                    });
                }
            }
            _ => {
                self.rows.remove(&(table, key));
                plan.sql += &format!("DELETE FROM {table} WHERE {condition}; ");
                let what = if table == "whole" { format!("delete {before}") } else { "delete".to_owned() };
                plan.changes.push(change(table, "delete", row, what));
            }
        }
    }

    /// A hot key, a new one, or one that is there.
    fn some_key(&mut self, table: &'static str) -> String {
        match self.rng.u32(0..4) {
            0 | 1 => {
                let id = self.number * 1_000_000_000 + self.rng.u64(0..HOT);
                self.key(table, id)
            }
            2 => {
                let id = self.unused();
                self.key(table, id)
            }
            _ => {
                let own: Vec<_> = self.rows.keys().filter(|(of, _)| *of == table).collect();
                match own.is_empty() {
                    true => self.key(table, self.number * 1_000_000_000),
                    false => own[self.rng.usize(0..own.len())].1.clone(),
                }
            }
        }
    }

    fn key(&mut self, table: &str, id: u64) -> String {
        match table {
            "pairs" => format!("{id},{}", ["x", "y", "é \"z\""][self.rng.usize(0..3)]),
            "parted" => format!("{id},{}", self.rng.u32(0..2)),
            _ => id.to_string(),
        }
    }

    /// A key that no row has; of two columns, often one that shares the first with the row's.
    fn free_key(&mut self, table: &'static str, key: &str) -> String {
        let first = key.split(',').next().and_then(|id| id.parse().ok()).unwrap_or_default();
        let near = self.key(table, first);
        if self.rng.bool() && near != key && !self.rows.contains_key(&(table, near.clone())) {
            return near;
        }
        let id = self.unused();
        self.key(table, id)
    }

    fn unused(&mut self) -> u64 {
        self.number * 1_000_000_000 + 1_000 + self.tick()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.number * 1_000_000_000 + self.clock
    }
}

fn change(table: &'static str, action: &'static str, row: String, what: String) -> Change {
    Change { table, action, marks: vec![(row, what)] }
}

fn columns(table: &str) -> &'static str {
    match table {
        "pairs" => "a, b",
        "parted" => "id, region",
        _ => "id",
    }
}

/// A key in SQL.
fn values(key: &str) -> String {
    match key.split_once(',') {
        Some((id, rest)) if rest.parse::<u32>().is_ok() => format!("{id}, {rest}"),
        Some((id, rest)) => format!("{id}, '{rest}'"),
        None => key.to_owned(),
    }
}
