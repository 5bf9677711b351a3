//! Topics of events: who publishes, who hears, who pays, and what becomes of it.

use ipc::control::{BusNote, BusStep, SUBSCRIBER_SLEEPS};

use super::*;
use crate::{
    broker::RingEffect,
    quota::{Account, Kind},
    security::{Object, Operation, Rule, Subject},
};

/// Bytes of a ring's records.
const RING: u64 = 1 << 16;

fn ring() -> Carried {
    let header = (0..16).map(|pages| pages * 4096).find(|header| {
        let bytes = RING + header;
        let facts = LaneFacts { sealed: true, bytes, allocated: bytes, ..LaneFacts::default() };
        facts.ring_bytes() == Some(RING)
    });
    let bytes = RING + header.expect("a ring has a header of pages");
    Carried::One(LaneFacts { sealed: true, bytes, allocated: bytes, ..LaneFacts::default() })
}

fn topic(broker: &mut Broker, name: &str) -> u32 {
    match ask(broker, 1, Request::Topic { id: 0, name: name.to_owned() }).as_slice() {
        [Effect::Send { reply: Reply::Topic { id, .. }, .. }] => *id,
        other => panic!("no topic: {other:?}"),
    }
}

fn advertise(broker: &mut Broker, by: Token, name: &str, number: u32, follows: u32) -> Vec<Effect> {
    let topic = topic(broker, name);
    let name = name.to_owned();
    let request = Request::Advertise { topic, ring: number, follows, name };
    broker.step(packet(by, 7, request, ring()), 0)
}

fn subscribe(broker: &mut Broker, by: Token, name: &str, flags: u32) -> Vec<Effect> {
    let topic = topic(broker, name);
    ask(broker, by, Request::Subscribe { topic, flags, name: name.to_owned() })
}

fn rings_given(effects: &[Effect]) -> Vec<(Token, u64)> {
    let given = effects.iter().filter_map(|effect| match effect {
        Effect::Ring(RingEffect::Send { to, ring, .. }) => Some((*to, *ring)),
        _ => None,
    });
    given.collect()
}

fn told(effects: &[Effect]) -> Vec<(Token, BusStep, u64)> {
    let notes = effects.iter().filter_map(|effect| match effect {
        Effect::Send { to, reply: Reply::Bus(note), .. } => Some((*to, note.step, note.value)),
        _ => None,
    });
    notes.collect()
}

fn done(to: Token) -> Effect {
    Effect::Send { to, sequence: 7, reply: Reply::Done }
}

fn held(broker: &Broker) -> u64 {
    broker.accounts.ledger().held(&Account::User(UID), Kind::SharedBytes)
}

#[test]
fn subscribers_are_given_each_ring_once_whoever_came_first() {
    let mut broker = with_nodes(1..=3);
    assert_eq!(subscribe(&mut broker, 2, "news", 0), [done(2)]);
    let effects = advertise(&mut broker, 1, "news", 1, 0);
    let given = rings_given(&effects);
    let [(2, id)] = given[..] else { panic!("{effects:?}") };
    assert!(effects.contains(&Effect::Ring(RingEffect::Keep { ring: id })));
    assert!(effects.contains(&done(1)) && held(&broker) >= RING, "and it is charged");
    let late = subscribe(&mut broker, 3, "news", 0);
    assert_eq!((rings_given(&late), late.last()), (vec![(3, id)], Some(&done(3))));
    assert!(rings_given(&subscribe(&mut broker, 3, "news", 0)).is_empty(), "it has it");
    // The publisher is gone: so are its ring and its charge, and both are told.
    let gone = broker.step(Event::Gone { token: 1 }, 0);
    assert_eq!(told(&gone), [(2, BusStep::Withdrawn, 0), (3, BusStep::Withdrawn, 0)]);
    assert!(gone.contains(&Effect::Ring(RingEffect::Lose { ring: id })));
    assert_eq!(held(&broker), 0);
    broker.close(0);
}

#[test]
fn a_publisher_wakes_nobody_until_somebody_sleeps() {
    let mut broker = with_nodes(1..=3);
    assert_eq!(told(&advertise(&mut broker, 1, "news", 1, 0)), []);
    assert_eq!(told(&subscribe(&mut broker, 2, "news", 0)), []);
    let sleeps = subscribe(&mut broker, 2, "news", SUBSCRIBER_SLEEPS);
    assert_eq!(told(&sleeps), [(1, BusStep::Sleepers, 1)]);
    assert_eq!(told(&subscribe(&mut broker, 3, "news", SUBSCRIBER_SLEEPS)), []);
    broker.step(Event::Gone { token: 2 }, 0);
    let calm = broker.step(Event::Gone { token: 3 }, 0);
    assert_eq!(told(&calm), [(1, BusStep::Sleepers, 0)]);
    broker.close(0);
}

