//! The memory of rings and cursor pages: made by their owner, mapped read-only by all others.

#![allow(unsafe_code)] // maps memory, and lends it out as atomics

#[cfg(not(loom))]
use std::{
    num::NonZeroUsize,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};
use std::{ptr::NonNull, sync::Arc};

#[cfg(not(loom))]
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::layout::{self, HEADER_BYTES, PAGE_BYTES, PageHeader, RingHeader};
#[cfg(not(loom))]
use crate::{
    error::NodeError,
    lane::{self, LaneFacts},
};
use crate::{
    failpoint::shared,
    sync::{AtomicU64, Ordering},
};

/// A ring, in either's view.
#[derive(Debug)]
pub(crate) struct Ring {
    header: NonNull<RingHeader>,
    words: NonNull<AtomicU64>,
    capacity: u64,
    #[cfg_attr(loom, allow(dead_code, reason = "keeps the memory alive"))]
    memory: Memory,
}

/// A cursor page, in either's view.
#[derive(Debug)]
pub(crate) struct Page {
    header: NonNull<PageHeader>,
    #[cfg_attr(loom, allow(dead_code, reason = "keeps the memory alive"))]
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    /// Written by this process. The descriptor is for the runtime, and for the next one.
    #[cfg(not(loom))]
    Own { base: NonNull<std::ffi::c_void>, bytes: usize, fd: OwnedFd },
    #[cfg(not(loom))]
    Peer(#[allow(dead_code, reason = "keeps the mapping alive")] memmap2::MmapRaw),
    /// Ordinary memory, for models and tests within one process.
    #[cfg(any(test, loom, feature = "fuzzing"))]
    HeapRing(#[allow(dead_code, reason = "keeps it")] Box<(RingHeader, Box<[AtomicU64]>)>),
}

// SAFETY: the pointers are into memory that `memory` keeps, and all that is lent out is atomics.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}
// SAFETY: as above.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Ring {
    /// Bytes of records.
    #[inline]
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    #[inline]
    pub(crate) fn header(&self) -> &RingHeader {
        // SAFETY: a header of atomics at the start of the memory; on a read-only mapping only
        // loads of at most 8 bytes are made, which are sound there.
        unsafe { self.header.as_ref() }
    }

    /// The records, as words.
    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `capacity` bytes follow the header page, aligned to it; they are atomics.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.capacity as usize / 8) }
    }

    /// A ring in ordinary memory.
    #[cfg(any(test, loom, feature = "fuzzing"))]
    pub(crate) fn heap(capacity: u64, first: u64) -> Arc<Ring> {
        let words: Box<[AtomicU64]> = (0..capacity / 8).map(|_| AtomicU64::new(0)).collect();
        let memory = Box::new((RingHeader::default(), words));
        let (header, words) = (NonNull::from(&memory.0), NonNull::from(&memory.1[0]));
        let ring = Ring { header, words, capacity, memory: Memory::HeapRing(memory) };
        ring.begin(0, first);
        Arc::new(ring)
    }

    fn begin(&self, topic: u32, first: u64) {
        let header = self.header();
        shared!(BusIdentity, {
            header.version.store(layout::VERSION, Ordering::Relaxed);
            header.topic.store(topic, Ordering::Relaxed);
            header.capacity.store(self.capacity, Ordering::Relaxed);
            header.first.store(first, Ordering::Relaxed);
            header.last.store(layout::NOTHING, Ordering::Relaxed);
            header.magic.store(layout::RING_MAGIC, Ordering::Release);
        });
    }
}

impl Page {
    #[inline]
    pub(crate) fn header(&self) -> &PageHeader {
        // SAFETY: as for a ring's.
        unsafe { self.header.as_ref() }
    }
}

#[cfg(not(loom))]
impl Ring {
    /// Makes a ring of this process: allocated, mapped, then sealed.
    ///
    /// # Errors
    /// [`NodeError::System`] when memory or descriptors run out.
    pub(crate) fn create(topic: u32, capacity: u64, first: u64) -> Result<Arc<Ring>, NodeError> {
        let bytes = HEADER_BYTES + capacity as usize;
        let memory = Memory::create("ipc-events", bytes)?;
        let base = memory.base();
        // SAFETY: the header page is inside the mapping, which is longer.
        let words = unsafe { base.add(HEADER_BYTES) }.cast();
        let ring = Ring { header: base.cast(), words, capacity, memory };
        ring.begin(topic, first);
        ring.memory.seal()?;
        Ok(Arc::new(ring))
    }

    /// Maps another process's ring read-only, after checking that it can be trusted not to fault.
    ///
    /// # Errors
    /// [`NodeError::Lane`] when it is no proper ring of that topic.
    pub(crate) fn map_peer(fd: BorrowedFd<'_>, topic: u32) -> Result<Arc<Ring>, NodeError> {
        let facts = LaneFacts::inspect(fd);
        let capacity = facts.bytes().saturating_sub(HEADER_BYTES as u64);
        if !facts.fit_ring(capacity) {
            return Err(NodeError::Lane("it is no sealed, allocated memfd of a ring's size"));
        }
        let memory = Memory::map_peer(fd, HEADER_BYTES + capacity as usize)?;
        let base = memory.base();
        // SAFETY: as for an own one.
        let words = unsafe { base.add(HEADER_BYTES) }.cast();
        let ring = Ring { header: base.cast(), words, capacity, memory };
        let header = ring.header();
        let fits = header.magic.load(Ordering::Acquire) == layout::RING_MAGIC
            && header.version.load(Ordering::Relaxed) == layout::VERSION
            && header.topic.load(Ordering::Relaxed) == topic
            && header.capacity.load(Ordering::Relaxed) == capacity;
        if !fits {
            return Err(NodeError::Lane("its header is not that of a ring of this topic"));
        }
        Ok(Arc::new(ring))
    }

