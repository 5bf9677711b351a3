//! Shared regions: how soon a sync is seen, and what it takes to hand a mebibyte over.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ipc::{Geometry, Node, Region, RegionAccess, RegionOptions, ServiceId, Spin};
use kernel_services::Kernel;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::calls::config;
use crate::floor::{self, Setting, futex_words};
use crate::measure::latency;
use crate::pair::{self, Peer, Role};
use crate::report::Group;
use crate::shm::Words;

/// Bytes that are handed over.
const LARGE: usize = 1 << 20;
/// The role of a process that answers each sync by one of its own.
const ANSWERER: &str = "region-answerer";
/// The role of a process that reads from a socket, and answers by a byte.
const READER: &str = "region-socket";

/// Two regions, one each way, and the process at the other end.
struct Bed {
    peer: Peer,
    outgoing: Region,
    incoming: Region,
    seen: u64,
    _node: Node,
    _kernel: Kernel,
    _directory: TempDir,
}

impl Bed {
    /// Starts the runtime and a process that copies `bytes` out of our region at each sync.
    fn new(setting: &Setting, spin: Spin, bytes: usize) -> io::Result<Bed> {
        let directory = tempfile::tempdir()?;
        let kernel = Kernel::embedded(directory.path()).map_err(io::Error::other)?;
        let node = connect(directory.path(), spin)?;
        let outgoing = region(&node)?;
        let (_, fd) = Words::create()?;
        let told = [
            directory.path().display().to_string(),
            if spin == Spin::Always { "poll" } else { "park" }.to_owned(),
            node.id().to_string(),
            outgoing.id().to_string(),
            bytes.to_string(),
        ];
        let told: Vec<&str> = told.iter().map(String::as_str).collect();
        let peer = setting.peer(ANSWERER, &told, fd)?;
        let line = peer.line()?;
        let (id, theirs) = line.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
        let to = ServiceId::new(number(id)? as u32);
        outgoing.grant(to, RegionAccess::Read).map_err(io::Error::other)?;
        let incoming = node.map_region(number(theirs)?).map_err(io::Error::other)?;
        // It has mapped ours.
        peer.line()?;
        Ok(Bed {
            peer,
            outgoing,
            incoming,
            seen: 0,
            _node: node,
            _kernel: kernel,
            _directory: directory,
        })
    }

    fn pid(&self) -> Pid {
        self.peer.pid()
    }

    /// Publishes, and waits until the other has answered.
    fn exchange(&mut self) -> io::Result<()> {
        self.outgoing.sync().map_err(io::Error::other)?;
        self.seen = self.incoming.wait(self.seen, None).map_err(io::Error::other)?;
        Ok(())
    }
}

fn connect(directory: &Path, spin: Spin) -> io::Result<Node> {
    Node::connect(&config(directory, spin, Geometry::default())).map_err(io::Error::other)
}

fn region(node: &Node) -> io::Result<Region> {
    node.create_region(LARGE as u64, &RegionOptions::default()).map_err(io::Error::other)
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Runs the group of syncs that are awaited polling.
///
/// # Errors
/// Those of the measurements.
pub fn polling(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    let mut bed = Bed::new(setting, Spin::Always, 0)?;
    let pid = bed.pid();
    Group::measure(
        "regions: a sync there and one back, polling",
        || setting.beside_paused(pid),
        |ruler| {
            ruler.latency("sync and wait", None, || {
                latency(&setting.clock, setting.plan, || bed.exchange())
            })
        },
    )
}

/// Runs the group of syncs that are awaited asleep; the floor is the bare futex round trip.
///
/// # Errors
/// Those of the measurements.
pub fn parked(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    let mut bed = Bed::new(setting, Spin::Never, 0)?;
    Group::measure(
        "regions: a sync there and one back, parked; the floor is the bare futex",
        || futex_words(setting, None),
        |ruler| {
            ruler.latency("sync and wait", None, || {
                latency(&setting.clock, setting.plan, || bed.exchange())
            })
        },
    )
}

/// Runs the group of a mebibyte that is written here, read there, and acknowledged.
///
/// # Errors
/// Those of the measurements.
pub fn large(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    let mut bed = Bed::new(setting, Spin::Always, LARGE)?;
    let pid = bed.pid();
    let (mut ours, theirs) = UnixStream::pair()?;
    let reader = setting.peer(READER, &[], OwnedFd::from(theirs))?;
    let payload = vec![7; LARGE];
    Group::measure(
        "regions: a mebibyte written, read and acknowledged",
        || setting.beside_paused(pid),
        |ruler| {
            ruler.latency("region", Some(LARGE), || {
                latency(&setting.clock, setting.plan, || {
                    bed.outgoing.write_at(0, &payload).map_err(io::Error::other)?;
                    bed.exchange()
                })
            })?;
            let _paused = pair::Paused::begin(pid)?;
            ruler.latency("Unix socket", Some(LARGE), || {
                latency(&setting.clock, setting.plan, || {
                    ours.write_all(&payload)?;
                    ours.read_exact(&mut [0])
                })
            })?;
            drop(reader);
            ruler.throughput("memcpy, one of two", Some(LARGE), || floor::memcpy(setting, LARGE))
        },
    )
}

/// Plays the parts of this module's processes; nothing for a role that is another's.
///
/// # Errors
/// Those of the runtime and of sockets.
pub fn play(role: &Role) -> Option<io::Result<()>> {
    match role.name.as_str() {
        ANSWERER => Some(answer(&role.arguments)),
        READER => Some(role.shared.try_clone().and_then(read)),
        _ => None,
    }
}

fn answer(told: &[String]) -> io::Result<()> {
    let [directory, spin, to, theirs, bytes] = told else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let spin = if spin == "poll" { Spin::Always } else { Spin::Never };
    let node = connect(Path::new(directory), spin)?;
    let own = region(&node)?;
    let to = ServiceId::new(number(to)? as u32);
    own.grant(to, RegionAccess::Read).map_err(io::Error::other)?;
    pair::say(&format!("{} {}", node.id(), own.id()))?;
    let id = number(theirs)?;
    let theirs = loop {
        match node.map_region(id) {
            Ok(region) => break region,
            // Granted once this one's id is known there.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    pair::say("mapped")?;
    let mut buffer = vec![0; number(bytes)? as usize];
    let mut seen = 0;
    loop {
        seen = theirs.wait(seen, None).map_err(io::Error::other)?;
        theirs.read_at(0, &mut buffer).map_err(io::Error::other)?;
        own.sync().map_err(io::Error::other)?;
    }
}

fn read(socket: OwnedFd) -> io::Result<()> {
    let mut socket = UnixStream::from(socket);
    let mut buffer = vec![0; LARGE];
    loop {
        socket.read_exact(&mut buffer)?;
        socket.write_all(&[1])?;
    }
}
