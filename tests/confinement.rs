//! What a sandboxed service cannot do though it tries, and what it can: serve.

use std::{
    fs,
    os::unix::net::{UnixDatagram, UnixListener},
    path::{Path, PathBuf},
    process::Command,
};

use ipc::{CallError, Spin};
use kernel_services::{
    node::{Grants, Sandbox, Service},
    process::{Exit, Unenforced},
};
use nix::{
    sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
    unistd::geteuid,
};
use tests::{
    LONG, Watchdog, World, pattern,
    services::{Nursery, deny, end_of, said},
    wait_until,
};

const PROBE: &str = env!("CARGO_BIN_EXE_probe");
const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// What the attacks of the probe aim at: files, sockets, a process.
struct Targets {
    nursery: Nursery,
    _stream: UnixListener,
    _datagram: UnixDatagram,
    _abstract: std::os::fd::OwnedFd,
    victim: std::process::Child,
}

impl Targets {
    fn new() -> Targets {
        let nursery = Nursery::new();
        let path = nursery.path();
        fs::write(path.join("secret"), "a secret").expect("written");
        fs::create_dir(path.join("mount")).expect("made");
        let victim = Command::new("sleep").arg("600").spawn().expect("a process");
        let flags = SockFlag::SOCK_CLOEXEC;
        let packets = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("one");
        let name = format!("ipc-test-{}", victim.id());
        let address = UnixAddr::new_abstract(name.as_bytes()).expect("short");
        bind(std::os::fd::AsRawFd::as_raw_fd(&packets), &address).expect("bound");
        listen(&packets, Backlog::MAXCONN).expect("listening");
        Targets {
            _stream: UnixListener::bind(path.join("stream")).expect("bound"),
            _datagram: UnixDatagram::bind(path.join("datagram")).expect("bound"),
            _abstract: packets,
            nursery,
            victim,
        }
    }

    fn service(&self, sandbox: Sandbox) -> Service {
        let directory = self.nursery.path().to_str().expect("plain");
        let victim = self.victim.id().to_string();
        let service = self.nursery.service(PROBE, &["attack", &victim, directory]);
        Service { sandbox, ..service }
    }

    /// Attacks; gives what came of each.
    fn attacked(&self, sandbox: Sandbox) -> Vec<(String, String)> {
        let (exit, output) = self.nursery.run(&self.service(sandbox));
        assert_eq!(exit, Exit::Code(0), "{output}");
        let pairs = output.lines().filter_map(|line| line.split_once(' '));
        pairs.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())).collect()
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

/// Those that come to nothing without a sandbox, too, depending on the machine: what its kernel
/// has, and what its settings leave to others.
const ELSEWHERE: &[&str] = &["tcp6", "io_uring", "bpf", "performance", "keys", "page_faults"];

#[test]
fn a_compromised_service_breaks_out_by_none_of_many_ways() {
    let _watchdog = Watchdog::start();
    let targets = Targets::new();
    let outcomes = targets.attacked(Sandbox::On(Grants::default()));
    assert!(outcomes.len() > 40, "{outcomes:?}");
    for (name, outcome) in &outcomes {
        let expected: &[&str] = match name.as_str() {
            "descriptors" => &["[0, 1, 2, 3]"],
            // No exec is left, of whatever; and without clone3 the C library uses clone.
            "execute" | "clone3" => &["ENOSYS"],
            _ => &["EPERM", "EACCES"],
        };
        assert!(expected.contains(&outcome.as_str()), "{name}: {outcome}");
    }
    assert!(!targets.nursery.path().join("created").exists());
}

#[test]
fn without_a_sandbox_the_same_attacks_succeed() {
    let _watchdog = Watchdog::start();
    if !geteuid().is_root() {
        eprintln!("skipped: some of the attacks need root to succeed");
        return;
    }
    let targets = Targets::new();
    let outcomes = targets.attacked(Sandbox::Off);
    let outcomes = outcomes.iter().filter(|(name, _)| !ELSEWHERE.contains(&name.as_str()));
    for (name, outcome) in outcomes.filter(|(name, _)| name != "descriptors") {
        assert_eq!(outcome, "done", "{name} shows nothing, if it fails in any case");
    }
}

