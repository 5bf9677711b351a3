//! A window's records in memory that a successor can read after its writer's death.
//!
//! ```text
//!  0        8          12         16       24       32                    64
//!  ┌────────┬──────────┬──────────┬────────┬────────┬─────────────────────┬──────────────┐
//!  │ magic  │ version  │ 0        │ tail   │ head   │ 0                   │ records …    │
//!  └────────┴──────────┴──────────┴────────┴────────┴─────────────────────┴──────────────┘
//!  a record, at a multiple of 8:
//!  0        4      6      8        12       16              32
//!  ┌────────┬──────┬──────┬────────┬────────┬───────────────┬───────────────────────────┐
//!  │ length │ kind │ 0    │ status │ 0      │ key           │ answer, padded to 8       │
//!  └────────┴──────┴──────┴────────┴────────┴───────────────┴───────────────────────────┘
//! ```
//!
//! `tail` and `head` are positions that only grow; a position's place is its remainder by the
//! bytes for records. What lies between them is whole at any moment: the writer moves `tail` on
//! before it writes over anything, and `head` after it wrote, each with `Release`. So whatever
//! instant it dies at, its successor finds every record that it finished.

use super::{Answer, Limits, RequestKey, Window};
use crate::{Region, error::Status, failpoint::shared};

const MAGIC: u64 = u64::from_le_bytes(*b"iponce\0\x01");
const VERSION: u32 = 1;
const TAIL: usize = 16;
const HEAD: usize = 24;
const RECORDS: usize = 64;
const RECORD: usize = 32;

/// Fills what is left before the end.
const PAD: u16 = 0;
const BEGUN: u16 = 1;
const DONE: u16 = 2;

/// Memory that one process writes and another may read: a [`Region`] that is granted to the
/// standbys, or the process's own.
///
/// Every access must be sound whatever the other process does.
pub trait Memory {
    /// Bytes of it.
    fn size(&self) -> usize;

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`LogError::Gone`] where there is no such memory, or no more.
    fn read(&self, at: usize, into: &mut [u8]) -> Result<(), LogError>;

    /// Copies bytes in.
    ///
    /// # Errors
    /// As for [`read`](Memory::read).
    fn write(&self, at: usize, bytes: &[u8]) -> Result<(), LogError>;

    /// Loads a word, at a multiple of 8, with `Acquire`.
    ///
    /// # Errors
    /// As for [`read`](Memory::read).
    fn load(&self, at: usize) -> Result<u64, LogError>;

    /// Stores a word, at a multiple of 8, with `Release`, in one piece.
    ///
    /// # Errors
    /// As for [`read`](Memory::read).
    fn store(&self, at: usize, word: u64) -> Result<(), LogError>;
}

impl Memory for Region {
    fn size(&self) -> usize {
        Region::size(self)
    }

    fn read(&self, at: usize, into: &mut [u8]) -> Result<(), LogError> {
        self.read_at(at, into).map_err(|_| LogError::Gone)
    }

    fn write(&self, at: usize, bytes: &[u8]) -> Result<(), LogError> {
        self.write_at(at, bytes).map_err(|_| LogError::Gone)
    }

    fn load(&self, at: usize) -> Result<u64, LogError> {
        Region::load(self, at).map_err(|_| LogError::Gone)
    }

    fn store(&self, at: usize, word: u64) -> Result<(), LogError> {
        Region::store(self, at, word).map_err(|_| LogError::Gone)
    }
}

/// Why a log cannot be made, written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The memory is too small for any record.
    #[error("{0} bytes are too small for a log of answers: give it 4096 or more")]
    Small(usize),
    /// An answer is too long for this memory.
    #[error("an answer of {size} bytes is too long for this log: it keeps up to {limit}")]
    TooLarge {
        /// Bytes of the answer.
        size: usize,
        /// The most that it keeps.
        limit: usize,
    },
    /// It is no log, or one of another version.
    #[error("this memory holds no log of answers of version {VERSION}")]
    Foreign,
    /// The memory is not there any more, or not to be written.
    #[error("the memory of this log of answers is gone, or read-only")]
    Gone,
    /// Its words contradict each other.
    #[error("the log of answers is corrupt at position {0}")]
    Corrupt(u64),
}

/// Writes records.
#[derive(Debug)]
pub struct Log<M> {
    memory: M,
    room: u64,
    tail: u64,
    head: u64,
}

