//! Callers that wait for long: they ask whether anybody is there, and tell the runtime when nobody
//! answers. Only of names with standbys: there is nobody else to go to otherwise.

use std::sync::{Arc, Weak};

use super::{FOREVER, Link};
use crate::{
    client::ClientState,
    clock,
    frame::{Frame, Kind, Label},
    sync::Ordering,
};

/// The id of such a question, which no call has: ids begin with 1 in each session.
const ID: u32 = 0;

impl Link {
    /// From now on who waits looks after so long, in ns.
    pub(crate) fn set_interval(&self, ns: u64) {
        self.interval_ns.store(ns, Ordering::Relaxed);
    }

    /// When who begins to wait now is to look; never on a channel that nothing takes the place of.
    #[inline]
    pub(super) fn first_look(&self, now: u64) -> u64 {
        now.saturating_add(self.interval_ns.load(Ordering::Relaxed))
    }

    /// Looks after who serves, for one who has waited since then. Returns when to look again.
    #[cold]
    pub(super) fn look_after(&self, now: u64, since: u64) -> u64 {
        let Some(state) = self.state() else { return FOREVER };
        let mark = self.channel.peer_mark();
        let is_meant = mark != 0 || state.is_told(self.channel.introduction.dest);
        if !is_meant || self.is_retired() {
            // Who stands by takes nothing, and owes no answer.
            return self.first_look(now);
        }
        state.look_after(self, mark, (now, since))
    }

    fn state(&self) -> Option<Arc<ClientState>> {
        self.relay.get().and_then(Weak::upgrade)
    }

    /// Asks whether anybody is there. A ring without room is as good as a question unanswered.
    pub(crate) fn ask(&self) {
        if let Some(mut tx) = self.channel.tx.try_claim() {
            let asked = tx.push(Label::new(Kind::Ping, 0).with_id(ID), &[], &mut 0);
            drop(tx);
            if asked.is_ok() {
                self.channel.after_push();
            }
        }
    }

    /// Whether a frame answers such a question; notes it.
    #[cold]
    pub(super) fn is_pulse(&self, frame: &Frame) -> bool {
        if frame.head.kind != Kind::Pong || frame.head.id != ID {
            return false;
        }
        let state = self.state();
        state.is_some_and(|state| {
            state.hear_pulse(clock::now_ns());
            true
        })
    }

    /// A call that a callback waits for was sent: the loop looks, if it does not anyway.
    pub(super) fn have_looked_after(&self) {
        if self.calls.look_at.load(Ordering::Relaxed) == FOREVER {
            let at = self.first_look(clock::now_ns());
            self.calls.look_at.fetch_min(at, Ordering::Relaxed);
        }
    }

    /// The loop looks, for the calls that callbacks wait for.
    #[cold]
    pub(super) fn look_for_callbacks(&self, now: u64) {
        // A read-modify-write, so that it is not seen after a `fetch_min` that follows it.
        self.calls.look_at.swap(FOREVER, Ordering::SeqCst);
        if self.calls.callbacks.load(Ordering::SeqCst) > 0 {
            let at = self.look_after(now, 0);
            self.calls.look_at.fetch_min(at, Ordering::Relaxed);
        }
    }
}
