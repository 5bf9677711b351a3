//! Frames of an encrypted channel: the same cells and slab, with records in them.
//!
//! ```text
//!  16                              48              64
//!  ┌───────────────────────────────┬───────────────┐
//!  │ ciphertext, to 32 bytes       │ tag           │   the rest of the ciphertext in the slab
//!  └───────────────────────────────┴───────────────┘
//! ```
//! The head stays readable: its length is that of the text, and it is authenticated. The text of
//! the first of several frames begins with the length of the whole message. A place in the slab is
//! not told: it is the next one, and the receiver knows which that is.
//!
//! A record is sealed when its cell and its room in the slab are certain, and opened from a private
//! copy. Its position is the cursor of the ring: both halves of it count frames alike.

use super::{
    Consumer, Producer, PushError,
    cursor::{Piece, max_piece, stream_piece},
};
use crate::{
    error::PeerCorrupt,
    frame::{self, FLAG_MORE, FLAG_PHASE, FLAG_SLAB, Frame, INLINE_SEALED, Kind, Label},
    layout::Ring,
    session::{
        aead::{SHORT, TAG},
        poly::Half,
        record::{Opener, Refusal, Sealer, Spent},
    },
};

/// Bytes of the length of a whole message.
const TOTAL: usize = 8;

/// Why a message did not go in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SealError {
    Push(PushError),
    Spent(Spent),
}

impl From<PushError> for SealError {
    fn from(error: PushError) -> SealError {
        SealError::Push(error)
    }
}

impl From<SealError> for PushError {
    /// A ring whose records are used up, or that is another process's, is one that has failed.
    fn from(error: SealError) -> PushError {
        match error {
            SealError::Push(error) => error,
            SealError::Spent(_) => PushError::Corrupt(PeerCorrupt::Record),
        }
    }
}

impl From<Spent> for SealError {
    fn from(spent: Spent) -> SealError {
        SealError::Spent(spent)
    }
}

/// A frame whose record has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) frame: Frame,
    /// Bytes of text; they are at the front of the buffer.
    pub(crate) length: usize,
}

impl Producer {
    /// As [`push`](Producer::push), with each frame sealed.
    #[inline]
    pub(crate) fn push_sealed(
        &mut self,
        sealer: &mut Sealer,
        label: Label,
        payload: &[u8],
        sent: usize,
        now_ns: u64,
    ) -> Result<usize, SealError> {
        debug_assert_eq!(sealer.next(self.ring), self.head, "a record for each frame");
        if payload.len() <= INLINE_SEALED {
            if !self.has_cell() {
                self.gain_cell()?;
            }
            let flags = sealer.flags(self.ring, now_ns);
            let lap = frame::lap(self.head, self.cells_log2);
            let head = label.head(flags, payload.len(), lap);
            let text = frame::pack::<4>(payload);
            let (body, tag) = sealer.seal_words(self.ring, head, text, payload.len())?;
            self.commit_record(label, head, body, tag);
            return Ok(payload.len());
        }
        let most = INLINE_SEALED + max_piece(self.slab_size) as usize;
        if sent == 0 && payload.len() <= most {
            self.push_record(sealer, label, 0, payload, now_ns)?;
            return Ok(payload.len());
        }
        self.push_sealed_part(sealer, label, payload, sent, now_ns)
    }

    #[inline(never)]
    fn push_sealed_part(
        &mut self,
        sealer: &mut Sealer,
        label: Label,
        payload: &[u8],
        sent: usize,
        now_ns: u64,
    ) -> Result<usize, SealError> {
        let rest = &payload[sent..];
        let piece = INLINE_SEALED + stream_piece(self.slab_size) as usize;
        if sent == 0 {
            let first = piece - TOTAL;
            let mut text = Vec::with_capacity(piece);
            text.extend((payload.len() as u64).to_le_bytes());
            text.extend(&rest[..first]);
            self.push_record(sealer, label, FLAG_MORE, &text, now_ns)?;
            return Ok(first);
        }
        let continues = label.with_kind(Kind::Continue);
        if rest.len() <= INLINE_SEALED {
            self.push_sealed(sealer, continues, rest, 0, now_ns)?;
            return Ok(payload.len());
        }
        let most = INLINE_SEALED + max_piece(self.slab_size) as usize;
        let (length, more) = if rest.len() <= most { (rest.len(), 0) } else { (piece, FLAG_MORE) };
        self.push_record(sealer, continues, more, &rest[..length], now_ns)?;
        Ok(sent + length)
    }

