//! Effects that happen once, though requests are sent again.
//!
//! When a service dies, its callers send what it had not answered to whoever takes its place. A
//! request may thus have been carried out already, and only its answer be lost. Who serves
//! therefore writes down what it answered before it answers, where its successor finds it:
//!
//! | where the record is | what a caller is promised |
//! |---|---|
//! | in a [`Window`] of one process | once, as long as that process lives |
//! | in a window that the successor reads ([`Log`]) | once, or "maybe" if it died in the middle |
//! | in the transaction of the effect itself ([`Transactional`]) | once |
//!
//! `docs/failover.md` has the whole table.

mod gate;
mod log;
mod window;

use crate::{Priority, ServiceId, error::Status};
pub use gate::Gate;
pub use log::{Log, LogError, Memory, recover};
pub use window::{Known, Limits, Window};

/// Names a request, also after it was sent again to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// Who sent it: of a [`Request`](crate::Request) the number of its process, which the kernel
    /// proved.
    pub client: ServiceId,
    /// Its message id: the sender's session in the high half.
    pub message_id: u64,
    /// Whether it travels on the urgent ring, whose order is its own.
    pub is_urgent: bool,
}

impl RequestKey {
    /// Bytes of a key.
    pub const BYTES: usize = 16;

    /// Makes the key of a request of that priority.
    pub fn new(client: ServiceId, message_id: u64, priority: Priority) -> RequestKey {
        RequestKey { client, message_id, is_urgent: priority <= Priority::High }
    }

    /// Gives bytes that sort by client, ring and message id, as the keys of a store do.
    ///
    /// ```
    /// use ipc::{Priority, ServiceId, once::RequestKey};
    ///
    /// let key = |id| RequestKey::new(ServiceId::new(7), id, Priority::Normal);
    /// assert!(key(255).to_bytes() < key(256).to_bytes());
    /// assert_eq!(RequestKey::from_bytes(&key(256).to_bytes()), key(256));
    /// ```
    pub fn to_bytes(self) -> [u8; RequestKey::BYTES] {
        let mut bytes = [0; RequestKey::BYTES];
        bytes[..4].copy_from_slice(&self.client.get().to_be_bytes());
        bytes[4..8].copy_from_slice(&u32::from(self.is_urgent).to_be_bytes());
        bytes[8..].copy_from_slice(&self.message_id.to_be_bytes());
        bytes
    }

    /// Reads such bytes. Any are a key.
    pub fn from_bytes(bytes: &[u8; RequestKey::BYTES]) -> RequestKey {
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|n| bytes[at + n]));
        RequestKey {
            client: ServiceId::new(word(0)),
            message_id: u64::from(word(8)) << 32 | u64::from(word(12)),
            is_urgent: word(4) != 0,
        }
    }
}

/// How a request was answered: by a payload, or by a status.
pub type Answer = Result<Vec<u8>, Status>;

/// A store that writes down what was answered in the same transaction as the effect.
///
/// [`carry_out`] is how it is used. An implementation forgets, as a [`Window`] does: the oldest
/// records of a caller, and never so that a request which it has forgotten looks new. `tests/store`
/// implements it over `RocksDB`.
pub trait Transactional {
    /// Effects that are not visible yet.
    type Transaction<'a>
    where
        Self: 'a;
    /// Why the store failed.
    type Error;

    /// Begins a transaction. Dropped without [`commit`](Transactional::commit), it leaves nothing.
    ///
    /// # Errors
    /// The store's: also that somebody wrote in a later epoch, so that this process serves no more.
    fn begin(&self) -> Result<Self::Transaction<'_>, Self::Error>;

    /// Finds what was answered to a request, or [`Status::MAYBE`] if that is forgotten. It must see
    /// every committed transaction, and keep others from committing the same key until this one
    /// ends.
    ///
    /// # Errors
    /// The store's.
    fn recorded(
        &self,
        transaction: &Self::Transaction<'_>,
        key: &RequestKey,
    ) -> Result<Option<Answer>, Self::Error>;

    /// Adds the record to the transaction.
    ///
    /// # Errors
    /// The store's.
    fn record(
        &self,
        transaction: &mut Self::Transaction<'_>,
        key: &RequestKey,
        answer: &Answer,
    ) -> Result<(), Self::Error>;

    /// Makes effect and record visible and durable, both or neither.
    ///
    /// # Errors
    /// The store's. Whether both are there or neither may be unknown then; the caller, who is told
    /// so, finds out by sending the request again.
    fn commit(&self, transaction: Self::Transaction<'_>) -> Result<(), Self::Error>;
}

/// Carries a request out, unless that was done before; gives the answer to send, which is durable.
///
/// The effect's own refusal is an answer, too, and is recorded with whatever it wrote. An effect
/// that fails by an error of the store leaves nothing.
///
/// # Errors
/// The store's. Nothing was done, unless it is [`commit`](Transactional::commit) that failed.
pub fn carry_out<S: Transactional>(
    store: &S,
    key: &RequestKey,
    effect: impl FnOnce(&mut S::Transaction<'_>) -> Result<Answer, S::Error>,
) -> Result<Answer, S::Error> {
    let mut transaction = store.begin()?;
    if let Some(answer) = store.recorded(&transaction, key)? {
        return Ok(answer);
    }
    let answer = effect(&mut transaction)?;
    store.record(&mut transaction, key, &answer)?;
    store.commit(transaction)?;
    Ok(answer)
}
