//! Sending messages together: as many as there are, but none later than its interval.

use std::time::{Duration, Instant};

use super::{Clock, SystemClock};

/// Gathers messages, and gives them out together: when there are `batch_size` of them, or when the
/// first has waited for `flush_interval`. It never holds more than a batch.
///
/// What sends them is the caller's: [`Client::burst`](crate::Client::burst) sends many with one
/// claim on the channel.
///
/// ```no_run
/// use ipc::{CallError, Client, civil::MessageBatcher};
/// use std::time::Duration;
///
/// # fn of(client: &Client, messages: impl Iterator<Item = Vec<u8>>) -> Result<(), CallError> {
/// let send = |batch: Vec<Vec<u8>>| {
///     client.burst(|burst| batch.iter().try_for_each(|message| burst.send(message)))
/// };
/// let mut batcher = MessageBatcher::new(64, Duration::from_millis(1));
/// for message in messages {
///     if let Some(batch) = batcher.add(message).or_else(|| batcher.flush_if_due()) {
///         send(batch)?;
///     }
/// }
/// send(batcher.flush())
/// # }
/// ```
#[derive(Debug)]
pub struct MessageBatcher<M, C = SystemClock> {
    pending: Vec<M>,
    batch_size: usize,
    flush_interval: Duration,
    /// When the first of `pending` was added.
    since: Instant,
    clock: C,
}

impl<M> MessageBatcher<M> {
    /// Gathers up to `batch_size` messages (0 is as 1), for up to `flush_interval`.
    pub fn new(batch_size: usize, flush_interval: Duration) -> MessageBatcher<M> {
        MessageBatcher::with_clock(batch_size, flush_interval, SystemClock)
    }
}

impl<M, C: Clock> MessageBatcher<M, C> {
    /// As [`new`](MessageBatcher::new), by another clock.
    pub fn with_clock(
        batch_size: usize,
        flush_interval: Duration,
        clock: C,
    ) -> MessageBatcher<M, C> {
        let since = clock.now();
        let batch_size = batch_size.max(1);
        MessageBatcher { pending: Vec::new(), batch_size, flush_interval, since, clock }
    }

    /// Adds a message; gives the batch that it has filled.
    #[must_use = "a batch that is full is to be sent"]
    pub fn add(&mut self, message: M) -> Option<Vec<M>> {
        if self.pending.is_empty() {
            self.since = self.clock.now();
        }
        self.pending.push(message);
        (self.pending.len() >= self.batch_size).then(|| self.flush())
    }

    /// Says how long the batch may still wait: how long a loop may sleep. Nothing when it is empty.
    pub fn due_in(&self) -> Option<Duration> {
        let waited = self.clock.now().saturating_duration_since(self.since);
        (!self.pending.is_empty()).then(|| self.flush_interval.saturating_sub(waited))
    }

    /// Gives the batch, if the first of it has waited long enough.
    #[must_use = "a batch that is due is to be sent"]
    pub fn flush_if_due(&mut self) -> Option<Vec<M>> {
        self.due_in().is_some_and(|left| left.is_zero()).then(|| self.flush())
    }

    /// Gives what there is; it may be nothing.
    #[must_use = "what it held is to be sent"]
    pub fn flush(&mut self) -> Vec<M> {
        std::mem::take(&mut self.pending)
    }

    /// Counts the messages that wait.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Tells whether none waits.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::civil::ManualClock;

    #[test]
    fn it_flushes_at_its_size_and_at_its_interval() {
        let clock = ManualClock::new();
        let interval = Duration::from_millis(5);
        let mut batcher = MessageBatcher::with_clock(3, interval, clock.clone());
        assert_eq!(batcher.due_in(), None);
        assert_eq!((batcher.add(1), batcher.add(2)), (None, None));
        assert_eq!(batcher.add(3), Some(vec![1, 2, 3]));
        clock.advance(interval);
        assert_eq!(batcher.flush_if_due(), None, "there is nothing");
        assert_eq!(batcher.add(4), None);
        clock.advance(Duration::from_millis(4));
        assert_eq!(batcher.add(5), None);
        assert_eq!(batcher.due_in(), Some(Duration::from_millis(1)), "since the first");
        assert_eq!(batcher.flush_if_due(), None);
        clock.advance(Duration::from_millis(1));
        assert_eq!(batcher.flush_if_due(), Some(vec![4, 5]));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_reordered_or_late(
            size in 0_usize..9,
            steps in prop::collection::vec(0_u64..8, 0..200),
        ) {
            let clock = ManualClock::new();
            let interval = Duration::from_millis(10);
            let mut batcher = MessageBatcher::with_clock(size, interval, clock.clone());
            let mut sent = Vec::new();
            let mut send = |batch: Vec<(usize, Instant)>, now: Instant| {
                assert!(batch.len() <= size.max(1));
                // Looked at every 7 ms at least.
                let late = interval + Duration::from_millis(7);
                assert!(batch.iter().all(|(_, added)| now - *added < late));
                sent.extend(batch.into_iter().map(|(number, _)| number));
            };
            for (number, step) in steps.iter().enumerate() {
                clock.advance(Duration::from_millis(*step));
                for batch in [batcher.flush_if_due(), batcher.add((number, clock.now()))] {
                    send(batch.unwrap_or_default(), clock.now());
                }
            }
            send(batcher.flush(), clock.now());
            prop_assert_eq!(sent, (0..steps.len()).collect::<Vec<_>>());
        }
    }
}
