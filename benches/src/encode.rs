//! What it costs to decode a row of twelve columns and to write it as JSON, against `wal2json` on the same log.

use std::time::{Duration, Instant};

use harness::{Client, Cluster, DECODER, DISPATCHER, Process};

/// Rows of one transaction.
const TRANSACTION: u64 = 10_000;
/// Events of a request.
const BATCH: u64 = 100;

const TABLE: &str = "CREATE TABLE orders (
    id bigint PRIMARY KEY, customer text, email text, status text, total numeric(12, 2), quantity integer, paid boolean,
    placed timestamptz, shipped date, token uuid, address text, details jsonb)";

/// What decoding the rows took.
pub(crate) struct Decoded {
    /// The decoder's processor time.
    pub(crate) decoding: Duration,
    /// That and the dispatcher's.
    all: Duration,
    /// Until everything had been received.
    elapsed: Duration,
}

/// Has so many rows decoded. The log is written first, when `prepare` has been called.
pub(crate) fn decode<T>(rows: u64, prepare: impl FnOnce(&Cluster) -> T) -> (Cluster, T, Decoded) {
    let cluster = crate::setup().start();
    cluster.each(&["CREATE EXTENSION pgstream_hooks", TABLE]);
    let receiver = crate::receiver(0);
    let rest = format!("tables => '{{public.orders}}', max_in_flight => 64, batch_size => {BATCH}");
    cluster.subscribe(&receiver, "bench", &rest);
    // Warm: connections, threads, caches.
    let mut client = cluster.connect();
    write(&mut client, 1, 20_000);
    crate::wait_delivered(&cluster, Duration::from_secs(120));
    let prepared = prepare(&cluster);

    let (decoder, dispatcher) = (cluster.process(DECODER), cluster.process(DISPATCHER));
    decoder.pause();
    write(&mut client, 20_001, rows);
    let before = [decoder.cpu(), dispatcher.cpu()];
    let begin = Instant::now();
    decoder.resume();
    crate::wait_delivered(&cluster, Duration::from_secs(600));
    let elapsed = begin.elapsed();
    let decoding = decoder.cpu() - before[0];
    let all = decoding + dispatcher.cpu() - before[1];
    (cluster, prepared, Decoded { decoding, all, elapsed })
}

pub(crate) fn run(rows: u64) {
    let (_cluster, (mut reader, compared), Decoded { decoding, all, elapsed }) = decode(rows, slot_of_theirs);
    let each = |time: Duration| time.as_secs_f64() * 1e6 / rows as f64;
    println!(
        "encode: {rows} rows of 12 columns decoded, their values written as JSON, at {:.0} rows/s of processor time ({:.2} µs each)",
        rows as f64 / decoding.as_secs_f64(),
        each(decoding)
    );
    println!(
        "    with all that the dispatcher does, journal and requests of {BATCH} included: {:.2} µs each; all received in {:.1} s",
        each(all),
        elapsed.as_secs_f64()
    );
    if compared {
        let (theirs, taken) = wal2json(&mut reader, rows);
        println!(
            "    wal2json, format 2, through SQL: {:.0} rows/s of processor time ({:.2} µs each), {:.1} s",
            rows as f64 / theirs.as_secs_f64(),
            each(theirs),
            taken.as_secs_f64()
        );
        println!(
            "    the decoder spends {} of that, decoder and dispatcher {}",
            crate::ratio(each(decoding), each(theirs)),
            crate::ratio(each(all), each(theirs))
        );
    }
}

/// A session, and whether there is a slot of `wal2json` for it to read from.
fn slot_of_theirs(cluster: &Cluster) -> (Client, bool) {
    let mut reader = cluster.connect();
    // Newer servers load no plugin that this does not name.
    let allow =
        "SELECT set_config(name, 'wal2json', false) FROM pg_settings WHERE name = 'output_plugin_libraries'";
    reader.batch_execute(allow).expect("a setting");
    let slot = "SELECT pg_create_logical_replication_slot('theirs', 'wal2json')";
    let compared = match reader.batch_execute(slot) {
        Ok(()) => true,
        Err(error) => {
            let error =
                error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
            let major = harness::Server::get().major();
            println!(
                "    (no wal2json here, nothing to compare with: apt install postgresql-{major}-wal2json; {error})"
            );
            false
        }
    };

    (reader, compared)
}

/// The processor time, and the time, that a session takes for the same log.
fn wal2json(client: &mut Client, rows: u64) -> (Duration, Duration) {
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).expect("a pid").get(0);
    let session = Process(pid);
    // Warm, as the other is.
    let look = |function: &str, most: &str| {
        format!(
            "SELECT count(*) FROM {function}('theirs', NULL, {most}, 'format-version', '2', 'include-transaction', 'false', 'add-tables', 'public.orders')"
        )
    };
    client.query_one(&look("pg_logical_slot_peek_changes", "20000"), &[]).expect("changes");
    let (before, begin) = (session.cpu(), Instant::now());
    let count: i64 =
        client.query_one(&look("pg_logical_slot_get_changes", "NULL"), &[]).expect("changes").get(0);
    let taken = (session.cpu() - before, begin.elapsed());
    assert_eq!(count as u64, rows, "wal2json saw {count} changes");
    taken
}

/// Inserts rows numbered from `first` on.
fn write(client: &mut Client, first: u64, rows: u64) {
    let end = first + rows;
    for from in (first..end).step_by(TRANSACTION as usize) {
        let to = (from + TRANSACTION).min(end) - 1;
        let sql = format!(
            "INSERT INTO orders SELECT n, 'Customer ' || n, md5(n::text) || '@mail.example.com', 'shipped', n % 10000 / 100.0, n % 9,
               n % 2 = 0, timestamptz '2026-11-20 10:00:47.406957+00' + n * interval '1 s', date '2026-11-20' + (n % 90)::int,
               md5(n::text)::uuid, n % 900 || ' Long Street, Springfield', jsonb_build_object('gift', n % 3 = 0, 'note', 'please ring \"twice\"')
             FROM generate_series({from}, {to}) n"
        );
        client.batch_execute(&sql).expect("rows go in");
    }
}
