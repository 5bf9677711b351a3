//! Decides what happens to every packet and every death: introductions, waits, deadlines. Pure.
//!
//! Descriptors stay with the reactor, under the ticket that the broker gave the connect they came
//! with; the broker judges them by their [`LaneFacts`]. A connect goes through
//!
//! ```text
//!   Connect ─▶ pending ──Offer──▶ service ──Accept──▶ Deliver ─▶ client
//!                 │  ▲               │
//!                 │  └── next replica (the service died, the dest is a name)
//!                 └──▶ Refused: deadline, refusal, death, a lane that cannot be trusted
//! ```

mod accounts;
mod boards;
mod channels;
mod events;
mod groups;
mod introductions;
mod kept;
mod manners;
mod payloads;
mod proofs;
mod regions;
mod registrations;
mod requests;
mod returning;
mod rights;
mod survivors;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use ipc::{
    LaneFacts, ServiceId, Status,
    control::{Cause, Malformed, Reply, Request, TOKEN_BYTES},
};

use crate::{
    desk::{Notice, Unit},
    events::Topics,
    holders::Holder,
    notes::Note,
    regions::Regions,
    registry::{NODES, Registry},
    security::{Policy, Route, Terms, Who},
    token::{TokenKey, Wanted},
};
use accounts::Accounts;
pub(crate) use boards::BoardKey;
use boards::Boards;
use channels::Channels;
pub(crate) use events::RingEffect;
use groups::Groups;
pub(crate) use groups::{Place, Plan, Sight};
use introductions::Introductions;
use kept::Kept;
pub(crate) use kept::Stow;
use manners::{is_answered, may_carry};
pub(crate) use regions::RegionEffect;
use returning::Returning;
pub(crate) use rights::Law;
use survivors::Survivors;

/// Names a control connection; given by the reactor and never reused.
pub(crate) type Token = u64;

/// How long a connection may stay without a greeting, in nanoseconds.
const GREETING_NS: u64 = 2_000_000_000;
/// Unanswered waits of one node.
const WAITS_PER_NODE: usize = 64;

/// What the reactor saw.
#[derive(Debug)]
pub(crate) enum Event {
    /// A connection was accepted; the kernel says whose it is.
    Accepted { token: Token, peer: Peer },
    /// A packet came, with these descriptors.
    Packet { token: Token, sequence: u32, request: Result<Request, Malformed>, carried: Carried },
    /// A connection is closed already.
    Gone { token: Token },
    /// An [`Effect::Offer`] could not be carried out, for want of something on our side.
    Failed { ticket: u64, status: Status },
    /// What came of an [`Effect::Examine`]: the connections of those that are dead or dying.
    Examined { instance: ServiceId, epoch: u64, dead: Vec<Token> },
    /// What came of an [`Effect::LookInto`].
    LookedInto { instance: ServiceId, found: Vec<(ServiceId, Sight)> },
    /// A supervised process has ended, and how, where that is known: its number, and when it
    /// started.
    Ended { process: (u32, u64), end: Option<ipc::ProcessEnd> },
    /// Other rules and quotas hold from now on.
    Law(Box<Law>),
    /// Time passed.
    Tick,
}

/// The process at the other end of a connection, as the kernel proved it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    /// If it is supervised.
    pub(crate) unit: Option<Unit>,
    /// What it runs, where that can be read.
    pub(crate) executable: Option<PathBuf>,
    /// When it started, as `/proc` says; 0 where that cannot be read.
    pub(crate) start_time: u64,
    /// Descriptors that we hold for it.
    pub(crate) descriptors: u64,
    /// Whether we made its end of the connection.
    pub(crate) is_inherited: bool,
}

/// The descriptors beside a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    Nothing,
    One(LaneFacts),
    /// More than any request carries.
    Many,
}

