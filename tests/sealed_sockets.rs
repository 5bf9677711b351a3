//! Encrypted channels over sockets, between real processes: what is promised of them holds as over
//! shared memory, also with somebody in between who has both ends of the socket.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, thread};

use ipc::{CallOptions, Config, Node, NodeError, Priority, Spin, Status, Transport};
use tests::{Actor, Between, Ipcd, LONG, World, pattern, proc, wait_until};

const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");
const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const PROBE: &str = env!("CARGO_BIN_EXE_probe");
const ROUTE: &str = "[[route]]\nfrom = \"any\"\nto = \"name:sealed*\"\nsession = \"encrypted\"\n";

/// What nobody else may read.
const SECRET: &str = "a text that only two know";
/// Around a sealed cell, a cell, a block, a frame, and a message of many frames.
const SIZES: &str = "0,1,31,32,33,48,49,64,65,1000,4096,20000,300000";

/// A runtime on whose routes to `sealed*` channels are encrypted.
fn start() -> (World, Ipcd) {
    let world = World::without_runtime(ACTOR);
    let ipcd = Ipcd::start(IPCD, world.directory(), ROUTE);
    (world, ipcd)
}

/// A client of this process that shares no memory.
fn client(world: &World, name: &str) -> (Node, ipc::Client) {
    let config = Config { share_memory: false, ..world.config(Spin::Learned) };
    let node = Node::connect(&config).expect("a node");
    let client = node.client(node.discover(name).expect("served")).expect("a channel");
    assert_eq!(client.transport(), Transport::Socket);
    (node, client)
}

/// Records that the ends of this process have refused, of all their sessions that are open; nothing
/// while none is shown.
fn refused_by(node: &Node, pid: u32) -> Option<u64> {
    let boards = node.boards().unwrap_or_default();
    let ends = boards.iter().filter(|it| it.pid == pid).flat_map(ipc::Board::ends);
    ends.filter_map(|end| end.session).map(|it| it.refused).reduce(|sum, it| sum + it)
}

#[test]
fn what_is_promised_of_calls_holds_on_sealed_sockets() {
    let (world, _ipcd) = start();
    for (spin, rekey) in [("spin=learned", "rekey=16777216"), ("spin=never", "rekey=100")] {
        let mut server = world.actor(&[spin, rekey]);
        server.ask("serve sealed 1", "serving");
        let mut client = world.actor(&[spin, rekey, "share=no"]);
        assert_eq!(client.ask("by sealed", "goes"), "by socket");
        client.ask(&format!("calls sealed 1 3 {SIZES}"), "called");
        client.ask("calls sealed 4 100 0,32,48,300,5000", "called");
        assert_eq!(client.ask("number sealed 3000 -", "numbered"), "3000 IPC_OK");
        let counted = client.ask("ask sealed 20000 !count", "answer");
        assert_eq!(counted, "3000 0", "{rekey}");
        let node = world.node(Spin::Learned);
        for pid in [server.pid(), client.pid()] {
            wait_until("its session is shown", || refused_by(&node, pid).is_some());
            assert_eq!(refused_by(&node, pid), Some(0), "{rekey}");
        }
        assert!(client.ask("ask sealed 20000 !grow 400000", "answer").len() > 100_000);
        client.quit();
        server.quit();
    }
}

