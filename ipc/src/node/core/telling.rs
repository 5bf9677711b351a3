//! What a node tells the runtime, and waits for no answer to.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::{Core, lock};
use crate::{
    control::{Request, encode_request, packet},
    error::NodeError,
};

impl Core {
    /// Tells the runtime that a channel is closed, without waiting: where there is no room in the
    /// socket, the warden tells it later. A runtime that is gone has forgotten the channel.
    pub(in crate::node) fn say_closed(&self, channel: u64) {
        self.tell_later(Request::Closed { channel });
    }

    /// Tells the runtime something that it does not answer, likewise.
    pub(in crate::node) fn tell_later(&self, farewell: Request) {
        lock(&self.farewells).push(farewell);
        self.tell_closed();
    }

    /// Tells the runtime something, if it is there and its socket has room.
    pub(in crate::node) fn tell_now(&self, request: &Request) -> Result<(), NodeError> {
        let socket = self.current().ok_or_else(|| self.no_runtime())?;
        packet::send(socket.as_fd(), &encode_request(0, request), &[])
            .map_err(NodeError::system("send to the runtime"))
    }

    /// Tells the runtime what was let go of, as far as its socket has room.
    pub(in crate::node) fn tell_closed(&self) {
        let mut closed = lock(&self.farewells);
        let Some(socket) = self.current() else { return closed.clear() };
        while let Some(request) = closed.last() {
            let bytes = encode_request(0, request);
            match packet::send(socket.as_fd(), &bytes, &[]) {
                Err(Errno::EAGAIN) => return,
                Ok(()) | Err(_) => drop(closed.pop()),
            }
        }
    }
}
