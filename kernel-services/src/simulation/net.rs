//! The runtime and the connections to it: the real broker, before a socket, a disk and a `/proc`
//! that are made up. Each connection keeps its order; between them packets pass each other.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    rc::Rc,
    sync::{Arc, Mutex},
};

use ipc::{
    Geometry, LaneFacts, ServiceId, Status,
    control::{Reply, Request},
};

use super::{chance::Chance, lane::Lane};
use crate::{
    broker::{Broker, Carried, Effect, Event, Peer, Sight, Token},
    epochs::{EpochSource, Epochs},
    holders::Holder,
    ids::{Ids, tests::Memory},
    registry::Registry,
    served::Served,
    token::TokenKey,
};

const UID: u32 = 1000;

/// What a process says, and hears.
#[derive(Debug)]
struct Up {
    sequence: u32,
    request: Request,
    lane: Option<Rc<Lane>>,
}

/// What a process hears, and the lane that comes with it.
#[derive(Debug)]
pub(super) struct Down {
    pub(super) sequence: u32,
    pub(super) reply: Reply,
    pub(super) lane: Option<Rc<Lane>>,
}

/// A connection.
#[derive(Debug)]
struct Tie {
    token: Token,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    /// Nobody is at its other end any more.
    is_cut: bool,
}

/// The epochs that are reserved, on a disk that outlives the runtime.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<u64>>);

impl EpochSource for Disk {
    fn reserve(&mut self, end: u64) -> Result<(), Status> {
        *self.0.lock().expect("nobody panics with it") = end;
        Ok(())
    }
}

/// The runtime, and its connections by process.
#[derive(Debug)]
pub(super) struct Net {
    broker: Option<Broker>,
    key: Arc<TokenKey>,
    ids: Memory,
    epochs: Disk,
    /// The last epochs of names, as they are on the disk.
    served: Option<Served>,
    holders: BTreeMap<u32, Holder>,
    ties: Vec<Option<Tie>>,
    by_token: HashMap<Token, usize>,
    held: HashMap<u64, Rc<Lane>>,
    /// Which processes are dead or dying, and which are stopped.
    pub(super) killed: Vec<bool>,
    pub(super) frozen: Vec<bool>,
    last_token: Token,
    pub(super) now_ns: u64,
}

impl Net {
    pub(super) fn new(key: Arc<TokenKey>) -> Net {
        let mut net = Net {
            broker: None,
            key,
            ids: Memory::default(),
            epochs: Disk::default(),
            served: Some(Served::default()),
            holders: BTreeMap::new(),
            ties: Vec::new(),
            by_token: HashMap::new(),
            held: HashMap::new(),
            killed: Vec::new(),
            frozen: Vec::new(),
            last_token: 0,
            now_ns: 1,
        };
        net.rise();
        net
    }

    /// Makes room for another process.
    pub(super) fn enter(&mut self) -> usize {
        self.ties.push(None);
        self.killed.push(false);
        self.frozen.push(false);
        self.ties.len() - 1
    }

    pub(super) fn is_up(&self) -> bool {
        self.broker.is_some()
    }

    /// The runtime dies. What was said to it and not heard is lost.
    pub(super) fn fall(&mut self) {
        self.served = self.broker.take().map(Broker::into_served);
        self.held.clear();
        self.by_token.clear();
        for tie in self.ties.iter_mut().flatten() {
            tie.up.clear();
            tie.is_cut = true;
        }
    }

    /// The runtime starts once more, with what is on the disk.
    pub(super) fn rise(&mut self) {
        let end = *self.ids.end.lock().expect("nobody panics with it");
        let ids = Ids::new(end..end, Box::new(self.ids.clone()));
        let key = Arc::clone(&self.key);
        let broker = Broker::new(Registry::new(ids), 1, UID, self.now_ns, key);
        let first = *self.epochs.0.lock().expect("nobody panics with it");
        let lives = |it: &&Holder| !self.killed[it.pid as usize - 100];
        let living = self.holders.values().filter(lives).cloned().collect();
        let broker = broker.expect("ids").expecting(living, self.now_ns);
        let epochs = Epochs::new(first, Box::new(self.epochs.clone()));
        let served = self.served.take().expect("it is kept while the runtime is down");
        self.broker = Some(broker.numbering(epochs, served));
    }

    /// Whether a process has a connection.
    pub(super) fn is_tied(&self, process: usize) -> bool {
        self.ties[process].is_some()
    }

