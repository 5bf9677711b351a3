//! Who serves which name, for the next runtime: it keeps the names of the living for them.
//!
//! The file `holders` is a journal, a line for each name that is served or served no more:
//!
//! ```text
//!   + instance pid start-time name
//!   - instance
//! ```
//! It is written and not synced: it has to outlive the runtime, and not the machine, with which all
//! who could come back would have ended, too. Nothing depends on it but the order in which names
//! are given out after a restart, so what cannot be written or read is passed over.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::pidfd::process_started;

/// Lines beyond those that count, before the journal is written anew.
const IDLE_LINES: usize = 4096;
/// Longest journal that is read.
const MOST_BYTES: u64 = 16 << 20;

/// Somebody who serves a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) instance: u32,
    pub(crate) pid: u32,
    pub(crate) start_time: u64,
    pub(crate) name: String,
}

impl Holder {
    fn line(&self) -> String {
        let Holder { instance, pid, start_time, name } = self;
        format!("+ {instance} {pid} {start_time} {name}\n")
    }
}

#[derive(Debug)]
pub(crate) struct Holders {
    directory: PathBuf,
    file: Option<File>,
    held: BTreeMap<u32, Holder>,
    idle_lines: usize,
}

impl Holders {
    /// Opens the journal of a directory whose lock the caller holds; gives who held names there
    /// and lives.
    pub(crate) fn open(directory: &Path) -> (Holders, Vec<Holder>) {
        let before = read(&directory.join("holders"));
        let lives = |it: &&Holder| process_started(it.pid) == Some(it.start_time);
        let living: Vec<Holder> = before.values().filter(lives).cloned().collect();
        let mut holders = Holders {
            directory: directory.to_owned(),
            file: None,
            // Until they are back, or their time is over, they count: this run may end before.
            held: living.iter().map(|it| (it.instance, it.clone())).collect(),
            idle_lines: 0,
        };
        holders.write_anew();
        (holders, living)
    }

    /// Notes who serves a name.
    pub(crate) fn hold(&mut self, holder: Holder) {
        self.append(&holder.line());
        self.held.insert(holder.instance, holder);
    }

    /// Notes that an instance has ended.
    pub(crate) fn let_go(&mut self, instance: u32) {
        if self.held.remove(&instance).is_some() {
            self.append(&format!("- {instance}\n"));
            self.idle_lines += 2;
        }
        if self.idle_lines > IDLE_LINES + self.held.len() {
            self.write_anew();
        }
    }

    fn append(&mut self, line: &str) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(line.as_bytes());
        }
    }

    fn write_anew(&mut self) {
        self.idle_lines = 0;
        let text: String = self.held.values().map(Holder::line).collect();
        self.file = self.replace(&text).ok();
    }

    fn replace(&self, text: &str) -> io::Result<File> {
        let new = self.directory.join("holders.new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&new, self.directory.join("holders"))?;
        Ok(file)
    }
}

fn read(path: &Path) -> BTreeMap<u32, Holder> {
    let mut text = String::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    // What a crash cut short, or somebody damaged, ends the list.
    let _ = file.and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text));
    let mut held = BTreeMap::new();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("+", rest)) => drop(holder(rest).map(|it| held.insert(it.instance, it))),
            Some(("-", instance)) => {
                drop(instance.parse().map(|instance: u32| held.remove(&instance)));
            }
            _ => {}
        }
    }
    held
}

fn holder(text: &str) -> Option<Holder> {
    let mut parts = text.splitn(4, ' ');
    Some(Holder {
        instance: parts.next()?.parse().ok()?,
        pid: parts.next()?.parse().ok()?,
        start_time: parts.next()?.parse().ok()?,
        name: parts.next()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(instance: u32, name: &str) -> Holder {
        let pid = std::process::id();
        let start_time = process_started(pid).expect("we live");
        Holder { instance, pid, start_time, name: name.to_owned() }
    }

    #[test]
    fn the_living_are_found_again_and_nobody_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut holders, living) = Holders::open(directory.path());
        assert_eq!(living, []);
        holders.hold(own(1, "with a space"));
        holders.hold(own(2, "left"));
        holders.hold(Holder { start_time: 1, ..own(3, "of another life") });
        holders.let_go(2);
        drop(holders);
        for _ in 0..2 {
            let (_, living) = Holders::open(directory.path());
            assert_eq!(living, [own(1, "with a space")]);
        }
        fs::write(directory.path().join("holders"), "+ x\n+ 1 2\n- \n\u{0}").expect("ours");
        assert_eq!(Holders::open(directory.path()).1, []);
    }

    #[test]
    fn the_journal_stays_short() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut holders, _) = Holders::open(directory.path());
        for instance in 0..20_000 {
            holders.hold(own(instance, "name"));
            holders.let_go(instance);
        }
        holders.hold(own(7, "kept"));
        let length = fs::metadata(directory.path().join("holders")).expect("a file").len();
        assert!(length < 200_000, "{length}");
        assert_eq!(Holders::open(directory.path()).1, [own(7, "kept")]);
    }
}
