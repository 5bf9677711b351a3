//! The memory of boards: segments of this process, and those of others, mapped read-only.

#![allow(unsafe_code)] // maps memory, and lends it out as slots

use std::{
    num::NonZeroUsize,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::Arc,
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::layout::{
    self, Header, MOST_PAYLOADS, PAYLOADS, RECORDS, Record, Shown, Slot, TAPE, segment_bytes,
    segment_slots,
};
use crate::{
    error::NodeError,
    failpoint::shared,
    lane::{self, LaneFacts},
    sync::Ordering,
};

/// A segment: a header, and as many slots as fit.
#[derive(Debug)]
pub(super) struct Segment {
    base: NonNull<u8>,
    slots: usize,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    /// Written by this process. The descriptor is for the runtime, and for the next one.
    Own {
        bytes: usize,
        fd: OwnedFd,
    },
    Peer(#[allow(dead_code, reason = "keeps the mapping alive")] memmap2::MmapRaw),
}

// SAFETY: the pointer is into a mapping that lives as long as this value; all that is lent out of
// it is atomics.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Makes a segment of this process: allocated, mapped, then sealed.
    ///
    /// # Errors
    /// [`NodeError::System`] when memory or descriptors run out; [`NodeError::Config`] for a number
    /// that no board has.
    pub(super) fn create(segment: u32) -> Result<Segment, NodeError> {
        let bytes = bytes_of(segment)?;
        let fd = lane::allocate("ipc-board", bytes as u64)?;
        let length = NonZeroUsize::new(bytes).expect("a page or more");
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let base = unsafe { mmap(None, length, writable, flags, &fd, 0) }
            .map_err(NodeError::system("map a board"))?;
        let memory = Memory::Own { bytes, fd };
        let own = Segment { base: base.cast(), slots: segment_slots(segment), memory };
        lane::guard(base, bytes)?;
        let header = own.header();
        shared!(BoardIdentity, {
            header.version.store(layout::VERSION, Ordering::Relaxed);
            header.slots.store(own.slots as u32, Ordering::Relaxed);
            header.slot_bytes.store(size_of::<Slot>() as u32, Ordering::Relaxed);
            header.segment.store(segment, Ordering::Relaxed);
            header.pid.store(std::process::id(), Ordering::Relaxed);
            header.magic.store(layout::MAGIC, Ordering::Release);
        });
        if let Memory::Own { fd, .. } = &own.memory {
            lane::seal(fd)?;
        }
        Ok(own)
    }

    /// Maps another process's segment read-only, after checking that it can be trusted not to
    /// fault.
    ///
    /// # Errors
    /// [`NodeError::Lane`] when it is no proper segment of that number.
    pub(super) fn map_peer(fd: BorrowedFd<'_>, segment: u32) -> Result<Segment, NodeError> {
        if !super::fits(LaneFacts::inspect(fd), segment) {
            return Err(NodeError::Lane("it is no sealed, allocated memfd of a board's size"));
        }
        let bytes = bytes_of(segment)?;
        let map = memmap2::MmapOptions::new().len(bytes).map_raw_read_only(&fd);
        let map = map.map_err(|source| NodeError::System { what: "map a board", source })?;
        let base = NonNull::new(map.as_mut_ptr()).expect("mmap succeeded");
        lane::guard(base.cast(), bytes)?;
        let peer = Segment { base, slots: segment_slots(segment), memory: Memory::Peer(map) };
        let header = peer.header();
        let fits = header.magic.load(Ordering::Acquire) == layout::MAGIC
            && header.version.load(Ordering::Relaxed) == layout::VERSION
            && header.slots.load(Ordering::Relaxed) as usize == peer.slots
            && header.slot_bytes.load(Ordering::Relaxed) as usize == size_of::<Slot>()
            && header.segment.load(Ordering::Relaxed) == segment;
        if !fits {
            return Err(NodeError::Lane("its header is not that of a board of this version"));
        }
        Ok(peer)
    }

    /// The descriptor, of an own segment.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.memory {
            Memory::Own { fd, .. } => Some(fd.as_fd()),
            Memory::Peer(_) => None,
        }
    }

    pub(super) fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned and longer than a Header, which is atomics (and
        // reserved bytes that nothing reads); of a peer's it is only loaded from.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        // SAFETY: as `slot` says.
        (0..self.slots).map(|index| unsafe { self.slot(index).as_ref() })
    }

    /// What was written down, of the segment for that; none of others.
    pub(super) fn records(&self) -> &[Record] {
        let count = if self.is(TAPE) { RECORDS } else { 0 };
        // SAFETY: inside the mapping, which has room for RECORDS of them behind the header, and
        // aligned, as header and records are multiples of 128 bytes; they are atomics.
        unsafe {
            let first = self.base.add(size_of::<Header>()).cast::<Record>();
            std::slice::from_raw_parts(first.as_ptr(), count)
        }
    }

    /// The payloads of requests, of the segment for that; none of others.
    pub(super) fn shown(&self) -> &[Shown] {
        let count = if self.is(PAYLOADS) { MOST_PAYLOADS } else { 0 };
        // SAFETY: inside the mapping, which has room for MOST_PAYLOADS of them behind the header,
        // and aligned, as header and records are multiples of 64 bytes; they are atomics.
        unsafe {
            let first = self.base.add(size_of::<Header>()).cast::<Shown>();
            std::slice::from_raw_parts(first.as_ptr(), count)
        }
    }

    /// Whether it is the segment of this number, which has no slots: none of those has its length.
    fn is(&self, segment: u32) -> bool {
        let bytes = match &self.memory {
            Memory::Own { bytes, .. } => *bytes,
            Memory::Peer(map) => map.len(),
        };
        self.slots == 0 && segment_bytes(segment) == Some(bytes)
    }

    /// A slot of an own segment, to be written.
    pub(super) fn place(self: &Arc<Self>, index: usize) -> Place {
        assert!(index < self.slots);
        let number = self.header().segment.load(Ordering::Relaxed);
        let kept = Kept::Mapped { _segment: Arc::clone(self) };
        Place { slot: self.slot(index), segment: Some(number), _kept: kept }
    }

    /// Inside the mapping and aligned: header and slots are multiples of 128 bytes, and
    /// `segment_slots` of them fit.
    fn slot(&self, index: usize) -> NonNull<Slot> {
        // SAFETY: inside the mapping for an index below `slots`, which both callers make sure of.
        unsafe { self.base.add(size_of::<Header>()).cast::<Slot>().add(index) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if let Memory::Own { bytes, .. } = &self.memory {
            // SAFETY: mapped by `create`; every pointer into it keeps this value alive. A forked
            // child, which has no such mapping, forgets its channels and with them this.
            let _ = unsafe { munmap(self.base.cast(), *bytes) };
        }
    }
}

