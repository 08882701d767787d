//! What commits pay that nobody subscribed to: pgbench without the extension, with it, and with `pg_recvlogical` on
//! `pgoutput` instead, each in turn and several times, since machines have moods. It is one and the same cluster,
//! restarted in between: of two clusters one was seen to be a tenth faster, whichever had the extension.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use harness::{Cluster, Server, Stop};

const ROUNDS: usize = 4;
const CLIENTS: &str = "4";

/// What pgbench says of a run. The median says what most commits pay; a single stall of the disk is in the average.
struct Run {
    rate: f64,
    average: f64,
    median: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Contender {
    Without,
    With,
    Rival,
}

impl Contender {
    const ALL: [Contender; 3] = [Contender::Without, Contender::With, Contender::Rival];

    fn name(self) -> &'static str {
        match self {
            Contender::Without => "without",
            Contender::With => "with pgstream_hooks",
            Contender::Rival => "with pg_recvlogical",
        }
    }
}

pub(crate) fn run(seconds: u64) {
    let cluster = crate::setup().start();
    pgbench(&cluster, &["-i", "-q", "-s", "10"]);
    cluster.each(&[
        "CREATE EXTENSION pgstream_hooks",
        "CREATE TABLE other (id int PRIMARY KEY)",
        "CREATE PUBLICATION other FOR TABLE other",
        "SELECT pgwh.subscribe('http://127.0.0.1:9/', name => 'bench', tables => '{public.other}')",
    ]);

    // Saturated first: it says what half of what the machine can do is.
    let saturated = rounds(&cluster, &Contender::ALL, seconds, None);
    tell("saturated", &Contender::ALL, &saturated);
    let half = median(&saturated[0], |run| run.rate) / 2.0;
    let throttled = rounds(&cluster, &Contender::ALL, seconds, Some(half));
    tell(&format!("at {half:.0} transactions/s"), &Contender::ALL, &throttled);
}

/// The cluster with one of the three, until this is dropped.
struct Stage<'a> {
    cluster: &'a Cluster,
    reader: Option<Child>,
}

impl<'a> Stage<'a> {
    fn set(cluster: &'a Cluster, contender: Contender) -> Stage<'a> {
        let libraries = if contender == Contender::With { "pgstream_hooks" } else { "" };
        cluster.set(&format!("shared_preload_libraries = '{libraries}'"));
        cluster.restart(Stop::Fast);
        // Its slot has kept what the others wrote.
        if contender == Contender::With {
            cluster.sql("SELECT pgwh.wait('bench', '2 min')");
        }
        let reader = (contender == Contender::Rival).then(|| read_logically(cluster));
        cluster.sql("CHECKPOINT");
        Stage { cluster, reader }
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if let Some(reader) = &mut self.reader {
            let _ = reader.kill();
            let _ = reader.wait();
            self.cluster.restart(Stop::Fast);
            self.cluster.sql("SELECT pg_drop_replication_slot('bench')");
        }
    }
}

fn read_logically(cluster: &Cluster) -> Child {
    let reader = |arguments: &[&str]| -> Command {
        let mut command = Server::get().command("pg_recvlogical");
        command.arg("-h").arg(cluster.host()).args(["-U", "postgres", "-d", "postgres", "-S", "bench"]);
        command.args(arguments);
        command
    };
    let made = reader(&["--create-slot", "-P", "pgoutput"]).status();
    assert!(made.is_ok_and(|status| status.success()), "no slot for pg_recvlogical");
    let start = ["--start", "-f", "/dev/null", "-o", "proto_version=1", "-o", "publication_names=other"];
    reader(&start).stderr(Stdio::null()).spawn().expect("pg_recvlogical runs")
}

fn rounds(cluster: &Cluster, contenders: &[Contender], seconds: u64, rate: Option<f64>) -> Vec<Vec<Run>> {
    let mut runs: Vec<Vec<Run>> = contenders.iter().map(|_| Vec::new()).collect();
    let (seconds, rate) = (seconds.to_string(), rate.map(|rate| format!("{rate:.0}")));
    let log = std::env::temp_dir().join(format!("pgwh-overhead-{}", std::process::id()));
    std::fs::create_dir_all(&log).expect("a directory for pgbench's log");
    let prefix = log.join("log").display().to_string();
    let mut arguments = vec!["-c", CLIENTS, "-j", "1", "-T", &seconds, "-l", "--log-prefix", &prefix];
    if let Some(rate) = &rate {
        arguments.extend(["-R", rate]);
    }
    for round in 0..ROUNDS {
        for turn in 0..contenders.len() {
            // Who comes first in a round changes, too.
            let who = (turn + round) % contenders.len();
            let stage = Stage::set(cluster, contenders[who]);
            let told = pgbench(stage.cluster, &arguments);
            runs[who].push(figures(&told, take_latencies(&log)));
        }
    }
    std::fs::remove_dir_all(&log).expect("the logs' directory can be removed");
    runs
}

fn pgbench(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut command = Server::get().command("pgbench");
    command.arg("-h").arg(cluster.host()).args(["-U", "postgres"]).args(arguments).arg("postgres");
    let output = command.output().expect("pgbench runs");
    assert!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The latency of each transaction in pgbench's logs, in milliseconds; the logs go.
fn take_latencies(directory: &Path) -> Vec<f64> {
    let mut latencies = Vec::new();
    for file in std::fs::read_dir(directory).expect("pgbench's logs are there").flatten() {
        let text = std::fs::read_to_string(file.path()).expect("a log can be read");
        let microseconds = text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok());
        latencies.extend(microseconds.map(|time| time / 1000.0));
        std::fs::remove_file(file.path()).expect("a log can be removed");
    }
    latencies
}

fn figures(text: &str, latencies: Vec<f64>) -> Run {
    let number = |before: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(before)).unwrap_or_default();
        line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
    };
    Run { rate: number("tps = "), average: number("latency average = "), median: middle(latencies) }
}

fn median(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    middle(runs.iter().map(of).collect())
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count => (values[(count - 1) / 2] + values[count / 2]) / 2.0,
    }
}

fn tell(how: &str, contenders: &[Contender], runs: &[Vec<Run>]) {
    println!("overhead, {how}, median of {ROUNDS} runs:");
    let base = &runs[0];
    let against = |mine: f64, theirs: f64| (mine / theirs - 1.0) * 100.0;
    for (contender, runs) in contenders.iter().zip(runs) {
        let told = |of: fn(&Run) -> f64| (median(runs, of), against(median(runs, of), median(base, of)));
        let (rate, rate_change) = told(|run| run.rate);
        let (average, average_change) = told(|run| run.average);
        let (middle, middle_change) = told(|run| run.median);
        println!(
            "    {:20} {rate:8.0} transactions/s ({rate_change:+.1} %), latency: average {average:.3} ms \
             ({average_change:+.1} %), median {middle:.3} ms ({middle_change:+.1} %)",
            contender.name(),
        );
    }
}
