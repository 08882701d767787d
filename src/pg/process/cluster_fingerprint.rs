//! Where this cluster is: what tells it from a copy of itself.
//!
//! A copy has everything that the original has, so what differs must lie outside of what is copied: the machine, the path
//! of the data directory, and a file in it that is never written again. A snapshot of a volume has the same path and files:
//! then the machine alone tells, or the device that the volume is. A cluster that was restored to a point in time has
//! another timeline.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use pgrx::pg_sys;
use sha2::{Digest, Sha256};

use super::machine::{Machine, NameOrigin};

/// Written by `initdb`, and by nobody afterwards.
const OLDEST_FILE: &str = "PG_VERSION";
/// Its presence makes a server that starts a standby.
const STANDBY: &str = "standby.signal";

static PLACE: OnceLock<Place> = OnceLock::new();

struct Place {
    mark: String,
    machine: Machine,
    evidence: String,
    was_standby: bool,
}

/// Looks where we are, once, before the server runs: all its processes inherit the answer.
pub fn init() {
    PLACE.get_or_init(look);
}

/// Timeline and place in one text, the same as long as the cluster is neither copied, moved nor restored.
pub fn here() -> String {
    format!("{}/{}", timeline(), PLACE.get_or_init(look).mark)
}

/// Whether this server came up as a standby, and so is one or was promoted from it.
pub fn came_up_as_standby() -> bool {
    PLACE.get_or_init(look).was_standby
}

/// What tells this machine from others.
pub fn machine() -> &'static Machine {
    &PLACE.get_or_init(look).machine
}

/// What is noted at each start, see [`Machine::evidence`].
pub fn evidence() -> &'static str {
    &PLACE.get_or_init(look).evidence
}

/// Whether what was noted at the start before says that this is a copy, if it differs: unless somebody says, from where no copy has
/// it, which server this is. A standby has its primary's note.
pub fn heeds_evidence() -> bool {
    !came_up_as_standby() && machine().name_origin() != Some(NameOrigin::Outside)
}

fn look() -> Place {
    // SAFETY: set before any library is loaded, and never changed.
    let directory = unsafe { CStr::from_ptr(pg_sys::DataDir) };
    let directory = Path::new(OsStr::from_bytes(directory.to_bytes()));
    let path = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let mut hash = Sha256::new();
    hash.update(path.as_os_str().as_bytes());
    hash.update([0]);
    if let Ok(oldest) = std::fs::metadata(path.join(OLDEST_FILE)) {
        hash.update(oldest.ino().to_le_bytes());
        // Inodes are used again; not every file system knows when a file came to be.
        let born = oldest.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        hash.update(born.map_or(0, |born| born.as_nanos()).to_le_bytes());
    }
    let machine = Machine::look(&path);
    hash.update(machine.mark());
    let mark = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let evidence = machine.evidence(&path);
    Place { mark, machine, evidence, was_standby: path.join(STANDBY).exists() }
}

fn timeline() -> pg_sys::TimeLineID {
    // SAFETY: reads shared memory; a server that has left recovery has a timeline to write on.
    unsafe {
        if pg_sys::RecoveryInProgress() {
            let mut timeline = 0;
            pg_sys::GetXLogReplayRecPtr(&mut timeline);
            timeline
        } else {
            pg_sys::GetWALInsertionTimeLine()
        }
    }
}
