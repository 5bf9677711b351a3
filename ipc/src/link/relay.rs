//! How calls go on when their channel ends: by another one, to whoever serves the name then.

use std::sync::{Arc, Weak};

use super::{FOREVER, Limit, Link, Sink};
use crate::{
    channel::{Fate, Transmit},
    client::ClientState,
    clock,
    error::CallError,
    failover::{
        kept::Left,
        replay::{self, Before, Repeat, Verdict},
    },
    failpoint::shared,
    frame::{Kind, Label},
    layout::{Geometry, Ring},
    life::Life,
    ring::PushError,
    server::Member,
    sync::{Ordering, pause},
};

/// How long is waited for room for what came from the channel before, at a time.
const PATIENCE_NS: u64 = 10_000_000;

/// A call on its way from channel to channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Going<'a> {
    pub(crate) id: u64,
    /// What its thread has of it: the request. The others are kept.
    pub(crate) again: Option<(Label, &'a [u8])>,
    pub(crate) limit: Limit,
    pub(crate) turn: u32,
}

impl Link {
    /// From now on another channel may take the place of this one. What is sent is kept.
    pub(crate) fn begin_relay(&self, state: &Arc<ClientState>) {
        let mut tx = self.channel.tx.claim();
        if self.relay.set(Arc::downgrade(state)).is_ok() && !tx.retired {
            tx.kept = Some(Box::default());
        }
        drop(tx);
        self.set_interval(state.interval_ns());
    }

    /// Finds room to keep a message of so many bytes.
    ///
    /// # Errors
    /// [`CallError::Full`]: it is not to be sent.
    #[cold]
    pub(crate) fn reserve(&self, tx: &mut Transmit, length: usize) -> Result<(), CallError> {
        tx.reserve(&self.table, length).map_err(|full| self.dropped(full))
    }

    /// Keeps a one-way message that was just sent.
    #[cold]
    pub(crate) fn keep(&self, tx: &mut Transmit, of: (Label, u64), payload: &[u8]) {
        tx.keep(&self.table, of, Limit::Room(FOREVER), payload);
    }

    /// Whether another channel has taken the place of this one.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Whether a call that ends so on this channel goes on elsewhere. One whose outcome was taken
    /// out of its slot is over, whatever that is.
    #[cold]
    pub(crate) fn moves_on(&self, id: u64, error: &CallError) -> bool {
        matches!(error, CallError::PeerDied { .. })
            && self.relay.get().is_some()
            && self.table.slot(id as u32).is_held(id as u32)
    }

    /// Has the loop's calls go on elsewhere, if they may; returns whether they do.
    pub(super) fn is_relayed_on(&self) -> bool {
        let state = self.relay.get().and_then(Weak::upgrade);
        state.is_some_and(|state| {
            state.bereave();
            true
        })
    }

    /// The service is gone: what waits in the rings goes elsewhere, though nobody waits for it.
    pub(crate) fn bereaved(&self) {
        if !self.is_retired() {
            self.is_relayed_on();
        }
    }

    /// Another than who serves by this channel serves: what goes by it goes elsewhere.
    pub(crate) fn supersede(&self) {
        self.channel.end(Fate::Closed);
        self.wake_all();
        self.bereaved();
    }

    /// Waits for the end of a call whose channel has ended.
    #[cold]
    pub(crate) fn go_on(
        &self,
        going: Going<'_>,
        mut error: CallError,
        sink: &mut Sink<'_>,
    ) -> Result<(), CallError> {
        let (id, until) = (going.id as u32, going.limit.at());
        let slot = self.table.slot(id);
        let mut by: Option<Arc<Link>> = None;
        loop {
            let old = by.as_deref().unwrap_or(self);
            let state = self.relay.get().and_then(Weak::upgrade);
            let Some(next) = state.and_then(|state| state.succeed(until)) else {
                return self.give_in(id, error, sink);
            };
            if slot.channel() != next.table.number() {
                let Some((label, payload)) = going.again else {
                    return self.give_in(id, error, sink);
                };
                if old.judge(id) == Verdict::Maybe {
                    return self.give_in(id, CallError::PeerDied { taken: true }, sink);
                }
                match next.send_again(going.id, label, payload, going.limit) {
                    Err(again) if next.moves_on(going.id, &again) => {
                        by = Some(next);
                        continue;
                    }
                    Err(other) => return self.give_in(id, other, sink),
                    Ok(()) => {}
                }
            }
            // This one has no more to say, but what it waits for may not be sent.
            next.catch_up(until);
            match next.wait(id, until, going.turn, sink) {
                Err(again) if next.moves_on(going.id, &again) => error = again,
                ended => return ended,
            }
            by = Some(next);
        }
    }

    /// Ends a call that cannot go on; an outcome that came first counts.
    fn give_in(&self, id: u32, error: CallError, sink: &mut Sink<'_>) -> Result<(), CallError> {
        let slot = self.table.slot(id);
        loop {
            if slot.give_up(id) || !slot.is_held(id) {
                self.failed();
                return Err(error);
            }
            if let Some(outcome) = slot.take(id) {
                return outcome.and_then(|bytes| sink.accept_bytes(bytes));
            }
            // It is being written.
            pause();
        }
    }

