//! Instances that somebody hears nothing of: what counts for something, and what becomes of them.

use super::{groups::*, *};
use crate::broker::{Plan, Sight};
use ipc::{FailoverPlan, FailoverStrategy, Failure, FailureKind, HealthCheck, ProcessEnd};

const MS: u64 = 1_000_000;

/// Two that serve a name, and a third node that has a channel to the first.
fn called() -> (Broker, [ServiceId; 2], ServiceId) {
    let (mut broker, ids, name) = pair();
    open(&mut broker, 3, ids[0]);
    (broker, ids, name)
}

fn open(broker: &mut Broker, client: Token, dest: ServiceId) {
    let (_, to, introduction) = offered(&connect(broker, client, dest, 9));
    accept(broker, to, introduction.channel, Status::OK);
}

fn served_at(broker: &Broker, name: ServiceId) -> u32 {
    broker.groups.epoch(name) as u32
}

fn suspect(broker: &mut Broker, token: Token, instance: ServiceId, mark: u32) -> Vec<Effect> {
    ask(broker, token, Request::Suspect { instance, mark })
}

/// Tells what a look has shown: of one of them this, and that the others run.
fn look(
    broker: &mut Broker,
    effects: &[Effect],
    of: ServiceId,
    sight: Sight,
    now: u64,
) -> Vec<Effect> {
    let processes = effects.iter().find_map(|it| match it {
        Effect::LookInto { instance, processes } if *instance == of => Some(processes),
        _ => None,
    });
    let processes = processes.expect("it is looked into");
    let each =
        |&(it, _, _): &(ServiceId, u32, u64)| (it, if it == of { sight } else { Sight::Runs });
    let found = processes.iter().map(each).collect();
    broker.step(Event::LookedInto { instance: of, found }, now)
}

