//! What the ends of a channel say of themselves: where they stand, and whether they live.

use super::Channel;
use crate::{failpoint::shared, layout::Ring, life::Life, mark, sync::Ordering, wait::futex};

impl Channel {
    /// The word by which the peer says where it stands: see `Identity::mark`.
    pub(crate) fn peer_mark(&self) -> u32 {
        mark::of(self.peer.header())
    }

    /// Where this end says that it stands.
    pub(crate) fn own_mark(&self) -> u32 {
        self.own.header().identity.mark.load(Ordering::Relaxed)
    }

    /// Says where this end stands.
    pub(crate) fn set_mark(&self, mark: u32) {
        mark::set(self.own.header(), mark);
    }

    /// Says that this end serves at an epoch: see [`mark::show`].
    pub(crate) fn show_mark(&self, mark: u32) -> bool {
        mark::show(self.own.header(), self.peer.header(), mark)
    }

    /// Says at which epoch this end was served, before it sends: see [`mark::require`].
    pub(crate) fn require(&self, served_at: u64) -> bool {
        self.own_mark() == 0
            || served_at == 0
            || mark::require(self.own.header(), self.peer.header(), served_at as u32)
    }

    /// Leaves: see [`mark::leave`].
    pub(crate) fn leave(&self) -> u32 {
        mark::leave(self.own.header(), self.peer.header())
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
