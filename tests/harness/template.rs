//! Data directories fresh from `initdb`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Server;

/// A data directory fresh from `initdb`, made once for each version and copied ever after.
pub(crate) fn template(server: &Server, options: &[&str]) -> PathBuf {
    let keep = server.keep();
    let name: String = [server.version(), options.concat()]
        .concat()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let template = keep.join(&name);
    if template.exists() {
        return template;
    }
    let _ = fs::create_dir(&keep);
    server.own(&keep);
    // Several may be at it: each makes its own, and the first to finish wins.
    let fresh = keep.join(format!("{name}.{}.{:?}", std::process::id(), std::thread::current().id()));
    let initdb = server
        .unprivileged("initdb")
        .arg("-D")
        .arg(&fresh)
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"])
        .args(options)
        .output()
        .unwrap_or_else(|error| panic!("initdb: {error}"));
    assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
    if let Err(error) = fs::rename(&fresh, &template) {
        assert!(template.exists(), "{}: {error}", template.display());
        let _ = fs::remove_dir_all(&fresh);
    }
    template
}

pub(crate) fn copy(from: &Path, to: &Path) {
    let done =
        Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to).stdin(Stdio::null()).status();
    assert!(done.as_ref().is_ok_and(std::process::ExitStatus::success), "cannot copy the template: {done:?}");
}
