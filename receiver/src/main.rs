//! `receiver`: shows webhooks as they come in, and misbehaves when told to.

mod print;

use std::process::ExitCode;
use std::time::Duration;

use receiver::{Options, Receiver, Reply, Script, Secret, Which};

const USAGE: &str = "\
Shows webhooks as they come in, and misbehaves when told to.

    receiver [--listen 127.0.0.1:9000] [--secret whsec_…] [--fail STATUS[:COUNT|:PERCENT%]] [--delay MS]
             [--keep 10000] [--quiet]

  --listen   where to listen; port 0 picks a free one
  --secret   verify signatures with this key
  --fail     503 fails all requests, 503:3 the first three attempts of each webhook, 503:20% one in five
  --delay    answer so many milliseconds later
  --keep     how many requests to keep for GET /_events
  --quiet    print no webhooks

While it runs:
    curl -d '{\"status\": 503, \"fail_first\": 3}' http://127.0.0.1:9000/_control
       words: status, retry_after, hang, close, reset, cut, garbage, trickle_ms, delay_ms,
              fail_first, fail_first_of_each, percent, seed, key; {} is a good receiver again
    curl http://127.0.0.1:9000/_events        what came in, as JSON
    curl http://127.0.0.1:9000/_stats         how many, how fast
    curl -X DELETE http://127.0.0.1:9000/_events
";

/// What the command line asks for.
struct Wanted {
    options: Options,
    script: Script,
    secret: Option<Secret>,
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
    let receiver = match Receiver::with(wanted.options) {
        Ok(receiver) => receiver,
        Err(error) => {
            eprintln!("receiver: cannot listen: {error}");
            return ExitCode::FAILURE;
        }
    };
    receiver.behave(wanted.script);
    if !wanted.quiet {
        let printer = print::Printer::new(wanted.secret);
        receiver.observe(move |request, reply| printer.print(request, reply));
    }
    println!("receiver: listening at {}", receiver.url("/"));
    loop {
        std::thread::park();
    }
}

fn wanted(mut arguments: impl Iterator<Item = String>) -> Result<Option<Wanted>, String> {
    let listen = ([127, 0, 0, 1], 9000).into();
    let mut wanted = Wanted {
        options: Options { listen, keep: 10_000, control: true },
        script: Script::default(),
        secret: None,
        quiet: false,
    };
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{option} wants a value"));
        match option.as_str() {
            "--listen" => {
                wanted.options.listen = value()?.parse().map_err(|_| "--listen wants address:port")?;
            }
            "--secret" => {
                wanted.secret = Some(Secret::parse(&value()?).ok_or("--secret wants whsec_ and base64")?);
            }
            "--fail" => {
                let delay = wanted.script.delay;
                wanted.script = fail(&value()?)?;
                wanted.script.delay = delay;
            }
            "--delay" => {
                let milliseconds = value()?.parse().map_err(|_| "--delay wants milliseconds")?;
                wanted.script.delay = Duration::from_millis(milliseconds);
            }
            "--keep" => wanted.options.keep = value()?.parse().map_err(|_| "--keep wants a number")?,
            "--quiet" => wanted.quiet = true,
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    Ok(Some(wanted))
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
    let status = status.parse().ok().filter(|status| (100..1000).contains(status)).ok_or_else(wrong)?;
    Ok(Script::new(which, Reply::status(status)))
}
