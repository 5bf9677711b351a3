//! The file that a service writes to, which the supervisor rotates under its hands.
//!
//! `api.log` and the files rotated from it, `api.log.1` (the newest) and on, are one stream. A
//! rotation moves the beginning of `api.log` to a new `api.log.1`: all of it, or as many blocks as
//! the file system can cut off. So a place in the stream is an offset in `api.log` and which file
//! is the newest rotated one; when that is another, the offset counts from the beginning of those
//! that are new. While a rotation is under way, `api.log.new` is there: nothing is read meanwhile.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

/// How much is read at a time, in bytes.
const BLOCK: u64 = 64 * 1024;

/// As many looks a rotation may take. One that was cut short leaves its file behind for ever.
const PATIENCE: u32 = 20;

/// Most rotated files that there are.
const MOST_ROTATED: u32 = 1000;

/// Tells a rotated file from its successors, which may get the inode of one that is gone.
type Identity = (u64, i64, i64);

fn identity(found: &Metadata) -> Identity {
    (found.ino(), found.mtime(), found.mtime_nsec())
}

/// A log, and how far it was read.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    offset: u64,
    newest: Option<Identity>,
    /// Looks in a row that found a rotation under way.
    looks: u32,
}

impl LogFile {
    pub(super) fn new(path: PathBuf) -> LogFile {
        LogFile { path, offset: 0, newest: None, looks: 0 }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the last lines, at most `count`, and goes to the end.
    pub(super) fn last(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let newest = self.identity_of(1);
        let mut blocks = Vec::new();
        let mut ends = 0;
        self.newest = newest;
        for (number, file) in self.files(MOST_ROTATED)? {
            let length = file.metadata()?.len();
            if number == 0 {
                self.offset = length;
            }
            let mut at = length;
            while at > 0 && ends <= count {
                let from = at.saturating_sub(BLOCK);
                let block = read_at(&file, from, at)?;
                ends += block.split(|byte| *byte == b'\n').count() - 1;
                blocks.push(block);
                at = from;
            }
            if ends > count {
                break;
            }
        }
        let end: Vec<u8> = blocks.into_iter().rev().flatten().collect();
        Ok(last_lines(&end, count).to_vec())
    }

    /// Reads on, a part at a time; nothing when nothing came.
    pub(super) fn more(&mut self) -> io::Result<Vec<u8>> {
        if self.is_rotating() {
            return Ok(Vec::new());
        }
        let rotated = self.rotated_meanwhile()?;
        if !rotated.is_empty() {
            return self.read_rotated(&rotated);
        }
        let Some(mut file) = there(File::open(&self.path))? else { return Ok(Vec::new()) };
        let length = file.metadata()?.len();
        // Without a rotated file to have it, the beginning is gone.
        let offset = if length < self.offset { 0 } else { self.offset };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(offset))?;
        file.take(BLOCK).read_to_end(&mut bytes)?;
        // It may have been rotated between the look and the reading.
        if self.has_new_file() || !self.rotated_meanwhile()?.is_empty() {
            return Ok(Vec::new());
        }
        self.offset = offset + bytes.len() as u64;
        Ok(bytes)
    }

    /// Reads the rest of what was rotated, the oldest first, and goes to where it ended.
    fn read_rotated(&mut self, rotated: &[File]) -> io::Result<Vec<u8>> {
        let newest = rotated.first().map(File::metadata).transpose()?;
        let mut bytes = Vec::new();
        let mut offset = self.offset;
        for file in rotated.iter().rev() {
            let length = file.metadata()?.len();
            if offset < length {
                bytes.extend(read_at(file, offset, length)?);
            }
            offset = offset.saturating_sub(length);
        }
        self.newest = newest.as_ref().map(identity);
        self.offset = offset;
        if bytes.is_empty() { self.more() } else { Ok(bytes) }
    }

    /// Opens the rotated files that were none when it was looked last, the newest first.
    fn rotated_meanwhile(&self) -> io::Result<Vec<File>> {
        if self.identity_of(1) == self.newest {
            return Ok(Vec::new());
        }
        let mut new = Vec::new();
        for (number, file) in self.files(MOST_ROTATED)? {
            if number > 0 {
                if Some(identity(&file.metadata()?)) == self.newest {
                    break;
                }
                new.push(file);
            }
        }
        Ok(new)
    }

    /// Opens the log and the files rotated from it, the newest first. The first of these may be
    /// missing: it is on its way.
    fn files(&self, most: u32) -> io::Result<Vec<(u32, File)>> {
        let mut files = Vec::new();
        for number in 0..=most {
            let path = if number == 0 { self.path.clone() } else { self.rotated(number) };
            match there(File::open(path))? {
                Some(file) => files.push((number, file)),
                None if number > 1 => break,
                None => {}
            }
        }
        Ok(files)
    }

    fn is_rotating(&mut self) -> bool {
        self.looks = if self.has_new_file() { self.looks.saturating_add(1) } else { 0 };
        (1..PATIENCE).contains(&self.looks)
    }

