//! Who serves a name hangs, or is said to: who is passed over for that, and who is not.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use ipc::{
    CallError, FailoverPlan, FailoverStrategy, FailureKind, HealthCheck, Node, ProcessEnd,
    ServiceId, Spin,
    control::{Cause, Reply, Request},
};
use nix::sys::signal::Signal;
use tests::{
    Ipcd, LONG, Liar, World,
    ipcd::{open_to_all, signal},
    proc::has_ended,
    serving, wait_until,
};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");
const PROBE: &str = env!("CARGO_BIN_EXE_probe");

/// The runtime's last change of hands.
fn last(node: &Node) -> ipc::control::Change {
    *node.failovers().expect("a history").last().expect("one")
}

fn configured(node: &Node, service: ServiceId, health: HealthCheck) {
    let strategy = FailoverStrategy::HotStandby;
    let plan = FailoverPlan { service, strategy, health, order: Vec::new() };
    node.configure_failover(&plan).expect("configured");
}

#[test]
fn one_that_is_stopped_is_passed_over_though_nobody_asks_for_it() {
    for spin in [Spin::Never, Spin::Learned] {
        let world = World::new(ACTOR);
        let servers = world.replicas("echo", 2);
        let (node, client) = world.client("echo", spin);
        world.settled(&node, 2);
        let before = serving(&client);
        servers[0].stop();
        let (pid, epoch) = serving(&client);
        assert_eq!(pid, servers[1].pid());
        assert!(epoch > before.1);
        let change = last(&node);
        assert_eq!(change.cause, Cause::Hung);
        assert!(change.detected_us > 0);
        // It goes on, and nothing comes of that; it stands by, and may be wanted again.
        servers[0].go_on();
        for _ in 0..100 {
            assert_eq!(serving(&client), (servers[1].pid(), epoch));
        }
        wait_until("it stands by again", || node.trigger_failover(client.dest(), None).is_ok());
        let (pid, later) = serving(&client);
        assert_eq!(pid, servers[0].pid());
        assert!(later > epoch);
    }
}

#[test]
fn calls_of_every_kind_go_on_when_who_serves_is_stopped() {
    let world = World::new(ACTOR);
    let servers = world.replicas("echo", 2);
    let (node, client) = world.client("echo", Spin::Never);
    world.settled(&node, 2);
    serving(&client);
    servers[0].stop();
    let started = client.start(b"started", LONG).expect("sent");
    let port = node.server().expect("a loop");
    let done = std::sync::Arc::new(AtomicBool::new(false));
    let tell = std::sync::Arc::clone(&done);
    let check = move |outcome: Result<Vec<u8>, CallError>| {
        assert_eq!(outcome.expect("answered"), b"called back");
        tell.store(true, Ordering::SeqCst);
    };
    client.call_async(&port, b"called back", LONG, check).expect("sent");
    // Only the loop waits, and so only the loop can find out.
    let nobody = &mut |_: ipc::Request<'_>| unreachable!("this process serves nobody");
    wait_until("the callback runs", || {
        port.poll(Some(Duration::from_millis(100)), nobody).expect("polled");
        done.load(Ordering::SeqCst)
    });
    assert_eq!(started.wait().expect("answered"), b"started");
    assert_eq!(last(&node).cause, Cause::Hung);
}

#[test]
fn what_a_stopped_service_may_have_taken_is_doubtful() {
    let world = World::new(ACTOR);
    let mut first = world.server("echo", &["spin=never"]);
    let second = world.server("echo", &["spin=never"]);
    let (node, client) = world.client("echo", Spin::Never);
    world.settled(&node, 2);
    let held = client.start(b"!hold", LONG).expect("sent");
    first.hear("held");
    first.stop();
    let ended = held.wait();
    assert!(matches!(ended, Err(CallError::PeerDied { taken: true })), "{ended:?}");
    assert_eq!(serving(&client).0, second.pid());
}

