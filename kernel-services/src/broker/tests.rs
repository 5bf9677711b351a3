use std::{collections::HashSet, ops::RangeInclusive};

use ipc::{
    Geometry,
    control::{BY_SOCKET, Introduction, SERVICE_EXCLUSIVE},
};
use proptest::prelude::*;

use super::{
    introductions::{CONNECTS_PER_NODE, OFFERS_PER_NODE},
    *,
};

mod events;
mod groups;
mod kept;
mod payloads;
mod regions;
mod rights;
mod sockets;
mod suspects;

use crate::ids::{Ids, tests::Memory};

const UID: u32 = 1000;
const SECOND: u64 = 1_000_000_000;

fn broker() -> Broker {
    let registry = Registry::new(Ids::new(1..1, Box::new(Memory::default())));
    let key = TokenKey::ephemeral().expect("a key");
    Broker::new(registry, 1, UID, 0, Arc::new(key)).expect("an epoch")
}

/// Somebody connects.
fn comes(token: Token, pid: u32, uid: u32, unit: Option<Unit>) -> Event {
    Event::Accepted { token, peer: Peer { pid, uid, unit, descriptors: 2, ..Peer::default() } }
}

fn lane() -> Carried {
    let bytes = Geometry::default().lane_bytes() as u64;
    Carried::One(LaneFacts { sealed: true, bytes, allocated: bytes, ..LaneFacts::default() })
}

fn packet(token: Token, sequence: u32, request: Request, carried: Carried) -> Event {
    Event::Packet { token, sequence, request: Ok(request), carried }
}

pub(super) fn ask(broker: &mut Broker, token: Token, request: Request) -> Vec<Effect> {
    broker.step(packet(token, 7, request, Carried::Nothing), 0)
}

fn node(broker: &mut Broker, token: Token) -> ServiceId {
    assert_eq!(broker.step(comes(token, token as u32, UID, None), 0), vec![]);
    match ask(broker, token, Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] })
        .as_slice()
    {
        [Effect::Send { reply: Reply::Welcome { node, kernel_pid: 1 }, .. }] => *node,
        other => panic!("not welcomed: {other:?}"),
    }
}

pub(super) fn with_nodes(tokens: RangeInclusive<Token>) -> Broker {
    let mut broker = broker();
    for token in tokens {
        node(&mut broker, token);
    }
    broker
}

/// A registration by who claims nothing from an earlier run.
fn fresh(name: &str) -> Request {
    Request::Register {
        flags: 0,
        claim_instance: 0,
        claim_name: 0,
        ticket: [0; 32],
        name: name.to_owned(),
    }
}

fn register(broker: &mut Broker, token: Token, name: &str) -> (ServiceId, ServiceId) {
    match ask(broker, token, fresh(name)).first() {
        Some(Effect::Send { reply: Reply::Registered { instance, name, .. }, .. }) => {
            (*instance, *name)
        }
        other => panic!("not registered: {other:?}"),
    }
}

fn connect(broker: &mut Broker, client: Token, dest: ServiceId, sequence: u32) -> Vec<Effect> {
    let request = Request::Connect { dest, geometry: Geometry::default() };
    broker.step(packet(client, sequence, request, lane()), 0)
}

fn offered(effects: &[Effect]) -> (u64, Token, Introduction) {
    let offer = effects.iter().find_map(|effect| match effect {
        Effect::Offer { ticket, to, introduction, .. } => Some((*ticket, *to, *introduction)),
        _ => None,
    });
    offer.expect("an offer")
}

fn accept(broker: &mut Broker, token: Token, channel: u64, status: Status) -> Vec<Effect> {
    let carried = if status == Status::OK { lane() } else { Carried::Nothing };
    broker.step(packet(token, 0, Request::Accept { channel, status }, carried), 0)
}

fn refusal(to: Token, sequence: u32, status: Status) -> Effect {
    Effect::Send { to, sequence, reply: Reply::Refused(status) }
}

