//! Failover in a world that is made up: processes, lanes, deaths and a runtime, by a seed.
//!
//! What decides is the code that runs elsewhere: the broker with its groups and epochs, and, by
//! `ipc::simulation`, the rule of promotion, what a standby knows of those before it, the verdicts
//! on messages, and what a caller keeps. What is made up are lanes, sockets, the disk, time, and
//! who acts next. A third party keeps a ledger of effects, which refuses older epochs.
//!
//! ```text
//!   callers ── lanes ── members        a history: in 600 steps processes are killed, freeze and go
//!      \                  /            on, names change hands, the runtime dies and returns;
//!       `─── the broker ─´             then all is well, and what was begun must end
//! ```
//!
//! `LIBIPC_SEED=N` runs one history again, `LIBIPC_HISTORIES=N` so many.

mod caller;
mod chance;
mod gate;
mod lane;
#[path = "../../tests/src/ledger.rs"]
#[allow(unreachable_pub, dead_code, reason = "the checker of the tests with real processes")]
mod ledger;
mod member;
mod net;
mod record;
mod world;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use record::Tally;

use crate::token::TokenKey;

const NAME: &str = "echo";

/// Histories, where the compiler optimizes and where it does not.
const HISTORIES: u64 = if cfg!(debug_assertions) { 400 } else { 100_000 };

/// Histories with a fault after which no more are begun.
const MOST_FAULTY: usize = 24;

fn of_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn no_history_loses_repeats_or_reorders_anything_or_has_two_primaries_of_one_epoch() {
    let key = Arc::new(TokenKey::ephemeral().expect("a key"));
    if let Some(seed) = of_environment("LIBIPC_SEED") {
        let told = world::history(seed, &key).map_err(|faults| format!("{faults:#?}"));
        eprintln!("{told:?}");
        return assert!(told.is_ok(), "seed {seed}");
    }
    let histories = of_environment("LIBIPC_HISTORIES").unwrap_or(HISTORIES);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicU64::new(0);
    let faulty = Mutex::new(Vec::new());
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let live = || {
            let mut sum = Tally::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= histories {
                    return sum;
                }
                match world::history(seed, &key) {
                    Ok(tally) => sum.add(&tally),
                    Err(told) => {
                        let mut faulty = faulty.lock().expect("nobody panics with it");
                        faulty.push((seed, format!("{told:?}")));
                        if faulty.len() >= MOST_FAULTY {
                            next.store(histories, Ordering::Relaxed);
                        }
                    }
                }
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(live)).collect();
        running.into_iter().map(|it| it.join().expect("no history panics")).collect()
    });
    let mut faulty = faulty.into_inner().expect("nobody panics with it");
    faulty.sort_unstable();
    assert!(faulty.is_empty(), "LIBIPC_SEED=N runs one of these again: {faulty:#?}");
    let mut sum = Tally::default();
    for tally in &tallies {
        sum.add(tally);
    }
    eprintln!("{histories} histories: {sum:?}");
    // A simulation in which nothing happens finds nothing.
    let least = [
        sum.answered / 4,
        sum.maybe,
        sum.deaths,
        sum.falls,
        sum.promotions,
        sum.handovers,
        sum.farewells,
        sum.suspicions,
    ];
    assert!(least.iter().all(|count| *count > histories / 20), "{sum:?}");
    // Rarer: answers that a gate gave again, and what a store refused for its epoch.
    assert!(sum.repeated > histories / 400 && sum.stale >= histories / 4000, "{sum:?}");
}
