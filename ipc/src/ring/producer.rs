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
        let total = message.payload.len();
        if total <= INLINE {
            self.need_cell()?;
            self.commit(message, message.kind, 0, total, frame::pack(message.payload));
            return Ok(total);
        }
        if sent > 0 || total - INLINE_SLAB > max_piece(self.slab_size) as usize {
            return self.push_part(message, sent);
        }
        let (inline, in_slab) = message.payload.split_at(INLINE_SLAB);
        let place = self.put_in_slab(in_slab, message.kind)?;
        let [a, b, c, d, e] = frame::pack(inline);
        self.commit(message, message.kind, FLAG_SLAB, total, [place, a, b, c, d, e]);
        Ok(total)
    }

    /// Pushes one of several frames.
    #[inline(never)]
    fn push_part(&mut self, message: &Message<'_>, sent: usize) -> Result<usize, PushError> {
        let rest = &message.payload[sent..];
        if sent > 0 && rest.len() <= INLINE {
            self.need_cell()?;
            self.commit(message, Kind::Continue, 0, rest.len(), frame::pack(rest));
            return Ok(message.payload.len());
        }
        let is_last = sent > 0 && rest.len() - INLINE_SLAB <= max_piece(self.slab_size) as usize;
        let (kind, inline) =
            if sent > 0 { (Kind::Continue, INLINE_SLAB) } else { (message.kind, INLINE_FIRST) };
        let length =
            if is_last { rest.len() } else { inline + stream_piece(self.slab_size) as usize };
        let (inline, in_slab) = rest[..length].split_at(inline);
        let place = self.put_in_slab(in_slab, message.kind)?;
        let words = if sent > 0 {
            let [a, b, c, d, e] = frame::pack(inline);
            [place, a, b, c, d, e]
        } else {
            let [a, b, c, d] = frame::pack(inline);
            [place, message.payload.len() as u64, a, b, c, d]
        };
        let flags = if is_last { FLAG_SLAB } else { FLAG_SLAB | FLAG_MORE };
        self.commit(message, kind, flags, length, words);
        Ok(sent + length)
    }

    /// Copies bytes into the next piece of the slab, once there is a cell for its frame, too.
    /// Returns its place.
    #[inline(always)]
    fn put_in_slab(&mut self, bytes: &[u8], kind: Kind) -> Result<u64, PushError> {
        let piece = self.reserve(bytes.len())?;
        self.own.write_slab(self.slab.offset(piece.place), bytes);
        self.slab.advance(piece);
        if kind == Kind::OneWay
            && piece.end + SLAB_AHEAD + 64 - self.freed <= u64::from(self.slab_size)
        {
            self.own.ask_for_slab(self.slab.offset(piece.end + SLAB_AHEAD));
        }
        Ok(piece.place)
    }

    /// Finds a free piece of slab, and a free cell.
    #[inline(always)]
    fn reserve(&mut self, length: usize) -> Result<Piece, PushError> {
        let piece = self.slab.next(length);
        if self.has_room(piece) { Ok(piece) } else { self.gain_room(piece) }
    }

    #[inline(always)]
    fn has_room(&self, piece: Piece) -> bool {
        self.head - self.taken < self.ends.len() as u64 && self.slab.fits(piece, self.freed)
    }

    #[cold]
    fn gain_room(&mut self, piece: Piece) -> Result<Piece, PushError> {
        self.refresh_taken().map_err(PushError::Corrupt)?;
        if self.has_room(piece) {
            Ok(piece)
        } else {
            Err(PushError::Full { wake_at: self.wake_at(piece) })
        }
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

    /// Makes sure of a free cell.
    #[inline(always)]
    fn need_cell(&mut self) -> Result<(), PushError> {
        if self.head - self.taken < self.ends.len() as u64 { Ok(()) } else { self.gain_cell() }
    }

    #[cold]
    fn gain_cell(&mut self) -> Result<(), PushError> {
        let taken = self.refresh_taken().map_err(PushError::Corrupt)?;
        let wake_at = self.head + 1 - self.ends.len() as u64;
        if taken >= wake_at { Ok(()) } else { Err(PushError::Full { wake_at }) }
    }

    /// Writes the cell, its stamp last.
    #[inline(always)]
    fn commit(
        &mut self,
        message: &Message<'_>,
        kind: Kind,
        flags: u32,
        length: usize,
        words: [u64; 6],
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
