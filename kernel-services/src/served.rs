//! At which epoch each name was served last, for the next runtime: a process that was passed over,
//! and hears of it only after a restart, says that it serves still, and must not be believed. And
//! which id it had: its callers know it by that, though all who served it are gone.
//!
//! The file `served` is a journal, a line for each time that a name is taken, before anybody hears
//! of it:
//!
//! ```text
//!   epoch id name
//!   epoch 0
//! ```
//! The last line of a name counts, and is whole only with its end. One without a name is for all
//! that are not told of: of many names those that were taken longest ago are forgotten.
//! Who served one of these, or comes back to a runtime that has no such file, gets the name at a
//! new epoch.
//!
//! It is written and not synced: it has to outlive the runtime, and not the machine, with which all
//! who could come back would have ended, too. A journal that cannot be written is removed.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use ipc::ServiceId;

/// Names that are told apart. Beyond, the older half of them is forgotten.
const MOST: usize = 65_536;
/// Lines beyond those that count, before the journal is written anew.
const IDLE_LINES: usize = 4096;
/// Longest journal that is read.
const MOST_BYTES: u64 = 64 << 20;
/// In place of all names that are not told of. No name is empty.
const OTHERS: &str = "";

/// The last epochs of names.
#[derive(Debug, Default)]
pub(crate) struct Served {
    last: HashMap<String, Last>,
    /// The last epoch of all that are forgotten.
    others: u64,
    journal: Option<Journal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Last {
    epoch: u64,
    id: ServiceId,
}

#[derive(Debug)]
struct Journal {
    directory: PathBuf,
    file: Option<File>,
    lines: usize,
}

impl Served {
    /// Opens the journal of a directory whose lock the caller holds. `first` is the first epoch
    /// that no earlier run has reserved.
    pub(crate) fn open(directory: &Path, first: u64) -> Served {
        let read = read(&directory.join("served"));
        // Without a journal nobody who comes back is believed.
        let (last, others) = read.unwrap_or_else(|_| (HashMap::new(), first));
        let journal = Journal { directory: directory.to_owned(), file: None, lines: 0 };
        let mut served = Served { last, others, journal: Some(journal) };
        served.write_anew();
        served
    }

    /// The last epoch at which a name was served, or one above it; 0 if it never was.
    pub(crate) fn last(&self, name: &str) -> u64 {
        self.last.get(name).map_or(self.others, |last| last.epoch)
    }

    /// The id that a name had, if it is known.
    pub(crate) fn id(&self, name: &str) -> Option<ServiceId> {
        self.last.get(name).map(|last| last.id)
    }

    /// Notes that a name, of this id, is served at an epoch, unless that is known.
    /// `is_served` says which are served now: those are not forgotten.
    pub(crate) fn note(
        &mut self,
        name: &str,
        id: ServiceId,
        epoch: u64,
        is_served: impl Fn(&str) -> bool,
    ) {
        let now = Last { epoch, id };
        match self.last.get_mut(name) {
            Some(last) if *last == now => return,
            Some(last) => *last = now,
            None => drop(self.last.insert(name.to_owned(), now)),
        }
        if self.last.len() > MOST {
            self.forget(is_served);
            return self.write_anew();
        }
        let Some(journal) = &mut self.journal else { return };
        let told = journal.append(&line(now, name));
        if !told || journal.lines > IDLE_LINES + 2 * self.last.len() {
            self.write_anew();
        }
    }

    /// Forgets the names that were taken longest ago: epochs of all names come from one counter.
    fn forget(&mut self, is_served: impl Fn(&str) -> bool) {
        let mut epochs: Vec<u64> = self.last.values().map(|last| last.epoch).collect();
        let middle = epochs.len() / 2;
        let (_, &mut until, _) = epochs.select_nth_unstable(middle);
        self.others = self.others.max(until);
        self.last.retain(|name, last| last.epoch > until || is_served(name));
    }

    fn write_anew(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        let mut text = line(Last { epoch: self.others, id: ServiceId::NONE }, OTHERS);
        self.last.iter().for_each(|(name, last)| text.push_str(&line(*last, name)));
        journal.lines = self.last.len();
        journal.file = journal.replace(&text).ok();
        if journal.file.is_none() {
            // What is there says less than what is so: without it nobody is believed.
            let _ = fs::remove_file(journal.directory.join("served"));
        }
    }
}

impl Journal {
    fn append(&mut self, line: &str) -> bool {
        self.lines += 1;
        self.file.as_mut().is_some_and(|file| file.write_all(line.as_bytes()).is_ok())
    }

