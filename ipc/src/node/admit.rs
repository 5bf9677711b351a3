//! Channels of this node: clients that come to its services, and either end as it is made.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use super::{
    core::{Core, lock},
    descriptors::{Descriptors, OfSocket},
    links::Closing,
    peers::End,
};
use crate::{
    channel::{Channel, Fate, Parts, greeting, is_late, late_at},
    clock,
    control::{
        Introduction, Request,
        closer::{PeerSocket, Stranger},
    },
    error::{NodeError, Status},
    failover::post::Post,
    frame::Sender,
    lane::{self, Lane},
    life::Entry,
    server::{Hub, Incoming, Member},
    socket::{Transport, is_for_want_of_memory},
};

impl Core {
    /// Takes in a client that the runtime introduces, and answers. The warden's work.
    pub(super) fn accept(self: &Arc<Self>, introduction: Introduction, fds: Vec<Stranger>) {
        let channel = introduction.channel;
        let admitted = match Transport::of(channel) {
            Transport::SharedMemory => self.admit(introduction, fds).map(Some),
            Transport::Socket => self.admit_by_socket(introduction, fds).map(|()| None),
        };
        let (status, lane) = match admitted {
            Ok(lane) => (Status::OK, lane),
            Err(error) if is_for_want_of_memory(&error) => {
                // The next ones need not try.
                self.tell_later(Request::SharesNoMemory);
                (Status::NOT_SUPPORTED, None)
            }
            Err(error) => (error.status(), None),
        };
        let fds: Vec<_> = lane.iter().map(AsFd::as_fd).collect();
        // Without an answer the runtime gives the client up by itself.
        let _ = self.post(0, &Request::Accept { channel, status }, &fds);
        self.tell_boards();
    }

    fn admit(
        self: &Arc<Self>,
        introduction: Introduction,
        fds: Vec<Stranger>,
    ) -> Result<OwnedFd, NodeError> {
        let Descriptors { lane: peer, bell, pidfd } = Descriptors::of(fds, &self.closer)?;
        self.check_introduction(&introduction, Sender::Server, None)?;
        if self.closer.is_crowded() {
            return Err(NodeError::Refused(Status::QUOTA));
        }
        let (hub, post) = self.serving(&introduction)?;
        let peer = lane::map_peer(peer.as_fd(), introduction.geometry)?;
        let (own, fd) = lane::create(introduction.geometry)?;
        let entry = self.roll.enter(&own)?;
        let channel = self.channel(introduction, Sender::Server, [own, peer], entry, bell)?;
        let closing = Closing { core: Arc::downgrade(self), channel: introduction.channel };
        let incoming = Arc::new(Incoming::new(channel, Arc::downgrade(&hub), closing));
        self.join(incoming, pidfd, &hub, &post);
        Ok(fd)
    }

    /// Has a client's channel watched over, and served.
    fn join(&self, incoming: Arc<Incoming>, pidfd: Option<OwnedFd>, hub: &Hub, post: &Arc<Post>) {
        let introduction = incoming.channel.introduction;
        let end = End::Incoming(Arc::downgrade(&incoming));
        self.peers.watch(&self.epoll, introduction.peer_pid, pidfd, end);
        post.join(&incoming);
        if introduction.encrypted {
            lock(&self.greeting).push_back((introduction.start_ns, Arc::downgrade(&incoming)));
        }
        hub.add(Member::Incoming(incoming));
    }

    /// The loop that serves what a client was introduced to.
    fn serving(&self, introduction: &Introduction) -> Result<(Arc<Hub>, Arc<Post>), NodeError> {
        lock(&self.registered)
            .iter()
            .find(|it| it.current == introduction.dest)
            .and_then(|it| it.hub.upgrade().map(|hub| (hub, Arc::clone(&it.post))))
            .ok_or(NodeError::Refused(Status::PEER_DIED))
    }

    /// Takes in a client with whom no memory is shared.
    fn admit_by_socket(
        self: &Arc<Self>,
        introduction: Introduction,
        fds: Vec<Stranger>,
    ) -> Result<(), NodeError> {
        let OfSocket { socket, pidfd } = OfSocket::of(fds)?;
        self.check_introduction(&introduction, Sender::Server, None)?;
        let (hub, post) = self.serving(&introduction)?;
        let (channel, carrier) = self.end_by_socket(introduction, socket, Sender::Server)?;
        let closing = Closing { core: Arc::downgrade(self), channel: introduction.channel };
        let incoming = Arc::new(Incoming::new(channel, Arc::downgrade(&hub), closing));
        carrier.carry_to(Arc::downgrade(&incoming))?;
        self.join(incoming, pidfd, &hub, &post);
        Ok(())
    }

    /// Ends the channels whose clients have not made their handshake in time, without waiting for
    /// the next thing that they send. Gives in how many ms there is something to end.
    pub(super) fn end_mute(&self) -> Option<u16> {
        let mut greeting = lock(&self.greeting);
        greeting.retain(|(start_ns, incoming)| {
            let Some(incoming) = incoming.upgrade() else { return false };
            if !incoming.channel.awaits_greeting() {
                return false;
            }
            let is_late = is_late(*start_ns);
            if is_late {
                End::Incoming(Arc::downgrade(&incoming)).end(Fate::Closed);
            }
            !is_late
        });
        let (first, _) = greeting.front()?;
        let left_ms = late_at(*first).saturating_sub(clock::now_ns()) / 1_000_000;
        Some(u16::try_from(left_ms + 1).unwrap_or(u16::MAX))
    }

    /// Makes an end of a channel of its lanes, the own one first.
    ///
    /// # Errors
    /// `AUTH` where it is to be encrypted and the other end has no key; [`NodeError::System`].
    pub(crate) fn channel(
        &self,
        introduction: Introduction,
        role: Sender,
        [own, peer]: [Arc<Lane>; 2],
        entry: Entry,
        bell: PeerSocket,
    ) -> Result<Channel, NodeError> {
        let has_met = self.known.has_met(&introduction);
        let greeting =
            greeting(&introduction, role, &self.key, has_met, self.config.rekey_records)?;
        Ok(Channel::new(Parts {
            introduction,
            role,
            own,
            peer,
            entry,
            bell,
            closer: Arc::clone(&self.closer),
            max_payload: self.config.max_payload,
            // Who cannot share memory cannot be lent any.
            max_bulk: match Transport::of(introduction.channel) {
                Transport::SharedMemory => self.config.max_bulk,
                Transport::Socket => 0,
            },
            spin: self.config.spin,
            seat: self.board.seat(&introduction, role),
            greeting,
        }))
    }
}
