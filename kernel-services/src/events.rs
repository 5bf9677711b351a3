//! Topics of events: who publishes in which rings, who is given them, and whom publishers wait
//! for. Pure; what rights and quotas say is the broker's to ask.
//!
//! A topic has a number and a name, and each leads to the other. A number is what the node file
//! says, or what follows `event/` in the name, or else a hash of the name, which has the highest
//! bit: numbers that programs give out by hand have not. Two names of one number are refused.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ipc::{Status, bus, control::TopicEntry};

use crate::broker::Token;

/// Names a ring: its publisher's node above, that one's number for it below.
pub(crate) type RingId = u64;
/// Names a reliable subscriber: its node above, its own number below.
pub(crate) type SubscriberId = u64;

/// Events of the usual size that a ring holds where the node file says nothing.
pub const EVENTS: u64 = 10_000;
/// Topics at a time.
const TOPICS: usize = 16_384;
/// Rings of a topic, those that were left behind included.
const RINGS_PER_TOPIC: usize = 64;
/// Nodes that subscribe to a topic.
const SUBSCRIBERS_PER_TOPIC: usize = 4096;
/// Rings of a node, and topics that it subscribes to.
const OF_A_NODE: usize = 1024;
/// Reliable subscribers of a ring: its publisher looks at all of them now and then.
const RELIABLE_PER_RING: usize = 256;

/// What the node file says of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its number, where it has one of its own.
    pub id: Option<u32>,
    /// Events of the usual size that each publisher's ring holds.
    pub event_bus_size: u64,
    /// Whether a publisher's last events stay when it is gone.
    pub retained: bool,
    /// Whether publishers wait for subscribers that do not say otherwise.
    pub reliable: bool,
}

impl Topic {
    /// Gives its number.
    pub fn number(&self) -> u32 {
        self.id.unwrap_or_else(|| number_of(&self.name))
    }
}

/// Gives the number of a name of which the node file says nothing.
pub fn number_of(name: &str) -> u32 {
    let by_hand = name.strip_prefix("event/").and_then(|number| number.parse().ok());
    by_hand.filter(|&number| number != 0).unwrap_or_else(|| {
        // FNV-1a, 32 bits: the same in every run, and everywhere.
        let hash = name
            .bytes()
            .fold(0x811C_9DC5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        hash | 1 << 31
    })
}

/// A ring that subscribers are given.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    pub(crate) id: RingId,
    /// Its publisher's connection; nothing once that is gone, and the ring stays for who comes.
    pub(crate) publisher: Option<Token>,
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    /// The publisher, as others know it.
    pub(crate) appears: ipc::ServiceId,
    /// The ring that this one follows.
    pub(crate) follows: RingId,
    /// Whom the publisher waits for.
    reliable: BTreeMap<SubscriberId, Token>,
}

/// One topic.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) name: Arc<str>,
    rings: Vec<Ring>,
    subscribers: BTreeMap<Token, Subscriber>,
}

/// A node that subscribes.
#[derive(Debug, Default)]
pub(crate) struct Subscriber {
    /// Whether publishers have to wake it.
    sleeps: bool,
    /// The rings that it was given.
    given: BTreeSet<RingId>,
    /// Events that it has lost, as it says.
    lost: u64,
}

/// All topics.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    declared: HashMap<Arc<str>, Topic>,
    live: BTreeMap<u32, State>,
    /// Rings by connection, and topics subscribed to.
    rings_of: HashMap<Token, usize>,
    subscriptions: HashMap<Token, usize>,
}

/// What a subscriber hears of a ring that is no more, and what becomes of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Withdrawal {
    pub(crate) topic: u32,
    pub(crate) ring: RingId,
    /// Who was given it.
    pub(crate) tell: Vec<Token>,
    /// The rings that are not kept any more: that one, or one that it takes the place of.
    pub(crate) lost: Vec<RingId>,
}

/// A subscriber that left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Leave {
    /// Whom the publishers need not wait for any more.
    pub(crate) reliable: Vec<(Token, RingId, SubscriberId)>,
    /// Publishers that nobody sleeps for any more.
    pub(crate) calm: Vec<(Token, RingId)>,
}

