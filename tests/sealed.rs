//! Encrypted channels between real processes: what is promised of calls holds, nothing of them is
//! to be read in shared memory, and whoever cannot or does not prove its key has no channel.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    sync::{Mutex, mpsc},
    thread,
};

use ipc::{CallError, CallOptions, Config, Node, NodeError, Priority, Spin, Status};
use tests::{Actor, Ipcd, LONG, World, pattern, proc};

const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");
const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const HOSTILE: &str = env!("CARGO_BIN_EXE_hostile");

/// What nobody else may read.
const SECRET: &[u8] = b"a text that only two know";

/// A route whose channels are `encrypted` or `plain`.
fn route(session: &str) -> String {
    format!("[[route]]\nfrom = \"any\"\nto = \"name:sealed*\"\nsession = \"{session}\"\n")
}

/// A runtime on whose routes to `sealed*` channels are encrypted.
fn start() -> (World, Ipcd) {
    let world = World::without_runtime(ACTOR);
    let ipcd = Ipcd::start(IPCD, world.directory(), &route("encrypted"));
    (world, ipcd)
}

/// The lanes and arenas that a process has mapped: where, whether it may write there, and the
/// bytes.
fn shared(pid: u32) -> Vec<(u64, bool, Vec<u8>)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a process");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("a process that we started");
    let shared = maps.lines().filter(|line| line.contains("memfd:ipc"));
    let read = shared.filter_map(|line| {
        let (from, to) = line.split(' ').next().and_then(|it| it.split_once('-')).expect("a range");
        let [from, to] = [from, to].map(|it| u64::from_str_radix(it, 16).expect("an address"));
        let mut bytes = vec![0; (to - from) as usize];
        // What another test of this process had mapped may be gone.
        memory.read_exact_at(&mut bytes, from).ok()?;
        Some((from, line.contains(" rw-"), bytes))
    });
    read.collect()
}

/// Whether a text is to be read in what processes share.
fn shows(pids: [u32; 2], text: &[u8]) -> bool {
    let mut all = pids.into_iter().flat_map(shared);
    all.any(|(_, _, bytes)| bytes.windows(text.len()).any(|it| it == text))
}

#[test]
fn what_is_promised_of_calls_holds_on_encrypted_channels() {
    let (world, _ipcd) = start();
    for spin in ["spin=learned", "spin=never"] {
        let mut server = world.actor(&[spin]);
        server.ask("serve sealed 2", "serving");
        let mut client = world.actor(&[spin]);
        let sizes = "0,1,31,32,33,48,49,64,65,255,1024,4096,4130,20000,100000,3000000";
        client.ask(&format!("calls sealed 1 3 {sizes}"), "called");
        client.ask("calls sealed 6 300 0,32,48,300,5000", "called");
        client.ask("number sealed 5000 -", "numbered");
        assert_eq!(client.ask("ask sealed 20000 !count", "answer"), "5000 0");
        assert!(client.ask("ask sealed 20000 !grow 400000", "answer").len() > 100_000);
    }
}

#[test]
fn every_priority_loan_and_error_goes_through_sealed_frames() {
    let (world, _ipcd) = start();
    let mut server = world.actor(&[]);
    server.ask("serve sealed 1", "serving");
    let (_node, client) = world.client("sealed", Spin::Learned);
    for level in 0..5 {
        let priority = Priority::from_level(level).expect("a level");
        for size in [0, 32, 48, 3000, 50_000] {
            let options = CallOptions::timeout(LONG).priority(priority);
            assert!(client.call(&pattern(size), options).expect("answered") == pattern(size));
        }
    }
    let mut loan = client.loan(200_000).expect("memory");
    loan.copy_from_slice(&pattern(200_000));
    assert!(client.call_loaned(loan, LONG).expect("answered").to_vec() == pattern(200_000));
    assert!(client.ping(LONG).expect("alive") < LONG);
    ipc::trace::within(ipc::trace::Context::root(), || {
        assert!(client.call(&pattern(100), LONG).expect("answered") == pattern(100));
    });
}

#[test]
fn nothing_of_an_encrypted_channel_is_to_be_read_in_shared_memory() {
    let (world, _ipcd) = start();
    let mut server = world.actor(&[]);
    server.ask("serve sealed 1", "serving");
    server.ask("serve open 1", "serving");
    let pids = [server.pid(), std::process::id()];
    let mut long = pattern(300_000);
    long[150_000..][..SECRET.len()].copy_from_slice(SECRET);
    let both = |name: &str| {
        let (_node, client) = world.client(name, Spin::Learned);
        let mut seen = Vec::new();
        for payload in [SECRET, &[SECRET, SECRET, SECRET].concat(), &long] {
            assert!(client.call(payload, LONG).expect("answered") == payload);
            seen.push(shows(pids, SECRET));
        }
        seen
    };
    assert_eq!(both("sealed"), [false; 3]);
    assert_eq!(both("open"), [true; 3], "this is how it would be seen");
}

