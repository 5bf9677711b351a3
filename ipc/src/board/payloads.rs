//! Payloads of traced requests and of their answers, where operators can read them: the last of
//! them, in a segment of its own, which is there only while an operator may see any.

use super::{
    layout::{PAYLOADS, Shown as Record},
    memory::Segment,
};
use crate::{
    error::NodeError,
    sync::{AtomicU64, Ordering, fence},
    trace::MOST_SHOWN,
};

/// The beginning of what was sent to the handler of a traced request, or by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The trace.
    pub trace: u128,
    /// The channel.
    pub channel: u64,
    /// The request's, as in its span.
    pub message_id: u64,
    /// Whether it is the answer, not the request.
    pub is_answer: bool,
    /// Whether it came by an encrypted channel: nothing of such is shown.
    pub is_encrypted: bool,
    /// How long all of it is.
    pub length: u64,
    /// As many of its bytes as the operator asked for, if there are so many.
    pub bytes: Vec<u8>,
}

/// This node's.
#[derive(Debug)]
pub(super) struct Payloads {
    segment: Segment,
    /// Written so far.
    written: AtomicU64,
}

const ANSWER: u64 = 1;
const ENCRYPTED: u64 = 2;

impl Payloads {
    pub(super) fn create() -> Result<Payloads, NodeError> {
        Ok(Payloads { segment: Segment::create(PAYLOADS)?, written: AtomicU64::new(0) })
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Writes one in place of the oldest.
    pub(super) fn write(&self, payload: &Payload) {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let records = self.segment.shown();
        let record = &records[number as usize % records.len()];
        record.sequence.store(2 * number + 1, Ordering::Relaxed);
        // A reader that sees any of what follows sees that something is written.
        fence(Ordering::Release);
        let bytes = &payload.bytes[..payload.bytes.len().min(MOST_SHOWN)];
        let answer = if payload.is_answer { ANSWER } else { 0 };
        let kind = if payload.is_encrypted { answer | ENCRYPTED } else { answer };
        let head = [
            (payload.trace >> 64) as u64,
            payload.trace as u64,
            payload.channel,
            payload.message_id,
            kind | (bytes.len() as u64) << 32,
            payload.length,
            0,
        ];
        for (word, value) in record.head.iter().zip(head) {
            word.store(value, Ordering::Relaxed);
        }
        // What is left of an older one goes, too.
        let mut chunks = bytes.chunks(8);
        for word in &record.bytes {
            let mut value = [0; 8];
            if let Some(chunk) = chunks.next() {
                value[..chunk.len()].copy_from_slice(chunk);
            }
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        }
        record.sequence.store(2 * number + 2, Ordering::Release);
    }
}

/// Reads those that are whole. What they say is their writer's word.
pub(super) fn read(segment: &Segment) -> impl Iterator<Item = Payload> {
    segment.shown().iter().filter_map(|record| {
        let sequence = record.sequence.load(Ordering::Acquire);
        if sequence == 0 || !sequence.is_multiple_of(2) {
            return None;
        }
        let payload = payload(record);
        fence(Ordering::Acquire);
        (record.sequence.load(Ordering::Relaxed) == sequence).then_some(payload)
    })
}

fn payload(record: &Record) -> Payload {
    let head: [u64; 7] = std::array::from_fn(|index| record.head[index].load(Ordering::Relaxed));
    let words = record.bytes.iter().map(|word| word.load(Ordering::Relaxed));
    let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    bytes.truncate((head[4] >> 32) as usize);
    Payload {
        trace: u128::from(head[0]) << 64 | u128::from(head[1]),
        channel: head[2],
        message_id: head[3],
        is_answer: head[4] & ANSWER != 0,
        is_encrypted: head[4] & ENCRYPTED != 0,
        length: head[5],
        bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(number: u64, bytes: &[u8]) -> Payload {
        Payload {
            trace: u128::MAX - 1,
            channel: 3,
            message_id: number,
            is_answer: true,
            is_encrypted: false,
            length: 1 << 40,
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn the_last_payloads_are_read_as_they_were_written() {
        let shown = Payloads::create().expect("memory");
        assert_eq!(read(shown.segment()).count(), 0);
        let long: Vec<u8> = (0..MOST_SHOWN).map(|it| it as u8 | 1).collect();
        shown.write(&some(0, &long));
        assert_eq!(read(shown.segment()).collect::<Vec<_>>(), [some(0, &long)]);
        let room = shown.segment().shown().len() as u64;
        assert!(room > 200);
        (1..=room).for_each(|number| shown.write(&some(number, b"short")));
        let mut found: Vec<_> = read(shown.segment()).map(|it| it.message_id).collect();
        found.sort_unstable();
        assert_eq!(found, (1..=room).collect::<Vec<_>>(), "the first is overwritten");
        let marks = shown.segment().shown()[0].bytes.iter().skip(1);
        assert!(marks.map(|it| it.load(Ordering::Relaxed)).all(|it| it == 0), "to its end");
    }

    #[test]
    fn a_payload_that_is_being_written_is_not_read_and_a_lie_about_its_length_is_cut() {
        let shown = Payloads::create().expect("memory");
        let encrypted = Payload { is_encrypted: true, ..some(0, b"") };
        shown.write(&encrypted);
        assert_eq!(read(shown.segment()).next(), Some(encrypted));
        let record = &shown.segment().shown()[0];
        record.head[4].store(u64::MAX, Ordering::Relaxed);
        assert_eq!(read(shown.segment()).next().map(|it| it.bytes.len()), Some(MOST_SHOWN));
        record.sequence.store(3, Ordering::Relaxed);
        assert_eq!(read(shown.segment()).count(), 0);
    }
}
