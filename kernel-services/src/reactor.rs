//! The one I/O loop: packets and deaths in, effects out. It never waits for any one node.

mod events;
mod memory;
mod passing;
mod peer;
mod tokens;

use std::{
    collections::{HashMap, VecDeque},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
};

use ipc::{
    Status,
    control::{
        MAX_FDS, MAX_PACKET, Reply,
        closer::{Closer, PeerSocket, Stranger},
        decode_request, encode_reply,
        packet::{self, Received},
        take_context,
    },
    trace::Context,
};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{Shutdown, getsockopt, shutdown, sockopt},
    },
    time::{ClockId, clock_gettime},
};

use crate::{
    broker::{Broker, Carried, Effect, Event, Peer, Token},
    desk::{Desk, Order, RuntimeDesk, Unit},
    failpoint::{self, At},
    holders::Holders,
    notes::{Note, Notes},
    pidfd::{self, process_started},
    plans::Plans,
    spans::{Open, heard},
    token::TokenKey,
};

/// Packets kept for a node that does not read its socket; beyond, it is cut.
const BACKLOG: usize = 64;
/// Packets read from one node before the others have their turn.
const BATCH: usize = 16;
/// Connections accepted before the nodes have their turn.
const ACCEPTS: usize = 64;
/// How long the listener rests when there is no descriptor for a newcomer.
const REST_NS: u64 = 100_000_000;

const LISTENER: Token = 0;
const LEASH: Token = 1;
const ORDERS: Token = 2;
/// Nodes have even tokens; the number above is epoll's for the node's pidfd.
const FIRST_NODE: Token = 4;
const PER_NODE: Token = 2;

/// The loop's own state: sockets and descriptors. What they mean is the broker's.
#[derive(Debug)]
pub(crate) struct Reactor {
    broker: Broker,
    /// Closes what comes from others.
    closer: Arc<Closer>,
    epoll: Epoll,
    /// The runtime's own first, then those for other users' services.
    listeners: Vec<UnixListener>,
    /// Until when they rest.
    rests_until_ns: Option<u64>,
    _leash: UnixStream,
    nodes: HashMap<Token, Node>,
    next_token: Token,
    /// By ticket.
    held: HashMap<u64, Held>,
    memory: passing::Memory,
    effects: VecDeque<Effect>,
    ties: Ties,
    /// Processes of supervised services by their ids, of which some are yet to connect.
    units: HashMap<u32, Unit>,
}

/// What a loop has to do with others.
#[derive(Debug)]
pub(crate) struct Ties {
    /// To who supervises, if anybody does.
    pub(crate) desk: Option<RuntimeDesk>,
    /// To who records, if anybody does.
    pub(crate) notes: Option<Notes>,
    /// Signs tokens.
    pub(crate) key: Arc<TokenKey>,
    /// Remembers who serves what.
    pub(crate) holders: Holders,
    /// Remembers how names are configured.
    pub(crate) plans: Plans,
}

#[derive(Debug)]
struct Node {
    socket: PeerSocket,
    /// Tells the process's end even where a child that it forked keeps the connection open.
    pidfd: Option<Arc<OwnedFd>>,
    backlog: VecDeque<Parcel>,
    _span: Open,
}

/// A packet with its descriptors, which live until it is sent.
#[derive(Debug)]
struct Parcel {
    bytes: Vec<u8>,
    fds: Vec<Arc<OwnedFd>>,
    has_lane: bool,
    /// Goes after the lane, and first where there is none. The other end has written to it already,
    /// perhaps.
    bell: Option<PeerSocket>,
}

impl Parcel {
    fn new(bytes: Vec<u8>, fds: Vec<Arc<OwnedFd>>) -> Parcel {
        Parcel { bytes, fds, has_lane: false, bell: None }
    }

    /// Lets go of what somebody else has now.
    fn sent(self) {
        if let Some(bell) = self.bell {
            bell.passed_on();
        }
    }
}

/// Descriptors of a pending connect.
#[derive(Debug)]
struct Held {
    lane: Option<Arc<OwnedFd>>,
    /// The client's end of the doorbell offered last.
    bell: Option<PeerSocket>,
    span: Open,
}