/// A server in this process, whose handler tells of each message by its first 8 bytes, and waits
/// at a gate for each request.
struct Gated {
    node: Node,
    open: mpsc::Sender<()>,
    told: mpsc::Receiver<u64>,
}

impl Gated {
    fn serve(world: &World) -> Gated {
        let node = world.node(Spin::Learned);
        let port = node.server().expect("a server");
        port.register("sealed", 0).expect("registered");
        let (open, opened) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let opened = Mutex::new(opened);
        thread::spawn(move || {
            let _ = port.run(|request| {
                let number = request.payload().first_chunk().expect("a number");
                let _ = tell.send(u64::from_le_bytes(*number));
                if !request.is_one_way() {
                    let _ = opened.lock().expect("no panic").recv();
                    let _ = request.reply(request.payload());
                }
            });
        });
        Gated { node, open, told }
    }

    fn hear(&self) -> u64 {
        self.told.recv_timeout(LONG).expect("it comes")
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        self.node.interrupter().fire();
    }
}

/// Bytes of a cell.
const CELL: usize = 64;

/// Sends a one-way message; gives where its cell is in the sender's own lane, and what is in it.
fn send(client: &mut Actor) -> (u64, Vec<u8>) {
    let own = |client: &Actor| {
        let own = shared(client.pid()).into_iter().find(|(_, is_own, _)| *is_own);
        own.map(|(at, _, bytes)| (at, bytes)).expect("a lane of its own")
    };
    let (_, before) = own(client);
    client.ask("number sealed 1 -", "numbered");
    let (at, after) = own(client);
    // Of all that has changed the last is the cell: the header lies before the cells.
    let changed = (0..before.len()).rev().find(|&byte| before[byte] != after[byte]);
    let cell = changed.expect("a frame") / CELL * CELL;
    (at + cell as u64, after[cell..][..CELL].to_vec())
}

/// Writes into a process's own lane, as a hostile one would.
fn overwrite(client: &Actor, at: u64, bytes: &[u8]) {
    let memory = OpenOptions::new().write(true).open(format!("/proc/{}/mem", client.pid()));
    memory.expect("a process that we started").write_all_at(bytes, at).expect("mapped");
}

/// Sends a one-way message, and flips a bit of its ciphertext.
fn send_altered(client: &mut Actor) {
    let (at, cell) = send(client);
    overwrite(client, at + 20, &[cell[20] ^ 4]);
}

#[test]
fn altered_frames_are_dropped_until_the_sixteenth_ends_the_channel() {
    let (world, _ipcd) = start();
    let server = Gated::serve(&world);
    let mut client = world.actor(&[]);
    client.ask("open sealed", "opened");
    let wait = u64::from_le_bytes(*b"wait her");
    for round in 0..2 {
        client.tell("start sealed 1 wait here");
        assert_eq!(server.hear(), wait);
        client.ask("number sealed 1 -", "numbered");
        let altered = if round == 0 { 1 } else { 15 };
        (0..altered).for_each(|_| send_altered(&mut client));
        client.ask("number sealed 1 -", "numbered");
        server.open.send(()).expect("it listens");
        if round == 0 {
            assert_eq!([server.hear(), server.hear()], [0, 2], "one is dropped, the next opens");
        } else {
            assert_eq!(server.hear(), 3);
        }
    }
    let ended = client.ask("ask sealed 20000 too late", "failed");
    assert!(ended.contains("IPC_E"), "{ended}");
    let late: Vec<u64> = server.told.try_iter().collect();
    assert!(late.is_empty(), "{late:?} is heard: nothing behind the sixteenth; {ended}");
}

#[test]
fn repeated_and_reordered_frames_are_dropped_and_counted_and_the_next_one_opens() {
    let (world, _ipcd) = start();
    let server = Gated::serve(&world);
    let mut client = world.actor(&[]);
    client.ask("open sealed", "opened");
    client.tell("start sealed 1 wait here");
    assert_eq!(server.hear(), u64::from_le_bytes(*b"wait her"));
    // The first once more in place of the second; the third and the fourth change places.
    let cells: Vec<(u64, Vec<u8>)> = (0..5).map(|_| send(&mut client)).collect();
    for (place, from) in [(1, 0), (2, 3), (3, 2)] {
        overwrite(&client, cells[place].0, &cells[from].1);
    }
    server.open.send(()).expect("it listens");
    assert_eq!([server.hear(), server.hear()], [0, 4]);
    let [end] = <[_; 1]>::try_from(server.node.sessions()).expect("one channel");
    assert_eq!(end.session.map(|it| it.refused), Some(3));
    assert_eq!(end.stats.drops, 3);
}