/// Bytes for records in memory of that size.
fn room(size: usize) -> Result<u64, LogError> {
    let room = size.saturating_sub(RECORDS) & !7;
    if room < 8 * RECORD { Err(LogError::Small(size)) } else { Ok(room as u64) }
}

/// The first words of a record: of which kind, with how many bytes after it.
struct Head {
    length: u32,
    kind: u16,
    status: i32,
}

impl Head {
    fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.status.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; 16]) -> Head {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| bytes[at + n]));
        Head { length: word(0), kind: word(4) as u16, status: word(8) as i32 }
    }

    /// Bytes that the record takes, itself included.
    fn span(&self) -> u64 {
        RECORD as u64 + u64::from(self.length).next_multiple_of(8)
    }
}

impl<M: Memory> Log<M> {
    /// Begins an empty log in memory that only this process writes.
    ///
    /// # Errors
    /// [`LogError::Small`], [`LogError::Gone`].
    pub fn create(memory: M) -> Result<Log<M>, LogError> {
        let room = room(memory.size())?;
        memory.write(8, &VERSION.to_le_bytes())?;
        memory.store(TAIL, 0)?;
        memory.store(HEAD, 0)?;
        memory.store(0, MAGIC)?;
        Ok(Log { memory, room, tail: 0, head: 0 })
    }

    /// The longest answer that it keeps, in bytes.
    pub fn longest(&self) -> usize {
        (self.room / 4) as usize - RECORD
    }

    /// Notes that a request is about to be carried out.
    ///
    /// # Errors
    /// [`LogError::Gone`].
    pub fn begin(&mut self, key: &RequestKey) -> Result<(), LogError> {
        self.append(&Head { length: 0, kind: BEGUN, status: 0 }, key, &[])
    }

    /// Notes how a request was answered. When this returns, a successor will find it.
    ///
    /// # Errors
    /// [`LogError::TooLarge`], [`LogError::Gone`]; nothing was noted.
    pub fn finish(&mut self, key: &RequestKey, answer: &Answer) -> Result<(), LogError> {
        let (status, payload) = match answer {
            Ok(payload) => (Status::OK, &payload[..]),
            Err(status) => (*status, &[][..]),
        };
        if payload.len() > self.longest() {
            return Err(LogError::TooLarge { size: payload.len(), limit: self.longest() });
        }
        let length = payload.len() as u32;
        self.append(&Head { length, kind: DONE, status: status.code() }, key, payload)
    }

    /// Gives the memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    fn append(&mut self, head: &Head, key: &RequestKey, payload: &[u8]) -> Result<(), LogError> {
        let left = self.room - self.head % self.room;
        if head.span() > left {
            self.pad(left)?;
        }
        self.make_room(head.span())?;
        let at = self.place(self.head);
        let write = |at, bytes: &[u8]| shared!(LogRecord, self.memory.write(at, bytes));
        write(at, &head.encode())?;
        write(at + 16, &key.to_bytes())?;
        write(at + RECORD, payload)?;
        shared!(LogHead, self.memory.store(HEAD, self.head + head.span()))?;
        self.head += head.span();
        Ok(())
    }

    /// Fills what is left before the end: no record lies in two pieces. Less than a record's first
    /// words fill themselves.
    fn pad(&mut self, left: u64) -> Result<(), LogError> {
        self.make_room(left)?;
        if left >= RECORD as u64 {
            let length = (left - RECORD as u64) as u32;
            let pad = Head { length, kind: PAD, status: 0 };
            self.memory.write(self.place(self.head), &pad.encode())?;
        }
        shared!(LogHead, self.memory.store(HEAD, self.head + left))?;
        self.head += left;
        Ok(())
    }

    /// Moves the tail on, record by record, until so many bytes are free.
    fn make_room(&mut self, bytes: u64) -> Result<(), LogError> {
        let mut tail = self.tail;
        while self.head + bytes - tail > self.room {
            let left = self.room - tail % self.room;
            tail += if left < RECORD as u64 {
                left
            } else {
                read_head(&self.memory, self.place(tail))?.span()
            };
        }
        if tail != self.tail {
            shared!(LogTail, self.memory.store(TAIL, tail))?;
            self.tail = tail;
        }
        Ok(())
    }

    fn place(&self, position: u64) -> usize {
        RECORDS + (position % self.room) as usize
    }
}

