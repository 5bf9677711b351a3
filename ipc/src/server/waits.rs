//! What is waited for by a thread of its own and handled in a server's loop: versions of regions,
//! and messages of queues. So the loop's descriptor is readable for these, too.
//!
//! ```text
//!   ipc-wait thread ── waits ──▶ slot for one ── kick ──▶ loop: handler
//!          ▲                        │
//!          └────── taken ◀──────────┘
//! ```

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use super::{Hub, Server, Source, unless_busy};
use crate::{
    Region, RegionError,
    error::{CallError, NodeError},
    queue::{Delivery, QueueConsumer, QueueError},
    sync::{AtomicU32, Ordering},
    wait::futex,
};

/// Of such a thread's stack, in bytes: a request to a queue is made on it.
const STACK: usize = 256 * 1024;

/// After an interruption, of which there may be more at once.
const PAUSE: Duration = Duration::from_millis(10);

/// Has something handled by a loop as long as this is kept; another thread may still be in its
/// handler when it is dropped.
#[derive(Debug)]
pub struct WaitHandler {
    source: Arc<dyn Stop>,
    hub: Weak<Hub>,
}

impl Drop for WaitHandler {
    fn drop(&mut self) {
        Arc::clone(&self.source).stop();
        if let Some(hub) = self.hub.upgrade() {
            hub.drop_source(&Arc::clone(&self.source).into_source());
        }
    }
}

trait Stop: Send + Sync + std::fmt::Debug {
    fn stop(&self);
    fn into_source(self: Arc<Self>) -> Arc<dyn Source>;
}

/// What its thread does: waits for the next, or says that there is none any more. It looks at the
/// word meanwhile, which is not 0 when it is to end.
type Wait<T> = Box<dyn FnMut(&AtomicU32) -> Next<T> + Send>;

enum Next<T> {
    /// To be handled.
    Some(T),
    /// To be handled, and the last.
    Last(T),
    /// It was woken for nothing.
    Nothing,
}

struct Waited<T> {
    hub: Weak<Hub>,
    slot: Mutex<Option<T>>,
    handler: Mutex<Box<dyn FnMut(T) + Send>>,
    /// Counts what was taken out of the slot; its thread sleeps on it while that is full.
    taken: AtomicU32,
    over: AtomicU32,
}

impl<T> std::fmt::Debug for Waited<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waited")
    }
}

impl<T: Send + 'static> Stop for Waited<T> {
    fn stop(&self) {
        self.over.store(1, Ordering::SeqCst);
        futex::wake(&self.over, false, i32::MAX);
        self.taken.fetch_add(1, Ordering::SeqCst);
        futex::wake(&self.taken, false, i32::MAX);
    }

    fn into_source(self: Arc<Self>) -> Arc<dyn Source> {
        self
    }
}

impl<T: Send + 'static> Source for Waited<T> {
    fn has_work(&self) -> bool {
        !self.is_over() && self.slot().is_some() && unless_busy(&self.handler).is_some()
    }

    fn serve(&self) -> usize {
        let Some(mut handler) = unless_busy(&self.handler) else { return 0 };
        if self.is_over() {
            return 0;
        }
        let Some(value) = self.slot().take() else { return 0 };
        self.taken.fetch_add(1, Ordering::SeqCst);
        futex::wake(&self.taken, false, i32::MAX);
        handler(value);
        1
    }

    fn arm(&self) -> bool {
        // Its thread kicks the loop; who is in the handler does so behind it.
        self.is_over() || self.slot().is_none() || unless_busy(&self.handler).is_none()
    }
}

impl<T: Send + 'static> Waited<T> {
    fn slot(&self) -> MutexGuard<'_, Option<T>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst) != 0
    }

    /// Waits on behalf of the loop.
    fn run(&self, mut wait: Wait<T>) {
        while !self.is_over() {
            let (value, is_last) = match wait(&self.over) {
                Next::Nothing => continue,
                Next::Some(value) => (value, false),
                Next::Last(value) => (value, true),
            };
            let taken = self.taken.load(Ordering::SeqCst);
            *self.slot() = Some(value);
            match self.hub.upgrade() {
                Some(hub) => hub.kick(),
                None => return,
            }
            if is_last {
                return;
            }
            while !self.is_over() && self.slot().is_some() {
                let word = futex::Word { at: &self.taken, value: taken, shared: false };
                futex::wait(word, None);
            }
        }
    }
}

