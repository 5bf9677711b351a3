//! The deadline of a request, handed on to the calls that its handler makes.

use std::time::{Duration, Instant};

use super::{Clock, SystemClock};
use crate::{CallOptions, Request, Retained, clock, error::CallError};

/// Something that somebody waits for until a time.
pub trait Deadline {
    /// Says until when: `CLOCK_MONOTONIC` in ns; nothing for ever.
    fn deadline_ns(&self) -> Option<u64>;
}

impl Deadline for Request<'_> {
    fn deadline_ns(&self) -> Option<u64> {
        Request::deadline_ns(self)
    }
}

impl Deadline for Retained {
    fn deadline_ns(&self) -> Option<u64> {
        Retained::deadline_ns(self)
    }
}

impl CallOptions {
    /// Gives a call what is left of the time of the request that it is made for. No work is done
    /// for a caller that has given up, nor by services further down.
    ///
    /// ```no_run
    /// # fn of(store: &ipc::Client, request: &ipc::Request<'_>) -> Result<(), ipc::CallError> {
    /// use ipc::CallOptions;
    /// let value = store.call(b"key", CallOptions::within(request)?)?;
    /// request.reply(&value)
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CallError::TimedOut`] when nothing is left.
    pub fn within(request: &impl Deadline) -> Result<CallOptions, CallError> {
        CallOptions::default().also_within(request)
    }

    /// Shortens the timeout to what is left of the time of a request, if that is less.
    ///
    /// # Errors
    /// [`CallError::TimedOut`] when nothing is left.
    pub fn also_within(self, request: &impl Deadline) -> Result<CallOptions, CallError> {
        self.also_within_by(request, &SystemClock)
    }

    /// As [`within`](CallOptions::within), by another clock. One that was moved is so much ahead of
    /// the system's, by which deadlines are counted.
    ///
    /// ```
    /// use ipc::{CallOptions, civil::{Deadline, ManualClock}};
    /// use std::time::Duration;
    ///
    /// # fn of(request: &impl Deadline) -> Result<(), ipc::CallError> {
    /// let clock = ManualClock::new();
    /// let options = CallOptions::within_by(request, &clock)?;
    /// clock.advance(Duration::from_hours(1));
    /// // Nothing is left by now of any shorter time.
    /// let late = CallOptions::within_by(request, &clock);
    /// # let _ = (options, late);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CallError::TimedOut`] when nothing is left.
    pub fn within_by(
        request: &impl Deadline,
        clock: &impl Clock,
    ) -> Result<CallOptions, CallError> {
        CallOptions::default().also_within_by(request, clock)
    }

    /// As [`also_within`](CallOptions::also_within), by another clock.
    ///
    /// # Errors
    /// [`CallError::TimedOut`] when nothing is left.
    pub fn also_within_by(
        self,
        request: &impl Deadline,
        clock: &impl Clock,
    ) -> Result<CallOptions, CallError> {
        let (system, system_ns, now) = (Instant::now(), clock::monotonic_ns(), clock.now());
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let ahead = ns(now.saturating_duration_since(system));
        let behind = ns(system.saturating_duration_since(now));
        let now_ns = system_ns.saturating_add(ahead).saturating_sub(behind);
        self.until(request.deadline_ns(), now_ns)
    }

    fn until(self, deadline_ns: Option<u64>, now_ns: u64) -> Result<CallOptions, CallError> {
        let Some(deadline_ns) = deadline_ns else { return Ok(self) };
        match deadline_ns.saturating_sub(now_ns) {
            0 => Err(CallError::TimedOut),
            left_ns => {
                let left = Duration::from_nanos(left_ns);
                let timeout = self.timeout.map_or(left, |timeout| timeout.min(left));
                Ok(CallOptions { timeout: Some(timeout), ..self })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Priority, civil::ManualClock};

    struct Until(u64);

    impl Deadline for Until {
        fn deadline_ns(&self) -> Option<u64> {
            Some(self.0)
        }
    }

    #[test]
    fn what_is_left_is_told_by_a_clock_of_the_user_s() {
        const HOUR: Duration = Duration::from_hours(1);
        let request = Until(clock::monotonic_ns() + 10 * HOUR.as_nanos() as u64);
        let clock = ManualClock::new();
        let left = || CallOptions::within_by(&request, &clock).map(|options| options.timeout);
        let at_first = left().ok().flatten().expect("some is left");
        assert!(at_first > 9 * HOUR && at_first <= 10 * HOUR, "{at_first:?}");
        clock.advance(9 * HOUR);
        let then = left().ok().flatten().expect("some is left");
        assert!(then <= HOUR, "{then:?}");
        let short = CallOptions::timeout(Duration::from_nanos(5)).also_within_by(&request, &clock);
        assert_eq!(short.ok().and_then(|it| it.timeout), Some(Duration::from_nanos(5)));
        clock.advance(2 * HOUR);
        assert!(matches!(left(), Err(CallError::TimedOut)));
    }

    #[test]
    fn a_call_gets_what_is_left() {
        let plain = CallOptions::default().priority(Priority::High);
        let short = CallOptions::timeout(Duration::from_nanos(5));
        let timeout = |options: CallOptions, deadline_ns, now_ns| {
            options.until(deadline_ns, now_ns).map(|options| options.timeout).ok()
        };
        let ns = |ns| Some(Some(Duration::from_nanos(ns)));
        assert_eq!(timeout(plain, None, 7), Some(None), "nobody gives up");
        assert_eq!(timeout(plain, Some(17), 7), ns(10));
        assert_eq!(timeout(short, Some(17), 7), ns(5), "it had less");
        assert_eq!(timeout(short, Some(9), 7), ns(2));
        assert_eq!(timeout(plain, Some(7), 7), None, "nothing is left");
        assert_eq!(timeout(plain, Some(7), 70), None);
        let kept = plain.until(Some(17), 7).map(|options| options.priority);
        assert_eq!(kept.ok(), Some(Priority::High));
    }
}
