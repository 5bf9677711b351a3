//! Rings within one process: what is written is read, whole and in order, or counted as lost; and
//! no lie does more than end the liar's ring.

use std::sync::Arc;

use super::{
    Start,
    layout::{RECORD_HEAD, longest, record_bytes},
    memory::Ring,
    reader::{Cursor, Miss},
    writer::Writer,
};

pub(super) fn put(writer: &mut Writer, payload: &[u8]) {
    let plan = writer.widen(writer.plan(payload.len() as u64), u64::MAX);
    writer.write(plan, 5, payload);
}

fn read(cursor: &mut Cursor, ring: &Ring) -> Result<(u64, Vec<u8>), Miss> {
    let mut payload = Vec::new();
    cursor.next(ring, &mut payload).map(|head| (head.sequence, payload))
}

#[cfg(not(loom))]
mod plain {
    use super::*;
    use crate::sync::Ordering;
    use proptest::prelude::*;

    fn pair(capacity: u64) -> (Writer, Arc<Ring>) {
        let ring = Ring::heap(capacity, 0);
        (Writer::new(Arc::clone(&ring)), ring)
    }

    #[test]
    fn what_is_published_is_read_in_order() {
        let (mut writer, ring) = pair(4096);
        let mut cursor = Cursor::start(&ring, Start::Now).expect("an honest ring");
        assert_eq!(read(&mut cursor, &ring), Err(Miss::Empty));
        for n in 0..1000_u64 {
            let payload = vec![n as u8; (n * 7 % longest(4096)) as usize];
            put(&mut writer, &payload);
            assert_eq!(read(&mut cursor, &ring), Ok((n, payload)));
            assert_eq!(read(&mut cursor, &ring), Err(Miss::Empty));
        }
        writer.close();
        assert_eq!(read(&mut cursor, &ring), Err(Miss::Closed));
    }

    #[test]
    fn who_falls_behind_learns_by_how_much_and_goes_on_with_the_oldest() {
        let (mut writer, ring) = pair(4096);
        let mut cursor = Cursor::start(&ring, Start::Now).expect("an honest ring");
        for n in 0..1000_u64 {
            put(&mut writer, &n.to_le_bytes());
        }
        let Err(Miss::Lagged(lost)) = read(&mut cursor, &ring) else { panic!("it did not lag") };
        // 128 fit; a sixteenth of them makes room in advance.
        assert!((1000 - 128..=1000 - 119).contains(&lost), "{lost}");
        for n in lost..1000 {
            assert_eq!(read(&mut cursor, &ring), Ok((n, n.to_le_bytes().to_vec())));
        }
        assert_eq!(read(&mut cursor, &ring), Err(Miss::Empty));
    }

    #[test]
    fn a_late_comer_begins_where_it_says() {
        let (mut writer, ring) = pair(4096);
        for start in [Start::Now, Start::Last, Start::Retained(5)] {
            let mut cursor = Cursor::start(&ring, start).expect("an honest ring");
            assert_eq!(read(&mut cursor, &ring), Err(Miss::Empty));
        }
        for n in 0..777_u64 {
            put(&mut writer, &n.to_le_bytes());
            for (start, first) in [
                (Start::Now, n + 1),
                (Start::Retained(0), n + 1),
                (Start::Last, n),
                (Start::Retained(1), n),
                (Start::Retained(3), n.saturating_sub(2)),
            ] {
                let mut cursor = Cursor::start(&ring, start).expect("an honest ring");
                for wanted in first..=n {
                    assert_eq!(read(&mut cursor, &ring).map(|it| it.0), Ok(wanted), "{start:?}");
                }
                assert_eq!(read(&mut cursor, &ring), Err(Miss::Empty));
            }
        }
        let mut all = Cursor::start(&ring, Start::Retained(u64::MAX)).expect("an honest ring");
        let oldest = read(&mut all, &ring).expect("the oldest").0;
        assert!(oldest <= 777 - 119, "{oldest}");
    }

