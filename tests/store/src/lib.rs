//! Accounts in `RocksDB`: each deposit and the record that it was made commit in one transaction,
//! so that a deposit sent again, to this process or to its successor, is made once.
#![deny(missing_docs)]

mod records;
mod rows;

use std::path::Path;

use ipc::{
    ServiceId, Status,
    once::{Answer, Limits, RequestKey, Transactional, carry_out},
};
use rocksdb::{
    ErrorKind, Options, Transaction, TransactionDB, TransactionDBOptions, TransactionOptions,
    WriteOptions,
};

use records::Records;

/// Why a deposit was not made, or may not have been.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody wrote in a later epoch: this process serves no more.
    #[error("epoch {0} is over: {1} has begun")]
    Stale(u64, u64),
    /// So many callers are known that no other can be.
    #[error("{0} callers are known, which is the limit")]
    Crowded(u64),
    /// What is in the store is not what this program writes.
    #[error("the store is corrupt: {0}")]
    Corrupt(&'static str),
    /// The database failed before anything was committed.
    #[error(transparent)]
    Database(#[from] rocksdb::Error),
    /// It failed when it was to commit: perhaps it has.
    #[error("perhaps not committed: {0}")]
    Commit(#[source] rocksdb::Error),
}

impl StoreError {
    /// The status for a caller.
    pub fn status(&self) -> Status {
        match self {
            StoreError::Stale(..) => Status::STALE,
            StoreError::Crowded(_) => Status::FULL,
            StoreError::Database(error)
                if matches!(error.kind(), ErrorKind::Busy | ErrorKind::TimedOut) =>
            {
                Status::FULL
            }
            StoreError::Commit(_) => Status::MAYBE,
            StoreError::Corrupt(_) | StoreError::Database(_) => Status::IO,
        }
    }

    /// Whether another process has the store open.
    pub fn is_locked(&self) -> bool {
        matches!(self, StoreError::Database(error) if error.as_ref().contains("lock"))
    }
}

/// A deposit that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deposit {
    /// The epoch in which it was.
    pub epoch: u64,
    /// The process that made it.
    pub writer: u64,
    /// The account.
    pub account: u64,
    /// How much was added.
    pub amount: u64,
    /// The number that the caller gave it.
    pub reference: u64,
}

/// What a deposit comes to, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The transaction has begun, and nothing is in it.
    Begun,
    /// The deposit is in it, and no record.
    Carried,
    /// Deposit and record are.
    Recorded,
    /// They are committed, and nobody was told.
    Committed,
}

impl Step {
    /// All of them.
    pub const ALL: [Step; 4] = [Step::Begun, Step::Carried, Step::Recorded, Step::Committed];
}

/// The accounts, open by one process.
pub struct Store {
    database: TransactionDB,
    epoch: u64,
    limits: Limits,
    reach: Box<dyn Fn(Step) + Send + Sync>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens it, or makes it, to write in this epoch, and to keep so many records. Only one process
    /// at a time may have it open: the database locks its directory.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(directory: &Path, epoch: u64, limits: Limits) -> Result<Store, StoreError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        let database = TransactionDB::open(&options, &TransactionDBOptions::default(), directory)?;
        Ok(Store { database, epoch, limits, reach: Box::new(|_| {}) })
    }

    /// Has a function called at each step of a deposit: a test may die there.
    #[must_use]
    pub fn with_steps(self, reach: impl Fn(Step) + Send + Sync + 'static) -> Store {
        Store { reach: Box::new(reach), ..self }
    }

    /// Adds to an account; gives its balance after that.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn deposit(
        &self,
        key: &RequestKey,
        account: u64,
        amount: u64,
        reference: u64,
    ) -> Result<Answer, StoreError> {
        carry_out(self, key, |transaction| {
            (self.reach)(Step::Begun);
            let place = rows::account_row(account);
            let [balance] = rows::read(transaction.get_for_update(place, true)?.as_deref())?;
            let Some(balance) = balance.checked_add(amount) else {
                return Ok(Err(Status::INVALID));
            };
            let balance = rows::numbers([balance]);
            transaction.put(place, &balance)?;
            let deposits = transaction.get_for_update(rows::DEPOSITS, true)?;
            let [number] = rows::read(deposits.as_deref())?;
            transaction.put(rows::DEPOSITS, rows::numbers([number + 1]))?;
            let writer = u64::from(std::process::id());
            let deposit = rows::numbers([self.epoch, writer, account, amount, reference]);
            transaction.put(rows::deposit_row(number), deposit)?;
            (self.reach)(Step::Carried);
            Ok(Ok(balance))
        })
    }

    /// Forgets a caller that will never send anything again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn leave(&self, client: ServiceId) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        self.records(&transaction).leave(client)?;
        self.commit(transaction)
    }

    /// Says what is in an account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn balance(&self, account: u64) -> Result<u64, StoreError> {
        let [balance] = rows::read(self.database.get(rows::account_row(account))?.as_deref())?;
        Ok(balance)
    }

    /// Gives all deposits, in the order in which they were made.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn deposits(&self) -> Result<Vec<Deposit>, StoreError> {
        let [count] = rows::read(self.database.get(rows::DEPOSITS)?.as_deref())?;
        let deposit = |number| {
            let row = self.database.get(rows::deposit_row(number))?;
            let row = row.ok_or(StoreError::Corrupt("a deposit is missing"))?;
            let [epoch, writer, account, amount, reference] = rows::read(Some(&row))?;
            Ok(Deposit { epoch, writer, account, amount, reference })
        };
        (0..count).map(deposit).collect()
    }

    fn records<'a>(&self, transaction: &'a Transaction<'a, TransactionDB>) -> Records<'a> {
        Records { transaction, limits: self.limits }
    }
}

