//! Segments, and what can still be read of one after a crash.
//!
//! ```text
//!  0        8        12       16       24       32       40               60       64
//!  ┌────────┬────────┬────────┬────────┬────────┬────────┬────────────────┬────────┬─────────┐
//!  │"IPCQLOG│ version│ 0      │ number │ salt   │ bytes  │ 0              │ crc32c │ records…│
//!  └────────┴────────┴────────┴────────┴────────┴────────┴────────────────┴────────┴─────────┘
//! ```
//! A segment has its whole length from the beginning, and is zeros behind its records. Only the
//! process that made it appends to it: its successor begins another. A file has the header once
//! more, in its last 64 bytes: without what it says no record can be told from chance.
//!
//! Where records end, there is either nothing more, or a hole with records behind it. A disk may
//! write the parts of one batch in any order before it says that they are durable, and a batch is
//! begun only when the one before is. So what lies behind a hole in the *last* batch was never
//! acknowledged, and is left out, as what it may have followed is lost. Behind any other hole
//! stands what was acknowledged: it is kept, and the damage is told.

use crate::record::{self, ALIGN, Record, u32_at, u64_at};

/// Bytes of a segment's header.
pub const HEADER: usize = 64;
/// Largest segment that is read.
pub const MOST_BYTES: u64 = 1 << 30;

const MAGIC: [u8; 8] = *b"IPCQLOG\n";
const VERSION: u32 = 1;

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its place among the segments of the queue.
    pub number: u64,
    /// Drawn at random.
    pub salt: u64,
    /// Its length.
    pub bytes: u64,
}

impl Header {
    /// Lays it out.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..32].copy_from_slice(&self.salt.to_le_bytes());
        out[32..40].copy_from_slice(&self.bytes.to_le_bytes());
        let sum = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads it; nothing where there is none, or of another version.
    pub fn decode(bytes: &[u8]) -> Option<Header> {
        let head = bytes.get(..HEADER)?;
        (Header::version(head)? == VERSION).then_some(())?;
        Some(Header {
            number: u64_at(head, 16)?,
            salt: u64_at(head, 24)?,
            bytes: u64_at(head, 32)?,
        })
    }

    /// Reads the copy at the end of a segment.
    pub fn decode_copy(segment: &[u8]) -> Option<Header> {
        let end = segment.last_chunk::<HEADER>()?;
        Header::decode(end).filter(|header| header.bytes == segment.len() as u64)
    }

    /// Of which version a whole header is; nothing where there is none.
    pub fn version(bytes: &[u8]) -> Option<u32> {
        let head = bytes.get(..HEADER)?;
        let is_one = head[..8] == MAGIC && u32_at(head, 60)? == crc32c::crc32c(&head[..60]);
        if is_one { u32_at(head, 8) } else { None }
    }

    /// Where records end at the latest: before the copy of the header.
    pub fn end_of_records(&self) -> u64 {
        self.bytes.saturating_sub(HEADER as u64)
    }
}

/// What was read of a segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The records, in their order.
    pub records: Vec<Record>,
    /// Bytes of durable records that cannot be read.
    pub damaged: u64,
    /// Records of a last batch that was not finished, left out.
    pub torn: u64,
    /// Bytes between and behind the records where others may have stood.
    pub obscure: u64,
}

impl Scan {
    /// How many ids may have been given that no record speaks of any more.
    pub fn obscure_ids(&self) -> u64 {
        self.obscure.div_ceil(record::PUT_BYTES as u64)
    }
}

/// Reads what is whole of a segment.
pub fn scan(segment: &[u8], header: Header) -> Scan {
    let mut scan = Scan::default();
    let mut at = HEADER;
    let mut highest = None;
    loop {
        while let Some(found) = record::decode(segment, header.salt, at) {
            at = found.next;
            scan.records.push(found.record);
        }
        let Some((next, behind)) = beyond(segment, header.salt, at) else {
            scan.obscure += written(segment, header, at);
            return scan;
        };
        let highest = *highest.get_or_insert_with(|| highest_batch(segment, header.salt, next));
        if behind.batch == highest && !behind.is_first {
            // The hole is in the last batch.
            scan.torn = count(segment, header.salt, next);
            scan.obscure += written(segment, header, at);
            return scan;
        }
        scan.damaged += (next - at) as u64;
        scan.obscure += (next - at) as u64;
        at = next;
    }
}

/// Counts the bytes from there to the last eight that are not all 0.
fn written(segment: &[u8], header: Header, from: usize) -> u64 {
    let end = (header.end_of_records() as usize).min(segment.len());
    let rest = segment.get(from..end).unwrap_or_default();
    let last = rest.chunks(ALIGN).rposition(|chunk| *chunk != [0; ALIGN][..chunk.len()]);
    last.map_or(0, |last| ((last + 1) * ALIGN) as u64)
}

