//! The publisher's side of a ring: where a record goes, and in which order it becomes visible.
//!
//! ```text
//!  publisher                                 subscriber
//!  horizon = oldest that stays, Release      head, Acquire
//!  fence(Release)                 ─┐         copy the record, Relaxed
//!  the record's words, Relaxed    ─┼──────▶  fence(Acquire)
//!  head, Release                   └──────▶  horizon: past the record? then it is no record
//!  last, Release
//! ```
//! A subscriber whose copy has a single word of a later lap has passed, with its fence, the
//! publisher's, and sees a horizon behind which its record lies: what it copied is dropped.

use std::sync::Arc;

use super::{
    layout::{ALIGN, CLOSED, PAD, RECORD_HEAD, longest, record_bytes},
    memory::Ring,
};
use crate::{
    failpoint::shared,
    sync::{Ordering, fence},
};

/// Writes a ring. There is one for each.
#[derive(Debug)]
pub(crate) struct Writer {
    ring: Arc<Ring>,
    head: u64,
    /// The oldest whole record: what `horizon` has.
    tail: u64,
    /// Number of the next event.
    sequence: u64,
}

/// Where the next record goes, and what goes for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pad: u64,
    size: u64,
    /// The first record that stays.
    pub(crate) keep: u64,
}

impl Writer {
    /// Begins to write a fresh ring.
    pub(crate) fn new(ring: Arc<Ring>) -> Writer {
        let sequence = ring.header().first.load(Ordering::Relaxed);
        Writer { ring, head: 0, tail: 0, sequence }
    }

    pub(crate) fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// Number of the next event.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    pub(crate) fn tail(&self) -> u64 {
        self.tail
    }

    /// Longest event, in bytes.
    pub(crate) fn longest(&self) -> u64 {
        longest(self.ring.capacity())
    }

    /// Says where an event of so many bytes goes, at most [`Writer::longest`].
    #[inline]
    pub(crate) fn plan(&self, length: u64) -> Plan {
        let capacity = self.ring.capacity();
        let size = record_bytes(length);
        let left = capacity - (self.head & (capacity - 1));
        let pad = if left < size { left } else { 0 };
        let needed = (self.head + pad + size).saturating_sub(capacity);
        let mut keep = self.tail;
        while keep < needed {
            keep += self.size_at(keep);
        }
        Plan { pad, size, keep }
    }

    /// Makes more room than an event needs, up to `limit`, where some has to be made: subscribers
    /// look at the horizon after each event, and its line need not move as often.
    pub(crate) fn widen(&self, plan: Plan, limit: u64) -> Plan {
        if plan.keep == self.tail {
            return plan;
        }
        let most = limit.min(self.head).min(plan.keep + self.ring.capacity() / 16);
        let mut keep = plan.keep;
        while keep < most {
            let next = keep + self.size_at(keep);
            if next > most {
                break;
            }
            keep = next;
        }
        Plan { keep, ..plan }
    }

    /// Bytes of the record at a position that is written.
    fn size_at(&self, position: u64) -> u64 {
        let first = self.ring.words()[self.place(position)].load(Ordering::Relaxed);
        let length = first & u64::from(u32::MAX);
        if first & PAD == 0 { record_bytes(length) } else { length }
    }

    fn place(&self, position: u64) -> usize {
        (position & (self.ring.capacity() - 1)) as usize / 8
    }

    /// Writes an event as planned, and shows it.
    #[inline]
    pub(crate) fn write(&mut self, plan: Plan, now_ns: u64, payload: &[u8]) {
        let ring = &*self.ring;
        let (header, words) = (ring.header(), ring.words());
        if plan.keep != self.tail {
            self.tail = plan.keep;
            shared!(Horizon, header.horizon.store(plan.keep, Ordering::Release));
            // Before any word of what is overwritten: see above.
            fence(Ordering::Release);
        }
        if plan.pad > 0 {
            words[self.place(self.head)].store(PAD | plan.pad, Ordering::Relaxed);
        }
        let at = self.head + plan.pad;
        let place = self.place(at);
        let record = &words[place..place + (plan.size / 8) as usize];
        shared!(Record, {
            record[0].store(payload.len() as u64, Ordering::Relaxed);
            record[1].store(self.sequence, Ordering::Relaxed);
            record[2].store(now_ns, Ordering::Relaxed);
            let body = &record[(RECORD_HEAD / 8) as usize..];
            let (whole, rest) = payload.as_chunks::<8>();
            for (word, chunk) in body.iter().zip(whole) {
                word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
            }
            if !rest.is_empty() {
                let mut last = [0; 8];
                last[..rest.len()].copy_from_slice(rest);
                body[whole.len()].store(u64::from_le_bytes(last), Ordering::Relaxed);
            }
        });
        self.head = at + plan.size;
        self.sequence = self.sequence.wrapping_add(1);
        debug_assert!(self.head.is_multiple_of(ALIGN) && self.head - self.tail <= ring.capacity());
        shared!(Head, header.head.store(self.head, Ordering::Release));
        shared!(Last, header.last.store(at, Ordering::Release));
    }

    /// Says that nothing more comes.
    pub(crate) fn close(&self) {
        shared!(BusClosed, self.ring.header().state.store(CLOSED, Ordering::Release));
    }
}
