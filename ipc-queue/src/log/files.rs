//! Segments in files: the journal. What is acknowledged is on the disk.
//!
//! Several queues are committed at a time: each one's records are one write and one `fdatasync`,
//! linked, and all of these are under way together (`log/ring.rs`); where the kernel gives no
//! `io_uring`, or a sandbox denies it, they are made one after the other. A file has its whole
//! length before it gets its name, so that appending needs no more room on the disk.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, posix_fallocate},
};

use super::{
    Blueprint, Chunk, Log, Outcome,
    ring::{Job, Ring},
    salt,
};
use crate::{
    failpoint::{At, reach},
    machine::Trouble,
    record::Record,
    scan::{Header, MOST_BYTES},
};

/// The log of a queue whose messages are on the disk.
#[derive(Debug)]
pub struct FileLog {
    log: Log,
    directory: PathBuf,
    current: Option<File>,
    broken: bool,
    /// Nobody else writes here.
    _lock: Flock<File>,
}

/// Records that are to be stored, and how far that came.
#[derive(Debug)]
pub struct Work<'a> {
    /// Of this queue.
    pub log: &'a mut FileLog,
    /// What is left.
    pub records: VecDeque<Record>,
    /// So far.
    pub outcome: Outcome,
}

/// What stores journals: with a ring, or without.
#[derive(Debug)]
pub struct Writer {
    ring: Option<Ring>,
}

impl Writer {
    /// Takes `io_uring` where there is one, if it may.
    pub fn new(may_use_ring: bool) -> Writer {
        Writer { ring: may_use_ring.then(Ring::new).and_then(Result::ok) }
    }

    /// Says by what it stores.
    pub fn means(&self) -> &'static str {
        if self.ring.is_some() { "io_uring" } else { "pwrite and fdatasync" }
    }

    /// Stores records of several queues. When this returns, those that it says are on the disk.
    pub fn commit(&mut self, work: &mut [Work<'_>]) {
        loop {
            let mut chunks: Vec<Option<Chunk>> = Vec::with_capacity(work.len());
            for it in work.iter_mut() {
                chunks.push(it.next_chunk());
            }
            if chunks.iter().all(Option::is_none) {
                break;
            }
            self.write(work, &chunks);
        }
        for it in work {
            it.log.delete_needless();
        }
    }

    fn write(&mut self, work: &mut [Work<'_>], chunks: &[Option<Chunk>]) {
        let mut jobs = Vec::with_capacity(work.len());
        for (it, chunk) in work.iter().zip(chunks) {
            if let (Some(chunk), Some(file)) = (chunk, &it.log.current) {
                jobs.push(Job { file, offset: chunk.offset, bytes: &chunk.bytes });
            }
        }
        reach_half(&jobs);
        let results = match &mut self.ring {
            Some(ring) => ring.write_and_sync(&jobs),
            None => jobs.iter().map(Job::write_and_sync).collect(),
        };
        reach(At::BatchSynced);
        let mut results = results.into_iter();
        for (it, chunk) in work.iter_mut().zip(chunks) {
            let Some(chunk) = chunk else { continue };
            match results.next() {
                Some(Ok(())) => it.outcome.0 += it.log.log.stored(chunk),
                failed => it.fail(chunk, failed.and_then(Result::err)),
            }
        }
    }
}

/// A test may have us die when half of it is written.
fn reach_half(jobs: &[Job<'_>]) {
    if cfg!(feature = "failpoints") {
        for job in jobs {
            let half = &job.bytes[..job.bytes.len() / 2];
            let _ = job.file.write_all_at(half, job.offset);
        }
        reach(At::BatchHalfWritten);
        for job in jobs {
            let _ = job.file.write_all_at(job.bytes, job.offset);
        }
        reach(At::BatchWritten);
    }
}

impl Work<'_> {
    /// Lays out what fits; makes a segment where nothing does.
    fn next_chunk(&mut self) -> Option<Chunk> {
        if self.outcome.1.is_some() {
            return None;
        }
        if self.log.broken {
            self.outcome.1 = Some(Trouble::Broken);
            return None;
        }
        loop {
            if let Some(chunk) = self.log.log.lay_out(&mut self.records) {
                return Some(chunk);
            }
            let blueprint = self.log.log.design(self.records.front()?, salt());
            if self.log.make(&blueprint).is_err() {
                self.outcome.1 = Some(Trouble::NoRoom);
                return None;
            }
            self.log.log.made(&blueprint);
        }
    }

    /// What a failed write left must not be taken for records later.
    fn fail(&mut self, chunk: &Chunk, error: Option<io::Error>) {
        self.log.log.give_up_segment();
        let is_room = error.is_some_and(|error| {
            matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOSPC | Errno::EDQUOT))
        });
        let is_clean = is_room
            && self.log.current.take().is_some_and(|file| {
                let zeros = vec![0; chunk.bytes.len()];
                file.write_all_at(&zeros, chunk.offset).and_then(|()| file.sync_data()).is_ok()
            });
        // After a sync that failed nobody can say what the disk has.
        self.log.broken = !is_clean;
        self.outcome.1 = Some(if is_clean { Trouble::NoRoom } else { Trouble::Broken });
    }
}

/// A segment found on the disk.
#[derive(Debug)]
pub struct FoundFile {
    /// Its header.
    pub header: Header,
    /// All its bytes.
    pub bytes: Vec<u8>,
}