#[test]
fn priorities_and_loans_go_sealed_and_both_ends_show_one_session() {
    let (world, _ipcd) = start();
    let server = world.server("sealed", &["share=no"]);
    let (node, client) = client(&world, "sealed");
    for level in 0..5 {
        let priority = Priority::from_level(level).expect("a level");
        for size in [0, 32, 3000, 50_000] {
            let options = CallOptions::timeout(LONG).priority(priority);
            assert!(client.call(&pattern(size), options).expect("answered") == pattern(size));
        }
    }
    let mut loan = client.loan(200_000).expect("memory");
    loan.copy_from_slice(&pattern(200_000));
    assert!(client.call_loaned(loan, LONG).expect("answered").to_vec() == pattern(200_000));
    assert!(client.ping(LONG).expect("alive") < LONG);
    let session = client.session().expect("it is encrypted");
    assert_eq!((session.pattern.name(), session.refused), ("Noise_XX_25519_ChaChaPoly_SHA256", 0));
    let mut theirs = Vec::new();
    wait_until("the server shows its session", || {
        let boards = node.boards().expect("a runtime");
        let of_server = boards.iter().filter(|board| board.pid == server.pid());
        theirs = of_server.flat_map(ipc::Board::ends).filter_map(|end| end.session).collect();
        !theirs.is_empty()
    });
    assert_eq!(theirs[0].fingerprint, session.fingerprint);
    let ipctl = Path::new(ACTOR).with_file_name("ipctl");
    assert!(ipctl.exists(), "build it first: cargo build -p ipctl");
    let mut shown = Command::new(ipctl);
    shown.args(["sessions", "--json", "--runtime-dir"]).arg(world.directory());
    let shown = shown.output().expect("ipctl");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let name =
        session.fingerprint[..16].iter().fold(String::new(), |s, it| s + &format!("{it:02x}"));
    assert_eq!(shown.matches(&name).count(), 2, "both ends: {shown}");
    // Who comes back proves less, and says less in plain.
    drop(client);
    let again = node.client(node.discover("sealed").expect("served")).expect("a channel");
    assert_eq!(again.session().map(|it| it.pattern), Some(ipc::session::Pattern::Ik));
    assert_eq!(again.call(b"hello", LONG).expect("answered"), b"hello");
}

/// A client and a server that share no memory, and who is between them.
struct Trio {
    client: Actor,
    server: Actor,
    between: Between,
    node: Node,
}

impl Trio {
    fn new(world: &World, ipcd: &Ipcd) -> Trio {
        let server = world.server("sealed", &["share=no"]);
        let mut client = world.actor(&["share=no"]);
        assert_eq!(client.ask("by sealed", "goes"), "by socket");
        assert_eq!(client.ask("ask sealed 20000 hello", "answer"), "hello");
        let between = Between::new(client.pid(), server.pid(), ipcd.pid());
        Trio { client, server, between, node: world.node(Spin::Learned) }
    }

    /// Has the client send so many requests of the secret, and takes them away.
    fn requests(&mut self, count: usize) -> Vec<Vec<u8>> {
        self.server.stop();
        self.client.ask(&format!("start sealed {count} {SECRET}"), "started");
        let packets = self.between.take_from_client(count);
        for packet in &packets {
            let shows = packet.windows(SECRET.len()).any(|it| it == SECRET.as_bytes());
            assert!(!shows, "it is to be read on the way");
        }
        packets
    }

    /// Gives these to the server instead, which then has refused so many records in all.
    fn give(&self, packets: &[Vec<u8>], refused: u64) {
        self.between.give_to_server(packets);
        self.server.go_on();
        wait_until("the server has refused them", || {
            refused_by(&self.node, self.server.pid()) == Some(refused)
        });
    }

    fn still_talks(&mut self) {
        assert_eq!(self.client.ask("ask sealed 20000 again", "answer"), "again");
    }
}

#[test]
fn who_alters_or_swaps_packets_is_noticed_and_the_next_ones_open() {
    let (world, ipcd) = start();
    let mut trio = Trio::new(&world, &ipcd);
    let mut refused = 0;
    // The head: its length and flags have to stay, or it is no frame. The text, and the tag.
    for place in [8, 12, 24, 40, 60, 64] {
        let [mut packet] = <[_; 1]>::try_from(trio.requests(1)).expect("one");
        packet[place] ^= 1;
        refused += 1;
        trio.give(&[packet], refused);
        trio.still_talks();
    }
    let mut packets = trio.requests(3);
    packets.swap(0, 1);
    trio.give(&packets, refused + 2);
    trio.still_talks();
    // One packet's text with the head of another, as if it was the other's.
    let [mut one, mut other] = <[_; 2]>::try_from(trio.requests(2)).expect("two");
    let half = one.len() / 2;
    one[half..].swap_with_slice(&mut other[half..]);
    trio.give(&[one, other], refused + 4);
    trio.still_talks();
}

#[test]
fn who_repeats_a_packet_or_keeps_one_ends_the_channel() {
    let (world, ipcd) = start();
    for is_replay in [true, false] {
        let mut trio = Trio::new(&world, &ipcd);
        let mut packets = trio.requests(20);
        if is_replay {
            packets.insert(1, packets[0].clone());
        } else {
            packets.remove(1);
        }
        trio.between.give_to_server(&packets);
        trio.server.go_on();
        // From there on no record is in its place: the sixteenth ends it, before the first was
        // answered or after that.
        let ended = trio.client.ask("collect", "collected");
        let is_right = ["IPC_EPEERCORRUPT=20", "IPC_EPEERCORRUPT=19 IPC_OK=1"].contains(&&*ended);
        assert!(is_right, "{is_replay}: {ended}");
        trio.still_talks();
        trio.client.quit();
        trio.server.quit();
    }
}

