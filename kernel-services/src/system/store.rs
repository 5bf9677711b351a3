//! Which processes run, written down for an ipcd that comes after this one.
//!
//! `units` in the runtime directory is replaced whole, by renaming, when a process starts or ends.
//! It is not synced: after a crash of the machine no process is left to be found.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{SystemError, say};

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

/// The file as a whole.
#[derive(Debug, Deserialize, Serialize)]
struct Contents {
    version: u32,
    /// Start times count from it.
    boot: String,
    units: Vec<Record>,
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
                let contents: Contents =
                    serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
                if contents.version != VERSION {
                    return Err(wrong(format!("it is of version {}", contents.version)));
                }
                if contents.boot == boot { contents.units } else { Vec::new() }
            }
        };
        Ok(Store { path, boot, units })
    }

    /// Takes out all that was written down; those who live on are to be remembered again.
    pub(super) fn take(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.units)
    }

    pub(super) fn remember(&mut self, record: Record) {
        self.units.push(record);
        self.write();
    }

    pub(super) fn forget(&mut self, pid: u32) {
        self.units.retain(|it| it.pid != pid);
        self.write();
    }

    fn write(&self) {
        let (boot, units) = (self.boot.clone(), self.units.clone());
        let contents = Contents { version: VERSION, boot, units };
        let fresh = self.path.with_extension("new");
        let written = serde_json::to_vec(&contents)
            .map_err(Into::into)
            .and_then(|text| {
                let mut options = OpenOptions::new();
                let mut file =
                    options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
                file.write_all(&text)
            })
            .and_then(|()| fs::rename(&fresh, &self.path));
        if let Err(error) = written {
            say(&format!(
                "cannot write {}: {error}; a restart will not find all services",
                self.path.display()
            ));
        }
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
        (1..4).for_each(|pid| store.remember(record(pid)));
        store.forget(2);
        let mut next = Store::open(directory.path()).expect("readable");
        assert_eq!(next.take(), [record(1), record(3)]);
        assert_eq!(next.take(), []);
    }

    #[test]
    fn another_boot_has_none_of_its_processes() {
        let directory = tempfile::tempdir().expect("a directory");
        let text = r#"{"version":1,"boot":"another","units":[
            {"service":"api","replica":1,"pid":1,"start_time":7}]}"#;
        fs::write(directory.path().join("units"), text).expect("written");
        assert_eq!(Store::open(directory.path()).expect("readable").take(), []);
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