fn cut(token: Token, sequence: u32, status: Status) -> Effect {
    Effect::Cut { token, last: Some((sequence, status)) }
}

#[test]
fn an_introduction_tells_each_end_about_the_other() {
    let mut broker = broker();
    node(&mut broker, 1);
    let client = node(&mut broker, 2);
    let (instance, name) = register(&mut broker, 1, "echo");
    let effects = connect(&mut broker, 2, name, 9);
    let (ticket, to, incoming) = offered(&effects);
    assert_eq!(effects[0], Effect::Hold { ticket });
    assert_eq!((to, incoming.peer, incoming.peer_name), (1, client, ServiceId::NONE));
    assert_eq!((incoming.peer_pid, incoming.peer_uid, incoming.asymmetric), (2, UID, true));
    assert_eq!((incoming.dest, incoming.dest_name), (instance, name));
    let effects = accept(&mut broker, 1, incoming.channel, Status::OK);
    let connected = Introduction { peer: instance, peer_name: name, peer_pid: 1, ..incoming };
    let expected =
        Effect::Deliver { ticket, to: 2, service: 1, sequence: 9, introduction: connected };
    assert_eq!(effects, vec![expected]);
    assert!(broker.introductions.is_empty());
    assert_eq!(broker.introductions.made(), 1);
    assert_eq!(accept(&mut broker, 1, incoming.channel, Status::OK), vec![], "answered already");
}

#[test]
fn one_may_connect_to_oneself() {
    let mut broker = broker();
    node(&mut broker, 1);
    let (instance, name) = register(&mut broker, 1, "echo");
    let (_, to, incoming) = offered(&connect(&mut broker, 1, instance, 9));
    assert_eq!((to, incoming.peer, incoming.peer_name), (1, instance, name));
    let effects = accept(&mut broker, 1, incoming.channel, Status::OK);
    assert!(matches!(effects.as_slice(), [Effect::Deliver { to: 1, service: 1, .. }]));
}

#[test]
fn a_refusal_is_passed_on() {
    let mut broker = with_nodes(1..=2);
    let (_, name) = register(&mut broker, 1, "echo");
    let (ticket, _, incoming) = offered(&connect(&mut broker, 2, name, 9));
    let effects = accept(&mut broker, 1, incoming.channel, Status::FULL);
    assert_eq!(effects, vec![Effect::Release { ticket }, refusal(2, 9, Status::FULL)]);
}

#[test]
fn a_lane_that_cannot_be_trusted_is_refused() {
    let mut broker = with_nodes(1..=2);
    let (_, name) = register(&mut broker, 1, "echo");
    let bad = Carried::One(LaneFacts {
        sealed: false,
        bytes: 16384,
        allocated: 16384,
        ..LaneFacts::default()
    });
    for carried in [bad, Carried::Nothing] {
        let request = Request::Connect { dest: name, geometry: Geometry::default() };
        let effects = broker.step(packet(2, 9, request, carried), 0);
        assert_eq!(effects, vec![refusal(2, 9, Status::INVALID)]);
    }
    let (ticket, _, incoming) = offered(&connect(&mut broker, 2, name, 9));
    let request = Request::Accept { channel: incoming.channel, status: Status::OK };
    let effects = broker.step(packet(1, 0, request, bad), 0);
    assert_eq!(effects, vec![Effect::Release { ticket }, refusal(2, 9, Status::PEER_CORRUPT)]);
    let (ticket, _, incoming) = offered(&connect(&mut broker, 2, name, 9));
    let request = Request::Accept { channel: incoming.channel, status: Status::OK };
    let effects = broker.step(packet(1, 0, request, Carried::Nothing), 0);
    let refused = [Effect::Release { ticket }, refusal(2, 9, Status::PEER_CORRUPT)];
    assert_eq!(effects[..2], refused);
    assert_eq!(effects[2], cut(1, 0, Status::PROTOCOL));
}

