//! Memory that units have kept: whose it is, what it costs, and when it goes.

use super::*;
use crate::{broker::kept::Stow, quota::Quota};

const BYTES: u64 = 1 << 20;

fn unit(id: u32, service: &str, pid: u32) -> Unit {
    Unit { id, service: service.into(), pid, uid: UID, start_time: 1, key: None }
}

/// A process of a unit connects and greets.
fn enters(broker: &mut Broker, token: Token, unit: Unit) {
    broker.step(comes(token, unit.pid, UID, Some(unit)), 0);
    ask(broker, token, Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] });
}

fn memory() -> Carried {
    Carried::One(LaneFacts { sealed: true, bytes: BYTES, allocated: BYTES, ..LaneFacts::default() })
}

fn keep(broker: &mut Broker, token: Token, name: &str, carried: Carried) -> Vec<Effect> {
    broker.step(packet(token, 7, Request::Keep { name: name.to_owned() }, carried), 0)
}

fn answer(to: Token, reply: Reply) -> Effect {
    Effect::Send { to, sequence: 7, reply }
}

/// The names of what a process is given.
fn found(broker: &mut Broker, token: Token) -> Vec<String> {
    let mut names = Vec::new();
    let mut after = 0;
    loop {
        match ask(broker, token, Request::Kept { after }).pop() {
            Some(Effect::Stow(Stow::Give { reply: Reply::Kept { next, name }, .. })) => {
                names.push(name);
                after = next;
            }
            Some(Effect::Send { reply: Reply::Done, .. }) => return names,
            other => panic!("{other:?}"),
        }
    }
}

fn law(service: &str, quota: Quota) -> Event {
    let services = [(service.into(), quota)].into();
    Event::Law(Box::new(Law { services, ..Law::default() }))
}

#[test]
fn kept_memory_is_given_to_the_same_unit_only() {
    let mut broker = broker();
    enters(&mut broker, 1, unit(5, "queue", 10));
    let done = answer(1, Reply::Done);
    assert_eq!(
        keep(&mut broker, 1, "a", memory()),
        [Effect::Stow(Stow::Keep(1)), answer(1, Reply::Done)]
    );
    keep(&mut broker, 1, "b", memory());
    // In place of an older one by the same name.
    assert_eq!(
        keep(&mut broker, 1, "a", memory()),
        [Effect::Stow(Stow::LetGo(1)), Effect::Stow(Stow::Keep(3)), done]
    );
    assert_eq!(found(&mut broker, 1), ["b", "a"]);
    broker.step(Event::Gone { token: 1 }, 0);
    // Another unit, and who is none.
    enters(&mut broker, 2, unit(6, "queue", 11));
    assert!(found(&mut broker, 2).is_empty());
    node(&mut broker, 3);
    assert_eq!(ask(&mut broker, 3, Request::Kept { after: 0 }), [refusal(3, 7, Status::ACCESS)]);
    assert_eq!(keep(&mut broker, 3, "a", memory()), [refusal(3, 7, Status::ACCESS)]);
    // Its successor.
    enters(&mut broker, 4, unit(5, "queue", 12));
    assert_eq!(found(&mut broker, 4), ["b", "a"]);
    let gone = keep(&mut broker, 4, "b", Carried::Nothing);
    assert_eq!(gone, [Effect::Stow(Stow::LetGo(2)), answer(4, Reply::Done)]);
    assert_eq!(found(&mut broker, 4), ["a"]);
    // Nothing is left charged.
    broker.close(0);
}

#[test]
fn kept_memory_is_whole_and_charged_and_goes_with_its_service() {
    let mut broker = broker();
    let quota = Quota { shared_bytes: Some(BYTES + 1), ..Quota::default() };
    broker.step(law("queue", quota), 0);
    enters(&mut broker, 1, unit(5, "queue", 10));
    for (sealed, allocated) in [(false, BYTES), (true, BYTES - 1)] {
        let carried =
            Carried::One(LaneFacts { sealed, bytes: BYTES, allocated, ..LaneFacts::default() });
        let refused = [refusal(1, 7, Status::INVALID)];
        assert_eq!(keep(&mut broker, 1, "a", carried), refused);
    }
    keep(&mut broker, 1, "a", memory());
    assert_eq!(keep(&mut broker, 1, "b", memory()), [refusal(1, 7, Status::QUOTA)]);
    assert_eq!(found(&mut broker, 1), ["a"]);
    // The service is not in the node file any more.
    let effects = broker.step(law("other", Quota::default()), 0);
    assert!(effects.contains(&Effect::Stow(Stow::LetGo(1))), "{effects:?}");
    broker.close(0);
}
