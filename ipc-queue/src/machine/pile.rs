//! The messages of a queue, and who finds them: by order, by time, by consumer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Delivery, Facts, Now};
use crate::record::Stored;

/// The place of dead letters, behind the priorities.
const DEAD: usize = 5;

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It can be taken.
    Ready,
    /// It can from then on.
    Delayed(u64),
    /// A consumer has it, until then.
    Leased(u64),
    /// It is acknowledged, and that is not stored yet.
    Settling,
}

#[derive(Debug)]
struct Message {
    stored: Stored,
    state: State,
    /// Who had it last; 0 for nobody.
    consumer: u64,
}

impl Message {
    fn lane(&self) -> usize {
        if self.stored.dead { DEAD } else { usize::from(self.stored.priority) }
    }
}

/// What a consumer has.
#[derive(Debug, Default)]
struct Holder {
    /// Over which it was last heard; 0 before it was.
    channel: u64,
    ids: BTreeSet<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Pile {
    messages: BTreeMap<u64, Message>,
    bytes: u64,
    /// By place, and by id: what came first is given out first, also when it came back.
    ready: [BTreeSet<u64>; DEAD + 1],
    /// By when.
    delayed: BTreeSet<(u64, u64)>,
    leases: BTreeSet<(u64, u64)>,
    holders: HashMap<u64, Holder>,
}

impl Pile {
    /// How many messages there are, and their bytes.
    pub(super) fn size(&self) -> (u64, u64) {
        (self.messages.len() as u64, self.bytes)
    }

    pub(super) fn count(&self, others: Facts) -> Facts {
        let dead = self.messages.values().filter(|it| it.stored.dead).count();
        Facts {
            ready: self.ready[..DEAD].iter().map(|it| it.len() as u64).sum(),
            delayed: self.delayed.len() as u64,
            leased: self.leases.len() as u64,
            dead: dead as u64,
            bytes: self.bytes,
            ..others
        }
    }

