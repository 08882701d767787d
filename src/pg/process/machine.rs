//! What tells this machine, or container, from others: something that a copy of the data directory does not have.

use std::ffi::{CStr, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgrx::pg_sys;
use sha2::{Digest, Sha256};

use crate::gucs;

/// Differs from machine to machine, and survives a restart (machine-id(5)); containers have none, or that of their image.
const MACHINE_ID: &str = "/etc/machine-id";
/// Written by the kernel at each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Files that container runtimes put into a container.
const CONTAINER_FILES: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];
/// What `pg_ctl` puts into the environment of a server that it starts.
const PG_CTL_ENVIRONMENT: &str = "PG_GRANDPARENT_PID";
/// What a value in postgresql.auto.conf, which is always in the data directory, would be read from.
const AUTO_FILE: &CStr = c"postgresql.auto.conf";

/// What tells this machine from others.
pub struct Machine {
    /// The setting `pgwh.server_identity`, if it counts, and where it comes from.
    name: Option<(String, NameOrigin)>,
    own: OwnMark,
}

/// Where the name of a server comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameOrigin {
    /// From outside of the data directory's file system: a copy does not have it.
    Outside,
    /// From a file on the file system of the data directory.
    SameFileSystem,
    /// From `postmaster.opts` in the data directory, which `pg_ctl restart` reads.
    OptionsFile,
}

/// What a machine has of its own, the strongest that there is.
pub enum OwnMark {
    /// The id of the machine.
    Id(Vec<u8>),
    /// The id of the machine, from the file system of the data directory.
    CopiedId(Vec<u8>),
    /// The id of a container's image, which other containers have, too, and the host name.
    ImageId(Vec<u8>),
    /// The host name alone.
    HostName(Vec<u8>),
}

impl Machine {
    /// Looks at the machine, for a server with this data directory.
    pub fn look(data_directory: &Path) -> Machine {
        let origin = match gucs::server_identity_is_from_file() {
            true => origin_of_file(data_directory),
            false if is_from_options_file() => Some(NameOrigin::OptionsFile),
            false => Some(NameOrigin::Outside),
        };
        Machine { name: gucs::server_identity().zip(origin), own: OwnMark::look(data_directory) }
    }

    /// Where the name comes from that somebody has given this server, if it counts.
    pub fn name_origin(&self) -> Option<NameOrigin> {
        self.name.as_ref().map(|(_, origin)| *origin)
    }

    /// What the machine has of its own.
    pub fn own(&self) -> &OwnMark {
        &self.own
    }

    /// What goes into the mark of a place.
    pub fn mark(&self) -> Vec<u8> {
        match &self.name {
            Some((name, _)) => [b"identity\0", name.as_bytes()].concat(),
            None => self.own.mark(),
        }
    }

    /// What is noted at each start and compared at the next, where the mark of the place leaves a doubt: the boot, the block
    /// device that holds a directory, and a digest of what the machine has of its own; `-` for what there is not.
    pub fn evidence(&self, directory: &Path) -> String {
        let known = |found: Option<String>| found.unwrap_or_else(|| "-".to_owned());
        let own: String =
            Sha256::digest(self.own.mark()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let boot = fs::read_to_string(BOOT_ID).ok().map(|boot| boot.trim().to_owned());
        format!("{} {} {own}", known(boot), known(device_of(directory)))
    }
}

impl OwnMark {
    fn look(data_directory: &Path) -> OwnMark {
        let host_name = || nix::unistd::gethostname().unwrap_or_default().as_bytes().to_vec();
        let id = fs::read(MACHINE_ID).unwrap_or_default();
        // A machine that is not set up yet has a word in its place.
        let is_id = id.trim_ascii().len() == 32 && id.trim_ascii().iter().all(u8::is_ascii_hexdigit);
        match is_id {
            true if is_of_image() => OwnMark::ImageId([id, host_name()].concat()),
            true if file_system(Path::new(MACHINE_ID)) == file_system(data_directory) => {
                OwnMark::CopiedId(id)
            }
            true => OwnMark::Id(id),
            false => OwnMark::HostName(host_name()),
        }
    }

