//! Sleeping on behalf of loops and tasks: one thread waits for all rings that they read, and rings
//! their own alarms. Nobody who blocks in `recv` needs it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::feed::{Feed, Source};
use crate::{
    sync::{AtomicBool, AtomicU32, Ordering},
    wait::futex,
};

/// Words of a wait: what one call of `futex_waitv` takes.
pub(super) const WORDS: usize = 128;
/// How long at most where not all of it can be waited for.
const TICK: Duration = Duration::from_millis(5);
/// Of its stack, in bytes.
const STACK: usize = 64 * 1024;

/// Who is told that there is something, once.
pub(crate) trait Alarm: Send + Sync + std::fmt::Debug {
    /// Called by the listener's thread. Must not wait.
    fn ring(&self);
}

/// What an alarm is set for: it rings when any of these has moved on.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) alarm: Arc<dyn Alarm>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) news: u32,
    pub(crate) rings: Vec<(Arc<Source>, u32)>,
    /// Whether all publishers know that they have to wake us.
    pub(crate) sure: bool,
}

impl Watch {
    fn is_due(&self) -> bool {
        self.feed.news.load(Ordering::SeqCst) != self.news
            || self
                .rings
                .iter()
                .any(|(source, event)| source.ring.header().event.load(Ordering::Acquire) != *event)
            || !self.sure
    }
}

/// The thread, and what it waits for.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    watches: Mutex<Watches>,
    /// Counts changes of `watches`; the thread sleeps on it.
    changes: AtomicU32,
    over: AtomicBool,
}

#[derive(Debug, Default)]
struct Watches {
    all: Vec<Watch>,
    has_thread: bool,
}

impl Listener {
    /// Sets an alarm, in place of what it was set for. False where there is no thread to be had.
    pub(crate) fn set(self: &Arc<Listener>, watch: Watch) -> bool {
        {
            let mut watches = self.watches();
            if !watches.has_thread {
                let listener = Arc::clone(self);
                let thread = std::thread::Builder::new()
                    .name("ipc-events".into())
                    .stack_size(STACK)
                    .spawn(move || listener.run());
                if thread.is_err() {
                    return false;
                }
                watches.has_thread = true;
            }
            watches.all.retain(|it| !Arc::ptr_eq(&it.alarm, &watch.alarm));
            watches.all.push(watch);
        }
        self.change();
        true
    }

    /// Takes an alarm back.
    pub(crate) fn unset(&self, alarm: &Arc<dyn Alarm>) {
        self.watches().all.retain(|it| !Arc::ptr_eq(&it.alarm, alarm));
    }

    /// Ends the thread.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.watches().all.clear();
        self.change();
    }

    fn change(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        futex::wake(&self.changes, false, i32::MAX);
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while !self.over.load(Ordering::SeqCst) {
            let changes = self.changes.load(Ordering::SeqCst);
            let mut due = Vec::new();
            // What is slept on lives as long as the sleep.
            let mut feeds: HashMap<*const Feed, (Arc<Feed>, u32)> = HashMap::new();
            let mut rings: HashMap<u64, (Arc<Source>, u32)> = HashMap::new();
            let mut sure = true;
            {
                let mut watches = self.watches();
                watches.all.retain(|watch| {
                    let is_due = watch.is_due();
                    if is_due {
                        due.push((Arc::clone(&watch.alarm), watch.sure));
                        return false;
                    }
                    let feed = Arc::as_ptr(&watch.feed);
                    feeds.entry(feed).or_insert_with(|| (Arc::clone(&watch.feed), watch.news));
                    for (source, event) in &watch.rings {
                        rings.entry(source.inode).or_insert_with(|| (Arc::clone(source), *event));
                    }
                    true
                });
            }
            // Whose publishers may not know of it is rung every now and then instead.
            if due.iter().any(|(_, sure)| !sure) {
                std::thread::sleep(TICK);
            }
            let rang = !due.is_empty();
            for (alarm, _) in due {
                alarm.ring();
            }
            if rang {
                continue;
            }
            let mut words = vec![futex::Word { at: &self.changes, value: changes, shared: false }];
            let own = feeds.values().map(|(feed, news)| (&feed.news, *news, false));
            let others = rings.values().map(|(it, event)| (&it.ring.header().event, *event, true));
            for (at, value, shared) in own.chain(others) {
                if words.len() == WORDS {
                    sure = false;
                    break;
                }
                words.push(futex::Word { at, value, shared });
            }
            futex::wait_many(&words, (!sure).then_some(TICK));
        }
    }
}
