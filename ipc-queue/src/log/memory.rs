//! Segments in memory that outlives this process: sealed memfds, of which the runtime keeps a
//! duplicate. Whoever comes next reads them, and can write none of them.
#![allow(unsafe_code)] // mmap, and one word of it that is stored last

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use ipc::{Node, NodeError, Status};
use memmap2::MmapMut;
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::ftruncate,
};

use super::{Blueprint, Chunk, Log, Outcome, salt};
use crate::{
    failpoint::{At, reach},
    machine::Trouble,
    record::{ALIGN, Record, u32_at},
    scan::{Header, MOST_BYTES},
};

/// Who keeps duplicates of segments.
#[derive(Clone, Debug)]
pub enum Keeper {
    /// The runtime, by this connection.
    Runtime(Node),
    /// Nobody: what is in memory ends with this process.
    Nobody,
}

/// A segment that is appended to.
#[derive(Debug)]
struct Region {
    map: MmapMut,
}

/// The log of a queue whose messages are in memory.
#[derive(Debug)]
pub struct MemoryLog {
    log: Log,
    keeper: Keeper,
    /// Under which its segments are kept: this, and their numbers.
    prefix: String,
    current: Option<Region>,
    /// By segment; they live as long as they are here, or kept.
    memory: BTreeMap<u64, Arc<OwnedFd>>,
}

/// What a keeper calls a segment.
fn name(prefix: &str, number: u64) -> String {
    format!("{prefix}/{number}")
}

impl MemoryLog {
    /// Goes on behind the segments that were found.
    pub fn new(
        log: Log,
        keeper: Keeper,
        prefix: &str,
        memory: BTreeMap<u64, Arc<OwnedFd>>,
    ) -> MemoryLog {
        MemoryLog { log, keeper, prefix: prefix.to_owned(), current: None, memory }
    }

    /// Stores records. When this returns they outlive this process.
    pub fn commit(&mut self, mut records: VecDeque<Record>) -> Outcome {
        let mut stored = 0;
        loop {
            if let Some(chunk) = self.log.lay_out(&mut records) {
                if let Some(region) = &mut self.current {
                    region.append(&chunk);
                }
                stored += self.log.stored(&chunk);
                continue;
            }
            let Some(first) = records.front() else { break };
            let blueprint = self.log.design(first, salt());
            if self.make(&blueprint).is_err() {
                return (stored, Some(Trouble::NoRoom));
            }
            self.log.made(&blueprint);
        }
        while let Some(number) = self.log.take_needless() {
            self.memory.remove(&number);
            if let Keeper::Runtime(node) = &self.keeper {
                // A runtime that is away is told of what there is when it is back.
                let _ = node.let_go(&name(&self.prefix, number));
            }
            reach(At::SegmentRemoved);
        }
        (stored, None)
    }

    /// As [`Log::to_move`].
    pub fn to_move(&mut self) -> Vec<u64> {
        self.log.to_move()
    }

    /// Counts the segments.
    pub fn segments(&self) -> usize {
        self.log.segments()
    }

    fn make(&mut self, blueprint: &Blueprint) -> Result<(), NodeError> {
        let Header { number, bytes, .. } = blueprint.header;
        let (region, fd) = Region::make(&blueprint.bytes, bytes)
            .map_err(|errno| NodeError::System { what: "make a segment", source: errno.into() })?;
        reach(At::SegmentMade);
        let fd = Arc::new(fd);
        if let Keeper::Runtime(node) = &self.keeper {
            match node.keep(&name(&self.prefix, number), &fd) {
                // One that is away gets it when it is back; a process that nobody supervises has
                // no successor.
                Ok(()) | Err(NodeError::NoRuntime { .. } | NodeError::Refused(Status::ACCESS)) => {}
                Err(error) => return Err(error),
            }
        }
        reach(At::SegmentKept);
        self.memory.insert(number, fd);
        self.current = Some(region);
        Ok(())
    }
}

impl Region {
    /// Makes a segment: allocated, begun, then sealed.
    fn make(beginning: &[u8], bytes: u64) -> Result<(Region, OwnedFd), Errno> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create("ipc-queue", flags)?;
        let length = libc::off_t::try_from(bytes).map_err(|_| Errno::EFBIG)?;
        ftruncate(&fd, length)?;
        fallocate(&fd, FallocateFlags::empty(), 0, length)?;
        // SAFETY: the memfd was made here and has its whole length; nobody else has it before it
        // is sealed against shrinking, and nobody else ever writes it.
        let mut map = unsafe { MmapMut::map_mut(&fd) }
            .map_err(|error| Errno::try_from(error).unwrap_or(Errno::ENOMEM))?;
        map[..beginning.len()].copy_from_slice(beginning);
        let seals = SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_FUTURE_WRITE
            | SealFlag::F_SEAL_SEAL;
        fcntl(fd.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
        Ok((Region { map }, fd))
    }

    /// Appends records one by one. Each is there with the store of its length, the last of its
    /// bytes to be written: a process that dies in between leaves those before.
    fn append(&mut self, chunk: &Chunk) {
        let mut at = 0;
        while let Some(length) = u32_at(&chunk.bytes, at).filter(|it| *it > 0) {
            let next = (at + length as usize).next_multiple_of(ALIGN);
            let place = chunk.offset as usize + at;
            let body = &chunk.bytes[at + 4..next];
            self.map[place + 4..place + 4 + body.len()].copy_from_slice(body);
            reach(At::MemoryHalfWritten);
            let word = &raw mut self.map[place..place + 4];
            // SAFETY: four bytes of the mapping, aligned, since a mapping begins at a page and
            // records at multiples of 8; nobody else writes there.
            let word = unsafe { AtomicU32::from_ptr(word.cast()) };
            word.store(length.to_le(), Ordering::Release);
            at = next;
        }
    }
}

/// Reads a segment that somebody kept.
///
/// # Errors
/// A sentence that says what it is instead.
pub fn read(fd: &OwnedFd) -> Result<(Header, Vec<u8>), String> {
    let copy = fd.try_clone().map_err(|error| error.to_string())?;
    let file = File::from(copy);
    let bytes = file.metadata().map_err(|error| error.to_string())?.len();
    if bytes > MOST_BYTES {
        return Err(format!("{bytes} bytes are more than a segment has"));
    }
    let mut segment = vec![0; bytes as usize];
    file.read_exact_at(&mut segment, 0).map_err(|error| error.to_string())?;
    match Header::decode(&segment) {
        Some(header) if header.bytes == bytes => Ok((header, segment)),
        _ => Err("it has no header of a segment".to_owned()),
    }
}
