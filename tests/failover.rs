//! Who serves a name dies, and another does: callers go on, and hear nothing of it.

use std::{
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use ipc::{CallOptions, Client, Spin};
use tests::{Actor, LONG, World, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// Starts so many processes that serve a name, in this order.
fn replicas(world: &World, name: &str, count: usize) -> Vec<Actor> {
    let replica = |_| {
        let mut replica = world.actor(&["spin=never"]);
        replica.ask(&format!("replica {name}"), "serving");
        replica
    };
    (0..count).map(replica).collect()
}

/// Who answers now, and at which epoch.
fn serving(client: &Client) -> (u32, u64) {
    let answer = client.call(b"!serving", LONG).expect("answered");
    let text = String::from_utf8(answer).expect("text");
    let (pid, epoch) = text.split_once(' ').expect("two numbers");
    (pid.parse().expect("a number"), epoch.parse().expect("a number"))
}

/// Waits until this process has as many channels to a name as it has members, or three.
fn ahead(client: &Client, channels: u32, world: &World) {
    let _ = client;
    let node = world.node(Spin::Never);
    wait_until("channels are opened ahead", || {
        let entries = node.list().expect("a list");
        let last = entries.iter().max_by_key(|entry| entry.rank).expect("served");
        last.channels >= channels
    });
}

#[test]
fn a_standby_goes_on_where_the_one_before_was_killed() {
    let world = World::new(ACTOR);
    let mut servers = replicas(&world, "echo", 2);
    let (_node, client) = world.client("echo", Spin::Never);
    let (pid, epoch) = serving(&client);
    assert_eq!(pid, servers[0].pid());
    ahead(&client, 1, &world);
    servers.remove(0).kill();
    let (pid, later) = serving(&client);
    assert_eq!(pid, servers[0].pid());
    assert!(later > epoch, "{later} {epoch}");
}

#[test]
fn calls_of_every_kind_hear_nothing_of_a_death() {
    let world = World::new(ACTOR);
    let mut servers = replicas(&world, "echo", 3);
    let (node, client) = world.client("echo", Spin::Learned);
    ahead(&client, 1, &world);
    let (done, made) = (AtomicBool::new(false), AtomicU64::new(0));
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (client, done, made) = (client.clone(), &done, &made);
            scope.spawn(move || {
                let mut number = thread;
                while !done.load(Ordering::Relaxed) {
                    let payload = [thread.to_le_bytes(), number.to_le_bytes()].concat();
                    let answer = client.call(&payload, LONG).expect("answered");
                    assert_eq!(answer, payload);
                    number += 3;
                    made.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (client, done, node) = (client.clone(), &done, node.clone());
        scope.spawn(move || {
            let port = node.server().expect("a loop");
            let (mut sent, mut completed) = (0_usize, 0_usize);
            let nobody = &mut |_: ipc::Request<'_>| unreachable!("this process serves nobody");
            while !done.load(Ordering::Relaxed) || completed < sent {
                if !done.load(Ordering::Relaxed) && sent - completed < 16 {
                    let (tell, number) = (tell.clone(), sent as u64);
                    let payload = [9, number].map(u64::to_le_bytes).concat();
                    let expected = payload.clone();
                    let check = move |outcome: Result<Vec<u8>, _>| {
                        let right = outcome.is_ok_and(|it| it == expected);
                        tell.send(right).expect("told");
                    };
                    client.call_async(&port, &payload, LONG, check).expect("sent");
                    sent += 1;
                }
                let wait = Some(Duration::from_millis(u64::from(sent - completed >= 16)));
                completed += port.poll(wait, nobody).expect("polled");
            }
        });
        while servers.len() > 1 {
            let before = made.load(Ordering::Relaxed);
            wait_until("calls are made", || made.load(Ordering::Relaxed) > before + 300);
            servers.remove(0).kill();
        }
        let before = made.load(Ordering::Relaxed);
        wait_until("calls are made", || made.load(Ordering::Relaxed) > before + 300);
        done.store(true, Ordering::Relaxed);
    });
    let outcomes: Vec<bool> = told.try_iter().collect();
    assert!(outcomes.len() > 100 && outcomes.iter().all(|right| *right), "{}", outcomes.len());
}

#[test]
fn one_way_messages_that_were_not_taken_come_to_the_next_in_order() {
    let world = World::new(ACTOR);
    let mut servers = replicas(&world, "sink", 2);
    let (_node, client) = world.client("sink", Spin::Never);
    ahead(&client, 1, &world);
    servers[0].stop();
    for number in 0..40_u64 {
        client.send(&number.to_le_bytes(), CallOptions::default()).expect("there is room");
    }
    servers.remove(0).kill();
    let counted = client.call(b"!count", LONG).expect("answered");
    assert_eq!(counted, b"40 0");
}