#[test]
fn a_cut_is_told_from_a_death_and_a_death_from_a_close() {
    let (world, ipcd) = start();
    let mut trio = Trio::new(&world, &ipcd);
    trio.client.tell("ask sealed 20000 !hold");
    trio.server.hear("held");
    trio.between.cut();
    assert_eq!(trio.client.hear("failed"), "IPC_EPEERCORRUPT", "both live, and none has closed");
    trio.still_talks();
    let Trio { mut client, mut server, .. } = trio;
    client.tell("ask sealed 20000 !hold");
    server.hear("held");
    server.kill();
    assert_eq!(client.hear("failed"), "IPC_EMAYBE");
    // In order: the last word is under way behind all that was said before.
    let mut server = world.server("sealed", &["share=no"]);
    assert_eq!(client.ask("ask sealed 20000 again", "answer"), "again");
    client.tell("ask sealed 20000 !hold");
    server.hear("held");
    // It lives on: nothing but its last word tells this from a cut.
    server.ask("unserve", "unserved");
    assert_eq!(client.hear("failed"), "IPC_EMAYBE");
}

#[test]
fn who_encrypts_everything_speaks_to_nobody_by_a_path() {
    let world = World::new(ACTOR);
    let path = world.directory().join("path");
    let node = Node::connect(&Config { encrypt: true, ..world.config(Spin::Learned) });
    let node = node.expect("a node");
    let is_refused = |error| matches!(error, NodeError::Refused(Status::NOT_SUPPORTED));
    assert!(node.server().expect("a server").listen(&path).is_err_and(is_refused));
    let other = world.node(Spin::Learned);
    let _listening = other.server().expect("a server").listen(&path).expect("it may");
    let id = node.discover(&format!("unix://{}", path.display())).expect("an address");
    assert!(node.client(id).is_err_and(is_refused));
}

#[test]
fn a_death_in_the_middle_of_the_handshake_is_a_death() {
    let (world, _ipcd) = start();
    // Its loop does not run: it takes the channel in, and says nothing.
    let mut server = world.actor(&["share=no"]);
    server.ask("serve sealed.mute 0", "serving");
    let before = proc::threads(server.pid()).len();
    let has_come = || proc::threads(server.pid()).len() > before;
    let mut first = world.actor(&[]);
    first.tell("by sealed.mute");
    wait_until("a client has come", has_come);
    first.kill();
    wait_until("nothing is left of it", || proc::threads(server.pid()).len() == before);
    let opening = thread::spawn({
        let node = world.node(Spin::Learned);
        move || node.client(node.discover("sealed.mute")?).map(drop)
    });
    wait_until("the next has come", has_come);
    server.kill();
    let ended = opening.join().expect("no panic");
    let is_death = matches!(ended, Err(NodeError::Refused(Status::PEER_DIED | Status::NOT_FOUND)));
    assert!(is_death, "{ended:?}");
}

#[test]
fn users_who_share_no_memory_speak_encrypted_and_nobody_configured_it() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: another user needs root");
        return;
    }
    let world = World::without_runtime(ACTOR);
    let open = tempfile::tempdir().expect("a directory");
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let program = open.path().join("probe");
    // By another process: a child of ours could hold the copy open for writing.
    assert!(Command::new("cp").arg(PROBE).arg(&program).status().expect("run").success());
    let node = format!(
        "[[rule]]\nfrom = \"any\"\nto = \"any\"\nallow = \"all\"\n\
         [service.echo]\nexecutable = \"{}\"\narguments = [\"serve\", \"echo\"]\n\
         user = \"nobody\"\ndirectory = \"/\"\n",
        program.display()
    );
    let ipcd = Ipcd::start(IPCD, world.directory(), &node);
    ipcd.wait("echo", "ready");
    let (_node, client) = client(&world, "echo");
    assert_eq!(client.call(SECRET.as_bytes(), LONG).expect("answered"), SECRET.as_bytes());
    assert_ne!(client.peer().uid, nix::unistd::geteuid().as_raw());
    assert!(client.session().is_some(), "channels between users are encrypted");
}