    /// Sends once more the request of a call that waits in its slot.
    fn send_again(
        &self,
        id: u64,
        label: Label,
        payload: &[u8],
        limit: Limit,
    ) -> Result<(), CallError> {
        let slot = self.table.slot(id as u32);
        let ring = crate::channel::ring_of(label.priority());
        let mut tx = self.channel.tx.claim();
        slot.move_to(self.table.number());
        self.send_frames(&mut tx, label.with_id(id as u32), payload, limit)?;
        slot.sent(ring, tx.producer(ring).head() - 1);
        tx.count(label, payload);
        drop(tx);
        self.channel.after_push();
        Ok(())
    }

    /// What becomes of the request of a call that went by this channel.
    fn judge(&self, id: u32) -> Verdict {
        let before = self.before();
        let place = self.table.slot(id).position();
        let taken = place.map_or(0, |(ring, _)| self.channel.taken_by_peer(ring));
        let reached = replay::reached(place.map(|(_, position)| position), taken);
        replay::request(reached, before, self.repeat())
    }

    /// What is known of the service, for whom this end has nothing more. To be asked before what
    /// was taken is read.
    fn before(&self) -> Before {
        let mark = self.channel.leave();
        let lives = self.channel.peer_life() == Life::Alive;
        // One that stands by takes nothing from who left meanwhile.
        if lives && mark != 0 { Before::Alive } else { Before::Final }
    }

    fn repeat(&self) -> Repeat {
        let state = self.relay.get().and_then(Weak::upgrade);
        state.map_or(Repeat::Never, |state| state.repeat())
    }

    /// Gives all that is under way by this channel, which has ended, to another that nothing went
    /// by yet. Whoever waits here is to be woken.
    pub(crate) fn hand_over(&self, next: &Arc<Link>, state: &Arc<ClientState>) {
        let repeat = state.repeat();
        let mut lines = self.lines();
        let mut tx = self.channel.tx.claim();
        let mut rx = self.channel.rx.claim();
        // Answers that were published before the end count.
        for _ in 0..=*Geometry::CELLS.end() {
            if !rx.is_ready() || self.drain(&mut rx, None).is_err() {
                break;
            }
        }
        let before = self.before();
        // A lying service claims at most that it took what it did not: that is doubtful then.
        let taken = [Ring::Urgent, Ring::Ordinary].map(|ring| self.channel.taken_by_peer(ring));
        let number = self.table.number() + 1;
        next.table.set_number(number);
        let _ = next.relay.set(Arc::downgrade(state));
        next.set_interval(state.interval_ns());
        let mut to = next.channel.tx.claim();
        let mut kept = tx.kept.take().unwrap_or_default();
        kept.reconsider(
            &Left { taken, before, repeat },
            |id| self.table.slot(id as u32).is_waiting(id as u32),
            |id| self.finish(id as u32, Err(CallError::PeerDied { taken: true })),
            |it| {
                it.wire = next.with_limit(it.label, it.limit);
                if it.wants_answer() {
                    self.table.slot(it.id as u32).move_to(number);
                }
            },
        );
        next.restart_lines(&mut lines, number);
        self.end_the_others(number);
        next.channel.begin_ids(self.table.lowest().unwrap_or(tx.next_id).min(tx.next_id));
        to.next_id = tx.next_id;
        to.owes = !kept.sent.is_empty();
        to.kept = Some(kept);
        let _ = to.settle();
        (tx.retired, tx.owes) = (true, true);
        shared!(HandedOver, self.retired.store(true, Ordering::Release));
        // Nobody reads here any more: an answer counts only on the channel by which its request
        // went last.
        std::mem::forget(rx);
        drop((to, tx, lines));
        next.channel.after_push();
        if let Some(hub) = self.calls.hub.get().and_then(Weak::upgrade) {
            hub.add(Member::Outgoing(Arc::clone(next)));
        }
    }

    /// Sends what came from the channel before and found no room yet, waiting for room for a short
    /// time. Returns whether nothing of it is left: nobody else may have a reason to send.
    pub(crate) fn catch_up(&self, until: u64) -> bool {
        let turn = self.interrupter.turn();
        let until = until.min(clock::now_ns() + PATIENCE_NS);
        loop {
            let mut tx = self.channel.tx.claim();
            if tx.retired || !tx.owes {
                return true;
            }
            let settled = tx.settle();
            let ring = tx.awaited(Label::new(Kind::OneWay, 2));
            drop(tx);
            self.channel.after_push();
            match settled {
                Ok(()) | Err(PushError::Retired) => return true,
                Err(PushError::Corrupt(lie)) => {
                    self.poison(lie);
                    return true;
                }
                Err(PushError::Full { wake_at }) => {
                    if self.wait_for_room(ring, wake_at, until, turn).is_err() {
                        return self.channel.check_life() != Fate::Open;
                    }
                }
            }
        }
    }

    /// Ends the calls for which nobody has the request: sent before anything was kept.
    fn end_the_others(&self, number: u32) {
        for slot in self.table.slots().iter().filter(|slot| slot.awaits_callback()) {
            if slot.channel() != number {
                let taken = slot
                    .position()
                    .is_some_and(|(ring, position)| self.channel.taken_by_peer(ring) > position);
                self.failed();
                self.finish(slot.message_id() as u32, Err(CallError::PeerDied { taken }));
            }
        }
    }
}
