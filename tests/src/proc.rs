//! What `/proc` says of a process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::FileExt,
    path::PathBuf,
};

/// What a process holds: it must come back to what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Open descriptors.
    pub descriptors: usize,
    /// Mapped lanes, its own and its peers'.
    pub lanes: usize,
    /// Mapped arenas, its own and those of honest peers.
    pub arenas: usize,
    /// Threads.
    pub threads: usize,
}

impl Holdings {
    /// Whether this is no more than that.
    pub fn is_within(&self, other: &Holdings) -> bool {
        self.descriptors <= other.descriptors
            && self.lanes <= other.lanes
            && self.arenas <= other.arenas
            && self.threads <= other.threads
    }
}

/// Counts what a process holds.
pub fn holdings(pid: u32) -> Holdings {
    // A board has room for the most channels that there were at once, which is for chance to say.
    let is_board = |fd: &fs::DirEntry| {
        fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().contains("ipc-board"))
    };
    let fds = fs::read_dir(of(pid).join("fd")).expect("a process");
    let descriptors = fds.filter(|fd| !fd.as_ref().is_ok_and(is_board)).count();
    let maps = fs::read_to_string(of(pid).join("maps")).expect("a process");
    let count = |name| maps.lines().filter(|line| line.contains(name)).count();
    let (lanes, arenas) = (count("ipc-lane"), count("ipc-arena"));
    Holdings { descriptors, lanes, arenas, threads: threads(pid).len() }
}

/// Counts the open descriptors of a process, those of boards among them.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(of(pid).join("fd")).expect("a process").count()
}

/// Tells how much memory of a process is resident, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(of(pid).join("status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has memory");
    line.split_whitespace().nth(1).expect("a value").parse().expect("a number")
}

/// Lists the sizes of the lanes that a process has mapped, its own and its peers', in bytes.
pub fn lane_sizes(pid: u32) -> Vec<u64> {
    let maps = fs::read_to_string(of(pid).join("maps")).expect("a process");
    let lanes = maps.lines().filter(|line| line.contains("ipc-lane"));
    lanes.filter_map(|line| size_of_range(line.split(' ').next()?)).collect()
}

/// Counts the lanes of its own in which a process says that it sleeps until its doorbell rings.
pub fn armed_lanes(pid: u32) -> usize {
    let maps = fs::read_to_string(of(pid).join("maps")).expect("a process");
    let memory = fs::File::open(of(pid).join("mem")).expect("a process that we started");
    // Its peers' it cannot write.
    let own = maps.lines().filter(|line| line.contains("ipc-lane") && line.contains(" rw-"));
    let parked = own.filter_map(|line| {
        let (from, _) = bounds(line.split(' ').next()?)?;
        let mut word = [0; 4];
        memory.read_exact_at(&mut word, from + PARKED_AT).ok()?;
        Some(u32::from_le_bytes(word))
    });
    parked.filter(|word| word & 3 == BY_DOORBELL).count()
}

/// Where the `parked` word is in a lane, and what it ends in when a doorbell ends the sleep: see
/// `docs/layout.md`.
const PARKED_AT: u64 = 0x180;
const BY_DOORBELL: u32 = 2;

fn size_of_range(range: &str) -> Option<u64> {
    bounds(range).map(|(from, to)| to - from)
}

fn bounds(range: &str) -> Option<(u64, u64)> {
    let (from, to) = range.split_once('-')?;
    Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
}

/// Lists the TCP ports to which somebody of this host is connected who waits in `close` until the
/// last bytes are taken: the socket has said that it ends, and still belongs to a file.
pub fn lingering() -> BTreeSet<u16> {
    const FIN_WAIT1: &str = "04";
    let sockets = fs::read_to_string("/proc/net/tcp").expect("a list");
    let port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, remote, FIN_WAIT1, _, _, _, _, _, inode, ..] = fields[..] else { return None };
        let (_, port) = remote.split_once(':').filter(|_| inode != "0")?;
        u16::from_str_radix(port, 16).ok()
    };
    sockets.lines().filter_map(port).collect()
}

/// Tells whether a process has ended, though nobody may have waited for it yet: an orphan's end is
/// for its new parent to hear of, whoever that is here.
pub fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(of(pid).join("stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

/// Lists the processes whose command line is so. Those that have ended have none.
pub fn all_running(is_meant: impl Fn(&[String]) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("it is there").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| {
        let line = fs::read(of(pid).join("cmdline")).unwrap_or_default();
        let words =
            line.split(|byte| *byte == 0).map(|it| String::from_utf8_lossy(it).into_owned());
        is_meant(&words.collect::<Vec<_>>())
    })
    .collect()
}

/// Lists the threads of a process.
pub fn threads(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(of(pid).join("task")).expect("a process");
    let names = tasks.flatten().filter_map(|task| task.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// Counts how often each thread of a process gave up the processor by itself: how often it slept.
pub fn sleeps(pid: u32) -> BTreeMap<u32, u64> {
    threads(pid).into_iter().filter_map(|thread| Some((thread, sleeps_of(pid, thread)?))).collect()
}

fn sleeps_of(pid: u32, thread: u32) -> Option<u64> {
    let path = of(pid).join(format!("task/{thread}/status"));
    let status = fs::read_to_string(path).ok()?;
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Gives how long the slices of a thread are, in ns, where the kernel tells.
pub fn slice(pid: u32, thread: u32) -> Option<u64> {
    let told = fs::read_to_string(of(pid).join(format!("task/{thread}/sched"))).ok()?;
    let line = told.lines().find(|line| line.starts_with("se.slice"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// Finds a thread by its name.
pub fn thread_named(pid: u32, name: &str) -> Option<u32> {
    let is_it = |thread: &u32| {
        let told = fs::read_to_string(of(pid).join(format!("task/{thread}/comm")));
        told.is_ok_and(|told| told.trim_end() == name)
    };
    threads(pid).into_iter().find(is_it)
}

/// Tells whether a thread sleeps now.
pub fn is_asleep(pid: u32, thread: u32) -> bool {
    state(pid, thread) == Some('S')
}

/// Tells whether every thread of a process is stopped.
pub fn is_stopped(pid: u32) -> bool {
    threads(pid).into_iter().all(|thread| state(pid, thread) == Some('T'))
}

fn state(pid: u32, thread: u32) -> Option<char> {
    let stat = fs::read_to_string(of(pid).join(format!("task/{thread}/stat"))).ok()?;
    // The name, in parentheses, may hold anything.
    stat.rsplit_once(") ")?.1.chars().next()
}

fn of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}
