//! A subscriber's side of a ring: a cursor of its own, over words that their writer may change at
//! any time, and may never have written honestly.

use super::{
    Start,
    layout::{ALIGN, CLOSED, NOTHING, PAD, RECORD_HEAD, longest, record_bytes},
    memory::Ring,
};
use crate::sync::{AtomicU64, Ordering, fence};

/// Looks for the oldest record while its writer overtakes us, before we leap to the newest.
const TRIES: u32 = 4;

/// Where a subscriber is in one ring.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    position: u64,
    /// Number of the next event.
    expected: u64,
    /// Whether the writer has overtaken us: the next event's number says by how much.
    overrun: bool,
    /// Whether the next event's number is not known yet.
    fresh: bool,
    /// Whether an event was read, or missed.
    begun: bool,
}

/// What is known of an event besides its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) sequence: u64,
    pub(crate) at_ns: u64,
}

/// Why there is no event where one was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    /// None has come yet.
    Empty,
    /// None comes any more.
    Closed,
    /// So many were overwritten unread.
    Lagged(u64),
    /// The ring is not what an honest publisher writes.
    Corrupt,
}

/// A record as it is alleged to be.
#[derive(Clone, Copy)]
struct Record {
    length: u64,
    size: u64,
    is_pad: bool,
    head: Head,
}

/// Why a record cannot be had.
enum Fail {
    Overrun,
    Corrupt,
}

impl Cursor {
    /// Begins where it is said to; a ring without events, at its beginning.
    ///
    /// # Errors
    /// [`Miss::Corrupt`].
    pub(crate) fn start(ring: &Ring, start: Start) -> Result<Cursor, Miss> {
        let header = ring.header();
        loop {
            // After `last` the head is at least behind it.
            let last = header.last.load(Ordering::Acquire);
            if last == NOTHING {
                let expected = header.first.load(Ordering::Relaxed);
                return Ok(Cursor {
                    position: 0,
                    expected,
                    overrun: false,
                    fresh: false,
                    begun: false,
                });
            }
            match Cursor::around(ring, last, start) {
                Ok(cursor) => return Ok(cursor),
                Err(Fail::Corrupt) => return Err(Miss::Corrupt),
                // The newest record is overwritten: there is a newer one by now. Whoever writes
                // so fast only delays us while it goes on with it; a liar is found out.
                Err(Fail::Overrun) if header.last.load(Ordering::Acquire) == last => {
                    return Err(Miss::Corrupt);
                }
                Err(Fail::Overrun) => {}
            }
        }
    }

    fn around(ring: &Ring, last: u64, start: Start) -> Result<Cursor, Fail> {
        let newest = record(ring, last, ring.capacity())?;
        check(ring, last)?;
        let next = newest.head.sequence.wrapping_add(1);
        let at = |position, expected| Cursor {
            position,
            expected,
            overrun: false,
            fresh: false,
            begun: false,
        };
        let wanted = match start {
            Start::Now | Start::Retained(0) => return Ok(at(last.wrapping_add(newest.size), next)),
            Start::Last | Start::Retained(1) => return Ok(at(last, newest.head.sequence)),
            Start::Retained(wanted) => wanted,
        };
        let mut position = ring.header().horizon.load(Ordering::Acquire);
        while position < last {
            let it = record(ring, position, last - position)?;
            check(ring, position)?;
            if !it.is_pad && next.wrapping_sub(it.head.sequence) <= wanted {
                return Ok(at(position, it.head.sequence));
            }
            position = position.wrapping_add(it.size);
        }
        Ok(at(last, newest.head.sequence))
    }

    /// Begins with the first event that the ring ever had, to miss none, or to know how many.
    #[cfg_attr(loom, allow(dead_code))]
    pub(crate) fn origin(ring: &Ring) -> Cursor {
        let expected = ring.header().first.load(Ordering::Relaxed);
        Cursor { position: 0, expected, overrun: false, fresh: false, begun: false }
    }

    /// Begins at a record that its publisher keeps.
    #[cfg_attr(loom, allow(dead_code))]
    pub(crate) fn at(position: u64) -> Cursor {
        Cursor { position, expected: 0, overrun: false, fresh: true, begun: false }
    }

    /// Whether there may be something to read, or to learn.
    #[inline]
    pub(crate) fn is_behind(&self, ring: &Ring) -> bool {
        ring.header().head.load(Ordering::Acquire) != self.position
            || ring.header().state.load(Ordering::Relaxed) == CLOSED
    }

    /// Whether it is where it began.
    #[cfg_attr(loom, allow(dead_code))]
    pub(crate) fn has_read_nothing(&self) -> bool {
        !self.begun
    }

    /// The position of the next record.
    #[cfg_attr(loom, allow(dead_code))]
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Reads the next event to the end of `payload`.
    ///
    /// # Errors
    /// [`Miss`]; `payload` is as it was. After [`Miss::Lagged`] it goes on with the oldest event
    /// that is left.
    #[inline]
    pub(crate) fn next(&mut self, ring: &Ring, payload: &mut Vec<u8>) -> Result<Head, Miss> {
        let length = payload.len();
        let mut tries = 0;
        loop {
            match self.step(ring, payload) {
                Ok(Some(head)) => return Ok(head),
                Ok(None) => {}
                Err(Step::Miss(miss)) => {
                    payload.truncate(length);
                    return Err(miss);
                }
                Err(Step::Overrun) => {
                    payload.truncate(length);
                    self.overrun = true;
                    tries += 1;
                    self.resume(ring, tries)?;
                }
            }
        }
    }