fn read_head(memory: &impl Memory, at: usize) -> Result<Head, LogError> {
    let mut bytes = [0; 16];
    memory.read(at, &mut bytes)?;
    Ok(Head::decode(bytes))
}

/// Reads the records of a process that writes no more.
///
/// # Errors
/// [`LogError`]; whatever is in the memory, it ends, and takes no more memory than the limits say.
pub fn recover(memory: &impl Memory, limits: Limits) -> Result<Window, LogError> {
    let room = room(memory.size())?;
    let mut version = [0; 4];
    memory.read(8, &mut version)?;
    if memory.load(0)? != MAGIC || version != VERSION.to_le_bytes() {
        return Err(LogError::Foreign);
    }
    let (mut at, end) = (memory.load(TAIL)?, memory.load(HEAD)?);
    if at % 8 != 0 || end % 8 != 0 || end.checked_sub(at).is_none_or(|bytes| bytes > room) {
        return Err(LogError::Corrupt(at));
    }
    let mut window = Window::new(limits);
    while at < end {
        let left = room - at % room;
        if left < RECORD as u64 {
            at += left;
            continue;
        }
        let place = RECORDS + (at % room) as usize;
        let head = read_head(memory, place)?;
        if head.span() > left.min(end - at) {
            return Err(LogError::Corrupt(at));
        }
        if !take_in(&mut window, memory, place, &head)? {
            return Err(LogError::Corrupt(at));
        }
        at += head.span();
    }
    if at != end {
        return Err(LogError::Corrupt(at));
    }
    // What came before all that is here may be what the ring had no room for any more.
    window.close_below();
    Ok(window)
}

