//! Channels over Unix sockets, between real processes: everything that channels over shared memory
//! do, and what only sockets meet.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use ipc::{
    AddressError, CallError, CallOptions, Client, Node, NodeError, Priority, ServiceId, Spin,
    Status, Transport,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};
use std::os::fd::AsRawFd;
use tests::{Actor, LONG, World, pattern, proc, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const PROBE: &str = env!("CARGO_BIN_EXE_probe");

fn path(world: &World) -> PathBuf {
    world.directory().join("echo.sock")
}

fn address(world: &World) -> String {
    format!("unix://{}", path(world).display())
}

/// A process that serves by a socket, and a channel to it.
fn connected(world: &World) -> (Actor, Node, Client) {
    let mut server = world.server("echo", &[]);
    server.ask(&format!("listen {}", path(world).display()), "listening");
    let node = world.node(Spin::Learned);
    let client = node.client(node.discover(&address(world)).expect("it listens"));
    (server, node, client.expect("a channel"))
}

#[test]
fn calls_of_all_sizes_come_back_as_they_were_from_many_threads() {
    let world = World::new(ACTOR);
    let (server, _node, client) = connected(&world);
    let peer = client.peer();
    assert_eq!((peer.transport, peer.pid), (Transport::Socket, server.pid()));
    assert_eq!(peer.uid, nix::unistd::geteuid().as_raw(), "the kernel says so");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let client = &client;
            scope.spawn(move || {
                for size in [0, 8, 48, 49, 500, 16_000, 17_000, 300_000, 5_000_000] {
                    let payload = pattern(size + thread);
                    for _ in 0..if size < 1000 { 200 } else { 3 } {
                        let answer = client.call(&payload, LONG).expect("an answer");
                        assert!(answer == payload, "{size}");
                    }
                }
            });
        }
    });
    // By shared memory, too, at the same time, where it can be.
    let (_other, shared) = world.client("echo", Spin::Learned);
    assert_eq!(shared.peer().transport, Transport::SharedMemory);
    assert_eq!(shared.call(b"both", LONG).expect("an answer"), b"both");
}

#[test]
fn errors_deadlines_and_priorities_cross_a_socket() {
    let world = World::new(ACTOR);
    let (_server, _node, client) = connected(&world);
    // Held past its deadline, or, on a busy machine, come too late for a handler.
    let late = client.call(b"!hold", Duration::from_millis(20));
    let is_late = matches!(late, Err(CallError::TimedOut | CallError::Remote(Status::TIMED_OUT)));
    assert!(is_late, "{late:?}");
    let urgent = CallOptions::timeout(LONG).priority(Priority::Critical);
    assert_eq!(client.call(b"now", urgent).expect("an answer"), b"now");
    assert!(client.ping(LONG).is_ok());
    // One-way messages, more than there are places for.
    for number in 0..5000_u64 {
        client.send(&number.to_le_bytes(), LONG).expect("room in time");
    }
    let counted = client.call(b"!count", LONG).expect("an answer");
    assert_eq!(String::from_utf8_lossy(&counted), "5000 0", "all, and in order");
    assert_eq!(client.call(b"after them", LONG).expect("an answer"), b"after them");
    let pending: Vec<_> = (0..100).map(|_| client.start(b"many", LONG).expect("sent")).collect();
    for call in pending {
        assert_eq!(call.wait().expect("an answer"), b"many");
    }
}

#[test]
fn a_service_s_own_error_crosses_a_socket() {
    let world = World::new(ACTOR);
    let service = world.node(Spin::Never);
    let server = service.server().expect("a server");
    let listening = server.listen(&path(&world)).expect("a free path");
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        server.run(|request| {
            assert_eq!(request.peer().transport, Transport::Socket);
            let _ = tell.send((request.peer(), request.source()));
            let _ = request.reply_error(Status::from_code(-1234));
        })
    });
    let node = world.node(Spin::Learned);
    let client = node.client(node.discover(&address(&world)).expect("it listens"));
    let client = client.expect("a channel");
    let refused = client.call(b"hello", LONG);
    assert!(
        matches!(refused, Err(CallError::Remote(status)) if status.code() == -1234),
        "{refused:?}"
    );
    // Each who comes has an id that nobody else has, and is who the kernel says.
    let other = Node::unattached(&world.config(Spin::Never)).expect("it needs none");
    let second = other.client(other.discover(&address(&world)).expect("it listens"));
    assert!(second.expect("a channel").call(b"hello", LONG).is_err());
    let [first, second] = [told.recv_timeout(LONG), told.recv_timeout(LONG)];
    let (first, second) = (first.expect("called"), second.expect("called"));
    assert!(first.0.id != second.0.id, "{first:?} {second:?}");
    for (peer, source) in [first, second] {
        assert!(peer.id != ServiceId::NONE && source == peer.id, "{peer:?}");
        assert_eq!((peer.pid, peer.uid), (std::process::id(), nix::unistd::geteuid().as_raw()));
    }
    drop(listening);
    assert!(!path(&world).exists());
    wait_until("its channels are closed with it", || client.call(b"hello", LONG).is_err());
    service.interrupter().fire();
    let _ = thread.join().expect("no panic");
}

