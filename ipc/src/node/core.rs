//! What a node's handles and its warden share: the connection, and who is to hear what.

mod telling;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
    },
};

use super::{
    Config, PATIENCE,
    acquaintances::{Acquaintances, key_of},
    bus::Bus,
    dial::{Connection, Told, dial},
    hearing::Hearing,
    peers::{End, Peers},
    refused, runtime_dir,
    ticket::Ticket,
    vigil::Vigil,
};
use crate::{
    ServiceId,
    board::OwnBoard,
    channel::Fate,
    client::ClientState,
    control::{
        self, Reply, Request,
        closer::{Closer, PeerSocket, Stranger},
        encode_request, packet,
    },
    error::{NodeError, Status},
    failover::post::Post,
    fork::Birth,
    interrupt::Interrupter,
    life::Roll,
    link::{time_left, until},
    region::Held,
    server::{Hub, Incoming, Registration},
    session::StaticKey,
    socket::Relays,
    sync::{AtomicBool, AtomicU32, Ordering},
    trace,
    wait::futex,
};

pub(super) const TOKEN_KICK: u64 = u64::MAX;
pub(super) const TOKEN_SOCKET: u64 = u64::MAX - 1;

/// An answer of the runtime, with its descriptors.
pub(crate) type Answer = (Reply, Vec<Stranger>);

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(super) directory: PathBuf,
    /// By which this node proves itself on encrypted channels.
    pub(super) key: Arc<StaticKey>,
    pub(super) known: Acquaintances,
    pub(crate) interrupter: Arc<Interrupter>,
    pub(super) roll: Arc<Roll>,
    /// Closes what comes from others.
    pub(super) closer: Arc<Closer>,
    /// What the warden sleeps on.
    pub(super) epoll: Epoll,
    kick: Arc<EventFd>,
    pub(super) closed: AtomicBool,
    pub(super) birth: Birth,
    id: AtomicU32,
    sequence: AtomicU32,
    connection: Mutex<Option<Arc<PeerSocket>>>,
    /// What of the runtime's words was not heard yet.
    pub(super) hearing: Arc<Hearing>,
    waiting: Mutex<HashMap<u32, Waiter>>,
    pub(super) registered: Mutex<Vec<Registered>>,
    pub(super) peers: Peers,
    pub(crate) clients: Mutex<HashMap<ServiceId, Weak<ClientState>>>,
    /// What was heard of groups, by name.
    pub(super) groups: Mutex<HashMap<ServiceId, control::Group>>,
    pub(super) vigil: Vigil,
    /// The regions that it has mapped, its own and others'.
    pub(super) regions: Mutex<HashMap<u64, Vec<Weak<Held>>>>,
    /// Paths of sockets that were asked for: their ids are this node's own.
    pub(super) addresses: Mutex<Vec<PathBuf>>,
    /// What was let go of, and is not yet told to the runtime.
    farewells: Mutex<Vec<Request>>,
    pub(crate) relays: Relays,
    /// Clients whose handshakes are awaited, and when they were introduced, in that order.
    pub(super) greeting: Mutex<VecDeque<(u64, Weak<Incoming>)>>,
    pub(crate) board: Arc<OwnBoard>,
    pub(crate) bus: Bus,
    /// What the runtime keeps for us, by name.
    pub(super) kept: Mutex<BTreeMap<String, Arc<OwnedFd>>>,
}

/// What waits for an answer of the runtime.
#[derive(Debug, Default)]
struct Waiter {
    /// Who asked, and sleeps.
    ticket: Option<Arc<Ticket>>,
    /// What to note when a name is registered, before anything else is heard: a client may come
    /// right behind.
    registering: Option<Registered>,
}

/// A name that this node serves.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    /// As its user knows it.
    instance: ServiceId,
    /// As the runtime knows it; another one after a restart in which the old one was refused.
    pub(super) current: ServiceId,
    pub(super) name_id: ServiceId,
    /// Proves the ids to the next runtime.
    ticket: control::Ticket,
    name: String,
    flags: u32,
    pub(super) hub: Weak<Hub>,
    pub(super) post: Arc<Post>,
}

impl Registered {
    /// Tells its server that it has let go of the name.
    pub(super) fn tell_demoted(&self, epoch: u64) {
        if let Some(hub) = self.hub.upgrade() {
            hub.demoted(self.instance, epoch);
        }
    }

    /// Asks for the name, and for the ids that it had.
    fn request(&self) -> Request {
        Request::Register {
            flags: self.flags,
            claim_instance: self.current.get(),
            claim_name: self.name_id.get(),
            ticket: self.ticket,
            name: self.name.clone(),
        }
    }
}

