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

mod boards;
mod introductions;

use std::collections::{BTreeMap, HashMap};

use ipc::{
    LaneFacts, ServiceId, Status,
    control::{Malformed, Reply, Request},
};

use crate::{
    desk::{Notice, Unit},
    registry::{Claims, NODES, Registry},
};
pub(crate) use boards::BoardKey;
use boards::Boards;
use introductions::Introductions;

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
    Accepted { token: Token, pid: u32, uid: u32, unit: Option<Unit> },
    /// A packet came, with these descriptors.
    Packet { token: Token, sequence: u32, request: Result<Request, Malformed>, carried: Carried },
    /// A connection is closed already.
    Gone { token: Token },
    /// An [`Effect::Offer`] could not be carried out, for want of something on our side.
    Failed { ticket: u64, status: Status },
    /// Time passed.
    Tick,
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
    /// Closes what the ticket holds.
    Release { ticket: u64 },
    /// Closes a connection, after a last word where there is one. The broker has forgotten it.
    Cut { token: Token, last: Option<(u32, Status)> },
    /// Tells who supervises.
    Tell(Notice),
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
    /// Whether somebody supervises.
    supervised: bool,
    pid: u32,
    uid: u32,
    started_ns: u64,
}

/// One step: when it is, and what comes of it.
struct Turn {
    now_ns: u64,
    out: Vec<Effect>,
}

