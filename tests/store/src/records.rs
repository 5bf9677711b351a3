//! The records of what was answered, within a transaction: kept, found and forgotten by the rule
//! of [`ipc::once::Window`], which says what is safe.

use ipc::{
    ServiceId, Status,
    once::{Answer, Limits, RequestKey},
};
use rocksdb::{ReadOptions, Transaction, TransactionDB};

use crate::{
    StoreError,
    rows::{self, Record, Sequence, TOTALS, Totals},
};

/// The records, as one transaction sees them.
pub(crate) struct Records<'a> {
    pub(crate) transaction: &'a Transaction<'a, TransactionDB>,
    pub(crate) limits: Limits,
}

impl Records<'_> {
    /// Finds what was answered; "maybe" to what is forgotten.
    pub(crate) fn find(&self, key: &RequestKey) -> Result<Option<Answer>, StoreError> {
        if let Some(row) = self.transaction.get_for_update(rows::record_row(key), true)? {
            return Ok(Some(Record::from_row(&row)?.answer));
        }
        let is_forgotten = key.message_id < self.sequence(key)?.floor;
        Ok(is_forgotten.then_some(Err(Status::MAYBE)))
    }

    /// Adds a record, which is not there, and forgets what is too much.
    pub(crate) fn add(&self, key: &RequestKey, answer: &Answer) -> Result<(), StoreError> {
        let mut totals = self.totals()?;
        let mut sequence = self.sequence(key)?;
        if sequence == Sequence::default() {
            // Not forgotten with its last record: that floor is what keeps old requests from
            // looking new. So a new one is refused instead.
            if totals.sequences >= self.limits.all.max(1) as u64 {
                return Err(StoreError::Crowded(totals.sequences));
            }
            totals.sequences += 1;
        }
        let record = Record { order: totals.next, answer: answer.clone() };
        self.transaction.put(rows::record_row(key), record.to_row())?;
        self.transaction.put(rows::order_row(record.order), key.to_bytes())?;
        totals = Totals {
            next: totals.next + 1,
            count: totals.count + 1,
            bytes: totals.bytes + record.size(),
            ..totals
        };
        sequence.count += 1;
        self.transaction.put(rows::sequence_row(key), sequence.to_row())?;
        if sequence.count > self.limits.each.max(1) as u64 {
            let first = self.first_from(&rows::record_row(&first_of(key)))?;
            self.forget(&rows::key_of(&first)?, &mut totals)?;
        }
        while self.is_too_much(&totals) {
            let row = self.first_from(&rows::order_row(totals.oldest))?;
            let order =
                row.last_chunk().ok_or(StoreError::Corrupt("an order of another length"))?;
            totals.oldest = u64::from_be_bytes(*order);
            let key = self.transaction.get(&row)?.unwrap_or_default();
            let key = key.try_into().map_err(|_| StoreError::Corrupt("an order without a key"))?;
            self.forget(&RequestKey::from_bytes(&key), &mut totals)?;
        }
        Ok(self.transaction.put(TOTALS, totals.to_row())?)
    }

    /// Forgets a caller that will never send anything again.
    pub(crate) fn leave(&self, client: ServiceId) -> Result<(), StoreError> {
        let mut totals = self.totals()?;
        let of_client = |kind: u8| [&[kind], &client.get().to_be_bytes()[..]].concat();
        for row in self.all_of(&of_client(b'r'))? {
            self.forget(&rows::key_of(&row)?, &mut totals)?;
        }
        for row in self.all_of(&of_client(b'c'))? {
            self.transaction.delete(row)?;
            totals.sequences = totals.sequences.saturating_sub(1);
        }
        Ok(self.transaction.put(TOTALS, totals.to_row())?)
    }

    pub(crate) fn totals(&self) -> Result<Totals, StoreError> {
        Totals::from_row(self.transaction.get_for_update(TOTALS, true)?.as_deref())
    }

    fn sequence(&self, key: &RequestKey) -> Result<Sequence, StoreError> {
        Sequence::from_row(self.transaction.get(rows::sequence_row(key))?.as_deref())
    }

    /// One answer is kept however long it is.
    fn is_too_much(&self, totals: &Totals) -> bool {
        totals.count > self.limits.all.max(1) as u64
            || (totals.bytes > self.limits.bytes as u64 && totals.count > 1)
    }

    fn forget(&self, key: &RequestKey, totals: &mut Totals) -> Result<(), StoreError> {
        let row = rows::record_row(key);
        let record =
            self.transaction.get(row)?.ok_or(StoreError::Corrupt("a record is missing"))?;
        let record = Record::from_row(&record)?;
        self.transaction.delete(row)?;
        self.transaction.delete(rows::order_row(record.order))?;
        let Sequence { count, floor } = self.sequence(key)?;
        let next = key.message_id.saturating_add(1);
        let sequence = Sequence { count: count.saturating_sub(1), floor: floor.max(next) };
        self.transaction.put(rows::sequence_row(key), sequence.to_row())?;
        totals.count = totals.count.saturating_sub(1);
        totals.bytes = totals.bytes.saturating_sub(record.size());
        Ok(())
    }

    /// The first row from this one on, of its kind.
    fn first_from(&self, row: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(row);
        options.set_iterate_upper_bound([row[0] + 1]);
        let mut found = self.transaction.raw_iterator_opt(options);
        found.seek_to_first();
        found.status()?;
        Ok(found.key().ok_or(StoreError::Corrupt("a row is missing"))?.to_vec())
    }

    /// The rows that begin so.
    fn all_of(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_range(rocksdb::PrefixRange(prefix));
        let mut found = self.transaction.raw_iterator_opt(options);
        let mut rows = Vec::new();
        found.seek_to_first();
        while let Some(row) = found.key() {
            rows.push(row.to_vec());
            found.next();
        }
        found.status()?;
        Ok(rows)
    }
}

