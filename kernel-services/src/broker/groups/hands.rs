//! Names that change hands while who serves lives: because somebody asks for it, because one that
//! goes before is there, or because it does not answer.

use ipc::{
    ServiceId, Status,
    control::{Cause, FailoverStrategy, Reply},
};

use super::{Broker, Effect, Hand, State, Token, Turn, YIELD_NS};

impl Broker {
    /// Begins a change of hands that somebody asks for.
    pub(in crate::broker) fn trigger(
        &mut self,
        asked: (Token, u32),
        failed: ServiceId,
        backup: ServiceId,
        turn: &mut Turn,
    ) -> Result<(), Status> {
        let instance = self.registry.resolve(failed).ok_or(Status::NOT_FOUND)?;
        let name = self.registry.instance(instance).ok_or(Status::NOT_FOUND)?.name;
        if !self.may_steer(asked.0, name, turn) {
            return Err(Status::ACCESS);
        }
        let members = self.registry.group(name).to_vec();
        let state = self.groups.names.get(&name).ok_or(Status::NOT_FOUND)?;
        let from = state.serving;
        let is_free = |it: &ServiceId| Some(*it) != from && members.contains(it);
        let to = if backup == ServiceId::NONE { self.next(name) } else { Some(backup) };
        let to = to.filter(is_free).ok_or(Status::NOT_FOUND)?;
        let state = self.groups.names.get(&name).ok_or(Status::NOT_FOUND)?;
        if state.hand.is_some() {
            return Err(Status::EXISTS);
        }
        if from.is_none() && turn.now_ns < self.unsettled_until_ns(name) {
            // Who serves it may be on the way back.
            return Err(Status::EXISTS);
        }
        let Some(from) = from else {
            // Nobody serves: there is nothing to wait for.
            self.give_name(name, None, to, (Cause::Triggered, 0, 0), turn);
            self.tell_group(name, turn);
            self.answer_hand(Some(asked), Reply::Done, turn);
            return Ok(());
        };
        if instance != from && instance == failed {
            // It does not serve: there is nothing to hand over.
            return Err(Status::ALREADY);
        }
        let (begun_ns, cause) = (turn.now_ns, Cause::Triggered);
        let until_ns = begun_ns + YIELD_NS;
        let asked = Some(asked);
        let hand = Hand { from, to, begun_ns, until_ns, cause, detected_us: 0, asked };
        self.begin_hand(name, hand, turn);
        Ok(())
    }

    /// Whom a name goes to when somebody asks for it.
    fn next(&self, name: ServiceId) -> Option<ServiceId> {
        let from = self.groups.names.get(&name).and_then(|it| it.serving);
        if self.plan_of(name).0 == FailoverStrategy::Manual {
            return self.registry.group(name).iter().copied().find(|it| Some(*it) != from);
        }
        self.choose(name, from, &[])
    }

    /// Asks who serves to let go.
    pub(super) fn begin_hand(&mut self, name: ServiceId, hand: Hand, turn: &mut Turn) {
        let Some(state) = self.groups.names.get_mut(&name) else { return };
        state.hand = Some(hand);
        if let Some(to) = self.token_of(hand.from) {
            let reply = Reply::Yield { instance: hand.from };
            turn.out.push(Effect::Send { to, sequence: 0, reply });
        }
    }

    /// The connection of an instance.
    pub(super) fn token_of(&self, instance: ServiceId) -> Option<Token> {
        let node = self.registry.instance(instance)?.node;
        self.tokens.get(&node).copied()
    }

    /// Whether a node serves or stands by for a name itself.
    pub(in crate::broker) fn stands_beside(&self, token: Token, name: ServiceId) -> bool {
        let node = self.sessions.get(&token).and_then(|it| it.node);
        let mut members = self.registry.group(name).iter();
        members.any(|id| self.registry.instance(*id).is_some_and(|it| Some(it.node) == node))
    }

    /// Members of a group may, and whoever may give orders.
    pub(super) fn may_steer(&self, token: Token, name: ServiceId, turn: &mut Turn) -> bool {
        self.stands_beside(token, name) || self.may_command(token, "failover", turn)
    }

    /// Who served has let go, or has had its time.
    pub(super) fn pass_hand(&mut self, name: ServiceId, cause: Cause, turn: &mut Turn) {
        let state = self.groups.names.get_mut(&name);
        let Some(hand) = state.and_then(|it| it.hand.take()) else { return };
        let took = turn.now_ns.saturating_sub(hand.begun_ns) / 1000;
        let took_us = u32::try_from(took).unwrap_or(u32::MAX).max(1);
        let why = (cause, took_us, hand.detected_us);
        self.give_name(name, Some(hand.from), hand.to, why, turn);
        self.tell_group(name, turn);
        self.answer_hand(hand.asked, Reply::Done, turn);
    }

    /// Tells who asked for a change of hands what came of it.
    pub(super) fn answer_hand(&self, asked: Option<(Token, u32)>, reply: Reply, turn: &mut Turn) {
        if let Some((to, sequence)) = asked.filter(|(to, _)| self.sessions.contains_key(to)) {
            turn.out.push(Effect::Send { to, sequence, reply });
        }
    }

    /// Who does not let go in time hangs.
    pub(in crate::broker) fn end_hands(&mut self, turn: &mut Turn) {
        let is_late = |it: &State| it.hand.is_some_and(|hand| hand.until_ns <= turn.now_ns);
        let late: Vec<_> =
            self.groups.names.iter().filter(|(_, it)| is_late(it)).map(|(&name, _)| name).collect();
        for name in late {
            self.pass_over(name, turn);
        }
    }
}