impl Transactional for Store {
    type Transaction<'a> = Transaction<'a, TransactionDB>;
    type Error = StoreError;

    /// Refuses who was deposed: the row of the epoch is locked until the transaction ends, so that
    /// there is one at a time.
    fn begin(&self) -> Result<Self::Transaction<'_>, StoreError> {
        let mut durable = WriteOptions::default();
        durable.set_sync(true);
        let transaction = self.database.transaction_opt(&durable, &TransactionOptions::default());
        let [epoch] = rows::read(transaction.get_for_update(rows::EPOCH, true)?.as_deref())?;
        if epoch > self.epoch {
            return Err(StoreError::Stale(self.epoch, epoch));
        }
        if epoch < self.epoch {
            transaction.put(rows::EPOCH, rows::numbers([self.epoch]))?;
        }
        Ok(transaction)
    }

    fn recorded(
        &self,
        transaction: &Self::Transaction<'_>,
        key: &RequestKey,
    ) -> Result<Option<Answer>, StoreError> {
        self.records(transaction).find(key)
    }

    fn record(
        &self,
        transaction: &mut Self::Transaction<'_>,
        key: &RequestKey,
        answer: &Answer,
    ) -> Result<(), StoreError> {
        self.records(transaction).add(key, answer)?;
        (self.reach)(Step::Recorded);
        Ok(())
    }

    fn commit(&self, transaction: Self::Transaction<'_>) -> Result<(), StoreError> {
        transaction.commit().map_err(StoreError::Commit)?;
        (self.reach)(Step::Committed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ipc::{Priority, ServiceId};

    use super::*;

    fn key(id: u64) -> RequestKey {
        RequestKey::new(ServiceId::new(7), id, Priority::Normal)
    }

    fn open(directory: &tempfile::TempDir, epoch: u64) -> Store {
        Store::open(directory.path(), epoch, Limits::default()).expect("nobody has it open")
    }

    fn deposit(store: &Store, id: u64, amount: u64) -> Answer {
        store.deposit(&key(id), 5, amount, id).expect("the database works")
    }

    fn bytes(balance: u64) -> Vec<u8> {
        rows::numbers([balance])
    }

    #[test]
    fn a_deposit_sent_again_is_made_once_also_by_a_successor() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = open(&directory, 1);
        assert_eq!(deposit(&first, 1, 10), Ok(bytes(10)));
        assert_eq!(deposit(&first, 1, 10), Ok(bytes(10)));
        drop(first);
        let second = open(&directory, 2);
        assert_eq!(deposit(&second, 1, 10), Ok(bytes(10)));
        assert_eq!(deposit(&second, 2, 1), Ok(bytes(11)));
        assert_eq!(second.balance(5).expect("a number"), 11);
        let epochs: Vec<u64> =
            second.deposits().expect("whole").iter().map(|deposit| deposit.epoch).collect();
        assert_eq!(epochs, [1, 2]);
    }

    #[test]
    fn a_refusal_is_recorded_as_well() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory, 1);
        assert_eq!(deposit(&store, 1, u64::MAX), Ok(bytes(u64::MAX)));
        assert_eq!(deposit(&store, 2, 1), Err(Status::INVALID));
        let again = store.deposit(&key(2), 6, 1, 2).expect("known");
        assert_eq!(again, Err(Status::INVALID), "though there is room in this account");
    }

    #[test]
    fn the_deposed_do_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = open(&directory, 2);
        assert_eq!(deposit(&store, 1, 10), Ok(bytes(10)));
        store.epoch = 1;
        let refused = store.deposit(&key(2), 5, 10, 2).expect_err("deposed");
        assert_eq!(refused.status(), Status::STALE);
        let known = store.deposit(&key(1), 5, 10, 1).expect_err("not even what is known is told");
        assert_eq!(known.status(), Status::STALE);
        assert_eq!(store.balance(5).expect("a number"), 10);
    }

    #[test]
    fn who_has_it_open_keeps_others_out() {
        let directory = tempfile::tempdir().expect("a directory");
        let _first = open(&directory, 1);
        let refused = Store::open(directory.path(), 2, Limits::default()).expect_err("it is open");
        assert!(refused.is_locked(), "{refused}");
    }

    #[test]
    fn what_fails_leaves_neither_effect_nor_record() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory, 1);
        let failed: Result<Answer, StoreError> = carry_out(&store, &key(1), |transaction| {
            transaction.put(rows::account_row(5), rows::numbers([10]))?;
            Err(StoreError::Corrupt("for this test"))
        });
        failed.expect_err("it fails");
        assert_eq!(store.balance(5).expect("a number"), 0);
        assert_eq!(deposit(&store, 1, 3), Ok(bytes(3)), "it was not recorded");
    }
}
