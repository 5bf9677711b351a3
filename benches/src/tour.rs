//! A short look: the floor, calls and one-way messages against processes that run already.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipc::{Geometry, Node, Spin};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::c;
use crate::calls::{self, SINK, config, wide};
use crate::floor::Setting;
use crate::measure::Plan;
use crate::pin::{self, Relation};
use crate::report::{Group, Machine, Report, Ruler, progress_done};

/// What to look at.
#[derive(Args, Debug)]
pub struct Tour {
    /// Directory of the runtime
    #[arg(long, value_name = "DIR")]
    runtime_dir: PathBuf,
    /// Name of a service like `echo`: it answers with the payload, and NAME.sink counts
    #[arg(long, value_name = "NAME", default_value = "echo")]
    service: String,
    /// Its process, to be pinned to the second CPU
    #[arg(long, value_name = "PID")]
    service_pid: i32,
    /// How long each single measurement takes
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    seconds: f64,
}

/// Measures, prints the table, and says what it means.
///
/// # Errors
/// Those of the measurements.
pub fn run(tour: &Tour) -> io::Result<()> {
    let allowed = pin::allowed()?;
    let setting = Setting::new(Plan::lasting(Duration::from_secs_f64(tour.seconds)))?;
    let machine = Machine::read(&setting.placement, allowed.len(), &setting.clock);
    pin_service(Pid::from_raw(tour.service_pid), setting.placement.there)?;
    let service = Pid::from_raw(tour.service_pid);
    let floor = || setting.beside_paused(service);
    let groups = vec![
        Group::measure("round trip", floor, |ruler| round_trips(tour, &setting, ruler))?,
        Group::measure("one-way", floor, |ruler| one_ways(tour, &setting, ruler))?,
    ];
    progress_done();
    let alone = setting.placement.relation == Relation::One;
    print!("{}", Report { machine, groups });
    print!("{}", meaning(alone));
    Ok(())
}

fn pin_service(pid: Pid, cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(pid, &set)?)
}

fn round_trips(tour: &Tour, setting: &Setting, ruler: &mut Ruler<'_>) -> io::Result<()> {
    let config = config(&tour.runtime_dir, Spin::Always, Geometry::default());
    let node = Node::connect(&config).map_err(io::Error::other)?;
    calls::round_trips(setting, &calls::open(&node, &tour.service)?, ruler)?;
    c::calls(setting, &tour.runtime_dir, &tour.service, ruler)
}

fn one_ways(tour: &Tour, setting: &Setting, ruler: &mut Ruler<'_>) -> io::Result<()> {
    let config = config(&tour.runtime_dir, Spin::Always, wide()?);
    let node = Node::connect(&config).map_err(io::Error::other)?;
    let sink = calls::open(&node, &format!("{}{SINK}", tour.service))?;
    calls::floods(setting, &sink, ruler)?;
    c::one_ways(setting, &tour.runtime_dir, &tour.service, ruler)
}

fn meaning(alone: bool) -> &'static str {
    if alone {
        return "\nThere is one CPU: the processes take turns on it, and these figures say \
                little.\nOn two or more, a call costs little more than two cache lines.\n";
    }
    "\nWhat it means: the floor is one cache line going to another process and back, with nothing \
     around it.\nA call carries its payload in such a line each way, up to 48 bytes; beyond, in a \
     few more. Above the floor\nit pays for the frame, the checks on what the peer wrote, and the \
     scheduling of the request.\nGoals: 8 to 48 bytes within 1.5 x the floor's p95, 1 KiB within \
     2.2 x. `make bench` measures everything.\n"
}
