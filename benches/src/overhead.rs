//! What commits pay that nobody subscribed to: pgbench without the extension, with it, and with `pg_recvlogical` on
//! `pgoutput` instead, each in turn and several times, since machines have moods.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use harness::{Cluster, Server, Setup};

const ROUNDS: usize = 4;
const CLIENTS: &str = "4";

struct Contender {
    name: &'static str,
    cluster: Cluster,
    reader: Option<Child>,
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Some(reader) = &mut self.reader {
            let _ = reader.kill();
            let _ = reader.wait();
        }
    }
}

/// What pgbench says of a run. The median says what most commits pay; a single stall of the disk is in the average.
struct Run {
    rate: f64,
    average: f64,
    median: f64,
}

pub(crate) fn run(seconds: u64) {
    let without = contender("without", crate::setup().not_preloaded());
    let with = contender("with pgstream_hooks", crate::setup());
    with.cluster.each(&["CREATE EXTENSION pgstream_hooks", "CREATE TABLE other (id int PRIMARY KEY)"]);
    with.cluster.sql("SELECT pgwh.subscribe('http://127.0.0.1:9/', tables => '{public.other}')");
    let mut rival = contender("with pg_recvlogical", crate::setup().not_preloaded());
    rival.reader = Some(read_logically(&rival.cluster));

    // Saturated first: it says what half of what the machine can do is.
    let contenders = [&without, &with, &rival];
    let saturated = rounds(&contenders, seconds, None);
    tell("saturated", &contenders, &saturated);
    let half = median(&saturated[0], |run| run.rate) / 2.0;
    let throttled = rounds(&contenders[..2], seconds, Some(half));
    tell(&format!("at {half:.0} transactions/s"), &contenders[..2], &throttled);
}

fn contender(name: &'static str, setup: Setup) -> Contender {
    let cluster = setup.start();
    pgbench(&cluster, &["-i", "-q", "-s", "10"]);
    Contender { name, cluster, reader: None }
}

fn read_logically(cluster: &Cluster) -> Child {
    cluster.sql("CREATE TABLE other (id int PRIMARY KEY); CREATE PUBLICATION other FOR TABLE other");
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

fn rounds(contenders: &[&Contender], seconds: u64, rate: Option<f64>) -> Vec<Vec<Run>> {
    let mut runs: Vec<Vec<Run>> = contenders.iter().map(|_| Vec::new()).collect();
    let (seconds, rate) = (seconds.to_string(), rate.map(|rate| format!("{rate:.0}")));
    let log = std::env::temp_dir().join(format!("pgwh-overhead-{}", std::process::id()));
    std::fs::create_dir_all(&log).expect("a directory for pgbench's log");
    let prefix = log.join("log").display().to_string();
    let mut arguments = vec!["-n", "-c", CLIENTS, "-j", "1", "-T", &seconds, "-l", "--log-prefix", &prefix];
    if let Some(rate) = &rate {
        arguments.extend(["-R", rate]);
    }
    for round in 0..ROUNDS {
        for turn in 0..contenders.len() {
            // Who comes first in a round changes, too.
            let who = (turn + round) % contenders.len();
            contenders[who].cluster.sql("CHECKPOINT");
            let told = pgbench(&contenders[who].cluster, &arguments);
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

fn tell(how: &str, contenders: &[&Contender], runs: &[Vec<Run>]) {
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
            contender.name,
        );
    }
}
