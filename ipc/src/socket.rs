//! Channels over a Unix socket, for two processes that cannot share memory: the same frames, in
//! packets.
//!
//! A service listens on a path; a client connects to it by its address, `unix:///path`. The kernel
//! says who is at the other end. Each end of such a channel has both its lanes in its own process,
//! and a thread between them and the socket (`relay`): nothing above the lanes knows of it, and
//! channels over shared memory pay nothing for it. `docs/transports.md` has what is guaranteed.

mod packet;
mod relay;

use std::{
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    thread::JoinHandle,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{
            AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect,
            getsockopt, listen, recv, send, socket, socketpair, sockopt,
        },
    },
};

use self::{
    packet::{HEAD, Packet},
    relay::Relay,
};
use crate::{
    ServiceId,
    channel::{Channel, Fate},
    clock,
    control::{Bond, Introduction, closer::PeerSocket},
    error::{NodeError, Status},
    frame::Sender,
    lane,
    layout::Geometry,
    link::Link,
    node::{Closing, Core},
    server::{Hub, Incoming, Member},
    sync::{AtomicU32, Ordering},
};

/// The highest bit of a channel's id: no runtime has introduced it.
const BY_SOCKET: u64 = 1 << 63;
/// How long the other end may take for its first packet, in ms.
const GREETING_MS: u16 = 2000;
/// Channels of one listening socket at a time.
const CHANNELS: usize = 1024;
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
    pub(crate) fn of(channel: u64) -> Transport {
        if channel & BY_SOCKET == 0 { Transport::SharedMemory } else { Transport::Socket }
    }
}

/// The geometry of the lanes behind a socket: frames of up to 16 KiB, which any socket takes.
fn geometry() -> Geometry {
    Geometry::new(64, 1 << 15).expect("powers of two in their ranges")
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
                return match packet::read(&bytes[..length], from, geometry()) {
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
    /// Makes lanes, and both ends of them in this process.
    fn ends(
        &self,
        socket: OwnedFd,
        peer: &Credentials,
        session: u32,
        dest: ServiceId,
        role: Sender,
    ) -> Result<Ends, NodeError> {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let geometry = geometry();
        let (own, own_fd) = lane::create(geometry)?;
        let (theirs, their_fd) = lane::create(geometry)?;
        let entry = self.enter(&own)?;
        let relay_entry = self.enter(&theirs)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (bell, relay_bell) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(NodeError::system("make a doorbell"))?;
        let is_client = role == Sender::Client;
        let introduction = Introduction {
            channel: BY_SOCKET | u64::from(std::process::id()) << 32 | u64::from(number),
            session,
            start_ns: clock::monotonic_ns(),
            asymmetric: crate::wait::futex::has_membarrier(),
            peer: if is_client { dest } else { ServiceId::NONE },
            peer_name: ServiceId::NONE,
            peer_pid: peer.pid,
            peer_uid: peer.uid,
            dest: if is_client { dest } else { ServiceId::NONE },
            dest_name: ServiceId::NONE,
            geometry,
            permissions: PERMISSIONS,
            // Nobody here tells the ends each other's keys.
            opener: ServiceId::NONE,
            encrypted: false,
            peer_key: [0; 32],
            bond: Bond::default(),
        };
        let peer_view = lane::map_peer(their_fd.as_fd(), geometry)?;
        let relay_view = lane::map_peer(own_fd.as_fd(), geometry)?;
        let bell = PeerSocket::new(bell, self.closer());
        let channel = self.channel(introduction, role, [own, peer_view], entry, bell)?;
        let relay = Relay::new(relay::Parts {
            remote: if is_client { Sender::Server } else { Sender::Client },
            own: theirs,
            entry: relay_entry,
            peer: relay_view,
            bell: relay_bell,
            socket,
        });
        Ok(Ends { channel, relay })
    }

    /// Opens a channel to who listens on a path. `dest` is this node's id for it.
    pub(crate) fn open_socket(
        self: &Arc<Self>,
        path: &Path,
        dest: ServiceId,
    ) -> Result<Arc<Link>, NodeError> {
        let socket = dial(path)?;
        let peer = credentials(&socket)?;
        let mut session = [0; 4];
        getrandom::fill(&mut session).map_err(|_| NodeError::Refused(Status::IO))?;
        let session = u32::from_le_bytes(session);
        say_hello(socket.as_fd(), session)?;
        hear_hello(&socket, Sender::Server)?;
        let Ends { channel, relay } = self.ends(socket, &peer, session, dest, Sender::Client)?;
        let interrupter = Arc::clone(&self.interrupter);
        let closing = Closing::of_nobody();
        let link = Arc::new(Link::new(channel, self.config.outstanding, interrupter, closing));
        let weak = Arc::downgrade(&link);
        spawn(move || {
            relay.run(|lie| {
                if let Some(link) = weak.upgrade() {
                    link.channel.end(Fate::Poisoned(lie));
                    link.wake_all();
                }
            });
        })?;
        Ok(link)
    }

    /// Greets a client, and takes its channel in.
    fn take_in(
        self: &Arc<Self>,
        socket: OwnedFd,
        peer: &Credentials,
        hub: &Weak<Hub>,
        open: &Open,
    ) -> Option<(Weak<Incoming>, Relay)> {
        let session = hear_hello(&socket, Sender::Client).ok()?;
        let ends = self.ends(socket, peer, session, ServiceId::NONE, Sender::Server);
        let Ends { channel, relay } = ends.ok()?;
        relay.greet(session).ok()?;
        let incoming = Incoming::new(channel, Weak::clone(hub), Closing::of_nobody());
        let incoming = Arc::new(incoming);
        let weak = Arc::downgrade(&incoming);
        {
            let mut open = lock(open);
            open.retain(|it| it.strong_count() > 0);
            open.push(Weak::clone(&weak));
        }
        hub.upgrade()?.add(Member::Incoming(incoming));
        Some((weak, relay))
    }
}

/// The channels that came by a listening socket.
type Open = Mutex<Vec<Weak<Incoming>>>;

fn lock(open: &Open) -> std::sync::MutexGuard<'_, Vec<Weak<Incoming>>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, NodeError> {
    std::thread::Builder::new()
        .name("ipc-relay".into())
        .stack_size(STACK)
        .spawn(work)
        .map_err(|source| NodeError::System { what: "start a relay", source })
}