#[test]
fn a_stopped_service_fills_its_rings_and_nobody_hangs() {
    let world = World::new(ACTOR);
    let (server, _node, client) = connected(&world);
    server.stop();
    let brief = Duration::from_millis(50);
    let full = (0..100_000_u64).find_map(|number| client.send(&pattern_of(number), brief).err());
    assert!(matches!(full, Some(CallError::TimedOut | CallError::Full)), "{full:?}");
    server.go_on();
    wait_until("it has caught up", || client.call(b"hello", LONG).is_ok());
}

#[test]
fn a_killed_service_ends_calls_and_the_next_one_takes_its_place() {
    let world = World::new(ACTOR);
    let (mut server, node, client) = connected(&world);
    let held = client.start(b"!hold", LONG).expect("sent");
    server.hear("held");
    server.kill();
    let ended = held.wait();
    assert!(matches!(ended, Err(CallError::PeerDied { taken: true })), "{ended:?}");
    let gone = client.call(b"hello", LONG);
    assert!(matches!(gone, Err(CallError::PeerDied { taken: false })), "{gone:?}");
    let nobody = node.discover(&address(&world));
    assert!(matches!(nobody, Err(NodeError::Refused(Status::NOT_FOUND))), "{nobody:?}");
    let waits = {
        let (node, address) = (node.clone(), address(&world));
        std::thread::spawn(move || node.wait_service(&address, Some(LONG)))
    };
    // What the dead left behind is no hindrance.
    let mut next = world.actor(&[]);
    next.ask("serve echo 1", "serving");
    assert_eq!(next.ask(&format!("listen {}", path(&world).display()), "listening"), "IPC_OK");
    assert_eq!(waits.join().expect("no panic").expect("it listens"), client.dest());
    assert_eq!(client.call(b"again", LONG).expect("an answer"), b"again");
    let mut second = world.actor(&[]);
    second.ask("serve other 1", "serving");
    let taken = second.ask(&format!("listen {}", path(&world).display()), "listening");
    assert_eq!(taken, "IPC_EEXIST");
    next.quit();
    assert!(!path(&world).exists(), "it cleans up");
}

#[test]
fn a_client_that_lies_is_cut_and_nobody_else_notices() {
    let world = World::new(ACTOR);
    let (server, _node, client) = connected(&world);
    let before = proc::holdings(server.pid());
    let hello = |word: u64, geometry: u64| {
        [u64::from_le_bytes(*b"ipcsock\x01"), word, geometry].map(u64::to_le_bytes).concat()
    };
    let good = hello(5, 64 << 32 | 1 << 15);
    let frame =
        |first: u64, second: u64, total: u64| [first, second, total].map(u64::to_le_bytes).concat();
    let request = 2 << 56 | 1_u64;
    let lies: Vec<Vec<Vec<u8>>> = vec![
        vec![],
        vec![b"nonsense".to_vec()],
        vec![hello(5, 1)],
        vec![hello(1 << 40, 64 << 32 | 1 << 15)],
        vec![good.clone(), good.clone()],
        vec![good.clone(), vec![0xFF; 24]],
        vec![good.clone(), vec![1; 60_000]],
        // A response of a client, a length that is not there, a lap, bulk memory, credit for more.
        vec![good.clone(), frame(2 << 56 | 3, 1, 0)],
        vec![good.clone(), frame(9 << 32 | request, 1, 9)],
        vec![good.clone(), frame(1 << 4 | request, 1, 0)],
        vec![good.clone(), [frame(8 << 59 | 32 << 32 | request, 1, 32), vec![9; 32]].concat()],
        vec![good.clone(), frame(0, 1 << 32 | 1, 0)],
        vec![good.clone(), frame(0, u64::MAX, 0)],
        // A fragment of no message.
        vec![good.clone(), frame(2 << 56 | 5, 7, 0)],
    ];
    for lie in &lies {
        let liar = dial(&path(&world));
        for packet in lie {
            let _ = send(liar.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL);
        }
        if !lie.is_empty() {
            wait_for_hang_up(&liar);
        }
    }
    // One that takes more places than there are.
    let flood = dial(&path(&world));
    let flags = MsgFlags::MSG_NOSIGNAL;
    send(flood.as_raw_fd(), &good, flags).expect("greeted");
    server.stop();
    // With the number that the service expects: those that it has places for are handled.
    let one_way = [frame(2 << 56 | 8 << 32 | 2, 1, 8), vec![0; 8]].concat();
    let sent = (0..200).filter(|_| send(flood.as_raw_fd(), &one_way, flags).is_ok()).count();
    assert!(sent > 64, "{sent}");
    server.go_on();
    assert_eq!(client.call(b"honest", LONG).expect("an answer"), b"honest");
    drop(flood);
    wait_until("nothing of them is left", || proc::holdings(server.pid()).is_within(&before));
}

