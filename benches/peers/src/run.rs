//! The measurements: rounds of every contender and size, each between two of the floor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use benches::floor::{self, Setting};
use benches::measure::{Latency, distribution};
use benches::pair::{Peer, Role};
use benches::report::{self, Distance, held_still, progress};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Serialize;
use tempfile::TempDir;

use crate::contender::{Caller, Contender, Place, STAMP};
use crate::contenders::{self, mailbox};

/// Sizes of the payloads.
pub const SIZES: [usize; 6] = [8, 64, 1 << 10, 4 << 10, 64 << 10, 1 << 20];
/// Numbers of clients.
pub const CROWDS: [usize; 3] = [1, 8, 64];
/// Size of a crowd's payloads.
pub const CROWD_SIZE: usize = 64;

/// The role of a contender's server; its first argument is the index in [`contenders::all`].
const SERVE: &str = "contender";

/// The shares, in 100,000, of a distribution that are kept.
pub const SHARES: [u32; 23] = [
    0, 5_000, 10_000, 20_000, 30_000, 40_000, 50_000, 60_000, 70_000, 75_000, 80_000, 85_000,
    90_000, 92_500, 95_000, 97_000, 98_000, 99_000, 99_500, 99_700, 99_900, 99_950, 99_990,
];

/// One brief measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Which round it was in, from 0.
    pub round: usize,
    /// The distribution's figures; none for a crowd.
    pub latency: Option<Latency>,
    /// Nanoseconds at each of the [`SHARES`]; empty for a crowd.
    pub quantiles: Vec<u64>,
    /// Calls per second, of all clients.
    pub per_second: f64,
    /// The floor just before.
    pub floor_before: Latency,
    /// The floor just after.
    pub floor_after: Latency,
    /// Where the CPUs were.
    pub distance: Distance,
    /// Whether the floor held still.
    pub steady: bool,
}

/// What identifies a row: who, with which payloads, from how many clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Index in [`contenders::all`].
    pub contender: usize,
    /// Bytes of each payload.
    pub size: usize,
    /// How many clients.
    pub clients: usize,
}

/// What was measured, or why not.
pub type Measured = (Case, io::Result<Sample>);

/// Runs one round of latencies: every contender with every size it takes.
pub fn calls(setting: &Setting, round: usize, chosen: &[usize], sizes: &[usize]) -> Vec<Measured> {
    let mut measured = Vec::new();
    for &contender in chosen {
        let who = contenders::all()[contender];
        let case = |size| Case { contender, size, clients: 1 };
        let sizes = sizes.iter().copied().filter(|&size| size <= who.largest());
        let opened = Bed::new(setting, contender, 1)
            .and_then(|bed| who.connect(&bed.place).map(|caller| (caller, bed)));
        match opened {
            Ok((mut caller, bed)) => {
                let mut floor = None;
                measured.extend(sizes.map(|size| {
                    let title = format!("{}, {}", who.name(), report::size(size));
                    let measure = || bed.latency(&mut *caller, size);
                    (case(size), bed.between_floors(&mut floor, round, &title, measure))
                }));
            }
            // Said once: the reason is the same for all sizes.
            Err(error) => {
                measured.extend(sizes.take(1).map(|size| (case(size), Err(said(&error)))));
            }
        }
    }
    measured
}

/// Runs one round of crowds.
pub fn crowds(setting: &Setting, round: usize, chosen: &[usize]) -> Vec<Measured> {
    let mut measured = Vec::new();
    for &contender in chosen {
        let who = contenders::all()[contender];
        for clients in CROWDS.into_iter().filter(|_| who.takes_crowds()) {
            let title = format!("{}, {clients} clients", who.name());
            let sample = Bed::new(setting, contender, clients)
                .and_then(|bed| bed.between_floors(&mut None, round, &title, || bed.rate()));
            measured.push((Case { contender, size: CROWD_SIZE, clients }, sample));
        }
    }
    measured
}

/// Plays the second process: a contender's server, or the floor's.
///
/// # Errors
/// Those of the contender; `InvalidInput` for a role that nobody knows.
pub fn play(role: Role) -> io::Result<()> {
    if role.name != SERVE {
        return floor::play(role);
    }
    let malformed = || io::Error::from(io::ErrorKind::InvalidInput);
    let [contender, clients, directory] = &role.arguments[..] else { return Err(malformed()) };
    let contender: usize = contender.parse().map_err(|_| malformed())?;
    let place = Place {
        directory: directory.into(),
        shared: File::from(role.shared),
        clients: clients.parse().map_err(|_| malformed())?,
        greeting: String::new(),
    };
    contenders::all().get(contender).ok_or_else(malformed)?.serve(&place)
}

/// What a measurement says, without its floors: see [`Sample`].
type Figures = (Option<Latency>, Vec<u64>, f64);

