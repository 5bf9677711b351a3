//! What the two ends of a socket channel say to each other: one packet each. Pure.
//!
//! ```text
//!  0        8        16       24
//!  ┌────────┬────────┬────────┬───────────────┐
//!  │ head 0 │ head 1 │ total  │ payload …     │   a frame: the words of its head, without a lap
//!  └────────┴────────┴────────┴───────────────┘
//!  ┌────────┬────────┬────────┐
//!  │ 0      │ credit │ 0      │                   so many more frames: low half urgent, high half
//!  └────────┴────────┴────────┘                   ordinary
//!  ┌────────┬────────┬────────┐
//!  │ MAGIC  │ session│geometry│                   the first packet each way
//!  └────────┴────────┴────────┘
//! ```
//! All words are little-endian. Kinds begin at 1, so the words tell which it is.
//!
//! On an encrypted channel all frames but those of the handshake are records: the payload is the
//! ciphertext and the tag behind it, and the total is the length in the head.

use crate::{
    error::PeerCorrupt,
    frame::{FLAG_BULK, Frame, Head, Kind, Label, Sender},
    layout::{Geometry, Ring},
    session::aead::TAG,
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

/// What the largest frame of a geometry takes, also one that is sealed: the tag takes the place of
/// what the cell has less of its text.
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

/// Takes a packet apart, as sent by `sender`, whose rings are of this geometry, on a channel that
/// is `encrypted` or not.
///
/// # Errors
/// [`PeerCorrupt`] for what no honest end sends. A record that was tampered with is none of that:
/// who has the key finds out.
pub(super) fn read(
    bytes: &[u8],
    sender: Sender,
    geometry: Geometry,
    encrypted: bool,
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
    let (words, max_slab) = ([first, second], geometry.slab(ring) / 2);
    let (frame, tag) = if encrypted && first & 0xF != Kind::Hello as u64 {
        (Frame::check_sealed(words, sender, ring, max_slab)?, TAG)
    } else {
        (Frame::check(words, || [0, third], sender, ring, max_slab)?, 0)
    };
    if frame.head.flags & FLAG_BULK != 0 {
        return Err(PeerCorrupt::Flags);
    }
    if payload.len() != frame.head.length as usize + tag || third != frame.total {
        return Err(PeerCorrupt::Length);
    }
    Ok(Packet::Frame(frame, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        frame::{FLAG_PHASE, FLAG_SLAB, INLINE_SEALED},
        layout::INLINE,
    };
    use proptest::prelude::*;

    #[test]
    fn each_packet_is_read_as_it_was_written() {
        let geometry = Geometry::default();
        let read = |bytes: &[u8]| format!("{:?}", read(bytes, Sender::Client, geometry, false));
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

    #[test]
    fn of_an_encrypted_channel_all_but_the_handshake_is_read_as_records() {
        let geometry = Geometry::of_sockets();
        let of = |kind, flags, length: u32| Frame {
            head: Head { kind, flags, priority: 2, length, id: 77, deadline: 88 },
            total: u64::from(length),
            place: 0,
        };
        let packet =
            |frame: &Frame, more: usize| [&super::frame(frame)[..], &vec![9; more]].concat();
        let is_read = |bytes: &[u8], encrypted| {
            let read = read(bytes, Sender::Client, geometry, encrypted);
            matches!(read, Ok(Packet::Frame(..)))
        };
        let most = INLINE_SEALED as u32 + geometry.slab(Ring::Ordinary) / 2;
        for (flags, length) in
            [(0, 0), (FLAG_PHASE, 32), (FLAG_SLAB, 33), (FLAG_SLAB | FLAG_PHASE, most)]
        {
            let record = of(Kind::Request, flags, length);
            let bytes = packet(&record, length as usize + TAG);
            assert!(is_read(&bytes, true), "{flags} {length}");
            assert!(bytes.len() <= largest(geometry));
            assert!(!is_read(&bytes, false) && !is_read(&bytes[..bytes.len() - TAG], true));
        }
        let beyond = of(Kind::Request, FLAG_SLAB, most + 1);
        assert!(!is_read(&packet(&beyond, most as usize + 1 + TAG), true));
        // Nobody can say anything in plain, and the handshake is.
        let plain = of(Kind::Request, 0, 40);
        assert!(is_read(&packet(&plain, 40), false) && !is_read(&packet(&plain, 40), true));
        let hello = of(Kind::Hello, 0, 40);
        assert!(is_read(&packet(&hello, 40), true) && !is_read(&packet(&hello, 40 + TAG), true));
    }

    /// Bytes that are nearly a frame: each of its fields may be anything, and so may their number.
    fn nearly_frames() -> impl Strategy<Value = Vec<u8>> {
        let fields = (0..16_u64, 0..32_u64, 0..8_u64, 0..9000_u64, any::<u64>());
        (fields, prop_oneof![Just(0), Just(TAG), 0..40_usize], 0..20_u64, 0..20_u64).prop_map(
            |((kind, flags, priority, length, second), more, lap, total)| {
                let length = if flags & 1 == 0 { length % 60 } else { length };
                let first = flags << 59 | priority << 56 | length << 32 | kind;
                // Mostly as they should be.
                let lap = if lap == 0 { 1 << 4 } else { 0 };
                let total = if total == 0 { length + 1 } else { length };
                let head = words([first | lap, second, total]);
                [&head[..], &vec![7; length as usize + more]].concat()
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn whatever_comes_is_a_packet_or_a_lie(
            bytes in prop_oneof![nearly_frames(), prop::collection::vec(any::<u8>(), 0..80)]
        ) {
            for (sender, encrypted) in [
                (Sender::Client, false), (Sender::Server, false),
                (Sender::Client, true), (Sender::Server, true),
            ] {
                let read = read(&bytes, sender, Geometry::of_sockets(), encrypted);
                if let Ok(Packet::Frame(frame, payload)) = read {
                    let is_record = encrypted && frame.head.kind != Kind::Hello;
                    let tag = if is_record { TAG } else { 0 };
                    prop_assert!(frame.head.flags & FLAG_BULK == 0);
                    prop_assert_eq!(payload.len(), frame.head.length as usize + tag);
                    prop_assert_eq!(&super::frame(&frame)[..], &bytes[..HEAD]);
                    prop_assert!(bytes.len() <= largest(Geometry::of_sockets()));
                    let cell = if is_record { INLINE_SEALED } else { INLINE };
                    let in_cell = frame.head.flags & FLAG_SLAB == 0;
                    prop_assert!(!in_cell || frame.head.length as usize <= cell);
                }
            }
        }
    }
}
