//! Typed calls beside raw ones: what a method, a message and a head cost.

use std::io;
use std::path::Path;

use ipc::rpc::prost::Message;
use ipc::rpc::{Context, Fault, Router};
use ipc::{Geometry, Node, Spin};
use kernel_services::Kernel;

use crate::calls::{NO_DEADLINE, call, config, open};
use crate::echo::{Echo, EchoClient, EchoServer, Payload};
use crate::floor::Setting;
use crate::measure::{Latency, latency};
use crate::pair::{self, Peer, Role};
use crate::pin;
use crate::report::Group;
use crate::shm::Words;

/// The role of the service's process.
const SERVE: &str = "serve-typed";
const TYPED: &str = "bench.typed";
const RAW: &str = "bench.raw";
/// Messages of so many bytes; with its head of 8 bytes the first just fills a cell.
const SIZES: [usize; 2] = [40, 48];
const HEAD: usize = ipc::rpc::wire::HEAD;

struct Back;

impl Echo for Back {
    fn call(&self, _: &Context, request: Payload) -> Result<Payload, Fault> {
        Ok(request)
    }
}

/// Runs the group: raw and typed calls of one process, to one other.
///
/// # Errors
/// Those of the measurements.
pub fn group(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    let directory = tempfile::tempdir()?;
    let _kernel = Kernel::embedded(directory.path()).map_err(io::Error::other)?;
    let (_, fd) = Words::create()?;
    let path = directory.path().display().to_string();
    let peer = Peer::spawn(SERVE, &[&path], &[setting.placement.there], fd)?;
    pin::pin_to(&[setting.placement.here])?;
    peer.line()?;
    let config = config(directory.path(), Spin::Always, Geometry::default());
    let node = Node::connect(&config).map_err(io::Error::other)?;
    let (raw, typed) = (open(&node, RAW)?, EchoClient::new(open(&node, TYPED)?));
    Group::measure(
        "call, typed, polling",
        || setting.beside_paused(peer.pid()),
        |ruler| {
            for size in SIZES {
                let sent = size + HEAD;
                ruler.latency("call, raw", Some(sent), || call(setting, &raw, sent))?;
                for (what, bytes) in [("call, typed", false), ("call, typed, bytes", true)] {
                    let payload = payload(size, bytes);
                    ruler.latency(what, Some(size), || round_trip(setting, &typed, &payload))?;
                }
            }
            ruler.latency("call, raw", Some(48), || call(setting, &raw, 48))
        },
    )
}

/// Makes a message of so many bytes: of numbers, or, with memory of its own, of bytes.
fn payload(size: usize, bytes: bool) -> Payload {
    let payload = match (size, bytes) {
        (_, true) => Payload { first: 7, rest: vec![7; size - 11], ..Payload::default() },
        (40, false) => Payload {
            first: 1,
            second: 2,
            third: 3,
            fourth: 4,
            small: 1 << 14,
            ..Payload::default()
        },
        (_, false) => Payload {
            first: 1,
            second: 2,
            third: 3,
            fourth: 4,
            fifth: 5,
            small: 1 << 7,
            ..Payload::default()
        },
    };
    assert_eq!(payload.encoded_len(), size);
    payload
}

/// Measures the round trip of a message.
fn round_trip(setting: &Setting, client: &EchoClient, payload: &Payload) -> io::Result<Latency> {
    latency(&setting.clock, setting.plan, || {
        let answer = client.call(payload, NO_DEADLINE).map_err(io::Error::other)?;
        if same(&answer, payload) { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    })
}

/// Compares two messages, for a nanosecond or two. To compare empty vectors as they are may take
/// 200: the C library loads by a mask from where they are said to be, and nothing is mapped there.
fn same(one: &Payload, other: &Payload) -> bool {
    let numbers = |it: &Payload| (it.first, it.second, it.third, it.fourth, it.fifth, it.small);
    numbers(one) == numbers(other)
        && one.rest.len() == other.rest.len()
        && (one.rest.is_empty() || one.rest == other.rest)
}

/// Plays the service's part; nothing for a role that is not of this module.
///
/// # Errors
/// Those of the runtime.
pub fn play(role: &Role) -> Option<io::Result<()>> {
    (role.name == SERVE).then(|| match &role.arguments[..] {
        [directory] => serve(Path::new(directory)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    })
}

/// Serves both names in one loop, so that they share whatever it costs.
fn serve(directory: &Path) -> io::Result<()> {
    let config = config(directory, Spin::Always, Geometry::default());
    let node = Node::connect(&config).map_err(io::Error::other)?;
    let server = node.server().map_err(io::Error::other)?;
    let router = Router::new().with(EchoServer::new(Back)).map_err(io::Error::other)?;
    let raw = server.register(RAW, 0).map_err(io::Error::other)?;
    server.register(TYPED, router.flags()).map_err(io::Error::other)?;
    pair::say("ready")?;
    server
        .run(|request| {
            if request.dest_name() == raw.name {
                // A caller that is gone needs no answer.
                let _ = request.reply(request.payload());
            } else {
                router.handle(&request);
            }
        })
        .map_err(io::Error::other)
}
