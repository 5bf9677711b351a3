//! Records: what a queue's log says happened, and their bytes.
//!
//! ```text
//!  0        4        8        12   13   14   16
//!  ┌────────┬────────┬────────┬────┬────┬────┬────────────────┐
//!  │ length │ crc32c │ batch  │kind│flag│ 0  │ body …         │
//!  └────────┴────────┴────────┴────┴────┴────┴────────────────┘
//! ```
//! Numbers are little-endian. `length` counts the head and the body; the next record begins at the
//! next multiple of 8. `crc32c` is over the segment's salt, the record's offset, its length, and
//! all that follows: a record anywhere else, or of another segment, is none. `batch` numbers what
//! was made durable together, and flag 1 marks the first record of a batch ([`crate::scan`]).

use std::sync::Arc;

use crate::{
    identity::Secret,
    windows::{Window, Windows},
};

/// Bytes of a record's head.
pub const HEAD: usize = 16;
/// Records begin at multiples of it.
pub const ALIGN: usize = 8;
/// Flag: the first of its batch.
pub const FIRST: u8 = 1;
/// Bytes of a message's record beside its payload.
pub const PUT_BYTES: usize = HEAD + 40;

/// A message as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Of this queue; never reused, and ascending in the order of arrival.
    pub id: u64,
    /// Who sent it; 0 for who wants no dedup.
    pub producer: u64,
    /// The producer's number for it.
    pub sequence: u64,
    /// 0 to 4.
    pub priority: u8,
    /// Whether it is a dead letter.
    pub dead: bool,
    /// How often it was given to a consumer.
    pub attempts: u32,
    /// Not to be given to anybody before: Unix time in ms.
    pub not_before_ms: u64,
    /// What was sent.
    pub payload: Arc<[u8]>,
}

/// Something that happened to a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// What a log must know of the segments that are deleted; the first record of each segment.
    Checkpoint {
        /// The next message's id.
        next_id: u64,
        /// Producers by when they last sent.
        windows: Vec<(u64, Window)>,
    },
    /// A message came.
    Put(Stored),
    /// A message, moved from a segment that is to be deleted.
    Moved(Stored),
    /// A consumer got a message.
    Taken {
        /// The message.
        id: u64,
        /// How often it was given out, with this time.
        attempt: u32,
        /// Who has it.
        consumer: u64,
    },
    /// Messages are acknowledged, or purged.
    Gone {
        /// The messages.
        ids: Vec<u64>,
    },
    /// A message is to be given out again.
    Back {
        /// The message.
        id: u64,
        /// Not before: Unix time in ms.
        not_before_ms: u64,
    },
    /// A message is a dead letter from now on.
    Dead {
        /// The message.
        id: u64,
    },
    /// Dead letters are messages again.
    Redriven {
        /// The messages.
        ids: Vec<u64>,
    },
    /// By what producers are known; behind each checkpoint.
    Secret(Secret),
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Record::Checkpoint { .. } => 1,
            Record::Put(_) => 2,
            Record::Moved(_) => 3,
            Record::Taken { .. } => 4,
            Record::Gone { .. } => 5,
            Record::Back { .. } => 6,
            Record::Dead { .. } => 7,
            Record::Redriven { .. } => 8,
            Record::Secret(_) => 9,
        }
    }

    /// Bytes that it takes in a segment.
    pub fn bytes(&self) -> usize {
        let body = match self {
            Record::Checkpoint { windows, .. } => 16 + windows.len() * WINDOW,
            Record::Put(it) | Record::Moved(it) => PUT_BYTES - HEAD + it.payload.len(),
            Record::Taken { .. } => 20,
            Record::Gone { ids } | Record::Redriven { ids } => 8 * ids.len(),
            Record::Back { .. } | Record::Secret(_) => 16,
            Record::Dead { .. } => 8,
        };
        (HEAD + body).next_multiple_of(ALIGN)
    }
}

/// Bytes of a producer in a checkpoint.
const WINDOW: usize = 16 + Windows::SPAN as usize / 8;

/// Where a record stands, which its checksum covers.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Of the segment.
    pub salt: u64,
    /// In the segment.
    pub offset: u64,
}

/// Appends a record's bytes; `out` begins at `place` and grows by [`Record::bytes`].
pub fn encode(record: &Record, batch: u32, flags: u8, place: Place, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&batch.to_le_bytes());
    out.extend_from_slice(&[record.kind(), flags, 0, 0]);
    body(record, out);
    let length = (out.len() - at) as u32;
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
    let sum = checksum(place, length, &out[at + 8..]);
    out[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
    out.resize((out.len()).next_multiple_of(ALIGN).max(at + record.bytes()), 0);
}

fn checksum(place: Place, length: u32, rest: &[u8]) -> u32 {
    let mut head = [0; 20];
    head[..8].copy_from_slice(&place.salt.to_le_bytes());
    head[8..16].copy_from_slice(&place.offset.to_le_bytes());
    head[16..].copy_from_slice(&length.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), rest)
}

fn body(record: &Record, out: &mut Vec<u8>) {
    let mut word = |value: u64| out.extend_from_slice(&value.to_le_bytes());
    match record {
        Record::Checkpoint { next_id, windows } => {
            word(*next_id);
            word(windows.len() as u64);
            for (producer, window) in windows {
                word(*producer);
                word(window.top);
                window.bits.iter().for_each(|bits| word(*bits));
            }
        }
        Record::Put(it) | Record::Moved(it) => {
            word(it.id);
            word(it.producer);
            word(it.sequence);
            word(it.not_before_ms);
            word(u64::from(it.attempts) | u64::from(it.priority) << 32 | u64::from(it.dead) << 40);
            out.extend_from_slice(&it.payload);
        }
        Record::Taken { id, attempt, consumer } => {
            word(*id);
            word(*consumer);
            out.extend_from_slice(&attempt.to_le_bytes());
        }
        Record::Gone { ids } | Record::Redriven { ids } => ids.iter().for_each(|id| word(*id)),
        Record::Back { id, not_before_ms } => {
            word(*id);
            word(*not_before_ms);
        }
        Record::Dead { id } => word(*id),
        Record::Secret(secret) => secret.0.iter().for_each(|half| word(*half)),
    }
}

