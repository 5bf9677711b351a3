//! The log of a queue: which record goes into which segment, and which segments are needed still.
//!
//! ```text
//!   0000000000000007        …8               …9 (this run's)
//!   ┌──────────────────┐┌──────────────────┐┌──────────────────┐
//!   │C PPPTGTG………000000││C PPTGB………00000000││C PMPT│→ 0000000000│
//!   └──────────────────┘└──────────────────┘└──────────────────┘
//!     deleted when all its messages are gone or moved: from the left, never from the middle
//! ```
//! A later segment may say that a message of an earlier one is gone, so none is deleted before
//! those to its left. Each begins with a checkpoint of what the deleted ones had said: the next
//! id, and the producers' windows; and with the same once more, since it is nowhere else. A run
//! appends to no segment of an earlier one.

pub mod files;
pub mod memory;
mod ring;

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::{
    identity::Secret,
    machine::{Now, Trouble},
    record::{FIRST, Place, Record, Stored, encode},
    scan::{HEADER, Header},
    windows::Windows,
};

/// Bytes of a segment, unless one record needs more.
pub const SEGMENT: u64 = 4 << 20;
/// Room at the end of a segment that new messages leave to what makes room: acknowledgements can
/// be stored where no further segment can be made.
const RESERVE: u64 = 64 << 10;
/// Segments kept before messages are moved out of the oldest, beside twice what they need.
const SLACK: u64 = 4;
/// Batches that a segment begins with: its checkpoint, twice.
const FIRST_BATCHES: u32 = 2;

/// What the records so far come to, as far as the log itself must know.
#[derive(Debug)]
pub struct Ledger {
    next_id: u64,
    windows: Windows,
    /// The segment with a message, and its bytes there.
    homes: HashMap<u64, (u64, u64)>,
    /// Messages by the segment that has them; each segment is in it.
    live: BTreeMap<u64, u64>,
    live_bytes: u64,
    /// No segment gets this number, or a lower one.
    taken: u64,
    /// Of the queue, once it has one.
    secret: Option<Secret>,
}

impl Ledger {
    /// Starts with nothing.
    pub fn new(producers: u32) -> Ledger {
        Ledger {
            next_id: 1,
            windows: Windows::new(producers as usize),
            homes: HashMap::new(),
            live: BTreeMap::new(),
            live_bytes: 0,
            taken: 0,
            secret: None,
        }
    }

    /// Notes a segment that cannot be read, once those that can have been noted: its number is
    /// given to no other, and neither is any id that it may have given.
    pub fn pass_over(&mut self, segment: u64, now: Now) {
        self.taken = self.taken.max(segment);
        // A later one that can be read knows what ids there were.
        if self.live.last_key_value().is_none_or(|(last, _)| *last < segment) {
            // No queue gives more than one id in a microsecond, for years.
            self.next_id = self.next_id.max(now.wall_ms.saturating_mul(1000));
        }
    }

    /// Notes that so many more ids may have been given: in the last segment, which is damaged.
    pub fn skip_ids(&mut self, ids: u64) {
        self.next_id = self.next_id.saturating_add(ids);
    }