/// What a queue's directory has.
#[derive(Debug, Default)]
pub struct Found {
    /// The segments, by number.
    pub segments: Vec<FoundFile>,
    /// Numbers of files that are segments no more: they are kept, under another name.
    pub unreadable: Vec<u64>,
    /// What people should know.
    pub remarks: Vec<String>,
}

/// Takes a queue's directory, which nobody else may have, and gives what it has: all of that is on
/// the disk from now on. Files that are not called as segments are left alone; those that are, and
/// have no header at either end, are called `NUMBER.damaged` from now on.
///
/// # Errors
/// Those of the file system; `WouldBlock` when another process has the queue; `Unsupported` when
/// there is a segment of another version.
pub fn open(directory: &Path) -> io::Result<(Flock<File>, Found)> {
    let is_new = !directory.exists();
    fs::create_dir_all(directory)?;
    if let (true, Some(parent)) = (is_new, directory.parent()) {
        sync_directory(parent)?;
    }
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(directory.join("lock"))?;
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    let mut found = Found::default();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        match path.extension().and_then(std::ffi::OsStr::to_str) {
            // Of a process that died before it was named: nothing of it was acknowledged.
            Some("new") => fs::remove_file(&path)?,
            Some("log") => {
                let Some(number) = number(&path) else { continue };
                if let Some(file) = read(&path, number, &mut found.remarks)? {
                    found.segments.push(file);
                    continue;
                }
                fs::rename(&path, path.with_extension("damaged"))?;
                found.remarks.push(format!(
                    "segment {number} has no header any more: all that stood there is lost, and \
                     the file is kept as {number:016x}.damaged"
                ));
                found.unreadable.push(number);
            }
            // Of an earlier run.
            Some("damaged") => found.unreadable.extend(number(&path)),
            _ => {}
        }
    }
    sync_directory(directory)?;
    found.segments.sort_by_key(|it| it.header.number);
    Ok((lock, found))
}

/// The number by which a file is called.
fn number(path: &Path) -> Option<u64> {
    let stem = path.file_stem()?.to_str().filter(|it| it.len() == 16)?;
    u64::from_str_radix(stem, 16).ok()
}

/// Reads a segment; nothing where neither its header nor the copy of it says that it is one.
fn read(path: &Path, number: u64, remarks: &mut Vec<String>) -> io::Result<Option<FoundFile>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len().min(MOST_BYTES);
    // A process that died may have written more than it synced: what we answer for is to last.
    file.sync_data()?;
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let of_number = |header: &Header| header.number == number;
    if let Some(header) = Header::decode(&bytes).filter(of_number) {
        return Ok(Some(FoundFile { header, bytes }));
    }
    if let Some(header) = Header::decode_copy(&bytes).filter(of_number) {
        remarks.push(format!("the header of segment {number} is damaged: its copy is whole"));
        return Ok(Some(FoundFile { header, bytes }));
    }
    match Header::version(&bytes) {
        // By another program, which may know what to do with it.
        Some(version) if Header::decode(&bytes).is_none() => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("segment {number} is of version {version}, which this program cannot read"),
        )),
        _ => Ok(None),
    }
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.log"))
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

impl FileLog {
    /// Goes on behind the segments that were found.
    pub fn new(log: Log, directory: &Path, lock: Flock<File>) -> FileLog {
        FileLog { log, directory: directory.to_owned(), current: None, broken: false, _lock: lock }
    }

    /// As [`Log::to_move`].
    pub fn to_move(&mut self) -> Vec<u64> {
        self.log.to_move()
    }

    #[cfg(test)]
    pub(super) fn secret(&self) -> Option<crate::identity::Secret> {
        self.log.ledger.secret
    }

    /// The number of the next segment, and the next id.
    #[cfg(test)]
    pub(super) fn next(&self) -> (u64, u64) {
        (self.log.next_number, self.log.ledger.next_id)
    }

    /// Counts the segments.
    pub fn segments(&self) -> usize {
        self.log.segments()
    }

    fn make(&mut self, blueprint: &Blueprint) -> io::Result<()> {
        let final_path = path(&self.directory, blueprint.header.number);
        let new_path = final_path.with_extension("new");
        let made = make_file(&new_path, blueprint);
        let file = made.inspect_err(|_| drop(fs::remove_file(&new_path)))?;
        reach(At::SegmentMade);
        fs::rename(&new_path, &final_path)?;
        reach(At::SegmentKept);
        sync_directory(&self.directory)?;
        self.current = Some(file);
        Ok(())
    }

    fn delete_needless(&mut self) {
        while let Some(number) = self.log.take_needless() {
            let removed = fs::remove_file(path(&self.directory, number));
            reach(At::SegmentRemoved);
            // In this order also after a crash: a later one may say what of this one is gone.
            if removed.and_then(|()| sync_directory(&self.directory)).is_err() {
                self.broken = true;
                return;
            }
        }
    }
}

fn make_file(path: &Path, blueprint: &Blueprint) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    let length = libc::off_t::try_from(blueprint.header.bytes).unwrap_or(libc::off_t::MAX);
    posix_fallocate(&file, 0, length)?;
    file.write_all_at(&blueprint.bytes, 0)?;
    file.write_all_at(&blueprint.header.encode(), blueprint.header.end_of_records())?;
    file.sync_all()?;
    Ok(file)
}
