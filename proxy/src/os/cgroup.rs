//! A cgroup (version 2) of the process's own, below the one that it was started in: a socket belongs to the cgroup that its
//! process is in when it is made, and the kernel's account looks at one cgroup. Moves no process but this one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The beginning of its name; the process id follows.
const PREFIX: &str = "dcv-splice.";

/// Where this process is now. Unless it is to stay, it goes back when this is dropped.
#[derive(Debug)]
pub(crate) struct Cgroup {
    parent: PathBuf,
    own: PathBuf,
    stays: bool,
}

impl Cgroup {
    /// Makes it and goes there; whoever has been started before stays where it is. The error says what to do.
    pub(crate) fn enter() -> Result<Self, String> {
        let parent = current()?;
        sweep(&parent);
        let own = parent.join(format!("{PREFIX}{}", std::process::id()));
        let help = "under systemd: Delegate=yes; in a container: a writable cgroup";
        let made = match fs::create_dir(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self { parent: parent.clone(), own: own.clone(), stays: false }),
        };
        let entered = made.and_then(|cgroup| join(&own).map(|()| cgroup));
        entered.map_err(|error| format!("no cgroup can be made in {}: {error} ({help})", parent.display()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.own
    }

    /// The process stays there.
    pub(crate) fn stay(mut self) -> PathBuf {
        self.stays = true;
        self.own.clone()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.stays {
            // What can't be undone does no harm: an empty cgroup, or one process in a cgroup of its own.
            let _ = join(&self.parent).and_then(|()| fs::remove_dir(&self.own));
        }
    }
}

/// Removes what was left behind by processes that were killed. One with a process in it can't be removed.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let process = name.strip_prefix(PREFIX).and_then(|process| process.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            // What stays does no harm.
            let _ = fs::remove_dir(parent.join(name));
        }
    }
}

fn join(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
}

/// The one that this process is in.
fn current() -> Result<PathBuf, String> {
    let read = |file: &str| fs::read_to_string(file).map_err(|error| format!("{file}: {error}"));
    let mounts = read("/proc/self/mountinfo")?;
    let cgroups = read("/proc/self/cgroup")?;
    locate(&mounts, &cgroups).ok_or_else(|| "no cgroup of version 2 is mounted".to_owned())
}

/// From `mountinfo` (`proc_pid_mountinfo(5)`) and `cgroup` (cgroups(7)) of a process.
fn locate(mounts: &str, cgroups: &str) -> Option<PathBuf> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, path_prefix) = (fields.next()?, fields.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        after.starts_with("cgroup2 ").then(|| Path::new(path_prefix).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "24 30 0:22 / /proc rw - proc proc rw
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn it_is_found_wherever_it_is_mounted() {
        let own =
            |mounts: &str, cgroups: &str| locate(mounts, cgroups).map(|path| path.display().to_string());
        let systemd = "9:name=systemd:/\n0::/system.slice/dcv-splice.service\n";
        assert_eq!(
            own(MOUNTS, systemd).as_deref(),
            Some("/sys/fs/cgroup/unified/system.slice/dcv-splice.service")
        );
        assert_eq!(own(MOUNTS, "0::/\n").as_deref(), Some("/sys/fs/cgroup/unified/"));
        // A container sees a part of it.
        let container = "41 31 0:38 /box /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        assert_eq!(own(container, "0::/box/inner\n").as_deref(), Some("/sys/fs/cgroup/inner"));
        assert_eq!(own(container, "0::/other\n"), None);
        assert_eq!(own("24 30 0:22 / /proc rw - proc proc rw\n", systemd), None);
        assert_eq!(own(MOUNTS, "9:memory:/x\n"), None);
    }
}
