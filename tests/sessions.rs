//! Who proves what on encrypted channels, how sessions begin and how they end: between real
//! processes.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, thread};

use ipc::{
    CallError, Client, Config, Node, NodeError, Spin, Status,
    session::{Pattern, PublicKey, StaticKey},
};
use tests::{Actor, Ipcd, LONG, World, proc, wait_until};

const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");
const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const PROBE: &str = env!("CARGO_BIN_EXE_probe");

const ROUTE: &str = "[[rule]]\nfrom = \"any\"\nto = \"any\"\nallow = \"all\"\n\
                     [[route]]\nfrom = \"any\"\nto = \"name:sealed*\"\nsession = \"encrypted\"\n";

/// A runtime on whose routes to `sealed*` channels are encrypted, and that supervises this.
fn start(services: &str) -> (World, Ipcd) {
    let world = World::without_runtime(ACTOR);
    let ipcd = Ipcd::start(IPCD, world.directory(), &format!("{ROUTE}{services}"));
    (world, ipcd)
}

fn open(node: &Node, name: &str) -> Client {
    node.client(node.discover(name).expect("served")).expect("a channel")
}

fn pattern(client: &Client) -> Pattern {
    assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
    client.session().expect("it is encrypted").pattern
}

#[test]
fn a_newcomer_comes_back_and_who_serves_is_known() {
    let (world, _ipcd) = start("");
    let mut server = world.actor(&[]);
    server.ask("serve sealed 1", "serving");
    let node = world.node(Spin::Learned);
    assert_eq!(pattern(&open(&node, "sealed")), Pattern::Xx);
    assert_eq!(pattern(&open(&node, "sealed")), Pattern::Ik, "it comes back");
    assert_eq!(pattern(&open(&node, "sealed")), Pattern::Ik);
    // Another process in its place has another key: nobody has met that.
    server.kill();
    let mut server = world.actor(&[]);
    server.ask("serve sealed 1", "serving");
    assert_eq!(pattern(&open(&node, "sealed")), Pattern::Xx);
    assert_eq!(pattern(&open(&world.node(Spin::Learned), "sealed")), Pattern::Xx, "a newcomer");
    let port = node.server().expect("a server");
    port.register("known", 0).expect("registered");
    assert_eq!(pattern(&open(&node, "sealed")), Pattern::Kk, "the registry binds its key");
}

/// A service that the supervisor starts, as that user.
fn service(program: &Path) -> String {
    format!(
        "[service.sealed]\nexecutable = \"{}\"\narguments = [\"serve\", \"sealed\"]\n\
         directory = \"/\"\n",
        program.display()
    )
}

fn key_of(world: &World, unit: &str) -> PublicKey {
    let text = fs::read_to_string(world.directory().join(format!("keys/{unit}.pub")));
    PublicKey::from_hex(&text.expect("a key was made")).expect("of 64 digits")
}