#[test]
fn who_dies_in_a_handshake_holds_up_nobody() {
    let (world, _ipcd) = start();
    // A service that is registered, and whose loop does not run: the handshake hangs.
    let node = world.node(Spin::Learned);
    let port = node.server().expect("a server");
    port.register("sealed", 0).expect("registered");
    let mut client = world.actor(&[]);
    client.tell("open sealed");
    tests::wait_until("it has come so far", || proc::lane_sizes(client.pid()).len() == 2);
    client.kill();
    let serving = thread::spawn({
        let port = port.clone();
        move || port.run(|request| request.reply(request.payload()).expect("room"))
    });
    let (_other, client) = world.client("sealed", Spin::Learned);
    assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
    node.interrupter().fire();
    assert!(matches!(serving.join().expect("no panic"), Err(CallError::Canceled)));
    // The other way round: the service dies while a client waits for its part.
    let mut server = world.actor(&[]);
    server.ask("serve sealed.mute 0", "serving");
    let opening = thread::spawn({
        let node = world.node(Spin::Learned);
        move || node.client(node.discover("sealed.mute")?).map(drop)
    });
    tests::wait_until("it has come so far", || proc::lane_sizes(server.pid()).len() == 2);
    server.kill();
    let ended = opening.join().expect("no panic");
    assert!(
        matches!(ended, Err(NodeError::Refused(Status::PEER_DIED | Status::NOT_FOUND))),
        "{ended:?}"
    );
}

#[test]
fn both_ends_show_the_same_session_and_no_plain_channel_shows_one() {
    let (world, _ipcd) = start();
    let mut server = world.actor(&[]);
    server.ask("serve sealed 1", "serving");
    server.ask("serve open 1", "serving");
    let (node, client) = world.client("sealed", Spin::Learned);
    assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
    let session = client.session().expect("it is encrypted");
    assert_eq!(session.pattern, ipc::session::Pattern::Xx);
    assert_eq!((session.rekeys, session.refused), (0, 0));
    assert_ne!(session.fingerprint, [0; 32]);
    assert_ne!(session.handshake_us, 0, "who opens the channel waits for it");
    let [own] = <[_; 1]>::try_from(node.sessions()).expect("one channel");
    assert_eq!((own.peer_pid, own.session), (server.pid(), Some(session)));
    let (plain_node, plain) = world.client("open", Spin::Learned);
    assert_eq!(plain.call(b"hello", LONG).expect("answered"), b"hello");
    assert_eq!((plain.session(), plain_node.sessions()), (None, Vec::new()));
    // What the server shows: found by the runtime, as ipctl does.
    let mut theirs = Vec::new();
    tests::wait_until("the server shows its session", || {
        let boards = node.boards().expect("a runtime");
        let of_server = boards.iter().filter(|board| board.pid == server.pid());
        theirs = of_server.flat_map(ipc::Board::ends).filter_map(|end| end.session).collect();
        !theirs.is_empty()
    });
    assert_eq!(theirs.len(), 1, "{theirs:?}");
    assert_eq!(theirs[0].fingerprint, session.fingerprint);
    assert_eq!(theirs[0].handshake_us, 0);
    // Another channel is another session.
    let (_other, second) = world.client("sealed", Spin::Learned);
    assert_ne!(second.session().expect("encrypted").fingerprint, session.fingerprint);
}

