//! What a board shows of encrypted channels: which session, since when, how often keys were
//! changed. Never a key: the fingerprint is the hash of a handshake whose messages anybody may see.

use super::layout::Slot;
use crate::{
    session::Pattern,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// What an end of an encrypted channel tells of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionStats {
    /// How the two ends proved who they are.
    pub pattern: Pattern,
    /// When it began, `CLOCK_MONOTONIC` in ns.
    pub since_ns: u64,
    /// At the end that opened the channel: how long it waited for the handshake, in µs; 16 s at
    /// most. 0 at the other end, which waits for none.
    pub handshake_us: u32,
    /// Names the session, the same at both ends. It is no secret.
    pub fingerprint: [u8; 32],
    /// How often this end has changed the keys that it seals with, in both rings.
    pub rekeys: u64,
    /// Records that did not open at this end, and were dropped.
    pub refused: u64,
}

/// The word that shows the pattern has its number in so many bits, and how long the handshake took
/// in the others.
const PATTERN_BITS: u32 = 8;
const LONGEST_US: u32 = u32::MAX >> PATTERN_BITS;

impl Slot {
    /// Shows the session of this end, which begins now, after a handshake for which it waited
    /// `waited_ns`.
    pub(crate) fn begin_session(
        &self,
        pattern: Pattern,
        fingerprint: [u8; 32],
        now_ns: u64,
        waited_ns: u64,
    ) {
        let (words, _) = fingerprint.as_chunks::<8>();
        for (word, bytes) in self.sender.fingerprint.iter().zip(words) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        self.identity.since_ns.store(now_ns, Ordering::Relaxed);
        // Last: who sees it sees the rest.
        let micros = u32::try_from(waited_ns / 1000).unwrap_or(u32::MAX).min(LONGEST_US);
        let shown = u32::from(pattern.number()) | micros << PATTERN_BITS;
        self.identity.pattern.store(shown, Ordering::Release);
    }

    /// Shows no session any more. Only while nobody reads the slot as one in use, or it has become
    /// the sum of many.
    pub(super) fn end_session(&self) {
        self.identity.pattern.store(0, Ordering::Relaxed);
        self.identity.since_ns.store(0, Ordering::Relaxed);
        self.sender.fingerprint.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.sender.rekeys.set(0);
        self.receiver.refused.set(0);
    }

    /// What it shows; nothing for a plain channel, and for a pattern that there is not.
    pub(crate) fn session(&self) -> Option<SessionStats> {
        let pattern: &AtomicU32 = &self.identity.pattern;
        let shown = pattern.load(Ordering::Acquire);
        let number = shown & (u32::MAX >> (32 - PATTERN_BITS));
        let pattern = Pattern::ALL.into_iter().find(|it| u32::from(it.number()) == number)?;
        let mut fingerprint = [0; 32];
        let (words, _) = fingerprint.as_chunks_mut::<8>();
        let stored: &[AtomicU64; 4] = &self.sender.fingerprint;
        for (bytes, word) in words.iter_mut().zip(stored) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
        Some(SessionStats {
            pattern,
            since_ns: self.identity.since_ns.load(Ordering::Relaxed),
            handshake_us: shown >> PATTERN_BITS,
            fingerprint,
            rekeys: self.sender.rekeys.get(),
            refused: self.receiver.refused.get(),
        })
    }
}