#[test]
fn a_supervised_service_proves_the_key_that_was_made_for_it_for_good() {
    let (world, ipcd) = start(&service(Path::new(PROBE)));
    ipcd.wait("sealed", "ready");
    let key = key_of(&world, "sealed#1");
    let file = world.directory().join("keys/sealed#1.key");
    let mode = fs::metadata(&file).expect("it was made").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(StaticKey::load(&file).expect("ours").public(), key);
    let node = world.node(Spin::Learned);
    node.expect_key("sealed", key).expect("room");
    assert_eq!(pattern(&open(&node, "sealed")), Pattern::Xx);
    // Its next process, and the next runtime's, is met again.
    let pid = ipcd.pid_of("sealed");
    tests::ipcd::signal(pid, nix::sys::signal::Signal::SIGKILL);
    ipcd.wait_replaced("sealed", pid);
    ipcd.wait("sealed", "ready");
    assert_eq!(pattern(&open(&node, "sealed")), Pattern::Ik);
    ipcd.kill();
    let ipcd = Ipcd::again(IPCD, world.directory());
    ipcd.wait("sealed", "ready");
    assert_eq!(pattern(&open(&node, "sealed")), Pattern::Ik);
    assert_eq!(key_of(&world, "sealed#1"), key);
    // Who expects another key has no channel, whatever the runtime says.
    let other = StaticKey::generate().expect("random").public();
    let wary = world.node(Spin::Learned);
    wary.expect_key("sealed", other).expect("room");
    let refused = wary.client(wary.discover("sealed").expect("served")).map(drop);
    let Err(NodeError::Introduced(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("another key"), "{why}");
    assert_eq!(NodeError::Introduced(why).status(), Status::AUTH);
}

#[test]
fn the_key_of_a_file_is_a_node_s_for_good() {
    let (world, _ipcd) = start("");
    let path = world.directory().join("node.key");
    let config = Config { key_file: Some(path.clone()), ..world.config(Spin::Learned) };
    let key = Node::connect(&config).expect("a node").key();
    assert_eq!(fs::metadata(&path).expect("made").permissions().mode() & 0o7777, 0o600);
    let node = Node::connect(&config).expect("a node");
    assert_eq!(node.key(), key);
    assert_ne!(world.node(Spin::Learned).key(), key);
    // By that key it is known to who expects it, and nobody else is.
    let service = world.node(Spin::Learned);
    service.expect_key("client", key).expect("room");
    let port = service.server().expect("a server");
    port.register("sealed", 0).expect("registered");
    let serving = thread::spawn({
        let port = port.clone();
        move || port.run(|request| request.reply(request.payload()).expect("room"))
    });
    let name = node.server().expect("a server");
    let registration = name.register("client", 0).expect("registered");
    assert_eq!(pattern(&open(&node, "sealed")), Pattern::Kk);
    name.unregister(registration.instance).expect("it was");
    let squatter = world.node(Spin::Learned);
    let squat = squatter.server().expect("a server");
    squat.register("client", 0).expect("registered");
    let refused = squatter.client(squatter.discover("sealed").expect("served")).map(drop);
    assert!(matches!(refused, Err(NodeError::Refused(Status::AUTH))), "{refused:?}");
    // A key that others can read proves nothing.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
    assert_eq!(Node::connect(&config).map(drop).map_err(|it| it.status()), Err(Status::AUTH));
    service.interrupter().fire();
    assert!(matches!(serving.join().expect("no panic"), Err(CallError::Canceled)));
}

/// Starts so many processes that serve a name, in this order.
fn replicas(world: &World, name: &str, count: usize) -> Vec<Actor> {
    let replica = |_| {
        let mut replica = world.actor(&["spin=never"]);
        replica.ask(&format!("replica {name}"), "serving");
        replica
    };
    (0..count).map(replica).collect()
}

/// The sessions of a node's own channels.
fn fingerprints(node: &Node) -> Vec<[u8; 32]> {
    node.sessions().iter().filter_map(|it| it.session).map(|it| it.fingerprint).collect()
}

#[test]
fn an_encrypted_name_fails_over_and_each_channel_has_a_session_of_its_own() {
    let (world, _ipcd) = start("");
    let mut servers = replicas(&world, "sealed", 3);
    let (node, client) = world.client("sealed", Spin::Never);
    let mut seen = Vec::new();
    wait_until("the channels to both standbys are open", || {
        assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
        seen = fingerprints(&node);
        seen.len() == 3
    });
    assert!((1..3).all(|at| !seen[..at].contains(&seen[at])), "one session each");
    let before = client.session().expect("encrypted").fingerprint;
    // What the first never took is sealed once more, for the next.
    servers[0].stop();
    for number in 0..40_u64 {
        client.send(&number.to_le_bytes(), ipc::CallOptions::default()).expect("room");
    }
    let calling = thread::spawn({
        let client = client.clone();
        move || client.call(b"under way", LONG)
    });
    servers.remove(0).kill();
    assert_eq!(calling.join().expect("no panic").expect("answered"), b"under way");
    assert_eq!(client.call(b"!count", LONG).expect("answered"), b"40 0");
    let after = client.session().expect("encrypted").fingerprint;
    assert_ne!(after, before);
    assert!(seen.contains(&after), "it was open, and sealed, before the death");
    servers.remove(0).kill();
    assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
    let last = client.session().expect("encrypted").fingerprint;
    assert!(last != before && last != after);
}

#[test]
fn who_is_killed_between_two_messages_of_a_handshake_holds_up_nobody() {
    let (world, _ipcd) = start("");
    let node = world.node(Spin::Learned);
    let port = node.server().expect("a server");
    port.register("sealed", 0).expect("registered");
    let nobody = &mut |_: ipc::Request<'_>| unreachable!("it has no session");
    for is_stopped_first in [true, false] {
        let mut client = world.actor(&[]);
        client.tell("open sealed");
        wait_until("it has come so far", || proc::lane_sizes(client.pid()).len() == 2);
        // Its second message comes only after the answer to the first.
        if is_stopped_first {
            client.stop();
        }
        port.poll(Some(std::time::Duration::ZERO), nobody).expect("polled");
        client.kill();
        wait_until("it is let go", || {
            port.poll(Some(std::time::Duration::ZERO), nobody).expect("polled");
            proc::lane_sizes(std::process::id()).is_empty()
        });
    }
    let serving = thread::spawn(move || port.run(|it| it.reply(it.payload()).expect("room")));
    let (_other, client) = world.client("sealed", Spin::Learned);
    assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
    node.interrupter().fire();
    assert!(matches!(serving.join().expect("no panic"), Err(CallError::Canceled)));
}
