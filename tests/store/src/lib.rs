//! Accounts in RocksDB: each deposit and the record that it was made commit in one transaction, so
//! that a deposit sent again, to this process or to its successor, is made once.
//!
//! ```text
//!  key                                   value
//!  'a' account                           balance, u64
//!  'e'                                   the epoch of who wrote last, u64
//!  'r' client, ring, message id          status, i32; answer
//! ```
//! Numbers are big-endian, so that a caller's records lie together and ascend.
#![deny(missing_docs)]

use std::path::Path;

use ipc::{
    Status,
    once::{Answer, RequestKey, Transactional, carry_out},
};
use rocksdb::{
    DBPinnableSlice, ErrorKind, Options, ReadOptions, Transaction, TransactionDB,
    TransactionDBOptions, TransactionOptions, WriteOptions,
};

/// Records of each caller and ring that are kept: more than any caller has outstanding.
pub const KEPT: usize = 4096;
/// Older ones are looked for once in so many records.
const PRUNED_EVERY: u64 = 512;

const EPOCH: &[u8] = b"e";

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody wrote in a later epoch: this process serves no more.
    #[error("epoch {0} is over: {1} has begun")]
    Stale(u64, u64),
    /// What is in the store is not what this program writes.
    #[error("the store is corrupt: {0}")]
    Corrupt(&'static str),
    /// The database's.
    #[error(transparent)]
    Database(#[from] rocksdb::Error),
}

impl StoreError {
    /// The status for a caller: nothing was done, so it may try again, but with the deposed.
    pub fn status(&self) -> Status {
        match self {
            StoreError::Stale(..) => Status::STALE,
            StoreError::Database(error) if error.kind() == ErrorKind::Busy => Status::FULL,
            StoreError::Corrupt(_) | StoreError::Database(_) => Status::IO,
        }
    }
}

/// The accounts, open by one process.
pub struct Store {
    database: TransactionDB,
    epoch: u64,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens it, or makes it, to write in this epoch. Only one process at a time may have it open.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(directory: &Path, epoch: u64) -> Result<Store, StoreError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        let database = TransactionDB::open(&options, &TransactionDBOptions::default(), directory)?;
        Ok(Store { database, epoch })
    }

    /// Adds to an account; gives its balance after that.
    ///
    /// # Errors
    /// [`StoreError`]: then nothing was added.
    pub fn deposit(
        &self,
        key: &RequestKey,
        account: u64,
        amount: u64,
    ) -> Result<Answer, StoreError> {
        carry_out(self, key, |transaction| {
            let place = account_key(account);
            let balance = number(transaction.get_for_update(place, true)?.as_deref())?;
            let Some(balance) = balance.checked_add(amount) else {
                return Ok(Err(Status::INVALID));
            };
            transaction.put(place, balance.to_be_bytes())?;
            Ok(Ok(balance.to_be_bytes().to_vec()))
        })
    }

    /// Says what is in an account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn balance(&self, account: u64) -> Result<u64, StoreError> {
        number(self.database.get(account_key(account))?.as_deref())
    }

    /// Deletes a caller's records but the latest, in the transaction that adds one more.
    fn prune(
        transaction: &Transaction<'_, TransactionDB>,
        key: &RequestKey,
    ) -> Result<(), StoreError> {
        let first = record_key(&RequestKey { message_id: 0, ..*key });
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(first.to_vec());
        options.set_iterate_upper_bound(record_key(key).to_vec());
        let mut kept = 1;
        let mut records = transaction.raw_iterator_opt(options);
        records.seek_to_last();
        while let Some(record) = records.key() {
            kept += 1;
            if kept > KEPT {
                transaction.delete(record)?;
            }
            records.prev();
        }
        Ok(records.status()?)
    }
}

fn account_key(account: u64) -> [u8; 9] {
    let mut bytes = [b'a'; 9];
    bytes[1..].copy_from_slice(&account.to_be_bytes());
    bytes
}

fn record_key(key: &RequestKey) -> [u8; 1 + RequestKey::BYTES] {
    let mut bytes = [b'r'; 1 + RequestKey::BYTES];
    bytes[1..].copy_from_slice(&key.to_bytes());
    bytes
}

