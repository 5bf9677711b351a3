//! Reads a log from its first record to its last, and believes nothing.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use super::line::{Fault, Hash, Line, Link};

/// No line that is written is longer: five fields, each byte of them escaped.
const LONGEST: u64 = 64 * 1024;

/// What a log that holds consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Records.
    pub count: u64,
    /// The number of the first: 1, unless older files are gone.
    pub first: u64,
    /// The hash of the last; keep it elsewhere, and nothing up to here can be changed unseen.
    pub head: Hash,
    /// Records that say that the log was torn or truncated, or that records were lost.
    pub incidents: u64,
}

/// Why a log does not hold.
#[derive(Debug, thiserror::Error)]
pub enum Bad {
    /// A line is not what was written.
    #[error("{}, line {line}: {why}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong with it.
        why: Fault,
    },
    /// The end is missing.
    #[error("the end is missing: record {seq} with hash {hash} was there")]
    Truncated {
        /// The number of the record that was last; 0 where only its hash is known.
        seq: u64,
        /// Its hash.
        hash: Hash,
    },
    /// `audit.head` says nothing that can be read.
    #[error("{} is damaged", path.display())]
    Head {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Verifies a directory's log, all of its files, or one file alone.
///
/// Of one file alone the first record is taken to follow what it says that it follows; of a
/// directory likewise, where the files before the first are gone.
///
/// # Errors
/// The first [`Bad`] thing.
pub fn verify(path: &Path) -> Result<Found, Bad> {
    walk(path, None).map(|(found, _)| found)
}

/// Verifies as [`verify`] does, and that a record with that hash is in the log.
///
/// # Errors
/// The first [`Bad`] thing; [`Bad::Truncated`] when the hash is not there.
pub fn verify_to(path: &Path, head: Hash) -> Result<Found, Bad> {
    match walk(path, Some(head))? {
        (found, true) => Ok(found),
        (_, false) => Err(Bad::Truncated { seq: 0, hash: head }),
    }
}

fn walk(path: &Path, wanted: Option<Hash>) -> Result<(Found, bool), Bad> {
    let unreadable = |source| Bad::Unreadable { path: path.to_owned(), source };
    let is_directory = fs::metadata(path).map_err(unreadable)?.is_dir();
    let files = if is_directory { files(path).map_err(unreadable)? } else { vec![path.to_owned()] };
    let head = if is_directory { read_head(path)? } else { None };
    let mut walk = Walk { wanted, head, ..Walk::default() };
    for file in &files {
        walk.file(file)?;
    }
    // The log may be ahead of its head by what a crash kept from being noted, and never behind.
    if let Some(Link { seq, hash }) = walk.head {
        return Err(Bad::Truncated { seq, hash });
    }
    let Walk { count, first, last, incidents, met, .. } = walk;
    Ok((Found { count, first, head: last.hash, incidents }, met))
}

/// Lists the files of a log, oldest first.
pub(super) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = rotated(directory)?;
    let growing = directory.join("audit.log");
    if growing.exists() {
        files.push(growing);
    }
    Ok(files)
}

/// Lists the files that were rotated, oldest first.
pub(super) fn rotated(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
        let number = name.strip_prefix("audit-").and_then(|it| it.strip_suffix(".log"));
        if number.is_some_and(|it| it.len() == 20 && it.bytes().all(|it| it.is_ascii_digit())) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads `audit.head`.
pub(super) fn read_head(directory: &Path) -> Result<Option<Link>, Bad> {
    let path = directory.join("audit.head");
    match fs::read_to_string(&path) {
        Ok(text) => head_of(&text).map(Some).ok_or(Bad::Head { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Bad::Head { path }),
        Err(source) => Err(Bad::Unreadable { path, source }),
    }
}

fn head_of(text: &str) -> Option<Link> {
    let (seq, hash) = text.strip_suffix('\n')?.split_once(' ')?;
    Some(Link { seq: seq.parse().ok()?, hash: hash.parse().ok()? })
}

#[derive(Default)]
struct Walk {
    wanted: Option<Hash>,
    met: bool,
    /// What `audit.head` names, until it is met.
    head: Option<Link>,
    count: u64,
    first: u64,
    last: Link,
    incidents: u64,
}

impl Walk {
    fn file(&mut self, path: &Path) -> Result<(), Bad> {
        let unreadable = |source| Bad::Unreadable { path: path.to_owned(), source };
        let mut lines = BufReader::new(File::open(path).map_err(unreadable)?);
        let mut text = Vec::new();
        for line in 1.. {
            text.clear();
            let length = lines.by_ref().take(LONGEST).read_until(b'\n', &mut text);
            if length.map_err(unreadable)? == 0 {
                break;
            }
            let bad = |why| Bad::Line { path: path.to_owned(), line, why };
            self.line(&text).map_err(bad)?;
        }
        Ok(())
    }

    fn line(&mut self, text: &[u8]) -> Result<(), Fault> {
        let text = text.strip_suffix(b"\n").ok_or(Fault::Torn)?;
        let line = Line::read(text)?;
        if self.count > 0 {
            line.follows(self.last)?;
        } else {
            self.first = line.link.seq;
            if self.first == 1 {
                line.follows(Link::default())?;
            }
        }
        self.count += 1;
        self.last = line.link;
        self.incidents += u64::from(line.kind.is_incident());
        self.head = self.head.filter(|&head| head != line.link);
        self.met |= self.wanted == Some(line.link.hash);
        Ok(())
    }
}
