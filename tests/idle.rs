//! Who has nothing to do does not wake.

use std::{collections::BTreeMap, time::Duration};

use tests::{Actor, World, proc, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// How often each thread of these slept so far.
fn sleeps(actors: &[&Actor]) -> BTreeMap<u32, u64> {
    actors.iter().flat_map(|actor| proc::sleeps(actor.pid())).collect()
}

/// Waits until nobody does anything any more, and then for somebody who does.
fn assert_all_stay_asleep(everybody: &[&Actor]) {
    // Those who spin, or say their last line, come to rest first.
    let mut before = sleeps(everybody);
    wait_until("all are at rest", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = sleeps(everybody);
        now == std::mem::replace(&mut before, now.clone())
    });
    // The one wait for a time: nothing can be observed but that nothing happens.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(sleeps(everybody), before, "somebody woke up");
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
    assert_all_stay_asleep(&everybody);
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

#[test]
fn no_task_of_an_idle_tokio_runtime_is_woken() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let (mut server, mut client) = (world.actor(&[]), world.actor(&[]));
    server.ask("tasks-serve echo", "serving");
    // More than may be outstanding: some wait in line.
    client.ask("tasks-call echo 600 8", "tasks-called");
    client.ask("tasks-call echo 10 20000", "tasks-called");
    assert_all_stay_asleep(&[&runtime, &server, &client]);
    client.ask("tasks-call echo 1 8", "tasks-called");
}
