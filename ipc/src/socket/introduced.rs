//! Channels over sockets between processes that the runtime introduces, where one of them cannot
//! share memory. The doorbell that the runtime makes for them is what their frames go by.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Weak},
};

use super::{Ends, geometry, relay::Relay, relay_for, relay_to, spawn};
use crate::{
    channel::Channel,
    control::Introduction,
    error::{NodeError, Status},
    frame::Sender,
    link::Link,
    node::Core,
    server::Incoming,
};

/// Relays of one node for channels that the runtime introduced: each has a thread.
const MOST: usize = 1024;

/// Counts the relays of a node: each holds one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relays(Arc<()>);

/// What carries the frames of such a channel.
pub(crate) struct Carrier {
    relay: Relay,
    counted: Relays,
}

impl Carrier {
    /// Carries for a client.
    pub(crate) fn carry(self, link: &Arc<Link>) -> Result<(), NodeError> {
        relay_for(link, self.relay, self.counted)
    }

    /// Carries for a service.
    pub(crate) fn carry_to(self, incoming: Weak<Incoming>) -> Result<(), NodeError> {
        let Carrier { relay, counted } = self;
        spawn(move || {
            relay_to(&incoming, relay);
            drop(counted);
        })
        .map(drop)
    }
}

impl Core {
    /// Makes an end of a channel over a socket that the runtime has made.
    ///
    /// # Errors
    /// `QUOTA` at the limit of relays; `AUTH` where the channel is to be encrypted and the other
    /// end has no key; `PROTOCOL` for one of another geometry, which no runtime introduces.
    pub(crate) fn end_by_socket(
        &self,
        introduction: Introduction,
        socket: OwnedFd,
        role: Sender,
    ) -> Result<(Channel, Carrier), NodeError> {
        if introduction.geometry != geometry() {
            return Err(NodeError::Refused(Status::PROTOCOL));
        }
        let counted = self.relays.clone();
        if Arc::strong_count(&counted.0) > MOST + 1 {
            return Err(NodeError::Refused(Status::QUOTA));
        }
        let Ends { channel, relay } = self.ends(socket, introduction, role)?;
        Ok((channel, Carrier { relay, counted }))
    }
}

/// Tells whether memory could not be made or mapped since this process may not, or has no room for
/// it: a socket may do then. Nothing of it is the other end's fault.
pub(crate) fn is_for_want_of_memory(error: &NodeError) -> bool {
    let NodeError::System { source, .. } = error else { return false };
    matches!(
        source.raw_os_error(),
        Some(
            libc::EPERM
                | libc::EACCES
                | libc::ENOSYS
                | libc::ENOMEM
                | libc::EINVAL
                | libc::EOPNOTSUPP
                | libc::ENODEV
        )
    )
}