#[test]
fn a_handler_that_runs_for_long_is_left_alone() {
    let world = World::new(ACTOR);
    let servers = [(); 2].map(|()| world.server("echo", &["spin=never"]));
    let (node, client) = world.client("echo", Spin::Never);
    world.settled(&node, 2);
    let before = serving(&client);
    let suspicions = || {
        let standing = node.failover_standing(client.dest()).expect("it stands");
        standing.suspicions
    };
    let seen = suspicions();
    assert_eq!(client.call(b"!work 300", LONG).expect("answered"), b"worked");
    // It was looked into, and found well.
    assert!(suspicions() > seen);
    assert_eq!(serving(&client), before);
    assert_eq!(before.0, servers[0].pid());
    assert_eq!(last(&node).cause, Cause::First);
    // Not so where that was configured. What it had taken is doubtful.
    configured(&node, client.dest(), HealthCheck { busy_ms: 100, ..HealthCheck::default() });
    let ended = client.call(b"!work 300", LONG);
    assert!(matches!(ended, Err(CallError::PeerDied { taken: true })), "{ended:?}");
    assert_eq!(last(&node).cause, Cause::Hung);
    let (pid, later) = serving(&client);
    assert_eq!(pid, servers[1].pid());
    assert!(later > before.1);
}

#[test]
fn a_stop_in_the_middle_of_a_handler_is_found_out() {
    let world = World::new(ACTOR);
    let servers = world.replicas("echo", 2);
    let (node, client) = world.client("echo", Spin::Never);
    world.settled(&node, 2);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| client.call(b"!work 200", LONG));
        let standing = || node.failover_standing(client.dest()).expect("it stands");
        wait_until("it is suspected", || standing().suspicions > 0);
        servers[0].stop();
        assert_eq!(call.join().expect("no panic").expect("answered"), b"worked");
    });
    assert_eq!(serving(&client).0, servers[1].pid());
}

#[test]
fn a_loop_that_does_not_come_round_is_passed_over() {
    let world = World::new(ACTOR);
    // In this process, whose loop runs when it is polled, and not otherwise.
    let silent = world.node(Spin::Never);
    let server = silent.server().expect("a loop");
    let registration = server.register("echo", ipc::control::SERVICE_IDEMPOTENT).expect("served");
    let servers = world.replicas("echo", 1);
    let (node, client) = world.client("echo", Spin::Never);
    configured(&node, client.dest(), HealthCheck::default());
    wait_until("the standby is there", || node.list().expect("a list").len() == 2);
    let (pid, _) = serving(&client);
    assert_eq!(pid, servers[0].pid());
    let change = last(&node);
    assert_eq!((change.cause, change.from), (Cause::Hung, registration.instance));
}

#[test]
fn two_that_see_different_things_go_where_the_runtime_says() {
    let world = World::new(ACTOR);
    let servers = world.replicas("echo", 3);
    let (node, one) = world.client("echo", Spin::Never);
    let (_other, two) = world.client("echo", Spin::Never);
    world.settled(&node, 3);
    let before = serving(&one);
    assert_eq!(serving(&two), before);
    // Only one of them waits while it is stopped; the other has seen nothing.
    servers[0].stop();
    let after = serving(&one);
    servers[0].go_on();
    assert_ne!(after.0, before.0);
    assert_eq!(serving(&two), after);
    assert_eq!(serving(&one), after);
}

#[test]
fn stops_that_end_in_time_are_harmless_and_so_are_those_that_do_not() {
    let world = World::new(ACTOR);
    let servers = world.replicas("echo", 2);
    let (node, client) = world.client("echo", Spin::Learned);
    world.settled(&node, 2);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let calls = scope.spawn(|| {
            let (mut made, mut last) = (0_u64, 0);
            while !done.load(Ordering::Relaxed) {
                let (_, epoch) = serving(&client);
                assert!(epoch >= last, "{epoch} after {last}");
                last = epoch;
                made += 1;
            }
            made
        });
        for round in 0..24_u64 {
            let server = &servers[round as usize % 2];
            server.stop();
            std::thread::sleep(Duration::from_millis(round * 3));
            server.go_on();
        }
        done.store(true, Ordering::Relaxed);
        assert!(calls.join().expect("every call was answered, at ascending epochs") > 0);
    });
}

