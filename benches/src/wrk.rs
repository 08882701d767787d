//! What the receiver takes from somebody who only sends: POSTs of a typical body by `wrk`.

use std::process::Command;

use harness::Receiver;

/// As long as the other figures take.
const SECONDS: u32 = 5;

/// POSTs a second through so many connections; none where there is no `wrk`.
pub(crate) fn rate(connections: u32) -> Option<f64> {
    let receiver = Receiver::with(receiver::Options { keep: 0, ..Default::default() }).expect("a receiver");
    let script = std::env::temp_dir().join(format!("pgwh-wrk-{}.lua", std::process::id()));
    let body = format!(r#"{{"type":"public.orders.insert","data":{{"filling":"{}"}}}}"#, "x".repeat(400));
    let lua = format!(
        "wrk.method = \"POST\"\nwrk.headers[\"content-type\"] = \"application/json\"\nwrk.body = '{body}'\n"
    );
    std::fs::write(&script, lua).expect("a script");
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{SECONDS}s"), "-s"])
        .arg(&script)
        .arg(receiver.url("/"))
        .output();
    let _ = std::fs::remove_file(&script);
    let Ok(output) = output else {
        println!("    (no wrk here, nothing to compare with)");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:")?.trim().parse().ok())
}
