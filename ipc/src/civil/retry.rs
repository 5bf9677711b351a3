//! Trying again: which failures it can help with, which requests may be repeated, and when.

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

use super::{Clock, SystemClock};
use crate::error::{CallError, NodeError, Retry, Status};

/// What it means to carry out a request twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Idempotency {
    /// It may act twice. Such a request is sent again only if it was certainly not delivered.
    #[default]
    Unknown,
    /// The same as once.
    Idempotent,
    /// The request carries a key by which the service knows it again, and acts once.
    Keyed,
}

/// Who a failure speaks against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The service, or the way to it.
    Service,
    /// Nobody: the service answered, if only with an error of its own.
    Nobody,
    /// The caller. Nothing is known of the service.
    Caller,
}

/// A failure that says whether to try again, and who is to blame.
pub trait Failure {
    /// Says whether sending the same request again can help, and is safe.
    fn retry(&self) -> Retry;

    /// Says who is to blame, for a [`CircuitBreaker`](super::CircuitBreaker).
    fn blame(&self) -> Blame;
}

impl Failure for CallError {
    fn retry(&self) -> Retry {
        CallError::retry(self)
    }

    fn blame(&self) -> Blame {
        match self {
            CallError::TimedOut
            | CallError::PeerDied { .. }
            | CallError::PeerCorrupt(_)
            | CallError::Full => Blame::Service,
            CallError::Node(error) => blame_of_way(error),
            CallError::Remote(status) => status.blame(),
            CallError::TooLarge { .. }
            | CallError::Canceled
            | CallError::Invalid(_)
            | CallError::AlreadyAnswered
            | CallError::Forked
            | CallError::Reentrant => Blame::Caller,
        }
    }
}

/// Who is to blame when there was no way to the service.
fn blame_of_way(error: &NodeError) -> Blame {
    match error {
        NodeError::NoRuntime { .. }
        | NodeError::TimedOut
        | NodeError::Version { .. }
        | NodeError::Introduced(_)
        | NodeError::Lane(_)
        | NodeError::Malformed(_) => Blame::Service,
        NodeError::Refused(status) => match *status {
            Status::INVALID | Status::ACCESS | Status::AUTH | Status::QUOTA | Status::EXISTS => {
                Blame::Caller
            }
            _ => Blame::Service,
        },
        // What it asked for, may do, or has left of its own.
        NodeError::Name(_)
        | NodeError::Address(_)
        | NodeError::Config(_)
        | NodeError::Directory { .. }
        | NodeError::Owned(_)
        | NodeError::Forbidden
        | NodeError::Forked
        | NodeError::Closed
        | NodeError::System { .. } => Blame::Caller,
    }
}

/// As the answer of a service.
impl Failure for Status {
    fn retry(&self) -> Retry {
        // It was delivered, whatever it came to.
        Status::retry(*self).min(Retry::Idempotent)
    }

    fn blame(&self) -> Blame {
        // Its handler ended without an answer, by a panic or otherwise.
        let unwell = *self == Status::NO_REPLY || *self == Status::PANIC;
        if unwell || Status::retry(*self) != Retry::Never { Blame::Service } else { Blame::Nobody }
    }
}

/// How often, how long and how soon to try.
///
/// The delays are `base_delay`, then `backoff_factor` times the one before, up to `max_delay`;
/// of each, a random part of up to `jitter` is taken off, so that callers that failed together
/// do not come back together. `budget` bounds it all: no attempt begins after it, and none is
/// given longer than what is left of it.
///
/// ```
/// use ipc::{CallError, civil::{Idempotency, ManualClock, RetryConfig, retry}};
///
/// let mut failures = vec![CallError::Full, CallError::TimedOut];
/// let answer = retry(&RetryConfig::default(), Idempotency::Idempotent, &ManualClock::new(), |_| {
///     failures.pop().map_or(Ok("answer"), Err)
/// });
/// assert!(matches!(answer, Ok("answer")));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryConfig {
    /// The first attempt counts; 0 is as 1.
    pub max_attempts: u32,
    /// Before the second attempt.
    pub base_delay: Duration,
    /// The longest delay.
    pub max_delay: Duration,
    /// From delay to delay; less than 1 is as 1.
    pub backoff_factor: f64,
    /// The part of a delay that is left to chance: 0 for none of it, 1 for all.
    pub jitter: f64,
    /// For all attempts and delays together.
    pub budget: Duration,
}

