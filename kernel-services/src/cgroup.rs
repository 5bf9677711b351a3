//! A cgroup of its own for a process with limits on memory or CPU, version 1 or 2, where this
//! process may make one.
//!
//! A group is made below ipcd's own, `ipc-SERVICE-REPLICA-HASH`, the hash being of the runtime
//! directory, so that two runtimes never meet in one. It is removed when its process has ended; one
//! that an earlier ipcd left is used again.

use std::{
    fs::{self, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use crate::node::Limits;

/// What the names of groups begin with.
const PREFIX: &str = "ipc-";

/// The window over which a share of CPU is measured, in µs; the kernel's own default.
const PERIOD_US: u64 = 100_000;

/// Where the controllers stand, and where this process is in them.
#[derive(Debug, Default)]
pub(crate) struct Hierarchy {
    memory: Option<Place>,
    cpu: Option<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    own: PathBuf,
    unified: bool,
}

/// Which limits of the node file a process started like this one could not enforce: without a
/// controller, or a group below which it may make others.
pub fn gaps() -> Vec<&'static str> {
    Hierarchy::of("self").gaps()
}

/// The groups of one process.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// To be removed when it has ended.
    pub(crate) directories: Vec<PathBuf>,
    /// `cgroup.procs` of each: who writes 0 there joins.
    pub(crate) doors: Vec<OwnedFd>,
}

impl Hierarchy {
    /// Finds the groups of a process (`self`, or a number).
    pub(crate) fn of(process: &str) -> Hierarchy {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
        Hierarchy::read(&mounts, &groups)
    }

    fn gaps(&self) -> Vec<&'static str> {
        let limits = [("limits.memory", &self.memory), ("limits.cpu_percent", &self.cpu)];
        let may_make = |place: &Place| access(&place.own, AccessFlags::W_OK).is_ok();
        let lacking = limits.into_iter().filter(|(_, place)| !place.as_ref().is_some_and(may_make));
        lacking.map(|(limit, _)| limit).collect()
    }

    fn read(mounts: &str, groups: &str) -> Hierarchy {
        Hierarchy { memory: place(mounts, groups, "memory"), cpu: place(mounts, groups, "cpu") }
    }

    /// Makes the group that a process with these limits is to join; `Err` says what is not to be
    /// had. Without limits there is none.
    pub(crate) fn make(
        &self,
        name: &str,
        limits: &Limits,
    ) -> (Groups, Vec<(&'static str, io::Error)>) {
        let mut groups = Groups::default();
        let mut lacking = Vec::new();
        if let Some(bytes) = limits.memory {
            let made = self.memory.as_ref().ok_or_else(none).and_then(|place| {
                let file = if place.unified { "memory.max" } else { "memory.limit_in_bytes" };
                place.make(name, "memory", &[(file, bytes.to_string())], &mut groups)
            });
            lacking.extend(made.err().map(|error| ("limits.memory", error)));
        }
        if let Some(percent) = limits.cpu_percent {
            let quota = PERIOD_US * u64::from(percent) / 100;
            let made = self.cpu.as_ref().ok_or_else(none).and_then(|place| {
                let settings = if place.unified {
                    vec![("cpu.max", format!("{quota} {PERIOD_US}"))]
                } else {
                    let period = ("cpu.cfs_period_us", PERIOD_US.to_string());
                    vec![period, ("cpu.cfs_quota_us", quota.to_string())]
                };
                place.make(name, "cpu", &settings, &mut groups)
            });
            lacking.extend(made.err().map(|error| ("limits.cpu_percent", error)));
        }
        (groups, lacking)
    }

    /// Lists the groups that a launch made for this process, to remove them when it has ended.
    pub(crate) fn made(&self) -> Vec<PathBuf> {
        let is_ours = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
        };
        let places = [&self.memory, &self.cpu].into_iter().flatten();
        let mut made: Vec<_> = places.map(|place| place.own.clone()).filter(is_ours).collect();
        made.dedup();
        made
    }
}

/// Names the group of a process.
pub(crate) fn name(service: &str, replica: u32, runtime_dir: &Path) -> String {
    // FNV-1a: it need only tell a handful of directories apart, and stay as it is.
    let bytes = runtime_dir.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{PREFIX}{service}-{replica}-{hash:016x}")
}

/// Removes groups whose process has ended. One that still holds a process stays: the kernel
/// refuses.
pub(crate) fn remove(directories: &[PathBuf]) {
    for directory in directories {
        let _ = fs::remove_dir(directory);
    }
}

