//! The rows of the store, as bytes: pure.
//!
//! ```text
//!  key                                   value
//!  'e'                                   the epoch of who wrote last
//!  'a' account                           balance
//!  'n'                                   how many deposits there are
//!  'd' number                            a deposit: epoch, writer, account, amount, reference
//!  't'                                   of all records: oldest, next, how many, bytes; callers
//!  'c' client, ring, session             of this sequence: how many records, floor
//!  'o' order                             client, ring, message id
//!  'r' client, ring, message id          order; status; answer
//! ```
//! Numbers are of 8 bytes, but those of a request's key and the status, which are of 4, and all are
//! big-endian: so a caller's records lie together, and ascend.

use ipc::{
    Status,
    once::{Answer, RequestKey},
};

use crate::StoreError;

/// Where the epoch of who wrote last is.
pub(crate) const EPOCH: &[u8] = b"e";
/// Where the number of deposits is.
pub(crate) const DEPOSITS: &[u8] = b"n";
/// Where [`Totals`] are.
pub(crate) const TOTALS: &[u8] = b"t";

/// Bytes of a request's key that all of one sequence share: all but the half of the message id
/// that ascends.
const SEQUENCE: usize = RequestKey::BYTES - 4;

/// The first number that a sequence's message ids share.
pub(crate) fn sequence_row(key: &RequestKey) -> [u8; 1 + SEQUENCE] {
    let mut row = [b'c'; 1 + SEQUENCE];
    row[1..].copy_from_slice(&key.to_bytes()[..SEQUENCE]);
    row
}

pub(crate) fn record_row(key: &RequestKey) -> [u8; 1 + RequestKey::BYTES] {
    let mut row = [b'r'; 1 + RequestKey::BYTES];
    row[1..].copy_from_slice(&key.to_bytes());
    row
}

/// Reads the key out of a record's row.
pub(crate) fn key_of(row: &[u8]) -> Result<RequestKey, StoreError> {
    let bytes = row.split_first().and_then(|(_, key)| key.try_into().ok());
    bytes.map(RequestKey::from_bytes).ok_or(StoreError::Corrupt("a key of another length"))
}

pub(crate) fn account_row(account: u64) -> [u8; 9] {
    numbered(b'a', account)
}

pub(crate) fn deposit_row(number: u64) -> [u8; 9] {
    numbered(b'd', number)
}

pub(crate) fn order_row(order: u64) -> [u8; 9] {
    numbered(b'o', order)
}

fn numbered(kind: u8, number: u64) -> [u8; 9] {
    let mut row = [kind; 9];
    row[1..].copy_from_slice(&number.to_be_bytes());
    row
}

/// Writes numbers one behind the other.
pub(crate) fn numbers<const N: usize>(numbers: [u64; N]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// Reads so many numbers; zeros where there is no row.
pub(crate) fn read<const N: usize>(row: Option<&[u8]>) -> Result<[u64; N], StoreError> {
    let mut numbers = [0; N];
    let Some(row) = row else { return Ok(numbers) };
    let (words, rest) = row.as_chunks();
    if words.len() != N || !rest.is_empty() {
        return Err(StoreError::Corrupt("a row of another length"));
    }
    for (number, word) in numbers.iter_mut().zip(words) {
        *number = u64::from_be_bytes(*word);
    }
    Ok(numbers)
}

/// What is known of all records together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// No record is older than this.
    pub(crate) oldest: u64,
    /// The order that the next record gets.
    pub(crate) next: u64,
    pub(crate) count: u64,
    /// Of their answers.
    pub(crate) bytes: u64,
    /// Sequences that are known: with records, or with a floor.
    pub(crate) sequences: u64,
}

impl Totals {
    pub(crate) fn to_row(self) -> Vec<u8> {
        numbers([self.oldest, self.next, self.count, self.bytes, self.sequences])
    }

    pub(crate) fn from_row(row: Option<&[u8]>) -> Result<Totals, StoreError> {
        let [oldest, next, count, bytes, sequences] = read(row)?;
        Ok(Totals { oldest, next, count, bytes, sequences })
    }
}

/// What is known of the records of one sequence of message ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) count: u64,
    /// All ids below this were seen, or will never come.
    pub(crate) floor: u64,
}

