//! Everything under load, and whatever can befall it, for as long as one likes: `make soak`.
//!
//! ```text
//! soak [--duration 10m] [--kills N] [--messages N] [--seed N] [--json FILE]
//!      [--evidence DIRECTORY]
//! ```
//!
//! Callers, services with standbys, events, a queue with a journal and a region work beside each
//! other, each in a process of its own, while a plan that follows from the seed has them die, hang
//! and fall behind. A ledger apart from all of them holds what was done, and says what is wrong
//! with it. What the processes hold is sampled all the time. `docs/soak.md` explains the report.

mod aims;
mod bus;
mod call;
mod cast;
mod drama;
mod finale;
mod notary;
mod part;
mod plan;
mod post;
mod report;
mod sample;
mod scenes;
mod serve;
mod slope;
mod words;

use std::{error::Error, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use nix::time::{ClockId, clock_gettime};

/// What went wrong, for people.
type Trouble = Box<dyn Error>;

/// Runs everything under load, with misfortunes, and reports what was lost, and what grew.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How long, at least: a number and s, m, h or d.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = words::duration)]
    duration: Duration,
    /// Goes on until so many of those who serve were killed, and kills more in quiet than else.
    #[arg(long, value_name = "N", default_value_t = 0)]
    kills: u64,
    /// Goes on until the ledger has so many effects.
    #[arg(long, value_name = "N", default_value_t = 0)]
    messages: u64,
    /// Draws the same misfortunes again. By default another each time; it is printed.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Writes the report to FILE as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the logs are kept if something is found; by default the directory for temporary files.
    #[arg(long, value_name = "DIRECTORY")]
    evidence: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let ["part", role @ ..] = &words[..] {
        return match part::play(role) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{role:?}: {error}");
                ExitCode::FAILURE
            }
        };
    }
    match drama::run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What all processes of this machine count alike, in ns.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    now.as_nanos() as u64
}