/// Takes a record in. Returns whether it is one.
fn take_in(
    window: &mut Window,
    memory: &impl Memory,
    place: usize,
    head: &Head,
) -> Result<bool, LogError> {
    let mut key = [0; RequestKey::BYTES];
    memory.read(place + 16, &mut key)?;
    let key = RequestKey::from_bytes(&key);
    match (head.kind, Status::from_code(head.status)) {
        (PAD, _) => {}
        (BEGUN, _) => recall(window, key),
        (DONE, Status::OK) => {
            let mut payload = vec![0; head.length as usize];
            memory.read(place + RECORD, &mut payload)?;
            // Its beginning may have been overwritten.
            recall(window, key);
            window.finish(key, Ok(payload));
        }
        (DONE, status) if status.code() < 0 => {
            recall(window, key);
            window.finish(key, Err(status));
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Takes in that a request was begun. Its caller may never come to this process: until it does
/// it makes room for others.
fn recall(window: &mut Window, key: RequestKey) {
    window.begin(key);
    window.depart(key.client);
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        panic::{self, AssertUnwindSafe},
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{Priority, ServiceId, once::Known};

    /// Memory whose writer dies before one of its stores.
    #[derive(Debug)]
    struct Mortal {
        bytes: RefCell<Vec<u8>>,
        stores_left: RefCell<usize>,
    }

    impl Mortal {
        fn new(size: usize, stores: usize) -> Mortal {
            Mortal { bytes: RefCell::new(vec![0; size]), stores_left: RefCell::new(stores) }
        }

        /// Counts a store; unwinds to where the writer began when it was the last.
        fn live(&self) {
            let left = self.stores_left.borrow().saturating_sub(1);
            self.stores_left.replace(left);
            if left == 0 {
                panic::resume_unwind(Box::new("died"));
            }
        }
    }

    impl Memory for &Mortal {
        fn size(&self) -> usize {
            self.bytes.borrow().len()
        }

        fn read(&self, at: usize, into: &mut [u8]) -> Result<(), LogError> {
            into.copy_from_slice(&self.bytes.borrow()[at..at + into.len()]);
            Ok(())
        }

        fn write(&self, at: usize, bytes: &[u8]) -> Result<(), LogError> {
            for (offset, byte) in bytes.iter().enumerate() {
                self.live();
                self.bytes.borrow_mut()[at + offset] = *byte;
            }
            Ok(())
        }

        fn load(&self, at: usize) -> Result<u64, LogError> {
            let mut word = [0; 8];
            self.read(at, &mut word)?;
            Ok(u64::from_le_bytes(word))
        }

        fn store(&self, at: usize, word: u64) -> Result<(), LogError> {
            self.live();
            self.bytes.borrow_mut()[at..at + 8].copy_from_slice(&word.to_le_bytes());
            Ok(())
        }
    }

    fn key(id: u64) -> RequestKey {
        RequestKey::new(ServiceId::new(7), id, Priority::Normal)
    }

    fn answer(id: u64, length: usize) -> Answer {
        if length == 13 { Err(Status::FULL) } else { Ok(vec![id as u8; length]) }
    }

    /// Writes all, dying before one of the stores. Returns how many records were finished.
    fn write(memory: &Mortal, lengths: &[usize]) -> usize {
        let finished = Cell::new(0);
        let _ = panic::catch_unwind(AssertUnwindSafe(|| {
            let mut log = Log::create(memory).expect("room");
            for (id, &length) in lengths.iter().enumerate() {
                log.begin(&key(id as u64)).expect("there");
                log.finish(&key(id as u64), &answer(id as u64, length)).expect("not too long");
                finished.set(id + 1);
            }
        }));
        finished.get()
    }

    #[test]
    fn a_successor_knows_what_was_answered_and_what_was_begun() {
        let memory = Mortal::new(4096, usize::MAX);
        let mut log = Log::create(&memory).expect("room");
        log.begin(&key(1)).expect("there");
        log.finish(&key(1), &Ok(b"one".to_vec())).expect("short");
        log.begin(&key(2)).expect("there");
        let window = recover(log.memory(), Limits::default()).expect("whole");
        assert_eq!(window.look(&key(1)), Known::Done(&Ok(b"one".to_vec())));
        assert_eq!(window.look(&key(2)), Known::Begun);
        assert_eq!(window.look(&key(3)), Known::New);
    }

    #[test]
    fn what_the_ring_had_no_room_for_any_more_is_not_new() {
        let memory = Mortal::new(4096, usize::MAX);
        let mut log = Log::create(&memory).expect("room");
        log.begin(&key(1)).expect("there");
        for id in 2..=200 {
            log.begin(&key(id)).expect("there");
            log.finish(&key(id), &Ok(b"done".to_vec())).expect("short");
        }
        let window = recover(log.memory(), Limits::default()).expect("whole");
        assert_eq!(window.look(&key(1)), Known::Forgotten, "it may be half done");
        assert_eq!(window.look(&key(200)), Known::Done(&Ok(b"done".to_vec())));
        assert_eq!(window.look(&key(201)), Known::New);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(Log::create(&Mortal::new(100, 9)).err(), Some(LogError::Small(100)));
        let memory = Mortal::new(4096, usize::MAX);
        let mut log = Log::create(&memory).expect("room");
        let limit = log.longest();
        assert!(log.finish(&key(1), &Ok(vec![0; limit])).is_ok());
        let size = limit + 1;
        let too_long = log.finish(&key(1), &Ok(vec![0; size]));
        assert_eq!(too_long, Err(LogError::TooLarge { size, limit }));
        let empty = Mortal::new(4096, usize::MAX);
        assert_eq!(recover(&&empty, Limits::default()).err(), Some(LogError::Foreign));
    }

    proptest! {
        #[test]
        fn whatever_store_it_dies_before_nothing_finished_is_lost(
            lengths in prop::collection::vec(0_usize..60, 1..60),
            stores in 40_usize..4000,
        ) {
            // Small, so that it wraps: the last of them at least are there.
            let memory = Mortal::new(64 + 640, stores);
            let finished = write(&memory, &lengths);
            let window = recover(&&memory, Limits::default()).expect("whole at any moment");
            let finished = lengths.iter().enumerate().take(finished);
            for (id, &length) in finished.rev().take(2) {
                let expected = answer(id as u64, length);
                prop_assert_eq!(window.look(&key(id as u64)), Known::Done(&expected));
            }
            for (record, known) in window.records() {
                let id = record.message_id;
                if let Some(known) = known {
                    prop_assert_eq!(known, &answer(id, lengths[id as usize]));
                }
            }
        }

        #[test]
        fn any_bytes_are_a_window_or_an_error(
            mut bytes in prop::collection::vec(any::<u8>(), 400..800),
            tail: u8,
            length in 0_u64..900,
        ) {
            bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
            bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
            bytes[TAIL..TAIL + 8].copy_from_slice(&u64::from(tail).to_le_bytes());
            bytes[HEAD..HEAD + 8].copy_from_slice(&(u64::from(tail) + length).to_le_bytes());
            let memory = Mortal { bytes: RefCell::new(bytes), stores_left: RefCell::new(0) };
            let _ = recover(&&memory, Limits::default());
        }
    }
}
