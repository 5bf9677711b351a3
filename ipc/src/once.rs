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
    /// Who sent it; the kernel proved it.
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
