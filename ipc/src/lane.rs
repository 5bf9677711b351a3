//! A lane: memory that one process writes and another reads, enforced by the kernel.
//!
//! The owner makes a memfd, maps it, and seals it: after `F_SEAL_FUTURE_WRITE` nobody can map it
//! writable again, and `SHRINK`, `GROW` and `SEAL` pin its size, so that a reader never faults.

#![allow(unsafe_code)] // maps memory, and lends it out as cells

use std::{os::fd::BorrowedFd, ptr::NonNull, sync::Arc};

use crate::{
    failpoint::shared,
    frame::lap,
    layout::{Cell, Geometry, Header, Ring},
    sync::Ordering,
};
#[cfg(any(test, loom))]
use crate::{
    layout::{self, Identity},
    sync::{AtomicU32, AtomicU64},
};

#[cfg(not(loom))]
mod map;
#[cfg(not(loom))]
pub(crate) use map::{NODE_TO_LIFE, allocate, create, create_within, guard, map_peer, seal};

/// Either side's view of a lane. Lives as long as any ring half of it.
#[derive(Debug)]
pub(crate) struct Lane {
    geometry: Geometry,
    header: NonNull<Header>,
    parts: [Parts; 2],
    /// Keeps what the pointers point at.
    #[cfg_attr(loom, allow(dead_code, reason = "keeps the memory alive"))]
    memory: Memory,
}

// SAFETY: the memory behind the pointers belongs to `memory` and stays mapped while the lane
// lives. Cells and header are atomics; who may touch the slabs is the ring halves' business
// (`OwnRing`, `PeerRing`).
unsafe impl Send for Lane {}
// SAFETY: as above.
unsafe impl Sync for Lane {}

/// Where the cells and the slab of one ring lie.
#[derive(Clone, Copy, Debug)]
struct Parts {
    cells: NonNull<Cell>,
    count: usize,
    slab: NonNull<SlabByte>,
    slab_length: usize,
}

#[cfg(not(loom))]
type SlabByte = u8;
/// A model has no bytes that race; each is an atomic of its own.
#[cfg(loom)]
type SlabByte = crate::sync::AtomicU8;

