//! A server's descriptor in a foreign epoll loop: level-triggered, and edge-triggered with one
//! `poll` for each edge. Nothing is lost, and what is idle is quiet.

use std::{cell::Cell, collections::HashMap, time::Duration};

use ipc::{Request, Server, Spin};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tests::World;

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
