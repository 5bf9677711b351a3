//! Who serves a name dies, and another does: callers go on, and hear nothing of it.

use std::{
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use ipc::{
    CallError, CallOptions, NodeError, ServiceId, Spin, Status,
    control::{Cause, Reply, Request},
};
use tests::{LONG, Liar, World, proc, serving, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

fn settled(world: &World, members: u32) {
    world.settled(&world.node(Spin::Never), members);
}

#[test]
fn a_standby_goes_on_where_the_one_before_was_killed() {
    let world = World::new(ACTOR);
    let mut servers = world.replicas("echo", 2);
    let (_node, client) = world.client("echo", Spin::Never);
    let (pid, epoch) = serving(&client);
    assert_eq!(pid, servers[0].pid());
    settled(&world, 2);
    servers.remove(0).kill();
    let (pid, later) = serving(&client);
    assert_eq!(pid, servers[0].pid());
    assert!(later > epoch, "{later} {epoch}");
}

#[test]
fn who_watches_another_does_not_wait_until_that_one_is_torn_down() {
    let world = World::new(ACTOR);
    let servers = world.replicas("echo", 2);
    // What the kernel makes of the wish, if anything; and where it tells nobody, there is nothing
    // to compare.
    let own = std::process::id();
    let asked = std::thread::spawn(move || {
        ipc::wake_promptly().expect("nobody forbids it");
        proc::slice(own, nix::unistd::gettid().as_raw().cast_unsigned())
    });
    let asked = asked.join().expect("no panic");
    let vigil = || proc::thread_named(servers[1].pid(), "ipc-vigil");
    wait_until("it stands by", || vigil().is_some());
    let of_vigil = || vigil().and_then(|thread| proc::slice(servers[1].pid(), thread));
    wait_until("its slices are as short", || of_vigil() == asked);
    // Those of the program's own threads are its own business.
    let ordinary = proc::slice(own, own);
    assert_eq!(proc::slice(servers[1].pid(), servers[1].pid()), ordinary);
}

#[test]
fn calls_of_every_kind_hear_nothing_of_a_death() {
    let world = World::new(ACTOR);
    let mut servers = world.replicas("echo", 3);
    let (node, client) = world.client("echo", Spin::Learned);
    settled(&world, 3);
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
    let mut servers = world.replicas("sink", 2);
    let (_node, client) = world.client("sink", Spin::Never);
    settled(&world, 2);
    servers[0].stop();
    for number in 0..40_u64 {
        client.send(&number.to_le_bytes(), CallOptions::default()).expect("there is room");
    }
    servers.remove(0).kill();
    let counted = client.call(b"!count", LONG).expect("answered");
    assert_eq!(counted, b"40 0");
}

#[test]
fn what_has_no_room_at_the_next_is_sent_on_though_nobody_sends_anything_more() {
    let world = World::new(ACTOR);
    let mut servers = world.replicas("sink", 2);
    let (node, client) = world.client("sink", Spin::Never);
    settled(&world, 2);
    servers[0].stop();
    // In bulk memory there is room for them; what is kept for the next goes through its ring.
    let large = |number: u64| [&number.to_le_bytes(), &tests::pattern(30_000)[..]].concat();
    for number in 0..3 {
        client.send(&large(number), CallOptions::default()).expect("there is room");
    }
    servers.remove(0).kill();
    let other = node.client(client.dest()).expect("a channel");
    wait_until("all have come", || other.call(b"!count", LONG).expect("answered") == b"3 0");
    let mut last = world.replicas("sink", 1);
    settled(&world, 2);
    servers[0].stop();
    let waiting: Vec<_> =
        (3..6).map(|number| client.start(&large(number), LONG).expect("there is room")).collect();
    servers.remove(0).kill();
    for (number, call) in (3..6).zip(waiting) {
        assert!(call.wait().expect("answered") == large(number));
    }
    drop(last.pop());
}

#[test]
fn two_deaths_at_once_are_one_to_callers() {
    let world = World::new(ACTOR);
    let mut servers = world.replicas("echo", 3);
    let (_node, client) = world.client("echo", Spin::Never);
    let (_, epoch) = serving(&client);
    settled(&world, 3);
    servers[1].stop();
    servers.remove(0).kill();
    // The next is as good as dead while it holds what was sent to it.
    let waiting = client.start(b"hello", LONG).expect("sent");
    servers.remove(0).kill();
    assert_eq!(waiting.wait().expect("answered"), b"hello");
    let (pid, later) = serving(&client);
    assert_eq!(pid, servers[0].pid());
    assert!(later > epoch);
}

#[test]
fn what_was_taken_and_may_not_be_repeated_is_doubtful() {
    let world = World::new(ACTOR);
    let mut first = world.server("echo", &["spin=never"]);
    let _second = world.server("echo", &["spin=never"]);
    let (_node, client) = world.client("echo", Spin::Never);
    settled(&world, 2);
    let held = client.start(b"!hold", LONG).expect("sent");
    first.hear("held");
    first.stop();
    let waiting = client.start(b"hello", LONG).expect("sent");
    first.kill();
    let ended = held.wait();
    assert!(matches!(ended, Err(CallError::PeerDied { taken: true })), "{ended:?}");
    assert_eq!(waiting.wait().expect("answered"), b"hello");
}

#[test]
fn a_name_changes_hands_and_no_caller_hears_of_it() {
    let world = World::new(ACTOR);
    let servers = world.replicas("echo", 2);
    let (node, client) = world.client("echo", Spin::Learned);
    settled(&world, 2);
    let (done, made) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
                    made.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut epoch = 0;
        for turn in 1..9 {
            let before = made.load(Ordering::Relaxed);
            wait_until("calls are made", || made.load(Ordering::Relaxed) > before + 100);
            node.trigger_failover(client.dest(), None).expect("it changes hands");
            let expected = servers[turn % 2].pid();
            let mut now = 0;
            wait_until("the other one serves", || {
                let (pid, later) = serving(&client);
                now = later;
                pid == expected
            });
            assert!(now > epoch, "{now} {epoch}");
            epoch = now;
        }
        done.store(true, Ordering::Relaxed);
    });
    let changes = node.failovers().expect("a history");
    let triggered = changes.iter().filter(|it| it.cause == Cause::Triggered);
    assert_eq!(triggered.count(), 8, "{changes:?}");
    assert!(changes.iter().all(|it| it.cause != Cause::Hung), "{changes:?}");
    assert!(changes.windows(2).all(|pair| pair[0].epoch < pair[1].epoch), "{changes:?}");
}

