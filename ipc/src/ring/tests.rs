use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    frame::{self, Kind, Label, Sender},
    lane::Lane,
    layout::{Geometry, Ring},
    sync::Ordering,
};

struct Pair {
    producer: Producer,
    consumer: Consumer,
    sender: Arc<Lane>,
    receiver: Arc<Lane>,
}

fn pair(geometry: Geometry, ring: Ring) -> Pair {
    let (sender, receiver) = (Lane::heap(geometry), Lane::heap(geometry));
    Pair {
        producer: Producer::new(&sender, &receiver, ring),
        consumer: Consumer::new(&receiver, &sender, ring, Sender::Client),
        sender,
        receiver,
    }
}

fn small() -> Geometry {
    Geometry::new(16, 2048).expect("in range")
}

fn label(id: u32) -> Label {
    Label::new(Kind::Request, 2).with_id(id).with_deadline(9)
}

/// Takes one frame; its id and payload.
fn take(consumer: &mut Consumer) -> Option<(u32, Vec<u8>)> {
    let frame = consumer.peek().expect("honest")?;
    let mut payload = vec![0; frame.head.length as usize];
    consumer.copy(&frame, &mut payload);
    consumer.release(&frame);
    Some((frame.head.id, payload))
}

/// Sends and receives a whole message, in as many frames as it takes.
fn transfer(pair: &mut Pair, id: u32, payload: &[u8]) -> Vec<u8> {
    let (mut sent, mut received) = (0, Vec::new());
    loop {
        match pair.producer.push(label(id), payload, sent) {
            Ok(now) => sent = now,
            Err(PushError::Full { wake_at }) => {
                let (from, piece) = take(&mut pair.consumer).expect("full, so not empty");
                assert_eq!(from, id);
                assert!(wake_at <= pair.producer.head());
                received.extend(piece);
                continue;
            }
            Err(other) => panic!("{other:?}"),
        }
        if sent >= payload.len() {
            break;
        }
    }
    while let Some((_, piece)) = take(&mut pair.consumer) {
        received.extend(piece);
    }
    received
}

proptest! {
    #[test]
    fn messages_of_random_sizes_come_out_as_they_went_in(
        sizes in prop::collection::vec(0_usize..6000, 1..80), burst in 1_usize..8,
    ) {
        let mut pair = pair(small(), Ring::Ordinary);
        for (id, size) in sizes.iter().enumerate() {
            let payload: Vec<u8> = (0..*size).map(|n| (n * 31 + id) as u8).collect();
            if id % burst == 0 {
                prop_assert_eq!(&transfer(&mut pair, id as u32, &payload), &payload);
            } else {
                let short = &payload[..payload.len().min(200)];
                prop_assert_eq!(&transfer(&mut pair, id as u32, short), &short);
            }
        }
    }

    #[test]
    fn bursts_keep_their_order_through_wrap_around(
        bursts in prop::collection::vec(prop::collection::vec(0_usize..120, 1..16), 1..40),
    ) {
        let mut pair = pair(small(), Ring::Ordinary);
        let mut id = 0;
        for burst in bursts {
            let first = id;
            for size in &burst {
                let payload = vec![id as u8; *size];
                let sent = pair.producer.push(label(id), &payload, 0);
                prop_assert_eq!(sent, Ok(*size));
                id += 1;
            }
            for (offset, size) in burst.iter().enumerate() {
                let expected = first + offset as u32;
                let (got, payload) = take(&mut pair.consumer).expect("pushed");
                prop_assert_eq!(got, expected);
                prop_assert_eq!(payload, vec![expected as u8; *size]);
            }
            prop_assert!(take(&mut pair.consumer).is_none());
        }
    }
}