    #[test]
    fn a_lie_ends_the_ring_and_nothing_else() {
        let lies: [fn(&Ring); 7] = [
            |ring| ring.header().head.store(u64::MAX, Ordering::Relaxed),
            |ring| ring.header().head.store(31, Ordering::Relaxed),
            |ring| ring.words()[0].store(u64::from(u32::MAX), Ordering::Relaxed),
            |ring| ring.words()[0].store(1 << 40, Ordering::Relaxed),
            |ring| ring.words()[0].store((1 << 32) | 32, Ordering::Relaxed),
            |ring| ring.words()[1].store(77, Ordering::Relaxed),
            |ring| ring.header().horizon.store(u64::MAX, Ordering::Relaxed),
        ];
        for (number, lie) in lies.into_iter().enumerate() {
            let (mut writer, ring) = pair(4096);
            let mut cursor = Cursor::start(&ring, Start::Now).expect("an honest ring");
            put(&mut writer, b"true");
            lie(&ring);
            assert_eq!(read(&mut cursor, &ring), Err(Miss::Corrupt), "lie {number}");
        }
        let (mut writer, ring) = pair(4096);
        put(&mut writer, b"true");
        for last in [u64::MAX - 31, 1, 64] {
            ring.header().last.store(last, Ordering::Relaxed);
            let begun = Cursor::start(&ring, Start::Last).map(|mut it| read(&mut it, &ring));
            // An empty event where none was published is as true as any other of a liar's.
            if let Ok(Ok((_, payload))) = begun {
                assert!(payload.is_empty(), "{last}");
            }
        }
    }

    #[test]
    fn words_that_change_at_random_are_survived() {
        let (mut writer, ring) = pair(4096);
        (0..200_u64).for_each(|n| put(&mut writer, &n.to_le_bytes()));
        let theirs = Arc::clone(&ring);
        let over = Arc::new(crate::sync::AtomicBool::new(false));
        let until = Arc::clone(&over);
        let liar = std::thread::spawn(move || {
            let mut state = 1_u64;
            while !until.load(Ordering::Relaxed) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let value = if state & 1 << 40 == 0 { state >> 33 } else { state };
                let header = theirs.header();
                match state >> 60 {
                    0 => header.head.store(value, Ordering::Relaxed),
                    1 => header.horizon.store(value & !31, Ordering::Relaxed),
                    2 => header.last.store(value & 0xFE0, Ordering::Relaxed),
                    place => {
                        theirs.words()[(place * 32 + (state >> 20) % 4) as usize]
                            .store(value, Ordering::Relaxed);
                    }
                }
            }
        });
        let mut events = 0;
        for round in 0..200_000 {
            let start = [Start::Now, Start::Last, Start::Retained(9)][round % 3];
            let Ok(mut cursor) = Cursor::start(&ring, start) else { continue };
            while let Ok((_, payload)) = read(&mut cursor, &ring) {
                assert!(payload.len() as u64 <= longest(4096));
                events += 1;
                if events % 64 == 0 {
                    break;
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        liar.join().expect("it only stores");
    }

    #[test]
    fn readers_of_a_running_writer_never_see_a_torn_event() {
        let (mut writer, ring) = pair(4096);
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let ring = Arc::clone(&ring);
                std::thread::spawn(move || {
                    let mut cursor = Cursor::start(&ring, Start::Now).expect("honest");
                    let (mut seen, mut lost) = (0_u64, 0_u64);
                    loop {
                        match read(&mut cursor, &ring) {
                            Ok((sequence, payload)) => {
                                assert_eq!(sequence, seen + lost);
                                assert!(payload.iter().all(|&it| it == sequence as u8));
                                assert_eq!(payload.len() as u64, sequence * 13 % 900);
                                seen += 1;
                            }
                            Err(Miss::Lagged(count)) => lost += count,
                            Err(Miss::Empty) => std::thread::yield_now(),
                            Err(Miss::Closed) => return seen + lost,
                            Err(Miss::Corrupt) => panic!("an honest ring"),
                        }
                    }
                })
            })
            .collect();
        // Both have begun before the first event.
        std::thread::sleep(std::time::Duration::from_millis(20));
        for n in 0..200_000_u64 {
            put(&mut writer, &vec![n as u8; (n * 13 % 900) as usize]);
        }
        writer.close();
        for reader in readers {
            assert!(reader.join().expect("no torn event") <= 200_000);
        }
    }

    proptest! {
        #[test]
        fn any_lengths_and_any_pace_lose_nothing_uncounted(
            lengths in prop::collection::vec((0_u64..1000, 0_u8..4), 1..200),
        ) {
            let (mut writer, ring) = pair(4096);
            let mut cursor = Cursor::start(&ring, Start::Now).expect("an honest ring");
            let mut next = 0_u64;
            for (number, (length, reads)) in lengths.iter().enumerate() {
                put(&mut writer, &vec![number as u8; *length as usize]);
                for _ in 0..*reads {
                    match read(&mut cursor, &ring) {
                        Ok((sequence, payload)) => {
                            prop_assert_eq!(sequence, next);
                            prop_assert_eq!(payload.len() as u64, lengths[next as usize].0);
                            prop_assert!(payload.iter().all(|&it| it == next as u8));
                            next += 1;
                        }
                        Err(Miss::Lagged(lost)) => next += lost,
                        Err(Miss::Empty) => break,
                        Err(other) => prop_assert!(false, "{:?}", other),
                    }
                }
                prop_assert!(writer.head() - writer.tail() <= 4096);
            }
        }
    }

