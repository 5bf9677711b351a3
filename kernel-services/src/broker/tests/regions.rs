//! Regions: who may map them, who is told, who pays, and that nothing is left.

use ipc::control::regions::{Access, RegionEntry, RegionReply, RegionRequest};

use super::*;
use crate::{
    quota::{Account, Kind, Quota},
    security::{Object, Operation, Rule, Subject, Terms},
};

const SIZE: u64 = 4096;
const BYTES: u64 = 8192;

fn memory(file: u64) -> LaneFacts {
    let (bytes, allocated) = (BYTES, BYTES);
    LaneFacts { pinned: true, bytes, allocated, file: (1, file), ..LaneFacts::default() }
}

fn say(
    broker: &mut Broker,
    token: Token,
    request: RegionRequest,
    facts: Option<LaneFacts>,
) -> Vec<Effect> {
    let carried = facts.map_or(Carried::Nothing, Carried::One);
    broker.step(packet(token, 7, Request::Region(request), carried), 0)
}

fn create(broker: &mut Broker, token: Token) -> (u64, [u8; 32]) {
    let request = RegionRequest::Create { size: SIZE, claim: 0, ticket: [0; 32] };
    created(&say(broker, token, request, Some(memory(5))))
}

fn created(effects: &[Effect]) -> (u64, [u8; 32]) {
    let [
        Effect::Region(RegionEffect::Keep { region }),
        ..,
        Effect::Send {
            reply: Reply::Region(RegionReply::Created { region: told, ticket }), ..
        },
    ] = effects
    else {
        panic!("not created: {effects:?}")
    };
    assert_eq!(region, told);
    (*region, *ticket)
}

fn grant(broker: &mut Broker, region: u64, to: ServiceId) -> Vec<Effect> {
    let request = RegionRequest::Grant { region, to, access: Access::Read };
    say(broker, 1, request, Some(LaneFacts { sealed: true, ..memory(5) }))
}

fn map(broker: &mut Broker, token: Token, region: u64) -> Vec<Effect> {
    say(broker, token, RegionRequest::Map { region }, None)
}

fn is_mapped(effects: &[Effect]) -> bool {
    matches!(effects, [Effect::Region(RegionEffect::Send { .. })])
}

fn done(to: Token) -> Effect {
    Effect::Send { to, sequence: 7, reply: Reply::Done }
}

fn told(to: Token, region: u64, revoked: bool) -> Effect {
    let reply = Reply::Region(RegionReply::Ended { region, revoked });
    Effect::Send { to, sequence: 0, reply }
}

fn lost(region: u64) -> Effect {
    Effect::Region(RegionEffect::Lose { region })
}

fn held(broker: &Broker) -> u64 {
    broker.accounts.ledger().held(&Account::User(UID), Kind::SharedBytes)
}

/// Node 1 owns a region and node 2 has mapped it.
fn shared() -> (Broker, u64, ServiceId) {
    let mut broker = with_nodes(1..=1);
    let holder = node(&mut broker, 2);
    let (region, _) = create(&mut broker, 1);
    assert_eq!(map(&mut broker, 2, region), [refusal(2, 7, Status::ACCESS)], "not granted");
    assert_eq!(grant(&mut broker, region, holder), [done(1)]);
    assert!(is_mapped(&map(&mut broker, 2, region)));
    (broker, region, holder)
}

#[test]
fn a_region_lives_as_long_as_anybody_has_it() {
    let (mut broker, region, _) = shared();
    assert_eq!(held(&broker), BYTES);
    assert_eq!(
        say(&mut broker, 1, RegionRequest::Unmap { region }, None),
        [told(2, region, false)]
    );
    assert_eq!(map(&mut broker, 2, region), [refusal(2, 7, Status::PEER_DIED)]);
    assert_eq!(held(&broker), BYTES, "somebody pays for it");
    assert_eq!(say(&mut broker, 2, RegionRequest::Unmap { region }, None), [lost(region)]);
    assert_eq!(held(&broker), 0);
    assert_eq!(map(&mut broker, 2, region), [refusal(2, 7, Status::NOT_FOUND)]);
    let (next, _) = create(&mut broker, 1);
    assert_ne!(next, region, "ids are never used again");
    broker.close(0);
}

#[test]
fn deaths_free_shares() {
    let (mut broker, region, _) = shared();
    assert_eq!(broker.step(Event::Gone { token: 2 }, 0), []);
    assert_eq!(held(&broker), BYTES, "it is the owner's still");
    assert_eq!(broker.step(Event::Gone { token: 1 }, 0), [lost(region)]);
    let (mut broker, region, _) = shared();
    assert_eq!(broker.step(Event::Gone { token: 1 }, 0), [told(2, region, false)]);
    assert_eq!(broker.step(Event::Gone { token: 2 }, 0), [lost(region)]);
    broker.close(0);
}

#[test]
fn who_maps_twice_lets_go_twice() {
    let (mut broker, region, _) = shared();
    assert!(is_mapped(&map(&mut broker, 2, region)));
    let entry = |broker: &mut Broker| match say(broker, 1, RegionRequest::List { after: 0 }, None)
        .as_slice()
    {
        [Effect::Send { reply: Reply::Region(RegionReply::Entry(entry)), .. }] => *entry,
        other => panic!("no entry: {other:?}"),
    };
    let RegionEntry { holders, grants, access, pid, bytes, .. } = entry(&mut broker);
    assert_eq!((holders, grants, access, pid, bytes), (1, 1, Access::Read, 1, BYTES));
    say(&mut broker, 2, RegionRequest::Unmap { region }, None);
    assert_eq!(entry(&mut broker).holders, 1);
    say(&mut broker, 2, RegionRequest::Unmap { region }, None);
    say(&mut broker, 2, RegionRequest::Unmap { region }, None);
    assert_eq!(entry(&mut broker).holders, 0);
    assert_eq!(say(&mut broker, 1, RegionRequest::List { after: region }, None), [done(1)]);
    broker.close(0);
}

