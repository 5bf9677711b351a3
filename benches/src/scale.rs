//! A thousand services, each a process of its own: what they take, and what they do to others.
//!
//! Three systems are started one after the other by the same `ipcd`: one service alone, a thousand
//! processes that only sleep, and a thousand that serve. The second says what processes cost
//! anyhow; the third less the second is what libipc adds.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use ipc::{Geometry, Node, ServiceId, Spin};
use kernel_services::system::{self, System};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

use crate::calls::{call, config};
use crate::floor::Setting;
use crate::measure::{Latency, latency};
use crate::pair::Role;
use crate::pin;

/// The subcommands of the runtime's process and of a service's.
pub const RUNTIME: &str = "scale-runtime";
pub const MEMBER: &str = "scale-member";
/// The role of who echoes over a socket.
const ECHO: &str = "scale-echo";
const PATIENCE: Duration = Duration::from_mins(5);
/// How long nobody may wake up, and how long messages flow.
const WATCHED: Duration = Duration::from_secs(3);
/// Bytes of each call.
const SIZE: usize = 48;

/// A system of services under an `ipcd` of its own; stopped in order when this is dropped.
#[derive(Debug)]
struct Crowd {
    ipcd: Child,
    node: Node,
    _directory: tempfile::TempDir,
}

/// Measures, and prints what came of it.
///
/// # Errors
/// Those of the measurements.
pub fn run(setting: &Setting, count: usize) -> io::Result<()> {
    raise_descriptor_limit()?;
    let floor = ping_pong(setting)?;
    let only = Crowd::start(setting, "serve", 1)?;
    let empty = Memory::now();
    let bare = {
        let crowd = Crowd::start(setting, "sleep", count)?;
        Memory::now().since(&empty).with_private(crowd.ipcd.id())
    };
    let empty = Memory::now();
    let begun = Instant::now();
    let crowd = Crowd::start(setting, "serve", count)?;
    println!("{count} services were ready after {:.1} s", begun.elapsed().as_secs_f64());
    let ipcd = crowd.ipcd.id();
    let pids = children(ipcd);
    println!(
        "idle: {} wake-ups of {} processes in {WATCHED:?}",
        idle(ipcd, &pids)?,
        pids.len() + 1
    );
    let serving = Memory::now().since(&empty).with_private(ipcd);
    tell_memory(&bare, &serving, ipcd, count);

    println!("\nin ns: p50 / p95 / p99");
    let row = |name: &str, it: &Latency, of: &Latency| {
        let ratio = it.p50 as f64 / of.p50 as f64;
        println!("{name:<40} {} / {} / {}: {ratio:.2} times at p50", it.p50, it.p95, it.p99);
    };
    row("Unix socket, there and back", &floor, &floor);
    let found = latency(&setting.clock, setting.plan, || {
        crowd.node.discover(&name(count / 2)).map(|_| ()).map_err(io::Error::other)
    })?;
    row("discovery among all", &found, &floor);
    row("connect, to each of them", &crowd.connects(setting, count)?, &floor);
    row("Unix socket once more", &ping_pong(setting)?, &floor);
    // In turns: where the CPUs are, and who else uses them, changes in the course of minutes.
    let (single, member) = (only.client(0)?, crowd.client(0)?);
    for _ in 0..3 {
        let alone = call(setting, &single, SIZE)?;
        row("call, the only service", &alone, &alone);
        row("call, one of all", &call(setting, &member, SIZE)?, &alone);
    }
    let (rate, share) = crowd.flood(ipcd)?;
    println!(
        "\n{rate:.1} million messages per second: ipcd takes {:.2} % of a core",
        share * 100.0
    );
    Ok(())
}

