//! Metrics: `pgwh.metrics()` follows OpenMetrics, and its numbers are what happened.

mod scrape;

use std::time::Duration;

use harness::{Answer, Cluster, DISPATCHER, Process, Receiver, Reply, Script, Server, Setup, eventually};

use scrape::{Scrape, scrape_until};

fn stage() -> (Cluster, Receiver) {
    // What is counted is to be counted here, and installing the parser takes longer than what is measured.
    scrape::python();
    // Autovacuum commits, which is decoded.
    let cluster = Setup::new().set("autovacuum = off").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    (cluster, Receiver::start().unwrap())
}

/// The labels of a subscription's series.
fn of(subscription: &str) -> String {
    format!("subscription={subscription:?}")
}

/// Each subscription gets its own table, and a fault of its own.
#[test]
fn requests_are_counted_by_outcome_and_error_class() {
    let (cluster, receiver) = stage();
    let port = receiver.address().port();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let here = |path: &str| format!("http://127.0.0.1:{port}/{path}");
    let faults: Vec<(&str, String, Answer)> = vec![
        ("http_3xx", here("http_3xx"), Reply::status(302).answer),
        ("http_4xx", here("http_4xx"), Reply::status(404).answer),
        ("http_5xx", here("http_5xx"), Reply::status(500).answer),
        ("timeout", here("timeout"), Answer::Hang),
        ("reset", here("reset"), Answer::Close),
        ("connect", format!("http://127.0.0.1:{closed}/"), Answer::default()),
        ("tls", format!("https://127.0.0.1:{port}/tls"), Answer::default()),
        ("dns", "https://nobody.invalid/".to_owned(), Answer::default()),
    ];
    for (class, url, fault) in &faults {
        receiver.behave_at(&format!("/{class}"), Script::always(Reply::from(fault.clone())));
        cluster.sql(&format!(
            "CREATE TABLE {class} (id int PRIMARY KEY);
             SELECT pgwh.subscribe('{url}', name => '{class}', tables => '{{public.{class}}}', retry_schedule => '{{}}',
                                   timeout => '{}')",
            if *class == "timeout" { "200 ms" } else { "15 s" }
        ));
    }
    for (class, ..) in &faults {
        cluster.sql(&format!("INSERT INTO {class} VALUES (1), (2)"));
    }
    for (class, ..) in &faults {
        cluster.wait_status(class, "dead = 2");
    }
    let scrape = Scrape::of(&cluster);
    for (class, ..) in &faults {
        let (whose, why) = (of(class), format!("error_class={class:?}"));
        let attempts =
            |labels: &[&str]| scrape.value("pgwh_attempts_total", &[&[whose.as_str()], labels].concat());
        let deliveries =
            |labels: &[&str]| scrape.value("pgwh_deliveries_total", &[&[whose.as_str()], labels].concat());
        assert_eq!(attempts(&["failure", &why]), 2.0, "{class}");
        assert_eq!(attempts(&["success"]), 0.0, "{class}");
        assert_eq!(deliveries(&["dead", &why]), 2.0, "{class}");
        assert_eq!(deliveries(&["delivered"]), 0.0, "{class}");
        assert_eq!(scrape.value("pgwh_subscription_dead_letters_total", &[&whose]), 2.0, "{class}");
        assert_eq!(scrape.value("pgwh_request_seconds_count", &[&whose]), 2.0, "{class}");
        assert_eq!(scrape.get("pgwh_delivery_seconds_count", &[&whose]), None, "{class}");
    }
    assert!(scrape.value("pgwh_request_seconds_sum", &[&of("timeout")]) >= 0.4);
    assert_eq!(scrape.value("pgwh_request_seconds_bucket", &[&of("timeout"), "le=\"0.1\""]), 0.0);
}

