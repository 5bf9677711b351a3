//! Publishing: one write for each event, whoever listens.

use std::{
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    doorbell,
    error::PublishError,
    memory::{Page, Ring},
    writer::{Plan, Writer},
};
use crate::{
    claim::{Claim, Claimed},
    clock,
    control::closer::Stranger,
    error::NodeError,
    node::{BusWord, Shared},
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, pause},
    wait::Fences,
};

/// How long a publisher waits for reliable subscribers that are a whole ring behind.
const PATIENCE_NS: u64 = 100_000_000;
/// Looks at their cursors before the thread gives its core away.
const LOOKS: u32 = 200;
/// Between looks from then on.
const PAUSE: Duration = Duration::from_micros(20);

/// Publishes events of one topic. Clones share its ring; the last to go takes it back, and what
/// was published can be read to its end.
///
/// Any number of threads may publish: their events are in one order. A publish makes no system
/// call unless some subscriber may sleep, and waits for nobody but reliable subscribers.
#[derive(Clone, Debug)]
pub struct Publisher {
    owner: Arc<Owner>,
}

#[derive(Debug)]
struct Owner {
    outlet: Arc<Outlet>,
    node: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.node.birth.is_here() {
            self.outlet.close();
            self.node.core.retire_outlet(&self.outlet);
        } else {
            // A forked child has no such memory, and must not take it back.
            std::mem::forget(Arc::clone(&self.outlet));
        }
    }
}

impl Publisher {
    pub(crate) fn new(outlet: Arc<Outlet>, node: Arc<Shared>) -> Publisher {
        Publisher { owner: Arc::new(Owner { outlet, node }) }
    }

    /// Publishes one event, and wakes who sleeps.
    ///
    /// Takes the same time however many subscribe, but for the kernel's to wake those that sleep.
    /// Waits, for at most 100 ms, only while a reliable subscriber is a whole ring behind; whoever
    /// still is after that is cut off.
    ///
    /// # Errors
    /// [`PublishError`]; nothing was published.
    pub fn publish(&self, payload: &[u8]) -> Result<(), PublishError> {
        self.batch(|batch| batch.publish(payload))
    }

    /// Publishes several events, and wakes who sleeps once, at the end. What was published by then
    /// can be seen at once. No other thread publishes in between, unless this one has to wait.
    ///
    /// # Errors
    /// What `publish` returns; [`PublishError::Forked`].
    pub fn batch<T>(
        &self,
        publish: impl FnOnce(&mut Batch<'_>) -> Result<T, PublishError>,
    ) -> Result<T, PublishError> {
        let Owner { outlet, node } = &*self.owner;
        if !node.birth.is_here() {
            return Err(PublishError::Forked);
        }
        let mut batch = Batch { pen: outlet.pen.claim(), outlet, node, published: false };
        let result = publish(&mut batch);
        if batch.published && doorbell::is_due(outlet.fences, &outlet.sleepers) {
            doorbell::signal(batch.pen.writer.ring());
        }
        result
    }

    /// Gives the topic's number.
    pub fn topic(&self) -> u32 {
        self.owner.outlet.topic
    }

    /// Gives the longest event, in bytes: about a quarter of the ring.
    pub fn longest(&self) -> u64 {
        super::layout::longest(self.owner.outlet.capacity)
    }

    /// Gives how many events were published so far.
    pub fn published(&self) -> u64 {
        if !self.owner.node.birth.is_here() {
            return 0;
        }
        self.owner.outlet.pen.claim().writer.sequence()
    }

    /// Gives how many reliable subscribers this publisher waits for.
    pub fn reliable(&self) -> usize {
        self.owner.outlet.holds().len()
    }
}

/// Publishes within [`Publisher::batch`].
#[derive(Debug)]
pub struct Batch<'a> {
    pen: Claimed<'a, Pen>,
    outlet: &'a Outlet,
    node: &'a Shared,
    published: bool,
}

