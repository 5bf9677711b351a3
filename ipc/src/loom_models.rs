//! Models of the shared-memory protocols: every interleaving and every allowed reordering of the
//! real ring, event-count and claim code, on lanes in ordinary memory.

use loom::{
    sync::{Arc as LoomArc, Condvar, Mutex},
    thread,
};
use std::sync::Arc;

use crate::{
    claim::Claim,
    frame::{Kind, Label, Sender},
    lane::Lane,
    layout::{Geometry, LIFE_CLOSED, LIFE_DIED, Ring},
    mark,
    ring::{Consumer, Producer, PushError},
    sync::{AtomicU32, AtomicU64, Ordering},
    table::{Table, Waiter, bed},
    wait::{Fences, Sleep, event},
};

/// The kernel's side of a futex: compares and falls asleep under its own lock.
#[derive(Default)]
struct Kernel {
    lock: Mutex<()>,
    sleepers: Condvar,
}

impl Kernel {
    fn new() -> LoomArc<Kernel> {
        LoomArc::new(Kernel { lock: Mutex::new(()), sleepers: Condvar::new() })
    }

    fn wait(&self, still: impl Fn() -> bool) {
        let guard = self.lock.lock().expect("no panics");
        if still() {
            drop(self.sleepers.wait(guard).expect("no panics"));
        }
    }

    fn wake(&self) {
        drop(self.lock.lock().expect("no panics"));
        self.sleepers.notify_all();
    }
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    model_within(3, check);
}

/// With fewer preemptions, for three threads that wait for one another.
fn model_within(preemptions: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(check);
}

fn lanes() -> (Arc<Lane>, Arc<Lane>) {
    (Lane::heap(Geometry::tiny()), Lane::heap(Geometry::tiny()))
}

fn label(id: u32) -> Label {
    Label::new(Kind::OneWay, 2).with_id(id)
}

/// Takes one frame; its id and payload.
fn take(consumer: &mut Consumer) -> Option<(u32, Vec<u8>)> {
    let frame = consumer.peek().expect("an honest peer")?;
    let mut payload = vec![0; frame.head.length as usize];
    consumer.copy(&frame, &mut payload);
    consumer.release(&frame);
    Some((frame.head.id, payload))
}

#[test]
fn loom_a_frame_is_seen_whole_or_not_at_all() {
    model(|| {
        let (sender, receiver) = lanes();
        let mut producer = Producer::new(&sender, &receiver, Ring::Ordinary);
        let mut consumer = Consumer::new(&receiver, &sender, Ring::Ordinary, Sender::Client);
        let writer = thread::spawn(move || {
            producer.push(label(1), b"one", 0).expect("room");
            // One byte in the slab.
            producer.push(label(2), &[7; 49], 0).expect("room");
        });
        let mut expected = 1;
        for _ in 0..2 {
            if let Some((id, payload)) = take(&mut consumer) {
                assert_eq!(id, expected);
                assert_eq!(payload, if id == 1 { b"one".to_vec() } else { vec![7; 49] });
                expected += 1;
            }
        }
        writer.join().expect("no panics");
        while let Some((id, _)) = take(&mut consumer) {
            assert_eq!(id, expected);
            expected += 1;
        }
        assert_eq!(expected, 3);
    });
}

#[test]
fn loom_a_cell_is_written_again_only_after_it_was_read() {
    model(|| {
        let (sender, receiver) = lanes();
        let mut producer = Producer::new(&sender, &receiver, Ring::Ordinary);
        let mut consumer = Consumer::new(&receiver, &sender, Ring::Ordinary, Sender::Client);
        // Two cells, full.
        producer.push(label(1), b"aa", 0).expect("room");
        producer.push(label(2), b"bb", 0).expect("room");
        let writer = thread::spawn(move || match producer.push(label(3), b"cc", 0) {
            Ok(_) => 3,
            Err(PushError::Full { wake_at }) => {
                assert_eq!(wake_at, 1);
                2
            }
            Err(PushError::Corrupt(lie)) => panic!("{lie}"),
            Err(PushError::Retired) => panic!("no other channel"),
        });
        assert_eq!(take(&mut consumer), Some((1, b"aa".to_vec())));
        let sent = writer.join().expect("no panics");
        assert_eq!(take(&mut consumer), Some((2, b"bb".to_vec())));
        let third = take(&mut consumer);
        assert_eq!(third, (sent == 3).then(|| (3, b"cc".to_vec())));
    });
}