    /// The descriptor, of an own ring.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.memory.fd()
    }
}

#[cfg(not(loom))]
impl Page {
    /// Makes a page of this process.
    ///
    /// # Errors
    /// [`NodeError::System`] when memory or descriptors run out.
    pub(crate) fn create() -> Result<Arc<Page>, NodeError> {
        let memory = Memory::create("ipc-cursor", PAGE_BYTES)?;
        let page = Page { header: memory.base().cast(), memory };
        shared!(CursorIdentity, {
            page.header().version.store(layout::VERSION, Ordering::Relaxed);
            page.header().magic.store(layout::PAGE_MAGIC, Ordering::Release);
        });
        page.memory.seal()?;
        Ok(Arc::new(page))
    }

    /// Maps a subscriber's page read-only.
    ///
    /// # Errors
    /// [`NodeError::Lane`] when it is no proper page.
    pub(crate) fn map_peer(fd: BorrowedFd<'_>) -> Result<Arc<Page>, NodeError> {
        if !LaneFacts::inspect(fd).fit_cursor() {
            return Err(NodeError::Lane("it is no sealed, allocated memfd of a page"));
        }
        let memory = Memory::map_peer(fd, PAGE_BYTES)?;
        let page = Page { header: memory.base().cast(), memory };
        let header = page.header();
        let fits = header.magic.load(Ordering::Acquire) == layout::PAGE_MAGIC
            && header.version.load(Ordering::Relaxed) == layout::VERSION;
        if !fits {
            return Err(NodeError::Lane("its header is not that of a cursor page"));
        }
        Ok(Arc::new(page))
    }

    /// The descriptor, of an own page.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.memory.fd()
    }
}

#[cfg(not(loom))]
impl Memory {
    fn create(name: &str, bytes: usize) -> Result<Memory, NodeError> {
        let fd = lane::allocate(name, bytes as u64)?;
        let length = NonZeroUsize::new(bytes).expect("a page or more");
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let base = unsafe { mmap(None, length, writable, flags, &fd, 0) }
            .map_err(NodeError::system("map a ring of events"))?;
        let memory = Memory::Own { base, bytes, fd };
        lane::guard(base, bytes)?;
        Ok(memory)
    }

    fn map_peer(fd: BorrowedFd<'_>, bytes: usize) -> Result<Memory, NodeError> {
        let map = memmap2::MmapOptions::new().len(bytes).populate().map_raw_read_only(&fd);
        let map =
            map.map_err(|source| NodeError::System { what: "map a ring of events", source })?;
        let base = NonNull::new(map.as_mut_ptr()).expect("mmap succeeded");
        lane::guard(base.cast(), bytes)?;
        Ok(Memory::Peer(map))
    }

    fn base(&self) -> NonNull<u8> {
        match self {
            Memory::Own { base, .. } => base.cast(),
            Memory::Peer(map) => NonNull::new(map.as_mut_ptr()).expect("mmap succeeded"),
            #[cfg(any(test, feature = "fuzzing"))]
            Memory::HeapRing(ring) => NonNull::from(&ring.0).cast(),
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Memory::Own { fd, .. } => Some(fd.as_fd()),
            Memory::Peer(_) => None,
            #[cfg(any(test, loom, feature = "fuzzing"))]
            Memory::HeapRing(_) => None,
        }
    }

    fn seal(&self) -> Result<(), NodeError> {
        match self {
            Memory::Own { fd, .. } => lane::seal(fd),
            Memory::Peer(_) => Ok(()),
            #[cfg(any(test, loom, feature = "fuzzing"))]
            Memory::HeapRing(_) => Ok(()),
        }
    }
}

#[cfg(not(loom))]
impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Own { base, bytes, .. } = self {
            // SAFETY: mapped by `create`; every pointer into it lives in the value that owns this.
            let _ = unsafe { munmap(*base, *bytes) };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_made_sealed_and_mapped_by_a_peer() {
        let own = Ring::create(7, 8192, 3).expect("a ring");
        let fd = own.fd().expect("own");
        let peer = Ring::map_peer(fd, 7).expect("verified");
        own.words()[1023].store(9, Ordering::Relaxed);
        assert_eq!(peer.words()[1023].load(Ordering::Relaxed), 9);
        assert_eq!(peer.header().first.load(Ordering::Relaxed), 3);
        assert!(peer.fd().is_none());
        assert!(matches!(Ring::map_peer(fd, 8), Err(NodeError::Lane(_))));
        assert_eq!(nix::unistd::write(fd, b"x"), Err(nix::errno::Errno::EPERM));
    }

    #[test]
    fn what_is_no_ring_or_page_is_refused() {
        let page = Page::create().expect("a page");
        assert!(matches!(Ring::map_peer(page.fd().expect("own"), 7), Err(NodeError::Lane(_))));
        assert!(Page::map_peer(page.fd().expect("own")).is_ok());
        let unsealed = lane::allocate("test", 8192).expect("a memfd");
        assert!(matches!(Ring::map_peer(unsealed.as_fd(), 7), Err(NodeError::Lane(_))));
        let ring = Ring::create(7, 8192, 0).expect("a ring");
        assert!(matches!(Page::map_peer(ring.fd().expect("own")), Err(NodeError::Lane(_))));
    }
}
