//! Calls and one-way messages through the public Rust API, between two processes.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipc::{CallOptions, Client, Config, Geometry, Node, Server, ServiceId, Spin};
use kernel_services::{
    Kernel,
    security::{Object, Route, Subject},
};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::c;
use crate::floor::{Setting, futex_words};
use crate::measure::{Latency, Throughput, histogram, latency, latency_after, throughput};
use crate::pair::{self, Peer, Role};
use crate::pin;
use crate::report::{Group, Ruler};
use crate::seal::by_ring;
use crate::shm::Words;

/// Sizes of the calls' payloads: in the cell up to 48, then in the slab.
pub const CALL_SIZES: [usize; 4] = [8, 48, 64, 1024];
/// Sizes of one-way messages.
pub const ONE_WAY_SIZES: [usize; 3] = [8, 64, 1024];

/// The service of these benchmarks: answers a request with its own payload.
pub const SERVICE: &str = "bench";
/// What a service's second name ends in: there any request is answered with the number of one-way
/// messages so far, 8 bytes, little-endian.
pub const SINK: &str = ".sink";
/// What the names of encrypted channels begin with.
pub const SEALED: &str = "sealed.";
/// Sizes of payloads on them: in the cell up to 32.
const SEALED_SIZES: [usize; 5] = [32, 48, 64, 1024, 64 << 10];
/// The role of the service's process.
const SERVE: &str = "serve";
/// Cells of a busy route's lane.
const CELLS: u32 = 4096;
/// One-way messages between two looks at the clock.
const BURST: u64 = 4096;
const DEADLINE: Duration = Duration::from_secs(30);

/// A runtime of this process, and the service in another.
#[derive(Debug)]
pub struct Bed {
    peer: Peer,
    node: Node,
    _kernel: Kernel,
    directory: TempDir,
}

impl Bed {
    /// Starts the runtime and the service; pinned to the setting's two CPUs, or wherever in `cpus`
    /// the kernel puts them.
    ///
    /// # Errors
    /// Those of starting processes and of connecting.
    pub fn new(
        setting: &Setting,
        spin: Spin,
        geometry: Geometry,
        cpus: Option<&[usize]>,
    ) -> io::Result<Bed> {
        let directory = tempfile::tempdir()?;
        let kernel = Kernel::routed(directory.path(), vec![route()]).map_err(io::Error::other)?;
        let (_, fd) = Words::create()?;
        let path = directory.path().display().to_string();
        let told = match spin {
            Spin::Always => "poll",
            Spin::Never => "park",
            Spin::Learned | Spin::UpTo(_) => "learn",
        };
        let there = [setting.placement.there];
        let peer = Peer::spawn(SERVE, &[&path, told], cpus.unwrap_or(&there), fd)?;
        pin::pin_to(cpus.unwrap_or(&[setting.placement.here]))?;
        peer.line()?;
        let node =
            Node::connect(&config(directory.path(), spin, geometry)).map_err(io::Error::other)?;
        Ok(Bed { peer, node, _kernel: kernel, directory })
    }

    /// Opens a channel to the service.
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn client(&self) -> io::Result<Client> {
        open(&self.node, SERVICE)
    }

    /// Opens a channel to the service's sink.
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn sink(&self) -> io::Result<Client> {
        open(&self.node, &format!("{SERVICE}{SINK}"))
    }

    /// Opens an encrypted channel to the service, or to its sink.
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn sealed(&self, which: &str) -> io::Result<Client> {
        open(&self.node, &format!("{SEALED}{SERVICE}{which}"))
    }

    /// The service's process.
    pub fn service(&self) -> Pid {
        self.peer.pid()
    }