impl Sequence {
    pub(crate) fn to_row(self) -> Vec<u8> {
        numbers([self.count, self.floor])
    }

    pub(crate) fn from_row(row: Option<&[u8]>) -> Result<Sequence, StoreError> {
        let [count, floor] = read(row)?;
        Ok(Sequence { count, floor })
    }
}

/// How a request was answered, and as the how-manieth of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) order: u64,
    pub(crate) answer: Answer,
}

impl Record {
    pub(crate) fn to_row(&self) -> Vec<u8> {
        let (status, payload) = match &self.answer {
            Ok(payload) => (Status::OK, &payload[..]),
            Err(status) => (*status, &[][..]),
        };
        [&self.order.to_be_bytes(), &status.code().to_be_bytes()[..], payload].concat()
    }

    pub(crate) fn from_row(row: &[u8]) -> Result<Record, StoreError> {
        let short = StoreError::Corrupt("a record that is cut short");
        let Some((order, rest)) = row.split_first_chunk() else { return Err(short) };
        let Some((status, payload)) = rest.split_first_chunk() else { return Err(short) };
        let answer = match Status::from_code(i32::from_be_bytes(*status)) {
            Status::OK => Ok(payload.to_vec()),
            _ if !payload.is_empty() => {
                return Err(StoreError::Corrupt("a refusal with an answer"));
            }
            status => Err(status),
        };
        Ok(Record { order: u64::from_be_bytes(*order), answer })
    }

    /// Bytes of the answer.
    pub(crate) fn size(&self) -> u64 {
        self.answer.as_ref().map_or(0, |payload| payload.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use ipc::{Priority, ServiceId};
    use proptest::prelude::*;

    use super::*;

    fn any_key() -> impl Strategy<Value = RequestKey> {
        (any::<u32>(), any::<u64>(), any::<bool>()).prop_map(|(client, id, urgent)| {
            let priority = if urgent { Priority::Critical } else { Priority::Normal };
            RequestKey::new(ServiceId::new(client), id, priority)
        })
    }

    fn any_answer() -> impl Strategy<Value = Answer> {
        let refusal = (i32::MIN..0).prop_map(|code| Err(Status::from_code(code)));
        prop_oneof![prop::collection::vec(any::<u8>(), 0..200).prop_map(Ok), refusal]
    }

    proptest! {
        #[test]
        fn rows_are_read_as_they_were_written(
            order: u64, answer in any_answer(), key in any_key(), words: [u64; 5],
        ) {
            let record = Record { order, answer };
            prop_assert_eq!(Record::from_row(&record.to_row()).expect("whole"), record);
            prop_assert_eq!(key_of(&record_row(&key)).expect("whole"), key);
            let [oldest, next, count, bytes, sequences] = words;
            let totals = Totals { oldest, next, count, bytes, sequences };
            prop_assert_eq!(Totals::from_row(Some(&totals.to_row())).expect("whole"), totals);
            let sequence = Sequence { count, floor: next };
            prop_assert_eq!(Sequence::from_row(Some(&sequence.to_row())).expect("whole"), sequence);
        }

        #[test]
        fn any_bytes_are_a_row_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(record) = Record::from_row(&bytes) {
                prop_assert_eq!(record.to_row(), &bytes[..]);
            }
            if let Ok(totals) = Totals::from_row(Some(&bytes)) {
                prop_assert_eq!(totals.to_row(), &bytes[..]);
            }
            let _ = (Sequence::from_row(Some(&bytes)), key_of(&bytes));
        }

        #[test]
        fn a_row_that_is_cut_is_refused(order: u64, status in i32::MIN..0, cut in 0_usize..12) {
            let record = Record { order, answer: Err(Status::from_code(status)) };
            prop_assert!(Record::from_row(&record.to_row()[..cut]).is_err());
        }

        #[test]
        fn records_lie_by_sequence_and_ascend(first in any_key(), second in any_key()) {
            let later = RequestKey { message_id: second.message_id, ..first };
            let ascend = first.message_id < second.message_id;
            prop_assert_eq!(record_row(&first) < record_row(&later), ascend);
            let same = first.message_id >> 32 == second.message_id >> 32;
            prop_assert_eq!(sequence_row(&first) == sequence_row(&later), same);
        }
    }
}