    pub(super) fn deadline_ns(&self) -> Option<u64> {
        [self.leases.first(), self.delayed.first()].into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// Takes a message in, or writes over it.
    pub(super) fn insert(&mut self, stored: Stored, now: Now) {
        let id = stored.id;
        self.remove(id);
        self.bytes += stored.payload.len() as u64;
        // In no index until it has a place.
        self.messages.insert(id, Message { stored, state: State::Settling, consumer: 0 });
        self.set_waiting(id, now);
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.unlist(id);
        if let Some(message) = self.messages.remove(&id) {
            self.bytes -= message.stored.payload.len() as u64;
        }
    }

    /// Has a message ready, or delayed until its date.
    pub(super) fn set_waiting(&mut self, id: u64, now: Now) {
        let Some(message) = self.messages.get(&id) else { return };
        let state = match message.stored.not_before_ms.checked_sub(now.wall_ms) {
            None | Some(0) => State::Ready,
            Some(ms) => State::Delayed(now.mono_ns.saturating_add(ms.saturating_mul(1_000_000))),
        };
        self.set(id, state);
    }

    /// Changes where a message stands; who has it is said by [`Pile::lease`].
    pub(super) fn set(&mut self, id: u64, state: State) {
        self.unlist(id);
        let Some(message) = self.messages.get_mut(&id) else { return };
        message.state = state;
        let (lane, consumer) = (message.lane(), message.consumer);
        match state {
            State::Ready => drop(self.ready[lane].insert(id)),
            State::Delayed(due_ns) => drop(self.delayed.insert((due_ns, id))),
            State::Leased(until_ns) => {
                self.leases.insert((until_ns, id));
                self.holders.entry(consumer).or_default().ids.insert(id);
            }
            State::Settling => {}
        }
    }

    fn unlist(&mut self, id: u64) {
        let Some(message) = self.messages.get(&id) else { return };
        match message.state {
            // A dead letter may have changed its place meanwhile.
            State::Ready => {
                for lane in &mut self.ready {
                    lane.remove(&id);
                }
            }
            State::Delayed(due_ns) => drop(self.delayed.remove(&(due_ns, id))),
            State::Leased(until_ns) => {
                self.leases.remove(&(until_ns, id));
                if let Some(holder) = self.holders.get_mut(&message.consumer) {
                    holder.ids.remove(&id);
                    if holder.ids.is_empty() {
                        self.holders.remove(&message.consumer);
                    }
                }
            }
            State::Settling => {}
        }
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.messages.contains_key(&id)
    }

    pub(super) fn stored_mut(&mut self, id: u64) -> Option<&mut Stored> {
        self.messages.get_mut(&id).map(|message| &mut message.stored)
    }

    fn lanes(dead: bool) -> std::ops::Range<usize> {
        if dead { DEAD..DEAD + 1 } else { 0..DEAD }
    }

    pub(super) fn has_ready(&self, dead: bool) -> bool {
        self.ready[Pile::lanes(dead)].iter().any(|lane| !lane.is_empty())
    }

    /// The next to be given out, and how long it is.
    pub(super) fn first_ready(&self, dead: bool) -> Option<(u64, usize)> {
        let id = *self.ready[Pile::lanes(dead)].iter().find_map(BTreeSet::first)?;
        Some((id, self.messages.get(&id)?.stored.payload.len()))
    }

    /// Gives a message to a consumer.
    pub(super) fn lease(
        &mut self,
        id: u64,
        consumer: u64,
        channel: u64,
        until_ns: u64,
    ) -> Option<Delivery> {
        let message = self.messages.get_mut(&id)?;
        message.stored.attempts = message.stored.attempts.saturating_add(1);
        let delivery = delivery(&message.stored);
        self.hold(id, consumer, until_ns);
        self.bind(consumer, channel);
        Some(delivery)
    }

    /// As [`Pile::lease`], of one that a consumer had before this process began.
    pub(super) fn hold(&mut self, id: u64, consumer: u64, until_ns: u64) {
        self.unlist(id);
        if let Some(message) = self.messages.get_mut(&id) {
            // In no index any more: `set` has nothing to take it from.
            message.state = State::Settling;
            message.consumer = consumer;
            self.set(id, State::Leased(until_ns));
        }
    }

    /// Gives a message back to who had it when it was acknowledged, or to anybody.
    pub(super) fn unsettle(&mut self, id: u64, until_ns: u64, now: Now) {
        match self.messages.get(&id).map(|it| it.consumer) {
            Some(0) => self.set_waiting(id, now),
            Some(_) => self.set(id, State::Leased(until_ns)),
            None => {}
        }
    }

    /// Notes over which channel a consumer is heard, if it has anything.
    pub(super) fn bind(&mut self, consumer: u64, channel: u64) {
        if let Some(holder) = self.holders.get_mut(&consumer) {
            holder.channel = channel;
        }
    }

    pub(super) fn held_by(&self, consumer: u64) -> Vec<u64> {
        self.holders.get(&consumer).map(|it| it.ids.iter().copied().collect()).unwrap_or_default()
    }

    pub(super) fn held_over(&self, channel: u64) -> Vec<u64> {
        let over = self.holders.values().filter(|holder| holder.channel == channel);
        let mut ids: Vec<u64> = over.flat_map(|holder| &holder.ids).copied().collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn is_leased(&self, id: u64, consumer: u64, attempt: u32) -> bool {
        let is_leased = |it: &Message| matches!(it.state, State::Leased(_));
        self.was_last(id, consumer, attempt) && self.messages.get(&id).is_some_and(is_leased)
    }

    /// Whether nobody had it since that consumer did, at that attempt.
    pub(super) fn was_last(&self, id: u64, consumer: u64, attempt: u32) -> bool {
        self.messages.get(&id).is_some_and(|it| {
            it.consumer == consumer && it.stored.attempts == attempt && it.state != State::Settling
        })
    }

    /// Lets what waited for its time be ready; gives the messages whose lease is over.
    pub(super) fn due(&mut self, now_ns: u64) -> Vec<u64> {
        while let Some(&(due_ns, id)) = self.delayed.first()
            && due_ns <= now_ns
        {
            self.set(id, State::Ready);
        }
        self.leases.iter().take_while(|(at, _)| *at <= now_ns).map(|(_, id)| *id).collect()
    }

    pub(super) fn ready_dead(&self, most: usize) -> Vec<u64> {
        self.ready[DEAD].iter().take(most).copied().collect()
    }

    /// Makes a message of a dead letter.
    pub(super) fn revive(&mut self, id: u64) {
        if let Some(stored) = self.stored_mut(id) {
            stored.dead = false;
            stored.attempts = 0;
            self.set(id, State::Ready);
        }
    }

    pub(super) fn unheld(&self, dead: bool) -> Vec<u64> {
        let is_meant = |it: &Message| {
            matches!(it.state, State::Ready | State::Delayed(_)) && (it.stored.dead || !dead)
        };
        self.messages.iter().filter(|(_, it)| is_meant(it)).map(|(id, _)| *id).collect()
    }

    /// A message as it stands, for the log, and who has it.
    pub(super) fn as_written(&self, id: u64) -> Option<(Stored, Option<u64>)> {
        let message = self.messages.get(&id).filter(|it| it.state != State::Settling)?;
        let is_leased = matches!(message.state, State::Leased(_));
        Some((message.stored.clone(), is_leased.then_some(message.consumer)))
    }

    pub(super) fn peek(&self, dead: bool, above: u64, most: usize) -> Vec<Delivery> {
        let range = self.messages.range(above.saturating_add(1)..);
        let meant = range.filter(|(_, it)| it.stored.dead == dead);
        meant.take(most).map(|(_, it)| delivery(&it.stored)).collect()
    }
}

fn delivery(stored: &Stored) -> Delivery {
    Delivery {
        id: stored.id,
        attempt: stored.attempts,
        priority: stored.priority,
        producer: stored.producer,
        sequence: stored.sequence,
        payload: stored.payload.clone(),
    }
}

#[cfg(test)]
impl Pile {
    pub(super) fn messages(&self) -> impl Iterator<Item = (&Stored, State)> {
        self.messages.values().map(|it| (&it.stored, it.state))
    }

    /// Each message is where its state says, and nowhere else.
    pub(super) fn check(&self) {
        let listed: usize = self.ready.iter().map(BTreeSet::len).sum::<usize>()
            + self.delayed.len()
            + self.leases.len();
        let settling = self.messages.values().filter(|it| it.state == State::Settling).count();
        assert_eq!(listed + settling, self.messages.len());
        for (id, it) in &self.messages {
            let is_listed = match it.state {
                State::Ready => self.ready[it.lane()].contains(id),
                State::Delayed(at) => self.delayed.contains(&(at, *id)),
                State::Leased(at) => {
                    self.leases.contains(&(at, *id)) && self.holders[&it.consumer].ids.contains(id)
                }
                State::Settling => true,
            };
            assert!(is_listed, "{id}: {:?}", it.state);
        }
        let held: usize = self.holders.values().map(|it| it.ids.len()).sum();
        assert_eq!(held, self.leases.len());
        let bytes: usize = self.messages.values().map(|it| it.stored.payload.len()).sum();
        assert_eq!(self.bytes, bytes as u64);
    }
}
