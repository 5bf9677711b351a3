//! What the two ends of a socket channel say to each other: one packet each. Pure.
//!
//! ```text
//!  0        8        16       24
//!  ┌────────┬────────┬────────┬───────────────┐
//!  │ head 0 │ head 1 │ total  │ payload …     │   a frame: the two words of its head, without a
//! lap
//!  └────────┴────────┴────────┴───────────────┘
//!  ┌────────┬────────┬────────┐
//!  │ 0      │ credit │ 0      │                   so many more frames: low half urgent, high half
//!  └────────┴────────┴────────┘                   ordinary
//!  ┌────────┬────────┬────────┐
//!  │ MAGIC  │ session│geometry│                   the first packet each way
//!  └────────┴────────┴────────┘
//! ```
//! All words are little-endian. Kinds begin at 1, so the words tell which it is.

use crate::{
    error::PeerCorrupt,
    frame::{FLAG_BULK, Frame, Head, Label, Sender},
    layout::{Geometry, Ring},
};

/// Bytes before the payload.
pub(super) const HEAD: usize = 24;
/// `ipcsock` and the version, 1, as the bytes stand in a packet.
const MAGIC: u64 = u64::from_le_bytes(*b"ipcsock\x01");

/// A packet, checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    Hello { session: u32, geometry: u64 },
    Credit([u32; 2]),
    Frame(Frame, &'a [u8]),
}

/// What the largest frame of a geometry takes.
pub(super) fn largest(geometry: Geometry) -> usize {
    HEAD + geometry.ordinary_slab() as usize / 2 + crate::layout::INLINE
}

pub(super) fn geometry_word(geometry: Geometry) -> u64 {
    u64::from(geometry.ordinary_cells()) << 32 | u64::from(geometry.ordinary_slab())
}

fn words(words: [u64; 3]) -> [u8; HEAD] {
    let mut bytes = [0; HEAD];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

pub(super) fn hello(session: u32, geometry: Geometry) -> [u8; HEAD] {
    words([MAGIC, u64::from(session), geometry_word(geometry)])
}

pub(super) fn credit([urgent, ordinary]: [u32; 2]) -> [u8; HEAD] {
    words([0, u64::from(ordinary) << 32 | u64::from(urgent), 0])
}

/// Lays out a frame behind which its payload goes.
pub(super) fn frame(frame: &Frame) -> [u8; HEAD] {
    let Head { flags, length, .. } = frame.head;
    let [first, second] = label(&frame.head).head(flags, length as usize, 0);
    words([first, second, frame.total])
}

/// What the head of a frame says of its message.
pub(super) fn label(head: &Head) -> Label {
    Label::new(head.kind, head.priority).with_id(head.id).with_deadline(head.deadline)
}

/// Takes a packet apart, as sent by `sender`, whose rings are of this geometry.
///
/// # Errors
/// [`PeerCorrupt`] for what no honest end sends.
pub(super) fn read(
    bytes: &[u8],
    sender: Sender,
    geometry: Geometry,
) -> Result<Packet<'_>, PeerCorrupt> {
    let (head, payload) = bytes.split_first_chunk::<HEAD>().ok_or(PeerCorrupt::Length)?;
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&head[at * 8..at * 8 + 8]);
        u64::from_le_bytes(word)
    };
    let [first, second, third] = [word(0), word(1), word(2)];
    if first == MAGIC && payload.is_empty() && second >> 32 == 0 {
        return Ok(Packet::Hello { session: second as u32, geometry: third });
    }
    if first == 0 && third == 0 && payload.is_empty() {
        return Ok(Packet::Credit([second as u32, (second >> 32) as u32]));
    }
    // No bits of a lap: the receiver's ring gives it one.
    if first as u32 >> 4 != 0 {
        return Err(PeerCorrupt::Stamp);
    }
    let ring = if first >> 56 & 7 <= 1 { Ring::Urgent } else { Ring::Ordinary };
    let frame =
        Frame::check([first, second], || [0, third], sender, ring, geometry.slab(ring) / 2)?;
    if frame.head.flags & FLAG_BULK != 0 {
        return Err(PeerCorrupt::Flags);
    }
    if payload.len() != frame.head.length as usize || third != frame.total {
        return Err(PeerCorrupt::Length);
    }
    Ok(Packet::Frame(frame, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Kind;
    use proptest::prelude::*;

    #[test]
    fn each_packet_is_read_as_it_was_written() {
        let geometry = Geometry::default();
        let read = |bytes: &[u8]| format!("{:?}", read(bytes, Sender::Client, geometry));
        let word = geometry_word(geometry);
        let expected: Result<_, PeerCorrupt> = Ok(Packet::Hello { session: 7, geometry: word });
        assert_eq!(read(&hello(7, geometry)), format!("{expected:?}"));
        let expected: Result<_, PeerCorrupt> = Ok(Packet::Credit([3, 9]));
        assert_eq!(read(&credit([3, 9])), format!("{expected:?}"));
        let head =
            Head { kind: Kind::Request, flags: 0, priority: 2, length: 5, id: 77, deadline: 88 };
        let sent = Frame { head, total: 5, place: 0 };
        let bytes = [&frame(&sent)[..], b"hello"].concat();
        let expected: Result<_, PeerCorrupt> = Ok(Packet::Frame(sent, b"hello"));
        assert_eq!(read(&bytes), format!("{expected:?}"));
        for wrong in [&bytes[..HEAD + 4], &bytes[..9], &[&bytes[..], b"!"].concat()[..]] {
            assert!(read(wrong).starts_with("Err"), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_a_packet_or_a_lie(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            for sender in [Sender::Client, Sender::Server] {
                let read = read(&bytes, sender, Geometry::default());
                if let Ok(Packet::Frame(frame, payload)) = read {
                    prop_assert!(frame.head.flags & FLAG_BULK == 0);
                    prop_assert_eq!(payload.len(), frame.head.length as usize);
                    prop_assert_eq!(&super::frame(&frame)[..], &bytes[..HEAD]);
                }
            }
        }
    }
}
