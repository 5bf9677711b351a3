//! Many clients in one process, and one that never stops talking.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use ipc::{CallOptions, Client, Config, Node};
use tests::{LONG, pattern};

use crate::say;

/// Nodes with a channel each: to its server, each is a client of its own.
#[derive(Default)]
pub(crate) struct Crowd {
    members: Vec<(Client, Node)>,
}

impl Crowd {
    /// Adds so many, and has each of them answered once.
    pub(crate) fn gather(&mut self, config: &Config, name: &str, count: u32) {
        let greeting = pattern(8);
        for _ in 0..count {
            let node = Node::connect(config).expect("a node");
            let id = node.wait_service(name, None).expect("it comes");
            let client = node.client(id).expect("a channel");
            assert_eq!(client.call(&greeting, LONG).expect("answered"), greeting);
            self.members.push((client, node));
        }
        say(&format!("crowded {}", self.members.len()));
    }

    /// Makes so many calls from each member, which some threads share out among them, in rounds:
    /// every member has made its first call before any makes its second.
    pub(crate) fn call(&self, count: u32, size: usize, threads: usize) {
        let share = self.members.len().div_ceil(threads);
        let mut made = 0;
        std::thread::scope(|scope| {
            let of_share = |members| scope.spawn(move || calls_of(members, count, size));
            let callers: Vec<_> = self.members.chunks(share).map(of_share).collect();
            made = callers.into_iter().map(|it| it.join().expect("all answered")).sum();
        });
        say(&format!("crowd-called {made}"));
    }

    /// Lets all of them go.
    pub(crate) fn disband(&mut self) {
        self.members.clear();
        say("disbanded");
    }
}

fn calls_of(members: &[(Client, Node)], count: u32, size: usize) -> u64 {
    let payload = pattern(size);
    let mut made = 0;
    for _ in 0..count {
        for (client, _) in members {
            assert!(client.call(&payload, LONG).expect("answered") == payload, "it changed");
            made += 1;
        }
    }
    made
}

/// A thread that sends one-way messages as fast as there is room for them.
pub(crate) struct Torrent {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Torrent {
    pub(crate) fn begin(client: Client) -> Torrent {
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut sent = 0_u64;
            while !until.load(Ordering::Relaxed) {
                // Each begins with its number, which the receiver checks.
                client.send(&sent.to_le_bytes(), CallOptions::default()).expect("there is room");
                sent += 1;
            }
            sent
        });
        say("flows");
        Torrent { stop, thread }
    }

    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        say(&format!("ebbed {}", self.thread.join().expect("it sent")));
    }
}
