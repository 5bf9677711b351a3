//! What a process shows of its own traffic: counters and histograms, in memory that it alone writes
//! and that others read without disturbing it.
//!
//! ```text
//!  channel end ─▶ Seat ─▶ slot ┐
//!  channel end ─▶ Seat ─▶ slot ├ segment (a sealed memfd) ─▶ runtime ─▶ who asks: Board
//!  gone ends   ─────────▶ slot ┘
//! ```
//! A node has one board, in segments; each end of a channel has a slot while it lives. Counters are
//! exact: each is written by the holder of one claim, by a load, an addition and a store. The
//! counts of an end that closes are added to those of its role that went before.

mod histogram;
mod layout;
mod memory;
mod sample;
mod view;

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::memory::Segment;
pub use self::{
    histogram::Histogram,
    view::{Board, BoardView, EndStats, Role, Stats},
};
pub(crate) use self::{
    layout::segment_bytes,
    memory::Place,
    sample::{Begun, Sampler},
};
use crate::{
    control::Introduction,
    frame::Sender,
    sync::{Ordering, fence},
};

/// The board of this node.
#[derive(Debug, Default)]
pub(crate) struct OwnBoard {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    segments: Vec<Arc<Segment>>,
    free: Vec<Place>,
    /// The sums of the clients' and of the servers' ends that are gone.
    gone: [Option<Place>; 2],
    /// Segments that the runtime was told of.
    told: usize,
    /// Ends for which there was no slot.
    unseated: u64,
}

impl OwnBoard {
    /// Gives an end of a channel its slot. Without memory, and over the limit, it gets one that
    /// nobody else sees.
    pub(crate) fn seat(self: &Arc<Self>, introduction: &Introduction, role: Sender) -> Seat {
        let mut inner = self.lock();
        if inner.free.is_empty() {
            inner.grow();
        }
        let place = inner.free.pop().unwrap_or_else(Place::private);
        if let Some(first) = inner.segments.first() {
            first.header().opened.add_shared(1);
            first.header().unseated.add_shared(u64::from(place.is_private()));
        }
        inner.unseated += u64::from(place.is_private());
        let role = match role {
            Sender::Client => Role::Client,
            Sender::Server => Role::Server,
        };
        place.identify(introduction, role);
        Seat { board: Arc::clone(self), role, place }
    }

    /// The segments that the runtime is still to be told of, which counts as done.
    pub(crate) fn untold(&self) -> Vec<(u32, OwnedFd)> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let told = std::mem::replace(&mut inner.told, inner.segments.len());
        let untold = inner.segments.iter().enumerate().skip(told);
        untold
            .filter_map(|(index, segment)| {
                Some((index as u32, segment.fd()?.try_clone_to_owned().ok()?))
            })
            .collect()
    }

    /// There is a runtime that was told nothing.
    pub(crate) fn forget_told(&self) {
        self.lock().told = 0;
    }

    /// What the ends count for which this holds.
    pub(crate) fn ends(&self) -> Vec<EndStats> {
        // Under the lock, so that nothing moves meanwhile.
        let inner = self.lock();
        inner.segments.iter().flat_map(|segment| segment.slots()).filter_map(view::read).collect()
    }

    /// Adds an end's counts to those that are gone, and frees its slot.
    fn leave(&self, place: &Place, role: Role) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if place.is_private() {
            return;
        }
        let Some(first) = inner.segments.first().cloned() else { return };
        let Some(sum) = &inner.gone[role as usize] else {
            place.become_sum(role);
            inner.gone[role as usize] = Some(place.clone());
            return;
        };
        let moving = &first.header().moving;
        moving.fetch_add(1, Ordering::Relaxed);
        // A reader that sees any of what follows sees that something moves.
        fence(Ordering::Release);
        for (sum, count) in sum.sums().zip(place.sums()) {
            sum.add(count.get());
        }
        place.clear();
        moving.fetch_add(1, Ordering::Release);
        inner.free.push(place.clone());
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Makes the next segment, if there may be one.
    fn grow(&mut self) {
        let Ok(segment) = Segment::create(self.segments.len() as u32).map(Arc::new) else { return };
        // The first slot is taken first.
        let slots = segment.slots().count();
        self.free.extend((0..slots).rev().map(|index| segment.place(index)));
        self.segments.push(segment);
    }
}

impl layout::Slot {
    fn identify(&self, introduction: &Introduction, role: Role) {
        let it = &self.identity;
        it.role.store(role.number(), Ordering::Relaxed);
        it.channel.store(introduction.channel, Ordering::Relaxed);
        it.peer.store(introduction.peer.get(), Ordering::Relaxed);
        it.peer_name.store(introduction.peer_name.get(), Ordering::Relaxed);
        it.peer_pid.store(introduction.peer_pid, Ordering::Relaxed);
        it.dest.store(introduction.dest.get(), Ordering::Relaxed);
        it.dest_name.store(introduction.dest_name.get(), Ordering::Relaxed);
        it.generation.fetch_add(1, Ordering::Release);
    }

    /// From now on the counts are those of the ends of this role that are gone.
    fn become_sum(&self, role: Role) {
        let it = &self.identity;
        self.receiver.depth.set(0);
        for word in [&it.peer, &it.peer_name, &it.peer_pid, &it.dest, &it.dest_name] {
            word.store(0, Ordering::Relaxed);
        }
        it.channel.store(0, Ordering::Relaxed);
        it.role.store(role.gone().number(), Ordering::Release);
    }

    fn clear(&self) {
        self.identity.generation.fetch_add(1, Ordering::Relaxed);
        self.sums().for_each(|count| count.set(0));
        self.receiver.depth.set(0);
    }
}

/// An end's place on the board, while it lives.
#[derive(Debug)]
pub(crate) struct Seat {
    board: Arc<OwnBoard>,
    role: Role,
    place: Place,
}

impl Seat {
    /// Where the end counts.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// What it counted so far.
    pub(crate) fn stats(&self) -> Stats {
        view::stats(&self.place)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.board.leave(&self.place, self.role);
    }
}

/// Tells whether a descriptor can be a board's segment of this number.
pub(crate) fn fits(facts: crate::LaneFacts, segment: u32) -> bool {
    segment_bytes(segment).is_some_and(|bytes| {
        facts.sealed && facts.bytes == bytes as u64 && facts.allocated >= facts.bytes
    })
}

/// Maps a segment that the runtime gave.
pub(crate) fn view(fd: BorrowedFd<'_>, segment: u32) -> Result<BoardView, crate::error::NodeError> {
    Segment::map_peer(fd, segment).map(|memory| BoardView::new(segment, memory))
}

#[cfg(test)]
mod tests;
