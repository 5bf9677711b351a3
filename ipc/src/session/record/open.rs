//! The receiving end of a direction.

use zeroize::Zeroize;

use super::{
    BAD_RECORDS, END, Limits,
    direction::{Context, Direction, Way},
};
use crate::{
    error::NodeError,
    failpoint::shared,
    frame,
    layout::Ring,
    session::{
        aead::{self, Head, SHORT, TAG},
        poly::Half,
    },
};

/// How far from its place a record is looked for, either way.
const NEAR: u64 = 32;

/// Why a record was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is not what was sealed, here or near: changed bytes, or another session's.
    #[error("a record that was altered, or is not of this session")]
    Altered,
    /// It was opened before, at this position.
    #[error("a record that was opened before, at position {position}")]
    Replayed {
        /// Where.
        position: u64,
    },
    /// It was sealed for another position, which it has not been opened at.
    #[error("a record out of its order: it was sealed for position {position}")]
    Reordered {
        /// Which.
        position: u64,
    },
    /// It is shorter than any record.
    #[error("a record that was cut short")]
    Cut,
    /// Its key was used for too long.
    #[error("a record of a key that should have been changed long ago")]
    Expired,
    /// This is a forked child: the session is its parent's.
    #[error("this process was forked: the session is its parent's")]
    Forked,
}

/// Opens records, one after the other in each ring.
#[derive(Debug)]
pub(crate) struct Opener {
    direction: Direction,
    limits: Limits,
    refused: u32,
    /// For each ring which of the last 64 positions were opened: bit 0 the last.
    opened: [u64; 2],
}

impl Opener {
    /// Begins with a key of the handshake.
    pub(crate) fn new(
        root: &[u8; 32],
        context: Context,
        limits: Limits,
    ) -> Result<Opener, NodeError> {
        let ahead_from = if context.way == Way::FromClient { 3 } else { 5 };
        let direction = Direction::new(root, context, ahead_from)?;
        Ok(Opener { direction, limits, refused: 0, opened: [0; 2] })
    }

    /// The position of the next record of a ring.
    pub(crate) fn next(&mut self, ring: Ring) -> u64 {
        self.direction.track(ring).next
    }

    /// Begins at a later position: those before were used without a key.
    pub(crate) fn begin_at(&mut self, ring: Ring, position: u64) {
        self.direction.begin_at(ring, position);
    }

    /// Key changes of a ring so far.
    pub(crate) fn generation(&mut self, ring: Ring) -> u64 {
        self.direction.track(ring).generation
    }

    /// Records refused so far, of both rings.
    pub(crate) fn refused(&self) -> u32 {
        self.refused
    }

