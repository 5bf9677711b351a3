//! The calls of a client that are not answered yet.
//!
//! The low bits of a call's id are its slot, so that an answer finds it in one step; the bits above
//! count calls, so that ids ascend. Whoever calls again and again gets the same slot again and
//! again, whose lines are in its cache.
//!
//! The life of a slot, in its `state` word (id in the high half, phase in the low):
//!
//! ```text
//!            reserve                    fill                       take
//!   FREE ─────────────▶ WAITING ─────────────────▶ DONE ──────────────────▶ FREE
//!    ▲                     │    (by who reads the ring)    (by its caller)    ▲
//!    └─────────────────────┴── give_up: the caller read it itself, or left ───┘
//! ```

#![allow(unsafe_code)] // the answer is handed over in an UnsafeCell

use std::{cell::UnsafeCell, fmt, sync::Arc};

#[cfg(not(loom))]
use crate::board::Begun;
use crate::{
    error::CallError,
    layout::Ring,
    sync::{AtomicU32, AtomicU64, Ordering},
};

const FREE: u64 = 0;
const WAITING: u64 = 1;
/// Somebody who reads the ring is writing the answer into the slot.
const FILLING: u64 = 2;
const DONE: u64 = 3;

/// A caller's private wake word.
pub(crate) mod bed {
    /// Awake.
    pub(crate) const EMPTY: u32 = 0;
    /// Asleep, or about to be.
    pub(crate) const ASLEEP: u32 = 1;
    /// Woken.
    pub(crate) const CALLED: u32 = 2;
}

/// What ended a call.
pub(crate) type Outcome = Result<Vec<u8>, CallError>;
/// What is to happen with an outcome that no thread waits for.
pub(crate) type Callback = Box<dyn FnOnce(Outcome) + Send>;

/// Who waits for a call.
pub(crate) enum Waiter {
    /// A thread, which takes the outcome out of the slot, and has its request until then.
    Thread,
    /// A thread that will come for the outcome.
    Later,
    /// A function, to be run by the server's loop.
    Callback(Callback),
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Waiter::Thread => "Thread",
            Waiter::Later => "Later",
            Waiter::Callback(_) => "Callback",
        })
    }
}

#[derive(Debug)]
pub(crate) struct Slot {
    state: AtomicU64,
    pub(crate) bed: AtomicU32,
    /// Position of the request's last frame, and in the lowest bit its ring.
    position: AtomicU64,
    /// The whole message id; written while FREE, by the holder of the transmitting claim.
    message_id: AtomicU64,
    /// When a callback's call times out, in ns; `u64::MAX` for never.
    expires: AtomicU64,
    /// When the call began, if it is timed: a `Begun`.
    begun: AtomicU64,
    /// In the lowest bit whether the waiter is a callback, and above the number of the channel that
    /// the request went by: readable in any phase.
    way: AtomicU32,
    contents: UnsafeCell<Contents>,
}

#[derive(Debug)]
struct Contents {
    waiter: Waiter,
    outcome: Option<Outcome>,
}

// SAFETY: `contents` is touched by one thread at a time: by the reserver before it stores WAITING,
// by whoever won WAITING → FILLING until it stores DONE or FREE, by the caller after DONE.
unsafe impl Sync for Slot {}

/// The slots.
#[derive(Debug)]
pub(crate) struct Table {
    slots: Arc<[Slot]>,
    /// The slot that was freed last: the first to try.
    freed: AtomicU32,
    /// Of the channel that this view of the slots belongs to, among those of its client.
    number: AtomicU32,
}

impl Table {
    /// `size` is a power of two.
    pub(crate) fn new(size: u32) -> Table {
        let slot = |_| Slot {
            state: AtomicU64::new(FREE),
            bed: AtomicU32::new(bed::EMPTY),
            position: AtomicU64::new(u64::MAX),
            message_id: AtomicU64::new(0),
            expires: AtomicU64::new(u64::MAX),
            begun: AtomicU64::new(0),
            way: AtomicU32::new(0),
            contents: UnsafeCell::new(Contents { waiter: Waiter::Thread, outcome: None }),
        };
        let slots = (0..size.next_power_of_two()).map(slot).collect();
        Table { slots, freed: AtomicU32::new(0), number: AtomicU32::new(0) }
    }

    /// The same slots, for another channel of the same client.
    #[cfg(not(loom))]
    pub(crate) fn share(&self) -> Table {
        let slots = Arc::clone(&self.slots);
        Table { slots, freed: AtomicU32::new(0), number: AtomicU32::new(0) }
    }

    /// The number of the channel, from 0.
    #[cfg(not(loom))]
    pub(crate) fn number(&self) -> u32 {
        self.number.load(Ordering::Relaxed)
    }

