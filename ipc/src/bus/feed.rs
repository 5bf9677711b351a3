//! What a node has of a topic that it subscribes to: the rings of its publishers, mapped once
//! however many subscriptions read them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::memory::{Page, Ring};
use crate::{
    ServiceId, clock,
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    wait::futex,
};

/// A topic that this node subscribes to.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) topic: u32,
    pub(crate) name: String,
    /// Subscriptions that read it, under the lock of the node's table.
    pub(crate) users: AtomicU32,
    /// Counts what is new; subscriptions sleep on it, too.
    pub(crate) news: AtomicU32,
    /// Whether the runtime knows that this node may sleep, and all publishers do.
    pub(crate) sleeps: AtomicBool,
    pub(crate) revoked: AtomicBool,
    /// Events that its subscriptions have lost, and when the runtime was last told how many.
    pub(crate) lost: AtomicU64,
    said_ns: AtomicU64,
    /// Whether it is to be told once more.
    unsaid: AtomicBool,
    /// Whether the rings that come were there before.
    pub(crate) joining: AtomicBool,
    rings: Mutex<Vec<Arc<Source>>>,
    seats: Mutex<Vec<Arc<Seat>>>,
}

/// The ring of one publisher.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) ring: Arc<Ring>,
    pub(crate) inode: u64,
    /// As the runtime knows it now.
    pub(crate) id: AtomicU64,
    pub(crate) publisher: ServiceId,
    pub(crate) pid: u32,
    /// The ring of the same publisher that this one follows.
    pub(crate) follows: Option<Weak<Source>>,
    /// Whether it came after the feed began: then none of its events is to be missed.
    pub(crate) is_new: bool,
    /// Whether the publisher is gone.
    pub(crate) withdrawn: AtomicBool,
}

/// A reliable subscription's place in one ring.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) source: Arc<Source>,
    /// The subscription's number.
    pub(crate) subscriber: u32,
    pub(crate) page: Arc<Page>,
    /// Whether it wants what is there already.
    pub(crate) from_oldest: bool,
    /// The position from which on the publisher waits, plus one.
    pub(crate) held: AtomicU64,
    pub(crate) cut: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Between two words to the runtime of what was lost.
const SAY_NS: u64 = 100_000_000;

impl Feed {
    /// Counts what a subscription has lost. Gives whether the runtime is to be told now.
    #[cold]
    pub(crate) fn lose(&self, count: u64) -> bool {
        self.lost.fetch_add(count, Ordering::Relaxed);
        self.unsaid.store(true, Ordering::Relaxed);
        self.is_to_say()
    }

    /// Whether the runtime is to be told how much was lost, and was not for a while.
    #[inline]
    pub(crate) fn is_to_say(&self) -> bool {
        if !self.unsaid.load(Ordering::Relaxed) {
            return false;
        }
        let (now, said) = (clock::now_ns(), self.said_ns.load(Ordering::Relaxed));
        if now.saturating_sub(said) < SAY_NS {
            return false;
        }
        self.said_ns.store(now, Ordering::Relaxed);
        self.unsaid.store(false, Ordering::Relaxed);
        true
    }

    pub(crate) fn new(topic: u32, name: String) -> Feed {
        Feed {
            topic,
            name,
            users: AtomicU32::new(0),
            news: AtomicU32::new(0),
            sleeps: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            said_ns: AtomicU64::new(0),
            unsaid: AtomicBool::new(false),
            joining: AtomicBool::new(true),
            rings: Mutex::default(),
            seats: Mutex::default(),
        }
    }

    /// Has every subscription look at what is new.
    pub(crate) fn tell(&self) {
        self.news.fetch_add(1, Ordering::SeqCst);
        futex::wake(&self.news, false, i32::MAX);
    }

    /// The rings there are now.
    pub(crate) fn sources(&self) -> Vec<Arc<Source>> {
        lock(&self.rings).clone()
    }

    /// Whether a ring is known; then it has the runtime's new number for it.
    pub(crate) fn knows(&self, inode: u64, id: u64) -> bool {
        let rings = lock(&self.rings);
        let known = rings.iter().find(|it| it.inode == inode);
        if let Some(known) = known {
            known.id.store(id, Ordering::Relaxed);
            known.withdrawn.store(false, Ordering::Release);
        }
        known.is_some()
    }

    pub(crate) fn find(&self, id: u64) -> Option<Arc<Source>> {
        let rings = lock(&self.rings);
        rings.iter().find(|it| it.id.load(Ordering::Relaxed) == id).cloned()
    }

    pub(crate) fn add(&self, source: Source) {
        {
            let mut rings = lock(&self.rings);
            // What it follows is for those who have begun to read it, and not for who comes.
            if let Some(old) = &source.follows {
                rings.retain(|it| !std::ptr::eq(Arc::as_ptr(it), old.as_ptr()));
            }
            rings.push(Arc::new(source));
        }
        self.tell();
    }

    /// The publisher of a ring is gone. Where the ring stays, it takes the place of another that
    /// did.
    pub(crate) fn withdraw(&self, id: u64, stays: bool) {
        {
            let mut rings = lock(&self.rings);
            rings.retain(|it| {
                let is_it = it.id.load(Ordering::Relaxed) == id;
                if is_it {
                    it.withdrawn.store(true, Ordering::Release);
                }
                if stays { is_it || !it.withdrawn.load(Ordering::Relaxed) } else { !is_it }
            });
        }
        self.tell();
    }

    pub(crate) fn take_seat(&self, seat: &Arc<Seat>) {
        lock(&self.seats).push(Arc::clone(seat));
    }

    pub(crate) fn leave_seat(&self, seat: &Arc<Seat>) {
        lock(&self.seats).retain(|it| !Arc::ptr_eq(it, seat));
    }

    /// The seats in a ring.
    pub(crate) fn seats_in(&self, inode: u64) -> Vec<Arc<Seat>> {
        lock(&self.seats).iter().filter(|it| it.source.inode == inode).cloned().collect()
    }

    /// The publisher says where it waits for a subscription, or that it does not any more.
    pub(crate) fn seated(&self, id: u64, subscriber: u32, held: Option<u64>) {
        for seat in lock(&self.seats).iter() {
            let source = &seat.source;
            if seat.subscriber == subscriber && source.id.load(Ordering::Relaxed) == id {
                match held {
                    Some(position) => seat.held.store(position + 1, Ordering::Release),
                    None => seat.cut.store(true, Ordering::Release),
                }
            }
        }
        self.tell();
    }
}
