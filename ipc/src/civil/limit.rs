//! At most so many calls in a time: the generic cell rate algorithm (ITU-T I.371, annex A).
//!
//! One number for each route: when the next call would come, if all came evenly. A call that comes
//! earlier than that by more than the burst allows is refused.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{Clock, SystemClock};
use crate::sync::{AtomicU64, Ordering};

/// A call came too soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("over the rate allowed: wait for {wait:?}")]
pub struct Limited {
    /// When it would be let through, if nobody else comes first.
    pub wait: Duration,
}

/// Lets `per_second` calls through each second, and up to `burst` at once after a rest. All threads
/// of a process may share one, and none waits for another.
///
/// ```
/// use ipc::civil::{ManualClock, RateLimit};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let limit = RateLimit::with_clock(10.0, 2, clock.clone());
/// assert!(limit.admit().is_ok() && limit.admit().is_ok());
/// assert_eq!(limit.admit().unwrap_err().wait, Duration::from_millis(100));
/// clock.advance(Duration::from_millis(100));
/// assert!(limit.admit().is_ok());
/// ```
#[derive(Debug)]
pub struct RateLimit<C = SystemClock> {
    rate: Rate,
    /// When the next call would come if all came evenly: ns since `begun`.
    next_ns: AtomicU64,
    begun: Instant,
    clock: C,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    /// From call to call.
    interval_ns: u64,
    /// How much earlier than evenly a call may come.
    slack_ns: u64,
}

impl Rate {
    fn new(per_second: f64, burst: u32) -> Rate {
        // Casts saturate; no rate at all is one call in 584 years.
        let interval_ns = ((1e9 / per_second.max(0.0)).round() as u64).max(1);
        Rate { interval_ns, slack_ns: interval_ns.saturating_mul(u64::from(burst.max(1)) - 1) }
    }

    /// Decides on a call at `now_ns`: gives the new `next_ns`, or how many ns to wait.
    fn decide(self, next_ns: u64, now_ns: u64) -> Result<u64, u64> {
        let early = next_ns.saturating_sub(now_ns);
        if early > self.slack_ns {
            return Err(early - self.slack_ns);
        }
        Ok(next_ns.max(now_ns).saturating_add(self.interval_ns))
    }
}

impl RateLimit {
    /// Lets `per_second` calls through, up to `burst` at once (0 is as 1).
    pub fn new(per_second: f64, burst: u32) -> RateLimit {
        RateLimit::with_clock(per_second, burst, SystemClock)
    }
}

impl<C: Clock> RateLimit<C> {
    /// As [`new`](RateLimit::new), by another clock.
    pub fn with_clock(per_second: f64, burst: u32, clock: C) -> RateLimit<C> {
        let rate = Rate::new(per_second, burst);
        RateLimit { rate, next_ns: AtomicU64::new(0), begun: clock.now(), clock }
    }

    /// Lets a call through, or says how long to wait.
    ///
    /// # Errors
    /// [`Limited`].
    pub fn admit(&self) -> Result<(), Limited> {
        let now_ns = elapsed_ns(self.begun, &self.clock);
        let mut next_ns = self.next_ns.load(Ordering::Relaxed);
        loop {
            let decided = self.rate.decide(next_ns, now_ns);
            let moved =
                decided.map_err(|wait_ns| Limited { wait: Duration::from_nanos(wait_ns) })?;
            // The number is all there is: it publishes nothing else, so no order is needed.
            let swap = self.next_ns.compare_exchange_weak(
                next_ns,
                moved,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match swap {
                Ok(_) => return Ok(()),
                Err(other) => next_ns = other,
            }
        }
    }
}

/// A rate for each route: a service, a method, a caller. It knows at most `routes` of them; those
/// that have rested until they have their whole burst again need no memory.
///
/// ```
/// use ipc::{ServiceId, civil::RouteLimits};
///
/// let limits = RouteLimits::new(1000.0, 50, 4096);
/// # let request_source = ServiceId::new(7);
/// assert!(limits.admit(request_source).is_ok());
/// ```
#[derive(Debug)]
pub struct RouteLimits<K, C = SystemClock> {
    rate: Rate,
    routes: usize,
    begun: Instant,
    next_ns: Mutex<HashMap<K, u64>>,
    clock: C,
}

impl<K: Eq + Hash> RouteLimits<K> {
    /// Lets `per_second` calls of each route through, up to `burst` at once; of at most `routes`
    /// busy routes at a time.
    pub fn new(per_second: f64, burst: u32, routes: usize) -> RouteLimits<K> {
        RouteLimits::with_clock(per_second, burst, routes, SystemClock)
    }
}

impl<K: Eq + Hash, C: Clock> RouteLimits<K, C> {
    /// As [`new`](RouteLimits::new), by another clock.
    pub fn with_clock(per_second: f64, burst: u32, routes: usize, clock: C) -> RouteLimits<K, C> {
        let (rate, begun) = (Rate::new(per_second, burst), clock.now());
        RouteLimits { rate, routes, begun, next_ns: Mutex::default(), clock }
    }