    /// Gives the channel its number, before anything goes by it.
    #[cfg(not(loom))]
    pub(crate) fn set_number(&self, number: u32) {
        self.number.store(number, Ordering::Relaxed);
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The slot that a call of this id has, had, or would have.
    #[inline]
    pub(crate) fn slot(&self, id: u32) -> &Slot {
        &self.slots[id as usize & (self.slots.len() - 1)]
    }

    /// Ids per count: the number of slots.
    #[inline]
    pub(crate) fn stride(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Takes a free slot. The caller holds the claim that serialises reservations; `base` is a
    /// multiple of the stride that no id has reached yet. Returns the call's id, or gives the
    /// waiter back when every slot is taken.
    #[inline]
    pub(crate) fn reserve(&self, base: u64, waiter: Waiter) -> Result<u64, Waiter> {
        let mask = self.slots.len() - 1;
        let first = self.freed.load(Ordering::Relaxed) as usize;
        for index in (first..=first + mask).map(|index| index & mask) {
            let slot = &self.slots[index];
            if slot.state.load(Ordering::Acquire) != FREE {
                continue;
            }
            let id = base + index as u64;
            slot.bed.store(bed::EMPTY, Ordering::Relaxed);
            slot.position.store(u64::MAX, Ordering::Relaxed);
            slot.message_id.store(id, Ordering::Relaxed);
            slot.expires.store(u64::MAX, Ordering::Relaxed);
            let is_callback = u32::from(matches!(waiter, Waiter::Callback(_)));
            let number = self.number.load(Ordering::Relaxed);
            slot.way.store(number << 1 | is_callback, Ordering::Relaxed);
            // SAFETY: the slot is FREE and reservations are serialised, so nobody else has it.
            unsafe { (*slot.contents.get()).waiter = waiter };
            slot.state.store(id << 32 | WAITING, Ordering::Release);
            return Ok(id);
        }
        Err(waiter)
    }

    /// The lowest id of a call that waits for its answer.
    #[cfg(not(loom))]
    pub(crate) fn lowest(&self) -> Option<u64> {
        let waiting = self.slots.iter().filter(|slot| slot.is_taken());
        waiting.map(Slot::message_id).min()
    }

    /// Has the next reservation try the slot of this call first.
    #[inline]
    pub(crate) fn prefer(&self, id: u32) {
        self.freed.store(id & (self.slots.len() as u32 - 1), Ordering::Relaxed);
    }
}

impl Slot {
    /// Notes where the request's last frame lies.
    #[inline]
    pub(crate) fn sent(&self, ring: Ring, position: u64) {
        self.position.store(position << 1 | ring as u64, Ordering::Release);
    }

    /// The number of the channel that the request went by last.
    #[cfg(not(loom))]
    pub(crate) fn channel(&self) -> u32 {
        self.way.load(Ordering::Relaxed) >> 1
    }

    /// The request goes by another channel: none of it is sent there yet.
    #[cfg(not(loom))]
    pub(crate) fn move_to(&self, number: u32) {
        let is_callback = self.way.load(Ordering::Relaxed) & 1;
        self.position.store(u64::MAX, Ordering::Relaxed);
        self.way.store(number << 1 | is_callback, Ordering::Relaxed);
    }

    /// Where the request's last frame lies; nothing when it was not sent whole.
    pub(crate) fn position(&self) -> Option<(Ring, u64)> {
        let value = self.position.load(Ordering::Acquire);
        let ring = if value & 1 == 0 { Ring::Urgent } else { Ring::Ordinary };
        (value != u64::MAX).then_some((ring, value >> 1))
    }

    pub(crate) fn message_id(&self) -> u64 {
        self.message_id.load(Ordering::Relaxed)
    }

    /// Notes when the call began, or began to be timed.
    #[cfg(not(loom))]
    #[inline(always)]
    pub(crate) fn set_begun(&self, begun: Begun) {
        self.begun.store(begun.0, Ordering::Relaxed);
    }

    #[cfg(not(loom))]
    #[inline(always)]
    pub(crate) fn begun(&self) -> Begun {
        Begun(self.begun.load(Ordering::Relaxed))
    }

    pub(crate) fn set_expiry(&self, at_ns: u64) {
        self.expires.store(at_ns, Ordering::Relaxed);
    }

    pub(crate) fn expiry(&self) -> u64 {
        self.expires.load(Ordering::Relaxed)
    }

    /// Whether this is a call that a callback waits for, still unanswered.
    pub(crate) fn awaits_callback(&self) -> bool {
        self.way.load(Ordering::Relaxed) & 1 == 1
            && self.state.load(Ordering::Acquire) & 0xFFFF_FFFF == WAITING
    }

    /// Whether some call waits here for its answer.
    pub(crate) fn is_taken(&self) -> bool {
        self.state.load(Ordering::Relaxed) & 0xFFFF_FFFF == WAITING
    }

    /// Whether call `id` has not given its slot back: it waits, or its outcome lies here.
    #[cfg(not(loom))]
    pub(crate) fn is_held(&self, id: u32) -> bool {
        let state = self.state.load(Ordering::Acquire);
        state >> 32 == u64::from(id) && state & 0xFFFF_FFFF != FREE
    }

    /// Whether call `id` still waits for its answer.
    #[inline]
    pub(crate) fn is_waiting(&self, id: u32) -> bool {
        self.state.load(Ordering::Acquire) == u64::from(id) << 32 | WAITING
    }

    /// Whether the outcome of call `id` lies here.
    #[inline]
    pub(crate) fn is_done(&self, id: u32) -> bool {
        self.state.load(Ordering::Acquire) == u64::from(id) << 32 | DONE
    }

    /// Frees the slot of a call that a thread waits for and whose answer did not come through it.
    /// Returns false when the answer came first, or is coming: then [`Slot::take`] it.
    #[inline]
    pub(crate) fn give_up(&self, id: u32) -> bool {
        let waiting = u64::from(id) << 32 | WAITING;
        self.state.compare_exchange(waiting, FREE, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends call `id` with an outcome, if it still waits. A callback is returned with it, to be
    /// run; a thread finds it in the slot, and is to be woken by [`Slot::call`].
    pub(crate) fn fill(&self, id: u32, outcome: Outcome) -> Option<(Callback, Outcome)> {
        let (waiting, high) = (u64::from(id) << 32 | WAITING, u64::from(id) << 32);
        self.state
            .compare_exchange(waiting, high | FILLING, Ordering::AcqRel, Ordering::Acquire)
            .ok()?;
        // SAFETY: this thread won WAITING → FILLING.
        let contents = unsafe { &mut *self.contents.get() };
        match std::mem::replace(&mut contents.waiter, Waiter::Thread) {
            Waiter::Thread | Waiter::Later => {
                contents.outcome = Some(outcome);
                self.state.store(high | DONE, Ordering::Release);
                None
            }
            Waiter::Callback(callback) => {
                self.state.store(FREE, Ordering::Release);
                Some((callback, outcome))
            }
        }
    }

    /// Takes the outcome of call `id` and frees the slot, once it [`is_done`](Slot::is_done).
    pub(crate) fn take(&self, id: u32) -> Option<Outcome> {
        if !self.is_done(id) {
            return None;
        }
        // SAFETY: DONE of this id belongs to its one caller.
        let outcome = unsafe { (*self.contents.get()).outcome.take() };
        self.state.store(FREE, Ordering::Release);
        outcome
    }

    /// Wakes the thread that sleeps in this slot, if one does.
    pub(crate) fn call(&self) -> bool {
        // SeqCst: pairs with the sleeper's store of ASLEEP before its last look.
        let asleep =
            self.bed.compare_exchange(bed::ASLEEP, bed::CALLED, Ordering::SeqCst, Ordering::SeqCst);
        if asleep.is_ok() {
            #[cfg(not(loom))]
            crate::wait::futex::wake(&self.bed, false, 1);
        }
        asleep.is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_answer_finds_its_call_and_no_other() {
        let table = Table::new(4);
        let id = table.reserve(8, Waiter::Thread).expect("room");
        assert_eq!(id, 8);
        let slot = table.slot(8);
        assert!(slot.fill(4, Ok(vec![])).is_none());
        assert!(slot.is_waiting(8));
        assert!(slot.fill(8, Ok(vec![1])).is_none());
        assert!(!slot.give_up(8));
        assert_eq!(slot.take(8).expect("done").expect("an answer"), vec![1]);
        assert!(slot.take(8).is_none());
    }

    #[test]
    fn busy_slots_are_passed_over_and_a_full_table_says_so() {
        let table = Table::new(4);
        for call in 0..4 {
            assert_eq!(table.reserve(call * 4, Waiter::Thread).expect("room"), call * 5);
        }
        assert!(table.reserve(16, Waiter::Thread).is_err());
        assert!(table.slot(5).give_up(5));
        assert_eq!(table.reserve(16, Waiter::Thread).expect("room"), 17);
        assert!(table.slot(0).is_waiting(0));
    }

    #[test]
    fn a_callback_comes_back_with_its_outcome() {
        let table = Table::new(4);
        let (tell, told) = std::sync::mpsc::channel();
        let waiter = Waiter::Callback(Box::new(move |outcome| tell.send(outcome).expect("told")));
        let id = table.reserve(4, waiter).expect("room");
        let slot = table.slot(id as u32);
        assert!(slot.awaits_callback());
        let (callback, outcome) = slot.fill(id as u32, Ok(vec![9])).expect("a callback");
        callback(outcome);
        assert_eq!(told.recv().expect("told").expect("an answer"), vec![9]);
        assert!(!slot.awaits_callback());
    }
}
