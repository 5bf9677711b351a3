//! Every byte that two processes share: where it lies, who writes it, what it means.
//!
//! `docs/layout.md` draws the same; a change here is a change of `VERSION`.

use crossbeam::utils::CachePadded;

use crate::sync::{AtomicU32, AtomicU64};

/// First eight bytes of a lane: `ipclane` and the version of the layout.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"ipclane\x01");
/// Version of the layout.
pub(crate) const VERSION: u32 = 1;

/// Bytes of a cell: one cache line.
pub(crate) const CELL: usize = 64;
/// Bytes of payload that a cell holds by itself.
pub const INLINE: usize = 48;
/// Bytes of the extension before the payload of a traced message.
pub(crate) const EXTENSION: usize = 32;
/// Cells of the urgent ring.
pub(crate) const URGENT_CELLS: u32 = if cfg!(loom) { 2 } else { 16 };
/// Bytes of the urgent slab.
pub(crate) const URGENT_SLAB: u32 = if cfg!(loom) { 16 } else { 2048 };

/// Set in a life word by its owner, so that the kernel wakes a waiter that could only read it.
pub(crate) const LIFE_WAITERS: u32 = libc::FUTEX_WAITERS;
/// Set in a life word by the kernel when its owner died.
pub(crate) const LIFE_DIED: u32 = libc::FUTEX_OWNER_DIED;
/// A life word after its owner closed the channel in order.
pub(crate) const LIFE_CLOSED: u32 = 0;

/// One cell: the stamp and the header in the first two words, payload in the other six.
///
/// ```text
///  0       4        8      12        16                                 64
///  ┌───────┬────────┬──────┬─────────┬──────────────────────────────────┐
///  │ stamp │ meta   │ id   │ deadline│ payload, or place and first bytes │
///  └───────┴────────┴──────┴─────────┴──────────────────────────────────┘
/// ```
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Cell(pub(crate) [AtomicU64; 8]);

/// First bytes of a lane. Each group of words has a pair of cache lines for itself, since the
/// processor fetches lines in pairs.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Header {
    /// All but one word of it is written once, before the lane is shared.
    pub(crate) identity: CachePadded<Identity>,
    /// Thread id of the owner's warden | `LIFE_WAITERS`; the kernel sets `LIFE_DIED`;
    /// `LIFE_CLOSED` after an orderly close.
    pub(crate) life: CachePadded<AtomicU32>,
    /// Counts what the owner told a parked peer; the peer sleeps on it.
    pub(crate) event: CachePadded<AtomicU32>,
    /// What the owner, as the receiver of the opposite lane, wants to be told.
    pub(crate) attention: CachePadded<Attention>,
    /// Frames that the owner has taken from the opposite lane's urgent ring.
    pub(crate) taken_urgent: CachePadded<AtomicU64>,
    /// Frames that the owner has taken from the opposite lane's ordinary ring.
    pub(crate) taken_ordinary: CachePadded<AtomicU64>,
    /// When the handler now running began: `CLOCK_MONOTONIC` in ns; 0 when none runs.
    pub(crate) busy_since: CachePadded<AtomicU64>,
    /// The generation of the last loan that the owner has given back, for each slot of the
    /// opposite side's loans.
    pub(crate) released: CachePadded<[AtomicU32; 32]>,
}

/// Says what a lane is; and what changes hardly ever.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) magic: AtomicU64,
    pub(crate) version: AtomicU32,
    pub(crate) ordinary_cells: AtomicU32,
    pub(crate) ordinary_slab: AtomicU32,
    /// Of a service's lane: the low half of the epoch at which it serves its name; 0 while it
    /// stands by. Of a client's lane: 1 if it wants nothing of one that stands by, 0 if it does.
    pub(crate) mark: AtomicU32,
    /// The last arena of the opposite side's that the owner had no means to map, or 0.
    pub(crate) unmapped: AtomicU32,
}

