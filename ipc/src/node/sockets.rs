//! Addresses of sockets: found, waited for, and known by ids of this node's own.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Node,
    core::{Core, lock},
};
use crate::{
    Address, AddressError, ServiceId,
    control::{
        Request,
        closer::{Closer, PeerSocket},
        encode_request, packet,
    },
    error::{NodeError, Status},
    lane::Lane,
    life::Entry,
    link::{time_left, until},
    socket,
    wait::futex,
};

/// The first id of an address. The runtime's ids count from 1, and do not come so far.
const FIRST: u32 = 0xF000_0000;
/// Addresses of one node.
const MOST: usize = 4096;
/// Pauses between tries to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(200);

impl Node {
    /// Reads an address.
    pub(super) fn locate(text: &str) -> Result<Address, NodeError> {
        text.parse().map_err(|error| match error {
            AddressError::Name(why) => NodeError::Name(why),
            other => other.into(),
        })
    }
}

impl Core {
    /// Gives the id of a path on which somebody listens now.
    pub(super) fn look_at(&self, path: &Path) -> Result<ServiceId, NodeError> {
        // Who listens sees a client that goes again before it has said anything.
        drop(socket::dial(path)?);
        self.id_of(path)
    }

    /// Waits until somebody listens on a path. The kernel tells nobody, so this tries again.
    pub(super) fn wait_at(
        &self,
        path: &Path,
        timeout: Option<Duration>,
    ) -> Result<ServiceId, NodeError> {
        let until = until(timeout);
        let turn = self.interrupter.turn();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.look_at(path) {
                Err(NodeError::Refused(Status::NOT_FOUND | Status::FULL)) => {}
                other => return other,
            }
            if self.interrupter.turn() != turn {
                return Err(NodeError::Closed);
            }
            let left = time_left(until).map_err(|_| NodeError::TimedOut)?;
            let pauses = left.map_or(pause, |left| left.min(pause));
            futex::wait(self.interrupter.word(turn), Some(pauses));
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    fn id_of(&self, path: &Path) -> Result<ServiceId, NodeError> {
        let mut addresses = lock(&self.addresses);
        let index = match addresses.iter().position(|it| it == path) {
            Some(index) => index,
            None if addresses.len() >= MOST => return Err(NodeError::Refused(Status::QUOTA)),
            None => {
                addresses.push(path.to_owned());
                addresses.len() - 1
            }
        };
        Ok(ServiceId::new(FIRST + index as u32))
    }

    /// Gives the path that an id stands for, if it is one of an address.
    pub(super) fn path_behind(&self, id: ServiceId) -> Option<PathBuf> {
        let index = id.get().checked_sub(FIRST)?;
        lock(&self.addresses).get(index as usize).cloned()
    }

    /// Says to a runtime that was just reached whether memory can be shared with this node.
    pub(super) fn tell_what_it_shares(&self, socket: &PeerSocket) -> Result<(), NodeError> {
        if self.config.share_memory {
            return Ok(());
        }
        // A fresh socket has room.
        packet::send(socket.as_fd(), &encode_request(0, &Request::SharesNoMemory), &[])
            .map_err(NodeError::system("send to the runtime"))
    }

    /// Enters a lane whose life word is to tell of this process.
    pub(crate) fn enter(&self, lane: &Arc<Lane>) -> Result<Entry, NodeError> {
        self.roll.enter(lane)
    }

    pub(crate) fn closer(&self) -> &Arc<Closer> {
        &self.closer
    }
}