#[test]
fn who_asks_hears_of_what_failed() {
    let world = World::new(ACTOR);
    let mut servers = world.replicas("echo", 3);
    let (node, client) = world.client("echo", Spin::Never);
    world.settled(&node, 3);
    let entries = node.list().expect("a list");
    let instance = |pid| entries.iter().find(|it| it.pid == pid).expect("listed").instance;
    let ids: Vec<_> = servers.iter().map(|it| instance(it.pid())).collect();
    let detect = |service| node.detect_failure(service).expect("known");
    let well = detect(client.dest());
    assert_eq!((well.kind, well.instance), (FailureKind::None, ids[0]));
    assert!(well.epoch > 0 && well.last_seen_ns > 0);
    servers[2].stop();
    assert_eq!(detect(ids[2]).kind, FailureKind::Hung);
    assert_eq!(detect(ids[1]).kind, FailureKind::None);
    servers.remove(0).kill();
    wait_until("it is forgotten", || node.list().expect("a list").len() == 2);
    let dead = detect(ids[0]);
    assert_eq!((dead.kind, dead.instance), (FailureKind::Crashed, ids[0]));
    assert!(node.detect_failure(ServiceId::new(u32::MAX)).is_err());
}

#[test]
fn a_flood_of_false_suspicions_changes_nothing() {
    let world = World::new(ACTOR);
    let servers = world.replicas("echo", 2);
    let (node, client) = world.client("echo", Spin::Never);
    world.settled(&node, 2);
    let before = serving(&client);
    let entries = node.list().expect("a list");
    // A stranger, and a standby, which has a channel to who serves.
    let liar = Liar::new(&world);
    let standby = Liar::new(&world);
    standby.stand_by("echo");
    for round in 0..500_u64 {
        for entry in &entries {
            for mark in [0, before.1 as u32, u32::MAX] {
                liar.say(&Request::Suspect { instance: entry.instance, mark });
                standby.say(&Request::Suspect { instance: entry.instance, mark });
            }
            // Nor does it answer for others.
            let (instance, number) = (entry.instance, round as u32);
            liar.say(&Request::Pulse { instance, number, busy_us: u64::MAX });
        }
    }
    for liar in [&liar, &standby] {
        liar.say(&Request::Ping);
        while !matches!(liar.hear(), Some(Reply::State { .. } | Reply::Refused(_))) {}
    }
    assert_eq!(serving(&client), before);
    assert_eq!(before.0, servers[0].pid());
    let standing = node.failover_standing(client.dest()).expect("it stands");
    assert_eq!(standing.suspicions, 0, "none had a channel there");
    assert_eq!(last(&node).cause, Cause::First);
}

#[test]
fn asking_over_and_over_changes_nothing() {
    let world = World::new(ACTOR);
    let servers = world.replicas("echo", 2);
    let (node, client) = world.client("echo", Spin::Never);
    world.settled(&node, 2);
    let before = serving(&client);
    let entries = node.list().expect("a list");
    let first = entries.iter().find(|it| it.pid == servers[0].pid()).expect("listed").instance;
    for _ in 0..50 {
        let failure = node.detect_failure(first).expect("known");
        assert_eq!((failure.kind, failure.instance), (FailureKind::None, first));
    }
    assert_eq!(serving(&client), before);
}

#[test]
fn what_was_configured_holds_beyond_a_restart_of_the_runtime() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let servers = world.replicas("echo", 2);
    let (node, client) = world.client("echo", Spin::Never);
    world.settled(&node, 2);
    let entries = node.list().expect("a list");
    let second = entries.iter().find(|it| it.pid == servers[1].pid()).expect("listed").instance;
    let health = HealthCheck { interval_ms: 20, timeout_ms: 30, threshold: 2, busy_ms: 4000 };
    let (service, strategy) = (client.dest(), FailoverStrategy::Priority);
    let plan = FailoverPlan { service, strategy, health, order: vec![second] };
    node.configure_failover(&plan).expect("configured");
    wait_until("the second serves", || serving(&client).0 == servers[1].pid());
    runtime.kill();
    let _runtime = world.runtime();
    let node = world.node(Spin::Never);
    wait_until("both are back", || node.list().is_ok_and(|it| it.len() == 2));
    let name = node.discover("echo").expect("served");
    let standing = node.failover_standing(name).expect("it stands");
    assert_eq!((standing.strategy, standing.health), (strategy, health));
    assert!(standing.configured);
    assert_eq!(serving(&client).0, servers[1].pid());
}

