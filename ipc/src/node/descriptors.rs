//! The descriptors of an introduction, and who answers for them.

use std::{os::fd::OwnedFd, sync::Arc};

use crate::{
    control::closer::{Closer, PeerSocket, Stranger},
    error::NodeError,
};

/// What comes with an introduction. The lane is somebody else's, the rest the runtime's own.
pub(super) struct Descriptors {
    pub(super) lane: Stranger,
    pub(super) bell: PeerSocket,
    pub(super) pidfd: Option<OwnedFd>,
}

/// What comes with an introduction of two that share no memory: all of it the runtime's own.
pub(super) struct OfSocket {
    pub(super) socket: OwnedFd,
    pub(super) pidfd: Option<OwnedFd>,
}

impl OfSocket {
    pub(super) fn of(fds: Vec<Stranger>) -> Result<OfSocket, NodeError> {
        let mut fds = fds.into_iter().map(Stranger::vouched);
        let socket = fds.next();
        let socket = socket.ok_or(NodeError::Malformed("an introduction without its socket"))?;
        Ok(OfSocket { socket, pidfd: fds.next() })
    }
}

impl Descriptors {
    pub(super) fn of(fds: Vec<Stranger>, closer: &Arc<Closer>) -> Result<Descriptors, NodeError> {
        let mut fds = fds.into_iter();
        match (fds.next(), fds.next(), fds.next()) {
            (Some(lane), Some(bell), pidfd) => Ok(Descriptors {
                lane,
                bell: PeerSocket::new(bell.vouched(), closer),
                pidfd: pidfd.map(Stranger::vouched),
            }),
            _ => Err(NodeError::Malformed("an introduction without its descriptors")),
        }
    }
}
