//! Calling: one handle for all threads of a process, over one channel to a service.

mod burst;
mod relay;

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;

pub use self::burst::Burst;
pub(crate) use self::relay::{Relay, Repeats};

use crate::{
    Priority, ServiceId,
    bulk::{Loan, View},
    channel::{Fate, Peer, check_payload},
    error::{CallError, NodeError},
    frame::{Kind, Label},
    link::{FOREVER, Going, Limit, Link, Parcel, Queued, Sink},
    node::{Shared, is_gone},
    server::{Member, Server},
    socket::Transport,
    table::{Outcome, Waiter},
};

/// How a call is made.
///
/// ```
/// use ipc::{CallOptions, Priority};
/// use std::time::Duration;
///
/// let options = CallOptions::timeout(Duration::from_millis(50)).priority(Priority::High);
/// # let _ = options;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions {
    /// CRITICAL and HIGH overtake the others.
    pub priority: Priority,
    /// When to give up; `None` for never.
    pub timeout: Option<Duration>,
}

impl CallOptions {
    /// Gives up after so long.
    pub fn timeout(timeout: Duration) -> CallOptions {
        CallOptions { timeout: Some(timeout), ..CallOptions::default() }
    }

    /// Sets the priority.
    #[must_use]
    pub fn priority(self, priority: Priority) -> CallOptions {
        CallOptions { priority, ..self }
    }
}

impl From<Duration> for CallOptions {
    fn from(timeout: Duration) -> CallOptions {
        CallOptions::timeout(timeout)
    }
}

impl From<Option<Duration>> for CallOptions {
    fn from(timeout: Option<Duration>) -> CallOptions {
        CallOptions { timeout, ..CallOptions::default() }
    }
}

/// Calls one service. Clones share a channel, and may be used by many threads at a time.
///
/// When the service dies, the calls it held end at once ([`CallError::PeerDied`]); the next call
/// opens a channel to whoever serves the name then.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) state: Arc<ClientState>,
    pub(crate) node: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct ClientState {
    dest: ServiceId,
    /// The channel that was opened first: found without a reference count, as long as it lives.
    /// Once it is dead it stays, small and useless, as long as this client.
    pub(crate) first: Arc<Link>,
    /// The channel now; the first, or one that took its place.
    pub(crate) link: ArcSwap<Link>,
    reopening: Mutex<()>,
    pub(crate) relay: Relay,
    /// Tasks that wait for that.
    #[cfg(feature = "tokio")]
    tasks: crate::tokio::Reopening,
}

