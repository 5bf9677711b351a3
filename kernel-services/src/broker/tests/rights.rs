//! Rules, quotas, tokens and tickets, as the broker applies them.

use super::*;
use crate::{
    desk::Unit,
    notes,
    quota::{Account, Kind, Quota},
    security::{Object, Operation, Rule, Subject},
};

fn unit(id: u32, service: &str, pid: u32) -> Unit {
    let service = service.into();
    Unit { id, service, pid, uid: UID, start_time: u64::from(pid), key: None }
}

/// A broker that is recorded and supervised, with nodes of `api` (2) and `store` (3), which serves,
/// and of a stranger (4).
fn system(rules: Vec<Rule>) -> (Broker, ServiceId) {
    let mut broker = Broker { pid: 1, ..broker().supervised().recorded() };
    enact(&mut broker, rules, Quota::default());
    for (token, unit) in [(2, Some(unit(1, "api", 2))), (3, Some(unit(2, "store", 3))), (4, None)] {
        assert_eq!(broker.step(comes(token, token as u32, UID, unit), 0), []);
        ask(&mut broker, token, Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] });
    }
    let (_, name) = register(&mut broker, 3, "store");
    (broker, name)
}

fn enact(broker: &mut Broker, rules: Vec<Rule>, users: Quota) -> Vec<Effect> {
    let provides = ["api", "store"].map(|it| (it.to_owned(), vec![it.to_owned()])).to_vec();
    let terms = Terms { uid: UID, rules, provides, ..Terms::default() };
    broker.step(Event::Law(Box::new(Law { terms, users, ..Law::default() })), 0)
}

fn may(subject: Subject, object: &str, operation: Operation) -> Rule {
    let object = Object::Name(object.to_owned());
    Rule { subject, object, operations: operation.bit(), allow: true }
}

fn api() -> Subject {
    Subject::Service("api".to_owned())
}

fn noted(effects: &[Effect]) -> Vec<notes::Kind> {
    let notes = effects.iter().filter_map(|effect| match effect {
        Effect::Note(note) => Some(note.kind),
        _ => None,
    });
    notes.collect()
}

fn is_refused(effects: &[Effect], status: Status) -> bool {
    effects.iter().any(
        |it| matches!(it, Effect::Send { reply: Reply::Refused(found), .. } if *found == status),
    )
}

fn held(broker: &Broker, kind: Kind) -> u64 {
    broker.accounts.ledger().held(&Account::User(UID), kind)
}

#[test]
fn services_talk_only_where_a_rule_lets_them() {
    let (mut broker, store) = system(Vec::new());
    let effects = connect(&mut broker, 2, store, 9);
    assert!(is_refused(&effects, Status::ACCESS), "{effects:?}");
    assert_eq!(noted(&effects), [notes::Kind::Denial]);
    assert!(is_refused(&connect(&mut broker, 4, store, 9), Status::ACCESS), "a stranger");
    let (mut broker, store) = system(vec![may(api(), "store", Operation::Send)]);
    let (_, _, incoming) = offered(&connect(&mut broker, 2, store, 9));
    assert_eq!(incoming.permissions, Operation::Send.bit());
    assert_eq!(noted(&accept(&mut broker, 3, incoming.channel, Status::OK)), [notes::Kind::Grant]);
    assert!(is_refused(&connect(&mut broker, 4, store, 9), Status::ACCESS), "a stranger");
    broker.close(0);
}

#[test]
fn ipcd_pings_whomever_it_supervises() {
    let (mut broker, store) = system(Vec::new());
    node(&mut broker, 1);
    let (_, _, incoming) = offered(&connect(&mut broker, 1, store, 9));
    accept(&mut broker, 3, incoming.channel, Status::OK);
    assert_eq!(held(&broker, Kind::Channels), 0, "nobody pays for it");
    broker.close(0);
}

#[test]
fn supervised_names_are_their_services_alone() {
    let (mut broker, _) = system(vec![may(Subject::Any, "api", Operation::Call)]);
    let squat = |name: &str| Request::Register {
        flags: 0,
        claim_instance: 0,
        claim_name: 0,
        ticket: [0; 32],
        name: name.to_owned(),
    };
    for (token, name) in [(4, "api"), (3, "api"), (3, "free")] {
        let effects = ask(&mut broker, token, squat(name));
        assert!(is_refused(&effects, Status::ACCESS), "{token} {name}: {effects:?}");
        assert_eq!(noted(&effects), [notes::Kind::Denial]);
    }
    register(&mut broker, 4, "free");
    register(&mut broker, 2, "api");
    broker.close(0);
}