/// One line that the opposite side reads after each batch; it changes only around a sleep.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Attention {
    /// 0: awake. Else a sleep's number, and in the low two bits how to wake it.
    pub(crate) parked: AtomicU32,
    /// Of a client's lane: the high half of the first message id on it, if it is not the session of
    /// the introduction; else 0.
    pub(crate) first_high: AtomicU32,
    /// 0, or the count of taken urgent frames at which the owner wants to be woken, and in the
    /// low two bits how.
    pub(crate) want_urgent: AtomicU64,
    /// The same of the ordinary ring.
    pub(crate) want_ordinary: AtomicU64,
}

#[cfg(not(loom))]
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<Cell>() == CELL);
    assert!(size_of::<Header>() == 1024);
    assert!(offset_of!(Header, life) == 0x080);
    assert!(offset_of!(Header, event) == 0x100);
    assert!(offset_of!(Header, attention) == 0x180);
    assert!(offset_of!(Header, taken_urgent) == 0x200);
    assert!(offset_of!(Header, taken_ordinary) == 0x280);
    assert!(offset_of!(Header, busy_since) == 0x300);
    assert!(offset_of!(Header, released) == 0x380);
    assert!(offset_of!(Identity, unmapped) == 0x018);
    assert!(size_of::<Attention>() == 24);
};

/// Bytes of the header.
pub(crate) const HEADER: usize = 1024;
const PAGE: usize = 4096;

/// Names one of the two rings of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ring {
    /// Priorities CRITICAL and HIGH, pings and cancellations.
    Urgent,
    /// Priorities NORMAL, LOW and BACKGROUND.
    Ordinary,
}

impl Ring {
    /// The highest of the priorities that travel on it.
    #[inline(always)]
    pub(crate) fn first_level(self) -> u32 {
        match self {
            Ring::Urgent => 0,
            Ring::Ordinary => 2,
        }
    }
}

/// Sizes a lane: the cells of its ordinary ring and the bytes of that ring's slab.
///
/// ```
/// use ipc::Geometry;
/// assert_eq!(Geometry::default().lane_bytes(), 16 * 1024);
/// assert_eq!(Geometry::for_cells(1000)?.ordinary_cells(), 1024);
/// # Ok::<(), &'static str>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    ordinary_cells: u32,
    ordinary_slab: u32,
}

impl Default for Geometry {
    /// 64 cells and 8 KiB: a lane of 16 KiB, two of which make a channel.
    fn default() -> Geometry {
        Geometry { ordinary_cells: 64, ordinary_slab: 8192 }
    }
}

impl Geometry {
    /// Cells of an ordinary ring: 16 to 65,536.
    pub const CELLS: std::ops::RangeInclusive<u32> = 16..=65_536;
    /// Bytes of an ordinary slab: 2 KiB to 16 MiB.
    pub const SLAB: std::ops::RangeInclusive<u32> = 2048..=16 << 20;