#[test]
fn what_is_never_sent_is_counted_as_well() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY);
         CREATE FUNCTION nothing(event jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT NULL::jsonb';
         CREATE FUNCTION breaks(event jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT to_jsonb(1 / 0)'",
    );
    cluster.subscribe(&receiver, "dropped", "transform => 'nothing(jsonb)'");
    cluster.subscribe(&receiver, "broken", "transform => 'breaks(jsonb)', retry_schedule => '{}'");
    cluster.subscribe(&receiver, "skipped", "retry_schedule => '{1 hour}'");
    receiver.behave_at("/skipped", Script::always(Reply::status(500)));
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.delivered(&receiver, "dropped");
    cluster.wait_status("broken", "dead = 1");
    cluster.wait_status("skipped", "retrying = 1");
    cluster.sql("SELECT pgwh.skip(id) FROM pgwh.deliveries WHERE subscription = 'skipped'");
    let scrape = scrape_until(&cluster, "skipped", |scrape| {
        scrape.value("pgwh_deliveries_total", &[&of("skipped"), "outcome=\"skipped\""]) == 1.0
    });
    assert_eq!(scrape.value("pgwh_subscription_dead_letters_total", &[&of("skipped")]), 1.0);
    assert_eq!(scrape.value("pgwh_deliveries_total", &[&of("dropped"), "outcome=\"dropped\""]), 1.0);
    assert_eq!(
        scrape.value("pgwh_deliveries_total", &[&of("broken"), "dead", "error_class=\"transform\""]),
        1.0
    );
    assert_eq!(scrape.get("pgwh_request_seconds_count", &[&of("broken")]), None, "there was no request");
}

#[test]
fn deliveries_are_counted_with_retries_batches_and_times() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    cluster.subscribe(&receiver, "single", "");
    cluster.subscribe(&receiver, "batches", "batch_size => 10");
    cluster.subscribe(&receiver, "again", "retry_schedule => '{10 ms}'");
    receiver.behave_at("/again", Script::fail_first_of_each(1, 503));
    cluster.sql("INSERT INTO t SELECT generate_series(1, 20)");
    for name in ["single", "batches", "again"] {
        assert_eq!(cluster.delivered(&receiver, name).len(), 20);
    }
    let scrape = Scrape::of(&cluster);
    let requests = |name: &str| {
        let path = format!("/{name}");
        receiver.requests().iter().filter(|request| request.path() == path).count() as f64
    };
    for (name, failed) in [("single", 0.0), ("batches", 0.0), ("again", 20.0)] {
        let whose = of(name);
        let value =
            |metric: &str, labels: &[&str]| scrape.value(metric, &[&[whose.as_str()], labels].concat());
        assert_eq!(value("pgwh_deliveries_total", &["delivered"]), 20.0, "{name}");
        assert_eq!(value("pgwh_attempts_total", &["success"]) + failed, requests(name), "{name}");
        assert_eq!(value("pgwh_attempts_total", &["http_5xx"]), failed, "{name}");
        // While the breaker is open no attempts are counted, so what is tried then is no second attempt.
        let retries = value("pgwh_subscription_retries_total", &[]);
        assert!(retries <= failed && (retries > 0.0 || failed == 0.0), "{name}: {retries} of {failed}");
        assert_eq!(value("pgwh_request_seconds_count", &[]), requests(name), "{name}");
        assert_eq!(value("pgwh_request_seconds_bucket", &["+Inf"]), requests(name), "{name}");
        assert_eq!(value("pgwh_delivery_seconds_count", &[]), 20.0, "{name}");
        assert!((0.0..60.0).contains(&value("pgwh_delivery_seconds_sum", &[])), "{name}");
        assert!(
            (0.1..=2.0).contains(&value("pgwh_subscription_rate", &[])),
            "20 events in 10 seconds or less: {name}"
        );
        assert_eq!(value("pgwh_subscription_pending", &[]), 0.0, "{name}");
        assert_eq!(value("pgwh_subscription_lag_seconds", &[]), 0.0, "{name}");
        assert_eq!(value("pgwh_subscription_enabled", &[]), 1.0, "{name}");
        assert_eq!(value("pgwh_subscription_paused", &[]), 0.0, "{name}");
        let success: f64 = value("pgwh_subscription_last_success_timestamp_seconds", &[]);
        let now: f64 = cluster.value("SELECT extract(epoch FROM now())").parse().unwrap();
        assert!((0.0..60.0).contains(&(now - success)), "{name}: {success}, {now}");
    }
    assert!(requests("batches") < 20.0);

    cluster.sql("SELECT pgwh.replay('single', since => '-infinity'::timestamptz)");
    let scrape = scrape_until(&cluster, "replayed", |scrape| {
        scrape.value("pgwh_subscription_replayed_total", &[&of("single")]) == 20.0
    });
    assert_eq!(scrape.value("pgwh_deliveries_total", &[&of("single"), "delivered"]), 20.0);
    assert_eq!(scrape.value("pgwh_request_seconds_count", &[&of("single")]), 40.0);
}

