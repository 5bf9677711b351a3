use std::os::fd::AsFd;

use proptest::prelude::*;

use super::*;
use crate::{Geometry, LaneFacts, ServiceId, control::Bond, lane};

fn introduction(channel: u64) -> Introduction {
    Introduction {
        channel,
        session: 1,
        start_ns: 0,
        asymmetric: false,
        peer: ServiceId::new(2),
        peer_name: ServiceId::new(3),
        peer_pid: 4,
        peer_uid: 5,
        dest: ServiceId::new(6),
        dest_name: ServiceId::new(7),
        geometry: Geometry::default(),
        permissions: 0,
        opener: ServiceId::new(2),
        encrypted: false,
        peer_key: [0; 32],
        bond: Bond::default(),
    }
}

fn seen(board: &OwnBoard) -> Board {
    board.forget_told();
    let segments = board.untold().into_iter();
    let segments = segments.filter_map(|(number, fd)| Some((number, fd?)));
    let segments = segments.map(|(number, fd)| view(fd.as_fd(), number).expect("a segment"));
    Board { node: ServiceId::new(1), pid: 1, segments: segments.collect() }
}

#[test]
fn what_an_end_counts_is_seen_by_others_and_stays_when_it_goes() {
    let board = Arc::new(OwnBoard::default());
    let seats: Vec<Seat> =
        (1..=8).map(|channel| board.seat(&introduction(channel), Sender::Client)).collect();
    let told: Vec<u32> = board.untold().iter().map(|(segment, _)| *segment).collect();
    assert_eq!(told, [0, 1], "three slots, and then more");
    assert!(board.untold().is_empty());
    for (index, seat) in seats.iter().enumerate() {
        seat.place().sender.sent(1, 10 * index as u64);
        seat.place().receiver.received(2, 1);
        seat.place().took(1000, 64);
        seat.place().identity.errors.add_shared(1);
    }
    let others = seen(&board);
    let ends = others.ends();
    assert_eq!(ends, board.ends());
    assert_eq!(ends.iter().map(|end| end.channel).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(ends[0].concerns(ServiceId::new(6)) && !ends[0].concerns(ServiceId::new(8)));
    assert_eq!(ends[7].stats, seats[7].stats());
    drop(seats);
    let ends = others.ends();
    let [gone] = ends.as_slice() else { panic!("{ends:?}") };
    assert_eq!((gone.role, gone.channel), (Role::GoneClients, 0));
    let sum = &gone.stats;
    assert_eq!((sum.messages_sent, sum.bytes_sent), (8, 280));
    assert_eq!((sum.messages_received, sum.bytes_received, sum.errors), (16, 8, 8));
    assert_eq!((sum.latency.count(), sum.latency.sum_ns()), (512, 512_000));
    assert_eq!((sum.exchanges, sum.error_rate()), (8, 1.0));
}

#[test]
fn a_slot_is_used_again_from_nothing() {
    let board = Arc::new(OwnBoard::default());
    let seat = board.seat(&introduction(2), Sender::Server);
    seat.place().receiver.received(7, 0);
    drop(seat);
    for channel in 3..100 {
        let seat = board.seat(&introduction(channel), Sender::Server);
        assert_eq!(seat.stats(), Stats::default());
    }
    assert_eq!(board.untold().len(), 1, "no slot is lost");
    assert_eq!(seen(&board).ends()[0].stats.messages_received, 7);
}

#[test]
fn where_nothing_was_counted_no_memory_is_kept() {
    let board = Arc::new(OwnBoard::default());
    assert!(board.untold().is_empty(), "nor before the first channel");
    let seat = board.seat(&introduction(1), Sender::Server);
    seat.place().receiver.parks.add(1);
    assert_eq!(board.untold().len(), 1);
    drop(seat);
    let told: Vec<_> = board.untold().into_iter().map(|(it, fd)| (it, fd.is_some())).collect();
    assert_eq!(told, [(0, false)]);
    drop(board.seat(&introduction(2), Sender::Server));
    assert!(board.untold().is_empty(), "nobody has heard of it");
    // One that counts stays beside one that does not.
    let seats = [3, 4].map(|channel| board.seat(&introduction(channel), Sender::Client));
    assert_eq!(seats[0].stats(), Stats::default(), "what was there before is gone");
    seats[1].place().sender.sent(1, 5);
    drop(seats);
    assert_eq!(seen(&board).ends()[0].stats.bytes_sent, 5);
}

#[test]
fn over_the_limit_an_end_counts_for_itself() {
    let board = Arc::new(OwnBoard::default());
    let all: usize = (0..layout::MOST_SEGMENTS).map(layout::segment_slots).sum();
    let seats: Vec<Seat> = (0..=all as u64)
        .map(|channel| board.seat(&introduction(channel), Sender::Client))
        .collect();
    let last = seats.last().expect("some");
    last.place().sender.sent(1, 1);
    assert_eq!(last.stats().messages_sent, 1);
    assert_eq!(board.ends().len(), all);
    assert_eq!(board.untold().len(), layout::MOST_SEGMENTS as usize);
    drop(seats);
    let dropped: Vec<_> = board.untold().into_iter().map(|(it, fd)| (it, fd.is_some())).collect();
    let mut expected = [7, 6, 5, 4, 3, 2, 1, 0].map(|segment| (segment, false)).to_vec();
    // The last one had counted, and had no slot before.
    expected.push((0, true));
    assert_eq!(dropped, expected);
    let [gone] = <[EndStats; 1]>::try_from(board.ends()).expect("the sum alone");
    assert_eq!(gone.stats.messages_sent, 1, "that of the unseen one, too");
}

#[test]
fn what_is_no_segment_is_refused() {
    let unsealed = lane::allocate("test", 4096).expect("a memfd");
    assert!(view(unsealed.as_fd(), 0).is_err());
    lane::seal(&unsealed).expect("sealed");
    assert!(view(unsealed.as_fd(), 0).is_err(), "it has no header");
    let board = Arc::new(OwnBoard::default());
    let _seat = board.seat(&introduction(1), Sender::Client);
    let (_, fd) = board.untold().pop().expect("a segment");
    let fd = fd.expect("a new one");
    assert!(view(fd.as_fd(), 1).is_err() && view(fd.as_fd(), u32::MAX).is_err());
    assert!(LaneFacts::inspect(fd.as_fd()).fit_board(0));
    assert!(view(fd.as_fd(), 0).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever stands in a board, reading it ends, and gives what its form allows.
    #[test]
    fn a_board_that_lies_is_read_to_the_end(
        words in prop::collection::vec((0_usize..480, prop::num::u64::ANY), 0..480),
        all_ones: bool,
    ) {
        let fd = lane::allocate("test", 4096).expect("a memfd");
        let mut bytes = vec![if all_ones { 0xFF } else { 0 }; 4096];
        for (word, value) in words {
            bytes[256 + word * 8..][..8].copy_from_slice(&value.to_ne_bytes());
        }
        // An honest head, or nobody would read on; its `moving` is odd for ever.
        bytes[..8].copy_from_slice(&layout::MAGIC.to_ne_bytes());
        for (at, value) in [(8, layout::VERSION), (12, 3), (16, 0x500), (20, 0), (24, 1), (28, 1)] {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        nix::unistd::write(&fd, &bytes).expect("written");
        lane::seal(&fd).expect("sealed");
        let segments = vec![view(fd.as_fd(), 0).expect("of the right form")];
        let board = Board { node: ServiceId::NONE, pid: 0, segments };
        let ends = board.ends();
        prop_assert!(ends.len() <= 3);
        let all: Stats = ends.iter().map(|end| &end.stats).collect();
        let _ = (all.latency.quantile(0.99), all.queued.octaves());
        prop_assert!((0.0..=1.0).contains(&all.error_rate()));
    }
}
