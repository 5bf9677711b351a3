//! Calls of a process that shares no memory: over the runtime's socket, beside a plain one.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use ipc::{Config, Geometry, Node, Spin, Transport};

use crate::calls::{Bed, SERVICE, call, config, open};
use crate::floor::{Setting, futex_words};
use crate::measure::latency;
use crate::pair::Role;
use crate::report::Group;

/// Sizes of the payloads, which come back.
const SIZES: [usize; 3] = [48, 1024, 64 << 10];
/// The role of a process that sends back what it reads, so many bytes at a time.
const ECHO: &str = "socket-echo";

/// Runs the group; the floor is the bare futex round trip.
///
/// # Errors
/// Those of the measurements.
pub fn group(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    let bed = Bed::new(setting, Spin::Never, Geometry::default(), None)?;
    let shared = bed.client()?;
    let apart = config(bed.directory(), Spin::Never, Geometry::default());
    let apart = Config { share_memory: false, ..apart };
    let node = Node::connect(&apart).map_err(io::Error::other)?;
    let client = open(&node, SERVICE)?;
    if client.transport() != Transport::Socket {
        return Err(io::Error::other("the channel goes by memory"));
    }
    Group::measure(
        "calls over sockets, asleep; the floor is the bare futex",
        || futex_words(setting, None),
        |ruler| {
            for size in SIZES {
                ruler.latency("shared memory", Some(size), || call(setting, &shared, size))?;
                ruler.latency("by a socket", Some(size), || call(setting, &client, size))?;
                ruler.latency("plain Unix socket", Some(size), || plain(setting, size))?;
            }
            Ok(())
        },
    )
}

fn plain(setting: &Setting, size: usize) -> io::Result<crate::measure::Latency> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let _echo = setting.peer(ECHO, &[&size.to_string()], OwnedFd::from(theirs))?;
    let (payload, mut answer) = (vec![7; size], vec![0; size]);
    latency(&setting.clock, setting.plan, || {
        ours.write_all(&payload)?;
        ours.read_exact(&mut answer)
    })
}

/// Plays the part of this module's process; nothing for a role that is another's.
///
/// # Errors
/// Those of the socket.
pub fn play(role: &Role) -> Option<io::Result<()>> {
    (role.name == ECHO).then(|| {
        let size = role.arguments.first().and_then(|it| it.parse().ok());
        let mut buffer = vec![0; size.ok_or(io::ErrorKind::InvalidInput)?];
        let mut socket = UnixStream::from(role.shared.try_clone()?);
        loop {
            socket.read_exact(&mut buffer)?;
            socket.write_all(&buffer)?;
        }
    })
}
