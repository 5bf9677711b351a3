//! Who serves a name, and what is believed of who says so.

use std::collections::HashMap;

use ipc::control::MOST_PLACES;

use super::*;
use crate::{
    epochs::{Epochs, Forgetful},
    served::Served,
};

/// A broker with two nodes that serve a name in this order, and one that calls; the instances, and
/// the name.
pub(super) fn pair() -> (Broker, [ServiceId; 2], ServiceId) {
    let mut broker = with_nodes(1..=3);
    let (first, name) = register(&mut broker, 1, "echo");
    let (second, _) = register(&mut broker, 2, "echo");
    (broker, [first, second], name)
}

pub(super) fn promoted(
    broker: &mut Broker,
    token: Token,
    instance: ServiceId,
    epoch: u64,
) -> Vec<Effect> {
    ask(broker, token, Request::Promoted { instance, epoch })
}

/// The epoch at which an instance is told to serve.
pub(super) fn told(effects: &[Effect], of: ServiceId) -> Option<u64> {
    effects.iter().find_map(|it| match it {
        Effect::Send { sequence: 0, reply: Reply::Promote { instance, epoch }, .. } => {
            (*instance == of).then_some(*epoch)
        }
        _ => None,
    })
}

/// The members of a group, as somebody is told of them.
pub(super) fn group(effects: &[Effect], who: Token) -> Option<Vec<ServiceId>> {
    effects.iter().rev().find_map(|it| match it {
        Effect::Send { to, reply: Reply::Group(group), .. } if *to == who => {
            Some(group.members.clone())
        }
        _ => None,
    })
}

#[test]
fn the_first_is_told_to_serve_and_both_are_told_of_each_other() {
    let mut broker = with_nodes(1..=2);
    let effects = ask(&mut broker, 1, fresh("echo"));
    let Some(Effect::Send { reply: Reply::Registered { instance, .. }, .. }) = effects.first()
    else {
        panic!("{effects:?}")
    };
    assert!(told(&effects, *instance).is_some_and(|epoch| epoch > 0), "{effects:?}");
    // Who is alone is told of nobody.
    assert_eq!(group(&effects, 1), None);
    let effects = ask(&mut broker, 2, fresh("echo"));
    assert_eq!(group(&effects, 1).expect("told").first(), Some(instance));
    assert_eq!(group(&effects, 1), group(&effects, 2));
    assert!(
        !effects.iter().any(|it| matches!(it, Effect::Send { reply: Reply::Promote { .. }, .. }))
    );
}

#[test]
fn the_next_serves_at_a_later_epoch_when_the_first_goes() {
    let (mut broker, [_, second], _) = pair();
    let effects = broker.step(Event::Gone { token: 1 }, 1);
    let epoch = told(&effects, second).expect("told");
    assert!(epoch > 1);
    assert_eq!(group(&effects, 2), Some(vec![second]));
}

#[test]
fn a_standby_is_believed_when_the_one_before_is_found_dead() {
    let (mut broker, [_, second], name) = pair();
    let epoch = broker.groups.epoch(name) + 1;
    let effects = promoted(&mut broker, 2, second, epoch);
    let asked =
        matches!(&effects[..], [Effect::Examine { processes, .. }] if processes == &[(1, 1)]);
    assert!(asked, "{effects:?}");
    let examined = Event::Examined { instance: second, epoch, dead: vec![1] };
    let effects = broker.step(examined, 0);
    assert!(effects.contains(&Effect::Cut { token: 1, last: None }), "{effects:?}");
    assert_eq!(group(&effects, 2), Some(vec![second]));
    assert!(broker.groups.epoch(name) >= epoch);
    assert_eq!(broker.registry.resolve(name), Some(second));
}

/// Else the standby that finds none left waits until the runtime has seen the whole process go.
#[test]
fn a_standby_that_goes_by_itself_finds_epochs_however_often_that_happens() {
    let (mut broker, [_, mut standby], name) = pair();
    let (mut first, mut second) = (1, 2);
    for turn in 0..300 {
        let (epoch, limit) = broker.groups.place(name);
        assert!(
            epoch > broker.groups.epoch(name) && epoch < limit,
            "death {turn}: {epoch} {limit}"
        );
        promoted(&mut broker, second, standby, epoch);
        let dead = vec![first];
        broker.step(Event::Examined { instance: standby, epoch, dead }, 0);
        assert_eq!(broker.registry.resolve(name), Some(standby), "death {turn}");
        (first, second) = (second, 10 + turn);
        node(&mut broker, second);
        (standby, _) = register(&mut broker, second, "echo");
        assert_eq!(broker.groups.epoch(name), epoch, "death {turn}");
    }
}