    /// Gives the queue's secret; draws it where no segment has one.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn secret(&mut self) -> Result<Secret, getrandom::Error> {
        match self.secret {
            Some(secret) => Ok(secret),
            None => Ok(*self.secret.insert(Secret::draw()?)),
        }
    }

    /// Gives the id that the next message has.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Notes that there is such a segment.
    pub fn begin(&mut self, segment: u64) {
        self.live.entry(segment).or_default();
    }

    /// Notes a record that is stored in a segment.
    pub fn note(&mut self, record: &Record, segment: u64) {
        match record {
            Record::Checkpoint { next_id, windows } => {
                self.next_id = self.next_id.max(*next_id);
                for (producer, window) in windows {
                    self.windows.restore(*producer, *window);
                }
            }
            Record::Put(stored) => {
                if stored.producer != 0 {
                    self.windows.mark(stored.producer, stored.sequence);
                }
                self.settle_in(stored, record.bytes() as u64, segment);
            }
            Record::Moved(stored) => self.settle_in(stored, record.bytes() as u64, segment),
            Record::Gone { ids } => ids.iter().for_each(|id| self.move_out(*id)),
            Record::Secret(secret) => self.secret = Some(*secret),
            Record::Taken { .. }
            | Record::Back { .. }
            | Record::Dead { .. }
            | Record::Redriven { .. } => {}
        }
    }

    fn settle_in(&mut self, stored: &Stored, bytes: u64, segment: u64) {
        self.next_id = self.next_id.max(stored.id + 1);
        self.move_out(stored.id);
        self.homes.insert(stored.id, (segment, bytes));
        self.live_bytes += bytes;
        *self.live.entry(segment).or_default() += 1;
    }

    fn move_out(&mut self, id: u64) {
        if let Some((segment, bytes)) = self.homes.remove(&id) {
            self.live_bytes -= bytes;
            if let Some(count) = self.live.get_mut(&segment) {
                *count -= 1;
            }
        }
    }

    /// What each segment begins with.
    fn beginning(&self) -> Vec<Record> {
        let windows = self.windows.all();
        let mut beginning = vec![Record::Checkpoint { next_id: self.next_id, windows }];
        beginning.extend(self.secret.map(Record::Secret));
        beginning
    }
}

/// Records as bytes, for one place of one segment.
#[derive(Debug)]
pub struct Chunk {
    /// Where in the segment.
    pub offset: u64,
    /// All of them.
    pub bytes: Vec<u8>,
    records: Vec<Record>,
    batches: u32,
}

/// A segment that is to be made: these bytes, then zeros.
#[derive(Debug)]
pub struct Blueprint {
    /// Its header.
    pub header: Header,
    /// What it begins with.
    pub bytes: Vec<u8>,
}

/// How far a commit came: so many records are stored; the rest never will be, if something is
/// said.
pub type Outcome = (u64, Option<Trouble>);

/// Which record goes where.
#[derive(Debug)]
pub struct Log {
    ledger: Ledger,
    segment_bytes: u64,
    /// Whether a segment's records may come to last in another order than they were written in.
    may_tear: bool,
    current: Option<Current>,
    next_number: u64,
    /// Messages of that segment are to be written again, and are under way.
    moving: Option<u64>,
    /// Bytes of the latest segment that are for no messages.
    overhead: u64,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    header: Header,
    offset: u64,
    batch: u32,
}

impl Log {
    /// Goes on behind what was found.
    pub fn new(ledger: Ledger, segment_bytes: u64, may_tear: bool) -> Log {
        let last = ledger.live.last_key_value().map_or(0, |(last, _)| *last);
        let next_number = last.max(ledger.taken) + 1;
        Log {
            ledger,
            segment_bytes,
            may_tear,
            current: None,
            next_number,
            moving: None,
            overhead: 0,
        }
    }

    /// Lays out those of the records that fit into the segment at hand. None does where there is
    /// nothing: another segment is to be made first.
    pub fn lay_out(&mut self, records: &mut VecDeque<Record>) -> Option<Chunk> {
        let current = self.current?;
        let mut chunk =
            Chunk { offset: current.offset, bytes: Vec::new(), records: Vec::new(), batches: 0 };
        while let Some(record) = records.pop_front() {
            let offset = current.offset + chunk.bytes.len() as u64;
            let reserve = if leaves_reserve(&record) { RESERVE } else { 0 };
            if offset + record.bytes() as u64 + reserve > current.header.end_of_records() {
                records.push_front(record);
                break;
            }
            let is_first = chunk.records.is_empty() || !self.may_tear;
            chunk.batches += u32::from(is_first);
            let batch = current.batch + chunk.batches;
            let flags = if is_first { FIRST } else { 0 };
            let place = Place { salt: current.header.salt, offset };
            encode(&record, batch, flags, place, &mut chunk.bytes);
            chunk.records.push(record);
        }
        (!chunk.records.is_empty()).then_some(chunk)
    }