impl Reactor {
    /// Watches the listener, and the leash: when its other end goes, [`Reactor::run`] returns.
    pub(crate) fn new(
        broker: Broker,
        listener: UnixListener,
        leash: UnixStream,
        ties: Ties,
    ) -> Result<Reactor, std::io::Error> {
        let closer = Closer::new()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        epoll.add(&leash, EpollEvent::new(EpollFlags::EPOLLIN, LEASH))?;
        if let Some(desk) = &ties.desk {
            epoll.add(desk, EpollEvent::new(EpollFlags::EPOLLIN, ORDERS))?;
        }
        Ok(Reactor {
            broker,
            closer,
            epoll,
            listeners: vec![listener],
            rests_until_ns: None,
            _leash: leash,
            nodes: HashMap::new(),
            next_token: FIRST_NODE,
            held: HashMap::new(),
            memory: passing::Memory::default(),
            effects: VecDeque::new(),
            ties,
            units: HashMap::new(),
        })
    }

    /// Serves until the leash is let go.
    pub(crate) fn run(&mut self) {
        self.serve_all();
        self.broker.close(monotonic_ns());
    }

    fn serve_all(&mut self) {
        // Before anybody who is expected can come.
        self.obey();
        let mut ready = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut ready, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            for event in &ready[..count] {
                match event.data() {
                    LEASH => return,
                    LISTENER => self.accept(),
                    ORDERS => self.obey(),
                    pidfd if pidfd % PER_NODE == 1 => self.lose(pidfd - 1),
                    token => self.serve(token, event.events()),
                }
            }
            self.wake_listener();
            self.step(Event::Tick, None);
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let deadlines = [self.broker.deadline_ns(), self.rests_until_ns];
        let Some(next) = deadlines.into_iter().flatten().min() else { return EpollTimeout::NONE };
        // Rounded up, so as not to wake before the deadline and spin until it.
        let ms = next.saturating_sub(monotonic_ns()).div_ceil(1_000_000);
        EpollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX))
    }

    fn accept(&mut self) {
        (0..self.listeners.len()).for_each(|number| self.accept_at(number));
    }

    fn accept_at(&mut self, number: usize) {
        for _ in 0..ACCEPTS {
            if self.closer.is_crowded() {
                return self.rest_listener();
            }
            // The name is the standard library's; the socket keeps packets as it was made to.
            match self.listeners[number].accept() {
                Ok((socket, _)) => self.admit(PeerSocket::new(socket.into(), &self.closer)),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return,
                    Some(Errno::ECONNABORTED | Errno::EINTR) => {}
                    _ => return self.rest_listener(),
                },
            }
        }
    }

    fn admit(&mut self, socket: PeerSocket) {
        let Ok(peer) = getsockopt(&socket, sockopt::PeerCredentials) else { return };
        // 0 where the peer lives in a pid namespace that is not ours.
        let pid = u32::try_from(peer.pid()).unwrap_or(0);
        let unit = self.units.get(&pid).filter(|it| process_started(pid) == Some(it.start_time));
        let unit = unit.cloned();
        let pidfd = pidfd::of_peer(&socket, pid);
        let pidfd = pidfd.map(Arc::new);
        let peer = peer::describe(pid, peer.uid(), unit, pidfd.as_ref(), false);
        self.attend(socket, pidfd, peer);
    }

    /// Takes a connection in.
    fn attend(&mut self, socket: PeerSocket, pidfd: Option<Arc<OwnedFd>>, peer: Peer) {
        let token = self.next_token;
        let reads = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        let watched = self.epoll.add(&socket, reads(token)).and_then(|()| match &pidfd {
            Some(pidfd) => self.epoll.add(pidfd, reads(token + 1)),
            None => Ok(()),
        });
        let backlog = VecDeque::new();
        let node = Node { socket, pidfd, backlog, _span: Open::connection(token, &peer) };
        if watched.is_err() {
            return self.unwatch(&node);
        }
        self.next_token += PER_NODE;
        self.nodes.insert(token, node);
        self.step(Event::Accepted { token, peer }, None);
    }

    /// Does what the supervisor says.
    fn obey(&mut self) {
        for order in self.ties.desk.as_ref().map(Desk::hear).unwrap_or_default() {
            match order {
                Order::Admit { unit, socket } => {
                    let (pid, uid) = (unit.pid, unit.uid);
                    self.units.insert(pid, unit.clone());
                    let pidfd = pidfd::open(pid).map(Arc::new);
                    let peer = peer::describe(pid, uid, Some(unit), pidfd.as_ref(), true);
                    let socket = PeerSocket::new(socket, &self.closer);
                    self.attend(socket, pidfd, peer);
                    failpoint::reach(At::SpawnAdmitted);
                }
                Order::Expect { unit } => drop(self.units.insert(unit.pid, unit)),
                Order::Listen { listener } => {
                    let reads = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
                    if self.epoll.add(&listener, reads).is_ok() {
                        self.listeners.push(listener);
                    }
                }
                Order::Forget { unit, end } => {
                    for (_, it) in self.units.extract_if(|_, it| it.id == unit).collect::<Vec<_>>()
                    {
                        let process = (it.pid, it.start_time);
                        self.step(Event::Ended { process, end }, None);
                    }
                }
                Order::Enact(law) => self.step(Event::Law(law), None),
                Order::Answer { to, sequence, text } => {
                    let lost = self.answer(to, sequence, &text);
                    if let Some(event) = lost {
                        self.step(event, None);
                    }
                }
            }
        }
    }

    /// Stops listening for a while: without a descriptor for the newcomer, epoll would report it
    /// again and again.
    fn rest_listener(&mut self) {
        self.rests_until_ns = Some(monotonic_ns().saturating_add(REST_NS));
        self.watch_listener(EpollFlags::empty());
    }

    fn wake_listener(&mut self) {
        if self.rests_until_ns.is_some_and(|at| at <= monotonic_ns()) {
            self.rests_until_ns = None;
            self.watch_listener(EpollFlags::EPOLLIN);
        }
    }

    fn watch_listener(&self, flags: EpollFlags) {
        for listener in &self.listeners {
            // Cannot fail: it was added and is open.
            let _ = self.epoll.modify(listener, &mut EpollEvent::new(flags, LISTENER));
        }
    }

    fn serve(&mut self, token: Token, events: EpollFlags) {
        if events.contains(EpollFlags::EPOLLOUT) {
            self.flush(token);
        }
        if !events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            return;
        }
        let mut buffer = [0; MAX_PACKET];
        for _ in 0..BATCH {
            let Some(node) = self.nodes.get(&token) else { return };
            match packet::receive(node.socket.as_fd(), &mut buffer, &self.closer) {
                Ok(Received::Packet(length, fds)) if fds.len() <= MAX_FDS => {
                    self.packet(token, &buffer[..length], fds);
                }
                Err(Errno::EAGAIN) => return,
                Ok(Received::Closed) | Err(_) => self.lose(token),
                Ok(_) => self.refuse_and_drop(token),
            }
        }
    }

    fn packet(&mut self, token: Token, bytes: &[u8], mut fds: Vec<Stranger>) {
        let carried = match fds.as_slice() {
            [] => Carried::Nothing,
            // What waits already may wait for long: no more of it from anybody.
            [fd] if self.closer.is_full() && !fd.is_quick() => {
                return self.refuse_and_drop(token);
            }
            [fd] => Carried::One(ipc::LaneFacts::inspect(fd.as_fd())),
            _ => Carried::Many,
        };
        let (context, bytes) = take_context(bytes);
        let (sequence, request) = match decode_request(&bytes) {
            Ok((sequence, request)) => (sequence, Ok(request)),
            Err(malformed) => (passing::sequence_of(&bytes), Err(malformed)),
        };
        let _scope = context.map(Context::enter);
        if let Ok(request) = &request {
            failpoint::heard(request);
            heard(token, sequence, request);
        }
        self.step(Event::Packet { token, sequence, request, carried }, fds.pop());
    }

    fn refuse_and_drop(&mut self, token: Token) {
        if let Some(node) = self.remove(token) {
            passing::farewell(&node, 0, Status::PROTOCOL);
        }
        self.step(Event::Gone { token }, None);
    }

    /// Closes a connection that failed, and tells the broker.
    fn lose(&mut self, token: Token) {
        if self.remove(token).is_some() {
            self.step(Event::Gone { token }, None);
        }
    }

    /// Asks the broker and carries out what it says; `carried` is the one descriptor that came
    /// with the packet at hand, closed here unless an effect takes it.
    fn step(&mut self, event: Event, mut carried: Option<Stranger>) {
        let effects = self.broker.step(event, monotonic_ns());
        self.effects.extend(effects);
        while let Some(effect) = self.effects.pop_front() {
            let reached = failpoint::around(&effect);
            let consequence = self.perform(effect, &mut carried);
            reached.into_iter().for_each(failpoint::reach);
            if let Some(event) = consequence {
                let effects = self.broker.step(event, monotonic_ns());
                self.effects.extend(effects);
            }
        }
    }

    /// Carries out one effect; gives what came of it, if it failed.
    fn perform(&mut self, effect: Effect, carried: &mut Option<Stranger>) -> Option<Event> {
        match effect {
            Effect::Send { to, sequence, reply } => self.reply(to, sequence, &reply),
            Effect::Hold { ticket } => {
                // Nothing where the two share no memory.
                let lane = carried.take().map(|lane| Arc::new(lane.vouched()));
                let span = Open::introduction(ticket);
                self.held.insert(ticket, Held { lane, bell: None, span });
                None
            }
            Effect::Offer { ticket, to, client, introduction } => {
                self.offer(ticket, [to, client], introduction)
            }
            Effect::Deliver { ticket, to, service, sequence, introduction } => {
                let lane = carried.take();
                self.deliver(ticket, (to, sequence), service, introduction, lane)
            }
            Effect::KeepBoard { board } => self.keep_board(board, carried.take()?),
            Effect::SendBoard { to, sequence, board, reply } => {
                self.send_board(to, sequence, board, &reply)
            }
            Effect::LoseBoard { board } => self.lose_board(board),
            Effect::Region(effect) => self.region(effect, carried),
            Effect::Ring(effect) => self.pass_events(effect, carried),
            Effect::Stow(stow) => self.stow(stow, carried),
            Effect::Release { ticket } => {
                self.held.remove(&ticket);
                None
            }
            Effect::Tell(notice) => {
                if let Some(desk) = &self.ties.desk {
                    desk.say(notice);
                }
                None
            }
            Effect::Note(note) => {
                self.note(note);
                None
            }
            Effect::Keep(holder) => {
                self.ties.holders.hold(holder);
                None
            }
            Effect::LetGo { instance } => {
                self.ties.holders.let_go(instance.get());
                None
            }
            Effect::Examine { instance, epoch, processes } => {
                Some(Event::Examined { instance, epoch, dead: peer::ending(processes) })
            }
            Effect::LookInto { instance, processes } => {
                Some(Event::LookedInto { instance, found: peer::sights(processes) })
            }
            Effect::Kill { token } => {
                let pidfd = self.nodes.get(&token).and_then(|node| node.pidfd.as_ref());
                // Fails where it is dead already.
                let _ = pidfd.map(pidfd::kill);
                None
            }
            Effect::Plan { name, plan } => {
                self.ties.plans.keep(name, plan);
                None
            }
            Effect::Issue { to, sequence, wanted, allowed, epoch, note } => {
                self.note(*note);
                let reply = tokens::issue(&self.ties.key, wanted, allowed, epoch);
                self.reply(to, sequence, &reply)
            }
            Effect::Check { to, sequence, token, presenters, audience, allowed } => {
                let key = &self.ties.key;
                let reply = tokens::check(key, &token, &presenters, &audience, allowed);
                self.reply(to, sequence, &reply)
            }
            Effect::Cut { token, last } => {
                if let (Some(node), Some((sequence, status))) = (self.remove(token), last) {
                    passing::farewell(&node, sequence, status);
                }
                None
            }
        }
    }

    fn note(&self, note: Note) {
        if let Some(notes) = &self.ties.notes {
            notes.take(note);
        }
    }

    fn reply(&mut self, to: Token, sequence: u32, reply: &Reply) -> Option<Event> {
        let bytes = encode_reply(sequence, reply);
        match self.post(to, Parcel::new(bytes, Vec::new())) {
            Ok(()) => None,
            Err(Lost::Introduction | Lost::Node) => self.drop_node(to),
        }
    }

    fn remove(&mut self, token: Token) -> Option<Node> {
        let node = self.nodes.remove(&token)?;
        self.unwatch(&node);
        Some(node)
    }

    /// Closing a descriptor does not end epoll's watch while a forked child, or a node that got
    /// the pidfd, has a copy of it.
    fn unwatch(&self, node: &Node) {
        // Fails where it was not watched yet.
        let _ = self.epoll.delete(&node.socket);
        let _ = node.pidfd.as_ref().map(|pidfd| self.epoll.delete(pidfd));
    }

    fn drop_node(&mut self, token: Token) -> Option<Event> {
        self.remove(token).map(|_| Event::Gone { token })
    }

    /// Sends a parcel, or keeps it behind those that wait already.
    fn post(&mut self, to: Token, parcel: Parcel) -> Result<(), Lost> {
        let Some(node) = self.nodes.get_mut(&to) else { return Ok(()) };
        if node.backlog.is_empty() {
            match send(&node.socket, &parcel) {
                Ok(()) => {
                    parcel.sent();
                    return Ok(());
                }
                Err(Errno::EAGAIN) => {
                    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
                    self.epoll
                        .modify(&node.socket, &mut EpollEvent::new(flags, to))
                        .map_err(|_| Lost::Node)?;
                }
                // The system's limit of descriptors in flight, or its memory: not the node's
                // fault, and nothing was sent.
                Err(Errno::ETOOMANYREFS | Errno::ENOMEM | Errno::ENOBUFS)
                    if !parcel.fds.is_empty() =>
                {
                    return Err(Lost::Introduction);
                }
                Err(_) => return Err(Lost::Node),
            }
        }
        if node.backlog.len() >= BACKLOG {
            return Err(Lost::Node);
        }
        node.backlog.push_back(parcel);
        Ok(())
    }

    fn flush(&mut self, token: Token) {
        let Some(node) = self.nodes.get_mut(&token) else { return };
        while let Some(parcel) = node.backlog.front() {
            match send(&node.socket, parcel) {
                Ok(()) => node.backlog.pop_front().map(Parcel::sent).unwrap_or_default(),
                Err(Errno::EAGAIN) => return,
                Err(_) => return self.lose(token),
            }
        }
        let mut reads = EpollEvent::new(EpollFlags::EPOLLIN, token);
        if self.epoll.modify(&node.socket, &mut reads).is_err() {
            self.lose(token);
        }
    }
}

impl Drop for Reactor {
    /// Turns away who still waits in the backlog, and has perhaps sent something already.
    fn drop(&mut self) {
        for listener in &self.listeners {
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
            while let Ok((socket, _)) = listener.accept() {
                drop(PeerSocket::new(socket.into(), &self.closer));
            }
        }
    }
}

/// What a parcel that could not be sent costs.
enum Lost {
    /// The introduction in it; the node is as it was.
    Introduction,
    /// The node: it is gone, or does not read.
    Node,
}

/// Reads `CLOCK_MONOTONIC`, in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    // It cannot fail for this clock; 0 would only make deadlines late.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

fn send(socket: &PeerSocket, parcel: &Parcel) -> Result<(), Errno> {
    let mut fds: Vec<BorrowedFd<'_>> = parcel.fds.iter().map(|fd| fd.as_fd()).collect();
    if let Some(bell) = &parcel.bell {
        fds.insert(usize::from(parcel.has_lane), bell.as_fd());
    }
    packet::send(socket.as_fd(), &parcel.bytes, &fds)
}