#[test]
fn what_waits_shows_with_its_size_its_keys_and_the_breaker() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    cluster.subscribe(&receiver, "refuses", "retry_schedule => '{1 hour}'");
    let nobody = "http://127.0.0.1:1/";
    cluster.sql(&format!("SELECT pgwh.subscribe('{nobody}', name => 'away')"));
    receiver.behave_at("/refuses", Script::always(Reply::status(500)));
    cluster.sql(
        "INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 3) n; UPDATE t SET note = 'y'",
    );
    let refuses = of("refuses");
    let scrape = scrape_until(&cluster, "three keys blocked", |scrape| {
        scrape.value("pgwh_subscription_blocked_keys", &[&refuses]) == 3.0
    });
    assert_eq!(scrape.value("pgwh_subscription_pending", &[&refuses]), 6.0);
    assert_eq!(scrape.value("pgwh_subscription_retrying", &[&refuses]), 3.0);
    assert_eq!(scrape.value("pgwh_breaker_state", &[&refuses, "closed"]), 1.0);
    assert!(scrape.value("pgwh_subscription_backlog_bytes", &[&refuses]) > 3000.0);
    assert!(scrape.value("pgwh_database_memory_bytes", &[]) > 3000.0);
    let later = scrape_until(&cluster, "older", |later| {
        later.value("pgwh_subscription_lag_seconds", &[&refuses])
            > scrape.value("pgwh_subscription_lag_seconds", &[&refuses])
    });
    assert!(later.value("pgwh_subscription_lag_seconds", &[&refuses]) < 60.0);

    cluster.sql("INSERT INTO t SELECT generate_series(4, 30)");
    scrape_until(&cluster, "the breaker opened", |scrape| {
        let state = |state: &str| scrape.value("pgwh_breaker_state", &[&of("away"), state]);
        state("closed") == 0.0 && state("\"open") + state("half_open") == 1.0
    });

    cluster.sql("SELECT pgwh.pause('refuses')");
    scrape_until(&cluster, "paused", |scrape| scrape.value("pgwh_subscription_paused", &[&refuses]) == 1.0);
}

