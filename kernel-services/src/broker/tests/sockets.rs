//! Channels over sockets, for who cannot share memory.

use super::*;
use crate::{
    quota::{Account, Kind},
    security::{Object, Operation, Rule, Subject},
};

fn connect_by_socket(broker: &mut Broker, client: Token, dest: ServiceId) -> Vec<Effect> {
    ask(broker, client, Request::ConnectBySocket { dest })
}

fn accepts(broker: &mut Broker, token: Token, channel: u64, carried: Carried) -> Vec<Effect> {
    broker.step(packet(token, 0, Request::Accept { channel, status: Status::OK }, carried), 0)
}

#[test]
fn who_shares_no_memory_is_introduced_over_a_socket() {
    let mut broker = with_nodes(1..=2);
    let (instance, name) = register(&mut broker, 1, "echo");
    let effects = connect_by_socket(&mut broker, 2, name);
    let (ticket, to, told) = offered(&effects);
    assert!(effects.contains(&Effect::Hold { ticket }));
    assert_eq!((to, told.dest, told.geometry), (1, instance, Geometry::of_sockets()));
    assert_ne!(told.channel & BY_SOCKET, 0, "both ends know it by the channel's id");
    let effects = accepts(&mut broker, 1, told.channel, Carried::Nothing);
    let delivered = effects.iter().find_map(|effect| match effect {
        Effect::Deliver { to: 2, introduction, .. } => Some(*introduction),
        _ => None,
    });
    assert_eq!(delivered.map(|it| (it.channel, it.peer)), Some((told.channel, instance)));
    let held = |broker: &Broker, kind| broker.accounts.ledger().held(&Account::User(UID), kind);
    assert_eq!(held(&broker, Kind::Channels), 1, "it is charged like any other");
    assert_eq!(held(&broker, Kind::SharedBytes), 0, "and shares nothing");
    ask(&mut broker, 2, Request::Closed { channel: told.channel });
    assert_eq!(held(&broker, Kind::Channels), 0);
    broker.close(0);
}

#[test]
fn a_service_that_shares_no_memory_is_offered_none() {
    let mut broker = with_nodes(1..=2);
    let (_, name) = register(&mut broker, 1, "echo");
    assert_eq!(ask(&mut broker, 1, Request::SharesNoMemory), vec![]);
    assert_eq!(connect(&mut broker, 2, name, 9), [refusal(2, 9, Status::NOT_SUPPORTED)]);
    offered(&connect_by_socket(&mut broker, 2, name));
}

#[test]
fn a_lane_where_none_is_due_ends_the_introduction() {
    let mut broker = with_nodes(1..=2);
    let (_, name) = register(&mut broker, 1, "echo");
    let (ticket, _, told) = offered(&connect_by_socket(&mut broker, 2, name));
    let effects = accepts(&mut broker, 1, told.channel, lane());
    let refused = [Effect::Release { ticket }, refusal(2, 7, Status::PEER_CORRUPT)];
    assert_eq!(effects, refused);
}

#[test]
fn the_same_rules_hold_as_for_memory() {
    let mut broker = with_nodes(1..=2);
    let (_, name) = register(&mut broker, 1, "echo");
    let nobody = ServiceId::new(4000);
    assert_eq!(connect_by_socket(&mut broker, 2, nobody), [refusal(2, 7, Status::NOT_FOUND)]);
    let rules = vec![Rule {
        subject: Subject::Any,
        object: Object::Name("echo".to_owned()),
        operations: Operation::MASK,
        allow: false,
    }];
    broker.policy = Policy::new(Terms { uid: UID, rules, ..Terms::default() });
    let effects = connect_by_socket(&mut broker, 2, name);
    assert!(effects.contains(&refusal(2, 7, Status::ACCESS)), "{effects:?}");
}

#[test]
fn a_channel_over_a_socket_is_encrypted_where_one_over_memory_is() {
    for encrypts in [false, true] {
        let mut broker = with_nodes(1..=1);
        let (_, name) = register(&mut broker, 1, "echo");
        broker.step(comes(2, 2, UID, None), 0);
        ask(&mut broker, 2, Request::Hello { asymmetric: true, encrypts, key: [1; 32] });
        let (_, _, told) = offered(&connect_by_socket(&mut broker, 2, name));
        assert_eq!((told.encrypted, told.peer_key), (encrypts, [1; 32]));
    }
}
