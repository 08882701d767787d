//! What tells this machine, or container, from others: something that a copy of the data directory does not have.

use std::ffi::{CStr, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pgrx::pg_sys;

use crate::settings;

/// Differs from machine to machine, and survives a restart (machine-id(5)); containers have none, or that of their image.
const MACHINE_ID: &str = "/etc/machine-id";
/// Written by the kernel at each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Files that container runtimes put into a container.
const CONTAINER_FILES: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];
/// What a value in postgresql.auto.conf, which is always in the data directory, would be read from.
const AUTO_FILE: &CStr = c"postgresql.auto.conf";

/// What tells this machine from others, the strongest that there is.
pub enum Machine {
    /// The setting `pgwh.server_identity`, from outside of the data directory.
    Named(String),
    /// The id of the machine.
    Id(Vec<u8>),
    /// The id of a container's image, which other containers have, too, and the host name.
    ImageId(Vec<u8>),
    /// The host name alone.
    HostName(Vec<u8>),
}

impl Machine {
    /// Looks at the machine, for a server with this data directory.
    pub fn look(data_directory: &Path) -> Machine {
        if let Some(identity) = settings::server_identity()
            && (!settings::server_identity_is_from_file() || is_set_outside(data_directory))
        {
            return Machine::Named(identity);
        }
        let host_name = || nix::unistd::gethostname().unwrap_or_default().as_bytes().to_vec();
        let id = fs::read(MACHINE_ID).unwrap_or_default();
        // A machine that is not set up yet has a word in its place.
        let is_id = id.trim_ascii().len() == 32 && id.trim_ascii().iter().all(u8::is_ascii_hexdigit);
        match is_id {
            true if is_of_image() => Machine::ImageId([id, host_name()].concat()),
            true => Machine::Id(id),
            false => Machine::HostName(host_name()),
        }
    }

    /// Whether somebody has said which server this is.
    pub fn is_named(&self) -> bool {
        matches!(self, Machine::Named(_))
    }

    /// What goes into the mark of a place.
    pub fn mark(&self) -> Vec<u8> {
        match self {
            Machine::Named(identity) => [b"identity\0", identity.as_bytes()].concat(),
            Machine::Id(id) | Machine::ImageId(id) => id.clone(),
            Machine::HostName(name) => [b"host\0", &name[..]].concat(),
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

/// Whether the last file that sets `pgwh.server_identity` is outside of the data directory.
fn is_set_outside(data_directory: &Path) -> bool {
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
                        .eq_ignore_ascii_case(settings::SERVER_IDENTITY_NAME.to_bytes())
                {
                    last = Some(CStr::from_ptr(variable.filename).to_owned());
                }
                item = variable.next;
            }
            pg_sys::FreeConfigVariables(head);
        }
        last.is_some_and(|file| {
            let file = Path::new(OsStr::from_bytes(file.to_bytes()));
            let file = if file.is_absolute() { file.to_owned() } else { data_directory.join(file) };
            file.canonicalize().is_ok_and(|file| !file.starts_with(data_directory))
        })
    }
}

/// The boot of the machine, and the block device that holds a directory. File systems without one of their own have no number
/// that stays.
pub fn device_of(directory: &Path) -> Option<String> {
    let boot = fs::read_to_string(BOOT_ID).ok()?;
    let device = fs::metadata(directory).ok()?.dev();
    // As `gnu_dev_major` in the C library; 0 is none.
    let major = (device >> 8) & 0xfff | (device >> 32) & 0xffff_f000;
    (major != 0).then(|| format!("{} {device}", boot.trim()))
}