#[test]
fn a_rule_that_is_gone_takes_its_channels_with_it() {
    let call = may(api(), "store", Operation::Call);
    let (mut broker, store) = system(vec![call.clone()]);
    let (_, _, kept) = offered(&connect(&mut broker, 2, store, 9));
    accept(&mut broker, 3, kept.channel, Status::OK);
    assert_eq!(noted(&enact(&mut broker, vec![call], Quota::default())), []);
    let (ticket, _, pending) = offered(&connect(&mut broker, 2, store, 10));
    let effects = enact(&mut broker, Vec::new(), Quota::default());
    for to in [2, 3] {
        let reply = Reply::Revoked { channel: kept.channel };
        assert!(effects.contains(&Effect::Send { to, sequence: 0, reply }), "{effects:?}");
    }
    assert!(noted(&effects).contains(&notes::Kind::Revoked));
    assert!(effects.contains(&Effect::Release { ticket }), "{effects:?}");
    assert!(is_refused(&effects, Status::ACCESS));
    assert_eq!(accept(&mut broker, 3, pending.channel, Status::OK), []);
    assert_eq!((held(&broker, Kind::Channels), held(&broker, Kind::HalfOpen)), (0, 0));
    broker.close(0);
}

#[test]
fn a_name_that_is_now_a_services_is_taken_from_others() {
    let mut broker = broker().supervised().recorded();
    node(&mut broker, 4);
    let (_, name) = register(&mut broker, 4, "store");
    let effects = enact(&mut broker, Vec::new(), Quota::default());
    assert_eq!(noted(&effects), [notes::Kind::Revoked]);
    node(&mut broker, 5);
    assert_eq!(connect(&mut broker, 5, name, 9), [refusal(5, 9, Status::NOT_FOUND)]);
    broker.close(0);
}

#[test]
fn what_is_charged_is_released_however_it_ends() {
    let mut broker = with_nodes(1..=3);
    let (_, name) = register(&mut broker, 1, "echo");
    assert_eq!((held(&broker, Kind::Names), held(&broker, Kind::HalfOpen)), (1, 0));
    assert_eq!(held(&broker, Kind::Descriptors), 6);
    let open = |broker: &mut Broker| {
        let (_, _, incoming) = offered(&connect(broker, 2, name, 9));
        assert_eq!((held(broker, Kind::HalfOpen), held(broker, Kind::Descriptors)), (1, 9));
        accept(broker, 1, incoming.channel, Status::OK);
        assert_eq!((held(broker, Kind::HalfOpen), held(broker, Kind::Descriptors)), (0, 6));
        assert_eq!(held(broker, Kind::Channels), 1);
        incoming.channel
    };
    let bytes = 2 * Geometry::default().lane_bytes() as u64;
    for end in [2, 1] {
        let channel = open(&mut broker);
        assert_eq!(held(&broker, Kind::SharedBytes), bytes);
        // It is not a stranger's to close.
        assert_eq!(ask(&mut broker, 3, Request::Closed { channel }), []);
        assert_eq!(held(&broker, Kind::Channels), 1);
        ask(&mut broker, end, Request::Closed { channel });
        assert_eq!((held(&broker, Kind::Channels), held(&broker, Kind::SharedBytes)), (0, 0));
    }
    // Who lays down its connection does not lay down its debts.
    let channel = open(&mut broker);
    broker.step(Event::Gone { token: 2 }, 0);
    assert_eq!(held(&broker, Kind::Channels), 1);
    ask(&mut broker, 1, Request::Closed { channel });
    assert_eq!(held(&broker, Kind::Channels), 0);
    broker.step(Event::Gone { token: 1 }, 0);
    assert_eq!((held(&broker, Kind::Names), held(&broker, Kind::Descriptors)), (0, 2));
    broker.close(0);
}

