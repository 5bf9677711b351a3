//! A process dies, or leaves: who called it hears so at once, and nobody keeps anything of it.

use std::{
    sync::mpsc::{self, Receiver},
    thread::JoinHandle,
};

use ipc::{CallError, CallOptions, Client, NodeError, Server, Spin, Status};
use tests::{Actor, LONG, World, proc, wait_for, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

type Outcome = Result<Vec<u8>, CallError>;

/// Calls of every kind, all waiting for the same service.
struct Waiting {
    /// The threads that wait in a call each, by their ids.
    threads: Vec<(u32, JoinHandle<Outcome>)>,
    pending: Vec<ipc::Pending>,
    completions: Receiver<Outcome>,
    port: Server,
    callbacks: usize,
}

impl Waiting {
    /// Makes `count` calls of each kind; not one of them has a deadline.
    fn on(client: &Client, port: Server, payload: &'static [u8], count: usize) -> Waiting {
        let threads = (0..count).map(|_| {
            let client = client.clone();
            let (tell, told) = mpsc::channel();
            let thread = std::thread::spawn(move || {
                let thread = nix::unistd::gettid().as_raw();
                tell.send(thread.try_into().expect("positive")).expect("told");
                client.call(payload, CallOptions::default())
            });
            (told.recv().expect("told"), thread)
        });
        let threads = threads.collect();
        let start = |_| client.start(payload, CallOptions::default()).expect("sent");
        let pending = (0..count).map(start).collect();
        let (tell, completions) = mpsc::channel();
        for _ in 0..count {
            let tell = tell.clone();
            let done = move |outcome| tell.send(outcome).expect("told");
            client.call_async(&port, payload, CallOptions::default(), done).expect("sent");
        }
        Waiting { threads, pending, completions, port, callbacks: count }
    }

    /// Waits until its threads sleep.
    fn asleep(self) -> Waiting {
        let is_asleep = |(id, _): &(u32, _)| proc::is_asleep(std::process::id(), *id);
        wait_until("the callers sleep", || self.threads.iter().all(is_asleep));
        self
    }

    /// Waits for the end of all; each must have heard of the death, and rightly whether its
    /// request was taken.
    fn died(self, was_taken: bool) {
        let check = |outcome: Outcome| match outcome {
            Err(CallError::PeerDied { taken }) => assert_eq!(taken, was_taken),
            other => panic!("{other:?}"),
        };
        for (_, thread) in self.threads {
            check(thread.join().expect("no panic"));
        }
        let mut completed = 0;
        while completed < self.callbacks {
            let nothing = &mut |_: ipc::Request<'_>| unreachable!("this process serves nobody");
            completed += self.port.poll(None, nothing).expect("polled");
        }
        assert_eq!(completed, self.callbacks);
        self.completions.try_iter().for_each(check);
        self.pending.into_iter().for_each(|pending| check(pending.wait()));
    }
}

fn hear_held(server: &mut Actor, count: usize) {
    (0..count).for_each(|_| drop(server.hear("held")));
}

#[test]
fn a_killed_server_ends_every_kind_of_wait() {
    for spin in [Spin::Never, Spin::Learned] {
        let world = World::new(ACTOR);
        let mut server = world.server("echo", &[]);
        let (node, client) = world.client("echo", spin);
        let waiting = Waiting::on(&client, node.server().expect("a loop"), b"!hold", 3);
        hear_held(&mut server, 9);
        let waiting = waiting.asleep();
        server.kill();
        waiting.died(true);
        let again = client.call(b"hello", LONG).expect_err("nobody serves");
        assert!(matches!(again.status(), Status::NOT_FOUND | Status::PEER_DIED), "{again:?}");
    }
}

#[test]
fn a_killed_server_ends_a_spinning_call() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &[]);
    let (_node, client) = world.client("echo", Spin::Always);
    let caller = std::thread::spawn(move || client.call(b"!hold", CallOptions::default()));
    server.hear("held");
    server.kill();
    let ended = caller.join().expect("no panic");
    assert!(matches!(ended, Err(CallError::PeerDied { taken: true })), "{ended:?}");
}

