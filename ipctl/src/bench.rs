//! `ipctl bench`: how fast is a service, here and now?

use std::{
    fmt,
    time::{Duration, Instant},
};

use clap::Args;
use hdrhistogram::Histogram;
use ipc::{CallError, Client, Config, Node};
use serde::Serialize;

use crate::{
    failure::Failure,
    output::{Output, Progress},
    service::{self, Patience},
    units,
};

/// Measure calls to a service: how many each second, how long each takes.
///
/// One thread calls back to back, pinned to no core, so the figures move with whatever else runs
/// and with where the scheduler puts both processes. They tell whether this service is fit today;
/// for ratios that can be compared, `make bench` pins both processes and measures the machine's
/// floor beside them.
#[derive(Args)]
#[command(verbatim_doc_comment, after_long_help = HELP)]
pub(crate) struct Arguments {
    /// Service to call, as `ipctl ls` names it; it must not mind the messages
    #[arg(value_parser = service::name)]
    name: String,
    /// Bytes of each message
    #[arg(long, value_name = "BYTES", default_value_t = 48,
          value_parser = clap::value_parser!(u32).range(..=64 << 20))]
    size: u32,
    /// How long to measure
    #[arg(long, value_name = "N", default_value = "2", value_parser = units::seconds)]
    seconds: Duration,
    /// How long to run before measuring
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = units::duration)]
    warm_up: Duration,
    /// Send one-way messages instead of calls; one call at the end makes sure that all were taken
    #[arg(long, visible_alias = "one-way")]
    oneway: bool,
    /// One-way messages to publish at once
    #[arg(long, value_name = "N", default_value_t = 32, requires = "oneway",
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    #[command(flatten)]
    patience: Patience,
}

const HELP: &str = "\
Examples:
  ipctl bench echo
  ipctl bench echo --size 1024 --seconds 10
  ipctl bench echo.sink --oneway --size 64
  ipctl bench echo --json | jq .p95_ns";

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let node = Node::connect(config)?;
    let client = arguments.patience.open(&node, &arguments.name)?;
    let bench = Bench {
        client,
        payload: vec![0x5a; arguments.size as usize],
        timeout: arguments.patience.timeout,
    };
    if arguments.oneway {
        bench.stream(arguments.warm_up, arguments.batch)?;
        output.show(&bench.stream(arguments.seconds, arguments.batch)?)?;
    } else {
        bench.calls(arguments.warm_up)?;
        output.show(&bench.calls(arguments.seconds)?)?;
    }
    output.remark("(not pinned to cores; for ratios to this machine's floor, run `make bench`)");
    Ok(())
}

struct Bench {
    client: Client,
    payload: Vec<u8>,
    timeout: Duration,
}

impl Bench {
    fn calls(&self, lasting: Duration) -> Result<RoundTrips, Failure> {
        let mut times = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3)
            .map_err(|why| Failure::Histogram { what: "the times", why })?;
        let mut answer = Vec::with_capacity(self.payload.len());
        let mut clock = Clock::new(lasting);
        let mut before = clock.started;
        loop {
            self.client.call_into_vec(&self.payload, &mut answer, self.timeout)?;
            let now = Instant::now();
            times.saturating_record(nanos(now - before));
            before = now;
            if clock.is_over(now) {
                break;
            }
        }
        let seconds = clock.started.elapsed().as_secs_f64();
        Ok(RoundTrips {
            kind: "call",
            size: self.payload.len(),
            seconds,
            calls: times.len(),
            per_second: times.len() as f64 / seconds,
            p50_ns: times.value_at_quantile(0.50),
            p95_ns: times.value_at_quantile(0.95),
            p99_ns: times.value_at_quantile(0.99),
            max_ns: times.max(),
            pinned: false,
        })
    }

    fn stream(&self, lasting: Duration, batch: u32) -> Result<Stream, Failure> {
        let mut clock = Clock::new(lasting);
        let mut messages = 0;
        while !clock.is_over(Instant::now()) {
            messages += self.burst(batch)?;
        }
        // The ring is served in order: when this is answered, all before it were taken.
        match self.client.call(&self.payload, self.timeout) {
            Ok(_) | Err(CallError::Remote(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let seconds = clock.started.elapsed().as_secs_f64();
        let per_second = messages as f64 / seconds;
        Ok(Stream {
            kind: "one-way",
            size: self.payload.len(),
            batch,
            seconds,
            messages,
            per_second,
            mib_per_second: per_second * self.payload.len() as f64 / f64::from(1 << 20),
            pinned: false,
        })
    }

    /// Sends up to a batch with one wake-up; where the ring is full, one message after a wait.
    fn burst(&self, batch: u32) -> Result<u64, Failure> {
        let mut sent = 0;
        let mut burst = self.client.burst()?;
        while sent < u64::from(batch) {
            match burst.send(&self.payload) {
                Ok(()) => sent += 1,
                Err(CallError::Full) => {
                    drop(burst);
                    self.client.send(&self.payload, self.timeout)?;
                    return Ok(sent + 1);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sent)
    }
}

/// Longest time that is told apart.
const LONGEST_NS: u64 = 60_000_000_000;

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Knows when to stop, and shows on a terminal how far it is.
struct Clock {
    started: Instant,
    lasting: Duration,
    shown: Instant,
    progress: Progress,
}

impl Clock {
    const SHOW_EVERY: Duration = Duration::from_millis(200);

    fn new(lasting: Duration) -> Clock {
        let started = Instant::now();
        Clock { started, lasting, shown: started, progress: Progress::new() }
    }

    fn is_over(&mut self, now: Instant) -> bool {
        if now - self.shown >= Clock::SHOW_EVERY {
            self.shown = now;
            let (passed, all) = (now - self.started, self.lasting);
            let text = format!("{:.1} of {:.1} s", passed.as_secs_f64(), all.as_secs_f64());
            self.progress.show(text);
        }
        now - self.started >= self.lasting
    }
}

#[derive(Serialize)]
struct RoundTrips {
    kind: &'static str,
    size: usize,
    seconds: f64,
    calls: u64,
    per_second: f64,
    p50_ns: u64,
    p95_ns: u64,
    p99_ns: u64,
    max_ns: u64,
    pinned: bool,
}

impl fmt::Display for RoundTrips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} calls of {} bytes in {:.2} s: {:.0} per second",
            self.calls, self.size, self.seconds, self.per_second
        )?;
        let shown = |ns| units::show(Duration::from_nanos(ns));
        writeln!(
            f,
            "round trip: p50 {}, p95 {}, p99 {}, max {}",
            shown(self.p50_ns),
            shown(self.p95_ns),
            shown(self.p99_ns),
            shown(self.max_ns)
        )
    }
}

#[derive(Serialize)]
struct Stream {
    kind: &'static str,
    size: usize,
    batch: u32,
    seconds: f64,
    messages: u64,
    per_second: f64,
    mib_per_second: f64,
    pinned: bool,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} one-way messages of {} bytes in {:.2} s: {:.2} million per second, {:.0} MiB/s",
            self.messages,
            self.size,
            self.seconds,
            self.per_second / 1e6,
            self.mib_per_second
        )
    }
}