/// A record that was found, with what stands around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The record.
    pub record: Record,
    /// Its batch.
    pub batch: u32,
    /// Whether it is the first of its batch.
    pub is_first: bool,
    /// Where the next one begins.
    pub next: usize,
}

/// Reads the record at `offset` of a segment. Nothing where there is none, whole and unharmed.
pub fn decode(segment: &[u8], salt: u64, offset: usize) -> Option<Found> {
    let rest = segment.get(offset..)?;
    let length = u32_at(rest, 0)?;
    let bytes = rest.get(..length as usize).filter(|it| it.len() >= HEAD)?;
    let place = Place { salt, offset: offset as u64 };
    if checksum(place, length, &bytes[8..]) != u32_at(bytes, 4)? {
        return None;
    }
    let (batch, kind, flags) = (u32_at(bytes, 8)?, bytes[12], bytes[13]);
    let record = decode_body(kind, Input(&bytes[HEAD..]))?;
    let next = (offset + length as usize).next_multiple_of(ALIGN);
    Some(Found { record, batch, is_first: flags & FIRST != 0, next })
}

/// Reads the number at that place.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Reads the number at that place.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }

    fn words(mut self) -> Option<Vec<u64>> {
        if !self.0.len().is_multiple_of(8) {
            return None;
        }
        (0..self.0.len() / 8).map(|_| self.word()).collect()
    }
}

fn decode_body(kind: u8, mut body: Input<'_>) -> Option<Record> {
    Some(match kind {
        1 => {
            let (next_id, count) = (body.word()?, body.word()? as usize);
            if body.0.len() != count.checked_mul(WINDOW)? {
                return None;
            }
            let one = |body: &mut Input<'_>| {
                let (producer, top) = (body.word()?, body.word()?);
                let mut bits = [0; 16];
                for word in &mut bits {
                    *word = body.word()?;
                }
                Some((producer, Window::new(top, bits)))
            };
            let windows = (0..count).map(|_| one(&mut body)).collect::<Option<_>>()?;
            Record::Checkpoint { next_id, windows }
        }
        2 | 3 => {
            let (id, producer, sequence) = (body.word()?, body.word()?, body.word()?);
            let (not_before_ms, rest) = (body.word()?, body.word()?);
            let stored = Stored {
                id,
                producer,
                sequence,
                not_before_ms,
                attempts: rest as u32,
                priority: (rest >> 32) as u8,
                dead: rest >> 40 & 1 == 1,
                payload: Arc::from(body.0),
            };
            if kind == 2 { Record::Put(stored) } else { Record::Moved(stored) }
        }
        4 => {
            let (id, consumer) = (body.word()?, body.word()?);
            Record::Taken { id, consumer, attempt: u32_at(body.0, 0)? }
        }
        5 => Record::Gone { ids: body.words()? },
        6 => Record::Back { id: body.word()?, not_before_ms: body.word()? },
        7 => Record::Dead { id: body.word()? },
        8 => Record::Redriven { ids: body.words()? },
        9 => Record::Secret(Secret([body.word()?, body.word()?])),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Record> {
        let mut windows = Windows::new(3);
        windows.mark(5, 9);
        let stored = Stored {
            id: 3,
            producer: 5,
            sequence: 9,
            priority: 4,
            dead: true,
            attempts: 7,
            not_before_ms: 1 << 40,
            payload: Arc::from(&b"hello"[..]),
        };
        let windows =
            windows.all().into_iter().map(|(who, it)| (who, Window::new(it.top, it.bits)));
        vec![
            Record::Checkpoint { next_id: 77, windows: windows.collect() },
            Record::Put(stored.clone()),
            Record::Moved(stored),
            Record::Taken { id: 3, attempt: 8, consumer: 1 << 50 },
            Record::Gone { ids: vec![1, 2, 3] },
            Record::Back { id: 3, not_before_ms: 12 },
            Record::Dead { id: 9 },
            Record::Redriven { ids: vec![9] },
            Record::Secret(Secret([5, 6])),
        ]
    }

    #[test]
    fn records_come_back_from_their_place_only() {
        for record in samples() {
            let mut bytes = vec![0; 64];
            encode(&record, 4, FIRST, Place { salt: 11, offset: 64 }, &mut bytes);
            assert_eq!(bytes.len(), 64 + record.bytes(), "{record:?}");
            let found = decode(&bytes, 11, 64).expect("it is there");
            assert_eq!((found.batch, found.is_first, found.next), (4, true, bytes.len()));
            assert_eq!(found.record, record);
            assert_eq!(decode(&bytes, 12, 64), None, "another segment's");
            assert_eq!(decode(&bytes[8..], 11, 56), None, "at another place");
        }
    }

    #[test]
    fn no_flip_of_a_bit_makes_another_record() {
        for record in samples() {
            let mut bytes = Vec::new();
            encode(&record, 1, 0, Place { salt: 1, offset: 0 }, &mut bytes);
            let length = u32_at(&bytes, 0).expect("a head") as usize;
            for bit in 0..length * 8 {
                let mut other = bytes.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(&other, 1, 0), None, "{record:?}, bit {bit}");
            }
            for cut in 0..length {
                assert_eq!(decode(&bytes[..cut], 1, 0), None);
            }
        }
    }
}
