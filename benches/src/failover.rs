//! From the end of who serves a name to the first answer of the next, as a caller sees it.
//!
//! Who serves is killed, or stopped with calls outstanding, again and again; a caller checks that
//! each answer is its request's, and that epochs only rise. Rows with hogs beside stand below the
//! quiet ones. What the caller's process holds at the end stands beside what it held before.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use ipc::control::SERVICE_IDEMPOTENT;
use ipc::{Client, Config, Node, Spin};
use kernel_services::Kernel;
use nix::sys::signal::{Signal, kill};

use crate::pair::{self, Peer, Role};
use crate::pin;
use crate::shm::Words;

const SERVICE: &str = "replicated";
/// The role of a process that serves, or stands by.
const REPLICA: &str = "replica";
/// The role of a process that takes a CPU for itself.
const HOG: &str = "hog";
/// A call may take so long, which is an error in this.
const DEADLINE: Duration = Duration::from_secs(10);

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Series {
    /// How many ends of each kind.
    pub kills: usize,
    /// Sizes of the victims, in MiB.
    pub victims: Vec<usize>,
    /// Encrypted channels, beside plain ones.
    pub encrypted: bool,
    /// Who serves is stopped, not killed: it hangs.
    pub stop: bool,
    /// Processes that take a CPU each, in a second round.
    pub hogs: usize,
    /// The caller, and who serves, ask for short slices.
    pub prompt: bool,
}

/// Ends so many of each kind, and prints what the caller saw.
///
/// # Errors
/// Those of the runtime; a signal that could not be sent.
pub fn run(series: &Series) -> io::Result<()> {
    let what = if series.stop { "SIGSTOP" } else { "kill -9" };
    println!("failover: {what} of who serves to the first answer of the next, in us");
    print!("{:<40}{:>7}{:>8}{:>8}{:>8}", "", "times", "p50", "p99", "max");
    println!("{:>8}{:>8}{:>8}{:>12}", "errors", "wrong", "stale", "answers");
    let before = Held::now()?;
    let rounds = if series.hogs > 0 { vec![0, series.hogs] } else { vec![0] };
    for hogs in rounds {
        for &mib in &series.victims {
            for encrypted in [false, true] {
                if encrypted && !series.encrypted {
                    continue;
                }
                let it = measure(series, mib, encrypted, hogs)?;
                let how = if encrypted { "encrypted" } else { "plain" };
                let beside = if hogs > 0 { format!(", {hogs} hogs") } else { String::new() };
                println!("{:<40}{it}", format!("a victim of {mib} MiB, {how}{beside}"));
            }
        }
    }
    let after = Held::now()?;
    println!("held by this process after all: {after}; before: {before}");
    Ok(())
}

/// What this process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    lanes: usize,
    children: usize,
}

impl Held {
    /// Waits until what is being let go is gone: threads may still be ending.
    fn now() -> io::Result<Held> {
        let mut last = Held::look()?;
        for _ in 0..1000 {
            thread::sleep(Duration::from_millis(10));
            let now = Held::look()?;
            if now == last && now.lanes == 0 {
                break;
            }
            last = now;
        }
        Ok(last)
    }

    fn look() -> io::Result<Held> {
        let descriptors = fs::read_dir("/proc/self/fd")?.count();
        let maps = fs::read_to_string("/proc/self/maps")?;
        let lanes = maps.lines().filter(|line| line.contains("memfd:ipc")).count();
        let mut children = 0;
        for task in fs::read_dir("/proc/self/task")? {
            let list = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            children += list.split_whitespace().count();
        }
        Ok(Held { descriptors, lanes, children })
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Held { descriptors, lanes, children } = self;
        write!(f, "{descriptors} descriptors, {lanes} mappings, {children} children")
    }
}

/// What a series came to.
struct Outcome {
    us: Vec<f64>,
    seen: Seen,
}

/// What the caller counted.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    answers: u64,
    errors: u64,
    /// Answers that are not to what was asked.
    wrong: u64,
    /// Answers of an epoch that is past.
    stale: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |share: f64| {
            let place = (self.us.len() as f64 * share).ceil() as usize;
            self.us.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
        let Seen { answers, errors, wrong, stale } = self.seen;
        write!(f, "{:>7}{p50:>8.0}{p99:>8.0}{max:>8.0}", self.us.len())?;
        write!(f, "{errors:>8}{wrong:>8}{stale:>8}{answers:>12}")
    }
}

fn measure(series: &Series, mib: usize, encrypted: bool, hogs: usize) -> io::Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let _kernel = Kernel::embedded(directory.path()).map_err(io::Error::other)?;
    let _hogs = (0..hogs).map(|_| hog()).collect::<io::Result<Vec<_>>>()?;
    let mut replicas = VecDeque::new();
    for _ in 0..2 {
        replicas.push_back(replica(directory.path(), mib, encrypted, series.prompt)?);
    }
    let node = Node::connect(&config(directory.path(), encrypted)).map_err(io::Error::other)?;
    let name = node.discover(SERVICE).map_err(io::Error::other)?;
    let client = node.client(name).map_err(io::Error::other)?;
    let caller = Caller::begin(client, series.prompt);
    // Of the first who serves.
    caller.changed_at.recv().map_err(io::Error::other)?;
    let mut us = Vec::new();
    for _ in 0..series.kills {
        settled(&node)?;
        let Some(victim) = replicas.pop_front() else { break };
        let ended = caller.zero.elapsed();
        let stopped = if series.stop {
            kill(victim.pid(), Signal::SIGSTOP)?;
            Some(victim)
        } else {
            drop(victim);
            None
        };
        // Asleep meanwhile: one that looks now and then would be in the way of who is measured.
        let answered = caller.changed_at.recv().map_err(io::Error::other)?;
        us.push(answered.saturating_sub(ended).as_secs_f64() * 1e6);
        drop(stopped);
        replicas.push_back(replica(directory.path(), mib, encrypted, series.prompt)?);
    }
    us.sort_by(f64::total_cmp);
    Ok(Outcome { us, seen: caller.end() })
}