#[test]
fn decoding_is_counted_and_its_lag_goes_back_to_nothing() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE wanted (id int PRIMARY KEY); CREATE TABLE unwanted (id int)");
    cluster.subscribe(&receiver, "s", "tables => '{public.wanted}'");
    cluster.sql("INSERT INTO wanted VALUES (0)");
    cluster.delivered(&receiver, "s");
    let before = Scrape::of(&cluster);
    cluster.each(&[
        "INSERT INTO wanted SELECT generate_series(1, 10)",
        "INSERT INTO unwanted SELECT generate_series(1, 100)",
        "BEGIN; DELETE FROM wanted WHERE id < 3; TRUNCATE unwanted; COMMIT",
    ]);
    cluster.delivered(&receiver, "s");
    let after = Scrape::of(&cluster);
    let more = |metric: &str| after.value(metric, &[]) - before.value(metric, &[]);
    assert_eq!(more("pgwh_database_decoded_transactions_total"), 3.0);
    assert_eq!(more("pgwh_database_decoded_changes_total"), 10.0 + 100.0 + 4.0);
    assert_eq!(more("pgwh_database_matched_changes_total"), 10.0 + 3.0);
    assert_eq!(more("pgwh_database_skipped_changes_total"), 100.0 + 1.0);
    assert!(more("pgwh_database_decoded_bytes_total") > 0.0);
    let scrape = scrape_until(&cluster, "no lag", |scrape| {
        ["decoder", "slot"].iter().all(|of| {
            scrape.get(&format!("pgwh_database_{of}_lag_seconds"), &[]) == Some(0.0)
                && scrape.value(&format!("pgwh_database_{of}_lag_bytes"), &[]) < 1e6
        })
    });
    for worker in ["launcher", "dispatcher", "decoder"] {
        let labels = [&format!("worker={worker:?}")[..]];
        assert_eq!(scrape.value("pgwh_worker_up", &labels), 1.0, "{worker}");
        assert!(scrape.value("pgwh_worker_memory_bytes", &labels) > 100_000.0, "{worker}");
        assert!(scrape.value("pgwh_worker_threads", &labels) >= 1.0, "{worker}");
    }
    for (metric, value) in [
        ("pgwh_capture_phase", 1.0),
        ("pgwh_database_slot_valid", 1.0),
        ("pgwh_database_subscriptions", 1.0),
        ("pgwh_database_subscriptions_together", 0.0),
        ("pgwh_database_gaps", 0.0),
        ("pgwh_database_restarts_total", 0.0),
        ("pgwh_database_queue_bytes", 0.0),
        ("pgwh_database_in_flight", 0.0),
        ("pgwh_database_in_flight_limit", 1000.0),
        ("pgwh_database_memory_limit_bytes", 128.0 * 1024.0 * 1024.0),
    ] {
        let labels: &[&str] = if metric == "pgwh_capture_phase" { &["state=\"ready\""] } else { &[] };
        assert_eq!(scrape.get(metric, labels), Some(value), "{metric}");
    }
    assert!(scrape.value("pgwh_database_retained_wal_bytes", &[]) > 0.0);
    assert!(scrape.value("pgwh_database_journal_bytes", &[]) > 0.0);
    assert!(scrape.get("pgwh_database_catalog_xmin_age", &[]).is_some());

    cluster.sql("UPDATE pgwh.subscriptions SET enabled = false");
    scrape_until(&cluster, "a gap that grows", |scrape| {
        let gaps = |metric| scrape.value(metric, &[]);
        (gaps("pgwh_database_gaps"), gaps("pgwh_database_open_gaps")) == (1.0, 1.0)
    });
}

#[test]
fn transactions_that_decoding_spills_to_disk_are_counted() {
    let cluster = Setup::new().set("logical_decoding_work_mem = '64kB'").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY, note text)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "tables => '{t}', batch_size => 1000");
    let since_19 = (Server::get().major() >= 19).then_some(0.0);
    let before = Scrape::of(&cluster);
    assert_eq!(before.value("pgwh_database_decoder_spilled_transactions_total", &[]), 0.0);
    assert_eq!(before.get("pgwh_database_decoder_memory_exceeded_total", &[]), since_19);
    cluster.sql("INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n");
    cluster.delivered(&receiver, "s");
    let after = scrape_until(&cluster, "a spilled transaction", |scrape| {
        scrape.value("pgwh_database_decoder_spilled_transactions_total", &[]) >= 1.0
    });
    assert!(after.value("pgwh_database_decoder_spilled_bytes_total", &[]) > 100_000.0);
    let exceeded = after.get("pgwh_database_decoder_memory_exceeded_total", &[]);
    assert_eq!(exceeded.is_some_and(|times| times >= 1.0), since_19.is_some(), "{exceeded:?}");
}

#[test]
fn workers_that_end_show_and_their_restart_is_counted() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.delivered(&receiver, "s");
    let before = Scrape::of(&cluster);
    let process = cluster.process(DISPATCHER);
    cluster.sql(&format!("SELECT pg_terminate_backend({})", process.0));
    let after = scrape_until(&cluster, "started again", |scrape| {
        scrape.value("pgwh_database_restarts_total", &[]) == 1.0
            && scrape.value("pgwh_capture_phase", &["\"ready"]) == 1.0
    });
    let changes = "pgwh_database_decoded_changes_total";
    assert!(after.value(changes, &[]) >= before.value(changes, &[]), "the server has not restarted");

    cluster.set("pgwh.enabled = off");
    cluster.reload();
    let scrape = scrape_until(&cluster, "workers ended", |scrape| {
        ["dispatcher", "decoder"].iter().all(|worker| scrape.value("pgwh_worker_up", &[worker]) == 0.0)
            && scrape.value("pgwh_capture_phase", &["switched_off"]) == 1.0
    });
    assert_eq!(scrape.value("pgwh_worker_up", &["launcher"]), 1.0);
    eventually("a lag", || {
        (Scrape::of(&cluster).value("pgwh_database_decoder_lag_seconds", &[]) > 0.0).then_some(())
    });
}

