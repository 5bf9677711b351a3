//! Records: what a session makes of frames.
//!
//! A record is a frame's payload, encrypted, and a tag over it, the frame's head and the session.
//! Its nonce is its position in its ring. The receiver takes that from its own cursor, never from
//! the frame: a record opens where it was sealed for, and nowhere else. Each ring of each direction
//! has keys of its own, so the rings need no order between them.
//!
//! # Generations
//! After [`Limits::rekey_records`] or [`Limits::rekey_age_ns`] the sender goes on with the next
//! key, which both ends derive from the last one, as Noise's `Rekey` does; the last one is
//! forgotten. One bit of the head, the *phase*, tells which of two neighbours a record is sealed
//! with. So nothing waits and nothing is agreed. A receiver refuses a generation that is used for
//! longer than [`Limits::reject_records`] or [`Limits::reject_age_ns`]: no honest sender does.
//!
//! # Refusals
//! A record that does not open is dropped and counted, and the next one opens. Why it did not is
//! found out afterwards, by trying the positions near it, [`BAD_RECORDS`] times in a session at
//! most.

mod direction;
mod open;
mod seal;

pub(crate) use self::{
    direction::{Context, Way},
    open::{Opener, Refusal},
    seal::{Sealer, Spent},
};

/// Records that may be refused before the channel is poisoned.
pub(crate) const BAD_RECORDS: u32 = 16;

/// The first position that is never used: those above are for deriving keys.
const END: u64 = u64::MAX - 0xFFFF;

/// How long a key is used. Times are in ns of the channel's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Records after which a sender changes its key.
    pub(crate) rekey_records: u64,
    /// The age at which it does.
    pub(crate) rekey_age_ns: u64,
    /// Records of one key after which a receiver refuses more.
    pub(crate) reject_records: u64,
    /// The age at which it does: since it first saw the key.
    pub(crate) reject_age_ns: u64,
}

impl Default for Limits {
    /// A key serves for 16 million records or two minutes. Twice as many, or half an hour, are
    /// refused: a receiver may have been stopped with records of its last key before it.
    fn default() -> Limits {
        let second = 1_000_000_000;
        Limits {
            rekey_records: 1 << 24,
            rekey_age_ns: 120 * second,
            reject_records: 1 << 25,
            reject_age_ns: 1800 * second,
        }
    }
}

#[cfg(test)]
pub(crate) mod flips;
#[cfg(test)]
mod tests;
