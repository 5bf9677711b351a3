//! A running runtime, as a value: it runs as long as this lives.

use std::{
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::Arc,
    thread::{Builder, JoinHandle},
};

use ipc::Status;
use nix::sys::signal::SigSet;

use crate::{
    broker::Broker,
    desk::RuntimeDesk,
    directory::{Directory, Door},
    error::KernelError,
    holders::Holders,
    notes::Notes,
    plans::Plans,
    reactor::{Reactor, Ties, monotonic_ns},
    registry::Registry,
    security::Route,
    served::Served,
    token::TokenKey,
};

/// Bytes of stack for the runtime's thread: a 4 KiB packet and shallow calls.
const STACK: usize = 256 * 1024;

/// The runtime, on a thread of this process, until it is stopped or dropped.
///
/// Its file descriptor ([`AsFd`]) becomes readable when the thread has ended, which it does by
/// itself only when epoll fails.
///
/// ```
/// # let directory = tempfile::tempdir().expect("a directory");
/// let kernel = kernel_services::Kernel::embedded(directory.path())?;
/// assert!(kernel.socket_path().exists());
/// kernel.stop();
/// # Ok::<(), kernel_services::KernelError>(())
/// ```
#[derive(Debug)]
pub struct Kernel {
    // Dropped in this order: the socket goes before the lock on the directory is given up.
    door: Door,
    #[cfg(feature = "node")]
    other_doors: std::collections::HashMap<u32, Door>,
    leash: UnixStream,
    thread: Option<JoinHandle<()>>,
    pid: u32,
    #[cfg_attr(not(feature = "node"), allow(dead_code, reason = "nobody records"))]
    notes: Option<Notes>,
    // It ends once nobody has the notes any more.
    #[cfg(feature = "node")]
    #[allow(dead_code, reason = "for its end")]
    writer: Option<crate::audit::Writer>,
    #[cfg_attr(not(feature = "node"), allow(dead_code, reason = "its lock is held"))]
    directory: Directory,
}

impl Kernel {
    /// Starts a runtime that serves `runtime_dir`, for processes of this process's effective user.
    ///
    /// A missing directory is made, with mode 0700; a socket that a killed runtime left is
    /// replaced. A child that this process forks does not run the runtime, and dropping its copy
    /// of the value does nothing.
    ///
    /// # Errors
    /// - the directory cannot be made, opened, locked or written: [`KernelError::Create`],
    ///   [`KernelError::Open`], [`KernelError::ReadOnly`]
    /// - it is another user's, or others may write in it: [`KernelError::Owner`],
    ///   [`KernelError::Shared`]
    /// - its path is too long for a socket's address: [`KernelError::PathTooLong`]
    /// - a runtime serves it, in this process or another: [`KernelError::Running`]
    /// - its file `ids` is damaged: [`KernelError::Ids`]; its key: [`KernelError::Key`]
    /// - no descriptor is left: [`KernelError::Descriptors`]
    /// - a system call failed otherwise: [`KernelError::System`]
    pub fn embedded(runtime_dir: &Path) -> Result<Kernel, KernelError> {
        Kernel::routed(runtime_dir, Vec::new())
    }

    /// Starts a runtime as [`Kernel::embedded`] does, that has some channels encrypted, or plain:
    /// the first route that matches decides. Where none does, those between different users are
    /// encrypted.
    ///
    /// # Errors
    /// Those of [`Kernel::embedded`].
    pub fn routed(runtime_dir: &Path, routes: Vec<Route>) -> Result<Kernel, KernelError> {
        Kernel::serve(Directory::open(runtime_dir)?, None, None, routes)
    }

    /// Starts a runtime as [`Kernel::embedded`] does, with an audit log: see [`crate::audit`].
    ///
    /// # Errors
    /// Those of [`Kernel::embedded`]; [`KernelError::Audit`].
    #[cfg(feature = "node")]
    pub fn recorded(runtime_dir: &Path) -> Result<Kernel, KernelError> {
        Kernel::start(Directory::open(runtime_dir)?, None)
    }