/// What the reactor is to do, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Sends a reply without descriptors.
    Send { to: Token, sequence: u32, reply: Reply },
    /// Keeps the descriptor of the packet at hand as the client's lane of that ticket.
    Hold { ticket: u64 },
    /// Makes a new doorbell and sends `Incoming` with the lane held, one end of the bell, and the
    /// client's pidfd.
    Offer { ticket: u64, to: Token, client: Token, introduction: ipc::control::Introduction },
    /// Sends `Connected` with the descriptor of the packet at hand (the service's lane), the other
    /// end of the bell, and the service's pidfd; then closes what the ticket holds.
    Deliver {
        ticket: u64,
        to: Token,
        service: Token,
        sequence: u32,
        introduction: ipc::control::Introduction,
    },
    /// Keeps the descriptor of the packet at hand as that segment of a board, in place of an older.
    KeepBoard { board: BoardKey },
    /// Sends a reply with a segment of a board.
    SendBoard { to: Token, sequence: u32, board: BoardKey, reply: Reply },
    /// Closes a segment of a board.
    LoseBoard { board: BoardKey },
    /// Does something with the memory of a shared region.
    Region(RegionEffect),
    /// Does something with a ring of events.
    Ring(RingEffect),
    /// Keeps, gives or closes memory of a unit.
    Stow(Stow),
    /// Closes what the ticket holds.
    Release { ticket: u64 },
    /// Closes a connection, after a last word where there is one. The broker has forgotten it.
    Cut { token: Token, last: Option<(u32, Status)> },
    /// Tells who supervises.
    Tell(Notice),
    /// Has something recorded.
    Note(Note),
    /// Remembers who serves a name, for the next run.
    Keep(Holder),
    /// An instance has ended.
    LetGo { instance: ServiceId },
    /// Looks which of these processes are dead or dying.
    Examine { instance: ServiceId, epoch: u64, processes: Vec<(Token, u32)> },
    /// Looks how the processes of these instances are: their ids, and when they started.
    LookInto { instance: ServiceId, processes: Vec<(ServiceId, u32, u64)> },
    /// Kills a supervised process.
    Kill { token: Token },
    /// Remembers how a name is configured, for the next run.
    Plan { name: String, plan: Plan },
    /// Signs a token for what of it is allowed, and sends it; notes that.
    Issue { to: Token, sequence: u32, wanted: Wanted, allowed: u64, epoch: u64, note: Box<Note> },
    /// Verifies a token, and sends what it is worth.
    Check {
        to: Token,
        sequence: u32,
        token: Box<[u8; TOKEN_BYTES]>,
        /// All ids of who showed it.
        presenters: Vec<ServiceId>,
        /// All ids of whom it was shown to.
        audience: Vec<ServiceId>,
        /// What the rules allow now.
        allowed: u64,
    },
}

/// The runtime's whole state, save sockets and descriptors.
#[derive(Debug)]
pub(crate) struct Broker {
    registry: Registry,
    sessions: HashMap<Token, Session>,
    /// Until when the connections without a greeting may stay; the first is the earliest.
    greetings: BTreeMap<Token, u64>,
    tokens: HashMap<ServiceId, Token>,
    waits: HashMap<String, Vec<(Token, u32)>>,
    introductions: Introductions,
    boards: Boards,
    regions: Regions,
    /// The high half of the ids of new regions, and the low half of the last.
    region_ids: (u32, u32),
    topics: Topics,
    kept: Kept,
    survivors: Survivors,
    channels: Channels,
    accounts: Accounts,
    returning: Returning,
    groups: Groups,
    /// Names that came back after a restart, and whose holders may not all have.
    unsettled: HashSet<ServiceId>,
    policy: Policy,
    key: Arc<TokenKey>,
    /// Whether somebody supervises.
    supervised: bool,
    /// Whether somebody records.
    recorded: bool,
    pid: u32,
    uid: u32,
    started_ns: u64,
}

/// One step: when it is, and what comes of it.
struct Turn {
    now_ns: u64,
    out: Vec<Effect>,
}

impl Turn {
    fn note(&mut self, note: Note) {
        self.out.push(Effect::Note(note));
    }
}

