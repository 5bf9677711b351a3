//! Where the keys of real processes lie: in pages of their own, and nowhere in what is shared with
//! others or what a core dump has, neither in a session nor in the middle of a handshake.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    os::unix::fs::FileExt,
    path::Path,
};

use ipc::{RegionAccess, RegionOptions, ServiceId, Spin, session::StaticKey};
use nix::sys::signal::Signal;
use tests::{Actor, Ipcd, World, ipcd::signal, wait_until};

const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");
const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const PROBE: &str = env!("CARGO_BIN_EXE_probe");

const ROUTE: &str = "[[rule]]\nfrom = \"any\"\nto = \"any\"\nallow = \"all\"\n\
                     [[route]]\nfrom = \"any\"\nto = \"name:sealed*\"\nsession = \"encrypted\"\n";

/// What is looked for: half of a key, or as much of anything else that looks like one.
type Needle = [u8; 16];

fn halves(key: &[u8]) -> Vec<Needle> {
    key.as_chunks().0.to_vec()
}

/// A mapping of a process: where, its permissions and name, and the kernel's flags.
struct Mapping {
    from: u64,
    length: usize,
    line: String,
    flags: String,
}

fn mappings(pid: u32) -> Vec<Mapping> {
    let mut all: Vec<Mapping> = Vec::new();
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("a process");
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|it| it.split_once('-'));
        let hex = |text| u64::from_str_radix(text, 16).ok();
        if let Some((from, to)) = range.and_then(|(from, to)| Some((hex(from)?, hex(to)?))) {
            let length = (to - from) as usize;
            let (line, flags) = (line.to_owned(), String::new());
            all.push(Mapping { from, length, line, flags });
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            flags.clone_into(&mut all.last_mut().expect("flags of something").flags);
        }
    }
    all
}

impl Mapping {
    fn has(&self, flag: &str) -> bool {
        self.flags.split(' ').any(|it| it == flag)
    }

    fn permissions(&self) -> &str {
        self.line.split(' ').nth(1).expect("after the range")
    }

    /// Memory that others have mapped, or can map.
    fn is_shared(&self) -> bool {
        self.permissions().ends_with('s') || self.line.contains("memfd:")
    }

    /// What a core dump has of what a process writes.
    fn is_dumped(&self) -> bool {
        !self.has("dd") && self.permissions().starts_with("rw")
    }

    /// Pages that no core dump has, that children get as zeros, and that are nobody else's.
    fn is_vault(&self) -> bool {
        self.has("dd") && self.has("wf") && self.permissions() == "rw-p"
    }

    fn read(&self, pid: u32) -> Vec<u8> {
        let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("ours");
        let mut bytes = vec![0; self.length];
        // Some pages of the kernel's are not to be read.
        if memory.read_exact_at(&mut bytes, self.from).is_err() {
            bytes.clear();
        }
        bytes
    }
}

/// The vaults of a process, by pages.
fn vaults(pid: u32) -> Vec<Vec<u8>> {
    let vaults = mappings(pid).into_iter().filter(Mapping::is_vault);
    vaults
        .flat_map(|it| it.read(pid).chunks(4096).map(<[u8]>::to_vec).collect::<Vec<_>>())
        .collect()
}

fn looks_secret(bytes: &Needle) -> bool {
    bytes.iter().filter(|byte| **byte != 0).count() > 12 && !bytes.is_ascii()
}

/// Keys and keystream in the vaults of a process.
fn secrets(pid: u32) -> Vec<Needle> {
    let mut all: Vec<Needle> = vaults(pid).iter().flat_map(|page| halves(page)).collect();
    all.retain(looks_secret);
    all
}

/// How often one of these lies in bytes.
fn count(bytes: &[u8], needles: &HashSet<Needle>) -> usize {
    let mut begins = [false; 256];
    for it in needles {
        begins[usize::from(it[0])] = true;
    }
    let windows = bytes.windows(16).filter(|it| begins[usize::from(it[0])]);
    windows.filter(|it| needles.contains(*it)).count()
}

/// In which mappings of a process, of those that others or core dumps have, one of these lies.
fn found(pid: u32, needles: &[Needle]) -> Vec<String> {
    let needles = needles.iter().copied().collect();
    let exposed = mappings(pid).into_iter().filter(|it| it.is_shared() || it.is_dumped());
    let holding = exposed.filter(|it| count(&it.read(pid), &needles) > 0);
    holding.map(|it| it.line).collect()
}

/// What kinds of shared memory a process has mapped, by their names.
fn kinds(pid: u32) -> BTreeSet<String> {
    let shared = mappings(pid).into_iter().filter(Mapping::is_shared);
    let names = shared.filter_map(|it| Some(it.line.split_once("memfd:")?.1.to_owned()));
    names.filter_map(|it| it.split(' ').next().map(str::to_owned)).collect()
}

/// A process that has the key of a file, made here, and the key.
fn actor_with_key(world: &World, name: &str) -> (Actor, Vec<u8>) {
    let path = world.directory().join(name);
    StaticKey::open(&path).expect("made");
    let key = fs::read(&path).expect("ours");
    (world.actor_under(&["env", &format!("IPC_KEY_FILE={}", path.display())], &[]), key)
}

/// A service that the supervisor starts, and makes a key for.
fn service(program: &Path) -> String {
    format!(
        "[service.sealed]\nexecutable = \"{}\"\narguments = [\"serve\", \"sealed\"]\n\
         directory = \"/\"\n",
        program.display()
    )
}