impl Core {
    /// Connects, if it is to be attached; without a warden yet.
    pub(super) fn connect(config: &Config, attached: bool) -> Result<Arc<Core>, NodeError> {
        let directory = config.runtime_dir.clone().unwrap_or_else(runtime_dir);
        let key = key_of(config)?;
        let closer = Closer::new().map_err(NodeError::system("make an eventfd"))?;
        let told = Told { key: &key, encrypts: config.encrypt };
        let connection = attached.then(|| dial(&directory, told, &closer)).transpose()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(NodeError::system("make an epoll instance"))?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let kick = EventFd::from_value_and_flags(0, flags).map(Arc::new);
        let kick = kick.map_err(NodeError::system("make an eventfd"))?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll
            .add(&*kick, EpollEvent::new(edge, TOKEN_KICK))
            .map_err(NodeError::system("watch an eventfd"))?;
        let core = Core {
            config: config.clone(),
            directory,
            key: Arc::new(key),
            known: Acquaintances::default(),
            interrupter: Arc::new(Interrupter::new()?),
            roll: Arc::new(Roll::default()),
            closer,
            epoll,
            board: Arc::new(OwnBoard::new(Arc::clone(&kick))),
            kick,
            closed: AtomicBool::new(false),
            birth: Birth::now(),
            id: AtomicU32::new(0),
            sequence: AtomicU32::new(1),
            connection: Mutex::new(None),
            hearing: Arc::default(),
            waiting: Mutex::default(),
            registered: Mutex::default(),
            peers: Peers::default(),
            clients: Mutex::default(),
            groups: Mutex::default(),
            vigil: Vigil::default(),
            regions: Mutex::default(),
            addresses: Mutex::default(),
            farewells: Mutex::default(),
            relays: Relays::default(),
            bus: Bus::default(),
            kept: Mutex::default(),
            greeting: Mutex::default(),
        };
        if let Some(connection) = connection {
            core.adopt(&mut lock(&core.connection), connection)?;
            core.tell_boards();
        }
        Ok(Arc::new(core))
    }

    pub(crate) fn id(&self) -> ServiceId {
        ServiceId::new(self.id.load(Ordering::Relaxed))
    }

    /// The name that an instance of this node serves.
    pub(super) fn name_of(&self, instance: ServiceId) -> Option<String> {
        let registered = lock(&self.registered);
        registered.iter().find(|it| it.current == instance).map(|it| it.name.clone())
    }