/// One control connection.
#[allow(clippy::struct_excessive_bools, reason = "what a node says of itself, each by itself")]
#[derive(Debug)]
struct Session {
    peer: Peer,
    who: Arc<Who>,
    /// Whether it is of this very process.
    own: bool,
    /// None before the greeting.
    node: Option<ServiceId>,
    asymmetric: bool,
    /// Whether every channel of it has to be encrypted.
    encrypts: bool,
    /// Its public key; zeros where it has none.
    key: [u8; 32],
    /// Whether what it serves can be reached by shared memory.
    shares_memory: bool,
    waits: usize,
    /// The last epoch at which it served a name, and was passed over; 0 where it never was.
    past: u64,
}

impl Session {
    /// Whether it proves itself by the key that the supervisor has made for it.
    fn has_made_key(&self) -> bool {
        self.peer.unit.as_ref().and_then(|it| it.key).is_some_and(|key| key == self.key)
    }
}

impl Broker {
    /// Starts with nobody, as the process `pid` of user `uid`, at `now_ns` on `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    /// What [`crate::ids::Ids::fresh`] says.
    pub(crate) fn new(
        mut registry: Registry,
        pid: u32,
        uid: u32,
        now_ns: u64,
        key: Arc<TokenKey>,
    ) -> Result<Broker, Status> {
        let introductions = Introductions::new(registry.unique()?);
        Ok(Broker {
            registry,
            sessions: HashMap::new(),
            greetings: BTreeMap::new(),
            tokens: HashMap::new(),
            waits: HashMap::new(),
            introductions,
            boards: Boards::default(),
            regions: Regions::default(),
            region_ids: (0, 0),
            topics: Topics::default(),
            kept: Kept::default(),
            survivors: Survivors::default(),
            channels: Channels::default(),
            accounts: Accounts::default(),
            returning: Returning::default(),
            groups: Groups::default(),
            unsettled: HashSet::new(),
            policy: Policy::new(Terms { uid, ..Terms::default() }),
            key,
            supervised: false,
            recorded: false,
            pid,
            uid,
            started_ns: now_ns,
        })
    }

    /// Begins with these routes, and no rules.
    pub(crate) fn routed(self, routes: Vec<Route>) -> Broker {
        let policy = Policy::new(Terms { uid: self.uid, routes, ..Terms::default() });
        Broker { policy, ..self }
    }

    /// Has somebody supervise, who hears of units and gets operators' commands.
    #[cfg_attr(not(feature = "node"), allow(dead_code, reason = "an embedded runtime has none"))]
    pub(crate) fn supervised(self) -> Broker {
        Broker { supervised: true, ..self }
    }

    /// Has somebody record what is granted and denied.
    #[cfg_attr(not(feature = "node"), allow(dead_code, reason = "an embedded runtime has none"))]
    pub(crate) fn recorded(self) -> Broker {
        Broker { recorded: true, ..self }
    }

    /// Takes one event; gives what is to be done about it.
    pub(crate) fn step(&mut self, event: Event, now_ns: u64) -> Vec<Effect> {
        let mut turn = Turn { now_ns, out: Vec::new() };
        match event {
            Event::Accepted { token, peer } => self.accepted(token, peer, &mut turn),
            Event::Packet { token, sequence, request, carried } => {
                self.packet(token, sequence, request, carried, &mut turn);
            }
            Event::Gone { token } => self.gone(token, &mut turn),
            Event::Failed { ticket, status } => self.refuse(ticket, status, &mut turn),
            Event::Examined { instance, epoch, dead } => {
                self.examined(instance, epoch, &dead, &mut turn);
            }
            Event::LookedInto { instance, found } => {
                self.looked_into(instance, &found, &mut turn);
            }
            Event::Ended { process, end } => self.ended(process, end, &mut turn),
            Event::Law(law) => self.enact(*law, &mut turn),
            Event::Tick => self.tick(&mut turn),
        }
        turn.out.retain(|effect| match effect {
            Effect::Note(_) => self.recorded,
            Effect::Keep(_) | Effect::LetGo { .. } | Effect::Plan { .. } => {
                self.returning.is_remembered
            }
            _ => true,
        });
        turn.out
    }

