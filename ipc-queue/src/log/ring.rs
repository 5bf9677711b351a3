//! Writes and syncs by `io_uring`: all of a commit in one system call.
#![allow(unsafe_code)] // the kernel reads buffers while they are under way

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use io_uring::{IoUring, opcode, squeue::Flags, types};

/// Queues that are committed in one go: each takes two entries.
const MOST_JOBS: usize = 64;

/// Bytes that are to be on the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job<'a> {
    pub(super) file: &'a File,
    pub(super) offset: u64,
    pub(super) bytes: &'a [u8],
}

impl Job<'_> {
    /// Does it at once.
    pub(super) fn write_and_sync(&self) -> io::Result<()> {
        self.file.write_all_at(self.bytes, self.offset)?;
        self.file.sync_data()
    }
}

/// A ring of this process.
pub(super) struct Ring(IoUring);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl Ring {
    pub(super) fn new() -> io::Result<Ring> {
        Ok(Ring(IoUring::new(2 * MOST_JOBS as u32)?))
    }

    /// Writes each and syncs it, all at the same time; gives what came of each, in order.
    pub(super) fn write_and_sync(&mut self, jobs: &[Job<'_>]) -> Vec<io::Result<()>> {
        jobs.chunks(MOST_JOBS).flat_map(|jobs| self.go(jobs)).collect()
    }

    fn go(&mut self, jobs: &[Job<'_>]) -> Vec<io::Result<()>> {
        let mut written = vec![None; jobs.len()];
        let mut synced = vec![None; jobs.len()];
        for (index, job) in jobs.iter().enumerate() {
            let fd = types::Fd(job.file.as_raw_fd());
            let length = job.bytes.len().min(1 << 30) as u32;
            // A write that fails, or is short, breaks the link: nothing is synced then.
            let write = opcode::Write::new(fd, job.bytes.as_ptr(), length)
                .offset(job.offset)
                .build()
                .flags(Flags::IO_LINK)
                .user_data(index as u64 * 2);
            let sync = opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build()
                .user_data(index as u64 * 2 + 1);
            // SAFETY: the files and the bytes are borrowed until this function returns, and it
            // returns when every one of these is complete (below), or never.
            let pushed = unsafe { self.0.submission().push_multiple(&[write, sync]) };
            // There is room: the queue is empty before, and has two entries for each of these.
            if pushed.is_err() {
                std::process::abort();
            }
        }
        let mut left = 2 * jobs.len();
        while left > 0 {
            match self.0.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                // What is under way cannot be called back, and its buffers must not go.
                Err(_) => std::process::abort(),
            }
            for entry in self.0.completion() {
                let index = (entry.user_data() / 2) as usize;
                let results = if entry.user_data() % 2 == 0 { &mut written } else { &mut synced };
                results[index] = Some(entry.result());
                left -= 1;
            }
        }
        let results = written.into_iter().zip(synced).zip(jobs);
        results.map(|((written, synced), job)| outcome(written, synced, job)).collect()
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

fn outcome(written: Option<i32>, synced: Option<i32>, job: &Job<'_>) -> io::Result<()> {
    match (written.unwrap_or(-libc::EIO), synced.unwrap_or(-libc::EIO)) {
        (count, _) if count < 0 => Err(io::Error::from_raw_os_error(-count)),
        // Short, which files hardly are: the rest, and the sync, as everybody does it.
        (count, _) if (count as usize) < job.bytes.len() => job.write_and_sync(),
        (_, result) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
        _ => Ok(()),
    }
}