#[test]
fn no_key_lies_in_anything_that_is_shared_or_dumped_at_either_end_or_in_the_runtime() {
    let world = World::without_runtime(ACTOR);
    let node = format!("{ROUTE}{}", service(Path::new(PROBE)));
    let ipcd = Ipcd::start(IPCD, world.directory(), &node);
    ipcd.wait("sealed", "ready");
    let (mut server, its_key) = actor_with_key(&world, "server.key");
    let (mut client, own_key) = actor_with_key(&world, "client.key");
    server.ask("serve sealed.own 1", "serving");
    // All kinds of memory that the two may share, and traffic in it.
    let own = world.node(Spin::Never);
    let region = own.create_region(8192, &RegionOptions::default()).expect("a region");
    for actor in [&mut server, &mut client] {
        let id = actor.ask("id", "id").parse().expect("a number");
        region.grant(ServiceId::new(id), RegionAccess::Write).expect("granted");
        assert_eq!(actor.ask(&format!("region map r {}", region.id()), "region"), "8192");
    }
    server.ask("event-advertise news", "advertised");
    client.ask("event-subscribe news now", "subscribed");
    server.ask("event-publish news 10 100", "published");
    client.ask("event-take news 10", "took");
    client.ask("calls sealed.own 1 20 31,48,64,1024,100000", "called");
    assert_eq!(client.ask("ask sealed 20000 hello", "answer"), "hello");
    let text = "what is no secret is found";
    assert_eq!(client.ask(&format!("ask sealed.own 20000 {text}"), "answer"), text);
    for kind in ["ipc-lane", "ipc-board", "ipc-region"] {
        let all = [kinds(server.pid()), kinds(client.pid())];
        assert!(all.iter().all(|it| it.contains(kind)), "{kind} in {all:?}");
    }

    let made = fs::read(world.directory().join("keys/sealed#1.key")).expect("it was made");
    let mut needles: Vec<Needle> =
        [&own_key, &its_key, &made].into_iter().flat_map(|it| halves(it)).collect();
    for (actor, key) in [(&client, &own_key), (&server, &its_key)] {
        let secrets = secrets(actor.pid());
        // The node's own, and those of two rings of two directions, with their keystream.
        assert!(secrets.len() > 2 + 8, "only {}", secrets.len());
        assert!(halves(key).iter().all(|it| secrets.contains(it)), "its own is among them");
        needles.extend(secrets);
    }
    let pids = [client.pid(), server.pid(), ipcd.pid(), ipcd.pid_of("sealed")];
    for pid in pids {
        let holding = found(pid, &needles);
        assert!(holding.is_empty(), "keys in memory of {pid}: {holding:?}");
    }
    // They would be found: what is no secret is, and so is half a key that is written there.
    assert!(!found(client.pid(), &halves(text.as_bytes())).is_empty(), "{text}");
    region.write_at(4099, &own_key[16..]).expect("inside");
    for actor in [&client, &server] {
        let holding = found(actor.pid(), &needles);
        assert!(matches!(&holding[..], [one] if one.contains("ipc-region")), "{holding:?}");
    }
}

/// Secrets of 32 bytes that a handshake has room for in its page.
const SLOTS: usize = 5;

/// The ephemeral key of a handshake that has sent its first message: the only thing in such a page,
/// and not at its beginning, where a page that is a key's alone has it.
fn ephemeral(pid: u32) -> Option<Vec<Needle>> {
    let is_empty = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    vaults(pid).into_iter().find_map(|page| {
        let (slots, rest) = page.split_at(32 * SLOTS);
        let mut taken = slots.chunks(32).enumerate().filter(|(_, slot)| !is_empty(slot));
        let (at, key) = taken.next()?;
        (at > 0 && taken.next().is_none() && is_empty(rest)).then(|| halves(key))
    })
}

#[test]
fn a_core_in_the_middle_of_a_handshake_has_no_key_in_it() {
    let world = World::without_runtime(ACTOR);
    let _ipcd = Ipcd::start(IPCD, world.directory(), ROUTE);
    // A service whose loop does not run: whoever opens a channel waits for its part.
    let mut server = world.actor(&[]);
    server.ask("serve sealed.mute 0", "serving");
    let path = world.directory().join("client.key");
    StaticKey::open(&path).expect("made");
    let own_key = fs::read(&path).expect("ours");
    let place = tempfile::tempdir().expect("a directory");
    let script = format!(
        "ulimit -S -c $(ulimit -H -c); cd {}; IPC_KEY_FILE={}; export IPC_KEY_FILE; exec \"$@\"",
        place.path().display(),
        path.display()
    );
    let mut client = world.actor_under(&["sh", "-c", &script, "sh"], &["spin=never"]);
    client.tell("open sealed.mute");
    let mut needles = Vec::new();
    wait_until("it has drawn a key for the handshake", || {
        needles.extend(ephemeral(client.pid()).unwrap_or_default());
        !needles.is_empty()
    });
    assert!(needles.iter().all(looks_secret), "{needles:x?}");
    needles.extend(halves(&own_key));
    client.stop();
    // So it still waits: nothing of it has been given up.
    assert_eq!(ephemeral(client.pid()).as_deref(), Some(&needles[..2]));
    let holding = found(client.pid(), &needles);
    assert!(holding.is_empty(), "keys in {holding:?}");
    signal(client.pid(), Signal::SIGABRT);
    client.go_on();
    client.wait();
    let Some(core) = fs::read_dir(place.path()).expect("ours").flatten().next() else {
        eprintln!("skipped: this machine makes no cores, or has them elsewhere");
        return;
    };
    let core = fs::read(core.path()).expect("ours");
    let whole = HashSet::from([*b"open sealed.mute"]);
    assert!(count(&core, &whole) > 0, "a whole core has what it was told");
    assert_eq!(count(&core, &needles.into_iter().collect()), 0, "a core has keys in it");
}
