//! Calls between processes over shared memory.
#![deny(missing_docs)]

#[cfg(not(loom))]
mod clock;
#[cfg(not(loom))]
pub mod control;
#[cfg(not(loom))]
mod copy;
pub mod error;
mod frame;
mod lane;
pub mod layout;
#[cfg(not(loom))]
mod life;
mod ring;
mod sync;
mod wait;

pub use error::{CallError, NodeError, PeerCorrupt, Status};
pub use lane::verify as verify_lane;
pub use layout::Geometry;
pub use wait::spin::Spin;

/// Names a service: an instance, or the name that leads to whoever serves it. 0 is none or any.
///
/// Ids are given by the runtime and never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(u32);

impl ServiceId {
    /// No service, or any.
    pub const NONE: ServiceId = ServiceId(0);

    /// Wraps a number as it came from C or from the wire, whatever it is.
    pub const fn new(id: u32) -> ServiceId {
        ServiceId(id)
    }

    /// Gives the number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl std::fmt::Display for ServiceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}