    /// One record: an event, or nothing when it was the way to the ring's start.
    #[inline]
    fn step(&mut self, ring: &Ring, payload: &mut Vec<u8>) -> Result<Option<Head>, Step> {
        let header = ring.header();
        let mut head = header.head.load(Ordering::Acquire);
        if head == self.position {
            if header.state.load(Ordering::Acquire) != CLOSED {
                return Err(Step::Miss(Miss::Empty));
            }
            // What came before the end was there before it was said.
            head = header.head.load(Ordering::Acquire);
            if head == self.position {
                return Err(Step::Miss(Miss::Closed));
            }
        }
        let ahead = head.wrapping_sub(self.position);
        if ahead > ring.capacity() {
            // Overtaken, if it is true: then the horizon, which was there before the head, says so.
            check(ring, self.position)?;
            return Err(Step::Miss(Miss::Corrupt));
        }
        let it = record(ring, self.position, ahead)?;
        if !it.is_pad {
            let place = place(ring, self.position) + (RECORD_HEAD / 8) as usize;
            copy(&ring.words()[place..], it.length as usize, payload);
        }
        check(ring, self.position)?;
        if it.is_pad {
            self.position = self.position.wrapping_add(it.size);
            return Ok(None);
        }
        if std::mem::take(&mut self.fresh) {
            self.expected = it.head.sequence;
        }
        let missed = it.head.sequence.wrapping_sub(self.expected);
        if missed != 0 {
            let is_lag = self.overrun && missed < 1 << 63;
            self.expected = it.head.sequence;
            self.overrun = false;
            return Err(Step::Miss(if is_lag { Miss::Lagged(missed) } else { Miss::Corrupt }));
        }
        self.overrun = false;
        self.begun = true;
        self.expected = it.head.sequence.wrapping_add(1);
        self.position = self.position.wrapping_add(it.size);
        Ok(Some(it.head))
    }

    /// Goes to the oldest record that is left, or, where the writer is as fast as we are, to the
    /// end.
    fn resume(&mut self, ring: &Ring, tries: u32) -> Result<(), Miss> {
        let header = ring.header();
        let horizon = header.horizon.load(Ordering::Acquire);
        let head = header.head.load(Ordering::Acquire);
        let is_true = head.wrapping_sub(horizon) <= ring.capacity()
            && horizon.wrapping_sub(self.position) < 1 << 63
            && horizon.is_multiple_of(ALIGN)
            && head.is_multiple_of(ALIGN);
        // The head is loaded after the horizon, and may have gone on by more than a ring.
        if !is_true && header.horizon.load(Ordering::Acquire) == horizon {
            return Err(Miss::Corrupt);
        }
        self.position = if tries < TRIES { horizon } else { head };
        if tries > 2 * TRIES {
            return Err(Miss::Empty);
        }
        Ok(())
    }
}

enum Step {
    Miss(Miss),
    Overrun,
}

impl From<Fail> for Step {
    fn from(fail: Fail) -> Step {
        match fail {
            Fail::Overrun => Step::Overrun,
            Fail::Corrupt => Step::Miss(Miss::Corrupt),
        }
    }
}

fn place(ring: &Ring, position: u64) -> usize {
    (position & (ring.capacity() - 1)) as usize / 8
}

/// Reads a record's head, each word once, and checks that it lies within `ahead` bytes and the
/// ring.
#[inline]
fn record(ring: &Ring, position: u64, ahead: u64) -> Result<Record, Fail> {
    if !position.is_multiple_of(ALIGN) {
        return Err(Fail::Corrupt);
    }
    let left = ring.capacity() - (position & (ring.capacity() - 1));
    let words = &ring.words()[place(ring, position)..][..(RECORD_HEAD / 8) as usize];
    let first = words[0].load(Ordering::Relaxed);
    let sequence = words[1].load(Ordering::Relaxed);
    let at_ns = words[2].load(Ordering::Relaxed);
    let length = first & u64::from(u32::MAX);
    let (is_pad, fits) = match first & !u64::from(u32::MAX) {
        0 => (false, length <= longest(ring.capacity())),
        PAD => (true, length == left),
        _ => (false, false),
    };
    let size = if is_pad { length } else { record_bytes(length) };
    if !fits || size > left || size > ahead {
        // What was overwritten may be anything.
        check(ring, position)?;
        return Err(Fail::Corrupt);
    }
    Ok(Record { length, size, is_pad, head: Head { sequence, at_ns } })
}

/// Makes sure that what was read at a position had not been overwritten.
#[inline]
fn check(ring: &Ring, position: u64) -> Result<(), Fail> {
    fence(Ordering::Acquire);
    // Acquire for who goes on from here: what was published before the horizon moved is there.
    let horizon = ring.header().horizon.load(Ordering::Acquire);
    if horizon > position { Err(Fail::Overrun) } else { Ok(()) }
}

/// Appends `length` bytes out of shared words to private memory.
#[inline]
fn copy(words: &[AtomicU64], length: usize, payload: &mut Vec<u8>) {
    payload.reserve(length.next_multiple_of(8));
    let target = payload.len();
    payload.resize(target + length, 0);
    let (whole, rest) = payload[target..].as_chunks_mut::<8>();
    for (chunk, word) in whole.iter_mut().zip(words) {
        *chunk = word.load(Ordering::Relaxed).to_le_bytes();
    }
    if !rest.is_empty() {
        let last = words[whole.len()].load(Ordering::Relaxed).to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}
