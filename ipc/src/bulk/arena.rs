//! The memory of an arena: written by its owner, read by its peer.

#![allow(unsafe_code)] // mmap, and memory that a peer may be writing

use std::{
    num::NonZeroUsize,
    os::fd::{BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::{
    copy,
    error::NodeError,
    fork::Birth,
    lane::{LaneFacts, allocate, guard, seal},
};

#[derive(Debug)]
struct Map {
    base: NonNull<u8>,
    length: NonZeroUsize,
    birth: Birth,
}

impl Map {
    /// `now` is [`MapFlags::MAP_POPULATE`] for pages that are mapped now, not when touched.
    fn new(
        fd: BorrowedFd<'_>,
        bytes: u64,
        access: ProtFlags,
        now: MapFlags,
    ) -> Result<Map, NodeError> {
        let length = usize::try_from(bytes).ok().and_then(NonZeroUsize::new);
        let length = length.ok_or(NodeError::Lane("an arena of an impossible size"))?;
        let flags = MapFlags::MAP_SHARED | now;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let base = unsafe { mmap(None, length, access, flags, fd, 0) };
        let base = base.map_err(NodeError::system("map an arena"))?.cast();
        let map = Map { base, length, birth: Birth::now() };
        guard(base.cast(), length.get())?;
        Ok(map)
    }

    /// Where a span begins. Panics when it is not inside.
    fn at(&self, offset: u64, length: usize) -> NonNull<u8> {
        let inside = usize::try_from(offset)
            .ok()
            .filter(|at| at.checked_add(length).is_some_and(|end| end <= self.length.get()));
        let offset = inside.expect("callers check spans");
        // SAFETY: inside the mapping.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if !self.birth.is_here() {
            // A forked child has no such mapping, and perhaps another one in its place.
            return;
        }
        // SAFETY: mapped by `Map::new` with this length, and every pointer into it is handed out
        // for a borrow of a value that owns it.
        let _ = unsafe { munmap(self.base.cast(), self.length.get()) };
    }
}

/// An arena of this process.
#[derive(Debug)]
pub(crate) struct OwnArena {
    map: Map,
}

// SAFETY: plain memory; who may write which span is the lender's business, which hands each span to
// one `Loan` at a time.
unsafe impl Send for OwnArena {}
// SAFETY: as above.
unsafe impl Sync for OwnArena {}

impl OwnArena {
    /// Makes one, allocated in full, mapped, then sealed. Returns its memfd, to be sent.
    pub(crate) fn create(bytes: u64) -> Result<(OwnArena, OwnedFd), NodeError> {
        let fd = allocate("ipc-arena", bytes)?;
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let map = Map::new(std::os::fd::AsFd::as_fd(&fd), bytes, writable, MapFlags::MAP_POPULATE)?;
        seal(&fd)?;
        Ok((OwnArena { map }, fd))
    }

    /// Whether this is the process that made it: a forked child does not have the memory.
    pub(super) fn is_here(&self) -> bool {
        self.map.birth.is_here()
    }

    /// A span, for reading.
    ///
    /// # Safety
    /// 1. The span is lent to the caller, for `'a`, and nobody writes it meanwhile.
    pub(super) unsafe fn span<'a>(&self, offset: u64, length: usize) -> &'a [u8] {
        // SAFETY: inside the mapping; the peer maps it read-only; (1).
        unsafe { std::slice::from_raw_parts(self.map.at(offset, length).as_ptr(), length) }
    }

    /// A span, for writing.
    ///
    /// # Safety
    /// 1. The span is lent to the caller alone, for `'a`.
    pub(super) unsafe fn span_mut<'a>(&self, offset: u64, length: usize) -> &'a mut [u8] {
        // SAFETY: as for `span`, and (1) makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.map.at(offset, length).as_ptr(), length) }
    }
}

/// An arena of a peer, which may write it at any time.
#[derive(Debug)]
pub(crate) struct PeerArena {
    map: Map,
}

// SAFETY: read only, by copies that tolerate concurrent writes.
unsafe impl Send for PeerArena {}
// SAFETY: as above.
unsafe impl Sync for PeerArena {}

impl PeerArena {
    /// Maps a peer's arena read-only, after checking that it cannot fault. What a reader does not
    /// touch costs it nothing: a peer may hand over and take back as much as it likes.
    ///
    /// # Errors
    /// [`NodeError::Lane`] for what is no arena; [`NodeError::System`] when the means for a mapping
    /// ran out.
    pub(crate) fn map(fd: BorrowedFd<'_>, bytes: u64) -> Result<PeerArena, NodeError> {
        let facts = LaneFacts::inspect(fd);
        if !facts.sealed || facts.bytes != bytes || facts.allocated < bytes {
            return Err(NodeError::Lane("it is no sealed, allocated memfd of the size alleged"));
        }
        let map = Map::new(fd, bytes, ProtFlags::PROT_READ, MapFlags::empty())?;
        Ok(PeerArena { map })
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.map.length.get() as u64
    }

    /// Whether this is the process that mapped it.
    pub(crate) fn is_here(&self) -> bool {
        self.map.birth.is_here()
    }

    /// Copies a span out. Panics when it is not inside.
    pub(crate) fn copy(&self, offset: u64, target: &mut [u8]) {
        let source = self.map.at(offset, target.len());
        // SAFETY: (1) inside the mapping, whose size is sealed; (2) `target` is an exclusive slice
        // of private memory.
        unsafe { copy::from_shared(source.as_ptr(), target.as_mut_ptr(), target.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_the_owner_writes_its_peer_reads() {
        let (own, fd) = OwnArena::create(1 << 20).expect("an arena");
        let peer = PeerArena::map(fd.as_fd(), 1 << 20).expect("verified");
        // SAFETY: nobody else has the arena.
        unsafe { own.span_mut(4096, 3) }.copy_from_slice(b"abc");
        let mut read = [0; 3];
        peer.copy(4096, &mut read);
        assert_eq!(&read, b"abc");
        assert_eq!(peer.size(), 1 << 20);
    }

    #[test]
    fn what_is_no_arena_is_refused() {
        let (_own, fd) = OwnArena::create(1 << 20).expect("an arena");
        assert!(PeerArena::map(fd.as_fd(), 1 << 21).is_err());
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("sized");
        assert!(PeerArena::map(file.as_fd(), 1 << 20).is_err());
        let unsealed = allocate("test", 1 << 20).expect("a memfd");
        assert!(PeerArena::map(unsealed.as_fd(), 1 << 20).is_err());
    }
}
