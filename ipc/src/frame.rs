//! One frame: alleged bytes of a peer on one side, a checked [`Frame`] on the other.
//!
//! The 16-byte head of a cell is two words:
//!
//! ```text
//!  word 0   31                4 3    0   63    59 58     56 55                 32
//!          ┌───────────────────┬──────┐ ┌────────┬─────────┬────────────────────┐
//!          │ lap               │ kind │ │ flags  │ priority│ length             │
//!          └───────────────────┴──────┘ └────────┴─────────┴────────────────────┘
//!  word 1   low half: id               high half: deadline, µs since channel start
//! ```
//! Word 0 is stored last, with `Release`: its low half, the stamp, opens the frame.

use crate::{
    error::PeerCorrupt,
    layout::{INLINE, Ring},
};

/// Longest frame; longer messages travel in several.
pub(crate) const MAX_FRAME: u32 = (1 << 24) - 1;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Wants exactly one `Response` or `Error` with its id.
    Request = 1,
    /// Wants nothing.
    OneWay = 2,
    /// The answer to a request.
    Response = 3,
    /// A status in place of an answer.
    Error = 4,
    /// The next fragment of the message that began with this id.
    Continue = 5,
    /// Withdraws a request.
    Cancel = 6,
    /// Asks for a `Pong`.
    Ping = 7,
    /// Answers a `Ping`.
    Pong = 8,
}

impl Kind {
    fn from_bits(bits: u32) -> Option<Kind> {
        Some(match bits {
            1 => Kind::Request,
            2 => Kind::OneWay,
            3 => Kind::Response,
            4 => Kind::Error,
            5 => Kind::Continue,
            6 => Kind::Cancel,
            7 => Kind::Ping,
            8 => Kind::Pong,
            _ => return None,
        })
    }
}

/// The end of a channel that a frame may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// Sends requests.
    Client,
    /// Sends answers.
    Server,
}

impl Sender {
    fn may_send(self, kind: Kind) -> bool {
        match kind {
            Kind::Request | Kind::OneWay | Kind::Cancel | Kind::Ping => self == Sender::Client,
            Kind::Response | Kind::Error | Kind::Pong => self == Sender::Server,
            Kind::Continue => true,
        }
    }
}

/// The payload goes on in the slab; its first word is the place there.
pub(crate) const FLAG_SLAB: u32 = 1;
/// More frames of the same message follow; on its first frame the second word is the total length.
pub(crate) const FLAG_MORE: u32 = 2;
/// A header extension follows. Reserved: refused by this version.
pub(crate) const FLAG_EXTENSION: u32 = 4;

/// Payload bytes in a cell whose payload goes on in the slab.
pub(crate) const INLINE_SLAB: usize = INLINE - 8;
/// Payload bytes in the first cell of a message of several frames.
pub(crate) const INLINE_FIRST: usize = INLINE - 16;

/// The lap of the ring in which the frame at `position` lies: from 1, in 28 bits.
#[inline]
pub(crate) fn lap(position: u64, cells_log2: u32) -> u32 {
    ((position >> cells_log2) as u32).wrapping_add(1) & 0x0FFF_FFFF
}

/// The fields of a frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) flags: u32,
    pub(crate) priority: u8,
    /// Bytes of payload in this frame.
    pub(crate) length: u32,
    pub(crate) id: u32,
    /// µs since the channel's start, modulo 2^32; 0 for none.
    pub(crate) deadline: u32,
}

impl Head {
    /// Lays out the two words of the head.
    #[inline]
    pub(crate) fn words(&self, lap: u32) -> [u64; 2] {
        let stamp = lap << 4 | self.kind as u32;
        let meta = self.flags << 27 | u32::from(self.priority) << 24 | self.length;
        [
            u64::from(meta) << 32 | u64::from(stamp),
            u64::from(self.deadline) << 32 | u64::from(self.id),
        ]
    }

    /// Whether this is the first frame of a message of several.
    #[inline]
    pub(crate) fn is_first_of_many(&self) -> bool {
        self.flags & FLAG_MORE != 0 && self.kind != Kind::Continue
    }

    /// Payload bytes that lie in the cell when some lie in the slab.
    #[inline]
    pub(crate) fn inline_capacity(&self) -> usize {
        if self.flags & FLAG_SLAB == 0 {
            INLINE
        } else if self.is_first_of_many() {
            INLINE_FIRST
        } else {
            INLINE_SLAB
        }
    }
}

/// A private copy of one cell whose head has been checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) head: Head,
    /// Length of the whole message: that of the frame, unless it is the first of many.
    pub(crate) total: u64,
    /// Alleged position in the slab; the consumer checks it against its own cursor.
    pub(crate) place: u64,
    words: [u64; 6],
}

impl Frame {
    /// Checks the words of a cell whose stamp has opened, as sent by `sender` on `ring`.
    ///
    /// `max_slab` is the largest piece that one frame may have in the slab. Costs a few compares
    /// for a small frame.
    #[inline]
    pub(crate) fn check(
        cell: [u64; 8],
        sender: Sender,
        ring: Ring,
        max_slab: u32,
    ) -> Result<Frame, PeerCorrupt> {
        let meta = (cell[0] >> 32) as u32;
        let kind = Kind::from_bits(cell[0] as u32 & 0xF).ok_or(PeerCorrupt::Kind)?;
        let head = Head {
            kind,
            flags: meta >> 27,
            priority: (meta >> 24 & 7) as u8,
            length: meta & MAX_FRAME,
            id: cell[1] as u32,
            deadline: (cell[1] >> 32) as u32,
        };
        if !sender.may_send(kind) {
            return Err(PeerCorrupt::Kind);
        }
        let fits_ring = match ring {
            Ring::Urgent => head.priority <= 1,
            Ring::Ordinary => head.priority.wrapping_sub(2) <= 2,
        };
        if !fits_ring {
            return Err(PeerCorrupt::Priority);
        }
        let words = [cell[2], cell[3], cell[4], cell[5], cell[6], cell[7]];
        if head.flags == 0 {
            if head.length as usize > INLINE {
                return Err(PeerCorrupt::Length);
            }
            return Ok(Frame { head, total: u64::from(head.length), place: 0, words });
        }
        Frame::check_long(head, words, max_slab)
    }