#[test]
fn a_supervised_process_that_is_stopped_is_killed_and_comes_back_as_a_standby() {
    let world = World::without_runtime(ACTOR);
    let service = format!(
        "[service.trio]\nexecutable = \"{PROBE}\"\narguments = [\"serve\", \"trio\"]\n\
         replicas = 3\nbackoff = {{ first = \"1ms\", most = \"1ms\" }}\n\
         [failover.trio]\norder = [\"trio\"]\n\
         health_check = {{ interval = \"10ms\", timeout = \"200ms\" }}\n"
    );
    let _ipcd = Ipcd::start(IPCD, world.directory(), &format!("{service}{}", open_to_all()));
    let node = world.node(Spin::Never);
    let name = node.wait_service("trio", Some(LONG)).expect("served");
    let client = node.client(name).expect("a channel");
    world.settled(&node, 3);
    let standing = node.failover_standing(client.dest()).expect("it stands");
    assert!(standing.configured);
    // What the file says is nobody else's to say.
    let plan = FailoverPlan {
        service: client.dest(),
        strategy: FailoverStrategy::Manual,
        health: HealthCheck::default(),
        order: Vec::new(),
    };
    assert!(node.configure_failover(&plan).is_err());
    let first = client.peer();
    signal(first.pid, Signal::SIGSTOP);
    // What it has not taken is known not to be, since it is dead; what it had is doubtful.
    wait_until("another one answers", || {
        let ended = client.call(b"hello", LONG);
        assert!(matches!(ended, Ok(_) | Err(CallError::PeerDied { taken: true })), "{ended:?}");
        client.peer().pid != first.pid
    });
    wait_until("it is killed", || has_ended(first.pid));
    world.settled(&node, 3);
    let change = node.failovers().expect("a history");
    let change = change.iter().rev().find(|it| it.from == first.id).expect("one");
    assert_eq!(change.cause, Cause::Hung);
    let newest = node.list().expect("a list").into_iter().max_by_key(|it| it.instance);
    assert!(newest.is_some_and(|it| it.rank > 0), "who comes back stands by");
}

#[test]
fn how_a_supervised_process_ended_is_told_to_who_asks() {
    let world = World::without_runtime(ACTOR);
    let service = format!(
        "[service.trio]\nexecutable = \"{PROBE}\"\narguments = [\"serve\", \"trio\"]\n\
         backoff = {{ first = \"1ms\", most = \"1ms\" }}\n"
    );
    let _ipcd = Ipcd::start(IPCD, world.directory(), &format!("{service}{}", open_to_all()));
    let node = world.node(Spin::Never);
    for (request, end) in [
        ("abort", ProcessEnd::Signal(Signal::SIGABRT as u8)),
        ("kill", ProcessEnd::Signal(Signal::SIGKILL as u8)),
        ("exit 7", ProcessEnd::Exit(7)),
    ] {
        let name = node.wait_service("trio", Some(LONG)).expect("served");
        let client = node.client(name).expect("a channel");
        let peer = client.peer();
        match request {
            "kill" => signal(peer.pid, Signal::SIGKILL),
            _ => drop(client.call(request.as_bytes(), LONG)),
        }
        // It may be asked for while it still dies, and is waited for then.
        wait_until("it is seen to have failed", || {
            let failure = node.detect_failure(peer.id).expect("it is remembered");
            let is_over = failure.kind == FailureKind::Crashed;
            assert!(!is_over || failure.end == Some(end), "{request}: {failure:?}");
            is_over
        });
        wait_until("another one serves", || {
            node.list().expect("a list").iter().any(|it| it.instance != peer.id)
        });
    }
}