    /// A process connects, if the runtime is there.
    pub(super) fn dial(&mut self, process: usize) {
        if self.broker.is_none() {
            return;
        }
        self.last_token += 1;
        let token = self.last_token;
        let peer = Peer { pid: process as u32 + 100, uid: UID, descriptors: 2, ..Peer::default() };
        self.by_token.insert(token, process);
        let (up, down) = (VecDeque::new(), VecDeque::new());
        self.ties[process] = Some(Tie { token, up, down, is_cut: false });
        self.step(Event::Accepted { token, peer }, None);
        self.say(process, 0, Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] });
    }

    pub(super) fn say(&mut self, process: usize, sequence: u32, request: Request) {
        self.say_with(process, sequence, request, None);
    }

    /// Says something, with a lane. Without a connection nobody hears it.
    pub(super) fn say_with(
        &mut self,
        process: usize,
        sequence: u32,
        request: Request,
        lane: Option<Rc<Lane>>,
    ) {
        if let Some(tie) = self.ties[process].as_mut().filter(|tie| !tie.is_cut) {
            tie.up.push_back(Up { sequence, request, lane });
        }
    }

    /// Whether something was said to a process that it has not heard.
    pub(super) fn has_news(&self, process: usize) -> bool {
        self.ties[process].as_ref().is_some_and(|tie| !tie.down.is_empty())
    }

    /// The next that a process hears. At the end of what was said the connection is gone.
    pub(super) fn hear(&mut self, process: usize) -> Option<Down> {
        let tie = self.ties[process].as_mut()?;
        let down = tie.down.pop_front();
        if down.is_none() && tie.is_cut {
            self.ties[process] = None;
        }
        down
    }

    /// A process is torn down: its connection ends.
    pub(super) fn hang_up(&mut self, process: usize) {
        if let Some(tie) = self.ties[process].take()
            && self.by_token.remove(&tie.token).is_some()
        {
            self.step(Event::Gone { token: tie.token }, None);
        }
    }

    /// The runtime reads one packet, of anybody. Returns whether there was one.
    pub(super) fn read(&mut self, chance: &mut Chance) -> bool {
        let ready = |tie: &Option<Tie>| tie.as_ref().is_some_and(|tie| !tie.up.is_empty());
        let all: Vec<usize> = (0..self.ties.len()).filter(|&it| ready(&self.ties[it])).collect();
        if all.is_empty() || self.broker.is_none() {
            return false;
        }
        let tie = self.ties[all[chance.below(all.len())]].as_mut();
        let Some((token, up)) = tie.and_then(|it| Some((it.token, it.up.pop_front()?))) else {
            return false;
        };
        let Up { sequence, request, lane } = up;
        let bytes = Geometry::default().lane_bytes() as u64;
        let facts = LaneFacts { sealed: true, bytes, allocated: bytes, ..LaneFacts::default() };
        let carried = if lane.is_some() { Carried::One(facts) } else { Carried::Nothing };
        self.step(Event::Packet { token, sequence, request: Ok(request), carried }, lane.as_ref());
        true
    }

    /// What is due happens.
    pub(super) fn tick(&mut self) {
        let due = self.broker.as_ref().and_then(Broker::deadline_ns);
        if due.is_some_and(|due| due <= self.now_ns) {
            self.step(Event::Tick, None);
        }
    }

    fn step(&mut self, event: Event, at_hand: Option<&Rc<Lane>>) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let Some(broker) = &mut self.broker else { return };
            for effect in broker.step(event, self.now_ns) {
                events.extend(self.carry_out(effect, at_hand));
            }
        }
    }

    fn carry_out(&mut self, effect: Effect, at_hand: Option<&Rc<Lane>>) -> Option<Event> {
        match effect {
            Effect::Send { to, sequence, reply } => self.tell(to, sequence, reply, None),
            Effect::Hold { ticket } => {
                self.held.extend(at_hand.map(|lane| (ticket, Rc::clone(lane))));
            }
            Effect::Offer { ticket, to, introduction, .. } => {
                let lane = self.held.get(&ticket).cloned();
                self.tell(to, 0, Reply::Incoming(Box::new(introduction)), lane);
            }
            Effect::Deliver { ticket, to, sequence, introduction, .. } => {
                let lane = self.held.remove(&ticket);
                self.tell(to, sequence, Reply::Connected(Box::new(introduction)), lane);
            }
            Effect::Release { ticket } => {
                self.held.remove(&ticket);
            }
            Effect::Cut { token, .. } => {
                if let Some(process) = self.by_token.remove(&token)
                    && let Some(tie) = &mut self.ties[process]
                {
                    (tie.is_cut, tie.up) = (true, VecDeque::new());
                }
            }
            Effect::Keep(holder) => {
                self.holders.insert(holder.instance, holder);
            }
            Effect::LetGo { instance } => {
                self.holders.remove(&instance.get());
            }
            Effect::Examine { instance, epoch, processes } => {
                let is_dead = |(_, pid): &&(Token, u32)| self.killed[*pid as usize - 100];
                let dead = processes.iter().filter(is_dead).map(|(token, _)| *token).collect();
                return Some(Event::Examined { instance, epoch, dead });
            }
            Effect::LookInto { instance, processes } => {
                let sight = |pid: u32| match pid as usize - 100 {
                    it if self.killed[it] => Sight::Dead,
                    it if self.frozen[it] => Sight::Stopped,
                    _ => Sight::Runs,
                };
                let found = processes.iter().map(|(id, pid, _)| (*id, sight(*pid))).collect();
                return Some(Event::LookedInto { instance, found });
            }
            other => panic!("nobody asked for {other:?}"),
        }
        None
    }

    fn tell(&mut self, to: Token, sequence: u32, reply: Reply, lane: Option<Rc<Lane>>) {
        let process = self.by_token.get(&to).copied();
        if let Some(tie) = process.and_then(|it| self.ties[it].as_mut()) {
            tie.down.push_back(Down { sequence, reply, lane });
        }
    }

    /// Opens a channel; who asked hears of it by this sequence.
    pub(super) fn connect(&mut self, process: usize, sequence: u32, dest: ServiceId) {
        let request = Request::Connect { dest, geometry: Geometry::default() };
        self.say_with(process, sequence, request, Some(Lane::new()));
    }
}
