//! `ipcd` dies at every step of what it does, while two services call each other at full speed.

use std::{collections::BTreeSet, fs, path::PathBuf};

use ipc::{Node, NodeError, Server, Spin};
use kernel_services::failpoint::At;
use nix::sys::signal::Signal;
use tests::{
    Ipcd,
    duet::{CALLERS, Duet, Programs, TRIO},
    ipcd::{recorded, signal},
    wait_until,
};

const PROGRAMS: Programs = Programs {
    ipcd: env!("CARGO_BIN_EXE_ipcd-under-test"),
    probe: env!("CARGO_BIN_EXE_probe"),
    actor: env!("CARGO_BIN_EXE_actor"),
};

/// Whose end and start are under way when it dies.
const THIRD: &str = "third";
/// The name whose registration is.
const FOURTH: &str = "fourth";

struct Trial {
    duet: Duet,
    node: Node,
    /// Says where the runtime dies.
    order: PathBuf,
}

impl Trial {
    fn arm(&self, at: At) {
        // In one piece: it is looked at all the time.
        let fresh = self.order.with_extension("new");
        fs::write(&fresh, format!("{at:?}"))
            .and_then(|()| fs::rename(&fresh, &self.order))
            .expect("written");
    }

    /// Has the runtime come to that step and die there; gives who tried something meanwhile.
    fn die_at(&self, at: At, ipcd: Ipcd) -> Option<Server> {
        let mut server = None;
        match at {
            At::HelloHeard | At::HelloAnswered => {
                self.arm(at);
                let newcomer = Node::connect(&self.duet.world.config(Spin::Never));
                drop(newcomer.map_err(|error| assert_no_runtime(&error)));
            }
            At::RegisterHeard | At::RegisterEntered | At::RegisterAnswered => {
                let fresh = self.node.server().expect("a server");
                self.arm(at);
                let registered = fresh.register(FOURTH, 0);
                let _ = registered.map_err(|error| assert_no_runtime(&error));
                server = Some(fresh);
            }
            At::ConnectHeard
            | At::ConnectHeld
            | At::ConnectOffered
            | At::AcceptHeard
            | At::AcceptTaken
            | At::ConnectDelivered => {
                let left = self.node.discover("left").expect("served");
                let stranger = self.duet.world.node(Spin::Never);
                self.arm(at);
                let opened = stranger.client(left);
                drop(opened.map_err(|error| assert_no_runtime(&error)));
            }
            At::AdoptFound | At::AdoptTaken | At::IdsWritten | At::IdsReserved => {
                ipcd.kill();
                self.arm(at);
                self.duet.again_unready().wait_for_death();
                return None;
            }
            // All of that comes when a service is replaced.
            At::RegisterTold
            | At::SpawnBegun
            | At::SpawnBorn
            | At::UnitsWritten
            | At::SpawnRecorded
            | At::SpawnLetGo
            | At::SpawnRuns
            | At::SpawnSaid
            | At::SpawnAdmitted
            | At::ReapSeen
            | At::ReapForgotten => {
                let third = ipcd.pid_of(THIRD);
                self.arm(at);
                signal(third, Signal::SIGKILL);
            }
        }
        ipcd.wait_for_death();
        server
    }

    /// What was half done is done again, once, and all else is as it was.
    fn assert_restored(&self, ipcd: &Ipcd, server: Option<Server>) {
        self.duet.assert_as_before(ipcd);
        let third = ipcd.wait(THIRD, "ready")["pid"].as_u64().expect("a process") as u32;
        wait_until("there is one of it", || self.duet.processes_of(THIRD) == [third]);
        let mut all: BTreeSet<u32> = [third].into();
        all.extend(CALLERS.iter().chain(&TRIO).map(|name| ipcd.pid_of(name)));
        let recorded: BTreeSet<u32> =
            recorded(self.duet.world.directory()).into_iter().map(|(pid, _)| pid).collect();
        assert_eq!(recorded, all, "who is written down");
        wait_until("nobody is left half born", || self.duet.runtimes() == [ipcd.pid()]);
        let other = self.duet.world.node(Spin::Never);
        for name in ["left", THIRD] {
            let client = other.client(other.wait_service(name, None).expect("it is served"));
            assert_eq!(client.expect("a channel").call(b"x", tests::LONG).expect("answered"), b"x");
        }
        if let Some(server) = server {
            // Either it was registered and is so again, or it was not and can be.
            match server.register(FOURTH, 0) {
                Ok(_) | Err(NodeError::Refused(ipc::Status::EXISTS)) => {}
                Err(error) => panic!("{error}"),
            }
            let entries = other.list().expect("a list");
            assert_eq!(entries.iter().filter(|entry| entry.name == FOURTH).count(), 1);
        }
    }
}

fn assert_no_runtime(error: &NodeError) {
    assert!(matches!(error, NodeError::NoRuntime { .. }), "{error:?}");
}

#[test]
fn ipcd_may_die_at_every_step_of_an_introduction() {
    die_at_each(&At::ALL[..14]);
}

#[test]
fn ipcd_may_die_at_every_step_of_a_start_and_an_end() {
    die_at_each(&At::ALL[14..]);
}

fn die_at_each(steps: &[At]) {
    let directory = tempfile::tempdir().expect("a directory");
    let order = directory.path().join("die");
    let told = format!("IPCD_DIES_AT={}", order.display());
    let (duet, mut ipcd) = Duet::start(PROGRAMS, &["env", &told], &[THIRD]);
    let node = duet.world.node(Spin::Never);
    let trial = Trial { duet, node, order };
    for &at in steps {
        eprintln!("{at:?}");
        let server = trial.die_at(at, ipcd);
        assert!(!trial.order.exists(), "it did not come to this");
        trial.duet.flow();
        ipcd = trial.duet.again();
        trial.assert_restored(&ipcd, server);
    }
    trial.duet.end(ipcd);
}
