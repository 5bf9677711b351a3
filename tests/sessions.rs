//! Who proves what on encrypted channels, how sessions begin and how they end: between real
//! processes.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    sync::mpsc,
    thread,
};

use ipc::{
    CallError, Client, Config, Node, NodeError, PeerCorrupt, Spin, Status,
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

#[test]
fn who_is_killed_in_the_middle_of_a_change_of_keys_leaves_whole_messages_only() {
    let (world, _ipcd) = start("");
    let node = world.node(Spin::Learned);
    let port = node.server().expect("a server");
    port.register("sealed", 0).expect("registered");
    let (tell, told) = mpsc::channel();
    let serving = thread::spawn(move || {
        port.run(|request| {
            let number = request.payload().first_chunk().expect("a number");
            let _ = tell.send(u64::from_le_bytes(*number));
        })
    });
    let mut rekeys = 0;
    for round in 0..30 {
        // Each record has a key of its own: whenever it is killed, it changes keys.
        let mut client = world.actor(&["rekey=1"]);
        client.tell("number sealed 100000000 -");
        for number in 0..100 + 37 * round {
            assert_eq!(told.recv_timeout(LONG), Ok(number), "in their order");
        }
        let sessions = node.sessions();
        let refused = sessions.iter().filter_map(|it| it.session).map(|it| it.refused);
        assert_eq!(refused.sum::<u64>(), 0);
        client.kill();
        wait_until("its channel has ended", || node.sessions().is_empty());
        let mut last = 99 + 37 * round;
        for number in told.try_iter() {
            assert_eq!(number, last + 1, "a message was lost, or made up");
            last = number;
        }
        rekeys += last;
    }
    assert!(rekeys > 1000, "{rekeys}");
    node.interrupter().fire();
    assert!(matches!(serving.join().expect("no panic"), Err(CallError::Canceled)));
}

#[test]
fn who_is_stopped_in_a_change_of_keys_goes_on_in_both_directions() {
    let (world, _ipcd) = start("");
    let mut server = world.actor(&["rekey=3"]);
    server.ask("serve sealed 1", "serving");
    let config = Config { rekey_records: 2, ..world.config(Spin::Learned) };
    let node = Node::connect(&config).expect("a node");
    let client = open(&node, "sealed");
    for round in 0..200_u32 {
        if round % 20 == 0 {
            server.stop();
            let waiting = client.start(&round.to_le_bytes(), LONG).expect("sent");
            server.go_on();
            assert_eq!(waiting.wait().expect("answered"), round.to_le_bytes());
        }
        let text = vec![round as u8 | 128; [8, 33, 64, 1000, 100_000][round as usize % 5]];
        assert!(client.call(&text, LONG).expect("answered") == text);
    }
    let session = client.session().expect("encrypted");
    assert!(session.rekeys >= 100 && session.refused == 0, "{session:?}");
}

#[test]
fn a_forked_child_has_no_part_in_its_parent_s_session() {
    let (world, _ipcd) = start("");
    let mut server = world.actor(&[]);
    server.ask("serve sealed 1", "serving");
    let mut parent = world.actor(&[]);
    parent.ask("serve sealed.own 1", "serving");
    assert_eq!(parent.ask("ask sealed 20000 before", "answer"), "before");
    let status = parent.ask("fork sealed", "forked");
    let said = parent.heard("child");
    assert!(status.ends_with(", 0)"), "{status}: {said:?}");
    for operation in ["call", "call_into", "send", "burst", "start", "ping", "client"] {
        let expected = format!("child {operation} IPC_EFORK");
        assert!(said.contains(&expected), "{expected}: {said:?}");
    }
    assert_eq!(parent.hear("anew"), "answer hello", "over a session of the child's own");
    assert_eq!(parent.ask("collect", "collected"), "IPC_OK=1");
    // The parent's session is what it was, at both ends.
    for _ in 0..20 {
        assert_eq!(parent.ask("ask sealed 20000 after", "answer"), "after");
    }
    let (_node, client) = world.client("sealed", Spin::Learned);
    assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
}

/// Where the life word is in a lane.
const LIFE: u64 = 0x80;

/// The life word of a process's own lane of the one channel that it has: where, and what it says.
fn life_word(pid: u32) -> (u64, u32) {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a process");
    let own = maps.lines().find(|it| it.contains("ipc-lane") && it.contains(" rw-"));
    let from = own.and_then(|it| it.split('-').next()).expect("a lane of its own");
    let at = u64::from_str_radix(from, 16).expect("an address") + LIFE;
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("a process that we started");
    let mut word = [0; 4];
    memory.read_exact_at(&mut word, at).expect("mapped");
    (at, u32::from_le_bytes(word))
}

#[test]
fn a_close_is_told_from_a_cut_by_who_waits_for_an_answer() {
    let (world, _ipcd) = start("");
    let held = |name: &str| {
        let mut server = world.actor(&[]);
        server.ask(&format!("serve {name} 1"), "serving");
        let (node, client) = world.client(name, Spin::Learned);
        let waiting = client.start(b"!hold", LONG).expect("sent");
        server.hear("held");
        (server, node, waiting)
    };
    // In order: the service closes its end, and says so.
    let (mut server, _node, waiting) = held("sealed.close");
    server.tell("quit");
    let ended = waiting.wait();
    assert!(matches!(ended, Err(CallError::PeerDied { .. })), "{ended:?}");
    // It dies: the kernel says so.
    let (server, _node, waiting) = held("sealed.death");
    server.kill();
    let ended = waiting.wait();
    assert!(matches!(ended, Err(CallError::PeerDied { taken: true })), "{ended:?}");
    // Somebody writes that it is closed, and it has not said so; nor can it, when it sees that the
    // client has drawn its conclusion.
    for (name, is_cut) in [("sealed.cut", true), ("open", false)] {
        let (server, _node, waiting) = held(name);
        server.stop();
        let (at, alive) = life_word(server.pid());
        assert_ne!(alive, 0, "a thread's number");
        let memory = fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", server.pid()));
        memory.expect("ours").write_all_at(&[0; 4], at).expect("mapped");
        let ended = waiting.wait();
        if is_cut {
            let told = matches!(ended, Err(CallError::PeerCorrupt(PeerCorrupt::Cut)));
            assert!(told, "{ended:?}");
        } else {
            assert!(matches!(ended, Err(CallError::PeerDied { .. })), "{ended:?}");
        }
    }
}

/// Keys and keystream in the vaults of a process: each 16 bytes that look like nothing else.
fn secrets(pid: u32) -> Vec<[u8; 16]> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("a process");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("a process that we started");
    let (mut range, mut found) = ((0, 0), Vec::new());
    for line in smaps.lines() {
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let bounds = line.split(' ').next().and_then(|it| it.split_once('-'));
        if let Some((from, to)) = bounds.and_then(|(from, to)| Some((hex(from)?, hex(to)?))) {
            range = (from, to);
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && flags.contains(" dd")
            && flags.contains(" wf")
        {
            let mut bytes = vec![0; (range.1 - range.0) as usize];
            memory.read_exact_at(&mut bytes, range.0).expect("mapped");
            found.extend(bytes.as_chunks::<16>().0.iter().copied());
        }
    }
    found.retain(|it| it.iter().filter(|byte| **byte != 0).count() > 12);
    found
}

#[test]
fn a_core_has_no_key_in_it() {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("proc");
    if pattern.contains('/') || pattern.contains('|') {
        eprintln!("skipped: cores of this machine go elsewhere: {pattern}");
        return;
    }
    let (world, _ipcd) = start("");
    let mut server = world.actor(&[]);
    server.ask("serve sealed 1", "serving");
    let mut client = world.actor(&["spin=never"]);
    client.ask("calls sealed 1 50 10,48,64,1000,70000", "called");
    let marker = "what is no secret is found there";
    assert_eq!(client.ask(&format!("ask sealed 20000 {marker}"), "answer"), marker);
    let secrets = secrets(client.pid());
    assert!(secrets.len() >= 8, "only {}", secrets.len());
    let place = tempfile::tempdir().expect("a directory");
    client.tell(&format!("dump {}", place.path().display()));
    client.wait();
    let core = fs::read_dir(place.path()).expect("ours").flatten().next();
    let Some(core) = core else {
        eprintln!("skipped: this machine makes no cores");
        return;
    };
    let core = fs::read(core.path()).expect("ours");
    let lies_there = |text: &[u8]| core.windows(text.len()).any(|it| it == text);
    assert!(lies_there(marker.as_bytes()), "a whole core");
    let sought: HashSet<[u8; 16]> = secrets.into_iter().collect();
    let found = core.windows(16).filter(|it| sought.contains(*it)).count();
    assert_eq!(found, 0, "of {} secrets", sought.len());
}
