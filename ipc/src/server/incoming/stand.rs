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
    sync::Ordering,
};

/// How long is waited for handlers to end before a name changes hands: what they hold is doubtful
/// to its callers then.
const PATIENCE_NS: u64 = 1_000_000_000;

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
        self.held.store(epoch == 0, Ordering::Release);
        self.channel.set_mark(epoch as u32);
        if epoch != 0 {
            self.summon();
        }
    }

    /// The instance serves no more: nothing is taken from here on. What was is of its epoch.
    pub(crate) fn hold(&self) {
        self.held.store(true, Ordering::Release);
    }

    /// Returns when what was taken is handled, or when the instance serves again.
    pub(crate) fn finish(&self) {
        let until = clock::now_ns() + PATIENCE_NS;
        while self.channel.peer_mark() != 0
            && self.held.load(Ordering::Acquire)
            && self.channel.fate() == Fate::Open
            && clock::now_ns() < until
        {
            if self.channel.rx.try_claim().is_some_and(|rx| rx.queue.is_empty()) {
                break;
            }
            self.summon();
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// From here on the client relies on it that nothing more is taken.
    pub(crate) fn withdraw(&self) {
        self.epoch.store(0, Ordering::Relaxed);
        self.channel.set_mark(0);
    }

    /// Whether nothing is taken from the rings: this end stands by, and its client wants nothing
    /// of one that does.
    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire) && self.channel.peer_mark() != 0 && !self.is_due()
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
        self.is_held()
    }

    /// Before the first frame: learns where the client's ids begin.
    #[cold]
    pub(super) fn begin(&self, rx: &mut Receive) {
        if rx.is_ready() {
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
