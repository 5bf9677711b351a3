//! The writing half of a ring: one at a time, in this process only.

use std::sync::Arc;

use super::cursor::{Piece, SlabCursor, max_piece, stream_piece};
use crate::{
    error::PeerCorrupt,
    frame::{self, FLAG_MORE, FLAG_SLAB, Head, INLINE_FIRST, INLINE_SLAB, Kind},
    lane::{Lane, OwnRing},
    layout::{INLINE, Ring},
    sync::Ordering,
};

/// Cells, and bytes of slab, that are asked for ahead of writing them. In a stream they arrive
/// meanwhile, so that the stores need not wait for them; a peer that keeps up does not look there.
const CELLS_AHEAD: usize = 8;
const SLAB_AHEAD: u64 = 512;

/// A message, or what is left of one that travels in several frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: Kind,
    pub(crate) priority: u8,
    pub(crate) id: u32,
    /// µs since the channel's start; 0 for none.
    pub(crate) deadline: u32,
    pub(crate) payload: &'a [u8],
}

/// Why a message did not go in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    /// No credit: wait until the consumer has taken up to `wake_at` frames.
    Full { wake_at: u64 },
    /// The consumer's progress word is impossible.
    Corrupt(PeerCorrupt),
}

/// Writes frames into the ring of an own lane.
#[derive(Debug)]
pub(crate) struct Producer {
    ring: Ring,
    own: OwnRing,
    /// The consumer's lane, for its `taken` word.
    peer: Arc<Lane>,
    cells_log2: u32,
    /// Frames pushed. Always in sync.
    head: u64,
    /// Frames taken, as last read. Can be stale; it only ever lags.
    taken: u64,
    slab: SlabCursor,
    /// Slab count freed by `taken`. As stale as `taken`.
    freed: u64,
    /// For each cell, the slab count behind its frame.
    ends: Box<[u64]>,
    slab_size: u32,
}

impl Producer {
    /// Starts at the beginning of a fresh ring.
    pub(crate) fn new(own: &Arc<Lane>, peer: &Arc<Lane>, ring: Ring) -> Producer {
        let geometry = own.geometry();
        let cells = geometry.cells(ring);
        Producer {
            ring,
            own: own.own_ring(ring),
            peer: Arc::clone(peer),
            cells_log2: cells.trailing_zeros(),
            head: 0,
            taken: 0,
            slab: SlabCursor::new(geometry.slab(ring)),
            freed: 0,
            ends: vec![0; cells as usize].into_boxed_slice(),
            slab_size: geometry.slab(ring),
        }
    }

    /// Frames pushed so far: the position of the next.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// Frames that the consumer has taken, read afresh.
    pub(crate) fn refresh_taken(&mut self) -> Result<u64, PeerCorrupt> {
        let taken = self.peer.header().taken(self.ring).load(Ordering::Acquire);
        if taken < self.taken || taken > self.head {
            return Err(PeerCorrupt::Taken);
        }
        if taken > self.taken {
            self.taken = taken;
            self.freed = self.ends[(taken as usize - 1) & (self.ends.len() - 1)];
        }
        Ok(taken)
    }

    /// Pushes a whole message that fits one frame, or the next frame of a longer one whose first
    /// `sent` bytes are under way. Returns the bytes sent by then; when that is less than the
    /// payload, push again.
    ///
    /// One cell store for up to 48 bytes; one `Release` store opens the frame.
    #[inline(always)]
    pub(crate) fn push(&mut self, message: &Message<'_>, sent: usize) -> Result<usize, PushError> {
        if message.payload.len() > INLINE {
            return self.push_long(message, sent);
        }
        if self.head - self.taken > self.ends.len() as u64 - 1 {
            self.gain_credit(self.head + 1 - self.ends.len() as u64)?;
        }
        let mut words = [0_u64; 6];
        frame::pack(message.payload, &mut words);
        self.commit(message, 0, message.payload.len(), words, message.kind);
        Ok(message.payload.len())
    }

