//! What a loop handles beside channels: subscriptions to events, which are looked at in memory
//! while it is awake, and by the listener while it sleeps; what threads wait for on its behalf; and
//! what it is given to run.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::{Hub, InHandler, Led};
use crate::{
    error::CallError,
    server::incoming::Yield,
    sync::{AtomicBool, Ordering},
    table::Callback,
};

/// Callbacks that wait for the loop where it is given no more to run.
const MOST_DEFERRED: usize = 1 << 16;

/// Something that a loop handles beside channels.
pub(crate) trait Source: Send + Sync + std::fmt::Debug {
    /// Whether there may be something to handle, and nobody is at it.
    fn has_work(&self) -> bool;

    /// Handles what is there, as far as it is its turn. Gives how many handlers ran; none where
    /// another thread is at it.
    fn serve(&self) -> usize;

    /// Before its loop sleeps: whether nothing is there, and the loop is kicked when something
    /// comes.
    fn arm(&self) -> bool;
}

/// What a source handles with, unless another thread is at it. A handler that panicked is at it no
/// more: what comes next is handled all the same.
pub(crate) fn unless_busy<T: ?Sized>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Has the loop look again if a handler panics: whoever leads could not arm its source meanwhile.
struct KickOnPanic<'a>(&'a Hub);

impl Drop for KickOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.kick();
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Sources {
    all: Mutex<Vec<Arc<dyn Source>>>,
    /// Most loops have none.
    any: AtomicBool,
}

impl Hub {
    /// Runs something as if it were the end of a call.
    pub(crate) fn defer(&self, work: Callback) -> Result<(), CallError> {
        if self.news().completions.len() >= MOST_DEFERRED {
            return Err(CallError::Full);
        }
        self.complete(work, Ok(Vec::new()));
        Ok(())
    }

    pub(crate) fn add_source(&self, source: Arc<dyn Source>) {
        {
            let mut all = self.all_sources();
            all.push(source);
            self.sources.any.store(true, Ordering::SeqCst);
        }
        self.kick();
    }

    pub(crate) fn drop_source(&self, source: &Arc<dyn Source>) {
        let gone = {
            let mut all = self.all_sources();
            let place = all.iter().position(|it| Arc::ptr_eq(it, source));
            let gone = place.map(|place| all.swap_remove(place));
            self.sources.any.store(!all.is_empty(), Ordering::SeqCst);
            gone
        };
        // Its subscription may have to say something, which needs no lock of ours.
        drop(gone);
    }

    fn all_sources(&self) -> MutexGuard<'_, Vec<Arc<dyn Source>>> {
        self.sources.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles the events that are there. Stops when the lead was given up.
    #[inline]
    pub(super) fn serve_sources(&self, held: &mut Led<'_>) -> usize {
        if !self.sources.any.load(Ordering::Relaxed) {
            return 0;
        }
        self.serve_all_sources(held)
    }

    fn serve_all_sources(&self, held: &mut Led<'_>) -> usize {
        let mut worked = 0;
        let all = self.all_sources().clone();
        for source in all {
            if !source.has_work() {
                continue;
            }
            held.before_handler();
            let _in_handler = InHandler::enter();
            let _again = KickOnPanic(self);
            worked += source.serve();
            if held.lead.is_none() {
                // Whoever leads now could not arm it while we served it.
                self.kick();
                return worked;
            }
        }
        worked
    }

    /// Before a sleep: whether there are no events, and the listener hears those that come.
    pub(super) fn arm_sources(&self) -> bool {
        if !self.sources.any.load(Ordering::SeqCst) {
            return true;
        }
        let all = self.all_sources().clone();
        all.iter().all(|source| source.arm())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Spin, interrupt::Interrupter, sync::AtomicU32};

    #[test]
    fn what_a_loop_is_given_to_run_is_run_once_and_has_a_bound() {
        let interrupter = Arc::new(Interrupter::new().expect("a word"));
        let hub = Hub::new(Spin::Never, interrupter).expect("descriptors");
        let runs = Arc::new(AtomicU32::new(0));
        let work = || {
            let runs = Arc::clone(&runs);
            Box::new(move |_| {
                runs.fetch_add(1, Ordering::Relaxed);
            })
        };
        for _ in 0..MOST_DEFERRED {
            hub.defer(work()).expect("there is room");
        }
        assert!(matches!(hub.defer(work()), Err(CallError::Full)));
        let nobody = &mut |_: crate::Request<'_>| unreachable!("nobody sends");
        let run = hub.serve(crate::clock::now_ns(), true, nobody).expect("nobody ends it");
        assert_eq!((run, runs.load(Ordering::Relaxed) as usize), (MOST_DEFERRED, MOST_DEFERRED));
        assert_eq!(hub.serve(crate::clock::now_ns(), true, nobody).expect("nobody ends it"), 0);
    }
}
