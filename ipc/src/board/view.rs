//! Reading boards. Whatever stands in another process's board is what it says of itself: each word
//! is loaded once, nothing that is read decides where to read next, and how often is bounded.

use super::{
    histogram::{FINE, Histogram, WHOLE},
    layout::Slot,
    memory::Segment,
    payloads::{self, Payload},
    session::SessionStats,
    tape::{self, Span},
};
use crate::{
    ServiceId,
    sync::{Ordering, fence},
};

/// How often a board that changes under its reader is read again.
const TRIES: usize = 8;

/// Which end of a channel, or of the channels that are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Calls.
    Client = 0,
    /// Serves.
    Server = 1,
    /// All that called and are gone.
    GoneClients = 2,
    /// All that served and are gone.
    GoneServers = 3,
}

impl Role {
    pub(super) fn number(self) -> u32 {
        self as u32 + 1
    }

    fn from_number(number: u32) -> Option<Role> {
        Some(match number {
            1 => Role::Client,
            2 => Role::Server,
            3 => Role::GoneClients,
            4 => Role::GoneServers,
            _ => return None,
        })
    }

    pub(super) fn gone(self) -> Role {
        match self {
            Role::Client | Role::GoneClients => Role::GoneClients,
            Role::Server | Role::GoneServers => Role::GoneServers,
        }
    }

    /// Tells whether the counts are of ends that are gone.
    pub fn is_gone(self) -> bool {
        self.gone() == self
    }

    /// Tells whether it serves, or served.
    pub fn serves(self) -> bool {
        self.gone() == Role::GoneServers
    }
}

/// What one end of a channel counted, or several together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Messages sent: requests, one-way messages, responses.
    pub messages_sent: u64,
    /// Bytes of their payloads.
    pub bytes_sent: u64,
    /// Times that a message found no room, and had to wait or was given up.
    pub full: u64,
    /// Messages received.
    pub messages_received: u64,
    /// Bytes of their payloads.
    pub bytes_received: u64,
    /// Messages that can end with an error: of a client those sent, of a server those received.
    pub exchanges: u64,
    /// Of a client, calls that ended with an error; of a server, requests answered with one.
    pub errors: u64,
    /// Messages given up: no room in time, expired before their turn, over a limit.
    pub drops: u64,
    /// Waits that went on beyond the first polls.
    pub spins: u64,
    /// Sleeps announced.
    pub parks: u64,
    /// Requests that wait for their turn at a server now.
    pub depth: u64,
    /// Of a client, how long calls took; of a server, how long handlers ran. One in 64, counted as
    /// 64, of what went fast; all that did not.
    pub latency: Histogram,
    /// Of a server, how long requests waited for others of their channel; those that had to.
    pub queued: Histogram,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            messages_sent: 0,
            bytes_sent: 0,
            full: 0,
            messages_received: 0,
            bytes_received: 0,
            exchanges: 0,
            errors: 0,
            drops: 0,
            spins: 0,
            parks: 0,
            depth: 0,
            latency: Histogram::new(FINE),
            queued: Histogram::new(WHOLE),
        }
    }
}

impl Stats {
    /// Gives the share of exchanges that ended with an error, 0 to 1.
    pub fn error_rate(&self) -> f64 {
        (self.errors as f64 / self.exchanges.max(1) as f64).min(1.0)
    }

    /// Adds what others counted.
    pub fn merge(&mut self, other: &Stats) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.messages_sent, other.messages_sent);
        add(&mut self.bytes_sent, other.bytes_sent);
        add(&mut self.full, other.full);
        add(&mut self.messages_received, other.messages_received);
        add(&mut self.bytes_received, other.bytes_received);
        add(&mut self.exchanges, other.exchanges);
        add(&mut self.errors, other.errors);
        add(&mut self.drops, other.drops);
        add(&mut self.spins, other.spins);
        add(&mut self.parks, other.parks);
        add(&mut self.depth, other.depth);
        self.latency.merge(&other.latency);
        self.queued.merge(&other.queued);
    }

    /// Gives what was counted since an earlier look at the same; `depth` is what it is now.
    #[must_use]
    pub fn since(&self, earlier: &Stats) -> Stats {
        let more = |now: u64, then: u64| now.saturating_sub(then);
        Stats {
            messages_sent: more(self.messages_sent, earlier.messages_sent),
            bytes_sent: more(self.bytes_sent, earlier.bytes_sent),
            full: more(self.full, earlier.full),
            messages_received: more(self.messages_received, earlier.messages_received),
            bytes_received: more(self.bytes_received, earlier.bytes_received),
            exchanges: more(self.exchanges, earlier.exchanges),
            errors: more(self.errors, earlier.errors),
            drops: more(self.drops, earlier.drops),
            spins: more(self.spins, earlier.spins),
            parks: more(self.parks, earlier.parks),
            depth: self.depth,
            latency: self.latency.since(&earlier.latency),
            queued: self.queued.since(&earlier.queued),
        }
    }
}

