//! What a consumer has: fetched and not received, given to it and not settled; and which of its
//! threads fetches.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::consumer::Delivery;

/// A consumer's own account.
#[derive(Debug)]
pub(super) struct Hand {
    state: Mutex<State>,
    /// Something was fetched, the turn is free, or it is closed.
    changed: Condvar,
    lease: Duration,
}

#[derive(Debug)]
struct State {
    /// Not received yet.
    fetched: VecDeque<Delivery>,
    /// One thread does at a time: what was given to us and what is on its way is one account.
    is_fetching: bool,
    is_closed: bool,
    /// Given to us, by id.
    held: BTreeMap<u64, Held>,
    /// When it is next looked for those whose time is over.
    sweep_at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    attempt: u32,
    /// Nobody believes that we have it after that.
    until: Instant,
}

/// What there is for who receives.
#[derive(Debug)]
pub(super) enum Next<'a> {
    /// A message.
    Delivery(Delivery),
    /// It is to fetch.
    Turn(Turn<'a>),
    /// Neither came in time.
    Late,
    /// Nothing comes any more.
    Closed,
}

/// The right to fetch, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Hand);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().is_fetching = false;
        self.0.changed.notify_all();
    }
}

impl Hand {
    /// Has nothing yet, of a queue with that lease.
    pub(super) fn new(lease: Duration) -> Hand {
        let state = State {
            fetched: VecDeque::new(),
            is_fetching: false,
            is_closed: false,
            held: BTreeMap::new(),
            sweep_at: Instant::now() + lease,
        };
        Hand { state: Mutex::new(state), changed: Condvar::new(), lease }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a message that was fetched, or for the turn to fetch.
    pub(super) fn next(&self, until: Option<Instant>) -> Next<'_> {
        let mut state = self.state();
        loop {
            if state.is_closed {
                return Next::Closed;
            }
            if let Some(delivery) = state.fetched.pop_front() {
                return Next::Delivery(delivery);
            }
            if !state.is_fetching {
                state.is_fetching = true;
                return Next::Turn(Turn(self));
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => return Next::Late,
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Takes the next of what was fetched.
    pub(super) fn pop(&self) -> Option<Delivery> {
        self.state().fetched.pop_front()
    }

    /// Takes in what was fetched.
    pub(super) fn take_in(&self, deliveries: Vec<Delivery>, now: Instant) {
        let mut state = self.state();
        if now >= state.sweep_at {
            state.sweep(now);
            state.sweep_at = now + self.lease;
        }
        for it in &deliveries {
            // A restart of the queues begins leases anew.
            let held = Held { attempt: it.attempt(), until: now + 2 * self.lease };
            state.held.insert(it.id(), held);
        }
        state.fetched.extend(deliveries);
        drop(state);
        self.changed.notify_all();
    }

    /// What is in hand, and not over: by id and attempt.
    pub(super) fn held(&self, now: Instant) -> Vec<(u64, u32)> {
        let mut state = self.state();
        state.sweep(now);
        state.held.iter().map(|(id, it)| (*id, it.attempt)).collect()
    }

    /// They are not in hand any more.
    pub(super) fn let_go(&self, deliveries: &[Delivery]) {
        let mut state = self.state();
        for it in deliveries {
            state.held.remove(&it.id());
        }
    }

    /// They are in hand for so long from now on.
    pub(super) fn extend(&self, deliveries: &[Delivery], lease: Duration, now: Instant) {
        let mut state = self.state();
        for it in deliveries {
            if let Some(held) = state.held.get_mut(&it.id()) {
                held.until = now + lease + self.lease;
            }
        }
    }

    /// Forgets what is in hand; tells whether that was anything.
    pub(super) fn forget(&self) -> bool {
        let mut state = self.state();
        state.fetched.clear();
        !std::mem::take(&mut state.held).is_empty()
    }

    /// Lets nobody receive any more.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.changed.notify_all();
    }

    #[cfg(feature = "tokio")]
    pub(super) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    pub(super) fn is_fetching(&self) -> bool {
        self.state().is_fetching
    }

    /// Waits so long for who fetches to be done.
    pub(super) fn wait_idle(&self, patience: Duration) {
        let is_fetching = |state: &mut State| state.is_fetching;
        drop(self.changed.wait_timeout_while(self.state(), patience, is_fetching));
    }
}

impl State {
    fn sweep(&mut self, now: Instant) {
        self.held.retain(|_, it| it.until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn some(ids: std::ops::Range<u64>) -> Vec<Delivery> {
        ids.map(|id| Delivery::from_parts(id, 1)).collect()
    }

    #[test]
    fn what_nobody_settles_is_forgotten_when_its_lease_is_over() {
        let hand = Hand::new(LEASE);
        let begin = Instant::now();
        let mut now = begin;
        for round in 0..200 {
            hand.take_in(some(round * 100..round * 100 + 100), now);
            now += LEASE / 4;
            assert!(hand.state().held.len() <= 1300, "{}", hand.state().held.len());
        }
        hand.take_in(some(1..2), begin);
        hand.take_in(some(20_000..20_002), now);
        hand.extend(&some(20_001..20_002), 5 * LEASE, now);
        let held = hand.held(now + 2 * LEASE);
        assert_eq!(held, [(20_001, 1)], "all others are over");
        hand.let_go(&some(20_001..20_002));
        assert_eq!(hand.held(now), []);
    }

    #[test]
    fn one_has_the_turn_and_others_wait_no_longer_than_they_said() {
        let hand = Hand::new(LEASE);
        let Next::Turn(turn) = hand.next(None) else { panic!("it is free") };
        assert!(matches!(hand.next(Some(Instant::now())), Next::Late));
        let soon = Some(Instant::now() + Duration::from_millis(5));
        assert!(matches!(hand.next(soon), Next::Late));
        hand.take_in(some(1..2), Instant::now());
        assert!(matches!(hand.next(soon), Next::Delivery(it) if it.id() == 1));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| matches!(hand.next(None), Next::Turn(_)));
            drop(turn);
            assert!(waiting.join().expect("it got it"));
            let turn = hand.next(None);
            let waiting = scope.spawn(|| matches!(hand.next(None), Next::Closed));
            hand.close();
            assert!(waiting.join().expect("it was woken"));
            drop(turn);
        });
    }
}
