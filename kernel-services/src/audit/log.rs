//! The log that grows: buffered records, one write and one sync a flush, rotation, recovery.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    Hash, Kind, PENDING, Record,
    line::{self, Line, Link},
    verify::{read_head, rotated},
};
use crate::directory::is_private;

/// Bytes at the end of a file among which its last whole record is looked for at first.
const TAIL: u64 = 256 * 1024;

/// How much of a log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// A file of at least so many bytes is rotated.
    pub rotate_at: u64,
    /// Rotated files kept.
    pub files: usize,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep { rotate_at: 64 << 20, files: 64 }
    }
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read or written.
    #[error("cannot open the audit log: {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else could have written it.
    #[error(
        "{} is not a file that its owner alone can use (mode 0600): others may have written it; \
         look at it, and move it away", path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
    },
}

/// Records are not on disk. They wait, and the next flush tries again; nothing else is affected.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} the audit log: {source}; {records} records wait, {lost} are lost")]
pub struct Unwritten {
    /// What was being done.
    pub what: &'static str,
    /// Records that wait.
    pub records: u64,
    /// Records for which there was no room since the last flush that succeeded.
    pub lost: u64,
    /// What the system said.
    pub source: io::Error,
}

/// An audit log that this process alone writes: its caller holds the runtime directory's lock.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    keep: Keep,
    file: File,
    head: File,
    /// Bytes of the file that are durable. What is written stands behind.
    durable: u64,
    pending: String,
    records: u64,
    lost: u64,
    /// Of the last record, durable or pending.
    link: Link,
}

impl Log {
    /// Opens the log of a directory, or begins one, and continues its chain.
    ///
    /// What is unfinished or damaged at its end is moved to a file beside it. That, an end that is
    /// missing, and the opening itself become the first records; [`Log::flush`] writes them.
    ///
    /// # Errors
    /// [`OpenError`], by its variants.
    pub fn open(directory: &Path, keep: Keep, now_us: u64) -> Result<Log, OpenError> {
        let path = directory.join("audit.log");
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::File { path, source }
        };
        let file = open_own(&path)?;
        let head = open_own(&directory.join("audit.head"))?;
        let length = file.metadata().map_err(failed(&path))?.len();
        let (durable, last) = last_whole(&file, length).map_err(failed(&path))?;
        let link = match last {
            Some(link) => link,
            None => last_rotated(directory).map_err(failed(directory))?,
        };
        let mut log = Log {
            directory: directory.to_owned(),
            keep,
            file,
            head,
            durable,
            pending: String::new(),
            records: 0,
            lost: 0,
            link,
        };
        let truncated = log.what_is_missing();
        if durable < length {
            let aside = log.cut_off(length, now_us).map_err(failed(&path))?;
            let bytes = length - durable;
            log.note(Kind::Torn, &format!("{bytes} bytes, moved to {aside}"), now_us);
        }
        if let Some(why) = truncated {
            log.note(Kind::Truncated, &why, now_us);
        }
        log.note(Kind::Opened, &format!("pid {}", std::process::id()), now_us);
        Ok(log)
    }

    /// Takes a record; the next flush makes it durable. `now_us` is Unix time in microseconds.
    pub fn record(&mut self, record: &Record<'_>, now_us: u64) {
        if self.pending.len() >= PENDING {
            self.lost += 1;
            return;
        }
        self.link = line::write(&mut self.pending, self.link, now_us, record);
        self.records += 1;
    }

    /// Makes durable what was recorded: one write and one `fdatasync`, and nothing if nothing was.
    ///
    /// # Errors
    /// [`Unwritten`]: the records wait for the next flush, which begins where this one did.
    pub fn flush(&mut self, now_us: u64) -> Result<(), Unwritten> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.write_pending()?;
        if self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            self.note(Kind::Lost, &format!("{lost} records: there was no room"), now_us);
            self.write_pending()?;
        }
        // In place, and not synced: after a crash it may be older than the log, which is no fault.
        let Link { seq, hash } = self.link;
        let noted = self.head.write_all_at(format!("{seq:020} {hash}\n").as_bytes(), 0);
        noted.map_err(|source| self.unwritten("note the head of", source))?;
        if self.durable >= self.keep.rotate_at {
            self.rotate().map_err(|source| self.unwritten("rotate", source))?;
        }
        Ok(())
    }

    /// Gives the hash of the last record, durable or not.
    pub fn head(&self) -> Hash {
        self.link.hash
    }

    /// Writes all that is pending behind what is durable, over what a failed attempt left there:
    /// after a failed sync the kernel may have forgotten the pages that it could not write.
    fn write_pending(&mut self) -> Result<(), Unwritten> {
        let written = self.file.write_all_at(self.pending.as_bytes(), self.durable);
        written.map_err(|source| self.unwritten("write", source))?;
        self.file.sync_data().map_err(|source| self.unwritten("sync", source))?;
        self.durable += self.pending.len() as u64;
        self.pending.clear();
        self.records = 0;
        Ok(())
    }

    fn unwritten(&self, what: &'static str, source: io::Error) -> Unwritten {
        Unwritten { what, records: self.records, lost: self.lost, source }
    }

    fn note(&mut self, kind: Kind, because: &str, now_us: u64) {
        let record = Record { because: because.into(), ..Record::new(kind, "audit log") };
        self.record(&record, now_us);
    }

    /// Compares the last record with what `audit.head` says was the last.
    fn what_is_missing(&self) -> Option<String> {
        let Link { seq, hash } = match read_head(&self.directory) {
            // Just made, beside a log that it should have known.
            _ if self.head.metadata().is_ok_and(|it| it.len() == 0) => {
                return (self.link.seq > 0).then(|| "audit.head was missing".to_owned());
            }
            Ok(Some(head)) => head,
            Ok(None) | Err(_) => return Some("audit.head was damaged".to_owned()),
        };
        let behind = self.link.seq < seq || (self.link.seq == seq && self.link.hash != hash);
        behind.then(|| format!("record {seq} with hash {hash} was there"))
    }

    /// Moves what stands behind the last whole record to a file beside the log, whose name it
    /// gives, and ends the log there.
    fn cut_off(&self, length: u64, now_us: u64) -> io::Result<String> {
        let name = format!("audit-torn-{:020}-{now_us}", self.link.seq);
        let aside = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.directory.join(&name))?;
        let mut at = self.durable;
        let mut block = vec![0; TAIL as usize];
        while at < length {
            let part = &mut block[..TAIL.min(length - at) as usize];
            self.file.read_exact_at(part, at)?;
            aside.write_all_at(part, at - self.durable)?;
            at += part.len() as u64;
        }
        aside.sync_all()?;
        sync_directory(&self.directory)?;
        self.file.set_len(self.durable)?;
        self.file.sync_all()?;
        Ok(name)
    }

    /// Gives the file its final name, and goes on in a new one. The new one is there before, so
    /// that nothing is ever written behind a file's last number.
    fn rotate(&mut self) -> io::Result<()> {
        let at = |name: &str| self.directory.join(name);
        let new = at("audit.log.new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = own_options().create_new(true).open(&new)?;
        let old = at(&format!("audit-{:020}.log", self.link.seq));
        fs::rename(at("audit.log"), &old)?;
        if let Err(error) = fs::rename(&new, at("audit.log")) {
            fs::rename(&old, at("audit.log"))?;
            return Err(error);
        }
        (self.file, self.durable) = (file, 0);
        sync_directory(&self.directory)?;
        let files = rotated(&self.directory)?;
        let surplus = files.len().saturating_sub(self.keep.files);
        files[..surplus].iter().try_for_each(fs::remove_file)
    }
}

