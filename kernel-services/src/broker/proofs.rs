//! What a node can show to others of what it may do: tokens; and to the next runtime of what it
//! held: tickets.

use ipc::{
    ServiceId, Status,
    control::{Reply, Request, TOKEN_BYTES, Ticket},
};

use super::{Broker, Effect, Token, Turn};
use crate::{
    notes::{Kind, Note},
    registry::{Claims, Registered},
    security::{Operation, What, Who, names_of},
    token::{self, AuthToken, Wanted},
};

/// What the runtime issued to say that ids were a process's; see `docs/control.md`.
const TICKET: &[u8; 16] = b"libipc ticket v1";

impl Broker {
    /// Answers what is asked of rights; nothing where the reactor answers.
    pub(super) fn proof(
        &self,
        to: Token,
        node: ServiceId,
        sequence: u32,
        request: Request,
        turn: &mut Turn,
    ) -> Result<Option<Reply>, Status> {
        match request {
            Request::Verify { src, dest, operation } => {
                self.verify(node, src, dest, operation).map(Some)
            }
            Request::IssueToken { dest, permissions, lifetime_ms } => {
                let (subject, _) = self.registry.appearance(node);
                let wanted = Wanted { subject, audience: dest, permissions, lifetime_ms };
                self.issue_token(to, sequence, wanted, turn).map(|()| None)
            }
            Request::CheckToken { presenter, token } => {
                self.check_token(to, sequence, presenter, token, turn).map(|()| None)
            }
            _ => Ok(Some(Reply::PublicKey { key: self.key.public().to_bytes() })),
        }
    }

    /// Decides whether one may do something with another.
    fn verify(
        &self,
        asker: ServiceId,
        src: ServiceId,
        dest: ServiceId,
        operation: u32,
    ) -> Result<Reply, Status> {
        let operation = Operation::from_number(operation).ok_or(Status::INVALID)?;
        let src = if src == ServiceId::NONE { asker } else { src };
        let who = self.who_is(src).ok_or(Status::NOT_FOUND)?;
        let allowed = self.permitted_with(who, dest)? & operation.bit() != 0;
        if allowed { Ok(Reply::Done) } else { Err(Status::ACCESS) }
    }

    /// Has a token made for a node.
    fn issue_token(
        &self,
        to: Token,
        sequence: u32,
        wanted: Wanted,
        turn: &mut Turn,
    ) -> Result<(), Status> {
        let session = self.sessions.get(&to).ok_or(Status::INVALID)?;
        if self.is_turned_out(to) {
            return Err(Status::STALE);
        }
        let allowed = self.permitted_with(&session.who, wanted.audience)?;
        let mut note = Note::new(Kind::Token, session.who.to_string());
        let name = self.registry.name_behind(wanted.audience);
        note.object = name.map(|it| format!("name {it}")).unwrap_or_default();
        note.operation = names_of(wanted.permissions & allowed & Operation::MASK).into();
        note.verdict = Some(wanted.permissions & allowed & Operation::MASK != 0);
        let (epoch, note) = (self.epoch_of(to), Box::new(note));
        turn.out.push(Effect::Issue { to, sequence, wanted, allowed, epoch, note });
        Ok(())
    }

    /// Has a token checked that somebody showed to a node.
    fn check_token(
        &self,
        to: Token,
        sequence: u32,
        presenter: ServiceId,
        token: Box<[u8; TOKEN_BYTES]>,
        turn: &mut Turn,
    ) -> Result<(), Status> {
        let audience = self.sessions.get(&to).and_then(|it| it.node).ok_or(Status::INVALID)?;
        // What is wrong with a token is not told: a forger learns nothing.
        let who = self.who_is(presenter).ok_or(Status::AUTH)?;
        let node = self.registry.node_behind(presenter).ok_or(Status::AUTH)?;
        // Not believed yet; should it lie, the token does not count at all.
        let stated = AuthToken::from_bytes(&*token).map_err(|_| Status::AUTH)?;
        let allowed = self.permitted_with(who, stated.audience).map_err(|_| Status::AUTH)?;
        // One made at an epoch that is past counts no more than one that is forged.
        let session = self.tokens.get(&node).and_then(|it| self.sessions.get(it));
        if token::epoch_of(&stated).is_some_and(|epoch| session.is_none_or(|it| epoch <= it.past)) {
            return Err(Status::AUTH);
        }
        let (presenters, audience) = (self.registry.ids_of(node), self.registry.ids_of(audience));
        turn.out.push(Effect::Check { to, sequence, token, presenters, audience, allowed });
        Ok(())
    }

    /// Makes the ticket of a registration.
    pub(super) fn ticket(&self, token: Token, ids: Registered, name: &str) -> Ticket {
        self.seal(token, ids, name).unwrap_or_default()
    }

    /// Tells whether a ticket proves that claimed ids were this process's, for that name.
    pub(super) fn proves(&self, token: Token, claims: Claims, name: &str, ticket: &Ticket) -> bool {
        let ids = Registered { instance: claims.instance, name: claims.name };
        let Some(expected) = self.seal(token, ids, name) else { return false };
        // All bytes are looked at, so that the time says nothing about how many are right.
        expected.iter().zip(ticket).fold(0, |differ, (one, other)| differ | (one ^ other)) == 0
    }

    pub(super) fn seal(&self, token: Token, ids: Registered, name: &str) -> Option<Ticket> {
        let peer = &self.sessions.get(&token)?.peer;
        let mut statement = Vec::with_capacity(64 + name.len());
        statement.extend_from_slice(TICKET);
        for number in [ids.instance.get(), ids.name.get(), peer.uid, peer.pid] {
            statement.extend_from_slice(&number.to_le_bytes());
        }
        statement.extend_from_slice(&peer.start_time.to_le_bytes());
        statement.extend_from_slice(name.as_bytes());
        self.key.mac(&statement)
    }

    fn who_is(&self, id: ServiceId) -> Option<&Who> {
        let node = self.registry.node_behind(id)?;
        let session = self.sessions.get(self.tokens.get(&node)?)?;
        Some(&session.who)
    }

    /// Gives what somebody may do with the name behind an id.
    fn permitted_with(&self, who: &Who, dest: ServiceId) -> Result<u64, Status> {
        let name = self.registry.name_behind(dest).ok_or(Status::NOT_FOUND)?;
        let node = self.registry.resolve(dest).and_then(|it| self.uid_of_instance(it));
        Ok(self.policy.permitted(who, What::Name { text: name, served_by: node }))
    }
}
