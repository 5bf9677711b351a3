//! The event count: how a sleeper is woken without a fence on the waker's hot path, and how no
//! wake-up is lost.
//!
//! ```text
//!  receiver (about to sleep)            sender (after a batch)
//!  e = sender's event word              publish the stamps
//!  parked = n            ─┐  ┌─         light fence
//!  heavy fence            │  │          parked?
//!  look at the ring again ┘  └▶         yes: event += 1, wake
//!  sleep while event == e
//! ```
//! Either the receiver's second look sees the stamps, or the sender's look sees `parked`: that is
//! what the two fences are for. In the second case the event word has left `e`, before or during
//! the sleep. Waiting for room is the mirror image, with `want` and `taken`.

use super::{Fences, Sleep};
use crate::{
    failpoint::shared,
    layout::{Header, Ring},
    sync::{AtomicU32, Ordering},
};

/// After a batch was pushed: how the peer is to be woken, if it is. `rung` remembers the sleep
/// that was answered last.
#[inline]
pub(crate) fn to_wake(fences: Fences, peer: &Header, rung: &AtomicU32) -> Option<Sleep> {
    fences.light();
    let parked = peer.attention.parked.load(Ordering::Relaxed);
    if parked == 0 { None } else { first_ring(parked, rung) }
}

/// One wake-up for each sleep: a second would be a system call for nothing. Whoever slept looks at
/// everything before it sleeps again, under another number.
#[cold]
fn first_ring(parked: u32, rung: &AtomicU32) -> Option<Sleep> {
    if rung.swap(parked, Ordering::Relaxed) == parked { None } else { Sleep::of(parked) }
}

/// After a batch was taken: how the peer is to be woken, if it waits for as much room as there is.
#[inline]
pub(crate) fn to_wake_for_room(fences: Fences, own: &Header, peer: &Header) -> Option<Sleep> {
    fences.light();
    let urgent = peer.want(Ring::Urgent).load(Ordering::Relaxed);
    let ordinary = peer.want(Ring::Ordinary).load(Ordering::Relaxed);
    if urgent | ordinary == 0 {
        return None;
    }
    satisfied(own, Ring::Urgent, urgent).or_else(|| satisfied(own, Ring::Ordinary, ordinary))
}

#[cold]
fn satisfied(own: &Header, ring: Ring, want: u64) -> Option<Sleep> {
    let taken = own.taken(ring).load(Ordering::Relaxed);
    // The peer takes its want back when it wakes; until then it may be rung more than once.
    if taken >= want >> 2 { Sleep::of(want as u32) } else { None }
}

/// Announces a sleep that frames shall end. The heavy fence and a second look must follow.
pub(crate) fn announce(own: &Header, parked: u32) {
    shared!(Parked, own.attention.parked.store(parked, Ordering::Release));
}

/// Announces a sleep that `taken >= count` shall end. The heavy fence and a second look must
/// follow.
pub(crate) fn announce_want(own: &Header, ring: Ring, count: u64, sleep: Sleep) {
    let want = count << 2 | sleep as u64;
    shared!(Want, own.want(ring).store(want, Ordering::Release));
}

/// Moves the event word on, so that nobody falls asleep on its old value. The wake itself is the
/// caller's.
pub(crate) fn signal(own: &Header) {
    shared!(Event, own.event.fetch_add(1, Ordering::Release));
}

/// An exhaustive model of the asymmetric fence on a machine with store buffers (x86-TSO), which
/// loom does not have: stores wait in a buffer of their thread and reach memory in order, later;
/// a `membarrier` empties the buffers of all threads.
#[cfg(all(test, not(loom)))]
mod tso {
    use std::collections::HashSet;

    /// Shared words.
    const STAMP: usize = 0;
    const PARKED: usize = 1;
    const EVENT: usize = 2;

    #[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
    struct Thread {
        step: u8,
        /// Stores on their way to memory, oldest first.
        buffer: Vec<(usize, u8)>,
        /// The receiver's `e`.
        seen: u8,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
    struct State {
        memory: [u8; 3],
        sender: Thread,
        receiver: Thread,
        asleep: bool,
        done: bool,
    }

    impl Thread {
        fn load(&self, memory: [u8; 3], word: usize) -> u8 {
            let own = self.buffer.iter().rev().find(|(at, _)| *at == word);
            own.map_or(memory[word], |(_, value)| *value)
        }

        fn drain(&mut self, memory: &mut [u8; 3]) {
            for (word, value) in self.buffer.drain(..) {
                memory[word] = value;
            }
        }
    }

    /// Every state that one step can lead to. `heavy` is whether the receiver's fence reaches the
    /// sender's buffer.
    fn successors(state: &State, heavy: bool) -> Vec<State> {
        let mut next = Vec::new();
        for is_sender in [true, false] {
            let mut drained = state.clone();
            let thread = if is_sender { &mut drained.sender } else { &mut drained.receiver };
            if !thread.buffer.is_empty() {
                let (word, value) = thread.buffer.remove(0);
                drained.memory[word] = value;
                next.push(drained);
            }
        }
        let mut it = state.clone();
        match it.sender.step {
            0 => it.sender.buffer.push((STAMP, 1)),
            // The light fence costs nothing and orders nothing.
            1 if it.sender.load(it.memory, PARKED) == 0 => it.sender.step = 2,
            2 => {
                // An atomic increment empties the buffer; the wake follows.
                let mut memory = it.memory;
                it.sender.drain(&mut memory);
                memory[EVENT] += 1;
                it.memory = memory;
                it.asleep = false;
            }
            _ => {}
        }
        if it.sender.step < 3 {
            it.sender.step += 1;
            next.push(it);
        }
        let mut it = state.clone();
        if it.asleep || it.done {
            return next;
        }
        let mut memory = it.memory;
        match it.receiver.step {
            0 => it.receiver.seen = it.receiver.load(it.memory, EVENT),
            1 => it.receiver.buffer.push((PARKED, 1)),
            2 => {
                it.receiver.drain(&mut memory);
                if heavy {
                    it.sender.drain(&mut memory);
                }
            }
            3 => it.done = it.receiver.load(it.memory, STAMP) == 1,
            // The kernel compares under its own lock, then sleeps.
            4 => it.asleep = it.memory[EVENT] == it.receiver.seen,
            _ => it.done = true,
        }
        it.memory = memory;
        it.receiver.step += 1;
        next.push(it);
        next
    }

    /// Whether the receiver can sleep for ever beside a published frame.
    fn loses_a_wake_up(heavy: bool) -> bool {
        let mut seen = HashSet::new();
        let mut todo = vec![State::default()];
        while let Some(state) = todo.pop() {
            if !seen.insert(state.clone()) {
                continue;
            }
            let next = successors(&state, heavy);
            if next.is_empty() && state.asleep {
                return true;
            }
            todo.extend(next);
        }
        false
    }

    #[test]
    fn with_membarrier_no_wake_up_is_lost() {
        assert!(!loses_a_wake_up(true));
    }

    #[test]
    fn without_it_one_is() {
        assert!(loses_a_wake_up(false));
    }
}
