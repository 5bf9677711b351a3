//! Channels of this node: clients that come to its services, and either end as it is made.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use super::{
    core::{Closing, Core, lock},
    descriptors::Descriptors,
    peers::End,
};
use crate::{
    channel::{Channel, Parts, greeting},
    control::{
        Introduction, Request,
        closer::{PeerSocket, Stranger},
    },
    error::{NodeError, Status},
    frame::Sender,
    lane::{self, Lane},
    life::Entry,
    server::{Incoming, Member},
    socket::Transport,
};

impl Core {
    /// Takes in a client that the runtime introduces, and answers. The warden's work.
    pub(super) fn accept(self: &Arc<Self>, introduction: Introduction, fds: Vec<Stranger>) {
        let channel = introduction.channel;
        let (status, lane) = match self.admit(introduction, fds) {
            Ok(lane) => (Status::OK, Some(lane)),
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
        if self.closer.is_crowded() {
            return Err(NodeError::Refused(Status::QUOTA));
        }
        let (hub, post) = lock(&self.registered)
            .iter()
            .find(|it| it.current == introduction.dest)
            .and_then(|it| it.hub.upgrade().map(|hub| (hub, Arc::clone(&it.post))))
            .ok_or(NodeError::Refused(Status::PEER_DIED))?;
        let peer = lane::map_peer(peer.as_fd(), introduction.geometry)?;
        let (own, fd) = lane::create(introduction.geometry)?;
        let entry = self.roll.enter(&own)?;
        let channel = self.channel(introduction, Sender::Server, [own, peer], entry, bell)?;
        let closing = Closing { core: Arc::downgrade(self), channel: introduction.channel };
        let incoming = Arc::new(Incoming::new(channel, Arc::downgrade(&hub), closing));
        let end = End::Incoming(Arc::downgrade(&incoming));
        self.peers.watch(&self.epoll, introduction.peer_pid, pidfd, end);
        post.join(&incoming);
        hub.add(Member::Incoming(incoming));
        Ok(fd)
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
        let greeting = greeting(&introduction, role, &self.key)?;
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
