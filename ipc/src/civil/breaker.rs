//! A circuit breaker: not calling who fails, and finding out by one call when it is well again.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Blame, Clock, Failure, SystemClock};
use crate::error::Retry;

/// What a breaker does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CircuitState {
    /// It lets them through.
    Closed,
    /// It refuses them, until its timeout is over.
    Open,
    /// It has let one through, to see, and refuses the others until that one has ended.
    HalfOpen,
}

/// Lets calls through while they succeed. After so many failures in a row it refuses them, at
/// once; when its timeout is over it lets exactly one through, by which it closes or opens again.
///
/// All threads of a process may share one. It holds a lock for a few instructions, before and
/// after a call, not during it.
///
/// ```
/// use ipc::{CallError, civil::{BreakerError, CircuitBreaker, CircuitState, ManualClock}};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let breaker = CircuitBreaker::with_clock(2, Duration::from_secs(5), clock.clone());
/// for _ in 0..2 {
///     let _ = breaker.call(|| Err::<(), _>(CallError::TimedOut));
/// }
/// assert_eq!(breaker.state(), CircuitState::Open);
/// assert!(matches!(breaker.call(|| Ok::<_, CallError>(())), Err(BreakerError::Open(_))));
///
/// clock.advance(Duration::from_secs(5));
/// breaker.call(|| Ok::<_, CallError>(()))?;
/// assert_eq!(breaker.state(), CircuitState::Closed);
/// # Ok::<(), BreakerError<CallError>>(())
/// ```
#[derive(Debug)]
pub struct CircuitBreaker<C = SystemClock> {
    failure_threshold: u32,
    timeout: Duration,
    state: Mutex<State>,
    clock: C,
}

/// `turn` counts the changes of `phase`: a call let through before the last one says nothing.
#[derive(Debug)]
struct State {
    phase: Phase,
    turn: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed {
        failures: u32,
    },
    Open {
        since: Instant,
    },
    /// One call is under way.
    Probing,
    /// That one ended without saying anything: the next is let through instead.
    Undecided,
}

/// The breaker is open: nothing was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the circuit is open: the service failed before, and is not called for {left:?}")]
pub struct CircuitOpen {
    /// How long it stays so; zero while the one call is under way that decides.
    pub left: Duration,
}

/// Why a call through a breaker has no result.
#[derive(Debug, thiserror::Error)]
pub enum BreakerError<E> {
    /// It was not made.
    #[error(transparent)]
    Open(#[from] CircuitOpen),
    /// It failed.
    #[error("{0}")]
    Failed(E),
}

impl<E: Failure> Failure for BreakerError<E> {
    fn retry(&self) -> Retry {
        match self {
            BreakerError::Open(_) => Retry::Always,
            BreakerError::Failed(error) => error.retry(),
        }
    }

    fn blame(&self) -> Blame {
        match self {
            BreakerError::Open(_) => Blame::Caller,
            BreakerError::Failed(error) => error.blame(),
        }
    }
}

impl CircuitBreaker {
    /// Opens after `failure_threshold` failures in a row (0 is as 1), for `timeout`.
    pub fn new(failure_threshold: u32, timeout: Duration) -> CircuitBreaker {
        CircuitBreaker::with_clock(failure_threshold, timeout, SystemClock)
    }
}

impl<C: Clock> CircuitBreaker<C> {
    /// As [`new`](CircuitBreaker::new), by another clock.
    pub fn with_clock(failure_threshold: u32, timeout: Duration, clock: C) -> CircuitBreaker<C> {
        let state = Mutex::new(State { phase: Phase::Closed { failures: 0 }, turn: 0 });
        CircuitBreaker { failure_threshold: failure_threshold.max(1), timeout, state, clock }
    }

    /// Says what it does with calls now. An open one whose timeout is over still says so: it is
    /// the next call that makes it half-open.
    pub fn state(&self) -> CircuitState {
        match self.lock().phase {
            Phase::Closed { .. } => CircuitState::Closed,
            Phase::Open { .. } => CircuitState::Open,
            Phase::Probing | Phase::Undecided => CircuitState::HalfOpen,
        }
    }

