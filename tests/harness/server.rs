//! Which server the tests run: its programs, and the user they run as.

use std::ffi::{CString, OsStr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// An installed server that has the extension.
pub struct Server {
    bindir: PathBuf,
    /// Whom its programs run as; none stands for the user who runs the tests.
    user: Option<(u32, u32)>,
    major: OnceLock<u32>,
}

impl Server {
    /// The one that `PGWH_BINDIR` names; else a private copy of PostgreSQL `PG` (default 15), which
    /// `scripts/server` makes with the extension compiled from this checkout.
    pub fn get() -> &'static Server {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| {
            let major = || std::env::var("PG").unwrap_or_else(|_| "15".into());
            Server::at(
                std::env::var_os("PGWH_BINDIR").map_or_else(|| build(&checkout(), &major()), PathBuf::from),
            )
        })
    }

    /// One of another major version, which `scripts/server` makes with the extension compiled from this checkout.
    pub fn of(major: u32) -> &'static Server {
        static MADE: Mutex<Vec<(u32, &'static Server)>> = Mutex::new(Vec::new());
        if major == Server::get().major() {
            return Server::get();
        }
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, server)) = made.iter().find(|(known, _)| *known == major) {
            return server;
        }
        let server: &'static Server = Box::leak(Box::new(Server::at(build(&checkout(), &major.to_string()))));
        made.push((major, server));
        server
    }

    /// One of the same major version, with the extension compiled from another checkout.
    pub fn from(checkout: &Path) -> &'static Server {
        Box::leak(Box::new(Server::at(build(checkout, &Server::get().major().to_string()))))
    }

    fn at(bindir: PathBuf) -> Server {
        assert!(bindir.join("initdb").exists(), "there is no server in {}", bindir.display());
        Server { bindir, user: unprivileged(), major: OnceLock::new() }
    }

    /// Where its programs are.
    pub fn bindir(&self) -> &Path {
        &self.bindir
    }

    /// Where it finds control files and scripts of extensions.
    pub fn extensions(&self) -> PathBuf {
        let output = self.command("pg_config").arg("--sharedir").output().expect("pg_config runs");
        let share = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        share.join("extension")
    }

    /// Its major version.
    pub fn major(&self) -> u32 {
        *self.major.get_or_init(|| {
            let text = self.version();
            let digits: String =
                text.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap_or_else(|_| panic!("no version in {text:?}"))
        })
    }

    /// What `postgres --version` prints.
    pub fn version(&self) -> String {
        let output = self.command("postgres").arg("--version").output().expect("postgres runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// One of its programs, run by the user who runs the tests.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(self.bindir.join(program));
        if let Some(lib) = self.own_libpq() {
            command.env("LD_LIBRARY_PATH", lib);
        }
        // Tests say all there is to say to a client.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("PG") {
                command.env_remove(name.as_ref());
            }
        }
        // As Rust developers have it: a backtrace is no part of an error's detail all the same.
        command.env("RUST_BACKTRACE", "1").env_remove("RUST_LIB_BACKTRACE");
        command
    }

    /// One of its programs that refuses to run as root.
    pub(crate) fn unprivileged(&self, program: impl AsRef<Path>) -> Command {
        let mut command = self.command(program);
        command.stdin(Stdio::null()).current_dir("/");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Gives a file or directory to the user whom the server runs as.
    pub(crate) fn own(&self, path: &Path) {
        if let Some((uid, gid)) = self.user {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .unwrap_or_else(|error| panic!("cannot give away {}: {error}", path.display()));
        }
    }

    /// Where the tests keep what outlives them.
    pub(crate) fn keep(&self) -> PathBuf {
        // SAFETY: no arguments, no failure.
        let user = self.user.map_or_else(|| unsafe { libc::geteuid() }, |(uid, _)| uid);
        std::env::temp_dir().join(format!("pgwh-templates-{user}"))
    }

    fn own_libpq(&self) -> Option<PathBuf> {
        let lib = self.bindir.parent()?.join("lib");
        lib.join("libpq.so.5").exists().then_some(lib)
    }
}

/// The one that this is part of.
fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn build(checkout: &Path, major: &str) -> PathBuf {
    let script = checkout.join("scripts/server");
    let output = Command::new(&script)
        .arg(major)
        // What cargo sets for tests is not meant for the cargo that the script runs: some crates would be compiled anew.
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| !is_of_cargo(name)))
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    assert!(output.status.success(), "{} failed", script.display());
    PathBuf::from(OsStr::new(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Whether cargo sets such a variable for what it runs. Others are its user's.
fn is_of_cargo(name: &OsStr) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_TARGET_DIR"]
        .iter()
        .any(|of_cargo| name.as_encoded_bytes().starts_with(of_cargo.as_bytes()))
}

/// `initdb` and `postgres` refuse to run as root: the user to be instead.
fn unprivileged() -> Option<(u32, u32)> {
    // SAFETY: no arguments, no failure.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    ["postgres", "nobody"].iter().find_map(|name| {
        let name = CString::new(*name).ok()?;
        // SAFETY: the name is a C string; the answer is read before anybody could ask again, from the one thread
        // that initializes the server.
        unsafe { libc::getpwnam(name.as_ptr()).as_ref() }.map(|entry| (entry.pw_uid, entry.pw_gid))
    })
}
