//! Who serves a name, and since which epoch: what standbys tell of it, and what is asked for.
//!
//! In an ordered group nobody waits for this: a standby that sees all before it dead serves at once
//! and tells it here. It is believed when the runtime finds the same by itself.

use std::collections::{BTreeSet, HashMap, VecDeque};

use ipc::{
    ServiceId, Status,
    control::{Cause, Change, Group, MOST_CHANGES, MOST_MEMBERS, Reply},
};

use super::{Broker, Effect, Token, Turn};
use crate::epochs::{Epochs, Forgetful};

/// Changes that are remembered.
const MOST_REMEMBERED: usize = 256;
/// Names whose epochs are remembered while nobody serves them: then they get a new block.
const MOST_UNSERVED: usize = 65_536;
/// How long a standby's word may be ahead of what the runtime finds, and how often it looks, in ns.
/// A process that is being killed has a lot to tear down.
const RATIFY_NS: u64 = 1_000_000_000;
const LOOK_NS: u64 = 2_000_000;
/// How long who serves may take to let go, in ns.
const YIELD_NS: u64 = 2_000_000_000;
/// Room that a name's block of epochs always has.
const ROOM: u64 = 16;

#[derive(Debug)]
pub(super) struct Groups {
    epochs: Epochs,
    names: HashMap<ServiceId, State>,
    claims: Vec<Claim>,
    changes: VecDeque<Change>,
    number: u64,
}

/// How a name stands.
#[derive(Debug)]
struct State {
    epoch: u64,
    limit: u64,
    serving: Option<ServiceId>,
    /// Whether anybody was told of standbys.
    is_plural: bool,
    hand: Option<Hand>,
}

/// A change of hands under way: who serves was asked to let go.
#[derive(Debug)]
struct Hand {
    from: ServiceId,
    to: ServiceId,
    begun_ns: u64,
    /// Who asked for it.
    asked: (Token, u32),
}

/// What a standby says that the runtime has not found yet.
#[derive(Clone, Copy, Debug)]
struct Claim {
    name: ServiceId,
    instance: ServiceId,
    epoch: u64,
    until_ns: u64,
    next_ns: u64,
}

impl Default for Groups {
    fn default() -> Groups {
        Groups {
            epochs: Epochs::new(0, Box::new(Forgetful)),
            names: HashMap::new(),
            claims: Vec::new(),
            changes: VecDeque::new(),
            number: 0,
        }
    }
}

impl Groups {
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        let hands = self.names.values().filter_map(|it| it.hand.as_ref());
        let claims = self.claims.iter().map(|it| it.next_ns);
        claims.chain(hands.map(|it| it.begun_ns + YIELD_NS)).min()
    }

    #[cfg(test)]
    pub(super) fn epoch(&self, name: ServiceId) -> u64 {
        self.names[&name].epoch
    }

    /// Makes room for a name's epochs.
    pub(super) fn enter(&mut self, name: ServiceId) -> Result<(), Status> {
        if self.names.contains_key(&name) {
            return Ok(());
        }
        if self.names.len() >= MOST_UNSERVED {
            self.names.retain(|_, it| it.serving.is_some());
        }
        let block = self.epochs.block()?;
        let (epoch, limit) = (block.start, block.end);
        let state = State { epoch, limit, serving: None, is_plural: false, hand: None };
        self.names.insert(name, state);
        Ok(())
    }

    /// Gives the next epoch of a name.
    fn next(&mut self, name: ServiceId) -> Result<u64, Status> {
        let state = self.names.get_mut(&name).ok_or(Status::NOT_FOUND)?;
        if state.epoch + ROOM >= state.limit {
            let block = self.epochs.block()?;
            state.limit = block.end;
            // What a standby took meanwhile lies below.
            state.epoch = state.epoch.max(block.start);
        }
        state.epoch += 1;
        Ok(state.epoch)
    }

    fn note(&mut self, change: Change) {
        self.number += 1;
        if self.changes.len() >= MOST_REMEMBERED {
            self.changes.pop_front();
        }
        self.changes.push_back(Change { number: self.number, ..change });
    }
}

impl Broker {
    /// Has epochs come from there.
    pub(crate) fn numbering(mut self, epochs: Epochs) -> Broker {
        self.groups.epochs = epochs;
        self
    }

