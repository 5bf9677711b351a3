//! Channels that this node opens.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Weak},
};

use super::{
    PATIENCE,
    core::Core,
    descriptors::{Descriptors, OfSocket},
    peers::End,
    refused,
};
use crate::{
    Geometry, ServiceId,
    channel::Channel,
    control::{Introduction, Reply, Request, closer::Stranger},
    error::{NodeError, Status},
    failpoint::shared,
    frame::Sender,
    lane,
    link::Link,
    socket::is_for_want_of_memory,
    sync::Ordering,
};

impl Core {
    /// Opens a channel to a service: by shared memory, or, where either of the two cannot share
    /// any, over a socket.
    pub(crate) fn open(self: &Arc<Self>, dest: ServiceId) -> Result<Arc<Link>, NodeError> {
        if let Some(path) = self.path_behind(dest) {
            return self.open_socket(&path, dest);
        }
        if !self.config.share_memory {
            return self.open_by_socket(dest);
        }
        let opened = self.open_as(dest, self.config.geometry, |channel, closing| {
            // An instance that is called by its own id serves, wherever it stands.
            channel.set_mark(u32::from(channel.introduction.dest != dest));
            Link::new(channel, self.config.outstanding, Arc::clone(&self.interrupter), closing)
        });
        match opened {
            // The other end cannot, or this one.
            Err(NodeError::Refused(Status::NOT_SUPPORTED)) => self.open_by_socket(dest),
            Err(error) if is_for_want_of_memory(&error) => {
                // Where a socket does not do either, the first error says more.
                self.open_by_socket(dest).map_err(|second| match second {
                    NodeError::Refused(Status::NOT_SUPPORTED) => error,
                    second => second,
                })
            }
            other => other,
        }
    }

    /// Opens a channel over a socket, to whom the runtime introduces.
    fn open_by_socket(self: &Arc<Self>, dest: ServiceId) -> Result<Arc<Link>, NodeError> {
        let (introduction, fds) = self.ask_for(&Request::ConnectBySocket { dest }, &[])?;
        let closing = Closing { core: Arc::downgrade(self), channel: introduction.channel };
        let OfSocket { socket, pidfd } = OfSocket::of(fds)?;
        self.check_introduction(&introduction, Sender::Client, Some(dest))?;
        let (channel, carrier) = self.end_by_socket(introduction, socket, Sender::Client)?;
        self.tell_boards();
        let interrupter = Arc::clone(&self.interrupter);
        let link = Arc::new(Link::new(channel, self.config.outstanding, interrupter, closing));
        carrier.carry(&link)?;
        self.greet(link, pidfd)
    }

    /// Has a client's new channel watched over, and makes its handshake.
    fn greet(&self, link: Arc<Link>, pidfd: Option<OwnedFd>) -> Result<Arc<Link>, NodeError> {
        let introduction = &link.channel.introduction;
        let end = End::Link(Arc::downgrade(&link));
        self.peers.watch(&self.epoll, introduction.peer_pid, pidfd, end);
        link.channel.greet()?;
        if introduction.encrypted {
            self.known.note_met(introduction);
        }
        Ok(link)
    }

    /// Asks the runtime for a channel. From its answer on it counts it.
    fn ask_for(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Introduction, Vec<Stranger>), NodeError> {
        let asked = self.request(request, fds, Some(PATIENCE));
        let (reply, fds) = asked.map_err(|error| match error {
            NodeError::Refused(Status::ACCESS) => NodeError::Forbidden,
            error => error,
        })?;
        match reply {
            Reply::Connected(introduction) => Ok((*introduction, fds)),
            reply => Err(refused(&reply)),
        }
    }

    /// Opens a channel to whom the calls of another one may go.
    pub(crate) fn open_beside(
        self: &Arc<Self>,
        dest: ServiceId,
        link: &Link,
    ) -> Result<Arc<Link>, NodeError> {
        let geometry = link.channel.introduction.geometry;
        self.open_as(dest, geometry, |channel, closing| link.beside(channel, closing))
    }

    /// Opens a channel only to see whether an instance lives, and where it stands.
    pub(super) fn open_watch(
        self: &Arc<Self>,
        instance: ServiceId,
        geometry: Geometry,
    ) -> Result<Arc<Link>, NodeError> {
        self.open_as(instance, geometry, |channel, closing| {
            Link::new(channel, 1, Arc::clone(&self.interrupter), closing)
        })
    }

    /// Opens a channel, by default of one who wants nothing of a standby.
    fn open_as(
        self: &Arc<Self>,
        dest: ServiceId,
        geometry: Geometry,
        make: impl FnOnce(Channel, Closing) -> Link,
    ) -> Result<Arc<Link>, NodeError> {
        let (own, fd) = lane::create(geometry)?;
        shared!(Mark, own.header().identity.mark.store(1, Ordering::Relaxed));
        let entry = self.roll.enter(&own)?;
        let request = Request::Connect { dest, geometry };
        let (introduction, fds) = self.ask_for(&request, &[fd.as_fd()])?;
        let closing = Closing { core: Arc::downgrade(self), channel: introduction.channel };
        if introduction.geometry != geometry {
            return Err(NodeError::Lane("its geometry is not the one asked for"));
        }
        self.check_introduction(&introduction, Sender::Client, Some(dest))?;
        let Descriptors { lane: peer, bell, pidfd } = Descriptors::of(fds, &self.closer)?;
        let peer = lane::map_peer(peer.as_fd(), geometry)?;
        let channel = self.channel(introduction, Sender::Client, [own, peer], entry, bell)?;
        self.tell_boards();
        self.greet(Arc::new(make(channel, closing)), pidfd)
    }
}

/// Tells the runtime, when it is dropped, that a channel which this node opened is closed.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(super) core: Weak<Core>,
    pub(super) channel: u64,
}

impl Closing {
    /// Tells nobody.
    pub(crate) fn of_nobody() -> Closing {
        Closing { core: Weak::new(), channel: 0 }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade()
            && core.birth.is_here()
        {
            core.say_closed(self.channel);
        }
    }
}