fn parking(fences: Fences) {
    model(move || {
        let (sender, receiver) = lanes();
        let kernel = Kernel::new();
        let mut producer = Producer::new(&sender, &receiver, Ring::Ordinary);
        let mut consumer = Consumer::new(&receiver, &sender, Ring::Ordinary, Sender::Client);
        let writer = {
            let (sender, receiver, kernel) = (sender.clone(), receiver.clone(), kernel.clone());
            thread::spawn(move || {
                let rung = AtomicU32::new(0);
                for id in 1..=2 {
                    producer.push(label(id), b"", 0).expect("room");
                    if event::to_wake(fences, receiver.header(), &rung).is_some() {
                        event::signal(sender.header());
                        kernel.wake();
                    }
                }
            })
        };
        let mut taken = 0;
        let mut number = 0;
        while taken < 2 {
            if take(&mut consumer).is_some() {
                taken += 1;
                continue;
            }
            let seen = sender.header().event.load(Ordering::Acquire);
            number += 1;
            event::announce(receiver.header(), Sleep::Futex.parked(number));
            fences.heavy();
            if !consumer.is_ready() {
                kernel.wait(|| sender.header().event.load(Ordering::Acquire) == seen);
            }
            receiver.header().attention.parked.store(0, Ordering::Relaxed);
        }
        writer.join().expect("no panics");
    });
}

#[test]
fn loom_no_wake_up_is_lost_with_symmetric_fences() {
    parking(Fences::Symmetric);
}

#[test]
fn loom_no_wake_up_is_lost_with_asymmetric_fences() {
    parking(Fences::Asymmetric);
}

#[test]
fn loom_who_waits_for_room_is_woken() {
    for fences in [Fences::Symmetric, Fences::Asymmetric] {
        model(move || {
            let (sender, receiver) = lanes();
            let kernel = Kernel::new();
            let mut producer = Producer::new(&sender, &receiver, Ring::Ordinary);
            let mut consumer = Consumer::new(&receiver, &sender, Ring::Ordinary, Sender::Client);
            producer.push(label(1), b"", 0).expect("room");
            producer.push(label(2), b"", 0).expect("room");
            let reader = {
                let (sender, receiver, kernel) = (sender.clone(), receiver.clone(), kernel.clone());
                thread::spawn(move || {
                    assert!(take(&mut consumer).is_some());
                    let (own, peer) = (receiver.header(), sender.header());
                    if event::to_wake_for_room(fences, own, peer).is_some() {
                        event::signal(own);
                        kernel.wake();
                    }
                })
            };
            // The reader stays: what wakes the producer must be its progress.
            while let Err(refusal) = producer.push(label(3), b"", 0) {
                let PushError::Full { wake_at } = refusal else { panic!("{refusal:?}") };
                let seen = receiver.header().event.load(Ordering::Acquire);
                event::announce_want(sender.header(), Ring::Ordinary, wake_at, Sleep::Futex);
                fences.heavy();
                if receiver.header().taken_ordinary.load(Ordering::Acquire) < wake_at {
                    kernel.wait(|| receiver.header().event.load(Ordering::Acquire) == seen);
                }
                sender.header().want(Ring::Ordinary).store(0, Ordering::Relaxed);
            }
            reader.join().expect("no panics");
        });
    }
}

/// The last thing that a sleeper looks at, and sleeps on, is the life word: whoever dies or closes
/// ends the sleep.
#[test]
fn loom_a_death_or_a_close_ends_the_sleep() {
    for end in [LIFE_DIED, LIFE_CLOSED] {
        model(move || {
            let (sender, receiver) = lanes();
            let kernel = Kernel::new();
            let ending = {
                let (sender, kernel) = (sender.clone(), kernel.clone());
                thread::spawn(move || {
                    sender.header().life.store(end, Ordering::Release);
                    if end == LIFE_CLOSED {
                        event::signal(sender.header());
                    }
                    kernel.wake();
                })
            };
            let header = sender.header();
            let seen = header.event.load(Ordering::Acquire);
            event::announce(receiver.header(), Sleep::Futex.parked(1));
            Fences::Symmetric.heavy();
            let life = header.life.load(Ordering::Acquire);
            if life != end {
                kernel.wait(|| {
                    header.event.load(Ordering::Acquire) == seen
                        && header.life.load(Ordering::Acquire) == life
                });
            }
            assert_eq!(header.life.load(Ordering::Acquire), end);
            ending.join().expect("no panics");
        });
    }
}