impl Topics {
    /// Takes what the node file says.
    pub(crate) fn declare(&mut self, topics: Vec<Topic>) {
        self.declared =
            topics.into_iter().map(|topic| (Arc::from(topic.name.as_str()), topic)).collect();
    }

    /// Finds the topic of a number, a name, or both.
    ///
    /// # Errors
    /// `INVALID` where neither is given, or they are of two topics; `EXISTS` where the number of
    /// the name is another name's.
    pub(crate) fn resolve(&self, id: u32, name: &str) -> Result<(u32, Arc<str>), Status> {
        if name.is_empty() {
            if id == 0 {
                return Err(Status::INVALID);
            }
            let known = self.name_of(id);
            return Ok((id, known.unwrap_or_else(|| format!("event/{id}").into())));
        }
        let declared = self.declared.get(name);
        let number = declared.map_or_else(|| number_of(name), Topic::number);
        if self.name_of(number).is_some_and(|known| &*known != name) {
            return Err(Status::EXISTS);
        }
        if id != 0 && id != number {
            return Err(Status::INVALID);
        }
        Ok((number, name.into()))
    }

    fn name_of(&self, id: u32) -> Option<Arc<str>> {
        let live = self.live.get(&id).map(|state| &state.name);
        let declared = || self.declared.iter().find(|(_, it)| it.number() == id);
        live.or_else(|| declared().map(|(name, _)| name)).cloned()
    }

    /// Bytes of the rings of a topic, and whether its subscribers are reliable by default.
    pub(crate) fn terms(&self, name: &str) -> (u64, bool) {
        let declared = self.declared.get(name);
        let events = declared.map_or(EVENTS, |it| it.event_bus_size);
        (bus::ring_bytes(events), declared.is_some_and(|it| it.reliable))
    }

