//! What is listed of an instance.

use super::{HEAD, MAX_PACKET};
use crate::ServiceId;

/// Describes one registered instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of the instance.
    pub instance: ServiceId,
    /// Of its name.
    pub name_id: ServiceId,
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Place among the replicas of the name: 0 serves, the others stand by.
    pub rank: u32,
    /// `SERVICE_*` bits.
    pub flags: u32,
    /// Channels introduced to it since it registered.
    pub channels: u32,
    /// Its name.
    pub name: String,
}

/// Tells how many of the entries, from the first, fit into one packet.
pub fn page_fits(entries: &[Entry]) -> usize {
    let mut room = MAX_PACKET - HEAD - 8;
    entries
        .iter()
        .take_while(|entry| {
            let size = Entry::FIXED + entry.name.len();
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        })
        .count()
}

impl Entry {
    /// Bytes of an entry without those of its name.
    pub(super) const FIXED: usize = 7 * 4 + 2;
}
