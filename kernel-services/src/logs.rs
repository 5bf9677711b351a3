//! The files that services write their output to.
//!
//! A log is `NAME.log` in the log directory, mode 0600, open with `O_APPEND` as the service's
//! stdout and stderr: it goes on when ipcd dies, which a pipe would not. It is rotated under the
//! service's hands, into `NAME.log.1` (the newest) to `NAME.log.N`, because a service that has the
//! file open cannot be told of another one.

use std::{
    fs::{File, Permissions},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, FallocateFlags, OFlag, fallocate, open, openat, renameat},
    sys::stat::{Mode, fstatat},
    unistd::{UnlinkatFlags, geteuid, unlinkat},
};

use crate::node::Log;

/// How much of the end of a log is looked through for its last lines, in bytes.
const LOOKED_AT: u64 = 64 * 1024;

/// The longest part of a line that is shown, in bytes.
const LONGEST_LINE: usize = 4096;

/// Most rotated files of a log, whatever a node file asks for.
const MOST_KEPT: u32 = 1000;

/// How often it is copied what came meanwhile, before the file is truncated in spite of it.
const ROUNDS: u32 = 8;

/// Explains what is wrong with a log or its directory.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log directory cannot be made or opened.
    #[error("cannot open the log directory {}: {source}; make it, or change `log_directory`",
            path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is a link, a device, somebody else's, or has another name: who wrote there would
    /// write elsewhere.
    #[error("{} is not a file of our own: remove it, or change `log_directory`", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A log directory.
#[derive(Debug)]
pub struct Logs {
    path: PathBuf,
    directory: OwnedFd,
}

impl Logs {
    /// Opens the directory, and makes it (mode 0700) where it is missing.
    pub fn open(path: &Path) -> Result<Logs, LogError> {
        let failed = |source| LogError::Directory { path: path.to_owned(), source };
        if !path.exists() {
            std::os::unix::fs::DirBuilderExt::mode(
                std::fs::DirBuilder::new().recursive(true),
                0o700,
            )
            .create(path)
            .map_err(failed)?;
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let directory = open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        Ok(Logs { path: path.to_owned(), directory })
    }

    /// Opens the log of a service for appending, as its stdout and stderr.
    pub fn append(&self, service: &str) -> Result<OwnedFd, LogError> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT;
        let file = self.open_file(&current(service), flags)?;
        // A umask does not take rights that a log needs, and an older log may have had more.
        file.set_permissions(Permissions::from_mode(0o600))
            .map_err(|source| self.failed("protect", &current(service), source))?;
        Ok(file.into())
    }

    /// Rotates the log of a service if it is longer than `rotate_at`; tells whether it was.
    ///
    /// No byte written before the end of it is lost on file systems that can cut off the beginning
    /// of a file (ext4, XFS): what was copied is cut off there and nothing else, in whole blocks,
    /// so that a line may begin in `NAME.log.1` and end in `NAME.log`. Elsewhere the file is
    /// truncated, and what is written between the last look at its length and the truncation, two
    /// system calls, is lost.
    pub fn rotate(&self, service: &str, log: &Log) -> Result<bool, LogError> {
        let name = current(service);
        let mut file = match self.open_file(&name, OFlag::O_RDWR) {
            Err(LogError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(false);
            }
            opened => opened?,
        };
        let failed = |source| self.failed("rotate", &name, source);
        let length = file.metadata().map_err(failed)?.len();
        if length <= log.rotate_at {
            return Ok(false);
        }
        if log.keep == 0 {
            file.set_len(0).map_err(failed)?;
            return Ok(true);
        }
        self.shift(service, log.keep.min(MOST_KEPT))?;
        // Whole, or not there: a rotation that is cut short leaves `.new`, which the next removes.
        let new = format!("{name}.new");
        self.remove(&new)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mut copy = self.open_file(&new, flags)?;
        if !cut_beginning(&mut file, &mut copy).map_err(failed)? {
            copy_and_truncate(&mut file, &mut copy).map_err(failed)?;
        }
        self.rename(&new, &rotated(service, 1))?;
        Ok(true)
    }