#[test]
fn a_standby_that_lies_loses_its_place_and_the_first_goes_on() {
    let (mut broker, [first, second], name) = pair();
    let epoch = broker.groups.epoch(name) + 1;
    promoted(&mut broker, 2, second, epoch);
    let mut cut = false;
    for tick in 0..2000 {
        let now = tick * 1_000_000;
        for effect in broker.step(Event::Tick, now) {
            match effect {
                Effect::Examine { instance, epoch, .. } => {
                    let dead = Vec::new();
                    let effects = broker.step(Event::Examined { instance, epoch, dead }, now);
                    assert_eq!(effects, []);
                }
                Effect::Cut { token: 2, last: Some((0, Status::STALE)) } => cut = true,
                _ => {}
            }
        }
    }
    assert!(cut);
    assert_eq!(broker.registry.resolve(name), Some(first));
    assert_eq!(broker.deadline_ns(), None);
}

#[test]
fn what_callers_and_strangers_say_counts_for_nothing() {
    let (mut broker, [first, second], name) = pair();
    let epoch = broker.groups.epoch(name) + 1;
    for (token, instance) in [(3, second), (3, first), (1, second), (2, first)] {
        assert_eq!(promoted(&mut broker, token, instance, epoch), []);
    }
    // Neither does an epoch that nobody reserved. Who comes with one that is past was passed over,
    // and is told so.
    assert_eq!(promoted(&mut broker, 2, second, u64::MAX), []);
    let told = Effect::Send { to: 2, sequence: 0, reply: Reply::Yield { instance: second } };
    assert_eq!(promoted(&mut broker, 2, second, 1), [told]);
    assert_eq!(broker.registry.resolve(name), Some(first));
}

#[test]
fn a_planned_change_waits_until_the_first_has_let_go() {
    let (mut broker, [first, second], name) = pair();
    let trigger = |backup| Request::Trigger { failed: name, backup };
    let effects = ask(&mut broker, 3, trigger(ServiceId::NONE));
    let ordered = Effect::Send { to: 1, sequence: 0, reply: Reply::Yield { instance: first } };
    assert_eq!(effects, [ordered]);
    // One at a time.
    assert_eq!(ask(&mut broker, 3, trigger(second)), [refusal(3, 7, Status::EXISTS)]);
    let effects = promoted(&mut broker, 1, first, 0);
    assert!(told(&effects, second).is_some(), "{effects:?}");
    assert!(effects.contains(&Effect::Send { to: 3, sequence: 7, reply: Reply::Done }));
    assert_eq!(group(&effects, 1), Some(vec![second, first]));
    let [Effect::Send { reply: Reply::Changes { changes, .. }, .. }] =
        &ask(&mut broker, 3, Request::History { after: 0 })[..]
    else {
        panic!("no history")
    };
    let last = changes.last().expect("one");
    assert_eq!((last.from, last.to, last.cause), (first, second, Cause::Triggered));
}

#[test]
fn who_does_not_let_go_in_time_is_passed_over() {
    let (mut broker, [_, second], name) = pair();
    ask(&mut broker, 3, Request::Trigger { failed: name, backup: second });
    let at = broker.deadline_ns().expect("a limit");
    let effects = broker.step(Event::Tick, at);
    assert!(told(&effects, second).is_some(), "{effects:?}");
    assert!(effects.contains(&Effect::Send { to: 3, sequence: 7, reply: Reply::Done }));
}

/// What a node was given for a name, as a claim on the next run.
fn claim_of(effects: &[Effect]) -> Request {
    let Some(Effect::Send { reply: Reply::Registered { instance, name, ticket }, .. }) =
        effects.first()
    else {
        panic!("not registered: {effects:?}")
    };
    Request::Register {
        flags: 0,
        claim_instance: instance.get(),
        claim_name: name.get(),
        ticket: *ticket,
        name: "echo".to_owned(),
    }
}

