//! Who disturbs: kills, restarts, outages, edits, a full disk.

use std::collections::BTreeMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use harness::{Cluster, DECODER, DISPATCHER, Process, SmallDisk, Stop};

use crate::endpoint::{Endpoint, Mood};
use crate::truth::Want;

/// What the disturber may lay its hands on.
pub struct Chaos<'a> {
    pub cluster: &'a Cluster,
    pub endpoints: &'a [Endpoint],
    pub wants: &'a RwLock<Vec<Want>>,
    pub disk: Option<&'a SmallDisk>,
    /// Set when somebody has found a fault already.
    pub over: &'a AtomicBool,
    /// Set while so much is pending that nothing is to be added.
    pub full: &'a AtomicBool,
    pub rng: Rng,
    /// How often it did what.
    pub done: BTreeMap<&'static str, u32>,
}

/// How many events may be pending of a subscription before more are written.
const MOST_PENDING: u32 = 50_000;

/// What it does, and how often of all.
const ACTS: [(&str, u32); 18] = [
    ("kill the dispatcher", 4),
    ("kill the decoder", 4),
    ("kill a backend", 2),
    ("end a worker politely", 2),
    ("stop the server at once", 2),
    ("kill the server", 1),
    ("close an endpoint", 4),
    ("break an endpoint", 3),
    ("silence an endpoint", 2),
    ("pause", 3),
    ("resume", 3),
    ("edit how it is sent", 4),
    ("edit what is sent", 3),
    ("subscribe for a while", 2),
    ("replay", 3),
    ("redeliver", 2),
    ("fill the disk", 1),
    ("checkpoint", 1),
];