#[test]
fn each_layer_holds_without_the_others() {
    let _watchdog = Watchdog::start();
    let targets = Targets::new();
    let of = |outcomes: &[(String, String)], name: &str| {
        let found = outcomes.iter().find(|(known, _)| known == name);
        found.map(|(_, outcome)| outcome.clone()).unwrap_or_default()
    };
    // The filter lets these pass: landlock refuses them.
    let calls = ["kill", "tkill", "tgkill", "socket", "ptrace", "execve", "pidfd_open"];
    let open = calls.map(str::to_owned).to_vec();
    let mut service =
        targets.service(Sandbox::On(Grants { system_calls: open, ..Grants::default() }));
    // With something to execute there may be a second program; but no other than that.
    let Sandbox::On(grants) = &mut service.sandbox else { unreachable!("made so") };
    grants.execute = vec![PROBE.into()];
    let mut process = targets.nursery.launch(&service).expect("launched");
    let gaps = process.unenforced().to_vec();
    assert_eq!(end_of(&mut process), Exit::Code(0), "{}", targets.nursery.output());
    let output = targets.nursery.output();
    if !gaps.contains(&Unenforced::Files) {
        assert_eq!(said(&output, "trace"), "EPERM");
        assert_eq!(said(&output, "execute"), "EACCES");
        assert_eq!(said(&output, "open_process"), "done", "the filter was open");
    }
    if !gaps.contains(&Unenforced::AbstractSockets) {
        assert_eq!(said(&output, "signal"), "EPERM");
        assert_eq!(said(&output, "signal_thread"), "EPERM");
        assert_eq!(said(&output, "signal_group_thread"), "EPERM");
        assert_eq!(said(&output, "abstract_socket"), "EPERM");
    }
    // And the filter holds where there is no landlock.
    let outcomes = std::thread::scope(|scope| {
        let alone = scope.spawn(|| {
            let targets = Targets::new();
            deny(&[libc::SYS_landlock_create_ruleset]);
            let service = targets.service(Sandbox::On(Grants::default()));
            let mut process = targets.nursery.launch(&service).expect("launched");
            assert!(process.unenforced().contains(&Unenforced::Files));
            end_of(&mut process);
            let output = targets.nursery.output();
            let pairs = output.lines().filter_map(|line| line.split_once(' '));
            pairs.map(|(name, said)| (name.to_owned(), said.to_owned())).collect::<Vec<_>>()
        });
        alone.join().expect("all was so")
    });
    for name in ["signal", "signal_thread", "trace", "read_process", "fork", "tcp", "change_mode"] {
        assert_eq!(of(&outcomes, name), "EPERM", "{name}");
    }
    assert_eq!(of(&outcomes, "execute"), "ENOSYS");
    assert_eq!(of(&outcomes, "read_passwords"), "done", "there was no landlock");
}

#[test]
fn grants_give_what_they_say_and_no_more() {
    let _watchdog = Watchdog::start();
    let targets = Targets::new();
    let path = |name| targets.nursery.path().join(name);
    let of = |grants: Grants| -> Vec<(String, String)> {
        fs::write(path("log"), "").expect("emptied");
        targets.attacked(Sandbox::On(grants))
    };
    let done = |outcomes: Vec<(String, String)>| -> Vec<String> {
        let done = outcomes.into_iter().filter(|(_, outcome)| outcome == "done");
        done.map(|(name, _)| name).collect()
    };
    let read = Grants { read: vec![path("secret")], ..Grants::default() };
    assert_eq!(done(of(read)), ["read_file"]);
    let write = Grants { write: vec![path("")], ..Grants::default() };
    assert_eq!(done(of(write)), ["read_file", "write_file", "create_file"]);
    let tcp = Grants { connect_tcp: vec![1], ..Grants::default() };
    let tcp = done(of(tcp));
    assert!(tcp.iter().all(|name| name.starts_with("tcp")) && !tcp.is_empty(), "{tcp:?}");
    let execute = Grants { execute: vec!["/bin/echo".into()], ..Grants::default() };
    assert_eq!(done(of(execute)), ["fork", "execute"]);
}

#[test]
fn a_service_keeps_nothing_of_root_s_power() {
    let _watchdog = Watchdog::start();
    let nursery = Nursery::new();
    let mut service = nursery.service(PROBE, &["facts"]);
    let Sandbox::On(grants) = &mut service.sandbox else { unreachable!("the default") };
    grants.read = vec!["/proc".into()];
    let (exit, output) = nursery.run(&service);
    assert_eq!(exit, Exit::Code(0), "{output}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(said(&output, set), "0000000000000000", "{set}");
    }
    if geteuid().is_root() {
        assert_eq!(said(&output, "CapBnd"), "0000000000000000");
    }
    assert_eq!(said(&output, "NoNewPrivs"), "1");
    assert_eq!(said(&output, "prompt"), "true", "short slices give nobody power");
    assert_eq!(said(&output, "Seccomp"), "2");
}

