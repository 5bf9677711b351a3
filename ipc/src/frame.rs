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
    layout::{EXTENSION, INLINE, Ring},
};

/// Longest frame; longer messages travel in several.
pub(crate) const MAX_FRAME: u32 = (1 << 24) - 1;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
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
    /// A message of the handshake, before anything else on an encrypted channel.
    Hello = 9,
    /// The last frame of an encrypted channel's end: it was closed in order.
    Close = 12,
}

impl Kind {
    /// Whether such a frame is a message, or the first of one.
    #[inline(always)]
    pub(crate) fn is_message(self) -> bool {
        matches!(self, Kind::Request | Kind::OneWay | Kind::Response | Kind::Error)
    }

    #[inline(always)]
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
            9 => Kind::Hello,
            12 => Kind::Close,
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
    #[inline(always)]
    fn may_send(self, kind: Kind) -> bool {
        match kind {
            Kind::Request | Kind::OneWay | Kind::Cancel | Kind::Ping => self == Sender::Client,
            Kind::Response | Kind::Error | Kind::Pong => self == Sender::Server,
            Kind::Continue | Kind::Hello | Kind::Close => true,
        }
    }
}

/// The payload goes on in the slab; its first word is the place there.
pub(crate) const FLAG_SLAB: u32 = 1;
/// More frames of the same message follow; on its first frame the second word is the total length.
pub(crate) const FLAG_MORE: u32 = 2;
/// The payload begins with an extension of the header: a trace's context.
pub(crate) const FLAG_EXTENSION: u32 = 4;
/// The payload lies in bulk memory; the cell holds its descriptor.
pub(crate) const FLAG_BULK: u32 = 8;
/// On an encrypted channel: sealed with a key of odd generation.
#[cfg(not(loom))]
pub(crate) const FLAG_PHASE: u32 = 16;

/// Bytes of text in a sealed cell, beside the tag.
#[cfg(not(loom))]
pub(crate) const INLINE_SEALED: usize = INLINE - 16;
/// Bytes of that descriptor.
pub(crate) const DESCRIPTOR: usize = 32;

/// Payload bytes in a cell whose payload goes on in the slab.
pub(crate) const INLINE_SLAB: usize = INLINE - 8;
/// Payload bytes in the first cell of a message of several frames.
pub(crate) const INLINE_FIRST: usize = INLINE - 16;

/// The lap of the ring in which the frame at `position` lies: from 1, in 28 bits.
#[inline]
pub(crate) fn lap(position: u64, cells_log2: u32) -> u32 {
    ((position >> cells_log2) as u32).wrapping_add(1) & 0x0FFF_FFFF
}

/// What the heads of a message's frames say of it, as it lies in them: kind and priority in one
/// word, id and deadline in the other.
// Two words, and no more: a larger value is passed through memory, stored by the word and loaded by
// the pair, and such a load waits until the stores before it, those into the peer's lines too, are
// done. That made one-way messages twice as slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    first: u64,
    second: u64,
}

impl Label {
    /// Without id and deadline. `priority` is at most 4.
    #[inline(always)]
    pub(crate) fn new(kind: Kind, priority: u32) -> Label {
        Label { first: u64::from(priority) << 56 | kind as u64, second: 0 }
    }

    /// With an id, the first it has.
    #[inline(always)]
    pub(crate) fn with_id(self, id: u32) -> Label {
        Label { second: self.second | u64::from(id), ..self }
    }

    /// With a deadline, the first it has: µs since the channel's start; 0 for none.
    #[inline(always)]
    pub(crate) fn with_deadline(self, deadline: u32) -> Label {
        Label { second: self.second | u64::from(deadline) << 32, ..self }
    }

    /// Of the same message, but of another kind, which has no extension.
    #[inline(always)]
    pub(crate) fn with_kind(self, kind: Kind) -> Label {
        let kept = self.first & !(0xF | u64::from(FLAG_EXTENSION) << 59);
        Label { first: kept | kind as u64, ..self }
    }

    /// Whether this is its kind.
    #[inline(always)]
    pub(crate) fn is(self, kind: Kind) -> bool {
        self.first & 0xF == kind as u64
    }

