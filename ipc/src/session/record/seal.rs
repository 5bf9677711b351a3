//! The sending end of a direction.

use zeroize::Zeroize;

use super::{
    END, Limits,
    direction::{Context, Direction, Way},
};
use crate::{
    error::NodeError,
    failpoint::shared,
    frame,
    layout::Ring,
    session::{
        aead::{self, SHORT, TAG},
        poly::Half,
    },
};

/// Why nothing can be sealed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Spent {
    /// This is a forked child: the session is its parent's.
    #[error("this process was forked: the session is its parent's")]
    Forked,
    /// All positions of the ring are used up.
    #[error("the session has sealed as many records as it may")]
    Positions,
}

/// Seals frames, one after the other in each ring.
#[derive(Debug)]
pub(crate) struct Sealer {
    direction: Direction,
    limits: Limits,
    /// A key was changed, and nobody has asked since.
    rekeyed: bool,
}

impl Sealer {
    /// Begins with a key of the handshake.
    pub(crate) fn new(
        root: &[u8; 32],
        context: Context,
        limits: Limits,
    ) -> Result<Sealer, NodeError> {
        let ahead_from = if context.way == Way::FromClient { 1 } else { 7 };
        Ok(Sealer { direction: Direction::new(root, context, ahead_from)?, limits, rekeyed: false })
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

    /// The phase of the next record, which its frame's head has to carry. Changes the key when it
    /// is due.
    #[inline]
    pub(crate) fn phase(&mut self, ring: Ring, now_ns: u64) -> bool {
        let limits = self.limits;
        let track = self.direction.track(ring);
        let since_ns = *track.since_ns.get_or_insert(now_ns);
        if track.next - track.since >= limits.rekey_records
            || now_ns.saturating_sub(since_ns) >= limits.rekey_age_ns
        {
            shared!(Rekeyed, self.direction.change_key(ring, now_ns));
            self.rekeyed = true;
        }
        self.direction.track(ring).generation & 1 != 0
    }

    /// Whether a key was changed since this was last asked.
    #[inline]
    pub(crate) fn has_rekeyed(&mut self) -> bool {
        std::mem::take(&mut self.rekeyed)
    }

    /// Makes some of the keystream that will be needed, if any is missing: for when there is
    /// nothing else to do. Takes about as long as sealing two records.
    #[inline]
    pub(crate) fn prepare(&mut self, ring: Ring) -> bool {
        self.direction.prepare(ring)
    }

    /// Seals the next record of a ring, of `length` bytes, at most 64; the words behind are zero.
    /// The frame that carries it must be published next: its nonce is spent.
    ///
    /// # Errors
    /// [`Spent`]; then nothing was sealed.
    #[inline(always)]
    pub(crate) fn seal_words<const N: usize>(
        &mut self,
        ring: Ring,
        head: [u64; 2],
        text: [u64; N],
        length: usize,
    ) -> Result<([u64; N], Half), Spent> {
        self.check(ring)?;
        let head = self.direction.head(ring, head);
        let pad = self.direction.pad(ring);
        let sealed = aead::seal_words(pad, &head, text, length);
        pad.zeroize();
        self.direction.track(ring).next += 1;
        Ok(sealed)
    }

    /// Seals the next record of a ring: `sealed` gets the ciphertext and behind it the tag, and is
    /// that much longer than `text`.
    ///
    /// # Errors
    /// [`Spent`]; then nothing was sealed.
    ///
    /// # Panics
    /// When the lengths do not fit.
    pub(crate) fn seal(
        &mut self,
        ring: Ring,
        head: [u64; 2],
        text: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), Spent> {
        let (body, tag_at) = sealed.split_at_mut(text.len());
        assert_eq!(tag_at.len(), TAG, "room for the tag and no more");
        let tag = if text.len() <= SHORT {
            let words = frame::pack::<8>(text);
            let (words, tag) = self.seal_words(ring, head, words, text.len())?;
            frame::unpack(|word| words[word], body);
            tag
        } else {
            self.check(ring)?;
            body.copy_from_slice(text);
            let head = self.direction.head(ring, head);
            let number = self.direction.track(ring).next;
            let tag = self.direction.cipher(ring).seal(number, &head, body);
            self.direction.track(ring).next += 1;
            tag
        };
        frame::unpack(|word| tag[word], tag_at);
        Ok(())
    }

    #[inline]
    fn check(&mut self, ring: Ring) -> Result<(), Spent> {
        if !self.direction.is_here() {
            return Err(Spent::Forked);
        }
        if self.direction.track(ring).next >= END { Err(Spent::Positions) } else { Ok(()) }
    }

    #[cfg(test)]
    pub(crate) fn direction(&mut self) -> &mut Direction {
        &mut self.direction
    }
}
