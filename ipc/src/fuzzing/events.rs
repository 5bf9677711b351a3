//! A ring of events whose writer is honest at times, and subscribers that have to find out when.

use std::sync::Arc;

use crate::{
    bus::{Cursor, Ring, Start, Writer, layout},
    sync::Ordering,
};

/// Bytes of the ring.
const CAPACITY: u64 = 4096;
/// The longest event that such a ring has.
pub const MOST_EVENT: usize = layout::longest(CAPACITY) as usize;

/// A ring that anybody may write, and the cursors that read it.
#[derive(Debug)]
pub struct FalseRing {
    ring: Arc<Ring>,
    writer: Writer,
    cursors: Vec<Cursor>,
}

impl Default for FalseRing {
    fn default() -> FalseRing {
        FalseRing::new()
    }
}

impl FalseRing {
    /// Makes an empty one, with a cursor that awaits its first event.
    pub fn new() -> FalseRing {
        let ring = Ring::heap(CAPACITY, 0);
        let writer = Writer::new(Arc::clone(&ring));
        let cursors = vec![Cursor::origin(&ring)];
        FalseRing { ring, writer, cursors }
    }

    /// Has the writer, which believes nothing of what stands there but its own lengths, publish;
    /// after a lie about one of these it is a new writer of the same ring.
    pub fn publish(&mut self, payload: &[u8]) {
        let plan = self.writer.plan(payload.len() as u64);
        self.writer.write(plan, 1, payload);
    }

    /// Writes a word of the records that the writer has not to read again: from here on it is a
    /// fresh one, at the beginning.
    pub fn write(&mut self, place: usize, value: u64) {
        let words = self.ring.words();
        words[place % words.len()].store(value, Ordering::Relaxed);
        self.writer = Writer::new(Arc::clone(&self.ring));
    }

    /// Writes a word of the header.
    pub fn head(&self, which: u8, value: u64) {
        let header = self.ring.header();
        match which % 5 {
            0 => header.head.store(value, Ordering::Relaxed),
            1 => header.last.store(value, Ordering::Relaxed),
            2 => header.horizon.store(value, Ordering::Relaxed),
            3 => header.first.store(value, Ordering::Relaxed),
            _ => header.state.store(value as u32, Ordering::Relaxed),
        }
    }

    /// Begins another cursor, of at most eight.
    pub fn begin(&mut self, which: u8, count: u64) {
        let start = match which % 4 {
            0 => Start::Now,
            1 => Start::Last,
            _ => Start::Retained(count),
        };
        self.cursors.truncate(7);
        self.cursors.extend(Cursor::start(&self.ring, start));
    }

    /// Reads with each cursor up to so many times; the lengths of what came.
    ///
    /// # Panics
    /// When what could not be read leaves something behind.
    pub fn read(&mut self, most: usize) -> Vec<usize> {
        let mut lengths = Vec::new();
        for cursor in &mut self.cursors {
            for _ in 0..most {
                let mut payload = Vec::new();
                match cursor.next(&self.ring, &mut payload) {
                    Ok(_) => lengths.push(payload.len()),
                    Err(_) => assert!(payload.is_empty()),
                }
            }
        }
        lengths
    }
}
