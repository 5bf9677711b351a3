//! Channels that an earlier run introduced, as their ends tell of them when they return.
//!
//! What one node says of a channel proves nothing: a channel counts once both of its ends told of
//! it alike, and each is the process that the other was introduced to.

use std::{collections::HashMap, sync::Arc};

use ipc::control::{BY_SOCKET, Introduction, Reply};

use super::{Broker, Effect, Token, Turn, channels::Channel};

/// Channels that are told of and have not both ends, or more than all together.
const MOST: usize = 65_536;

/// The ends that were told of.
#[derive(Debug, Default)]
pub(super) struct Survivors {
    channels: HashMap<u64, Ends>,
}

#[derive(Debug, Default)]
struct Ends {
    client: Option<Told>,
    server: Option<Told>,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    by: Token,
    introduction: Introduction,
}

/// A channel both of whose ends are here again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Survivor {
    pub(super) client: Token,
    pub(super) server: Token,
    /// As the service was told.
    pub(super) introduction: Introduction,
    /// The service's process, as the client was told.
    pub(super) server_pid: u32,
}

impl Survivors {
    /// Takes what one end tells; gives both when they agree.
    fn tell(&mut self, by: Token, is_server: bool, introduction: Introduction) -> Option<Survivor> {
        let channel = introduction.channel;
        if self.channels.len() >= MOST && !self.channels.contains_key(&channel) {
            return None;
        }
        let ends = self.channels.entry(channel).or_default();
        let side = if is_server { &mut ends.server } else { &mut ends.client };
        // The first who tells of an end has it; were it a lie, the channel counts for nobody.
        if side.is_some() {
            return None;
        }
        *side = Some(Told { by, introduction });
        let (client, server) = (ends.client?, ends.server?);
        let common = |it: &Introduction| {
            let Introduction { session, start_ns, dest, dest_name, geometry, .. } = *it;
            let rest = (it.permissions, it.opener, it.encrypted, it.bond);
            (session, start_ns, dest, dest_name, geometry, rest)
        };
        let agree = common(&client.introduction) == common(&server.introduction);
        agree.then_some(Survivor {
            client: client.by,
            server: server.by,
            introduction: server.introduction,
            server_pid: client.introduction.peer_pid,
        })
    }

    /// One end is closed; gives the channel that it was an end of.
    pub(super) fn close(&mut self, channel: u64, by: Token) {
        if self.channels.get(&channel).is_some_and(|ends| ends.has(by)) {
            self.channels.remove(&channel);
        }
    }

    /// A node is gone, and its ends with it.
    pub(super) fn leave(&mut self, by: Token) {
        self.channels.retain(|_, ends| !ends.has(by));
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }
}

impl Ends {
    fn has(&self, by: Token) -> bool {
        [self.client, self.server].iter().flatten().any(|told| told.by == by)
    }
}

impl Broker {
    /// Takes word of a channel that is open since an earlier run, and enters it when both ends have
    /// told of it.
    pub(super) fn hear_of(
        &mut self,
        by: Token,
        serves: bool,
        introduction: Introduction,
        turn: &mut Turn,
    ) {
        if self.introductions.is_of_this_run(introduction.channel) {
            return;
        }
        let Some(survivor) = self.survivors.tell(by, serves, introduction) else { return };
        let pid = |token| self.sessions.get(&token).map(|it| it.peer.pid);
        let pids = [survivor.introduction.peer_pid, survivor.server_pid].map(Some);
        let are_they = [survivor.client, survivor.server].map(pid) == pids;
        let of_server = self.registry.instance(survivor.introduction.dest);
        let serves = of_server.and_then(|it| self.tokens.get(&it.node)) == Some(&survivor.server);
        if are_they && serves {
            self.restore(&survivor, turn);
        }
    }

    /// A channel is what it was before this run: from here on it counts like one that this run
    /// introduced. Where that would be refused by now it is closed.
    fn restore(&mut self, survivor: &Survivor, turn: &mut Turn) {
        let Introduction { channel, dest, geometry, permissions: granted, encrypted, .. } =
            survivor.introduction;
        let &Survivor { client, server: service, .. } = survivor;
        let (Some(session), Some(name)) =
            (self.sessions.get(&client), self.registry.name_behind(dest))
        else {
            return;
        };
        let (who, name) = (Arc::clone(&session.who), Arc::clone(name));
        let Some(served_by) = self.uid_of_instance(dest) else { return };
        let allowed = self.may_connect(client, &name, served_by, turn);
        let is_allowed = allowed.is_ok_and(|allowed| granted & !allowed == 0);
        let shares = channel & BY_SOCKET == 0;
        let lane_bytes = if shares { geometry.lane_bytes() as u64 } else { 0 };
        if is_allowed && self.accounts.survived(client, channel, lane_bytes).is_ok() {
            self.registry.count_channel(dest);
            let open = Channel { client, service, who, name, served_by, granted, encrypted };
            self.channels.insert(channel, open);
            // The name may have changed hands before this end was known.
            return self.tell_caller(client, dest, turn);
        }
        for to in [client, service] {
            turn.out.push(Effect::Send { to, sequence: 0, reply: Reply::Revoked { channel } });
        }
    }
}

