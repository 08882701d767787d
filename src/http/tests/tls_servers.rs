//! The servers of servers.txt, each with the words that its failure is to have.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::*;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/tests");

/// A directory of certificates, which is removed.
struct Certificates(PathBuf);

impl Certificates {
    fn make() -> Certificates {
        let directory = std::env::temp_dir().join(format!("pgwh-tls-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let made = Command::new("bash").arg(format!("{FOLDER}/servers.sh")).arg(&directory).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Certificates(directory)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server for one connection, on which it answers.
struct TlsServer {
    process: Child,
    port: u16,
}

impl TlsServer {
    fn start(directory: &Path, certificate: &str, options: &str) -> TlsServer {
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "127.0.0.1:0", "-naccept", "1"]);
        command.args(["-cert", &format!("{certificate}.pem"), "-key", &format!("{certificate}.key")]);
        if directory.join(format!("{certificate}.chain")).exists() {
            command.args(["-cert_chain", &format!("{certificate}.chain")]);
        }
        command.args(options.split_whitespace()).current_dir(directory);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // It stays open, since the server ends with it.
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        process.stdin.as_mut().unwrap().write_all(answer).unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut lines = output.lines().map_while(Result::ok);
        let port = lines.find_map(|line| line.strip_prefix("ACCEPT 127.0.0.1:")?.parse().ok());
        std::thread::spawn(move || lines.for_each(drop));
        TlsServer { process, port: port.unwrap_or_else(|| panic!("{certificate} {options}: no server")) }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn every_kind_of_server_is_reached_or_refused_in_words() {
    let certificates = Certificates::make();
    let sender = sender(1);
    sender.trust_file(Some(certificates.0.join("root.pem")));
    let table = std::fs::read_to_string(format!("{FOLDER}/servers.txt")).unwrap();
    let (mut wrong, mut count) = (Vec::new(), 0);
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let [certificate, options, host, expected] =
            line.split('|').map(str::trim).collect::<Vec<_>>()[..].try_into().unwrap();
        let server = TlsServer::start(&certificates.0, certificate, options);
        let result = deliver(&sender, &endpoint(&format!("https://{host}:{}/", server.port)));
        let found = match &result {
            Ok(_) => "ok".to_owned(),
            Err(failure) => format!("{}: {}", failure.class.as_str(), failure.message),
        };
        let as_expected = match &result {
            Ok(_) => expected == "ok",
            Err(failure) => failure.class == ErrorClass::Tls && failure.message.contains(expected),
        };
        let is_plain = !["(", "{", "Error", "alert "].iter().any(|debris| found.contains(debris));
        if !as_expected || !is_plain {
            wrong.push(format!("{line}\n    {found}"));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 50, "{count}");
}