    pub(crate) fn state(&self, topic: u32) -> Option<&State> {
        self.live.get(&topic)
    }

    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.live.keys().copied().collect()
    }

    /// Makes sure that a connection may publish in one more ring.
    ///
    /// # Errors
    /// `EXISTS` for a ring that is known; `QUOTA`.
    pub(crate) fn may_advertise(&self, topic: u32, ring: &Ring, by: Token) -> Result<(), Status> {
        let state = self.live.get(&topic);
        let rings = state.map_or(&[][..], |state| &state.rings);
        if rings.iter().any(|it| it.id == ring.id) {
            return Err(Status::EXISTS);
        }
        let is_own = |it: &Ring| it.id == ring.follows && it.publisher == Some(by);
        if ring.follows != 0 && !rings.iter().any(is_own) {
            return Err(Status::NOT_FOUND);
        }
        let follows = usize::from(ring.follows != 0);
        let of_node = self.rings_of.get(&by).copied().unwrap_or(0);
        let is_full = rings.len() >= RINGS_PER_TOPIC + follows
            || of_node >= OF_A_NODE + follows
            || (state.is_none() && self.live.len() >= TOPICS);
        if is_full { Err(Status::QUOTA) } else { Ok(()) }
    }

    /// Enters a ring. Gives the ring that it follows, which is not kept any more, and whether
    /// somebody may sleep.
    pub(crate) fn advertise(
        &mut self,
        topic: u32,
        name: &Arc<str>,
        ring: Ring,
    ) -> (Option<RingId>, bool) {
        let by = ring.publisher;
        let state = self.live.entry(topic).or_insert_with(|| State::new(name));
        let followed = state.rings.iter().position(|it| it.id == ring.follows);
        let followed = followed.map(|index| state.rings.remove(index));
        if followed.is_none()
            && let Some(by) = by
        {
            *self.rings_of.entry(by).or_default() += 1;
        }
        state.rings.push(ring);
        (followed.map(|it| it.id), state.subscribers.values().any(|it| it.sleeps))
    }

    /// Enters a subscriber, or changes whether it sleeps. Gives whether it is new, and the
    /// publishers that are to wake somebody from now on.
    ///
    /// # Errors
    /// `QUOTA`.
    pub(crate) fn subscribe(
        &mut self,
        topic: u32,
        name: &Arc<str>,
        by: Token,
        sleeps: bool,
    ) -> Result<(bool, Vec<(Token, RingId)>), Status> {
        let room = self.live.len() < TOPICS || self.live.contains_key(&topic);
        let of_node = self.subscriptions.entry(by).or_default();
        let state = self.live.get(&topic);
        let is_new = !state.is_some_and(|state| state.subscribers.contains_key(&by));
        let nodes = state.map_or(0, |state| state.subscribers.len());
        if is_new && (!room || nodes >= SUBSCRIBERS_PER_TOPIC || *of_node >= OF_A_NODE) {
            return Err(Status::QUOTA);
        }
        *of_node += usize::from(is_new);
        let state = self.live.entry(topic).or_insert_with(|| State::new(name));
        let slept = state.subscribers.values().any(|it| it.sleeps);
        state.subscribers.entry(by).or_default().sleeps = sleeps;
        let woken = sleeps && !slept;
        Ok((is_new, if woken { state.publishers().collect() } else { Vec::new() }))
    }

    /// Notes how many events a subscriber has lost, as it says.
    pub(crate) fn note_lost(&mut self, topic: u32, by: Token, lost: u64) {
        let state = self.live.get_mut(&topic);
        if let Some(it) = state.and_then(|state| state.subscribers.get_mut(&by)) {
            it.lost = lost;
        }
    }

    /// Notes that a subscriber was given a ring.
    pub(crate) fn given(&mut self, topic: u32, ring: RingId, to: Token) {
        if let Some(subscriber) =
            self.live.get_mut(&topic).and_then(|it| it.subscribers.get_mut(&to))
        {
            subscriber.given.insert(ring);
        }
    }

    /// Enters a reliable subscriber of a ring; gives the ring's publisher.
    ///
    /// # Errors
    /// `NOT_FOUND` where the ring, or its publisher, is gone, or was not given to that subscriber;
    /// `QUOTA`.
    pub(crate) fn hold(
        &mut self,
        topic: u32,
        ring: RingId,
        subscriber: SubscriberId,
        by: Token,
    ) -> Result<Token, Status> {
        let state = self.live.get_mut(&topic).ok_or(Status::NOT_FOUND)?;
        let was_given = state.subscribers.get(&by).is_some_and(|it| it.given.contains(&ring));
        let ring = state.rings.iter_mut().find(|it| it.id == ring && was_given);
        let ring = ring.ok_or(Status::NOT_FOUND)?;
        let publisher = ring.publisher.ok_or(Status::NOT_FOUND)?;
        if ring.reliable.len() >= RELIABLE_PER_RING {
            return Err(Status::QUOTA);
        }
        ring.reliable.insert(subscriber, by);
        Ok(publisher)
    }

    /// Finds a ring and one of its reliable subscribers; gives both their connections.
    pub(crate) fn held(
        &self,
        topic: u32,
        ring: RingId,
        subscriber: SubscriberId,
    ) -> Option<(Token, Token)> {
        let ring = self.live.get(&topic)?.rings.iter().find(|it| it.id == ring)?;
        Some((ring.publisher?, *ring.reliable.get(&subscriber)?))
    }

    /// Ends the reliability of a subscriber in a ring.
    pub(crate) fn let_go(&mut self, topic: u32, ring: RingId, subscriber: SubscriberId) {
        let state = self.live.get_mut(&topic);
        if let Some(ring) = state.and_then(|it| it.rings.iter_mut().find(|it| it.id == ring)) {
            ring.reliable.remove(&subscriber);
        }
    }

    /// A publisher lets go of a ring, or is gone. In a topic that is retained it stays for who
    /// comes, in place of an older one that was left so.
    pub(crate) fn withdraw(&mut self, topic: u32, ring: RingId, by: Token) -> Option<Withdrawal> {
        let state = self.live.get_mut(&topic)?;
        let index = state.rings.iter().position(|it| it.id == ring && it.publisher == Some(by))?;
        let tell: Vec<Token> = state.given(ring).collect();
        count_down(&mut self.rings_of, by);
        let stays = self.declared.get(&state.name).is_some_and(|it| it.retained);
        let mut lost = Vec::new();
        if stays {
            lost.extend(state.rings.iter().filter(|it| it.publisher.is_none()).map(|it| it.id));
            state.rings[index].publisher = None;
            state.rings[index].reliable.clear();
        } else {
            lost.push(ring);
        }
        state.rings.retain(|it| !lost.contains(&it.id));
        for subscriber in state.subscribers.values_mut() {
            subscriber.given.retain(|ring| !lost.contains(ring));
        }
        self.forget_if_idle(topic);
        Some(Withdrawal { topic, ring, tell, lost })
    }

    /// A node subscribes to a topic no more.
    pub(crate) fn unsubscribe(&mut self, topic: u32, by: Token) -> Option<Leave> {
        let state = self.live.get_mut(&topic)?;
        let gone = state.subscribers.remove(&by)?;
        count_down(&mut self.subscriptions, by);
        let mut leave = Leave::default();
        for ring in &mut state.rings {
            let Some(publisher) = ring.publisher else { continue };
            let id = ring.id;
            ring.reliable.retain(|&subscriber, &mut token| {
                if token == by {
                    leave.reliable.push((publisher, id, subscriber));
                }
                token != by
            });
        }
        if gone.sleeps && !state.subscribers.values().any(|it| it.sleeps) {
            leave.calm.extend(state.publishers());
        }
        self.forget_if_idle(topic);
        Some(leave)
    }

    /// The topics in which a connection publishes or to which it subscribes.
    pub(crate) fn of(&self, token: Token) -> Vec<u32> {
        let counted = self.rings_of.contains_key(&token) || self.subscriptions.contains_key(&token);
        let concerns = |state: &State| {
            state.subscribers.contains_key(&token)
                || state.rings.iter().any(|it| it.publisher == Some(token))
        };
        let all = self.live.iter().filter(|_| counted);
        all.filter(|(_, state)| concerns(state)).map(|(&topic, _)| topic).collect()
    }

    /// A connection is gone, and has left all topics.
    pub(crate) fn forget(&mut self, token: Token) {
        self.rings_of.remove(&token);
        self.subscriptions.remove(&token);
    }

    /// Gives up the rings that stay without a publisher; they are named.
    pub(crate) fn abandon(&mut self, all: bool) -> Vec<RingId> {
        let mut lost = Vec::new();
        for state in self.live.values_mut() {
            let stays = !all && self.declared.get(&state.name).is_some_and(|it| it.retained);
            state.rings.retain(|ring| {
                let is_over = ring.publisher.is_none() && !stays;
                if is_over {
                    lost.push(ring.id);
                }
                !is_over
            });
        }
        self.numbers().into_iter().for_each(|topic| self.forget_if_idle(topic));
        lost
    }

    fn forget_if_idle(&mut self, topic: u32) {
        let is_idle = |state: &State| state.rings.is_empty() && state.subscribers.is_empty();
        if self.live.get(&topic).is_some_and(is_idle) {
            self.live.remove(&topic);
        }
    }

    /// Lists topics above `after`, those of the node file and those in use.
    pub(crate) fn list(&self, after: u32) -> Vec<TopicEntry> {
        let declared = self.declared.values().map(Topic::number);
        let all: BTreeSet<u32> = declared.chain(self.live.keys().copied()).collect();
        let entry = |id: u32| {
            let name = self.name_of(id)?;
            let (bytes, _) = self.terms(&name);
            let state = self.live.get(&id);
            let rings = state.map_or(&[][..], |it| &it.rings);
            Some(TopicEntry {
                id,
                bytes,
                publishers: rings.iter().filter(|it| it.publisher.is_some()).count() as u32,
                subscribers: state.map_or(0, |it| it.subscribers.len()) as u32,
                reliable: rings.iter().map(|it| it.reliable.len()).sum::<usize>() as u32,
                retained: self.declared.get(&name).is_some_and(|it| it.retained),
                name: name.to_string(),
            })
        };
        all.range(after.saturating_add(1)..).filter_map(|&id| entry(id)).take(64).collect()
    }
}

