//! Every refusal of the extension is provoked by a test.

use std::path::Path;

use harness::source_with_test;

/// Refusals that other tests provoke, which expect the code or the hint and not the words: the file and the test.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    (
        "all replication slots are in use, so that changes of this database cannot be captured",
        "operations/workers.rs",
        "copies_that_send_nothing_leave_their_slots",
    ),
    (
        "are not in the log of this node",
        "neighbours/other_nodes.rs",
        "a_table_of_citus_is_refused_when_subscribing",
    ),
    (
        "cannot be read from this node",
        "neighbours/other_nodes.rs",
        "a_table_that_is_distributed_later_is_named",
    ),
    (
        "changes are not being captured yet",
        "operations/lifecycle.rs",
        "a_wal_level_too_low_warns_and_waits_and_goes_on_when_mended",
    ),
    (
        "changes are not being captured yet, and this transaction keeps capture from starting",
        "operations/lifecycle.rs",
        "a_transaction_that_blocks_the_slot_is_named_by_health",
    ),
    (
        "events of that time are not kept any more",
        "replay/main.rs",
        "a_replay_beyond_retention_is_refused_with_the_earliest",
    ),
    // The server has its own message for a setting, and ours as DETAIL.
    ("invalid host in", "security/https/proxies.rs", "a_bad_proxy_is_refused_and_its_hint_is_right"),
    ("invalid network in", "docs/mistakes/mod.rs", "mistakes_in_settings_get_the_recorded_messages"),
    ("invalid proxy in", "security/https/proxies.rs", "a_bad_proxy_is_refused_and_its_hint_is_right"),
    (
        "library and SQL of pgstream_hooks are of different versions",
        "operations/upgrades.rs",
        "a_newer_library_waits_for_the_update_of_its_sql",
    ),
    (
        "this server is a standby, which captures nothing",
        "operations/failover.rs",
        "on_a_standby_workers_rest_and_calls_say_so",
    ),
    (
        "there are too few free worker processes to capture changes of this database",
        "operations/workers.rs",
        "who_captures_keeps_its_processes_and_the_next_is_refused",
    ),
];

/// Refusals that no test can provoke.
const UNPROVOKED: &[&str] = &[
    "something went wrong inside pgstream_hooks",
    // Headers are checked before, as those of a subscription or of a route.
    "the request cannot be made",
    // A decoder that does nothing for twenty seconds.
    "the database has changes that are not captured yet",
];

/// The messages of refusals in a source file: what follows an SQLSTATE in the table of errors, and what begins other refusals.
fn messages_of(source: &str) -> Vec<String> {
    let begins = ["ERRCODE_", "refused(", "Problem::new("];
    let mut found = Vec::new();
    for (at, begin) in begins.iter().flat_map(|begin| source.match_indices(begin)) {
        let mut rest = &source[at + begin.len()..];
        if begin == "ERRCODE_" {
            rest = match rest.split_once(',') {
                Some((code, rest))
                    if code.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit()) =>
                {
                    rest
                }
                _ => continue,
            };
        }
        let rest = rest.trim_start();
        let rest = rest.strip_prefix("format!(").unwrap_or(rest).trim_start();
        let Some(literal) = rest.strip_prefix('"') else { continue };
        let literal = literal.split('"').next().unwrap_or_default();
        // The longest piece between values that are filled in.
        let piece = literal.split(['{', '}']).step_by(2).max_by_key(|piece| piece.len()).unwrap_or_default();
        if piece.trim().len() > 5 {
            found.push(piece.trim().to_owned());
        }
    }
    found
}

/// Texts of all files below a directory that have such an ending.
fn texts_below(directory: &Path, endings: &[&str], leave_out: &str) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" {
            text += &texts_below(&path, endings, leave_out);
        } else if name != leave_out && endings.iter().any(|ending| name.ends_with(ending)) {
            text += &std::fs::read_to_string(&path).unwrap();
        }
    }
    text
}

#[test]
fn every_refusal_is_provoked_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut messages = messages_of(&std::fs::read_to_string(root.join("src/error.rs")).unwrap());
    for room in ["src/api", "src/http"] {
        messages.extend(messages_of(&texts_below(&root.join(room), &[".rs"], "")));
    }
    messages.sort();
    messages.dedup();
    assert!(messages.len() > 50, "{messages:?}");
    let provoked = texts_below(&root.join("tests"), &[".rs", ".txt", ".out"], "refusals.rs");
    let missing: Vec<&String> = messages
        .iter()
        .filter(|message| !provoked.contains(*message) && !UNPROVOKED.contains(&message.as_str()))
        .filter(|message| !ELSEWHERE.iter().any(|(known, ..)| known == message))
        .collect();
    for (message, file, test) in ELSEWHERE {
        source_with_test(file, test);
        assert!(messages.iter().any(|known| known == message), "{message} is no refusal any more");
    }
    assert!(missing.is_empty(), "no test expects: {missing:#?}");
}