#[test]
fn only_the_service_may_accept() {
    let mut broker = with_nodes(1..=3);
    let (_, name) = register(&mut broker, 1, "echo");
    let (_, _, incoming) = offered(&connect(&mut broker, 2, name, 9));
    assert_eq!(accept(&mut broker, 3, incoming.channel, Status::OK), vec![]);
    assert_eq!(accept(&mut broker, 1, incoming.channel + 1, Status::OK), vec![]);
    assert_eq!(accept(&mut broker, 1, incoming.channel, Status::OK).len(), 1);
}

#[test]
fn when_the_service_dies_the_next_replica_is_asked() {
    let mut broker = with_nodes(1..=3);
    let (first, name) = register(&mut broker, 1, "echo");
    let (second, _) = register(&mut broker, 2, "echo");
    let (ticket, to, before) = offered(&connect(&mut broker, 3, name, 9));
    let (direct, ..) = offered(&connect(&mut broker, 3, first, 10));
    assert_eq!((to, before.dest), (1, first));
    let effects = broker.step(Event::Gone { token: 1 }, SECOND);
    let (again, to, after) = offered(&effects);
    assert_eq!((again, to, after.dest), (ticket, 2, second));
    assert_ne!(before.channel, after.channel);
    assert!(effects.contains(&Effect::Release { ticket: direct }));
    assert!(effects.contains(&refusal(3, 10, Status::PEER_DIED)));
    assert_eq!(accept(&mut broker, 2, before.channel, Status::OK), vec![], "an older offer");
    let deadline = broker.deadline_ns();
    assert_eq!(deadline, Some(2 * SECOND), "a second try has no time of its own");
    let effects = broker.step(Event::Gone { token: 2 }, SECOND);
    assert_eq!(effects, vec![Effect::Release { ticket }, refusal(3, 9, Status::PEER_DIED)]);
    assert!(broker.introductions.is_empty());
}

#[test]
fn unregistering_moves_its_offers_on() {
    let mut broker = with_nodes(1..=2);
    let (instance, name) = register(&mut broker, 1, "echo");
    let (ticket, ..) = offered(&connect(&mut broker, 2, name, 9));
    let effects = ask(&mut broker, 1, Request::Unregister { instance });
    let done = Effect::Send { to: 1, sequence: 7, reply: Reply::Done };
    let refused = refusal(2, 9, Status::PEER_DIED);
    assert_eq!(effects, vec![done, Effect::Release { ticket }, refused]);
    assert_eq!(connect(&mut broker, 2, name, 9), vec![refusal(2, 9, Status::NOT_FOUND)]);
}

#[test]
fn a_silent_service_costs_two_seconds() {
    let mut broker = with_nodes(1..=2);
    let (_, name) = register(&mut broker, 1, "echo");
    let (ticket, _, incoming) = offered(&connect(&mut broker, 2, name, 9));
    assert_eq!(broker.deadline_ns(), Some(2 * SECOND));
    assert_eq!(broker.step(Event::Tick, 2 * SECOND - 1), vec![]);
    let effects = broker.step(Event::Tick, 2 * SECOND);
    assert_eq!(effects, vec![Effect::Release { ticket }, refusal(2, 9, Status::TIMED_OUT)]);
    assert_eq!(accept(&mut broker, 1, incoming.channel, Status::OK), vec![]);
    assert_eq!(broker.deadline_ns(), None);
}

