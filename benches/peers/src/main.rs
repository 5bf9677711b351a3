//! `peers`: measures libipc and what else there is, in the same two processes.

use std::fs;
use std::io;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use benches::floor::Setting;
use benches::measure::Plan;
use benches::report::{Machine, progress_done};
use benches::{pair, pin};
use clap::{Args, Parser, Subcommand};
use peers::figures::{Report, absentees};
use peers::{contenders, plot, run};

/// Measures libipc and what else there is, in the same two processes.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    role: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// The second process of a measurement.
    #[command(hide = true, name = pair::SUBCOMMAND)]
    Peer {
        #[arg(trailing_var_arg = true)]
        told: Vec<String>,
    },
}

#[derive(Args)]
struct Options {
    /// How long each single measurement takes, in seconds.
    #[arg(long, value_name = "N", default_value_t = 0.5, value_parser = positive)]
    seconds: f64,
    /// How many interleaved rounds.
    #[arg(long, value_name = "R", default_value_t = NonZeroU16::MIN.saturating_add(4))]
    rounds: NonZeroU16,
    /// Only contenders whose name contains TEXT; may be given again.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Only payloads of so many bytes; may be given again.
    #[arg(long, value_name = "BYTES", value_parser = known_size)]
    size: Vec<usize>,
    /// Without the measurements of many clients.
    #[arg(long)]
    no_crowds: bool,
    /// Write everything to FILE as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables to FILE as Markdown, too.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Draw the plots into DIR as SVG.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Arguments { options, role } = Arguments::parse();
    let outcome = match role {
        Some(Verb::Peer { told }) => pair::enter(&told).and_then(run::play),
        None => measure(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> io::Result<()> {
    // Before `Setting::new` pins this process and the mask says no more than that.
    let allowed = pin::allowed()?;
    let setting = Setting::new(Plan::lasting(Duration::from_secs_f64(options.seconds)))?;
    let machine = Machine::read(&setting.placement, allowed.len(), &setting.clock);
    let mut chosen = chosen(&options.only);
    let absent = absentees(&chosen);
    chosen.retain(|index| absent.iter().all(|(absent, _)| absent != index));
    let sizes = if options.size.is_empty() { run::SIZES.to_vec() } else { options.size.clone() };

    let (mut calls, mut crowds) = (Vec::new(), Vec::new());
    for round in 0..usize::from(options.rounds.get()) {
        calls.extend(run::calls(&setting, round, &chosen, &sizes));
        if !options.no_crowds {
            crowds.extend(run::crowds(&setting, round, &chosen));
        }
    }
    progress_done();
    let skipped = absent.into_iter().map(|(_, skipped)| skipped).collect();
    let extent = (usize::from(options.rounds.get()), options.seconds);
    let report = Report::new(machine, extent, calls, crowds, skipped);
    print!("{report}");
    deliver(&report, options)
}

fn deliver(report: &Report, options: &Options) -> io::Result<()> {
    let inside = |path: &Path| path.parent().map_or(Ok(()), fs::create_dir_all);
    if let Some(path) = &options.json {
        inside(path)?;
        report.save(path)?;
    }
    if let Some(path) = &options.markdown {
        inside(path)?;
        fs::write(path, report.to_string())?;
    }
    options.plots.as_deref().map_or(Ok(()), |directory| plot::all(report, directory))
}

fn chosen(only: &[String]) -> Vec<usize> {
    let wanted = |name: &str| {
        let name = name.to_lowercase();
        only.is_empty() || only.iter().any(|text| name.contains(&text.to_lowercase()))
    };
    let all = contenders::all();
    (0..all.len()).filter(|&index| wanted(all[index].name())).collect()
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(seconds),
        _ => Err("a number of seconds above 0, up to 3600".to_owned()),
    }
}

fn known_size(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| run::SIZES.contains(size));
    size.ok_or_else(|| format!("one of {:?}", run::SIZES))
}
