//! Requests are signed as Standard Webhooks has it: the official library of another language says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use harness::{Cluster, PATIENCE, Receiver, Request, Script, eventually};

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    (cluster, Receiver::start().unwrap())
}

/// Python with the official library, in a directory of its own under target; installed when it is not there.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    // Whoever else asks meanwhile waits until it is there.
    PYTHON.get_or_init(installed_python)
}

fn installed_python() -> PathBuf {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/standardwebhooks");
    let python = home.join("bin/python");
    if !home.join("ready").exists() {
        let run = |program: &Path, arguments: &[&str]| {
            let done = Command::new(program).args(arguments).stdin(Stdio::null()).status();
            assert!(
                done.as_ref().is_ok_and(|status| status.success()),
                "{program:?} {arguments:?}: {done:?}"
            );
        };
        // A fresh machine may have no Python, or one that cannot make such directories.
        let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/packages");
        let made = || Command::new("python3").args(["-c", "import venv, ensurepip"]).output();
        if !made().is_ok_and(|output| output.status.success()) {
            run(&packages, &["python3", "python3-venv"]);
        }
        run(Path::new("python3"), &["-m", "venv", &home.to_string_lossy()]);
        run(
            &python,
            &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "standardwebhooks==1.1.0"],
        );
        std::fs::write(home.join("ready"), "").unwrap();
    }
    python
}

/// Whether the official library accepts the request with that secret.
fn official_library_accepts(secret: &str, request: &Request) -> bool {
    let headers: serde_json::Map<String, serde_json::Value> =
        request.headers().map(|(name, value)| (name.to_owned(), value.to_string().into())).collect();
    let script = "import base64, json, sys\nfrom standardwebhooks.webhooks import Webhook, WebhookVerificationError\n\
                  given = json.load(sys.stdin)\n\
                  try: Webhook(given['secret']).verify(base64.b64decode(given['body']), given['headers'])\n\
                  except WebhookVerificationError as error: sys.exit(7)\n";
    let given = serde_json::json!({ "secret": secret, "headers": headers, "body": base64(request.body()) });
    let mut python =
        Command::new(python()).args(["-c", script]).stdin(Stdio::piped()).spawn().expect("python runs");
    serde_json::to_writer(python.stdin.take().unwrap(), &given).unwrap();
    match python.wait().unwrap().code() {
        Some(0) => true,
        Some(7) => false,
        other => panic!("the library ended with {other:?}"),
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn signatures(request: &Request) -> Vec<String> {
    request.header("webhook-signature").unwrap().split(' ').map(str::to_owned).collect()
}

#[test]
fn the_official_library_accepts_what_is_sent_and_nothing_else() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    let secret = cluster.value("SELECT pgwh.secret('s')");
    cluster.sql("INSERT INTO t VALUES (1, 'ünïcode \\ \"quoted\" 😀')");
    let request = cluster.delivered(&receiver, "s").remove(0).request;
    assert!(official_library_accepts(&secret, &request));
    let other = cluster.value("SELECT pgwh.generate_secret()");
    assert!(!official_library_accepts(&other, &request));
}

#[test]
fn both_keys_sign_while_a_secret_rotates() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    let old = cluster.value("SELECT pgwh.secret('s')");
    let new = cluster.value("SELECT pgwh.rotate_secret('s', overlap => '8 s')");
    assert_eq!(cluster.value("SELECT pgwh.secret('s')"), new);
    assert_ne!(old, new);
    cluster.sql("INSERT INTO t VALUES (1)");
    let request = cluster.delivered(&receiver, "s").remove(0).request;
    assert_eq!(signatures(&request).len(), 2);
    assert!(official_library_accepts(&old, &request) && official_library_accepts(&new, &request));
    // The old one's time ends by itself.
    let mut id = 1;
    let request = eventually("one signature", || {
        id += 1;
        cluster.sql(&format!("INSERT INTO t VALUES ({id})"));
        let request = cluster.delivered(&receiver, "s").pop().unwrap().request;
        (signatures(&request).len() == 1).then_some(request)
    });
    assert!(official_library_accepts(&new, &request) && !official_library_accepts(&old, &request));
    // No overlap ends the old one at once.
    let newest = cluster.value("SELECT pgwh.rotate_secret('s', overlap => '0')");
    cluster.sql("INSERT INTO t VALUES (0)");
    let request = cluster.delivered(&receiver, "s").pop().unwrap().request;
    assert_eq!(signatures(&request).len(), 1);
    assert!(official_library_accepts(&newest, &request));
}