    fn replace(&self, text: &str) -> io::Result<File> {
        let new = self.directory.join("served.new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&new, self.directory.join("served"))?;
        Ok(file)
    }
}

fn line(Last { epoch, id }: Last, name: &str) -> String {
    format!("{epoch} {} {name}\n", id.get())
}

fn parse(line: &str) -> Option<(Last, &str)> {
    let mut parts = line.splitn(3, ' ');
    let epoch = parts.next()?.parse().ok()?;
    let id = ServiceId::new(parts.next()?.parse().ok()?);
    Some((Last { epoch, id }, parts.next()?))
}

fn read(path: &Path) -> io::Result<(HashMap<String, Last>, u64)> {
    let mut text = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    if file.take(MOST_BYTES + 1).read_to_end(&mut text)? as u64 > MOST_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let text = String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData)?;
    let (mut last, mut others) = (HashMap::new(), None);
    // A line without its end was not written before its runtime died: nobody has heard of it.
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        match parse(line).ok_or(io::ErrorKind::InvalidData)? {
            (of_others, OTHERS) => others = Some(of_others.epoch),
            (of_one, name) => drop(last.insert(name.to_owned(), of_one)),
        }
    }
    Ok((last, others.ok_or(io::ErrorKind::InvalidData)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ServiceId = ServiceId::new(8);

    #[test]
    fn the_next_run_knows_the_last_epoch_of_each_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut served = Served::open(directory.path(), 0);
        assert_eq!(served.last("a name"), 0);
        served.note("a name", ID, 7, |_| false);
        served.note("other", ServiceId::new(9), 3, |_| false);
        served.note("a name", ID, 9, |_| false);
        drop(served);
        for _ in 0..2 {
            let served = Served::open(directory.path(), 64);
            assert_eq!(["a name", "other", "third"].map(|it| served.last(it)), [9, 3, 0]);
            assert_eq!(["a name", "third"].map(|it| served.id(it)), [Some(ID), None]);
        }
        // What a crash cut short was told to nobody.
        let path = directory.path().join("served");
        let mut file = OpenOptions::new().append(true).open(&path).expect("a journal");
        file.write_all(b"11 8 a name\n12 9 oth").expect("ours");
        let served = Served::open(directory.path(), 64);
        assert_eq!(["a name", "other"].map(|it| served.last(it)), [11, 3]);
    }

    #[test]
    fn without_a_sound_journal_nobody_who_comes_back_is_believed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("served");
        for damaged in ["", "5 8 a name\n", "0 0 \nx\n", "0 0 \n5 x a name\n"] {
            fs::write(&path, damaged).expect("ours");
            assert_eq!(Served::open(directory.path(), 64).last("a name"), 64, "{damaged:?}");
        }
        fs::remove_file(&path).expect("ours");
        let mut served = Served::open(directory.path(), 64);
        assert_eq!(served.last("a name"), 64);
        served.note("a name", ID, 65, |_| false);
        let served = Served::open(directory.path(), 128);
        assert_eq!((served.last("a name"), served.last("other")), (65, 64));
    }

    #[test]
    fn the_journal_stays_short_and_what_is_forgotten_is_above_all_that_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut served = Served::open(directory.path(), 0);
        for epoch in 1..20_000 {
            served.note("name", ID, epoch, |_| false);
        }
        let length = fs::metadata(directory.path().join("served")).expect("a file").len();
        assert!(length < 100_000, "{length}");
        for epoch in 0..=MOST as u64 {
            served.note(&format!("{epoch}"), ID, 20_000 + epoch, |_| false);
        }
        assert!(served.last.len() <= MOST / 2 + 1, "{}", served.last.len());
        let served = Served::open(directory.path(), u64::MAX);
        assert!(served.last("name") >= 19_999 && served.last("0") >= 20_000);
        assert_eq!(served.last(&format!("{MOST}")), 20_000 + MOST as u64);
    }
}