impl State {
    fn new(name: &Arc<str>) -> State {
        State { name: Arc::clone(name), rings: Vec::new(), subscribers: BTreeMap::new() }
    }

    pub(crate) fn rings(&self) -> &[Ring] {
        &self.rings
    }

    pub(crate) fn subscribers(&self) -> impl Iterator<Item = Token> {
        self.subscribers.keys().copied()
    }

    /// Each subscriber: whether it sleeps, in how many rings it is reliable, what it has lost.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = (Token, bool, u32, u64)> {
        self.subscribers.iter().map(|(&token, it)| {
            let waits = |ring: &&Ring| ring.reliable.values().any(|&by| by == token);
            (token, it.sleeps, self.rings.iter().filter(waits).count() as u32, it.lost)
        })
    }

    /// Who was given a ring.
    pub(crate) fn given(&self, ring: RingId) -> impl Iterator<Item = Token> {
        let given = self.subscribers.iter().filter(move |(_, it)| it.given.contains(&ring));
        given.map(|(&token, _)| token)
    }

    fn publishers(&self) -> impl Iterator<Item = (Token, RingId)> {
        self.rings.iter().filter_map(|it| Some((it.publisher?, it.id)))
    }
}

impl Ring {
    pub(crate) fn new(id: RingId, publisher: Token, follows: RingId) -> Ring {
        Ring {
            id,
            publisher: Some(publisher),
            pid: 0,
            uid: 0,
            appears: ipc::ServiceId::NONE,
            follows,
            reliable: BTreeMap::new(),
        }
    }
}

