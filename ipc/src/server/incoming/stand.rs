//! A channel to an instance that serves its name, or stands by for it.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::{Handler, Incoming, Next, Yield, pop};
use crate::{
    channel::{Fate, Receive, Taken},
    clock,
    failover::post::Post,
    layout::Ring,
    mark::GONE,
    sync::Ordering,
};

impl Incoming {
    /// The channel is one of these.
    pub(crate) fn belong(&self, post: &Arc<Post>) {
        let _ = self.post.set(Arc::downgrade(post));
    }

    /// Whether the instance serves after all: something has come that waits for it, so it looks.
    #[cold]
    fn is_due(&self) -> bool {
        self.post.get().and_then(Weak::upgrade).is_some_and(|post| post.is_due())
    }

    /// The instance serves at this epoch from now on, or stands by (0). Who wants it only while it
    /// serves waits in the rings meanwhile.
    pub(crate) fn stand(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
        if epoch == 0 {
            self.held.store(true, Ordering::Release);
            return self.channel.set_mark(0);
        }
        // A client that has left saw the mark as it was before, and relies on it that nothing more
        // is taken; or it sees this one, and counts on nothing.
        if !self.channel.show_mark(epoch as u32) {
            return;
        }
        self.held.store(false, Ordering::Release);
        self.summon();
    }

    /// The instance is about to serve no more: no turn begins.
    pub(crate) fn hold(&self) {
        self.held.store(true, Ordering::Release);
    }

    /// Waits until what was taken is handled, or the instance serves again. Returns whether it is:
    /// where a turn is not over, that may take more, the next one says that nothing more is taken.
    pub(crate) fn finish(&self, until: u64) -> bool {
        let mut has_ended = false;
        while !has_ended
            && self.channel.peer_mark() != 0
            && self.held.load(Ordering::Acquire)
            && self.channel.fate() == Fate::Open
            && clock::now_ns() < until
        {
            has_ended = self.channel.rx.try_claim().is_some_and(|rx| rx.queue.is_empty());
            if !has_ended {
                self.summon();
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        has_ended || self.channel.rx.try_claim().is_some()
    }

    /// Nothing more is taken: from here on the client relies on that. Until then handlers have the
    /// epoch at which it was.
    pub(crate) fn rest(&self) {
        self.epoch.store(0, Ordering::Relaxed);
        self.channel.set_mark(0);
    }

    /// Whether nothing is taken from the rings: this end stands by, and its client wants nothing
    /// of one that does.
    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire) && self.channel.peer_mark() != 0 && self.stands_by()
    }

    /// The same, where it looked so. What others take a name for is theirs to finish.
    #[cold]
    fn stands_by(&self) -> bool {
        self.has_left() || !self.is_due() || self.held.load(Ordering::Acquire)
    }

    /// Whether the client counts on nothing that it sent here any more.
    pub(crate) fn has_left(&self) -> bool {
        self.channel.peer_mark() == GONE
    }

    /// The epoch at which the instance serves, or 0.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Before a turn: whether nothing is to be taken from the rings in it.
    #[inline]
    pub(super) fn is_apart(&self, rx: &mut Receive) -> bool {
        if rx.is_new {
            self.begin(rx);
        }
        let is_held = self.is_held();
        if is_held && self.channel.own_mark() != 0 {
            // It let go while a turn went on for long.
            self.rest();
        }
        is_held
    }

    /// Before the first frame: learns where the client's ids begin. Those of a handshake have none,
    /// and come long before the client knows whether this channel takes the place of another.
    #[cold]
    pub(super) fn begin(&self, rx: &mut Receive) {
        if rx.is_ready() && !self.channel.awaits_greeting() {
            rx.is_new = false;
            if let Some(high) = self.channel.first_high() {
                rx.begin_ids(high);
            }
        }
    }

    /// Makes the handshake of an encrypted channel that is opened ahead, and takes nothing else.
    #[cold]
    pub(super) fn greet_apart(&self, rx: &mut Receive) {
        // No pattern has more messages of the client.
        for _ in 0..2 {
            if !rx.is_ready() || !self.channel.awaits_greeting() {
                return;
            }
            let ring = if rx.urgent.is_ready() { Ring::Urgent } else { Ring::Ordinary };
            let taken = rx.take(ring, self.channel.max_payload);
            let greeted = match taken {
                Ok(Some(Taken::Hello(message))) => self.channel.greeted(rx, &message),
                other => other.map(drop),
            };
            if let Err(lie) = greeted {
                self.channel.end(Fate::Poisoned(lie));
            }
        }
    }

    /// Serves what was taken before the channel was held.
    #[cold]
    pub(super) fn serve_queued(
        self: &Arc<Self>,
        rx: &mut Receive,
        loop_: &mut impl Yield,
        handler: &mut Handler<'_>,
    ) -> usize {
        let mut served = 0;
        loop {
            let now = clock::now_ns();
            let Next::Owned(meta, body) = pop(rx, now) else { break };
            loop_.before_handler();
            served += self.dispatch_owned(meta, now, body, handler);
        }
        self.queued.store(false, Ordering::Release);
        served
    }
}
