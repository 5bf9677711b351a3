//! The runtime dies, or stops, and comes back: open channels never notice.

use std::{
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixListener,
    },
    path::Path,
};

use ipc::{
    NodeError, ServiceId, Spin,
    control::{MAX_PACKET, Reply, Request, decode_request, encode_reply, packet},
};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use tests::{Actor, LONG, World, proc, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// The ids of a name and of the instance that serves it.
fn ids(world: &World, name: &str) -> (u32, u32) {
    let node = world.node(Spin::Never);
    let name = node.wait_service(name, None).expect("it comes");
    let entries = node.list().expect("a list");
    let entry = entries.iter().find(|entry| entry.name_id == name).expect("it is served");
    (name.get(), entry.instance.get())
}

/// How many channels the runtime knows that lead to the one who serves this.
fn channels(world: &World, name: &str) -> u32 {
    let entries = world.node(Spin::Never).list().expect("a list");
    entries.iter().find(|entry| entry.name == name).expect("it is served").channels
}

fn survive(end: fn(Actor), crowd: usize) {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let mut servers = vec![world.server("echo", &["spin=never"])];
    for other in 0..crowd {
        servers.push(world.server(&format!("other-{other}"), &[]));
    }
    let mut client = world.actor(&["spin=never"]);
    let before = ids(&world, "echo");
    let others: Vec<_> = (0..crowd).map(|n| ids(&world, &format!("other-{n}"))).collect();
    client.ask("start echo 5 !hold", "started");
    (0..5).for_each(|_| drop(servers[0].hear("held")));

    end(runtime);
    client.ask("calls echo 4 100 8,1000,20000", "called");
    assert_eq!(client.ask("find echo", "found"), "IPC_ENORUNTIME");
    let nobody = ipc::Node::connect(&world.config(Spin::Never));
    assert!(matches!(nobody, Err(NodeError::NoRuntime { .. })), "{nobody:?}");
    servers[0].tell("release");
    assert_eq!(client.ask("collect", "collected"), "IPC_OK=5");

    let again = world.runtime();
    assert_eq!(ids(&world, "echo"), before);
    wait_until("both ends have told of their channel", || channels(&world, "echo") == 1);
    for (n, other) in others.iter().enumerate() {
        assert_eq!(ids(&world, &format!("other-{n}")), *other);
    }
    assert_eq!(client.ask("await echo", "found"), before.0.to_string());
    client.ask("calls echo 1 10 8", "called");
    let mut newcomer = world.actor(&[]);
    let opened = newcomer.ask("open echo", "opened");
    assert_eq!(opened, format!("{} {}", before.1, servers[0].pid()));
    newcomer.ask("calls echo 1 10 8,1000", "called");
    // The new runtime watches over those whom it never saw come.
    servers.swap_remove(0).kill();
    let mut standby = world.actor(&[]);
    standby.ask("serve echo 1", "serving");
    assert_eq!(ids(&world, "echo").0, before.0);
    assert_eq!(client.ask("ask echo 30000 hello", "answer"), "hello");
    assert_eq!(newcomer.ask("ask echo 30000 hello", "answer"), "hello");
    again.quit();
}

#[test]
fn channels_and_names_survive_the_death_of_the_runtime() {
    survive(Actor::kill, 3);
}

#[test]
fn channels_and_names_survive_an_orderly_stop_of_the_runtime() {
    survive(Actor::quit, 0);
}

#[test]
fn ten_runtimes_die_and_nobody_keeps_anything_of_them() {
    let world = World::without_runtime(ACTOR);
    let mut runtime = world.runtime();
    let server = world.server("echo", &[]);
    let mut client = world.actor(&[]);
    client.ask("calls echo 1 10 8", "called");
    let id = client.ask("await echo", "found");
    let pids = [server.pid(), client.pid()];
    let before = pids.map(proc::holdings);
    for _ in 0..10 {
        runtime.kill();
        client.ask("calls echo 1 10 8", "called");
        runtime = world.runtime();
        assert_eq!(client.ask("await echo", "found"), id);
    }
    // A thread that had just ended may have been counted before.
    wait_until("nothing is left of them", || {
        pids.iter().zip(&before).all(|(&pid, before)| proc::holdings(pid).is_within(before))
    });
    runtime.quit();
}

#[test]
fn a_call_in_flight_survives_the_runtime_and_its_peer_s_death_is_still_noticed() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let mut server = world.server("echo", &[]);
    let (_node, client) = world.client("echo", Spin::Never);
    let waiting = client.start(b"!hold", LONG).expect("sent");
    server.hear("held");
    runtime.kill();
    server.kill();
    let ended = waiting.wait();
    assert!(matches!(ended, Err(ipc::CallError::PeerDied { taken: true })), "{ended:?}");
    let ended = client.call(b"x", LONG).expect_err("nobody is left").status();
    assert_eq!(ended, ipc::Status::NO_RUNTIME);
}

#[test]
fn a_runtime_that_dies_as_it_greets_is_not_the_last() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let server = world.server("echo", &[]);
    let before = ids(&world, "echo");
    runtime.kill();
    greet_and_die(&world.directory().join("ipcd.sock"), &server);
    let again = world.runtime();
    assert_eq!(ids(&world, "echo"), before);
    server.quit();
    again.quit();
}

/// Plays a runtime that is gone when the newcomer, whom it greeted, says what it serves.
fn greet_and_die(path: &Path, server: &Actor) {
    let _ = std::fs::remove_file(path);
    let flags = SockFlag::SOCK_CLOEXEC;
    let door = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    let address = UnixAddr::new(path).expect("short");
    bind(door.as_raw_fd(), &address).expect("bound");
    listen(&door, Backlog::new(1).expect("small")).expect("listening");
    let newcomer = UnixListener::from(door).accept().expect("it comes back").0;
    let mut buffer = [0; MAX_PACKET];
    let length = nix::unistd::read(&newcomer, &mut buffer).expect("a greeting");
    let (sequence, hello) = decode_request(&buffer[..length]).expect("a request");
    assert!(matches!(hello, Request::Hello { .. }), "{hello:?}");
    let welcome = Reply::Welcome { node: ServiceId::new(7), kernel_pid: std::process::id() };
    server.stop();
    packet::send(newcomer.as_fd(), &encode_reply(sequence, &welcome), &[]).expect("sent");
    drop(newcomer);
    server.go_on();
}

#[test]
fn a_runtime_in_this_process_can_be_stopped_and_replaced_by_another_process_s() {
    let world = World::without_runtime(ACTOR);
    let kernel = kernel_services::Kernel::embedded(world.directory()).expect("a runtime");
    let server = world.server("echo", &[]);
    let before = ids(&world, "echo");
    let running = kernel_services::Kernel::embedded(world.directory());
    assert!(matches!(running, Err(kernel_services::KernelError::Running { .. })), "{running:?}");
    kernel.stop();
    let runtime = world.runtime();
    assert_eq!(ids(&world, "echo"), before);
    server.quit();
    runtime.quit();
}
