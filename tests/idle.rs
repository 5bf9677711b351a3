//! Who has nothing to do does not wake.

use std::{collections::BTreeMap, time::Duration};

use tests::{Actor, World, proc, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// How often each thread of these slept so far.
fn sleeps(actors: &[&Actor]) -> BTreeMap<u32, u64> {
    actors.iter().flat_map(|actor| proc::sleeps(actor.pid())).collect()
}

fn stays_asleep(clients: usize, spin: &str) {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let server = world.server("echo", &[spin]);
    let mut callers: Vec<_> = (0..clients).map(|_| world.actor(&[spin])).collect();
    for caller in &mut callers {
        caller.ask("calls echo 2 50 8,1000,20000", "called");
    }
    let everybody: Vec<&Actor> = callers.iter().chain([&runtime, &server]).collect();
    // Those who spin, or say their last line, come to rest first.
    let mut before = sleeps(&everybody);
    wait_until("all are at rest", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = sleeps(&everybody);
        now == std::mem::replace(&mut before, now.clone())
    });
    // The one wait for a time: nothing can be observed but that nothing happens.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(sleeps(&everybody), before, "somebody woke up");
    // They were asleep, not dead.
    for caller in &mut callers {
        caller.ask("calls echo 1 1 8", "called");
    }
}

#[test]
fn nobody_wakes_with_one_idle_client() {
    stays_asleep(1, "spin=learned");
}

#[test]
fn nobody_wakes_with_five_idle_clients() {
    stays_asleep(5, "spin=learned");
}

#[test]
fn nobody_wakes_who_never_spins() {
    stays_asleep(2, "spin=never");
}