/// A payload that consists of the stamps that the coming cells will carry opens none of them:
/// payload never lies where a stamp is read.
#[test]
fn payloads_made_of_every_next_stamp_open_nothing() {
    for size in [4_usize, 8, 48, 49, 64, 100, 500, 1000] {
        let mut pair = pair(small(), Ring::Ordinary);
        for round in 0..100_u64 {
            for kind in 1..=8_u32 {
                for ahead in [0, 1, 2, 15, 16, 17] {
                    let position = pair.producer.head() + ahead;
                    let stamp = frame::lap(position, 4) << 4 | kind;
                    let payload: Vec<u8> =
                        stamp.to_le_bytes().into_iter().cycle().take(size).collect();
                    let id = (round * 8) as u32 + kind;
                    assert!(pair.producer.push(label(id), &payload, 0).is_ok());
                    assert_eq!(take(&mut pair.consumer), Some((id, payload)));
                    assert!(take(&mut pair.consumer).is_none());
                    assert!(!pair.consumer.is_ready());
                }
            }
        }
    }
}

#[test]
fn a_full_ring_says_when_to_come_back() {
    let mut pair = pair(small(), Ring::Ordinary);
    for id in 0..16 {
        assert_eq!(pair.producer.push(label(id), b"x", 0), Ok(1));
    }
    assert_eq!(pair.producer.push(label(16), b"x", 0), Err(PushError::Full { wake_at: 1 }));
    take(&mut pair.consumer).expect("one");
    assert_eq!(pair.producer.push(label(16), b"x", 0), Ok(1));

    // By the slab: 1024 is the most that one frame has there, two of them fill it.
    let mut pair = self::pair(small(), Ring::Ordinary);
    let long = vec![7; 1024 + frame::INLINE_SLAB];
    for id in 0..2 {
        assert_eq!(pair.producer.push(label(id), &long, 0), Ok(long.len()));
    }
    assert_eq!(pair.producer.push(label(2), &long, 0), Err(PushError::Full { wake_at: 1 }));
    assert_eq!(pair.producer.push(label(2), b"short", 0), Ok(5));
}

#[test]
fn a_stream_comes_back_for_more_than_one_frame_and_never_for_more_than_there_are() {
    let mut pair = pair(small(), Ring::Ordinary);
    for id in 0..16 {
        assert_eq!(pair.producer.push(label(id), b"x", 0), Ok(1));
    }
    assert_eq!(pair.producer.ample(1), 3);
    assert_eq!(pair.producer.ample(15), 16);
}

#[test]
fn a_lying_progress_word_is_noticed() {
    for lie in [17_u64, u64::MAX] {
        let mut pair = pair(small(), Ring::Ordinary);
        for id in 0..16 {
            assert!(pair.producer.push(label(id), b"", 0).is_ok());
        }
        pair.receiver.header().taken_ordinary.store(lie, Ordering::Release);
        let refused = pair.producer.push(label(16), b"", 0);
        assert_eq!(refused, Err(PushError::Corrupt(crate::PeerCorrupt::Taken)));
    }
}

#[test]
fn a_cell_from_another_lap_is_noticed() {
    let mut pair = pair(small(), Ring::Ordinary);
    let mut own = pair.sender.own_ring(Ring::Ordinary);
    own.publish(0, label(0).head(0, 0, 7), [0; 6]);
    assert_eq!(pair.consumer.peek().err(), Some(crate::PeerCorrupt::Stamp));
    own.publish(0, label(0).head(0, 0, 1), [0; 6]);
    assert!(take(&mut pair.consumer).is_some());
}

#[test]
fn a_place_that_is_not_the_next_is_noticed() {
    let pair = pair(small(), Ring::Ordinary);
    let mut own = pair.sender.own_ring(Ring::Ordinary);
    for place in [8_u64, 2048, u64::MAX] {
        own.publish(0, label(0).head(frame::FLAG_SLAB, 100, 1), [place, 0, 0, 0, 0, 0]);
        assert_eq!(pair.consumer.peek_plain([Kind::Request; 2]), None);
        assert_eq!(pair.consumer.peek().err(), Some(crate::PeerCorrupt::Place));
    }
}
