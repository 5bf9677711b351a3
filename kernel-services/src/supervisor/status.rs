//! What units look like from outside.

use std::{fmt, fmt::Write as _, time::Duration};

use super::{
    End, Supervisor, UnitId,
    unit::{Fault, State, Unit},
};
use crate::console::count;

/// Where a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// Down, as was asked.
    Stopped,
    /// Down, until those it needs are ready.
    Waiting,
    /// Down after a failure, for a while.
    BackingOff,
    /// Its process runs, and is not ready yet.
    Starting,
    /// Up.
    Ready,
    /// Its process is to end, and was told so unless others stop first.
    Stopping,
    /// Its process hangs, or was not ready in time, and was killed.
    Killed,
    /// It has ended with exit code 0, and is not started again.
    Finished,
    /// It has ended otherwise, and is not started again.
    Ended,
    /// Its group gave up.
    Failed,
}

impl fmt::Display for UnitState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            UnitState::Stopped => "stopped",
            UnitState::Waiting => "waiting",
            UnitState::BackingOff => "backing-off",
            UnitState::Starting => "starting",
            UnitState::Ready => "ready",
            UnitState::Stopping => "stopping",
            UnitState::Killed => "killed",
            UnitState::Finished => "finished",
            UnitState::Ended => "ended",
            UnitState::Failed => "failed",
        })
    }
}

/// A unit as operators see it. Times are those of [`Supervisor::step`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitStatus {
    /// Whose.
    pub unit: UnitId,
    /// Such as `api`, or `api#2` where there are more.
    pub name: String,
    /// Its service.
    pub service: String,
    /// From 1.
    pub replica: u32,
    /// The group of the node file that it is in.
    pub group: Option<String>,
    /// Where it is.
    pub state: UnitState,
    /// Since when.
    pub since_ns: u64,
    /// Of its process, if it has one.
    pub pid: Option<u32>,
    /// Processes ordered so far.
    pub attempts: u32,
    /// Those of them that came after a failure, its own or a sibling's.
    pub restarts: u32,
    /// How its last process ended.
    pub last_end: Option<End>,
    /// Why it is not up, until it is.
    pub reason: Option<String>,
    /// Whom it waits for.
    pub waits_for: Vec<String>,
    /// When it is started again.
    pub next_ns: Option<u64>,
    /// It goes down to come up again.
    pub restarting: bool,
}

impl UnitStatus {
    /// Says it in a line, as of `now_ns`.
    pub fn line(&self, now_ns: u64) -> String {
        let mut line = format!("{} since {}", self.state, short(now_ns, self.since_ns));
        if self.restarting {
            line.push_str(", to start again");
        }
        if !self.waits_for.is_empty() {
            let _ = write!(line, ", for {}", self.waits_for.join(", "));
        }
        if let Some(next_ns) = self.next_ns {
            let _ = write!(line, ", next attempt in {}", short(next_ns, now_ns));
        }
        if let Some(pid) = self.pid {
            let _ = write!(line, ", pid {pid}");
        }
        if self.restarts > 0 {
            let _ = write!(line, ", {}", count(self.restarts, "restart"));
        }
        if let Some(end) = self.last_end {
            let _ = write!(line, ", last: {end}");
        }
        match &self.reason {
            Some(reason) if self.last_end.is_none_or(|end| end.to_string() != *reason) => {
                let _ = write!(line, "; {reason}");
            }
            _ => {}
        }
        line
    }
}

impl Supervisor {
    /// Lists all units: services in the order of the node file, replicas in theirs.
    pub fn status(&self) -> Vec<UnitStatus> {
        let view = self.view();
        let mut units: Vec<_> = self.units.iter().collect();
        units.sort_by_key(|(_, unit)| (unit.service, unit.replica));
        let status = |(&id, unit): (&UnitId, &Unit)| {
            let group = self.plan.fate_of(unit.service);
            let not_ready = self.plan.before[unit.service].iter().filter(|edge| {
                if edge.needed { !view.ready[edge.service] } else { view.awaited[edge.service] }
            });
            let names = not_ready.map(|edge| self.plan.services[edge.service].name.clone());
            let waits = unit.state == State::Waiting;
            UnitStatus {
                unit: id,
                name: unit.name.clone(),
                service: self.plan.services[unit.service].name.clone(),
                replica: unit.replica,
                group: (!group.alone).then(|| group.terms.name.clone()),
                state: shown(unit),
                since_ns: unit.since_ns,
                pid: unit.pid,
                attempts: unit.attempt,
                restarts: unit.restarts,
                last_end: unit.last_end,
                reason: unit.reason.clone(),
                waits_for: if waits { names.collect() } else { Vec::new() },
                next_ns: (unit.state == State::BackingOff).then_some(unit.not_before_ns),
                restarting: unit.cycle,
            }
        };
        units.into_iter().map(status).collect()
    }
}

fn shown(unit: &Unit) -> UnitState {
    match unit.state {
        State::Stopped => UnitState::Stopped,
        State::Waiting => UnitState::Waiting,
        State::BackingOff => UnitState::BackingOff,
        State::Finished => UnitState::Finished,
        State::Ended => UnitState::Ended,
        State::Failed => UnitState::Failed,
        // Those after it stop first, or its process is only just coming to be.
        State::Spawning | State::Starting { .. } | State::Ready { .. } if unit.must_stop() => {
            UnitState::Stopping
        }
        State::Spawning | State::Starting { .. } => UnitState::Starting,
        State::Ready { .. } => UnitState::Ready,
        State::Stopping { .. } | State::Killed { fault: None } => UnitState::Stopping,
        State::Killed { fault: Some(Fault::Late | Fault::Hung) } => UnitState::Killed,
    }
}

/// From `from_ns` to `to_ns`, to the tenth of a second below a minute.
fn short(to_ns: u64, from_ns: u64) -> String {
    let time = Duration::from_nanos(to_ns.saturating_sub(from_ns));
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", time.as_secs_f64()),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}