    /// Lets a call of a route through, or says how long to wait.
    ///
    /// # Errors
    /// [`Limited`], also when so many routes are busy that there is no place for another.
    pub fn admit(&self, route: K) -> Result<(), Limited> {
        let now_ns = elapsed_ns(self.begun, &self.clock);
        let limited = |wait_ns| Limited { wait: Duration::from_nanos(wait_ns) };
        let mut known = self.next_ns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(next_ns) = known.get_mut(&route) {
            *next_ns = self.rate.decide(*next_ns, now_ns).map_err(limited)?;
            return Ok(());
        }
        if known.len() >= self.routes {
            // Who is not ahead of its time has its whole burst, as one that was never seen.
            known.retain(|_, next_ns| *next_ns > now_ns);
        }
        if known.len() >= self.routes {
            let first = known.values().min().copied().unwrap_or(u64::MAX);
            return Err(limited(first.saturating_sub(now_ns)));
        }
        known.insert(route, self.rate.decide(now_ns, now_ns).map_err(limited)?);
        Ok(())
    }

    /// Counts the routes that it knows at the moment.
    pub fn len(&self) -> usize {
        self.next_ns.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Tells whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn elapsed_ns(begun: Instant, clock: &impl Clock) -> u64 {
    let elapsed = clock.now().saturating_duration_since(begun);
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, thread};

    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    use super::*;
    use crate::civil::ManualClock;

    #[test]
    fn a_call_is_let_through_at_its_time_and_not_before() {
        let clock = ManualClock::new();
        let limit = RateLimit::with_clock(10.0, 2, clock.clone());
        assert!(limit.admit().is_ok() && limit.admit().is_ok());
        clock.advance(Duration::from_nanos(99_999_999));
        assert_eq!(limit.admit(), Err(Limited { wait: Duration::from_nanos(1) }));
        clock.advance(Duration::from_nanos(1));
        assert!(limit.admit().is_ok() && limit.admit().is_err());
        clock.advance(Duration::from_hours(1));
        assert!(limit.admit().is_ok() && limit.admit().is_ok());
        assert!(limit.admit().is_err(), "rest gives the burst, and no more");
    }

    #[test]
    fn threads_share_a_burst() {
        let limit = RateLimit::with_clock(1.0, 1000, ManualClock::new());
        let count = || (0..1000).filter(|_| limit.admit().is_ok()).count();
        let admitted: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
        });
        assert_eq!(admitted, 1000);
    }

    #[test]
    fn routes_do_not_share_and_are_bounded() {
        let clock = ManualClock::new();
        let limits = RouteLimits::with_clock(1.0, 1, 2, clock.clone());
        assert!(limits.admit("a").is_ok() && limits.admit("b").is_ok());
        assert_eq!(limits.admit("a"), Err(Limited { wait: Duration::from_secs(1) }));
        assert_eq!(limits.admit("c"), Err(Limited { wait: Duration::from_secs(1) }), "no place");
        clock.advance(Duration::from_secs(1));
        assert!(limits.admit("c").is_ok());
        assert_eq!(limits.len(), 1, "those that rested are forgotten");
    }

    #[test]
    fn rates_without_sense_are_bounded() {
        for rate in [0.0, -1.0, f64::NAN] {
            let limit = RateLimit::with_clock(rate, 0, ManualClock::new());
            assert!(limit.admit().is_ok() && limit.admit().is_err(), "{rate}");
        }
        let endless = RateLimit::with_clock(f64::INFINITY, 1, ManualClock::new());
        assert!(endless.admit().is_ok());
    }

    proptest! {
        /// As the crate `governor`, by the same steps of time.
        #[test]
        fn it_agrees_with_governor(
            per_second in 1_u32..1000,
            burst in 1_u32..20,
            steps in prop::collection::vec(0_u64..50_000_000, 1..200),
        ) {
            // Evenly divisible, so that both have the same interval.
            let interval = Duration::from_nanos(1_000_000_000 / u64::from(per_second));
            let quota = governor::Quota::with_period(interval).expect("not zero");
            let quota = quota.allow_burst(NonZeroU32::new(burst).expect("not zero"));
            let (theirs, ours) = (FakeRelativeClock::default(), ManualClock::new());
            let oracle = governor::RateLimiter::direct_with_clock(quota, theirs.clone());
            let rate = 1e9 / interval.as_nanos() as f64;
            let limit = RateLimit::with_clock(rate, burst, ours.clone());
            for step in steps {
                let step = Duration::from_nanos(step);
                theirs.advance(step);
                ours.advance(step);
                prop_assert_eq!(limit.admit().is_ok(), oracle.check().is_ok());
            }
        }
    }
}
