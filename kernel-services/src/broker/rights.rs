//! What the policy has to say: to registrations, connects and commands, and to all that is open
//! when another one comes.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use ipc::{
    ServiceId, Status,
    control::{Cause, Reply},
};

use super::{Broker, Effect, Peer, Plan, Token, Turn, channels::Channel};
use crate::{
    events::Topic,
    notes::{Kind, Note},
    quota::Quota,
    security::{Because, Open, Operation, Policy, Terms, What, Who, names_of},
};

/// What a node file says on rights and quotas.
#[derive(Clone, Debug, Default)]
pub(crate) struct Law {
    pub(crate) terms: Terms,
    /// Of each user.
    pub(crate) users: Quota,
    pub(crate) services: HashMap<Arc<str>, Quota>,
    pub(crate) topics: Vec<Topic>,
    /// Who serves names, and when who does is passed over.
    pub(crate) failovers: Vec<(String, Plan)>,
}

/// What a channel has to be for.
const TALKS: u64 = Operation::Call.bit() | Operation::Send.bit();

impl Peer {
    pub(super) fn who(&self) -> Who {
        match &self.unit {
            Some(unit) => {
                Who::Supervised { service: unit.service.to_string(), uid: self.uid, pid: self.pid }
            }
            None => Who::Unsupervised {
                uid: self.uid,
                pid: self.pid,
                executable: self.executable.clone(),
            },
        }
    }
}

impl Broker {
    /// Tells whether a connection is ipcd's own: it pings services, whoever may use them.
    pub(super) fn is_own(&self, peer: &Peer) -> bool {
        self.supervised && peer.unit.is_none() && peer.pid == self.pid
    }

    /// Decides whether a node may serve a name.
    pub(super) fn may_register(
        &self,
        token: Token,
        name: &str,
        turn: &mut Turn,
    ) -> Result<(), Status> {
        let session = self.sessions.get(&token).ok_or(Status::INVALID)?;
        let first = self.registry.discover(name).and_then(|id| self.registry.resolve(id));
        let served_by = first.and_then(|instance| self.uid_of_instance(instance));
        let verdict = self.policy.registering(&session.who, name, served_by);
        if verdict.allowed {
            return Ok(());
        }
        let because = self.reason(verdict.because);
        turn.note(denial(&session.who, format!("name {name}"), "serve", because));
        Err(Status::ACCESS)
    }

    /// Notes that a name is served.
    pub(super) fn note_registered(&self, token: Token, name: &str, turn: &mut Turn) {
        if let Some(session) = self.sessions.get(&token) {
            let mut note = Note::new(Kind::Registered, session.who.to_string());
            note.object = format!("name {name}");
            turn.note(note);
        }
    }

    /// Gives what a client may do with a name that an instance serves.
    ///
    /// # Errors
    /// `ACCESS` where it may not even talk to it.
    pub(super) fn may_connect(
        &self,
        client: Token,
        name: &str,
        served_by: u32,
        turn: &mut Turn,
    ) -> Result<u64, Status> {
        let session = self.sessions.get(&client).ok_or(Status::INVALID)?;
        if session.own {
            return Ok(Operation::MASK);
        }
        let what = What::Name { text: name, served_by: Some(served_by) };
        let granted = self.policy.permitted(&session.who, what);
        if granted & TALKS != 0 {
            return Ok(granted);
        }
        let because = self.policy.judge(&session.who, what, Operation::Call).because;
        let because = self.reason(because);
        turn.note(denial(&session.who, format!("name {name}"), "call, send", because));
        Err(Status::ACCESS)
    }

    /// Notes what a new channel was opened for.
    pub(super) fn note_grant(&self, who: &Who, name: &str, granted: u64, turn: &mut Turn) {
        let what = What::Name { text: name, served_by: None };
        let first = Operation::ALL.into_iter().find(|it| granted & it.bit() != 0);
        let because = first.map(|it| self.policy.judge(who, what, it).because);
        let mut note = Note::new(Kind::Grant, who.to_string());
        note.object = format!("name {name}");
        note.operation = Cow::Owned(names_of(granted));
        note.verdict = Some(true);
        note.because = match because {
            Some(because @ Because::Rule(_)) => self.reason(because),
            Some(Because::Default(_)) | None => "default".to_owned(),
        };
        turn.note(note);
    }

    /// Decides whether a node may tell the supervisor what to do.
    pub(super) fn may_command(&self, token: Token, text: &str, turn: &mut Turn) -> bool {
        let Some(session) = self.sessions.get(&token) else { return false };
        let verdict = self.policy.judge(&session.who, What::Runtime, Operation::Admin);
        if verdict.allowed || session.own {
            return true;
        }
        let because = format!("{}: {text}", self.reason(verdict.because));
        turn.note(denial(&session.who, "the runtime".to_owned(), "admin", because));
        false
    }

    /// Takes other rules and quotas: closes what they do not allow any more.
    pub(super) fn enact(&mut self, law: Law, turn: &mut Turn) {
        let before = std::mem::replace(&mut self.policy, Policy::new(law.terms));
        self.hide_payloads(&before, turn);
        self.let_go_of_strangers(|service| law.services.contains_key(service), turn);
        self.accounts.limit(law.users, law.services);
        self.topics.declare(law.topics);
        self.plan_by_file(law.failovers, turn);
        self.revoke_topics(turn);
        self.revoke_channels(turn);
        self.judge_regions(turn);
        self.close_rerouted(turn);
        self.end_instances(turn);
        // Whoever has not been answered yet is judged like a newcomer.
        self.move_on(|_| true, turn);
    }

