//! Channels over a Unix socket, for two processes that cannot share memory: the same frames, in
//! packets.
//!
//! A service listens on a path; a client connects to it by its address, `unix:///path`. The kernel
//! says who is at the other end. Each end of such a channel has both its lanes in its own process,
//! and a thread between them and the socket (`relay`): nothing above the lanes knows of it, and
//! channels over shared memory pay nothing for it. `docs/transports.md` has what is guaranteed.

mod introduced;
mod listen;
mod packet;
mod relay;

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Weak},
    thread::JoinHandle,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, recv, send,
        socket, socketpair, sockopt,
    },
};

pub(crate) use self::introduced::{Relays, is_for_want_of_memory};
pub use self::listen::Listening;
pub(crate) use self::listen::listen_at;
use self::{
    packet::{HEAD, Packet},
    relay::Relay,
};
use crate::{
    ServiceId,
    channel::{Channel, Fate},
    clock,
    control::{self, Bond, Introduction, closer::PeerSocket},
    error::{NodeError, Status},
    frame::Sender,
    lane,
    layout::Geometry,
    link::Link,
    node::{Closing, Core},
    server::Incoming,
    sync::{AtomicU32, Ordering},
};

/// A bit of the ids of channels by a path: no runtime has introduced them.
const BY_PATH: u64 = 1 << 62;
/// How long the other end may take for its first packet, in ms.
const GREETING_MS: u16 = 2000;
const STACK: usize = 128 * 1024;
/// What a client may do: whoever may connect may call, and send.
const PERMISSIONS: u64 = 0b11;

/// What a channel's frames travel by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Memory that both ends share.
    SharedMemory = 0,
    /// A Unix socket.
    Socket = 1,
}

impl Transport {
    /// Tells by which one a channel goes: its id says so.
    pub fn of(channel: u64) -> Transport {
        if channel & control::BY_SOCKET == 0 { Transport::SharedMemory } else { Transport::Socket }
    }

    /// Names it, for people.
    pub fn name(self) -> &'static str {
        match self {
            Transport::SharedMemory => "shared memory",
            Transport::Socket => "socket",
        }
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(self.name())
    }
}

fn geometry() -> Geometry {
    Geometry::of_sockets()
}

/// Who is at the other end, as the kernel says.
struct Credentials {
    pid: u32,
    uid: u32,
}

fn credentials(socket: &OwnedFd) -> Result<Credentials, NodeError> {
    let peer = getsockopt(socket, sockopt::PeerCredentials)
        .map_err(NodeError::system("ask who is at the other end"))?;
    // 0 where the peer lives in a pid namespace that is not ours.
    let (pid, uid) = (u32::try_from(peer.pid()).unwrap_or(0), peer.uid());
    let own = nix::unistd::geteuid().as_raw();
    if uid == own || uid == 0 || own == 0 {
        Ok(Credentials { pid, uid })
    } else {
        Err(NodeError::Forbidden)
    }
}

fn new_socket() -> Result<OwnedFd, NodeError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
        .map_err(NodeError::system("make a socket"))
}

fn address(path: &Path) -> Result<UnixAddr, NodeError> {
    UnixAddr::new(path).map_err(|_| {
        NodeError::Config(format!("the path {} is too long for a socket", path.display()))
    })
}

/// Connects to a path on which somebody listens.
pub(crate) fn dial(path: &Path) -> Result<OwnedFd, NodeError> {
    let socket = new_socket()?;
    connect(socket.as_raw_fd(), &address(path)?).map_err(|errno| match errno {
        Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTDIR | Errno::EPROTOTYPE => {
            NodeError::Refused(Status::NOT_FOUND)
        }
        Errno::EACCES | Errno::EPERM => NodeError::Forbidden,
        // Its backlog is full.
        Errno::EAGAIN => NodeError::Refused(Status::FULL),
        errno => NodeError::system("connect to a service's socket")(errno),
    })?;
    Ok(socket)
}

fn say_hello(socket: BorrowedFd<'_>, session: u32) -> Result<(), NodeError> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(socket.as_raw_fd(), &packet::hello(session, geometry()), flags)
        .map(drop)
        .map_err(|_| NodeError::Refused(Status::PEER_DIED))
}

/// Waits for the first packet; gives the session in it.
fn hear_hello(socket: &OwnedFd, from: Sender) -> Result<u32, NodeError> {
    let until = clock::monotonic_ns() + u64::from(GREETING_MS) * 1_000_000;
    let mut bytes = [0; HEAD + 1];
    loop {
        match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(NodeError::Refused(Status::PEER_DIED)),
            Ok(length) => {
                return match packet::read(&bytes[..length], from, geometry(), false) {
                    Ok(Packet::Hello { session, geometry: word })
                        if word == packet::geometry_word(geometry()) =>
                    {
                        Ok(session)
                    }
                    Ok(Packet::Hello { .. }) => Err(NodeError::Refused(Status::PROTOCOL)),
                    _ => Err(NodeError::Refused(Status::PEER_CORRUPT)),
                };
            }
            Err(Errno::EAGAIN) => {}
            Err(Errno::EINTR) => continue,
            Err(_) => return Err(NodeError::Refused(Status::PEER_DIED)),
        }
        let left = until.saturating_sub(clock::monotonic_ns()).div_ceil(1_000_000);
        if left == 0 {
            return Err(NodeError::TimedOut);
        }
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(u16::try_from(left).unwrap_or(GREETING_MS)));
    }
}

