//! A transaction larger than any memory, with one endpoint up and one down.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::{Cluster, DECODER, DISPATCHER, Receiver, Request, Setup, eventually, within};

/// Far more than this takes.
const LONG: Duration = Duration::from_secs(1800);

/// What came, as far as it need be known: rows are numbered from 1.
#[derive(Default)]
struct Seen {
    /// A bit a row.
    rows: Vec<u64>,
    distinct: u64,
    /// Rows that came before one of a lower number, each for the first time.
    early: u64,
    last: u64,
}

impl Seen {
    fn take(&mut self, row: u64) {
        let (word, bit) = (row as usize / 64, 1 << (row % 64));
        if self.rows.len() <= word {
            self.rows.resize(word + 1, 0);
        }
        if self.rows[word] & bit != 0 {
            return;
        }
        self.rows[word] |= bit;
        self.distinct += 1;
        if row < self.last {
            self.early += 1;
        }
        self.last = row;
    }
}

/// The numbers of the rows in a request, without reading all of its JSON.
fn rows(request: &Request) -> impl Iterator<Item = u64> {
    let text = std::str::from_utf8(request.body()).expect("UTF-8");
    text.split(r#""key":"#).skip(1).map(|rest| {
        let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
        digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|id| id.parse().ok()).expect("a number")
    })
}

/// Keeps no request, only what [`Seen`] says.
fn watched(at: Option<std::net::SocketAddr>, seen: &Arc<Mutex<Seen>>) -> Receiver {
    let listen = at.unwrap_or(receiver::Options::default().listen);
    // Who comes back where it was may find its port in use for a moment.
    let receiver = eventually("a receiver", || {
        Receiver::with(receiver::Options { keep: 0, listen, ..Default::default() }).ok()
    });
    let seen = Arc::clone(seen);
    receiver.observe(move |request: &Request, _: &_| {
        let mut seen = seen.lock().unwrap();
        rows(request).for_each(|row| seen.take(row));
    });
    receiver
}

fn most_memory(cluster: &Cluster, most: &mut [u64; 2]) {
    for (kind, most) in [DISPATCHER, DECODER].iter().zip(most) {
        if let Some(process) = cluster.processes(kind).first() {
            *most = process.memory().max(*most);
        }
    }
}

#[test]
fn a_huge_transaction_passes_while_an_endpoint_is_down() {
    let rows: u64 = std::env::var("PGWH_ROWS").ok().and_then(|text| text.parse().ok()).unwrap_or(300_000);
    let cluster = Setup::new()
        .set("shared_buffers = 128MB")
        .set("max_wal_size = 4GB")
        .set("pgwh.max_memory = '128MB'")
        .start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id bigint PRIMARY KEY, status text)");
    let (up_seen, down_seen) = (Arc::default(), Arc::default());
    let up = watched(None, &up_seen);
    let down = watched(None, &down_seen);
    cluster.subscribe(&up, "up", "batch_size => 100");
    cluster.subscribe(
        &down,
        "down",
        "batch_size => 100, ordering => 'strict', retry_schedule => '{100ms,100ms}'",
    );
    let address = down.address();
    drop(down);
    // And one that nobody will ever answer for.
    cluster.sql("SELECT pgwh.subscribe('http://127.0.0.1:1/', name => 'given up')");

    let begin = Instant::now();
    cluster.sql(&format!("INSERT INTO t SELECT n, 'open' FROM generate_series(1, {rows}) n"));
    let written = begin.elapsed();
    let mut most = [0; 2];
    within(LONG, "all came to the endpoint that is up", || {
        most_memory(&cluster, &mut most);
        std::thread::sleep(Duration::from_millis(50));
        (up_seen.lock().unwrap().distinct >= rows).then_some(())
    });
    let received = begin.elapsed();
    // The dead one holds no WAL.
    cluster.wait_confirmed();
    cluster.wait_status("down", &format!("pending = {rows} AND dead = 0 AND mode = 'suspended'"));
    assert_eq!(down_seen.lock().unwrap().distinct, 0);
    // However much is pending: what shows it is quick, and so is what drops it.
    cluster.wait_status("given up", &format!("pending = {rows}"));
    let mut client = cluster.connect();
    let looked = [(); 10].map(|()| {
        let begin = Instant::now();
        client.batch_execute("SELECT count(*) FROM pgwh.status()").unwrap();
        begin.elapsed()
    });
    // A machine that is busy for a moment is so once.
    let looked = looked.into_iter().min().unwrap();
    assert!(looked < Duration::from_millis(200), "{looked:?}");
    let unsubscribed = Instant::now();
    assert_eq!(
        cluster.value("SET statement_timeout = '10 s'; SELECT pgwh.unsubscribe('given up')"),
        rows.to_string()
    );
    let unsubscribed = unsubscribed.elapsed();

    let back = Instant::now();
    let down = watched(Some(address), &down_seen);
    within(LONG, "the backlog came to the endpoint that was down", || {
        most_memory(&cluster, &mut most);
        std::thread::sleep(Duration::from_millis(50));
        (down_seen.lock().unwrap().distinct >= rows).then_some(())
    });
    let drained = back.elapsed();
    {
        let seen = down_seen.lock().unwrap();
        assert_eq!((seen.distinct, seen.early), (rows, 0), "each, and in order");
    }
    assert_eq!(up_seen.lock().unwrap().distinct, rows);
    cluster
        .wait_status("down", &format!("pending = 0 AND dead = 0 AND delivered = {rows} AND mode = 'live'"));
    println!(
        "{rows} rows written in {written:?}, received in {received:?}, drained in {drained:?} by {} requests; \
         status() in {looked:?}, unsubscribed in {unsubscribed:?}; \
         at most {:.0} MB in the dispatcher and {:.0} MB in the decoder",
        down.count(),
        most[0] as f64 / 1e6,
        most[1] as f64 / 1e6
    );
    assert!(most.iter().all(|bytes| *bytes < 256 << 20), "{most:?} bytes");
    // And the next one is an ordinary one.
    cluster.sql(&format!("INSERT INTO t VALUES ({} + 1)", rows));
    within(LONG, "the next row", || (down_seen.lock().unwrap().distinct == rows + 1).then_some(()));
}