#[test]
fn forgotten_requests_are_not_answered() {
    let mut broker = with_nodes(1..=2);
    let (_, name) = register(&mut broker, 1, "echo");
    let (ticket, _, incoming) = offered(&connect(&mut broker, 2, name, 9));
    assert_eq!(ask(&mut broker, 2, Request::Forget { request: 8 }), vec![]);
    let forgotten = ask(&mut broker, 2, Request::Forget { request: 9 });
    assert_eq!(forgotten, vec![Effect::Release { ticket }]);
    assert_eq!(accept(&mut broker, 1, incoming.channel, Status::OK), vec![]);
    assert_eq!(ask(&mut broker, 2, Request::Wait { name: "late".to_owned() }), vec![]);
    assert_eq!(ask(&mut broker, 2, Request::Forget { request: 7 }), vec![]);
    register(&mut broker, 1, "late");
    assert!(broker.waits.is_empty());
}

#[test]
fn waits_are_answered_after_the_registration() {
    let mut broker = with_nodes(1..=2);
    let wait = || Request::Wait { name: "late".to_owned() };
    assert_eq!(ask(&mut broker, 2, wait()), vec![]);
    let request = Request::Register {
        flags: 0,
        claim_instance: 0,
        claim_name: 0,
        ticket: [0; 32],
        name: "late".to_owned(),
    };
    let effects = ask(&mut broker, 1, request);
    assert!(matches!(
        effects.as_slice(),
        [
            Effect::Send { to: 1, reply: Reply::Registered { .. }, .. },
            Effect::Send { to: 2, sequence: 7, reply: Reply::Found { .. } },
            Effect::Send { to: 1, sequence: 0, reply: Reply::Promote { .. } },
        ]
    ));
    let again = ask(&mut broker, 2, wait());
    assert!(matches!(again.as_slice(), [Effect::Send { reply: Reply::Found { .. }, .. }]));
}

#[test]
fn quotas_are_refused_as_such() {
    let mut broker = with_nodes(1..=2);
    for number in 0..WAITS_PER_NODE {
        assert_eq!(ask(&mut broker, 2, Request::Wait { name: format!("w{number}") }), vec![]);
    }
    let more = ask(&mut broker, 2, Request::Wait { name: "more".to_owned() });
    assert_eq!(more, vec![refusal(2, 7, Status::QUOTA)]);
    let (_, name) = register(&mut broker, 1, "echo");
    for _ in 0..CONNECTS_PER_NODE {
        offered(&connect(&mut broker, 2, name, 9));
    }
    assert_eq!(connect(&mut broker, 2, name, 9), vec![refusal(2, 9, Status::QUOTA)]);
    let clients = OFFERS_PER_NODE / CONNECTS_PER_NODE;
    for token in 3..(2 + clients as u64) {
        node(&mut broker, token);
        for _ in 0..CONNECTS_PER_NODE {
            offered(&connect(&mut broker, token, name, 9));
        }
    }
    node(&mut broker, 99);
    assert_eq!(connect(&mut broker, 99, name, 9), vec![refusal(99, 9, Status::FULL)]);
    broker.step(Event::Gone { token: 2 }, 0);
    offered(&connect(&mut broker, 99, name, 9));
}

#[test]
fn strangers_and_crowds_are_turned_away() {
    let mut broker = broker();
    let other = broker.step(comes(1, 5, UID + 1, None), 0);
    assert_eq!(other, vec![cut(1, 0, Status::ACCESS)]);
    for token in 0..NODES as u64 {
        assert_eq!(broker.step(comes(token, 5, UID, None), 0), vec![]);
    }
    let more = broker.step(comes(9999, 5, UID, None), 0);
    assert_eq!(more, vec![cut(9999, 0, Status::QUOTA)]);
}

#[test]
fn a_greeting_comes_first_once_and_soon() {
    let mut broker = broker();
    broker.step(comes(1, 5, UID, None), 0);
    assert_eq!(ask(&mut broker, 1, Request::Ping), vec![cut(1, 7, Status::PROTOCOL)]);
    node(&mut broker, 2);
    let twice =
        ask(&mut broker, 2, Request::Hello { asymmetric: false, encrypts: false, key: [0; 32] });
    assert_eq!(twice, vec![cut(2, 7, Status::PROTOCOL)]);
    broker.step(comes(3, 5, UID, None), SECOND);
    assert_eq!(broker.deadline_ns(), Some(3 * SECOND));
    let effects = broker.step(Event::Tick, 3 * SECOND);
    assert_eq!(effects, vec![cut(3, 0, Status::TIMED_OUT)]);
    assert!(broker.sessions.is_empty() && broker.greetings.is_empty());
}