/// A socket on which a server listens. Dropped, it is closed, and its channels with it.
#[derive(Debug)]
pub struct Listening {
    path: PathBuf,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    open: Arc<Open>,
}

impl Listening {
    /// Gives the path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = nix::unistd::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for incoming in std::mem::take(&mut *lock(&self.open)).iter().filter_map(Weak::upgrade) {
            incoming.channel.end(Fate::Closed);
            incoming.summon();
        }
    }
}

/// Listens on a path for a server's loop.
pub(crate) fn listen_at(
    core: &Arc<Core>,
    hub: &Arc<Hub>,
    path: &Path,
) -> Result<Listening, NodeError> {
    let listener = bound(path)?;
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let stop = EventFd::from_value_and_flags(0, flags)
        .map(Arc::new)
        .map_err(NodeError::system("make an eventfd"))?;
    let open = Arc::new(Open::default());
    let acceptor = Acceptor {
        core: Arc::downgrade(core),
        hub: Arc::downgrade(hub),
        listener,
        stop: Arc::clone(&stop),
        open: Arc::clone(&open),
        path: path.to_owned(),
        file: file_at(path),
        threads: Arc::new(()),
    };
    let thread = spawn(move || acceptor.run())?;
    Ok(Listening { path: path.to_owned(), stop, thread: Some(thread), open })
}

/// Binds a path; one that somebody left behind is taken over, one on which somebody listens is not.
fn bound(path: &Path) -> Result<UnixListener, NodeError> {
    let at = address(path)?;
    let socket = new_socket()?;
    let failed = |errno: Errno| match errno {
        Errno::EADDRINUSE => NodeError::Refused(Status::EXISTS),
        Errno::EACCES | Errno::EPERM | Errno::ENOENT | Errno::EROFS => {
            NodeError::Directory { path: path.to_owned(), source: errno.into() }
        }
        errno => NodeError::system("listen on a path")(errno),
    };
    match bind(socket.as_raw_fd(), &at) {
        Err(Errno::EADDRINUSE) => {
            let is_left = matches!(dial(path), Err(NodeError::Refused(Status::NOT_FOUND)));
            let is_socket =
                std::fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
            if !is_left || !is_socket {
                return Err(NodeError::Refused(Status::EXISTS));
            }
            let _ = std::fs::remove_file(path);
            bind(socket.as_raw_fd(), &at).map_err(failed)?;
        }
        other => other.map_err(failed)?,
    }
    // Who may connect is decided by the kernel's word on each; this only spares others the try.
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
    let backlog = Backlog::new(128).unwrap_or(Backlog::MAXCONN);
    listen(&socket, backlog).map_err(NodeError::system("listen on a path"))?;
    Ok(socket.into())
}

/// Which file a path leads to.
fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|it| (it.dev(), it.ino()))
}

struct Acceptor {
    core: Weak<Core>,
    hub: Weak<Hub>,
    listener: UnixListener,
    stop: Arc<EventFd>,
    open: Arc<Open>,
    path: PathBuf,
    file: Option<(u64, u64)>,
    /// As many as there are threads of channels, and one.
    threads: Arc<()>,
}

impl Acceptor {
    fn run(self) {
        loop {
            let mut fds = [
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
            if fds[1].any() == Some(true) {
                break;
            }
            if fds[0].any() == Some(true) && !self.accept() {
                break;
            }
        }
        // Only its own: somebody may listen there by now.
        if self.file.is_some() && file_at(&self.path) == self.file {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Takes one client in; tells whether there is still somebody to serve it.
    fn accept(&self) -> bool {
        let (Some(core), true) = (self.core.upgrade(), self.hub.strong_count() > 0) else {
            return false;
        };
        // The name is the standard library's; the socket keeps packets as it was made to.
        let Ok((socket, _)) = self.listener.accept() else { return true };
        let socket = OwnedFd::from(socket);
        let Ok(peer) = credentials(&socket) else { return true };
        if Arc::strong_count(&self.threads) > CHANNELS {
            return true;
        }
        let (hub, open) = (Weak::clone(&self.hub), Arc::clone(&self.open));
        let thread = Arc::clone(&self.threads);
        // Without a thread for it the client is turned away: its socket hangs up.
        let _ = spawn(move || {
            let taken = core.take_in(socket, &peer, &hub, &open);
            drop((core, hub, open));
            if let Some((incoming, relay)) = taken {
                relay.run(|lie| {
                    if let Some(incoming) = incoming.upgrade() {
                        incoming.channel.end(Fate::Poisoned(lie));
                        incoming.summon();
                    }
                });
            }
            drop(thread);
        });
        true
    }
}