impl Batch<'_> {
    /// Publishes one event.
    ///
    /// # Errors
    /// [`PublishError`]; nothing was published.
    #[inline]
    pub fn publish(&mut self, payload: &[u8]) -> Result<(), PublishError> {
        let outlet = self.outlet;
        let pen = &mut *self.pen;
        let (size, limit) = (payload.len() as u64, pen.writer.longest());
        if size > limit {
            return Err(PublishError::TooLarge { size, limit });
        }
        if outlet.revoked.load(Ordering::Relaxed) {
            return Err(PublishError::Revoked);
        }
        if outlet.changes.load(Ordering::Acquire) != pen.seen {
            pen.renew(outlet);
        }
        let mut plan = pen.writer.plan(size);
        if plan.keep > pen.free_to {
            // Who sleeps must hear of what was published before this waits for it.
            if self.published && doorbell::is_due(outlet.fences, &outlet.sleepers) {
                doorbell::signal(pen.writer.ring());
            }
            plan = self.make_room(size);
        }
        let pen = &mut *self.pen;
        let plan = pen.writer.widen(plan, pen.free_to);
        pen.writer.write(plan, clock::now_ns(), payload);
        self.published = true;
        Ok(())
    }

    /// Waits until nobody needs what has to go for an event of so many bytes, or gives up those who
    /// do; says where the event goes. Others publish meanwhile, if they can, and the warden hears
    /// of those who come and go.
    #[cold]
    fn make_room(&mut self, size: u64) -> Plan {
        let outlet = self.outlet;
        let until = clock::now_ns().saturating_add(PATIENCE_NS);
        let mut looks = 0_u32;
        loop {
            let patience = clock::now_ns() < until;
            let pen = &mut *self.pen;
            if outlet.changes.load(Ordering::Acquire) != pen.seen {
                pen.renew(outlet);
            }
            let (plan, head) = (pen.writer.plan(size), pen.writer.head());
            let is_late = |hold: &&Arc<Hold>| match hold.needs(head) {
                Some(position) => position < plan.keep && !patience,
                None => true,
            };
            let late: Vec<Arc<Hold>> = pen.holds.iter().filter(is_late).cloned().collect();
            for hold in late {
                outlet.drop_hold(|it| Arc::ptr_eq(it, &hold));
                let subscriber = hold.key.load(Ordering::Relaxed);
                let ring = outlet.ring.load(Ordering::Relaxed);
                self.node.core.say(BusWord::Cut { topic: outlet.topic, ring, subscriber });
                pen.renew(outlet);
            }
            let needed = pen.holds.iter().filter_map(|hold| hold.needs(head)).min();
            pen.free_to = needed.unwrap_or(u64::MAX);
            if plan.keep <= pen.free_to {
                return plan;
            }
            looks += 1;
            if looks < LOOKS {
                pause();
            } else {
                self.pen.give_up_while(|| std::thread::sleep(PAUSE));
            }
        }
    }
}

/// What the handles of a publisher and its node share.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) topic: u32,
    pub(crate) name: String,
    capacity: u64,
    pen: Claim<Pen>,
    /// This node's number for the ring.
    pub(crate) ring: AtomicU32,
    fences: Fences,
    sleepers: AtomicU32,
    revoked: AtomicBool,
    holds: Mutex<Vec<Arc<Hold>>>,
    /// Counts the changes of `holds`.
    changes: AtomicU32,
}

/// Who writes.
#[derive(Debug)]
pub(crate) struct Pen {
    writer: Writer,
    holds: Vec<Arc<Hold>>,
    seen: u32,
    /// Up to here no reliable subscriber needs anything, as far as it was looked.
    free_to: u64,
}

/// A reliable subscriber.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Its node and number, as the runtime knows them.
    key: AtomicU64,
    page: Arc<Page>,
    inode: u64,
    /// Where it begins, until its page says more.
    from: u64,
    /// The last that its page said.
    last: AtomicU64,
}

impl Hold {
    /// The position from which on it needs the records; none for one that lies.
    fn needs(&self, head: u64) -> Option<u64> {
        let cursor = self.page.header().cursor.load(Ordering::Acquire);
        if cursor == 0 {
            return Some(self.from);
        }
        let position = cursor - 1;
        let is_true = position >= self.last.load(Ordering::Relaxed) && position <= head;
        self.last.store(position, Ordering::Relaxed);
        is_true.then_some(position)
    }
}