    /// Reads the last lines of a service's output, at most `count`, the oldest first: of its log,
    /// and where that is too short of the one rotated last. Bytes that are not UTF-8 are replaced,
    /// and long lines cut.
    pub fn last_lines(&self, service: &str, count: usize) -> Result<Vec<String>, LogError> {
        let mut end = Vec::new();
        for name in [rotated(service, 1), current(service)] {
            match self.open_file(&name, OFlag::O_RDONLY) {
                Ok(file) => {
                    let read = end_of(&file).map_err(|source| self.failed("read", &name, source));
                    end.extend(read?);
                }
                Err(LogError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let text = end.strip_suffix(b"\n").unwrap_or(&end);
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let mut lines: Vec<String> =
            text.rsplit(|byte| *byte == b'\n').take(count).map(shown).collect();
        lines.reverse();
        Ok(lines)
    }

    /// Moves each rotated file one further; the last is gone.
    fn shift(&self, service: &str, keep: u32) -> Result<(), LogError> {
        self.remove(&rotated(service, keep))?;
        for number in (1..keep).rev() {
            let from = rotated(service, number);
            if fstatat(&self.directory, from.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() {
                self.rename(&from, &rotated(service, number + 1))?;
            }
        }
        Ok(())
    }

    fn open_file(&self, name: &str, flags: OFlag) -> Result<File, LogError> {
        // Opening a FIFO that somebody put there would wait for its other end.
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = match openat(&self.directory, name, flags, mode) {
            Ok(file) => File::from(file),
            Err(Errno::ELOOP | Errno::ENXIO | Errno::EISDIR) => return Err(self.not_ours(name)),
            Err(errno) => return Err(self.failed("open", name, errno.into())),
        };
        let found = file.metadata().map_err(|source| self.failed("open", name, source))?;
        let ours = found.is_file() && found.uid() == geteuid().as_raw() && found.nlink() == 1;
        if ours { Ok(file) } else { Err(self.not_ours(name)) }
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), LogError> {
        renameat(&self.directory, from, &self.directory, to)
            .map_err(|errno| self.failed("rename", from, errno.into()))
    }

    fn remove(&self, name: &str) -> Result<(), LogError> {
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.failed("remove", name, errno.into())),
        }
    }

    fn not_ours(&self, name: &str) -> LogError {
        LogError::NotOurs { path: self.path.join(name) }
    }

    fn failed(&self, what: &'static str, name: &str, source: io::Error) -> LogError {
        LogError::File { what, path: self.path.join(name), source }
    }
}

fn current(service: &str) -> String {
    format!("{service}.log")
}

fn rotated(service: &str, number: u32) -> String {
    format!("{service}.log.{number}")
}

/// Copies whole blocks and cuts them off the beginning of the file, which loses nothing: writers
/// append at the end, wherever that is. `false` where the file system cannot.
fn cut_beginning(file: &mut File, copy: &mut File) -> io::Result<bool> {
    let found = file.metadata()?;
    // The kernel cuts no file down to nothing: the last block stays, whole or begun.
    let length = (found.len().saturating_sub(1) / found.blksize()) * found.blksize();
    if length == 0 {
        return Ok(false);
    }
    io::copy(&mut Read::by_ref(file).take(length), copy)?;
    let length = i64::try_from(length).map_err(io::Error::other)?;
    if fallocate(file.as_fd(), FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, length).is_ok() {
        return Ok(true);
    }
    file.rewind()?;
    copy.set_len(0)?;
    copy.rewind()?;
    Ok(false)
}

/// Copies the file, then again and again what was appended meanwhile, until that is nothing.
fn copy_and_truncate(file: &mut File, copy: &mut File) -> io::Result<()> {
    for _ in 0..ROUNDS {
        io::copy(file, copy)?;
        copy.flush()?;
        if file.metadata()?.len() == file.stream_position()? {
            break;
        }
    }
    file.set_len(0)
}

fn end_of(file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LOOKED_AT);
    let mut end = vec![0; (length - from) as usize];
    let mut filled = 0;
    // It may be truncated meanwhile.
    while filled < end.len() {
        match file.read_at(&mut end[filled..], from + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    end.truncate(filled);
    Ok(end)
}

fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(LONGEST_LINE)]).into_owned()
}