    /// Pushes one record of more than [`INLINE_SEALED`] bytes.
    #[inline]
    fn push_record(
        &mut self,
        sealer: &mut Sealer,
        label: Label,
        more: u32,
        text: &[u8],
        now_ns: u64,
    ) -> Result<(), SealError> {
        let piece = self.slab.next(text.len() - INLINE_SEALED);
        if !self.has_room(piece) {
            self.gain_room(piece)?;
        }
        let flags = sealer.flags(self.ring, now_ns) | FLAG_SLAB | more;
        let lap = frame::lap(self.head, self.cells_log2);
        let head = label.head(flags, text.len(), lap);
        match text.len() {
            ..=48 => self.push_words::<6>(sealer, label, head, text, piece)?,
            49..=SHORT => self.push_words::<8>(sealer, label, head, text, piece)?,
            _ => {
                let mut record = std::mem::take(&mut self.sealed);
                record.resize(text.len() + TAG, 0);
                let outcome = sealer.seal(self.ring, head, text, &mut record);
                if outcome.is_ok() {
                    let (body, tag) = record.split_at(text.len());
                    let (inline, slab) = body.split_at(INLINE_SEALED);
                    self.put_in_slab(piece, slab, label);
                    self.commit_record(label, head, frame::pack(inline), frame::pack(tag));
                }
                self.sealed = record;
                outcome?;
            }
        }
        Ok(())
    }

    /// Pushes a record of a few more bytes than the cell holds.
    #[inline(always)]
    fn push_words<const N: usize>(
        &mut self,
        sealer: &mut Sealer,
        label: Label,
        head: [u64; 2],
        text: &[u8],
        piece: Piece,
    ) -> Result<(), Spent> {
        let words = frame::pack::<N>(text);
        let (body, tag) = sealer.seal_words(self.ring, head, words, text.len())?;
        let mut slab = [0; SHORT - INLINE_SEALED];
        let slab = &mut slab[..text.len() - INLINE_SEALED];
        frame::unpack(|word| body[4 + word], slab);
        self.put_in_slab(piece, slab, label);
        self.commit_record(label, head, std::array::from_fn(|word| body[word]), tag);
        Ok(())
    }

    #[inline(always)]
    fn commit_record(&mut self, label: Label, head: [u64; 2], body: [u64; 4], tag: Half) {
        let (flags, length) = frame::flags_and_length(head);
        self.commit(label, flags, length, [body[0], body[1], body[2], body[3], tag[0], tag[1]]);
    }
}

impl Sealer {
    /// The flags of the next frame: which of two neighbouring keys it is sealed with.
    #[inline]
    fn flags(&mut self, ring: Ring, now_ns: u64) -> u32 {
        if self.phase(ring, now_ns) { FLAG_PHASE } else { 0 }
    }
}

impl Consumer {
    /// What the next frame, if there is one, says of itself: nothing of it is proved.
    #[inline]
    pub(crate) fn peek_sealed(&self) -> Option<Frame> {
        let index = self.index();
        let first = self.peer.stamp(index);
        if first as u32 >> 4 != frame::lap(self.tail, self.cells_log2) {
            return None;
        }
        let words = [first, self.peer.word(index, 1)];
        Frame::check_sealed(words, self.sender, self.ring, self.max_slab).ok()
    }