    /// Whether so many were refused that the channel is not worth keeping.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.refused >= BAD_RECORDS
    }

    /// As [`Sealer::prepare`](super::Sealer::prepare).
    #[inline]
    pub(crate) fn prepare(&mut self, ring: Ring) -> bool {
        self.direction.prepare(ring)
    }

    /// Opens the next record of a ring, of `length` bytes without the tag, at most 64. Opened or
    /// not, its position is used up.
    ///
    /// # Errors
    /// [`Refusal`]; the record is dropped and counted.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "a struct would be passed through memory")]
    pub(crate) fn open_words<const N: usize>(
        &mut self,
        ring: Ring,
        phase: bool,
        head: [u64; 2],
        sealed: [u64; N],
        length: usize,
        tag: Half,
        now_ns: u64,
    ) -> Result<[u64; N], Refusal> {
        if self.is_usual(ring, phase, now_ns) {
            let whole = self.direction.head(ring, head);
            let pad = self.direction.pad(ring);
            let opened = aead::open_words(pad, &whole, sealed, length, tag);
            pad.zeroize();
            if let Some(text) = opened {
                self.passed(ring, true);
                return Ok(text);
            }
        }
        self.open_unusual_words(ring, phase, head, sealed, length, tag, now_ns)
    }

    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments, reason = "what a record consists of")]
    fn open_unusual_words<const N: usize>(
        &mut self,
        ring: Ring,
        phase: bool,
        head: [u64; 2],
        sealed: [u64; N],
        length: usize,
        tag: Half,
        now_ns: u64,
    ) -> Result<[u64; N], Refusal> {
        let mut bytes = [0; SHORT];
        let bytes = &mut bytes[..length];
        frame::unpack(|word| sealed[word], bytes);
        self.open_unusual(ring, phase, head, bytes, tag, now_ns)?;
        Ok(frame::pack(bytes))
    }

    /// Opens the next record of a ring, ciphertext and tag, in place; gives the length of the text
    /// at its beginning. Opened or not, its position is used up. `again` gets the ciphertext once
    /// more, see [`open_long`](Opener::open_long).
    ///
    /// # Errors
    /// [`Refusal`]; the record is dropped and counted, and `sealed` means nothing.
    pub(crate) fn open(
        &mut self,
        ring: Ring,
        phase: bool,
        head: [u64; 2],
        sealed: &mut [u8],
        now_ns: u64,
        again: impl FnOnce(&mut [u8]),
    ) -> Result<usize, Refusal> {
        let Some(length) = sealed.len().checked_sub(TAG) else {
            return Err(self.refuse(ring, Refusal::Cut));
        };
        let (body, tag_at) = sealed.split_at_mut(length);
        let tag = frame::pack(tag_at);
        if length <= SHORT {
            let words = frame::pack::<8>(body);
            let text = self.open_words(ring, phase, head, words, length, tag, now_ns)?;
            frame::unpack(|word| text[word], body);
            return Ok(length);
        }
        self.open_long(ring, phase, head, body, tag, now_ns, again).map(|()| length)
    }

    /// Opens the next record of a ring, of more than 64 bytes, in place, without its tag. One that
    /// does not open is lost in the attempt; `again` gets it once more, to be looked at.
    ///
    /// # Errors
    /// As [`open`](Opener::open).
    #[inline(never)]
    #[allow(clippy::too_many_arguments, reason = "what a record consists of")]
    pub(crate) fn open_long(
        &mut self,
        ring: Ring,
        phase: bool,
        head: [u64; 2],
        body: &mut [u8],
        tag: Half,
        now_ns: u64,
        again: impl FnOnce(&mut [u8]),
    ) -> Result<(), Refusal> {
        if self.is_usual(ring, phase, now_ns) {
            let whole = self.direction.head(ring, head);
            let number = self.direction.track(ring).next;
            if self.direction.cipher(ring).open(number, &whole, body, tag) {
                self.passed(ring, true);
                return Ok(());
            }
            again(body);
        }
        self.open_unusual(ring, phase, head, body, tag, now_ns)
    }

    /// Whether a record is of this generation, which may go on, in this process.
    #[inline]
    fn is_usual(&mut self, ring: Ring, phase: bool, now_ns: u64) -> bool {
        let limits = self.limits;
        let track = self.direction.track(ring);
        let since_ns = *track.since_ns.get_or_insert(now_ns);
        (track.generation & 1 != 0) == phase
            && track.next < END
            && track.next - track.since < limits.reject_records
            && now_ns.saturating_sub(since_ns) < limits.reject_age_ns
            && self.direction.is_here()
    }

    /// Opens the first record of another generation, or finds out why there is nothing to open.
    #[cold]
    fn open_unusual(
        &mut self,
        ring: Ring,
        phase: bool,
        head: [u64; 2],
        body: &mut [u8],
        tag: Half,
        now_ns: u64,
    ) -> Result<(), Refusal> {
        if !self.direction.is_here() {
            return Err(Refusal::Forked);
        }
        let track = *self.direction.track(ring);
        if track.next >= END || self.is_poisoned() {
            return Err(self.refuse(ring, Refusal::Expired));
        }
        let whole = self.direction.head(ring, head);
        // Each record since the last one that opened may have been the first of a generation.
        let lost = self.opened[ring as usize].trailing_zeros().min(BAD_RECORDS);
        let first = u32::from((track.generation & 1 != 0) != phase);
        let is_expired = first == 0 && !self.is_usual(ring, phase, now_ns);
        for steps in (first..=lost + 1).step_by(2) {
            if self.direction.opens(ring, steps, track.next, &whole, body, tag) {
                if steps == 0 {
                    // Or it changed between two looks at it.
                    let refusal = if is_expired { Refusal::Expired } else { Refusal::Altered };
                    return Err(self.refuse(ring, refusal));
                }
                let mut change = || self.direction.change_key(ring, now_ns);
                shared!(PeerRekeyed, (0..steps).for_each(|_| change()));
                let is_open = self.direction.cipher(ring).open(track.next, &whole, body, tag);
                self.passed(ring, is_open);
                return if is_open { Ok(()) } else { Err(Refusal::Altered) };
            }
        }
        let refusal = self.why(ring, first, &whole, body, tag);
        Err(self.refuse(ring, refusal))
    }

    /// Finds out where a record that does not open here would have.
    fn why(&mut self, ring: Ring, steps: u32, head: &Head, body: &[u8], tag: Half) -> Refusal {
        let next = self.direction.track(ring).next;
        let opened = self.opened[ring as usize];
        let near = next.saturating_sub(NEAR)..(next + NEAR).min(END);
        match self.direction.find(ring, steps, near, head, body, tag) {
            None => Refusal::Altered,
            Some(position) if position < next && opened >> (next - 1 - position) & 1 != 0 => {
                Refusal::Replayed { position }
            }
            Some(position) => Refusal::Reordered { position },
        }
    }

    fn refuse(&mut self, ring: Ring, refusal: Refusal) -> Refusal {
        self.refused += 1;
        self.passed(ring, false);
        refusal
    }

    #[inline]
    fn passed(&mut self, ring: Ring, is_opened: bool) {
        let opened = &mut self.opened[ring as usize];
        *opened = *opened << 1 | u64::from(is_opened);
        self.direction.track(ring).next += 1;
    }

    #[cfg(test)]
    pub(crate) fn direction(&mut self) -> &mut Direction {
        &mut self.direction
    }
}
