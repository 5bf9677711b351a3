//! A process dies before or after each store into shared memory that others act on: whoever it had
//! to do with goes on, gets what it was promised or hears why not, and keeps nothing of it.
//!
//! Each scenario is run once with a process that counts at which points it comes by. Then it is
//! run again for each of them, with one that dies there. `LIBIPC_SEED` chooses at the how manieth
//! time; with `LIBIPC_ALL=1` it dies at each of the first times. `LIBIPC_POINT` names the only
//! point.

use std::{env, fs, path::Path};

use ipc::failpoint::{At, Side, passes};

#[path = "stores/calling.rs"]
mod calling;
#[path = "stores/events.rs"]
mod events;
#[path = "stores/leaving.rs"]
mod leaving;
#[path = "stores/regions.rs"]
mod regions;
#[path = "stores/serving.rs"]
mod serving;

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");

/// How often a process is started anew that did not come to where it was to die: whether it sleeps
/// is for chance to say.
const TRIES: usize = 5;

/// What whoever opens a channel, and sends and receives by it, comes by.
const CHANNEL: &[At] = &[
    At::LaneIdentity,
    At::LifeEntered,
    At::LifeLinked,
    At::LifeClosed,
    At::CellWords,
    At::CellStamp,
    At::SlabPiece,
    At::Taken,
    At::Parked,
    At::Unparked,
    At::Unwant,
    At::Event,
    At::Mark,
    At::BoardIdentity,
    At::SlotTaken,
];

/// The same of an encrypted one, beside that.
const SESSION: &[At] = &[At::Hello, At::Sealed, At::Rekeyed, At::PeerRekeyed];

/// With which words before its command line the process is started that is to die.
pub(crate) struct Doom(String);

impl Doom {
    fn at(at: At, side: Side, count: u64) -> Doom {
        Doom(format!("IPC_DIES_AT={at:?} {side:?} {count}"))
    }

    fn never(counts: &Path) -> Doom {
        Doom(format!("IPC_PASSES_TO={}", counts.display()))
    }

    pub(crate) fn words(&self) -> [&str; 2] {
        ["env", &self.0]
    }
}

/// Runs a scenario with a death at each side of each point that it comes to, unless `is_meant`
/// leaves it out. A trial gives whether its process was killed. One that is not has to come by all
/// of `must`: what is passed by nobody any more is missed.
fn die_everywhere(
    name: &str,
    must: &[At],
    is_meant: impl Fn(At) -> bool,
    trial: impl Fn(&Doom) -> bool,
) {
    let directory = tempfile::tempdir().expect("a directory");
    let counts = directory.path().join("counts");
    fs::write(&counts, "").expect("a file");
    assert!(!trial(&Doom::never(&counts)), "nobody told it to die");
    let places = passes(&counts).expect("counts");
    let is_passed = |at: &&At| places.iter().any(|(place, ..)| place == *at);
    let absent: Vec<&At> = must.iter().filter(|at| !is_passed(at)).collect();
    assert!(absent.is_empty(), "{name} does not come by {absent:?} any more");
    let seed = env::var("LIBIPC_SEED").map_or(1, |text| text.parse().expect("a number"));
    let all = env::var("LIBIPC_ALL").is_ok_and(|text| text == "1");
    eprintln!("{name}: LIBIPC_SEED={seed} runs it again");
    let mut random = Random(seed);
    let (mut died, mut missed) = (Vec::new(), Vec::new());
    let only = env::var("LIBIPC_POINT").ok();
    let is_asked = |at| only.as_ref().is_none_or(|only| *only == format!("{at:?}"));
    let places = places.into_iter().filter(|(at, ..)| is_meant(*at) && is_asked(*at));
    for (at, side, most) in places {
        let mut times: Vec<u64> = (1..=most.min(4)).collect();
        times.push(1 + random.next() % most.div_ceil(2));
        if !all {
            times = vec![times[random.next() as usize % times.len()]];
        }
        for count in times {
            eprintln!("{name}: {at:?} {side:?} {count} of {most}");
            let is_reached = |_| trial(&Doom::at(at, side, count));
            let told = if (0..TRIES).any(is_reached) { &mut died } else { &mut missed };
            told.push((at, side, count));
        }
    }
    println!("{name}: {} deaths; not reached again: {missed:?}", died.len());
    // What the last of many turns does is for chance to say; what it does at all is not.
    assert!(missed.len() * 10 <= died.len(), "{missed:?}");
}

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    /// The next: splitmix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// A node file on whose routes to `sealed*` channels are encrypted.
fn node_file() -> String {
    "[[route]]\nfrom = \"any\"\nto = \"name:sealed*\"\nsession = \"encrypted\"\n".to_owned()
}
