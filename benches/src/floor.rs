//! The floor: what the bare exchange costs on this machine, whatever is built upon it.

use std::hint;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::unistd::Pid;

use crate::futex;
use crate::measure::{Clock, Latency, Plan, Throughput, latency, throughput};
use crate::pair::{Paused, Peer, Role};
use crate::pin::{self, Placement, Relation};
use crate::report::Group;
use crate::shm::Words;

/// Sizes that `memcpy` is measured at: in the first cache, in the second, beyond both.
pub const COPIES: [usize; 3] = [1 << 10, 64 << 10, 1 << 20];

/// Bytes copied between two readings of the clock, so that the reading costs nothing.
const BATCH_BYTES: usize = 4 << 20;

/// Longest time a floor beside a group takes: it only has to tell where the vCPUs are.
const BESIDE: Duration = Duration::from_millis(200);

/// The word that the measuring process stores and its peer awaits.
const PING: usize = 0;
/// The word that the peer stores.
const PONG: usize = 1;

const CACHE_LINE: &str = "cache-line";
const CACHE_LINE_YIELDING: &str = "cache-line-yielding";
const FUTEX: &str = "futex";

/// Where and how long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The clock.
    pub clock: Clock,
    /// The two CPUs.
    pub placement: Placement,
    /// How long each measurement takes.
    pub plan: Plan,
}

impl Setting {
    /// Chooses the CPUs, calibrates the clock, and goes to the measuring process's CPU.
    ///
    /// # Errors
    /// Those of reading and setting the affinity mask.
    pub fn new(plan: Plan) -> io::Result<Self> {
        let placement = Placement::choose()?;
        pin::pin_to(&[placement.here])?;
        Ok(Self { clock: Clock::calibrated(), placement, plan })
    }

    /// Starts a peer on the other CPU.
    ///
    /// # Errors
    /// Those of [`Peer::spawn`].
    pub fn peer(&self, role: &str, arguments: &[&str], shared: OwnedFd) -> io::Result<Peer> {
        Peer::spawn(role, arguments, &[self.placement.there], shared)
    }

    /// Measures the floor as briefly as it can be: what stands before and after each group.
    ///
    /// # Errors
    /// Those of [`cache_line`].
    pub fn beside(&self) -> io::Result<Latency> {
        let plan = Plan::lasting(self.plan.measure.min(BESIDE));
        cache_line(&Self { plan, ..*self })
    }

    /// The same while a process that polls on the second CPU is stopped.
    ///
    /// # Errors
    /// Those of [`cache_line`], and of stopping it.
    pub fn beside_paused(&self, service: Pid) -> io::Result<Latency> {
        let _paused = Paused::begin(service)?;
        self.beside()
    }
}

/// Measures the round trip of a cache line: two words on lines of their own, one each way; either
/// side polls its incoming word and answers on the other.
///
/// # Errors
/// Those of making the shared page and the peer.
pub fn cache_line(setting: &Setting) -> io::Result<Latency> {
    let (words, fd) = Words::create()?;
    let yields = setting.placement.relation == Relation::One;
    let _peer = setting.peer(if yields { CACHE_LINE_YIELDING } else { CACHE_LINE }, &[], fd)?;
    if yields {
        polled_round_trips(setting, &words, thread::yield_now)
    } else {
        polled_round_trips(setting, &words, hint::spin_loop)
    }
}

/// Measures the round trip through two futex words, both sides sleeping each time; pinned to the
/// two CPUs, or wherever in `cpus` the kernel puts them.
///
/// # Errors
/// Those of making the shared page and the peer, and of changing the affinity mask.
pub fn futex_words(setting: &Setting, cpus: Option<&[usize]>) -> io::Result<Latency> {
    let (words, fd) = Words::create()?;
    let peer = match cpus {
        None => setting.peer(FUTEX, &[], fd)?,
        Some(cpus) => {
            pin::pin_to(cpus)?;
            Peer::spawn(FUTEX, &[], cpus, fd)?
        }
    };
    let mut turn = 0_u32;
    let measured = latency(&setting.clock, setting.plan, || {
        turn = turn.wrapping_add(1);
        words.word(PING).store(turn, Ordering::Release);
        futex::wake(words.word(PING));
        sleep_until(words.word(PONG), turn);
        Ok(())
    });
    drop(peer);
    pin::pin_to(&[setting.placement.here])?;
    measured
}