    #[test]
    fn records_are_aligned_and_their_heads_never_cross_the_end() {
        for length in 0..200 {
            assert!(record_bytes(length) >= RECORD_HEAD + length);
            assert_eq!(record_bytes(length) % 32, 0);
        }
    }
}

#[cfg(loom)]
mod models {
    use super::*;
    use crate::sync::{AtomicU32, Ordering};
    use crate::wait::Fences;
    use loom::thread;

    fn model(check: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.max_branches = 100_000;
        builder.check(check);
    }

    /// Two records fit: the third goes over the first.
    #[test]
    fn loom_an_event_is_whole_and_lost_ones_are_counted() {
        model(|| {
            let ring = Ring::heap(64, 0);
            let mut cursor = Cursor::start(&ring, Start::Now).expect("an honest ring");
            let mut writer = Writer::new(Arc::clone(&ring));
            put(&mut writer, &1_u64.to_le_bytes());
            let publisher = thread::spawn(move || {
                put(&mut writer, &2_u64.to_le_bytes());
                put(&mut writer, &3_u64.to_le_bytes());
            });
            let mut counted = 0;
            for _ in 0..2 {
                match read(&mut cursor, &ring) {
                    Ok((sequence, payload)) => {
                        assert_eq!(sequence, counted);
                        assert_eq!(payload, (sequence + 1).to_le_bytes());
                        counted += 1;
                    }
                    Err(Miss::Lagged(lost)) => counted += lost,
                    Err(Miss::Empty) => {}
                    Err(other) => panic!("an honest ring: {other:?}"),
                }
            }
            publisher.join().expect("no panic");
            assert!(counted >= 1);
        });
    }

    /// Any start in the midst of publishing is exact, too.
    #[test]
    fn loom_a_late_comer_begins_at_a_whole_event() {
        model(|| {
            let ring = Ring::heap(64, 0);
            let mut writer = Writer::new(Arc::clone(&ring));
            put(&mut writer, &1_u64.to_le_bytes());
            let publisher = thread::spawn(move || {
                put(&mut writer, &2_u64.to_le_bytes());
                put(&mut writer, &3_u64.to_le_bytes());
            });
            let mut cursor = Cursor::start(&ring, Start::Last).expect("an honest ring");
            match read(&mut cursor, &ring) {
                Ok((sequence, payload)) => assert_eq!(payload, (sequence + 1).to_le_bytes()),
                Err(Miss::Lagged(_)) => {}
                Err(other) => panic!("an honest ring: {other:?}"),
            }
            publisher.join().expect("no panic");
        });
    }

    /// A subscriber that announces its sleep by way of the runtime. The publisher's warden hears
    /// of it at any time, also after the subscriber has looked and fallen asleep.
    #[test]
    fn loom_a_sleep_that_is_announced_late_is_ended_all_the_same() {
        model(|| {
            let ring = Ring::heap(64, 0);
            let sleepers = Arc::new(AtomicU32::new(0));
            let woken = Arc::new(AtomicU32::new(0));
            let mut writer = Writer::new(Arc::clone(&ring));
            let warden = {
                let (ring, sleepers) = (Arc::clone(&ring), Arc::clone(&sleepers));
                thread::spawn(move || super::super::doorbell::announce(&ring, &sleepers))
            };
            let publisher = {
                let (sleepers, woken) = (Arc::clone(&sleepers), Arc::clone(&woken));
                thread::spawn(move || {
                    put(&mut writer, &1_u64.to_le_bytes());
                    let ring = Arc::clone(writer.ring());
                    if super::super::doorbell::is_due(Fences::Symmetric, &sleepers) {
                        super::super::doorbell::signal(&ring);
                        woken.store(1, Ordering::Relaxed);
                    }
                })
            };
            let event = ring.header().event.load(Ordering::Acquire);
            let head = ring.header().head.load(Ordering::Acquire);
            warden.join().expect("no panic");
            publisher.join().expect("no panic");
            // Both are through. Whoever saw no event would sleep on `event`, and for ever.
            if head == 0 {
                assert_ne!(ring.header().event.load(Ordering::Acquire), event, "asleep for ever");
            }
        });
    }
}
