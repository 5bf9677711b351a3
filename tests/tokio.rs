//! Serving and calling in tasks: what is promised of `ipc::tokio`, with real processes.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use ipc::{CallError, CallOptions, Client, Config, Node, Request, Server, Spin};
use tests::{Actor, LONG, World, pattern};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

type Outcome = Result<Vec<u8>, CallError>;

/// A runtime with so many threads, or with this one only, for 0. It has no timers.
fn runtime(threads: usize) -> Runtime {
    let built = match threads {
        0 => Builder::new_current_thread().enable_io().build(),
        threads => Builder::new_multi_thread().worker_threads(threads).enable_io().build(),
    };
    built.expect("a runtime")
}

/// One client of "echo", and a task with its loop, which begins anew whenever it is stopped.
struct Caller {
    runtime: Runtime,
    node: Node,
    server: Server,
    client: Client,
    /// Calls that were made and had to wait.
    begun: Arc<AtomicUsize>,
}

impl Caller {
    fn of(world: &World, threads: usize, change: impl FnOnce(&mut Config)) -> Caller {
        let mut config = world.config(Spin::Learned);
        change(&mut config);
        let node = Node::connect(&config).expect("a node");
        let client = node.client(node.discover("echo").expect("served")).expect("a channel");
        let server = node.server().expect("a loop");
        let runtime = runtime(threads);
        let port = server.clone();
        runtime.spawn(async move {
            let nobody = |_: Request<'_>| unreachable!("this process serves nobody");
            while let Err(error) = ipc::tokio::serve(&port, nobody).await {
                assert!(matches!(error, CallError::Canceled), "{error}");
            }
        });
        Caller { runtime, node, server, client, begun: Arc::default() }
    }

    fn call(&self, payload: Vec<u8>, options: impl Into<CallOptions>) -> JoinHandle<Outcome> {
        let (server, client, options) = (self.server.clone(), self.client.clone(), options.into());
        let begun = Arc::clone(&self.begun);
        self.runtime.spawn(async move {
            let mut call = pin!(ipc::tokio::call(&server, &client, &payload, options));
            let mut polled = false;
            poll_fn(|context| {
                let outcome = call.as_mut().poll(context);
                begun.fetch_add(usize::from(!polled && outcome.is_pending()), Ordering::Relaxed);
                polled = true;
                outcome
            })
            .await
        })
    }

    /// Waits until so many calls in all were made and had to wait.
    fn begun(&self, count: usize) {
        self.runtime.block_on(async {
            while self.begun.load(Ordering::Relaxed) < count {
                tokio::task::yield_now().await;
            }
        });
    }

    fn wait<T>(&self, task: JoinHandle<T>) -> T {
        self.runtime.block_on(task).expect("no panic")
    }

    /// Withdraws a call.
    fn abort(&self, call: JoinHandle<Outcome>) {
        call.abort();
        assert!(self.runtime.block_on(call).expect_err("aborted").is_cancelled());
    }

    /// Waits until the service has said so many times that it holds a request; tasks go on.
    fn held(&self, mut server: Actor, count: usize) -> Actor {
        self.wait(self.runtime.spawn_blocking(move || {
            (0..count).for_each(|_| _ = server.hear("held"));
            server
        }))
    }
}

/// Payloads that are all different, and no commands to the service.
fn numbered(count: usize, size: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..count).map(move |n| {
        let mut payload = pattern(size.max(8));
        payload[..8].copy_from_slice(&(n as u64).to_be_bytes());
        payload
    })
}

#[test]
fn a_thousand_calls_of_one_client_are_under_way_at_once() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &[]);
    for threads in [0, 2] {
        let caller = Caller::of(&world, threads, |config| config.outstanding = 1024);
        let calls: Vec<_> = (0..1000).map(|_| caller.call(b"!hold".to_vec(), LONG)).collect();
        server = caller.held(server, 1000);
        server.tell("release");
        for call in calls {
            assert_eq!(caller.wait(call).expect("answered"), b"!hold");
        }
    }
}

