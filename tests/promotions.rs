//! A name changes hands again and again, or has nobody left: nothing is kept of it, by anybody.

use std::sync::{Mutex, PoisonError};

use ipc::Spin;
use tests::{Ipcd, LONG, World, proc, proc::Holdings, serving, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");

/// Rounds that count, after a few in which all has been made that stays.
const ROUNDS: usize = 25;
const EARLY: usize = 3;

/// What this process holds is counted, so one test runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// One that promotes itself each time, its caller and the runtime: they hold as much after the last
/// change of hands as after the first ones.
#[test]
fn however_often_a_standby_promotes_itself_nothing_is_kept_of_that() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, options) in [("echo", "encrypt=no"), ("sealed", "encrypt=yes")] {
        promote(name, &["spin=never", options]);
    }
}

fn promote(name: &str, options: &[&str]) {
    let world = World::without_runtime(ACTOR);
    let ipcd = Ipcd::start(IPCD, world.directory(), "");
    let join = || {
        let mut replica = world.actor(options);
        let told = replica.ask(&format!("replica {name}"), "serving");
        let instance = told.split(' ').next().expect("an instance").parse().expect("a number");
        (replica, ipc::ServiceId::new(instance))
    };
    let (mut first, _) = join();
    let (standby, _) = join();
    let mut caller = world.actor(options);
    caller.ask(&format!("open {name}"), "opened");
    let node = world.node(Spin::Never);
    let id = node.discover(name).expect("it is served");
    let pid = caller.pid();
    let of_all = || [pid, standby.pid(), ipcd.pid()].map(proc::holdings);
    let mut early: Option<[Holdings; 3]> = None;
    for round in 0..EARLY + ROUNDS {
        world.settled(&node, 2);
        first.kill();
        let calls = format!("calls {name} 2 2 8,3000,60000");
        caller.ask(&calls, "called");
        wait_until("who stood by serves", || {
            let list = node.list().expect("a list");
            list.len() == 1 && list[0].pid == standby.pid()
        });
        let (next, instance) = join();
        world.settled(&node, 2);
        node.trigger_failover(id, Some(instance)).expect("it changes hands");
        caller.ask(&calls, "called");
        first = next;
        world.settled(&node, 2);
        if round < EARLY {
            // Some of it may be about to be let go of: what is kept each time is more in the end.
            let now = of_all();
            let before = early.unwrap_or(now);
            early = Some([0, 1, 2].map(|who| most(before[who], now[who])));
        }
    }
    let early = early.expect("there were early rounds");
    wait_until("nothing more is held than at first", || {
        let now = of_all();
        let is_within = now.iter().zip(&early).all(|(now, early)| now.is_within(early));
        if !is_within {
            eprintln!("{now:?}, at first {early:?}");
        }
        is_within
    });
}

/// The most of each that one of the two held.
fn most(one: Holdings, other: Holdings) -> Holdings {
    Holdings {
        descriptors: one.descriptors.max(other.descriptors),
        lanes: one.lanes.max(other.lanes),
        arenas: one.arenas.max(other.arenas),
        threads: one.threads.max(other.threads),
    }
}

/// A node that is closed while it looks for somebody to go to, and the runtime does not answer:
/// nobody hears an answer any more, so nobody waits for one.
#[test]
fn a_node_that_is_closed_while_it_looks_for_who_is_next_keeps_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let mut servers = world.replicas("echo", 2);
    let before = own();
    let (node, client) = world.client("echo", Spin::Never);
    world.settled(&node, 2);
    assert_eq!(serving(&client).0, servers[0].pid());
    servers.remove(1).kill();
    wait_until("the standby is gone", || node.list().expect("a list").len() == 1);
    runtime.stop();
    let waiting = client.start(b"!hold", LONG).expect("sent");
    servers.remove(0).kill();
    // Of a channel that is asked for there is only the own lane.
    wait_until("somebody looks for who is next", || own().lanes % 2 == 1);
    drop((waiting, client, node));
    wait_until("nothing is left of the node", || own().is_within(&before));
    runtime.go_on();
}

fn own() -> Holdings {
    proc::holdings(std::process::id())
}