/// One control connection.
#[derive(Debug)]
struct Session {
    pid: u32,
    uid: u32,
    /// Of the process, if it is supervised.
    unit: Option<Unit>,
    /// None before the greeting.
    node: Option<ServiceId>,
    asymmetric: bool,
    waits: usize,
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
            supervised: false,
            pid,
            uid,
            started_ns: now_ns,
        })
    }

    /// Has somebody supervise, who hears of units and gets operators' commands.
    #[cfg_attr(not(feature = "node"), allow(dead_code, reason = "an embedded runtime has none"))]
    pub(crate) fn supervised(self) -> Broker {
        Broker { supervised: true, ..self }
    }

    /// Takes one event; gives what is to be done about it.
    pub(crate) fn step(&mut self, event: Event, now_ns: u64) -> Vec<Effect> {
        let mut turn = Turn { now_ns, out: Vec::new() };
        match event {
            Event::Accepted { token, pid, uid, unit } => {
                self.accepted(token, pid, uid, unit, &mut turn);
            }
            Event::Packet { token, sequence, request, carried } => {
                self.packet(token, sequence, request, carried, &mut turn);
            }
            Event::Gone { token } => self.gone(token, &mut turn),
            Event::Failed { ticket, status } => self.refuse(ticket, status, &mut turn),
            Event::Tick => self.tick(&mut turn),
        }
        turn.out
    }

    /// Says when [`Event::Tick`] is next needed.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        let greeting = self.greetings.first_key_value().map(|(_, &at)| at);
        [greeting, self.introductions.deadline_ns()].into_iter().flatten().min()
    }

    fn accepted(&mut self, token: Token, pid: u32, uid: u32, unit: Option<Unit>, turn: &mut Turn) {
        let refusal = if uid != self.uid && unit.is_none() {
            Some(Status::ACCESS)
        } else if self.sessions.len() >= NODES {
            Some(Status::QUOTA)
        } else {
            None
        };
        if let Some(status) = refusal {
            return turn.out.push(Effect::Cut { token, last: Some((0, status)) });
        }
        let session = Session { pid, uid, unit, node: None, asymmetric: false, waits: 0 };
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
        let request = match request {
            Ok(request) if may_carry(&request, carried) => request,
            Ok(_) | Err(_) => return self.cut(token, sequence, Status::PROTOCOL, turn),
        };
        match (session.node, request) {
            (None, Request::Hello { asymmetric }) => {
                self.hello(token, sequence, asymmetric, turn);
            }
            (Some(node), request) if !matches!(request, Request::Hello { .. }) => {
                self.request(token, node, sequence, request, carried, turn);
            }
            (None | Some(_), _) => self.cut(token, sequence, Status::PROTOCOL, turn),
        }
    }

    fn hello(&mut self, token: Token, sequence: u32, asymmetric: bool, turn: &mut Turn) {
        let Some(session) = self.sessions.get_mut(&token) else { return };
        match self.registry.enter(session.pid, session.uid) {
            Err(status) => self.cut(token, sequence, status, turn),
            Ok(node) => {
                session.node = Some(node);
                session.asymmetric = asymmetric;
                self.greetings.remove(&token);
                self.tokens.insert(node, token);
                let reply = Reply::Welcome { node, kernel_pid: self.pid };
                turn.out.push(Effect::Send { to: token, sequence, reply });
            }
        }
    }
    fn request(
        &mut self,
        to: Token,
        node: ServiceId,
        sequence: u32,
        request: Request,
        carried: Carried,
        turn: &mut Turn,
    ) {
        let reply = match request {
            Request::Hello { .. } => Reply::Refused(Status::PROTOCOL),
            Request::Register { flags, claim_instance, claim_name, name } => {
                let claims = Claims {
                    instance: ServiceId::new(claim_instance),
                    name: ServiceId::new(claim_name),
                };
                match self.registry.register(node, &name, flags, claims) {
                    Err(status) => Reply::Refused(status),
                    Ok(made) => {
                        let reply = Reply::Registered { instance: made.instance, name: made.name };
                        turn.out.push(Effect::Send { to, sequence, reply });
                        self.tell(to, turn, |unit| Notice::Registered {
                            unit,
                            instance: made.instance,
                            name: name.clone(),
                        });
                        return self.answer_waits(&name, made.name, turn);
                    }
                }
            }
            Request::Unregister { instance } => {
                if let Err(status) = self.registry.unregister(node, instance) {
                    Reply::Refused(status)
                } else {
                    turn.out.push(Effect::Send { to, sequence, reply: Reply::Done });
                    self.tell(to, turn, |unit| Notice::Unregistered { unit, instance });
                    return self.move_on(|pending| pending.instance == instance, turn);
                }
            }
            Request::Discover { name } => match self.registry.discover(&name) {
                Some(name) => Reply::Found { name },
                None => Reply::Refused(Status::NOT_FOUND),
            },
            Request::Wait { name } => match self.registry.discover(&name) {
                Some(name) => Reply::Found { name },
                None => match self.wait(to, sequence, name) {
                    Ok(()) => return,
                    Err(status) => Reply::Refused(status),
                },
            },
            Request::Forget { request } => return self.forget(to, request, turn),
            Request::Connect { dest, geometry } => {
                match self.connect(to, sequence, dest, geometry, carried, turn) {
                    Ok(()) => return,
                    Err(status) => Reply::Refused(status),
                }
            }
            Request::Accept { channel, status } => {
                return self.accept(to, channel, status, carried, turn);
            }
            Request::List { after } => {
                let (entries, next) = self.registry.list(after);
                Reply::Page { entries, next }
            }
            Request::Ping => Reply::State {
                pid: self.pid,
                uptime_ms: turn.now_ns.saturating_sub(self.started_ns) / 1_000_000,
                nodes: self.registry.nodes() as u32,
                services: self.registry.services() as u32,
                channels: self.introductions.made(),
            },
            Request::Command { .. } if !self.supervised => Reply::Refused(Status::NOT_SUPPORTED),
            // A service that was taken over is not to stop the others.
            Request::Command { .. }
                if self.sessions.get(&to).is_some_and(|it| it.unit.is_some()) =>
            {
                Reply::Refused(Status::ACCESS)
            }
            Request::Command { text } => {
                return turn.out.push(Effect::Tell(Notice::Command { from: to, sequence, text }));
            }
            Request::Closed { .. } => return,
            Request::Board { segment } => {
                return self.show_board(to, node, sequence, segment, carried, turn);
            }
            Request::Boards { after } => return self.next_board(to, sequence, after, turn),
            Request::Trace { instance, every_us, for_ms } => {
                let order = Reply::Trace { instance, every_us, for_ms };
                self.trace(to, instance, order, turn)
            }
        };
        turn.out.push(Effect::Send { to, sequence, reply });
    }

    /// Tells who supervises something about the unit at the other end, if it is one.
    fn tell(&self, about: Token, turn: &mut Turn, notice: impl FnOnce(u32) -> Notice) {
        if let Some(unit) = self.sessions.get(&about).and_then(|it| it.unit.as_ref()) {
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
            self.introductions.remove(ticket);
            turn.out.push(Effect::Release { ticket });
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
        self.greetings.remove(&token);
        let Some(session) = self.sessions.remove(&token) else { return };
        if let Some(node) = session.node {
            self.tokens.remove(&node);
            self.registry.leave(node);
            self.lose_boards(node, turn);
        }
        for ticket in self.introductions.all_of_client(token) {
            self.introductions.remove(ticket);
            turn.out.push(Effect::Release { ticket });
        }
        self.move_on(|pending| pending.service == token, turn);
    }
}

/// Tells whether a request may come with these descriptors. Too few is for the verb to answer.
fn may_carry(request: &Request, carried: Carried) -> bool {
    match carried {
        Carried::Nothing => true,
        Carried::One(_) => match request {
            Request::Connect { .. } | Request::Board { .. } => true,
            Request::Accept { status, .. } => *status == Status::OK,
            _ => false,
        },
        Carried::Many => false,
    }
}

#[cfg(test)]
mod tests;