    /// Whether this is a message of its own: a request, a one-way message, a response or an error.
    #[inline(always)]
    pub(crate) fn is_message(self) -> bool {
        self.first & 0xF <= Kind::Error as u64
    }

    /// Whether its payload is what was given, neither with an extension nor in bulk memory.
    #[inline(always)]
    pub(crate) fn is_bare(self) -> bool {
        self.first & u64::from(FLAG_BULK | FLAG_EXTENSION) << 59 == 0
    }

    /// Whether its payload begins with an extension.
    pub(crate) fn is_extended(self) -> bool {
        self.first & u64::from(FLAG_EXTENSION) << 59 != 0
    }

    /// Whether its payload is the descriptor of one in bulk memory.
    pub(crate) fn is_in_bulk(self) -> bool {
        self.first & u64::from(FLAG_BULK) << 59 != 0
    }

    /// Of a request or one-way message: its payload begins with an extension.
    pub(crate) fn extended(self) -> Label {
        Label { first: self.first | u64::from(FLAG_EXTENSION) << 59, ..self }
    }

    /// Of a message in bulk memory: its payload is the descriptor.
    #[inline(always)]
    pub(crate) fn in_bulk(self) -> Label {
        Label { first: self.first | u64::from(FLAG_BULK) << 59, ..self }
    }

    #[inline(always)]
    pub(crate) fn priority(self) -> u32 {
        (self.first >> 56) as u32 & 7
    }

    #[inline(always)]
    pub(crate) fn id(self) -> u32 {
        self.second as u32
    }

    /// The two words of a frame's head.
    #[inline(always)]
    pub(crate) fn head(self, flags: u32, length: usize, lap: u32) -> [u64; 2] {
        let frame = u64::from(flags) << 59 | (length as u64) << 32 | u64::from(lap) << 4;
        [self.first | frame, self.second]
    }
}

/// The fields of a frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) flags: u32,
    pub(crate) priority: u32,
    /// Bytes of payload in this frame.
    pub(crate) length: u32,
    pub(crate) id: u32,
    /// µs since the channel's start, modulo 2^32; 0 for none.
    pub(crate) deadline: u32,
}

impl Head {
    /// Takes the head of a cell whose stamp has opened, and checks all but flags and length.
    #[inline(always)]
    fn check(words: [u64; 2], sender: Sender, ring: Ring) -> Result<Head, PeerCorrupt> {
        let meta = (words[0] >> 32) as u32;
        let Some(kind) = Kind::from_bits(words[0] as u32 & 0xF) else {
            return Err(PeerCorrupt::Kind);
        };
        let head = Head {
            kind,
            flags: meta >> 27,
            priority: meta >> 24 & 7,
            length: meta & MAX_FRAME,
            id: words[1] as u32,
            deadline: (words[1] >> 32) as u32,
        };
        if !sender.may_send(kind) {
            return Err(PeerCorrupt::Kind);
        }
        let fits_ring = match ring {
            Ring::Urgent => head.priority <= 1,
            Ring::Ordinary => head.priority.wrapping_sub(2) <= 2,
        };
        if fits_ring { Ok(head) } else { Err(PeerCorrupt::Priority) }
    }

    /// Whether this is the first frame of a message of several.
    #[inline]
    pub(crate) fn is_first_of_many(&self) -> bool {
        self.flags & FLAG_MORE != 0 && self.kind != Kind::Continue
    }