#[test]
fn a_grant_that_is_taken_back_ends_what_was_mapped_by_it() {
    let (mut broker, region, holder) = shared();
    let other = node(&mut broker, 3);
    grant(&mut broker, region, other);
    assert!(is_mapped(&map(&mut broker, 3, region)));
    let back = RegionRequest::Grant { region, to: holder, access: Access::None };
    assert_eq!(say(&mut broker, 3, back, None), [refusal(3, 7, Status::NOT_FOUND)], "not its own");
    assert_eq!(say(&mut broker, 1, back, None), [told(2, region, true), done(1)]);
    assert_eq!(map(&mut broker, 2, region), [refusal(2, 7, Status::ACCESS)]);
    broker.close(0);
}

#[test]
fn what_is_no_region_is_not_taken() {
    let mut broker = with_nodes(1..=1);
    let request = RegionRequest::Create { size: SIZE, claim: 0, ticket: [0; 32] };
    let sparse = LaneFacts { bytes: 1 << 30, allocated: 4096, ..memory(1) };
    let resizable = LaneFacts { pinned: false, ..memory(1) };
    for facts in [None, Some(sparse), Some(resizable)] {
        let refused = [refusal(1, 7, Status::INVALID)];
        assert_eq!(say(&mut broker, 1, request, facts), refused, "{facts:?}");
    }
    let users = Quota { shared_bytes: Some(BYTES), ..Quota::default() };
    broker.accounts.limit(users, std::collections::HashMap::new());
    create(&mut broker, 1);
    let refused = [refusal(1, 7, Status::QUOTA)];
    assert_eq!(say(&mut broker, 1, request, Some(memory(6))), refused);
    broker.close(0);
}

#[test]
fn the_rules_have_a_word_too_and_may_change_their_mind() {
    let (mut broker, region, _) = shared();
    let rules = vec![Rule {
        subject: Subject::Any,
        object: Object::Any,
        operations: Operation::MapRegion.bit(),
        allow: false,
    }];
    let terms = Terms { uid: UID, rules, ..Terms::default() };
    let law = Law { terms, ..Law::default() };
    assert_eq!(broker.step(Event::Law(Box::new(law)), 0), [told(2, region, true)]);
    assert_eq!(map(&mut broker, 2, region), [refusal(2, 7, Status::ACCESS)]);
    broker.close(0);
}

/// What the next run knows: nothing but the key.
fn next_run(before: &Broker) -> Broker {
    let registry = Registry::new(Ids::new(90..90, Box::new(Memory::default())));
    let mut next = Broker::new(registry, 1, UID, 0, Arc::clone(&before.key)).expect("an epoch");
    for token in 1..=3 {
        node(&mut next, token);
    }
    next
}

#[test]
fn after_a_restart_all_is_as_its_holders_tell() {
    for holder_comes_first in [false, true] {
        let mut before = with_nodes(1..=3);
        let (region, ticket) = create(&mut before, 1);
        let mut broker = next_run(&before);
        before.close(0);
        let claim = RegionRequest::Create { size: SIZE, claim: region, ticket };
        let sealed = LaneFacts { sealed: true, ..memory(5) };
        let hold =
            |broker: &mut Broker| say(broker, 2, RegionRequest::Map { region }, Some(sealed));
        if holder_comes_first {
            hold(&mut broker);
            assert_eq!(held(&broker), BYTES, "who holds it pays");
        }
        assert_eq!(created(&say(&mut broker, 1, claim, Some(sealed))).0, region);
        if !holder_comes_first {
            assert_eq!(hold(&mut broker), []);
        }
        assert_eq!(held(&broker), BYTES, "once");
        // The one whom it is granted to may not be there yet.
        let later = ServiceId::new(70_000);
        assert_eq!(grant(&mut broker, region, later), [done(1)]);
        assert_eq!(broker.step(Event::Gone { token: 1 }, 0), [told(2, region, false)]);
        assert_eq!(broker.step(Event::Gone { token: 2 }, 0), [lost(region)]);
        broker.close(0);
    }
}

#[test]
fn a_thief_gets_neither_the_id_nor_the_holders() {
    let mut before = with_nodes(1..=3);
    let (region, ticket) = create(&mut before, 1);
    let mut broker = next_run(&before);
    let sealed = |file| LaneFacts { sealed: true, ..memory(file) };
    // Another process with the ticket, and one with a ticket that is none.
    for (token, ticket) in [(3, ticket), (1, [7; 32])] {
        let claim = RegionRequest::Create { size: SIZE, claim: region, ticket };
        let (other, _) = created(&say(&mut broker, token, claim, Some(sealed(6))));
        assert_ne!(other, region);
    }
    // Who says that it had it, with other memory, is not believed once the owner is here.
    say(&mut broker, 3, RegionRequest::Map { region }, Some(sealed(9)));
    let claim = RegionRequest::Create { size: SIZE, claim: region, ticket };
    let effects = say(&mut broker, 1, claim, Some(sealed(5)));
    assert!(effects.contains(&told(3, region, true)), "{effects:?}");
    let lie = say(&mut broker, 2, RegionRequest::Map { region }, Some(sealed(9)));
    assert_eq!(lie, [told(2, region, true)]);
    let of_this_run = create(&mut broker, 1).0 + 1;
    let lie = say(&mut broker, 2, RegionRequest::Map { region: of_this_run }, Some(sealed(9)));
    assert_eq!(lie, [told(2, of_this_run, true)]);
    before.close(0);
    broker.close(0);
}