/// Two that served a name under a run that has ended, and how each claims it.
struct Restart {
    key: Arc<TokenKey>,
    claims: [Request; 2],
    instances: [ServiceId; 2],
}

impl Restart {
    fn begin(key: &Arc<TokenKey>, first: u32, served: Served) -> Broker {
        let ids = Ids::new(first..first, Box::new(Memory::default()));
        let broker = Broker::new(Registry::new(ids), 1, UID, 0, Arc::clone(key));
        let epochs = Epochs::new(u64::from(first) * 64, Box::new(Forgetful));
        broker.expect("an epoch").numbering(epochs, served)
    }

    fn new() -> Restart {
        let key = Arc::new(TokenKey::ephemeral().expect("a key"));
        let mut broker = Restart::begin(&key, 1, Served::default());
        for token in 1..=2 {
            node(&mut broker, token);
        }
        let claims = [1, 2].map(|token| claim_of(&ask(&mut broker, token, fresh("echo"))));
        let instances = claims.clone().map(|claim| match claim {
            Request::Register { claim_instance, .. } => ServiceId::new(claim_instance),
            other => panic!("{other:?}"),
        });
        Restart { key, claims, instances }
    }

    /// The next run, which remembers that, and to which both are connected.
    fn again(&self, served: Served) -> Broker {
        let mut broker = self.next(served);
        for token in 1..=2 {
            node(&mut broker, token);
        }
        broker
    }

    /// The same, to which nobody is.
    fn next(&self, served: Served) -> Broker {
        let holders = self.instances.iter().zip(1..).map(|(instance, pid)| Holder {
            instance: instance.get(),
            pid,
            start_time: 0,
            name: "echo".to_owned(),
        });
        Restart::begin(&self.key, 100, served).expecting(holders.collect(), 0)
    }
}

#[test]
fn nobody_is_promoted_while_who_serves_may_be_on_the_way_back() {
    let restart = Restart::new();
    let (claims, [first, second]) = (restart.claims.clone(), restart.instances);
    // The standby is faster, and is told nothing; who serves says so when it is back.
    let mut broker = restart.again(Served::default());
    assert_eq!(told(&ask(&mut broker, 2, claims[1].clone()), second), None);
    let effects = ask(&mut broker, 1, claims[0].clone());
    assert_eq!((told(&effects, first), told(&effects, second)), (None, None));
    // Neither is anybody by order.
    let order = Request::Trigger { failed: first, backup: second };
    assert_eq!(ask(&mut broker, 2, order), [refusal(2, 7, Status::EXISTS)]);
    let effects = promoted(&mut broker, 1, first, 7);
    assert_eq!(group(&effects, 2), Some(vec![first, second]));
    // It was the standby that served, though it is younger.
    let mut broker = restart.again(Served::default());
    ask(&mut broker, 1, claims[0].clone());
    ask(&mut broker, 2, claims[1].clone());
    let effects = promoted(&mut broker, 2, second, 7);
    assert_eq!(group(&effects, 1), Some(vec![second, first]));
    // Nobody who served comes back.
    let mut broker = restart.again(Served::default());
    ask(&mut broker, 2, claims[1].clone());
    let effects = broker.step(Event::Tick, 3 * SECOND);
    assert!(told(&effects, second).is_some(), "{effects:?}");
    assert_eq!(broker.deadline_ns(), None);
}

