//! The other end of the control protocol, by hand. Everything waits at most `WATCHDOG_MS`.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use ipc::{
    Geometry, ServiceId, Status,
    control::{
        Introduction, MAX_PACKET, Reply, Request,
        closer::{Closer, Stranger},
        decode_reply, encode_request,
        packet::{self, Received},
    },
};
use kernel_services::Kernel;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    poll::{PollFd, PollFlags, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
    },
    unistd::ftruncate,
};
use tempfile::TempDir;

const WATCHDOG_MS: u16 = 10_000;

/// A runtime in a directory of its own.
pub(crate) struct Runtime {
    pub(crate) kernel: Kernel,
    pub(crate) directory: TempDir,
}

pub(crate) fn runtime() -> Runtime {
    let directory = tempfile::tempdir().expect("a directory");
    let kernel = Kernel::embedded(directory.path()).expect("starts");
    Runtime { kernel, directory }
}

impl Runtime {
    pub(crate) fn node(&self) -> Peer {
        let peer = Peer::connect(self.kernel.socket_path());
        peer.hello();
        peer
    }
}

/// One control connection.
pub(crate) struct Peer {
    socket: OwnedFd,
}

/// What came out of a connection.
#[derive(Debug)]
pub(crate) enum Heard {
    Reply(u32, Reply, Vec<OwnedFd>),
    Closed,
}

impl Peer {
    pub(crate) fn connect(path: &Path) -> Peer {
        Peer::try_connect(path).expect("connects")
    }

    pub(crate) fn try_connect(path: &Path) -> Result<Peer, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Peer { socket })
    }

    pub(crate) fn duplicate(&self) -> OwnedFd {
        self.socket.try_clone().expect("a descriptor")
    }

    pub(crate) fn hello(&self) -> ServiceId {
        match self.ask(&Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] }) {
            Reply::Welcome { node, .. } => node,
            other => panic!("not welcomed: {other:?}"),
        }
    }

    pub(crate) fn send(&self, sequence: u32, request: &Request, fds: &[BorrowedFd<'_>]) {
        self.send_raw(&encode_request(sequence, request), fds).expect("sends");
    }

    pub(crate) fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        packet::send(self.socket.as_fd(), bytes, fds)
    }

    /// Asks what is answered without descriptors.
    pub(crate) fn ask(&self, request: &Request) -> Reply {
        self.send(77, request, &[]);
        self.answer(77)
    }

    pub(crate) fn answer(&self, sequence: u32) -> Reply {
        let (reply, fds) = self.answer_with_fds(sequence);
        assert!(fds.is_empty());
        reply
    }

    pub(crate) fn answer_with_fds(&self, sequence: u32) -> (Reply, Vec<OwnedFd>) {
        match self.hear() {
            Heard::Reply(of, reply, fds) => {
                assert_eq!(of, sequence, "{reply:?}");
                (reply, fds)
            }
            Heard::Closed => panic!("closed instead of an answer"),
        }
    }

    /// Hears what comes next, but for news of the groups that serve names: they come by themselves.
    pub(crate) fn hear(&self) -> Heard {
        loop {
            match self.hear_all() {
                Heard::Reply(0, Reply::Group(_) | Reply::Promote { .. }, _) => {}
                heard => return heard,
            }
        }
    }

    fn hear_all(&self) -> Heard {
        await_readable(self.socket.as_fd());
        let mut buffer = [0; MAX_PACKET];
        let closer = Closer::new().expect("a closer");
        match packet::receive(self.socket.as_fd(), &mut buffer, &closer).expect("receives") {
            Received::Packet(length, fds) => {
                let (sequence, reply) = decode_reply(&buffer[..length]).expect("well formed");
                Heard::Reply(sequence, reply, fds.into_iter().map(Stranger::vouched).collect())
            }
            Received::Closed => Heard::Closed,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn expect_closed(&self) {
        match self.hear() {
            Heard::Closed => {}
            Heard::Reply(_, reply, _) => panic!("not closed: {reply:?}"),
        }
    }

    /// Expects a last word and the end.
    pub(crate) fn expect_cut(&self, sequence: u32, status: Status) {
        assert_eq!(self.answer(sequence), Reply::Refused(status));
        self.expect_closed();
    }

    pub(crate) fn register(&self, name: &str) -> (ServiceId, ServiceId) {
        match self.ask(&register(name, 0)) {
            Reply::Registered { instance, name, .. } => (instance, name),
            other => panic!("not registered: {other:?}"),
        }
    }

    pub(crate) fn connect_to(&self, sequence: u32, dest: ServiceId, lane: &OwnedFd) {
        let request = Request::Connect { dest, geometry: Geometry::default() };
        self.send(sequence, &request, &[lane.as_fd()]);
    }

    pub(crate) fn incoming(&self) -> (Introduction, Vec<OwnedFd>) {
        match self.answer_with_fds(0) {
            (Reply::Incoming(introduction), fds) => (*introduction, fds),
            other => panic!("not an offer: {other:?}"),
        }
    }

    pub(crate) fn accept(&self, channel: u64, lane: &OwnedFd) {
        self.send(0, &Request::Accept { channel, status: Status::OK }, &[lane.as_fd()]);
    }

    pub(crate) fn connected(&self, sequence: u32) -> (Introduction, Vec<OwnedFd>) {
        match self.answer_with_fds(sequence) {
            (Reply::Connected(introduction), fds) => (*introduction, fds),
            other => panic!("not connected: {other:?}"),
        }
    }

    pub(crate) fn nodes_and_services(&self) -> (u32, u32) {
        match self.ask(&Request::Ping) {
            Reply::State { nodes, services, .. } => (nodes, services),
            other => panic!("not a state: {other:?}"),
        }
    }
}

pub(crate) fn register(name: &str, flags: u32) -> Request {
    Request::Register {
        flags,
        claim_instance: 0,
        claim_name: 0,
        ticket: [0; 32],
        name: name.to_owned(),
    }
}

pub(crate) fn await_readable(fd: BorrowedFd<'_>) {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    let ready = poll(&mut fds, WATCHDOG_MS).expect("polls");
    assert!(ready > 0, "nothing came before the watchdog");
}

/// Asks again until it is so; each question is itself a round trip to somebody.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_millis(WATCHDOG_MS.into());
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

/// Whether the runtime gets a descriptor of each node's process.
pub(crate) fn has_pidfds() -> bool {
    let features = ipc::features();
    features.pidfd || features.peer_pidfd
}

/// A lane as it should be.
pub(crate) fn lane() -> OwnedFd {
    let lane = unsealed_lane(Geometry::default().lane_bytes());
    seal(&lane);
    lane
}

pub(crate) fn unsealed_lane(bytes: usize) -> OwnedFd {
    let lane = sparse_lane(bytes);
    nix::fcntl::fallocate(&lane, nix::fcntl::FallocateFlags::empty(), 0, bytes as i64)
        .expect("allocates");
    lane
}

pub(crate) fn sparse_lane(bytes: usize) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let lane = memfd_create("lane", flags).expect("a memfd");
    ftruncate(&lane, bytes as i64).expect("grows");
    lane
}

pub(crate) fn seal(lane: &OwnedFd) {
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_FUTURE_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(lane, FcntlArg::F_ADD_SEALS(seals)).expect("seals");
}
