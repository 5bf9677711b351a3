//! The writing half of a ring: one at a time, in this process only.

use std::sync::Arc;

use super::cursor::{Piece, SlabCursor, max_piece, stream_piece};
#[cfg(not(loom))]
use crate::frame::Frame;
use crate::{
    error::PeerCorrupt,
    failpoint::shared,
    frame::{self, FLAG_MORE, FLAG_SLAB, INLINE_FIRST, INLINE_SLAB, Kind, Label},
    lane::{Lane, OwnRing},
    layout::{INLINE, Ring},
    sync::Ordering,
};

/// Cells, and bytes of slab, that are asked for ahead of writing them. In a stream they arrive
/// meanwhile, so that the stores need not wait for them; a peer that keeps up does not look there.
const CELLS_AHEAD: usize = 8;
const SLAB_AHEAD: u64 = 512;

/// Why a message did not go in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    /// No credit: wait until the consumer has taken up to `wake_at` frames.
    Full { wake_at: u64 },
    /// The consumer's progress word is impossible.
    Corrupt(PeerCorrupt),
    /// Nothing goes by this channel any more: another one has taken its place.
    Retired,
}

/// Writes frames into the ring of an own lane.
#[derive(Debug)]
pub(crate) struct Producer {
    pub(super) ring: Ring,
    own: OwnRing,
    /// The consumer's lane, for its `taken` word.
    peer: Arc<Lane>,
    pub(super) cells_log2: u32,
    /// Cells that may be in use: all, or all but one that is kept for the last frame.
    most: u64,
    /// Frames pushed. Always in sync.
    pub(super) head: u64,
    /// Frames taken, as last read. Can be stale; it only ever lags.
    taken: u64,
    pub(super) slab: SlabCursor,
    /// Slab count freed by `taken`. As stale as `taken`.
    freed: u64,
    /// For each cell, the slab count behind its frame.
    ends: Box<[u64]>,
    pub(super) slab_size: u32,
    /// Ciphertext of a long record on its way to the slab.
    #[cfg(not(loom))]
    pub(super) sealed: Vec<u8>,
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
            most: u64::from(cells),
            head: 0,
            taken: 0,
            slab: SlabCursor::new(geometry.slab(ring)),
            freed: 0,
            ends: vec![0; cells as usize].into_boxed_slice(),
            slab_size: geometry.slab(ring),
            #[cfg(not(loom))]
            sealed: Vec::new(),
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
    pub(crate) fn push(
        &mut self,
        label: Label,
        payload: &[u8],
        sent: usize,
    ) -> Result<usize, PushError> {
        let total = payload.len();
        if total <= INLINE {
            if !self.has_cell() {
                self.gain_cell()?;
            }
            self.commit(label, 0, total, frame::pack(payload));
            return Ok(total);
        }
        if sent > 0 || total - INLINE_SLAB > max_piece(self.slab_size) as usize {
            return self.push_part(label, payload, sent);
        }
        let (inline, in_slab) = payload.split_at(INLINE_SLAB);
        let piece = self.slab.next(in_slab.len());
        if !self.has_room(piece) {
            self.gain_room(piece)?;
        }
        self.put_in_slab(piece, in_slab, label);
        self.commit(label, FLAG_SLAB, total, after([piece.place], inline));
        Ok(total)
    }

    /// Pushes one of several frames.
    #[inline(never)]
    fn push_part(&mut self, label: Label, payload: &[u8], sent: usize) -> Result<usize, PushError> {
        let rest = &payload[sent..];
        let continues = label.with_kind(Kind::Continue);
        if sent > 0 && rest.len() <= INLINE {
            if !self.has_cell() {
                self.gain_cell()?;
            }
            self.commit(continues, 0, rest.len(), frame::pack(rest));
            return Ok(payload.len());
        }
        let is_last = sent > 0 && rest.len() - INLINE_SLAB <= max_piece(self.slab_size) as usize;
        let inline = if sent > 0 { INLINE_SLAB } else { INLINE_FIRST };
        let length =
            if is_last { rest.len() } else { inline + stream_piece(self.slab_size) as usize };
        let (inline, in_slab) = rest[..length].split_at(inline);
        let piece = self.slab.next(in_slab.len());
        if !self.has_room(piece) {
            self.gain_room(piece)?;
        }
        self.put_in_slab(piece, in_slab, label);
        let flags = if is_last { FLAG_SLAB } else { FLAG_SLAB | FLAG_MORE };
        if sent > 0 {
            self.commit(continues, flags, length, after([piece.place], inline));
        } else {
            let words = after([piece.place, payload.len() as u64], inline);
            self.commit(label, flags, length, words);
        }
        Ok(sent + length)
    }

