//! The thread that sends: batches of what has ended, one after another.

use std::{
    borrow::Cow,
    io,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::signal::{SigSet, SigmaskHow};

use super::{
    Collector, Counts, Ended, message,
    post::{Posted, post},
};

/// Spans of one request.
const BATCH: usize = 256;
/// How long the first span of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long a collector has for a batch, and for the last ones.
const PATIENCE: Duration = Duration::from_secs(3);
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// Attempts to send a batch, and the first wait between them; each is twice the one before.
const ATTEMPTS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The thread, and what ends it.
#[derive(Debug)]
pub(super) struct Sender {
    /// Closed, to say that it is over.
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// Starts it. The signals of the process are for others.
    pub(super) fn start(batches: Batches, ended: Receiver<Ended>) -> io::Result<Sender> {
        let (stop, stopped) = sync_channel(0);
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let thread = Builder::new().name("ipc-otlp".to_owned());
        let thread = thread.spawn(move || batches.run(&ended, &stopped));
        before.thread_set_mask()?;
        Ok(Sender { stop: Some(stop), thread: Some(thread?) })
    }
}

impl Sender {
    /// Waits until what had ended is sent, or dropped. Without this it happens by itself.
    pub(super) fn finish(mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What is sent, where to, as whose.
#[derive(Debug)]
pub(super) struct Batches {
    collector: Collector,
    service: Cow<'static, str>,
    counts: Arc<Counts>,
}

impl Batches {
    pub(super) fn new(
        collector: Collector,
        service: Cow<'static, str>,
        counts: Arc<Counts>,
    ) -> Batches {
        Batches { collector, service, counts }
    }

    /// Sends until nobody can end a span any more.
    fn run(self, ended: &Receiver<Ended>, stopped: &Receiver<()>) {
        while let Ok(first) = ended.recv() {
            let (mut batch, until) = (vec![first], Instant::now() + GATHER);
            while batch.len() < BATCH {
                match ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(span) => batch.push(span),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
            let count = batch.len() as u64;
            let body = message::request(&self.service, batch);
            let answer = self.send(&body, stopped);
            let refused = answer.map_or(count, |refused| refused.min(count));
            self.counts.sent.fetch_add(count - refused, Ordering::Relaxed);
            self.counts.dropped.fetch_add(refused, Ordering::Relaxed);
            if answer.is_none() && is_over(stopped, Duration::ZERO) {
                // Nobody waits longer for a collector that is not there.
                let rest = ended.try_iter().count() as u64;
                self.counts.dropped.fetch_add(rest, Ordering::Relaxed);
            }
        }
    }

    /// Sends a batch; tells how many spans of it were refused, or nothing where all were dropped.
    fn send(&self, body: &[u8], stopped: &Receiver<()>) -> Option<u64> {
        let mut wait = FIRST_WAIT;
        for attempt in 1..=ATTEMPTS {
            let is_over = is_over(stopped, Duration::ZERO);
            let patience = if is_over { LAST_PATIENCE } else { PATIENCE };
            match post(&self.collector, body, patience) {
                Posted::Taken(answer) => return Some(message::refused(&answer)),
                Posted::Refused(_) => return None,
                Posted::Later if is_over || attempt == ATTEMPTS => return None,
                // What ends meanwhile waits in the queue, as far as that has room.
                Posted::Later => is_over_within(stopped, &mut wait),
            }
        }
        None
    }
}

fn is_over(stopped: &Receiver<()>, within: Duration) -> bool {
    stopped.recv_timeout(within) == Err(RecvTimeoutError::Disconnected)
}

/// Waits before the next attempt, unless it is over.
fn is_over_within(stopped: &Receiver<()>, wait: &mut Duration) {
    is_over(stopped, *wait);
    *wait *= 2;
}