#[test]
fn nobody_to_change_hands_with_is_told() {
    let world = World::new(ACTOR);
    let servers = world.replicas("echo", 1);
    let (node, client) = world.client("echo", Spin::Never);
    let refused = |service, backup| match node.trigger_failover(service, backup) {
        Err(NodeError::Refused(status)) => status,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(client.dest(), None), Status::NOT_FOUND);
    assert_eq!(refused(client.dest(), Some(client.dest())), Status::NOT_FOUND);
    assert_eq!(refused(ServiceId::new(u32::MAX), None), Status::NOT_FOUND);
    assert_eq!(serving(&client).0, servers[0].pid());
}

#[test]
fn a_process_that_was_passed_over_changes_nothing_when_it_goes_on() {
    let world = World::new(ACTOR);
    let servers = world.replicas("echo", 2);
    let (node, client) = world.client("echo", Spin::Never);
    settled(&world, 2);
    let (_, epoch) = serving(&client);
    servers[0].stop();
    let waiting = client.start(b"hello", LONG).expect("sent");
    // It does not let go, so it is passed over.
    node.trigger_failover(client.dest(), None).expect("it changes hands");
    assert_eq!(waiting.wait().expect("answered"), b"hello");
    let (pid, later) = serving(&client);
    assert_eq!(pid, servers[1].pid());
    assert!(later > epoch);
    servers[0].go_on();
    for _ in 0..100 {
        assert_eq!(serving(&client), (servers[1].pid(), later));
    }
    let last = *node.failovers().expect("a history").last().expect("one");
    assert_eq!(last.cause, Cause::Hung);
}

