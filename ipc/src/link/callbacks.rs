//! The loop's side of a link: it ends the calls that callbacks wait for.

use std::sync::{Arc, Weak};

use super::{FOREVER, Link};
use crate::{
    channel::Fate,
    error::CallError,
    server::Hub,
    sync::Ordering,
    table::{Callback, Outcome},
};

impl Link {
    /// Takes part in a loop, which from now on runs this link's callbacks.
    pub(crate) fn join(&self, hub: &Arc<Hub>) -> bool {
        let mut first = false;
        self.calls.hub.get_or_init(|| {
            first = true;
            Arc::downgrade(hub)
        });
        first
    }

    /// Whether that loop is this one.
    pub(crate) fn is_on(&self, hub: &Arc<Hub>) -> bool {
        self.calls.hub.get().is_some_and(|of| std::ptr::eq(of.as_ptr(), Arc::as_ptr(hub)))
    }

    /// The loop's turn: reads what is there unless a thread leads, ends the calls whose time is
    /// over, and sends those whose turn it is.
    pub(crate) fn serve_callbacks(&self, now: u64) {
        let fate = self.channel.check_life();
        let claimed = self.channel.rx.try_claim();
        let leads = claimed.is_some();
        if let Some(mut rx) = claimed {
            let drained = self.drain(&mut rx, None);
            if fate != Fate::Open && !rx.is_ready() {
                self.channel.judge_end(&rx);
            }
            drop(rx);
            if let Err(lie) = drained {
                self.poison(lie);
            }
            self.left_to_followers();
        }
        if fate != Fate::Open {
            // Answers that a thread reads just now came before the end.
            if leads {
                self.fail_callbacks();
            }
            return;
        }
        if now >= self.calls.next_expiry.load(Ordering::Relaxed) {
            self.expire_callbacks(now);
        }
        if now >= self.calls.look_at.load(Ordering::Relaxed) {
            self.look_for_callbacks(now);
        }
        self.serve_lines(now);
    }

    /// The earliest time at which [`Link::serve_callbacks`] must be called again.
    pub(crate) fn next_expiry(&self) -> u64 {
        let looks = self.calls.look_at.load(Ordering::Relaxed);
        self.calls.next_expiry.load(Ordering::Relaxed).min(looks)
    }

    /// Ends every call that a callback waits for: the peer is gone.
    pub(crate) fn fail_callbacks(&self) {
        if self.is_retired() || self.is_relayed_on() {
            return;
        }
        self.fail_calls();
    }

    /// Ends them, and there is no other way.
    pub(crate) fn fail_calls(&self) {
        self.fail_lines();
        for slot in self.table.slots().iter().filter(|slot| slot.awaits_callback()) {
            let taken = slot
                .position()
                .is_some_and(|(ring, position)| self.channel.taken_by_peer(ring) > position);
            self.failed();
            self.finish(slot.message_id() as u32, Err(self.channel.ended(taken)));
        }
    }

    fn expire_callbacks(&self, now: u64) {
        // A read-modify-write, so that it is not seen after a `fetch_min` that follows it.
        self.calls.next_expiry.swap(FOREVER, Ordering::SeqCst);
        for slot in self.table.slots().iter().filter(|slot| slot.awaits_callback()) {
            if slot.expiry() <= now {
                self.failed();
                self.finish(slot.message_id() as u32, Err(CallError::TimedOut));
            } else {
                self.calls.next_expiry.fetch_min(slot.expiry(), Ordering::Relaxed);
            }
        }
    }

    pub(super) fn complete(&self, callback: Callback, outcome: Outcome) {
        self.calls.callbacks.fetch_sub(1, Ordering::Relaxed);
        if let Some(hub) = self.calls.hub.get().and_then(Weak::upgrade) {
            hub.complete(callback, outcome);
        }
    }
}