fn own_options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// Opens or makes a file that is ours alone.
fn open_own(path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::File { path: path.to_owned(), source };
    let file = own_options().create(true).truncate(false).open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if is_private(&found) { Ok(file) } else { Err(OpenError::Exposed { path: path.to_owned() }) }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Finds where the last record that holds by itself ends, and what it is.
fn last_whole(file: &File, length: u64) -> io::Result<(u64, Option<Link>)> {
    for size in [TAIL.min(length), length] {
        let start = length - size;
        let mut block = vec![0; size as usize];
        file.read_exact_at(&mut block, start)?;
        if let Some((end, link)) = last_in(&block, start == 0) {
            return Ok((start + end as u64, Some(link)));
        }
    }
    Ok((0, None))
}

/// Finds the last whole record of a block; a line begins at the start of one that is `whole`.
fn last_in(block: &[u8], whole: bool) -> Option<(usize, Link)> {
    let mut end = block.len();
    loop {
        end = block[..end].iter().rposition(|&byte| byte == b'\n')?;
        let before = block[..end].iter().rposition(|&byte| byte == b'\n').map(|at| at + 1);
        let start = before.or(whole.then_some(0))?;
        if let Ok(line) = Line::read(&block[start..end]) {
            return Some((end + 1, line.link));
        }
    }
}

/// Finds where the chain stood when the last file was rotated.
fn last_rotated(directory: &Path) -> io::Result<Link> {
    let Some(path) = rotated(directory)?.pop() else { return Ok(Link::default()) };
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    last_whole(&file, length).map(|(_, link)| link.unwrap_or_default())
}

#[cfg(test)]
impl Log {
    /// Has it write to another file, and gives the one before.
    pub(super) fn write_to(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file, file)
    }
}