#[test]
fn a_loop_that_sleeps_hears_of_the_death() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &[]);
    let (node, client) = world.client("echo", Spin::Never);
    let port = node.server().expect("a loop");
    let (tell, told) = mpsc::channel();
    let done = move |outcome: Result<_, CallError>| tell.send(outcome).expect("told");
    client.call_async(&port, b"!hold", CallOptions::default(), done).expect("sent");
    server.hear("held");
    let (name, id) = mpsc::channel();
    let sleeper = std::thread::spawn(move || {
        name.send(nix::unistd::gettid().as_raw()).expect("told");
        port.poll(None, &mut |_| unreachable!("nobody calls")).expect("polled")
    });
    let thread = id.recv().expect("told").try_into().expect("positive");
    wait_until("the loop sleeps", || proc::is_asleep(std::process::id(), thread));
    server.kill();
    assert_eq!(sleeper.join().expect("no panic"), 1);
    let ended = told.recv().expect("told");
    assert!(matches!(ended, Err(CallError::PeerDied { taken: true })), "{ended:?}");
}

#[test]
fn requests_still_in_the_ring_of_a_dead_server_were_not_taken() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &[]);
    let (node, client) = world.client("echo", Spin::Never);
    let held = Waiting::on(&client, node.server().expect("a loop"), b"!hold", 1);
    let port = held.port.clone();
    hear_held(&mut server, 3);
    server.stop();
    let waiting = Waiting { callbacks: 0, ..Waiting::on(&client, port, b"!hold", 0) };
    let more: Vec<_> =
        (0..5).map(|_| client.start(b"!hold", CallOptions::default()).expect("sent")).collect();
    server.kill();
    held.died(true);
    waiting.died(false);
    for pending in more {
        let ended = pending.wait();
        assert!(matches!(ended, Err(CallError::PeerDied { taken: false })), "{ended:?}");
    }
}

#[test]
fn a_stopped_server_that_is_killed_took_nothing() {
    let world = World::new(ACTOR);
    let server = world.server("echo", &[]);
    let (node, client) = world.client("echo", Spin::Never);
    client.call(b"hello", LONG).expect("answered");
    server.stop();
    let waiting = Waiting::on(&client, node.server().expect("a loop"), b"hello", 4).asleep();
    server.kill();
    waiting.died(false);
}

#[test]
fn a_sender_that_waits_for_room_hears_of_the_death() {
    let world = World::new(ACTOR);
    let server = world.server("echo", &[]);
    let (_node, client) = world.client("echo", Spin::Never);
    server.stop();
    while client.send(b"x", CallOptions::timeout(std::time::Duration::ZERO)).is_ok() {}
    let (tell, told) = mpsc::channel();
    let sender = std::thread::spawn(move || {
        tell.send(nix::unistd::gettid().as_raw()).expect("told");
        client.send(b"x", CallOptions::default())
    });
    let thread = told.recv().expect("told").try_into().expect("positive");
    wait_until("the sender sleeps", || proc::is_asleep(std::process::id(), thread));
    server.kill();
    let ended = sender.join().expect("no panic");
    assert!(matches!(ended, Err(CallError::PeerDied { taken: false })), "{ended:?}");
}

#[test]
fn another_program_in_the_same_process_is_a_death() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &[]);
    let (node, client) = world.client("echo", Spin::Never);
    let waiting = Waiting::on(&client, node.server().expect("a loop"), b"!hold", 2);
    hear_held(&mut server, 6);
    server.ask("exec", "idle");
    waiting.died(true);
    let gone = node.discover("echo");
    assert!(matches!(gone, Err(NodeError::Refused(Status::NOT_FOUND))), "{gone:?}");
}

#[test]
fn killed_clients_leave_nothing_in_server_and_runtime() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let server = world.server("echo", &[]);
    let mut steady = world.actor(&[]);
    steady.ask("calls echo 1 10 8,1000", "called");
    let held = || (proc::holdings(server.pid()), proc::holdings(runtime.pid()));
    let mut baseline = None;
    for round in 0..10 {
        let mut victim = world.actor(&[]);
        victim.ask("calls echo 2 5 8,1000,50000", "called");
        // Answers that it will never take.
        victim.ask("start echo 8 !grow 100000", "started");
        steady.ask("calls echo 1 10 8", "called");
        if round % 2 == 0 {
            victim.stop();
        }
        victim.kill();
        match baseline {
            // The first one may have made what stays: threads, tables.
            None => {
                let one = 2;
                wait_for("the lanes are gone", &one, || held().0.lanes);
                wait_for("the runtime let go", &0, || held().1.lanes);
                steady.ask("calls echo 1 10 8", "called");
                baseline = Some(held());
            }
            Some(baseline) => wait_for("it is as before", &baseline, held),
        }
    }
    steady.ask("calls echo 1 10 8", "called");
}