    fn has_new_file(&self) -> bool {
        self.looks < PATIENCE && self.beside(".new").exists()
    }

    fn identity_of(&self, number: u32) -> Option<Identity> {
        fs::metadata(self.rotated(number)).ok().as_ref().map(identity)
    }

    fn rotated(&self, number: u32) -> PathBuf {
        self.beside(&format!(".{number}"))
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(ending);
        path.into()
    }
}

fn there(opened: io::Result<File>) -> io::Result<Option<File>> {
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads from one offset to another, or to the end where that is nearer by now.
fn read_at(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; (to - from) as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], from + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The last lines of a text; one without its end counts.
fn last_lines(text: &[u8], count: usize) -> &[u8] {
    if count == 0 {
        return &[];
    }
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    ends.nth(count - 1).map_or(text, |(at, _)| &text[at + 1..])
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A log in a directory of its own, as the supervisor writes and rotates it.
    struct Written(PathBuf);

    impl Written {
        fn new(name: &str) -> Written {
            let directory =
                std::env::temp_dir().join(format!("ipctl-{name}-{}", std::process::id()));
            fs::create_dir_all(&directory).expect("a directory");
            Written(directory)
        }

        fn log(&self) -> PathBuf {
            self.0.join("api.log")
        }

        fn write(&self, text: &str) {
            let mut file =
                File::options().create(true).append(true).open(self.log()).expect("a log");
            file.write_all(text.as_bytes()).expect("room");
        }

        /// Moves so many bytes from the beginning of the log to `api.log.1`.
        fn rotate(&self, count: usize) {
            let name = |number: u32| self.0.join(format!("api.log.{number}"));
            for number in [2, 1] {
                if name(number).exists() {
                    fs::rename(name(number), name(number + 1)).expect("renamed");
                }
            }
            let text = fs::read(self.log()).expect("a log");
            fs::write(name(1), &text[..count]).expect("room");
            fs::write(self.log(), &text[count..]).expect("room");
        }
    }

    impl Drop for Written {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn all(file: &mut LogFile) -> String {
        let mut all = Vec::new();
        loop {
            let more = file.more().expect("readable");
            if more.is_empty() {
                return String::from_utf8(all).expect("text");
            }
            all.extend(more);
        }
    }

    fn last(log: &Written, count: usize) -> String {
        let last = LogFile::new(log.log()).last(count).expect("readable");
        String::from_utf8(last).expect("text")
    }

    #[test]
    fn the_last_lines_reach_into_rotated_files() {
        let log = Written::new("last");
        assert_eq!(last(&log, 3), "");
        log.write("one\ntwo\nthree\n");
        log.rotate(5);
        log.write("four");
        assert_eq!(last(&log, 0), "");
        assert_eq!(last(&log, 1), "four");
        assert_eq!(last(&log, 3), "two\nthree\nfour");
        assert_eq!(last(&log, 9), "one\ntwo\nthree\nfour");
        log.write(&format!("\n{}\nend\n", "x".repeat(200_000)));
        assert_eq!(last(&log, 2).len(), 200_005);
        assert!(last(&log, 3).starts_with("four\n"));
    }

    #[test]
    fn rotations_are_followed_without_loss_and_without_repetition() {
        let log = Written::new("follow");
        log.write("a1\na2\na3\n");
        let mut file = LogFile::new(log.log());
        assert_eq!(file.last(1).expect("readable"), b"a3\n");
        assert_eq!(all(&mut file), "");
        log.write("b1\n");
        log.rotate(12);
        log.write("b2\n");
        assert_eq!(all(&mut file), "b1\nb2\n", "all of it was moved");
        log.write("c1\nc2\n");
        log.rotate(4);
        assert_eq!(all(&mut file), "c1\nc2\n", "its beginning was moved, in the middle of a line");
        log.rotate(2);
        log.write(&"d\n".repeat(50));
        assert_eq!(all(&mut file), "d\n".repeat(50), "it is longer than before");
        log.write("e1\n");
        log.rotate(100);
        log.rotate(1);
        log.write("e2\n");
        assert_eq!(all(&mut file), "e1\ne2\n", "it was moved twice");
    }

    #[test]
    fn a_log_that_is_cut_without_a_copy_is_read_from_its_beginning() {
        let log = Written::new("cut");
        let mut file = LogFile::new(log.log());
        assert_eq!(all(&mut file), "", "it is not there yet");
        log.write("before\n");
        assert_eq!(all(&mut file), "before\n");
        fs::write(log.log(), "new\n").expect("room");
        assert_eq!(all(&mut file), "new\n");
    }

    #[test]
    fn a_rotation_under_way_is_waited_for_but_not_for_ever() {
        let log = Written::new("moving");
        log.write("text\n");
        let mut file = LogFile::new(log.log());
        fs::write(log.0.join("api.log.new"), "").expect("room");
        for _ in 1..PATIENCE {
            assert_eq!(file.more().expect("readable"), b"");
        }
        assert_eq!(file.more().expect("readable"), b"text\n", "nobody ends that rotation");
    }
}