    /// Starts a runtime with an audit log, and with somebody who supervises at the other side of
    /// the desk.
    #[cfg(feature = "node")]
    pub(crate) fn start(
        directory: Directory,
        desk: Option<RuntimeDesk>,
    ) -> Result<Kernel, KernelError> {
        let (writer, notes) = crate::audit::Writer::start(directory.path())?;
        let mut kernel = Kernel::serve(directory, desk, Some(notes), Vec::new())?;
        kernel.writer = Some(writer);
        Ok(kernel)
    }

    fn serve(
        directory: Directory,
        desk: Option<RuntimeDesk>,
        notes: Option<Notes>,
        routes: Vec<Route>,
    ) -> Result<Kernel, KernelError> {
        let key = Arc::new(TokenKey::open(directory.path())?);
        let registry = Registry::new(directory.ids()?);
        let pid = std::process::id();
        let uid = nix::unistd::geteuid().as_raw();
        let broker = Broker::new(registry, pid, uid, monotonic_ns(), Arc::clone(&key))
            .map_err(|status| no_ids(directory.path(), status))?;
        let (holders, living) = Holders::open(directory.path());
        let broker = broker.expecting(living, monotonic_ns()).routed(routes);
        let (plans, planned) = Plans::open(directory.path());
        let broker = broker.planned(planned);
        let epochs = directory.epochs()?;
        let served = Served::open(directory.path(), epochs.first());
        let broker = broker.numbering(epochs, served);
        let broker = if desk.is_some() { broker.supervised() } else { broker };
        let broker = if notes.is_some() { broker.recorded() } else { broker };
        let (leash, collar) = UnixStream::pair()
            .map_err(|error| KernelError::system("cannot make a socket pair", error))?;
        let (door, listener) = directory.listen()?;
        let ties = Ties { desk, notes: notes.clone(), key, holders, plans };
        let mut reactor = Reactor::new(broker, listener, collar, ties)
            .map_err(|error| KernelError::system("cannot set up epoll", error))?;
        let thread = Builder::new()
            .name("ipc-kernel".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                // The host program's signals are for its own threads. It cannot fail: the set is
                // valid.
                let _ = SigSet::all().thread_block();
                reactor.run();
            })
            .map_err(|error| KernelError::system("cannot start the runtime's thread", error))?;
        Ok(Kernel {
            door,
            #[cfg(feature = "node")]
            other_doors: std::collections::HashMap::new(),
            leash,
            thread: Some(thread),
            pid,
            notes,
            #[cfg(feature = "node")]
            writer: None,
            directory,
        })
    }

    /// Gives a socket for the runtime to listen on, to which one other user may connect; nothing
    /// where there is one.
    #[cfg(feature = "node")]
    pub(crate) fn open_door(
        &mut self,
        uid: u32,
    ) -> Result<Option<std::os::unix::net::UnixListener>, KernelError> {
        if self.other_doors.contains_key(&uid) {
            return Ok(None);
        }
        let (door, listener) = self.directory.listen_for(uid)?;
        self.other_doors.insert(uid, door);
        Ok(Some(listener))
    }

    /// Gives the way to who records, if anybody does.
    #[cfg(feature = "node")]
    pub(crate) fn notes(&self) -> Option<Notes> {
        self.notes.clone()
    }

    /// Gives the path of the socket to which nodes connect.
    pub fn socket_path(&self) -> &Path {
        self.door.path()
    }

    /// Ends the runtime: its thread, its socket, every control connection. Channels between nodes
    /// go on.
    pub fn stop(self) {
        drop(self);
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.leash.as_fd()
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // In a forked child the thread does not exist, and the leash is the parent's.
        if std::process::id() != self.pid {
            return;
        }
        // Fails only where the thread has ended, and its end of the pair with it.
        let _ = self.leash.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported when it happened; its descriptors are closed.
            let _ = thread.join();
        }
    }
}

fn no_ids(runtime_dir: &Path, status: Status) -> KernelError {
    let source = std::io::Error::other(status.text());
    KernelError::ReadOnly { path: runtime_dir.join("ids"), source }
}