    #[inline(never)]
    fn push_long(&mut self, message: &Message<'_>, sent: usize) -> Result<usize, PushError> {
        let total = message.payload.len();
        let rest = &message.payload[sent..];
        let first = sent == 0;
        let kind = if first { message.kind } else { Kind::Continue };
        if rest.len() <= INLINE {
            if self.head - self.taken >= self.ends.len() as u64 {
                self.gain_credit(self.head + 1 - self.ends.len() as u64)?;
            }
            let mut words = [0_u64; 6];
            frame::pack(rest, &mut words);
            self.commit(message, 0, rest.len(), words, kind);
            return Ok(total);
        }
        let whole = rest.len() - INLINE_SLAB <= max_piece(self.slab_size) as usize;
        let inline = if whole || !first { INLINE_SLAB } else { INLINE_FIRST };
        let in_slab =
            if whole { rest.len() - inline } else { stream_piece(self.slab_size) as usize };
        let piece = self.reserve(in_slab)?;
        let (head, tail) = rest[..inline + in_slab].split_at(inline);
        let mut words = [0_u64; 6];
        words[0] = piece.place;
        if !whole && first {
            words[1] = total as u64;
        }
        frame::pack(head, &mut words[(INLINE - inline) / 8..]);
        self.own.write_slab(self.slab.offset(piece.place), tail);
        self.slab.advance(piece);
        if message.kind == Kind::OneWay
            && piece.end + SLAB_AHEAD + 64 - self.freed <= u64::from(self.slab_size)
        {
            self.own.ask_for_slab(self.slab.offset(piece.end + SLAB_AHEAD));
        }
        let flags = if whole { FLAG_SLAB } else { FLAG_SLAB | FLAG_MORE };
        self.commit(message, flags, inline + in_slab, words, kind);
        Ok(sent + inline + in_slab)
    }

    /// Finds a free cell and a free piece of slab.
    fn reserve(&mut self, length: usize) -> Result<Piece, PushError> {
        let piece = self.slab.next(length);
        let cells = self.ends.len() as u64;
        let has_room = |p: &Producer| p.head - p.taken < cells && p.slab.fits(piece, p.freed);
        if !has_room(self) {
            self.refresh_taken().map_err(PushError::Corrupt)?;
            if !has_room(self) {
                return Err(PushError::Full { wake_at: self.wake_at(piece) });
            }
        }
        Ok(piece)
    }

    /// The count of taken frames at which `piece` fits.
    fn wake_at(&self, piece: Piece) -> u64 {
        let cells = self.ends.len() as u64;
        let by_cells = (self.head + 1).saturating_sub(cells);
        let mask = self.ends.len() - 1;
        (self.taken + 1..self.head)
            .find(|taken| self.slab.fits(piece, self.ends[(*taken as usize - 1) & mask]))
            .unwrap_or(self.head)
            .max(by_cells)
    }

    #[cold]
    fn gain_credit(&mut self, needed: u64) -> Result<(), PushError> {
        let taken = self.refresh_taken().map_err(PushError::Corrupt)?;
        if taken >= needed { Ok(()) } else { Err(PushError::Full { wake_at: needed }) }
    }

    #[inline(always)]
    fn commit(
        &mut self,
        message: &Message<'_>,
        flags: u32,
        length: usize,
        words: [u64; 6],
        kind: Kind,
    ) {
        let head = Head {
            kind,
            flags,
            priority: message.priority,
            length: length as u32,
            id: message.id,
            deadline: message.deadline,
        };
        let index = self.head as usize & (self.ends.len() - 1);
        self.ends[index] = self.slab.position();
        self.own.publish(index, head.words(frame::lap(self.head, self.cells_log2)), words);
        self.head += 1;
        // Only in a stream, and only what is free: the peer is about to read the rest.
        if message.kind == Kind::OneWay
            && self.head - self.taken + CELLS_AHEAD as u64 <= self.ends.len() as u64
        {
            self.own.ask_for_cell((index + CELLS_AHEAD) & (self.ends.len() - 1));
        }
    }
}
