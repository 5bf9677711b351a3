//! Every byte of a board; drawn in `docs/layout.md`.

use std::mem::{align_of, offset_of, size_of};

use super::histogram::{FINE, Scale, WHOLE};
use crate::{
    sync::{AtomicU32, AtomicU64, Ordering},
    trace::MOST_SHOWN,
};

/// First bytes of a segment: "ipcboar" and the byte 1.
pub(super) const MAGIC: u64 = u64::from_ne_bytes(*b"ipcboar\x01");
/// Of this layout; a segment of another version is not read.
pub(super) const VERSION: u32 = 2;

/// Most segments of one board: together they have over 3500 slots.
pub(crate) const MOST_SEGMENTS: u32 = 8;
/// Bytes of the first segment, a page: a living end, the sum of those of its role that are gone,
/// and one more, as a client has that opens its channel anew. Each further one has four times the
/// bytes of the one before, up to `LARGEST`.
const FIRST: usize = 4096;
const LARGEST: usize = 1 << 20;

/// The number of the segment that has no slots, but the records of traced requests.
pub(super) const TAPE: u32 = MOST_SEGMENTS;
const TAPE_BYTES: usize = 1 << 16;
/// Records of it.
pub(super) const RECORDS: usize = (TAPE_BYTES - size_of::<Header>()) / size_of::<Record>();

/// The number of the segment that has the payloads of such requests, while an operator may see any.
pub(super) const PAYLOADS: u32 = TAPE + 1;
const PAYLOADS_BYTES: usize = 1 << 18;
/// Records of it.
pub(super) const MOST_PAYLOADS: usize = (PAYLOADS_BYTES - size_of::<Header>()) / size_of::<Shown>();

/// Gives the bytes of the segment of this number; nothing for a number that no board has.
pub(crate) fn segment_bytes(segment: u32) -> Option<usize> {
    match segment {
        ..MOST_SEGMENTS => Some((FIRST << (2 * segment)).min(LARGEST)),
        TAPE => Some(TAPE_BYTES),
        PAYLOADS => Some(PAYLOADS_BYTES),
        _ => None,
    }
}

/// Slots of the segment of this number.
pub(super) fn segment_slots(segment: u32) -> usize {
    let bytes = segment_bytes(segment).filter(|_| segment < TAPE);
    bytes.map_or(0, |bytes| (bytes - size_of::<Header>()) / size_of::<Slot>())
}

/// A counter that one thread at a time adds to: the holder of a claim. So it needs no locked
/// instruction, and never misses a count.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Count(AtomicU64);

impl Count {
    #[inline(always)]
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// For the counters that any thread adds to, on no hot path.
    #[cold]
    pub(crate) fn add_shared(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The head of a segment.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Header {
    pub(super) magic: AtomicU64,
    pub(super) version: AtomicU32,
    /// Slots behind this header.
    pub(super) slots: AtomicU32,
    pub(super) slot_bytes: AtomicU32,
    /// The number of this segment.
    pub(super) segment: AtomicU32,
    pub(super) pid: AtomicU32,
    /// Odd while counts move from an end that closes to the sum of those that are gone; only in
    /// segment 0.
    pub(super) moving: AtomicU32,
    /// Ends that ever had a channel, with a slot or without; only in segment 0.
    pub(super) opened: Count,
    /// Those without: all slots were taken.
    pub(super) unseated: Count,
    reserved: [u64; 26],
}

/// One end of a channel, or the sum of the ends of one role that are gone.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Slot {
    pub(crate) identity: Identity,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    /// Of a client: how long calls took. Of a server: how long handlers did. In ns.
    pub(super) latency: [Count; 104],
    /// Of a server: how long requests waited in the run queue, of those that had to. In ns.
    pub(super) queued: [Count; 32],
}

/// What was done for a traced request.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Record {
    /// 0 for none; odd while it is written; `2n + 2` for the span of number n, from 0.
    pub(super) sequence: AtomicU64,
    pub(super) words: [AtomicU64; 15],
}

/// A payload of a traced request, or of the answer to one: the beginning of it.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Shown {
    /// As of a [`Record`].
    pub(super) sequence: AtomicU64,
    pub(super) head: [AtomicU64; 7],
    pub(super) bytes: [AtomicU64; MOST_SHOWN / 8],
}

/// The line that changes rarely.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Identity {
    /// Odd while the slot is in use; one more each time it is taken and given back.
    pub(super) generation: AtomicU32,
    pub(super) role: AtomicU32,
    pub(super) channel: AtomicU64,
    pub(super) peer: AtomicU32,
    pub(super) peer_name: AtomicU32,
    pub(super) peer_pid: AtomicU32,
    pub(super) dest: AtomicU32,
    pub(super) dest_name: AtomicU32,
    /// Of an encrypted channel: the handshake's pattern, by number, and above its 8 bits how long
    /// this end waited for it, in µs; 0 where there is no session.
    pub(super) pattern: AtomicU32,
    /// Calls that ended with an error; of a server, requests that it answered with one.
    pub(crate) errors: Count,
    /// Messages given up: there was no room, or their time was over, or a limit was passed.
    pub(crate) drops: Count,
    /// When the session began, `CLOCK_MONOTONIC` in ns.
    pub(super) since_ns: AtomicU64,
}

