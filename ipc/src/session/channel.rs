//! A session that stands: records both ways, and what may be told of it.

use std::fmt;

use super::{
    aead::TAG,
    handshake::Pattern,
    key::PublicKey,
    record::{Opener, Refusal, Sealer, Spent},
};
use crate::{Status, layout::Ring};

/// The records of a session, both ways, over anything that carries them in order.
///
/// Each direction has keys of its own; the Poly1305 key of each record is derived from them. A
/// record opens once, in its place: what was left out, repeated, moved or changed on its way is
/// refused, and the next one opens.
///
/// The channels of this library seal their frames in place, by the same rules.
pub struct SecureChannel {
    pattern: Pattern,
    peer: PublicKey,
    fingerprint: [u8; 32],
    sealer: Sealer,
    opener: Opener,
}

/// Explains why a record was not sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It was altered, or is not of this session.
    #[error("a record that was altered, or is not of this session: it was dropped")]
    Altered,
    /// It was opened before.
    #[error("a record that was opened before, at position {position}: it was dropped")]
    Replayed {
        /// Where.
        position: u64,
    },
    /// It was sealed for another position: one was left out, or they changed places.
    #[error("a record out of its order, sealed for position {position}: it was dropped")]
    Reordered {
        /// Which.
        position: u64,
    },
    /// It is shorter than any record.
    #[error("a record that was cut short: it was dropped")]
    Cut,
    /// The key, or the session, was used for longer than it may be. Open another.
    #[error("the session has come to its end: open another")]
    Expired,
    /// This is a forked child: the session is its parent's.
    #[error("this process was forked: the session is its parent's")]
    Forked,
}

impl RecordError {
    /// Gives the number by which C knows this error.
    pub fn status(self) -> Status {
        match self {
            RecordError::Altered
            | RecordError::Replayed { .. }
            | RecordError::Reordered { .. }
            | RecordError::Cut => Status::PEER_CORRUPT,
            RecordError::Expired => Status::STALE,
            RecordError::Forked => Status::FORKED,
        }
    }
}

impl From<Refusal> for RecordError {
    fn from(refusal: Refusal) -> RecordError {
        match refusal {
            Refusal::Altered => RecordError::Altered,
            Refusal::Replayed { position } => RecordError::Replayed { position },
            Refusal::Reordered { position } => RecordError::Reordered { position },
            Refusal::Cut => RecordError::Cut,
            Refusal::Expired => RecordError::Expired,
            Refusal::Forked => RecordError::Forked,
        }
    }
}

impl From<Spent> for RecordError {
    fn from(spent: Spent) -> RecordError {
        match spent {
            Spent::Forked => RecordError::Forked,
            Spent::Positions => RecordError::Expired,
        }
    }
}

/// What may be told of a session: never a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionFacts {
    /// How the two ends proved who they are.
    pub pattern: Pattern,
    /// The key that the other end proved.
    pub peer: PublicKey,
    /// Names the session, the same at both ends: the hash of its handshake.
    pub fingerprint: [u8; 32],
    /// Records sealed.
    pub sealed: u64,
    /// Places of records passed, opened or refused.
    pub received: u64,
    /// Records refused.
    pub refused: u32,
    /// How often keys were changed, of the busiest ring and direction.
    pub generation: u64,
}

impl fmt::Debug for SecureChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut it = f.debug_struct("SecureChannel");
        it.field("pattern", &self.pattern).field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Bytes in front of a record: its phase.
const PHASE: usize = 1;

impl SecureChannel {
    pub(super) fn new(
        pattern: Pattern,
        peer: PublicKey,
        fingerprint: [u8; 32],
        sealer: Sealer,
        opener: Opener,
    ) -> SecureChannel {
        SecureChannel { pattern, peer, fingerprint, sealer, opener }
    }

    /// The two ends, in tests of what they leave behind.
    #[cfg(test)]
    pub(super) fn ends(&mut self) -> (&mut Sealer, &mut Opener) {
        (&mut self.sealer, &mut self.opener)
    }

    /// The two ends, for a channel that seals its frames.
    pub(crate) fn into_ends(self) -> (Sealer, Opener) {
        (self.sealer, self.opener)
    }

    /// Gives the key that the other end proved. After XX, who it belongs to is for the caller to
    /// know.
    pub fn peer(&self) -> PublicKey {
        self.peer
    }

    /// Tells what may be told.
    pub fn facts(&mut self) -> SessionFacts {
        let rings = [Ring::Urgent, Ring::Ordinary];
        let (sealer, opener) = (&mut self.sealer, &mut self.opener);
        let generations = rings.map(|ring| sealer.generation(ring).max(opener.generation(ring)));
        SessionFacts {
            pattern: self.pattern,
            peer: self.peer,
            fingerprint: self.fingerprint,
            sealed: rings.into_iter().map(|ring| sealer.next(ring)).sum(),
            received: rings.into_iter().map(|ring| opener.next(ring)).sum(),
            refused: opener.refused(),
            generation: generations[0].max(generations[1]),
        }
    }

    /// Whether the other end's records were refused so often that the session is worth no more.
    pub fn is_poisoned(&self) -> bool {
        self.opener.is_poisoned()
    }

    /// Makes some of the keystream that will be needed: for when there is nothing else to do.
    /// Returns whether any was missing. Costs about as much as sealing and opening a few records.
    pub fn prepare(&mut self) -> bool {
        self.sealer.prepare(Ring::Ordinary) || self.opener.prepare(Ring::Ordinary)
    }

    /// Seals the next text: 17 bytes more. `now_ns` is any clock that does not run backwards.
    ///
    /// # Errors
    /// [`RecordError::Forked`]; [`RecordError::Expired`] after 2^64 - 2^16 records.
    pub fn encrypt(&mut self, text: &[u8], now_ns: u64) -> Result<Vec<u8>, RecordError> {
        let phase = self.sealer.phase(Ring::Ordinary, now_ns);
        let mut sealed = vec![0; PHASE + text.len() + TAG];
        sealed[0] = u8::from(phase);
        self.sealer.seal(Ring::Ordinary, head(text.len()), text, &mut sealed[PHASE..])?;
        Ok(sealed)
    }

    /// Opens the next record.
    ///
    /// # Errors
    /// [`RecordError`]; the record is dropped, and the next one can be opened.
    pub fn decrypt(&mut self, sealed: &[u8], now_ns: u64) -> Result<Vec<u8>, RecordError> {
        let (&phase, body) = sealed.split_first().unwrap_or((&0, &[]));
        let head = head(body.len().saturating_sub(TAG));
        // A phase is 0 or 1; whatever else counts as changed.
        let mut text = if phase > 1 { vec![0; TAG] } else { body.to_vec() };
        let again = |text: &mut [u8]| text.copy_from_slice(&body[..text.len()]);
        let length =
            self.opener.open(Ring::Ordinary, phase & 1 != 0, head, &mut text, now_ns, again)?;
        text.truncate(length);
        Ok(text)
    }
}

/// What stands for a frame's head where there is no frame.
fn head(length: usize) -> [u64; 2] {
    [(length as u64) << 32, 0]
}
