//! What a queue is told and asked, and what it answers.

use std::sync::Arc;

use crate::record::Record;

/// Names a request that is to be answered, once.
pub type Ticket = u64;

/// What time it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_MONOTONIC`, in ns.
    pub mono_ns: u64,
    /// Unix time, in ms.
    pub wall_ms: u64,
}

impl Now {
    pub(super) fn after_ms(self, ms: u32) -> u64 {
        self.mono_ns.saturating_add(u64::from(ms) * 1_000_000)
    }
}

/// What a queue may hold, and how it treats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Messages, dead letters included.
    pub messages: u32,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Bytes of one payload.
    pub message_bytes: u32,
    /// How long a consumer has a message unless it asks for longer.
    pub lease_ms: u32,
    /// How often a message is given out before it is a dead letter.
    pub attempts: u32,
    /// Producers whose numbers are remembered.
    pub producers: u32,
    /// Requests that wait: for messages, and as many for room.
    pub waiting: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            messages: 10_000,
            bytes: 64 << 20,
            message_bytes: 1 << 20,
            lease_ms: 30_000,
            attempts: 5,
            producers: 1024,
            waiting: 1024,
        }
    }
}

/// A message that somebody wants stored.
#[derive(Clone, Debug)]
pub struct Put {
    /// 0: its sender wants no dedup.
    pub producer: u64,
    /// From 1, and ascending.
    pub sequence: u64,
    /// 0 to 4.
    pub priority: u8,
    /// Before it may be taken.
    pub delay_ms: u32,
    /// Until when it may wait for room; 0 for not at all.
    pub wait_until_ns: u64,
    /// What it says.
    pub payload: Arc<[u8]>,
}

/// A wish for messages.
#[derive(Clone, Copy, Debug)]
pub struct Take {
    /// Whom they are leased to.
    pub consumer: u64,
    /// How many at most.
    pub most: u32,
    /// Of how many bytes, beyond the first.
    pub bytes: u32,
    /// Until when it waits for the first; 0 for not at all.
    pub wait_until_ns: u64,
    /// Whether dead letters are meant.
    pub dead: bool,
}

/// What a consumer says of messages that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are done with.
    Ack,
    /// Somebody is to try again, after a while.
    Nack {
        /// After so long.
        delay_ms: u32,
    },
    /// It needs them for so long from now on.
    Extend {
        /// Instead of the queue's own lease.
        lease_ms: u32,
    },
    /// Nobody is to try again: they are dead letters.
    Bury,
    /// It has these and no others: what else was given to it never came.
    Hold,
}

/// What happens to a queue. `channel` is over what it was asked.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message comes.
    Put(Ticket, u64, Put),
    /// Somebody wants messages.
    Take(Ticket, u64, Take),
    /// A consumer is done with messages: by id and attempt.
    Settle(Ticket, u64, u64, Verdict, Vec<(u64, u32)>),
    /// A consumer goes; what it has is for others.
    Leave(Ticket, u64),
    /// A channel has ended, and whoever asked over it.
    Gone(u64),
    /// The first so many records that were ever appended are stored.
    Committed(u64),
    /// Those of the first so many that were not stored yet never will be.
    Failed(u64, Trouble),
    /// Dead letters are to be tried again, so many of them.
    Redrive(Ticket, u32),
    /// What nobody has is to go; with `true` the dead letters only.
    Purge(Ticket, bool),
    /// Messages are to be written down again: their segment is to be deleted.
    Move(Vec<u64>),
    /// Time passed.
    Tick,
}

/// Why something could not be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no room for it on the disk, or in memory.
    NoRoom,
    /// The disk failed. What is stored from now on is lost: nothing is stored any more.
    Broken,
}

/// Why a request is refused; nothing of it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The queue has as much as it may have.
    Full,
    /// The message is larger than any may be.
    TooLarge,
    /// The producer's number is too old to know whether it came.
    Stale,
    /// Too many wait already.
    Crowded,
    /// It could not be stored.
    Trouble(Trouble),
}

/// A message in a consumer's hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Of the message.
    pub id: u64,
    /// How often it was given out, with this time.
    pub attempt: u32,
    /// Its priority.
    pub priority: u8,
    /// Who sent it.
    pub producer: u64,
    /// That one's number for it.
    pub sequence: u64,
    /// What it says.
    pub payload: Arc<[u8]>,
}

/// What a consumer hears of a message that it has said something of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is done.
    Done = 0,
    /// It is not this consumer's any more; nothing was done.
    Lost = 1,
    /// There is no such message, any more perhaps.
    Gone = 2,
}

/// How a request ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is stored, under this id; or it was before (0).
    Stored(u64),
    /// These are leased to who asked; none if the time is over.
    Messages(Vec<Delivery>),
    /// For each message, what came of it.
    Settled(Vec<Told>),
    /// So many messages were meant.
    Count(u64),
    /// It was not done.
    Refused(Refusal),
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Append this to the log.
    Append(Record),
    /// Answer a request.
    Answer(Ticket, Answer),
}

/// How a queue stands, and what it did since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Messages that can be taken.
    pub ready: u64,
    /// Messages that wait for their time.
    pub delayed: u64,
    /// Messages that consumers have.
    pub leased: u64,
    /// Dead letters.
    pub dead: u64,
    /// Bytes of all payloads.
    pub bytes: u64,
    /// Requests that wait for messages.
    pub takers: u64,
    /// Requests that wait for room.
    pub putters: u64,
    /// Messages stored.
    pub stored: u64,
    /// Deliveries.
    pub delivered: u64,
    /// Acknowledgements.
    pub acked: u64,
    /// Messages that came back: nack, death, a lease that ended.
    pub returned: u64,
    /// Messages that became dead letters.
    pub died: u64,
    /// Messages that came once more, and were stored already.
    pub duplicates: u64,
    /// Refused for want of room.
    pub refused: u64,
}
