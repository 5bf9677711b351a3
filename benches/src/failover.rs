//! From the kill of who serves a name to the first answer of the next, as a caller sees it.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ipc::control::SERVICE_IDEMPOTENT;
use ipc::{Client, Config, Node, Spin};
use kernel_services::Kernel;

use crate::pair::{self, Peer, Role};
use crate::pin;
use crate::shm::Words;

const SERVICE: &str = "replicated";
/// The role of a process that serves, or stands by.
const REPLICA: &str = "replica";
/// Sizes of the victims.
const VICTIMS: [usize; 2] = [1, 256];
/// A call may take so long, which is an error in this.
const DEADLINE: Duration = Duration::from_secs(10);

/// Kills so many of each kind, and prints what the caller saw.
///
/// # Errors
/// Those of the runtime; a call that failed.
pub fn run(kills: usize) -> io::Result<()> {
    println!("failover: kill -9 of who serves to the first answer of the next, in us");
    println!("{:<34}{:>8}{:>8}{:>8}{:>8}{:>8}", "", "kills", "p50", "p99", "max", "errors");
    for mib in VICTIMS {
        let it = measure(kills, mib)?;
        println!("{:<34}{it}", format!("a victim of {mib} MiB, plain"));
    }
    Ok(())
}

/// What a series of kills came to.
struct Series {
    us: Vec<f64>,
    errors: u64,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |share: f64| {
            let place = (self.us.len() as f64 * share).ceil() as usize;
            self.us.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
        write!(f, "{:>8}{p50:>8.0}{p99:>8.0}{max:>8.0}{:>8}", self.us.len(), self.errors)
    }
}

fn measure(kills: usize, mib: usize) -> io::Result<Series> {
    let directory = tempfile::tempdir()?;
    let _kernel = Kernel::embedded(directory.path()).map_err(io::Error::other)?;
    let mut replicas = std::collections::VecDeque::new();
    for _ in 0..2 {
        replicas.push_back(replica(directory.path(), mib)?);
    }
    let node = Node::connect(&config(directory.path())).map_err(io::Error::other)?;
    let name = node.discover(SERVICE).map_err(io::Error::other)?;
    let client = node.client(name).map_err(io::Error::other)?;
    let caller = Caller::begin(client);
    let mut us = Vec::new();
    for _ in 0..kills {
        settled(&node)?;
        let Some(victim) = replicas.pop_front() else { break };
        let before = caller.changes.load(Ordering::Acquire);
        let killed = caller.zero.elapsed();
        drop(victim);
        while caller.changes.load(Ordering::Acquire) == before {
            thread::sleep(Duration::from_micros(100));
        }
        let answered = Duration::from_nanos(caller.changed_at.load(Ordering::Acquire));
        us.push(answered.saturating_sub(killed).as_secs_f64() * 1e6);
        replicas.push_back(replica(directory.path(), mib)?);
    }
    us.sort_by(f64::total_cmp);
    Ok(Series { us, errors: caller.end() })
}

/// Waits until there are two, and the second has a channel of the caller's.
fn settled(node: &Node) -> io::Result<()> {
    loop {
        let entries = node.list().map_err(io::Error::other)?;
        if entries.len() == 2 && entries.iter().any(|it| it.rank == 1 && it.channels > 0) {
            // The vigil of the second over the first is opened by then, or soon after.
            thread::sleep(Duration::from_millis(20));
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// A thread that calls, and notes when another process answers.
struct Caller {
    zero: Instant,
    changes: Arc<AtomicU64>,
    changed_at: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
}

impl Caller {
    fn begin(client: Client) -> Caller {
        let zero = Instant::now();
        let (changes, changed_at, stop) =
            <(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicBool>)>::default();
        let of_thread = (Arc::clone(&changes), Arc::clone(&changed_at), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let (changes, changed_at, stop) = of_thread;
            let (mut errors, mut last) = (0, [0; 4]);
            while !stop.load(Ordering::Relaxed) {
                let mut answer = [0; 4];
                if client.call_into(&[7; 8], &mut answer, DEADLINE).is_err() {
                    errors += 1;
                    continue;
                }
                if answer != last {
                    let now = zero.elapsed().as_nanos();
                    changed_at.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Release);
                    changes.fetch_add(1, Ordering::AcqRel);
                    last = answer;
                }
            }
            errors
        });
        Caller { zero, changes, changed_at, stop, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(u64::MAX)
    }
}

fn config(directory: &Path) -> Config {
    Config { runtime_dir: Some(directory.to_owned()), spin: Spin::Learned, ..Config::default() }
}

fn replica(directory: &Path, mib: usize) -> io::Result<Peer> {
    let (_, fd) = Words::create()?;
    let directory = directory.display().to_string();
    let arguments = [&*directory, &*mib.to_string()];
    let peer = Peer::spawn(REPLICA, &arguments, &pin::allowed()?, fd)?;
    peer.line()?;
    Ok(peer)
}

/// Plays the part of this module's process; nothing for a role that is another's.
///
/// # Errors
/// Those of the runtime.
pub fn play(role: &Role) -> Option<io::Result<()>> {
    let [directory, mib] = &role.arguments[..] else { return None };
    (role.name == REPLICA).then(|| serve(Path::new(directory), mib))
}

fn serve(directory: &Path, mib: &str) -> io::Result<()> {
    let mib: usize = mib.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
    // Touched, so that the kernel has it to tear down.
    let _fat = vec![1_u8; mib << 20];
    let node = Node::connect(&config(directory)).map_err(io::Error::other)?;
    let server = node.server().map_err(io::Error::other)?;
    server.register(SERVICE, SERVICE_IDEMPOTENT).map_err(io::Error::other)?;
    pair::say("ready")?;
    let own = std::process::id().to_le_bytes();
    server
        .run(|request| {
            // A caller that is gone needs no answer.
            let _ = request.reply(&own);
        })
        .map_err(io::Error::other)
}
