//! How a running receiver is told what to do, over HTTP.
//!
//! `POST /_control` with a JSON object sets the behaviour (see [`Script::from_json`]; `{}` is a good receiver
//! again), `GET /_events` gives the kept requests, `GET /_stats` the counts, `DELETE /_events` forgets both.

use serde_json::{Map, Value, json};

use crate::record::Record;
use crate::{Reply, Request, Script, Verdict};

/// The reply, if it is a control request; such are not recorded.
pub(crate) fn reply(request: &Request, record: &Record) -> Option<Reply> {
    let reply = match (request.method(), request.path()) {
        ("POST", "/_control") => match Script::from_json(&request.json()) {
            Ok(script) => {
                record.behave(Box::new(script));
                json_reply(200, &json!({"ok": true}))
            }
            Err(error) => json_reply(400, &json!({"error": error})),
        },
        ("GET", "/_events") => {
            json_reply(200, &record.requests().iter().map(|request| shown(request)).collect())
        }
        ("DELETE", "/_events") => {
            record.clear();
            json_reply(200, &json!({"ok": true}))
        }
        ("GET", "/_stats") => json_reply(200, &stats(record)),
        (_, path) if path.starts_with("/_") => json_reply(404, &json!({"error": "no such control"})),
        _ => return None,
    };
    Some(reply)
}

fn stats(record: &Record) -> Value {
    let stats = record.stats();
    let seconds = match (stats.first, stats.last) {
        (Some(first), Some(last)) => (last - first).as_secs_f64(),
        _ => 0.0,
    };
    json!({
        "requests": stats.requests,
        "faults": stats.faults,
        "connections": stats.connections,
        "seconds": seconds,
        "per_second": if seconds > 0.0 { stats.requests as f64 / seconds } else { 0.0 },
    })
}

fn shown(request: &Request) -> Value {
    let headers: Map<_, _> =
        request.headers().map(|(name, value)| (name.to_ascii_lowercase(), value.into())).collect();
    let body = match request.json() {
        Value::Null => String::from_utf8_lossy(request.body()).into(),
        json => json,
    };
    json!({
        "method": request.method(),
        "path": request.path(),
        "connection": request.connection(),
        "headers": headers,
        "signature": request.verdict().map(Verdict::words),
        "body": body,
    })
}

fn json_reply(status: u16, value: &Value) -> Reply {
    Reply::status(status).header("content-type", "application/json").body(value.to_string())
}