#[test]
fn what_is_no_request_ends_the_connection() {
    let request = Err(Malformed::Version(9));
    let many = Request::Connect { dest: ServiceId::new(1), geometry: Geometry::default() };
    let refused = Request::Accept { channel: 1, status: Status::FULL };
    let cases = [
        (request, Carried::Nothing),
        (Ok(Request::Ping), lane()),
        (Ok(refused), lane()),
        (Ok(many), Carried::Many),
    ];
    for (request, carried) in cases {
        let mut broker = broker();
        node(&mut broker, 1);
        let effects = broker.step(Event::Packet { token: 1, sequence: 3, request, carried }, 0);
        assert_eq!(effects, vec![cut(1, 3, Status::PROTOCOL)]);
        assert!(broker.sessions.is_empty() && broker.tokens.is_empty());
    }
}

#[test]
fn an_offer_that_failed_is_refused() {
    let mut broker = with_nodes(1..=2);
    let (_, name) = register(&mut broker, 1, "echo");
    let (ticket, ..) = offered(&connect(&mut broker, 2, name, 9));
    let effects = broker.step(Event::Failed { ticket, status: Status::QUOTA }, 0);
    assert_eq!(effects, vec![Effect::Release { ticket }, refusal(2, 9, Status::QUOTA)]);
}

fn requests() -> impl Strategy<Value = Request> {
    let name = || (0..3_u8).prop_map(|n| format!("n{n}"));
    let id = || (0..40_u32).prop_map(ServiceId::new);
    let geometry = Geometry::default();
    prop_oneof![
        Just(Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] }),
        (name(), 0..4_u32).prop_map(|(name, flags)| Request::Register {
            flags: flags & SERVICE_EXCLUSIVE,
            claim_instance: 0,
            claim_name: 0,
            ticket: [0; 32],
            name
        }),
        id().prop_map(|instance| Request::Unregister { instance }),
        name().prop_map(|name| Request::Wait { name }),
        (0..9_u32).prop_map(|request| Request::Forget { request }),
        id().prop_map(move |dest| Request::Connect { dest, geometry }),
        id().prop_map(|dest| Request::ConnectBySocket { dest }),
        (0..12_u64, prop_oneof![Just(0), Just(-11)]).prop_map(|(channel, code)| Request::Accept {
            channel: (channel % 2) << 63 | 1 << 32 | channel,
            status: Status::from_code(code)
        }),
    ]
}

#[test]
fn operators_command_and_services_do_not() {
    let mut broker = broker().supervised();
    node(&mut broker, 1);
    let unit = Unit { id: 1, service: "api".into(), pid: 2, uid: UID, start_time: 7, key: None };
    broker.step(comes(2, 2, UID, Some(unit)), 0);
    ask(&mut broker, 2, Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] });
    let command = || Request::Command { text: "{}".to_owned() };
    let told = Notice::Command {
        from: 1,
        sequence: 7,
        by: "user 1000 (pid 1, executable unknown)".to_owned(),
        text: "{}".to_owned(),
        trace: None,
    };
    assert_eq!(ask(&mut broker, 1, command()), [Effect::Tell(told)]);
    let reply = Reply::Refused(Status::ACCESS);
    assert_eq!(ask(&mut broker, 2, command()), [Effect::Send { to: 2, sequence: 7, reply }]);
}