#[test]
fn what_is_no_ring_and_what_is_another_s_counts_for_nothing() {
    let mut broker = with_nodes(1..=2);
    let id = topic(&mut broker, "news");
    let request = |ring, follows| {
        let name = "news".to_owned();
        Request::Advertise { topic: id, ring, follows, name }
    };
    for (request, carried) in
        [(request(1, 0), Carried::Nothing), (request(1, 0), lane()), (request(0, 0), ring())]
    {
        let refused = broker.step(packet(1, 7, request, carried), 0);
        assert_eq!(refused, [refusal(1, 7, Status::INVALID)]);
    }
    let refused = broker.step(packet(1, 7, request(1, 9), ring()), 0);
    assert_eq!(refused, [refusal(1, 7, Status::NOT_FOUND)], "it follows none of its own");
    assert_eq!(subscribe(&mut broker, 2, "news", 2), [refusal(2, 7, Status::INVALID)]);
    let mine = rings_given(&subscribe(&mut broker, 2, "news", 0));
    assert_eq!(mine, []);
    let ring = rings_given(&advertise(&mut broker, 1, "news", 1, 0))[0].1;
    // Only its publisher takes it back, and what the runtime says nobody else does.
    for step in [BusStep::Withdrawn, BusStep::Rotate, BusStep::Revoked, BusStep::Held] {
        let note = BusNote { step, topic: id, ring, subscriber: 0, value: 1 };
        assert_eq!(ask(&mut broker, 2, Request::Bus(note)), [], "{step:?}");
    }
    let note = BusNote { step: BusStep::Withdrawn, topic: id, ring, subscriber: 0, value: 0 };
    assert!(!ask(&mut broker, 1, Request::Bus(note)).is_empty());
    broker.close(0);
}

#[test]
fn who_subscribes_is_listed_with_what_it_says_that_it_lost() {
    let mut broker = with_nodes(1..=3);
    let id = topic(&mut broker, "news");
    let listeners =
        |broker: &mut Broker| ask(broker, 1, Request::Listeners { topic: id, after: 0 });
    assert_eq!(listeners(&mut broker), [refusal(1, 7, Status::NOT_FOUND)]);
    subscribe(&mut broker, 2, "news", SUBSCRIBER_SLEEPS);
    subscribe(&mut broker, 3, "news", 0);
    let lost = |value| BusNote { step: BusStep::Lost, topic: id, ring: 0, subscriber: 0, value };
    assert_eq!(ask(&mut broker, 3, Request::Bus(lost(17))), []);
    assert_eq!(ask(&mut broker, 1, Request::Bus(lost(99))), [], "it subscribes to nothing");
    let listed = listeners(&mut broker);
    let [Effect::Send { reply: Reply::Listeners { entries, next: 0 }, .. }] = &listed[..] else {
        panic!("{listed:?}")
    };
    let seen: Vec<_> = entries.iter().map(|it| (it.pid, it.sleeps, it.lost)).collect();
    assert_eq!(seen, [(2, true, 0), (3, false, 17)]);
    let after = entries[0].node.get();
    let rest = ask(&mut broker, 1, Request::Listeners { topic: id, after });
    let [Effect::Send { reply: Reply::Listeners { entries, .. }, .. }] = &rest[..] else {
        panic!("{rest:?}")
    };
    assert_eq!(entries.len(), 1);
    broker.close(0);
}

#[test]
fn a_rule_that_is_gone_takes_the_ring_back_and_has_the_publisher_rotate() {
    let mut broker = with_nodes(1..=2);
    subscribe(&mut broker, 2, "news", 0);
    let ring = rings_given(&advertise(&mut broker, 1, "news", 1, 0))[0].1;
    let nobody = |operation: Operation| Rule {
        subject: Subject::Any,
        object: Object::Name("news".to_owned()),
        operations: operation.bit(),
        allow: false,
    };
    let enact = |broker: &mut Broker, rules| {
        let terms = Terms { uid: UID, rules, ..Terms::default() };
        broker.step(Event::Law(Box::new(Law { terms, ..Law::default() })), 0)
    };
    let effects = enact(&mut broker, vec![nobody(Operation::Subscribe)]);
    assert_eq!(told(&effects), [(2, BusStep::Revoked, 0), (1, BusStep::Rotate, 0)]);
    assert_eq!(subscribe(&mut broker, 2, "news", 0), [refusal(2, 7, Status::ACCESS)]);
    let effects = enact(&mut broker, vec![nobody(Operation::Publish)]);
    assert_eq!(told(&effects), [(1, BusStep::Revoked, 0)]);
    assert!(effects.contains(&Effect::Ring(RingEffect::Lose { ring })));
    let refused = advertise(&mut broker, 1, "news", 2, 0);
    assert_eq!(refused, [refusal(1, 7, Status::ACCESS)]);
    broker.close(0);
}