impl Place {
    fn make(
        &self,
        name: &str,
        controller: &str,
        settings: &[(&str, String)],
        groups: &mut Groups,
    ) -> io::Result<()> {
        let directory = self.own.join(name);
        let known = groups.directories.contains(&directory);
        if self.unified {
            // Refused where processes stand in the group itself, unless it is the root.
            fs::write(self.own.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let door = settings
            .iter()
            .try_for_each(|(file, value)| fs::write(directory.join(file), value))
            .and_then(|()| OpenOptions::new().write(true).open(directory.join("cgroup.procs")));
        match door {
            Ok(_) if known => Ok(()),
            Ok(door) => {
                groups.directories.push(directory);
                groups.doors.push(door.into());
                Ok(())
            }
            Err(error) => {
                if !known {
                    remove(&[directory]);
                }
                Err(error)
            }
        }
    }
}

fn none() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "no such controller is mounted")
}

/// Finds where a process stands for one controller: version 1 has a line of its own for it,
/// version 2 one for all.
fn place(mounts: &str, groups: &str, controller: &str) -> Option<Place> {
    let mut unified = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if controllers.split(',').any(|one| one == controller) {
            let own = mounted(mounts, path, |kind, options| {
                kind == "cgroup" && options.split(',').any(|option| option == controller)
            })?;
            return Some(Place { own, unified: false });
        }
        if id == "0" && controllers.is_empty() {
            unified = mounted(mounts, path, |kind, _| kind == "cgroup2");
        }
    }
    let own = unified?;
    let offered = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
    let has_it = offered.split_whitespace().any(|one| one == controller);
    has_it.then_some(Place { own, unified: true })
}

/// Leads from a path within a hierarchy to one in the file system.
fn mounted(mounts: &str, path: &str, is_it: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let kind = after.next()?;
        let options = after.nth(1)?;
        if !is_it(kind, options) {
            return None;
        }
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        // Of a bind mount only what is below its root can be reached.
        let below = Path::new(path).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        open_files: None,
        address_space: None,
        core: 0,
        processes: None,
        memory: Some(64 << 20),
        cpu_percent: Some(50),
    };

    #[test]
    fn each_controller_of_version_1_has_its_place() {
        let mounts = "\
            32 31 0:29 / /cg/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            35 31 0:32 /box /cg/memory rw,relatime - cgroup cgroup rw,memory\n\
            41 31 0:38 / /cg/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let groups = "4:memory:/box/a\n1:cpu:/\n0::/\n";
        let hierarchy = Hierarchy::read(mounts, groups);
        let place = |own: &str| Some(Place { own: own.into(), unified: false });
        assert_eq!(hierarchy.memory, place("/cg/memory/a"));
        assert_eq!(hierarchy.cpu, place("/cg/cpu/"));
        assert_eq!(Hierarchy::read(mounts, "4:memory:/elsewhere\n").memory, None);
    }

    #[test]
    fn one_place_of_version_2_serves_both() {
        let root = tempfile::tempdir().expect("a directory");
        let point = root.path().to_str().expect("plain");
        fs::create_dir(root.path().join("mine")).expect("made");
        let own = root.path().join("mine");
        fs::write(own.join("cgroup.controllers"), "cpu io memory\n").expect("written");
        let mounts = format!("25 1 0:2 / {point} rw - cgroup2 cgroup2 rw,nsdelegate\n");
        let hierarchy = Hierarchy::read(&mounts, "0::/mine\n");
        // The kernel would make these by itself.
        let group = own.join("ipc-a-0-x");
        fs::create_dir(&group).expect("made");
        for file in ["memory.max", "cpu.max", "cgroup.procs"] {
            fs::write(group.join(file), "").expect("written");
        }
        let (groups, lacking) = hierarchy.make("ipc-a-0-x", &LIMITS);
        assert!(lacking.is_empty(), "{lacking:?}");
        assert_eq!(groups.directories, std::slice::from_ref(&group), "one group for both");
        assert_eq!(groups.doors.len(), 1);
        let read = |file| fs::read_to_string(group.join(file)).expect("written");
        assert_eq!(
            (read("memory.max"), read("cpu.max")),
            ("67108864".into(), "50000 100000".into())
        );
    }

    #[test]
    fn what_cannot_be_had_is_said_and_leaves_nothing() {
        let (groups, lacking) = Hierarchy::default().make("ipc-a-0-x", &LIMITS);
        assert!(groups.directories.is_empty() && groups.doors.is_empty());
        let names: Vec<_> = lacking.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["limits.memory", "limits.cpu_percent"]);
    }

    #[test]
    fn names_tell_runtimes_apart() {
        let [one, other] = ["/run/a", "/run/b"].map(|path| name("echo", 1, Path::new(path)));
        assert_ne!(one, other);
        assert!(one.starts_with("ipc-echo-1-"));
    }
}
