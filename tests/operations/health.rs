//! Every check of `pgwh.health()` can fail, and a test sees it fail: here, or where what it checks is tested.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use harness::{Cluster, Setup, source_with_test};

/// The test that sees each check fail.
const BAD_SIDES: &[(&str, &str, &str)] = &[
    ("preloaded", "operations/health", "a_library_that_is_no_longer_preloaded_is_reported"),
    ("wal_level", "operations/lifecycle", "a_wal_level_too_low_warns_and_waits_and_goes_on_when_mended"),
    ("worker running", "operations/workers", "who_captures_keeps_its_processes_and_the_next_is_refused"),
    ("slot present and valid", "journal/slots", "a_slot_that_needs_too_much_log_is_made_anew"),
    ("slot plugin", "journal/slots", "a_slot_of_our_name_that_another_program_made_is_told_of"),
    ("retained WAL", "journal/slots", "a_transaction_that_retains_wal_is_named_with_the_fix"),
    ("locks", "neighbours/locks", "a_lock_that_stops_the_workers_is_named_with_the_fix"),
    ("schema version", "operations/upgrades", "a_newer_library_waits_for_the_update_of_its_sql"),
    ("deferred work", "neighbours/locks", "a_lock_on_a_row_stops_nothing_but_its_subscription"),
    ("standbys", "operations/failover", "nothing_is_sent_that_standbys_must_have_first_and_have_not"),
    ("gaps", "operations/failover", "a_standby_without_the_slot_takes_over_with_a_gap"),
    ("free worker processes", "operations/workers", "no_process_for_a_transform_or_backfill_is_said"),
    (
        "logical subscriptions",
        "neighbours/other_nodes",
        "a_logical_subscription_that_fails_is_named_by_health",
    ),
    ("notices", "delivery/system_events", "a_system_event_that_cannot_be_written_stops_nothing"),
    ("owner", "security/access", "an_owner_who_is_no_superuser_any_more_stops_nothing"),
    ("publications", "neighbours/replication", "a_stopped_subscriber_goes_on_with_the_extension_there"),
    ("settings valid", "operations/health", "a_setting_that_is_not_in_effect_is_reported"),
    ("certificates", "operations/health", "a_certificate_that_ends_soon_is_reported"),
    ("copy detection", "operations/snapshots", "an_identity_counts_from_outside_of_the_data_directory_only"),
    ("subscriptions valid", "operations/status", "health_says_what_is_wrong_and_what_to_do"),
    ("dead letters", "operations/status_problems", "dead_letters_are_named_until_they_are_redelivered"),
    ("endpoints reachable lately", "operations/status", "health_says_what_is_wrong_and_what_to_do"),
    ("clock", "operations/health", "a_clock_that_has_gone_back_is_reported"),
];

fn stage() -> Cluster {
    ready(Setup::new())
}

fn ready(setup: Setup) -> Cluster {
    let cluster = setup.start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    cluster
}

#[test]
fn each_check_has_a_test_that_sees_it_fail() {
    let mut checks = stage().column("SELECT check_name FROM pgwh.health()");
    let mut listed: Vec<&str> = BAD_SIDES.iter().map(|(check, ..)| *check).collect();
    checks.sort();
    listed.sort();
    assert_eq!(checks, listed);
    for (check, file, test) in BAD_SIDES {
        let source = source_with_test(&format!("{file}.rs"), test);
        let names_it =
            [format!("\"{check}\""), format!("'{check}'")].iter().any(|name| source.contains(name));
        assert!(names_it, "{check} in {file}");
    }
}

#[track_caller]
fn fails(cluster: &Cluster, check: &str, detail: &str) {
    cluster.wait_true(&format!(
        "SELECT NOT ok AND position({} IN detail) > 0 AND hint <> '' FROM pgwh.health() WHERE check_name = '{check}'",
        quoted(detail)
    ));
}

