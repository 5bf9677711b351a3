//! One that was passed over: what it held at its epoch counts for nothing more, wherever the
//! runtime has a say. One that is supervised is killed, and comes back as a standby.

use ipc::{ServiceId, control::Cause};

use super::{Broker, Effect, Token, Turn};

impl Broker {
    /// Has the process of an instance killed if it is supervised; tells whether it is.
    pub(super) fn fence(&self, instance: ServiceId, turn: &mut Turn) -> bool {
        let Some(token) = self.token_of(instance) else { return false };
        let is_unit = self.sessions.get(&token).is_some_and(|it| it.peer.unit.is_some());
        if is_unit {
            turn.out.push(Effect::Kill { token });
        }
        is_unit
    }

    /// Takes from the process of an instance, which served until now and did not let go, what it
    /// had by that: its tokens, the regions of others that it has mapped, and the channels on which
    /// it is the client. Services on these see it leave, and what it was leased there goes to
    /// others.
    pub(super) fn turn_out(&mut self, instance: ServiceId, epoch: u64, turn: &mut Turn) {
        let Some(token) = self.token_of(instance) else { return };
        if let Some(session) = self.sessions.get_mut(&token) {
            session.past = session.past.max(epoch);
        }
        for id in self.channels.opened_by(token) {
            let Some(channel) = self.channels.remove(id) else { continue };
            self.accounts.closed(id);
            self.tell_revoked(id, &channel, turn);
        }
        self.lose_regions(token, turn);
    }

    /// Whether the process behind a connection was passed over, and has not said since then that it
    /// stands by.
    pub(in crate::broker) fn is_turned_out(&self, token: Token) -> bool {
        let Some(node) = self.sessions.get(&token).filter(|it| it.past > 0).and_then(|it| it.node)
        else {
            return false;
        };
        let served = self.registry.served_by_node(node);
        served.iter().any(|(instance, _)| {
            let name = self.registry.instance(*instance).map(|it| it.name);
            let state = name.and_then(|name| self.groups.names.get(&name));
            state.is_some_and(|it| it.hung.contains(instance))
        })
    }

    /// The highest epoch at which the process behind a connection serves a name now; 0 for none.
    pub(in crate::broker) fn epoch_of(&self, token: Token) -> u64 {
        let node = self.sessions.get(&token).and_then(|it| it.node);
        let served = node.map(|node| self.registry.served_by_node(node)).unwrap_or_default();
        let epochs = served.iter().filter_map(|(instance, _)| {
            let name = self.registry.instance(*instance)?.name;
            let state = self.groups.names.get(&name)?;
            (state.serving == Some(*instance)).then_some(state.served_at)
        });
        epochs.max().unwrap_or(0)
    }

    /// Passes over who did not let go in time: its epoch is past, and it stands behind all others
    /// until it is heard of.
    pub(super) fn pass_over(&mut self, name: ServiceId, turn: &mut Turn) {
        let Some(state) = self.groups.names.get_mut(&name) else { return };
        let Some(hand) = state.hand else { return };
        if !state.hung.contains(&hand.from) {
            state.hung.push(hand.from);
        }
        let epoch = state.served_at;
        self.registry.put_last(hand.from);
        self.fence(hand.from, turn);
        self.pass_hand(name, Cause::Hung, turn);
        self.turn_out(hand.from, epoch, turn);
    }
}