/// Measures how often per second `bytes` can be copied between two private buffers.
///
/// # Errors
/// None of its own: the type is the harness's.
pub fn memcpy(setting: &Setting, bytes: usize) -> io::Result<Throughput> {
    let (source, mut target) = (vec![1_u8; bytes], vec![0_u8; bytes]);
    let copies = (BATCH_BYTES / bytes).max(1);
    throughput(&setting.clock, setting.plan, || {
        for _ in 0..copies {
            hint::black_box(&mut target[..]).copy_from_slice(hint::black_box(&source));
        }
        Ok(copies as u64)
    })
}

/// Plays the peer's part of this module's measurements; never returns from one it knows.
///
/// # Errors
/// `InvalidInput` for a role that is not of this module; those of mapping the shared page.
pub fn play(role: Role) -> io::Result<()> {
    let name = role.name.as_str();
    let answer: fn(&AtomicU32, &AtomicU32) -> ! = match name {
        CACHE_LINE => |incoming, outgoing| answer_polling(incoming, outgoing, hint::spin_loop),
        CACHE_LINE_YIELDING => {
            |incoming, outgoing| answer_polling(incoming, outgoing, thread::yield_now)
        }
        FUTEX => answer_sleeping,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no role {name}"))),
    };
    let words = Words::map(role.shared)?;
    answer(words.word(PING), words.word(PONG))
}

/// Runs the group of everything in this module.
///
/// # Errors
/// Those of the measurements.
pub fn group(setting: &Setting, allowed: &[usize]) -> io::Result<Group> {
    Group::measure(
        "floor",
        || setting.beside(),
        |ruler| {
            ruler.latency("cache line, two ways", None, || cache_line(setting))?;
            ruler.latency("futex, pinned", None, || futex_words(setting, None))?;
            ruler.latency("futex, unpinned", None, || futex_words(setting, Some(allowed)))?;
            for bytes in COPIES {
                ruler.throughput("memcpy", Some(bytes), || memcpy(setting, bytes))?;
            }
            Ok(())
        },
    )
}

fn polled_round_trips(setting: &Setting, words: &Words, idle: impl Fn()) -> io::Result<Latency> {
    let (outgoing, incoming) = (words.word(PING), words.word(PONG));
    let mut turn = 0_u32;
    latency(&setting.clock, setting.plan, || {
        turn = turn.wrapping_add(1);
        outgoing.store(turn, Ordering::Release);
        while incoming.load(Ordering::Acquire) != turn {
            idle();
        }
        Ok(())
    })
}

fn answer_polling(incoming: &AtomicU32, outgoing: &AtomicU32, idle: impl Fn()) -> ! {
    let mut seen = 0;
    loop {
        let turn = incoming.load(Ordering::Acquire);
        if turn == seen {
            idle();
            continue;
        }
        outgoing.store(turn, Ordering::Release);
        seen = turn;
    }
}

fn answer_sleeping(incoming: &AtomicU32, outgoing: &AtomicU32) -> ! {
    let mut turn = 0_u32;
    loop {
        turn = turn.wrapping_add(1);
        sleep_until(incoming, turn);
        outgoing.store(turn, Ordering::Release);
        futex::wake(outgoing);
    }
}

/// Sleeps until `word` holds `turn`, which its writer stores next.
fn sleep_until(word: &AtomicU32, turn: u32) {
    while word.load(Ordering::Acquire) != turn {
        futex::wait(word, turn.wrapping_sub(1));
    }
}
