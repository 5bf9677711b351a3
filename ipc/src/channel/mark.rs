//! What the ends of a channel say of themselves: where they stand, and whether they live.

use super::Channel;
use crate::{
    failpoint::shared,
    layout::Ring,
    life::Life,
    sync::{Ordering, fence},
    wait::futex,
};

/// What a client that has left shows: it wants nothing more. One that wants nothing of a standby
/// shows 1.
pub(crate) const GONE: u32 = 2;

impl Channel {
    /// The word by which the peer says where it stands: see `Identity::mark`.
    pub(crate) fn peer_mark(&self) -> u32 {
        self.peer.header().identity.mark.load(Ordering::Acquire)
    }

    /// Where this end says that it stands.
    pub(crate) fn own_mark(&self) -> u32 {
        self.own.header().identity.mark.load(Ordering::Relaxed)
    }

    /// Says where this end stands.
    pub(crate) fn set_mark(&self, mark: u32) {
        shared!(Mark, self.own.header().identity.mark.store(mark, Ordering::Release));
    }

    /// Says that this end serves at an epoch. Returns whether the peer still wants that: either it
    /// sees the mark when it looks after it has left, or this end sees that it left.
    pub(crate) fn show_mark(&self, mark: u32) -> bool {
        self.set_mark(mark);
        fence(Ordering::SeqCst);
        self.peer_mark() != GONE
    }

    /// Leaves: wants nothing more of the peer. Returns the peer's mark after that: where it is 0,
    /// the peer takes nothing more, whatever becomes of it.
    pub(crate) fn leave(&self) -> u32 {
        self.set_mark(GONE);
        fence(Ordering::SeqCst);
        self.peer_mark()
    }

    /// Counts what was heard of the peer: frames that came of it, and those of ours that it took.
    pub(crate) fn heard(&self) -> u64 {
        let counts = [Ring::Urgent, Ring::Ordinary].map(|ring| {
            let ours = self.own.header().taken(ring).load(Ordering::Relaxed);
            ours.wrapping_add(self.taken_by_peer(ring))
        });
        counts[0].wrapping_add(counts[1])
    }

    /// Since when the frames that this end was sent are handled, in ns; 0 for not now.
    pub(crate) fn busy_since(&self) -> u64 {
        self.own.header().busy_since.load(Ordering::Relaxed)
    }

    /// How the peer's life word stands.
    pub(crate) fn peer_life(&self) -> Life {
        Life::of(&self.peer)
    }

    /// The high half of the first message id from the peer, if it is not the session's.
    pub(crate) fn first_high(&self) -> Option<u32> {
        let high = self.peer.header().attention.first_high.load(Ordering::Relaxed);
        (high != 0).then_some(high)
    }

    /// Says with which id the messages on this channel begin, before the first of them.
    pub(crate) fn begin_ids(&self, first: u64) {
        let high = (first >> 32) as u32;
        let word = &self.own.header().attention.first_high;
        shared!(FirstHigh, word.store(high, Ordering::Relaxed));
    }

    /// The peer's life word and the value at which it lives, to sleep on.
    pub(crate) fn life_word(&self) -> Option<futex::Word<'_>> {
        let life = &self.peer.header().life;
        let value = life.load(Ordering::Acquire);
        let lives = Life::from_word(value) == Life::Alive;
        lives.then_some(futex::Word { at: life, value, shared: true })
    }
}