#[test]
fn calls_without_a_slot_or_room_wait_in_line_and_come_back_as_they_were() {
    let world = World::new(ACTOR);
    let mut server = world.actor(&[]);
    server.ask("tasks-serve echo", "serving");
    for (threads, outstanding, count, size) in
        [(0, 256, 1000, 8), (2, 256, 1000, 1000), (0, 4, 300, 3000), (2, 16, 100, 40_000)]
    {
        let caller = Caller::of(&world, threads, |config| config.outstanding = outstanding);
        let calls: Vec<_> =
            numbered(count, size).map(|payload| caller.call(payload, LONG)).collect();
        for (call, payload) in calls.into_iter().zip(numbered(count, size)) {
            assert!(caller.wait(call).expect("answered") == payload, "{size} bytes changed");
        }
    }
}

#[test]
fn messages_larger_than_the_ring_go_through_it_in_parts() {
    let world = World::new(ACTOR);
    let _server = world.server("echo", &["bulk=0"]);
    for threads in [0, 2] {
        let caller = Caller::of(&world, threads, |config| config.max_bulk = 0);
        let calls: Vec<_> =
            numbered(8, 500_000).map(|payload| caller.call(payload, LONG)).collect();
        for (call, payload) in calls.into_iter().zip(numbered(8, 500_000)) {
            assert!(caller.wait(call).expect("answered") == payload, "it changed");
        }
    }
}

#[test]
fn a_call_that_is_dropped_is_withdrawn() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &[]);
    for threads in [0, 2] {
        let caller = Caller::of(&world, threads, |config| config.outstanding = 1);
        let first = caller.call(b"!hold".to_vec(), None);
        server = caller.held(server, 1);
        // In line, since there is one slot.
        let second = caller.call(b"!hold".to_vec(), None);
        caller.begun(2);
        let third = caller.call(b"hello".to_vec(), LONG);
        caller.begun(3);
        caller.abort(second);
        assert!(!third.is_finished());
        caller.abort(first);
        assert_eq!(caller.wait(third).expect("the slot is free"), b"hello");
        // The one that was in line never came there.
        server.ask("find echo", "found");
        assert_eq!(server.heard("held"), Vec::<String>::new());
    }
}

#[test]
fn a_deadline_ends_a_call_that_is_held_and_one_that_waits_in_line() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &[]);
    for threads in [0, 2] {
        let caller = Caller::of(&world, threads, |config| config.outstanding = 1);
        let held = caller.call(b"!hold".to_vec(), None);
        server = caller.held(server, 1);
        let lined = caller.call(b"x".to_vec(), Duration::from_millis(20));
        assert!(matches!(caller.wait(lined), Err(CallError::TimedOut)));
        caller.abort(held);
        // It may be late, and then is not held at all.
        let held = caller.call(b"!hold".to_vec(), Duration::from_millis(20));
        assert!(matches!(caller.wait(held), Err(CallError::TimedOut)));
        server.ask("find echo", "found");
        let _ = server.heard("held");
    }
}

/// The ring is full and the service stopped: that blocks no thread of the runtime.
#[test]
fn a_service_that_takes_nothing_blocks_nobody() {
    let world = World::new(ACTOR);
    let server = world.server("echo", &[]);
    for threads in [0, 1] {
        let caller = Caller::of(&world, threads, |_| {});
        server.stop();
        let late: Vec<_> = numbered(200, 2000)
            .map(|payload| caller.call(payload, Duration::from_millis(50)))
            .collect();
        let patient: Vec<_> =
            numbered(100, 2000).map(|payload| caller.call(payload, LONG)).collect();
        for call in late {
            assert!(matches!(caller.wait(call), Err(CallError::TimedOut)));
        }
        assert!(patient.iter().all(|call| !call.is_finished()));
        server.go_on();
        for (call, payload) in patient.into_iter().zip(numbered(100, 2000)) {
            assert!(caller.wait(call).expect("answered") == payload, "it changed");
        }
    }
}

