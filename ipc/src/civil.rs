//! What makes calls civil: trying again, holding back, sending together, sending less.
//!
//! Each part stands alone and none is on the way of a plain call:
//!
//! | part | for |
//! |---|---|
//! | [`RetryConfig`], [`RetryableOperation`] | trying again, when that is safe and can help |
//! | [`CircuitBreaker`] | not calling a service that fails |
//! | [`MessageBatcher`] | sending many small messages together |
//! | `CompressedTransport` (feature `compress`) | large messages that compress well |
//! | [`MessagePool`] | messages that are used again instead of allocated anew |
//! | [`ConnectionPool`] | connections that are used again, as many as there may be |
//! | [`CallOptions::within`](crate::CallOptions::within) | the deadline of a request, handed on |
//! | [`RateLimit`], [`RouteLimits`] | at most so many calls in a time, per route |
//!
//! Time comes from a [`Clock`]. The usual one is [`SystemClock`]; with a [`ManualClock`] a test
//! moves the time itself, and nothing of this module ever really waits.

mod batch;
mod breaker;
mod clock;
#[cfg(feature = "compress")]
mod compress;
mod connections;
mod deadline;
mod limit;
mod pool;
mod retry;

pub use batch::MessageBatcher;
pub use breaker::{BreakerError, CircuitBreaker, CircuitOpen, CircuitState, Permit};
pub use clock::{Clock, ManualClock, SystemClock};
#[cfg(feature = "compress")]
pub use compress::{CompressError, CompressedTransport, CompressionAlgorithm};
pub use connections::{Channel, Channels, ConnectionPool, Connector, Lent, PoolError, PoolSizes};
pub use deadline::Deadline;
pub use limit::{Limited, RateLimit, RouteLimits};
pub use pool::{MessagePool, Pooled, Reset};
#[cfg(feature = "tokio")]
pub use retry::retry_async;
pub use retry::{
    Attempt, Backoff, Blame, Failure, Idempotency, RetryConfig, RetryableOperation, retry,
};
