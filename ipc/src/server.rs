//! Serving: names, the loop that takes requests from every channel, and their handlers.

mod hub;
mod incoming;
mod queue;
mod request;
mod waits;

use std::{os::fd::BorrowedFd, path::Path, sync::Arc, time::Duration};

pub use hub::in_handler;
pub(crate) use hub::{Demotion, Farewell, Hub, Member, Source, unless_busy};
pub(crate) use incoming::{Incoming, Queued};
pub(crate) use queue::RunQueue;
pub use request::{Request, Retained};
pub use waits::WaitHandler;

use crate::{
    ServiceId,
    error::{CallError, NodeError},
    link::until,
    node::Shared,
    socket::{Listening, listen_at},
};

/// What [`Server::register`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Of this instance; dies with it.
    pub instance: ServiceId,
    /// Of the name; leads to whoever serves it.
    pub name: ServiceId,
}

/// Serves any number of names with one loop, which any number of threads may run.
///
/// Requests of one channel are handled one after another, in their order; with several threads in
/// [`run`](Server::run), those of different channels at the same time.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = ipc::Node::connect(&ipc::Config::default())?;
/// let server = node.server()?;
/// server.register("echo", 0)?;
/// server.run(|request| {
///     // A caller that is gone needs no answer.
///     let _ = request.reply(request.payload());
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Server {
    owner: Arc<Owner>,
}

/// What the clones of a server share: the last to go ends its instances and channels.
#[derive(Debug)]
struct Owner {
    hub: Arc<Hub>,
    node: Arc<Shared>,
}

/// When a loop over [`Server::poll_in`] began.
#[derive(Clone, Copy, Debug)]
pub struct Loop(u32);

impl Drop for Owner {
    fn drop(&mut self) {
        if self.node.birth.is_here() {
            self.node.core.unregister_all(&self.hub);
        }
    }
}

impl Server {
    pub(crate) fn new(node: Arc<Shared>, hub: Arc<Hub>) -> Server {
        Server { owner: Arc::new(Owner { hub, node }) }
    }

    pub(crate) fn node(&self) -> &Shared {
        &self.owner.node
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.owner.hub
    }

    /// Serves `name` from now on; `flags` are the `SERVICE_*` bits of [`control`](crate::control).
    ///
    /// Several processes of one user may serve a name: the first does, the others stand by.
    ///
    /// # Errors
    /// [`NodeError::Name`]; [`NodeError::Refused`] with `EXISTS` when the name is exclusive or
    /// this node serves it already, with `QUOTA` or `INVALID`; those of a lost runtime.
    pub fn register(&self, name: &str, flags: u32) -> Result<Registration, NodeError> {
        self.owner.node.register(&self.owner.hub, name, flags)
    }

    /// Listens on a path of its own, too, for clients that cannot share memory, or are not to: they
    /// connect to `unix:///path`. Processes of this one's user, and of root, are let in; to root's,
    /// all are. Such a client's id is this process's own, and no rules but this hold for it.
    ///
    /// What is returned goes on listening until it is dropped.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `EXISTS` when somebody listens there, with `NOT_SUPPORTED` where
    /// all channels of this node are encrypted; [`NodeError::Directory`]
    /// when the path cannot be made; [`NodeError::Config`] when it is too long.
    pub fn listen(&self, path: &Path) -> Result<Listening, NodeError> {
        listen_at(&self.owner.node.core, &self.owner.hub, path)
    }

    /// Ends an instance: its channels close, and calls that it holds end with an error.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `NOT_FOUND` when it is none of this server's.
    pub fn unregister(&self, instance: ServiceId) -> Result<(), NodeError> {
        self.owner.node.unregister(&self.owner.hub, instance)
    }