#[test]
fn a_killed_server_ends_the_calls_and_the_next_one_is_found() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &[]);
    for threads in [0, 2] {
        let caller = Caller::of(&world, threads, |config| config.outstanding = 4);
        let held: Vec<_> = (0..4).map(|_| caller.call(b"!hold".to_vec(), None)).collect();
        server = caller.held(server, 4);
        let lined: Vec<_> = (0..100).map(|_| caller.call(b"x".to_vec(), None)).collect();
        caller.begun(104);
        server.kill();
        for (calls, was_taken) in [(held, true), (lined, false)] {
            for call in calls {
                match caller.wait(call) {
                    Err(CallError::PeerDied { taken }) => assert_eq!(taken, was_taken),
                    other => panic!("{other:?}"),
                }
            }
        }
        // Nobody serves it: all hear so. Then somebody does, and one of them opens the channel.
        let in_vain: Vec<_> = (0..100).map(|_| caller.call(b"x".to_vec(), LONG)).collect();
        for call in in_vain {
            let error = caller.wait(call).expect_err("nobody serves");
            assert_eq!(error.status(), ipc::Status::NOT_FOUND);
        }
        server = world.server("echo", &[]);
        let calls: Vec<_> = numbered(1000, 8).map(|payload| caller.call(payload, LONG)).collect();
        for (call, payload) in calls.into_iter().zip(numbered(1000, 8)) {
            assert_eq!(caller.wait(call).expect("served again"), payload);
        }
    }
}

#[test]
fn a_stop_ends_every_loop_and_the_next_one_goes_on() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &[]);
    for threads in [0, 2] {
        let caller = Caller::of(&world, threads, |_| {});
        let held = caller.call(b"!hold".to_vec(), LONG);
        server = caller.held(server, 1);
        let port = caller.server.clone();
        let looping = async move { ipc::tokio::serve(&port, |_| {}).await };
        let looping = caller.runtime.spawn(looping);
        // It may not have begun: then it does not hear of the stops before.
        while !looping.is_finished() {
            caller.node.interrupter().fire();
            caller.runtime.block_on(tokio::task::yield_now());
        }
        assert!(matches!(caller.wait(looping), Err(CallError::Canceled)));
        server.tell("release");
        assert_eq!(caller.wait(held).expect("answered"), b"!hold");
    }
}

#[test]
fn a_loop_may_be_dropped_and_another_goes_on_where_it_was() {
    const CALLS: u32 = 2 * 2 * 2 * 1000;
    let world = World::new(ACTOR);
    let node = world.node(Spin::Learned);
    let server = node.server().expect("a server");
    server.register("dropped", 0).expect("registered");
    let mut clients = [world.actor(&[]), world.actor(&[])];
    for client in &mut clients {
        client.tell("calls dropped 2 1000 8,100");
    }
    let handled = Cell::new(0);
    runtime(0).block_on(async {
        let mut loops = 0;
        while handled.get() < CALLS {
            let mut serving = pin!(ipc::tokio::serve(&server, |request| {
                handled.set(handled.get() + 1);
                request.reply(request.payload()).expect("it waits");
            }));
            loops += 1;
            let mut polls = 1 + loops % 5;
            poll_fn(|context| {
                assert!(serving.as_mut().poll(context).is_pending(), "nobody stops it");
                polls -= 1;
                let is_over = polls == 0 || handled.get() == CALLS;
                if is_over { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    });
    for client in &mut clients {
        client.hear("called");
    }
}

/// Threads and tasks share a channel: whoever leads, everybody's answers are found.
#[test]
fn threads_and_tasks_call_over_one_channel() {
    let world = World::new(ACTOR);
    let _server = world.server("echo", &[]);
    let caller = Caller::of(&world, 2, |config| config.outstanding = 8);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for payload in numbered(1000, 100) {
                    match caller.client.call(&payload, LONG) {
                        Ok(answer) => assert!(answer == payload, "it changed"),
                        // Tasks took all slots.
                        Err(error) => assert!(matches!(error, CallError::Full), "{error:?}"),
                    }
                }
            });
        }
        let calls: Vec<_> = numbered(2000, 100).map(|it| caller.call(it, LONG)).collect();
        for (call, payload) in calls.into_iter().zip(numbered(2000, 100)) {
            assert!(caller.wait(call).expect("answered") == payload, "it changed");
        }
    });
}