    /// Ends the warden. Nobody hears the runtime from here on, so nobody waits for its answers.
    pub(super) fn close(&self) {
        self.bus.listener.end();
        self.closed.store(true, Ordering::SeqCst);
        self.forget_waiters(|| NodeError::Closed);
        self.kick();
        self.alarm();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn forget_waiters(&self, why: impl Fn() -> NodeError) {
        let waiters: Vec<_> = lock(&self.waiting).drain().map(|(_, waiter)| waiter).collect();
        for ticket in waiters.into_iter().filter_map(|waiter| waiter.ticket) {
            ticket.settle(Err(why()));
        }
    }

    /// Takes a fresh connection into use.
    fn adopt(
        &self,
        slot: &mut Option<Arc<PeerSocket>>,
        connection: Connection,
    ) -> Result<(), NodeError> {
        let Connection { socket, node } = connection;
        self.tell_what_it_shares(&socket)?;
        let level = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        self.epoll
            .add(&socket, EpollEvent::new(level, TOKEN_SOCKET))
            .map_err(NodeError::system("watch the runtime's socket"))?;
        self.id.store(node.get(), Ordering::Relaxed);
        *slot = Some(Arc::new(socket));
        self.hearing.listen(slot.clone());
        Ok(())
    }

    /// The connection, made anew if it was lost.
    fn connection(&self) -> Result<Arc<PeerSocket>, NodeError> {
        let mut slot = lock(&self.connection);
        if let Some(socket) = &*slot {
            return Ok(Arc::clone(socket));
        }
        if self.is_closed() {
            return Err(NodeError::Closed);
        }
        let told = Told { key: &self.key, encrypts: self.config.encrypt };
        let connection = match (dial(&self.directory, told, &self.closer), &self.config.heir) {
            (Err(NodeError::NoRuntime { .. }), Some(heir)) => {
                heir.0();
                dial(&self.directory, told, &self.closer)
            }
            (dialled, _) => dialled,
        }?;
        self.adopt(&mut slot, connection)?;
        let socket = slot.clone().ok_or(NodeError::Closed)?;
        drop(slot);
        self.forget_groups();
        self.claim_again();
        self.tell_kept();
        self.board.forget_told();
        self.tell_boards();
        Ok(socket)
    }

    /// The connection as it stands, for the warden.
    pub(super) fn current(&self) -> Option<Arc<PeerSocket>> {
        lock(&self.connection).clone()
    }

    /// The connection is lost: whoever waits for an answer on it hears so. Nothing happens when it
    /// has been replaced already.
    pub(super) fn lose(&self, socket: &Arc<PeerSocket>) {
        {
            let mut slot = lock(&self.connection);
            if !slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, socket)) {
                return;
            }
            let _ = self.epoll.delete(&**socket);
            *slot = None;
            self.hearing.listen(None);
        }
        self.forget_waiters(|| self.no_runtime());
        // Whoever found out: the socket has left the warden's epoll instance, which would tell it.
        self.kick();
        // Who stands by has waited for the warden to hear the rest, of which there is none.
        self.alarm();
    }

    pub(super) fn kick(&self) {
        let _ = nix::unistd::write(&self.kick, &1_u64.to_ne_bytes());
    }

    fn no_runtime(&self) -> NodeError {
        NodeError::NoRuntime { path: self.directory.join("ipcd.sock") }
    }

    /// Whether anything depends on this node's coming back to a runtime: who may want its names,
    /// and who is to account for its channels.
    pub(super) fn needs_runtime(&self) -> bool {
        self.config.heir.is_some()
            || !lock(&self.registered).is_empty()
            || self.has_topics()
            || self.peers.ends().iter().any(|end| end.introduction().is_some())
            || self.has_regions()
    }

    /// Tries to come back to a runtime that was lost.
    pub(super) fn reconnect(&self) -> bool {
        self.connection().is_ok()
    }

    /// Tells a runtime that knows nothing of us what we serve, and which channels are open. The
    /// warden hears the answers.
    fn claim_again(&self) {
        let claims = lock(&self.registered).clone();
        for registered in claims {
            let request = registered.request();
            let sequence = self.next_sequence();
            let waiter = Waiter { ticket: None, registering: Some(registered) };
            lock(&self.waiting).insert(sequence, waiter);
            if self.post(sequence, &request, &[]).is_err() {
                lock(&self.waiting).remove(&sequence);
            }
        }
        for (serves, introduction) in self.peers.ends().iter().filter_map(End::introduction) {
            if self.post(0, &Request::Holds { serves, introduction }, &[]).is_err() {
                return;
            }
        }
        self.tell_regions();
        self.rejoin_topics();
    }

    pub(super) fn next_sequence(&self) -> u32 {
        // 0 is what the runtime says by itself, 1 the greeting.
        loop {
            let sequence = self.sequence.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if sequence > 1 {
                return sequence;
            }
        }
    }

    /// Sends a packet, waiting for room in the socket for a while.
    pub(super) fn post(
        &self,
        sequence: u32,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), NodeError> {
        let socket = self.connection()?;
        let mut bytes = encode_request(sequence, request);
        // What the warden does is for no trace; it is within none.
        if let Some(context) = trace::current() {
            bytes = control::with_context(bytes, context);
        }
        loop {
            match packet::send(socket.as_fd(), &bytes, fds) {
                Ok(()) => return Ok(()),
                Err(Errno::EAGAIN) => {
                    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::ZERO);
                    match poll(&mut fds, patience) {
                        Ok(0) => return Err(NodeError::TimedOut),
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(errno) => return Err(NodeError::system("wait to send")(errno)),
                    }
                }
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => {
                    self.lose(&socket);
                    return Err(self.no_runtime());
                }
                Err(errno) => return Err(NodeError::system("send to the runtime")(errno)),
            }
        }
    }

    /// Asks the runtime and waits for its answer. A connection that turns out to be lost is made
    /// anew, once.
    ///
    /// # Errors
    /// [`NodeError::NoRuntime`], [`NodeError::TimedOut`], [`NodeError::Closed`] when interrupted;
    /// then the request is withdrawn.
    pub(crate) fn request(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
    ) -> Result<Answer, NodeError> {
        self.request_noting(request, fds, timeout, None)
    }

    fn request_noting(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
        registering: Option<&Registered>,
    ) -> Result<Answer, NodeError> {
        self.check_fork()?;
        let until = until(timeout);
        match self.ask(request, fds, until, registering) {
            Err(NodeError::NoRuntime { .. }) => self.ask(request, fds, until, registering),
            other => other,
        }
    }

    fn ask(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        until: u64,
        registering: Option<&Registered>,
    ) -> Result<Answer, NodeError> {
        let turn = self.interrupter.turn();
        let sequence = self.next_sequence();
        let ticket = Arc::new(Ticket::new());
        let waiter =
            Waiter { ticket: Some(Arc::clone(&ticket)), registering: registering.cloned() };
        lock(&self.waiting).insert(sequence, waiter);
        // Either this is seen here, or who closes finds who waits.
        let posted = if self.is_closed() {
            Err(NodeError::Closed)
        } else {
            self.post(sequence, request, fds)
        };
        if let Err(error) = posted {
            lock(&self.waiting).remove(&sequence);
            return Err(error);
        }
        let given_up = loop {
            if ticket.is_settled() {
                return ticket.take();
            }
            if self.interrupter.turn() != turn {
                break NodeError::Closed;
            }
            let Ok(left) = time_left(until) else { break NodeError::TimedOut };
            futex::wait_words(
                [Some(ticket.word()), Some(self.interrupter.word(turn)), None, None],
                left,
            );
        };
        if lock(&self.waiting).remove(&sequence).is_none() {
            // The answer came in this very moment.
            return ticket.take();
        }
        if request.may_be_forgotten() {
            let _ = self.post(0, &Request::Forget { request: sequence }, &[]);
        }
        Err(given_up)
    }

    /// Hands an answer to whoever asked; an answer that nobody waits for is dropped, and its
    /// descriptors closed.
    pub(super) fn settle(&self, sequence: u32, answer: Answer) {
        let Some(waiter) = lock(&self.waiting).remove(&sequence) else { return };
        if let Reply::Registered { instance, name, ticket } = answer.0
            && let Some(mut registered) = waiter.registering
        {
            registered.current = instance;
            registered.name_id = name;
            registered.ticket = ticket;
            self.note(registered);
        }
        if let Some(ticket) = waiter.ticket {
            ticket.settle(Ok(answer));
        }
    }

    fn note(&self, fresh: Registered) {
        let (instance, epoch) = (fresh.current, fresh.post.epoch());
        self.note_down(fresh);
        if epoch != 0 {
            // A runtime that has just begun does not know.
            self.say_epoch(instance, epoch);
        }
    }

    fn note_down(&self, mut fresh: Registered) {
        let mut registered = lock(&self.registered);
        let known = registered.iter_mut().find(|it| it.instance == fresh.instance);
        match known {
            Some(known) if fresh.instance != ServiceId::NONE => *known = fresh,
            _ => {
                fresh.instance = fresh.current;
                registered.push(fresh);
            }
        }
    }

    /// Serves a name.
    pub(super) fn register(
        &self,
        hub: &Arc<Hub>,
        name: &str,
        flags: u32,
    ) -> Result<Registration, NodeError> {
        let registered = Registered {
            instance: ServiceId::NONE,
            current: ServiceId::NONE,
            name_id: ServiceId::NONE,
            ticket: [0; control::TICKET_BYTES],
            name: name.to_owned(),
            flags,
            hub: Arc::downgrade(hub),
            post: Arc::new(Post::new(&self.hearing)),
        };
        let request = registered.request();
        match self.request_noting(&request, &[], Some(PATIENCE), Some(&registered)) {
            Ok((Reply::Registered { instance, name, .. }, _)) => {
                Ok(Registration { instance, name })
            }
            Ok((reply, _)) => Err(refused(&reply)),
            Err(NodeError::Refused(Status::ACCESS)) => Err(NodeError::Owned(name.to_owned())),
            Err(error) => Err(error),
        }
    }

    /// Ends an instance, and its channels with it.
    pub(super) fn unregister(&self, hub: &Arc<Hub>, instance: ServiceId) -> Result<(), NodeError> {
        self.check_fork()?;
        let current = {
            let mut registered = lock(&self.registered);
            let mine = |it: &Registered| {
                it.instance == instance && std::ptr::eq(it.hub.as_ptr(), Arc::as_ptr(hub))
            };
            let index = registered.iter().position(mine);
            let index = index.ok_or(NodeError::Refused(Status::NOT_FOUND))?;
            registered.swap_remove(index).current
        };
        let answer = self.request(&Request::Unregister { instance: current }, &[], Some(PATIENCE));
        let serves = |end: &&End| end.serves(current) || end.serves(instance);
        for end in self.peers.ends().iter().filter(serves) {
            end.end(Fate::Closed);
        }
        match answer?.0 {
            Reply::Done => Ok(()),
            reply => Err(refused(&reply)),
        }
    }

    /// Refuses in a forked child: the connection and the lanes are its parent's.
    fn check_fork(&self) -> Result<(), NodeError> {
        if self.birth.is_here() { Ok(()) } else { Err(NodeError::Forked) }
    }

    /// Ends every instance of a loop.
    pub(crate) fn unregister_all(&self, hub: &Arc<Hub>) {
        let mine: Vec<_> = lock(&self.registered)
            .iter()
            .filter(|it| std::ptr::eq(it.hub.as_ptr(), Arc::as_ptr(hub)))
            .map(|it| it.instance)
            .collect();
        for instance in mine {
            let _ = self.unregister(hub, instance);
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
