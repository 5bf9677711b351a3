//! Who serves a name, and since which epoch: what standbys tell of it, and what is asked for.
//!
//! In an ordered group nobody waits for this: a standby that sees all before it dead serves at once
//! and tells it here. It is believed when the runtime finds the same by itself.

mod claims;
mod ends;
mod fence;
mod hands;
mod plans;
mod suspects;

use std::collections::{BTreeSet, HashMap, VecDeque};

use ipc::{
    ServiceId, Status,
    control::{Cause, Change, Group, MOST_CHANGES, MOST_MEMBERS, MOST_PLACES, Reply, Request},
};

pub(crate) use self::plans::{Place, Plan};
pub(crate) use self::suspects::Sight;
use self::suspects::Suspects;
use super::{Broker, Effect, Token, Turn};
use crate::{
    epochs::{Epochs, Forgetful},
    served::Served,
};

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

#[derive(Debug)]
pub(super) struct Groups {
    epochs: Epochs,
    /// At which epoch each name was served last, in any run.
    served: Served,
    names: HashMap<ServiceId, State>,
    claims: Vec<Claim>,
    changes: VecDeque<Change>,
    number: u64,
    /// How names are configured, those that nobody serves included.
    plans: HashMap<String, Plan>,
    suspects: Suspects,
}

/// How a name stands.
#[derive(Debug)]
struct State {
    /// The last epoch that anybody may serve at: by our word, or by itself in a place that it was
    /// told of.
    last_epoch: u64,
    limit: u64,
    /// As the group was told last: who stands by serves, by itself, at its place behind this.
    told_epoch: u64,
    serving: Option<ServiceId>,
    /// The epoch at which that one serves, or who served last did: in whichever run.
    served_at: u64,
    /// Whether somebody served in this run: who comes back from an earlier one does no more.
    is_of_this_run: bool,
    /// Who served last, whatever became of it.
    last: Option<ServiceId>,
    /// Members that were passed over, and have not been heard of since.
    hung: Vec<ServiceId>,
    /// Until when nobody is suspected: who serves was just found well, or there is nobody else.
    quiet_until_ns: u64,
    suspicions: u64,
    /// Whether anybody was told of standbys.
    is_plural: bool,
    hand: Option<Hand>,
}

/// A change of hands under way: who serves was asked to let go.
#[derive(Clone, Copy, Debug)]
struct Hand {
    from: ServiceId,
    to: ServiceId,
    begun_ns: u64,
    /// When it is passed over.
    until_ns: u64,
    /// Why, if it lets go in time.
    cause: Cause,
    /// How long a suspicion took to be confirmed.
    detected_us: u32,
    /// Who asked for it, if anybody did.
    asked: Option<(Token, u32)>,
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
            served: Served::default(),
            names: HashMap::new(),
            claims: Vec::new(),
            changes: VecDeque::new(),
            number: 0,
            plans: HashMap::new(),
            suspects: Suspects::default(),
        }
    }
}