    /// Lets a call through, or not. What came of it is told to the permit.
    ///
    /// # Errors
    /// [`CircuitOpen`].
    pub fn admit(&self) -> Result<Permit<'_, C>, CircuitOpen> {
        let now = self.clock.now();
        let mut state = self.lock();
        match state.phase {
            Phase::Closed { .. } => {}
            Phase::Open { since } => {
                let passed = now.saturating_duration_since(since);
                let left = self.timeout.saturating_sub(passed);
                if !left.is_zero() {
                    return Err(CircuitOpen { left });
                }
                state.enter(Phase::Probing);
            }
            Phase::Probing => return Err(CircuitOpen { left: Duration::ZERO }),
            Phase::Undecided => state.enter(Phase::Probing),
        }
        Ok(Permit { breaker: self, turn: state.turn, blame: None })
    }

    /// Calls, if it lets calls through. Failures that speak against the service count, answers of
    /// any kind speak for it, and the caller's own mistakes say nothing.
    ///
    /// # Errors
    /// [`BreakerError`].
    pub fn call<T, E: Failure>(
        &self,
        operation: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, BreakerError<E>> {
        let permit = self.admit()?;
        let outcome = operation();
        permit.settle(outcome.as_ref().map_or_else(Failure::blame, |_| Blame::Nobody));
        outcome.map_err(BreakerError::Failed)
    }

    fn settle(&self, turn: u64, blame: Option<Blame>) {
        let now = self.clock.now();
        let mut state = self.lock();
        if state.turn != turn {
            return;
        }
        match (state.phase, blame) {
            (Phase::Closed { .. }, Some(Blame::Nobody)) => {
                state.phase = Phase::Closed { failures: 0 };
            }
            (Phase::Closed { failures }, Some(Blame::Service)) => {
                let failures = failures.saturating_add(1);
                if failures >= self.failure_threshold {
                    state.enter(Phase::Open { since: now });
                } else {
                    state.phase = Phase::Closed { failures };
                }
            }
            (Phase::Probing, Some(Blame::Nobody)) => state.enter(Phase::Closed { failures: 0 }),
            (Phase::Probing, Some(Blame::Service)) => state.enter(Phase::Open { since: now }),
            (Phase::Probing, Some(Blame::Caller) | None) => state.enter(Phase::Undecided),
            // No permit is given while it is in these.
            (Phase::Open { .. } | Phase::Undecided, _)
            | (Phase::Closed { .. }, Some(Blame::Caller) | None) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.turn += 1;
    }
}

/// One call that a breaker has let through. Dropped, by a panic for instance, it says nothing:
/// the next call decides in its place.
pub struct Permit<'a, C: Clock = SystemClock> {
    breaker: &'a CircuitBreaker<C>,
    turn: u64,
    blame: Option<Blame>,
}

impl<C: Clock> Permit<'_, C> {
    /// Tells that the service answered.
    pub fn succeeded(self) {
        self.settle(Blame::Nobody);
    }

    /// Tells that the service failed.
    pub fn failed(self) {
        self.settle(Blame::Service);
    }

    /// Tells who is to blame for what came of it.
    pub fn settle(mut self, blame: Blame) {
        self.blame = Some(blame);
    }
}

impl<C: Clock> Drop for Permit<'_, C> {
    fn drop(&mut self) {
        self.breaker.settle(self.turn, self.blame);
    }
}