/// Finds the first record behind a hole.
fn beyond(segment: &[u8], salt: u64, hole: usize) -> Option<(usize, record::Found)> {
    // Behind the end there are zeros only, mostly: they need no checksums.
    let rest = segment.get(hole..)?;
    rest.chunks_exact(ALIGN)
        .enumerate()
        .filter(|(_, chunk)| **chunk != [0; ALIGN])
        .map(|(index, _)| hole + index * ALIGN)
        .find_map(|at| record::decode(segment, salt, at).map(|found| (at, found)))
}

fn highest_batch(segment: &[u8], salt: u64, from: usize) -> u32 {
    let mut highest = 0;
    let mut at = from;
    while let Some((_, found)) = beyond(segment, salt, at) {
        highest = highest.max(found.batch);
        at = found.next;
    }
    highest
}

fn count(segment: &[u8], salt: u64, from: usize) -> u64 {
    let mut count = 0;
    let mut at = from;
    while let Some((_, found)) = beyond(segment, salt, at) {
        count += 1;
        at = found.next;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{FIRST, Place, encode};

    const HEAD: Header = Header { number: 1, salt: 99, bytes: 4096 };

    /// Batches of records, by how many each has; gives the segment and where the records begin.
    fn segment(batches: &[u64]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = HEAD.encode().to_vec();
        let mut places = Vec::new();
        for (batch, records) in batches.iter().enumerate() {
            for number in 0..*records {
                places.push(bytes.len());
                let flags = if number == 0 { FIRST } else { 0 };
                let record = Record::Dead { id: places.len() as u64 };
                let place = Place { salt: HEAD.salt, offset: bytes.len() as u64 };
                encode(&record, batch as u32 + 1, flags, place, &mut bytes);
            }
        }
        bytes.resize(HEAD.bytes as usize, 0);
        (bytes, places)
    }

    fn ids(scan: &Scan) -> Vec<u64> {
        let id = |record: &Record| match record {
            Record::Dead { id } => *id,
            other => panic!("{other:?}"),
        };
        scan.records.iter().map(id).collect()
    }

    #[test]
    fn a_header_is_read_whole_or_not_at_all() {
        let bytes = HEAD.encode();
        assert_eq!(Header::decode(&bytes), Some(HEAD));
        for bit in 0..HEADER * 8 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&other), None, "bit {bit}");
        }
    }

    #[test]
    fn a_hole_in_the_last_batch_ends_the_log_and_any_other_does_not() {
        let (bytes, places) = segment(&[2, 1, 3]);
        assert_eq!(ids(&scan(&bytes, HEAD)), [1, 2, 3, 4, 5, 6]);
        let without = |number: usize| {
            let mut bytes = bytes.clone();
            bytes[places[number] + 8] ^= 1;
            scan(&bytes, HEAD)
        };
        // Of batches that are durable only what is harmed is lost.
        assert_eq!(ids(&without(0)), [2, 3, 4, 5, 6]);
        assert_eq!(ids(&without(1)), [1, 3, 4, 5, 6]);
        assert_eq!(ids(&without(2)), [1, 2, 4, 5, 6]);
        assert_eq!((without(1).damaged, without(1).obscure_ids()), (24, 1));
        // In the last one nothing may come behind what is lost.
        assert_eq!(ids(&without(3)), [1, 2, 3]);
        assert_eq!(ids(&without(4)), [1, 2, 3, 4]);
        assert_eq!((without(3).torn, without(3).damaged), (2, 0));
        assert_eq!(ids(&without(5)), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_is_cut_off_anywhere_leaves_a_prefix() {
        let (bytes, places) = segment(&[1, 2, 1, 1]);
        for cut in HEADER..bytes.len() {
            let mut cut_off = bytes.clone();
            cut_off[cut..].fill(0);
            let found = ids(&scan(&cut_off, HEAD));
            // A record of 24 bytes is there when all of it is.
            let whole = places.iter().filter(|at| **at + 24 <= cut).count() as u64;
            let nearly = places.iter().filter(|at| **at + 17 <= cut).count() as u64;
            assert!(found.len() as u64 >= whole && found.len() as u64 <= nearly, "cut at {cut}");
            assert!(found.iter().copied().eq(1..=found.len() as u64), "cut at {cut}: {found:?}");
            assert_eq!(
                ids(&scan(&bytes[..cut], HEAD)),
                found[..whole.min(found.len() as u64) as usize]
            );
        }
    }
}
