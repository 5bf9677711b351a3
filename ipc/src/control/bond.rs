//! What an introduction says that a session is bound to, beside the numbers of its two ends.

use sha2::{Digest, Sha256};

use super::{
    Malformed,
    wire::{Reader, Writer},
};

/// Whom the runtime says that it introduces, for the handshake of an encrypted channel.
///
/// Names travel as their hashes: an end compares them with the name that it serves, or that it
/// looked up, and does not need to be told another's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bond {
    /// The epoch of the name that is served, when the channel was asked for; 0 before the first.
    pub epoch: u64,
    /// Whether the registry binds the key of who opened the channel: it serves a name, or the
    /// supervisor made its key. The key of who serves is always bound, since it is registered.
    pub is_known: bool,
    /// [`name_hash`] of the name that the opener appears under; of an empty one where it has none.
    pub opener: [u8; 32],
    /// That of the name which is served.
    pub dest: [u8; 32],
}

/// Hashes a name (SHA-256).
pub fn name_hash(name: &str) -> [u8; 32] {
    Sha256::digest(name.as_bytes()).into()
}

impl Writer {
    pub(super) fn bond(&mut self, it: &Bond) {
        self.u64(it.epoch);
        self.u32(u32::from(it.is_known));
        self.raw(&it.opener);
        self.raw(&it.dest);
    }
}

impl Reader<'_> {
    pub(super) fn bond(&mut self) -> Result<Bond, Malformed> {
        let (epoch, is_known) = (self.u64()?, self.bool()?);
        Ok(Bond { epoch, is_known, opener: self.take()?, dest: self.take()? })
    }
}
