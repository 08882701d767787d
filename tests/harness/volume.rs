//! A volume of its own for a data directory, snapshots of it, and machines that mount one in the same place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The size of a volume, in megabytes: a small cluster.
const MEGABYTES: u64 = 640;

/// A file system in an image, mounted where a data directory is. Only root can make one. Unmounted when dropped.
pub struct Volume {
    image: PathBuf,
    path: PathBuf,
}

impl Volume {
    /// Makes one and mounts it over the directory at `path`, whose files it holds from then on; or says why that is impossible.
    pub fn mount(path: &Path) -> Result<Self, String> {
        let image = path.with_extension("img");
        let file = fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(MEGABYTES << 20).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-d"]).arg(path).arg(&image))?;
        let meta = fs::metadata(path).map_err(|error| error.to_string())?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(path))?;
        let volume = Self { image, path: path.to_owned() };
        let _ = fs::remove_dir(path.join("lost+found"));
        // The root of a new file system is root's.
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
        chown(path, Some(meta.uid()), Some(meta.gid())).map_err(|error| error.to_string())?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|error| error.to_string())?;
        Ok(volume)
    }

    /// A copy of all its blocks, while nothing writes to it.
    pub fn snapshot(&self, name: &str) -> Result<PathBuf, String> {
        let copy = self.path.with_extension(name);
        run(&mut Command::new("sync"))?;
        run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(&self.image).arg(&copy))?;
        Ok(copy)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// A machine, or container, that a server is started on: a namespace of its own for mounts and for the host name.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    host_name: Option<String>,
    machine_id: String,
    is_id_on_volume: bool,
    volume: Option<PathBuf>,
    shared_memory: Option<u32>,
}

impl Machine {
    /// One with this host name and without a machine-id.
    pub fn named(host_name: &str) -> Self {
        Self { host_name: Some(host_name.to_owned()), ..Self::default() }
    }

    /// With a machine-id, which is not that of its image.
    pub fn with_id(mut self, machine_id: &str) -> Self {
        machine_id.clone_into(&mut self.machine_id);
        self
    }

    /// With a machine-id that is in a file on the volume of the data directory.
    pub fn with_id_on_volume(self, machine_id: &str) -> Self {
        Self { is_id_on_volume: true, ..self.with_id(machine_id) }
    }

    /// With the volume of this image in place of the data directory.
    pub fn with_volume(mut self, image: &Path) -> Self {
        self.volume = Some(image.to_owned());
        self
    }

    /// With so many megabytes of shared memory.
    pub fn with_shared_memory(mut self, megabytes: u32) -> Self {
        self.shared_memory = Some(megabytes);
        self
    }

    /// The program as it runs on that machine, as the user and group who own `data`.
    pub(crate) fn running(&self, program: &Command, data: &Path) -> Command {
        use std::os::unix::fs::MetadataExt;
        const SCRIPT: &str = r#"
            set -e
            data=$1 image=$2 name=$3 id=$4 user=$5 group=$6 memory=$7 directory=$8
            shift 8
            mount -t tmpfs tmpfs /mnt
            [ -z "$name" ] || hostname "$name"
            [ -z "$memory" ] || mount -t tmpfs -o "size=${memory}m,mode=1777" tmpfs /dev/shm
            [ -z "$image" ] || mount -o loop "$image" "$data"
            printf '%s' "$id" > "$directory/machine-id"
            [ ! -e /etc/machine-id ] || mount --bind "$directory/machine-id" /etc/machine-id
            cd /
            exec setpriv --reuid "$user" --regid "$group" --clear-groups "$@""#;
        let meta = fs::metadata(data).unwrap_or_else(|error| panic!("{}: {error}", data.display()));
        let mut command = Command::new("unshare");
        command.args(["--mount", "--uts", "sh", "-c", SCRIPT, "sh"]).arg(data);
        command.arg(self.volume.as_deref().unwrap_or(Path::new("")));
        command.arg(self.host_name.as_deref().unwrap_or_default()).arg(&self.machine_id);
        command.args([meta.uid().to_string(), meta.gid().to_string()]);
        command.arg(self.shared_memory.map(|megabytes| megabytes.to_string()).unwrap_or_default());
        command.arg(if self.is_id_on_volume { data } else { Path::new("/mnt") });
        command.arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
