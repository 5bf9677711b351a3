//! Which processes run, written down for an ipcd that comes after this one.
//!
//! `units` in the runtime directory is replaced whole, by renaming, before a process may run its
//! program, and after it has ended. It is read once the lock on the directory is held. It is not
//! synced: after a crash of the machine no process is left to be found.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::SystemError;
use crate::{
    console::say,
    failpoint::{self, At},
};

/// One process.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Record {
    pub(super) service: String,
    /// From 1.
    pub(super) replica: u32,
    pub(super) pid: u32,
    /// As [`crate::process::Process::start_time`].
    pub(super) start_time: u64,
}

/// The file as a whole, with texts `T` and lists `L`.
#[derive(Debug, Deserialize, Serialize)]
struct Contents<T, L> {
    version: u32,
    /// Start times count from it.
    boot: T,
    units: L,
}

const VERSION: u32 = 1;

/// What is written down, and where.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    boot: String,
    units: Vec<Record>,
}

impl Store {
    /// Reads what an earlier run left.
    ///
    /// # Errors
    /// [`SystemError::Units`] when it cannot be understood: processes may run that it would name.
    pub(super) fn open(runtime_dir: &Path) -> Result<Store, SystemError> {
        let path = runtime_dir.join("units");
        let wrong = |what: String| SystemError::Units { path: path.clone(), what };
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let units = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
            Ok(text) => {
                let contents: Contents<String, Vec<Record>> =
                    serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
                if contents.version != VERSION {
                    return Err(wrong(format!("it is of version {}", contents.version)));
                }
                if contents.boot == boot { contents.units } else { Vec::new() }
            }
        };
        Ok(Store { path, boot, units })
    }

    /// What was written down. It stays so until it is forgotten: an ipcd that dies while it takes
    /// processes over leaves all of them to the next.
    pub(super) fn records(&self) -> &[Record] {
        &self.units
    }

    /// Writes a process down.
    ///
    /// # Errors
    /// Those of writing the file; then the process is as unknown as before.
    pub(super) fn remember(&mut self, record: Record) -> io::Result<()> {
        self.units.push(record);
        self.write().inspect_err(|_| drop(self.units.pop()))
    }

    /// Strikes out processes that have ended. Where that cannot be written it does no harm: a
    /// record of nobody is known by its start time.
    pub(super) fn forget(&mut self, has_ended: impl Fn(&Record) -> bool) {
        let before = self.units.len();
        self.units.retain(|it| !has_ended(it));
        if self.units.len() < before
            && let Err(error) = self.write()
        {
            say(&format!("cannot write {}: {error}", self.path.display()));
        }
    }

    fn write(&self) -> io::Result<()> {
        let contents = Contents { version: VERSION, boot: &self.boot, units: &self.units };
        let text = serde_json::to_vec(&contents)?;
        let fresh = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW).open(&fresh)?.write_all(&text)?;
        failpoint::reach(At::UnitsWritten);
        fs::rename(&fresh, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: u32) -> Record {
        Record { service: "api".to_owned(), replica: 1, pid, start_time: 7 }
    }

    #[test]
    fn the_next_run_finds_who_lives() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = Store::open(directory.path()).expect("nothing there");
        (1..4).for_each(|pid| store.remember(record(pid)).expect("written"));
        store.forget(|it| it.pid == 2);
        let next = Store::open(directory.path()).expect("readable");
        assert_eq!(next.records(), [record(1), record(3)]);
    }

    #[test]
    fn what_could_not_be_written_is_not_known() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = Store::open(directory.path()).expect("nothing there");
        store.remember(record(1)).expect("written");
        fs::create_dir(directory.path().join("units.new")).expect("in the way");
        store.remember(record(2)).expect_err("there is something in the way");
        assert_eq!(store.records(), [record(1)]);
        let next = Store::open(directory.path()).expect("readable");
        assert_eq!(next.records(), [record(1)]);
    }

    #[test]
    fn another_boot_has_none_of_its_processes() {
        let directory = tempfile::tempdir().expect("a directory");
        let text = r#"{"version":1,"boot":"another","units":[
            {"service":"api","replica":1,"pid":1,"start_time":7}]}"#;
        fs::write(directory.path().join("units"), text).expect("written");
        assert_eq!(Store::open(directory.path()).expect("readable").records(), []);
    }

    #[test]
    fn what_cannot_be_understood_is_not_thrown_away() {
        let directory = tempfile::tempdir().expect("a directory");
        for text in ["", "{", r#"{"version":2,"boot":"","units":[]}"#] {
            fs::write(directory.path().join("units"), text).expect("written");
            assert!(matches!(Store::open(directory.path()), Err(SystemError::Units { .. })));
        }
    }
}
