//! A disk that can be full.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Server;

/// A small file system of its own (tmpfs), which the server may write to. Only root can make one; it is gone when
/// dropped, so drop the cluster that uses it before.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Makes one of so many megabytes, or says why that is impossible.
    pub fn mount(megabytes: u32) -> Result<Self, String> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pgwh-disk-{}-{number}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(&path)
            .output();
        let problem = match mounted {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            let _ = fs::remove_dir(&path);
            return Err(format!("no tmpfs can be mounted: {problem}"));
        }
        let disk = Self { path };
        let space = disk.tablespace();
        fs::create_dir(&space).map_err(|error| format!("{}: {error}", space.display()))?;
        Server::get().own(&disk.path);
        Server::get().own(&space);
        Ok(disk)
    }

    /// The directory on it for CREATE TABLESPACE.
    pub fn tablespace(&self) -> PathBuf {
        self.path.join("space")
    }

    /// Takes all the space that is left, until [`SmallDisk::relieve`].
    pub fn fill(&self) {
        let Ok(mut file) = fs::File::create(self.filler()) else { return };
        for size in [1 << 20, 1 << 12, 1] {
            let block = vec![b'x'; size];
            while file.write_all(&block).is_ok() {}
        }
    }

    /// Gives it back.
    pub fn relieve(&self) {
        let _ = fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmount = |path: &Path| Command::new("umount").arg("-l").arg(path).status();
        let _ = unmount(&self.path);
        let _ = fs::remove_dir(&self.path);
    }
}
