//! What two ends of a channel are told of each other.

use super::Bond;
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