#[test]
fn a_supervised_newcomer_is_given_nothing_while_who_serves_may_be_on_the_way_back() {
    let restart = Restart::new();
    let [first, _] = restart.instances;
    let Request::Register { claim_name, .. } = restart.claims[0] else { unreachable!() };
    let mut served = Served::default();
    served.note("echo", ServiceId::new(claim_name), 7, |_| false);
    let mut broker = restart.next(served);
    let provides = vec![("echo".to_owned(), vec!["echo".to_owned()])];
    let terms = Terms { uid: UID, provides, ..Terms::default() };
    broker.step(Event::Law(Box::new(Law { terms, ..Law::default() })), 0);
    for (token, id) in [(1, 1), (9, 2)] {
        let pid = token as u32;
        let unit = Unit { id, service: "echo".into(), pid, uid: UID, start_time: 1, key: None };
        broker.step(comes(token, pid, UID, Some(unit)), 0);
        ask(&mut broker, token, Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] });
    }
    let effects = ask(&mut broker, 9, fresh("echo"));
    let Some(Effect::Send { reply: Reply::Registered { instance, .. }, .. }) = effects.first()
    else {
        panic!("let in at once: {effects:?}")
    };
    assert_eq!(told(&effects, *instance), None, "{effects:?}");
    ask(&mut broker, 1, restart.claims[0].clone());
    let effects = promoted(&mut broker, 1, first, 7);
    assert_eq!(group(&effects, 9), Some(vec![first, *instance]));
    // Nobody comes back: it serves after a while.
    let effects = broker.step(Event::Gone { token: 1 }, SECOND);
    assert!(told(&effects, *instance).is_some(), "{effects:?}");
}

#[test]
fn who_was_passed_over_and_comes_back_to_another_run_is_not_believed() {
    let restart = Restart::new();
    let [first, second] = restart.instances;
    let mut served = Served::default();
    served.note("echo", ServiceId::new(9), 80, |_| false);
    let mut broker = restart.again(served);
    let effects = ask(&mut broker, 1, restart.claims[0].clone());
    let Some(Effect::Send { reply: Reply::Registered { name, .. }, .. }) = effects.first() else {
        panic!("{effects:?}")
    };
    // It is faster than who serves, and was frozen while the name changed hands.
    let told = Effect::Send { to: 1, sequence: 0, reply: Reply::Yield { instance: first } };
    assert_eq!(promoted(&mut broker, 1, first, 79), [told]);
    assert_eq!(promoted(&mut broker, 1, first, 0), []);
    ask(&mut broker, 2, restart.claims[1].clone());
    let effects = promoted(&mut broker, 2, second, 80);
    assert_eq!(group(&effects, 1), Some(vec![second, first]));
    assert_eq!(broker.groups.epoch(*name), 80);
    // And so it is for the run after this.
    assert_eq!(broker.into_served().last("echo"), 80);
}

#[test]
fn no_two_are_ever_told_of_one_epoch() {
    let mut broker = with_nodes(1..=5);
    let (mut all, mut owned) = (Vec::new(), std::collections::BTreeSet::new());
    let mut note = |effects: &[Effect]| {
        for effect in effects {
            let Effect::Send { to, reply, .. } = effect else { continue };
            match reply {
                Reply::Promote { epoch, .. } => assert!(owned.insert(*epoch), "{effects:?}"),
                // Each of a group is told of it once.
                Reply::Group(group) if *to == 1 => {
                    for place in 1..group.members.len() as u64 {
                        assert!(group.epoch + place < group.limit);
                        assert!(owned.insert(group.epoch + place), "{effects:?}");
                    }
                }
                _ => {}
            }
        }
    };
    // The first stays, so that somebody hears of each group.
    register(&mut broker, 1, "echo");
    for _ in 0..40 {
        for token in 2..=5 {
            let request = Request::Register {
                flags: 0,
                claim_instance: 0,
                claim_name: 0,
                ticket: [0; 32],
                name: "echo".to_owned(),
            };
            let effects = ask(&mut broker, token, request);
            note(&effects);
            all.push((token, claim_of(&effects)));
        }
        for (token, claim) in all.drain(..) {
            let Request::Register { claim_instance, .. } = claim else { panic!("{claim:?}") };
            let instance = ServiceId::new(claim_instance);
            note(&ask(&mut broker, token, Request::Unregister { instance }));
        }
    }
    assert!(owned.len() > 4 * 64, "{}", owned.len());
}

/// What happens to a group, as chance has it.
#[derive(Clone, Copy, Debug)]
enum Chance {
    Joins,
    /// That member's connection is lost.
    Goes(usize),
    /// That member takes the name by itself, and all before it are found dead.
    Promotes(usize),
    Triggered(usize),
    /// It says that it has let go.
    LetsGo(usize),
    TimePasses,
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        4 => Just(Chance::Joins),
        2 => (0_usize..20).prop_map(Chance::Goes),
        3 => (1_usize..20).prop_map(Chance::Promotes),
        2 => (1_usize..20).prop_map(Chance::Triggered),
        2 => (0_usize..20).prop_map(Chance::LetsGo),
        1 => Just(Chance::TimePasses),
    ]
}

