//! Processes that cannot share memory, since a filter denies it to them or since they are told not
//! to: their channels go over sockets by themselves, and say so.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use ipc::{CallError, Config, Node, Spin, Status, Transport};
use tests::{Actor, LONG, World, proc, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const WITHOUT: &str = env!("CARGO_BIN_EXE_without");
/// What the kernel may deny: to make memory, to map what others made, or all of it.
const DENIED: [&str; 3] = ["memfd", "shared_maps", "future_write"];
/// Around a cell, a frame, and a message of many.
const SIZES: &str = "0,48,49,1000,20000,300000";

fn denied<'a>(what: &'a str, options: &[&str], world: &World) -> Actor {
    let wrapper: [&'a str; 3] = [WITHOUT, what, "--"];
    world.actor_under(&wrapper, options)
}

fn unshared(world: &World) -> Config {
    Config { share_memory: false, ..world.config(Spin::Learned) }
}

#[test]
fn a_client_that_is_denied_memory_calls_over_a_socket_by_itself() {
    let world = World::new(ACTOR);
    let server = world.server("echo", &[]);
    for what in DENIED {
        let mut client = denied(what, &[], &world);
        assert_eq!(client.ask("by echo", "goes"), "by socket", "without {what}");
        client.ask(&format!("calls echo 3 40 {SIZES}"), "called");
        let before = proc::holdings(server.pid());
        let mut mortal = denied(what, &[], &world);
        mortal.ask("calls echo 1 1 8", "called");
        // Its end is heard, and leaves nothing.
        mortal.kill();
        wait_until("nothing is left of the client", || {
            proc::holdings(server.pid()).is_within(&before)
        });
    }
    let (_node, shared) = world.client("echo", Spin::Learned);
    assert_eq!(shared.transport(), Transport::SharedMemory, "who can, does");
}

#[test]
fn a_service_that_is_denied_memory_is_called_over_a_socket() {
    for what in DENIED {
        let world = World::new(ACTOR);
        let mut server = denied(what, &[], &world);
        server.ask("serve echo 2", "serving");
        let mut client = world.actor(&[]);
        assert_eq!(client.ask("by echo", "goes"), "by socket", "without {what}");
        client.ask(&format!("calls echo 3 40 {SIZES}"), "called");
        // The second is not offered memory any more.
        let mut second = world.actor(&[]);
        assert_eq!(second.ask("by echo", "goes"), "by socket", "without {what}");
        client.tell("ask echo - !hold");
        server.hear("held");
        server.kill();
        assert_eq!(client.hear("failed"), "IPC_EMAYBE", "without {what}");
    }
}

#[test]
fn who_says_so_shares_no_memory_on_either_side() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &["share=no"]);
    let node = world.node(Spin::Learned);
    let client = node.client(node.discover("echo").expect("served")).expect("a channel");
    assert_eq!(client.transport(), Transport::Socket);
    assert_eq!(client.call(b"hello", LONG).expect("an answer"), b"hello");
    let apart = Node::connect(&unshared(&world)).expect("a node");
    let other = apart.client(apart.discover("echo").expect("served")).expect("a channel");
    assert_eq!(other.call(b"hello", LONG).expect("an answer"), b"hello");
    // The rules of the runtime hold as on any channel: each knows who the other is.
    assert_eq!((other.peer().pid, other.peer().id), (server.pid(), client.peer().id));
    assert_ne!(other.peer().name, ipc::ServiceId::NONE);
    let held = client.start(b"!hold", LONG).expect("sent");
    server.hear("held");
    server.kill();
    let ended = held.wait();
    assert!(matches!(ended, Err(CallError::PeerDied { taken: true })), "{ended:?}");
    // Whoever serves the name next is found; it shares memory.
    let _next = world.server("echo", &[]);
    assert_eq!(client.call(b"again", LONG).expect("an answer"), b"again");
    assert_eq!(client.transport(), Transport::SharedMemory);
    assert_eq!(other.call(b"again", LONG).expect("an answer"), b"again");
    assert_eq!(other.transport(), Transport::Socket);
}