/// A numbered message that fills a part of the slab.
fn pattern_of(number: u64) -> Vec<u8> {
    [&number.to_le_bytes()[..], &[7; 1000]].concat()
}

fn dial(path: &std::path::Path) -> std::os::fd::OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    connect(fd.as_raw_fd(), &UnixAddr::new(path).expect("short")).expect("it listens");
    fd
}

fn wait_for_hang_up(fd: &std::os::fd::OwnedFd) {
    let mut bytes = [0; 64];
    while let Ok(length) = nix::sys::socket::recv(fd.as_raw_fd(), &mut bytes, MsgFlags::empty())
        && length > 0
    {}
}

#[test]
fn an_address_may_stand_for_a_name_and_other_machines_are_refused() {
    let world = World::new(ACTOR);
    let server = world.server("echo", &[]);
    let node = world.node(Spin::Never);
    let name = node.discover("echo").expect("served");
    assert_eq!(node.discover("shm://echo").expect("the same"), name);
    assert_eq!(node.wait_service("shm://echo", Some(LONG)).expect("the same"), name);
    let tcp = node.discover("tcp://elsewhere:7000");
    let Err(NodeError::Address(AddressError::Unsupported { .. })) = &tcp else {
        panic!("{tcp:?}");
    };
    assert_eq!(tcp.map_err(|it| it.status()), Err(Status::NOT_SUPPORTED));
    for wrong in ["http://echo", "unix://echo", "tcp://elsewhere"] {
        let refused = node.discover(wrong).map_err(|it| it.status());
        assert_eq!(refused, Err(Status::INVALID), "{wrong}");
    }
    server.quit();
}

#[test]
fn who_has_no_runtime_can_still_connect_by_a_path() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let mut server = world.server("echo", &[]);
    server.ask(&format!("listen {}", path(&world).display()), "listening");
    runtime.kill();
    let nobody = Node::connect(&world.config(Spin::Never)).map(drop);
    assert!(matches!(nobody, Err(NodeError::NoRuntime { .. })), "{nobody:?}");
    let node = Node::unattached(&world.config(Spin::Never)).expect("it needs none");
    let client = node.client(node.discover(&address(&world)).expect("it listens"));
    let client = client.expect("a channel");
    assert_eq!(client.call(b"alone", LONG).expect("an answer"), b"alone");
    let named = node.discover("echo");
    assert!(matches!(named, Err(NodeError::NoRuntime { .. })), "{named:?}");
}

#[test]
fn who_listens_on_a_service_s_path_as_another_user_is_told_nothing() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: two other users need root");
        return;
    }
    // Both users can read the program, and put a socket here. Copied by another process: a child of
    // ours could hold the copy open for writing.
    let open = tempfile::tempdir().expect("a directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(open.path(), mode).expect("ours");
    let program = open.path().join("probe");
    assert!(Command::new("cp").arg(PROBE).arg(&program).status().expect("run").success());
    let path = open.path().join("echo.sock");
    let by = |user: &str, way: &str| {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={user}"), "--regid=65534", "--clear-groups"]);
        command.arg(&program).arg(way).arg(&path);
        command
    };
    let mut squatter = by("daemon", "squat").stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(squatter.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "listening");
    let outcome = |user: &str| {
        let output = by(user, "dial").output().expect("run");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    };
    assert_eq!(outcome("nobody"), "IPC_EACCES");
    // One of its own user is trusted so far as to be spoken to.
    assert_eq!(outcome("daemon"), "IPC_ETIMEDOUT");
    squatter.kill().and_then(|()| squatter.wait()).expect("ours");
}

#[test]
fn an_acceptor_without_descriptors_rests_until_there_are_some() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &[]);
    server.ask(&format!("listen {}", path(&world).display()), "listening");
    let limit = |files: &str| {
        let pid = server.pid().to_string();
        let set = Command::new("prlimit").args(["--pid", &pid, files]).status();
        assert!(set.expect("util-linux is there").success());
    };
    let acceptor = proc::thread_named(server.pid(), "ipc-relay").expect("it listens");
    let sleeps = || proc::sleeps(server.pid())[&acceptor];
    limit("--nofile=3:");
    let early = dial(&path(&world));
    let before = sleeps();
    // One that is awake all the time does not fall asleep again and again.
    wait_until("it rests", || sleeps() > before + 5);
    drop(early);
    limit("--nofile=1024:");
    let node = world.node(Spin::Never);
    let client = node.client(node.discover(&address(&world)).expect("it listens"));
    assert_eq!(client.expect("a channel").call(b"late", LONG).expect("an answer"), b"late");
}