    /// Takes the next frame, if there is one, and opens it into the front of `buffer`, which is
    /// long enough for any frame of this ring. Opened or not, the frame is given back.
    ///
    /// # Errors
    /// [`PeerCorrupt`] when the cell cannot have been written by an honest producer, or after as
    /// many records as a session bears that did not open. One that did not is `Some(Err)`.
    #[inline]
    pub(crate) fn take_sealed(
        &mut self,
        opener: &mut Opener,
        buffer: &mut [u8],
        now_ns: u64,
    ) -> Result<Option<Result<Opened, Refusal>>, PeerCorrupt> {
        let index = self.index();
        let first = self.peer.stamp(index);
        let lap = frame::lap(self.tail, self.cells_log2);
        if first as u32 >> 4 != lap {
            let before = lap.wrapping_sub(1) & 0x0FFF_FFFF;
            return if first as u32 >> 4 == before { Ok(None) } else { Err(PeerCorrupt::Stamp) };
        }
        debug_assert_eq!(opener.next(self.ring), self.tail, "a record for each frame");
        let words = [first, self.peer.word(index, 1)];
        let frame = Frame::check_sealed(words, self.sender, self.ring, self.max_slab)?;
        let in_slab = frame.sealed_in_slab();
        let outcome = self.open(opener, &frame, words, buffer, now_ns);
        self.release_slab(in_slab);
        match outcome {
            Err(_) if opener.is_poisoned() => Err(PeerCorrupt::Record),
            Err(refusal) => Ok(Some(Err(refusal))),
            Ok(()) => finish(frame, buffer).map(|it| Some(Ok(it))),
        }
    }

    #[inline]
    fn open(
        &self,
        opener: &mut Opener,
        frame: &Frame,
        head: [u64; 2],
        buffer: &mut [u8],
        now_ns: u64,
    ) -> Result<(), Refusal> {
        let (index, length) = (self.index(), frame.head.length as usize);
        let phase = frame.head.flags & FLAG_PHASE != 0;
        let word = |at| self.peer.word(index, at);
        let (inline, tag) = ([2, 3, 4, 5].map(word), [word(6), word(7)]);
        if length <= INLINE_SEALED {
            let text = opener.open_words(self.ring, phase, head, inline, length, tag, now_ns)?;
            frame::unpack(|word| text[word], &mut buffer[..length]);
            return Ok(());
        }
        let in_slab = length - INLINE_SEALED;
        let at = self.slab.offset(self.slab.next(in_slab).place);
        if length <= 48 {
            // Two whole words, without a detour through bytes of memory.
            let mut slab = [0; 16];
            self.peer.read_slab(at, &mut slab[..in_slab]);
            let slab = frame::pack::<2>(&slab);
            let sealed: [u64; 6] =
                std::array::from_fn(|at| if at < 4 { inline[at] } else { slab[at - 4] });
            let text = opener.open_words(self.ring, phase, head, sealed, length, tag, now_ns)?;
            frame::unpack(|word| text[word], &mut buffer[..length]);
            return Ok(());
        }
        if length <= SHORT {
            let mut slab = [0; SHORT - INLINE_SEALED];
            self.peer.read_slab(at, &mut slab[..in_slab]);
            let slab = frame::pack::<4>(&slab);
            let sealed: [u64; 8] =
                std::array::from_fn(|at| if at < 4 { inline[at] } else { slab[at - 4] });
            let text = opener.open_words(self.ring, phase, head, sealed, length, tag, now_ns)?;
            frame::unpack(|word| text[word], &mut buffer[..length]);
            return Ok(());
        }
        let fetch = |target: &mut [u8]| {
            let (front, slab) = target.split_at_mut(INLINE_SEALED);
            frame::unpack(|at| inline[at], front);
            self.peer.read_slab(at, slab);
        };
        let body = &mut buffer[..length];
        fetch(body);
        opener.open_long(self.ring, phase, head, body, tag, now_ns, fetch)
    }
}

