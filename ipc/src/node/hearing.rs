//! Whether the runtime has said anything that this node has not heard yet.
//!
//! A standby that sees all before it dead looks here last: what the runtime said before they died
//! may be that another goes before it by now. Who finds news leaves it, and looks again when it was
//! heard.

use std::{os::fd::AsFd, sync::Arc};

use arc_swap::ArcSwapOption;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    control::closer::PeerSocket,
    sync::{AtomicBool, Ordering},
};

/// What the warden hears, as others look at it.
#[derive(Debug, Default)]
pub(crate) struct Hearing {
    socket: ArcSwapOption<PeerSocket>,
    /// Whether the warden acts on a packet that it has taken.
    is_busy: AtomicBool,
    /// Whether somebody waits until all was heard.
    is_awaited: AtomicBool,
}

impl Hearing {
    /// The runtime is heard by this connection from now on, or not at all.
    pub(super) fn listen(&self, socket: Option<Arc<PeerSocket>>) {
        self.socket.store(socket);
    }

    /// Before a packet is taken. The warden's, as is [`end`](Hearing::end).
    pub(super) fn begin(&self) {
        self.is_busy.store(true, Ordering::SeqCst);
    }

    /// After what it says was done. Returns whether somebody waited for that.
    pub(super) fn end(&self) -> bool {
        self.is_busy.store(false, Ordering::SeqCst);
        self.is_awaited.swap(false, Ordering::SeqCst)
    }

    /// Whether anything said before this call was not heard yet. Then who watches is woken when
    /// more of it was.
    pub(crate) fn has_news(&self) -> bool {
        let Some(socket) = self.socket.load_full() else { return false };
        self.is_awaited.store(true, Ordering::SeqCst);
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        // In this order: what was taken from the socket by now is being acted on, or done.
        let waits = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        waits || self.is_busy.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::control::closer::Closer;

    #[test]
    fn what_was_said_is_news_until_it_was_acted_on() {
        let hearing = Hearing::default();
        assert!(!hearing.has_news(), "nobody speaks");
        let flags = SockFlag::SOCK_CLOEXEC;
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
        let (runtime, node) = pair.expect("a pair");
        let closer = Closer::new().expect("an eventfd");
        let node = Arc::new(PeerSocket::new(node, &closer));
        hearing.listen(Some(Arc::clone(&node)));
        assert!(!hearing.has_news());
        send(runtime.as_raw_fd(), b"news", MsgFlags::empty()).expect("room");
        assert!(hearing.has_news(), "it waits");
        hearing.begin();
        recv(node.as_fd().as_raw_fd(), &mut [0; 8], MsgFlags::empty()).expect("it is there");
        assert!(hearing.has_news(), "it was taken, and not acted on");
        assert!(hearing.end(), "somebody waits for that");
        assert!(!hearing.has_news());
        // The end of the connection is news as well: the warden has to see it first.
        drop(runtime);
        assert!(hearing.has_news());
        hearing.listen(None);
        assert!(!hearing.has_news());
    }
}
