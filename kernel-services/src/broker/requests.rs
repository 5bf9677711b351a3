//! Which request is whose to carry out.

use ipc::{
    ServiceId, Status,
    control::{Reply, Request},
};

use super::{Broker, Carried, Effect, Token, Turn, introductions::Way};
use crate::desk::Notice;

impl Broker {
    /// Carries a greeted node's request out, and answers it where it has an answer now.
    pub(super) fn request(
        &mut self,
        to: Token,
        node: ServiceId,
        sequence: u32,
        request: Request,
        carried: Carried,
        turn: &mut Turn,
    ) {
        let reply = match request {
            Request::Hello { .. } => Reply::Refused(Status::PROTOCOL),
            request @ Request::Register { .. } => {
                return self.registration(to, node, sequence, request, turn);
            }
            Request::Unregister { instance } => {
                return self.unregistration(to, node, sequence, instance, turn);
            }
            request @ (Request::Promoted { .. }
            | Request::Trigger { .. }
            | Request::History { .. }
            | Request::Suspect { .. }
            | Request::Pulse { .. }
            | Request::Detect { .. }
            | Request::Configure(_)
            | Request::Standing { .. }) => {
                return self.hear_of_groups((to, sequence), request, turn);
            }
            Request::Discover { name } => match self.registry.discover(&name) {
                Some(name) => Reply::Found { name },
                None => Reply::Refused(Status::NOT_FOUND),
            },
            Request::Wait { name } => match self.registry.discover(&name) {
                Some(name) => Reply::Found { name },
                None => match self.wait(to, sequence, name) {
                    Ok(()) => return,
                    Err(status) => Reply::Refused(status),
                },
            },
            Request::Forget { request } => return self.forget(to, request, turn),
            Request::Connect { dest, geometry } => {
                let way = Way::Memory(geometry, carried);
                return self.connect(to, sequence, dest, way, turn);
            }
            Request::ConnectBySocket { dest } => {
                return self.connect(to, sequence, dest, Way::Socket, turn);
            }
            Request::SharesNoMemory => return self.shares_no_memory(to),
            Request::Accept { channel, status } => {
                return self.accept(to, channel, status, carried, turn);
            }
            Request::List { after } => {
                let (entries, next) = self.registry.list(after);
                Reply::Page { entries, next }
            }
            Request::Ping => self.state(turn.now_ns),
            Request::Command { .. } if !self.supervised => Reply::Refused(Status::NOT_SUPPORTED),
            // A service that was taken over is not to stop the others.
            Request::Command { text } if !self.may_command(to, &text, turn) => {
                Reply::Refused(Status::ACCESS)
            }
            Request::Command { text } => return self.pass_command(to, sequence, text, turn),
            Request::Board { segment } => {
                return self.show_board(to, node, sequence, segment, carried, turn);
            }
            Request::Boards { after } => return self.next_board(to, sequence, after, turn),
            Request::Trace { .. } | Request::Payloads { .. } => self.look(to, &request, turn),
            Request::Keep { name } => self.keep_memory(to, name, carried, turn),
            Request::Kept { after } => return self.next_kept(to, sequence, after, turn),
            Request::Closed { channel } => return self.close_channel(to, channel),
            Request::Holds { serves, introduction } => {
                return self.hear_of(to, serves, introduction, turn);
            }
            request @ (Request::Topic { .. }
            | Request::Advertise { .. }
            | Request::Subscribe { .. }
            | Request::Bus(_)
            | Request::Topics { .. }
            | Request::Listeners { .. }) => match self.bus(to, node, request, carried, turn) {
                Ok(None) => return,
                Ok(Some(reply)) => reply,
                Err(status) => Reply::Refused(status),
            },
            request @ (Request::Verify { .. }
            | Request::IssueToken { .. }
            | Request::CheckToken { .. }
            | Request::PublicKey) => match self.proof(to, node, sequence, request, turn) {
                Ok(None) => return,
                Ok(Some(reply)) => reply,
                Err(status) => Reply::Refused(status),
            },
            Request::Region(request) => match self.region(to, sequence, request, carried, turn) {
                Ok(None) => return,
                Ok(Some(reply)) => reply,
                Err(status) => Reply::Refused(status),
            },
        };
        turn.out.push(Effect::Send { to, sequence, reply });
    }

    /// Hands an operator's command to who supervises.
    fn pass_command(&self, from: Token, sequence: u32, text: String, turn: &mut Turn) {
        let by = self.sessions.get(&from).map(|it| it.who.to_string()).unwrap_or_default();
        // The reactor's thread is within it while the request is carried out.
        let trace = ipc::trace::current();
        turn.out.push(Effect::Tell(Notice::Command { from, sequence, by, text, trace }));
    }

    fn state(&self, now_ns: u64) -> Reply {
        Reply::State {
            pid: self.pid,
            uptime_ms: now_ns.saturating_sub(self.started_ns) / 1_000_000,
            nodes: self.registry.nodes() as u32,
            services: self.registry.services() as u32,
            channels: self.introductions.made(),
        }
    }

    fn close_channel(&mut self, by: Token, channel: u64) {
        self.survivors.close(channel, by);
        if self.channels.closed(by, channel) {
            self.accounts.closed(channel);
        }
    }
}
