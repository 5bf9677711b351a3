//! One server and many clients: what idle channels cost a hot one, and a flood those who call.

use std::io;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use ipc::{CallError, CallOptions, Client, Geometry, Node, Spin};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::calls::{Bed, NO_DEADLINE, SERVICE, call, config, counted, open, wide};
use crate::floor::Setting;
use crate::measure::{Latency, latency_after};
use crate::pair::{self, Peer, Role};
use crate::report::Group;
use crate::shm::Words;

/// Idle channels beside the hot one.
const IDLE: [usize; 2] = [64, 1000];
/// Channels that call, beside the flood.
const HONEST: usize = 63;
/// One-way messages that are sent and served before a call: as many as a turn beside 63 others.
const SERVED: usize = 4;
/// Most that are sent before a call to have them wait.
const MOST_SENT: usize = 256;
/// Bytes of each call.
const SIZE: usize = 48;

/// The role of a process with idle channels.
const CROWD: &str = "crowd";

/// Runs the group of a hot client among idle ones, all sides polling.
///
/// # Errors
/// Those of the measurements.
pub fn idle(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    raise_descriptor_limit()?;
    let bed = Bed::new(setting, Spin::Always, Geometry::default(), None)?;
    let client = bed.client()?;
    let mut measured = Vec::new();
    let mut group = Group::measure(
        "many: a hot client among idle ones",
        || setting.beside_paused(bed.service()),
        |ruler| {
            let mut row = |name: &str| {
                ruler.latency(name, Some(SIZE), || {
                    let it = call(setting, &client, SIZE)?;
                    measured.push((name.to_owned(), it));
                    Ok(it)
                })
            };
            row("call, alone")?;
            for count in IDLE {
                let crowd = idlers(setting, &bed, count)?;
                row(&format!("call, {count} idle beside"))?;
                drop(crowd);
            }
            Ok(())
        },
    )?;
    let alone = measured[0].1.p95;
    group.notes.extend(measured[1..].iter().map(|(name, latency)| {
        format!("{name}: p95 is {:.2} times that alone", latency.p95 as f64 / alone as f64)
    }));
    Ok(group)
}

/// Runs the group of callers without and with a flood beside them.
///
/// The flood and the callers are one thread, which takes turns, so that the flood costs them
/// nothing but what the *server* spends on it: there are two CPUs, and a flood of another process
/// would take that of the callers. Before each call, in no time that is measured, the flood's ring
/// is filled to the brim. Beside that stands the same with the ring empty when the call begins.
///
/// # Errors
/// Those of the measurements.
pub fn flooded(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    raise_descriptor_limit()?;
    let bed = Bed::new(setting, Spin::Always, wide()?, None)?;
    let (honest, flood) = (gather(bed.directory(), HONEST)?, bed.sink()?);
    let mut p99s = Vec::new();
    let mut group = Group::measure(
        "many: 63 callers and a flood",
        || setting.beside_paused(bed.service()),
        |ruler| {
            let mut row = |name: &str, before: &dyn Fn() -> io::Result<()>| {
                ruler.latency(name, Some(SIZE), || {
                    let it = in_turn(setting, &honest, before)?;
                    p99s.push(it.p99);
                    Ok(it)
                })
            };
            row("call, one of 63", &|| Ok(()))?;
            row("call, one of 63, a flood served", &|| {
                for _ in 0..SERVED {
                    flood.send(&[7; 8], NO_DEADLINE).map_err(io::Error::other)?;
                }
                counted(&flood).map(|_| ())
            })?;
            row("call, one of 63, a flood waiting", &|| brim(&flood))
        },
    )?;
    let ratio = p99s[2] as f64 / p99s[1] as f64;
    group.notes.push(format!("a flood waiting: p99 is {ratio:.2} times that with it served"));
    Ok(group)
}

/// Fills a channel with one-way messages, to the brim unless the server takes them as fast.
fn brim(flood: &Client) -> io::Result<()> {
    let at_once = CallOptions { timeout: Some(Duration::ZERO), ..NO_DEADLINE };
    for _ in 0..MOST_SENT {
        match flood.send(&[7; 8], at_once) {
            Ok(_) => {}
            Err(CallError::Full) => break,
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    // Else the call would wait until the lines of the flood have left for the server.
    fence(Ordering::SeqCst);
    Ok(())
}

/// Calls on one channel or another. Not in their order: the server looks at them in an order, too,
/// and each call would be as late as the one before it.
fn in_turn(
    setting: &Setting,
    honest: &[(Client, Node)],
    before: &dyn Fn() -> io::Result<()>,
) -> io::Result<Latency> {
    let mut dice = 1_u64;
    let (payload, mut answer) = ([7; SIZE], [0; SIZE]);
    latency_after(&setting.clock, setting.plan, before, || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (client, _) = &honest[(dice >> 33) as usize % honest.len()];
        client.call_into(&payload, &mut answer, NO_DEADLINE).map(|_| ()).map_err(io::Error::other)
    })
}

/// Starts a process with idle channels, off the server's CPU, and waits until it has them.
fn idlers(setting: &Setting, bed: &Bed, count: usize) -> io::Result<Peer> {
    let (_, fd) = Words::create()?;
    let directory = bed.directory().display().to_string();
    let arguments = [&directory, &*count.to_string()];
    let peer = Peer::spawn(CROWD, &arguments, &[setting.placement.here], fd)?;
    peer.line()?;
    Ok(peer)
}

/// Opens channels, each a node of its own, and has each answered once.
fn gather(directory: &Path, count: usize) -> io::Result<Vec<(Client, Node)>> {
    let config = config(directory, Spin::Learned, Geometry::default());
    let member = |_| {
        let node = Node::connect(&config).map_err(io::Error::other)?;
        let client = open(&node, SERVICE)?;
        client.call(&[7; SIZE], NO_DEADLINE).map_err(io::Error::other)?;
        Ok((client, node))
    };
    (0..count).map(member).collect()
}

/// Plays the part of this module's process; nothing for a role that is another's.
///
/// # Errors
/// Those of the runtime.
pub fn play(role: &Role) -> Option<io::Result<()>> {
    let [directory, count] = &role.arguments[..] else { return None };
    (role.name == CROWD).then(|| crowd(Path::new(directory), count))
}

fn crowd(directory: &Path, count: &str) -> io::Result<()> {
    raise_descriptor_limit()?;
    let count = count.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
    let _members = gather(directory, count)?;
    pair::say("ready")?;
    pair::rest()
}

/// Each node costs its process several descriptors, and the runtime, which is in this one, more.
fn raise_descriptor_limit() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
