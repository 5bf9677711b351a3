//! The event bus of a node: what it publishes, what it subscribes to, and what the runtime says of
//! both. What is to be said to the runtime stands in a queue, so that nobody who publishes waits.

use std::{
    collections::HashMap,
    os::fd::AsFd,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use super::{Core, Node, PATIENCE, core::lock, refused};
use crate::{
    board::inode,
    bus::{
        Feed, Listener, Outlet, PublishOptions, Publisher, Ring, Seat, Source, SubscribeOptions,
        Subscription, Topic, layout,
    },
    control::{
        self, BusNote, BusStep, Reply, Request, SUBSCRIBER_SLEEPS, TOPIC_RELIABLE, TopicEntry,
        closer::Stranger,
    },
    error::{NodeError, Status},
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    wait::futex,
};

/// How long the runtime may take to hear that somebody sleeps, before they sleep lightly.
const ANNOUNCING: Duration = Duration::from_millis(100);
/// How long publishers may take to hear that they are to wait for a reliable subscriber.
const SEATING: Duration = Duration::from_secs(1);

/// A node's part of the event bus.
#[derive(Debug, Default)]
pub(crate) struct Bus {
    feeds: Mutex<HashMap<u32, Arc<Feed>>>,
    outlets: Mutex<Vec<Weak<Outlet>>>,
    words: Mutex<Vec<BusWord>>,
    /// Held while words are sent, so that they go in their order.
    speaking: Mutex<()>,
    /// Held while somebody subscribes.
    subscribing: Mutex<()>,
    /// Numbers of rings, and of reliable subscriptions.
    rings: AtomicU32,
    subscribers: AtomicU32,
    pub(crate) listener: Arc<Listener>,
}

/// Something to be said to the runtime, with its ids filled in when it is.
#[derive(Debug)]
pub(crate) enum BusWord {
    /// A publisher has given a reliable subscriber up.
    Cut { topic: u32, ring: u32, subscriber: u64 },
    /// A publisher waits for a reliable subscriber.
    Held { topic: u32, ring: u64, subscriber: u64, from: u64 },
    /// A ring is no more.
    Withdrawn { topic: u32, ring: u32 },
    /// Nobody here subscribes any more.
    Unsubscribed { topic: u32 },
    /// Events of a topic were overwritten before they were read here.
    Lost { feed: Arc<Feed> },
    /// A subscription wants to be waited for.
    Cursor { topic: u32, seat: Arc<Seat> },
    /// It wants that no more.
    Left { topic: u32, seat: Arc<Seat> },
    /// A publisher goes on in another ring.
    Rotated { outlet: Arc<Outlet>, ring: Arc<Ring>, number: u32, follows: u32 },
}

impl Core {
    /// Has something said to the runtime, soon.
    pub(crate) fn say(&self, word: BusWord) {
        lock(&self.bus.words).push(word);
        self.kick();
    }

    /// Says what is to be said. What the runtime is not there to hear, the next one is not told:
    /// it hears how things are by then.
    pub(super) fn speak(&self) {
        let _speaking = lock(&self.bus.speaking);
        for word in std::mem::take(&mut *lock(&self.bus.words)) {
            let _ = self.speak_one(&word);
        }
    }

    fn speak_one(&self, word: &BusWord) -> Result<(), NodeError> {
        let own = |number: u32| u64::from(self.id().get()) << 32 | u64::from(number);
        let note = |step, topic, ring, subscriber, value| {
            Request::Bus(BusNote { step, topic, ring, subscriber, value })
        };
        match word {
            BusWord::Cut { topic, ring, subscriber } => {
                self.post(0, &note(BusStep::Cut, *topic, own(*ring), *subscriber, 0), &[])
            }
            BusWord::Held { topic, ring, subscriber, from } => {
                self.post(0, &note(BusStep::Held, *topic, *ring, *subscriber, *from), &[])
            }
            BusWord::Withdrawn { topic, ring } => {
                self.post(0, &note(BusStep::Withdrawn, *topic, own(*ring), 0, 0), &[])
            }
            BusWord::Unsubscribed { topic } => {
                self.post(0, &note(BusStep::Unsubscribed, *topic, 0, 0, 0), &[])
            }
            BusWord::Lost { feed } => {
                let lost = feed.lost.load(Ordering::Relaxed);
                self.post(0, &note(BusStep::Lost, feed.topic, 0, 0, lost), &[])
            }
            BusWord::Cursor { topic, seat } => {
                let ring = seat.source.id.load(Ordering::Relaxed);
                let oldest = u64::from(seat.from_oldest);
                let told = note(BusStep::Cursor, *topic, ring, own(seat.subscriber), oldest);
                match seat.page.fd() {
                    Some(fd) => self.post(0, &told, &[fd]),
                    None => Ok(()),
                }
            }
            BusWord::Left { topic, seat } => {
                let ring = seat.source.id.load(Ordering::Relaxed);
                self.post(0, &note(BusStep::Left, *topic, ring, own(seat.subscriber), 0), &[])
            }
            BusWord::Rotated { outlet, ring, number, follows } => {
                self.advertise_in(outlet, ring, *number, *follows)
            }
        }
    }

    fn advertise_in(
        &self,
        outlet: &Outlet,
        ring: &Ring,
        number: u32,
        follows: u32,
    ) -> Result<(), NodeError> {
        let request = advertisement(outlet, number, follows);
        match ring.fd() {
            Some(fd) => self.post(0, &request, &[fd]),
            None => Ok(()),
        }
    }

    /// Tells a runtime that knows nothing of us what we publish and subscribe to.
    pub(super) fn rejoin_topics(&self) {
        for outlet in self.outlets() {
            let ring = outlet.current();
            let number = outlet.ring.load(Ordering::Relaxed);
            let _ = self.advertise_in(&outlet, &ring, number, 0);
        }
        let feeds: Vec<_> = lock(&self.bus.feeds).values().cloned().collect();
        for feed in feeds {
            let sleeps = feed.sleeps.load(Ordering::SeqCst);
            let _ = self.post(0, &subscription(&feed, sleeps), &[]);
            if feed.lost.load(Ordering::Relaxed) > 0 {
                self.say(BusWord::Lost { feed });
            }
        }
    }

    /// Whether this node publishes or subscribes.
    pub(super) fn has_topics(&self) -> bool {
        !lock(&self.bus.feeds).is_empty() || !self.outlets().is_empty()
    }

    fn outlets(&self) -> Vec<Arc<Outlet>> {
        lock(&self.bus.outlets).iter().filter_map(Weak::upgrade).collect()
    }

    fn outlet(&self, ring: u64) -> Option<Arc<Outlet>> {
        self.outlets().into_iter().find(|it| it.ring.load(Ordering::Relaxed) == ring as u32)
    }

    fn feed(&self, topic: u32) -> Option<Arc<Feed>> {
        lock(&self.bus.feeds).get(&topic).cloned()
    }

    /// Takes a ring that the runtime gives. What is none is nobody's.
    pub(super) fn take_ring(&self, reply: &Reply, fds: &[Stranger]) {
        let Reply::Ring { topic, ring: id, follows, publisher, pid } = *reply else { return };
        let (Some(feed), Some(fd)) = (self.feed(topic), fds.first()) else { return };
        let Ok(inode) = inode(fd.as_fd()) else { return };
        if feed.knows(inode, id) {
            // The runtime is another one, and knows nothing of who is waited for.
            for seat in feed.seats_in(inode) {
                self.say(BusWord::Cursor { topic, seat });
            }
            return;
        }
        let Ok(ring) = Ring::map_peer(fd.as_fd(), topic) else { return };
        feed.add(Source {
            ring,
            inode,
            id: AtomicU64::new(id),
            publisher,
            pid,
            follows: feed.find(follows).as_ref().map(Arc::downgrade),
            is_new: !feed.joining.load(Ordering::SeqCst),
            withdrawn: AtomicBool::new(false),
        });
    }

    /// Hears something about a ring or a topic.
    pub(super) fn hear_of_bus(&self, note: BusNote, fds: &[Stranger]) {
        let BusNote { step, topic, ring, subscriber, value } = note;
        match step {
            BusStep::Cursor => {
                let (Some(outlet), Some(page)) = (self.outlet(ring), fds.first()) else { return };
                self.say(match outlet.hold(subscriber, page, value == 1) {
                    Ok(from) => BusWord::Held { topic, ring, subscriber, from },
                    Err(_) => BusWord::Cut { topic, ring: ring as u32, subscriber },
                });
            }
            BusStep::Left => {
                if let Some(outlet) = self.outlet(ring) {
                    outlet.release(subscriber);
                }
            }
            BusStep::Sleepers => {
                if let Some(outlet) = self.outlet(ring) {
                    outlet.hear_of_sleepers(value != 0);
                }
            }
            BusStep::Rotate => self.rotate(ring),
            BusStep::Revoked if ring != 0 => {
                if let Some(outlet) = self.outlet(ring) {
                    outlet.revoke();
                }
            }
            BusStep::Revoked => {
                if let Some(feed) = self.feed(topic) {
                    feed.revoked.store(true, Ordering::Release);
                    feed.tell();
                }
            }
            BusStep::Held | BusStep::Cut => {
                if let Some(feed) = self.feed(topic) {
                    let held = (step == BusStep::Held).then_some(value);
                    feed.seated(ring, subscriber as u32, held);
                }
            }
            BusStep::Withdrawn => {
                if let Some(feed) = self.feed(topic) {
                    feed.withdraw(ring, value != 0);
                }
            }
            // Theirs to say, not the runtime's.
            BusStep::Unsubscribed | BusStep::Lost => {}
        }
    }

    fn rotate(&self, ring: u64) {
        let Some(outlet) = self.outlet(ring) else { return };
        let number = self.next_ring();
        // Without memory for another it stays in this one, and says so to nobody: who was given it
        // is the lesser evil than who is given nothing.
        if let Ok(ring_of) = outlet.rotate(number) {
            let follows = ring as u32;
            self.say(BusWord::Rotated { outlet, ring: ring_of, number, follows });
        }
    }

    fn next_ring(&self) -> u32 {
        self.bus.rings.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// A publisher is no more.
    pub(crate) fn retire_outlet(&self, outlet: &Arc<Outlet>) {
        lock(&self.bus.outlets).retain(|it| !std::ptr::eq(it.as_ptr(), Arc::as_ptr(outlet)));
        let ring = outlet.ring.load(Ordering::Relaxed);
        self.say(BusWord::Withdrawn { topic: outlet.topic, ring });
    }

    /// A subscription is no more.
    pub(crate) fn leave_feed(&self, feed: &Arc<Feed>) {
        let mut feeds = lock(&self.bus.feeds);
        if feed.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            feeds.remove(&feed.topic);
            // Said in its turn: who subscribes again has this said first.
            self.say(BusWord::Unsubscribed { topic: feed.topic });
        }
    }

    /// Tells publishers, by way of the runtime, that somebody here may sleep. Says whether they
    /// know.
    pub(crate) fn announce_sleep(&self, feed: &Arc<Feed>, left: Option<Duration>) -> bool {
        if feed.sleeps.load(Ordering::SeqCst) {
            return true;
        }
        let timeout = left.map_or(ANNOUNCING, |left| left.min(ANNOUNCING));
        let asked = self.request(&subscription(feed, true), &[], Some(timeout));
        let known = matches!(asked, Ok((Reply::Done, _)));
        if known {
            feed.sleeps.store(true, Ordering::SeqCst);
        }
        known
    }

    fn topic(&self, topic: &Topic) -> Result<(u32, u64, u32, String), NodeError> {
        let request = Request::Topic { id: topic.id, name: topic.name.clone() };
        match self.request(&request, &[], Some(PATIENCE))?.0 {
            Reply::Topic { id, bytes, flags, name } => Ok((id, bytes, flags, name)),
            reply => Err(refused(&reply)),
        }
    }
}

fn advertisement(outlet: &Outlet, ring: u32, follows: u32) -> Request {
    Request::Advertise { topic: outlet.topic, ring, follows, name: outlet.name.clone() }
}

fn subscription(feed: &Feed, sleeps: bool) -> Request {
    let flags = if sleeps { SUBSCRIBER_SLEEPS } else { 0 };
    Request::Subscribe { topic: feed.topic, flags, name: feed.name.clone() }
}

/// A refusal by the rules, as such.
fn forbidden(error: NodeError) -> NodeError {
    match error {
        NodeError::Refused(Status::ACCESS) => NodeError::Forbidden,
        error => error,
    }
}

impl Node {
    /// Makes a publisher of a topic, by name or by number. Subscribers that are there get every
    /// event from the first on.
    ///
    /// # Errors
    /// [`NodeError::Forbidden`] when the rules do not let this process publish there;
    /// [`NodeError::Refused`] with `EXISTS` when another name has the topic's number, `QUOTA` at a
    /// limit; [`NodeError::Name`]; [`NodeError::Forked`]; those of a lost runtime.
    pub fn publisher(
        &self,
        topic: impl Into<Topic>,
        options: PublishOptions,
    ) -> Result<Publisher, NodeError> {
        let topic = topic.into();
        topic.check()?;
        if self.is_forked() {
            return Err(NodeError::Forked);
        }
        let core = &self.shared.core;
        let (id, bytes, _, name) = core.topic(&topic)?;
        let capacity = options.events.map_or(bytes, layout::ring_bytes);
        if !layout::is_ring_size(capacity) {
            return Err(NodeError::Malformed("a ring of no size"));
        }
        let number = core.next_ring();
        let outlet = Arc::new(Outlet::new(id, name, capacity, number)?);
        lock(&core.bus.outlets).push(Arc::downgrade(&outlet));
        // Gone again with this, should it fail.
        let publisher = Publisher::new(Arc::clone(&outlet), Arc::clone(&self.shared));
        core.speak();
        let ring = outlet.current();
        let fd = ring.fd().ok_or(NodeError::Malformed("an own ring has a descriptor"))?;
        let asked = core.request(&advertisement(&outlet, number, 0), &[fd], Some(PATIENCE));
        match asked {
            // Or it was said already, to a runtime that came meanwhile.
            Ok((Reply::Done, _)) | Err(NodeError::Refused(Status::EXISTS)) => Ok(publisher),
            Ok((reply, _)) => Err(refused(&reply)),
            Err(error) => Err(forbidden(error)),
        }
    }

    /// Subscribes to a topic, by name or by number. What is published after this is received, or
    /// counted as lost; what was published before, as [`SubscribeOptions::start`] says.
    ///
    /// # Errors
    /// As for [`publisher`](Node::publisher).
    pub fn subscribe(
        &self,
        topic: impl Into<Topic>,
        options: SubscribeOptions,
    ) -> Result<Subscription, NodeError> {
        let topic = topic.into();
        topic.check()?;
        if self.is_forked() {
            return Err(NodeError::Forked);
        }
        let core = &self.shared.core;
        let (id, _, flags, name) = core.topic(&topic)?;
        let _subscribing = lock(&core.bus.subscribing);
        let known = {
            let feeds = lock(&core.bus.feeds);
            let known = feeds.get(&id).filter(|it| !it.revoked.load(Ordering::Acquire)).cloned();
            known.inspect(|feed| {
                let _ = feed.users.fetch_add(1, Ordering::SeqCst);
            })
        };
        let feed = match known {
            Some(feed) => feed,
            None => self.join(id, name)?,
        };
        let is_reliable = options.reliable.unwrap_or(flags & TOPIC_RELIABLE != 0);
        let number = || core.bus.subscribers.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let reliable = is_reliable.then(number);
        let node = Arc::clone(&self.shared);
        let subscription = Subscription::new(node, feed, options.start, reliable);
        let until = Instant::now() + SEATING;
        loop {
            let news = subscription.feed().news.load(Ordering::SeqCst);
            let left = until.saturating_duration_since(Instant::now());
            if subscription.is_seated() || left.is_zero() {
                return Ok(subscription);
            }
            let at = &subscription.feed().news;
            futex::wait(futex::Word { at, value: news, shared: false }, Some(left));
        }
    }

    /// Subscribes this node.
    fn join(&self, id: u32, name: String) -> Result<Arc<Feed>, NodeError> {
        let core = &self.shared.core;
        let feed = Arc::new(Feed::new(id, name));
        feed.users.store(1, Ordering::SeqCst);
        lock(&core.bus.feeds).insert(id, Arc::clone(&feed));
        core.speak();
        match core.request(&subscription(&feed, false), &[], Some(PATIENCE)) {
            Ok((Reply::Done, _)) => {
                feed.joining.store(false, Ordering::SeqCst);
                Ok(feed)
            }
            Ok((reply, _)) => {
                core.leave_feed(&feed);
                Err(refused(&reply))
            }
            Err(error) => {
                core.leave_feed(&feed);
                Err(forbidden(error))
            }
        }
    }

    /// Lists the topics that the node file names, or that somebody uses, by number. For operators'
    /// programs.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `ACCESS` in a supervised service; those of a lost runtime.
    pub fn topics(&self) -> Result<Vec<TopicEntry>, NodeError> {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let request = Request::Topics { after };
            match self.shared.core.request(&request, &[], Some(PATIENCE))?.0 {
                Reply::Topics { entries, next } => {
                    all.extend(entries);
                    // A runtime that goes round in circles lies.
                    if next <= after {
                        return Ok(all);
                    }
                    after = next;
                }
                reply => return Err(refused(&reply)),
            }
        }
    }

    /// Lists the nodes that subscribe to a topic, by id, with what each has lost. For operators'
    /// programs.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `ACCESS` in a supervised service, `NOT_FOUND` where nobody uses
    /// the topic; those of a lost runtime.
    pub fn listeners(&self, topic: impl Into<Topic>) -> Result<Vec<control::Listener>, NodeError> {
        let topic = topic.into();
        topic.check()?;
        let (topic, ..) = self.shared.core.topic(&topic)?;
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let request = Request::Listeners { topic, after };
            match self.shared.core.request(&request, &[], Some(PATIENCE))?.0 {
                Reply::Listeners { entries, next } => {
                    all.extend(entries);
                    // A runtime that goes round in circles lies.
                    if next <= after {
                        return Ok(all);
                    }
                    after = next;
                }
                reply => return Err(refused(&reply)),
            }
        }
    }
}