/// A channel's end of this process, and the relay that is its other end here.
struct Ends {
    channel: Channel,
    relay: Relay,
}

impl Core {
    /// Makes lanes, and both ends of them in this process. They are nobody else's, so they are
    /// ordinary memory, which is there for who may have no other.
    fn ends(
        &self,
        socket: OwnedFd,
        introduction: Introduction,
        role: Sender,
    ) -> Result<Ends, NodeError> {
        let [own, relay_view] = lane::create_within(geometry())?;
        let [theirs, peer_view] = lane::create_within(geometry())?;
        if role == Sender::Server && introduction.channel & BY_PATH == 0 {
            // The service is asked for by its name, and by who wants it only while it serves.
            theirs.header().identity.mark.store(1, Ordering::Relaxed);
        }
        let entry = self.enter(&own)?;
        let relay_entry = self.enter(&theirs)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (bell, relay_bell) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(NodeError::system("make a doorbell"))?;
        // Both ends of the lanes are of this process, whatever the other process can.
        let asymmetric = crate::wait::futex::has_membarrier();
        let introduction = Introduction { asymmetric, ..introduction };
        let bell = PeerSocket::new(bell, self.closer());
        let channel = self.channel(introduction, role, [own, peer_view], entry, bell)?;
        let relay = Relay::new(relay::Parts {
            remote: if role == Sender::Client { Sender::Server } else { Sender::Client },
            own: theirs,
            entry: relay_entry,
            peer: relay_view,
            bell: relay_bell,
            socket,
            encrypted: introduction.encrypted,
        });
        Ok(Ends { channel, relay })
    }

    /// Refuses channels by paths to a node that has all of its own encrypted: nobody tells the ends
    /// of such a channel each other's keys.
    pub(super) fn may_be_plain(&self) -> Result<(), NodeError> {
        if self.config.encrypt {
            return Err(NodeError::Refused(Status::NOT_SUPPORTED));
        }
        Ok(())
    }

    /// Opens a channel to who listens on a path. `dest` is this node's id for it.
    pub(crate) fn open_socket(
        self: &Arc<Self>,
        path: &Path,
        dest: ServiceId,
    ) -> Result<Arc<Link>, NodeError> {
        self.may_be_plain()?;
        let socket = dial(path)?;
        let peer = credentials(&socket)?;
        let mut session = [0; 4];
        getrandom::fill(&mut session).map_err(|_| NodeError::Refused(Status::IO))?;
        let session = u32::from_le_bytes(session);
        say_hello(socket.as_fd(), session)?;
        hear_hello(&socket, Sender::Server)?;
        let introduction = by_path(&peer, session, [dest, dest, ServiceId::NONE]);
        let Ends { channel, relay } = self.ends(socket, introduction, Sender::Client)?;
        let interrupter = Arc::clone(&self.interrupter);
        let closing = Closing::of_nobody();
        let link = Arc::new(Link::new(channel, self.config.outstanding, interrupter, closing));
        relay_for(&link, relay, ())?;
        Ok(link)
    }
}

/// What both ends of a channel by a path know of it. The ids are those of the other end, of who
/// serves and of who called, as this process knows them.
fn by_path(
    other: &Credentials,
    session: u32,
    [peer, dest, opener]: [ServiceId; 3],
) -> Introduction {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let number = u64::from(LAST.fetch_add(1, Ordering::Relaxed));
    let of_process = u64::from(std::process::id()) << 32;
    Introduction {
        channel: control::BY_SOCKET | BY_PATH | of_process | number,
        session,
        start_ns: clock::monotonic_ns(),
        asymmetric: true,
        peer,
        peer_name: ServiceId::NONE,
        peer_pid: other.pid,
        peer_uid: other.uid,
        dest,
        dest_name: ServiceId::NONE,
        geometry: geometry(),
        permissions: PERMISSIONS,
        opener,
        // Nobody here tells the ends each other's keys.
        encrypted: false,
        peer_key: [0; 32],
        bond: Bond::default(),
    }
}

/// Relays for a client's channel, in a thread of its own, which keeps `held` as long as it runs.
fn relay_for<T: Send + 'static>(link: &Arc<Link>, relay: Relay, held: T) -> Result<(), NodeError> {
    let weak = Arc::downgrade(link);
    spawn(move || {
        relay.run(|lie| {
            if let Some(link) = weak.upgrade() {
                link.channel.end(Fate::Poisoned(lie));
                link.wake_all();
            }
        });
        drop(held);
    })
    .map(drop)
}

/// Relays for a service's channel, likewise.
fn relay_to(incoming: &Weak<Incoming>, relay: Relay) {
    relay.run(|lie| {
        if let Some(incoming) = incoming.upgrade() {
            incoming.channel.end(Fate::Poisoned(lie));
            incoming.summon();
        }
    });
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, NodeError> {
    std::thread::Builder::new()
        .name("ipc-relay".into())
        .stack_size(STACK)
        .spawn(work)
        .map_err(|source| NodeError::System { what: "start a relay", source })
}
