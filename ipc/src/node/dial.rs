//! Connecting to the runtime's socket and greeting it.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt,
    },
};

use super::inherited;
use crate::{
    ServiceId,
    control::{
        self, MAX_PACKET, Malformed, Reply, Request,
        closer::{Closer, PeerSocket},
        decode_reply, encode_request,
        packet::{self, Received},
    },
    error::{NodeError, Status},
    session::StaticKey,
    wait::futex,
};

/// How long the runtime may take to greet back.
const GREETING_MS: u16 = 2000;

/// A connection that was greeted.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: PeerSocket,
    pub(super) node: ServiceId,
}

/// What a node tells the runtime of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told<'a> {
    /// Its key, of which the runtime learns the public half.
    pub(super) key: &'a StaticKey,
    /// Whether every channel of it has to be encrypted.
    pub(super) encrypts: bool,
}

/// Connects to the runtime in a directory: by the connection that this process was started with,
/// or by the path where it has none, or where the runtime that made it is gone.
pub(super) fn dial(
    directory: &Path,
    told: Told<'_>,
    closer: &Arc<Closer>,
) -> Result<Connection, NodeError> {
    let path = directory.join("ipcd.sock");
    if let Some(socket) = inherited::take() {
        match greet(socket, &path, told, closer) {
            Err(NodeError::NoRuntime { .. }) => {}
            greeted => return greeted,
        }
    }
    let socket = match connected(&path) {
        // It is open to the runtime's own user. A service that it started as another user has a
        // socket of its own to come back by.
        Err(refused @ NodeError::Directory { .. }) => {
            let own = directory.join(format!("ipcd.{}.sock", nix::unistd::geteuid()));
            connected(&own).map_err(|_| refused)?
        }
        other => other?,
    };
    greet(socket, &path, told, closer)
}

fn greet(
    socket: OwnedFd,
    path: &Path,
    told: Told<'_>,
    closer: &Arc<Closer>,
) -> Result<Connection, NodeError> {
    let socket = PeerSocket::new(socket, closer);
    check_owner(&socket, path)?;
    let (encrypts, key) = (told.encrypts, *told.key.public().as_bytes());
    let hello = Request::Hello { asymmetric: futex::has_membarrier(), encrypts, key };
    packet::send(socket.as_fd(), &encode_request(1, &hello), &[])
        .map_err(|_| NodeError::NoRuntime { path: path.to_owned() })?;
    let node = greeted(&socket, path, closer)?;
    Ok(Connection { socket, node })
}

fn connected(path: &Path) -> Result<OwnedFd, NodeError> {
    let address = UnixAddr::new(path).map_err(|_| {
        NodeError::Config(format!("the path {} is too long for a socket", path.display()))
    })?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
        .map_err(NodeError::system("make a socket"))?;
    connect(socket.as_raw_fd(), &address).map_err(|errno| match errno {
        Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTDIR | Errno::EPROTOTYPE => {
            NodeError::NoRuntime { path: path.to_owned() }
        }
        Errno::EACCES | Errno::EPERM => {
            NodeError::Directory { path: path.to_owned(), source: errno.into() }
        }
        // Its backlog is full: it lives, and is flooded.
        Errno::EAGAIN => NodeError::TimedOut,
        errno => NodeError::system("connect to the runtime")(errno),
    })?;
    Ok(socket)
}

/// A runtime of somebody else could introduce us to anybody.
fn check_owner(socket: &PeerSocket, path: &Path) -> Result<(), NodeError> {
    let peer = getsockopt(socket, sockopt::PeerCredentials)
        .map_err(NodeError::system("ask who runs the runtime"))?;
    let own = nix::unistd::geteuid().as_raw();
    if peer.uid() == own || peer.uid() == 0 {
        return Ok(());
    }
    let text = format!("the runtime is run by user {}, this process by user {own}", peer.uid());
    let source = io::Error::new(io::ErrorKind::PermissionDenied, text);
    Err(NodeError::Directory { path: path.to_owned(), source })
}

fn greeted(socket: &PeerSocket, path: &Path, closer: &Arc<Closer>) -> Result<ServiceId, NodeError> {
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        match packet::receive(socket.as_fd(), &mut buffer, closer) {
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                match poll(&mut fds, PollTimeout::from(GREETING_MS)) {
                    Ok(0) => return Err(NodeError::TimedOut),
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(NodeError::system("wait for the runtime")(errno)),
                }
            }
            Ok(Received::Closed) | Err(Errno::ECONNRESET) => {
                return Err(NodeError::NoRuntime { path: path.to_owned() });
            }
            Ok(Received::Packet(length, _)) => {
                return match decode_reply(&buffer[..length]) {
                    Ok((_, Reply::Welcome { node, .. })) => Ok(node),
                    Ok((_, Reply::Refused(Status::PROTOCOL))) => {
                        Err(NodeError::Version { ours: control::VERSION, theirs: 0 })
                    }
                    Ok((_, Reply::Refused(status))) => Err(NodeError::Refused(status)),
                    Err(Malformed::Version(theirs)) => {
                        Err(NodeError::Version { ours: control::VERSION, theirs })
                    }
                    Ok(_) | Err(_) => Err(NodeError::Malformed("no greeting")),
                };
            }
            Err(errno) => return Err(NodeError::system("hear the runtime")(errno)),
            Ok(_) => return Err(NodeError::Malformed("no greeting")),
        }
    }
}
