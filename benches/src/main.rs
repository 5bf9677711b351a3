//! `bench`: measures libipc beside the floor of the machine it runs on.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use benches::calls;
use benches::floor::{self, Setting};
use benches::measure::Plan;
use benches::report::{Group, Machine, Report, progress_done};
use benches::tour::{self, Tour};
use benches::{
    events, failover, many, pair, pin, queues, regions, ring, scale, seal, sealed, sockets, typed,
};
use clap::{Args, Parser, Subcommand};

/// Measures libipc beside the floor of the machine it runs on.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Everything there is to measure.
    All(Options),
    /// What the hardware and the kernel charge: cache line, futex, memcpy.
    Floor(Options),
    /// The ring alone, between two threads and within one.
    Ring(Options),
    /// Records sealed and opened, beside the libraries that do it; sealed frames, beside plain.
    Seal(Options),
    /// Calls between two polling processes.
    Call(Options),
    /// Opening channels, plain and encrypted.
    Connect(Options),
    /// Calls by `.proto` files beside raw ones, between two polling processes.
    Typed(Options),
    /// One-way messages.
    Oneway(Options),
    /// Events: published to none, one and many, beside a write to each.
    Events(Options),
    /// Calls between processes that sleep, beside the bare futex.
    Parked(Options),
    /// Shared regions: a sync that is awaited, and a mebibyte handed over.
    Regions(Options),
    /// Calls over sockets, of who shares no memory, beside plain sockets.
    Sockets(Options),
    /// One server and many clients: idle ones beside a hot one, and a flood beside 63 callers.
    Many(Options),
    /// Kills who serves a name, again and again: how long callers wait for the next.
    Failover {
        /// How many of each kind.
        #[arg(long, value_name = "N", default_value_t = 100)]
        kills: usize,
        /// Sizes of the victims, in MiB.
        #[arg(long, value_name = "MIB", value_delimiter = ',', default_values_t = [1, 256])]
        victims: Vec<usize>,
        /// Encrypted channels, beside plain ones.
        #[arg(long)]
        encrypted: bool,
        /// Stops who serves, with calls outstanding, in place of killing it.
        #[arg(long)]
        stop: bool,
        /// Once more beside so many processes that take a CPU each.
        #[arg(long, value_name = "N", default_value_t = 0)]
        hogs: usize,
        /// The caller, and who serves, ask for short slices.
        #[arg(long)]
        prompt: bool,
    },
    /// Reliable queues beside a channel, a socket and a POSIX message queue.
    Queue(Options),
    /// A thousand services, each a process of its own: memory, wake-ups, discovery, calls.
    Scale(Scale),
    /// The runtime of `scale`.
    #[command(hide = true, name = scale::RUNTIME)]
    ScaleRuntime { directory: PathBuf, file: PathBuf, cpu: usize },
    /// A service of `scale`.
    #[command(hide = true, name = scale::MEMBER)]
    ScaleMember { part: String, name: String },
    /// A short look at a runtime and a service that run already (`make run`).
    #[command(hide = true)]
    Tour(Tour),
    /// The second process of a measurement.
    #[command(hide = true, name = pair::SUBCOMMAND)]
    Peer {
        #[arg(trailing_var_arg = true)]
        told: Vec<String>,
    },
}

#[derive(Args)]
struct Options {
    /// Write the figures to FILE as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How long each single measurement takes.
    #[arg(long, value_name = "N", default_value_t = 2.0, value_parser = positive)]
    seconds: f64,
}

#[derive(Args)]
struct Scale {
    /// How many services there are.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    services: usize,
    /// How long each single measurement takes.
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = positive)]
    seconds: f64,
}

/// What a verb measures, one group after the other.
type Measurement = fn(&Setting, &[usize]) -> io::Result<Group>;

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Verb::All(options) => run(
            &options,
            &[
                floor::group,
                ring::group,
                seal::group,
                sealed::group,
                calls::polling,
                calls::connecting,
                typed::group,
                calls::one_ways,
                calls::parked,
                calls::parked_unpinned,
                regions::polling,
                regions::parked,
                regions::large,
                many::idle,
                many::flooded,
                events::group,
                sockets::group,
            ],
        ),
        Verb::Floor(options) => run(&options, &[floor::group]),
        Verb::Ring(options) => run(&options, &[ring::group]),
        Verb::Seal(options) => run(&options, &[seal::group, sealed::group]),
        Verb::Call(options) => run(&options, &[calls::polling]),
        Verb::Connect(options) => run(&options, &[calls::connecting]),
        Verb::Typed(options) => run(&options, &[typed::group]),
        Verb::Oneway(options) => run(&options, &[calls::one_ways]),
        Verb::Events(options) => run(&options, &[events::group]),
        Verb::Parked(options) => run(&options, &[calls::parked, calls::parked_unpinned]),
        Verb::Regions(options) => {
            run(&options, &[regions::polling, regions::parked, regions::large])
        }
        Verb::Sockets(options) => run(&options, &[sockets::group]),
        Verb::Many(options) => run(&options, &[many::idle, many::flooded]),
        Verb::Failover { kills, victims, encrypted, stop, hogs, prompt } => {
            failover::run(&failover::Series { kills, victims, encrypted, stop, hogs, prompt })
        }
        Verb::Queue(options) => run(&options, &[queues::group]),
        Verb::Scale(Scale { services, seconds }) => {
            Setting::new(Plan::lasting(Duration::from_secs_f64(seconds)))
                .and_then(|setting| scale::run(&setting, services))
        }
        Verb::ScaleRuntime { directory, file, cpu } => scale::runtime(&directory, &file, cpu),
        Verb::ScaleMember { part, name } => scale::member(&part, &name),
        Verb::Tour(tour) => tour::run(&tour),
        Verb::Peer { told } => play(&told),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options, measurements: &[Measurement]) -> io::Result<()> {
    // Before `Setting::new` pins this process and the mask says no more than that.
    let allowed = pin::allowed()?;
    let setting = Setting::new(Plan::lasting(Duration::from_secs_f64(options.seconds)))?;
    let machine = Machine::read(&setting.placement, allowed.len(), &setting.clock);
    let groups = measurements
        .iter()
        .map(|measurement| measurement(&setting, &allowed))
        .collect::<io::Result<_>>()?;
    progress_done();
    let report = Report { machine, groups };
    print!("{report}");
    options.json.as_deref().map_or(Ok(()), |path| report.save(path))
}

fn play(told: &[String]) -> io::Result<()> {
    let role = pair::enter(told)?;
    many::play(&role)
        .or_else(|| failover::play(&role))
        .or_else(|| calls::play(&role))
        .or_else(|| scale::play(&role))
        .or_else(|| typed::play(&role))
        .or_else(|| regions::play(&role))
        .or_else(|| events::play(&role))
        .or_else(|| sockets::play(&role))
        .unwrap_or_else(|| floor::play(role))
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(seconds),
        _ => Err("a number of seconds above 0, up to 3600".to_owned()),
    }
}