    /// A group has other members. Somebody serves it again, unless those who may are still
    /// expected.
    pub(super) fn regroup(&mut self, name: ServiceId, cause: Cause, turn: &mut Turn) {
        let members = self.registry.group(name).to_vec();
        let Some(state) = self.groups.names.get_mut(&name) else { return };
        let before = state.serving.filter(|it| members.contains(it));
        let left = state.serving.filter(|_| before.is_none());
        state.serving = before;
        if let Some(hand) = &state.hand
            && (!members.contains(&hand.to) || !members.contains(&hand.from))
        {
            // Who was to let go is gone, or who was to come: the one is as well, the other is not.
            let has_gone = !members.contains(&hand.from);
            let reply = if has_gone { Reply::Done } else { Reply::Refused(Status::PEER_DIED) };
            let (to, sequence) = hand.asked;
            if self.sessions.contains_key(&to) {
                turn.out.push(Effect::Send { to, sequence, reply });
            }
            state.hand = None;
        }
        if let Some(serving) = before {
            // One that returns is put where it was by age, which may be before who serves now.
            self.registry.put_first(serving);
        }
        let Some(first) = members.first().copied() else { return };
        if before.is_none() && turn.now_ns >= self.unsettled_until_ns(name) {
            self.give_name(name, left, first, (cause, 0), turn);
        }
        self.tell_group(name, turn);
    }

    /// Whether somebody is known to serve a name.
    pub(super) fn is_served(&self, name: ServiceId) -> bool {
        self.groups.names.get(&name).is_some_and(|it| it.serving.is_some())
    }

    /// Until when nobody is given a name, in a run that may not have heard of all who serve it.
    fn unsettled_until_ns(&self, name: ServiceId) -> u64 {
        if self.unsettled.contains(&name) { self.returning.until_ns() } else { 0 }
    }

    /// The time of those who were expected is over.
    pub(super) fn settle_names(&mut self, turn: &mut Turn) {
        if turn.now_ns >= self.returning.until_ns() {
            for name in std::mem::take(&mut self.unsettled) {
                self.regroup(name, Cause::Died, turn);
            }
        }
    }

    /// Has an instance serve a name.
    fn give_name(
        &mut self,
        name: ServiceId,
        from: Option<ServiceId>,
        to: ServiceId,
        (cause, took_us): (Cause, u32),
        turn: &mut Turn,
    ) {
        // Without an epoch nobody serves; the next who comes or goes is another chance.
        let Ok(epoch) = self.groups.next(name) else { return };
        self.serves(name, to, epoch);
        let from = from.unwrap_or(ServiceId::NONE);
        let at_ns = turn.now_ns;
        self.groups.note(Change { number: 0, name, from, to, epoch, cause, at_ns, took_us });
        let node = self.registry.instance(to).map(|it| it.node);
        if let Some(&token) = node.and_then(|node| self.tokens.get(&node)) {
            let reply = Reply::Promote { instance: to, epoch };
            turn.out.push(Effect::Send { to: token, sequence: 0, reply });
        }
    }

    fn serves(&mut self, name: ServiceId, instance: ServiceId, epoch: u64) {
        if let Some(state) = self.groups.names.get_mut(&name) {
            state.serving = Some(instance);
            state.epoch = state.epoch.max(epoch);
        }
        self.unsettled.remove(&name);
        self.groups.claims.retain(|it| it.name != name);
        self.registry.put_first(instance);
    }

    /// Tells all who serve a name, stand by for it, or have a channel to it.
    fn tell_group(&mut self, name: ServiceId, turn: &mut Turn) {
        let Some(group) = self.group(name) else { return };
        let Some(state) = self.groups.names.get_mut(&name) else { return };
        let was_plural = std::mem::replace(&mut state.is_plural, group.members.len() > 1);
        if !was_plural && group.members.len() < 2 {
            return;
        }
        let instances = group.members.iter().filter_map(|id| self.registry.instance(*id));
        let mut to: BTreeSet<Token> =
            instances.filter_map(|it| self.tokens.get(&it.node)).copied().collect();
        // While nobody is known to serve, the first may be anybody: callers stay where they are.
        if state.serving.is_some()
            && let Some(text) = self.registry.name_behind(name)
        {
            let callers = self.channels.all().filter(|(_, it)| it.name == *text);
            to.extend(callers.map(|(_, it)| it.client));
        }
        to.retain(|token| self.sessions.contains_key(token));
        for to in to {
            let reply = Reply::Group(group.clone());
            turn.out.push(Effect::Send { to, sequence: 0, reply });
        }
    }