/// Waits until there are two, and the second has a channel of the caller's.
fn settled(node: &Node) -> io::Result<()> {
    loop {
        let entries = node.list().map_err(io::Error::other)?;
        // The caller's and the vigil's to the first, and the caller's to the second.
        let has_all = |it: &ipc::control::Entry| it.channels >= 2 - it.rank.min(1);
        if entries.len() == 2 && entries.iter().all(has_all) {
            // What is opened is about to be watched.
            thread::sleep(Duration::from_millis(20));
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// A thread that calls, and notes when another process answers.
struct Caller {
    zero: Instant,
    /// When another process answered for the first time, since `zero`.
    changed_at: Receiver<Duration>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Seen>,
}

/// An answer: the process, its epoch, and the request.
const ANSWER: usize = 4 + 8 + 8;

impl Caller {
    fn begin(client: Client, prompt: bool) -> Caller {
        let zero = Instant::now();
        let stop = Arc::<AtomicBool>::default();
        let (tell, changed_at) = mpsc::channel();
        let of_thread = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let stop = of_thread;
            if prompt {
                ipc::wake_promptly().expect("nobody forbids it");
            }
            let (mut seen, mut last, mut latest) = (Seen::default(), [0; 4], 0);
            while !stop.load(Ordering::Relaxed) {
                let number = (seen.answers + seen.errors).to_le_bytes();
                let mut answer = [0; ANSWER];
                if client.call_into(&number, &mut answer, DEADLINE).is_err() {
                    seen.errors += 1;
                    continue;
                }
                seen.answers += 1;
                seen.wrong += u64::from(answer[12..] != number);
                let epoch = answer[4..12].try_into().map_or(0, u64::from_le_bytes);
                seen.stale += u64::from(epoch < latest);
                latest = latest.max(epoch);
                if answer[..4] != last {
                    // Whoever measures may be at its end.
                    let _ = tell.send(zero.elapsed());
                    last.copy_from_slice(&answer[..4]);
                }
            }
            seen
        });
        Caller { zero, changed_at, stop, thread }
    }

    fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(Seen { errors: u64::MAX, ..Seen::default() })
    }
}

fn config(directory: &Path, encrypt: bool) -> Config {
    let runtime_dir = Some(directory.to_owned());
    Config { runtime_dir, spin: Spin::Learned, encrypt, ..Config::default() }
}

fn replica(directory: &Path, mib: usize, encrypted: bool, prompt: bool) -> io::Result<Peer> {
    let (_, fd) = Words::create()?;
    let directory = directory.display().to_string();
    let flags = [encrypted, prompt].map(|flag| flag.to_string());
    let arguments = [&*directory, &*mib.to_string(), &*flags[0], &*flags[1]];
    let peer = Peer::spawn(REPLICA, &arguments, &pin::allowed()?, fd)?;
    peer.line()?;
    Ok(peer)
}

fn hog() -> io::Result<Peer> {
    let (_, fd) = Words::create()?;
    Peer::spawn(HOG, &[], &pin::allowed()?, fd)
}

/// Plays the part of this module's processes; nothing for a role that is another's.
///
/// # Errors
/// Those of the runtime.
pub fn play(role: &Role) -> Option<io::Result<()>> {
    if role.name == HOG {
        loop {
            std::hint::spin_loop();
        }
    }
    let [directory, mib, encrypted, prompt] = &role.arguments[..] else { return None };
    let flags = [encrypted, prompt].map(|flag| flag == "true");
    (role.name == REPLICA).then(|| serve(Path::new(directory), mib, flags))
}

fn serve(directory: &Path, mib: &str, [encrypt, prompt]: [bool; 2]) -> io::Result<()> {
    let mib: usize = mib.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
    // Touched, so that the kernel has it to tear down.
    let _fat = vec![1_u8; mib << 20];
    let node = Node::connect(&config(directory, encrypt)).map_err(io::Error::other)?;
    if prompt {
        ipc::wake_promptly().map_err(io::Error::other)?;
    }
    let server = node.server().map_err(io::Error::other)?;
    server.register(SERVICE, SERVICE_IDEMPOTENT).map_err(io::Error::other)?;
    pair::say("ready")?;
    let own = std::process::id().to_le_bytes();
    server
        .run(|request| {
            let mut answer = [0; ANSWER];
            answer[..4].copy_from_slice(&own);
            answer[4..12].copy_from_slice(&request.epoch().to_le_bytes());
            if let Ok(number) = <[u8; 8]>::try_from(request.payload()) {
                answer[12..].copy_from_slice(&number);
            }
            // A caller that is gone needs no answer.
            let _ = request.reply(&answer);
        })
        .map_err(io::Error::other)
}