#[test]
fn a_service_that_joined_the_runtime_is_not_dumpable() {
    let world = World::new(ACTOR);
    let nursery = Nursery::new();
    let service = nursery.service(PROBE, &["dumpable"]);
    let mut process = nursery.launch_beside(&service, world.directory()).expect("launched");
    assert_eq!(end_of(&mut process), Exit::Code(0), "{}", nursery.output());
    assert_eq!(said(&nursery.output(), "dumpable"), "Ok(true) Ok(false)");
}

#[test]
fn a_service_serves_and_panics_and_aborts_in_its_sandbox() {
    let world = World::new(ACTOR);
    let nursery = Nursery::new();
    let service = nursery.service(PROBE, &["serve", "probe"]);
    let mut process = nursery.launch_beside(&service, world.directory()).expect("launched");
    wait_until("it serves", || nursery.output().contains("serving"));
    call_it(&world, "probe");
    let (_node, client) = world.client("probe", Spin::Learned);
    assert_eq!(client.call(b"panic", LONG).expect("answered"), b"panicked");
    assert_eq!(client.call(b"still there", LONG).expect("answered"), b"still there");
    let last = client.call(b"abort", LONG);
    assert!(matches!(last, Err(CallError::PeerDied { .. })), "{last:?}");
    assert_eq!(end_of(&mut process), Exit::Signal(libc::SIGABRT), "by abort itself");
    assert!(nursery.output().contains("as told"), "the panic's message is in the log");
}

#[test]
fn a_service_comes_back_to_a_restarted_runtime_from_its_sandbox() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let nursery = Nursery::new();
    let service = nursery.service(PROBE, &["serve", "probe"]);
    let mut process = nursery.launch_beside(&service, world.directory()).expect("launched");
    wait_until("it serves", || nursery.output().contains("serving"));
    runtime.kill();
    let _runtime = world.runtime();
    let node = world.node(Spin::Learned);
    wait_until("it is back", || node.discover("probe").is_ok());
    call_it(&world, "probe");
    process.kill().expect("alive");
    end_of(&mut process);
}

#[test]
fn the_echo_service_serves_in_its_sandbox() {
    let world = World::new(ACTOR);
    let nursery = Nursery::new();
    let echo = built("echo", "cargo build -p echo");
    let service = nursery.service(&echo, &[]);
    let mut process = nursery.launch_beside(&service, world.directory()).expect("launched");
    wait_until("it serves", || nursery.output().contains("ready"));
    call_it(&world, "echo");
    process.signal(nix::sys::signal::Signal::SIGTERM).expect("alive");
    assert_eq!(end_of(&mut process), Exit::Code(0), "in order: {}", nursery.output());
}

#[test]
fn a_service_in_c_serves_in_its_sandbox() {
    let world = World::new(ACTOR);
    let nursery = Nursery::new();
    let library = built("libipc.so", "cargo build -p ipc-ffi");
    let libraries = nursery.path().join("lib");
    fs::create_dir(&libraries).expect("made");
    // Under the name that programs ask their loader for.
    fs::copy(&library, libraries.join("libipc.so.0")).expect("copied");
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tree");
    let program = nursery.path().join("server");
    let compiled = Command::new("cc")
        .arg(tree.join("examples/server.c"))
        .arg("-I")
        .arg(tree.join("include"))
        .arg(&library)
        .arg("-o")
        .arg(&program)
        .status()
        .expect("a C compiler");
    assert!(compiled.success());
    let mut service = nursery.service(program.to_str().expect("plain"), &["in-c"]);
    let libraries = libraries.to_str().expect("plain").to_owned();
    service.environment = [("LD_LIBRARY_PATH".to_owned(), libraries)].into();
    let mut process = nursery.launch_beside(&service, world.directory()).expect("launched");
    wait_until("it serves", || {
        assert_eq!(process.try_wait(), None, "{}", nursery.output());
        nursery.output().contains("serving")
    });
    call_it(&world, "in-c");
    process.signal(nix::sys::signal::Signal::SIGTERM).expect("alive");
    assert_eq!(end_of(&mut process), Exit::Code(0), "in order: {}", nursery.output());
}

/// Calls a service from several threads, with what fits a cell, a slab, and bulk memory.
fn call_it(world: &World, name: &str) {
    let (_node, client) = world.client(name, Spin::Learned);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for size in [1, 48, 4000, 100_000, 3 << 20] {
                    let sent = pattern(size);
                    assert!(client.call(&sent, LONG).expect("answered") == sent, "{size}");
                }
            });
        }
    });
}

/// What another crate of the workspace builds, which cargo does not do for a test.
fn built(name: &str, command: &str) -> String {
    let path = PathBuf::from(PROBE).with_file_name(name);
    assert!(path.exists(), "build it first: {command}");
    path.to_str().expect("plain").to_owned()
}
