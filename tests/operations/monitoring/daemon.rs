//! Programs of others that run beside a test, and end with it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;

use harness::eventually;
use serde_json::Value;

/// Installs what the machine lacks.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let packages = [
            "prometheus",
            "prometheus-postgres-exporter",
            "prometheus-sql-exporter",
            "python3",
            "python3-yaml",
        ];
        let status = Command::new(root().join("scripts/packages")).args(packages).status().unwrap();
        assert!(status.success(), "{packages:?} cannot be installed");
    });
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A program that listens on a port of loopback.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    /// `127.0.0.1:port`.
    pub address: String,
}

impl Daemon {
    /// Starts a program that is told by `--web.listen-address` where to listen; its log is a file in `directory`.
    pub fn start(directory: &Path, mut command: Command) -> Daemon {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let log = directory.join(format!("log.{port}"));
        let file = fs::File::create(&log).unwrap();
        command.arg(format!("--web.listen-address={address}")).stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        // SAFETY: between fork and exec, one system call: a test that is killed takes the program with it.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Daemon { child, log, address }
    }

    /// The body at a path, as soon as the program is there to answer.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> String {
        eventually(&format!("an answer at {path}"), || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended: {status}\n{}", fs::read_to_string(&self.log).unwrap_or_default());
            }
            let mut stream = TcpStream::connect(&self.address).ok()?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            // Until it is ready it says 503.
            (!head.contains(" 503 ")).then(|| body.to_owned())
        })
    }

    /// What Prometheus answers to a query: an instant vector.
    #[track_caller]
    pub fn query(&mut self, expression: &str) -> Vec<Value> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer: Value =
            serde_json::from_str(&self.get(&format!("/api/v1/query?query={encoded}"))).unwrap();
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