    /// Ends all connections, and checks that nothing is held for any of them.
    ///
    /// # Panics
    /// When something is.
    pub(crate) fn close(&mut self, now_ns: u64) {
        let tokens: Vec<Token> = self.sessions.keys().copied().collect();
        for token in tokens {
            self.step(Event::Gone { token }, now_ns);
        }
        for ring in self.topics.abandon(true) {
            self.accounts.ring_gone(ring);
        }
        self.let_go_all();
        self.accounts.assert_settled();
    }

    /// Says when [`Event::Tick`] is next needed.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        let greeting = self.greetings.first_key_value().map(|(_, &at)| at);
        let returning = self.returning_until_ns();
        let settling = (!self.unsettled.is_empty()).then(|| self.returning.until_ns());
        let groups = self.groups.deadline_ns();
        let all = [greeting, returning, settling, groups, self.introductions.deadline_ns()];
        all.into_iter().flatten().min()
    }

    fn accepted(&mut self, token: Token, peer: Peer, turn: &mut Turn) {
        let own = self.is_own(&peer);
        let refusal = if peer.uid != self.uid && peer.unit.is_none() {
            Some(Status::ACCESS)
        } else if self.sessions.len() >= NODES {
            Some(Status::QUOTA)
        } else if own {
            None
        } else {
            self.accounts.admit(token, &peer).err()
        };
        if let Some(status) = refusal {
            return turn.out.push(Effect::Cut { token, last: Some((0, status)) });
        }
        let who = Arc::new(peer.who());
        let session = Session {
            peer,
            who,
            own,
            node: None,
            asymmetric: false,
            encrypts: false,
            shares_memory: true,
            key: [0; 32],
            waits: 0,
            past: 0,
        };
        self.sessions.insert(token, session);
        self.greetings.insert(token, turn.now_ns.saturating_add(GREETING_NS));
    }

    fn packet(
        &mut self,
        token: Token,
        sequence: u32,
        request: Result<Request, Malformed>,
        carried: Carried,
        turn: &mut Turn,
    ) {
        let Some(session) = self.sessions.get(&token) else { return };
        let in_time = self.accounts.message(token, turn.now_ns);
        let request = match request {
            Ok(request) if may_carry(&request, carried) => request,
            Ok(_) | Err(_) => return self.cut(token, sequence, Status::PROTOCOL, turn),
        };
        match (session.node, request) {
            (None, Request::Hello { asymmetric, encrypts, key }) => {
                self.hello(token, sequence, (asymmetric, encrypts, key), turn);
            }
            (Some(_), request) if !in_time && is_answered(&request) => {
                let reply = Reply::Refused(Status::QUOTA);
                turn.out.push(Effect::Send { to: token, sequence, reply });
            }
            // What it costs to look is not for whoever says too much.
            (Some(_), Request::Suspect { .. }) if !in_time => {}
            (Some(node), request) if !matches!(request, Request::Hello { .. }) => {
                self.request(token, node, sequence, request, carried, turn);
            }
            (None | Some(_), _) => self.cut(token, sequence, Status::PROTOCOL, turn),
        }
    }

    fn hello(
        &mut self,
        token: Token,
        sequence: u32,
        (asymmetric, encrypts, key): (bool, bool, [u8; 32]),
        turn: &mut Turn,
    ) {
        let Some(session) = self.sessions.get_mut(&token) else { return };
        match self.registry.enter(session.peer.pid, session.peer.uid) {
            Err(status) => self.cut(token, sequence, status, turn),
            Ok(node) => {
                session.node = Some(node);
                session.asymmetric = asymmetric;
                session.encrypts = encrypts;
                session.key = key;
                self.greetings.remove(&token);
                self.accounts.greeted(token);
                self.tokens.insert(node, token);
                let reply = Reply::Welcome { node, kernel_pid: self.pid };
                turn.out.push(Effect::Send { to: token, sequence, reply });
            }
        }
    }

    /// Tells who supervises something about the unit at the other end, if it is one.
    fn tell(&self, about: Token, turn: &mut Turn, notice: impl FnOnce(u32) -> Notice) {
        if let Some(unit) = self.sessions.get(&about).and_then(|it| it.peer.unit.as_ref()) {
            turn.out.push(Effect::Tell(notice(unit.id)));
        }
    }

    fn wait(&mut self, token: Token, sequence: u32, name: String) -> Result<(), Status> {
        let session = self.sessions.get_mut(&token).ok_or(Status::INVALID)?;
        if session.waits >= WAITS_PER_NODE {
            return Err(Status::QUOTA);
        }
        session.waits += 1;
        self.waits.entry(name).or_default().push((token, sequence));
        Ok(())
    }

    fn answer_waits(&mut self, text: &str, name: ServiceId, turn: &mut Turn) {
        for (to, sequence) in self.waits.remove(text).unwrap_or_default() {
            if let Some(session) = self.sessions.get_mut(&to) {
                session.waits -= 1;
            }
            turn.out.push(Effect::Send { to, sequence, reply: Reply::Found { name } });
        }
    }

    fn forget(&mut self, token: Token, request: u32, turn: &mut Turn) {
        self.forget_waits(token, |sequence| sequence == request);
        for ticket in self.introductions.of_client(token, request) {
            self.withdraw(ticket, turn);
        }
    }

    fn forget_waits(&mut self, token: Token, which: impl Fn(u32) -> bool) {
        let Some(session) = self.sessions.get_mut(&token) else { return };
        if session.waits == 0 {
            return;
        }
        self.waits.retain(|_, waiting| {
            let before = waiting.len();
            waiting.retain(|&(who, sequence)| who != token || !which(sequence));
            session.waits -= before - waiting.len();
            !waiting.is_empty()
        });
    }

    fn tick(&mut self, turn: &mut Turn) {
        while let Some((&token, &at)) = self.greetings.first_key_value()
            && at <= turn.now_ns
        {
            self.cut(token, 0, Status::TIMED_OUT, turn);
        }
        self.end_waiting(turn);
        self.settle_names(turn);
        self.look_at_claims(turn);
        self.end_hands(turn);
        self.look_at_suspects(turn);
        while let Some(ticket) = self.introductions.overdue(turn.now_ns) {
            self.refuse(ticket, Status::TIMED_OUT, turn);
        }
    }

    fn cut(&mut self, token: Token, sequence: u32, status: Status, turn: &mut Turn) {
        turn.out.push(Effect::Cut { token, last: Some((sequence, status)) });
        self.gone(token, turn);
    }

    /// Forgets a connection and all that hung on it.
    fn gone(&mut self, token: Token, turn: &mut Turn) {
        self.forget_waits(token, |_| true);
        self.survivors.leave(token);
        self.leave_regions(token, turn);
        self.greetings.remove(&token);
        let Some(session) = self.sessions.remove(&token) else { return };
        if let Some(node) = session.node {
            self.tokens.remove(&node);
            let left = self.registry.leave(node);
            for &(instance, _) in &left {
                self.accounts.unnamed(instance);
                turn.out.push(Effect::LetGo { instance });
            }
            self.lose_boards(node, turn);
            for (instance, name) in left {
                self.note_gone(instance, name, &session.peer, turn);
                self.regroup(name, Cause::Died, turn);
            }
        }
        self.leave_topics(token, turn);
        self.stop_waiting(token);
        for ticket in self.introductions.all_of_client(token) {
            self.withdraw(ticket, turn);
        }
        self.move_on(|pending| pending.service == token, turn);
        for channel in self.channels.gone(token) {
            self.accounts.closed(channel);
        }
        self.accounts.gone(token, turn.now_ns);
    }
}

#[cfg(test)]
mod tests;