#[derive(Debug)]
enum Memory {
    #[cfg(not(loom))]
    Own(map::OwnMap),
    #[cfg(not(loom))]
    Peer(#[allow(dead_code, reason = "keeps the mapping alive")] memmap2::MmapRaw),
    /// The writing view's, in the same process.
    #[cfg(not(loom))]
    Within(#[allow(dead_code, reason = "keeps the mapping alive")] Arc<Lane>),
    /// Ordinary memory, for models and tests of rings within one process.
    #[cfg(any(test, loom))]
    Heap(#[allow(dead_code, reason = "keeps the memory alive")] Heap),
}

impl Lane {
    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    #[inline]
    pub(crate) fn header(&self) -> &Header {
        // SAFETY: `header` points at a Header of atomics inside `memory`; on a read-only mapping
        // only loads of at most 8 bytes are made, which are sound there.
        unsafe { self.header.as_ref() }
    }

    /// The writing view of a ring of this lane, which must be this process's own.
    pub(crate) fn own_ring(self: &Arc<Self>, ring: Ring) -> OwnRing {
        OwnRing { parts: self.parts[ring as usize], _lane: Arc::clone(self) }
    }

    /// The reading view of a ring of this lane.
    pub(crate) fn peer_ring(self: &Arc<Self>, ring: Ring) -> PeerRing {
        PeerRing { parts: self.parts[ring as usize], _lane: Arc::clone(self) }
    }

    #[cfg(not(loom))]
    fn from_memory(base: NonNull<u8>, geometry: Geometry, memory: Memory) -> Lane {
        let parts = [Ring::Urgent, Ring::Ordinary].map(|ring| Parts {
            // SAFETY: the caller's mapping is `geometry.lane_bytes()` long, and these offsets with
            // their lengths lie inside it (tested in `layout`), 64-byte aligned as the base is.
            cells: unsafe { base.add(Geometry::cells_offset(ring)) }.cast(),
            count: geometry.cells(ring) as usize,
            // SAFETY: likewise.
            slab: unsafe { base.add(geometry.slab_offset(ring)) },
            slab_length: geometry.slab(ring) as usize,
        });
        Lane { geometry, header: base.cast(), parts, memory }
    }

    /// The private word that the kernel's robust list runs through, at a fixed distance before the
    /// life word of an own lane.
    #[cfg(not(loom))]
    pub(crate) fn robust_node(&self) -> Option<NonNull<u8>> {
        match &self.memory {
            Memory::Own(own) => Some(own.node()),
            Memory::Peer(_) | Memory::Within(_) => None,
            #[cfg(test)]
            Memory::Heap(_) => None,
        }
    }
}

/// Asks for a line that will be written soon. A model has none.
#[inline]
fn ask_for(line: *const u8) {
    #[cfg(not(loom))]
    crate::copy::ask_for(line);
    #[cfg(loom)]
    let _ = line;
}

/// The ring of an own lane: this process alone writes it.
#[derive(Debug)]
pub(crate) struct OwnRing {
    parts: Parts,
    _lane: Arc<Lane>,
}

// SAFETY: a pointer into memory that `_lane` keeps; the slab is written through `&mut self` only.
unsafe impl Send for OwnRing {}

impl OwnRing {
    /// Writes a cell; the `Release` store of the first word opens it.
    #[inline]
    pub(crate) fn publish(&mut self, index: usize, head: [u64; 2], payload: [u64; 6]) {
        debug_assert!(index < self.parts.count);
        // SAFETY: `index` is masked by the ring's size; the cell is an atomic in a live mapping.
        let cell = unsafe { self.parts.cells.add(index).as_ref() };
        shared!(CellWords, {
            for (word, value) in cell.0[2..].iter().zip(payload) {
                word.store(value, Ordering::Relaxed);
            }
            cell.0[1].store(head[1], Ordering::Relaxed);
        });
        shared!(CellStamp, cell.0[0].store(head[0], Ordering::Release));
    }

    /// Asks for a cell that will be written soon.
    #[inline]
    pub(crate) fn ask_for_cell(&self, index: usize) {
        ask_for(self.parts.cells.as_ptr().wrapping_add(index).cast());
    }

    /// Asks for a line of the slab that will be written soon.
    #[inline]
    pub(crate) fn ask_for_slab(&self, offset: usize) {
        ask_for(self.parts.slab.as_ptr().wrapping_add(offset).cast());
    }

    /// Copies bytes into the slab.
    #[inline]
    pub(crate) fn write_slab(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.parts.slab_length);
        #[cfg(not(loom))]
        // SAFETY: (1) inside the slab by the assertion, and a slice of private memory cannot lie
        // in it; (2) nobody else writes an own lane, and `&mut self` is the only writer here.
        unsafe {
            let target = self.parts.slab.as_ptr().add(offset);
            crate::copy::to_shared(bytes.as_ptr(), target, bytes.len());
        }
        #[cfg(loom)]
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the slab by the assertion.
            let target = unsafe { self.parts.slab.add(offset + index).as_ref() };
            target.store(*byte, Ordering::Relaxed);
        }
    }
}

/// The ring of a peer's lane: whatever stands there, the peer put it.
#[derive(Debug)]
pub(crate) struct PeerRing {
    parts: Parts,
    _lane: Arc<Lane>,
}

// SAFETY: a pointer into memory that `_lane` keeps; reads only.
unsafe impl Send for PeerRing {}
// SAFETY: as above.
unsafe impl Sync for PeerRing {}

impl PeerRing {
    /// Loads the first word of a cell: stamp and meta.
    #[inline]
    pub(crate) fn stamp(&self, index: usize) -> u64 {
        self.cell(index).0[0].load(Ordering::Acquire)
    }

    /// Whether the frame at a position has been published.
    #[inline]
    pub(crate) fn is_open(&self, position: u64) -> bool {
        let log2 = self.parts.count.trailing_zeros();
        let stamp = self.stamp(position as usize & (self.parts.count - 1)) as u32;
        stamp >> 4 == lap(position, log2)
    }