/// A server in the second process, and where it is found.
struct Bed<'a> {
    setting: &'a Setting,
    contender: &'static dyn Contender,
    // Before what it needs, so that it ends first.
    peer: Option<Peer>,
    place: Place,
    _prepared: Box<dyn std::any::Any>,
    _directory: TempDir,
}

impl<'a> Bed<'a> {
    fn new(setting: &'a Setting, index: usize, clients: usize) -> io::Result<Bed<'a>> {
        let contender = contenders::all()[index];
        progress(&format!("{}: the server", contender.name()));
        let directory = tempfile::Builder::new().prefix("peers-").tempdir()?;
        let shared = shared()?;
        let mut place = Place {
            directory: directory.path().to_owned(),
            shared: File::from(shared.try_clone()?),
            clients,
            greeting: String::new(),
        };
        let prepared = contender.prepare(&place)?;
        let path = place.directory.display().to_string();
        let arguments = [index.to_string(), clients.to_string(), path];
        let peer = setting.peer(SERVE, &arguments.each_ref().map(String::as_str), shared)?;
        place.greeting = peer.line()?;
        Ok(Bed {
            setting,
            contender,
            peer: Some(peer),
            place,
            _prepared: prepared,
            _directory: directory,
        })
    }

    fn floor(&self) -> io::Result<Latency> {
        let peer = self.peer.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        self.setting.beside_paused(peer.pid())
    }

    /// Measures between two of the floor; the second one is the next measurement's first.
    fn between_floors(
        &self,
        floor: &mut Option<Latency>,
        round: usize,
        title: &str,
        measure: impl FnOnce() -> io::Result<Figures>,
    ) -> io::Result<Sample> {
        progress(&format!("round {}: {title}", round + 1));
        let floor_before = floor.take().map_or_else(|| self.floor(), Ok)?;
        let (latency, quantiles, per_second) = measure()?;
        let floor_after = *floor.insert(self.floor()?);
        Ok(Sample {
            round,
            latency,
            quantiles,
            per_second,
            floor_before,
            floor_after,
            distance: Distance::of(&floor_after),
            steady: held_still(&floor_before, &floor_after),
        })
    }

    /// Times every call of one client, and checks every answer.
    fn latency(&self, caller: &mut dyn Caller, size: usize) -> io::Result<Figures> {
        let calls = stamped_calls(caller, size);
        let histogram = distribution(&self.setting.clock, self.setting.plan, calls)?;
        let at = |share: u32| histogram.value_at_quantile(f64::from(share) / 1e5);
        let latency = Latency::from(&histogram);
        Ok((Some(latency), SHARES.map(at).to_vec(), 1e9 / latency.mean))
    }

    /// Counts the calls of all clients, each a thread of its own on this process's CPU.
    fn rate(&self) -> io::Result<Figures> {
        let (connected, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let counts: Vec<AtomicU64> = (0..self.place.clients).map(|_| AtomicU64::new(0)).collect();
        let total = || counts.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>();
        let (place, contender) = (&self.place, self.contender);
        let client = |count: &AtomicU64| -> io::Result<()> {
            let mut caller = contender.connect(place)?;
            let mut call = stamped_calls(&mut *caller, CROWD_SIZE);
            connected.fetch_add(1, Ordering::Release);
            while !over.load(Ordering::Relaxed) {
                call()?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        thread::scope(|scope| {
            let client = &client;
            let threads: Vec<_> =
                counts.iter().map(|count| scope.spawn(move || client(count))).collect();
            let lost = || threads.iter().any(thread::ScopedJoinHandle::is_finished);
            while connected.load(Ordering::Acquire) < counts.len() as u64 && !lost() {
                thread::sleep(self.setting.plan.warm_up / 100);
            }
            thread::sleep(self.setting.plan.warm_up);
            let (start, before) = (Instant::now(), total());
            thread::sleep(self.setting.plan.measure);
            let (seconds, calls) = (start.elapsed().as_secs_f64(), total() - before);
            over.store(true, Ordering::Relaxed);
            for thread in threads {
                thread.join().map_err(|_| io::Error::other("a client panicked"))??;
            }
            Ok((None, Vec::new(), calls as f64 / seconds))
        })
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        self.peer = None;
        self.contender.clean(&self.place);
    }
}

/// Calls with a new stamp each time, which must come back.
fn stamped_calls(caller: &mut dyn Caller, size: usize) -> impl FnMut() -> io::Result<()> {
    let (mut request, mut response) = (vec![7_u8; size], vec![0_u8; size]);
    let mut turn = 0_u64;
    move || {
        turn += 1;
        request[..STAMP].copy_from_slice(&turn.to_le_bytes());
        caller.call(&request, &mut response)?;
        if response[..STAMP] == request[..STAMP] {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another request"))
    }
}

/// Makes the sparse file that mailboxes live in.
fn shared() -> io::Result<OwnedFd> {
    let fd = memfd_create("peers", MFdFlags::MFD_CLOEXEC)?;
    nix::unistd::ftruncate(fd.as_fd(), mailbox::BYTES as i64)?;
    Ok(fd)
}

fn said(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}
