//! Serving a name: who may, at what cost, and who hears of it.

use ipc::{
    ServiceId, Status,
    control::{Cause, Reply, Request},
};

use super::{Broker, Effect, Token, Turn};
use crate::{
    desk::Notice,
    registry::{Claims, Registered},
};

impl Broker {
    /// Ends an instance; offers that it has not answered move on.
    pub(super) fn unregistration(
        &mut self,
        to: Token,
        node: ServiceId,
        sequence: u32,
        instance: ServiceId,
        turn: &mut Turn,
    ) {
        let name = self.registry.instance(instance).map(|it| it.name);
        if let Err(status) = self.registry.unregister(node, instance) {
            let reply = Reply::Refused(status);
            return turn.out.push(Effect::Send { to, sequence, reply });
        }
        self.accounts.unnamed(instance);
        turn.out.push(Effect::Send { to, sequence, reply: Reply::Done });
        turn.out.push(Effect::LetGo { instance });
        self.tell(to, turn, |unit| Notice::Unregistered { unit, instance });
        if let Some(name) = name {
            let peer = self.sessions.get(&to).map(|it| &it.peer);
            let process = peer.map_or((0, 0), |it| (it.pid, it.start_time));
            self.note_left(instance, name, process, turn);
            self.regroup(name, Cause::Left, turn);
        }
        self.move_on(|pending| pending.instance == instance, turn);
    }

    /// Answers a registration, or puts it off while the name is kept for others.
    pub(super) fn registration(
        &mut self,
        to: Token,
        node: ServiceId,
        sequence: u32,
        request: Request,
        turn: &mut Turn,
    ) {
        let Request::Register { flags, claim_instance, claim_name, ticket, name } = &request else {
            return;
        };
        let claims =
            Claims { instance: ServiceId::new(*claim_instance), name: ServiceId::new(*claim_name) };
        let proven = self.proves(to, claims, name, ticket);
        let is_unit = self.sessions.get(&to).is_some_and(|it| it.peer.unit.is_some());
        let result = if self.is_kept(name, proven || is_unit, turn.now_ns) {
            match self.put_off(to, sequence, request) {
                Ok(()) => return,
                Err(status) => Err(status),
            }
        } else {
            let claims = if proven { claims } else { Claims::default() };
            let made = self.register(to, node, name, *flags, claims, turn);
            // A supervised service is let in at once, and is given nothing while somebody who held
            // the name may be on the way back.
            let is_early = is_unit && self.is_kept(name, false, turn.now_ns);
            if (proven || is_early)
                && let Ok(made) = &made
            {
                self.unsettle(made.name, turn);
            }
            made.map(|made| (made, name.clone()))
        };
        match result {
            Ok((made, name)) => self.registered(to, sequence, made, &name, turn),
            Err(status) => {
                turn.out.push(Effect::Send { to, sequence, reply: Reply::Refused(status) });
            }
        }
    }

    /// Registers a name, if the policy and the quotas have room for it.
    fn register(
        &mut self,
        token: Token,
        node: ServiceId,
        name: &str,
        flags: u32,
        claims: Claims,
        turn: &mut Turn,
    ) -> Result<Registered, Status> {
        self.may_register(token, name, turn)?;
        let charge = self.accounts.name(token)?;
        // Its callers know it by the id that it had, whoever comes to serve it.
        let had = claims.name == ServiceId::NONE;
        let claims = if had { Claims { name: self.groups.id_of(name), ..claims } } else { claims };
        let made = self.registry.register(node, name, flags, claims);
        let made = made.and_then(|made| {
            let has_members = |it| !self.registry.group(it).is_empty();
            match self.groups.enter(made.name, name, has_members) {
                Ok(()) => Ok(made),
                Err(status) => self.registry.unregister(node, made.instance).and(Err(status)),
            }
        });
        self.accounts.named(charge, made.as_ref().ok().map(|made| made.instance));
        made
    }

    /// Tells everybody concerned of a registration: who asked, who records, who supervises, who
    /// waits for the name, and those who waited for its return.
    fn registered(
        &mut self,
        to: Token,
        sequence: u32,
        made: Registered,
        name: &str,
        turn: &mut Turn,
    ) {
        let Registered { instance, name: id } = made;
        let ticket = self.ticket(to, made, name);
        let reply = Reply::Registered { instance, name: id, ticket };
        turn.out.push(Effect::Send { to, sequence, reply });
        self.note_registered(to, name, turn);
        let name_of = |unit| Notice::Registered { unit, instance, name: name.to_owned() };
        self.tell(to, turn, name_of);
        self.answer_waits(name, id, turn);
        self.returned(to, instance, name, turn);
        self.regroup(id, Cause::First, turn);
    }
}
