//! A file system of one file, whose server answers `FLUSH` when it is told to. The protocol is that
//! of `/dev/fuse`, by hand: the root is the file.
//!
//! The server is a process of its own: one that has the device and the file both would, when it is
//! killed, wait for itself to answer, and no signal ends that.

use std::{
    fs::{self, File, OpenOptions},
    io::{PipeReader, PipeWriter, Read, Write},
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    unistd::{alarm, getegid, geteuid},
};

use crate::{memory, say};

const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
const MODE: u32 = libc::S_IFREG | 0o644;
/// After so many seconds nobody is kept waiting any more, whatever became of the test.
const PATIENCE: u32 = 120;

/// A file, and what has its server answer.
#[derive(Debug)]
pub(crate) struct Fuse {
    pub(crate) file: File,
    leash: PipeWriter,
}

impl Fuse {
    /// Mounts it where this process alone sees it, and opens the file. It says `flushing` whenever
    /// somebody who closes it begins to wait.
    pub(crate) fn mount(directory: &str) -> Result<Fuse, String> {
        let failed = |what: &'static str| move |error| format!("{what}: {error}");
        let (uid, gid) = (geteuid(), getegid());
        let is_root = uid.is_root();
        let spaces = if is_root { CloneFlags::empty() } else { CloneFlags::CLONE_NEWUSER };
        unshare(spaces | CloneFlags::CLONE_NEWNS).map_err(failed("a name space"))?;
        if !is_root {
            let maps = [("setgroups", "deny".to_owned()), ("uid_map", format!("{uid} {uid} 1"))];
            for (file, text) in maps.into_iter().chain([("gid_map", format!("{gid} {gid} 1"))]) {
                fs::write(format!("/proc/self/{file}"), text).map_err(|error| error.to_string())?;
            }
        }
        let nowhere = None::<&str>;
        mount(nowhere, "/", nowhere, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nowhere)
            .map_err(failed("mounts of one's own"))?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|error| format!("/dev/fuse: {error}"))?;
        let place = tempfile::NamedTempFile::new_in(directory).expect("a file").into_temp_path();
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode={MODE:o},user_id={uid},group_id={gid}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("slow"), &*place, Some("fuse"), flags, Some(&*options))
            .map_err(failed("mount"))?;
        let (collar, leash) = std::io::pipe().map_err(|error| error.to_string())?;
        if memory::is_child() {
            alarm::set(PATIENCE);
            drop(leash);
            serve(&device, &collar);
            std::process::exit(0);
        }
        drop(device);
        let file = File::open(&place).map_err(|error| format!("open: {error}"))?;
        // The name under the mount cannot be removed here; it goes with the directory.
        std::mem::forget(place);
        Ok(Fuse { file, leash })
    }

    /// Has it answer, and let nobody wait from here on. It ends with this process.
    pub(crate) fn answer(&mut self) {
        self.leash.write_all(&[1]).expect("it listens");
    }
}

/// Serves until the device, or the process that made it, is gone.
fn serve(device: &File, mut collar: &PipeReader) {
    let mut asked = Vec::new();
    let mut is_willing = false;
    loop {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [readable(device.as_fd()), readable(collar.as_fd())];
        let _ = poll(&mut fds, PollTimeout::NONE);
        let [is_asked, is_told] = fds.map(|fd| fd.any().unwrap_or(true));
        if is_told {
            if collar.read(&mut [0]).unwrap_or(0) == 0 {
                return;
            }
            is_willing = true;
        }
        if is_asked && !answer_one(device, &mut asked) {
            return;
        }
        if is_willing {
            asked.drain(..).for_each(|unique| reply(device, unique, 0, &[]));
        }
    }
}

/// Answers a request, or puts it aside. Returns false when there will be no more.
fn answer_one(mut device: &File, asked: &mut Vec<u64>) -> bool {
    let mut request = vec![0; 1 << 16];
    match device.read(&mut request) {
        Ok(length) if length >= 40 => {}
        // One that was withdrawn meanwhile.
        Err(error) => return error.raw_os_error() == Some(libc::ENOENT),
        Ok(_) => return false,
    }
    let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().expect("four"));
    let unique = u64::from(word(8)) | u64::from(word(12)) << 32;
    match word(4) {
        INIT => {
            let mut told = [0; 64];
            // Version 7.31, and writes of a page.
            for (at, value) in [(0, 7_u32), (4, 31), (20, 4096)] {
                told[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            reply(device, unique, 0, &told);
        }
        GETATTR => {
            let mut told = [0; 104];
            told[16] = 1;
            told[76..80].copy_from_slice(&MODE.to_le_bytes());
            reply(device, unique, 0, &told);
        }
        OPEN => reply(device, unique, 0, &[0; 16]),
        FLUSH => {
            asked.push(unique);
            say("flushing");
        }
        RELEASE => reply(device, unique, 0, &[]),
        FORGET | INTERRUPT | BATCH_FORGET => {}
        _ => reply(device, unique, libc::ENOSYS, &[]),
    }
    true
}

fn reply(mut device: &File, unique: u64, error: i32, body: &[u8]) {
    let length = (16 + body.len()) as u32;
    let head = [&length.to_le_bytes()[..], &(-error).to_le_bytes(), &unique.to_le_bytes()];
    // Nobody waits for it any more: no matter.
    let _ = device.write(&[&head.concat(), body].concat());
}