    /// Loads one word of a cell, behind its stamp.
    #[inline]
    pub(crate) fn word(&self, index: usize, word: usize) -> u64 {
        self.cell(index).0[word].load(Ordering::Relaxed)
    }

    /// Copies bytes out of the slab.
    #[inline]
    pub(crate) fn read_slab(&self, offset: usize, target: &mut [u8]) {
        assert!(offset + target.len() <= self.parts.slab_length);
        #[cfg(not(loom))]
        // SAFETY: (1) inside the slab by the assertion, in a mapping whose size is sealed; (2)
        // `target` is an exclusive slice of private memory.
        unsafe {
            let source = self.parts.slab.as_ptr().add(offset);
            crate::copy::from_shared(source, target.as_mut_ptr(), target.len());
        }
        #[cfg(loom)]
        for (index, byte) in target.iter_mut().enumerate() {
            // SAFETY: inside the slab by the assertion.
            let source = unsafe { self.parts.slab.add(offset + index).as_ref() };
            *byte = source.load(Ordering::Relaxed);
        }
    }

    #[inline]
    fn cell(&self, index: usize) -> &Cell {
        debug_assert!(index < self.parts.count);
        // SAFETY: `index` is masked by the ring's size; atomics in a live mapping, loaded only.
        unsafe { self.parts.cells.add(index).as_ref() }
    }
}

/// A lane in ordinary memory, seen by both sides of a test or a model.
#[cfg(any(test, loom))]
#[derive(Debug)]
struct Heap {
    header: Box<Header>,
    cells: [Vec<Cell>; 2],
    slabs: [Vec<SlabByte>; 2],
}

#[cfg(any(test, loom))]
impl Lane {
    /// Makes a lane in ordinary memory.
    pub(crate) fn heap(geometry: Geometry) -> Arc<Lane> {
        use crossbeam::utils::CachePadded;
        fn word() -> CachePadded<AtomicU64> {
            CachePadded::new(AtomicU64::new(0))
        }
        let rings = [Ring::Urgent, Ring::Ordinary];
        let mut heap = Heap {
            header: Box::new(Header {
                identity: CachePadded::new(identity(geometry)),
                life: CachePadded::new(AtomicU32::new(1)),
                event: CachePadded::new(AtomicU32::new(0)),
                attention: CachePadded::new(layout::Attention {
                    parked: AtomicU32::new(0),
                    first_high: AtomicU32::new(0),
                    want_urgent: AtomicU64::new(0),
                    want_ordinary: AtomicU64::new(0),
                }),
                taken_urgent: word(),
                taken_ordinary: word(),
                busy_since: word(),
                released: CachePadded::new(std::array::from_fn(|_| AtomicU32::new(0))),
            }),
            cells: rings.map(|ring| {
                (0..geometry.cells(ring))
                    .map(|_| Cell(std::array::from_fn(|_| AtomicU64::new(0))))
                    .collect()
            }),
            slabs: rings
                .map(|ring| (0..geometry.slab(ring)).map(|_| SlabByte::default()).collect()),
        };
        let parts = rings.map(|ring| {
            let (cells, slab) = (&mut heap.cells[ring as usize], &mut heap.slabs[ring as usize]);
            Parts {
                cells: NonNull::new(cells.as_mut_ptr()).expect("a vector's pointer"),
                count: cells.len(),
                slab: NonNull::new(slab.as_mut_ptr()).expect("a vector's pointer"),
                slab_length: slab.len(),
            }
        });
        let header = NonNull::from(&mut *heap.header);
        Arc::new(Lane { geometry, header, parts, memory: Memory::Heap(heap) })
    }
}

#[cfg(any(test, loom))]
fn identity(geometry: Geometry) -> Identity {
    Identity {
        magic: AtomicU64::new(layout::MAGIC),
        version: AtomicU32::new(layout::VERSION),
        ordinary_cells: AtomicU32::new(geometry.ordinary_cells()),
        ordinary_slab: AtomicU32::new(geometry.ordinary_slab()),
        mark: AtomicU32::new(0),
        unmapped: AtomicU32::new(0),
    }
}

/// What can be known of a lane from its descriptor alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneFacts {
    /// A memfd that nobody can resize and nobody else can write.
    pub sealed: bool,
    /// Its length in bytes.
    pub bytes: u64,
    /// How many bytes of it have memory: a hole would be allocated by whoever reads it.
    pub allocated: u64,
    /// A memfd that nobody can resize, whoever may write it.
    pub pinned: bool,
    /// The same, and whoever gets it may write it, which nobody can change any more.
    pub writable: bool,
    /// Which memory it is: device and number of the file.
    pub file: (u64, u64),
}

