//! Channels that this node opens.

use std::{
    os::fd::AsFd,
    sync::{Arc, Weak},
};

use super::{PATIENCE, core::Core, descriptors::Descriptors, peers::End, refused};
use crate::{
    Geometry, ServiceId,
    channel::Channel,
    control::{Reply, Request},
    error::{NodeError, Status},
    frame::Sender,
    lane,
    link::Link,
    sync::Ordering,
};

impl Core {
    /// Opens a channel to a service.
    pub(crate) fn open(self: &Arc<Self>, dest: ServiceId) -> Result<Arc<Link>, NodeError> {
        if let Some(path) = self.path_behind(dest) {
            return self.open_socket(&path, dest);
        }
        self.open_as(dest, self.config.geometry, |channel, closing| {
            // An instance that is called by its own id serves, wherever it stands.
            channel.set_mark(u32::from(channel.introduction.dest != dest));
            Link::new(channel, self.config.outstanding, Arc::clone(&self.interrupter), closing)
        })
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
        own.header().identity.mark.store(1, Ordering::Relaxed);
        let entry = self.roll.enter(&own)?;
        let request = Request::Connect { dest, geometry };
        let asked = self.request(&request, &[fd.as_fd()], Some(PATIENCE));
        let (reply, fds) = asked.map_err(|error| match error {
            NodeError::Refused(Status::ACCESS) => NodeError::Forbidden,
            error => error,
        })?;
        let Reply::Connected(introduction) = reply else { return Err(refused(&reply)) };
        // From here on the runtime counts the channel.
        let closing = Closing { core: Arc::downgrade(self), channel: introduction.channel };
        if introduction.geometry != geometry {
            return Err(NodeError::Lane("its geometry is not the one asked for"));
        }
        self.check_introduction(&introduction, Sender::Client, Some(dest))?;
        let Descriptors { lane: peer, bell, pidfd } = Descriptors::of(fds, &self.closer)?;
        let peer = lane::map_peer(peer.as_fd(), geometry)?;
        let channel = self.channel(introduction, Sender::Client, [own, peer], entry, bell)?;
        self.tell_boards();
        let link = Arc::new(make(channel, closing));
        let end = End::Link(Arc::downgrade(&link));
        self.peers.watch(&self.epoll, introduction.peer_pid, pidfd, end);
        link.channel.greet()?;
        if introduction.encrypted {
            self.known.note_met(&introduction);
        }
        Ok(link)
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