impl Server {
    fn handle_waits<T: Send + 'static>(
        &self,
        handler: impl FnMut(T) + Send + 'static,
        wait: Wait<T>,
    ) -> Result<WaitHandler, NodeError> {
        let hub = self.hub();
        let waited = Arc::new(Waited {
            hub: Arc::downgrade(hub),
            slot: Mutex::new(None),
            handler: Mutex::new(Box::new(handler)),
            taken: AtomicU32::new(0),
            over: AtomicU32::new(0),
        });
        let waiting = Arc::clone(&waited);
        std::thread::Builder::new()
            .name("ipc-wait".into())
            .stack_size(STACK)
            .spawn(move || waiting.run(wait))
            .map_err(|source| NodeError::System { what: "start a thread", source })?;
        hub.add_source(Arc::<Waited<T>>::clone(&waited));
        Ok(WaitHandler { source: waited, hub: Arc::downgrade(hub) })
    }

    /// Has this server's loop hand each new version of a region to `handler`, as long as the
    /// returned value is kept: beginning with the one that is there, if it is another than `seen`.
    /// Versions that come while one is handled are one. They make [`fd`](Server::fd) readable, too.
    /// A thread waits for them.
    ///
    /// After an error nothing more comes.
    ///
    /// # Errors
    /// [`NodeError::System`] when there is no thread to be had.
    pub fn handle_versions(
        &self,
        region: &Region,
        seen: u64,
        handler: impl FnMut(Result<u64, RegionError>) + Send + 'static,
    ) -> Result<WaitHandler, NodeError> {
        let (region, mut seen) = (region.clone(), seen);
        let wait = move |over: &AtomicU32| match region.wait_or(seen, None, Some(over)) {
            Ok(version) => {
                seen = version;
                Next::Some(Ok(version))
            }
            // Who interrupts blocked calls, or ends this, ends no watch.
            Err(RegionError::Canceled) => Next::Nothing,
            Err(error) => Next::Last(Err(error)),
        };
        self.handle_waits(handler, Box::new(wait))
    }

    /// Has this server's loop hand the messages of a queue to `handler`, one after another, as
    /// long as the returned value is kept. They make [`fd`](Server::fd) readable, too. A thread
    /// waits for them, also while `ipc-queue` is restarted. Each is the consumer's for its lease:
    /// the handler, or who it tells, acknowledges it. One that has come and is not handled yet
    /// when the returned value is dropped is given to others when its lease ends, or the consumer.
    ///
    /// After an error nothing more comes.
    ///
    /// # Errors
    /// [`NodeError::System`] when there is no thread to be had.
    pub fn handle_deliveries(
        &self,
        consumer: &Arc<QueueConsumer>,
        handler: impl FnMut(Result<Delivery, QueueError>) + Send + 'static,
    ) -> Result<WaitHandler, NodeError> {
        let consumer = Arc::downgrade(consumer);
        let wait = move |over: &AtomicU32| {
            let Some(consumer) = consumer.upgrade() else {
                return Next::Last(Err(QueueError::Lost));
            };
            match consumer.receive_unless(over) {
                Ok(Some(delivery)) => Next::Some(Ok(delivery)),
                // Who interrupts blocked calls ends no watch.
                Ok(None) | Err(QueueError::Call(CallError::Canceled)) => Next::Nothing,
                Err(QueueError::Call(CallError::Node(error)))
                    if matches!(*error, NodeError::Closed) =>
                {
                    std::thread::sleep(PAUSE);
                    Next::Nothing
                }
                Err(error) => Next::Last(Err(error)),
            }
        };
        self.handle_waits(handler, Box::new(wait))
    }
}
