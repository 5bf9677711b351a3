//! Events: what it costs to publish one, however many listen, and how long it takes to be heard;
//! beside the ways by which one writes to each listener.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ipc::bus::{EventError, PublishOptions, Publisher, SubscribeOptions, Subscription};
use ipc::{Geometry, Node, Spin};
use kernel_services::Kernel;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::calls::config;
use crate::floor::Setting;
use crate::measure::{Throughput, latency, throughput};
use crate::pair::{self, Peer, Role};
use crate::pin;
use crate::report::Group;
use crate::shm::Words;

/// The role of a process that subscribes.
const LISTEN: &str = "listen-events";
const TOPIC: &str = "bench.events";
const BACK: &str = "bench.events.back";
/// Bytes of each event.
const SIZE: usize = 40;
/// Subscribers, each with a cursor of its own, of one process that polls them in turn.
const SUBSCRIBERS: [usize; 5] = [0, 1, 8, 64, 1000];
/// Processes that sleep until an event comes.
const SLEEPERS: [usize; 3] = [1, 8, 64];
/// Listeners that are written to one by one.
const WRITTEN_TO: [usize; 3] = [1, 8, 64];
/// Events published between looks at the clock.
const BATCH: u64 = 64;

/// Runs the group.
///
/// # Errors
/// Those of the measurements.
pub fn group(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let directory = tempfile::tempdir()?;
    let _kernel = Kernel::embedded(directory.path()).map_err(io::Error::other)?;
    pin::pin_to(&[setting.placement.here])?;
    let node = connect(directory.path(), Spin::Always)?;
    let mut costs = Vec::new();
    let mut group = Group::measure(
        "events, 40 bytes",
        || setting.beside(),
        |ruler| {
            ruler.latency("there and back, polling", Some(SIZE), || {
                let _echo = listen(setting, directory.path(), "echo", 1)?;
                there_and_back(setting, &node)
            })?;
            for count in SUBSCRIBERS {
                let name = format!("publish, {count} subscribers");
                ruler.throughput(&name, Some(SIZE), || {
                    let _listener = listen(setting, directory.path(), "poll", count)?;
                    let rate = publish(setting, &publisher(&node, TOPIC)?)?;
                    costs.push((name.clone(), 1e9 / rate.per_second()));
                    Ok(rate)
                })?;
            }
            for count in SLEEPERS {
                let name = format!("publish, {count} processes, woken each time");
                ruler.throughput(&name, Some(SIZE), || {
                    let sleepers = (0..count)
                        .map(|_| listen(setting, directory.path(), "sleep", 1))
                        .collect::<io::Result<Vec<_>>>()?;
                    let rate = publish(setting, &publisher(&node, TOPIC)?)?;
                    costs.push((name.clone(), 1e9 / rate.per_second()));
                    drop(sleepers);
                    Ok(rate)
                })?;
            }
            for count in WRITTEN_TO {
                ruler.throughput(
                    &format!("crossbeam-channel, {count}, in process"),
                    Some(SIZE),
                    || channels(setting, count),
                )?;
                ruler.throughput(&format!("Unix sockets, {count}"), Some(SIZE), || {
                    sockets(setting, count)
                })?;
            }
            Ok(())
        },
    )?;
    let one =
        costs.iter().find(|(name, _)| name == "publish, 1 subscribers").map_or(1.0, |it| it.1);
    group.notes.extend(
        costs.iter().map(|(name, ns)| {
            format!("{name}: {ns:.0} ns each, {:.2} times that for one", ns / one)
        }),
    );
    Ok(group)
}

fn connect(directory: &Path, spin: Spin) -> io::Result<Node> {
    Node::connect(&config(directory, spin, Geometry::default())).map_err(io::Error::other)
}

fn publisher(node: &Node, topic: &str) -> io::Result<Publisher> {
    node.publisher(topic, PublishOptions::default()).map_err(io::Error::other)
}

fn subscribe(node: &Node, topic: &str) -> io::Result<Subscription> {
    node.subscribe(topic, SubscribeOptions::default()).map_err(io::Error::other)
}

/// Starts a process with so many subscriptions, and waits until it has them.
fn listen(setting: &Setting, directory: &Path, way: &str, count: usize) -> io::Result<Peer> {
    let (_, fd) = Words::create()?;
    let arguments = [directory.display().to_string(), way.to_owned(), count.to_string()];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let peer = Peer::spawn(LISTEN, &arguments, &[setting.placement.there], fd)?;
    peer.line()?;
    Ok(peer)
}

