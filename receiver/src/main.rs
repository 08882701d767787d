//! `receiver`: shows webhooks as they come in, and misbehaves when told to.

mod label;
mod print;

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use receiver::{Options, Receiver, Reply, Script, Secret, Which};

const USAGE: &str = "\
Shows webhooks as they come in: method, path, event, body, and the check of the signature.
Misbehaves when told to.

    receiver [--listen 127.0.0.1:9000] [--secret whsec_…]… [--status STATUS]
             [--fail STATUS[:COUNT|:PERCENT%]] [--delay MS] [--keep 10000] [--quiet]
    make receiver RECEIVER='--listen 127.0.0.1:9910 --secret whsec_…'

  --listen   address and port, or a port of 127.0.0.1; port 0 picks a free one
  --secret   check signatures by this key, as SELECT pgwh.secret('<subscription>') gives it; a request that
             is not signed by it, or longer than five minutes ago, is answered 401. Of several subscriptions: several
  --status   answer all requests with this status
  --fail     503 fails all requests, 503:3 the first three attempts of each webhook, 503:20% one in five
  --delay    answer so many milliseconds later
  --keep     how many requests to keep for GET /_events
  --quiet    print no webhooks

While it runs:
    curl -d '{\"status\": 503, \"fail_first\": 3}' http://127.0.0.1:9000/_control
       words: status, retry_after, hang, close, reset, cut, cut_body, garbage, trickle_ms, delay_ms,
              fail_first, fail_first_of_each, percent, seed, key; {} is a good receiver again
    curl http://127.0.0.1:9000/_events        what came in, as JSON
    curl http://127.0.0.1:9000/_stats         how many, how fast
    curl -X DELETE http://127.0.0.1:9000/_events
";

/// What the command line asks for.
struct Wanted {
    options: Options,
    script: Script,
    secrets: Vec<Secret>,
    quiet: bool,
}

fn main() -> ExitCode {
    let wanted = match wanted(std::env::args().skip(1)) {
        Ok(Some(wanted)) => wanted,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("receiver: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let (listen, checks) = (wanted.options.listen, !wanted.secrets.is_empty());
    let receiver = match Receiver::with(wanted.options) {
        Ok(receiver) => receiver,
        Err(error) => {
            eprintln!("receiver: cannot listen at {listen}: {error}");
            return ExitCode::FAILURE;
        }
    };
    receiver.behave(wanted.script);
    receiver.check_signatures(wanted.secrets);
    if !wanted.quiet {
        let printer = print::Printer::new();
        receiver.observe(move |request, reply| printer.print(request, reply));
    }
    println!("receiver: listening at {}", receiver.url("/"));
    if !checks {
        println!("receiver: signatures are not checked without --secret; --help shows all options");
    }
    loop {
        std::thread::park();
    }
}

fn wanted(mut arguments: impl Iterator<Item = String>) -> Result<Option<Wanted>, String> {
    let listen = ([127, 0, 0, 1], 9000).into();
    let mut wanted = Wanted {
        options: Options { listen, keep: 10_000, control: true },
        script: Script::default(),
        secrets: Vec::new(),
        quiet: false,
    };
    let mut delay = Duration::ZERO;
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{option} wants a value"));
        match option.as_str() {
            "--listen" => wanted.options.listen = listen_address(&value()?)?,
            "--secret" => {
                let secret = Secret::parse(&value()?).ok_or("--secret wants whsec_ and base64")?;
                wanted.secrets.push(secret);
            }
            "--status" => {
                let status = value()?;
                let number =
                    status_of(&status).ok_or(format!("--status wants three digits, not {status}"))?;
                wanted.script = Script::always(Reply::status(number));
            }
            "--fail" => wanted.script = fail(&value()?)?,
            "--delay" => {
                let milliseconds = value()?.parse().map_err(|_| "--delay wants milliseconds")?;
                delay = Duration::from_millis(milliseconds);
            }
            "--keep" => wanted.options.keep = value()?.parse().map_err(|_| "--keep wants a number")?,
            "--quiet" => wanted.quiet = true,
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    wanted.script.delay = delay;
    Ok(Some(wanted))
}

/// Reads `127.0.0.1:9910`, `localhost:9910` and `9910`.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse() {
        return Ok(([127, 0, 0, 1], port).into());
    }
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or(format!("--listen wants address:port or a port, not {text}"))
}

/// Reads three digits.
fn status_of(text: &str) -> Option<u16> {
    text.parse().ok().filter(|status| (100..1000).contains(status))
}

/// Reads `503`, `503:3` and `503:20%`.
fn fail(text: &str) -> Result<Script, String> {
    let wrong = || format!("--fail wants STATUS[:COUNT|:PERCENT%], not {text}");
    let (status, which) = match text.split_once(':') {
        None => (text, Which::All),
        Some((status, share)) => match share.strip_suffix('%') {
            Some(percent) => {
                (status, Which::Percent { percent: percent.parse().map_err(|_| wrong())?, seed: 0 })
            }
            None => (status, Which::FirstOfEach(share.parse().map_err(|_| wrong())?)),
        },
    };
    Ok(Script::new(which, Reply::status(status_of(status).ok_or_else(wrong)?)))
}
