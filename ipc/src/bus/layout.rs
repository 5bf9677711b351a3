//! Every shared byte of the event bus: rings of events, and the cursor pages of reliable
//! subscribers. `docs/layout.md` draws them.

use crate::sync::{AtomicU32, AtomicU64};

/// First word of a ring: `ipcbus` and a byte for its kind, and 1.
pub(crate) const RING_MAGIC: u64 = u64::from_le_bytes(*b"ipcbusR\x01");
/// First word of a cursor page.
#[cfg_attr(loom, allow(dead_code))]
pub(crate) const PAGE_MAGIC: u64 = u64::from_le_bytes(*b"ipcbusC\x01");
/// Of both. Another layout has another number.
pub(crate) const VERSION: u32 = 1;

/// Bytes before the records: a page, so that the records begin at one.
pub(crate) const HEADER_BYTES: usize = 4096;
/// Bytes of a cursor page.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Smallest and largest ring, in bytes of records. Powers of two, as all between them.
pub(crate) const MIN_RING: u64 = if cfg!(loom) { 64 } else { 4096 };
/// See [`MIN_RING`].
pub(crate) const MAX_RING: u64 = 1 << 28;
/// Records begin at multiples of this, so that what is left before the end of a ring always has
/// room for a head.
pub(crate) const ALIGN: u64 = 32;
/// Bytes of a record's head.
pub(crate) const RECORD_HEAD: u64 = 24;
/// Bytes that an event of the usual size takes: a head and up to 40 bytes.
pub const SLOT: u64 = 64;

/// What `last` has before anything was published.
pub(crate) const NOTHING: u64 = u64::MAX;

/// [`RingHeader::state`], 0 otherwise: nothing more comes.
pub(crate) const CLOSED: u32 = 1;

/// In the upper half of a record's first word: not an event, but the way to the ring's start.
pub(crate) const PAD: u64 = 1 << 32;

/// The head of a ring. Its owner alone writes it.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct RingHeader {
    pub(crate) magic: AtomicU64,
    pub(crate) version: AtomicU32,
    pub(crate) topic: AtomicU32,
    /// Bytes of records: a power of two.
    pub(crate) capacity: AtomicU64,
    /// Number of the first event of this ring; 0 but for a ring that follows another.
    pub(crate) first: AtomicU64,
    _reserved0: Reserved<4>,
    /// The position behind the newest record: bytes since the ring's beginning, never wrapping.
    pub(crate) head: AtomicU64,
    /// The position of the newest record.
    pub(crate) last: AtomicU64,
    /// 0, or [`CLOSED`].
    pub(crate) state: AtomicU32,
    _reserved1: AtomicU32,
    _reserved2: Reserved<5>,
    /// The position of the oldest whole record. Everything before it may be overwritten already.
    pub(crate) horizon: AtomicU64,
    _reserved3: Reserved<7>,
    /// Counts wake-ups; subscribers sleep on it.
    pub(crate) event: AtomicU32,
    _reserved4: AtomicU32,
    _reserved5: Reserved<7>,
}

/// Words that nobody reads.
#[derive(Debug)]
struct Reserved<const N: usize>(#[allow(dead_code, reason = "room")] [u64; N]);

impl<const N: usize> Default for Reserved<N> {
    fn default() -> Self {
        Reserved([0; N])
    }
}

/// How far a reliable subscriber has come in one ring. The subscriber alone writes it.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct PageHeader {
    pub(crate) magic: AtomicU64,
    pub(crate) version: AtomicU32,
    _reserved0: AtomicU32,
    _reserved1: Reserved<6>,
    /// The position of the next record that it will read, plus one; 0 until it has begun.
    pub(crate) cursor: AtomicU64,
    _reserved2: Reserved<7>,
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<RingHeader>() == 256);
    assert!(std::mem::offset_of!(RingHeader, head) == 0x40);
    assert!(std::mem::offset_of!(RingHeader, horizon) == 0x80);
    assert!(std::mem::offset_of!(RingHeader, event) == 0xC0);
    assert!(size_of::<PageHeader>() == 128);
    assert!(std::mem::offset_of!(PageHeader, cursor) == 0x40);
};

/// Gives the bytes of the record of an event of so many bytes.
pub(crate) const fn record_bytes(length: u64) -> u64 {
    (RECORD_HEAD + length).next_multiple_of(ALIGN)
}

/// Gives the longest event of a ring: a quarter of it, with its head.
pub(crate) const fn longest(capacity: u64) -> u64 {
    if cfg!(loom) { 8 } else { capacity / 4 - RECORD_HEAD }
}

/// Gives the bytes of a ring for so many events of the usual size.
pub fn ring_bytes(events: u64) -> u64 {
    events.saturating_mul(SLOT).clamp(MIN_RING, MAX_RING).next_power_of_two()
}

/// Tells whether a ring may have so many bytes of records.
pub(crate) fn is_ring_size(capacity: u64) -> bool {
    capacity.is_power_of_two() && (MIN_RING..=MAX_RING).contains(&capacity)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_ring_has_room_for_as_many_events_as_it_was_made_for() {
        assert_eq!(ring_bytes(10_000), 1 << 20);
        assert_eq!(ring_bytes(0), MIN_RING);
        assert_eq!(ring_bytes(u64::MAX), MAX_RING);
        assert_eq!(record_bytes(0), 32);
        assert_eq!(record_bytes(8), 32);
        assert_eq!(record_bytes(40), SLOT);
        assert_eq!(record_bytes(41), 96);
        assert!(record_bytes(longest(MIN_RING)) * 4 <= MIN_RING);
    }
}
