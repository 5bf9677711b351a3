//! A victim, an honest party, an attacker; and how things were before.

use tests::{
    Actor, World,
    proc::{self, Holdings},
    wait_for, wait_until,
};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const HOSTILE: &str = env!("CARGO_BIN_EXE_hostile");

/// What an allocator may keep of what was given back.
const SLACK_KIB: u64 = 8 * 1024;

/// A runtime in a process of its own, a service "echo", and an honest client of it.
pub(crate) struct Siege {
    pub(crate) world: World,
    pub(crate) runtime: Actor,
    pub(crate) server: Actor,
    pub(crate) client: Actor,
    before: Vec<(u32, Holdings, u64)>,
}

impl Siege {
    /// `options` are the victims'.
    pub(crate) fn of(options: &[&str]) -> Siege {
        let world = World::without_runtime(ACTOR);
        let runtime = world.runtime();
        let options = [options, &["max=1000000"]].concat();
        let server = world.server("echo", &options);
        let client = world.actor(&options);
        let mut siege = Siege { world, runtime, server, client, before: Vec::new() };
        siege.is_served();
        // What is made once, for the first stranger, stays.
        let mut visitor = siege.villain();
        visitor.ask("open echo", "opened");
        visitor.ask("call", "called");
        visitor.ask("register visited", "serving");
        siege.client.tell("ask visited 30000 hello");
        visitor.ask("admit", "admitted");
        visitor.ask("answer", "answered");
        assert_eq!(siege.client.hear("answer"), "hello");
        siege.client.ask("leave visited", "left");
        visitor.kill();
        let parties = [siege.runtime.pid(), siege.server.pid(), siege.client.pid()];
        for (pid, lanes) in parties.into_iter().zip([0, 2, 2]) {
            wait_for("the visitor is forgotten", &lanes, || proc::holdings(pid).lanes);
        }
        siege.is_served();
        let held = |pid| (pid, proc::holdings(pid), proc::resident_kib(pid));
        siege.before = parties.map(held).into();
        siege
    }

    /// Starts an attacker.
    pub(crate) fn villain(&self) -> Actor {
        self.world.other(HOSTILE, &[])
    }

    /// An attacker with a channel to the service.
    pub(crate) fn intruder(&self) -> Actor {
        let mut villain = self.villain();
        villain.ask("open echo", "opened");
        villain.ask("call", "called");
        villain
    }

    /// An attacker that serves "trap".
    pub(crate) fn trapper(&self) -> Actor {
        let mut villain = self.villain();
        villain.ask("register trap", "serving");
        villain
    }

    /// The honest client calls the service, at several sizes, and gets what it asked for.
    pub(crate) fn is_served(&mut self) {
        self.client.ask("calls echo 2 10 0,8,48,100,5000,50000", "called");
    }

    /// Kills the attacker. Afterwards all is as it was.
    pub(crate) fn end(mut self, villain: Actor) {
        self.is_served();
        villain.kill();
        self.client.ask("leave trap", "left");
        self.is_as_before();
        self.is_served();
        // They answer, they did not die of it, and they do not spin.
        for pid in [self.server.pid(), self.client.pid(), self.runtime.pid()] {
            let is_asleep = |thread| proc::is_asleep(pid, thread);
            wait_until("all sleep", || proc::threads(pid).into_iter().all(is_asleep));
        }
        self.client.quit();
        self.server.quit();
        self.runtime.quit();
    }

    /// Waits until each of the processes holds what it held.
    pub(crate) fn is_as_before(&self) {
        for (pid, held, resident) in &self.before {
            let is_within = || proc::holdings(*pid).is_within(held);
            wait_until(&format!("{pid} holds what it held"), is_within);
            let limit = resident + SLACK_KIB;
            wait_until(&format!("{pid} has less than {limit} KiB"), || {
                proc::resident_kib(*pid) <= limit
            });
        }
    }
}
