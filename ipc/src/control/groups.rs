//! What is told of the groups that serve names.

use super::{HEAD, MAX_PACKET};
use crate::ServiceId;

/// Most members of a group that anybody is told of.
pub const MOST_MEMBERS: usize = 64;

/// Who serves a name, and who stands by for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Id of the name.
    pub name: ServiceId,
    /// The last epoch that was told to anybody.
    pub epoch: u64,
    /// Epochs below this are reserved durably: a standby may take them by itself.
    pub limit: u64,
    /// The `SERVICE_*` bits that all members have.
    pub flags: u32,
    /// Whether a standby may take the name by itself; else the runtime says who.
    pub ordered: bool,
    /// Instances in their order: the first serves, the others stand by. At most
    /// [`MOST_MEMBERS`].
    pub members: Vec<ServiceId>,
}

/// Changes that fit one packet.
pub const MOST_CHANGES: usize = (MAX_PACKET - HEAD - 12) / Change::BYTES;

impl Change {
    /// Bytes of one in a packet.
    const BYTES: usize = 8 + 3 * 4 + 8 + 4 + 8 + 4;
}

/// Why a name changed hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Cause {
    /// The first that came.
    First = 0,
    /// Who served died, or left without a word.
    Died = 1,
    /// Who served let the name go in order.
    Left = 2,
    /// An operator, or a program, asked for it.
    Triggered = 3,
    /// Who served did not answer.
    Hung = 4,
}

/// One change of hands of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Counts all changes of this run, from 1.
    pub number: u64,
    /// Id of the name.
    pub name: ServiceId,
    /// Who served before, or 0.
    pub from: ServiceId,
    /// Who serves now.
    pub to: ServiceId,
    /// At this epoch.
    pub epoch: u64,
    /// Why.
    pub cause: Cause,
    /// When the runtime knew of it: `CLOCK_MONOTONIC` in ns.
    pub at_ns: u64,
    /// From the order to the word that it is done, in µs; 0 where a standby went first.
    pub took_us: u32,
}

impl Cause {
    /// Reads its number.
    pub fn from_number(number: u32) -> Option<Cause> {
        use Cause::{Died, First, Hung, Left, Triggered};
        [First, Died, Left, Triggered, Hung].into_iter().find(|it| *it as u32 == number)
    }
}