#[test]
fn ipctl_shows_by_what_each_channel_goes() {
    let world = World::new(ACTOR);
    let server = world.server("echo", &[]);
    let (_shared, _one) = world.client("echo", Spin::Learned);
    let apart = Node::connect(&unshared(&world)).expect("a node");
    let _two = apart.client(apart.discover("echo").expect("served")).expect("a channel");
    let ipctl = Path::new(ACTOR).with_file_name("ipctl");
    assert!(ipctl.exists(), "build it first: cargo build -p ipctl");
    let show = |arguments: &[&str]| {
        let mut command = Command::new(&ipctl);
        command.args(arguments).arg("--runtime-dir").arg(world.directory());
        let output = command.stdin(Stdio::null()).output().expect("ipctl");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let seen = || {
        let rows = show(&["ls", "--channels", "--json"]);
        let of_echo = rows.as_array().into_iter().flatten().filter(|row| {
            row["service"] == "echo" && row["service_pid"].as_u64() == Some(server.pid().into())
        });
        let mut seen: Vec<_> = of_echo.map(|row| row["transport"].to_string()).collect();
        seen.sort();
        seen
    };
    // Boards are told of by the way.
    wait_until("both are shown", || seen() == [r#""shared memory""#, r#""socket""#]);
    assert_eq!(show(&["ping", "echo", "--json"])["transport"], "shared memory");
}

#[test]
fn a_service_sees_who_calls_over_a_socket() {
    let world = World::new(ACTOR);
    let service = world.node(Spin::Never);
    let server = service.server().expect("a server");
    server.register("echo", 0).expect("registered");
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        server.run(|request| {
            let _ = tell.send(request.peer());
            let _ = request.reply(b"");
        })
    });
    let node = Node::connect(&unshared(&world)).expect("a node");
    let client = node.client(node.discover("echo").expect("served")).expect("a channel");
    client.call(b"", LONG).expect("an answer");
    let peer = told.recv_timeout(LONG).expect("called");
    assert_eq!((peer.id, peer.transport), (node.id(), Transport::Socket));
    assert_eq!(peer.pid, std::process::id());
    service.interrupter().fire();
    let _ = thread.join().expect("no panic");
}

#[test]
fn channels_over_sockets_outlive_the_runtime_and_are_told_to_the_next() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let mut server = world.server("echo", &["share=no"]);
    let node = world.node(Spin::Learned);
    let client = node.client(node.discover("echo").expect("served")).expect("a channel");
    assert_eq!(client.transport(), Transport::Socket);
    runtime.kill();
    assert_eq!(client.call(b"alone", LONG).expect("an answer"), b"alone");
    let _next = world.runtime();
    let channels = || {
        let entries = node.list().unwrap_or_default();
        entries.iter().find(|it| it.name == "echo").map_or(0, |it| it.channels)
    };
    wait_until("both ends have told of it", || channels() == 1);
    assert_eq!(client.call(b"together", LONG).expect("an answer"), b"together");
    // What it said to the first runtime it says to the next.
    let mut other = world.actor(&[]);
    assert_eq!(other.ask("by echo", "goes"), "by socket");
    server.ask("unserve", "unserved");
    wait_until("its channels end with it", || client.call(b"gone", LONG).is_err());
}

#[test]
fn deadlines_and_floods_end_as_they_do_by_memory() {
    let world = World::new(ACTOR);
    let server = world.server("echo", &["share=no"]);
    let (_node, client) = world.client("echo", Spin::Learned);
    let late = client.call(b"!hold", Duration::from_millis(20));
    let is_late = matches!(late, Err(CallError::TimedOut | CallError::Remote(Status::TIMED_OUT)));
    assert!(is_late, "{late:?}");
    server.stop();
    let brief = Duration::from_millis(50);
    let full = (0..100_000_u64).find_map(|_| client.send(&[7; 1000], brief).err());
    assert!(matches!(full, Some(CallError::TimedOut | CallError::Full)), "{full:?}");
    server.go_on();
    wait_until("it has caught up", || client.call(b"hello", LONG).is_ok());
}
