//! Introductions: of one end of a channel to the other, and what its session is bound to.

use sha2::{Digest, Sha256};

use super::{
    Malformed,
    wire::{Reader, Writer},
};
use crate::{ServiceId, layout::Geometry};

/// Introduces one end of a channel to the other. The kernel proved every word of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Of the channel; never reused.
    pub channel: u64,
    /// High half of the first message id on it.
    pub session: u32,
    /// Zero of its deadlines: `CLOCK_MONOTONIC` in ns.
    pub start_ns: u64,
    /// Whether both ends use the asymmetric fence.
    pub asymmetric: bool,
    /// The other end: its instance, or its anonymous id.
    pub peer: ServiceId,
    /// The other end: the id of the name it serves, or 0.
    pub peer_name: ServiceId,
    /// The other end's process.
    pub peer_pid: u32,
    /// The other end's user.
    pub peer_uid: u32,
    /// The instance that serves on this channel.
    pub dest: ServiceId,
    /// The name of that instance.
    pub dest_name: ServiceId,
    /// Geometry of both lanes.
    pub geometry: Geometry,
    /// What the client may do: bits `1 << operation_type_t`.
    pub permissions: u64,
    /// Who opened it: its instance, or its anonymous id.
    pub opener: ServiceId,
    /// Whether a handshake comes first, and every frame after it is sealed.
    pub encrypted: bool,
    /// The other end's public key, as its node told the runtime; zeros where it has none.
    pub peer_key: [u8; 32],
    /// Whom it introduces, for the handshake.
    pub bond: Bond,
}

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