impl LaneFacts {
    /// Looks at a descriptor, whatever it is. What is no memfd has no such seals.
    pub fn inspect(fd: BorrowedFd<'_>) -> LaneFacts {
        use nix::{
            fcntl::{FcntlArg, SealFlag, fcntl},
            sys::stat::fstat,
        };
        let of_size = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        let due = of_size | SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_SEAL;
        let Ok(seals) = fcntl(fd, FcntlArg::F_GET_SEALS) else { return LaneFacts::default() };
        let Ok(stat) = fstat(fd) else { return LaneFacts::default() };
        let seals = SealFlag::from_bits_retain(seals);
        LaneFacts {
            sealed: seals.contains(due),
            pinned: seals.contains(of_size),
            writable: seals.contains(of_size | SealFlag::F_SEAL_SEAL)
                && !seals.intersects(SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_WRITE),
            file: (stat.st_dev, stat.st_ino),
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            // st_blocks counts 512 bytes each, whatever the file system's own blocks are.
            allocated: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
        }
    }

    /// Tells whether this is a whole segment, of this number, of a node's board.
    #[cfg(not(loom))]
    pub fn fit_board(self, segment: u32) -> bool {
        crate::board::fits(self, segment)
    }

    /// Tells whether this is the memory of a shared region of that size.
    #[cfg(not(loom))]
    pub fn fit_region(self, size: u64) -> bool {
        crate::region::fits(self, size)
    }

    /// Tells whether this is a whole ring of events with so many bytes of records.
    pub fn fit_ring(self, capacity: u64) -> bool {
        let bytes = crate::bus::HEADER_BYTES as u64 + capacity;
        let fits = crate::bus::is_ring_size(capacity) && self.bytes == bytes;
        fits && self.sealed && self.allocated >= self.bytes
    }

    /// Gives the bytes of records of a whole ring of events; nothing for what is none.
    pub fn ring_bytes(self) -> Option<u64> {
        let capacity = self.bytes.checked_sub(crate::bus::HEADER_BYTES as u64)?;
        self.fit_ring(capacity).then_some(capacity)
    }

    /// Tells whether this is a cursor page of a reliable subscriber.
    pub fn fit_cursor(self) -> bool {
        let bytes = crate::bus::PAGE_BYTES as u64;
        self.sealed && self.bytes == bytes && self.allocated >= bytes
    }

    /// Gives the bytes of the memory; 0 of what is none.
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// Tells whether this is a whole lane of that geometry, which can neither fault under a reader
    /// nor make it pay for memory.
    pub fn fit(self, geometry: Geometry) -> bool {
        self.sealed && self.bytes == geometry.lane_bytes() as u64 && self.allocated >= self.bytes
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_a_sealed_full_lane_of_that_size_fits() {
        let geometry = Geometry::default();
        let bytes = geometry.lane_bytes() as u64;
        let good = LaneFacts { sealed: true, bytes, allocated: bytes, ..LaneFacts::default() };
        assert!(good.fit(geometry));
        assert!(!LaneFacts { sealed: false, ..good }.fit(geometry));
        assert!(!LaneFacts { bytes: bytes - 1, ..good }.fit(geometry));
        assert!(!LaneFacts { bytes: bytes + 1, allocated: bytes + 1, ..good }.fit(geometry));
        assert!(!LaneFacts { allocated: bytes - 4096, ..good }.fit(geometry));
    }

    #[test]
    fn the_largest_lane_is_bounded() {
        let largest = Geometry::new(*Geometry::CELLS.end(), *Geometry::SLAB.end());
        assert!(largest.expect("in range").lane_bytes() <= 64 << 20);
    }
}