#[test]
fn loom_a_claim_is_held_by_one() {
    model(|| {
        let claim = LoomArc::new(Claim::new(0_u32));
        let other = claim.clone();
        let thread = thread::spawn(move || {
            if let Some(mut claimed) = other.try_claim() {
                *claimed += 1;
            }
        });
        let mine = claim.try_claim().map(|mut claimed| *claimed += 1).is_some();
        thread.join().expect("no panics");
        let total = *claim.try_claim().expect("free");
        assert!(total == 1 || total == 2 && mine);
    });
}

/// Takes a claim, if it is free, and makes sure that nobody else has it.
fn enter(claim: &Claim<(AtomicU32, u32)>) -> bool {
    let Some(mut claimed) = claim.try_claim() else { return false };
    assert_eq!(claimed.0.swap(1, Ordering::Relaxed), 0, "two hold it");
    claimed.1 += 1;
    claimed.0.store(0, Ordering::Relaxed);
    true
}

/// One thread has a turn, and takes the claim with plain stores; two others end the turn.
#[test]
fn loom_a_turn_ends_before_another_holds_the_claim() {
    model_within(2, || {
        let claim = LoomArc::new(Claim::new((AtomicU32::new(0), 0)));
        // Often enough to have a turn.
        let mut entered = (0..3).filter(|_| enter(&claim)).count() as u32;
        let others = [(); 2].map(|()| {
            let claim = claim.clone();
            thread::spawn(move || u32::from(enter(&claim)))
        });
        entered += (0..1).filter(|_| enter(&claim)).count() as u32;
        for other in others {
            entered += other.join().expect("no panics");
        }
        assert_eq!(claim.try_claim().expect("free").1, entered);
    });
}

/// Who insists gets the claim, though its owner takes it again and again.
#[test]
fn loom_who_waits_for_a_claim_gets_it() {
    model(|| {
        let claim = LoomArc::new(Claim::new((AtomicU32::new(0), 0)));
        (0..3).for_each(|_| assert!(enter(&claim)));
        let other = claim.clone();
        let other = thread::spawn(move || other.claim().1 += 1);
        let held = claim.try_claim();
        let mine = held.map(|mut held| held.1 += 1).is_some();
        other.join().expect("no panics");
        assert_eq!(claim.try_claim().expect("free").1, 4 + u32::from(mine));
    });
}

/// A follower announces itself, then looks whether the lead is free; a leader gives the lead up,
/// then looks for followers. One of them sees the other.
#[test]
fn loom_a_leader_that_leaves_calls_a_follower() {
    model(|| {
        let kernel = Kernel::new();
        let shared = LoomArc::new((Claim::new(()), Table::new(1), AtomicU64::new(0)));
        let id = shared.1.reserve(1, Waiter::Thread).expect("room") as u32;
        let held = shared.0.try_claim().expect("free");
        let follower = {
            let (shared, kernel) = (shared.clone(), kernel.clone());
            thread::spawn(move || {
                let (claim, table, followers) = &*shared;
                let slot = table.slot(id);
                loop {
                    if claim.try_claim().is_some() {
                        break;
                    }
                    followers.fetch_add(1, Ordering::SeqCst);
                    slot.bed.store(bed::ASLEEP, Ordering::SeqCst);
                    Fences::within().heavy();
                    if !claim.is_free() {
                        kernel.wait(|| slot.bed.load(Ordering::SeqCst) == bed::ASLEEP);
                    }
                    slot.bed.swap(bed::EMPTY, Ordering::SeqCst);
                    followers.fetch_sub(1, Ordering::SeqCst);
                }
            })
        };
        drop(held);
        let (_, table, followers) = &*shared;
        if followers.load(Ordering::SeqCst) > 0 && table.slot(id).call() {
            kernel.wake();
        }
        follower.join().expect("no panics");
    });
}