    /// Designs the next segment, with room for that record.
    pub fn design(&self, first: &Record, salt: u64) -> Blueprint {
        let beginning = self.ledger.beginning();
        let beginning_bytes: usize = beginning.iter().map(Record::bytes).sum();
        let needed = 2 * (HEADER + beginning_bytes) + first.bytes();
        let bytes = self.segment_bytes.max((needed as u64 + RESERVE).next_multiple_of(4096));
        let header = Header { number: self.next_number, salt, bytes };
        let mut bytes = header.encode().to_vec();
        for batch in 1..=FIRST_BATCHES {
            for record in &beginning {
                let place = Place { salt, offset: bytes.len() as u64 };
                encode(record, batch, FIRST, place, &mut bytes);
            }
        }
        Blueprint { header, bytes }
    }

    /// The segment is there; what comes goes into it.
    pub fn made(&mut self, blueprint: &Blueprint) {
        let header = blueprint.header;
        self.ledger.begin(header.number);
        self.next_number = header.number + 1;
        let offset = blueprint.bytes.len() as u64;
        self.overhead = offset + HEADER as u64 + RESERVE;
        self.current = Some(Current { header, offset, batch: FIRST_BATCHES });
    }

    /// The chunk is stored; gives how many records that were.
    pub fn stored(&mut self, chunk: &Chunk) -> u64 {
        if let Some(current) = &mut self.current {
            current.offset = chunk.offset + chunk.bytes.len() as u64;
            current.batch += chunk.batches;
            let number = current.header.number;
            chunk.records.iter().for_each(|record| self.ledger.note(record, number));
        }
        chunk.records.len() as u64
    }

    /// Nothing more goes into the segment at hand.
    pub fn give_up_segment(&mut self) {
        self.current = None;
    }

    /// Gives the segment at hand.
    pub fn current(&self) -> Option<u64> {
        self.current.map(|it| it.header.number)
    }

    /// Takes out the oldest segment, if nothing of it is needed any more.
    pub fn take_needless(&mut self) -> Option<u64> {
        let (&number, &live) = self.ledger.live.first_key_value()?;
        // The last one has the ids, the windows and the secret; the next is not there yet.
        if live > 0 || self.current().is_none_or(|current| current == number) {
            return None;
        }
        self.ledger.live.remove(&number);
        if self.moving == Some(number) {
            self.moving = None;
        }
        Some(number)
    }

    /// Gives the messages that keep the oldest segment from being deleted, once, if there are too
    /// many segments for what is in them.
    pub fn to_move(&mut self) -> Vec<u64> {
        let Some((&oldest, _)) = self.ledger.live.first_key_value() else { return Vec::new() };
        // What fits into a segment beside its beginning; at least one message does. Fewer than
        // twice as many segments come of packing, so moving ends.
        let room = self.segment_bytes.saturating_sub(self.overhead);
        let messages = self.ledger.homes.len() as u64;
        let full = self.ledger.live_bytes.checked_div(room).map_or(messages, |it| it + 1);
        let needed = 2 * full.min(messages) + SLACK;
        let is_moving = self.moving == Some(oldest) || self.current() == Some(oldest);
        if is_moving || self.ledger.live.len() as u64 <= needed {
            return Vec::new();
        }
        self.moving = Some(oldest);
        let there = self.ledger.homes.iter().filter(|(_, (home, _))| *home == oldest);
        let mut ids: Vec<u64> = there.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// Counts the segments.
    pub fn segments(&self) -> usize {
        self.ledger.live.len()
    }
}

/// What makes room may use what is left of a segment.
fn leaves_reserve(record: &Record) -> bool {
    !matches!(record, Record::Gone { .. })
}

/// Draws a segment's salt.
fn salt() -> u64 {
    // Without random bytes, what remains is still another number for each segment in time.
    getrandom::u64().unwrap_or_else(|_| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |it| it.as_nanos() as u64)
    })
}

#[cfg(test)]
mod tests;
