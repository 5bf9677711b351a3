//! Listening on a path: who connects there gets a channel to a server's loop.

use std::{
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
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
        socket::{Backlog, bind, listen},
    },
};

use super::{
    Credentials, Ends, address, by_path, credentials, dial, hear_hello, new_socket, relay::Relay,
    relay_to, spawn,
};
use crate::{
    ServiceId,
    channel::Fate,
    error::{NodeError, Status},
    frame::Sender,
    node::{Closing, Core},
    server::{Hub, Incoming, Member},
    sync::{AtomicU32, Ordering},
};

/// How long to rest when nobody can be accepted, for want of descriptors or memory, in ms.
const REST_MS: u16 = 50;
/// Channels of one listening socket at a time.
const CHANNELS: usize = 1024;
/// Ids of who comes by a path: this process's own, above those of paths, which are above all that
/// a runtime gives.
const FIRST_CALLER: u32 = 0xF100_0000;

/// Gives an id to who comes by a path. None is given twice: at one a millisecond they last for
/// three days, and for who comes then there is none.
fn next_caller() -> Result<ServiceId, NodeError> {
    static NEXT: AtomicU32 = AtomicU32::new(FIRST_CALLER);
    // u32::MAX stays for "no more".
    NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| next.checked_add(1))
        .map(ServiceId::new)
        .map_err(|_| NodeError::Refused(Status::QUOTA))
}

impl Core {
    /// Greets a client, and takes its channel in.
    fn take_in(
        self: &Arc<Self>,
        socket: OwnedFd,
        peer: &Credentials,
        hub: &Weak<Hub>,
        open: &Open,
    ) -> Option<(Weak<Incoming>, Relay)> {
        let session = hear_hello(&socket, Sender::Client).ok()?;
        let caller = next_caller().ok()?;
        let introduction = by_path(peer, session, [caller, ServiceId::NONE, caller]);
        let ends = self.ends(socket, introduction, Sender::Server);
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
    core.may_be_plain()?;
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

/// What an acceptor does behind a client.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Listen,
    /// Who could not be accepted is still there, so the socket stays readable.
    Rest,
    /// Nobody serves any more.
    End,
}

impl Next {
    /// After this came of an accept.
    fn after(error: &std::io::Error) -> Next {
        match error.raw_os_error().map(Errno::from_raw) {
            // The client has gone again; or nobody was there.
            Some(Errno::ECONNABORTED | Errno::EINTR | Errno::EAGAIN) => Next::Listen,
            _ => Next::Rest,
        }
    }
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
            let is_called = fds[0].any() == Some(true);
            match if is_called { self.accept() } else { Next::Listen } {
                Next::Listen => {}
                Next::Rest if self.rest() => {}
                Next::Rest | Next::End => break,
            }
        }
        // Only its own: somebody may listen there by now.
        if self.file.is_some() && file_at(&self.path) == self.file {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Lets others give something back; tells whether to listen on.
    fn rest(&self) -> bool {
        let mut stop = [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        !matches!(poll(&mut stop, PollTimeout::from(REST_MS)), Ok(1..))
    }

    /// Takes one client in.
    fn accept(&self) -> Next {
        let (Some(core), true) = (self.core.upgrade(), self.hub.strong_count() > 0) else {
            return Next::End;
        };
        // The name is the standard library's; the socket keeps packets as it was made to.
        let socket = match self.listener.accept() {
            Ok((socket, _)) => OwnedFd::from(socket),
            Err(error) => return Next::after(&error),
        };
        let Ok(peer) = credentials(&socket) else { return Next::Listen };
        if Arc::strong_count(&self.threads) > CHANNELS {
            return Next::Listen;
        }
        let (hub, open) = (Weak::clone(&self.hub), Arc::clone(&self.open));
        let thread = Arc::clone(&self.threads);
        // Without a thread for it the client is turned away: its socket hangs up.
        let _ = spawn(move || {
            let taken = core.take_in(socket, &peer, &hub, &open);
            drop((core, hub, open));
            if let Some((incoming, relay)) = taken {
                relay_to(&incoming, relay);
            }
            drop(thread);
        });
        Next::Listen
    }
}