    fn mark(&self) -> Vec<u8> {
        match self {
            OwnMark::Id(id) | OwnMark::CopiedId(id) | OwnMark::ImageId(id) => id.clone(),
            OwnMark::HostName(name) => [b"host\0", &name[..]].concat(),
        }
    }
}

/// Whether this is a container whose machine-id is part of its image, and not the host's that is mounted there.
fn is_of_image() -> bool {
    let device = |path: &str| fs::metadata(path).map(|found| found.dev()).ok();
    let is_container = CONTAINER_FILES.iter().any(|file| Path::new(file).exists())
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        || fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| {
            mounts.lines().any(|line| line.split(' ').skip(1).take(2).eq(["/", "overlay"]))
        });
    is_container && device(MACHINE_ID) == device("/etc")
}

/// Whether the options on the server's command line are from `postmaster.opts`: `pg_ctl restart` takes them from that file, and
/// has none on its own command line. `pg_ctl` marks the environment of what it starts.
fn is_from_options_file() -> bool {
    if std::env::var_os(PG_CTL_ENVIRONMENT).is_none() {
        return false;
    }
    let starter =
        fs::read(format!("/proc/{}/cmdline", std::os::unix::process::parent_id())).unwrap_or_default();
    let name = gucs::SERVER_IDENTITY_NAME.to_bytes();
    !starter.windows(name.len()).any(|part| part.eq_ignore_ascii_case(name))
}

/// Where the last file that sets `pgwh.server_identity` is; none when a copy of the data directory has it.
fn origin_of_file(data_directory: &Path) -> Option<NameOrigin> {
    let file = last_file_with_identity()?;
    let file = if file.is_absolute() { file } else { data_directory.join(file) };
    let file = file.canonicalize().ok().filter(|file| !file.starts_with(data_directory))?;
    match file_system(&file) == file_system(data_directory) {
        true => Some(NameOrigin::SameFileSystem),
        false => Some(NameOrigin::Outside),
    }
}

/// The last file that sets `pgwh.server_identity`.
fn last_file_with_identity() -> Option<PathBuf> {
    // SAFETY: single-threaded start-up of the server, or a session that has loaded the library; the lists are made in and
    // freed from the current memory context, their texts copied before. A file that cannot be read is logged, as when the
    // server reads it.
    unsafe {
        let mut last = None;
        for file in [pg_sys::ConfigFileName.cast_const(), AUTO_FILE.as_ptr()] {
            let (mut head, mut tail) = (std::ptr::null_mut(), std::ptr::null_mut());
            if file.is_null() {
                continue;
            }
            pg_sys::ParseConfigFile(
                file,
                false,
                std::ptr::null(),
                0,
                0,
                pg_sys::LOG as i32,
                &raw mut head,
                &raw mut tail,
            );
            let mut item: *mut pg_sys::ConfigVariable = head;
            while let Some(variable) = item.as_ref() {
                if !variable.name.is_null()
                    && !variable.filename.is_null()
                    && CStr::from_ptr(variable.name)
                        .to_bytes()
                        .eq_ignore_ascii_case(gucs::SERVER_IDENTITY_NAME.to_bytes())
                {
                    let name = CStr::from_ptr(variable.filename).to_bytes();
                    last = Some(PathBuf::from(OsStr::from_bytes(name)));
                }
                item = variable.next;
            }
            pg_sys::FreeConfigVariables(head);
        }
        last
    }
}

/// The number of the file system that holds a file.
fn file_system(file: &Path) -> Option<u64> {
    fs::metadata(file).ok().map(|found| found.dev())
}

/// The block device that holds a directory. File systems without one of their own have no number that stays.
fn device_of(directory: &Path) -> Option<String> {
    let device = file_system(directory)?;
    // As `gnu_dev_major` in the C library; 0 is none.
    let major = (device >> 8) & 0xfff | (device >> 32) & 0xffff_f000;
    (major != 0).then(|| device.to_string())
}
