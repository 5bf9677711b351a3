//! Pending introductions: who wants to be introduced to whom, since when, and what comes of it.

use std::{
    collections::{BTreeMap, HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
};

use ipc::{
    Geometry, ServiceId, Status,
    control::{BY_SOCKET, Bond, Introduction, Reply, name_hash},
};

use crate::security::What;

use super::{Broker, Carried, Effect, Token, Turn, channels::Channel};

/// How long a service may take to answer an offer, in nanoseconds.
const ANSWER_NS: u64 = 2_000_000_000;
/// Unanswered connects of one node.
pub(super) const CONNECTS_PER_NODE: usize = 64;
/// Unanswered offers to one node: each holds three descriptors in flight, and a process has 1024
/// by default.
pub(super) const OFFERS_PER_NODE: usize = 256;

/// One connect that awaits the service's answer.
#[derive(Debug)]
pub(super) struct Pending {
    wanted: Wanted,
    /// Where it is offered now.
    pub(super) service: Token,
    pub(super) instance: ServiceId,
    /// As the service was told.
    introduction: Introduction,
}

/// By what a client wants to be connected.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// Memory that both share: the geometry of its lane, and what came with the request.
    Memory(Geometry, Carried),
    /// A socket, which the runtime makes.
    Socket,
}

/// What a client asked for, wherever it is offered.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    client: Token,
    sequence: u32,
    dest: ServiceId,
    geometry: Geometry,
    by_socket: bool,
    deadline_ns: u64,
}

impl Wanted {
    /// Bytes of a lane that the two are to share.
    fn lane_bytes(&self) -> u64 {
        if self.by_socket { 0 } else { self.geometry.lane_bytes() as u64 }
    }
}

/// The table of pending introductions, by ascending ticket, which is by ascending deadline.
#[derive(Debug)]
pub(super) struct Introductions {
    pending: BTreeMap<u64, Pending>,
    by_channel: HashMap<u64, u64>,
    connects: HashMap<Token, usize>,
    offers: HashMap<Token, usize>,
    tickets: u64,
    made: u64,
    /// High half of the channels' ids: an id from the durable counter, so no other run has it.
    epoch: u32,
    channels: u32,
    /// Sessions only have to differ between channels, not to be secret.
    sessions: RandomState,
}

impl Introductions {
    pub(super) fn new(epoch: u32) -> Introductions {
        Introductions {
            pending: BTreeMap::new(),
            by_channel: HashMap::new(),
            connects: HashMap::new(),
            offers: HashMap::new(),
            tickets: 0,
            made: 0,
            epoch,
            channels: 0,
            sessions: RandomState::new(),
        }
    }

    /// Tells whether a channel's id is of this run.
    pub(super) fn is_of_this_run(&self, channel: u64) -> bool {
        ((channel & !BY_SOCKET) >> 32) as u32 == self.epoch
    }

    #[cfg(test)]
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Channels introduced since the start.
    pub(super) fn made(&self) -> u64 {
        self.made
    }

    pub(super) fn deadline_ns(&self) -> Option<u64> {
        self.pending.first_key_value().map(|(_, pending)| pending.wanted.deadline_ns)
    }

    pub(super) fn overdue(&self, now_ns: u64) -> Option<u64> {
        let (&ticket, pending) = self.pending.first_key_value()?;
        (pending.wanted.deadline_ns <= now_ns).then_some(ticket)
    }

    pub(super) fn of_client(&self, client: Token, sequence: u32) -> Vec<u64> {
        self.which(|pending| pending.wanted.client == client && pending.wanted.sequence == sequence)
    }

    pub(super) fn all_of_client(&self, client: Token) -> Vec<u64> {
        self.which(|pending| pending.wanted.client == client)
    }

    fn which(&self, is_meant: impl Fn(&Pending) -> bool) -> Vec<u64> {
        let meant = self.pending.iter().filter(|(_, pending)| is_meant(pending));
        meant.map(|(&ticket, _)| ticket).collect()
    }

    pub(super) fn remove(&mut self, ticket: u64) -> Option<Pending> {
        let pending = self.pending.remove(&ticket)?;
        self.by_channel.remove(&pending.introduction.channel);
        count_down(&mut self.connects, pending.wanted.client);
        count_down(&mut self.offers, pending.service);
        Some(pending)
    }

    fn insert(&mut self, ticket: u64, pending: Pending) {
        self.by_channel.insert(pending.introduction.channel, ticket);
        *self.connects.entry(pending.wanted.client).or_default() += 1;
        *self.offers.entry(pending.service).or_default() += 1;
        self.pending.insert(ticket, pending);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let tables = [self.connects.len(), self.offers.len(), self.by_channel.len()];
        self.pending.is_empty() && tables == [0; 3]
    }
}

fn count_down(counts: &mut HashMap<Token, usize>, token: Token) {
    if let Some(count) = counts.get_mut(&token) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&token);
        }
    }
}

