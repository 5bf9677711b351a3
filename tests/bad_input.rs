//! What is wrong is refused with a typed error, and everything goes on as before.

use std::{
    io::IoSlice,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    thread::JoinHandle,
    time::Duration,
};

use ipc::{
    CallError, CallOptions, Config, Geometry, Node, NodeError, ServiceId, Spin, Status,
    control::{MAX_PACKET, Reply, VERSION, encode_reply},
};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv,
    sendmsg, socket,
};
use tests::{House, LONG, Watchdog, pattern};

fn refused<T: std::fmt::Debug>(result: Result<T, NodeError>, status: Status) {
    let error = result.expect_err("it ought to be refused");
    assert!(matches!(error, NodeError::Refused(it) if it == status), "{error:?}");
}

fn small(max_payload: u64) -> Config {
    Config { max_payload, ..Config::default() }
}

#[test]
fn names_out_of_form_are_refused_everywhere() {
    let _watchdog = Watchdog::start();
    let house = House::echo(&Config::default());
    let server = house.server.server().expect("a server");
    let (long, wide) = ("x".repeat(256), "é".repeat(128));
    for name in ["", &long, &wide, "a\nb", "a\0", "\u{7f}", "\u{1b}[31m", "\u{85}"] {
        let results = [
            house.client.discover(name),
            house.client.wait_service(name, Some(LONG)),
            server.register(name, 0).map(|registration| registration.name),
        ];
        for result in results {
            assert!(matches!(&result, Err(NodeError::Name(_))), "{name:?}: {result:?}");
        }
    }
    for name in ["x".repeat(255), "é".repeat(127), " ".to_owned(), "a/b.c:d 'e'".to_owned()] {
        let registration = server.register(&name, 0).expect("a name like any other");
        assert_eq!(house.client.discover(&name).expect("served"), registration.name);
    }
    refused(server.register("echo", 0), Status::EXISTS);
    refused(server.register("flags", 1 << 31), Status::INVALID);
    refused(house.client.discover("nobody"), Status::NOT_FOUND);
}

#[test]
fn ids_that_lead_nowhere_are_refused() {
    let _watchdog = Watchdog::start();
    let house = House::echo(&Config::default());
    let server = house.server.server().expect("a server");
    for id in [ServiceId::NONE, ServiceId::new(u32::MAX), house.client.id(), house.server.id()] {
        refused(house.client.client(id), Status::NOT_FOUND);
        refused(server.unregister(id), Status::NOT_FOUND);
    }
    let echo = house.client();
    // It is served, but by another server than this.
    refused(server.unregister(echo.peer().id), Status::NOT_FOUND);
    refused(server.unregister(echo.dest()), Status::NOT_FOUND);
    assert!(!echo.cancel(0) && !echo.cancel(u64::MAX));
    let answered = echo.start(b"x", LONG).expect("sent");
    let id = answered.message_id();
    answered.wait().expect("answered");
    assert!(!echo.cancel(id));
    assert_eq!(echo.call(b"x", LONG).expect("answered"), b"x");
}

#[test]
fn a_payload_over_the_own_limit_is_not_sent() {
    let _watchdog = Watchdog::start();
    let house = House::of(&small(1000), &Config::default(), 1, |request| {
        request.reply(request.payload()).expect("replied");
    });
    let client = house.client();
    let port = house.client.server().expect("a loop");
    let (fits, over) = (pattern(1000), pattern(1001));
    let results = [
        client.call(&over, LONG).map(|_| ()),
        client.send(&over, LONG).map(|_| ()),
        client.burst(|burst| burst.send(&over)),
        client.start(&over, LONG).map(|_| ()),
        client.call_async(&port, &over, LONG, |_| unreachable!("nothing was sent")).map(|_| ()),
    ];
    for result in results {
        let is_typed = matches!(result, Err(CallError::TooLarge { size: 1001, limit: 1000 }));
        assert!(is_typed, "{result:?}");
    }
    assert_eq!(client.call(&fits, LONG).expect("answered"), fits);
}

#[test]
fn an_answer_over_the_server_s_own_limit_leaves_the_request_unanswered() {
    let _watchdog = Watchdog::start();
    let house = House::of(&Config::default(), &small(1000), 1, |request| {
        let refused = request.reply(&[0; 1001]);
        assert!(matches!(refused, Err(CallError::TooLarge { size: 1001, limit: 1000 })));
        request.reply(b"less").expect("it is unanswered still");
    });
    assert_eq!(house.client().call(b"x", LONG).expect("answered"), b"less");
}

/// A mistake of configuration, not an attack: the call ends with what it is, the channel goes on.
#[test]
fn a_request_over_the_server_s_limit_ends_as_too_large() {
    let _watchdog = Watchdog::start();
    let house = House::of(&Config::default(), &small(1000), 1, |request| {
        assert!(request.payload().len() <= 1000, "over the limit that was configured");
        if request.payload() == b"hold" {
            std::mem::forget(request.retain());
        } else {
            request.reply(request.payload()).expect("replied");
        }
    });
    let client = house.client();
    let innocent = client.start(b"hold", CallOptions::default()).expect("sent");
    let mut ends = Vec::new();
    for size in [1001, 3000, 100_000] {
        let end = client.call(&pattern(size), LONG);
        ends.push(end.map_or_else(|error| error.status(), |_| Status::OK));
        assert_eq!(client.call(b"x", LONG).expect("answered"), b"x");
    }
    assert_eq!(ends, [Status::MESSAGE_SIZE; 3]);
    assert!(client.cancel(innocent.message_id()), "its channel was cut");
}

