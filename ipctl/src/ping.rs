//! `ipctl ping`: is the runtime up, does the loop of a service answer?

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use ipc::{CallError, Config, Node};
use kernel_services::console::count;
use serde::Serialize;

use crate::{
    failure::Failure,
    output::Output,
    service::{self, Patience},
    units,
};

/// Ask whether the runtime, or a service, is alive.
///
/// Without NAME, the runtime tells how it is; the figures include this command's own connection.
/// With NAME, a channel is opened and the service's serving loop is pinged: it answers as long as
/// no handler is stuck. The first ping may have to wake it, so the largest figure is often the
/// first one's.
#[derive(Args)]
#[command(verbatim_doc_comment, after_long_help = HELP)]
pub(crate) struct Arguments {
    /// Service to ping, as `ipctl ls` names it
    #[arg(value_parser = service::name)]
    name: Option<String>,
    /// How many pings to send, one after the other
    #[arg(short, long, value_name = "COUNT", default_value_t = 5, requires = "name",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    #[command(flatten)]
    patience: Patience,
}

const HELP: &str = "\
Examples:
  ipctl ping                          is the runtime up?
  ipctl ping echo                     five pings to echo
  ipctl ping echo -c 1000             a thousand, for steadier figures
  ipctl ping echo --wait 10s          in a script that has just started echo
  ipctl ping --json | jq .uptime_ms";

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let node = Node::connect(config)?;
    match &arguments.name {
        None => output.show(&runtime(&node, config)?),
        Some(name) => output.show(&service(&node, name, arguments)?),
    }
}

fn runtime(node: &Node, config: &Config) -> Result<State, Failure> {
    // The first request of a process pays for what it does once, such as calibrating its clock.
    node.state()?;
    let asked = Instant::now();
    let state = node.state()?;
    Ok(State {
        micros: units::micros(asked.elapsed()),
        runtime_dir: config.runtime_dir.clone().unwrap_or_else(ipc::runtime_dir),
        pid: state.pid,
        uptime_ms: u64::try_from(state.uptime.as_millis()).unwrap_or(u64::MAX),
        nodes: state.nodes,
        services: state.services,
        channels: state.channels,
    })
}

fn service(node: &Node, name: &str, arguments: &Arguments) -> Result<Service, Failure> {
    let client = arguments.patience.open(node, name)?;
    let timeout = arguments.patience.timeout;
    let mut times = (0..arguments.count)
        .map(|_| client.ping(timeout))
        .collect::<Result<Vec<Duration>, CallError>>()
        .map_err(|error| match error {
            CallError::TimedOut => Failure::Silent { name: name.to_owned(), timeout },
            error => error.into(),
        })?;
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().map_or(0.0, units::micros);
    let peer = client.peer();
    Ok(Service {
        name: name.to_owned(),
        instance: peer.id.get(),
        pid: peer.pid,
        uid: peer.uid,
        transport: peer.transport.name(),
        count: times.len(),
        min_micros: at(0),
        p50_micros: at(times.len() / 2),
        max_micros: at(times.len().saturating_sub(1)),
    })
}

#[derive(Serialize)]
struct State {
    runtime_dir: PathBuf,
    micros: f64,
    pid: u32,
    uptime_ms: u64,
    nodes: u32,
    services: u32,
    channels: u64,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uptime = units::uptime(Duration::from_millis(self.uptime_ms));
        writeln!(
            f,
            "runtime at {}: up, answered in {:.1} µs",
            self.runtime_dir.display(),
            self.micros
        )?;
        writeln!(f, "  pid       {}", self.pid)?;
        writeln!(f, "  up for    {uptime}")?;
        writeln!(f, "  nodes     {} connected, this command included", self.nodes)?;
        writeln!(f, "  services  {} registered", self.services)?;
        writeln!(f, "  channels  {} opened since it started", self.channels)
    }
}

#[derive(Serialize)]
struct Service {
    name: String,
    instance: u32,
    pid: u32,
    uid: u32,
    transport: &'static str,
    count: usize,
    min_micros: f64,
    p50_micros: f64,
    max_micros: f64,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: up, instance {}, pid {}, uid {}, by {}",
            self.name, self.instance, self.pid, self.uid, self.transport
        )?;
        writeln!(
            f,
            "{}: min {:.1} µs, p50 {:.1} µs, max {:.1} µs",
            count(self.count as u64, "ping"),
            self.min_micros,
            self.p50_micros,
            self.max_micros
        )
    }
}