impl Broker {
    /// Has a node connected, or refuses it.
    pub(super) fn connect(
        &mut self,
        client: Token,
        sequence: u32,
        dest: ServiceId,
        way: Way,
        turn: &mut Turn,
    ) {
        if let Err(status) = self.try_connect(client, sequence, dest, way, turn) {
            let reply = Reply::Refused(status);
            turn.out.push(Effect::Send { to: client, sequence, reply });
        }
    }

    fn try_connect(
        &mut self,
        client: Token,
        sequence: u32,
        dest: ServiceId,
        way: Way,
        turn: &mut Turn,
    ) -> Result<(), Status> {
        let (geometry, by_socket) = match way {
            Way::Memory(geometry, Carried::One(facts)) if facts.fit(geometry) => (geometry, false),
            Way::Memory(..) => return Err(Status::INVALID),
            Way::Socket => (Geometry::of_sockets(), true),
        };
        if self.is_turned_out(client) {
            return Err(Status::STALE);
        }
        let connects = self.introductions.connects.get(&client).copied().unwrap_or(0);
        if connects >= CONNECTS_PER_NODE {
            return Err(Status::QUOTA);
        }
        let deadline_ns = turn.now_ns.saturating_add(ANSWER_NS);
        let wanted = Wanted { client, sequence, dest, geometry, by_socket, deadline_ns };
        let pending = self.direct(wanted, Status::NOT_FOUND, turn)?;
        self.introductions.tickets += 1;
        let ticket = self.introductions.tickets;
        self.accounts.connect(client, ticket, wanted.lane_bytes())?;
        turn.out.push(Effect::Hold { ticket });
        self.offer(ticket, pending, turn);
        Ok(())
    }

    /// Takes a service's answer. One that comes too late, or from somebody else, is nobody's: the
    /// reactor closes its lane, and the other end of its bell is closed already.
    pub(super) fn accept(
        &mut self,
        service: Token,
        channel: u64,
        status: Status,
        carried: Carried,
        turn: &mut Turn,
    ) {
        let Some(&ticket) = self.introductions.by_channel.get(&channel) else { return };
        let Some(pending) = self.introductions.pending.get(&ticket) else { return };
        if pending.service != service {
            return;
        }
        if status.code() < 0 {
            return self.refuse(ticket, status, turn);
        }
        match carried {
            Carried::Nothing if pending.wanted.by_socket => self.deliver(ticket, turn),
            Carried::One(_) if pending.wanted.by_socket => {
                self.refuse(ticket, Status::PEER_CORRUPT, turn);
            }
            Carried::One(facts) if facts.fit(pending.introduction.geometry) => {
                self.deliver(ticket, turn);
            }
            Carried::One(_) => self.refuse(ticket, Status::PEER_CORRUPT, turn),
            Carried::Nothing | Carried::Many => {
                self.refuse(ticket, Status::PEER_CORRUPT, turn);
                self.cut(service, 0, Status::PROTOCOL, turn);
            }
        }
    }

    /// Ends a pending connect with a refusal.
    pub(super) fn refuse(&mut self, ticket: u64, status: Status, turn: &mut Turn) {
        if let Some(pending) = self.introductions.remove(ticket) {
            self.accounts.settle(ticket);
            refused(ticket, pending.wanted.client, pending.wanted.sequence, status, turn);
        }
    }

    /// Offers the pending connects that `left` names to the next replica, where there is one.
    pub(super) fn move_on(&mut self, left: impl Fn(&Pending) -> bool, turn: &mut Turn) {
        for ticket in self.introductions.which(left) {
            let Some(pending) = self.introductions.remove(ticket) else { continue };
            match self.direct(pending.wanted, Status::PEER_DIED, turn) {
                Ok(next) => self.offer(ticket, next, turn),
                Err(status) => {
                    self.accounts.settle(ticket);
                    let Wanted { client, sequence, .. } = pending.wanted;
                    refused(ticket, client, sequence, status, turn);
                }
            }
        }
    }