/// Its successor finds the store closed: who serves is told that it lets go, before the next does.
#[test]
fn who_lets_go_closes_its_store_before_the_next_opens_it() {
    let world = World::new(ACTOR);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let order = format!("alone store {}", file.path().display());
    let alone = |_| {
        let mut actor = world.actor(&["spin=never"]);
        actor.ask(&order, "serving");
        actor
    };
    let servers: Vec<_> = (0..2).map(alone).collect();
    let (node, client) = world.client("store", Spin::Never);
    settled(&world, 2);
    for round in 0..10 {
        let answer = client.call(b"who", LONG).expect("the store is open");
        let pid = servers[round % 2].pid().to_string();
        assert_eq!(String::from_utf8(answer).expect("text"), pid);
        node.trigger_failover(client.dest(), None).expect("it changes hands");
    }
}

/// A process was passed over while it was frozen, and the runtime that knew it is gone: it is the
/// first to come to the next one, and says that it serves.
#[test]
fn one_that_was_passed_over_is_not_believed_by_the_next_runtime() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let servers = world.replicas("echo", 2);
    let (node, client) = world.client("echo", Spin::Never);
    settled(&world, 2);
    let (_, epoch) = serving(&client);
    servers[0].stop();
    node.trigger_failover(client.dest(), None).expect("it changes hands");
    let (pid, later) = serving(&client);
    assert_eq!(pid, servers[1].pid());
    assert!(later > epoch);
    runtime.kill();
    // Who serves cannot come back before it does.
    servers[1].stop();
    servers[0].go_on();
    let _runtime = world.runtime();
    let node = world.node(Spin::Never);
    wait_until("it is back", || node.list().is_ok_and(|it| it.len() == 1));
    let name = node.discover("echo").expect("served");
    let standing = |node: &ipc::Node| node.failover_standing(name).expect("it stands");
    // It has come, and is told to let go; the name waits for who serves.
    assert_eq!(standing(&node).epoch & 0xFFFF_FFFF, later);
    assert_eq!(standing(&node).serves, ServiceId::NONE);
    servers[1].go_on();
    wait_until("who serves is back", || standing(&node).serves != ServiceId::NONE);
    let (pid, last) = serving(&client);
    assert!(last >= later, "{last} {later}");
    // At its own epoch, unless it was away for as long as a runtime waits.
    assert!(pid == servers[1].pid() || last > later);
    assert_eq!(standing(&node).epoch & 0xFFFF_FFFF, last);
}

#[test]
fn a_standby_needs_no_runtime_to_go_on() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let mut servers = world.replicas("echo", 3);
    let (_node, client) = world.client("echo", Spin::Never);
    let (_, epoch) = serving(&client);
    settled(&world, 3);
    runtime.kill();
    servers.remove(0).kill();
    let (pid, later) = serving(&client);
    assert_eq!(pid, servers[0].pid());
    assert!(later > epoch);
    // The next one hears of it, and gives no epoch twice.
    let _runtime = world.runtime();
    let node = world.node(Spin::Never);
    let first = || {
        let entries = node.list().expect("a list");
        (entries.len() == 2).then(|| entries.iter().find(|it| it.rank == 0).map(|it| it.pid))
    };
    wait_until("both are back in their order", || first().flatten() == Some(servers[0].pid()));
    assert_eq!(serving(&client), (servers[0].pid(), later));
    servers.remove(0).kill();
    let (pid, last) = serving(&client);
    assert_eq!(pid, servers[0].pid());
    assert!(last > later);
}

