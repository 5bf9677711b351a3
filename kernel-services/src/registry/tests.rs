use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::ids::tests::Memory;

fn registry(first: u32) -> Registry {
    Registry::new(Ids::new(first..first, Box::new(Memory::default())))
}

fn claims(instance: u32, name: u32) -> Claims {
    Claims { instance: ServiceId::new(instance), name: ServiceId::new(name) }
}

fn plain(registry: &mut Registry, node: ServiceId, name: &str) -> Registered {
    registry.register(node, name, 0, Claims::default()).expect("registers")
}

#[test]
fn the_first_serves_and_the_others_stand_by_in_order() {
    let mut registry = registry(1);
    let nodes: Vec<_> = (0..3).map(|pid| registry.enter(pid, 0).expect("room")).collect();
    let made: Vec<_> = nodes.iter().map(|&node| plain(&mut registry, node, "echo")).collect();
    assert!(made.iter().all(|it| it.name == made[0].name));
    for (position, node) in nodes.iter().enumerate() {
        assert_eq!(registry.resolve(made[0].name), Some(made[position].instance));
        assert_eq!(registry.leave(*node), vec![(made[position].instance, made[0].name)]);
    }
    assert_eq!(registry.resolve(made[0].name), None);
    assert_eq!(registry.discover("echo"), None);
}

#[test]
fn a_name_keeps_its_id_after_everyone_left() {
    let mut registry = registry(1);
    let node = registry.enter(1, 0).expect("room");
    let first = plain(&mut registry, node, "echo");
    registry.unregister(node, first.instance).expect("its own");
    let second = plain(&mut registry, node, "echo");
    assert_eq!(first.name, second.name);
    assert_ne!(first.instance, second.instance);
}

#[test]
fn an_instance_id_leads_only_to_itself() {
    let mut registry = registry(1);
    let nodes: Vec<_> = (0..2).map(|pid| registry.enter(pid, 0).expect("room")).collect();
    let made: Vec<_> = nodes.iter().map(|&node| plain(&mut registry, node, "echo")).collect();
    assert_eq!(registry.resolve(made[1].instance), Some(made[1].instance));
    registry.leave(nodes[1]);
    assert_eq!(registry.resolve(made[1].instance), None);
    assert_eq!(registry.resolve(nodes[0]), None);
    assert_eq!(registry.resolve(ServiceId::NONE), None);
}

#[test]
fn exclusive_shares_with_nobody() {
    let mut registry = registry(1);
    let (one, two) = (registry.enter(1, 0).expect("room"), registry.enter(2, 0).expect("room"));
    let alone = registry.register(one, "a", SERVICE_EXCLUSIVE, Claims::default()).expect("free");
    assert_eq!(registry.register(two, "a", 0, Claims::default()), Err(Status::EXISTS));
    plain(&mut registry, one, "b");
    let joining = registry.register(two, "b", SERVICE_EXCLUSIVE, Claims::default());
    assert_eq!(joining, Err(Status::EXISTS));
    registry.unregister(one, alone.instance).expect("its own");
    plain(&mut registry, two, "a");
}

#[test]
fn what_is_wrong_is_refused_and_changes_nothing() {
    let mut registry = registry(1);
    let (one, two) = (registry.enter(1, 0).expect("room"), registry.enter(2, 0).expect("room"));
    let made = plain(&mut registry, one, "echo");
    let none = Claims::default();
    assert_eq!(registry.register(one, "echo", 0, none), Err(Status::EXISTS));
    assert_eq!(registry.register(one, "other", 8, none), Err(Status::INVALID));
    assert_eq!(registry.register(ServiceId::new(9999), "x", 0, none), Err(Status::INVALID));
    assert_eq!(registry.unregister(two, made.instance), Err(Status::NOT_FOUND));
    assert_eq!(registry.unregister(one, made.name), Err(Status::NOT_FOUND));
    assert_eq!((registry.services(), registry.discover("other")), (1, None));
}

#[test]
fn quotas_are_refused_as_such() {
    let mut registry = registry(1);
    let node = registry.enter(1, 0).expect("room");
    for number in 0..NAMES_PER_NODE {
        plain(&mut registry, node, &format!("n{number}"));
    }
    assert_eq!(registry.register(node, "more", 0, Claims::default()), Err(Status::QUOTA));
    for pid in 1..NODES {
        registry.enter(pid as u32, 0).expect("room");
    }
    assert_eq!(registry.enter(0, 0), Err(Status::QUOTA));
    registry.leave(node);
    let again = registry.enter(0, 0).expect("one left");
    plain(&mut registry, again, "more");
}

#[test]
fn claims_bring_back_the_ids_of_an_earlier_run() {
    let mut registry = registry(100);
    let (one, two) = (registry.enter(1, 0).expect("room"), registry.enter(2, 0).expect("room"));
    let back = registry.register(one, "echo", 0, claims(7, 5)).expect("free");
    assert_eq!((back.instance.get(), back.name.get()), (7, 5));
    let other = registry.register(two, "other", 0, claims(7, 5)).expect("new ids instead");
    assert!(other.instance.get() >= 100 && other.name.get() >= 100);
    let joined = registry.register(two, "echo", 0, claims(8, 5)).expect("same name");
    assert_eq!((joined.instance.get(), joined.name.get()), (8, 5));
    registry.leave(one);
    let late = registry.register(two, "third", 0, claims(7, 0)).expect("a new id");
    assert_ne!(late.instance.get(), 7, "an id that ended does not come back");
}