#[test]
fn fifty_servers_die_and_the_client_finds_the_next_by_the_same_id() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let mut client = world.actor(&["spin=never"]);
    let mut names = Vec::new();
    let mut baseline = [client.pid(), runtime.pid()].map(proc::holdings);
    for round in 0..50 {
        let mut server = world.actor(&["spin=never"]);
        let serving = server.ask("serve echo 1", "serving");
        names.push(serving.split(' ').nth(1).expect("the name's id").to_owned());
        assert_eq!(client.ask("ask echo 30000 hello", "answer"), "hello");
        client.ask("start echo 3 !hold", "started");
        hear_held(&mut server, 3);
        server.kill();
        assert_eq!(client.ask("collect", "collected"), "IPC_EMAYBE=3");
        if round == 1 {
            // The last death may not be digested: from here on it can only be less.
            baseline = [client.pid(), runtime.pid()].map(proc::holdings);
        }
    }
    names.dedup();
    assert_eq!(names.len(), 1, "{names:?}");
    for (pid, baseline) in [client.pid(), runtime.pid()].into_iter().zip(baseline) {
        let is_within = || proc::holdings(pid).is_within(&baseline);
        wait_until("it holds no more than after the second", is_within);
    }
}

#[test]
fn unregistering_closes_the_channels_and_leaves_the_process() {
    let world = World::new(ACTOR);
    let mut server = world.actor(&[]);
    let serving = server.ask("serve echo 1", "serving");
    let instance = serving.split(' ').next().expect("an id").parse().expect("a number");
    let (node, by_name) = world.client("echo", Spin::Never);
    let by_instance = node.client(ipc::ServiceId::new(instance)).expect("a channel");
    let waiting = Waiting::on(&by_name, node.server().expect("a loop"), b"!hold", 2).asleep();
    hear_held(&mut server, 6);
    server.ask("unserve", "unserved");
    waiting.died(true);
    let gone = by_name.call(b"x", LONG).expect_err("nobody serves");
    assert!(matches!(gone.status(), Status::NOT_FOUND), "{gone:?}");
    let gone = by_instance.call(b"x", LONG).expect_err("it does not come back");
    assert!(matches!(gone, CallError::PeerDied { taken: false }), "{gone:?}");
    server.ask("serve echo 0", "serving");
    assert_eq!(by_name.call(b"x", LONG).expect("served again"), b"x");
    let gone = by_instance.call(b"x", LONG).expect_err("ids are not given twice");
    assert!(matches!(gone, CallError::PeerDied { taken: false }), "{gone:?}");
}

#[test]
fn a_server_that_ends_in_order_ends_the_calls_that_it_holds() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &[]);
    let (node, client) = world.client("echo", Spin::Never);
    let waiting = Waiting::on(&client, node.server().expect("a loop"), b"!hold", 2).asleep();
    hear_held(&mut server, 6);
    server.quit();
    waiting.died(true);
}

#[test]
fn a_forked_child_gets_typed_errors_and_does_not_disturb_its_parent() {
    let world = World::new(ACTOR);
    let _server = world.server("echo", &[]);
    let mut parent = world.actor(&[]);
    parent.ask("serve parent 1", "serving");
    let mut caller = world.actor(&[]);
    caller.ask("calls parent 1 10 8", "called");
    let status = parent.ask("fork echo", "forked");
    let said = parent.heard("child");
    assert!(status.starts_with("Exited") && status.ends_with(", 0)"), "{status}: {said:?}");
    assert_eq!(parent.hear("anew"), "answer hello");
    let others = ["child is_forked true", "child cancel false", "child bulk 0"];
    let is_typed = |line: &String| line.ends_with(" IPC_EFORK") || others.contains(&line.as_str());
    let (typed, wrong): (Vec<_>, Vec<_>) = said.into_iter().partition(is_typed);
    // What the parent had goes on: its call, its channels, its name, its place in the runtime.
    assert_eq!(parent.ask("collect", "collected"), "IPC_OK=1");
    parent.ask("calls echo 1 10 8,5000", "called");
    caller.ask("calls parent 1 10 8", "called");
    assert_ne!(parent.ask("find echo", "found"), "IPC_ENOENT");
    let (_node, client) = world.client("parent", Spin::Never);
    assert_eq!(client.call(b"x", LONG).expect("answered"), b"x");
    assert_eq!(wrong, Vec::<String>::new(), "these ought to be IPC_EFORK");
    assert_eq!(typed.len(), 21, "{typed:?}");
}
