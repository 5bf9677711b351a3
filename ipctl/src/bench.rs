//! `ipctl bench`: how fast is a service, here and now?

use std::{
    fmt,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use hdrhistogram::Histogram;
use ipc::{CallError, Client, Config, Geometry, Node};
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
    /// Cells of the channel's rings: 1 to 65536, rounded up to a power of two
    #[arg(long = "cells", value_name = "N", value_parser = geometry)]
    geometry: Option<Geometry>,
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
    let config = Config { geometry: arguments.geometry.unwrap_or_default(), ..config.clone() };
    let node = Node::connect(&config)?;
    let client = arguments.patience.open(&node, &arguments.name)?;
    let bench = Bench {
        name: arguments.name.clone(),
        node,
        client,
        payload: vec![0x5a; arguments.size as usize],
        timeout: arguments.patience.timeout,
    };
    if arguments.oneway {
        bench.stream("warming up", arguments.warm_up, arguments.batch)?;
        output.show(&bench.stream("measuring", arguments.seconds, arguments.batch)?)?;
    } else {
        bench.calls("warming up", arguments.warm_up)?;
        output.show(&bench.calls("measuring", arguments.seconds)?)?;
    }
    output.remark("(not pinned to cores; for ratios to this machine's floor, run `make bench`)");
    Ok(())
}

struct Bench {
    name: String,
    node: Node,
    client: Client,
    payload: Vec<u8>,
    timeout: Duration,
}

impl Bench {
    fn calls(&self, what: &str, lasting: Duration) -> Result<RoundTrips, Failure> {
        let mut times = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3)
            .map_err(|why| Failure::Histogram { what: "the times", why })?;
        let mut answer = Vec::with_capacity(self.payload.len());
        let mut clock = Clock::new(what, lasting);
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

    fn stream(&self, what: &str, lasting: Duration, batch: u32) -> Result<Stream, Failure> {
        let watchdog = self.watchdog(lasting + self.timeout);
        let mut clock = Clock::new(what, lasting);
        let mut messages = 0;
        while !clock.is_over(Instant::now()) {
            self.client
                .burst(|burst| (0..batch).try_for_each(|_| burst.send(&self.payload)))
                .map_err(|error| self.explain(error))?;
            messages += u64::from(batch);
        }
        drop(watchdog);
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

    /// Ends a burst that is still waiting for room after `limit`, which by itself it would do for
    /// ever. Drop what it returns to call it off.
    fn watchdog(&self, limit: Duration) -> Sender<()> {
        let (keep, kept) = mpsc::channel();
        let interrupter = self.node.interrupter();
        thread::spawn(move || {
            if kept.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                interrupter.fire();
            }
        });
        keep
    }

    fn explain(&self, error: CallError) -> Failure {
        match error {
            CallError::Canceled => {
                Failure::Stalled { name: self.name.clone(), timeout: self.timeout }
            }
            error => error.into(),
        }
    }
}

fn geometry(text: &str) -> Result<Geometry, String> {
    let cells = text.parse().map_err(|_| "a number from 1 to 65536".to_owned())?;
    Geometry::for_cells(cells).map_err(str::to_owned)
}

/// Longest time that is told apart.
const LONGEST_NS: u64 = 60_000_000_000;

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Knows when to stop, and shows on a terminal how far it is.
struct Clock<'a> {
    what: &'a str,
    started: Instant,
    lasting: Duration,
    shown: Instant,
    progress: Progress,
}

impl Clock<'_> {
    const SHOW_EVERY: Duration = Duration::from_millis(200);

    fn new(what: &str, lasting: Duration) -> Clock<'_> {
        let started = Instant::now();
        Clock { what, started, lasting, shown: started, progress: Progress::new() }
    }

    fn is_over(&mut self, now: Instant) -> bool {
        if now - self.shown >= Clock::SHOW_EVERY {
            self.shown = now;
            let (what, passed, all) = (self.what, now - self.started, self.lasting);
            let text = format!("{what}: {:.1} of {:.1} s", passed.as_secs_f64(), all.as_secs_f64());
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