fn number(bytes: Option<&[u8]>) -> Result<u64, StoreError> {
    let Some(bytes) = bytes else { return Ok(0) };
    let bytes =
        bytes.try_into().map_err(|_| StoreError::Corrupt("a number of other than 8 bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

fn decode(record: &DBPinnableSlice<'_>) -> Result<Answer, StoreError> {
    let (status, payload) =
        record.split_first_chunk().ok_or(StoreError::Corrupt("a record without a status"))?;
    match Status::from_code(i32::from_be_bytes(*status)) {
        Status::OK => Ok(Ok(payload.to_vec())),
        status => Ok(Err(status)),
    }
}

impl Transactional for Store {
    type Transaction<'a> = Transaction<'a, TransactionDB>;
    type Error = StoreError;

    /// Refuses who was deposed: the row of the epoch is locked until the transaction ends.
    fn begin(&self) -> Result<Self::Transaction<'_>, StoreError> {
        let mut durable = WriteOptions::default();
        durable.set_sync(true);
        let transaction = self.database.transaction_opt(&durable, &TransactionOptions::default());
        let epoch = number(transaction.get_for_update(EPOCH, true)?.as_deref())?;
        if epoch > self.epoch {
            return Err(StoreError::Stale(self.epoch, epoch));
        }
        if epoch < self.epoch {
            transaction.put(EPOCH, self.epoch.to_be_bytes())?;
        }
        Ok(transaction)
    }

    fn recorded(
        &self,
        transaction: &Self::Transaction<'_>,
        key: &RequestKey,
    ) -> Result<Option<Answer>, StoreError> {
        let record = transaction.get_pinned_for_update(record_key(key), true)?;
        record.as_ref().map(decode).transpose()
    }

    fn record(
        &self,
        transaction: &mut Self::Transaction<'_>,
        key: &RequestKey,
        answer: &Answer,
    ) -> Result<(), StoreError> {
        let (status, payload) = match answer {
            Ok(payload) => (Status::OK, &payload[..]),
            Err(status) => (*status, &[][..]),
        };
        let record = [&status.code().to_be_bytes(), payload].concat();
        transaction.put(record_key(key), record)?;
        if key.message_id.is_multiple_of(PRUNED_EVERY) {
            Store::prune(transaction, key)?;
        }
        Ok(())
    }

    fn commit(&self, transaction: Self::Transaction<'_>) -> Result<(), StoreError> {
        Ok(transaction.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use ipc::{Priority, ServiceId};

    use super::*;

    fn key(id: u64) -> RequestKey {
        RequestKey::new(ServiceId::new(7), id, Priority::Normal)
    }

    fn balance_of(answer: &Answer) -> u64 {
        number(answer.as_deref().ok()).expect("a balance")
    }

    #[test]
    fn a_deposit_sent_again_is_made_once_also_by_a_successor() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Store::open(directory.path(), 1).expect("made");
        assert_eq!(balance_of(&first.deposit(&key(1), 5, 10).expect("done")), 10);
        assert_eq!(balance_of(&first.deposit(&key(1), 5, 10).expect("known")), 10);
        drop(first);
        let second = Store::open(directory.path(), 2).expect("there");
        assert_eq!(balance_of(&second.deposit(&key(1), 5, 10).expect("known")), 10);
        assert_eq!(balance_of(&second.deposit(&key(2), 5, 1).expect("done")), 11);
        assert_eq!(second.balance(5).expect("a number"), 11);
    }

    #[test]
    fn a_refusal_is_recorded_as_well() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), 1).expect("made");
        store.deposit(&key(1), 5, u64::MAX).expect("done").expect("room");
        assert_eq!(store.deposit(&key(2), 5, 1).expect("done"), Err(Status::INVALID));
        assert_eq!(store.deposit(&key(2), 6, 1).expect("known"), Err(Status::INVALID));
    }

    #[test]
    fn the_deposed_do_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = Store::open(directory.path(), 2).expect("made");
        store.deposit(&key(1), 5, 10).expect("done").expect("room");
        store.epoch = 1;
        let refused = store.deposit(&key(2), 5, 10).expect_err("deposed");
        assert_eq!(refused.status(), Status::STALE);
        assert_eq!(store.balance(5).expect("a number"), 10);
    }

    #[test]
    fn what_fails_leaves_neither_effect_nor_record() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), 1).expect("made");
        let failed: Result<Answer, StoreError> = carry_out(&store, &key(1), |transaction| {
            transaction.put(account_key(5), 10_u64.to_be_bytes())?;
            Err(StoreError::Corrupt("for this test"))
        });
        failed.expect_err("it fails");
        assert_eq!(store.balance(5).expect("a number"), 0);
        assert_eq!(balance_of(&store.deposit(&key(1), 5, 3).expect("not recorded")), 3);
    }

    #[test]
    fn the_latest_records_of_a_caller_stay_and_the_others_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), 1).expect("made");
        let other = RequestKey::new(ServiceId::new(8), 1, Priority::Normal);
        store.deposit(&other, 1, 1).expect("done").expect("room");
        let last = KEPT as u64 + 2 * PRUNED_EVERY;
        let mut transaction = store.begin().expect("a transaction");
        for id in 1..=last {
            store.record(&mut transaction, &key(id), &Ok(vec![])).expect("room");
        }
        store.commit(transaction).expect("committed");
        let transaction = store.begin().expect("a transaction");
        let is_there =
            |key: &RequestKey| store.recorded(&transaction, key).expect("readable").is_some();
        assert!(is_there(&other), "another caller's");
        assert!(is_there(&key(last)) && is_there(&key(last - KEPT as u64 + 1)));
        assert!(!is_there(&key(last - KEPT as u64)));
    }
}