    /// Bytes of its payload, when it is the whole message or the first of it, that are an
    /// extension.
    #[inline]
    pub(crate) fn extension(&self) -> usize {
        if self.flags & FLAG_EXTENSION == 0 { 0 } else { EXTENSION }
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

/// The checked head of a frame: a private copy, of which no word is read from the cell again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) head: Head,
    /// Length of the whole message: that of the frame, unless it is the first of many.
    pub(crate) total: u64,
    /// Alleged position in the slab; the consumer checks it against its own cursor.
    pub(crate) place: u64,
}

impl Frame {
    /// Checks the head of a cell whose stamp has opened, as sent by `sender` on `ring`. `more`
    /// loads the two words behind it, should they belong to the head.
    ///
    /// `max_slab` is the largest piece that one frame may have in the slab. Costs a few compares
    /// for a small frame.
    // Inlined always: passed through memory, the fields would be stored and loaded at different
    // widths, and each such load waits for the store to retire.
    #[inline(always)]
    pub(crate) fn check(
        words: [u64; 2],
        more: impl FnOnce() -> [u64; 2],
        sender: Sender,
        ring: Ring,
        max_slab: u32,
    ) -> Result<Frame, PeerCorrupt> {
        let head = Head::check(words, sender, ring)?;
        if head.flags == 0 {
            if head.length as usize > INLINE {
                return Err(PeerCorrupt::Length);
            }
            return Ok(Frame { head, total: u64::from(head.length), place: 0 });
        }
        Frame::check_long(head, more(), max_slab)
    }

    /// What nearly every frame is: a whole message of the first level of its ring, of one of two
    /// kinds. Costs half of [`Frame::check`], to which it leaves everything else, lies included.
    #[inline(always)]
    pub(crate) fn plain(
        words: [u64; 2],
        place: impl FnOnce() -> u64,
        kinds: [Kind; 2],
        ring: Ring,
        max_slab: u32,
    ) -> Option<Frame> {
        let bits = words[0] as u32 & 0xF;
        let kind = kinds.into_iter().find(|kind| *kind as u32 == bits)?;
        let priority = ring.first_level();
        let (id, deadline) = (words[1] as u32, (words[1] >> 32) as u32);
        // Without a flag and the priority, the rest is the length: one comparison for three.
        let meta = ((words[0] >> 32) as u32).wrapping_sub(priority << 24);
        if meta <= INLINE as u32 {
            let head = Head { kind, flags: 0, priority, length: meta, id, deadline };
            return Some(Frame { head, total: u64::from(meta), place: 0 });
        }
        let length = meta.wrapping_sub(FLAG_SLAB << 27);
        if length.wrapping_sub(INLINE_SLAB as u32 + 1) >= max_slab {
            return None;
        }
        let head = Head { kind, flags: FLAG_SLAB, priority, length, id, deadline };
        Some(Frame { head, total: u64::from(length), place: place() })
    }

    /// As [`check`](Frame::check), on an encrypted channel, where no place is told. The total of
    /// the first of many is in its text.
    #[cfg(not(loom))]
    #[inline(always)]
    pub(crate) fn check_sealed(
        words: [u64; 2],
        sender: Sender,
        ring: Ring,
        max_slab: u32,
    ) -> Result<Frame, PeerCorrupt> {
        let head = Head::check(words, sender, ring)?;
        let total = u64::from(head.length);
        let mut flags = head.flags & !FLAG_PHASE;
        if flags & FLAG_EXTENSION != 0 {
            let before = if flags & FLAG_MORE != 0 { 8 } else { 0 };
            if !matches!(head.kind, Kind::Request | Kind::OneWay) {
                return Err(PeerCorrupt::Flags);
            }
            if (head.length as usize) < EXTENSION + before {
                return Err(PeerCorrupt::Length);
            }
            flags &= !FLAG_EXTENSION;
        }
        if flags == 0 {
            return if head.length as usize <= INLINE_SEALED {
                Ok(Frame { head, total, place: 0 })
            } else {
                Err(PeerCorrupt::Length)
            };
        }
        let carries_payload =
            matches!(head.kind, Kind::Request | Kind::OneWay | Kind::Response | Kind::Continue);
        if flags & !FLAG_MORE != FLAG_SLAB || !carries_payload {
            return Err(PeerCorrupt::Flags);
        }
        let frame = Frame { head, total, place: 0 };
        let fits =
            head.length as usize > INLINE_SEALED && frame.sealed_in_slab() <= max_slab as usize;
        if fits { Ok(frame) } else { Err(PeerCorrupt::Length) }
    }

    /// Whether this is what nearly every sealed frame of a client is: a whole message of the first
    /// level of its ring.
    #[cfg(not(loom))]
    #[inline]
    pub(crate) fn is_plain_record(&self, ring: Ring) -> bool {
        self.head.flags & !(FLAG_PHASE | FLAG_SLAB) == 0
            && self.head.priority == ring.first_level()
            && matches!(self.head.kind, Kind::Request | Kind::OneWay)
    }

