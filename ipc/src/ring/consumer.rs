//! The reading half of a ring: every word of it is the peer's claim until checked.

use std::sync::Arc;

use super::cursor::{SlabCursor, max_piece};
use crate::{
    error::PeerCorrupt,
    failpoint::shared,
    frame::{self, Frame, Kind, Sender},
    lane::{Lane, PeerRing},
    layout::Ring,
    sync::Ordering,
};

/// Takes frames out of the ring of a peer's lane.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(super) ring: Ring,
    pub(super) sender: Sender,
    pub(super) peer: PeerRing,
    /// The own lane, for the `taken` word.
    own: Arc<Lane>,
    pub(super) cells_log2: u32,
    /// Frames taken. Always in sync; the `taken` word repeats it for the peer.
    pub(super) tail: u64,
    pub(super) slab: SlabCursor,
    pub(super) max_slab: u32,
}

impl Consumer {
    /// Starts at the beginning of a fresh ring that `sender` writes.
    pub(crate) fn new(own: &Arc<Lane>, peer: &Arc<Lane>, ring: Ring, sender: Sender) -> Consumer {
        let geometry = peer.geometry();
        Consumer {
            ring,
            sender,
            peer: peer.peer_ring(ring),
            own: Arc::clone(own),
            cells_log2: geometry.cells(ring).trailing_zeros(),
            tail: 0,
            slab: SlabCursor::new(geometry.slab(ring)),
            max_slab: max_piece(geometry.slab(ring)),
        }
    }

    /// Frames taken so far: the position of the next.
    #[cfg(not(loom))]
    pub(crate) fn tail(&self) -> u64 {
        self.tail
    }

    /// Tells whether a frame is there, without looking into it.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        let stamp = self.peer.stamp(self.index()) as u32;
        stamp >> 4 == frame::lap(self.tail, self.cells_log2)
    }

    /// Copies and checks the next frame, if there is one. It stays in the ring until
    /// [`release`](Consumer::release).
    ///
    /// # Errors
    /// [`PeerCorrupt`] when the cell cannot have been written by an honest producer.
    #[inline(always)]
    pub(crate) fn peek(&self) -> Result<Option<Frame>, PeerCorrupt> {
        let index = self.index();
        let first = self.peer.stamp(index);
        let lap = frame::lap(self.tail, self.cells_log2);
        let alleged = first as u32 >> 4;
        if alleged != lap {
            // Not written yet: what lies there is of the lap before (zero before the first).
            let before = lap.wrapping_sub(1) & 0x0FFF_FFFF;
            return if alleged == before { Ok(None) } else { Err(PeerCorrupt::Stamp) };
        }
        let words = [first, self.peer.word(index, 1)];
        let more = || [self.peer.word(index, 2), self.peer.word(index, 3)];
        let frame = Frame::check(words, more, self.sender, self.ring, self.max_slab)?;
        let in_slab = frame.slab_length();
        if in_slab > 0 && self.slab.next(in_slab).place != frame.place {
            return Err(PeerCorrupt::Place);
        }
        Ok(Some(frame))
    }

    /// The next frame, if it is there and [plain](Frame::plain).
    #[inline(always)]
    pub(crate) fn peek_plain(&self, kinds: [Kind; 2]) -> Option<Frame> {
        let index = self.index();
        let first = self.peer.stamp(index);
        if first as u32 >> 4 != frame::lap(self.tail, self.cells_log2) {
            return None;
        }
        let words = [first, self.peer.word(index, 1)];
        let place = || self.peer.word(index, 2);
        let frame = Frame::plain(words, place, kinds, self.ring, self.max_slab)?;
        let in_slab = frame.slab_length();
        (in_slab == 0 || self.slab.next(in_slab).place == frame.place).then_some(frame)
    }

    /// Copies the frame's payload to the front of `target`, which is at least as long. Each byte
    /// is read once.
    #[inline(always)]
    pub(crate) fn copy(&self, frame: &Frame, target: &mut [u8]) {
        let index = self.index();
        let skip = frame.first_word();
        let (inline, rest) = target.split_at_mut(frame.inline_length());
        frame::unpack(|word| self.peer.word(index, skip + word), inline);
        let in_slab = frame.slab_length();
        if in_slab > 0 {
            self.peer.read_slab(self.slab.offset(frame.place), &mut rest[..in_slab]);
        }
    }

    /// Reads the status in an `Error` frame.
    pub(crate) fn status_code(&self) -> i32 {
        self.peer.word(self.index(), 2) as u32 as i32
    }

    /// Gives the frame's cell and slab back to the producer.
    #[inline(always)]
    pub(crate) fn release(&mut self, frame: &Frame) {
        self.release_slab(frame.slab_length());
    }

    /// Gives a cell back, and that much of the slab.
    #[inline(always)]
    pub(super) fn release_slab(&mut self, in_slab: usize) {
        if in_slab > 0 {
            let piece = self.slab.next(in_slab);
            self.slab.advance(piece);
        }
        self.tail += 1;
        shared!(Taken, self.own.header().taken(self.ring).store(self.tail, Ordering::Release));
    }

    #[inline]
    pub(super) fn index(&self) -> usize {
        self.tail as usize & ((1 << self.cells_log2) - 1)
    }
}
