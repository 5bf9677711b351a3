//! Who publishes, or subscribes reliably, dies at a store.

use ipc::{
    Spin,
    bus::{PublishOptions, Start, SubscribeOptions},
    failpoint::At,
};
use tests::{Actor, LONG, World, wait_until};

use super::{ACTOR, Doom, die_everywhere};

const RELIABLE: SubscribeOptions = SubscribeOptions { start: Start::Now, reliable: Some(true) };
/// Events of a ring: fewer than are published, so that they are overwritten.
const RING: u64 = 16;
const EVENTS: u64 = 80;

#[test]
fn a_publisher_may_die_at_every_store() {
    let ring = [At::BusIdentity, At::Horizon, At::Record, At::Head, At::Last];
    let must = [&ring[..], &[At::BusEvent, At::BusClosed]].concat();
    die_everywhere("publishing", &must, |_| true, publish);
}

#[test]
fn a_reliable_subscriber_may_die_at_every_store() {
    die_everywhere("subscribing", &[At::CursorIdentity, At::Cursor], |_| true, subscribe);
}

/// What the dead has shown is heard, whole and in order, and then the next publisher.
fn publish(doom: &Doom) -> bool {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let mut subscription = node.subscribe("news", RELIABLE).expect("subscribed");
    let mut doomed = world.actor_under(&doom.words(), &["spin=never"]);
    let pid = doomed.pid();
    let heard = std::thread::scope(|scope| {
        let hearing = scope.spawn(|| {
            let (mut first, mut second) = (0, 0);
            while second < EVENTS {
                let event = subscription.recv(Some(LONG)).expect("an event");
                let next = if event.head.pid == pid { &mut first } else { &mut second };
                assert_eq!(event.head.sequence, *next, "out of order");
                assert!(event.payload.starts_with(&next.to_le_bytes()));
                assert!(event.payload[8..].iter().all(|byte| *byte == 0x5A), "torn");
                *next += 1;
            }
            first
        });
        let told = say_all(&mut doomed).unwrap_or(0);
        let was_killed = doomed.finish();
        let mut next = world.actor(&["spin=never"]);
        next.ask(&format!("event-advertise news {RING}"), "advertised");
        next.ask("event-await news", "awaited");
        next.ask(&format!("event-publish news {EVENTS} 100"), "published");
        let heard = hearing.join().expect("no panic");
        assert!(heard >= told && (was_killed || heard == EVENTS), "{heard} of {told}");
        was_killed
    });
    drop(subscription);
    heard
}

/// Has one publish all that it has to, and gives how much of that it has said it did.
fn say_all(publisher: &mut Actor) -> Option<u64> {
    publisher.ask_or_end(&format!("event-advertise news {RING}"), "advertised")?;
    publisher.ask_or_end("event-await news", "awaited")?;
    let order = format!("event-publish news {} 100", EVENTS / 2);
    let half = publisher.ask_or_end(&order, "published")?.parse().expect("a number");
    let told = publisher.ask_or_end(&order, "published").map(|it| it.parse().expect("a number"));
    let _ = publisher.ask_or_end("event-retire news", "retired");
    told.or(Some(half))
}

/// The publisher waits for nobody who is dead, and another subscriber hears all.
fn subscribe(doom: &Doom) -> bool {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let publisher = node.publisher("news", PublishOptions { events: Some(RING) });
    let publisher = publisher.expect("advertised");
    let other = world.node(Spin::Never);
    let mut subscription = other.subscribe("news", RELIABLE).expect("subscribed");
    let mut doomed = world.actor_under(&doom.words(), &["spin=never"]);
    let is_there = doomed.ask_or_end("event-subscribe news now reliable", "subscribed").is_some();
    let was_killed = std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("it is waited for", || publisher.reliable() > 0);
            for number in 0..EVENTS {
                let payload = [number.to_le_bytes(), [0x5A; 8]].concat();
                publisher.publish(&payload).expect("published");
            }
        });
        let hearing = scope.spawn(|| {
            for number in 0..EVENTS {
                let event = subscription.recv(Some(LONG)).expect("an event");
                assert_eq!(event.head.sequence, number);
            }
        });
        if is_there {
            let half = EVENTS / 2;
            let _ = doomed.ask_or_end(&format!("event-take news {half} 50"), "took");
            let _ = doomed.ask_or_end("event-leave news", "left");
        }
        let was_killed = doomed.finish();
        hearing.join().expect("no panic");
        was_killed
    });
    wait_until("nobody waits for the dead", || publisher.reliable() == 1);
    was_killed
}
