//! What commits pay that nobody subscribed to: pgbench without the extension, with it, and with `pg_recvlogical` on
//! `pgoutput` instead, each in turn and several times, since machines have moods.

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

/// What pgbench says of a run.
struct Run {
    rate: f64,
    latency: f64,
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
    let mut arguments = vec!["-n", "-c", CLIENTS, "-j", "1", "-T", &seconds];
    if let Some(rate) = &rate {
        arguments.extend(["-R", rate]);
    }
    for round in 0..ROUNDS {
        for turn in 0..contenders.len() {
            // Who comes first in a round changes, too.
            let who = (turn + round) % contenders.len();
            contenders[who].cluster.sql("CHECKPOINT");
            runs[who].push(figures(&pgbench(&contenders[who].cluster, &arguments)));
        }
    }
    runs
}

fn pgbench(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut command = Server::get().command("pgbench");
    command.arg("-h").arg(cluster.host()).args(["-U", "postgres"]).args(arguments).arg("postgres");
    let output = command.output().expect("pgbench runs");
    assert!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn figures(text: &str) -> Run {
    let number = |before: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(before)).unwrap_or_default();
        line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
    };
    Run { rate: number("tps = "), latency: number("latency average = ") }
}

fn median(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

fn tell(how: &str, contenders: &[&Contender], runs: &[Vec<Run>]) {
    println!("overhead, {how}, median of {ROUNDS} runs:");
    let base = &runs[0];
    let against = |mine: f64, theirs: f64| (mine / theirs - 1.0) * 100.0;
    for (contender, runs) in contenders.iter().zip(runs) {
        let (rate, latency) = (median(runs, |run| run.rate), median(runs, |run| run.latency));
        println!(
            "    {:20} {rate:8.0} transactions/s ({:+.1} %), latency {latency:.3} ms ({:+.1} %)",
            contender.name,
            against(rate, median(base, |run| run.rate)),
            against(latency, median(base, |run| run.latency)),
        );
    }
}