#[test]
fn counters_of_subscriptions_beyond_the_limit_never_fall() {
    let cluster = Setup::new().set("pgwh.metrics_max_subscriptions = 2").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    for name in ["a", "b", "c", "d"] {
        cluster.subscribe(&receiver, name, "");
    }
    cluster.sql("INSERT INTO t SELECT generate_series(1, 5)");
    ["a", "b", "c", "d"].iter().for_each(|name| drop(cluster.delivered(&receiver, name)));
    let delivered = |scrape: &Scrape, name: &str| {
        scrape.get("pgwh_deliveries_total", &[&of(name), "outcome=\"delivered\""])
    };
    let first = Scrape::of(&cluster);
    let found = ["a", "b", "c", "d", ""].map(|name| delivered(&first, name));
    assert_eq!(found, [Some(5.0), Some(5.0), None, None, Some(10.0)]);
    assert_eq!(first.value("pgwh_database_subscriptions", &[]), 4.0);
    assert_eq!(first.value("pgwh_database_subscriptions_together", &[]), 2.0);

    cluster.sql("SELECT pgwh.unsubscribe('a'); SELECT pgwh.unsubscribe('c')");
    scrape_until(&cluster, "gone", |scrape| scrape.value("pgwh_database_subscriptions", &[]) == 2.0);
    cluster.subscribe(&receiver, "e", "");
    cluster.subscribe(&receiver, "f", "");
    cluster.sql("INSERT INTO t VALUES (6)");
    ["b", "d", "e", "f"].iter().for_each(|name| drop(cluster.delivered(&receiver, name)));
    let second = Scrape::of(&cluster);
    let found = ["a", "b", "d", "e", "f", ""].map(|name| delivered(&second, name));
    assert_eq!(found, [None, Some(6.0), None, Some(1.0), None, Some(12.0)]);
    for (series, before) in first.series() {
        if let Some(after) = second.series().get(series).filter(|_| series.contains("_total{")) {
            assert!(after >= before, "{series} fell from {before} to {after}");
        }
    }
}

#[test]
fn a_row_a_sample_tells_the_same_as_the_text() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let url = receiver.url("/odd");
    cluster.sql(&format!("SELECT pgwh.subscribe('{url}', name => 'odd \"name\" \\ of 1')"));
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_true("SELECT delivered = 1 FROM pgwh.status");
    let labels =
        ["database", "subscription", "worker", "state", "outcome", "error_class", "le", "version", "check"];
    let columns = labels.join(", ").replace("check", "check_name");
    let rows = cluster.rows(&format!("SELECT metric, {columns} FROM pgwh.metric_samples()"));
    let mut found: Vec<String> = rows
        .into_iter()
        .map(|row| {
            let (metric, values) = row.split_first().unwrap();
            let mut with: Vec<String> = labels
                .iter()
                .zip(values)
                .filter_map(|(label, value)| Some(format!("{label}={:?}", value.as_ref()?)))
                .collect();
            with.sort();
            format!("{}{{{}}}", metric.as_ref().unwrap(), with.join(","))
        })
        .collect();
    found.sort();
    let scrape = Scrape::of(&cluster);
    assert_eq!(found, scrape.series().keys().cloned().collect::<Vec<_>>());
    assert!(found.len() > 80, "{found:?}");

    let some = cluster.column("SELECT DISTINCT metric FROM pgwh.metric_samples('pgwh_subscription_')");
    assert!(some.len() > 5 && some.iter().all(|metric| metric.starts_with("pgwh_subscription_")), "{some:?}");
    let documented =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/monitoring.md")).unwrap();
    for (name, family) in &scrape.families {
        let shown = [format!("`{name}`"), format!("`{name}_total`"), format!("`{name}_info`")];
        assert!(shown.iter().any(|name| documented.contains(name)), "{name} is documented");
        assert!(!family["help"].as_str().unwrap().is_empty(), "{name}");
        assert_ne!(family["type"], "unknown", "{name}");
    }
}