impl Default for RetryConfig {
    /// For calls within a machine: 3 attempts, delays from 1 ms, doubled, half of them by chance;
    /// 30 s in all.
    fn default() -> RetryConfig {
        RetryConfig {
            max_attempts: 3,
            base_delay: Duration::from_millis(1),
            max_delay: Duration::from_secs(1),
            backoff_factor: 2.0,
            jitter: 0.5,
            budget: Duration::from_secs(30),
        }
    }
}

impl RetryConfig {
    /// For who is far away: up to 3 repetitions after 1 s, 2 s and 4 s, without the part of chance;
    /// 30 s in all.
    pub fn remote() -> RetryConfig {
        RetryConfig {
            max_attempts: 4,
            base_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(4),
            ..RetryConfig::default()
        }
    }

    /// Gives the delay after attempt number `attempt` (from 1), of which `chance` (0 to 1) says
    /// how much of the jitter is taken off.
    fn delay(&self, attempt: u32, chance: f64) -> Duration {
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let growth = self.backoff_factor.max(1.0).powi(exponent);
        let longest = self.max_delay.as_secs_f64();
        let whole = (self.base_delay.as_secs_f64() * growth).min(longest);
        // No base delay, grown without end, is no number.
        let whole = if whole.is_nan() { 0.0 } else { whole };
        let part = whole * (1.0 - self.jitter.clamp(0.0, 1.0) * chance);
        Duration::try_from_secs_f64(part).unwrap_or(self.max_delay).min(self.max_delay)
    }
}

/// One of several tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u32,
    /// What is left of the budget: the longest time to give it.
    pub left: Duration,
}

/// Decides, after each failure, whether and when to try again: [`retry`] without its loop, for
/// loops of other kinds.
///
/// ```
/// use ipc::{CallError, civil::{Backoff, Idempotency, RetryConfig}};
/// use std::time::{Duration, Instant};
///
/// let mut now = Instant::now();
/// let config = RetryConfig { jitter: 0.0, ..RetryConfig::default() };
/// let mut backoff = Backoff::begin(&config, Idempotency::Unknown, now);
/// assert_eq!(backoff.after(&CallError::Full, now), Some(Duration::from_millis(1)));
/// now += Duration::from_millis(1);
/// // This one may have been carried out, and must not be twice.
/// assert_eq!(backoff.after(&CallError::TimedOut, now), None);
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    config: RetryConfig,
    idempotency: Idempotency,
    begun: Instant,
    attempt: u32,
    random: u64,
}

impl Backoff {
    /// Begins with the first attempt, now.
    pub fn begin(config: &RetryConfig, idempotency: Idempotency, now: Instant) -> Backoff {
        Backoff::seeded(config, idempotency, now, RandomState::new().hash_one(0))
    }

    /// As [`begin`](Backoff::begin), with chance that is known beforehand.
    pub fn seeded(
        config: &RetryConfig,
        idempotency: Idempotency,
        now: Instant,
        seed: u64,
    ) -> Backoff {
        Backoff { config: *config, idempotency, begun: now, attempt: 1, random: seed }
    }

    /// Describes the attempt that begins now.
    pub fn attempt(&self, now: Instant) -> Attempt {
        let passed = now.saturating_duration_since(self.begun);
        Attempt { number: self.attempt, left: self.config.budget.saturating_sub(passed) }
    }

    /// Says how long to wait before trying again, after an attempt has failed so; nothing when it
    /// was the last.
    pub fn after(&mut self, failure: &impl Failure, now: Instant) -> Option<Duration> {
        let allowed = match failure.retry() {
            Retry::Never => false,
            Retry::Idempotent => self.idempotency != Idempotency::Unknown,
            Retry::Always => true,
        };
        if !allowed || self.attempt >= self.config.max_attempts {
            return None;
        }
        let chance = self.chance();
        let delay = self.config.delay(self.attempt, chance);
        if delay >= self.attempt(now).left {
            return None;
        }
        self.attempt += 1;
        Some(delay)
    }

