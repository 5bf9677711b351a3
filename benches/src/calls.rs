//! Calls and one-way messages through the public Rust API, between two processes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipc::{CallOptions, Client, Config, Geometry, Node, Server, Spin};
use kernel_services::Kernel;
use tempfile::TempDir;

use crate::floor::{Setting, futex_words};
use crate::measure::{Latency, Throughput, latency, throughput};
use crate::pair::{self, Peer, Role};
use crate::pin;
use crate::report::{Group, Row, progress};
use crate::shm::Words;

/// Sizes of the calls' payloads: in the cell up to 48, then in the slab.
pub const CALL_SIZES: [usize; 4] = [8, 48, 64, 1024];
/// Sizes of one-way messages.
pub const ONE_WAY_SIZES: [usize; 3] = [8, 64, 1024];

/// The service of these benchmarks, and the role of its process.
pub const SERVICE: &str = "bench";
const SERVE: &str = "serve";
/// Cells of a busy route's lane.
const CELLS: u32 = 4096;
/// One-way messages between two looks at the clock.
const BURST: u64 = 4096;
const DEADLINE: Duration = Duration::from_secs(30);

/// A runtime of this process, and the service in another.
#[derive(Debug)]
pub struct Bed {
    _peer: Peer,
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
        let kernel = Kernel::embedded(directory.path()).map_err(io::Error::other)?;
        let (_, fd) = Words::create()?;
        let path = directory.path().display().to_string();
        let told = if spin == Spin::Always { "poll" } else { "park" };
        let there = [setting.placement.there];
        let peer = Peer::spawn(SERVE, &[&path, told], cpus.unwrap_or(&there), fd)?;
        pin::pin_to(cpus.unwrap_or(&[setting.placement.here]))?;
        peer.line()?;
        let node =
            Node::connect(&config(directory.path(), spin, geometry)).map_err(io::Error::other)?;
        Ok(Bed { _peer: peer, node, _kernel: kernel, directory })
    }

    /// Opens the channel.
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn client(&self) -> io::Result<Client> {
        let id = self.node.discover(SERVICE).map_err(io::Error::other)?;
        self.node.client(id).map_err(io::Error::other)
    }

    /// The runtime's directory, for clients in other languages.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

fn config(directory: &Path, spin: Spin, geometry: Geometry) -> Config {
    Config { runtime_dir: Some(directory.to_owned()), geometry, spin, ..Config::default() }
}

/// A busy route's lanes.
fn wide() -> io::Result<Geometry> {
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

/// Measures one-way messages per second, as counted by their receiver.
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
fn counted(client: &Client) -> io::Result<u64> {
    let answer = client.call(&[], DEADLINE).map_err(io::Error::other)?;
    answer.try_into().map(u64::from_le_bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Serves the benchmarks: a request comes back as it is, an empty one with the count of one-way
/// messages so far.
///
/// # Errors
/// Those of the runtime.
pub fn serve(server: &Server) -> io::Result<()> {
    let mut count = 0_u64;
    server
        .run(|request| {
            if request.is_one_way() {
                count += 1;
                return;
            }
            let payload = request.payload();
            // A caller that is gone needs no answer.
            let _ = match payload.len() {
                0 => request.reply(&count.to_le_bytes()),
                _ => request.reply(payload),
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
        let spin = if told == "poll" { Spin::Always } else { Spin::Never };
        // The geometry is the client's to choose.
        let config = config(&PathBuf::from(directory), spin, Geometry::default());
        let node = Node::connect(&config).map_err(io::Error::other)?;
        let server = node.server().map_err(io::Error::other)?;
        server.register(SERVICE, 0).map_err(io::Error::other)?;
        pair::say("ready")?;
        serve(&server)
    })
}

/// Runs the group of calls between polling processes.
///
/// # Errors
/// Those of the measurements.
pub fn polling(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    Group::measure(
        "call, polling",
        || setting.beside(),
        || {
            let bed = Bed::new(setting, Spin::Always, Geometry::default(), None)?;
            let client = bed.client()?;
            CALL_SIZES
                .into_iter()
                .map(|size| {
                    progress(&format!("call of {size} bytes, polling"));
                    Ok(Row::latency("call, Rust", Some(size), call(setting, &client, size)?))
                })
                .collect()
        },
    )
}

/// Runs the group of one-way messages.
///
/// # Errors
/// Those of the measurements.
pub fn one_ways(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    Group::measure(
        "one-way",
        || setting.beside(),
        || {
            let bed = Bed::new(setting, Spin::Always, wide()?, None)?;
            let client = bed.client()?;
            ONE_WAY_SIZES
                .into_iter()
                .map(|size| {
                    progress(&format!("one-way messages of {size} bytes"));
                    Ok(Row::throughput("one-way", Some(size), one_way(setting, &client, size)?))
                })
                .collect()
        },
    )
}

/// Runs the group of calls between processes that sleep each time, pinned; the floor is the bare
/// futex round trip.
///
/// # Errors
/// Those of the measurements.
pub fn parked(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    parked_on("call, parked, pinned", setting, None)
}

/// The same, wherever the kernel puts the two.
///
/// # Errors
/// Those of the measurements.
pub fn parked_unpinned(setting: &Setting, allowed: &[usize]) -> io::Result<Group> {
    parked_on("call, parked, unpinned", setting, Some(allowed))
}

fn parked_on(name: &str, setting: &Setting, cpus: Option<&[usize]>) -> io::Result<Group> {
    Group::measure(
        name,
        || futex_words(setting, cpus),
        || {
            let bed = Bed::new(setting, Spin::Never, Geometry::default(), cpus)?;
            let client = bed.client()?;
            progress(name);
            let measured = call(setting, &client, 48)?;
            pin::pin_to(&[setting.placement.here])?;
            Ok(vec![Row::latency("call, Rust", Some(48), measured)])
        },
    )
}

/// Calls without a deadline, for those that measure what it costs.
pub const NO_DEADLINE: CallOptions = CallOptions { priority: ipc::Priority::Normal, timeout: None };
