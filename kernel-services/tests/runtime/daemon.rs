//! The program: its one line, its signals, its exit codes, and what is left of a crowd.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
};

use ipc::{
    Geometry, Status,
    control::{Reply, Request},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::peer::{Peer, has_pidfds, lane, runtime, sparse_lane, until};

struct Daemon {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Daemon {
    fn start(directory: &Path) -> Daemon {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ipcd"))
            .arg("--runtime-dir")
            .arg(directory)
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("readable");
        let socket = directory.join("ipcd.sock");
        assert_eq!(line, format!("ipcd: ready: {} (pid {})\n", socket.display(), child.id()));
        Daemon { child, stderr }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("signals");
    }

    /// Waits for the end; gives the exit code and what else was said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).expect("readable");
        (self.child.wait().expect("waits").code(), rest)
    }

    fn has(&self, descriptor: usize) -> bool {
        Path::new(&format!("/proc/{}/fd/{descriptor}", self.child.id())).is_symlink()
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("ours").count()
    }
}

impl Drop for Daemon {
    /// A test that failed leaves nobody behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sigterm_and_sigint_end_it_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let directory = tempfile::tempdir().expect("a directory");
        let daemon = Daemon::start(directory.path());
        let node = Peer::connect(&directory.path().join("ipcd.sock"));
        node.hello();
        daemon.signal(Signal::SIGHUP);
        assert_eq!(node.nodes_and_services(), (1, 0));
        daemon.signal(signal);
        assert_eq!(daemon.end(), (Some(0), String::new()));
        assert!(!directory.path().join("ipcd.sock").exists());
        node.expect_closed();
    }
}

#[test]
fn a_killed_one_leaves_nothing_in_the_way() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("ipcd.sock");
    let first = Daemon::start(directory.path());
    let before = Peer::connect(&socket).hello();
    first.signal(Signal::SIGKILL);
    first.end();
    assert!(socket.exists());
    let second = Daemon::start(directory.path());
    assert!(Peer::connect(&socket).hello() > before, "ids are not given twice");
    second.signal(Signal::SIGTERM);
    second.end();
}

#[test]
fn a_second_one_names_the_first() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Daemon::start(directory.path());
    let output = Command::new(env!("CARGO_BIN_EXE_ipcd"))
        .env("IPC_RUNTIME_DIR", directory.path())
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(said.starts_with("ipcd: ") && said.lines().count() == 1, "{said}");
    assert!(said.contains(&format!("pid {}", first.child.id())), "{said}");
    Peer::connect(&directory.path().join("ipcd.sock")).hello();
    first.signal(Signal::SIGTERM);
    assert_eq!(first.end().0, Some(0));
}

#[test]
fn wrong_arguments_and_questions_have_their_exit_codes() {
    let ipcd = |argument| Command::new(env!("CARGO_BIN_EXE_ipcd")).arg(argument).output();
    assert_eq!(ipcd("--nonsense").expect("runs").status.code(), Some(2));
    assert_eq!(ipcd("--version").expect("runs").status.code(), Some(0));
    let help = String::from_utf8(ipcd("--help").expect("runs").stdout).expect("text");
    assert!(help.contains("IPC_RUNTIME_DIR") && help.contains("Exit codes"));
}

#[test]
fn no_descriptor_stays_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(directory.path());
    let socket = directory.path().join("ipcd.sock");
    let observer = Peer::connect(&socket);
    observer.hello();
    let idle = daemon.descriptors();
    for round in 0..20 {
        let (service, client) = (Peer::connect(&socket), Peer::connect(&socket));
        service.hello();
        client.hello();
        let (_, name) = service.register("echo");
        client.connect_to(1, name, &lane());
        let incoming = service.incoming().0;
        service.accept(incoming.channel, &lane());
        client.connected(1);
        client.connect_to(2, name, &sparse_lane(Geometry::default().lane_bytes()));
        assert_eq!(client.answer(2), Reply::Refused(Status::INVALID));
        // One is left pending, and one end or the other dies first.
        client.connect_to(3, name, &lane());
        service.incoming();
        client.send(4, &Request::Wait { name: "never".to_owned() }, &[]);
        if round % 2 == 0 {
            drop(service);
            assert_eq!(client.answer(3), Reply::Refused(Status::PEER_DIED));
        } else {
            drop(client);
        }
    }
    until("all descriptors are closed", || {
        observer.nodes_and_services() == (1, 0) && daemon.descriptors() == idle
    });
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end().0, Some(0));
}

/// A service that forks and dies: its child keeps the connection open, but nobody serves.
#[test]
fn a_dead_process_has_left_though_its_child_holds_the_connection() {
    let runtime = runtime();
    let observer = runtime.node();
    let mut parent = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "daemon::leaves_a_child", "--ignored", "--nocapture"])
        .env("LEAVES_A_CHILD_AT", runtime.kernel.socket_path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let said = BufReader::new(parent.stdout.take().expect("piped"));
    let mut lines = said.lines().map(|line| line.expect("text"));
    let found = lines.find_map(|line| Some(line.split_once("child=")?.1.to_owned()));
    let child = Pid::from_raw(found.expect("a line").parse().expect("a pid"));
    assert!(parent.wait().expect("waits").success());
    let has_left = || observer.nodes_and_services() == (1, 0);
    if has_pidfds() {
        until("the service has left", has_left);
        kill(child, Signal::SIGKILL).expect("it was alive all the time");
    } else {
        // Only the connection tells, and it is open as long as anybody holds it.
        assert_eq!(observer.nodes_and_services(), (2, 1));
        kill(child, Signal::SIGKILL).expect("it was alive all the time");
        until("the service has left", has_left);
    }
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
#[allow(clippy::zombie_processes)] // it is to outlive this process
fn leaves_a_child() {
    let Some(socket) = std::env::var_os("LEAVES_A_CHILD_AT") else { return };
    let node = Peer::connect(Path::new(&socket));
    node.hello();
    node.register("echo");
    let mut sleeper = Command::new("sleep");
    sleeper.arg("60").stdin(node.duplicate()).stdout(Stdio::null()).stderr(Stdio::null());
    println!("child={}", sleeper.spawn().expect("starts").id());
}

/// Out of descriptors it neither spins nor loses those it has; newcomers wait.
#[test]
fn newcomers_wait_while_there_are_no_descriptors() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -n 24; exec \"$0\" --runtime-dir \"$1\""])
        .arg(env!("CARGO_BIN_EXE_ipcd"))
        .arg(directory.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    stderr.read_line(&mut String::new()).expect("readable");
    let daemon = Daemon { child, stderr };
    let socket = directory.path().join("ipcd.sock");
    let crowd: Vec<Peer> = (0..40).map(|_| Peer::connect(&socket)).collect();
    let first = &crowd[0];
    first.hello();
    assert_eq!(first.nodes_and_services(), (1, 0));
    // Some may be above the limit: those that this process had from whoever started it.
    until("the table is full", || (0..24).all(|number| daemon.has(number)));
    assert_eq!(first.nodes_and_services().1, 0);
    // The last comes in once the others are gone.
    let last = crowd.into_iter().next_back().expect("forty");
    last.hello();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end().0, Some(0));
}