/// A group to which things happen, and whose each epoch is that was told.
struct Owned {
    broker: Broker,
    last: Token,
    now_ns: u64,
    /// The members, by the order that was told last, and its first epoch.
    members: Vec<ServiceId>,
    epoch: u64,
    tokens: HashMap<ServiceId, Token>,
    owners: HashMap<u64, ServiceId>,
}

impl Owned {
    /// Hears all that members are told: at which epochs they may serve.
    fn hear(&mut self, effects: &[Effect]) {
        for effect in effects {
            let Effect::Send { sequence: 0, reply, .. } = effect else { continue };
            match reply {
                Reply::Promote { instance, epoch } => self.own(*epoch, *instance),
                Reply::Group(group) => {
                    (self.members, self.epoch) = (group.members.clone(), group.epoch);
                    let standbys = group.members.iter().zip(group.epoch..).skip(1);
                    for (instance, epoch) in standbys.take(MOST_PLACES) {
                        assert!(epoch < group.limit && epoch > group.served_at, "{group:?}");
                        self.own(epoch, *instance);
                    }
                }
                _ => {}
            }
        }
    }

    fn own(&mut self, epoch: u64, instance: ServiceId) {
        let owner = *self.owners.entry(epoch).or_insert(instance);
        assert_eq!(owner, instance, "both have epoch {epoch}");
    }

    fn step(&mut self, event: Event) {
        let effects = self.broker.step(event, self.now_ns);
        self.hear(&effects);
    }

    fn say(&mut self, from: Token, request: Request) {
        self.step(packet(from, 7, request, Carried::Nothing));
    }

    fn happens(&mut self, chance: Chance) {
        let member = |which: usize| {
            let instance = *self.members.get(which % self.members.len().max(1))?;
            Some((instance, *self.tokens.get(&instance)?))
        };
        match chance {
            Chance::Joins => {
                self.last += 1;
                let token = self.last;
                node(&mut self.broker, token);
                let effects = ask(&mut self.broker, token, fresh("echo"));
                if let Some(Effect::Send { reply: Reply::Registered { instance, .. }, .. }) =
                    effects.first()
                {
                    self.tokens.insert(*instance, token);
                    // Who is alone is told of nobody.
                    if self.members.is_empty() {
                        self.members.push(*instance);
                    }
                }
                self.hear(&effects);
            }
            Chance::Goes(which) => {
                if let Some((_, token)) = member(which) {
                    self.step(Event::Gone { token });
                }
            }
            Chance::Promotes(which) => {
                let which = which % self.members.len().max(1);
                let Some((instance, token)) = member(which).filter(|_| which > 0) else { return };
                let epoch = self.epoch + which as u64;
                let before = self.members[..which].iter();
                let dead = before.filter_map(|it| self.tokens.get(it)).copied();
                let dead = dead.collect();
                self.say(token, Request::Promoted { instance, epoch });
                self.step(Event::Examined { instance, epoch, dead });
            }
            Chance::Triggered(which) => {
                if let Some((backup, token)) = member(which) {
                    let failed = self.members[0];
                    self.say(token, Request::Trigger { failed, backup });
                }
            }
            Chance::LetsGo(which) => {
                if let Some((instance, token)) = member(which) {
                    self.say(token, Request::Promoted { instance, epoch: 0 });
                }
            }
            Chance::TimePasses => {
                self.now_ns += SECOND;
                self.step(Event::Tick);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever an instance has heard, and however late it acts on that: nobody else serves at the
    /// epochs at which it was told that it may.
    #[test]
    fn no_two_places_have_one_epoch(history in prop::collection::vec(chance(), 1..120)) {
        let mut owned = Owned {
            broker: broker(),
            last: 0,
            now_ns: 0,
            members: Vec::new(),
            epoch: 0,
            tokens: HashMap::new(),
            owners: HashMap::new(),
        };
        for chance in history {
            owned.happens(chance);
        }
    }
}
