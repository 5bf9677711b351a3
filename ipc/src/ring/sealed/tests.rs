use std::{ops::Range, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::{
    frame::Sender,
    lane::Lane,
    layout::Geometry,
    session::record::{BAD_RECORDS, Context, Limits, Way, flips},
};

struct Pair {
    producer: Producer,
    sealer: Sealer,
    consumer: Consumer,
    opener: Opener,
    lane: Arc<Lane>,
    buffer: Vec<u8>,
}

fn pair(ring: Ring) -> Pair {
    let geometry = Geometry::new(16, 2048).expect("in range");
    let (sender, receiver) = (Lane::heap(geometry), Lane::heap(geometry));
    let context = Context { session: 5, epoch: 2, way: Way::FromClient };
    Pair {
        producer: Producer::new(&sender, &receiver, ring),
        sealer: Sealer::new(&[9; 32], context, Limits::default()).expect("memory"),
        consumer: Consumer::new(&receiver, &sender, ring, Sender::Client),
        opener: Opener::new(&[9; 32], context, Limits::default()).expect("memory"),
        lane: sender,
        buffer: vec![0; 2048],
    }
}

impl Pair {
    fn push(&mut self, payload: &[u8], sent: usize) -> Result<usize, SealError> {
        let priority = self.producer.ring.first_level();
        let label = Label::new(Kind::Request, priority).with_id(3).with_deadline(9);
        self.producer.push_sealed(&mut self.sealer, label, payload, sent, 0)
    }

    fn take(&mut self) -> Result<Option<Result<Opened, Refusal>>, PeerCorrupt> {
        self.consumer.take_sealed(&mut self.opener, &mut self.buffer, 0)
    }

    fn text(&mut self) -> Option<Vec<u8>> {
        let it = self.take().expect("honest")?.expect("as sealed");
        assert_eq!((it.frame.head.id, it.frame.head.deadline), (3, 9));
        Some(self.buffer[..it.length].to_vec())
    }

    /// The words of a cell that was written.
    fn cell(&self, index: usize) -> [u64; 8] {
        let ring = self.lane.peer_ring(self.producer.ring);
        let mut words = std::array::from_fn(|at| if at == 0 { 0 } else { ring.word(index, at) });
        words[0] = ring.stamp(index);
        words
    }

    /// Writes it anew, as nobody honest would.
    fn overwrite(&self, index: usize, words: [u64; 8]) {
        let (head, payload) = words.split_at(2);
        let mut ring = self.lane.own_ring(self.producer.ring);
        ring.publish(index, [head[0], head[1]], payload.try_into().expect("six"));
    }
}

#[test]
fn every_length_of_one_frame_comes_through() {
    for ring in [Ring::Urgent, Ring::Ordinary] {
        let mut pair = pair(ring);
        for length in 0..=INLINE_SEALED + 1024 {
            let payload: Vec<u8> = (0..length).map(|n| (n * 3 + length) as u8).collect();
            assert_eq!(pair.push(&payload, 0), Ok(length));
            assert_eq!(pair.text(), Some(payload));
            assert_eq!(pair.text(), None);
        }
    }
}

#[test]
fn no_text_lies_in_the_lane() {
    for length in [32, 48, 64, 500] {
        let mut pair = pair(Ring::Ordinary);
        let payload = vec![0xA7; length];
        pair.push(&payload, 0).expect("room");
        let words = pair.cell(0);
        assert!(words[2..].iter().all(|word| *word != u64::from_le_bytes([0xA7; 8])));
        let mut slab = vec![0; length];
        pair.lane.peer_ring(Ring::Ordinary).read_slab(0, &mut slab);
        assert!(slab.windows(4).all(|window| window != [0xA7; 4]));
    }
}

/// Bits of a cell that say which lap it was written in.
const LAP: Range<usize> = 4..32;
/// Bits that say how long the text is: its receiver keeps the count of the slab by them.
const LENGTH: Range<usize> = 32..64;
/// All of a cell.
const CELL: usize = 512;

/// Flips one bit of the next frame, in its cell or behind that in the slab, and tells what the
/// receiver makes of it. Behind it are a short frame and one as long.
fn flipped(pair: &mut Pair, payload: &[u8], bit: usize) -> Result<Option<Refusal>, PeerCorrupt> {
    let (index, in_slab) = (pair.producer.head() as usize % 16, payload.len().saturating_sub(32));
    let place = pair.producer.slab.next(in_slab).place as usize % 2048;
    pair.push(payload, 0).expect("room");
    pair.push(b"next", 0).expect("room");
    pair.push(payload, 0).expect("room");
    if bit < CELL {
        let mut words = pair.cell(index);
        words[bit / 64] ^= 1 << (bit % 64);
        pair.overwrite(index, words);
    } else {
        let at = place + (bit - CELL) / 8;
        let mut byte = [0];
        pair.lane.peer_ring(Ring::Ordinary).read_slab(at, &mut byte);
        let mut ring = pair.lane.own_ring(Ring::Ordinary);
        ring.write_slab(at, &[byte[0] ^ 1 << (bit % 8)]);
    }
    match pair.take()? {
        Some(Err(refusal)) => Ok(Some(refusal)),
        Some(Ok(it)) => panic!("bit {bit} of {} bytes: {it:?}", payload.len()),
        None => Ok(None),
    }
}

#[test]
fn every_flip_of_one_bit_of_a_frame_is_noticed_and_the_next_frame_opens() {
    for length in 0..=flips::LONGEST {
        let payload = vec![0x3C; length];
        let mut reused = None;
        let in_slab = length.saturating_sub(INLINE_SEALED);
        for bit in flips::bits(CELL + 8 * in_slab, length) {
            let mut pair = reused.take().unwrap_or_else(|| pair(Ring::Ordinary));
            let what = format!("bit {bit} of {length} bytes");
            match flipped(&mut pair, &payload, bit) {
                // What no honest producer writes ends the channel, and only in the head is any.
                Err(error) => {
                    assert!(bit < 128, "{what}");
                    assert!(
                        !LAP.contains(&bit) || error == PeerCorrupt::Stamp,
                        "{what}: {error:?}"
                    );
                    continue;
                }
                // One of the lap before this was there already: this one has not come yet.
                Ok(None) => {
                    assert!(LAP.contains(&bit), "{what}");
                    continue;
                }
                Ok(Some(refusal)) => assert_eq!(refusal, Refusal::Altered, "{what}"),
            }
            assert_eq!(pair.text().as_deref(), Some(&b"next"[..]), "{what}");
            if LENGTH.contains(&bit) {
                // The receiver may take the next piece of the slab for another: it is refused, too.
                match pair.take().expect("honest").expect("a frame") {
                    Ok(it) => assert_eq!(pair.buffer[..it.length], payload, "{what}"),
                    Err(refusal) => assert_eq!(refusal, Refusal::Altered, "{what}"),
                }
            } else {
                assert_eq!(pair.text().as_deref(), Some(&payload[..]), "{what}");
                reused = Some(pair).filter(|it| it.opener.refused() + 1 < BAD_RECORDS);
            }
        }
    }
}

#[test]
fn frames_that_change_places_or_come_again_are_told_apart() {
    let mut pair = pair(Ring::Ordinary);
    for text in [b"first", b"other"] {
        pair.push(text, 0).expect("room");
    }
    let (first, other) = (pair.cell(0), pair.cell(1));
    pair.overwrite(0, other);
    pair.overwrite(1, first);
    assert_eq!(pair.take(), Ok(Some(Err(Refusal::Reordered { position: 1 }))));
    assert_eq!(pair.take(), Ok(Some(Err(Refusal::Reordered { position: 0 }))));
    pair.push(b"third", 0).expect("room");
    let third = pair.cell(2);
    assert_eq!(pair.text().as_deref(), Some(&b"third"[..]));
    pair.push(b"again", 0).expect("room");
    pair.overwrite(3, third);
    assert_eq!(pair.take(), Ok(Some(Err(Refusal::Replayed { position: 2 }))));
}

#[test]
fn after_sixteen_frames_that_do_not_open_nothing_is_taken() {
    let mut pair = pair(Ring::Ordinary);
    for number in 1..=BAD_RECORDS {
        pair.push(b"text", 0).expect("room");
        let at = (number as usize - 1) % 16;
        let mut words = pair.cell(at);
        words[6] ^= 1;
        pair.overwrite(at, words);
        let taken = pair.take();
        assert_eq!(taken == Err(PeerCorrupt::Record), number == BAD_RECORDS, "{taken:?}");
    }
}

#[test]
fn a_full_ring_spends_no_nonce() {
    let mut pair = pair(Ring::Ordinary);
    while pair.push(&[1; 100], 0).is_ok() {}
    let (next, head) = (pair.sealer.next(Ring::Ordinary), pair.producer.head());
    assert!(matches!(pair.push(b"more", 0), Err(SealError::Push(PushError::Full { .. }))));
    assert_eq!((pair.sealer.next(Ring::Ordinary), pair.producer.head()), (next, head));
    while pair.text().is_some() {}
    assert_eq!(pair.push(b"more", 0), Ok(4));
    assert_eq!(pair.text().as_deref(), Some(&b"more"[..]));
    assert_eq!(pair.consumer.tail, pair.opener.next(Ring::Ordinary));
}

proptest! {
    #[test]
    fn messages_of_any_length_come_through_in_parts(
        lengths in proptest::collection::vec(0_usize..6000, 1..12),
    ) {
        let mut pair = pair(Ring::Ordinary);
        for length in lengths {
            let payload: Vec<u8> = (0..length).map(|n| (n * 7 + length) as u8).collect();
            let (mut sent, mut received, mut total) = (0, Vec::<u8>::new(), None);
            loop {
                match pair.push(&payload, sent) {
                    Ok(now) => sent = now,
                    Err(SealError::Push(PushError::Full { .. })) => {}
                    Err(other) => panic!("{other:?}"),
                }
                while let Some(it) = pair.take().expect("honest") {
                    let it = it.expect("as sealed");
                    total = total.or(Some(it.frame.total));
                    received.extend(&pair.buffer[..it.length]);
                }
                if sent >= payload.len() {
                    break;
                }
            }
            prop_assert_eq!(total, Some(length as u64));
            prop_assert_eq!(received, payload);
        }
    }
}