#[test]
fn who_comes_back_stands_by_as_the_last() {
    let world = World::new(ACTOR);
    let mut servers = world.replicas("echo", 2);
    let (node, client) = world.client("echo", Spin::Never);
    for _ in 0..4 {
        settled(&world, 2);
        servers.remove(0).kill();
        assert_eq!(serving(&client).0, servers[0].pid());
        wait_until("the dead is forgotten", || node.list().expect("a list").len() == 1);
        servers.extend(world.replicas("echo", 1));
        let entries = node.list().expect("a list");
        let rank = |pid| entries.iter().find(|it| it.pid == pid).map(|it| it.rank);
        assert_eq!(rank(servers[0].pid()), Some(0));
        assert_eq!(rank(servers[1].pid()), Some(1));
    }
}

#[test]
fn a_standby_that_lies_is_turned_out_and_nobody_notices() {
    let world = World::new(ACTOR);
    let servers = world.replicas("echo", 1);
    let (node, client) = world.client("echo", Spin::Never);
    let before = serving(&client);
    let liar = Liar::new(&world);
    let (instance, epoch) = liar.stand_by("echo");
    liar.say(&Request::Promoted { instance, epoch: epoch + 1 });
    let mut last = None;
    while let Some(reply) = liar.hear() {
        assert!(!matches!(reply, Reply::Promote { .. }), "{reply:?}");
        last = Some(reply);
    }
    assert_eq!(last, Some(Reply::Refused(Status::STALE)));
    assert_eq!(serving(&client), before);
    assert_eq!(before.0, servers[0].pid());
    let entries = node.list().expect("a list");
    assert_eq!(entries.len(), 1, "{entries:?}");
}

#[test]
fn what_a_caller_says_of_a_death_counts_for_nothing() {
    let world = World::new(ACTOR);
    let servers = world.replicas("echo", 2);
    let (node, client) = world.client("echo", Spin::Never);
    settled(&world, 2);
    let before = serving(&client);
    let entries = node.list().expect("a list");
    let liar = Liar::new(&world);
    for entry in &entries {
        for epoch in [0, 1, before.1 + 1, u64::MAX] {
            liar.say(&Request::Promoted { instance: entry.instance, epoch });
        }
    }
    // What it asks behind that is answered: it was heard.
    liar.say(&Request::Ping);
    assert!(matches!(liar.hear(), Some(Reply::State { .. })));
    assert_eq!(serving(&client), before);
    assert_eq!(before.0, servers[0].pid());
    assert_eq!(node.list().expect("a list").len(), 2);
}

#[test]
fn what_is_kept_for_a_standby_has_a_limit_and_answers_make_room() {
    const LENGTH: usize = 1 << 20;
    let world = World::new(ACTOR);
    let mut first = world.server("echo", &["spin=never"]);
    let _second = world.server("echo", &["spin=never"]);
    let (_node, client) = world.client("echo", Spin::Never);
    settled(&world, 2);
    let mut payload = vec![b' '; LENGTH];
    payload[..5].copy_from_slice(b"!hold");
    let mut held = Vec::new();
    let refused = loop {
        match client.start(&payload, LONG) {
            Ok(call) => held.push(call),
            Err(error) => break error,
        }
        assert!(held.len() <= 64, "64 MiB are kept");
    };
    assert!(matches!(refused, CallError::Full), "{refused:?}");
    assert_eq!(held.len(), 63, "each takes a bit more than its payload");
    let call = client.call(b"threads keep their own", LONG);
    assert_eq!(call.expect("answered"), b"threads keep their own");
    for _ in &held {
        first.hear("held");
    }
    first.tell("release");
    for call in held {
        assert_eq!(call.wait().expect("answered").len(), LENGTH);
    }
    client.start(b"hello", LONG).expect("there is room").wait().expect("answered");
}