#[test]
fn ipctl_lists_the_sessions_of_both_ends() {
    let (world, _ipcd) = start();
    let ipctl = Path::new(ACTOR).with_file_name("ipctl");
    assert!(ipctl.exists(), "build it first: cargo build -p ipctl");
    let list = |arguments: &[&str]| {
        let mut command = Command::new(&ipctl);
        command.arg("sessions").args(arguments).arg("--runtime-dir").arg(world.directory());
        let output = command.output().expect("ipctl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert_eq!(list(&["--json"]).trim(), "[]");
    let mut server = world.actor(&[]);
    server.ask("serve sealed 1", "serving");
    let (_node, client) = world.client("sealed", Spin::Learned);
    assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
    let mut rows = Vec::new();
    tests::wait_until("both ends are shown", || {
        let shown: serde_json::Value = serde_json::from_str(&list(&["--json"])).expect("JSON");
        rows = shown.as_array().expect("rows").clone();
        rows.len() == 2
    });
    let fingerprint: String = client.session().expect("encrypted").fingerprint[..16]
        .iter()
        .fold(String::new(), |all, it| format!("{all}{it:02x}"));
    for (row, role) in rows.iter().zip(["client", "server"]) {
        assert_eq!(row["role"], role, "{row}");
        assert_eq!(row["pattern"], "XX", "{row}");
        assert_eq!(row["fingerprint"], fingerprint, "{row}");
        assert_eq!(row["refused"], 0, "{row}");
    }
    let text = list(&[]);
    assert!(text.contains("FINGERPRINT") && text.contains(&fingerprint), "{text}");
}

#[test]
fn a_node_that_encrypts_has_no_plain_channel_whatever_the_routes_say() {
    let (world, ipcd) = start();
    ipcd.reload(&route("plain"));
    let mut server = world.actor(&[]);
    server.ask("serve sealed 1", "serving");
    server.ask("serve open 1", "serving");
    let directory = Some(world.directory().to_owned());
    let config = Config { runtime_dir: directory, encrypt: true, ..Config::default() };
    let node = Node::connect(&config).expect("a runtime");
    for name in ["sealed", "open"] {
        let client = node.client(node.discover(name).expect("served")).expect("encrypted");
        assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
        assert!(client.session().is_some(), "{name}");
    }
    // And so when it serves.
    let port = node.server().expect("a server");
    port.register("strict", 0).expect("registered");
    let serving = thread::spawn(move || port.run(|it| it.reply(it.payload()).expect("room")));
    let (_node, client) = world.client("strict", Spin::Learned);
    assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
    assert!(client.session().is_some());
    node.interrupter().fire();
    assert!(matches!(serving.join().expect("no panic"), Err(CallError::Canceled)));
}

#[test]
fn a_reload_closes_the_channels_whose_routes_have_changed() {
    let (world, ipcd) = start();
    let mut server = world.actor(&[]);
    server.ask("serve sealed 1", "serving");
    server.ask("serve other 1", "serving");
    let (_node, client) = world.client("sealed", Spin::Learned);
    let (_other_node, other) = world.client("other", Spin::Learned);
    assert_eq!(other.call(b"hello", LONG).expect("answered"), b"hello");
    let first = other.stats().messages_sent;
    for session in ["encrypted", "plain", "encrypted"] {
        ipcd.reload(&route(session));
        // A call on a channel that is being closed may end with it; the next one opens another.
        tests::wait_until(session, || {
            let answer = client.call(b"hello", LONG);
            assert!(
                answer.is_ok() || matches!(answer, Err(CallError::PeerDied { .. })),
                "{answer:?}"
            );
            client.session().is_some() == (session == "encrypted")
        });
        assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
    }
    assert_eq!(other.call(b"hello", LONG).expect("answered"), b"hello");
    assert_eq!(other.stats().messages_sent, first + 1, "its channel is the first one");
}

#[test]
fn who_makes_no_handshake_is_cut_and_who_begins_with_something_else_at_once() {
    let (world, _ipcd) = start();
    let mut server = world.actor(&[]);
    server.ask("serve sealed 1", "serving");
    // Nothing at all comes from this one: no frame wakes the server.
    let mut mute = world.other(HOSTILE, &[]);
    mute.ask("keyed", "connected");
    mute.ask("open sealed", "opened");
    // And from this one a plain request, as if nobody had said that the channel is encrypted.
    let mut plain = world.other(HOSTILE, &[]);
    plain.ask("keyed", "connected");
    plain.ask("open sealed", "opened");
    plain.tell("call");
    let (_node, client) = world.client("sealed", Spin::Learned);
    assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
    tests::wait_until("the other lanes are let go", || proc::lane_sizes(server.pid()).len() <= 4);
    mute.ask("end", "cut");
    tests::wait_until("one channel is left", || proc::lane_sizes(server.pid()).len() == 2);
    assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
}

#[test]
fn who_has_no_key_gets_no_encrypted_channel() {
    let (world, _ipcd) = start();
    let mut server = world.actor(&[]);
    server.ask("serve sealed 1", "serving");
    let mut stranger = world.other(HOSTILE, &[]);
    stranger.tell("open sealed");
    // It cannot but take the refusal for a channel, and fails.
    assert!(!stranger.wait().success());
    assert!(proc::lane_sizes(server.pid()).is_empty());
}
