//! The sending side of bulk memory: arenas, and who has which span of them.

#![allow(unsafe_code)] // lends spans of an arena as slices

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Descriptor, MOST_ARENAS, Notice, SLOTS, arena::OwnArena, space::Space};
use crate::{clock, control::packet, frame::DESCRIPTOR, lane::Lane, sync::Ordering};

/// Smallest and, but for single messages that are larger, largest arena.
const SMALLEST: u64 = 1 << 20;
const LARGEST: u64 = 64 << 20;
/// Arenas are whole pages.
const PAGE: u64 = 4096;
/// How long an arena stays though nothing of it is lent: making one costs 0.7 ms for each MiB.
const KEPT_NS: u64 = 1_000_000_000;
/// How long no arena is made for a receiver that had no means to map one.
const REST_NS: u64 = 1_000_000_000;

/// Lends out spans of this process's arenas.
#[derive(Debug)]
pub(crate) struct Lender {
    /// The receiver's lane, where it says what it has given back.
    peer: Arc<Lane>,
    /// Bytes of arenas that there may be.
    most_bytes: u64,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    arenas: BTreeMap<u32, Arena>,
    slots: [Slot; SLOTS],
    last_arena: u32,
    /// Of all arenas.
    bytes: u64,
    /// Arenas that are gone, of which the peer is still to be told.
    gone: Vec<u32>,
    /// The arena that the peer last said it cannot map.
    unmapped: u32,
    /// No arena is made before.
    rests_until_ns: u64,
}

#[derive(Debug)]
struct Arena {
    memory: Arc<OwnArena>,
    space: Space,
    bytes: u64,
    /// When it was last seen in use.
    used_ns: u64,
    /// The peer could not map it: nothing more is lent of it.
    unmapped: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Of its loans the last.
    generation: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    /// In the hands of whoever fills it.
    Lent(Span),
    /// The receiver's, until it says otherwise.
    Sent(Span),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    arena: u32,
    offset: u64,
    length: u64,
}

impl Lender {
    /// Without arenas so far.
    pub(crate) fn new(peer: &Arc<Lane>, most_bytes: u64) -> Arc<Lender> {
        Arc::new(Lender { peer: Arc::clone(peer), most_bytes, books: Mutex::default() })
    }

    /// Lends `length` bytes, in a new arena if need be, which the peer gets through `bell`.
    /// Nothing when all slots, or all bytes of the quota, are in use.
    pub(crate) fn lend(self: &Arc<Self>, bell: BorrowedFd<'_>, length: u64) -> Option<Loan> {
        let mut books = self.books();
        let now = clock::now_ns();
        books.retire(self.peer.header().identity.unmapped.load(Ordering::Relaxed), now);
        self.reclaim(&mut books, now);
        books.tell(bell);
        let slot = books.slots.iter().position(|slot| slot.state == State::Free)?;
        let (arena, offset) = match books.find(length) {
            Some(found) => found,
            None => books.grow(bell, length, self.most_bytes, now)?,
        };
        let memory = Arc::clone(&books.arenas.get(&arena)?.memory);
        let entry = &mut books.slots[slot];
        entry.generation = entry.generation.wrapping_add(1).max(1);
        entry.state = State::Lent(Span { arena, offset, length });
        let generation = entry.generation;
        let descriptor = Descriptor { arena, slot: slot as u32, offset, length, generation };
        Some(Loan { lender: Arc::clone(self), memory: Memory::Arena(memory, descriptor) })
    }