impl Pen {
    fn renew(&mut self, outlet: &Outlet) {
        let holds = outlet.holds();
        self.seen = outlet.changes.load(Ordering::Acquire);
        self.holds.clone_from(&holds);
        self.free_to = if holds.is_empty() { u64::MAX } else { self.writer.tail() };
    }
}

/// What the warden does for a publisher.
impl Outlet {
    pub(crate) fn new(
        topic: u32,
        name: String,
        capacity: u64,
        number: u32,
    ) -> Result<Outlet, NodeError> {
        let writer = Writer::new(Ring::create(topic, capacity, 0)?);
        Ok(Outlet {
            topic,
            name,
            capacity,
            pen: Claim::new(Pen { writer, holds: Vec::new(), seen: 0, free_to: u64::MAX }),
            ring: AtomicU32::new(number),
            fences: Fences::within(),
            sleepers: AtomicU32::new(0),
            revoked: AtomicBool::new(false),
            holds: Mutex::default(),
            changes: AtomicU32::new(0),
        })
    }

    fn holds(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Hold>>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_hold(&self, which: impl Fn(&Arc<Hold>) -> bool) {
        self.holds().retain(|hold| !which(hold));
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// The ring as it is now.
    pub(crate) fn current(&self) -> Arc<Ring> {
        Arc::clone(self.pen.claim().writer.ring())
    }

    fn close(&self) {
        let pen = self.pen.claim();
        pen.writer.close();
        doorbell::signal(pen.writer.ring());
    }

    /// Whether some subscriber may sleep from now on.
    pub(crate) fn hear_of_sleepers(&self, any: bool) {
        if any {
            doorbell::announce(&self.current(), &self.sleepers);
        } else {
            self.sleepers.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::Relaxed);
        self.close();
    }

    /// Takes in a reliable subscriber. Gives the position from which on it is waited for: that of
    /// the next event, or of the oldest that is left.
    pub(crate) fn hold(
        &self,
        key: u64,
        page: &Stranger,
        from_oldest: bool,
    ) -> Result<u64, NodeError> {
        let inode = crate::board::inode(page.as_fd())?;
        // Nobody publishes meanwhile: what comes after this is kept for it.
        let pen = self.pen.claim();
        let mut holds = self.holds();
        if let Some(known) = holds.iter().find(|it| it.inode == inode) {
            // It has come back to another runtime.
            known.key.store(key, Ordering::Relaxed);
            return Ok(known.from);
        }
        let page = Page::map_peer(page.as_fd())?;
        // In a ring that follows another it was waited for from the beginning.
        let is_bridge = |it: &Arc<Hold>| it.inode == 0 && it.key.load(Ordering::Relaxed) == key;
        let bridge = holds.iter().position(is_bridge);
        let from = match bridge {
            Some(index) => holds.remove(index).from,
            None if from_oldest => pen.writer.tail(),
            None => pen.writer.head(),
        };
        let (key, last) = (AtomicU64::new(key), AtomicU64::new(from));
        holds.push(Arc::new(Hold { key, page, inode, from, last }));
        self.changes.fetch_add(1, Ordering::AcqRel);
        Ok(from)
    }

    pub(crate) fn release(&self, key: u64) {
        self.drop_hold(|hold| hold.key.load(Ordering::Relaxed) == key);
    }

    /// Goes on in another ring, of that number.
    pub(crate) fn rotate(&self, number: u32) -> Result<Arc<Ring>, NodeError> {
        let mut pen = self.pen.claim();
        let ring = Ring::create(self.topic, self.capacity, pen.writer.sequence())?;
        let old = std::mem::replace(&mut pen.writer, Writer::new(Arc::clone(&ring)));
        self.ring.store(number, Ordering::Relaxed);
        let mut holds = self.holds();
        for hold in holds.iter_mut() {
            // Until it has a page for this ring, too: from its beginning, by one that says nothing.
            *hold = Arc::new(Hold {
                key: AtomicU64::new(hold.key.load(Ordering::Relaxed)),
                page: Page::create()?,
                inode: 0,
                from: 0,
                last: AtomicU64::new(0),
            });
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
        old.close();
        doorbell::signal(old.ring());
        Ok(ring)
    }
}