    fn revoke_channels(&mut self, turn: &mut Turn) {
        let open = self.channels.all().map(|(id, channel)| Open {
            id,
            who: &channel.who,
            what: What::Name { text: &channel.name, served_by: Some(channel.served_by) },
            granted: channel.granted,
        });
        let mut revoked = self.policy.revoked(open);
        revoked.sort_by_key(|it| it.channel);
        for it in revoked {
            let Some(channel) = self.channels.remove(it.channel) else { continue };
            self.accounts.closed(it.channel);
            let (object, because) = (format!("name {}", channel.name), self.reason(it.because));
            let note = denial(&channel.who, object, it.operation.name(), because);
            turn.note(Note { kind: Kind::Revoked, ..note });
            self.tell_revoked(it.channel, &channel, turn);
        }
    }

    /// Closes the channels that would be opened otherwise now: encrypted where they are plain, or
    /// plain. Their next call opens another.
    fn close_rerouted(&mut self, turn: &mut Turn) {
        let encrypts = |token: &Token| self.sessions.get(token).is_some_and(|it| it.encrypts);
        let rerouted = self.channels.all().filter(|(_, channel)| {
            let what = What::Name { text: &channel.name, served_by: Some(channel.served_by) };
            let must = encrypts(&channel.client) || encrypts(&channel.service);
            channel.encrypted != (must || self.policy.encrypts(&channel.who, what))
        });
        let mut rerouted: Vec<u64> = rerouted.map(|(id, _)| id).collect();
        rerouted.sort_unstable();
        for id in rerouted {
            let Some(channel) = self.channels.remove(id) else { continue };
            self.accounts.closed(id);
            let object = format!("name {}", channel.name);
            let now = if channel.encrypted { "plain" } else { "encrypted" };
            let note = denial(&channel.who, object, "call", format!("its route is {now} now"));
            turn.note(Note { kind: Kind::Revoked, ..note });
            self.tell_revoked(id, &channel, turn);
        }
    }

    /// Tells both ends of a channel, as far as they are connected, that it is no more.
    pub(super) fn tell_revoked(&self, id: u64, channel: &Channel, turn: &mut Turn) {
        let ends = [channel.client, channel.service];
        let ends = if ends[0] == ends[1] { &ends[..1] } else { &ends[..] };
        for &to in ends.iter().filter(|to| self.sessions.contains_key(to)) {
            let reply = Reply::Revoked { channel: id };
            turn.out.push(Effect::Send { to, sequence: 0, reply });
        }
    }

    /// Ends the instances whose names are not their nodes' to serve any more.
    fn end_instances(&mut self, turn: &mut Turn) {
        let mut ended = Vec::new();
        for (token, session) in &self.sessions {
            let Some(node) = session.node else { continue };
            for (instance, name) in self.registry.served_by_node(node) {
                let verdict = self.policy.registering(&session.who, &name, Some(session.peer.uid));
                if !verdict.allowed {
                    ended.push((*token, node, instance, name, verdict.because));
                }
            }
        }
        ended.sort_by_key(|it| it.2);
        for (token, node, instance, name, because) in ended {
            let id = self.registry.instance(instance).map(|it| it.name);
            if self.registry.unregister(node, instance).is_err() {
                continue;
            }
            self.accounts.unnamed(instance);
            turn.out.push(Effect::LetGo { instance });
            if let Some(session) = self.sessions.get(&token) {
                let because = self.reason(because);
                let note = denial(&session.who, format!("name {name}"), "serve", because);
                turn.note(Note { kind: Kind::Revoked, ..note });
            }
            self.tell(token, turn, |unit| crate::desk::Notice::Unregistered { unit, instance });
            if let Some(id) = id {
                self.regroup(id, Cause::Left, turn);
            }
        }
    }

    /// Gives the user of the process that serves an instance.
    pub(super) fn uid_of_instance(&self, instance: ServiceId) -> Option<u32> {
        let node = self.registry.instance(instance)?.node;
        self.uid_of_node(node)
    }

    pub(super) fn uid_of_node(&self, node: ServiceId) -> Option<u32> {
        let token = self.tokens.get(&node)?;
        self.sessions.get(token).map(|session| session.peer.uid)
    }

    /// Says in words what decided.
    pub(super) fn reason(&self, because: Because) -> String {
        match because {
            Because::Default(fallback) => fallback.text().to_owned(),
            Because::Rule(index) => {
                let rule = &self.policy.rules()[index];
                match self.policy.line(index) {
                    Some(line) => format!("rule {}, line {line}: {rule}", index + 1),
                    None => format!("rule {}: {rule}", index + 1),
                }
            }
        }
    }
}

fn denial(who: &Who, object: String, operation: &'static str, because: String) -> Note {
    let (subject, operation) = (who.to_string(), Cow::Borrowed(operation));
    Note { kind: Kind::Denial, subject, object, operation, verdict: Some(false), because }
}