impl Client {
    pub(crate) fn open(node: &Arc<Shared>, dest: ServiceId) -> Result<Client, NodeError> {
        if dest == ServiceId::NONE {
            return Err(NodeError::Refused(crate::Status::NOT_FOUND));
        }
        let known = || {
            let clients = node.core.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.get(&dest).and_then(Weak::upgrade)
        };
        if let Some(state) = known() {
            return Ok(Client { state, node: Arc::clone(node) });
        }
        // Opened without the lock: it takes a round trip or two. A second opener loses to the
        // first, and its channel closes again.
        let link = node.core.open(dest)?;
        let mut clients = node.core.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, state| state.strong_count() > 0);
        let state = clients.get(&dest).and_then(Weak::upgrade).unwrap_or_else(|| {
            let first = Arc::clone(&link);
            let link = ArcSwap::new(link);
            let state = Arc::new(ClientState {
                dest,
                first,
                link,
                reopening: Mutex::new(()),
                relay: Relay::new(&node.core),
                #[cfg(feature = "tokio")]
                tasks: crate::tokio::Reopening::default(),
            });
            clients.insert(dest, Arc::downgrade(&state));
            state
        });
        drop(clients);
        node.core.introduce(&state);
        Ok(Client { state, node: Arc::clone(node) })
    }

    /// Gives the id that this client was made for.
    pub fn dest(&self) -> ServiceId {
        self.state.dest
    }

    /// Says who serves it at the moment. The kernel proved it.
    pub fn peer(&self) -> Peer {
        self.state.link.load().channel.peer()
    }

    /// Says by what the channel goes at the moment: memory that both share, or, where either cannot
    /// share any, a socket. The channel that is opened after a service's end may go by the other.
    pub fn transport(&self) -> Transport {
        self.peer().transport
    }

    /// Sends a request and waits for the response.
    ///
    /// # Errors
    /// [`CallError`]; every call ends exactly once, with a response, an error or at its deadline.
    pub fn call(
        &self,
        payload: &[u8],
        options: impl Into<CallOptions>,
    ) -> Result<Vec<u8>, CallError> {
        let mut response = Vec::new();
        self.call_into_vec(payload, &mut response, options)?;
        Ok(response)
    }

    /// Like [`call`](Client::call), into a buffer; returns the length. Allocates nothing.
    ///
    /// # Errors
    /// [`CallError::TooLarge`] when the response is larger than the buffer: it is lost, `size`
    /// says what was needed.
    #[inline]
    pub fn call_into(
        &self,
        payload: &[u8],
        buffer: &mut [u8],
        options: impl Into<CallOptions>,
    ) -> Result<usize, CallError> {
        let mut sink = Sink::Slice(buffer, 0);
        self.fetch(Parcel::Bytes(payload), options.into(), Repeats::NONE, &mut sink)?;
        match sink {
            Sink::Slice(_, length) => Ok(length),
            Sink::Vector(_) | Sink::View(_) => Ok(0),
        }
    }

    /// Lends memory for a message of `size` bytes, which the service will read without a copy on
    /// the way: fill it, and send it by [`call_loaned`](Client::call_loaned) or
    /// [`send_loaned`](Client::send_loaned). Up to 32 loans, of 1 GiB in all, can be outstanding:
    /// lent, or sent and not yet given back by the service.
    ///
    /// ```no_run
    /// # fn of(client: &ipc::Client) -> Result<(), ipc::CallError> {
    /// let mut frame = client.loan(8 << 20)?;
    /// frame.fill(0x5A);
    /// client.send_loaned(frame, None)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CallError::Full`] when no more can be lent now; [`CallError::TooLarge`];
    /// [`CallError::PeerDied`] and the like.
    pub fn loan(&self, size: usize) -> Result<Loan, CallError> {
        let link = self.link()?;
        check_payload(size, link.channel.max_payload)?;
        link.channel.lend(size).ok_or(CallError::Full)
    }

    /// Sends a loan as a request, and waits for the response, which is not copied either if it
    /// comes in bulk.
    ///
    /// # Errors
    /// As for [`call`](Client::call); the loan was given back if it was not sent. A loan made
    /// before the service died: [`CallError::PeerDied`].
    pub fn call_loaned(
        &self,
        loan: Loan,
        options: impl Into<CallOptions>,
    ) -> Result<View, CallError> {
        if self.is_relayed() {
            return self.request(Parcel::Bytes(&loan), options.into());
        }
        self.request(Parcel::Loan(loan), options.into())
    }

    /// Sends a request and waits for the response, which is not copied if it comes in bulk.
    ///
    /// # Errors
    /// As for [`call`](Client::call).
    pub fn call_view(
        &self,
        payload: &[u8],
        options: impl Into<CallOptions>,
    ) -> Result<View, CallError> {
        self.request(Parcel::Bytes(payload), options.into())
    }

    fn request(&self, parcel: Parcel<'_>, options: CallOptions) -> Result<View, CallError> {
        let mut response = None;
        self.fetch(parcel, options, Repeats::NONE, &mut Sink::View(&mut response))?;
        Ok(response.unwrap_or_else(|| View::of(Vec::new())))
    }

    /// Sends a request, and waits until the response is in the sink. One that is repeatable goes to
    /// whoever serves next, too, when it may have been carried out.
    #[inline(always)]
    fn fetch(
        &self,
        parcel: Parcel<'_>,
        options: CallOptions,
        mut repeats: Repeats,
        sink: &mut Sink<'_>,
    ) -> Result<(), CallError> {
        let mut reopened = None;
        let link = self.live(&mut reopened)?;
        let (label, limit) = (label(Kind::Request, options), Limit::after(options.timeout));
        let payload = if let Parcel::Bytes(payload) = &parcel { Some(*payload) } else { None };
        match (link.call(label, parcel, limit, sink), payload) {
            (Err(CallError::PeerDied { taken }), Some(payload))
                if self.is_relayed() && repeats.go_on(taken) =>
            {
                let parcel = || Parcel::Bytes(payload);
                self.again(limit, repeats, |link| link.call(label, parcel(), limit, sink))
            }
            (result, _) => result,
        }
    }

    /// Sends a loan as a message that nobody answers; returns its id. The timeout is for room in
    /// the ring.
    ///
    /// # Errors
    /// As for [`send`](Client::send); the loan was given back if it was not sent.
    pub fn send_loaned(
        &self,
        loan: Loan,
        options: impl Into<CallOptions>,
    ) -> Result<u64, CallError> {
        let CallOptions { priority, timeout } = options.into();
        let label = Label::new(Kind::OneWay, priority.level());
        if self.is_relayed() {
            // What is lent belongs to one channel, and others may take its place.
            return self.send(&loan, CallOptions { priority, timeout });
        }
        self.link()?.send(label, Parcel::Loan(loan), Limit::room(timeout))
    }

    /// Like [`call`](Client::call), into a vector whose capacity is reused.
    ///
    /// # Errors
    /// As for [`call`](Client::call).
    #[inline]
    pub fn call_into_vec(
        &self,
        payload: &[u8],
        response: &mut Vec<u8>,
        options: impl Into<CallOptions>,
    ) -> Result<(), CallError> {
        // Not emptied before: what is there is written over, not filled with zeros first.
        self.call_repeatable(payload, response, options.into(), Repeats::NONE)
    }

    /// Sends a message that nobody answers; returns its id. The timeout is for room in the ring:
    /// zero gives up at once, `None` never.
    ///
    /// # Errors
    /// [`CallError::Full`] when there was no room in time: nothing was sent.
    // Inlined always, like all that it calls up to the ring: a message that is passed through
    // memory is stored by the word and loaded by the pair, and such a load waits until the stores,
    // and with them those into the peer's lines before them, are done.
    #[inline(always)]
    pub fn send(&self, payload: &[u8], options: impl Into<CallOptions>) -> Result<u64, CallError> {
        let CallOptions { priority, timeout } = options.into();
        let limit = Limit::room(timeout);
        let label = Label::new(Kind::OneWay, priority.level());
        let mut reopened = None;
        match self.live(&mut reopened)?.send(label, Parcel::Bytes(payload), limit) {
            Err(CallError::PeerDied { taken: false }) if self.is_relayed() => {
                self.again(limit, Repeats::NONE, |it| it.send(label, Parcel::Bytes(payload), limit))
            }
            result => result,
        }
    }

    /// Sends many one-way messages with one claim on the channel, and one look for a sleeping peer
    /// at the end. Other threads' requests wait meanwhile; `send` must not use this client itself.
    ///
    /// ```no_run
    /// # fn of(client: &ipc::Client) -> Result<(), ipc::CallError> {
    /// client.burst(|burst| (0..1000_u64).try_for_each(|n| burst.send(&n.to_le_bytes())))
    /// # }
    /// ```
    ///
    /// # Errors
    /// What `send` returns, or [`CallError::PeerDied`] and the like.
    pub fn burst<R>(
        &self,
        send: impl FnOnce(&mut Burst<'_>) -> Result<R, CallError>,
    ) -> Result<R, CallError> {
        let mut reopened = None;
        send(&mut Burst::begin(self, self.live(&mut reopened)?))
    }

    /// Sends a request; the response is waited for later, so that many calls are outstanding.
    ///
    /// # Errors
    /// [`CallError::Full`] when too many are.
    pub fn start(
        &self,
        payload: &[u8],
        options: impl Into<CallOptions>,
    ) -> Result<Pending, CallError> {
        let link = self.link()?;
        let options = options.into();
        let limit = Limit::after(options.timeout);
        let turn = self.node.core.interrupter.turn();
        let label = label(Kind::Request, options);
        let send = |link: &Arc<Link>| {
            let sent = link.request(label, Parcel::Bytes(payload), limit, Waiter::Later);
            sent.map(|message_id| (Arc::clone(link), message_id))
        };
        let (link, message_id) = match send(&link) {
            Err(CallError::PeerDied { taken: false }) if self.is_relayed() => {
                self.again(limit, Repeats::NONE, send)?
            }
            outcome => outcome?,
        };
        Ok(Pending { link: Some(link), message_id, limit, turn })
    }

    /// Sends a request whose outcome `done` gets, within the loop of `server`, exactly once.
    /// Returns the message id.
    ///
    /// # Errors
    /// [`CallError`]: nothing was sent, and `done` will not run. [`CallError::Invalid`] when this
    /// client's completions run in another server's loop.
    pub fn call_async(
        &self,
        server: &Server,
        payload: &[u8],
        options: impl Into<CallOptions>,
        done: impl FnOnce(Outcome) + Send + 'static,
    ) -> Result<u64, CallError> {
        let link = self.link()?;
        join(&link, server)?;
        let options = options.into();
        let (label, limit) = (label(Kind::Request, options), Limit::after(options.timeout));
        if self.is_relayed() {
            return self.call_relayed(server, (label, limit), payload, done);
        }
        let waiter = Waiter::Callback(Box::new(done));
        let message_id = link.request(label, Parcel::Bytes(payload), limit, waiter)?;
        attend(&link, server);
        Ok(message_id)
    }

    /// As [`call_async`](Client::call_async), for who must not wait, such as a task of an event
    /// loop: when the ring is full, or too many calls are outstanding, the call waits in line, and
    /// the loop sends it. Up to 65,536 calls, with four times the largest payload in all, can.
    ///
    /// # Errors
    /// [`CallError`]: nothing was sent, and `done` will not run. [`CallError::Full`] when too much
    /// waits in line. [`CallError::PeerDied`] when the channel has ended before:
    /// [`reopen`](Client::reopen) it.
    pub fn call_queued(
        &self,
        server: &Server,
        payload: &[u8],
        options: impl Into<CallOptions>,
        done: impl FnOnce(Outcome) + Send + 'static,
    ) -> Result<Queued, CallError> {
        if !self.node.birth.is_here() {
            return Err(CallError::Forked);
        }
        let mut link = self.state.link.load_full();
        if link.channel.check_life() != Fate::Open {
            let next = self.state.succeed_at_once();
            link = next.ok_or(CallError::PeerDied { taken: false })?;
        }
        join(&link, server)?;
        let options = options.into();
        let (label, limit) = (label(Kind::Request, options), Limit::after(options.timeout));
        let queued = link.enqueue(label, payload, limit, Box::new(done))?;
        attend(&link, server);
        Ok(queued)
    }

    /// Opens a channel to whoever serves now, if the one before has ended. Takes round trips to the
    /// runtime and to the service, which other calls make by themselves when they must.
    ///
    /// # Errors
    /// [`CallError::PeerDied`] for an instance, which does not come back; [`CallError::Node`] when
    /// nobody serves the name, or the service does not answer.
    pub fn reopen(&self) -> Result<(), CallError> {
        self.link().map(drop)
    }

    /// Ends an outstanding call with [`CallError::Canceled`]; the service is told, and may have
    /// acted. Returns false when there is no such call.
    pub fn cancel(&self, message_id: u64) -> bool {
        self.link().is_ok_and(|link| link.cancel(message_id))
    }

    /// Asks the service's loop for a sign of life, ahead of everything else; returns how long it
    /// took.
    ///
    /// # Errors
    /// [`CallError::TimedOut`] when the loop is busy or stuck.
    pub fn ping(&self, timeout: Duration) -> Result<Duration, CallError> {
        let begun = crate::clock::monotonic_ns();
        let options = CallOptions::timeout(timeout).priority(Priority::Critical);
        let mut sink = Sink::Slice(&mut [], 0);
        let mut reopened = None;
        let link = self.live(&mut reopened)?;
        let (label, limit) = (label(Kind::Ping, options), Limit::after(options.timeout));
        link.call(label, Parcel::Bytes(&[]), limit, &mut sink)?;
        Ok(Duration::from_nanos(crate::clock::monotonic_ns() - begun))
    }

    /// Begins a call that a task makes within a context: gives what is to be written down when it
    /// has ended, and where.
    #[cfg(feature = "tokio")]
    pub(crate) fn begin_traced(
        &self,
        context: crate::trace::Context,
        bytes: usize,
    ) -> (Arc<Link>, crate::Span) {
        let link = self.state.link.load_full();
        let span = link.begin_traced(context, bytes);
        (link, span)
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn reopening(&self) -> &crate::tokio::Reopening {
        &self.state.tasks
    }

    /// The channel now: the first, without a reference count, or else the one in `reopened`.
    #[inline(always)]
    fn live<'a>(&'a self, reopened: &'a mut Option<Arc<Link>>) -> Result<&'a Link, CallError> {
        if !self.node.birth.is_here() {
            return Err(CallError::Forked);
        }
        if self.state.first.channel.check_life() == Fate::Open {
            return Ok(&self.state.first);
        }
        Ok(reopened.insert(self.link()?))
    }

    fn link(&self) -> Result<Arc<Link>, CallError> {
        if !self.node.birth.is_here() {
            return Err(CallError::Forked);
        }
        let link = self.state.link.load_full();
        if link.channel.check_life() == Fate::Open { Ok(link) } else { self.replace() }
    }

    /// Opens a channel to whoever serves now, in place of one that ended.
    #[cold]
    fn replace(&self) -> Result<Arc<Link>, CallError> {
        let one = self.state.reopening.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.state.link.load_full();
        if old.channel.check_life() == Fate::Open {
            return Ok(old);
        }
        if self.is_relayed() {
            drop(one);
            let next = self.state.succeed(FOREVER);
            return next.ok_or(CallError::PeerDied { taken: false });
        }
        match self.node.core.open(self.state.dest) {
            Ok(link) => {
                self.state.link.store(Arc::clone(&link));
                Ok(link)
            }
            // An instance does not come back; a name may.
            Err(error) if is_gone(&error) && old.channel.introduction.dest == self.state.dest => {
                Err(CallError::PeerDied { taken: false })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Has the completions of a channel run in that server's loop.
fn join(link: &Arc<Link>, server: &Server) -> Result<(), CallError> {
    if link.join(server.hub()) {
        server.hub().add(Member::Outgoing(Arc::clone(link)));
    } else if !link.is_on(server.hub()) {
        return Err(CallError::Invalid("this client's completions run in another server"));
    }
    Ok(())
}

/// After a call of such a channel: has the loop watch over it.
fn attend(link: &Link, server: &Server) {
    server.hub().attend(link);
    if link.channel.check_life() != Fate::Open {
        // The loop may have let go of the channel before this call was in its table.
        link.fail_callbacks();
    }
}

#[inline(always)]
fn label(kind: Kind, options: CallOptions) -> Label {
    Label::new(kind, options.priority.level())
}

/// A call that was sent and is to be waited for. Dropped, it is withdrawn.
#[derive(Debug)]
pub struct Pending {
    /// Taken when the wait is over.
    link: Option<Arc<Link>>,
    message_id: u64,
    limit: Limit,
    turn: u32,
}

impl Pending {
    /// The call's message id, as the service sees it.
    pub fn message_id(&self) -> u64 {
        self.message_id
    }

    /// Waits for the response.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub fn wait(mut self) -> Result<Vec<u8>, CallError> {
        let mut response = Vec::new();
        let Some(link) = self.link.take() else { return Err(CallError::Canceled) };
        link.channel.check_fork()?;
        let id = self.message_id as u32;
        let sink = &mut Sink::Vector(&mut response);
        match link.wait(id, self.limit.at(), self.turn, sink) {
            Err(error) if link.moves_on(self.message_id, &error) => {
                let (id, limit, turn) = (self.message_id, self.limit, self.turn);
                link.go_on(Going { id, again: None, limit, turn }, error, sink)?;
            }
            result => result?,
        }
        Ok(response)
    }

    /// Withdraws the call, and tells the service, which may have acted.
    pub fn cancel(self) {
        if let Some(link) = &self.link
            && link.channel.check_fork().is_ok()
        {
            link.cancel(self.message_id);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(link) = self.link.take()
            && link.channel.check_fork().is_ok()
        {
            link.abandon(self.message_id as u32);
        }
    }
}