/// The same with a leader in its turn, and with a third thread that tries once, in vain or not, and
/// passes the lead on as every leader does.
#[test]
fn loom_a_leader_in_its_turn_calls_a_follower() {
    model(|| {
        let kernel = Kernel::new();
        let shared = LoomArc::new((Claim::new(()), Table::new(1), AtomicU64::new(0)));
        let id = shared.1.reserve(1, Waiter::Thread).expect("room") as u32;
        let pass_on = {
            let (shared, kernel) = (shared.clone(), kernel.clone());
            move || {
                let (_, table, followers) = &*shared;
                if followers.load(Ordering::SeqCst) > 0 && table.slot(id).call() {
                    kernel.wake();
                }
            }
        };
        // Often enough to have a turn.
        (0..3).for_each(|_| drop(shared.0.try_claim().expect("free")));
        let held = shared.0.try_claim().expect("free");
        let follower = {
            let (shared, kernel) = (shared.clone(), kernel.clone());
            thread::spawn(move || {
                let (claim, table, followers) = &*shared;
                let slot = table.slot(id);
                while claim.try_claim().is_none() {
                    followers.fetch_add(1, Ordering::SeqCst);
                    slot.bed.store(bed::ASLEEP, Ordering::SeqCst);
                    Fences::within().heavy();
                    if !claim.is_free() {
                        kernel.wait(|| slot.bed.load(Ordering::SeqCst) == bed::ASLEEP);
                    }
                    slot.bed.swap(bed::EMPTY, Ordering::SeqCst);
                    followers.fetch_sub(1, Ordering::SeqCst);
                }
            })
        };
        let third = {
            let (shared, pass_on) = (shared.clone(), pass_on.clone());
            thread::spawn(move || {
                if let Some(claimed) = shared.0.try_claim() {
                    drop(claimed);
                    pass_on();
                }
            })
        };
        drop(held);
        pass_on();
        third.join().expect("no panics");
        follower.join().expect("no panics");
    });
}

/// An answer and a caller that gives up race for the slot: exactly one of them has it.
#[test]
fn loom_a_call_ends_exactly_once() {
    model(|| {
        let table = LoomArc::new(Table::new(1));
        let id = table.reserve(1, Waiter::Thread).expect("room") as u32;
        let other = table.clone();
        let answering = thread::spawn(move || {
            assert!(other.slot(id).fill(id, Ok(vec![1])).is_none());
        });
        let gave_up = table.slot(id).give_up(id);
        answering.join().expect("no panics");
        assert_eq!(table.slot(id).take(id).is_some(), !gave_up);
        assert!(table.reserve(2, Waiter::Thread).is_ok(), "the slot is free again");
    });
}

/// A client leaves as the one that it waits for begins to serve. What it counts on not to be taken
/// there, and sends to another, is not taken there.
#[test]
fn loom_who_begins_to_serve_takes_nothing_from_who_has_left() {
    model(|| {
        let (client, service) = lanes();
        let mut producer = Producer::new(&client, &service, Ring::Ordinary);
        let mut consumer = Consumer::new(&service, &client, Ring::Ordinary, Sender::Client);
        producer.push(label(1), b"once", 0).expect("room");
        let serving = {
            let (client, service) = (client.clone(), service.clone());
            thread::spawn(move || {
                mark::show(service.header(), client.header(), 7) && take(&mut consumer).is_some()
            })
        };
        let is_final = mark::leave(client.header(), service.header()) == 0;
        let taken = service.header().taken_ordinary.load(Ordering::Acquire);
        let is_sent_again = is_final && taken == 0;
        let is_carried_out = serving.join().expect("no panics");
        assert!(!(is_sent_again && is_carried_out), "done here and elsewhere");
        assert!(!is_final || !is_carried_out, "it was to take nothing");
    });
}

/// One that serves lets go, and its client leaves: who sees that nothing more is taken knows all
/// that was.
#[test]
fn loom_what_was_taken_before_a_name_was_let_go_is_seen() {
    model(|| {
        let (client, service) = lanes();
        let mut producer = Producer::new(&client, &service, Ring::Ordinary);
        let mut consumer = Consumer::new(&service, &client, Ring::Ordinary, Sender::Client);
        mark::set(service.header(), 7);
        producer.push(label(1), b"a", 0).expect("room");
        producer.push(label(2), b"b", 0).expect("room");
        let serving = {
            let service = service.clone();
            thread::spawn(move || {
                assert!(take(&mut consumer).is_some());
                assert!(take(&mut consumer).is_some());
                mark::set(service.header(), 0);
            })
        };
        let mark = mark::leave(client.header(), service.header());
        let taken = service.header().taken_ordinary.load(Ordering::Acquire);
        assert!(mark != 0 || taken == 2, "{taken} of two");
        serving.join().expect("no panics");
    });
}