proptest! {
    /// Every connect that got a ticket ends exactly once, and nobody's remains stay.
    #[test]
    fn every_ticket_is_settled_once(
        script in prop::collection::vec((0..6_u64, 0..9_u32, requests(), any::<bool>()), 1..150),
    ) {
        let mut broker = with_nodes(0..=5);
        let (mut now, mut live) = (0, HashSet::new());
        let mut events = Vec::new();
        for (token, sequence, request, arrives) in script {
            if arrives {
                let token = 100 + events.len() as u64;
                events.push(comes(token, 1, UID, None));
            }
            events.push(packet(token, sequence, request, lane()));
        }
        events.extend([Event::Tick, Event::Tick, Event::Tick, Event::Tick]);
        events.extend((0..6).map(|token| Event::Gone { token }));
        events.push(Event::Tick);
        for (index, event) in events.into_iter().enumerate() {
            now += if index % 16 == 0 { SECOND } else { 1 };
            // A lane goes only where one may; else the sender would be cut each time.
            let event = match event {
                Event::Packet { token, sequence, request: Ok(request), .. } => {
                    let by_socket = matches!(request, Request::Accept { channel, .. }
                        if channel & BY_SOCKET != 0);
                    let may = may_carry(&request, lane()) && !by_socket;
                    let carried = if may { lane() } else { Carried::Nothing };
                    packet(token, sequence, request, carried)
                }
                other => other,
            };
            for effect in broker.step(event, now) {
                match effect {
                    Effect::Hold { ticket } => {
                        prop_assert!(live.insert(ticket));
                    }
                    Effect::Offer { ticket, .. } => prop_assert!(live.contains(&ticket)),
                    Effect::Deliver { ticket, .. } | Effect::Release { ticket } => {
                        prop_assert!(live.remove(&ticket));
                    }
                    // Nobody here has anything but lanes.
                    Effect::KeepBoard { .. }
                    | Effect::SendBoard { .. }
                    | Effect::LoseBoard { .. }
                    | Effect::Region(_)
                    | Effect::Ring(_)
                    | Effect::Stow(_) => prop_assert!(false, "{effect:?}"),
                    Effect::Send { .. }
                    | Effect::Cut { .. }
                    | Effect::Keep(_)
                    | Effect::Examine { .. }
                    | Effect::LookInto { .. }
                    | Effect::Kill { .. }
                    | Effect::Plan { .. }
                    | Effect::LetGo { .. } => {}
                    other @ (Effect::Note(_) | Effect::Issue { .. } | Effect::Check { .. }) => {
                        prop_assert!(false, "nobody asked for {other:?}");
                    }
                    Effect::Tell(notice) => prop_assert!(false, "nobody to tell {notice:?}"),
                }
            }
        }
        broker.step(Event::Tick, now + 10 * SECOND);
        prop_assert!(live.is_empty());
        prop_assert!(broker.introductions.is_empty());
        prop_assert!(broker.waits.is_empty() && broker.sessions.is_empty());
        prop_assert!(broker.channels.is_empty());
        broker.close(now);
        prop_assert_eq!((broker.registry.nodes(), broker.registry.services()), (0, 0));
    }
}

fn board(segment: u32) -> Carried {
    let bytes = 4096 << (2 * segment);
    Carried::One(LaneFacts { sealed: true, bytes, allocated: bytes, ..LaneFacts::default() })
}

fn show(broker: &mut Broker, token: Token, segment: u32, carried: Carried) -> Vec<Effect> {
    broker.step(packet(token, 5, Request::Board { segment }, carried), 0)
}