fn publish(setting: &Setting, publisher: &Publisher) -> io::Result<Throughput> {
    let payload = [7; SIZE];
    throughput(&setting.clock, setting.plan, || {
        for _ in 0..BATCH {
            publisher.publish(&payload).map_err(io::Error::other)?;
        }
        Ok(BATCH)
    })
}

fn there_and_back(setting: &Setting, node: &Node) -> io::Result<crate::measure::Latency> {
    let publisher = publisher(node, TOPIC)?;
    let mut back = subscribe(node, BACK)?;
    let mut payload = Vec::with_capacity(SIZE);
    latency(&setting.clock, setting.plan, || {
        publisher.publish(&[7; SIZE]).map_err(io::Error::other)?;
        payload.clear();
        while back.try_recv_into(&mut payload).map_err(io::Error::other)?.is_none() {}
        Ok(())
    })
}

/// One send to each of so many channels, which another thread empties.
fn channels(setting: &Setting, count: usize) -> io::Result<Throughput> {
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..count).map(|_| crossbeam::channel::bounded::<[u8; SIZE]>(4096)).unzip();
    beside(
        setting,
        move || receivers.iter().for_each(|it| while it.try_recv().is_ok() {}),
        || {
            throughput(&setting.clock, setting.plan, || {
                for sender in &senders {
                    sender.send([7; SIZE]).map_err(io::Error::other)?;
                }
                Ok(1)
            })
        },
    )
}

/// One write to each of so many sockets, which another thread reads.
fn sockets(setting: &Setting, count: usize) -> io::Result<Throughput> {
    let pairs: Vec<_> = (0..count).map(|_| UnixStream::pair()).collect::<io::Result<_>>()?;
    let (mut own, mut theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    theirs.iter().try_for_each(|it| it.set_nonblocking(true))?;
    let mut buffer = [0; 4096];
    let read = move || {
        for socket in &mut theirs {
            while socket.read(&mut buffer).is_ok_and(|length| length > 0) {}
        }
    };
    beside(setting, read, || {
        throughput(&setting.clock, setting.plan, || {
            own.iter_mut().try_for_each(|socket| socket.write_all(&[7; SIZE]))?;
            Ok(1)
        })
    })
}

/// Measures while a thread on the other CPU does something again and again.
fn beside(
    setting: &Setting,
    mut work: impl FnMut() + Send + 'static,
    measure: impl FnOnce() -> io::Result<Throughput>,
) -> io::Result<Throughput> {
    let over = Arc::new(AtomicBool::new(false));
    let (until, cpu) = (Arc::clone(&over), setting.placement.there);
    let worker = thread::spawn(move || {
        // Where it may not be pinned the figure says what it says.
        let _ = pin::pin_to(&[cpu]);
        while !until.load(Ordering::Relaxed) {
            work();
        }
    });
    let measured = measure();
    over.store(true, Ordering::Relaxed);
    worker.join().map_err(|_| io::Error::other("the reader panicked"))?;
    measured
}

/// Plays a subscriber's part; nothing for a role that is not of this module.
///
/// # Errors
/// Those of the runtime.
pub fn play(role: &Role) -> Option<io::Result<()>> {
    (role.name == LISTEN).then(|| match &role.arguments[..] {
        [directory, way, count] => {
            let count = count.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
            hear(Path::new(directory), way, count)
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    })
}

fn hear(directory: &Path, way: &str, count: usize) -> io::Result<()> {
    let node = connect(directory, if way == "sleep" { Spin::Never } else { Spin::Always })?;
    let mut all =
        (0..count).map(|_| subscribe(&node, TOPIC)).collect::<io::Result<Vec<Subscription>>>()?;
    let back = publisher(&node, BACK)?;
    pair::say("ready")?;
    let mut payload = Vec::with_capacity(SIZE);
    loop {
        for subscription in &mut all {
            payload.clear();
            let heard = match way {
                "sleep" => subscription.recv_into(&mut payload, None).map(Some),
                _ => subscription.try_recv_into(&mut payload),
            };
            match heard {
                Ok(Some(_)) if way == "echo" => {
                    back.publish(&payload).map_err(io::Error::other)?;
                }
                // Publishers come and go between the measurements.
                Ok(_) | Err(EventError::Lagged { .. }) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}