/// Written by the holder of the sending claim.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Sender {
    pub(crate) messages: Count,
    pub(crate) bytes: Count,
    /// Times that a message found no room.
    pub(crate) full: Count,
    /// Of an encrypted channel: how often this end has changed its keys.
    pub(crate) rekeys: Count,
    /// Names the session: the hash of its handshake.
    pub(super) fingerprint: [AtomicU64; 4],
}

/// Written by the holder of the receiving claim, like the histograms.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Receiver {
    pub(crate) messages: Count,
    pub(crate) bytes: Count,
    /// Waits that went on beyond the eager polls.
    pub(crate) spins: Count,
    /// Sleeps announced.
    pub(crate) parks: Count,
    /// Requests that wait for their turn now.
    pub(crate) depth: Count,
    /// Sums of what the two histograms count, in ns.
    pub(super) latency_sum: Count,
    pub(super) queued_sum: Count,
    /// Of an encrypted channel: records that did not open.
    pub(crate) refused: Count,
}

impl Sender {
    #[inline(always)]
    pub(crate) fn sent(&self, messages: u64, bytes: u64) {
        self.messages.add(messages);
        self.bytes.add(bytes);
    }
}

impl Receiver {
    #[inline(always)]
    pub(crate) fn received(&self, messages: u64, bytes: u64) {
        self.messages.add(messages);
        self.bytes.add(bytes);
    }
}

impl Slot {
    /// Counts a call or a handler that took so long, `weight` times. The receiving claim is held.
    pub(crate) fn took(&self, ns: u64, weight: u64) {
        self.latency[FINE.bucket(ns)].add(weight);
        self.receiver.latency_sum.add(ns.saturating_mul(weight));
    }

    /// Counts a request that waited so long for its turn. The receiving claim is held.
    pub(crate) fn waited(&self, ns: u64) {
        self.queued[WHOLE.bucket(ns)].add(1);
        self.receiver.queued_sum.add(ns);
    }

    /// What stands in the histogram of this scale.
    pub(super) fn counts(&self, scale: Scale) -> &[Count] {
        if scale == FINE {
            &self.latency[..FINE.buckets()]
        } else {
            &self.queued[..WHOLE.buckets()]
        }
    }

    /// Every counter that a sum over ends adds up.
    pub(super) fn sums(&self) -> impl Iterator<Item = &Count> {
        let Slot { identity, sender, receiver, latency, queued } = self;
        [
            &identity.errors,
            &identity.drops,
            &sender.messages,
            &sender.bytes,
            &sender.full,
            &receiver.messages,
            &receiver.bytes,
            &receiver.spins,
            &receiver.parks,
            &receiver.latency_sum,
            &receiver.queued_sum,
        ]
        .into_iter()
        .chain(latency)
        .chain(queued)
    }
}

const _: () = {
    assert!(size_of::<Header>() == 0x100);
    assert!(size_of::<Record>() == 0x80 && RECORDS == 510);
    assert!(size_of::<Shown>() == 0x440 && MOST_PAYLOADS == 240);
    assert!(offset_of!(Header, opened) == 0x20);
    assert!(size_of::<Slot>() == 0x500 && align_of::<Slot>() == 128);
    assert!(offset_of!(Slot, sender) == 0x040);
    assert!(offset_of!(Slot, receiver) == 0x080);
    assert!(offset_of!(Slot, latency) == 0x0C0);
    assert!(offset_of!(Slot, queued) == 0x400);
    assert!(size_of::<Identity>() == 64);
    assert!(offset_of!(Identity, errors) == 0x28);
    assert!(size_of::<Sender>() == 64);
    assert!(size_of::<Receiver>() == 64);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_grow_and_are_bounded() {
        let slots: Vec<usize> = (0..=MOST_SEGMENTS).map(segment_slots).collect();
        assert_eq!(slots, [3, 12, 51, 204, 819, 819, 819, 819, 0]);
        assert_eq!(segment_bytes(0), Some(4096));
        assert_eq!(segment_bytes(TAPE), Some(65_536));
        assert_eq!((segment_bytes(PAYLOADS), segment_slots(PAYLOADS)), (Some(262_144), 0));
        assert_eq!(segment_bytes(PAYLOADS + 1), None);
        assert_eq!(segment_bytes(u32::MAX), None);
    }
}