impl Chaos<'_> {
    /// Disturbs until the time is up, then makes good what can be made good.
    pub fn run(&mut self, until: Instant) {
        // The rarest is done once at least.
        let mut first = vec!["fill the disk"];
        while Instant::now() < until && !self.over.load(Ordering::Relaxed) {
            let act = first.pop().unwrap_or_else(|| self.choose());
            println!("chaos: {act}");
            self.act(act);
            *self.done.entry(act).or_default() += 1;
            self.watch_the_backlog();
            self.nap(100, 1500);
        }
        if let Some(disk) = self.disk {
            disk.relieve();
        }
        for endpoint in self.endpoints {
            endpoint.reopen(&mut self.rng);
            endpoint.set_mood(Mood::Calm);
            self.sql(&format!("SELECT pgwh.resume('{}')", endpoint.name));
        }
        self.sql("SELECT pgwh.unsubscribe(name) FROM pgwh.subscriptions WHERE name LIKE 'transient%'");
    }

    fn choose(&mut self) -> &'static str {
        let mut at = self.rng.u32(0..ACTS.iter().map(|(_, weight)| weight).sum());
        for (act, weight) in ACTS {
            match at.checked_sub(weight) {
                Some(rest) => at = rest,
                None => return act,
            }
        }
        "checkpoint"
    }

    fn act(&mut self, act: &str) {
        let cluster = self.cluster;
        let endpoint = &self.endpoints[self.rng.usize(0..self.endpoints.len())];
        let name = endpoint.name;
        match act {
            "kill the dispatcher" => cluster.kill9(DISPATCHER),
            "kill the decoder" => cluster.kill9(DECODER),
            "kill a backend" => self.kill_a_backend(),
            "end a worker politely" => {
                let kind = if self.rng.bool() { DISPATCHER } else { DECODER };
                self.sql(&format!("SELECT pg_terminate_backend({})", cluster.process(kind).0));
            }
            "stop the server at once" => cluster.restart(Stop::Immediate),
            "kill the server" => cluster.restart(Stop::Kill),
            "close an endpoint" => {
                endpoint.close();
                self.nap(200, 2000);
                endpoint.reopen(&mut self.rng);
            }
            "break an endpoint" => self.in_mood(endpoint, Mood::Broken),
            "silence an endpoint" => self.in_mood(endpoint, Mood::Silent),
            "pause" => self.sql(&format!("SELECT pgwh.pause('{name}')")),
            "resume" => self.sql(&format!("SELECT pgwh.resume('{name}')")),
            "edit how it is sent" => self.edit_sending(name),
            "edit what is sent" => self.edit_routing(name),
            "subscribe for a while" => self.subscribe_for_a_while(),
            "replay" => {
                let only = ["all", "all", "undelivered"][self.rng.usize(0..3)];
                self.sql(&format!(
                    "SELECT pgwh.replay('{name}', since => now() - interval '3 s', until => now(), \"only\" => '{only}')"
                ));
            }
            // Not those that a replay made: they are refused.
            "redeliver" => self.sql(
                "SELECT pgwh.redeliver(id) FROM pgwh.deliveries d WHERE state = 'delivered'
                   AND delivered_at > now() - interval '3 s' AND EXISTS (SELECT FROM pgwh.events e
                     WHERE e.id = d.event_id AND d.id = ANY (e.delivery_ids)) LIMIT 1",
            ),
            "fill the disk" => {
                if let Some(disk) = self.disk {
                    disk.fill();
                    self.nap(1000, 3000);
                    disk.relieve();
                }
            }
            _ => self.sql("CHECKPOINT"),
        }
    }

    /// However slow the machine is, what is written must be what can be sent between all these disturbances: the small
    /// disk has to hold what is pending.
    fn watch_the_backlog(&self) {
        let full = self.cluster.try_rows(&format!("SELECT max(pending) > {MOST_PENDING} FROM pgwh.status"));
        if let Ok(rows) = full {
            self.full.store(rows == [[Some("t".to_owned())]], Ordering::Relaxed);
        }
    }

    fn kill_a_backend(&mut self) {
        let victims = self.cluster.column(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
             ORDER BY pid",
        );
        if victims.is_empty() {
            return;
        }
        let victim = Process(victims[self.rng.usize(0..victims.len())].parse().unwrap());
        let mut witness = self.cluster.connect();
        // Who has gone meanwhile takes nobody along.
        victim.pause();
        if !victim.stands_still() {
            return;
        }
        victim.kill9();
        harness::eventually("all sessions ended", || witness.batch_execute("").err());
    }

    fn in_mood(&mut self, endpoint: &Endpoint, mood: Mood) {
        endpoint.set_mood(mood);
        self.nap(300, 2500);
        endpoint.set_mood(Mood::Moody);
    }

    fn edit_sending(&mut self, name: &str) {
        let edit = match self.rng.u32(0..4) {
            0 => format!("max_in_flight = {}", self.rng.u32(1..32)),
            1 => format!("batch_size = {}", [1, 2, 20, 100][self.rng.usize(0..4)]),
            2 => format!("timeout = '{} ms'", self.rng.u32(300..900)),
            _ => format!("headers = '{{\"x-edit\": \"{}\"}}'", self.rng.u32(..)),
        };
        self.sql(&format!("UPDATE pgwh.subscriptions SET {edit} WHERE name = '{name}'"));
    }

    /// What is wanted changes between transactions, and is known to all who write.
    fn edit_routing(&mut self, name: &str) {
        let mut wants = self.wants.write().unwrap();
        let Some(want) = wants.iter_mut().find(|want| want.name == name) else { return };
        want.actions = match self.rng.u32(0..3) {
            0 => vec!["insert", "update", "delete"],
            1 => vec!["insert", "update"],
            _ => vec!["update", "delete"],
        };
        let types = want.actions.join(",");
        // Outside of any transaction of the workload; said again until it is heard.
        loop {
            let sql =
                format!("UPDATE pgwh.subscriptions SET event_types = '{{{types}}}' WHERE name = '{name}'");
            match self.cluster.try_sql(&sql) {
                Ok(()) => return,
                Err(error) => passing(&error, &sql),
            }
        }
    }

    /// One whose endpoint never takes anything, with whatever has piled up for it.
    fn subscribe_for_a_while(&mut self) {
        let name = format!("transient{}", self.rng.u32(0..2));
        self.sql(&format!("SELECT pgwh.unsubscribe(name) FROM pgwh.subscriptions WHERE name = '{name}'"));
        self.sql(&format!("SELECT pgwh.subscribe('http://127.0.0.1:1/', name => '{name}')"));
    }

    /// Runs a statement again until the server lives to answer it.
    fn sql(&mut self, sql: &str) {
        while let Err(error) = self.cluster.try_sql(sql) {
            passing(&error, sql);
        }
    }

    fn nap(&mut self, from: u64, to: u64) {
        std::thread::sleep(Duration::from_millis(self.rng.u64(from..to)));
    }
}

/// Panics unless the error is that of a server that goes down or comes up.
fn passing(error: &postgres::Error, sql: &str) {
    if let Some(refused) = error.as_db_error() {
        let code = refused.code().code();
        assert!(
            code.starts_with("57P") || code.starts_with("08"),
            "{code} {}: {:?} {:?}\nin: {sql}",
            refused.message(),
            refused.detail(),
            refused.hint()
        );
    }
    std::thread::sleep(Duration::from_millis(20));
}
