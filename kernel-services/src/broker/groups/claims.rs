//! What instances say of themselves: that they serve. It is held against what the runtime finds.

use ipc::{
    ServiceId, Status,
    control::{Cause, Change, Reply},
};

use super::{Broker, Claim, Effect, LOOK_NS, RATIFY_NS, Token, Turn};

impl Broker {
    /// Hears that an instance serves, or has let go.
    pub(in crate::broker) fn promoted(
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
        let is_ordered = self.plan_of(name).0.is_ordered();
        let Some(state) = self.groups.names.get_mut(&name) else { return };
        if epoch == 0 {
            let before = state.hung.len();
            state.hung.retain(|it| *it != instance);
            let was_hung = state.hung.len() < before;
            if let Some(hand) = state.hand.filter(|hand| hand.from == instance) {
                self.pass_hand(name, hand.cause, turn);
            } else if state.serving == Some(instance) {
                // It answers an order that is past.
                let reply = Reply::Promote { instance, epoch: state.served_at };
                turn.out.push(Effect::Send { to: from, sequence: 0, reply });
            } else if was_hung {
                // One that was passed over goes on, and stands by: it may be wanted again.
                self.regroup(name, Cause::Left, turn);
            }
        } else if state.serving == Some(instance) {
            self.groups.note_promoted(instance, epoch, turn.now_ns);
        } else if epoch > state.last_epoch {
            // A lie: nobody was ever told of it.
        } else if state.serving.is_none() && epoch >= state.served_at {
            // One that served last, under an earlier run or on an earlier connection.
            self.serves(name, instance, epoch);
            // It may have let go by now, for a run that is over: then it goes on.
            let reply = Reply::Promote { instance, epoch };
            turn.out.push(Effect::Send { to: from, sequence: 0, reply });
            self.tell_group(name, turn);
        } else if epoch <= state.served_at || !is_ordered {
            self.depose(instance, name, epoch, turn);
        } else {
            let (until_ns, next_ns) = (turn.now_ns + RATIFY_NS, turn.now_ns);
            self.groups.claims.retain(|it| it.instance != instance);
            self.groups.claims.push(Claim { name, instance, epoch, until_ns, next_ns });
            self.look_at_claims(turn);
        }
    }

    /// Has one let go that serves at an epoch which is past: it was passed over while this run, or
    /// its connection, was not there to say so; or it may not go by itself.
    fn depose(&mut self, instance: ServiceId, name: ServiceId, epoch: u64, turn: &mut Turn) {
        if let Some(state) = self.groups.names.get_mut(&name)
            && !state.hung.contains(&instance)
        {
            state.hung.push(instance);
        }
        if let Some(to) = self.token_of(instance) {
            let reply = Reply::Yield { instance };
            turn.out.push(Effect::Send { to, sequence: 0, reply });
        }
        self.turn_out(instance, epoch, turn);
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
    pub(in crate::broker) fn look_at_claims(&mut self, turn: &mut Turn) {
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
    pub(in crate::broker) fn examined(
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
        let state = self.groups.names.get(&claim.name);
        let from = state.and_then(|it| it.serving);
        // Who hung is killed, and then it is dead as any.
        let hand = state.and_then(|it| it.hand).filter(|it| it.cause == Cause::Hung);
        self.serves(claim.name, instance, epoch);
        self.groups.note(Change {
            number: 0,
            name: claim.name,
            from: from.unwrap_or(ServiceId::NONE),
            to: instance,
            epoch,
            cause: hand.map_or(Cause::Died, |it| it.cause),
            at_ns: turn.now_ns,
            took_us: 0,
            detected_us: hand.map_or(0, |it| it.detected_us),
            promoted_us: 0,
        });
        for (token, _) in before {
            if self.sessions.contains_key(&token) {
                turn.out.push(Effect::Cut { token, last: None });
                self.gone(token, turn);
            }
        }
        self.tell_group(claim.name, turn);
    }
}
