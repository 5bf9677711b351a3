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
//!
//! There is no segment before the first channel, nor after the last one where nothing was counted:
//! a thousand idle services, which their supervisor has pinged once, have none between them.

mod histogram;
mod layout;
mod memory;
mod payloads;
mod sample;
mod session;
mod tally;
mod tape;
mod view;

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use nix::sys::eventfd::EventFd;

pub use self::{
    histogram::Histogram,
    payloads::Payload,
    session::SessionStats,
    tape::{Span, SpanKind},
    view::{Board, BoardView, EndStats, Role, Stats},
};
pub(crate) use self::{
    layout::segment_bytes,
    memory::Place,
    sample::{Begun, Sampler},
    tally::Tally,
};
use self::{
    layout::{MOST_SEGMENTS, PAYLOADS, TAPE, segment_slots},
    memory::Segment,
    payloads::Payloads,
    tape::Tape,
};
use crate::{
    control::Introduction,
    failpoint::shared,
    frame::Sender,
    sync::{Ordering, fence},
};

/// The board of this node.
#[derive(Debug, Default)]
pub(crate) struct OwnBoard {
    inner: Mutex<Inner>,
    /// Made for the first span that is written down; nothing where there is no memory for it.
    tape: OnceLock<Option<Tape>>,
    /// Has the warden look whether the runtime is to be told something.
    kick: Option<Arc<EventFd>>,
}

#[derive(Debug, Default)]
struct Inner {
    segments: Vec<Arc<Segment>>,
    free: Vec<Place>,
    /// The sums of the clients' and of the servers' ends that are gone.
    gone: [Option<Place>; 2],
    /// Segments that the runtime was told of, and whether of the tape.
    told: usize,
    told_tape: bool,
    /// What an operator may see of payloads, and whether the runtime was told of it.
    payloads: Option<Arc<Payloads>>,
    told_payloads: bool,
    /// Segments that the runtime knows, and that are no more.
    dropped: Vec<u32>,
}

impl OwnBoard {
    /// Makes a board without segments.
    pub(crate) fn new(kick: Arc<EventFd>) -> OwnBoard {
        OwnBoard { inner: Mutex::default(), tape: OnceLock::new(), kick: Some(kick) }
    }

    /// Gives an end of a channel its slot. Without memory, and over the limit, it gets one that
    /// nobody else sees.
    pub(crate) fn seat(self: &Arc<Self>, introduction: &Introduction, role: Sender) -> Seat {
        let mut inner = self.lock();
        if inner.free.is_empty() {
            inner.grow();
        }
        let place = inner.take_free(MOST_SEGMENTS).unwrap_or_else(Place::private);
        if let Some(first) = inner.segments.first() {
            first.header().opened.add_shared(1);
            first.header().unseated.add_shared(u64::from(place.segment().is_none()));
        }
        let role = match role {
            Sender::Client => Role::Client,
            Sender::Server => Role::Server,
        };
        place.identify(introduction, role);
        Seat { board: Arc::clone(self), role, place }
    }

