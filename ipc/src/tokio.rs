//! Serving and calling in tasks of a tokio runtime: feature `tokio`.
//!
//! Two functions do it: [`serve`] is a server's loop as a future, and [`call`] is a call. Neither
//! blocks a thread of the runtime, which may have one or many, and needs I/O enabled (`enable_io`
//! or `enable_all`).
//!
//! The answers of calls are taken in by the loop of a server. So who only calls has a server, too,
//! which serves no name, and one task that runs it:
//!
//! ```no_run
//! use std::time::Duration;
//!
//! # async fn example() -> Result<(), ipc::CallError> {
//! let node = ipc::Node::connect(&ipc::Config::default())?;
//! let server = node.server()?;
//! server.register("upper", 0)?; // nothing of this for who only calls
//! let looping = server.clone();
//! tokio::spawn(async move {
//!     ipc::tokio::serve(&looping, |request| {
//!         let request = request.retain();
//!         // A task for each request; or `request.reply` at once, without one.
//!         tokio::spawn(async move {
//!             tokio::task::yield_now().await;
//!             let _ = request.reply(&request.payload().to_ascii_uppercase());
//!         });
//!     })
//!     .await
//! });
//!
//! let upper = node.client(node.discover("upper")?)?;
//! let answer = ipc::tokio::call(&server, &upper, b"hello", Duration::from_secs(1)).await?;
//! assert_eq!(answer, b"HELLO");
//! # Ok(())
//! # }
//! ```
//!
//! [`Node::connect`](crate::Node::connect), [`Node::client`](crate::Node::client) and
//! [`Server::register`] wait for the runtime of this machine, up to seconds when it is not well:
//! call them before, or by `spawn_blocking`.

use std::{
    future::poll_fn,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use ::tokio::{
    io::{Interest, unix::AsyncFd},
    task::spawn_blocking,
};

use crate::{
    CallOptions, Client, Queued, Request, Server,
    error::{CallError, NodeError},
    table::Outcome,
    trace,
};

/// Handles requests, and ends calls, until the node is interrupted.
///
/// `handler` runs in this task and must not block; to answer later, [`retain`](Request::retain)
/// the request. Between batches, of at most 64 requests of each client, other tasks have their
/// turn. The future may be dropped at any time: nothing is lost, and another `serve` goes on where
/// it was. Several may run, in tasks of several runtimes even; then handlers run at the same time,
/// those of one client one after another.
///
/// # Errors
/// [`CallError::Canceled`] when the node was interrupted: calls that are outstanding then end when
/// the server is served again, or when they are dropped. [`CallError::Node`] with
/// [`NodeError::System`] when the descriptor cannot be watched. Otherwise as for [`Server::poll`].
///
/// # Panics
/// Outside of a runtime, or where its I/O is not enabled.
pub async fn serve(server: &Server, mut handler: impl FnMut(Request<'_>)) -> Result<(), CallError> {
    let begun = server.begin_loop();
    let fd = watch(server).map_err(system)?;
    loop {
        let mut ready = fd.readable().await.map_err(system)?;
        server.poll_in(begun, Some(Duration::ZERO), &mut handler)?;
        // If that has left work, the descriptor has become readable anew, which this, knowing what
        // it clears, does not clear.
        ready.clear_ready();
    }
}

#[expect(deprecated, reason = "nothing can close an OwnedFd; what replaces it is unsafe")]
fn watch(server: &Server) -> io::Result<AsyncFd<OwnedFd>> {
    // A descriptor of its own, since a runtime takes each only once.
    AsyncFd::with_interest(server.fd().try_clone_to_owned()?, Interest::READABLE)
}

/// Sends a request, and waits for the response without blocking. A [`serve`] of the same server
/// has to run. One client's calls all name the same server.
///
/// Nothing happens before the future is polled. Dropped, the call is withdrawn: the service is
/// told, and may have acted. There is no limit to the calls under way but memory: those for which
/// the ring or [`Config::outstanding`](crate::Config::outstanding) has no room wait in line, and
/// are sent in their order.
///
/// # Errors
/// As for [`Client::call`]. [`CallError::Invalid`] when the client's calls end in another server.
/// As there, the time that it takes to open a channel anew, after the death of the one who served
/// before, is not counted: it is done by a thread of the runtime's pool, one for all calls.
pub async fn call(
    server: &Server,
    client: &Client,
    payload: &[u8],
    options: impl Into<CallOptions>,
) -> Result<Vec<u8>, CallError> {
    let options = options.into();
    let Some(context) = trace::current() else {
        return call_once(server, client, payload, options).await;
    };
    let (link, span) = client.begin_traced(context, payload.len());
    let call = call_once(server, client, payload, options);
    let outcome = trace::calling_in_task(&span, call).await;
    link.end_traced(span, outcome.as_ref().err());
    outcome
}

async fn call_once(
    server: &Server,
    client: &Client,
    payload: &[u8],
    options: CallOptions,
) -> Result<Vec<u8>, CallError> {
    let answer = Arc::new(Answer::default());
    let queue = || {
        let answer = Arc::clone(&answer);
        client.call_queued(server, payload, options, move |outcome| answer.settle(outcome))
    };
    let mut sent = queue();
    if let Err(CallError::PeerDied { taken: false }) = sent {
        reopen(client).await?;
        sent = queue();
    }
    let _withdrawn = Withdrawn(sent?);
    poll_fn(|context| answer.poll(context)).await
}

/// Where the outcome of a call is found.
#[derive(Debug, Default)]
pub(crate) struct Answer(Mutex<(Option<Outcome>, Option<Waker>)>);

impl Answer {
    fn settle(&self, outcome: Outcome) {
        let waker = {
            let mut answer = lock(&self.0);
            answer.0 = Some(outcome);
            answer.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut answer = lock(&self.0);
        if let Some(outcome) = answer.0.take() {
            return Poll::Ready(outcome);
        }
        answer.1 = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Ends a call, unless it has ended, when nobody waits for it any more.
struct Withdrawn(Queued);

impl Drop for Withdrawn {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Calls that wait until a thread of the pool has opened their channel anew.
#[derive(Debug, Default)]
pub(crate) struct Reopening(Mutex<Vec<Arc<Answer>>>);

impl Reopening {
    /// Waits for that, too. Returns whether nobody did before.
    fn join(&self, place: &Arc<Answer>) -> bool {
        let mut waiting = lock(&self.0);
        waiting.push(Arc::clone(place));
        waiting.len() == 1
    }

    fn settle(&self, opened: &Result<(), CallError>) {
        for place in std::mem::take(&mut *lock(&self.0)) {
            place.settle(match opened {
                Ok(()) => Ok(Vec::new()),
                Err(CallError::PeerDied { .. }) => Err(CallError::PeerDied { taken: false }),
                Err(CallError::Canceled) => Err(CallError::Canceled),
                Err(other) => Err(NodeError::Refused(other.status()).into()),
            });
        }
    }
}

/// Who opens a channel anew. One that never comes to it, since its pool is shut down, says so.
struct Opener(Client);

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.reopening().settle(&Err(CallError::Canceled));
    }
}

async fn reopen(client: &Client) -> Result<(), CallError> {
    let place = Arc::new(Answer::default());
    if client.reopening().join(&place) {
        let opener = Opener(client.clone());
        spawn_blocking(move || {
            let outcome = opener.0.reopen();
            opener.0.reopening().settle(&outcome);
        });
    }
    poll_fn(|context| place.poll(context)).await.map(drop)
}

fn system(error: io::Error) -> CallError {
    NodeError::System { what: "watch a server's descriptor", source: error }.into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