#[test]
fn boards_are_kept_shown_to_operators_and_lost_with_their_nodes() {
    let mut broker = broker();
    let (first, second) = (node(&mut broker, 1), node(&mut broker, 2));
    let key = |node: ServiceId, segment: u64| u64::from(node.get()) << 32 | segment;
    assert_eq!(
        ask(&mut broker, 1, Request::Boards { after: 0 }),
        [Effect::Send { to: 1, sequence: 7, reply: Reply::Done }]
    );
    for (token, node, segment) in [(2, second, 0), (1, first, 1), (1, first, 0), (1, first, 0)] {
        let kept = Effect::KeepBoard { board: key(node, segment.into()) };
        assert_eq!(show(&mut broker, token, segment, board(segment)), [kept]);
    }
    let mut after = 0;
    for (node, pid, segment) in [(first, 1, 0), (first, 1, 1), (second, 2, 0)] {
        let next = key(node, u64::from(segment)) + 1;
        let reply = Reply::Board { node, pid, segment, next };
        let shown = Effect::SendBoard { to: 2, sequence: 7, board: next - 1, reply };
        assert_eq!(ask(&mut broker, 2, Request::Boards { after }), [shown]);
        after = next;
    }
    let lost = [Effect::LoseBoard { board: key(first, 1) }];
    assert_eq!(show(&mut broker, 1, 1, Carried::Nothing), lost);
    assert_eq!(show(&mut broker, 1, 1, Carried::Nothing), []);
    let gone = broker.step(Event::Gone { token: 1 }, 0);
    assert_eq!(gone, [Effect::LoseBoard { board: key(first, 0) }]);
    let gone = broker.step(Event::Gone { token: 2 }, 0);
    assert_eq!(gone, [Effect::LoseBoard { board: key(second, 0) }]);
    assert!(broker.boards.is_empty());
}

#[test]
fn what_is_no_board_ends_the_connection() {
    let fake = |sealed, allocated| {
        Carried::One(LaneFacts { sealed, bytes: 8192, allocated, ..LaneFacts::default() })
    };
    for (segment, carried) in [
        (0, Carried::Many),
        (0, board(1)),
        (0, fake(false, 8192)),
        (0, fake(true, 0)),
        (8, board(8)),
        (9, board(9)),
        (u32::MAX, board(0)),
    ] {
        let mut broker = with_nodes(1..=1);
        let effects = show(&mut broker, 1, segment, carried);
        assert_eq!(effects, [cut(1, 5, Status::PROTOCOL)], "{segment} {carried:?}");
    }
}

#[test]
fn a_supervised_service_does_not_see_the_boards_of_others() {
    let mut broker = broker();
    let unit = Unit { id: 1, service: "a".into(), pid: 9, uid: UID, start_time: 1, key: None };
    broker.step(comes(1, 9, UID, Some(unit)), 0);
    ask(&mut broker, 1, Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] });
    let refused = [refusal(1, 7, Status::ACCESS)];
    assert_eq!(ask(&mut broker, 1, Request::Boards { after: 0 }), refused);
    let trace = Request::Trace { instance: ServiceId::new(1), every_us: 1, for_ms: 1 };
    assert_eq!(ask(&mut broker, 1, trace), refused);
    let payloads = Request::Payloads { instance: ServiceId::new(1), bytes: 1, for_ms: 1 };
    assert_eq!(ask(&mut broker, 1, payloads), refused);
    // Nor does another user's process.
    broker.step(comes(2, 9, UID + 1, None), 0);
    ask(&mut broker, 2, Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] });
    assert!(!broker.is_operator(2) && !broker.is_operator(1));
}

#[test]
fn an_order_to_trace_goes_to_who_serves_the_instance() {
    let mut broker = with_nodes(1..=2);
    let (instance, name) = register(&mut broker, 2, "api");
    let order = |instance| Request::Trace { instance, every_us: 5, for_ms: 6 };
    let passed = Reply::Trace { instance, every_us: 5, for_ms: 6 };
    assert_eq!(
        ask(&mut broker, 1, order(instance)),
        [
            Effect::Send { to: 2, sequence: 0, reply: passed },
            Effect::Send { to: 1, sequence: 7, reply: Reply::Done },
        ]
    );
    for wrong in [name, ServiceId::new(9999)] {
        assert_eq!(ask(&mut broker, 1, order(wrong)), [refusal(1, 7, Status::NOT_FOUND)]);
    }
}