    /// Finds who serves the destination now, and makes the channel's identity.
    fn direct(
        &mut self,
        wanted: Wanted,
        nobody: Status,
        turn: &mut Turn,
    ) -> Result<Pending, Status> {
        let instance = self.registry.resolve(wanted.dest).ok_or(nobody)?;
        let serving = self.registry.instance(instance).ok_or(nobody)?;
        let (server, dest_name) = (serving.node, serving.name);
        let &service = self.tokens.get(&server).ok_or(nobody)?;
        if self.introductions.offers.get(&service).is_some_and(|&count| count >= OFFERS_PER_NODE) {
            return Err(Status::FULL);
        }
        let name = self.registry.name_behind(instance).ok_or(nobody)?.clone();
        let served_by = self.uid_of_node(server).ok_or(nobody)?;
        let permissions = match self.may_connect(wanted.client, &name, served_by, turn) {
            // It watches over those who serve before it, and may ask nothing of them.
            Err(_) if self.stands_beside(wanted.client, dest_name) => 0,
            other => other?,
        };
        let by_socket = if wanted.by_socket { BY_SOCKET } else { 0 };
        if !wanted.by_socket && !self.sessions.get(&service).is_some_and(|it| it.shares_memory) {
            // The client asks again, for a socket.
            return Err(Status::NOT_SUPPORTED);
        }
        let channel = self.next_channel()? | by_socket;
        let client = self.sessions.get(&wanted.client).ok_or(Status::INVALID)?;
        let asymmetric =
            client.asymmetric && self.sessions.get(&service).is_some_and(|it| it.asymmetric);
        let node = client.node.ok_or(Status::INVALID)?;
        // ipcd's own have nothing to say but pings.
        let what = What::Name { text: &name, served_by: Some(served_by) };
        let must = client.encrypts || self.sessions.get(&service).is_some_and(|it| it.encrypts);
        let encrypted = !client.own && (must || self.policy.encrypts(&client.who, what));
        let (peer, peer_name) = self.registry.appearance(node);
        let peer_text = self.registry.name_behind(peer_name).map_or("", |it| it);
        let bond = Bond {
            epoch: self.groups.epoch(dest_name),
            is_known: peer_name != ServiceId::NONE || client.has_made_key(),
            opener: name_hash(peer_text),
            dest: name_hash(&name),
        };
        let introduction = Introduction {
            channel,
            session: self.introductions.sessions.hash_one(channel) as u32,
            start_ns: turn.now_ns,
            asymmetric,
            peer,
            peer_name,
            peer_pid: client.peer.pid,
            peer_uid: client.peer.uid,
            dest: instance,
            dest_name,
            geometry: wanted.geometry,
            permissions,
            opener: peer,
            encrypted,
            peer_key: client.key,
            bond,
        };
        Ok(Pending { wanted, service, instance, introduction })
    }

    fn offer(&mut self, ticket: u64, pending: Pending, turn: &mut Turn) {
        let (to, client, introduction) =
            (pending.service, pending.wanted.client, pending.introduction);
        self.introductions.insert(ticket, pending);
        turn.out.push(Effect::Offer { ticket, to, client, introduction });
    }

    fn deliver(&mut self, ticket: u64, turn: &mut Turn) {
        let Some(pending) = self.introductions.remove(ticket) else { return };
        let Some(server) = self.sessions.get(&pending.service) else { return };
        let (pid, uid, peer_key) = (server.peer.pid, server.peer.uid, server.key);
        self.introductions.made += 1;
        self.registry.count_channel(pending.instance);
        self.keep(ticket, &pending, uid, turn);
        let (client, instance) = (pending.wanted.client, pending.instance);
        let introduction = Introduction {
            peer: pending.introduction.dest,
            peer_name: pending.introduction.dest_name,
            peer_pid: pid,
            peer_uid: uid,
            peer_key,
            ..pending.introduction
        };
        turn.out.push(Effect::Deliver {
            ticket,
            to: pending.wanted.client,
            service: pending.service,
            sequence: pending.wanted.sequence,
            introduction,
        });
        self.tell_caller(client, instance, turn);
    }

    /// A node says that what it serves can be reached over sockets only. Offers of shared memory
    /// that it has not answered are left to its answer.
    pub(super) fn shares_no_memory(&mut self, node: Token) {
        if let Some(session) = self.sessions.get_mut(&node) {
            session.shares_memory = false;
        }
    }

    /// Enters a channel among those that are open. ipcd's own are not counted: it closes them as
    /// it likes.
    fn keep(&mut self, ticket: u64, pending: &Pending, served_by: u32, turn: &mut Turn) {
        let Introduction { channel, permissions: granted, encrypted, .. } = pending.introduction;
        self.accounts.opened(ticket, channel);
        let (client, service) = (pending.wanted.client, pending.service);
        let session = self.sessions.get(&client).filter(|session| !session.own);
        let name = self.registry.name_behind(pending.instance);
        if let (Some(session), Some(name)) = (session, name) {
            let (who, name) = (Arc::clone(&session.who), Arc::clone(name));
            self.note_grant(&who, &name, granted, turn);
            let open = Channel { client, service, who, name, served_by, granted, encrypted };
            self.channels.insert(channel, open);
        }
    }

    /// Withdraws a pending connect.
    pub(super) fn withdraw(&mut self, ticket: u64, turn: &mut Turn) {
        self.introductions.remove(ticket);
        self.accounts.settle(ticket);
        turn.out.push(Effect::Release { ticket });
    }

    fn next_channel(&mut self) -> Result<u64, Status> {
        let table = &mut self.introductions;
        table.channels = table.channels.wrapping_add(1);
        if table.channels == 0 {
            table.epoch = self.registry.unique()?;
        }
        Ok(u64::from(table.epoch) << 32 | u64::from(table.channels))
    }
}

fn refused(ticket: u64, to: Token, sequence: u32, status: Status, turn: &mut Turn) {
    turn.out.push(Effect::Release { ticket });
    turn.out.push(Effect::Send { to, sequence, reply: Reply::Refused(status) });
}