fn count_down(counts: &mut HashMap<Token, usize>, token: Token) {
    if let Some(count) = counts.get_mut(&token) {
        *count = count.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> Topics {
        let mut topics = Topics::default();
        topics.declare(vec![Topic {
            name: "prices".to_owned(),
            id: Some(7),
            event_bus_size: 100,
            retained: true,
            reliable: false,
        }]);
        topics
    }

    #[test]
    fn names_and_numbers_lead_to_each_other_and_two_of_one_are_refused() {
        let topics = topics();
        assert_eq!(topics.resolve(7, ""), Ok((7, "prices".into())));
        assert_eq!(topics.resolve(0, "prices"), Ok((7, "prices".into())));
        assert_eq!(topics.resolve(8, "prices"), Err(Status::INVALID));
        assert_eq!(topics.resolve(0, ""), Err(Status::INVALID));
        assert_eq!(topics.resolve(9, ""), Ok((9, "event/9".into())));
        assert_eq!(topics.resolve(0, "event/9"), Ok((9, "event/9".into())));
        assert_eq!(topics.resolve(0, "event/7"), Err(Status::EXISTS));
        let (hashed, _) = topics.resolve(0, "orders").expect("any name has a number");
        assert_eq!(hashed, number_of("orders"));
        assert!(hashed >> 31 == 1, "it is above what is given out by hand");
        assert_eq!(topics.terms("prices").0, 8192);
        assert_eq!(topics.terms("orders").0, 1 << 20);
    }

    #[test]
    fn a_retained_ring_stays_for_who_comes_until_a_newer_one_is_left() {
        let mut topics = topics();
        let name: Arc<str> = "prices".into();
        topics.advertise(7, &name, Ring::new(1 << 32 | 1, 1, 0));
        let first = topics.withdraw(7, 1 << 32 | 1, 1).expect("it was there");
        assert!(first.lost.is_empty());
        assert_eq!(topics.state(7).expect("kept").rings().len(), 1);
        topics.advertise(7, &name, Ring::new(2 << 32 | 1, 2, 0));
        let second = topics.withdraw(7, 2 << 32 | 1, 2).expect("it was there");
        assert_eq!(second.lost, vec![1 << 32 | 1]);
        assert_eq!(topics.abandon(true), vec![2 << 32 | 1]);
        assert!(topics.numbers().is_empty());
    }

    #[test]
    fn publishers_hear_of_the_first_sleeper_and_of_the_last_that_leaves() {
        let mut topics = topics();
        let name: Arc<str> = "x".into();
        topics.advertise(3, &name, Ring::new(9, 1, 0));
        assert_eq!(topics.subscribe(3, &name, 2, false), Ok((true, vec![])));
        assert_eq!(topics.subscribe(3, &name, 2, true), Ok((false, vec![(1, 9)])));
        assert_eq!(topics.subscribe(3, &name, 4, true), Ok((true, vec![])));
        assert_eq!(topics.unsubscribe(3, 2), Some(Leave::default()));
        topics.given(3, 9, 4);
        assert_eq!(topics.hold(3, 9, 77, 4), Ok(1));
        assert_eq!(topics.held(3, 9, 77), Some((1, 4)));
        let left = topics.unsubscribe(3, 4).expect("it was there");
        assert_eq!((left.reliable, left.calm), (vec![(1, 9, 77)], vec![(1, 9)]));
    }
}
