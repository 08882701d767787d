//! What TLS costs: https against http to the same nginx, with kept connections and with a new one for each request.

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Cluster, Receiver};

use crate::burst::write;
use crate::processor::ProcessorTime;

/// New connections a second beside a healthy endpoint.
const NEW_A_SECOND: u64 = 1_000;
/// Events of the healthy endpoint, and the time between two of them.
const EVENTS: u64 = 2_000;
const PAUSE: Duration = Duration::from_millis(5);

pub(crate) fn run(rows: u64) {
    let nginx = match Nginx::start() {
        Ok(nginx) => nginx,
        Err(error) => return println!("https: nginx and openssl are needed, nothing measured: {error}"),
    };
    let plain = rate(&nginx, "http", nginx.plain, rows);
    println!("https: {} of http", crate::ratio(rate(&nginx, "https", nginx.kept, rows), plain));
    rate(&nginx, "https, a new connection each", nginx.new, rows / 10);
    beside(&nginx);
}

fn cluster(nginx: &Nginx) -> Cluster {
    let cluster = crate::setup().set(&format!("pgwh.ca_file = '{}'", nginx.certificate().display())).start();
    cluster.each(&["CREATE EXTENSION pgstream_hooks", crate::ORDERS]);
    cluster
}

fn subscribe(cluster: &Cluster, url: &str, rest: &str) {
    cluster.sql(&format!(
        "SELECT pgwh.subscribe('{url}', name => 'bench', tables => '{{public.orders}}'{rest})"
    ));
}

/// Requests a second with default settings.
fn rate(nginx: &Nginx, what: &str, port: u16, rows: u64) -> f64 {
    let cluster = cluster(nginx);
    let scheme = if port == nginx.plain { "http" } else { "https" };
    subscribe(&cluster, &format!("{scheme}://127.0.0.1:{port}/"), "");
    cluster.sql("INSERT INTO orders SELECT -n, 'open', 42.10 FROM generate_series(1, 2000) n");
    crate::wait_delivered(&cluster, Duration::from_secs(120));
    let processor_time = ProcessorTime::start(&cluster);
    let begin = Instant::now();
    write(&mut cluster.connect(), 0, rows);
    crate::wait_delivered(&cluster, Duration::from_secs(600));
    let rate = rows as f64 / begin.elapsed().as_secs_f64();
    println!("{what}: {rate:.0} requests/s; {}", processor_time.per_event(rows));
    rate
}

/// From commit to receipt at a healthy endpoint, alone and beside new TLS connections to another one.
fn beside(nginx: &Nginx) {
    let cluster = cluster(nginx);
    let receiver = crate::receiver(0);
    cluster.sql("CREATE TABLE others (id bigint PRIMARY KEY)");
    cluster.subscribe(&receiver, "healthy", "tables => '{public.others}'");
    let rest = format!(", rate_limit => {NEW_A_SECOND}, max_in_flight => 64");
    subscribe(&cluster, &format!("https://127.0.0.1:{}/", nginx.new), &rest);
    let mut sent = 0;
    latencies(&cluster, &receiver, &mut sent);
    let alone = latencies(&cluster, &receiver, &mut sent);
    let seconds = EVENTS * PAUSE.as_millis() as u64 * 2 / 1_000 + 10;
    write(&mut cluster.connect(), 0, NEW_A_SECOND * seconds);
    let begin = Instant::now();
    let before = delivered(&cluster);
    let beside = latencies(&cluster, &receiver, &mut sent);
    let connections = (delivered(&cluster) - before) / begin.elapsed().as_secs_f64();
    println!(
        "https: p50 and p99 of a healthy endpoint {alone:?} alone, {beside:?} beside {connections:.0} new connections/s"
    );
}

fn delivered(cluster: &Cluster) -> f64 {
    cluster.value("SELECT delivered FROM pgwh.status WHERE name = 'bench'").parse().expect("a number")
}

/// Half and the hundredth longest of the times from commit to receipt.
fn latencies(cluster: &Cluster, receiver: &Receiver, sent: &mut u64) -> (Duration, Duration) {
    let mut client = cluster.connect();
    let insert = client.prepare("INSERT INTO others VALUES ($1)").expect("a statement");
    let mut times: Vec<Duration> = (0..EVENTS)
        .map(|_| {
            *sent += 1;
            client.execute(&insert, &[&(*sent as i64)]).expect("a row goes in");
            let committed = Instant::now();
            receiver.wait_for(*sent, Duration::from_secs(60)).expect("it arrives");
            let time = committed.elapsed();
            std::thread::sleep(PAUSE);
            time
        })
        .collect();
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// A server that answers 204 to all.
struct Nginx {
    process: Child,
    directory: PathBuf,
    plain: u16,
    /// By https.
    kept: u16,
    /// By https, and closes each connection after one request.
    new: u16,
}

impl Nginx {
    fn start() -> io::Result<Nginx> {
        let directory = std::env::temp_dir().join(format!("pgwh-nginx-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let status = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "30"])
            .args(["-keyout", "key.pem", "-out", "certificate.pem"])
            .current_dir(&directory)
            .stderr(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(io::Error::other("openssl made no certificate"));
        }
        let listeners: Vec<TcpListener> =
            (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
        let ports: Vec<u16> =
            listeners.iter().map(|it| Ok(it.local_addr()?.port())).collect::<io::Result<_>>()?;
        drop(listeners);
        let server = |port: u16, rest: &str| {
            format!("server {{ listen 127.0.0.1:{port} {rest} location / {{ return 204; }} }}\n")
        };
        let tls = "ssl; ssl_certificate certificate.pem; ssl_certificate_key key.pem;";
        let servers = [
            server(ports[0], ";"),
            server(ports[1], tls),
            server(ports[2], &format!("{tls} keepalive_timeout 0;")),
        ];
        let configuration = format!(
            "daemon off; worker_processes 1; pid nginx.pid; error_log error.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path bodies;\n{}}}\n",
            servers.concat()
        );
        std::fs::write(directory.join("nginx.conf"), configuration)?;
        let process = Command::new("nginx")
            .arg("-p")
            .arg(&directory)
            .args(["-c", "nginx.conf", "-e", "error.log"])
            .current_dir(&directory)
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Nginx { process, directory, plain: ports[0], kept: ports[1], new: ports[2] })
    }

    fn certificate(&self) -> PathBuf {
        self.directory.join("certificate.pem")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its worker ends when it does.
        let process = self.process.id().to_string();
        let _ = Command::new("kill").arg(process).status();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