    fn check_long(head: Head, words: [u64; 6], max_slab: u32) -> Result<Frame, PeerCorrupt> {
        let carries_payload =
            matches!(head.kind, Kind::Request | Kind::OneWay | Kind::Response | Kind::Continue);
        if head.flags & !(FLAG_SLAB | FLAG_MORE) != 0
            || head.flags & FLAG_SLAB == 0
            || !carries_payload
        {
            return Err(PeerCorrupt::Flags);
        }
        let in_slab = (head.length as usize).saturating_sub(head.inline_capacity());
        if in_slab == 0 || in_slab > max_slab as usize {
            return Err(PeerCorrupt::Length);
        }
        let total = if head.is_first_of_many() { words[1] } else { u64::from(head.length) };
        if head.is_first_of_many() && total <= u64::from(head.length) {
            return Err(PeerCorrupt::Length);
        }
        Ok(Frame { head, total, place: words[0], words })
    }

    /// Bytes of payload in the slab.
    #[inline]
    pub(crate) fn slab_length(&self) -> usize {
        if self.head.flags & FLAG_SLAB == 0 {
            0
        } else {
            self.head.length as usize - self.head.inline_capacity()
        }
    }

    /// Copies the payload bytes that lie in the cell to the front of `target`, and says how many.
    ///
    /// `target` is at least as long as the frame.
    #[inline]
    pub(crate) fn copy_inline(&self, target: &mut [u8]) -> usize {
        let skip = (INLINE - self.head.inline_capacity()) / 8;
        let length = (self.head.length as usize).min(self.head.inline_capacity());
        unpack(&self.words[skip..], &mut target[..length]);
        length
    }

    /// The status in an `Error` frame.
    pub(crate) fn status_code(&self) -> i32 {
        self.words[0] as u32 as i32
    }
}

/// Packs up to 48 bytes into words, the rest zero, so that no old byte shows.
#[inline]
pub(crate) fn pack(bytes: &[u8], words: &mut [u64]) {
    let (chunks, tail) = bytes.as_chunks::<8>();
    for (word, chunk) in words.iter_mut().zip(chunks) {
        *word = u64::from_le_bytes(*chunk);
    }
    if !tail.is_empty() {
        words[chunks.len()] = tail_word(tail);
    }
}

#[inline]
fn tail_word(tail: &[u8]) -> u64 {
    tail.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[inline]
fn unpack(words: &[u64], target: &mut [u8]) {
    let (chunks, tail) = target.as_chunks_mut::<8>();
    for (chunk, word) in chunks.iter_mut().zip(words) {
        *chunk = word.to_le_bytes();
    }
    if !tail.is_empty() {
        let last = words[chunks.len()].to_le_bytes();
        for (byte, from) in tail.iter_mut().zip(last) {
            *byte = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        (1_u32..=8).prop_map(|bits| Kind::from_bits(bits).expect("a kind"))
    }

    proptest! {
        #[test]
        fn a_head_survives_its_words(
            kind in kinds(), priority in 0_u8..=4, length in 0_u32..=48, id: u32, deadline: u32,
            lap in 0_u32..1 << 28,
        ) {
            let head = Head { kind, flags: 0, priority, length, id, deadline };
            let words = head.words(lap);
            prop_assert_eq!(words[0] as u32 >> 4, lap);
            let cell = [words[0], words[1], 0, 0, 0, 0, 0, 0];
            let ring = if priority < 2 { Ring::Urgent } else { Ring::Ordinary };
            let sender = if Sender::Client.may_send(kind) { Sender::Client } else { Sender::Server };
            let frame = Frame::check(cell, sender, ring, 4096).expect("as written");
            prop_assert_eq!(frame.head, head);
        }

        #[test]
        fn payload_survives_the_cell(payload in prop::collection::vec(any::<u8>(), 0..=48)) {
            let mut words = [0_u64; 6];
            pack(&payload, &mut words);
            let mut out = vec![0xAA; payload.len()];
            unpack(&words, &mut out);
            prop_assert_eq!(out, payload);
        }

        #[test]
        fn whatever_a_peer_writes_is_refused_or_in_bounds(cell: [u64; 8], urgent: bool) {
            let ring = if urgent { Ring::Urgent } else { Ring::Ordinary };
            for sender in [Sender::Client, Sender::Server] {
                if let Ok(frame) = Frame::check(cell, sender, ring, 1024) {
                    prop_assert!(frame.slab_length() <= 1024);
                    prop_assert!(frame.head.length as usize <= 1024 + INLINE);
                    prop_assert!(frame.total >= u64::from(frame.head.length));
                    let mut out = vec![0; frame.head.length as usize];
                    let inline = frame.copy_inline(&mut out);
                    prop_assert_eq!(inline + frame.slab_length(), frame.head.length as usize);
                }
            }
        }
    }
}
