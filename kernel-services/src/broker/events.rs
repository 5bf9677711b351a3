//! The event bus: rings pass from publishers to subscribers, as far as the rules let them.

use std::{borrow::Cow, sync::Arc};

use ipc::{
    ServiceId, Status,
    control::{
        BusNote, BusStep, Listener, MOST_LISTENERS, Reply, Request, SUBSCRIBER_SLEEPS,
        TOPIC_RELIABLE, topics_fit,
    },
};

use super::{Broker, Carried, Effect, Token, Turn};
use crate::{
    events::{Ring, RingId},
    notes::{Kind, Note},
    security::{Because, Operation, What},
};

/// What the reactor is to do with rings of events.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RingEffect {
    /// Keeps the descriptor of the packet at hand as that ring.
    Keep { ring: RingId },
    /// Sends a subscriber a ring.
    Send { to: Token, ring: RingId, reply: Reply },
    /// Closes a ring.
    Lose { ring: RingId },
    /// Sends a publisher the descriptor of the packet at hand, a subscriber's cursor page.
    Pass { to: Token, reply: Reply },
}

impl Broker {
    /// Answers a request about topics.
    pub(super) fn bus(
        &mut self,
        from: Token,
        node: ServiceId,
        request: Request,
        carried: Carried,
        turn: &mut Turn,
    ) -> Result<Option<Reply>, Status> {
        match request {
            Request::Topic { id, name } => {
                let (id, name) = self.topics.resolve(id, &name)?;
                let (bytes, reliable) = self.topics.terms(&name);
                let flags = if reliable { TOPIC_RELIABLE } else { 0 };
                Ok(Some(Reply::Topic { id, bytes, flags, name: name.to_string() }))
            }
            Request::Advertise { topic, ring, follows, name } => {
                let (topic, name) = self.topics.resolve(topic, &name)?;
                let id = |number: u32| u64::from(node.get()) << 32 | u64::from(number);
                let follows = if follows == 0 { 0 } else { id(follows) };
                if ring == 0 {
                    return Err(Status::INVALID);
                }
                let ring = Ring::new(id(ring), from, follows);
                self.advertise(from, node, topic, &name, ring, carried, turn)?;
                Ok(Some(Reply::Done))
            }
            Request::Subscribe { topic, flags, name } => {
                let (topic, name) = self.topics.resolve(topic, &name)?;
                if flags & !SUBSCRIBER_SLEEPS != 0 {
                    return Err(Status::INVALID);
                }
                self.subscribe(from, topic, &name, flags & SUBSCRIBER_SLEEPS != 0, turn)?;
                Ok(Some(Reply::Done))
            }
            Request::Topics { after } if self.is_operator(from) => {
                let mut entries = self.topics.list(after);
                let fit = topics_fit(&entries);
                let next = if entries.len() == 64 || fit < entries.len() {
                    entries.truncate(fit);
                    entries.last().map_or(0, |it| it.id)
                } else {
                    0
                };
                Ok(Some(Reply::Topics { entries, next }))
            }
            Request::Listeners { topic, after } if self.is_operator(from) => {
                self.listeners(topic, after).map(Some)
            }
            Request::Topics { .. } | Request::Listeners { .. } => Err(Status::ACCESS),
            Request::Bus(told) => {
                self.bus_note(from, node, told, carried, turn);
                Ok(None)
            }
            _ => Err(Status::PROTOCOL),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one request")]
    fn advertise(
        &mut self,
        from: Token,
        node: ServiceId,
        topic: u32,
        name: &Arc<str>,
        mut ring: Ring,
        carried: Carried,
        turn: &mut Turn,
    ) -> Result<(), Status> {
        let Carried::One(facts) = carried else { return Err(Status::INVALID) };
        let bytes = facts.ring_bytes().ok_or(Status::INVALID)?;
        let session = self.sessions.get(&from).ok_or(Status::INVALID)?;
        (ring.pid, ring.uid) = (session.peer.pid, session.peer.uid);
        ring.appears = self.registry.appearance(node).0;
        let state = self.topics.state(topic);
        let others = state.and_then(|it| it.rings().iter().find(|it| it.publisher != Some(from)));
        let served_by = others.map_or(ring.uid, |it| it.uid);
        self.may_use(from, name, served_by, Operation::Publish, turn)?;
        self.topics.may_advertise(topic, &ring, from)?;
        self.accounts.ring(from, ring.id, bytes)?;
        self.note_use(from, name, Operation::Publish, turn);
        let id = ring.id;
        let (followed, sleeps) = self.topics.advertise(topic, name, ring.clone());
        turn.out.push(Effect::Ring(RingEffect::Keep { ring: id }));
        if let Some(followed) = followed {
            self.lose_ring(followed, turn);
        }
        if sleeps {
            tell(from, BusStep::Sleepers, topic, id, 0, 1, turn);
        }
        let state = self.topics.state(topic);
        let subscribers: Vec<Token> =
            state.into_iter().flat_map(crate::events::State::subscribers).collect();
        for subscriber in subscribers {
            self.give(subscriber, topic, name, &ring, turn);
        }
        Ok(())
    }

    fn subscribe(
        &mut self,
        from: Token,
        topic: u32,
        name: &Arc<str>,
        sleeps: bool,
        turn: &mut Turn,
    ) -> Result<(), Status> {
        let session = self.sessions.get(&from).ok_or(Status::INVALID)?;
        let rings = self.topics.state(topic).map_or_else(Vec::new, |it| it.rings().to_vec());
        let served_by = rings.first().map_or(session.peer.uid, |it| it.uid);
        self.may_use(from, name, served_by, Operation::Subscribe, turn)?;
        let (is_new, woken) = self.topics.subscribe(topic, name, from, sleeps)?;
        for (publisher, ring) in woken {
            tell(publisher, BusStep::Sleepers, topic, ring, 0, 1, turn);
        }
        if is_new {
            self.note_use(from, name, Operation::Subscribe, turn);
            for ring in &rings {
                self.give(from, topic, name, ring, turn);
            }
        }
        Ok(())
    }

    /// Gives a subscriber a ring, if it may have what that publisher says.
    fn give(&mut self, to: Token, topic: u32, name: &str, ring: &Ring, turn: &mut Turn) {
        if self.may_use(to, name, ring.uid, Operation::Subscribe, turn).is_err() {
            return;
        }
        self.topics.given(topic, ring.id, to);
        let reply = Reply::Ring {
            topic,
            ring: ring.id,
            follows: ring.follows,
            publisher: ring.appears,
            pid: ring.pid,
        };
        turn.out.push(Effect::Ring(RingEffect::Send { to, ring: ring.id, reply }));
    }

    /// Takes what a node tells of a ring, if it is the node's to tell, and passes it on.
    fn bus_note(
        &mut self,
        from: Token,
        node: ServiceId,
        told: BusNote,
        carried: Carried,
        turn: &mut Turn,
    ) {
        let BusNote { step, topic, ring, subscriber, .. } = told;
        let is_own = (subscriber >> 32) as u32 == node.get();
        match step {
            BusStep::Cursor => {
                let fits = matches!(carried, Carried::One(facts) if facts.fit_cursor());
                let held = if fits && is_own {
                    self.topics.hold(topic, ring, subscriber, from)
                } else {
                    Err(Status::INVALID)
                };
                match held {
                    Ok(to) => turn
                        .out
                        .push(Effect::Ring(RingEffect::Pass { to, reply: Reply::Bus(told) })),
                    Err(_) => tell(from, BusStep::Cut, topic, ring, subscriber, 0, turn),
                }
            }
            BusStep::Held | BusStep::Cut => {
                let held = self.topics.held(topic, ring, subscriber);
                if let Some((_, to)) = held.filter(|(publisher, _)| *publisher == from) {
                    if step == BusStep::Cut {
                        self.topics.let_go(topic, ring, subscriber);
                    }
                    turn.out.push(Effect::Send { to, sequence: 0, reply: Reply::Bus(told) });
                }
            }
            BusStep::Left => {
                let held = self.topics.held(topic, ring, subscriber);
                if let Some((to, _)) = held.filter(|(_, token)| *token == from && is_own) {
                    self.topics.let_go(topic, ring, subscriber);
                    turn.out.push(Effect::Send { to, sequence: 0, reply: Reply::Bus(told) });
                }
            }
            BusStep::Withdrawn => self.withdraw_ring(from, topic, ring, turn),
            BusStep::Unsubscribed => self.unsubscribe(from, topic, turn),
            BusStep::Lost => self.topics.note_lost(topic, from, told.value),
            // The runtime's own to say.
            BusStep::Sleepers | BusStep::Rotate | BusStep::Revoked => {}
        }
    }

    /// Lists who subscribes to a topic, by ids of nodes, from the first above `after`.
    fn listeners(&self, topic: u32, after: u32) -> Result<Reply, Status> {
        let state = self.topics.state(topic).ok_or(Status::NOT_FOUND)?;
        let listener = |(token, sleeps, reliable, lost)| {
            let session = self.sessions.get(&token)?;
            let node = session.node.filter(|node| node.get() > after)?;
            let (pid, uid) = (session.peer.pid, session.peer.uid);
            Some(Listener { node, pid, uid, sleeps, reliable, lost })
        };
        let mut entries: Vec<Listener> = state.listeners().filter_map(listener).collect();
        entries.sort_unstable_by_key(|it| it.node.get());
        let is_more = entries.len() > MOST_LISTENERS;
        entries.truncate(MOST_LISTENERS);
        let next = entries.last().filter(|_| is_more).map_or(0, |it| it.node.get());
        Ok(Reply::Listeners { entries, next })
    }

    fn withdraw_ring(&mut self, from: Token, topic: u32, ring: RingId, turn: &mut Turn) {
        let Some(gone) = self.topics.withdraw(topic, ring, from) else { return };
        let stays = u64::from(!gone.lost.contains(&ring));
        for to in gone.tell {
            tell(to, BusStep::Withdrawn, topic, ring, 0, stays, turn);
        }
        gone.lost.into_iter().for_each(|ring| self.lose_ring(ring, turn));
    }

    fn unsubscribe(&mut self, from: Token, topic: u32, turn: &mut Turn) {
        let Some(left) = self.topics.unsubscribe(topic, from) else { return };
        for (to, ring, subscriber) in left.reliable {
            tell(to, BusStep::Left, topic, ring, subscriber, 0, turn);
        }
        for (to, ring) in left.calm {
            tell(to, BusStep::Sleepers, topic, ring, 0, 0, turn);
        }
    }

    fn lose_ring(&mut self, ring: RingId, turn: &mut Turn) {
        self.accounts.ring_gone(ring);
        turn.out.push(Effect::Ring(RingEffect::Lose { ring }));
    }

    /// A connection is gone, and with it what it published and what it wanted.
    pub(super) fn leave_topics(&mut self, token: Token, turn: &mut Turn) {
        for topic in self.topics.of(token) {
            self.unsubscribe(token, topic, turn);
            for ring in self.rings_of(topic, token) {
                self.withdraw_ring(token, topic, ring, turn);
            }
        }
        self.topics.forget(token);
    }

    fn rings_of(&self, topic: u32, token: Token) -> Vec<RingId> {
        let rings = self.topics.state(topic).map_or(&[][..], |it| it.rings());
        rings.iter().filter(|it| it.publisher == Some(token)).map(|it| it.id).collect()
    }

    /// Other rules hold: who may not publish any more is told so, and so is who may not subscribe.
    /// What that one was given it can still read, so its publishers go on in other rings.
    pub(super) fn revoke_topics(&mut self, turn: &mut Turn) {
        for ring in self.topics.abandon(false) {
            self.lose_ring(ring, turn);
        }
        for topic in self.topics.numbers() {
            let Some(state) = self.topics.state(topic) else { continue };
            let (name, rings) = (Arc::clone(&state.name), state.rings().to_vec());
            let subscribers: Vec<Token> = state.subscribers().collect();
            for ring in &rings {
                let Some(publisher) = ring.publisher else { continue };
                if let Some(because) = self.forbids(publisher, &name, ring.uid, Operation::Publish)
                {
                    self.note_revoked(publisher, &name, Operation::Publish, because, turn);
                    tell(publisher, BusStep::Revoked, topic, ring.id, 0, 0, turn);
                    self.withdraw_ring(publisher, topic, ring.id, turn);
                }
            }
            let mut rotate = Vec::new();
            for subscriber in subscribers {
                let had = self.topics.state(topic).into_iter().flat_map(|state| {
                    rings.iter().filter(move |it| state.given(it.id).any(|to| to == subscriber))
                });
                let had: Vec<&Ring> = had.collect();
                let lost = had.iter().find_map(|ring| {
                    self.forbids(subscriber, &name, ring.uid, Operation::Subscribe)
                });
                let Some(because) = lost else { continue };
                self.note_revoked(subscriber, &name, Operation::Subscribe, because, turn);
                tell(subscriber, BusStep::Revoked, topic, 0, 0, 0, turn);
                rotate.extend(had.iter().filter_map(|it| Some((it.publisher?, it.id))));
                self.unsubscribe(subscriber, topic, turn);
            }
            rotate.sort_unstable();
            rotate.dedup();
            for (publisher, ring) in rotate {
                tell(publisher, BusStep::Rotate, topic, ring, 0, 0, turn);
            }
        }
    }

    /// Decides whether a node may publish or subscribe; notes it where it may not.
    fn may_use(
        &self,
        token: Token,
        name: &str,
        served_by: u32,
        operation: Operation,
        turn: &mut Turn,
    ) -> Result<(), Status> {
        let Some(because) = self.forbids(token, name, served_by, operation) else { return Ok(()) };
        let because = self.reason(because);
        if let Some(session) = self.sessions.get(&token) {
            let mut note = Note::new(Kind::Denial, session.who.to_string());
            note.object = format!("name {name}");
            note.operation = Cow::Borrowed(operation.name());
            note.verdict = Some(false);
            note.because = because;
            turn.note(note);
        }
        Err(Status::ACCESS)
    }

    /// What keeps a node from publishing, or from subscribing to what user `served_by` publishes.
    fn forbids(
        &self,
        token: Token,
        name: &str,
        served_by: u32,
        operation: Operation,
    ) -> Option<Because> {
        let session = self.sessions.get(&token)?;
        let what = What::Name { text: name, served_by: Some(served_by) };
        let verdict = self.policy.judge(&session.who, what, operation);
        (!verdict.allowed && !session.own).then_some(verdict.because)
    }

    fn note_use(&self, token: Token, name: &str, operation: Operation, turn: &mut Turn) {
        if let Some(session) = self.sessions.get(&token) {
            let mut note = Note::new(Kind::Grant, session.who.to_string());
            note.object = format!("name {name}");
            note.operation = Cow::Borrowed(operation.name());
            note.verdict = Some(true);
            turn.note(note);
        }
    }

    fn note_revoked(
        &self,
        token: Token,
        name: &str,
        operation: Operation,
        because: Because,
        turn: &mut Turn,
    ) {
        if let Some(session) = self.sessions.get(&token) {
            let mut note = Note::new(Kind::Revoked, session.who.to_string());
            note.object = format!("name {name}");
            note.operation = Cow::Borrowed(operation.name());
            note.verdict = Some(false);
            note.because = self.reason(because);
            turn.note(note);
        }
    }
}

fn tell(
    to: Token,
    step: BusStep,
    topic: u32,
    ring: RingId,
    subscriber: u64,
    value: u64,
    turn: &mut Turn,
) {
    let reply = Reply::Bus(BusNote { step, topic, ring, subscriber, value });
    turn.out.push(Effect::Send { to, sequence: 0, reply });
}
