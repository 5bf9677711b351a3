//! A server's descriptor in a foreign epoll loop: level-triggered, and edge-triggered with one
//! `poll` for each edge. Nothing is lost, and what is idle is quiet.

use std::{
    cell::Cell,
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use ipc::{
    Node, RegionOptions, Request, Server, Spin,
    bus::{PublishOptions, SubscribeOptions},
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tests::{World, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

const LEVEL: EpollFlags = EpollFlags::EPOLLIN;
const EDGE: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLET);

/// A foreign loop around a server.
struct Foreign<'a> {
    epoll: Epoll,
    server: &'a Server,
    wakeups: Cell<u64>,
}

impl<'a> Foreign<'a> {
    fn around(server: &'a Server, flags: EpollFlags) -> Foreign<'a> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll instance");
        epoll.add(server.fd(), EpollEvent::new(flags, 0)).expect("watched");
        Foreign { epoll, server, wakeups: Cell::new(0) }
    }

    fn is_woken(&self, timeout: EpollTimeout) -> bool {
        self.epoll.wait(&mut [EpollEvent::empty()], timeout).expect("waited") == 1
    }

    /// Sleeps until the descriptor is readable, and polls once.
    fn turn(&self, handler: &mut dyn FnMut(Request<'_>)) -> usize {
        assert!(self.is_woken(EpollTimeout::NONE));
        self.wakeups.set(self.wakeups.get() + 1);
        self.server.poll(Some(Duration::ZERO), handler).expect("polled")
    }

    /// After everything was served: one wake-up for nothing, at most, and then silence.
    fn assert_quiet(&self) {
        let nothing = &mut |_: Request<'_>| panic!("all was served");
        if self.is_woken(EpollTimeout::ZERO) {
            assert_eq!(self.server.poll(Some(Duration::ZERO), nothing).expect("polled"), 0);
        }
        assert!(!self.is_woken(EpollTimeout::ZERO), "it stays readable for nothing");
    }
}

#[test]
fn a_hundred_thousand_messages_of_two_clients_come_through_a_foreign_loop() {
    const EACH: u64 = 25_000;
    let world = World::new(ACTOR);
    let node = world.node(Spin::Learned);
    let server = node.server().expect("a server");
    server.register("foreign", 0).expect("registered");
    let mut clients = [world.actor(&[]), world.actor(&[])];
    for flags in [LEVEL, EDGE] {
        let foreign = Foreign::around(&server, flags);
        for client in &mut clients {
            client.tell(&format!("number foreign {EACH} -"));
        }
        let mut seen: HashMap<u32, u64> = HashMap::new();
        let mut count = 0;
        while count < 2 * EACH {
            let handled = foreign.turn(&mut |request| {
                let number = request.payload()[..8].try_into().expect("8 bytes");
                let number = u64::from_le_bytes(number);
                let next = seen.entry(request.source().get()).or_insert(number);
                assert_eq!(number, *next, "one is lost, or out of order");
                *next += 1;
            });
            count += handled as u64;
        }
        for client in &mut clients {
            assert_eq!(client.hear("numbered"), format!("{EACH} IPC_OK"));
        }
        foreign.assert_quiet();
    }
}

/// Each call comes when the loop is about to sleep for the one before.
#[test]
fn calls_that_come_while_the_loop_goes_to_sleep_wake_it() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Learned);
    let server = node.server().expect("a server");
    server.register("foreign", 0).expect("registered");
    let mut clients = [world.actor(&[]), world.actor(&["spin=never"])];
    for flags in [LEVEL, EDGE] {
        let foreign = Foreign::around(&server, flags);
        for client in &mut clients {
            client.tell("calls foreign 1 3000 8");
        }
        let mut handled = 0;
        while handled < 2 * 3000 {
            handled +=
                foreign.turn(&mut |request| request.reply(request.payload()).expect("it waits"));
        }
        for client in &mut clients {
            client.hear("called");
        }
        foreign.assert_quiet();
    }
}

#[test]
fn the_descriptor_stays_readable_while_work_is_left() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Learned);
    let server = node.server().expect("a server");
    server.register("foreign", 0).expect("registered");
    let mut client = world.actor(&["cells=1024", "slab=131072"]);
    for flags in [LEVEL, EDGE] {
        let foreign = Foreign::around(&server, flags);
        client.tell("number foreign 500 -");
        // The first ones find the channel unarmed or armed; the others come while nobody polls.
        assert_eq!(client.hear("numbered"), "500 IPC_OK");
        let mut handled = 0;
        let mut turns = 0;
        while handled < 500 {
            handled += foreign.turn(&mut |_| {});
            turns += 1;
        }
        assert!(turns > 1, "one batch was all: there was nothing to stay readable for");
        foreign.assert_quiet();
    }
}

/// Runs a loop in a thread, and again after each handler that panics, until it is interrupted.
fn run_on(server: &Server) -> JoinHandle<()> {
    let server = server.clone();
    std::thread::spawn(move || {
        let run = || server.run(|request| request.reply(request.payload()).expect("answered"));
        while catch_unwind(AssertUnwindSafe(run)).is_err() {}
    })
}

/// Ends the loops of these threads.
fn end(node: &Node, threads: [JoinHandle<()>; 2]) {
    let interrupter = node.interrupter();
    while !threads.iter().all(JoinHandle::is_finished) {
        interrupter.fire();
        std::thread::yield_now();
    }
    for thread in threads {
        thread.join().expect("no other panic");
    }
}

#[test]
fn events_behind_a_handler_that_panics_are_handled() {
    let world = World::new(ACTOR);
    let (node, other) = (world.node(Spin::Never), world.node(Spin::Never));
    let server = node.server().expect("a server");
    let handled = Arc::new(AtomicU64::new(0));
    let publisher = other.publisher("shocks", PublishOptions::default()).expect("advertised");
    let publisher = Arc::new(publisher);
    let subscription = node.subscribe("shocks", SubscribeOptions::default()).expect("heard");
    let _handler = server.handle_events(subscription, {
        let (handled, publisher) = (Arc::clone(&handled), Arc::clone(&publisher));
        move |event| {
            event.expect("nothing is lost");
            if handled.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
                // If the other thread leads it cannot hear of this one: it must be told.
                publisher.publish(b"aftershock").expect("published");
                (0..100).for_each(|_| std::thread::yield_now());
                resume_unwind(Box::new("a handler panics"));
            }
        }
    });
    let threads = [run_on(&server), run_on(&server)];
    for round in 1..=50 {
        publisher.publish(b"shock").expect("published");
        wait_until("both are handled", || handled.load(Ordering::SeqCst) == 2 * round);
    }
    end(&node, threads);
}

#[test]
fn versions_behind_a_handler_that_panics_are_handled() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let server = node.server().expect("a server");
    let region = node.create_region(100, &RegionOptions::default()).expect("a region");
    let seen = Arc::new(AtomicU64::new(0));
    let _handler = server.handle_versions(&region, 0, {
        let (seen, region) = (Arc::clone(&seen), region.clone());
        move |version| {
            let version = version.expect("it is there");
            seen.store(version, Ordering::SeqCst);
            if !version.is_multiple_of(2) {
                region.sync().expect("published");
                resume_unwind(Box::new("a handler panics"));
            }
        }
    });
    let threads = [run_on(&server), run_on(&server)];
    for round in 1..=50 {
        region.sync().expect("published");
        wait_until("both are handled", || seen.load(Ordering::SeqCst) == 2 * round);
    }
    end(&node, threads);
}
