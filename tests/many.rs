//! One server and many clients: all are answered, the idle cost nothing, the loud starve nobody.

use std::{collections::BTreeMap, time::Duration};

use ipc::Config;
use tests::{Actor, House, LONG, World, proc, wait_for, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// Processes that share a thousand clients among them, so that none needs many descriptors.
const PROCESSES: usize = 4;
/// Clients in each.
const EACH: usize = 250;
/// What the two lanes of an idle channel may take together.
const MOST_BYTES: u64 = 32 * 1024;

/// A runtime, a server, and a thousand clients, each of which was answered once.
struct Thousand {
    crowds: Vec<Actor>,
    server: Actor,
    runtime: Actor,
    /// What the server held before they came.
    empty: proc::Holdings,
    world: World,
}

impl Thousand {
    fn gather(spin: &str) -> Thousand {
        let world = World::without_runtime(ACTOR);
        let runtime = world.runtime();
        let server = world.server("echo", &[spin]);
        let empty = proc::holdings(server.pid());
        let mut crowds: Vec<_> = (0..PROCESSES).map(|_| world.actor(&[spin])).collect();
        for crowd in &mut crowds {
            crowd.tell(&format!("crowd echo {EACH}"));
        }
        for crowd in &mut crowds {
            assert_eq!(crowd.hear("crowded"), EACH.to_string());
        }
        Thousand { crowds, server, runtime, empty, world }
    }

    /// Has every client call, those of all processes at once.
    fn all_call(&mut self, count: usize) {
        for crowd in &mut self.crowds {
            crowd.tell(&format!("crowd-calls {count} 48 2"));
        }
        for crowd in &mut self.crowds {
            assert_eq!(crowd.hear("crowd-called"), (EACH * count).to_string());
        }
    }

    /// How often each thread of everybody slept so far.
    fn sleeps(&self) -> BTreeMap<u32, u64> {
        let everybody = self.crowds.iter().chain([&self.server, &self.runtime]);
        everybody.flat_map(|actor| proc::sleeps(actor.pid())).collect()
    }

    fn come_to_rest(&self) -> BTreeMap<u32, u64> {
        let mut before = self.sleeps();
        wait_until("all are at rest", || {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.sleeps();
            now == std::mem::replace(&mut before, now.clone())
        });
        before
    }
}

#[test]
fn a_thousand_are_answered_and_nobody_wakes_when_they_are_idle() {
    let mut thousand = Thousand::gather("spin=learned");
    thousand.all_call(3);
    let before = thousand.come_to_rest();
    // The one wait for a time: nothing can be observed but that nothing happens.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(thousand.sleeps(), before, "somebody woke up");
    thousand.all_call(1);
}

#[test]
fn one_calls_among_a_thousand_idle_ones_and_they_sleep_on() {
    let mut thousand = Thousand::gather("spin=learned");
    let mut hot = thousand.world.actor(&["spin=learned"]);
    hot.ask("calls echo 1 100 8", "called");
    thousand.come_to_rest();
    let sleeps_of_crowds = |thousand: &Thousand| -> Vec<BTreeMap<u32, u64>> {
        thousand.crowds.iter().map(|crowd| proc::sleeps(crowd.pid())).collect()
    };
    let before = sleeps_of_crowds(&thousand);
    hot.ask("calls echo 1 5000 8,48,1000", "called");
    assert_eq!(sleeps_of_crowds(&thousand), before, "an idle client was woken for another");
    // Nor were they forgotten: each is heard while the hot one goes on.
    hot.tell("calls echo 1 20000 48");
    thousand.all_call(1);
    hot.hear("called");
}

/// A server that never sleeps has no other reason to arm a channel than that others are busy.
#[test]
fn idle_channels_are_armed_beside_a_busy_one_and_heard_when_they_ring() {
    const IDLE: usize = 63;
    // Of all that are polled a few stay so, however idle they are: see `Lead::cool`.
    const POLLED: usize = 2;
    let world = World::without_runtime(ACTOR);
    let _runtime = world.runtime();
    let mut server = world.actor(&["spin=always"]);
    server.ask("serve echo 1", "serving");
    let mut idle = world.actor(&[]);
    assert_eq!(idle.ask(&format!("crowd echo {IDLE}"), "crowded"), IDLE.to_string());
    let mut busy = world.actor(&[]);
    busy.ask("torrent echo", "flows");
    let pid = server.pid();
    let most_are_armed = || proc::armed_lanes(pid) >= IDLE + 1 - POLLED;
    for _ in 0..3 {
        wait_until("idle channels are armed", most_are_armed);
        assert!(proc::armed_lanes(pid) <= IDLE, "the busy one was armed");
        let called = idle.ask(&format!("crowd-calls 2 48 {IDLE}"), "crowd-called");
        assert_eq!(called, (IDLE * 2).to_string());
    }
    assert_ne!(busy.ask("ebb", "ebbed"), "0");
}

#[test]
fn an_idle_channel_takes_32_kib_and_the_gone_leave_nothing() {
    let mut thousand = Thousand::gather("spin=learned");
    let channels = (PROCESSES * EACH) as u64;
    let lanes = proc::lane_sizes(thousand.server.pid());
    assert_eq!(lanes.len() as u64, 2 * channels, "a channel is two lanes");
    let bytes: u64 = lanes.iter().sum();
    assert!(bytes <= channels * MOST_BYTES, "{} bytes for each channel", bytes / channels);

    // Half of them leave in order, half are killed. Of a process that lives on, the server's
    // descriptor of it may stay until it ends, or until the next peer comes.
    let killed = thousand.crowds.split_off(PROCESSES / 2);
    for crowd in &mut thousand.crowds {
        crowd.ask("disband", "disbanded");
    }
    killed.into_iter().for_each(Actor::kill);
    let (pid, empty) = (thousand.server.pid(), thousand.empty);
    let with_pidfds =
        proc::Holdings { descriptors: empty.descriptors + thousand.crowds.len(), ..empty };
    wait_until("no channel is left", || proc::holdings(pid).is_within(&with_pidfds));
    thousand.crowds.drain(..).for_each(Actor::quit);
    wait_for("the server holds what it held", &empty, || proc::holdings(pid));
    // And it serves whoever comes next.
    thousand.world.actor(&[]).ask("calls echo 1 10 48", "called");
}

/// One client sends without an end, 63 call: with one thread that serves, and with several.
fn nobody_starves(threads: usize) {
    const HONEST: usize = 63;
    const CALLS: usize = 50;
    let world = World::new(ACTOR);
    let mut server = world.actor(&[]);
    server.ask(&format!("serve echo {threads}"), "serving");
    let mut honest = world.actor(&[]);
    assert_eq!(honest.ask(&format!("crowd echo {HONEST}"), "crowded"), HONEST.to_string());
    let mut loud = world.actor(&[]);
    loud.ask("torrent echo", "flows");
    let called = honest.ask(&format!("crowd-calls {CALLS} 48 {HONEST}"), "crowd-called");
    assert_eq!(called, (HONEST * CALLS).to_string());
    // Nor is the loud one shut out: all that it sent arrived, in order.
    let sent = loud.ask("ebb", "ebbed");
    assert_ne!(sent, "0");
    assert_eq!(loud.ask("ask echo 30000 !count", "answer"), format!("{sent} 0"));
}

#[test]
fn a_flood_starves_none_of_63_callers() {
    nobody_starves(1);
}

#[test]
fn a_flood_starves_none_of_63_callers_of_a_server_with_threads() {
    nobody_starves(3);
}

#[test]
fn a_full_ring_is_served_in_turns_with_another() {
    const LOUD: u8 = 60;
    let house = House::with(&Config::default(), 0, |_| {});
    let port = house.server.server().expect("a server");
    port.register("echo", 0).expect("registered");
    let clients = [house.other_client(), house.other_client()];
    let handled = |count: usize| {
        let mut order = Vec::new();
        while order.len() < count {
            let mut note = |request: ipc::Request<'_>| order.push(request.payload()[0]);
            port.poll(Some(Duration::ZERO), &mut note).expect("polled");
        }
        order
    };
    // Each of them in its turn, since one is looked at first.
    for loud in 0..2 {
        // Both had something of late.
        for client in &clients {
            client.send(&[0], LONG).expect("sent");
        }
        handled(clients.len());
        let fill = (0..LOUD).try_for_each(|_| clients[loud].send(&[1], LONG).map(|_| ()));
        fill.expect("room");
        clients[1 - loud].send(&[2], LONG).expect("sent");
        let order = handled(usize::from(LOUD) + 1);
        let place = order.iter().position(|who| *who == 2).expect("handled");
        assert!(place <= 32, "after {place} messages of another");
    }
}

#[test]
fn who_polls_hears_of_new_clients_under_a_steady_load() {
    let house = House::with(&Config::default(), 0, |_| {});
    let port = house.server.server().expect("a server");
    port.register("echo", 0).expect("registered");
    let loud = house.client();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| house.other_client().call(b"heard", LONG).expect("answered"));
        while !other.is_finished() {
            // There is always something to return with.
            loud.send(b"more", LONG).expect("sent");
            let mut reply = |request: ipc::Request<'_>| {
                if !request.is_one_way() {
                    request.reply(request.payload()).expect("replied");
                }
            };
            port.poll(None, &mut reply).expect("polled");
        }
        assert_eq!(other.join().expect("no panic"), b"heard");
    });
}