    /// Takes back what the receiver has given back, and lets go of arenas that nobody uses.
    fn reclaim(&self, books: &mut Books, now: u64) {
        for index in 0..SLOTS {
            let Slot { generation, state: State::Sent(span) } = books.slots[index] else {
                continue;
            };
            // Acquire: its reads come before our next writes.
            let released = self.peer.header().released[index].load(Ordering::Acquire);
            if released == generation {
                books.give_back(index, span);
            }
        }
        for arena in books.arenas.values_mut().filter(|arena| !arena.space.is_unused()) {
            arena.used_ns = now;
        }
        let is_old = |arena: &Arena| now.saturating_sub(arena.used_ns) > KEPT_NS;
        let dropped: Vec<u32> = books
            .arenas
            .iter()
            .filter(|(_, it)| it.space.is_unused() && (it.unmapped || is_old(it)))
            .map(|(number, _)| *number)
            .collect();
        for number in dropped {
            if let Some(arena) = books.arenas.remove(&number) {
                books.bytes -= arena.bytes;
                books.gone.push(number);
            }
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Heeds what the peer says of an arena that it cannot map: until it has recovered, messages
    /// go through the ring. If it lies they do so, too.
    fn retire(&mut self, number: u32, now: u64) {
        if number == self.unmapped {
            return;
        }
        self.unmapped = number;
        if let Some(arena) = self.arenas.get_mut(&number) {
            arena.unmapped = true;
            self.rests_until_ns = now.saturating_add(REST_NS);
        }
    }

    fn find(&mut self, length: u64) -> Option<(u32, u64)> {
        self.arenas
            .iter_mut()
            .filter(|(_, arena)| !arena.unmapped)
            .find_map(|(number, arena)| Some((*number, arena.space.take(length)?)))
    }

    /// Makes another arena, as large as all so far, and takes the span out of it.
    fn grow(
        &mut self,
        bell: BorrowedFd<'_>,
        length: u64,
        most: u64,
        now: u64,
    ) -> Option<(u32, u64)> {
        if now < self.rests_until_ns || !self.gone.is_empty() {
            // What the peer was not told of counts there as if it were here.
            return None;
        }
        let left = most - self.bytes;
        let needed = length.checked_next_multiple_of(PAGE)?.max(SMALLEST.min(left));
        if needed > left || self.arenas.len() >= MOST_ARENAS {
            return None;
        }
        let bytes = self.bytes.clamp(SMALLEST, LARGEST).max(needed).min(left);
        let (memory, fd) = OwnArena::create(bytes).ok()?;
        let number = self.last_arena.wrapping_add(1).max(1);
        let notice = Notice::Arena { number, bytes }.to_bytes();
        // A peer whose socket is full of what it has not read gets nothing in bulk.
        packet::send(bell, &notice, &[fd.as_fd()]).ok()?;
        self.last_arena = number;
        self.bytes += bytes;
        let mut space = Space::new(bytes);
        let offset = space.take(length)?;
        let memory = Arc::new(memory);
        let arena = Arena { memory, space, bytes, used_ns: now, unmapped: false };
        self.arenas.insert(number, arena);
        Some((number, offset))
    }

    /// Tells the peer of arenas that are gone, as many as its socket takes.
    fn tell(&mut self, bell: BorrowedFd<'_>) {
        while let Some(number) = self.gone.last().copied() {
            if packet::send(bell, &Notice::Gone { number }.to_bytes(), &[]).is_err() {
                return;
            }
            self.gone.pop();
        }
    }

    fn give_back(&mut self, slot: usize, span: Span) {
        self.slots[slot].state = State::Free;
        if let Some(arena) = self.arenas.get_mut(&span.arena) {
            arena.space.give_back(span.offset, span.length);
        }
    }
}

/// Memory that is lent to be filled and sent, without a copy on the way. Dropped unsent, it is
/// given back.
///
/// It holds whatever was sent before through the same memory to the same peer: overwrite it all.
/// In a forked child it is empty.
pub struct Loan {
    lender: Arc<Lender>,
    memory: Memory,
}

/// What is lent.
enum Memory {
    /// A span of an arena, which the peer will read.
    Arena(Arc<OwnArena>, Descriptor),
    /// Memory of ours: its bytes are sealed on their way through the ring.
    Private(Vec<u8>),
}

impl Loan {
    /// Lends private memory, for a channel that is encrypted.
    pub(crate) fn private(lender: &Arc<Lender>, size: usize) -> Loan {
        Loan { lender: Arc::clone(lender), memory: Memory::Private(vec![0; size]) }
    }

    /// The bytes that have to go through the ring, where the memory is not shared.
    pub(crate) fn private_bytes(&self) -> Option<&[u8]> {
        match &self.memory {
            Memory::Arena(..) => None,
            Memory::Private(bytes) => Some(bytes),
        }
    }

    fn is_here(&self) -> bool {
        match &self.memory {
            Memory::Arena(memory, _) => memory.is_here(),
            Memory::Private(_) => true,
        }
    }

    /// Whether it can be sent on the channel of this lender.
    pub(crate) fn is_of(&self, lender: &Arc<Lender>) -> bool {
        Arc::ptr_eq(&self.lender, lender)
    }

    /// Has `publish` send its descriptor; the receiver gives it back then. After an error nothing
    /// was sent, and the loan is dropped. Not for [private](Loan::private_bytes) ones.
    pub(crate) fn hand_over<R, E>(
        self,
        publish: impl FnOnce(&[u8; DESCRIPTOR]) -> Result<R, E>,
    ) -> Result<R, E> {
        let Memory::Arena(_, descriptor) = &self.memory else {
            unreachable!("its bytes go through the ring")
        };
        let (Descriptor { slot, generation, .. }, bytes) = (*descriptor, descriptor.to_bytes());
        let set = |state: fn(Span) -> State| {
            let mut books = self.lender.books();
            let slot = &mut books.slots[slot as usize];
            // A receiver that gives back what it has not got yet has the slot lent to another.
            if slot.generation == generation
                && let State::Lent(span) | State::Sent(span) = slot.state
            {
                slot.state = state(span);
            }
        };
        // Before it is sent: the receiver may be quick.
        set(State::Sent);
        let outcome = publish(&bytes);
        if outcome.is_err() {
            set(State::Lent);
        }
        outcome
    }
}

impl Deref for Loan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Private(bytes) => bytes,
            Memory::Arena(memory, _) if !memory.is_here() => &[],
            Memory::Arena(memory, Descriptor { offset, length, .. }) => {
                // SAFETY: (1) the books lend this span to this loan, until it is sent, by value,
                // or dropped; whoever writes it needs `&mut self`.
                unsafe { memory.span(*offset, *length as usize) }
            }
        }
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Private(bytes) => bytes,
            Memory::Arena(memory, _) if !memory.is_here() => &mut [],
            Memory::Arena(memory, Descriptor { offset, length, .. }) => {
                // SAFETY: (1) as for `deref`, with `&mut self`.
                unsafe { memory.span_mut(*offset, *length as usize) }
            }
        }
    }
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").field("length", &self.len()).finish_non_exhaustive()
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if !self.is_here() {
            // A forked child has neither the lane nor, for sure, the lock.
            std::mem::forget(Arc::clone(&self.lender));
            return;
        }
        let Memory::Arena(_, descriptor) = &self.memory else { return };
        let slot = descriptor.slot as usize;
        let mut books = self.lender.books();
        if let State::Lent(span) = books.slots[slot].state
            && books.slots[slot].generation == descriptor.generation
        {
            books.give_back(slot, span);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Geometry, lane};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::OwnedFd;

    /// A lender, the lane of its peer as that one writes it, and both ends of a socket.
    fn lender() -> (Arc<Lender>, Arc<Lane>, [OwnedFd; 2]) {
        let geometry = Geometry::default();
        let (theirs, fd) = lane::create(geometry).expect("a lane");
        let read = lane::map_peer(fd.as_fd(), geometry).expect("verified");
        let flags = SockFlag::SOCK_CLOEXEC;
        let bells = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
        (Lender::new(&read, 1 << 20), theirs, bells.expect("a pair").into())
    }

    fn place(loan: &Loan) -> Descriptor {
        let Memory::Arena(_, descriptor) = &loan.memory else { panic!("of an arena") };
        *descriptor
    }

    fn sent(loan: Loan) -> Descriptor {
        let descriptor = place(&loan);
        loan.hand_over(|_| Ok::<_, ()>(())).expect("sent");
        descriptor
    }

    #[test]
    fn a_loan_given_back_too_early_does_not_disturb_the_next_of_its_slot() {
        let (lender, theirs, [bell, _other]) = lender();
        let lend = || lender.lend(bell.as_fd(), 100).expect("lent");
        let first = lend();
        let release = |it: Descriptor| {
            theirs.header().released[it.slot as usize].store(it.generation, Ordering::Release);
        };
        release(place(&first));
        let mut second = None;
        let failed: Result<(), ()> = first.hand_over(|_| {
            second = Some(sent(lend()));
            Err(())
        });
        assert!(failed.is_err());
        let second = second.expect("lent");
        assert_eq!((second.slot, second.generation), (0, 2));
        assert_eq!(place(&lend()).slot, 1, "the second is out");
        release(second);
        assert_eq!(place(&lend()).slot, 0, "and comes back");
    }

    #[test]
    fn what_is_lent_is_nobody_elses_whatever_is_given_back() {
        let (lender, theirs, [bell, _other]) = lender();
        let mut kept: Vec<(u8, Loan)> = Vec::new();
        for round in 0..2000_u32 {
            if let Some(mut loan) = lender.lend(bell.as_fd(), u64::from(round % 7 * 900 + 1)) {
                loan.fill(round as u8);
                kept.push((round as u8, loan));
            }
            // Generations that were, are, and will be.
            for released in &theirs.header().released[..] {
                released.store(round / 3 % 64, Ordering::Release);
            }
            if kept.len() > 20 {
                let (byte, loan) = kept.swap_remove(round as usize % 20);
                assert!(loan.iter().all(|it| *it == byte));
                let _ = loan.hand_over(|_| if round % 2 == 0 { Ok(()) } else { Err(()) });
            }
        }
        assert!(kept.iter().all(|(byte, loan)| loan.iter().all(|it| it == byte)));
    }

    #[test]
    fn an_arena_that_the_peer_cannot_map_is_let_go_of() {
        let (lender, theirs, [bell, _other]) = lender();
        let lost = sent(lender.lend(bell.as_fd(), 100).expect("lent"));
        theirs.header().released[0].store(lost.generation, Ordering::Release);
        theirs.header().identity.unmapped.store(lost.arena, Ordering::Release);
        assert!(lender.lend(bell.as_fd(), 100).is_none(), "it goes through the ring");
        assert!(lender.books().arenas.is_empty());
        lender.books().rests_until_ns = 0;
        let next = place(&lender.lend(bell.as_fd(), 100).expect("lent"));
        assert_ne!(next.arena, lost.arena);
    }
}
