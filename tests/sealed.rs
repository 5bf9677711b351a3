//! Encrypted channels between real processes: what is promised of calls holds, nothing of them is
//! to be read in shared memory, and whoever cannot or does not prove its key has no channel.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    sync::{Mutex, mpsc},
    thread,
};

use ipc::{CallError, CallOptions, Node, NodeError, Priority, Spin, Status};
use tests::{Actor, Ipcd, LONG, World, pattern, proc};

const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");
const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// What nobody else may read.
const SECRET: &[u8] = b"a text that only two know";

/// A runtime on whose routes to `sealed*` channels are encrypted.
fn start() -> (World, Ipcd) {
    let world = World::without_runtime(ACTOR);
    let route = "[[route]]\nfrom = \"any\"\nto = \"name:sealed*\"\nsession = \"encrypted\"\n";
    let ipcd = Ipcd::start(IPCD, world.directory(), route);
    (world, ipcd)
}

/// The lanes and arenas that a process has mapped: where, whether it may write there, and the
/// bytes.
fn shared(pid: u32) -> Vec<(u64, bool, Vec<u8>)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a process");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("a process that we started");
    let shared = maps.lines().filter(|line| line.contains("memfd:ipc"));
    let read = shared.map(|line| {
        let (from, to) = line.split(' ').next().and_then(|it| it.split_once('-')).expect("a range");
        let [from, to] = [from, to].map(|it| u64::from_str_radix(it, 16).expect("an address"));
        let mut bytes = vec![0; (to - from) as usize];
        memory.read_exact_at(&mut bytes, from).expect("mapped");
        (from, line.contains(" rw-"), bytes)
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

/// Sends a one-way message, and flips a bit of it where it lies in the sender's own lane, as a
/// hostile process would.
fn send_altered(client: &mut Actor) {
    let own = |client: &Actor| {
        let own = shared(client.pid()).into_iter().find(|(_, is_own, _)| *is_own);
        own.map(|(at, _, bytes)| (at, bytes)).expect("a lane of its own")
    };
    let (_, before) = own(client);
    client.ask("number sealed 1 -", "numbered");
    let (at, after) = own(client);
    // Of all that has changed the last cell's ciphertext: the header lies before the cells.
    let changed = (0..before.len()).rev().find(|&byte| before[byte] != after[byte]);
    let cell = changed.expect("a frame") / 64 * 64;
    let memory = OpenOptions::new().write(true).open(format!("/proc/{}/mem", client.pid()));
    let memory = memory.expect("a process that we started");
    memory.write_all_at(&[after[cell + 20] ^ 4], at + cell as u64 + 20).expect("mapped");
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