impl Groups {
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        let hands = self.names.values().filter_map(|it| it.hand.as_ref());
        let claims = self.claims.iter().map(|it| it.next_ns);
        let all = claims.chain(hands.map(|it| it.until_ns));
        all.chain(self.suspects.deadline_ns()).min()
    }

    /// The last epoch at which a name was served; 0 before its first.
    pub(super) fn epoch(&self, name: ServiceId) -> u64 {
        self.names.get(&name).map_or(0, |it| it.served_at)
    }

    /// The id that a name had when it was served last, in whichever run.
    pub(super) fn id_of(&self, text: &str) -> ServiceId {
        self.served.id(text).unwrap_or(ServiceId::NONE)
    }

    /// The epoch that the first who stands by owns, and the first that is not reserved.
    #[cfg(test)]
    pub(super) fn place(&self, name: ServiceId) -> (u64, u64) {
        self.names.get(&name).map_or((0, 0), |it| (it.told_epoch + 1, it.limit))
    }

    /// Makes room for a name's epochs. `has_members` says which names have any: one that nobody
    /// serves just now may be waiting for whom it had.
    pub(super) fn enter(
        &mut self,
        name: ServiceId,
        text: &str,
        has_members: impl Fn(ServiceId) -> bool,
    ) -> Result<(), Status> {
        if self.names.contains_key(&name) {
            return Ok(());
        }
        if self.names.len() >= MOST_UNSERVED {
            self.names.retain(|id, it| it.serving.is_some() || has_members(*id));
        }
        let block = self.epochs.block()?;
        let state = State {
            last_epoch: block.start,
            limit: block.end,
            told_epoch: block.start,
            serving: None,
            served_at: self.served.last(text),
            is_of_this_run: false,
            last: None,
            hung: Vec::new(),
            quiet_until_ns: 0,
            suspicions: 0,
            is_plural: false,
            hand: None,
        };
        self.names.insert(name, state);
        Ok(())
    }

    /// Gives the next epoch of a name.
    fn next(&mut self, name: ServiceId) -> Result<u64, Status> {
        Ok(self.reserve(name, 1)? + 1)
    }

    /// Reserves so many epochs of a name, at most a block, for nobody else ever. Gives the one
    /// before them.
    fn reserve(&mut self, name: ServiceId, count: u64) -> Result<u64, Status> {
        let state = self.names.get_mut(&name).ok_or(Status::NOT_FOUND)?;
        if state.last_epoch + count >= state.limit {
            let block = self.epochs.block()?;
            (state.last_epoch, state.limit) = (block.start, block.end);
        }
        let before = state.last_epoch;
        state.last_epoch += count;
        Ok(before)
    }

    /// Has each who stands by for a name own an epoch, at which it may serve by itself: so no two
    /// ever serve at one, whatever each of them has heard.
    fn give_places(&mut self, name: ServiceId, standbys: usize) {
        let count = standbys.min(MOST_PLACES) as u64;
        let told = self.reserve(name, count);
        if let Some(state) = self.names.get_mut(&name) {
            // Without an epoch nobody goes by itself.
            state.told_epoch = told.unwrap_or(state.limit);
        }
    }

    /// Who was told to serve says that it does.
    fn note_promoted(&mut self, instance: ServiceId, epoch: u64, now_ns: u64) {
        let mut changes = self.changes.iter_mut().rev();
        let change = changes.find(|it| it.to == instance && it.epoch == epoch);
        if let Some(change) = change.filter(|it| it.promoted_us == 0) {
            let took = now_ns.saturating_sub(change.at_ns) / 1000;
            change.promoted_us = u32::try_from(took).unwrap_or(u32::MAX).max(1);
        }
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
    pub(crate) fn numbering(mut self, epochs: Epochs, served: Served) -> Broker {
        (self.groups.epochs, self.groups.served) = (epochs, served);
        self
    }

    /// Gives what is remembered of epochs: what a journal would hold.
    #[cfg(test)]
    pub(crate) fn into_served(self) -> Served {
        self.groups.served
    }

    /// Carries out what somebody says, or asks, of groups, and answers it where it has an answer
    /// now.
    pub(super) fn hear_of_groups(
        &mut self,
        asked: (Token, u32),
        request: Request,
        turn: &mut Turn,
    ) {
        let answer = self.of_groups(asked, request, turn);
        if let Some(reply) = answer.unwrap_or_else(|status| Some(Reply::Refused(status))) {
            let (to, sequence) = asked;
            turn.out.push(Effect::Send { to, sequence, reply });
        }
    }

    fn of_groups(
        &mut self,
        asked: (Token, u32),
        request: Request,
        turn: &mut Turn,
    ) -> Result<Option<Reply>, Status> {
        let (from, _) = asked;
        match request {
            Request::Promoted { instance, epoch } => self.promoted(from, instance, epoch, turn),
            Request::Suspect { instance, mark } => self.suspect(from, instance, mark, turn),
            Request::Pulse { instance, number, busy_us } => {
                self.pulse(from, instance, number, busy_us, turn);
            }
            Request::Trigger { failed, backup } => self.trigger(asked, failed, backup, turn)?,
            Request::History { after } => return Ok(Some(self.history(after))),
            Request::Detect { service } => return self.detect(asked, service, turn),
            Request::Configure(plan) => return self.configure(from, plan, turn).map(Some),
            Request::Standing { service } => return self.standing(service).map(Some),
            _ => return Err(Status::PROTOCOL),
        }
        Ok(None)
    }

    /// A group has other members. Somebody serves it again, unless those who may are still
    /// expected.
    pub(super) fn regroup(&mut self, name: ServiceId, cause: Cause, turn: &mut Turn) {
        let members = self.registry.group(name).to_vec();
        let Some(state) = self.groups.names.get_mut(&name) else { return };
        let before = state.serving.filter(|it| members.contains(it));
        let left = state.serving.filter(|_| before.is_none());
        state.serving = before;
        state.hung.retain(|it| members.contains(it));
        let is_over = |hand: &Hand| [hand.from, hand.to].iter().any(|it| !members.contains(it));
        let mut heir = None;
        let mut why = (cause, 0, 0);
        if let Some(hand) = state.hand.take_if(|hand| is_over(hand)) {
            // Who was to let go is gone, or who was to come: the one is as well, the other is not.
            let has_gone = !members.contains(&hand.from);
            let reply = if has_gone { Reply::Done } else { Reply::Refused(Status::PEER_DIED) };
            if has_gone {
                heir = Some(hand.to).filter(|to| members.contains(to));
            }
            if hand.cause == Cause::Hung {
                // It was killed for that.
                why = (Cause::Hung, 0, hand.detected_us);
            }
            self.answer_hand(hand.asked, reply, turn);
        }
        if members.is_empty() {
            return;
        }
        if let Some(serving) = before {
            // One that returns is put where it was by age, which may be before who serves now.
            self.registry.put_first(serving);
        }
        self.arrange(name);
        if before.is_none() && turn.now_ns >= self.unsettled_until_ns(name) {
            let heir = heir.or_else(|| self.choose(name, left, &[]));
            if let Some(heir) = heir {
                self.give_name(name, left, heir, why, turn);
            }
        }
        self.tell_group(name, turn);
        self.prefer(name, turn);
    }

    /// Whether somebody is known to serve a name.
    pub(super) fn is_served(&self, name: ServiceId) -> bool {
        self.groups.names.get(&name).is_some_and(|it| it.serving.is_some())
    }

    /// Whether somebody serves a name, or did in this run.
    pub(super) fn was_served(&self, name: ServiceId) -> bool {
        self.groups.names.get(&name).is_some_and(|it| it.is_of_this_run)
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
        (cause, took_us, detected_us): (Cause, u32, u32),
        turn: &mut Turn,
    ) {
        // Without an epoch nobody serves; the next who comes or goes is another chance.
        let Ok(epoch) = self.groups.next(name) else { return };
        self.serves(name, to, epoch);
        let from = from.unwrap_or(ServiceId::NONE);
        let at_ns = turn.now_ns;
        self.groups.note(Change {
            number: 0,
            name,
            from,
            to,
            epoch,
            cause,
            at_ns,
            took_us,
            detected_us,
            promoted_us: 0,
        });
        let node = self.registry.instance(to).map(|it| it.node);
        if let Some(&token) = node.and_then(|node| self.tokens.get(&node)) {
            let reply = Reply::Promote { instance: to, epoch };
            turn.out.push(Effect::Send { to: token, sequence: 0, reply });
        }
    }

    fn serves(&mut self, name: ServiceId, instance: ServiceId, epoch: u64) {
        if let Some(state) = self.groups.names.get_mut(&name) {
            state.serving = Some(instance);
            state.last = Some(instance);
            state.served_at = epoch;
            state.is_of_this_run = true;
            state.hung.retain(|it| *it != instance);
        }
        if let Some(text) = self.registry.name_behind(name) {
            // Before anybody hears of it.
            let is_served = |it: &str| self.registry.discover(it).is_some();
            self.groups.served.note(text, name, epoch, is_served);
        }
        self.unsettled.remove(&name);
        self.groups.claims.retain(|it| it.name != name);
        self.registry.put_first(instance);
    }

    /// Tells all who serve a name, stand by for it, or have a channel to it.
    fn tell_group(&mut self, name: ServiceId, turn: &mut Turn) {
        let members = self.registry.group(name).len();
        let Some(state) = self.groups.names.get_mut(&name) else { return };
        let was_plural = std::mem::replace(&mut state.is_plural, members > 1);
        if !was_plural && members < 2 {
            return;
        }
        self.groups.give_places(name, members.saturating_sub(1));
        let Some(group) = self.group(name) else { return };
        let Some(state) = self.groups.names.get(&name) else { return };
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
        let State { told_epoch: epoch, limit, .. } = *state;
        let served_at = if state.serving.is_some() { state.served_at } else { 0 };
        let (strategy, health) = self.plan_of(name);
        let ordered = strategy.is_ordered();
        Some(Group { name, epoch, served_at, limit, flags, ordered, health, members: told })
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