#[test]
fn a_group_has_its_order_again_whoever_returns_first() {
    let mut registry = registry(100);
    let nodes: Vec<_> = (0..4).map(|pid| registry.enter(pid, 0).expect("room")).collect();
    for (node, instance) in nodes.iter().zip([9, 0, 7, 8]) {
        registry.register(*node, "echo", 0, claims(instance, 5)).expect("joins");
    }
    let (mut entries, _) = registry.list(0);
    entries.sort_by_key(|entry| entry.rank);
    assert_eq!(entries.iter().map(|entry| entry.pid).collect::<Vec<_>>(), [2, 3, 0, 1]);
}

#[test]
fn an_old_name_id_still_leads_to_a_name_that_a_newcomer_registered_first() {
    let mut registry = registry(100);
    let (new, old) = (registry.enter(1, 0).expect("room"), registry.enter(2, 0).expect("room"));
    let first = plain(&mut registry, new, "echo");
    let second = registry.register(old, "echo", 0, claims(7, 5)).expect("joins");
    assert_eq!(second.name, first.name);
    assert_eq!(registry.resolve(ServiceId::new(5)), Some(second.instance), "it was here first");
    assert_eq!(registry.discover("echo"), Some(first.name));
}

#[test]
fn pages_list_every_instance_once() {
    let mut registry = registry(1);
    let node = registry.enter(1, 0).expect("room");
    let names: Vec<String> = (0..300).map(|n| format!("{n:0>200}")).collect();
    let made: Vec<_> = names.iter().map(|name| plain(&mut registry, node, name)).collect();
    let (mut after, mut seen) = (0, Vec::new());
    loop {
        let (entries, next) = registry.list(after);
        seen.extend(entries.into_iter().map(|entry| entry.instance));
        if next == 0 {
            break;
        }
        assert!(next > after);
        after = next;
    }
    assert_eq!(seen, made.iter().map(|it| it.instance).collect::<Vec<_>>());
    assert_eq!(registry.list(u32::MAX), (Vec::new(), 0));
}

#[test]
fn a_node_appears_as_its_first_instance() {
    let mut registry = registry(1);
    let node = registry.enter(1, 0).expect("room");
    assert_eq!(registry.appearance(node), (node, ServiceId::NONE));
    let first = plain(&mut registry, node, "a");
    let second = plain(&mut registry, node, "b");
    assert_eq!(registry.appearance(node), (first.instance, first.name));
    registry.unregister(node, first.instance).expect("its own");
    assert_eq!(registry.appearance(node), (second.instance, second.name));
}

#[derive(Clone, Debug)]
enum Step {
    Enter,
    Leave(usize),
    Register { node: usize, name: u8, flags: u32, claims: [u32; 2] },
    Unregister(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Enter),
        1 => (0..8_usize).prop_map(Step::Leave),
        6 => (0..8_usize, 0..4_u8, 0..4_u32, [0..140_u32, 0..140_u32])
            .prop_map(|(node, name, flags, claims)| Step::Register { node, name, flags, claims }),
        2 => (0..16_usize).prop_map(Step::Unregister),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn ids_are_unique_and_groups_are_consistent(steps in steps()) {
        let mut registry = registry(100);
        let mut nodes: Vec<ServiceId> = Vec::new();
        let mut live: Vec<(ServiceId, Registered)> = Vec::new();
        let (mut names, mut spent) = (HashMap::new(), HashSet::new());
        for step in steps {
            match step {
                Step::Enter => {
                    let node = registry.enter(1, 0).expect("room");
                    prop_assert!(spent.insert(node));
                    nodes.push(node);
                }
                Step::Leave(at) if at < nodes.len() => {
                    let node = nodes.remove(at);
                    let ended = registry.leave(node);
                    live.retain(|(holder, made)| {
                        *holder != node || !ended.contains(&(made.instance, made.name))
                    });
                    prop_assert!(live.iter().all(|(holder, _)| *holder != node));
                }
                Step::Register { node, name, flags, claims: [instance, name_id] }
                    if node < nodes.len() =>
                {
                    let claims = claims(instance, name_id);
                    let made = registry.register(nodes[node], &format!("n{name}"), flags, claims);
                    if let Ok(made) = made {
                        prop_assert!(spent.insert(made.instance), "instance id reused");
                        let id = *names.entry(name).or_insert(made.name);
                        prop_assert_eq!(id, made.name, "the name changed its id");
                        live.push((nodes[node], made));
                    }
                }
                Step::Unregister(at) if at < live.len() => {
                    let (node, made) = live.remove(at);
                    prop_assert_eq!(registry.unregister(node, made.instance), Ok(()));
                }
                _ => {}
            }
            prop_assert_eq!(registry.services(), live.len());
            for id in names.values() {
                prop_assert!(!live.iter().any(|(_, made)| made.instance == *id));
                let group = live.iter().filter(|(_, made)| made.name == *id);
                prop_assert_eq!(registry.resolve(*id), group.map(|(_, made)| made.instance).min());
            }
        }
    }
}
