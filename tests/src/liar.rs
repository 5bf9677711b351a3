//! A process that speaks to the runtime itself, and is bound by nothing.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ipc::{
    ServiceId,
    control::{self, Reply, Request, closer::Closer, packet},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
};

use crate::World;

/// A node that says what it likes.
#[derive(Debug)]
pub struct Liar {
    socket: OwnedFd,
}

impl Liar {
    /// Connects, and greets.
    pub fn new(world: &World) -> Liar {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket =
            socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
        let address = UnixAddr::new(&world.directory().join("ipcd.sock")).expect("short");
        connect(socket.as_raw_fd(), &address).expect("connected");
        let liar = Liar { socket };
        liar.say(&Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] });
        assert!(matches!(liar.hear(), Some(Reply::Welcome { .. })));
        liar
    }

    /// Says anything.
    pub fn say(&self, request: &Request) {
        let bytes = control::encode_request(9, request);
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
        while let Err(errno) = packet::send(self.socket.as_fd(), &bytes, &[]) {
            assert_eq!(errno, Errno::EAGAIN);
            poll(&mut fds, PollTimeout::NONE).expect("polled");
        }
    }

    /// The next that the runtime says; nothing when it has hung up.
    pub fn hear(&self) -> Option<Reply> {
        let closer = Closer::new().expect("an eventfd");
        let mut buffer = [0; control::MAX_PACKET];
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).expect("polled");
        match packet::receive(self.socket.as_fd(), &mut buffer, &closer) {
            Ok(packet::Received::Packet(length, _)) => {
                Some(control::decode_reply(&buffer[..length]).expect("a reply").1)
            }
            _ => None,
        }
    }

    /// Stands by for a name; gives the instance, and the last epoch that was told.
    pub fn stand_by(&self, name: &str) -> (ServiceId, u64) {
        self.say(&Request::Register {
            flags: 0,
            claim_instance: 0,
            claim_name: 0,
            ticket: [0; 32],
            name: name.to_owned(),
        });
        let Some(Reply::Registered { instance, .. }) = self.hear() else { panic!("refused") };
        let Some(Reply::Group(group)) = self.hear() else { panic!("not told") };
        (instance, group.epoch)
    }
}