fn probe(effects: &[Effect]) -> u32 {
    match effects {
        [Effect::Send { reply: Reply::Probe { number, .. }, .. }] => *number,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_that_is_stopped_is_passed_over_at_once() {
    let (mut broker, [first, second], name) = called();
    let mark = served_at(&broker, name);
    let effects = suspect(&mut broker, 3, first, mark);
    let effects = look(&mut broker, &effects, first, Sight::Stopped, MS);
    assert!(told(&effects, second).is_some_and(|epoch| epoch > u64::from(mark)), "{effects:?}");
    assert_eq!(group(&effects, 3), Some(vec![second, first]));
    // When it goes on it hears that it serves no more.
    let yields = Effect::Send { to: 1, sequence: 0, reply: Reply::Yield { instance: first } };
    assert!(effects.contains(&yields), "{effects:?}");
    assert_eq!(broker.deadline_ns(), None);
}

#[test]
fn one_whose_loop_comes_round_is_well_and_so_is_one_whose_handlers_run() {
    for busy_us in [0, 1, 3_600_000_000] {
        let (mut broker, [first, _], name) = called();
        let mark = served_at(&broker, name);
        let effects = suspect(&mut broker, 3, first, mark);
        let number = probe(&look(&mut broker, &effects, first, Sight::Runs, 0));
        // Nobody else answers for it, and nothing else is an answer.
        let pulse = |number| Request::Pulse { instance: first, number, busy_us };
        ask(&mut broker, 2, pulse(number));
        ask(&mut broker, 1, pulse(number + 1));
        assert!(broker.deadline_ns().is_some());
        assert_eq!(ask(&mut broker, 1, pulse(number)), []);
        assert_eq!(broker.deadline_ns(), None);
        assert_eq!(broker.registry.resolve(name), Some(first));
    }
}

/// Lets time pass while the loop is silent; gives when the second is told to serve.
fn silent_until(broker: &mut Broker, [first, second]: [ServiceId; 2], most: u64) -> Option<u64> {
    while let Some(now) = broker.deadline_ns().filter(|now| *now < most) {
        let mut effects = broker.step(Event::Tick, now);
        if effects.iter().any(|it| matches!(it, Effect::LookInto { .. })) {
            effects.extend(look(broker, &effects, first, Sight::Runs, now));
        }
        if told(&effects, second).is_some() {
            return Some(now);
        }
    }
    None
}

fn configure(broker: &mut Broker, token: Token, plan: FailoverPlan) -> Vec<Effect> {
    ask(broker, token, Request::Configure(plan))
}

fn plan(service: ServiceId, strategy: FailoverStrategy, order: &[ServiceId]) -> FailoverPlan {
    FailoverPlan { service, strategy, health: HealthCheck::default(), order: order.to_vec() }
}

#[test]
fn a_loop_that_is_silent_is_given_a_second_or_what_was_configured() {
    let (mut broker, ids, name) = called();
    let mark = served_at(&broker, name);
    let effects = suspect(&mut broker, 3, ids[0], mark);
    probe(&look(&mut broker, &effects, ids[0], Sight::Runs, 0));
    let at = silent_until(&mut broker, ids, 5 * SECOND).expect("passed over");
    assert!((SECOND..=SECOND + 100 * MS).contains(&at), "{at}");

    let (mut broker, ids, name) = called();
    configure(&mut broker, 1, plan(name, FailoverStrategy::HotStandby, &[]));
    let mark = served_at(&broker, name);
    let effects = suspect(&mut broker, 3, ids[0], mark);
    probe(&look(&mut broker, &effects, ids[0], Sight::Runs, 0));
    let at = silent_until(&mut broker, ids, 5 * SECOND).expect("passed over");
    assert!((15 * MS..=75 * MS).contains(&at), "{at}");
}

#[test]
fn handlers_that_run_for_longer_than_was_configured_are_passed_over() {
    for (busy_us, goes) in [(49_000, false), (51_000, true)] {
        let (mut broker, ids, name) = called();
        let health = HealthCheck { busy_ms: 50, ..HealthCheck::default() };
        let plan = FailoverPlan { health, ..plan(name, FailoverStrategy::HotStandby, &[]) };
        configure(&mut broker, 1, plan);
        let mark = served_at(&broker, name);
        let effects = suspect(&mut broker, 3, ids[0], mark);
        let number = probe(&look(&mut broker, &effects, ids[0], Sight::Runs, 0));
        ask(&mut broker, 1, Request::Pulse { instance: ids[0], number, busy_us });
        assert_eq!(silent_until(&mut broker, ids, SECOND).is_some(), goes, "{busy_us}");
    }
}

#[test]
fn what_liars_and_strangers_suspect_costs_nothing_and_changes_nothing() {
    let (mut broker, [first, second], name) = called();
    let mark = served_at(&broker, name);
    // Who has no channel there; one that stands by; an epoch that is not now; nobody.
    for (token, instance, mark) in
        [(2, first, mark), (3, second, mark), (3, first, mark + 1), (3, name, mark)]
    {
        assert_eq!(suspect(&mut broker, token, instance, mark), [], "{token} {instance}");
    }
    // One look serves all who say so, and those who say it again.
    let effects = suspect(&mut broker, 3, first, mark);
    assert_eq!(effects.len(), 1);
    for _ in 0..100 {
        assert_eq!(suspect(&mut broker, 3, first, mark), []);
    }
    let number = probe(&look(&mut broker, &effects, first, Sight::Runs, 0));
    ask(&mut broker, 1, Request::Pulse { instance: first, number, busy_us: 0 });
    // It was just found well.
    assert_eq!(suspect(&mut broker, 3, first, mark), []);
    assert_eq!(broker.registry.resolve(name), Some(first));
}

#[test]
fn nobody_is_passed_over_for_one_that_is_stopped_as_well() {
    let (mut broker, [first, second], name) = called();
    let mark = served_at(&broker, name);
    suspect(&mut broker, 3, first, mark);
    let found = vec![(first, Sight::Stopped), (second, Sight::Stopped)];
    let effects = broker.step(Event::LookedInto { instance: first, found }, 0);
    assert_eq!(effects, []);
    assert_eq!(broker.registry.resolve(name), Some(first));
}

#[test]
fn one_that_was_passed_over_is_wanted_again_once_it_goes_on() {
    let (mut broker, [first, second], name) = called();
    let mark = served_at(&broker, name);
    let effects = suspect(&mut broker, 3, first, mark);
    look(&mut broker, &effects, first, Sight::Stopped, 0);
    // Nobody serves rather than one that hangs.
    let effects = broker.step(Event::Gone { token: 2 }, MS);
    assert_eq!(told(&effects, first), None);
    assert_eq!(told(&effects, second), None);
    let effects = promoted(&mut broker, 1, first, 0);
    assert!(told(&effects, first).is_some_and(|epoch| epoch > u64::from(mark) + 1), "{effects:?}");
}

#[test]
fn one_that_is_supervised_is_killed_and_its_standby_goes_on() {
    let mut broker = with_nodes(1..=3);
    let (first, name) = register(&mut broker, 1, "echo");
    let (second, _) = register(&mut broker, 2, "echo");
    open(&mut broker, 3, first);
    let unit = Unit { id: 7, service: "echo".into(), pid: 1, uid: UID, start_time: 0, key: None };
    broker.sessions.get_mut(&1).expect("a session").peer.unit = Some(unit);
    let mark = served_at(&broker, name);
    let effects = suspect(&mut broker, 3, first, mark);
    let effects = look(&mut broker, &effects, first, Sight::Stopped, 0);
    assert!(effects.contains(&Effect::Kill { token: 1 }), "{effects:?}");
    assert_eq!(told(&effects, second), None, "its callers see it dead first");
    let effects = broker.step(Event::Gone { token: 1 }, MS);
    assert!(told(&effects, second).is_some(), "{effects:?}");
    let [Effect::Send { reply: Reply::Changes { changes, .. }, .. }] =
        &ask(&mut broker, 2, Request::History { after: 0 })[..]
    else {
        panic!("no history")
    };
    let last = changes.last().expect("one");
    assert_eq!((last.cause, last.from, last.to), (Cause::Hung, first, second));
    assert!(last.detected_us > 0);
}

fn failure(effects: &[Effect], to: Token) -> Failure {
    let told = effects.iter().find_map(|it| match it {
        Effect::Send { to: told, reply: Reply::Failure(failure), .. } if *told == to => {
            Some(*failure)
        }
        _ => None,
    });
    told.expect("told")
}

#[test]
fn who_asks_is_told_what_is_the_matter() {
    let (mut broker, [first, second], name) = called();
    let detect = |service| Request::Detect { service };
    let effects = ask(&mut broker, 3, detect(name));
    let number = probe(&look(&mut broker, &effects, first, Sight::Runs, 0));
    let effects = ask(&mut broker, 1, Request::Pulse { instance: first, number, busy_us: 0 });
    let well = failure(&effects, 3);
    assert_eq!((well.kind, well.instance), (FailureKind::None, first));
    assert!(well.epoch > 0);
    // A standby that hangs is told of, and nothing else comes of it.
    let effects = ask(&mut broker, 3, detect(second));
    let effects = look(&mut broker, &effects, second, Sight::Stopped, 0);
    assert_eq!(failure(&effects, 3).kind, FailureKind::Hung);
    assert_eq!(effects.len(), 1);
    // One that is gone is remembered.
    broker.step(Event::Gone { token: 1 }, MS);
    let effects = ask(&mut broker, 3, detect(first));
    let effects = look(&mut broker, &effects, first, Sight::Dead, 0);
    assert_eq!(failure(&effects, 3).kind, FailureKind::Crashed);
    assert_eq!(failure(&ask(&mut broker, 3, detect(first)), 3).kind, FailureKind::Crashed);
    assert_eq!(
        ask(&mut broker, 3, detect(ServiceId::new(9999))),
        [refusal(3, 7, Status::NOT_FOUND)]
    );
}

#[test]
fn who_asks_of_one_that_is_gone_is_told_however_many_go_after_it() {
    let detect = |service| Request::Detect { service };
    let (mut broker, [first, _], _) = called();
    broker.step(Event::Gone { token: 1 }, MS);
    let effects = ask(&mut broker, 3, detect(first));
    // More come and go than are remembered.
    for number in 0..300 {
        let (instance, _) = register(&mut broker, 2, &format!("short-{number}"));
        ask(&mut broker, 2, Request::Unregister { instance });
    }
    let effects = look(&mut broker, &effects, first, Sight::Dead, MS);
    assert_eq!(failure(&effects, 3).kind, FailureKind::Crashed);
}

#[test]
fn who_asks_of_one_that_is_forgotten_is_told_so_at_once() {
    // As many as are remembered are gone, and somebody waits to be told of each.
    const GONE: u64 = 256;
    let mut broker = with_nodes(1..=GONE + 2);
    let gone: Vec<_> =
        (1..=GONE).map(|token| register(&mut broker, token, &format!("name-{token}")).0).collect();
    for (token, instance) in (1..).zip(&gone) {
        broker.step(Event::Gone { token }, MS);
        let effects = ask(&mut broker, GONE + 1, Request::Detect { service: *instance });
        assert!(matches!(effects[..], [Effect::LookInto { .. }]), "{effects:?}");
    }
    register(&mut broker, GONE + 2, "one-more");
    let effects = broker.step(Event::Gone { token: GONE + 2 }, MS);
    let told = refusal(GONE + 1, 7, Status::FULL);
    assert_eq!(effects.iter().filter(|it| **it == told).count(), 1, "{effects:?}");
    let again = ask(&mut broker, GONE + 1, Request::Detect { service: gone[0] });
    assert_eq!(again, [refusal(GONE + 1, 7, Status::NOT_FOUND)]);
}

#[test]
fn who_asks_of_one_that_comes_back_and_goes_again_is_told() {
    let detect = |service| Request::Detect { service };
    let (mut broker, [first, _], name) = called();
    broker.step(Event::Gone { token: 1 }, MS);
    assert!(!ask(&mut broker, 3, detect(first)).is_empty());
    // It is remembered anew before the look is over.
    let peer = broker.sessions[&2].peer.clone();
    let mut turn = Turn { now_ns: 2 * MS, out: Vec::new() };
    broker.note_gone(first, name, &peer, &mut turn);
    assert_eq!(failure(&turn.out, 3).detected_at_ns, 2 * MS);
}

/// A name that a supervised process serves: that, when it started, and its instance.
fn supervised() -> (Broker, (u32, u64), ServiceId) {
    let mut broker = with_nodes(1..=3);
    let (instance, _) = register(&mut broker, 1, "api");
    let peer = &mut broker.sessions.get_mut(&1).expect("a session").peer;
    let (id, service, pid, start_time) = (7, "api".into(), peer.pid, peer.start_time);
    peer.unit = Some(Unit { id, service, pid, uid: UID, start_time, key: None });
    (broker, (pid, start_time), instance)
}

#[test]
fn who_asks_of_a_supervised_process_is_told_how_it_ended() {
    let detect = |service| Request::Detect { service };
    let nothing = Vec::<Effect>::new();
    let crash = |failure: &Failure| (failure.kind, failure.end);
    let by = |signal| (FailureKind::Crashed, Some(ProcessEnd::Signal(signal)));
    let ended = |process, end| Event::Ended { process, end };
    // Its connection is found lost first, and somebody asks before the supervisor tells.
    let (mut broker, process, id) = supervised();
    broker.step(Event::Gone { token: 1 }, MS);
    let effects = ask(&mut broker, 3, detect(id));
    assert_eq!(look(&mut broker, &effects, id, Sight::Dead, MS), nothing);
    assert_eq!(ask(&mut broker, 3, detect(id)), nothing);
    let effects = broker.step(ended(process, Some(ProcessEnd::Signal(9))), MS);
    assert_eq!((effects.len(), crash(&failure(&effects, 3))), (2, by(9)));
    assert_eq!(crash(&failure(&ask(&mut broker, 3, detect(id)), 3)), by(9));
    // The supervisor tells first.
    let (mut broker, process, id) = supervised();
    let exit = Some(ProcessEnd::Exit(7));
    assert_eq!(broker.step(ended(process, exit), MS), nothing);
    broker.step(Event::Gone { token: 1 }, MS);
    let told = failure(&ask(&mut broker, 3, detect(id)), 3);
    assert_eq!(crash(&told), (FailureKind::Crashed, exit));
    // Somebody asks while it dies.
    for supervisor_is_first in [true, false] {
        let (mut broker, process, id) = supervised();
        let effects = ask(&mut broker, 3, detect(id));
        assert_eq!(look(&mut broker, &effects, id, Sight::Dead, MS), nothing);
        let told = ended(process, Some(ProcessEnd::Signal(6)));
        let effects = if supervisor_is_first {
            broker.step(told, MS)
        } else {
            let effects = broker.step(Event::Gone { token: 1 }, MS);
            assert_eq!(look(&mut broker, &effects, id, Sight::Dead, MS), nothing);
            broker.step(told, MS)
        };
        assert_eq!(crash(&failure(&effects, 3)), by(6));
    }
    // It lives, and only its connection is lost: nobody waits.
    let (mut broker, process, id) = supervised();
    broker.step(Event::Gone { token: 1 }, MS);
    let effects = ask(&mut broker, 3, detect(id));
    let effects = look(&mut broker, &effects, id, Sight::Runs, MS);
    assert_eq!(crash(&failure(&effects, 3)), (FailureKind::Unreachable, None));
    // An earlier runtime was its parent: nobody knows how it ended.
    let effects = ask(&mut broker, 3, detect(id));
    assert_eq!(look(&mut broker, &effects, id, Sight::Dead, MS), nothing);
    let effects = broker.step(ended(process, None), MS);
    assert_eq!(crash(&failure(&effects, 3)), (FailureKind::Crashed, None));
}

#[test]
fn each_strategy_has_its_own_next() {
    use FailoverStrategy::*;
    // Of those that serve a name, in the order of their coming, who serves when the first dies,
    // and who when that one does.
    let cases = [
        (HotStandby, vec![], [Some(2), Some(3)]),
        (HotStandby, vec![1, 3], [Some(3), Some(2)]),
        (Priority, vec![1, 3, 2], [Some(3), Some(2)]),
        (RoundRobin, vec![], [Some(2), Some(3)]),
        (LeastLoaded, vec![], [Some(3), Some(2)]),
        (Manual, vec![], [None, None]),
    ];
    for (strategy, order, expected) in cases {
        let mut broker = with_nodes(1..=4);
        let ids: Vec<_> = (1..=3).map(|token| register(&mut broker, token, "echo")).collect();
        let name = ids[0].1;
        let id = |token: usize| ids[token - 1].0;
        // The second has something to do already.
        open(&mut broker, 4, id(2));
        let order: Vec<_> = order.into_iter().map(id).collect();
        let effects = configure(&mut broker, 1, plan(name, strategy, &order));
        assert!(effects.contains(&Effect::Send { to: 1, sequence: 7, reply: Reply::Done }));
        let mut serving = 1;
        for next in expected {
            let effects = broker.step(Event::Gone { token: serving }, MS);
            let heir = (1..=3).find(|it| told(&effects, id(*it)).is_some());
            assert_eq!(heir, next, "{strategy:?}");
            if let Some(heir) = heir {
                serving = heir as Token;
            }
        }
    }
}

#[test]
fn by_priority_the_first_takes_the_name_back() {
    let (mut broker, [first, second], name) = pair();
    let effects =
        configure(&mut broker, 3, plan(name, FailoverStrategy::Priority, &[second, first]));
    let yields = Effect::Send { to: 1, sequence: 0, reply: Reply::Yield { instance: first } };
    assert!(effects.contains(&yields), "{effects:?}");
    let effects = promoted(&mut broker, 1, first, 0);
    assert!(told(&effects, second).is_some(), "{effects:?}");
}

#[test]
fn only_who_may_configures_and_only_with_sense() {
    let (mut broker, [first, second], name) = pair();
    let (other, _) = register(&mut broker, 3, "other");
    let strategy = FailoverStrategy::Priority;
    let refused = |broker: &mut Broker, plan| match &configure(broker, 1, plan)[..] {
        [Effect::Send { reply: Reply::Refused(status), .. }] => *status,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&mut broker, plan(name, strategy, &[other])), Status::NOT_FOUND);
    assert_eq!(refused(&mut broker, plan(name, strategy, &[first, first])), Status::INVALID);
    assert_eq!(refused(&mut broker, plan(ServiceId::new(9999), strategy, &[])), Status::NOT_FOUND);
    // What the node file says is nobody else's to say.
    let fixed = Plan { strategy, is_fixed: true, ..Plan::default() };
    let mut broker = broker.planned(vec![("echo".to_owned(), fixed)]);
    assert_eq!(refused(&mut broker, plan(name, strategy, &[second])), Status::EXISTS);
}

#[test]
fn what_one_that_was_passed_over_had_counts_for_nothing() {
    let (mut broker, [first, second], name) = called();
    let (other, _) = register(&mut broker, 3, "other");
    open(&mut broker, 1, other);
    let issue = Request::IssueToken { dest: other, permissions: 1, lifetime_ms: 1000 };
    let effects = ask(&mut broker, 1, issue.clone());
    let mark = served_at(&broker, name);
    let [Effect::Issue { epoch, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(*epoch as u32, mark);
    // As the runtime would sign it, but for the signature, which the broker does not look at.
    let mut token = Box::new([0; ipc::control::TOKEN_BYTES]);
    token[..4].copy_from_slice(&crate::token::VERSION.to_le_bytes());
    token[8..12].copy_from_slice(&other.get().to_le_bytes());
    token[32..40].copy_from_slice(&epoch.to_le_bytes());
    let check = Request::CheckToken { presenter: first, token };
    let looked_at = ask(&mut broker, 3, check.clone());
    assert!(matches!(looked_at[..], [Effect::Check { .. }]), "{looked_at:?}");

    let effects = suspect(&mut broker, 3, first, mark);
    let effects = look(&mut broker, &effects, first, Sight::Stopped, 0);
    // Its channel to the other is closed at both ends; that of its own client is the client's.
    let revoked = |to| {
        let told = effects.iter().filter_map(|it| match it {
            Effect::Send { to, reply: Reply::Revoked { .. }, .. } => Some(*to),
            _ => None,
        });
        told.filter(|it| *it == to).count()
    };
    assert_eq!((revoked(1), revoked(3)), (1, 1), "{effects:?}");
    assert_eq!(ask(&mut broker, 3, check.clone()), [refusal(3, 7, Status::AUTH)]);
    // It gets nothing, until it says that it stands by; and then nothing of what it had.
    assert_eq!(ask(&mut broker, 1, issue.clone()), [refusal(1, 7, Status::STALE)]);
    assert_eq!(connect(&mut broker, 1, other, 9), [refusal(1, 9, Status::STALE)]);
    promoted(&mut broker, 1, first, 0);
    let effects = ask(&mut broker, 1, issue);
    assert!(matches!(effects[..], [Effect::Issue { epoch: 0, .. }]), "{effects:?}");
    assert_eq!(ask(&mut broker, 3, check), [refusal(3, 7, Status::AUTH)]);
    open(&mut broker, 1, other);
    assert_eq!(broker.registry.resolve(name), Some(second));
}