#[test]
fn who_is_over_its_quota_gets_nothing_more_until_it_gives_back() {
    let mut broker = with_nodes(1..=2);
    let users = Quota {
        names: Some(1),
        channels: Some(1),
        half_open: Some(2),
        messages_per_second: Some(20),
        ..Quota::default()
    };
    enact(&mut broker, Vec::new(), users);
    let (_, name) = register(&mut broker, 1, "echo");
    let more = Request::Register {
        flags: 0,
        claim_instance: 0,
        claim_name: 0,
        ticket: [0; 32],
        name: "more".to_owned(),
    };
    assert_eq!(ask(&mut broker, 1, more), [refusal(1, 7, Status::QUOTA)]);
    let (_, _, incoming) = offered(&connect(&mut broker, 2, name, 9));
    accept(&mut broker, 1, incoming.channel, Status::OK);
    assert_eq!(connect(&mut broker, 2, name, 9), [refusal(2, 9, Status::QUOTA)]);
    ask(&mut broker, 2, Request::Closed { channel: incoming.channel });
    offered(&connect(&mut broker, 2, name, 9));
    // One is the connect under way; a service's own connection is never in the crowd.
    assert_eq!(broker.step(comes(10, 10, UID, None), 0), []);
    assert_eq!(broker.step(comes(11, 11, UID, None), 0), [cut(11, 0, Status::QUOTA)]);
    let peer = Peer {
        pid: 12,
        uid: UID,
        unit: Some(unit(1, "api", 12)),
        is_inherited: true,
        ..Peer::default()
    };
    assert_eq!(broker.step(Event::Accepted { token: 12, peer }, 0), []);
    let mut pings = (0..30).map(|_| ask(&mut broker, 1, Request::Ping));
    assert!(pings.any(|it| it == [refusal(1, 7, Status::QUOTA)]));
    broker.close(0);
}

#[test]
fn one_floods_and_another_user_has_its_share() {
    let mut broker = broker();
    let users = Quota { messages_per_second: Some(10), ..Quota::default() };
    enact(&mut broker, Vec::new(), users);
    node(&mut broker, 1);
    let other = Unit { uid: UID + 1, ..unit(1, "api", 2) };
    broker.step(comes(2, 2, UID + 1, Some(other)), 0);
    ask(&mut broker, 2, Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] });
    let refused =
        (0..100).filter(|_| ask(&mut broker, 1, Request::Ping) == [refusal(1, 7, Status::QUOTA)]);
    assert_eq!(refused.count(), 91, "the greeting and nine more");
    assert!(!is_refused(&ask(&mut broker, 2, Request::Ping), Status::QUOTA));
    let later = broker.step(packet(1, 7, Request::Ping, Carried::Nothing), SECOND);
    assert!(!is_refused(&later, Status::QUOTA));
}

/// What a node holds of `echo`; nothing by default.
#[derive(Default)]
struct Held {
    instance: ServiceId,
    name: ServiceId,
    ticket: [u8; 32],
}

impl Held {
    fn claim(&self, flags: u32) -> Request {
        let (claim_instance, claim_name) = (self.instance.get(), self.name.get());
        let name = "echo".to_owned();
        Request::Register { flags, claim_instance, claim_name, ticket: self.ticket, name }
    }
}