#[test]
fn an_asymmetric_signature_needs_no_secret_at_receivers() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "signature => 'v1a'");
    assert!(cluster.value("SELECT pgwh.secret('s')").starts_with("whsk_"));
    let public = cluster.value("SELECT pgwh.public_key('s')");
    assert!(public.starts_with("whpk_"));
    cluster.sql("INSERT INTO t VALUES (1)");
    let request = cluster.delivered(&receiver, "s").remove(0).request;
    let signature = signatures(&request).remove(0);
    assert!(verifies(&public, &request, &signature));
    // A new key is of the same kind, and the old one signs, too.
    cluster.sql("SELECT pgwh.rotate_secret('s')");
    let renewed = cluster.value("SELECT pgwh.public_key('s')");
    assert_ne!(public, renewed);
    cluster.sql("INSERT INTO t VALUES (2)");
    let request = cluster.delivered(&receiver, "s").pop().unwrap().request;
    let both = signatures(&request);
    assert!(verifies(&renewed, &request, &both[0]) && verifies(&public, &request, &both[1]));
    // Subscribing again keeps the key; asking for the other kind makes another.
    cluster.subscribe(&receiver, "s", "");
    assert_eq!(cluster.value("SELECT pgwh.public_key('s')"), renewed);
    cluster.subscribe(&receiver, "s", "signature => 'v1'");
    assert_eq!(cluster.value("SELECT pgwh.public_key('s')"), "");
    assert!(cluster.value("SELECT pgwh.secret('s')").starts_with("whsec_"));
    let refusal = cluster.refused(
        "SELECT pgwh.subscribe('http://127.0.0.1:1/', signature => 'v1a', secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')",
    );
    assert_eq!(refusal.code, "22023");
    assert_eq!(
        cluster.refused("SELECT pgwh.subscribe('http://127.0.0.1:1/', signature => 'v2')").code,
        "22023"
    );
}

fn verifies(public: &str, request: &Request, signature: &str) -> bool {
    use base64::Engine;
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let key = ring::signature::UnparsedPublicKey::new(
        &ring::signature::ED25519,
        decode(public.strip_prefix("whpk_").unwrap()),
    );
    let head = format!("{}.{}.", request.webhook_id(), request.header("webhook-timestamp").unwrap());
    let message = [head.as_bytes(), request.body()].concat();
    signature.strip_prefix("v1a,").is_some_and(|signature| key.verify(&message, &decode(signature)).is_ok())
}

#[test]
fn each_attempt_has_a_timestamp_of_its_own() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "retry_schedule => '{2 s}'");
    let secret = cluster.value("SELECT pgwh.secret('s')");
    receiver.behave(Script::fail_first(1, 503));
    cluster.sql("INSERT INTO t VALUES (1)");
    let requests = receiver.wait_for(2, PATIENCE).unwrap();
    let stamps: Vec<u64> = requests
        .iter()
        .map(|request| request.header("webhook-timestamp").unwrap().parse().unwrap())
        .collect();
    assert!(stamps[1] > stamps[0], "{stamps:?}");
    assert!(requests[1].arrived() - requests[0].arrived() >= Duration::from_secs(1));
    assert_ne!(signatures(&requests[0]), signatures(&requests[1]));
    assert!(requests.iter().all(|request| official_library_accepts(&secret, request)));
}