impl Crowd {
    fn start(setting: &Setting, part: &str, count: usize) -> io::Result<Crowd> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("node.toml");
        fs::write(&file, node_file(part, count)?)?;
        let ipcd = Command::new(std::env::current_exe()?)
            .arg(RUNTIME)
            .arg(directory.path())
            .arg(&file)
            .arg(setting.placement.there.to_string())
            .spawn()?;
        let config = config(directory.path(), Spin::Learned, Geometry::default());
        let node = patiently(|| Node::connect(&config).ok())?;
        let crowd = Crowd { ipcd, node, _directory: directory };
        patiently(|| (crowd.ready() == count).then_some(()))?;
        Ok(crowd)
    }

    fn ready(&self) -> usize {
        let told = self.node.command(r#"{"do":"status"}"#, Some(PATIENCE)).unwrap_or_default();
        told.matches(r#""state":"ready""#).count()
    }

    fn client(&self, number: usize) -> io::Result<ipc::Client> {
        let id = self.node.discover(&name(number)).map_err(io::Error::other)?;
        self.node.client(id).map_err(io::Error::other)
    }

    /// How long it takes to be introduced to one after the other.
    fn connects(&self, setting: &Setting, count: usize) -> io::Result<Latency> {
        let ids: Vec<ServiceId> = (0..count)
            .map(|number| self.node.discover(&name(number)).map_err(io::Error::other))
            .collect::<io::Result<_>>()?;
        let mut next = ids.iter().cycle();
        let mut last = None;
        latency(&setting.clock, setting.plan, || {
            let Some(id) = next.next() else { return Ok(()) };
            last = Some(self.node.client(*id).map_err(io::Error::other)?);
            Ok(())
        })
    }

    /// Sends messages that nobody answers; gives millions per second, and the share of a core that
    /// the runtime took meanwhile.
    fn flood(&self, ipcd: u32) -> io::Result<(f64, f64)> {
        let client = self.client(0)?;
        let (begun, before) = (Instant::now(), cpu_time(ipcd)?);
        let mut sent = 0_u64;
        while begun.elapsed() < WATCHED {
            let burst = client.burst(|burst| (0..1024).try_for_each(|_| burst.send(&[7; 8])));
            burst.map_err(io::Error::other)?;
            sent += 1024;
        }
        client.call(&[7; SIZE], PATIENCE).map_err(io::Error::other)?;
        let took = begun.elapsed().as_secs_f64();
        Ok((sent as f64 / took / 1e6, (cpu_time(ipcd)? - before) / took))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // It stops all of them first.
        let _ = kill(Pid::from_raw(self.ipcd.id().cast_signed()), Signal::SIGTERM);
        let _ = self.ipcd.wait();
    }
}

fn name(number: usize) -> String {
    format!("s{number:04}")
}

fn node_file(part: &str, count: usize) -> io::Result<String> {
    let program = std::env::current_exe()?;
    let program = program.display();
    let mut text = String::from("[[rule]]\nfrom = \"any\"\nto = \"any\"\nallow = \"all\"\n");
    for number in 0..count {
        let name = name(number);
        let _ = writeln!(
            text,
            "[service.{name}]\nexecutable = '{program}'\narguments = [\"{MEMBER}\", \"{part}\", \
             \"{name}\"]\nreadiness = {{ when = \"{}\", within = \"5min\" }}",
            if part == "serve" { "answers" } else { "runs" }
        );
    }
    Ok(text)
}

fn patiently<T>(mut look: impl FnMut() -> Option<T>) -> io::Result<T> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(found) = look() {
            return Ok(found);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Plays the runtime.
///
/// # Errors
/// Those of the runtime.
pub fn runtime(directory: &Path, file: &Path, cpu: usize) -> io::Result<()> {
    pin::pin_to(&[cpu])?;
    raise_descriptor_limit()?;
    let signals = system::signals().map_err(io::Error::other)?;
    let mut system = System::open(file, directory, signals).map_err(io::Error::other)?;
    // What it says of each of a thousand starts is for nobody.
    let null: OwnedFd = fs::File::options().write(true).open("/dev/null")?.into();
    nix::unistd::dup2_stderr(&null)?;
    system.run().map_err(io::Error::other)
}

/// Plays a service.
///
/// # Errors
/// Those of the runtime.
pub fn member(part: &str, name: &str) -> io::Result<()> {
    if part != "serve" {
        loop {
            thread::park();
        }
    }
    let node = Node::connect(&ipc::Config::default()).map_err(io::Error::other)?;
    let server = node.server().map_err(io::Error::other)?;
    server.register(name, 0).map_err(io::Error::other)?;
    let answer = |request: &ipc::Request<'_>| {
        if !request.is_one_way() {
            // A caller that is gone needs no answer.
            let _ = request.reply(request.payload());
        }
    };
    server.run(|request| answer(&request)).map_err(io::Error::other)
}

/// What the runtime is compared with: a packet there and back over a Unix socket.
fn ping_pong(setting: &Setting) -> io::Result<Latency> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (here, there) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let _peer = setting.peer(ECHO, &[], there)?;
    let mut buffer = [7; 16];
    latency(&setting.clock, setting.plan, || {
        nix::unistd::write(&here, &buffer)?;
        nix::unistd::read(&here, &mut buffer)?;
        Ok(())
    })
}

/// Plays the part of this module's peer; nothing for a role that is another's.
pub fn play(role: &Role) -> Option<io::Result<()>> {
    (role.name == ECHO).then(|| {
        let mut buffer = [0; 16];
        loop {
            let length = nix::unistd::read(&role.shared, &mut buffer)?;
            nix::unistd::write(&role.shared, &buffer[..length])?;
        }
    })
}