    /// Waits for work up to `timeout` (`None`: for ever; zero: not at all), and handles what is
    /// there: requests by `handler`, completions of asynchronous calls by their own functions.
    /// Returns how many; 0 when the time is over.
    ///
    /// # Errors
    /// [`CallError::Canceled`] when the node was interrupted; [`CallError::Reentrant`] from within
    /// a handler; [`CallError::Forked`] in a forked child.
    pub fn poll(
        &self,
        timeout: Option<Duration>,
        handler: &mut dyn FnMut(Request<'_>),
    ) -> Result<usize, CallError> {
        self.owner.hub.serve(until(timeout), true, handler)
    }

    /// Begins a loop of [`poll_in`](Server::poll_in): each of several threads that run one hears of
    /// an interruption, though another may have heard of it before.
    pub fn begin_loop(&self) -> Loop {
        Loop(self.owner.hub.seen_turn())
    }

    /// As [`poll`](Server::poll), within a loop.
    ///
    /// # Errors
    /// As for [`poll`](Server::poll); [`CallError::Canceled`] when the node was interrupted since
    /// the loop began.
    pub fn poll_in(
        &self,
        begun: Loop,
        timeout: Option<Duration>,
        handler: &mut dyn FnMut(Request<'_>),
    ) -> Result<usize, CallError> {
        self.owner.hub.serve_since(begun.0, until(timeout), true, handler)
    }

    /// Handles requests until the node is interrupted.
    ///
    /// # Errors
    /// [`CallError::Canceled`] when it was; else as for [`poll`](Server::poll).
    pub fn run(&self, mut handler: impl FnMut(Request<'_>)) -> Result<(), CallError> {
        self.owner.hub.serve(crate::link::FOREVER, false, &mut handler).map(|_| ())
    }

    /// Has `gone` called with the [number](Request::channel) of each channel from a client that has
    /// ended, in this server's loop, once nothing of it is left to be handled: when its process
    /// died, when it closed the channel, and when it broke the protocol. It must not block, and
    /// must not use this server. Only the first one that is set is called; returns whether this
    /// was.
    ///
    /// ```no_run
    /// # fn of(server: &ipc::Server) {
    /// server.on_gone(|channel| println!("whoever spoke over channel {channel} is gone"));
    /// # }
    /// ```
    pub fn on_gone(&self, gone: impl Fn(u64) + Send + Sync + 'static) -> bool {
        self.owner.hub.tell_ends(Farewell(Box::new(gone)))
    }

    /// Has `demoted` called when an instance of this server has let go of its name, since the name
    /// goes to another: with the instance and the epoch at which it served, once nothing of what it
    /// took is being handled, or a second is over, and before the next one serves. Who has a store
    /// open that the next is to open closes it here, and opens it when a request comes again: of a
    /// later epoch, or of the same one where the next died meanwhile. It runs in a thread of its
    /// own; one that takes longer than the rest of two seconds is passed over. It is not called
    /// where a process dies, or is passed over, before it can let go. Only the first one that is
    /// set is called; returns whether this was.
    ///
    /// ```no_run
    /// # fn of(server: &ipc::Server) {
    /// server.on_demoted(|instance, epoch| println!("{instance} served until {epoch} was past"));
    /// # }
    /// ```
    pub fn on_demoted(&self, demoted: impl Fn(ServiceId, u64) + Send + Sync + 'static) -> bool {
        self.owner.hub.tell_demotions(Demotion(Box::new(demoted)))
    }

    /// Has `work` run in this server's loop, once, as the callback of a call is: by whichever
    /// thread comes round first, and never where none does. [`poll`](Server::poll) counts it.
    ///
    /// ```no_run
    /// # fn of(server: &ipc::Server) -> Result<(), ipc::CallError> {
    /// server.defer(|| println!("the loop has come round"))
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CallError::Full`] when 65,536 callbacks wait for the loop: it will not run.
    pub fn defer(&self, work: impl FnOnce() + Send + 'static) -> Result<(), CallError> {
        self.owner.hub.defer(Box::new(move |_| work()))
    }

    /// Gives a descriptor that polls readable when `poll` with a zero timeout has work, for use in
    /// a foreign event loop. Edge cases are on the safe side: it may be readable for nothing.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.owner.hub.be_pollable();
        self.owner.hub.as_fd()
    }
}