#[test]
fn an_answer_over_the_client_s_limit_ends_as_too_large() {
    let _watchdog = Watchdog::start();
    let house = House::of(&small(1000), &Config::default(), 1, |request| {
        let size = String::from_utf8_lossy(request.payload()).parse().expect("a size");
        let _ = request.reply(&pattern(size));
    });
    let client = house.client();
    let mut ends = Vec::new();
    for size in ["1001", "3000", "100000"] {
        let end = client.call(size.as_bytes(), LONG);
        ends.push(end.map_or_else(|error| error.status(), |_| Status::OK));
        assert_eq!(client.call(b"10", LONG).expect("answered"), pattern(10));
    }
    assert_eq!(ends, [Status::MESSAGE_SIZE; 3]);
}

#[test]
fn timeouts_of_zero_and_of_ages_are_kept() {
    let _watchdog = Watchdog::start();
    let house = House::with(&Config::default(), 1, |request| {
        if request.payload() == b"hold" {
            std::mem::forget(request.retain());
        } else if !request.is_one_way() {
            request.reply(request.payload()).expect("replied");
        }
    });
    let client = house.client();
    let port = house.client.server().expect("a loop");
    // It may be the service that says so: it got a request that was late already.
    let timed_out = |end: Result<Vec<u8>, CallError>| {
        assert_eq!(end.expect_err("it is late").status(), Status::TIMED_OUT);
    };
    timed_out(client.call(b"hold", Duration::ZERO));
    timed_out(client.start(b"hold", Duration::ZERO).expect("sent").wait());
    client.send(b"x", Duration::ZERO).expect("there is room");
    assert_eq!(port.poll(Some(Duration::ZERO), &mut |_| {}).expect("polled"), 0);
    let (tell, told) = std::sync::mpsc::channel();
    let done = move |end| tell.send(end).expect("told");
    client.call_async(&port, b"hold", Duration::ZERO, done).expect("sent");
    while port.poll(Some(Duration::ZERO), &mut |_| {}).expect("polled") == 0 {}
    timed_out(told.recv().expect("told"));
    let waited = house.client.wait_service("nobody", Some(Duration::ZERO));
    assert!(matches!(waited, Err(NodeError::TimedOut)), "{waited:?}");
    for ages in [Duration::MAX, Duration::from_hours(10), Duration::from_hours(1_000_000)] {
        assert_eq!(client.call(b"x", ages).expect("answered"), b"x");
        client.send(b"x", ages).expect("sent");
        house.client.wait_service("echo", Some(ages)).expect("served");
    }
}

#[test]
fn configurations_out_of_range_are_refused_and_extremes_work() {
    let _watchdog = Watchdog::start();
    let outstanding = |outstanding| Config { outstanding, ..Config::default() };
    for config in [small(0), small(1 << 32), small(u64::MAX), outstanding(0), outstanding(65_537)] {
        let result = Node::connect(&config);
        assert!(matches!(&result, Err(NodeError::Config(_))), "{config:?}: {result:?}");
    }
    for config in [small(1), small(u64::from(u32::MAX)), outstanding(1), outstanding(65_536)] {
        let house = House::echo(&config);
        let client = house.client();
        assert_eq!(client.call(b"x", LONG).expect("answered"), b"x", "{config:?}");
        assert_eq!(client.call(b"", LONG).expect("answered"), b"", "{config:?}");
    }
    let house = House::with(&outstanding(1), 1, |request| std::mem::forget(request.retain()));
    let client = house.client();
    let one = client.start(b"", LONG).expect("room for one");
    assert!(matches!(client.start(b"", LONG), Err(CallError::Full)));
    one.cancel();
    client.start(b"", LONG).expect("room again").cancel();
}

#[test]
fn the_smallest_and_the_largest_lanes_work() {
    let _watchdog = Watchdog::start();
    for (cells, slab) in [(16, 2048), (16, 16 << 20), (65_536, 2048), (65_536, 16 << 20)] {
        let geometry = Geometry::new(cells, slab).expect("in range");
        for spin in [Spin::Never, Spin::Learned] {
            let house = House::echo(&Config { geometry, spin, ..Config::default() });
            let client = house.client();
            for size in [0, 1, 48, 49, 1000, 1024, 2048, 5000, 100_000, 20 << 20] {
                let payload = pattern(size);
                let answer = client.call(&payload, LONG).expect("answered");
                assert!(answer == payload, "{size} bytes, {geometry:?}");
            }
            let pending: Vec<_> =
                (0..200_u8).map(|n| client.start(&[n; 100], LONG).expect("sent")).collect();
            for (n, it) in pending.into_iter().enumerate() {
                assert_eq!(it.wait().expect("answered"), [n as u8; 100]);
            }
        }
    }
}