fn granted(effects: &[Effect]) -> Held {
    match effects {
        [Effect::Send { reply: Reply::Registered { instance, name, ticket }, .. }, ..] => {
            Held { instance: *instance, name: *name, ticket: *ticket }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn tickets_prove_what_a_process_held_and_nothing_else() {
    let key = Arc::new(TokenKey::ephemeral().expect("a key"));
    let run = |first: u32| {
        let ids = Ids::new(first..first, Box::new(Memory::default()));
        Broker::new(Registry::new(ids), 1, UID, 0, Arc::clone(&key)).expect("an epoch")
    };
    let mut broker = run(1);
    let claim = |held: &Held| held.claim(0);
    node(&mut broker, 5);
    let held = granted(&ask(&mut broker, 5, claim(&Held::default())));
    let Held { instance, name, .. } = held;
    let mut broker = run(100);
    // Another process with the same words; then the one, though a newcomer was faster.
    let [newcomer, returned] = [6, 5].map(|token| {
        node(&mut broker, token);
        granted(&ask(&mut broker, token, claim(&held))).instance
    });
    assert!(newcomer != instance && returned == instance);
    assert_eq!(broker.registry.resolve(name), Some(newcomer), "who serves stays the first");
}

#[test]
fn a_newcomer_waits_for_who_held_the_name_and_then_stands_behind() {
    let key = Arc::new(TokenKey::ephemeral().expect("a key"));
    let ids = Ids::new(1..1, Box::new(Memory::default()));
    let registry = Registry::new(ids);
    let mut broker = Broker::new(registry, 1, UID, 0, Arc::clone(&key)).expect("an epoch");
    let claim = |held: &Held| held.claim(SERVICE_EXCLUSIVE);
    node(&mut broker, 5);
    let held = granted(&ask(&mut broker, 5, claim(&Held::default())));
    let Held { instance, name, .. } = held;
    let again = |names: &[&str]| {
        let ids = Ids::new(100..100, Box::new(Memory::default()));
        let broker = Broker::new(Registry::new(ids), 1, UID, 0, Arc::clone(&key));
        let holder = |name: &&str| Holder {
            instance: instance.get(),
            pid: 5,
            start_time: 0,
            name: (*name).to_owned(),
        };
        let holders = names.iter().map(holder).collect();
        let mut broker = broker.expect("an epoch").expecting(holders, 0);
        node(&mut broker, 6);
        broker
    };
    // An exclusive thief that is faster than the holder has to wait, and is refused.
    let mut broker = again(&["echo"]);
    assert_eq!(ask(&mut broker, 6, claim(&Held::default())), []);
    node(&mut broker, 5);
    let effects = ask(&mut broker, 5, claim(&held));
    assert!(effects.contains(&refusal(6, 7, Status::EXISTS)), "{effects:?}");
    assert_eq!(broker.registry.resolve(name), Some(instance));
    // A holder that does not come back is not waited for for ever.
    let mut broker = again(&["echo"]);
    assert_eq!(ask(&mut broker, 6, claim(&Held::default())), []);
    assert_eq!(broker.deadline_ns(), Some(3 * SECOND));
    let effects = broker.step(Event::Tick, 3 * SECOND);
    let is_registered =
        |it: &Effect| matches!(it, Effect::Send { to: 6, reply: Reply::Registered { .. }, .. });
    assert!(effects.contains(&Effect::LetGo { instance }), "{effects:?}");
    assert!(effects.iter().any(is_registered), "{effects:?}");
    assert_eq!(broker.deadline_ns(), None);
    // Other names are anybody's at once.
    let mut broker = again(&["another"]);
    let effects = ask(&mut broker, 6, claim(&Held::default()));
    assert!(effects.iter().any(is_registered), "{effects:?}");
}

#[test]
fn tokens_are_made_of_what_the_rules_allow() {
    let (mut broker, store) = system(vec![may(api(), "store", Operation::Call)]);
    let issue = |dest| Request::IssueToken { dest, permissions: 0b11, lifetime_ms: 1000 };
    let effects = ask(&mut broker, 2, issue(store));
    let [Effect::Issue { to: 2, wanted, allowed, note, .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!((wanted.permissions, *allowed), (0b11, Operation::Call.bit()));
    assert_eq!((note.kind, &*note.operation), (notes::Kind::Token, "call"));
    assert!(is_refused(&ask(&mut broker, 2, issue(ServiceId::new(999))), Status::NOT_FOUND));
    let verify =
        |src: u32, operation| Request::Verify { src: ServiceId::new(src), dest: store, operation };
    let done = Effect::Send { to: 2, sequence: 7, reply: Reply::Done };
    assert_eq!(ask(&mut broker, 2, verify(0, 0)), [done]);
    assert!(is_refused(&ask(&mut broker, 2, verify(0, 1)), Status::ACCESS));
    assert!(is_refused(&ask(&mut broker, 2, verify(0, 6)), Status::INVALID));
    assert!(is_refused(&ask(&mut broker, 2, verify(999, 0)), Status::NOT_FOUND));
    let token = Box::new([0; TOKEN_BYTES]);
    let check = Request::CheckToken { presenter: ServiceId::new(999), token };
    assert!(is_refused(&ask(&mut broker, 3, check), Status::AUTH));
}