    /// What the runtime is still to be told, which counts as done: segments that are no more, then
    /// those that are new, with their descriptors.
    pub(crate) fn untold(&self) -> Vec<(u32, Option<OwnedFd>)> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let told = std::mem::replace(&mut inner.told, inner.segments.len());
        let dropped = inner.dropped.drain(..).map(|segment| (segment, None));
        let fresh = inner.segments.iter().enumerate().skip(told);
        let fresh = fresh.filter_map(|(index, segment)| {
            Some((index as u32, Some(segment.fd()?.try_clone_to_owned().ok()?)))
        });
        let tape = self.tape.get().and_then(Option::as_ref).filter(|_| !inner.told_tape);
        inner.told_tape |= tape.is_some();
        let tape = tape.and_then(|it| it.segment().fd()?.try_clone_to_owned().ok());
        let payloads = inner.payloads.as_ref().filter(|_| !inner.told_payloads);
        inner.told_payloads |= payloads.is_some();
        let payloads = payloads.and_then(|it| it.segment().fd()?.try_clone_to_owned().ok());
        let tape = tape.map(|fd| (TAPE, Some(fd)));
        dropped.chain(fresh).chain(tape).chain(payloads.map(|fd| (PAYLOADS, Some(fd)))).collect()
    }

    /// Writes down what was done for a traced request.
    fn write_down(&self, span: &Span) {
        let mut is_new = false;
        let tape = self.tape.get_or_init(|| {
            is_new = true;
            Tape::create().ok()
        });
        if let Some(tape) = tape {
            tape.write(span);
        }
        if is_new {
            self.kick();
        }
    }

    /// Writes down the beginning of a traced request's payload, or of its answer's.
    fn show(&self, payload: &Payload) {
        let mut inner = self.lock();
        let is_new = inner.payloads.is_none();
        if is_new {
            inner.payloads = Payloads::create().ok().map(Arc::new);
        }
        let Some(payloads) = inner.payloads.clone() else { return };
        drop(inner);
        payloads.write(payload);
        if is_new {
            self.kick();
        }
    }

    /// No operator is to see payloads any more: what there is of them goes.
    pub(crate) fn hide(&self) {
        let mut inner = self.lock();
        if inner.payloads.take().is_some() && std::mem::take(&mut inner.told_payloads) {
            inner.dropped.push(PAYLOADS);
        }
    }

    /// Has the warden tell the runtime what it was not told.
    fn kick(&self) {
        if let Some(kick) = &self.kick {
            let _ = nix::unistd::write(kick, &1_u64.to_ne_bytes());
        }
    }

    /// There is a runtime that was told nothing.
    pub(crate) fn forget_told(&self) {
        let mut inner = self.lock();
        inner.told = 0;
        inner.told_tape = false;
        inner.told_payloads = false;
        inner.dropped.clear();
    }

    /// What the ends count.
    pub(crate) fn ends(&self) -> Vec<EndStats> {
        // Under the lock, so that nothing moves meanwhile.
        let inner = self.lock();
        inner.segments.iter().flat_map(|segment| segment.slots()).filter_map(view::read).collect()
    }

    /// Adds an end's counts to those that are gone, and frees its slot.
    fn leave(&self, place: &Place, role: Role) {
        let mut inner = self.lock();
        let has_counted = place.has_counted();
        if has_counted && inner.segments.is_empty() {
            // It was over the limit, and those that were not are gone.
            inner.grow();
        }
        let Some(first) = inner.segments.first().cloned() else { return };
        let sum = inner.gone[role as usize].clone();
        if sum.is_none() && has_counted && place.segment().is_some() {
            place.become_sum(role);
            inner.gone[role as usize] = Some(place.clone());
        } else {
            let sum = sum.or_else(|| {
                let sum = inner.take_free(if has_counted { MOST_SEGMENTS } else { 0 })?;
                sum.begin_sum(role);
                inner.gone[role as usize] = Some(sum.clone());
                Some(sum)
            });
            match sum {
                Some(sum) => sum.absorb(place, &first),
                None => place.give_back(),
            }
            if place.segment().is_some() {
                inner.free.push(place.clone());
            }
        }
        let told = inner.dropped.len();
        inner.shrink(&first);
        if inner.dropped.len() > told {
            self.kick();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Makes the next segment, if there may be one.
    fn grow(&mut self) {
        if self.segments.len() >= MOST_SEGMENTS as usize {
            return;
        }
        let Ok(segment) = Segment::create(self.segments.len() as u32).map(Arc::new) else { return };
        let slots = segment.slots().count();
        // The first slot is taken first.
        self.free.extend((0..slots).rev().map(|index| segment.place(index)));
        self.segments.push(segment);
    }

    /// Takes a free slot of the lowest segment that has one, below that limit.
    fn take_free(&mut self, limit: u32) -> Option<Place> {
        let number = |place: &Place| place.segment().unwrap_or(limit);
        let slots = self.free.iter().enumerate().filter(|(_, place)| number(place) < limit);
        // Of equals the last.
        let (index, _) = slots.rev().min_by_key(|(_, place)| number(place))?;
        Some(self.free.remove(index))
    }

    /// Lets go of the last segments, as long as no living end is in them, and of the first one when
    /// no sum is: what a process holds comes back to what it was when its channels close.
    fn shrink(&mut self, first: &Segment) {
        while let Some(last) = self.segments.len().checked_sub(1).map(|last| last as u32) {
            let is_there = |place: &&Place| place.segment() == Some(last);
            let free = self.free.iter().filter(is_there).count();
            let sums = self.gone.iter().flatten().filter(is_there).count();
            if free + sums < segment_slots(last) || (last == 0 && sums > 0) {
                return;
            }
            for role in [Role::Client, Role::Server] {
                let Some(sum) = self.gone[role as usize].clone().filter(|it| is_there(&it)) else {
                    continue;
                };
                let Some(place) = self.take_free(last) else { return };
                place.begin_sum(role);
                place.absorb(&sum, first);
                self.gone[role as usize] = Some(place);
                self.free.push(sum);
            }
            self.free.retain(|place| place.segment() != Some(last));
            self.segments.pop();
            if self.told > last as usize {
                self.told = last as usize;
                self.dropped.push(last);
            }
        }
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
        self.end_session();
        shared!(SlotTaken, it.generation.fetch_add(1, Ordering::Release));
    }

    /// From now on the counts are those of the ends of this role that are gone.
    fn become_sum(&self, role: Role) {
        let it = &self.identity;
        self.receiver.depth.set(0);
        for word in [&it.peer, &it.peer_name, &it.peer_pid, &it.dest, &it.dest_name] {
            word.store(0, Ordering::Relaxed);
        }
        it.channel.store(0, Ordering::Relaxed);
        self.end_session();
        it.role.store(role.gone().number(), Ordering::Release);
    }

    /// Takes a free slot into use as such a sum.
    fn begin_sum(&self, role: Role) {
        self.become_sum(role);
        shared!(SlotTaken, self.identity.generation.fetch_add(1, Ordering::Release));
    }

    /// Whether its end has had any messages, or failures. Sleeps and waits alone are not worth a
    /// sum: a ping counts those.
    fn has_counted(&self) -> bool {
        let layout::Slot { identity, sender, receiver, .. } = self;
        let counts = [&identity.errors, &identity.drops, &sender.messages, &receiver.messages];
        counts.into_iter().any(|count| count.get() != 0)
    }

    /// Frees it, without a trace of who had it.
    fn give_back(&self) {
        shared!(SlotGivenBack, self.identity.generation.fetch_add(1, Ordering::Relaxed));
        self.sums().for_each(|count| count.set(0));
        self.receiver.depth.set(0);
    }

    /// Adds the counts of another slot, and frees it.
    fn absorb(&self, other: &layout::Slot, first: &Segment) {
        let moving = &first.header().moving;
        shared!(CountsMoved, moving.fetch_add(1, Ordering::Relaxed));
        // A reader that sees any of what follows sees that something moves.
        fence(Ordering::Release);
        for (sum, count) in self.sums().zip(other.sums()) {
            sum.add(count.get());
        }
        other.give_back();
        shared!(CountsMoved, moving.fetch_add(1, Ordering::Release));
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

    /// Writes down what was done for a traced request.
    pub(crate) fn write_down(&self, span: &Span) {
        self.board.write_down(span);
    }

    /// Writes down the beginning of a traced request's payload, or of its answer's.
    pub(crate) fn show(&self, payload: &Payload) {
        self.board.show(payload);
    }

    /// What it counted so far.
    pub(crate) fn stats(&self) -> Stats {
        view::stats(&self.place)
    }

    /// What it tells of its session.
    pub(crate) fn session(&self) -> Option<SessionStats> {
        self.place.session()
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

/// Tells which memfd this is, of those that are open or mapped anywhere.
pub(crate) fn inode(fd: BorrowedFd<'_>) -> Result<u64, crate::error::NodeError> {
    let stat =
        nix::sys::stat::fstat(fd).map_err(crate::error::NodeError::system("look at a board"))?;
    Ok(stat.st_ino)
}

/// Maps a segment that the runtime gave.
pub(crate) fn view(fd: BorrowedFd<'_>, segment: u32) -> Result<BoardView, crate::error::NodeError> {
    let inode = inode(fd)?;
    Segment::map_peer(fd, segment).map(|memory| BoardView::new(inode, memory))
}

#[cfg(test)]
mod tests;