#[cfg(test)]
mod tests {
    use ipc::{
        Geometry, ServiceId,
        control::{Bond, Reply, Request},
    };

    use super::*;
    use crate::{
        broker::tests::{ask, with_nodes},
        registry::Registered,
        security::{Object, Operation, Rule, Subject, Terms},
    };

    fn hear(broker: &mut Broker, by: Token, serves: bool, told: Introduction) -> Vec<Effect> {
        let mut turn = Turn { now_ns: 0, out: Vec::new() };
        broker.hear_of(by, serves, told, &mut turn);
        turn.out
    }

    /// A runtime in which node 1 serves what an earlier one knew as instance 70001.
    fn restarted() -> (Broker, Introduction) {
        let mut broker = with_nodes(1..=2);
        let name = "echo".to_owned();
        let (claim_instance, claim_name) = (70_001, 70_000);
        let ids = Registered {
            instance: ServiceId::new(claim_instance),
            name: ServiceId::new(claim_name),
        };
        let ticket = broker.ticket(1, ids, "echo");
        let request = Request::Register { flags: 0, claim_instance, claim_name, ticket, name };
        ask(&mut broker, 1, request);
        let told = Introduction {
            channel: 9 << 32 | 1,
            session: 5,
            start_ns: 6,
            asymmetric: true,
            peer: ServiceId::new(3),
            peer_name: ServiceId::NONE,
            peer_pid: 2,
            peer_uid: 1000,
            dest: ServiceId::new(claim_instance),
            dest_name: ServiceId::new(claim_name),
            geometry: Geometry::default(),
            permissions: Operation::MASK,
            opener: ServiceId::new(3),
            encrypted: false,
            peer_key: [0; 32],
            bond: Bond::default(),
        };
        (broker, told)
    }

    fn to_the_client(told: Introduction) -> Introduction {
        Introduction { peer: told.dest, peer_name: told.dest_name, peer_pid: 1, ..told }
    }

    fn counted(broker: &mut Broker) -> u32 {
        match ask(broker, 1, Request::List { after: 0 }).as_slice() {
            [Effect::Send { reply: Reply::Page { entries, .. }, .. }] => entries[0].channels,
            other => panic!("no page: {other:?}"),
        }
    }

    #[test]
    fn a_channel_counts_once_both_ends_have_told_of_it() {
        let (mut broker, told) = restarted();
        hear(&mut broker, 2, false, to_the_client(told));
        assert_eq!(counted(&mut broker), 0);
        (0..2).for_each(|_| drop(hear(&mut broker, 1, true, told)));
        assert_eq!(counted(&mut broker), 1);
        let channel = told.channel;
        ask(&mut broker, 7, Request::Closed { channel });
        assert!(!broker.survivors.is_empty(), "nobody closes what is another's");
        assert!(!broker.channels.is_empty(), "it is charged like any other");
        ask(&mut broker, 2, Request::Closed { channel });
        assert!(broker.survivors.is_empty() && broker.channels.is_empty());
        broker.close(0);
    }

    #[test]
    fn a_channel_that_the_rules_do_not_allow_any_more_is_closed() {
        let (mut broker, told) = restarted();
        let rules: Vec<Rule> = vec![Rule {
            subject: Subject::Any,
            object: Object::Name("echo".to_owned()),
            operations: Operation::MASK,
            allow: false,
        }];
        let terms = Terms { uid: 1000, rules, ..Terms::default() };
        broker.policy = crate::security::Policy::new(terms);
        hear(&mut broker, 2, false, to_the_client(told));
        let revoked = |to| {
            let reply = Reply::Revoked { channel: told.channel };
            Effect::Send { to, sequence: 0, reply }
        };
        let effects = hear(&mut broker, 1, true, told);
        assert!([2, 1].map(revoked).iter().all(|it| effects.contains(it)), "{effects:?}");
        assert_eq!(counted(&mut broker), 0);
        broker.close(0);
    }

    #[test]
    fn what_does_not_agree_counts_for_nobody() {
        let stranger = Introduction { peer_pid: 3, ..restarted().1 };
        let other_time = Introduction { start_ns: 7, ..restarted().1 };
        let nobody = Introduction { dest: ServiceId::new(12), ..restarted().1 };
        for told in [stranger, other_time, nobody] {
            let (mut broker, honest) = restarted();
            hear(&mut broker, 1, true, told);
            hear(&mut broker, 2, false, to_the_client(honest));
            assert_eq!(counted(&mut broker), 0, "{told:?}");
            broker.gone(1, &mut crate::broker::Turn { now_ns: 0, out: Vec::new() });
            assert!(broker.survivors.is_empty());
        }
        let (mut broker, told) = restarted();
        let current = u64::from(broker.introductions.epoch()) << 32 | 1;
        hear(&mut broker, 1, true, Introduction { channel: current, ..told });
        assert!(broker.survivors.is_empty(), "this run knows its own");
    }
}