#[test]
fn members_of_pg_monitor_may_scrape_and_others_may_not() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("CREATE ROLE watcher LOGIN IN ROLE pg_monitor; CREATE ROLE stranger LOGIN");
    // It shows once the dispatcher has heard of it.
    cluster.as_role("watcher").wait_true("SELECT pgwh.metrics() LIKE '%subscription=\"s\"%'");
    let refusal = cluster.as_role("stranger").refused("SELECT pgwh.metrics()");
    assert_eq!(refusal.code, "42501");
}

/// A scrape must be cheap however many subscriptions there are: what it shows is bounded.
#[test]
fn a_scrape_is_no_larger_than_its_limit() {
    let cluster = Cluster::start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let count: usize =
        std::env::var("PGWH_SUBSCRIPTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    cluster.sql(&format!(
        "INSERT INTO pgwh.subscriptions (name, url, tables, event_types, headers, timeout, max_in_flight)
         SELECT 's' || n, 'https://nobody.invalid/' || n, '{{public.t}}', '{{insert}}', '{{}}', '15 s', 16
         FROM generate_series(1, {count}) n"
    ));
    let scrape = scrape_until(&cluster, "all of them", |scrape| {
        scrape.value("pgwh_database_subscriptions", &[]) == count as f64
    });
    assert_eq!(scrape.value("pgwh_database_subscriptions_together", &[]), (count - 500) as f64);
    let shown = scrape.families["pgwh_subscription_pending"]["samples"].as_array().unwrap().len();
    assert_eq!(shown, 501);
    let mut client = cluster.connect();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let (backend, scrapes) = (Process(pid), 20);
    let begin = backend.cpu();
    for _ in 0..scrapes {
        client.query_one("SELECT pgwh.metrics()", &[]).unwrap();
    }
    let took = (backend.cpu() - begin) / scrapes;
    eprintln!("a scrape of {count} subscriptions takes {took:?} of processor time");
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn states_of_subscriptions_and_checks_of_health_are_metrics() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)");
    for name in ["well", "gone"] {
        let table = if name == "well" { "t" } else { "u" };
        cluster.subscribe(&receiver, name, &format!("tables => '{{public.{table}}}'"));
    }
    cluster.subscribe(&receiver, "paused", "tables => '{public.t}'");
    cluster.sql("SELECT pgwh.pause('paused')");
    cluster.sql("DROP TABLE u");
    let state = |scrape: &Scrape, name: &str, state: &str| {
        scrape.get("pgwh_subscription_state", &[&of(name), &format!("state={state:?}")])
    };
    let scrape = scrape_until(&cluster, "the states", |scrape| {
        state(scrape, "gone", "error") == Some(1.0)
            && state(scrape, "well", "active") == Some(1.0)
            && state(scrape, "paused", "paused") == Some(1.0)
    });
    assert_eq!(state(&scrape, "gone", "active"), Some(0.0));
    assert_eq!(state(&scrape, "well", "error"), Some(0.0));
    let check = |scrape: &Scrape, name: &str| scrape.get("pgwh_health_ok", &[&format!("check={name:?}")]);
    assert_eq!(check(&scrape, "subscriptions valid"), Some(0.0));
    assert_eq!(check(&scrape, "preloaded"), Some(1.0));
    let checks = cluster.value("SELECT count(*) FROM pgwh.health()");
    assert_eq!(cluster.value("SELECT count(check_name) FROM pgwh.metric_samples('pgwh_health_ok')"), checks);
    cluster.sql("CREATE TABLE u (id int PRIMARY KEY)");
    scrape_until(&cluster, "well again", |scrape| {
        check(scrape, "subscriptions valid") == Some(1.0) && state(scrape, "gone", "active") == Some(1.0)
    });
}
