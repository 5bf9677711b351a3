use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::{
    civil::ManualClock,
    error::{NodeError, PeerCorrupt},
};

fn config() -> RetryConfig {
    RetryConfig { jitter: 0.0, ..RetryConfig::default() }
}

/// What each error means for a request that may not, and for one that may be repeated; and whom it
/// blames.
#[test]
fn every_call_error_has_its_place() {
    use Blame::{Caller, Nobody, Service};
    use Retry::{Always, Idempotent, Never};
    let lost = NodeError::Refused(Status::NOT_FOUND);
    let table = [
        (CallError::TimedOut, Idempotent, Service),
        (CallError::PeerDied { taken: false }, Always, Service),
        (CallError::PeerDied { taken: true }, Idempotent, Service),
        (CallError::PeerCorrupt(PeerCorrupt::Kind), Idempotent, Service),
        (CallError::Full, Always, Service),
        (CallError::TooLarge { size: 2, limit: 1 }, Never, Caller),
        (CallError::Canceled, Never, Caller),
        (CallError::Invalid(""), Never, Caller),
        (CallError::AlreadyAnswered, Never, Caller),
        (CallError::Forked, Never, Caller),
        (CallError::Reentrant, Never, Caller),
        (CallError::Remote(Status::FULL), Idempotent, Service),
        (CallError::Remote(Status::TIMED_OUT), Idempotent, Service),
        (CallError::Remote(Status::NO_REPLY), Never, Service),
        (CallError::Remote(Status::NOT_FOUND), Never, Nobody),
        (CallError::Remote(Status::USER), Never, Nobody),
        (lost.into(), Always, Service),
        (NodeError::Lane("size").into(), Never, Service),
        (NodeError::TimedOut.into(), Always, Service),
        (NodeError::NoRuntime { path: "ipcd.sock".into() }.into(), Always, Service),
        (NodeError::Refused(Status::FULL).into(), Always, Service),
        (NodeError::Refused(Status::QUOTA).into(), Always, Caller),
        (NodeError::Refused(Status::ACCESS).into(), Never, Caller),
        (NodeError::Name("empty").into(), Never, Caller),
        (NodeError::Config(String::new()).into(), Never, Caller),
        (NodeError::Owned(String::new()).into(), Never, Caller),
        (NodeError::Forbidden.into(), Never, Caller),
        (NodeError::Forked.into(), Never, Caller),
        (NodeError::Closed.into(), Never, Caller),
        (NodeError::system("open")(nix::errno::Errno::EMFILE).into(), Never, Caller),
    ];
    for (error, retry, blame) in table {
        assert_eq!((Failure::retry(&error), error.blame()), (retry, blame), "{error:?}");
    }
}

/// How many attempts are made, and what time has passed then.
fn tried(
    config: &RetryConfig,
    idempotency: Idempotency,
    error: impl Fn(u32) -> Option<CallError>,
) -> (u32, Duration, bool) {
    let clock = ManualClock::new();
    let begun = clock.now();
    let count = Cell::new(0);
    let outcome = retry(config, idempotency, &clock, |attempt| {
        count.set(count.get() + 1);
        assert_eq!(attempt.number, count.get());
        error(attempt.number).map_or(Ok(()), Err)
    });
    (count.get(), clock.now() - begun, outcome.is_ok())
}

#[test]
fn only_what_may_be_repeated_is() {
    let ms = Duration::from_millis;
    for idempotency in [Idempotency::Unknown, Idempotency::Idempotent, Idempotency::Keyed] {
        let may = idempotency != Idempotency::Unknown;
        let maybe = tried(&config(), idempotency, |_| Some(CallError::TimedOut));
        assert_eq!(maybe, if may { (3, ms(3), false) } else { (1, ms(0), false) });
        let undelivered = tried(&config(), idempotency, |_| Some(CallError::Full));
        assert_eq!(undelivered, (3, ms(3), false));
        let useless = tried(&config(), idempotency, |_| Some(CallError::Remote(Status::USER)));
        assert_eq!(useless, (1, ms(0), false));
        let second = tried(&config(), idempotency, |n| (n == 1).then_some(CallError::Full));
        assert_eq!(second, (2, ms(1), true));
    }
}