impl<'a> FromIterator<&'a Stats> for Stats {
    fn from_iter<I: IntoIterator<Item = &'a Stats>>(parts: I) -> Stats {
        let mut sum = Stats::default();
        parts.into_iter().for_each(|part| sum.merge(part));
        sum
    }
}

/// What an end of a channel says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndStats {
    /// Of the channel; 0 for ends that are gone.
    pub channel: u64,
    /// Which end.
    pub role: Role,
    /// The other end: its instance or anonymous id; none for ends that are gone.
    pub peer: ServiceId,
    /// The name that it serves, or none.
    pub peer_name: ServiceId,
    /// Its process.
    pub peer_pid: u32,
    /// The instance that serves on the channel.
    pub dest: ServiceId,
    /// Its name.
    pub dest_name: ServiceId,
    /// Its session, on an encrypted channel whose handshake is done.
    pub session: Option<SessionStats>,
    /// What it counted.
    pub stats: Stats,
}

impl EndStats {
    /// Tells whether the channel leads to this service, or this is at its other end.
    pub fn concerns(&self, id: ServiceId) -> bool {
        [self.peer, self.peer_name, self.dest, self.dest_name].contains(&id)
    }
}

/// One segment of a board.
#[derive(Debug)]
pub struct BoardView {
    /// The inode of its memfd: as long as it is mapped no other has it.
    pub(crate) inode: u64,
    segment: Segment,
}

impl BoardView {
    pub(super) fn new(inode: u64, segment: Segment) -> BoardView {
        BoardView { inode, segment }
    }

    fn ends(&self) -> Vec<EndStats> {
        self.segment.slots().filter_map(read).collect()
    }
}

/// The board of a node, as the runtime handed it over. All that it says is that process's word:
/// checked for form, and never believed beyond itself.
#[derive(Debug)]
pub struct Board {
    /// Whose it is: the anonymous id of its connection. The runtime says so.
    pub node: ServiceId,
    /// Its process. The kernel proved it.
    pub pid: u32,
    /// In order, from the first.
    pub(crate) segments: Vec<BoardView>,
}

impl Board {
    /// Reads what each end counts. Takes no lock and makes no system call, and does not disturb
    /// who writes.
    pub fn ends(&self) -> Vec<EndStats> {
        let Some(first) = self.segments.first() else { return Vec::new() };
        let moving = &first.segment.header().moving;
        let mut ends = Vec::new();
        for _ in 0..TRIES {
            let before = moving.load(Ordering::Acquire);
            ends = self.segments.iter().flat_map(BoardView::ends).collect();
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && moving.load(Ordering::Relaxed) == before {
                break;
            }
        }
        ends
    }

    /// Reads what was done for traced requests: the last 510 spans, in no order.
    pub fn spans(&self) -> Vec<Span> {
        self.segments.iter().flat_map(|view| tape::read(&view.segment)).collect()
    }

    /// Reads what may be shown of the payloads of traced requests and of their answers, after
    /// [`Node::show_payloads`](crate::Node::show_payloads): the last 240, in no order.
    pub fn payloads(&self) -> Vec<Payload> {
        self.segments.iter().flat_map(|view| payloads::read(&view.segment)).collect()
    }
}

/// Reads a slot, if it is in use.
pub(super) fn read(slot: &Slot) -> Option<EndStats> {
    let it = &slot.identity;
    for _ in 0..TRIES {
        let generation = it.generation.load(Ordering::Acquire);
        if generation.is_multiple_of(2) {
            return None;
        }
        let id = |word: &crate::sync::AtomicU32| ServiceId::new(word.load(Ordering::Relaxed));
        let role = Role::from_number(it.role.load(Ordering::Acquire))?;
        let end = EndStats {
            channel: it.channel.load(Ordering::Relaxed),
            role,
            peer: id(&it.peer),
            peer_name: id(&it.peer_name),
            peer_pid: it.peer_pid.load(Ordering::Relaxed),
            dest: id(&it.dest),
            dest_name: id(&it.dest_name),
            session: slot.session(),
            stats: stats(slot),
        };
        fence(Ordering::Acquire);
        if it.generation.load(Ordering::Relaxed) == generation {
            return Some(end);
        }
    }
    None
}

pub(super) fn stats(slot: &Slot) -> Stats {
    let Slot { identity, sender, receiver, .. } = slot;
    let role = Role::from_number(identity.role.load(Ordering::Relaxed));
    let asked = if role.is_some_and(Role::serves) { &receiver.messages } else { &sender.messages };
    let counts = |scale| slot.counts(scale).iter().map(super::layout::Count::get);
    Stats {
        messages_sent: sender.messages.get(),
        bytes_sent: sender.bytes.get(),
        full: sender.full.get(),
        messages_received: receiver.messages.get(),
        bytes_received: receiver.bytes.get(),
        exchanges: asked.get(),
        errors: identity.errors.get(),
        drops: identity.drops.get(),
        spins: receiver.spins.get(),
        parks: receiver.parks.get(),
        depth: receiver.depth.get(),
        latency: Histogram::of(FINE, counts(FINE), receiver.latency_sum.get()),
        queued: Histogram::of(WHOLE, counts(WHOLE), receiver.queued_sum.get()),
    }
}