/// What the machine's memory is used for, in KiB.
#[derive(Clone, Debug)]
struct Memory {
    uses: Vec<(&'static str, i64)>,
    sockets: i64,
}

/// What the kernel tells of the whole machine. Who else is at work on it disturbs that little.
const USES: [&str; 5] = ["Shmem", "KernelStack", "PageTables", "SUnreclaim", "Percpu"];
/// The kernel's objects behind sockets, and what waits in them.
const SOCKETS: [&str; 4] = ["UNIX", "sock_inode_cache", "skbuff_head_cache", "skbuff_small_head"];

impl Memory {
    fn now() -> Memory {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (all, slabs) = (read("/proc/meminfo"), read("/proc/slabinfo"));
        let value = |of: &str| {
            let line = all.lines().find_map(|line| line.strip_prefix(of)?.strip_prefix(':'));
            let number = line.and_then(|it| it.split_whitespace().next()?.parse().ok());
            number.unwrap_or(0)
        };
        let slab = |line: &str| {
            let mut words = line.split_whitespace();
            let is_meant = words.next().is_some_and(|name| SOCKETS.contains(&name));
            let objects: i64 = words.next()?.parse().ok()?;
            let size: i64 = words.nth(1)?.parse().ok()?;
            is_meant.then_some(objects * size / 1024)
        };
        let sockets = slabs.lines().filter_map(slab).sum();
        Memory { uses: USES.iter().map(|of| (*of, value(of))).collect(), sockets }
    }

    fn since(&self, before: &Memory) -> Memory {
        let uses = self.uses.iter().zip(&before.uses);
        let uses = uses.map(|((name, now), (_, then))| (*name, now - then)).collect();
        Memory { uses, sockets: self.sockets - before.sockets }
    }

    /// Adds the private memory of the runtime and of its services, each by itself: what others on
    /// the machine have of that may change by hundreds of megabytes at any time.
    fn with_private(mut self, ipcd: u32) -> Memory {
        let pids = children(ipcd);
        let all = pids.iter().chain([&ipcd]).map(|&pid| share(pid, "Pss_Anon:")).sum();
        self.uses.push(("private", all));
        self
    }

    fn all(&self) -> i64 {
        self.uses.iter().map(|(_, kib)| kib).sum()
    }
}

fn tell_memory(bare: &Memory, serving: &Memory, ipcd: u32, count: usize) {
    println!("\nKiB{:>22} {:>12} {:>12}", "asleep", "serving", "difference");
    for ((name, without), (_, with)) in bare.uses.iter().zip(&serving.uses) {
        println!("{name:<12} {without:>12} {with:>12} {:>12}", with - without);
    }
    let more = serving.all() - bare.all();
    println!("{:<12} {:>12} {:>12} {more:>12}", "all", bare.all(), serving.all());
    println!("{:.1} KiB per service more than a process that sleeps", more as f64 / count as f64);
    let shared = serving.uses[0].1 - bare.uses[0].1;
    let sockets = serving.sockets - bare.sockets;
    let runtime = share(ipcd, "Pss:");
    println!(
        "shm {shared} + sockets {sockets} + ipcd {runtime} = {:.1} MB",
        (shared + sockets + runtime) as f64 * 1024.0 / 1e6
    );
}

/// The proportional share of memory of a kind that a process has, in KiB.
fn share(pid: u32, kind: &str) -> i64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix(kind));
    line.and_then(|it| it.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn children(pid: u32) -> Vec<u32> {
    let path = |thread: &PathBuf| fs::read_to_string(thread.join("children")).unwrap_or_default();
    let lists: Vec<String> = tasks(pid).iter().map(path).collect();
    lists.iter().flat_map(|list| list.split_whitespace()).filter_map(|it| it.parse().ok()).collect()
}

fn tasks(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// How often a process was given a processor.
fn switches(pid: u32) -> u64 {
    let of = |thread: &PathBuf| {
        let status = fs::read_to_string(thread.join("status")).unwrap_or_default();
        let lines = status.lines().filter(|line| line.contains("voluntary_ctxt_switches"));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>()
    };
    tasks(pid).iter().map(of).sum()
}

/// Counts who wakes up when nothing happens, once all have come to rest.
fn idle(ipcd: u32, pids: &[u32]) -> io::Result<u64> {
    let all = || pids.iter().map(|&pid| switches(pid)).sum::<u64>() + switches(ipcd);
    let mut before = all();
    patiently(|| {
        thread::sleep(Duration::from_secs(1));
        let now = all();
        (now == std::mem::replace(&mut before, now)).then_some(())
    })?;
    thread::sleep(WATCHED);
    Ok(all() - before)
}

/// Seconds of a processor that a process has used.
fn cpu_time(pid: u32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    let ticks: u64 = fields.skip(11).take(2).filter_map(|it| it.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / 100.0)
}

fn raise_descriptor_limit() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