    /// Takes exact sizes; both must be powers of two within their ranges.
    ///
    /// # Errors
    /// A sentence that says which rule is broken.
    pub fn new(ordinary_cells: u32, ordinary_slab: u32) -> Result<Geometry, &'static str> {
        if !ordinary_cells.is_power_of_two() || !Geometry::CELLS.contains(&ordinary_cells) {
            return Err("ring_cells must be a power of two from 16 to 65536");
        }
        if !ordinary_slab.is_power_of_two() || !Geometry::SLAB.contains(&ordinary_slab) {
            return Err("the slab must be a power of two from 2 KiB to 16 MiB");
        }
        Ok(Geometry { ordinary_cells, ordinary_slab })
    }

    /// Rounds `cells` up to a power of two and adds a slab of 128 bytes for each.
    ///
    /// # Errors
    /// When `cells` is 0 or over 65,536.
    pub fn for_cells(cells: u32) -> Result<Geometry, &'static str> {
        if cells == 0 || cells > *Geometry::CELLS.end() {
            return Err("ring_cells must be from 1 to 65536");
        }
        let cells = cells.next_power_of_two().max(*Geometry::CELLS.start());
        Geometry::new(cells, (cells * 128).clamp(*Geometry::SLAB.start(), *Geometry::SLAB.end()))
    }

    /// Of the lanes behind a socket: frames of up to 16 KiB, which any socket takes.
    pub fn of_sockets() -> Geometry {
        Geometry { ordinary_cells: 64, ordinary_slab: 1 << 15 }
    }

    /// The smallest that a ring can work with, for models.
    #[cfg(loom)]
    pub(crate) fn tiny() -> Geometry {
        Geometry { ordinary_cells: 2, ordinary_slab: 32 }
    }

    /// Cells of the ordinary ring.
    pub fn ordinary_cells(self) -> u32 {
        self.ordinary_cells
    }

    /// Bytes of the ordinary slab.
    pub fn ordinary_slab(self) -> u32 {
        self.ordinary_slab
    }

    /// Bytes of a whole lane, in full pages.
    pub fn lane_bytes(self) -> usize {
        (self.slab_offset(Ring::Ordinary) + self.ordinary_slab as usize).next_multiple_of(PAGE)
    }

    pub(crate) fn cells(self, ring: Ring) -> u32 {
        match ring {
            Ring::Urgent => URGENT_CELLS,
            Ring::Ordinary => self.ordinary_cells,
        }
    }

    pub(crate) fn slab(self, ring: Ring) -> u32 {
        match ring {
            Ring::Urgent => URGENT_SLAB,
            Ring::Ordinary => self.ordinary_slab,
        }
    }

    pub(crate) fn cells_offset(ring: Ring) -> usize {
        match ring {
            Ring::Urgent => HEADER,
            Ring::Ordinary => HEADER + URGENT_CELLS as usize * CELL,
        }
    }

    pub(crate) fn slab_offset(self, ring: Ring) -> usize {
        let cells_end =
            Geometry::cells_offset(Ring::Ordinary) + self.ordinary_cells as usize * CELL;
        match ring {
            Ring::Urgent => cells_end,
            Ring::Ordinary => cells_end + URGENT_SLAB as usize,
        }
    }
}

impl Header {
    pub(crate) fn taken(&self, ring: Ring) -> &AtomicU64 {
        match ring {
            Ring::Urgent => &self.taken_urgent,
            Ring::Ordinary => &self.taken_ordinary,
        }
    }

    pub(crate) fn want(&self, ring: Ring) -> &AtomicU64 {
        match ring {
            Ring::Urgent => &self.attention.want_urgent,
            Ring::Ordinary => &self.attention.want_ordinary,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_lane_do_not_overlap() {
        for (cells, slab) in [(16, 2048), (64, 8192), (1024, 131_072), (65_536, 16 << 20)] {
            let geometry = Geometry::new(cells, slab).expect("in range");
            let urgent = Geometry::cells_offset(Ring::Urgent);
            let ordinary = Geometry::cells_offset(Ring::Ordinary);
            let urgent_slab = geometry.slab_offset(Ring::Urgent);
            let ordinary_slab = geometry.slab_offset(Ring::Ordinary);
            assert!(HEADER <= urgent);
            assert_eq!(urgent + 16 * CELL, ordinary);
            assert_eq!(ordinary + cells as usize * CELL, urgent_slab);
            assert_eq!(urgent_slab + 2048, ordinary_slab);
            assert!(ordinary_slab + slab as usize <= geometry.lane_bytes());
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert!(Geometry::new(24, 8192).is_err());
        assert!(Geometry::new(8, 8192).is_err());
        assert!(Geometry::new(64, 1024).is_err());
        assert!(Geometry::new(64, 32 << 20).is_err());
        assert!(Geometry::for_cells(0).is_err());
        assert!(Geometry::for_cells(65_537).is_err());
        assert_eq!(Geometry::for_cells(65_536).expect("largest").ordinary_slab(), 8 << 20);
    }
}