    /// Tells a client that has just got its channel to a name with standbys.
    pub(super) fn tell_caller(&self, to: Token, instance: ServiceId, turn: &mut Turn) {
        let name = self.registry.instance(instance).map(|it| it.name);
        if let Some(group) = name.and_then(|name| self.group(name))
            && group.members.len() > 1
            && self.is_served(group.name)
        {
            turn.out.push(Effect::Send { to, sequence: 0, reply: Reply::Group(group) });
        }
    }

    fn group(&self, name: ServiceId) -> Option<Group> {
        let state = self.groups.names.get(&name)?;
        let members = self.registry.group(name);
        let told = members.iter().copied().take(MOST_MEMBERS).collect();
        let flags = members.iter().filter_map(|id| self.registry.instance(*id));
        let flags = flags.map(|it| it.flags).reduce(|all, one| all & one).unwrap_or(0);
        let State { epoch, limit, .. } = *state;
        Some(Group { name, epoch, limit, flags, ordered: true, members: told })
    }

    /// Hears that an instance serves, or has let go.
    pub(super) fn promoted(
        &mut self,
        from: Token,
        instance: ServiceId,
        epoch: u64,
        turn: &mut Turn,
    ) {
        let node = self.sessions.get(&from).and_then(|it| it.node);
        let Some(it) = self.registry.instance(instance).filter(|it| Some(it.node) == node) else {
            return;
        };
        let name = it.name;
        let Some(state) = self.groups.names.get_mut(&name) else { return };
        if epoch == 0 {
            if state.hand.as_ref().is_some_and(|hand| hand.from == instance) {
                self.pass_hand(name, Cause::Triggered, turn);
            } else if state.serving == Some(instance) {
                // It let go for one that is gone by now: it takes the name up again.
                self.give_name(name, Some(instance), instance, (Cause::Triggered, 0), turn);
                self.tell_group(name, turn);
            }
        } else if state.serving == Some(instance) {
            state.epoch = state.epoch.max(epoch);
        } else if state.serving.is_none() {
            // One that served under an earlier run, and comes back.
            self.serves(name, instance, epoch);
            self.tell_group(name, turn);
        } else if epoch > state.epoch && epoch < state.limit {
            let (until_ns, next_ns) = (turn.now_ns + RATIFY_NS, turn.now_ns);
            self.groups.claims.retain(|it| it.instance != instance);
            self.groups.claims.push(Claim { name, instance, epoch, until_ns, next_ns });
            self.look_at_claims(turn);
        }
    }

    /// Those before an instance in its group.
    fn before(&self, claim: &Claim) -> Vec<(Token, u32)> {
        let members = self.registry.group(claim.name);
        let before = members.iter().take_while(|id| **id != claim.instance);
        let tokens = before.filter_map(|id| {
            let node = self.registry.instance(*id)?.node;
            let token = *self.tokens.get(&node)?;
            Some((token, self.sessions.get(&token)?.peer.pid))
        });
        tokens.collect()
    }

    /// Looks whether those are dead whom a standby says to have outlived.
    pub(super) fn look_at_claims(&mut self, turn: &mut Turn) {
        let mut overdue = Vec::new();
        let mut claims = std::mem::take(&mut self.groups.claims);
        for claim in &mut claims {
            if claim.next_ns > turn.now_ns {
                continue;
            }
            claim.next_ns = turn.now_ns + LOOK_NS;
            if turn.now_ns >= claim.until_ns {
                overdue.push(claim.instance);
                continue;
            }
            let (instance, epoch) = (claim.instance, claim.epoch);
            let processes = self.before(claim);
            turn.out.push(Effect::Examine { instance, epoch, processes });
        }
        claims.retain(|it| !overdue.contains(&it.instance));
        self.groups.claims = claims;
        for instance in overdue {
            self.disown(instance, turn);
        }
    }

    /// A standby said that one before it is dead, which lives: it serves nobody any more.
    fn disown(&mut self, instance: ServiceId, turn: &mut Turn) {
        let node = self.registry.instance(instance).map(|it| it.node);
        if let Some(&token) = node.and_then(|node| self.tokens.get(&node)) {
            self.cut(token, 0, Status::STALE, turn);
        }
    }