impl<C: Clock> fmt::Debug for Permit<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("turn", &self.turn).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use proptest::prelude::*;

    use super::*;
    use crate::{CallError, civil::ManualClock};

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn opened() -> (CircuitBreaker<ManualClock>, ManualClock) {
        let clock = ManualClock::new();
        let breaker = CircuitBreaker::with_clock(2, TIMEOUT, clock.clone());
        breaker.admit().expect("closed").failed();
        breaker.admit().expect("closed").failed();
        assert_eq!(breaker.state(), CircuitState::Open);
        (breaker, clock)
    }

    #[test]
    fn it_opens_waits_tries_and_closes() {
        let (breaker, clock) = opened();
        clock.advance(TIMEOUT.saturating_sub(Duration::from_nanos(1)));
        assert_eq!(breaker.admit().expect_err("open").left, Duration::from_nanos(1));
        clock.advance(Duration::from_nanos(1));
        breaker.admit().expect("half-open").failed();
        assert_eq!(breaker.state(), CircuitState::Open);
        assert_eq!(breaker.admit().expect_err("open again").left, TIMEOUT);
        clock.advance(TIMEOUT);
        let probe = breaker.admit().expect("half-open");
        assert_eq!(breaker.state(), CircuitState::HalfOpen);
        assert_eq!(breaker.admit().expect_err("one only").left, Duration::ZERO);
        probe.succeeded();
        assert_eq!(breaker.state(), CircuitState::Closed);
    }

    #[test]
    fn successes_between_failures_keep_it_closed() {
        let breaker = CircuitBreaker::with_clock(2, TIMEOUT, ManualClock::new());
        for _ in 0..5 {
            breaker.admit().expect("closed").failed();
            breaker.admit().expect("closed").succeeded();
        }
        assert_eq!(breaker.state(), CircuitState::Closed);
    }

    #[test]
    fn who_began_before_it_opened_says_nothing_of_after() {
        let clock = ManualClock::new();
        let breaker = CircuitBreaker::with_clock(1, TIMEOUT, clock.clone());
        let (late, early) = (breaker.admit().expect("closed"), breaker.admit().expect("closed"));
        early.failed();
        clock.advance(TIMEOUT);
        let probe = breaker.admit().expect("half-open");
        late.succeeded();
        assert_eq!(breaker.state(), CircuitState::HalfOpen, "the probe decides");
        probe.failed();
        assert_eq!(breaker.state(), CircuitState::Open);
    }

    #[test]
    fn a_probe_that_says_nothing_makes_room_for_another() {
        let (breaker, clock) = opened();
        clock.advance(TIMEOUT);
        let invalid = breaker.call(|| Err::<(), _>(CallError::Invalid("")));
        assert!(matches!(invalid, Err(BreakerError::Failed(CallError::Invalid(_)))));
        drop(breaker.admit().expect("another"));
        breaker.admit().expect("and another").succeeded();
        assert_eq!(breaker.state(), CircuitState::Closed);
    }

    #[test]
    fn half_open_admits_exactly_one_of_many_threads() {
        const THREADS: usize = 8;
        let (breaker, clock) = opened();
        for _ in 0..200 {
            clock.advance(TIMEOUT);
            let (begin, end) = (Barrier::new(THREADS), Barrier::new(THREADS));
            let admitted: usize = thread::scope(|scope| {
                let try_it = || {
                    begin.wait();
                    let permit = breaker.admit();
                    end.wait();
                    permit.map(Permit::failed).is_ok().into()
                };
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(try_it)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap_or(0_usize)).sum()
            });
            assert_eq!(admitted, 1);
        }
    }

    proptest! {
        /// Whatever happens, in any order: an open one admits nobody before its time, a half-open
        /// one one, and it opens after so many failures in a row.
        #[test]
        fn it_keeps_its_rules(
            threshold in 1_u32..4,
            steps in prop::collection::vec((0_u8..5, 0_u64..7), 0..200),
        ) {
            let clock = ManualClock::new();
            let breaker = CircuitBreaker::with_clock(threshold, TIMEOUT, clock.clone());
            let mut permits = Vec::new();
            let mut refused_until = None;
            for (step, seconds) in steps {
                let before = breaker.state();
                match step {
                    0 | 1 => {
                        if let Ok(permit) = breaker.admit() {
                            prop_assert_ne!(breaker.state(), CircuitState::Open);
                            prop_assert!(refused_until.is_none_or(|until| clock.now() >= until));
                            permits.push(permit);
                        } else {
                            prop_assert_ne!(before, CircuitState::Closed);
                        }
                    }
                    2 => {
                        if let Some(permit) = permits.pop() {
                            permit.failed();
                        }
                    }
                    3 => {
                        if let Some(permit) = permits.pop() {
                            permit.succeeded();
                        }
                    }
                    _ => clock.advance(Duration::from_secs(seconds)),
                }
                refused_until = match (before, breaker.state()) {
                    (CircuitState::Open, CircuitState::Open) => refused_until,
                    (_, CircuitState::Open) => Some(clock.now() + TIMEOUT),
                    _ => None,
                };
            }
        }
    }
}
