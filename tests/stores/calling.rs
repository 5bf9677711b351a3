//! A caller dies at a store: who serves it goes on for others, and keeps nothing of it.

use ipc::{Spin, failpoint::At};
use tests::{Ipcd, LONG, World, proc, wait_until};

use super::{ACTOR, CHANNEL, Doom, IPCD, SESSION, die_everywhere, node_file};

#[test]
fn a_caller_may_die_at_every_store() {
    let must = [CHANNEL, &[At::Want, At::Released]].concat();
    die_everywhere("calling", &must, |_| true, |doom| trial("echo", doom));
}

#[test]
fn a_caller_by_encrypted_channels_may_die_at_every_store() {
    let must = [CHANNEL, SESSION, &[At::Want]].concat();
    die_everywhere("calling, encrypted", &must, |_| true, |doom| trial("sealed.echo", doom));
}

fn trial(name: &str, doom: &Doom) -> bool {
    let world = World::without_runtime(ACTOR);
    let ipcd = Ipcd::start(IPCD, world.directory(), &node_file());
    let mut server = world.server(name, &["spin=never", "rekey=8"]);
    let (node, client) = world.client(name, Spin::Never);
    let call = || assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
    // Large ones, so that memory for such is there.
    let large = vec![1; 200_000];
    assert!(client.call(&large, LONG).expect("answered") == large);
    let before = [server.pid(), ipcd.pid()].map(proc::holdings);
    let mut doomed = world.actor_under(&doom.words(), &["spin=never", "rekey=8", "cells=16"]);
    let orders = [
        (format!("open {name}"), "opened"),
        (format!("calls {name} 2 6 0,48,3000,100000"), "called"),
        // More than there is room for: it waits for room.
        (format!("number {name} 200 -"), "numbered"),
        (format!("tasks-call {name} 8 60"), "tasks-called"),
        (format!("start {name} 2 !hold"), "started"),
        (format!("leave {name}"), "left"),
    ];
    for (order, told) in &orders {
        call();
        if doomed.ask_or_end(order, told).is_none() {
            break;
        }
    }
    let was_killed = doomed.finish();
    call();
    server.tell("release");
    wait_until("nothing is kept of the dead", || {
        let now = [server.pid(), ipcd.pid()].map(proc::holdings);
        now.iter().zip(&before).all(|(now, before)| now.is_within(before))
    });
    assert_eq!(node.list().expect("a list").len(), 1);
    was_killed
}