#[track_caller]
fn passes(cluster: &Cluster, check: &str) {
    cluster.wait_true(&format!("SELECT ok AND hint IS NULL FROM pgwh.health() WHERE check_name = '{check}'"));
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Each line of `postgresql.conf` is wrong in another way; a later line with a right value mends it.
#[test]
fn a_setting_that_is_not_in_effect_is_reported() {
    let cluster = stage();
    passes(&cluster, "settings valid");
    for (line, detail, right) in [
        ("pgwh.retention = 'soon'", "pgwh.retention cannot be 'soon'", "pgwh.retention = '1d'"),
        ("pgwh.retention = '0'", "pgwh.retention cannot be '0'", "pgwh.retention = '1d'"),
        ("pgwh.max_memory = '9999TB'", "pgwh.max_memory cannot be '9999TB'", "pgwh.max_memory = '64MB'"),
        ("pgwh.enabled = maybe", "pgwh.enabled cannot be 'maybe'", "pgwh.enabled = on"),
        ("pgwh.log_level = loud", "pgwh.log_level cannot be 'loud'", "pgwh.log_level = warning"),
        (
            "pgwh.allowed_networks = 'localhost'",
            "pgwh.allowed_networks cannot be 'localhost'",
            "pgwh.allowed_networks = '127.0.0.0/8'",
        ),
        ("pgwh.slot_name = 'No Name'", "pgwh.slot_name cannot be 'No Name'", "pgwh.slot_name = ''"),
    ] {
        cluster.set(line);
        cluster.reload();
        fails(&cluster, "settings valid", detail);
        cluster.set(right);
        cluster.reload();
        passes(&cluster, "settings valid");
    }
    let configuration = cluster.data().join("postgresql.conf");
    let well = std::fs::read_to_string(&configuration).unwrap();
    for (line, detail) in [
        ("pgwh.alowed_networks = '127.0.0.0/8'", "there is no setting pgwh.alowed_networks (line "),
        ("PGWH.Retention = 'soon'", "PGWH.Retention cannot be 'soon'"),
        ("pgwh.secret_file = 'a'", "there is no setting pgwh.secret_file"),
        ("pgstream_hooks.retention = '1d'", "begin with pgwh., and not as pgstream_hooks.retention"),
        ("alowed_networks = '127.0.0.0/8'", "there is no setting alowed_networks, so that no change"),
        ("pgwh.allowed_networks = 127.0.0.0/8", "so that no change of the files is in effect"),
        (
            "pgwh.server_identity = 'db1'",
            "pgwh.server_identity is in effect when the server has been restarted",
        ),
    ] {
        cluster.set(line);
        cluster.reload();
        fails(&cluster, "settings valid", detail);
        std::fs::write(&configuration, &well).unwrap();
        cluster.reload();
        passes(&cluster, "settings valid");
    }
    // What a session's language calls the errors makes no difference, and who may call health() sees it, too.
    cluster.sql("CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO app; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO app; GRANT SELECT ON ALL TABLES IN SCHEMA pgwh, pgwh_internal TO app");
    cluster.set("pgwh.retention = 'soon'");
    cluster.reload();
    cluster.as_role("app").wait_true(
        "SELECT NOT ok AND detail LIKE 'pgwh.retention cannot be%' FROM pgwh.health() WHERE check_name = 'settings valid'",
    );
    // Of a server that was started so, as well.
    cluster.restart(harness::Stop::Fast);
    fails(&cluster, "settings valid", "pgwh.retention cannot be 'soon'");
    cluster.set("pgwh.retention = '1d'");
    cluster.reload();
    passes(&cluster, "settings valid");
    cluster.each(&["ALTER SYSTEM SET pgwh.enabled = off", "SELECT pg_reload_conf()"]);
    fails(&cluster, "settings valid", "pgwh.enabled is off");
}

#[test]
fn an_unusable_file_of_a_setting_is_reported() {
    let cluster = stage();
    let path = |name: &str| cluster.data().parent().unwrap().join(name).to_string_lossy().into_owned();
    let key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n";
    let good_keys = cluster.write_private("keys", key);
    let open_keys = cluster.write_private("open", key);
    std::fs::set_permissions(&open_keys, std::fs::Permissions::from_mode(0o644)).unwrap();
    let no_keys = cluster.write_private("short", "c2hvcnQ=\n");
    let no_certificates = cluster.write_private("empty.pem", "no certificate\n");
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let good_certificates = cluster.write_private("ca.pem", &certificate.pem());
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    let cases = [
        ("pgwh.encryption_key_file", path("no-such-file"), text(good_keys.clone())),
        ("pgwh.encryption_key_file", text(open_keys), text(good_keys.clone())),
        ("pgwh.encryption_key_file", text(no_keys), text(good_keys.clone())),
        ("pgwh.encryption_key_file", text(cluster.data()), text(good_keys)),
        ("pgwh.ca_file", path("no-such-file"), text(good_certificates.clone())),
        ("pgwh.ca_file", text(no_certificates), text(good_certificates.clone())),
        ("pgwh.ca_file", text(cluster.data()), text(good_certificates)),
    ];
    let tried: BTreeSet<&str> = cases.iter().map(|(setting, ..)| *setting).collect();
    let settings =
        cluster.column("SELECT name FROM pg_settings WHERE name ~ '^pgwh\\..*_(file|path|directory)$'");
    assert_eq!(settings.iter().map(String::as_str).collect::<BTreeSet<_>>(), tried, "each is tried");
    for (setting, wrong, right) in cases {
        let set = |file: &str| {
            cluster.each(&[&format!("ALTER SYSTEM SET {setting} = '{file}'"), "SELECT pg_reload_conf()"]);
            cluster.wait_true(&format!("SELECT current_setting('{setting}') = '{file}'"));
        };
        set(&wrong);
        fails(&cluster, "settings valid", &format!("{setting} \"{wrong}\" cannot be used: "));
        set(&right);
        passes(&cluster, "settings valid");
    }
}

/// A certificate that ends after so many days, or did before so many, and its key.
fn certificate(days: i64) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let now = std::time::SystemTime::now();
    let distance = std::time::Duration::from_secs(days.unsigned_abs() * 86_400);
    let end = if days < 0 { now - distance } else { now + distance };
    parameters.not_after = end.into();
    (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_certificate_that_ends_soon_is_reported() {
    let cluster = stage();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let with = |days: i64| {
        let (certificate, key) = certificate(days);
        certificate + &key
    };
    cluster.sql(&format!(
        "SELECT pgwh.subscribe('https://a.example/', name => 's', tables => '{{t}}', client_certificate => '{}')",
        with(20)
    ));
    passes(&cluster, "certificates");
    for (days, detail) in
        [(13, "s: its client certificate ends on "), (-1, "s: its client certificate has expired on ")]
    {
        cluster.sql(&format!("UPDATE pgwh.secrets SET client_certificate = '{}'", with(days)));
        fails(&cluster, "certificates", detail);
        let hint = cluster.value("SELECT hint FROM pgwh.health() WHERE check_name = 'certificates'");
        let command = hint.split(';').next().unwrap().replace("new certificate and key in PEM", &with(20));
        cluster.sql(&command);
        passes(&cluster, "certificates");
    }
    // The first of a chain to end is what counts.
    let (certificate_of_authority, _) = certificate(3);
    cluster.sql(&format!(
        "UPDATE pgwh.secrets SET client_certificate = '{}{certificate_of_authority}'",
        with(20)
    ));
    fails(&cluster, "certificates", "s: its client certificate ends on ");
    // Of those who have no part in it, nobody hears of it.
    cluster.sql("CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO app; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO app; GRANT SELECT ON ALL TABLES IN SCHEMA pgwh, pgwh_internal TO app; REVOKE SELECT ON pgwh.secrets FROM app");
    assert_eq!(
        cluster.as_role("app").value("SELECT ok FROM pgwh.health() WHERE check_name = 'certificates'"),
        "t"
    );
    cluster.sql("UPDATE pgwh.subscriptions SET enabled = false");
    passes(&cluster, "certificates");
    // What is pinned.
    let (good, bad) = (certificate(20).0, certificate(-3).0);
    let file = cluster.write_private("pinned.pem", &format!("{good}{bad}"));
    cluster.set(&format!("pgwh.ca_file = '{}'", file.display()));
    cluster.reload();
    fails(&cluster, "certificates", "1 of 2 certificates in pgwh.ca_file have expired or end within 14 days");
    cluster.write_private("pinned.pem", &good);
    passes(&cluster, "certificates");
}

#[test]
fn a_library_that_is_no_longer_preloaded_is_reported() {
    let cluster = stage();
    passes(&cluster, "preloaded");
    cluster.set("shared_preload_libraries = 'auto_explain'");
    cluster.restart(harness::Stop::Fast);
    fails(&cluster, "preloaded", "loaded by this session only");
    let hint = cluster.value("SELECT hint FROM pgwh.health() WHERE check_name = 'preloaded'");
    assert_eq!(
        hint,
        "ALTER SYSTEM SET shared_preload_libraries = 'auto_explain', 'pgstream_hooks'; and restart the server"
    );
    cluster.sql(hint.split_inclusive(';').next().unwrap());
    cluster.restart(harness::Stop::Fast);
    passes(&cluster, "preloaded");
    assert_eq!(cluster.value("SHOW shared_preload_libraries"), "auto_explain, pgstream_hooks");
}

#[test]
fn a_clock_that_has_gone_back_is_reported() {
    let cluster = ready(Setup::new().own_clock());
    passes(&cluster, "clock");
    cluster.shift_clock("-1d");
    fails(&cluster, "clock", "it is ");
    cluster.shift_clock("+0");
    passes(&cluster, "clock");
}