    /// Pushes a frame as it came from elsewhere: its flags and lengths are checked.
    #[cfg(not(loom))]
    pub(crate) fn relay(
        &mut self,
        label: Label,
        frame: &Frame,
        payload: &[u8],
    ) -> Result<(), PushError> {
        let (inline, in_slab) = payload.split_at(frame.inline_length());
        if in_slab.is_empty() {
            if !self.has_cell() {
                self.gain_cell()?;
            }
            self.commit(label, frame.head.flags, payload.len(), frame::pack(inline));
            return Ok(());
        }
        let piece = self.slab.next(in_slab.len());
        if !self.has_room(piece) {
            self.gain_room(piece)?;
        }
        self.put_in_slab(piece, in_slab, label);
        let words = if frame.head.is_first_of_many() {
            after([piece.place, frame.total], inline)
        } else {
            after([piece.place], inline)
        };
        self.commit(label, frame.head.flags, payload.len(), words);
        Ok(())
    }

    /// Copies bytes into the next piece of the slab.
    #[inline(always)]
    pub(super) fn put_in_slab(&mut self, piece: Piece, bytes: &[u8], label: Label) {
        let at = self.slab.offset(piece.place);
        shared!(SlabPiece, self.own.write_slab(at, bytes));
        self.slab.advance(piece);
        if label.is(Kind::OneWay)
            && piece.end + SLAB_AHEAD + 64 - self.freed <= u64::from(self.slab_size)
        {
            self.own.ask_for_slab(self.slab.offset(piece.end + SLAB_AHEAD));
        }
    }

    #[inline(always)]
    pub(super) fn has_cell(&self) -> bool {
        self.head - self.taken < self.most
    }

    /// Keeps one cell for the frame that comes last, or lets it have that one.
    #[cfg(not(loom))]
    pub(crate) fn keep_last(&mut self, is_kept: bool) {
        self.most = self.ends.len() as u64 - u64::from(is_kept);
    }

    #[inline(always)]
    pub(super) fn has_room(&self, piece: Piece) -> bool {
        self.has_cell() && self.slab.fits(piece, self.freed)
    }

    /// The count of taken frames at which a stream that waits for `wake_at` had better go on: with
    /// room for one frame at a time, the consumer's counter would travel for every single one.
    pub(crate) fn ample(&self, wake_at: u64) -> u64 {
        (wake_at + self.ends.len() as u64 / 8).min(self.head)
    }

    /// Makes sure of a free cell.
    #[cold]
    pub(super) fn gain_cell(&mut self) -> Result<(), PushError> {
        self.refresh_taken().map_err(PushError::Corrupt)?;
        let wake_at = self.head + 1 - self.most;
        if self.has_cell() { Ok(()) } else { Err(PushError::Full { wake_at }) }
    }

    /// Makes sure of a free cell, and of that piece of the slab.
    #[cold]
    pub(super) fn gain_room(&mut self, piece: Piece) -> Result<(), PushError> {
        self.refresh_taken().map_err(PushError::Corrupt)?;
        if self.has_room(piece) {
            Ok(())
        } else {
            Err(PushError::Full { wake_at: self.wake_at(piece) })
        }
    }

    /// The count of taken frames at which `piece` fits.
    fn wake_at(&self, piece: Piece) -> u64 {
        let by_cells = (self.head + 1).saturating_sub(self.most);
        let mask = self.ends.len() - 1;
        (self.taken + 1..self.head)
            .find(|taken| self.slab.fits(piece, self.ends[(*taken as usize - 1) & mask]))
            .unwrap_or(self.head)
            .max(by_cells)
    }

    /// Writes the cell, its stamp last.
    #[inline(always)]
    pub(super) fn commit(&mut self, label: Label, flags: u32, length: usize, words: [u64; 6]) {
        let index = self.head as usize & (self.ends.len() - 1);
        self.ends[index] = self.slab.position();
        let lap = frame::lap(self.head, self.cells_log2);
        self.own.publish(index, label.head(flags, length, lap), words);
        self.head += 1;
        // Only in a stream, and only what is free: the peer is about to read the rest.
        if label.is(Kind::OneWay)
            && self.head - self.taken + CELLS_AHEAD as u64 <= self.ends.len() as u64
        {
            self.own.ask_for_cell((index + CELLS_AHEAD) & (self.ends.len() - 1));
        }
    }
}

/// The words of a cell: `N` of the head, then payload.
#[inline(always)]
fn after<const N: usize>(first: [u64; N], payload: &[u8]) -> [u64; 6] {
    let rest = frame::pack::<6>(payload);
    std::array::from_fn(|index| if index < N { first[index] } else { rest[index - N] })
}
