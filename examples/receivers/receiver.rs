//! A receiver of pgstream_hooks in Rust: keeps a copy of the tables that it hears of.
//!
//!     WEBHOOK_SECRET=whsec_… cargo run --package receiver --example minimal -- 8000
//!
//! POST takes webhooks; GET shows the rows. Besides the standard library it takes the crates `base64`, `hmac`, `sha2` and
//! `serde_json`.

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value};
use sha2::Sha256;

/// Whether the request is signed by our key, and not an old one that somebody sends again.
fn genuine(secret: &[u8], headers: &HashMap<String, String>, body: &[u8]) -> bool {
    let header = |name: &str| headers.get(name).map_or("", String::as_str);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let fresh = header("webhook-timestamp").parse::<u64>().is_ok_and(|then| now.abs_diff(then) < 300);
    // While a key is changed there are two signatures.
    fresh
        && header("webhook-signature").split(' ').any(|part| {
            let Some(signature) = part.strip_prefix("v1,").and_then(|text| STANDARD.decode(text).ok()) else {
                return false;
            };
            let Ok(mac) = Hmac::<Sha256>::new_from_slice(secret) else { return false };
            let signed = format!("{}.{}.", header("webhook-id"), header("webhook-timestamp"));
            mac.chain_update(signed).chain_update(body).verify_slice(&signature).is_ok()
        })
}

/// A table, by schema and name, and a row of it, by its key.
type Place = (String, String);

/// Rows by table and key. In earnest this is a database: write rows and last ids in one transaction.
#[derive(Default)]
struct Copy {
    rows: HashMap<Place, Map<String, Value>>,
    /// Id of the last event of each row, also of those that are gone.
    last: HashMap<Place, String>,
    /// Id of the last truncate of each table.
    emptied: HashMap<String, String>,
}

impl Copy {
    /// Applies an event, unless a newer one of its row was here before: ids sort in commit order.
    fn apply(&mut self, event: &Value) {
        let data = &event["data"];
        let (id, action) =
            (data["id"].as_str().unwrap_or_default(), data["action"].as_str().unwrap_or_default());
        let table = format!("{}.{}", data["schema"], data["table"]);
        let emptied = self.emptied.get(&table).map_or("", String::as_str);
        match action {
            "truncate" if id > emptied => {
                self.emptied.insert(table.clone(), id.to_owned());
                self.rows.retain(|place, _| place.0 != table || self.last[place].as_str() >= id);
            }
            "insert" | "update" | "delete" | "read" if !data["key"].is_null() => {
                let place = (table.clone(), data["key"].to_string());
                if id <= emptied || !self.is_news(&place, id) {
                    return;
                }
                let old = if data["old_key"].is_null() {
                    place.clone()
                } else {
                    (table, data["old_key"].to_string())
                };
                let mut row = Map::new();
                if self.is_news(&old, id) {
                    row = self.rows.remove(&old).unwrap_or_default();
                    self.last.insert(old, id.to_owned());
                }
                self.last.insert(place.clone(), id.to_owned());
                if action != "delete" {
                    // Large values that an update left alone are not in the record.
                    row.retain(|name, _| {
                        data["unchanged"]
                            .as_array()
                            .is_some_and(|names| names.contains(&name.as_str().into()))
                    });
                    row.extend(data["record"].as_object().cloned().unwrap_or_default());
                    self.rows.insert(place, row);
                }
            }
            _ => return,
        }
        println!("{action} {} {}", data["table"].as_str().unwrap_or_default(), data["key"]);
    }

    fn is_news(&self, place: &Place, id: &str) -> bool {
        self.last.get(place).is_none_or(|last| id > last.as_str())
    }
}

/// Answers the requests of a connection. In earnest this is a handler of your web framework.
fn serve(stream: TcpStream, secret: &[u8], copy: &Mutex<Copy>) -> Result<(), Box<dyn Error>> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let (mut first, mut headers) = (String::new(), HashMap::new());
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(Ok(0), |length| length.parse())?;
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;

        let mut copy = copy.lock().map_err(|_| "a thread died")?;
        let answer = if first.starts_with("GET ") {
            let rows = serde_json::to_string(&copy.rows.values().collect::<Vec<_>>())?;
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{rows}", rows.len())
        } else if !genuine(secret, &headers, &body) {
            "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n".to_owned()
        } else {
            match serde_json::from_slice(&body)? {
                Value::Array(events) => events.iter().for_each(|event| copy.apply(event)),
                event => copy.apply(&event),
            }
            // Only now: what is answered with 2xx is not sent again.
            "HTTP/1.1 204 No Content\r\n\r\n".to_owned()
        };
        stream.write_all(answer.as_bytes())?;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let secret = std::env::var("WEBHOOK_SECRET")?;
    let secret: Arc<[u8]> = STANDARD.decode(secret.trim_start_matches("whsec_"))?.into();
    let port = std::env::args().nth(1).ok_or("which port?")?;
    let copy = Arc::new(Mutex::new(Copy::default()));
    for stream in TcpListener::bind(format!("127.0.0.1:{port}"))?.incoming() {
        let (secret, copy, stream) = (secret.clone(), copy.clone(), stream?);
        std::thread::spawn(move || serve(stream, &secret, &copy).map_err(|error| eprintln!("{error}")));
    }
    Ok(())
}