fn bytes_of(segment: u32) -> Result<usize, NodeError> {
    segment_bytes(segment).ok_or(NodeError::Lane("no board has a segment of that number"))
}

/// A slot that this process writes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    slot: NonNull<Slot>,
    /// The number of its segment; none for one that nobody else sees.
    segment: Option<u32>,
    _kept: Kept,
}

/// What a slot lies in.
#[derive(Clone, Debug)]
enum Kept {
    Mapped { _segment: Arc<Segment> },
    Private { _slot: Arc<Slot> },
}

// SAFETY: a pointer to atomics, in memory that `_kept` keeps.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    /// A slot that nobody else sees.
    pub(super) fn private() -> Place {
        // SAFETY: a Slot is atomics and plain numbers, of which zero is a value.
        let slot = Arc::new(unsafe { std::mem::zeroed::<Slot>() });
        Place { slot: NonNull::from(&*slot), segment: None, _kept: Kept::Private { _slot: slot } }
    }

    pub(super) fn segment(&self) -> Option<u32> {
        self.segment
    }
}

impl Deref for Place {
    type Target = Slot;

    #[inline(always)]
    fn deref(&self) -> &Slot {
        // SAFETY: a slot of atomics in memory that `_kept` keeps.
        unsafe { self.slot.as_ref() }
    }
}