#[test]
fn the_remote_delays_are_1_2_and_4_seconds() {
    let config = RetryConfig { jitter: 0.0, ..RetryConfig::remote() };
    let outcome = tried(&config, Idempotency::Keyed, |_| Some(CallError::TimedOut));
    assert_eq!(outcome, (4, Duration::from_secs(7), false));
}

#[test]
fn an_attempt_gets_no_more_than_is_left() {
    let clock = ManualClock::new();
    let config = RetryConfig { budget: Duration::from_millis(10), ..config() };
    let mut left = Vec::new();
    let outcome: Result<(), _> = retry(&config, Idempotency::Idempotent, &clock, |attempt| {
        left.push(attempt.left.as_millis());
        clock.advance(Duration::from_millis(5));
        Err(CallError::TimedOut)
    });
    assert!(matches!(outcome, Err(CallError::TimedOut)));
    assert_eq!(left, [10, 4]);
}

struct Counted(Cell<u32>);

impl RetryableOperation for Counted {
    type Output = u32;
    type Error = CallError;

    fn attempt(&self, attempt: Attempt) -> Result<u32, CallError> {
        self.0.set(attempt.number);
        if attempt.number < 3 { Err(CallError::Full) } else { Ok(attempt.number) }
    }
}

#[test]
fn an_operation_is_executed_with_retry() {
    let operation = Counted(Cell::new(0));
    let clock = ManualClock::new();
    assert_eq!(operation.execute_with_retry_by(&config(), &clock).ok(), Some(3));
    assert_eq!(operation.execute_with_retry(&config()).ok(), Some(3));
    let once = RetryConfig { max_attempts: 1, ..config() };
    assert!(operation.execute_with_retry_by(&once, &clock).is_err());
    assert_eq!(operation.0.get(), 1);
}

#[cfg(feature = "tokio")]
#[test]
fn a_task_is_retried_by_the_time_of_its_runtime() {
    let mut runtime = ::tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let config = RetryConfig { jitter: 0.0, ..RetryConfig::remote() };
        let begun = ::tokio::time::Instant::now();
        let outcome = retry_async(&config, Idempotency::Keyed, async |attempt: Attempt| {
            if attempt.number < 4 { Err(CallError::TimedOut) } else { Ok(()) }
        });
        outcome.await.expect("the fourth succeeds");
        assert_eq!(begun.elapsed().as_secs(), 7);
    });
}

proptest! {
    #[test]
    fn delays_grow_to_the_limit_and_the_budget_holds(
        attempts in 0_u32..40,
        base in 0_u64..5_000_000_000,
        longest in 0_u64..20_000_000_000,
        factor in prop_oneof![-1.0..10.0, Just(f64::NAN), Just(f64::INFINITY)],
        jitter in prop_oneof![-1.0..2.0, Just(f64::NAN)],
        budget in 0_u64..60_000_000_000,
        seed: u64,
        takes in 0_u64..1_000_000_000,
    ) {
        let config = RetryConfig {
            max_attempts: attempts,
            base_delay: Duration::from_nanos(base),
            max_delay: Duration::from_nanos(longest),
            backoff_factor: factor,
            jitter,
            budget: Duration::from_nanos(budget),
        };
        let begun = Instant::now();
        let mut now = begun;
        let mut backoff = Backoff::seeded(&config, Idempotency::Idempotent, now, seed);
        let mut before = Duration::ZERO;
        let mut count = 1;
        loop {
            now += Duration::from_nanos(takes);
            let Some(delay) = backoff.after(&CallError::TimedOut, now) else { break };
            count += 1;
            prop_assert!(delay <= config.max_delay);
            if jitter <= 0.0 {
                prop_assert!(delay >= before);
                before = delay;
            }
            now += delay;
            prop_assert!(now - begun < config.budget, "an attempt begins within the budget");
        }
        prop_assert!(count <= attempts.max(1));
    }
}
