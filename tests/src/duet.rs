//! Two supervised services that call each other at full speed, while `ipcd` dies and comes back.

use std::{
    fmt::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use ipc::{Client, Node, Spin};

use crate::{Ipcd, LONG, World, proc, wait_until};

/// The two.
pub const CALLERS: [&str; 2] = ["left", "right"];
/// Three processes that serve one name.
pub const TRIO: [&str; 3] = ["trio#1", "trio#2", "trio#3"];

/// The programs of the tests' own package, which only its tests know the places of.
#[derive(Clone, Copy, Debug)]
pub struct Programs {
    /// The runtime.
    pub ipcd: &'static str,
    /// The services.
    pub probe: &'static str,
    /// Any other process.
    pub actor: &'static str,
}

/// Such a system, and what of it must stay as it is.
#[derive(Debug)]
pub struct Duet {
    /// Its directory, and what else is in it.
    pub world: World,
    programs: Programs,
    command: Vec<String>,
    clients: [Client; 2],
    _node: Node,
    pids: Vec<u32>,
    served: Vec<Served>,
}

/// A name's id, and the instances that serve it, by rank.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Served {
    name: u32,
    instances: Vec<u32>,
}

impl Duet {
    /// Starts the system, with the services of `more` beside. `command` comes before the name of
    /// the runtime's program.
    pub fn start(programs: Programs, command: &[&str], more: &[&str]) -> (Duet, Ipcd) {
        let world = World::without_runtime(programs.actor);
        let mut node = String::from("[[rule]]\nfrom = \"any\"\nto = \"any\"\nallow = \"all\"\n");
        let mut services = vec![
            ("left", "[\"duet\", \"left\", \"right\"]", 1),
            ("right", "[\"duet\", \"right\", \"left\"]", 1),
            ("trio", "[\"serve\", \"trio\"]", 3),
        ];
        let others: Vec<String> =
            more.iter().map(|name| format!("[\"serve\", \"{name}\"]")).collect();
        services.extend(more.iter().zip(&others).map(|(name, words)| (*name, words.as_str(), 1)));
        for (name, arguments, replicas) in services {
            let program = program(world.directory(), name);
            symlink(programs.probe, &program).expect("a link");
            let program = program.display();
            let _ = write!(
                node,
                "[service.{name}]\nexecutable = \"{program}\"\narguments = {arguments}\n\
                 replicas = {replicas}\nbackoff = {{ first = \"1ms\", most = \"1ms\" }}\n"
            );
        }
        crate::ipcd::write(world.directory(), &node);
        let command = [command, &[programs.ipcd]].concat();
        let ipcd = Ipcd::by(&command, world.directory());
        let command = command.into_iter().map(str::to_owned).collect();
        for name in CALLERS.iter().chain(&TRIO).chain(more) {
            ipcd.wait(name, "ready");
        }
        let the_node = world.node(Spin::Never);
        let clients = CALLERS.map(|name| {
            let id = the_node.discover(name).expect("served");
            the_node.client(id).expect("a channel")
        });
        let pids = CALLERS.iter().chain(&TRIO).map(|name| ipcd.pid_of(name)).collect();
        let served = Vec::new();
        let mut duet = Duet { world, programs, command, clients, _node: the_node, pids, served };
        duet.served = duet.served();
        duet.flow();
        (duet, ipcd)
    }

    /// Starts a runtime for it once more.
    pub fn again(&self) -> Ipcd {
        Ipcd::by(&self.command(), self.world.directory())
    }

    /// The same, where it may not come so far as to be ready.
    pub fn again_unready(&self) -> Ipcd {
        Ipcd::unready(&self.command(), self.world.directory())
    }

    fn command(&self) -> Vec<&str> {
        self.command.iter().map(String::as_str).collect()
    }

    /// Waits until each of the two has called the other many times more. Not one call may have
    /// failed.
    pub fn flow(&self) {
        for client in &self.clients {
            let next = called(client) + 1000;
            wait_until("calls flow", || called(client) > next);
        }
    }

    /// Waits until this runtime has all of it, and asserts that it is as it was: processes, names,
    /// ids, and the order of the group.
    pub fn assert_as_before(&self, ipcd: &Ipcd) {
        let names = CALLERS.iter().chain(&TRIO);
        for (name, pid) in names.zip(&self.pids) {
            ipcd.wait(name, "ready");
            assert_eq!(ipcd.pid_of(name), *pid, "{name}: {:#?}", ipcd.said());
        }
        wait_until("all have come back as they were", || self.served() == self.served);
        self.flow();
    }

    fn served(&self) -> Vec<Served> {
        let node = self.world.node(Spin::Never);
        let entries = node.list().expect("a list");
        let of = |name: &&str| {
            let mut all: Vec<_> = entries.iter().filter(|entry| entry.name == *name).collect();
            all.sort_by_key(|entry| entry.rank);
            let instances = all.iter().map(|entry| entry.instance.get()).collect();
            let name = all.first().map_or(0, |entry| entry.name_id.get());
            Served { name, instances }
        };
        ["left", "right", "trio"].iter().map(of).collect()
    }

    /// The processes that run this service's program.
    pub fn processes_of(&self, service: &str) -> Vec<u32> {
        let program = program(self.world.directory(), service);
        let program = program.to_str().expect("temporary directories have plain names");
        proc::all_running(|words| words.first().is_some_and(|first| first == program))
    }

    /// Processes of runtimes, and those that were made and do not run their program yet.
    pub fn runtimes(&self) -> Vec<u32> {
        let directory = self.world.directory().to_str().expect("plain names");
        proc::all_running(|words| {
            words.first().is_some_and(|it| it == self.programs.ipcd)
                && words.iter().any(|it| it == directory)
        })
    }

    /// Ends all of it in order: nothing may stay behind.
    pub fn end(self, ipcd: Ipcd) {
        let (status, said) = ipcd.stop();
        assert_eq!(status.code(), Some(0), "{said:#?}");
        let left: Vec<_> =
            ["left", "right", "trio"].iter().flat_map(|it| self.processes_of(it)).collect();
        assert_eq!(left, [0; 0], "processes");
        assert_eq!(crate::ipcd::recorded(self.world.directory()), []);
    }
}

impl Drop for Duet {
    /// A test that fails while there is no runtime leaves nobody behind.
    fn drop(&mut self) {
        crate::ipcd::kill_recorded(self.world.directory());
    }
}

fn called(client: &Client) -> u64 {
    let told = client.call(b"count", LONG).expect("it answers");
    let told = String::from_utf8(told).expect("text");
    let (called, failed) = told.split_once(' ').expect("two numbers");
    assert_eq!(failed, "0", "calls failed, of {called}");
    called.parse().expect("a number")
}

fn program(directory: &Path, service: &str) -> PathBuf {
    directory.join(format!("run-{service}"))
}