    /// Bytes of a sealed frame's text in the slab.
    #[cfg(not(loom))]
    #[inline]
    pub(crate) fn sealed_in_slab(&self) -> usize {
        if self.head.flags & FLAG_SLAB == 0 { 0 } else { self.head.length as usize - INLINE_SEALED }
    }

    #[inline(always)]
    fn check_long(head: Head, more: [u64; 2], max_slab: u32) -> Result<Frame, PeerCorrupt> {
        let carries_payload =
            matches!(head.kind, Kind::Request | Kind::OneWay | Kind::Response | Kind::Continue);
        if head.flags == FLAG_BULK && carries_payload && head.kind != Kind::Continue {
            return if head.length as usize == DESCRIPTOR {
                Ok(Frame { head, total: u64::from(head.length), place: 0 })
            } else {
                Err(PeerCorrupt::Length)
            };
        }
        let is_extended = head.flags & FLAG_EXTENSION != 0;
        if is_extended {
            if !matches!(head.kind, Kind::Request | Kind::OneWay) {
                return Err(PeerCorrupt::Flags);
            }
            if head.flags == FLAG_BULK | FLAG_SLAB | FLAG_EXTENSION {
                // What says where the payload lies, behind the extension: more than fits a cell.
                return if head.length as usize == EXTENSION + DESCRIPTOR {
                    Ok(Frame { head, total: u64::from(head.length), place: more[0] })
                } else {
                    Err(PeerCorrupt::Length)
                };
            }
            if head.flags == FLAG_EXTENSION {
                return if (EXTENSION..=INLINE).contains(&(head.length as usize)) {
                    Ok(Frame { head, total: u64::from(head.length), place: 0 })
                } else {
                    Err(PeerCorrupt::Length)
                };
            }
        }
        if head.flags & !(FLAG_SLAB | FLAG_MORE | FLAG_EXTENSION) != 0
            || head.flags & FLAG_SLAB == 0
            || !(carries_payload || head.kind == Kind::Hello && head.flags == FLAG_SLAB)
        {
            return Err(PeerCorrupt::Flags);
        }
        let in_slab = (head.length as usize).saturating_sub(head.inline_capacity());
        if in_slab == 0 || in_slab > max_slab as usize {
            return Err(PeerCorrupt::Length);
        }
        let total = if head.is_first_of_many() { more[1] } else { u64::from(head.length) };
        if head.is_first_of_many() && total <= u64::from(head.length) {
            return Err(PeerCorrupt::Length);
        }
        Ok(Frame { head, total, place: more[0] })
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

    /// Bytes of payload in the cell.
    #[inline]
    pub(crate) fn inline_length(&self) -> usize {
        (self.head.length as usize).min(self.head.inline_capacity())
    }

    /// The first of the cell's words that holds payload.
    #[inline]
    pub(crate) fn first_word(&self) -> usize {
        8 - self.head.inline_capacity() / 8
    }
}

/// The flags and the length in the first two words of a frame.
#[cfg(not(loom))]
#[inline(always)]
pub(crate) fn flags_and_length(head: [u64; 2]) -> (u32, usize) {
    ((head[0] >> 59) as u32, (head[0] >> 32) as usize & MAX_FRAME as usize)
}

/// Packs up to `8 * N` bytes into words, the rest zero, so that no old byte shows.
// Without an array in between: what is stored there by the byte and loaded by the word would have
// to wait for the stores before it.
#[inline(always)]
pub(crate) fn pack<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let (chunks, tail) = bytes.as_chunks::<8>();
    let tail = tail_word(bytes, tail);
    std::array::from_fn(|index| match chunks.get(index) {
        Some(chunk) => u64::from_le_bytes(*chunk),
        None if index == chunks.len() => tail,
        None => 0,
    })
}

/// The word that holds the last bytes: `tail`, which is shorter than a word, of `bytes`.
#[inline(always)]
fn tail_word(bytes: &[u8], tail: &[u8]) -> u64 {
    let bits = 8 * tail.len() as u32;
    match (bytes.last_chunk::<8>(), tail.first_chunk::<4>(), tail.last_chunk::<4>()) {
        _ if bits == 0 => 0,
        (Some(last), ..) => u64::from_le_bytes(*last) >> (64 - bits),
        (None, Some(low), Some(high)) => {
            u64::from(u32::from_le_bytes(*low))
                | u64::from(u32::from_le_bytes(*high)) << (bits - 32)
        }
        (None, ..) => tail.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

/// Stores up to 48 bytes, a word at a time as `word` gives them.
#[inline(always)]
pub(crate) fn unpack(mut word: impl FnMut(usize) -> u64, target: &mut [u8]) {
    let (chunks, tail) = target.as_chunks_mut::<8>();
    for (index, chunk) in chunks.iter_mut().enumerate() {
        *chunk = word(index).to_le_bytes();
    }
    if !tail.is_empty() {
        let last = word(chunks.len()).to_le_bytes();
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
            kind in kinds(), priority in 0_u32..=4, length in 0_u32..=48, id: u32, deadline: u32,
            lap in 0_u32..1 << 28,
        ) {
            let head = Head { kind, flags: 0, priority, length, id, deadline };
            let label = Label::new(kind, priority).with_id(id).with_deadline(deadline);
            prop_assert!(label.is(kind) && label.with_kind(Kind::Continue).is(Kind::Continue));
            prop_assert_eq!((label.priority(), label.id()), (priority, id));
            let words = label.head(0, length as usize, lap);
            prop_assert_eq!(words[0] as u32 >> 4, lap);
            let ring = if priority < 2 { Ring::Urgent } else { Ring::Ordinary };
            let is_client = Sender::Client.may_send(kind);
            let sender = if is_client { Sender::Client } else { Sender::Server };
            let frame =
                Frame::check(words, || [0; 2], sender, ring, 4096).expect("as written");
            prop_assert_eq!(frame.head, head);
        }

        #[test]
        fn what_passes_for_plain_is_what_the_check_makes_of_it(
            stamp: u32, second: u64, more: [u64; 2], urgent: bool,
            meta in prop_oneof![
                any::<u32>(), 0_u32..64, (2 << 24)..(2_u32 << 24) + 64,
                (1 << 27)..(1_u32 << 27) + 1100, (10 << 24)..(10_u32 << 24) + 1100,
            ],
        ) {
            let words = [u64::from(meta) << 32 | u64::from(stamp), second];
            let ring = if urgent { Ring::Urgent } else { Ring::Ordinary };
            for (kinds, sender) in [
                ([Kind::Request, Kind::OneWay], Sender::Client),
                ([Kind::Response, Kind::Response], Sender::Server),
            ] {
                if let Some(plain) = Frame::plain(words, || more[0], kinds, ring, 1024) {
                    let frame = Frame::check(words, || more, sender, ring, 1024).expect("plain");
                    prop_assert_eq!(frame, plain);
                }
            }
        }

        #[test]
        fn payload_survives_the_cell(payload in prop::collection::vec(any::<u8>(), 0..=48)) {
            let words = pack::<6>(&payload);
            let mut out = vec![0xAA; payload.len()];
            unpack(|index| words[index], &mut out);
            prop_assert_eq!(out, payload);
        }

        #[test]
        fn whatever_a_peer_writes_is_refused_or_in_bounds(
            words: [u64; 2], more: [u64; 2], urgent: bool,
        ) {
            let ring = if urgent { Ring::Urgent } else { Ring::Ordinary };
            for sender in [Sender::Client, Sender::Server] {
                if let Ok(frame) = Frame::check(words, || more, sender, ring, 1024) {
                    prop_assert!(frame.slab_length() <= 1024);
                    let length = frame.head.length as usize;
                    prop_assert_eq!(frame.inline_length() + frame.slab_length(), length);
                    prop_assert!(frame.total >= length as u64);
                    prop_assert!(frame.first_word() * 8 + frame.inline_length() <= 64);
                }
            }
        }
    }
}