/// The lowest key of that sequence.
fn first_of(key: &RequestKey) -> RequestKey {
    RequestKey { message_id: key.message_id >> 32 << 32, ..*key }
}

#[cfg(test)]
mod tests {
    use ipc::{
        Priority,
        once::{Known, Transactional, Window},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::Store;

    fn key(client: u32, session: u64, id: u64) -> RequestKey {
        RequestKey::new(ServiceId::new(client), session << 32 | id, Priority::Normal)
    }

    #[test]
    fn who_is_one_too_many_is_refused_until_somebody_leaves() {
        let directory = tempfile::tempdir().expect("a directory");
        let limits = Limits { each: 2, all: 3, bytes: 1000, ..Limits::default() };
        let store = Store::open(directory.path(), 1, limits).expect("made");
        for client in 1..=3 {
            store.deposit(&key(client, 0, 1), 1, 1, 1).expect("done").expect("room");
        }
        let refused = store.deposit(&key(4, 0, 1), 1, 1, 1).expect_err("one too many");
        assert_eq!(refused.status(), Status::FULL);
        assert_eq!(store.balance(1).expect("a number"), 3);
        store.leave(ServiceId::new(2)).expect("gone");
        store.deposit(&key(4, 0, 1), 1, 1, 1).expect("done").expect("room");
        let transaction = store.begin().expect("a transaction");
        let totals = store.records(&transaction).totals().expect("whole");
        assert_eq!((totals.count, totals.sequences, totals.bytes), (3, 3, 24));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        /// The same comes to a store and to a window, which its own tests prove right.
        #[test]
        fn what_is_kept_and_forgotten_is_what_a_window_keeps_and_forgets(
            each in 1_usize..5,
            all in 6_usize..12,
            bytes in 0_usize..40,
            steps in prop::collection::vec((0_u32..2, 0_u64..3, 0_u64..3, 0_usize..9), 0..120),
        ) {
            let limits = Limits { each, all, bytes, ..Limits::default() };
            let directory = tempfile::tempdir().expect("a directory");
            let store = Store::open(directory.path(), 1, limits).expect("made");
            let transaction = store.begin().expect("a transaction");
            let records = store.records(&transaction);
            let mut window = Window::new(limits);
            let mut seen = Vec::new();
            let mut next = [[0; 3]; 2];
            for (client, session, step, length) in steps {
                let id = &mut next[client as usize][session as usize];
                *id += step;
                let key = key(client, session, *id);
                if records.find(&key).expect("readable").is_none() {
                    let answer = Ok(vec![7; length]);
                    records.add(&key, &answer).expect("room for six sequences");
                    window.begin(key);
                    window.finish(key, answer);
                    seen.push(key);
                }
                for key in &seen {
                    let known = match window.look(key) {
                        Known::New => None,
                        Known::Begun | Known::Forgotten => Some(Err(Status::MAYBE)),
                        Known::Done(answer) => Some(answer.clone()),
                    };
                    prop_assert_eq!(records.find(key).expect("readable"), known);
                }
                let totals = records.totals().expect("whole");
                prop_assert_eq!(totals.count, window.len() as u64);
            }
        }
    }
}