    /// What came of such a look: the connections of those that are dead or dying.
    pub(super) fn examined(
        &mut self,
        instance: ServiceId,
        epoch: u64,
        dead: &[Token],
        turn: &mut Turn,
    ) {
        let is_meant = |it: &&Claim| it.instance == instance && it.epoch == epoch;
        let Some(claim) = self.groups.claims.iter().find(is_meant).copied() else { return };
        let before = self.before(&claim);
        if !before.iter().all(|(token, _)| dead.contains(token)) {
            return;
        }
        let from = self.groups.names.get(&claim.name).and_then(|it| it.serving);
        self.serves(claim.name, instance, epoch);
        let (from, at_ns) = (from.unwrap_or(ServiceId::NONE), turn.now_ns);
        let (name, cause) = (claim.name, Cause::Died);
        let change =
            Change { number: 0, name, from, to: instance, epoch, cause, at_ns, took_us: 0 };
        self.groups.note(change);
        for (token, _) in before {
            if self.sessions.contains_key(&token) {
                turn.out.push(Effect::Cut { token, last: None });
                self.gone(token, turn);
            }
        }
        self.tell_group(claim.name, turn);
    }

    /// Begins a change of hands that somebody asks for.
    pub(super) fn trigger(
        &mut self,
        asked: (Token, u32),
        failed: ServiceId,
        backup: ServiceId,
        turn: &mut Turn,
    ) -> Result<(), Status> {
        let instance = self.registry.resolve(failed).ok_or(Status::NOT_FOUND)?;
        let name = self.registry.instance(instance).ok_or(Status::NOT_FOUND)?.name;
        if !self.may_trigger(asked.0, name, turn) {
            return Err(Status::ACCESS);
        }
        let members = self.registry.group(name);
        let state = self.groups.names.get_mut(&name).ok_or(Status::NOT_FOUND)?;
        let from = state.serving.ok_or(Status::NOT_FOUND)?;
        let next = members.iter().copied().find(|it| *it != from);
        let to = if backup == ServiceId::NONE { next } else { Some(backup) };
        let to = to.filter(|it| *it != from && members.contains(it)).ok_or(Status::NOT_FOUND)?;
        if state.hand.is_some() {
            return Err(Status::EXISTS);
        }
        if instance != from && instance == failed {
            // It does not serve: there is nothing to hand over.
            return Err(Status::ALREADY);
        }
        state.hand = Some(Hand { from, to, begun_ns: turn.now_ns, asked });
        let node = self.registry.instance(from).map(|it| it.node);
        if let Some(&token) = node.and_then(|node| self.tokens.get(&node)) {
            let reply = Reply::Yield { instance: from };
            turn.out.push(Effect::Send { to: token, sequence: 0, reply });
        }
        Ok(())
    }

    /// Whether a node serves or stands by for a name itself.
    pub(super) fn stands_beside(&self, token: Token, name: ServiceId) -> bool {
        let node = self.sessions.get(&token).and_then(|it| it.node);
        let mut members = self.registry.group(name).iter();
        members.any(|id| self.registry.instance(*id).is_some_and(|it| Some(it.node) == node))
    }

    /// Members of a group may, and whoever may give orders.
    fn may_trigger(&self, token: Token, name: ServiceId, turn: &mut Turn) -> bool {
        self.stands_beside(token, name) || self.may_command(token, "failover", turn)
    }

    /// Who served has let go, or has had its time.
    fn pass_hand(&mut self, name: ServiceId, cause: Cause, turn: &mut Turn) {
        let state = self.groups.names.get_mut(&name);
        let Some(Hand { from, to, begun_ns, asked }) = state.and_then(|it| it.hand.take()) else {
            return;
        };
        let took = turn.now_ns.saturating_sub(begun_ns) / 1000;
        let took_us = u32::try_from(took).unwrap_or(u32::MAX).max(1);
        self.give_name(name, Some(from), to, (cause, took_us), turn);
        self.tell_group(name, turn);
        let (to, sequence) = asked;
        if self.sessions.contains_key(&to) {
            turn.out.push(Effect::Send { to, sequence, reply: Reply::Done });
        }
    }

    /// Who does not let go in time hangs: it is passed over, and its epoch is past.
    pub(super) fn end_hands(&mut self, turn: &mut Turn) {
        let is_late = |it: &State| {
            it.hand.as_ref().is_some_and(|hand| hand.begun_ns + YIELD_NS <= turn.now_ns)
        };
        let late: Vec<_> =
            self.groups.names.iter().filter(|(_, it)| is_late(it)).map(|(&name, _)| name).collect();
        for name in late {
            self.pass_hand(name, Cause::Hung, turn);
        }
    }

    /// A page of what became of names.
    pub(super) fn history(&self, after: u64) -> Reply {
        let rest = self.groups.changes.iter().filter(|it| it.number > after);
        let changes: Vec<_> = rest.copied().take(MOST_CHANGES).collect();
        let last = changes.last().map_or(0, |it| it.number);
        let next = if last < self.groups.number { last } else { 0 };
        Reply::Changes { next, changes }
    }
}