    /// A number from 0 to 1, by splitmix64 (Steele, Lea, Flood 2014).
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Tries until it succeeds, or until trying again is unsafe, useless or too late.
///
/// # Errors
/// That of the last attempt.
pub fn retry<T, E: Failure>(
    config: &RetryConfig,
    idempotency: Idempotency,
    clock: &impl Clock,
    mut operation: impl FnMut(Attempt) -> Result<T, E>,
) -> Result<T, E> {
    let mut backoff = Backoff::begin(config, idempotency, clock.now());
    loop {
        let failure = match operation(backoff.attempt(clock.now())) {
            Ok(output) => return Ok(output),
            Err(failure) => failure,
        };
        match backoff.after(&failure, clock.now()) {
            Some(delay) => clock.sleep(delay),
            None => return Err(failure),
        }
    }
}

/// As [`retry`], in a task of a tokio runtime, by its time.
///
/// # Errors
/// That of the last attempt.
///
/// # Panics
/// Outside of a runtime, or where its time is not enabled.
#[cfg(feature = "tokio")]
pub async fn retry_async<T, E: Failure, F: Future<Output = Result<T, E>>>(
    config: &RetryConfig,
    idempotency: Idempotency,
    mut operation: impl FnMut(Attempt) -> F,
) -> Result<T, E> {
    let now = || ::tokio::time::Instant::now().into_std();
    let mut backoff = Backoff::begin(config, idempotency, now());
    loop {
        let failure = match operation(backoff.attempt(now())).await {
            Ok(output) => return Ok(output),
            Err(failure) => failure,
        };
        match backoff.after(&failure, now()) {
            Some(delay) => ::tokio::time::sleep(delay).await,
            None => return Err(failure),
        }
    }
}

/// Something that can be tried again as a whole.
///
/// ```no_run
/// use ipc::{CallError, Client, civil::{Attempt, Idempotency, RetryConfig, RetryableOperation}};
///
/// struct Lookup<'a> {
///     directory: &'a Client,
///     key: &'a [u8],
/// }
///
/// impl RetryableOperation for Lookup<'_> {
///     type Output = Vec<u8>;
///     type Error = CallError;
///
///     fn idempotency(&self) -> Idempotency {
///         Idempotency::Idempotent
///     }
///
///     fn attempt(&self, attempt: Attempt) -> Result<Vec<u8>, CallError> {
///         self.directory.call(self.key, attempt.left)
///     }
/// }
///
/// # fn of(directory: &Client) -> Result<Vec<u8>, CallError> {
/// Lookup { directory, key: b"key" }.execute_with_retry(&RetryConfig::default())
/// # }
/// ```
pub trait RetryableOperation {
    /// What it gives.
    type Output;
    /// How it fails.
    type Error: Failure;

    /// Says whether it may be carried out twice; not, unless it says so.
    fn idempotency(&self) -> Idempotency {
        Idempotency::Unknown
    }

    /// Tries once.
    ///
    /// # Errors
    /// Its own.
    fn attempt(&self, attempt: Attempt) -> Result<Self::Output, Self::Error>;

    /// Tries until it succeeds, or until trying again is unsafe, useless or too late.
    ///
    /// # Errors
    /// That of the last attempt.
    fn execute_with_retry(&self, config: &RetryConfig) -> Result<Self::Output, Self::Error> {
        self.execute_with_retry_by(config, &SystemClock)
    }

    /// As [`execute_with_retry`](RetryableOperation::execute_with_retry), by another clock.
    ///
    /// # Errors
    /// That of the last attempt.
    fn execute_with_retry_by(
        &self,
        config: &RetryConfig,
        clock: &impl Clock,
    ) -> Result<Self::Output, Self::Error> {
        retry(config, self.idempotency(), clock, |attempt| self.attempt(attempt))
    }
}

#[cfg(test)]
mod tests;