fn connect(directory: &Path) -> Result<Node, NodeError> {
    Node::connect(&Config { runtime_dir: Some(directory.to_owned()), ..Config::default() })
}

#[test]
fn a_directory_without_a_runtime_says_so() {
    let _watchdog = Watchdog::start();
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("file");
    std::fs::write(&file, "").expect("written");
    let here = tempfile::tempdir().expect("a directory");
    std::fs::write(here.path().join("ipcd.sock"), "no socket").expect("written");
    let stream = tempfile::tempdir().expect("a directory");
    let _listener = std::os::unix::net::UnixListener::bind(stream.path().join("ipcd.sock"));
    for directory in [home.path(), &home.path().join("missing"), &file, here.path(), stream.path()]
    {
        let result = connect(directory);
        assert!(matches!(&result, Err(NodeError::NoRuntime { .. })), "{directory:?}: {result:?}");
    }
    let result = connect(&home.path().join("x".repeat(200)));
    assert!(matches!(&result, Err(NodeError::Config(_))), "{result:?}");
}

/// Greets one node with these bytes, and hangs up when it does.
fn runtime_that_says(directory: &Path, bytes: Vec<u8>) -> JoinHandle<()> {
    let address = UnixAddr::new(&directory.join("ipcd.sock")).expect("short");
    let flags = SockFlag::SOCK_CLOEXEC;
    let door: OwnedFd =
        socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    bind(door.as_raw_fd(), &address).expect("bound");
    listen(&door.as_fd(), Backlog::new(1).expect("small")).expect("listening");
    std::thread::spawn(move || {
        let node = accept(door.as_raw_fd()).expect("somebody comes");
        let mut hello = [0; MAX_PACKET];
        recv(node, &mut hello, MsgFlags::empty()).expect("a greeting");
        if !bytes.is_empty() {
            let bytes = [IoSlice::new(&bytes)];
            sendmsg::<()>(node, &bytes, &[], MsgFlags::MSG_NOSIGNAL, None).expect("sent");
        }
        nix::unistd::close(node).expect("it was open");
    })
}

#[test]
fn a_runtime_of_another_version_or_none_at_all_is_told_apart() {
    let _watchdog = Watchdog::start();
    let greet = |bytes: Vec<u8>| {
        let directory = tempfile::tempdir().expect("a directory");
        let runtime = runtime_that_says(directory.path(), bytes);
        let result = connect(directory.path());
        runtime.join().expect("no panic");
        result.expect_err("no runtime")
    };
    let welcome = encode_reply(1, &Reply::Welcome { node: ServiceId::new(7), kernel_pid: 1 });
    let mut newer = welcome.clone();
    newer[..2].copy_from_slice(&(VERSION + 1).to_le_bytes());
    let error = greet(newer);
    assert!(
        matches!(error, NodeError::Version { ours: VERSION, theirs } if theirs == VERSION + 1),
        "{error:?}"
    );
    assert_eq!(error.status(), Status::PROTOCOL);
    let error = greet(encode_reply(1, &Reply::Refused(Status::PROTOCOL)));
    assert!(matches!(error, NodeError::Version { .. }), "{error:?}");
    let error = greet(encode_reply(1, &Reply::Refused(Status::QUOTA)));
    assert!(matches!(error, NodeError::Refused(Status::QUOTA)), "{error:?}");
    let error = greet(Vec::new());
    assert!(matches!(error, NodeError::NoRuntime { .. }), "{error:?}");
    for nonsense in [vec![0xFF], welcome[..welcome.len() - 1].to_vec(), vec![0; MAX_PACKET + 1]] {
        let error = greet(nonsense);
        assert_eq!(error.status(), Status::PROTOCOL, "{error:?}");
    }
}

#[test]
fn handles_outlive_their_node_s_name_but_not_their_peer() {
    let _watchdog = Watchdog::start();
    let house = House::echo(&Config::default());
    let config = Config { runtime_dir: Some(house.directory().to_owned()), ..Config::default() };
    let node = Node::connect(&config).expect("a node");
    let client = node.client(node.discover("echo").expect("served")).expect("a channel");
    let pending = client.start(b"kept", LONG).expect("sent");
    let port = node.server().expect("a server");
    drop(node);
    // Each handle keeps what it needs.
    assert_eq!(client.call(b"x", LONG).expect("answered"), b"x");
    port.register("late", 0).expect("registered");
    drop(client);
    assert_eq!(pending.wait().expect("answered"), b"kept");
    drop(port);
    refused(house.client.discover("late"), Status::NOT_FOUND);

    let orphan = house.client();
    drop(house);
    let error = orphan.call(b"x", LONG).expect_err("nobody is left");
    assert!(matches!(error.status(), Status::NO_RUNTIME | Status::PEER_DIED), "{error:?}");
    let error = orphan.send(b"x", LONG).expect_err("nobody is left");
    assert!(matches!(error.status(), Status::NO_RUNTIME | Status::PEER_DIED), "{error:?}");
}
