//! Tunnels through a proxy, to servers that are reached by https (RFC 9110, section 9.3.6).

use super::event_loop::answer::Fault;
use super::proxy::ProxyServer;
use super::server::Server;

/// The longest head of an answer to CONNECT, in bytes.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// The most of a status line that an error repeats, in characters.
const MAX_SHOWN_STATUS: usize = 80;

/// A request to the proxy for a connection to a server, and its answer.
pub(super) struct Tunnel {
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
}

impl Tunnel {
    /// Asks for a connection to `server`.
    pub fn new(proxy: &ProxyServer, server: &Server) -> Tunnel {
        let target = format!("{}:{}", server.host, server.port);
        let authorization =
            proxy.authorization.iter().map(|value| format!("proxy-authorization: {value}\r\n"));
        let request = format!(
            "CONNECT {target} HTTP/1.1\r\nhost: {target}\r\nuser-agent: pgstream_hooks/{}\r\n{}\r\n",
            env!("CARGO_PKG_VERSION"),
            authorization.collect::<String>()
        );
        Tunnel { request: request.into_bytes(), sent: 0, answer: Vec::new() }
    }

    /// What has not been sent yet.
    pub fn rest(&self) -> &[u8] {
        &self.request[self.sent..]
    }

    /// So many bytes more have been sent.
    pub fn advance(&mut self, amount: usize) {
        self.sent = (self.sent + amount).min(self.request.len());
    }

    /// Takes what the proxy says next. True once the connection leads to the server.
    pub fn feed(&mut self, bytes: &[u8], proxy: &ProxyServer) -> Result<bool, Fault> {
        self.answer.extend_from_slice(bytes);
        loop {
            let end = head_end(&self.answer);
            let known = &self.answer[..end.unwrap_or(self.answer.len())];
            let is_http = known.iter().zip(b"HTTP/1.").all(|(byte, expected)| byte == expected);
            if !is_http {
                return Err(proxy.fault(
                    "does not answer in HTTP/1.1; it may be no HTTP proxy, or one that expects https",
                ));
            }
            let Some(end) = end else {
                if self.answer.len() > MAX_HEAD_BYTES {
                    return Err(proxy
                        .fault(format!("answered CONNECT with a head larger than {MAX_HEAD_BYTES} bytes")));
                }
                return Ok(false);
            };
            match status_of(known) {
                Some(100..=199) => drop(self.answer.drain(..end)),
                Some(200..=299) if self.answer.len() == end => return Ok(true),
                Some(200..=299) => {
                    return Err(proxy.fault("sent something before the endpoint could have said anything"));
                }
                Some(status @ (401 | 407)) => return Err(proxy.wants_user(status)),
                Some(_) => {
                    return Err(
                        proxy.fault(format!("refused to connect to the endpoint: {}", status_line(known)))
                    );
                }
                None => return Err(proxy.fault("answered CONNECT with something that is not valid HTTP")),
            }
        }
    }
}

/// Where a head ends, with the empty line that ends it.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let lines = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|at| at + 4);
    let bare = bytes.windows(2).position(|bytes| bytes == b"\n\n").map(|at| at + 2);
    lines.into_iter().chain(bare).min()
}

fn status_of(head: &[u8]) -> Option<u16> {
    let (version, rest) = head.split_at_checked(8)?;
    let digits = rest.get(1..4).filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let is_ended = rest.get(4).is_none_or(|byte| b" \r\n".contains(byte));
    let is_line = version[7].is_ascii_digit() && rest[0] == b' ' && is_ended;
    is_line.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

/// Status and reason, as far as they can be shown.
fn status_line(head: &[u8]) -> String {
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let line = String::from_utf8_lossy(line.get(9..).unwrap_or_default());
    line.chars().filter(|c| !c.is_control()).take(MAX_SHOWN_STATUS).collect()
}
