//! Bulk memory: messages too large for a ring lie in *arenas*, and the ring says where.
//!
//! An arena is a memfd of the sender, made when it is first needed, allocated in full, sealed like
//! a lane and handed over on the channel's own socket pair, so that it works without the runtime.
//!
//! ```text
//!   sender                                             receiver
//!   Lender ─ lends a span ─▶ Loan ─ fill ─ send        Borrower ─ looks the arena up ─▶ View
//!     ▲                                │ descriptor       │            │ read, copy
//!     │                                └───── ring ──────▶┘            │ drop
//!     └──── generation == released[slot]? ◀── header of its own lane ──┘
//! ```
//! A loan has one of 32 slots. Its receiver gives it back, in any order, by storing the loan's
//! generation into the slot's word of its own lane. One that never does pins memory of the sender
//! up to a quota; then messages travel through the ring in pieces, as they would without arenas.

mod arena;
mod borrower;
mod lender;
mod space;

#[cfg(feature = "fuzzing")]
pub(crate) use self::arena::OwnArena;
pub use self::{borrower::View, lender::Loan};
pub(crate) use self::{
    borrower::{Borrower, Unread, no_means},
    lender::Lender,
};

use crate::frame::DESCRIPTOR;

/// Loans that may be outstanding in one direction of a channel.
pub(crate) const SLOTS: usize = 32;
/// Bytes of arenas in one direction of a channel, and arenas.
pub(crate) const MOST_BYTES: u64 = 1 << 30;
pub(crate) const MOST_ARENAS: usize = 256;
/// From this size on a message that is copied goes through an arena, if there is room for it there.
pub(crate) const FROM: usize = 16 * 1024;

/// Where a message lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// The arena's number.
    pub(crate) arena: u32,
    pub(crate) slot: u32,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// Of the slot's loans this one. Never 0.
    pub(crate) generation: u32,
}

impl Descriptor {
    pub(crate) fn to_bytes(self) -> [u8; DESCRIPTOR] {
        let mut bytes = [0; DESCRIPTOR];
        let words = [
            u64::from(self.slot) << 32 | u64::from(self.arena),
            self.offset,
            self.length,
            u64::from(self.generation),
        ];
        for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *chunk = word.to_le_bytes();
        }
        bytes
    }

    /// What these bytes allege; nothing when no honest sender writes them.
    pub(crate) fn from_bytes(bytes: [u8; DESCRIPTOR]) -> Option<Descriptor> {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        let [place, offset, length, generation] = words;
        let generation = u32::try_from(generation).ok().filter(|it| *it != 0)?;
        let slot = (place >> 32) as u32;
        ((slot as usize) < SLOTS).then_some(Descriptor {
            arena: place as u32,
            slot,
            offset,
            length,
            generation,
        })
    }
}

/// The length of the message that a descriptor of ours speaks of.
pub(crate) fn length(descriptor: &[u8]) -> u64 {
    let bytes = descriptor.first_chunk().copied();
    bytes.and_then(Descriptor::from_bytes).map_or(0, |it| it.length)
}

/// What is said about arenas on the channel's socket, in packets of 16 bytes. Shorter ones are
/// doorbells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Comes with a descriptor.
    Arena { number: u32, bytes: u64 },
    /// The sender lets go of an arena, on which no loan is outstanding.
    Gone { number: u32 },
}

/// Bytes of a [`Notice`].
pub(crate) const NOTICE: usize = 16;

impl Notice {
    pub(crate) fn to_bytes(self) -> [u8; NOTICE] {
        let (kind, number, bytes) = match self {
            Notice::Arena { number, bytes } => (1_u32, number, bytes),
            Notice::Gone { number } => (2, number, 0),
        };
        let mut packet = [0; NOTICE];
        packet[..4].copy_from_slice(&kind.to_le_bytes());
        packet[4..8].copy_from_slice(&number.to_le_bytes());
        packet[8..].copy_from_slice(&bytes.to_le_bytes());
        packet
    }

    pub(crate) fn from_bytes(packet: [u8; NOTICE]) -> Option<Notice> {
        let [words, bytes] = [0, 8].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&packet[at..at + 8]);
            u64::from_le_bytes(word)
        });
        let number = (words >> 32) as u32;
        match words as u32 {
            1 => Some(Notice::Arena { number, bytes }),
            2 if bytes == 0 => Some(Notice::Gone { number }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_descriptor_survives_its_bytes(
            arena: u32, slot in 0_u32..SLOTS as u32, offset: u64, length: u64,
            generation in 1_u32..,
        ) {
            let descriptor = Descriptor { arena, slot, offset, length, generation };
            prop_assert_eq!(Descriptor::from_bytes(descriptor.to_bytes()), Some(descriptor));
        }

        #[test]
        fn any_bytes_are_a_descriptor_of_a_slot_that_exists_or_none(bytes: [u8; DESCRIPTOR]) {
            if let Some(descriptor) = Descriptor::from_bytes(bytes) {
                prop_assert!((descriptor.slot as usize) < SLOTS && descriptor.generation != 0);
                prop_assert_eq!(descriptor.to_bytes(), bytes);
            }
        }

        #[test]
        fn any_packet_is_a_notice_or_none(packet: [u8; NOTICE]) {
            if let Some(notice) = Notice::from_bytes(packet) {
                prop_assert_eq!(notice.to_bytes(), packet);
            }
        }
    }
}