    /// The runtime's directory, for clients in other languages.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// By which some channels are encrypted.
fn route() -> Route {
    Route { subject: Subject::Any, object: Object::Name(format!("{SEALED}*")), encrypted: true }
}

/// Opens a channel to a name.
///
/// # Errors
/// Those of the runtime.
pub fn open(node: &Node, name: &str) -> io::Result<Client> {
    let id = node.wait_service(name, Some(DEADLINE)).map_err(io::Error::other)?;
    node.client(id).map_err(io::Error::other)
}

/// A node's configuration.
pub fn config(directory: &Path, spin: Spin, geometry: Geometry) -> Config {
    Config { runtime_dir: Some(directory.to_owned()), geometry, spin, ..Config::default() }
}

/// A busy route's lanes.
///
/// # Errors
/// None: the size is a constant.
pub fn wide() -> io::Result<Geometry> {
    Geometry::for_cells(CELLS).map_err(io::Error::other)
}

/// Measures the round trip of a call that is answered with its own payload.
///
/// # Errors
/// Those of the calls.
pub fn call(setting: &Setting, client: &Client, size: usize) -> io::Result<Latency> {
    let payload = vec![7; size];
    let mut answer = vec![0; size];
    latency(&setting.clock, setting.plan, || {
        let length =
            client.call_into(&payload, &mut answer, NO_DEADLINE).map_err(io::Error::other)?;
        if length == size { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    })
}

/// Measures one-way messages per second to a sink, as counted by it.
///
/// # Errors
/// Those of sending; `InvalidData` when one was lost.
pub fn one_way(setting: &Setting, client: &Client, size: usize) -> io::Result<Throughput> {
    let payload = vec![7; size];
    let mut sent = counted(client)?;
    let measured = throughput(&setting.clock, setting.plan, || {
        client
            .burst(|burst| (0..BURST).try_for_each(|_| burst.send(&payload)))
            .map_err(io::Error::other)?;
        sent += BURST;
        Ok(BURST)
    })?;
    if counted(client)? == sent { Ok(measured) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Asks the receiver how many one-way messages it has handled.
///
/// # Errors
/// Those of the call.
pub fn counted(client: &Client) -> io::Result<u64> {
    let answer = client.call(&[], DEADLINE).map_err(io::Error::other)?;
    answer.try_into().map(u64::from_le_bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Serves the benchmarks.
fn serve(server: &Server) -> io::Result<()> {
    server.register(SERVICE, 0).map_err(io::Error::other)?;
    let mut sinks = Vec::new();
    for (way, name) in [("", SINK), (SEALED, SINK), (SEALED, "")] {
        let name = format!("{way}{SERVICE}{name}");
        let registration = server.register(&name, 0).map_err(io::Error::other)?;
        sinks.push(registration.name);
    }
    // The last is no sink.
    sinks.truncate(2);
    pair::say("ready")?;
    let mut count = 0_u64;
    server
        .run(|request| {
            if request.is_one_way() {
                count += 1;
                return;
            }
            // A caller that is gone needs no answer.
            let _ = if sinks.contains(&request.dest_name()) {
                request.reply(&count.to_le_bytes())
            } else {
                request.reply(request.payload())
            };
        })
        .map_err(io::Error::other)
}

/// Plays the service's part; nothing for a role that is not of this module.
///
/// # Errors
/// Those of the runtime.
pub fn play(role: &Role) -> Option<io::Result<()>> {
    (role.name == SERVE).then(|| {
        let [directory, told] = &role.arguments[..] else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let spin = match told.as_str() {
            "poll" => Spin::Always,
            "park" => Spin::Never,
            _ => Spin::Learned,
        };
        // The geometry is the client's to choose.
        let config = config(&PathBuf::from(directory), spin, Geometry::default());
        let node = Node::connect(&config).map_err(io::Error::other)?;
        let server = node.server().map_err(io::Error::other)?;
        serve(&server)
    })
}

/// Runs the group of calls between polling processes.
///
/// # Errors
/// Those of the measurements.
pub fn polling(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    let bed = Bed::new(setting, Spin::Always, Geometry::default(), None)?;
    let client = bed.client()?;
    Group::measure(
        "call, polling",
        || setting.beside_paused(bed.service()),
        |ruler| {
            round_trips(setting, &client, ruler)?;
            let sealed = bed.sealed("")?;
            for size in SEALED_SIZES {
                ruler.latency("call, encrypted", Some(size), || call(setting, &sealed, size))?;
                if size > 64 {
                    ruler
                        .latency("its two seals and opens", Some(size), || alone(setting, size))?;
                }
            }
            c::calls(setting, bed.directory(), SERVICE, ruler)
        },
    )
}

/// Runs the group of opening channels. Nobody polls but for as long as it was learned to pay: the
/// runtime needs a CPU as well, and who is woken on one that another polls on waits for a tick.
///
/// # Errors
/// Those of the measurements.
pub fn connecting(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    let cpus = [setting.placement.here, setting.placement.there];
    let bed = Bed::new(setting, Spin::Learned, Geometry::default(), Some(&cpus))?;
    Group::measure(
        "connect",
        || setting.beside_paused(bed.service()),
        |ruler| {
            pin::pin_to(&cpus)?;
            let measured = connects(setting, &bed, ruler);
            pin::pin_to(&[setting.placement.here])?;
            measured
        },
    )
}

/// Measures what a call of that size cannot do without: it is sealed and opened there, and back.
fn alone(setting: &Setting, size: usize) -> io::Result<Latency> {
    let mut text = vec![7; size];
    let mut once = by_ring()?;
    latency(&setting.clock, setting.plan, || {
        let is_right = (0..2).all(|_| once(&mut text));
        if is_right { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    })
}

/// Measures how long it takes to open a channel, from asking the runtime to the end of the
/// handshake: a plain one, then encrypted ones by each pattern, and of those the handshake alone.
fn connects(setting: &Setting, bed: &Bed, ruler: &mut Ruler<'_>) -> io::Result<()> {
    let name = format!("{SEALED}{SERVICE}");
    let session = |(.., client): &(Node, ServiceId, Option<Client>)| client.as_ref()?.session();
    let mut row = |row: &str, name: &str, node: &dyn Fn() -> io::Result<Node>| {
        let place = RefCell::new(None);
        let mut handshakes = histogram();
        ruler.latency(row, None, || {
            let before = || {
                drop(place.take());
                let node = node()?;
                let id = node.wait_service(name, Some(DEADLINE)).map_err(io::Error::other)?;
                // Below the number of messages a second that a user may send to the runtime.
                std::thread::sleep(Duration::from_millis(5));
                place.replace(Some((node, id, None)));
                Ok(())
            };
            let once = || {
                let mut place = place.borrow_mut();
                let (node, id, client) = place.as_mut().ok_or(io::ErrorKind::Other)?;
                *client = Some(node.client(*id).map_err(io::Error::other)?);
                Ok(())
            };
            let before = || {
                let one_before = place.borrow().as_ref().and_then(session);
                if let Some(session) = one_before {
                    handshakes.saturating_record(u64::from(session.handshake_us).max(1) * 1000);
                }
                before()
            };
            latency_after(&setting.clock, setting.plan, before, once)
        })?;
        if handshakes.is_empty() {
            return Ok(());
        }
        ruler.latency("of which the handshake", None, || Ok(Latency::from(&handshakes)))
    };
    let fresh = || {
        let config = config(bed.directory(), Spin::Learned, Geometry::default());
        Node::connect(&config).map_err(io::Error::other)
    };
    // One that has no channel open, which it would share.
    let own = fresh()?;
    let ours = || Ok(own.clone());
    row("connect, plain", SERVICE, &ours)?;
    row("connect, encrypted, IK", &name, &ours)?;
    row("connect, encrypted, XX", &name, &fresh)?;
    let server = own.server().map_err(io::Error::other)?;
    server.register("known", 0).map_err(io::Error::other)?;
    row("connect, encrypted, KK", &name, &ours)
}

/// Measures calls of every size.
///
/// # Errors
/// Those of the measurements.
pub fn round_trips(setting: &Setting, client: &Client, ruler: &mut Ruler<'_>) -> io::Result<()> {
    CALL_SIZES.into_iter().try_for_each(|size| {
        ruler.latency("call, Rust", Some(size), || call(setting, client, size))
    })
}

/// Runs the group of one-way messages.
///
/// # Errors
/// Those of the measurements.
pub fn one_ways(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    let bed = Bed::new(setting, Spin::Always, wide()?, None)?;
    let sink = bed.sink()?;
    Group::measure(
        "one-way",
        || setting.beside_paused(bed.service()),
        |ruler| {
            floods(setting, &sink, ruler)?;
            let sealed = bed.sealed(SINK)?;
            for size in [32, 64, 1024] {
                ruler.throughput("one-way, encrypted", Some(size), || {
                    one_way(setting, &sealed, size)
                })?;
            }
            c::one_ways(setting, bed.directory(), SERVICE, ruler)
        },
    )
}

/// Measures one-way messages of every size.
///
/// # Errors
/// Those of the measurements.
pub fn floods(setting: &Setting, sink: &Client, ruler: &mut Ruler<'_>) -> io::Result<()> {
    ONE_WAY_SIZES.into_iter().try_for_each(|size| {
        ruler.throughput("one-way, Rust", Some(size), || one_way(setting, sink, size))
    })
}

/// Runs the group of calls between processes that sleep each time, pinned; the floor is the bare
/// futex round trip.
///
/// # Errors
/// Those of the measurements.
pub fn parked(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    parked_on("call, parked, pinned; the floor is the bare futex", setting, None)
}

/// The same, wherever the kernel puts the two.
///
/// # Errors
/// Those of the measurements.
pub fn parked_unpinned(setting: &Setting, allowed: &[usize]) -> io::Result<Group> {
    parked_on("call, parked, unpinned; the floor is the bare futex", setting, Some(allowed))
}

fn parked_on(name: &str, setting: &Setting, cpus: Option<&[usize]>) -> io::Result<Group> {
    let bed = Bed::new(setting, Spin::Never, Geometry::default(), cpus)?;
    let client = bed.client()?;
    Group::measure(
        name,
        || futex_words(setting, cpus),
        |ruler| {
            ruler.latency("call, Rust", Some(48), || {
                pin::pin_to(cpus.unwrap_or(&[setting.placement.here]))?;
                let measured = call(setting, &client, 48);
                pin::pin_to(&[setting.placement.here])?;
                measured
            })
        },
    )
}

/// Calls without a deadline, for those that measure what it costs.
pub const NO_DEADLINE: CallOptions = CallOptions { priority: ipc::Priority::Normal, timeout: None };
