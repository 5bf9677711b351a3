//! One server and many clients: what idle channels cost a hot one, and a flood those who call.

use std::cell::Cell;
use std::io;
use std::path::Path;

use ipc::{Client, Geometry, Node, Spin};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::calls::{Bed, NO_DEADLINE, SERVICE, SINK, call, config, open};
use crate::floor::Setting;
use crate::measure::{Latency, latency};
use crate::pair::{self, Peer, Role};
use crate::report::Group;
use crate::shm::Words;

/// Idle channels beside the hot one.
const IDLE: [usize; 2] = [64, 1000];
/// Channels that call, beside the flood.
const HONEST: usize = 63;
/// Bytes of each call.
const SIZE: usize = 48;

/// The role of a process with idle channels.
const CROWD: &str = "crowd";
/// The role of a process that sends one-way messages without an end.
const FLOOD: &str = "flood";

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
                let crowd = helper(setting, CROWD, &bed, &count.to_string(), None)?;
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
/// # Errors
/// Those of the measurements.
pub fn flooded(setting: &Setting, allowed: &[usize]) -> io::Result<Group> {
    raise_descriptor_limit()?;
    let bed = Bed::new(setting, Spin::Learned, Geometry::default(), None)?;
    let honest = gather(bed.directory(), HONEST)?;
    let mut p99s = Vec::new();
    let mut group = Group::measure(
        "many: 63 callers and a flood",
        || setting.beside_paused(bed.service()),
        |ruler| {
            let mut row = |name: &str| {
                ruler.latency(name, Some(SIZE), || {
                    let it = in_turn(setting, &honest)?;
                    p99s.push(it.p99);
                    Ok(it)
                })
            };
            row("call, 63 in turn")?;
            let used = [setting.placement.here, setting.placement.there];
            let third = allowed.iter().copied().find(|cpu| !used.contains(cpu));
            let _flood = helper(setting, FLOOD, &bed, SINK, third)?;
            row("call, 63 in turn, flooded")
        },
    )?;
    let ratio = p99s[1] as f64 / p99s[0] as f64;
    group.notes.push(format!("flooded: p99 is {ratio:.2} times that without"));
    Ok(group)
}

/// Calls on one channel after the other.
fn in_turn(setting: &Setting, honest: &[(Client, Node)]) -> io::Result<Latency> {
    let next = Cell::new(0);
    let (payload, mut answer) = ([7; SIZE], [0; SIZE]);
    latency(&setting.clock, setting.plan, || {
        let (client, _) = &honest[next.replace((next.get() + 1) % honest.len())];
        client.call_into(&payload, &mut answer, NO_DEADLINE).map(|_| ()).map_err(io::Error::other)
    })
}

/// Starts a process of this module, off the server's CPU, and waits until it is ready.
fn helper(
    setting: &Setting,
    role: &str,
    bed: &Bed,
    told: &str,
    cpu: Option<usize>,
) -> io::Result<Peer> {
    let (_, fd) = Words::create()?;
    let directory = bed.directory().display().to_string();
    let cpu = cpu.unwrap_or(setting.placement.here);
    let peer = Peer::spawn(role, &[&directory, told], &[cpu], fd)?;
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

/// Plays the part of one of this module's processes; nothing for a role that is none of them.
///
/// # Errors
/// Those of the runtime.
pub fn play(role: &Role) -> Option<io::Result<()>> {
    let [directory, told] = &role.arguments[..] else { return None };
    match role.name.as_str() {
        CROWD => Some(crowd(Path::new(directory), told)),
        FLOOD => Some(flood(Path::new(directory), told)),
        _ => None,
    }
}

fn crowd(directory: &Path, count: &str) -> io::Result<()> {
    raise_descriptor_limit()?;
    let count = count.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
    let _members = gather(directory, count)?;
    pair::say("ready")?;
    pair::rest()
}

fn flood(directory: &Path, suffix: &str) -> io::Result<()> {
    let config = config(directory, Spin::Learned, Geometry::default());
    let node = Node::connect(&config).map_err(io::Error::other)?;
    let sink = open(&node, &format!("{SERVICE}{suffix}"))?;
    pair::say("ready")?;
    loop {
        sink.send(&[7; 8], NO_DEADLINE).map_err(io::Error::other)?;
    }
}

/// Each node costs its process several descriptors, and the runtime, which is in this one, more.
fn raise_descriptor_limit() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