/// Frames of an encrypted channel, for who passes them on and cannot open them: records, and before
/// them those of the handshake, which are laid out as on a plain one. What is passed on of a record
/// is its head, and the ciphertext with the tag behind it. Each keeps its place: so its position
/// there is the one that it was sealed for here.
impl Consumer {
    /// As [`peek`](Consumer::peek).
    ///
    /// # Errors
    /// As there.
    pub(crate) fn peek_record(&self) -> Result<Option<Frame>, PeerCorrupt> {
        let index = self.index();
        let first = self.peer.stamp(index);
        let lap = frame::lap(self.tail, self.cells_log2);
        if first as u32 >> 4 != lap {
            let before = lap.wrapping_sub(1) & 0x0FFF_FFFF;
            return if first as u32 >> 4 == before { Ok(None) } else { Err(PeerCorrupt::Stamp) };
        }
        if is_hello(first) {
            return self.peek();
        }
        let words = [first, self.peer.word(index, 1)];
        Frame::check_sealed(words, self.sender, self.ring, self.max_slab).map(Some)
    }

    /// Takes what [`peek_record`](Consumer::peek_record) gave, to be passed on: behind what `bytes`
    /// holds already.
    pub(crate) fn take_record(&mut self, frame: &Frame, bytes: &mut Vec<u8>) {
        let (begin, length) = (bytes.len(), frame.head.length as usize);
        if frame.head.kind == Kind::Hello {
            bytes.resize(begin + length, 0);
            self.copy(frame, &mut bytes[begin..]);
            self.release(frame);
            return;
        }
        bytes.resize(begin + length + TAG, 0);
        let index = self.index();
        let (body, tag) = bytes[begin..].split_at_mut(length);
        let (inline, slab) = body.split_at_mut(length.min(INLINE_SEALED));
        frame::unpack(|at| self.peer.word(index, 2 + at), inline);
        if !slab.is_empty() {
            self.peer.read_slab(self.slab.offset(self.slab.next(slab.len()).place), slab);
        }
        frame::unpack(|at| self.peer.word(index, 6 + at), tag);
        self.release_slab(frame.sealed_in_slab());
    }
}

fn is_hello(first: u64) -> bool {
    first & 0xF == Kind::Hello as u64
}

impl Producer {
    /// As [`relay`](Producer::relay): `record` is what [`Consumer::take_record`] gave elsewhere.
    pub(crate) fn relay_record(
        &mut self,
        label: Label,
        frame: &Frame,
        record: &[u8],
    ) -> Result<(), PushError> {
        if frame.head.kind == Kind::Hello {
            return self.relay(label, frame, record);
        }
        let length = frame.head.length as usize;
        let (body, tag) = record.split_at(length);
        let (inline, slab) = body.split_at(length.min(INLINE_SEALED));
        if slab.is_empty() {
            if !self.has_cell() {
                self.gain_cell()?;
            }
        } else {
            let piece = self.slab.next(slab.len());
            if !self.has_room(piece) {
                self.gain_room(piece)?;
            }
            self.put_in_slab(piece, slab, label);
        }
        let (body, tag) = (frame::pack::<4>(inline), frame::pack::<2>(tag));
        let words = std::array::from_fn(|at| if at < 4 { body[at] } else { tag[at - 4] });
        self.commit(label, frame.head.flags, length, words);
        Ok(())
    }
}

/// Finds the length of the whole message in the text of its first frame.
fn finish(mut frame: Frame, buffer: &mut [u8]) -> Result<Opened, PeerCorrupt> {
    let mut length = frame.head.length as usize;
    if frame.head.is_first_of_many() {
        let (total, _) = buffer.split_first_chunk::<TOTAL>().ok_or(PeerCorrupt::Length)?;
        frame.total = u64::from_le_bytes(*total);
        buffer.copy_within(TOTAL..length, 0);
        length = length.checked_sub(TOTAL).ok_or(PeerCorrupt::Length)?;
        if frame.total <= length as u64 {
            return Err(PeerCorrupt::Length);
        }
    }
    Ok(Opened { frame, length })
}

#[cfg(test)]
mod tests;
