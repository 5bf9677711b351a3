//! One test's world: a directory, mostly a runtime in it, and the processes that meet there.

use std::path::Path;

use ipc::{Client, Config, Node, Spin};
use kernel_services::Kernel;

use crate::{Actor, LONG, Watchdog, wait_until};

/// A runtime directory with, or without, a runtime. Watched over.
#[derive(Debug)]
pub struct World {
    program: &'static str,
    _kernel: Option<Kernel>,
    directory: tempfile::TempDir,
    _watchdog: Watchdog,
}

impl World {
    /// Makes a world whose runtime lives in this process. `program` is
    /// `env!("CARGO_BIN_EXE_actor")`.
    pub fn new(program: &'static str) -> World {
        let world = World::without_runtime(program);
        let kernel = Kernel::embedded(world.directory()).expect("a runtime");
        World { _kernel: Some(kernel), ..world }
    }

    /// Makes a world in which [`World::runtime`] is still to be started.
    pub fn without_runtime(program: &'static str) -> World {
        let directory = tempfile::tempdir().expect("a directory");
        World { program, _kernel: None, directory, _watchdog: Watchdog::start() }
    }

    /// The runtime directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a runtime in a process of its own.
    pub fn runtime(&self) -> Actor {
        let mut runtime = Actor::start(&[self.program, "kernel", self.place()]);
        runtime.hear("ready");
        runtime
    }

    /// Starts a process that is a node, and does what it is told; `options` are the actor's.
    pub fn actor(&self, options: &[&str]) -> Actor {
        self.actor_under(&[], options)
    }

    /// Starts such a process by way of another program, which is given its command line.
    pub fn actor_under(&self, wrapper: &[&str], options: &[&str]) -> Actor {
        let command = [wrapper, &[self.program, "node", self.place()], options].concat();
        Actor::start(&command)
    }

    /// Starts a process of another program, which is given the directory, and these arguments.
    pub fn other(&self, program: &str, arguments: &[&str]) -> Actor {
        Actor::start(&[&[program, self.place()], arguments].concat())
    }

    /// Starts a process that serves `name` with one thread.
    pub fn server(&self, name: &str, options: &[&str]) -> Actor {
        let mut server = self.actor(options);
        server.ask(&format!("serve {name} 1"), "serving");
        server
    }

    /// Starts so many processes that serve a name, in this order.
    pub fn replicas(&self, name: &str, count: usize) -> Vec<Actor> {
        let replica = |_| {
            let mut replica = self.actor(&["spin=never"]);
            replica.ask(&format!("replica {name}"), "serving");
            replica
        };
        (0..count).map(replica).collect()
    }

    /// Connects this process.
    pub fn node(&self, spin: Spin) -> Node {
        Node::connect(&self.config(spin)).expect("a node")
    }

    /// Connects this process, and opens a channel to who serves `name`.
    pub fn client(&self, name: &str, spin: Spin) -> (Node, Client) {
        let node = self.node(spin);
        let client = node.client(node.discover(name).expect("served")).expect("a channel");
        (node, client)
    }

    /// Waits until each of so many members of the only name is watched by those behind it, and one
    /// client of the first has its channels to the two behind that.
    pub fn settled(&self, node: &Node, members: u32) {
        wait_until("all have found each other", || self.is_settled(node, members));
    }

    /// Tells whether that is so.
    pub fn is_settled(&self, node: &Node, members: u32) -> bool {
        let entries = node.list().expect("a list");
        let is_found =
            |rank: u32, channels: u32| channels >= members - 1 - rank + u32::from(rank < 3);
        entries.len() as u32 == members && entries.iter().all(|it| is_found(it.rank, it.channels))
    }

    /// A configuration for this world.
    pub fn config(&self, spin: Spin) -> Config {
        Config { runtime_dir: Some(self.directory().to_owned()), spin, ..Config::default() }
    }

    fn place(&self) -> &str {
        self.directory().to_str().expect("temporary directories have plain names")
    }
}

/// Who of the replicas that a client calls answers now, and at which epoch.
pub fn serving(client: &Client) -> (u32, u64) {
    let answer = client.call(b"!serving", LONG).expect("answered");
    let text = String::from_utf8(answer).expect("text");
    let (pid, epoch) = text.split_once(' ').expect("two numbers");
    (pid.parse().expect("a number"), epoch.parse().expect("a number"))
}
