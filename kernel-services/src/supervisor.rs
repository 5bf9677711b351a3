//! Decides which process of a node file runs, when, and what becomes of it when it ends.
//!
//! ```text
//!   loop ─ Event ─▶ Supervisor ─▶ unit (a process's states)      pure
//!   loop ◀─ Effect ─┘        └──▶ plan (order, groups), intensity, back-off
//! ```
//! A *unit* is one replica of one service, and has at most one process. The supervisor opens,
//! reads and waits for nothing: one loop carries out its [`Effect`]s, tells it [`Event`]s, and
//! steps it when [`Supervisor::deadline_ns`] has come. An event only changes what a unit's goal
//! or state is. One pass after it, the same for all events, stops and starts whatever is free to:
//! so the orders of starting and stopping hold whatever was asked for in the middle of what.
//!
//! `docs/supervision.md` draws the states.

mod backoff;
mod command;
mod life;
mod plan;
mod reload;
mod report;
mod settle;
mod status;
mod timers;
mod unit;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, path::PathBuf};

pub use command::{Command, Refusal};
pub use report::{End, Notice};
pub use status::{UnitState, UnitStatus};

use crate::node::{Node, Service};
use backoff::Random;
use command::Pending;
use plan::Plan;
use unit::{Goal, State, Unit, Why};

/// A replica of a service; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub u32);

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Bring up what is not up. Comes after the [`Event::Adopted`] of an earlier reign.
    Start,
    /// [`Effect::Spawn`] made a process.
    Spawned {
        /// For whom.
        unit: UnitId,
        /// Its number.
        pid: u32,
    },
    /// [`Effect::Spawn`] made none.
    SpawnFailed {
        /// For whom.
        unit: UnitId,
        /// For the operator.
        reason: String,
    },
    /// A process that an earlier ipcd started for this unit lives. Ignored where the unit has one:
    /// whoever finds two ends the other.
    Adopted {
        /// Whose it is: [`Supervisor::unit`].
        unit: UnitId,
        /// Its number.
        pid: u32,
    },
    /// It serves all that it provides, and has answered a ping.
    Serves {
        /// Who.
        unit: UnitId,
    },
    /// Its process is gone, and reaped. Said once per process.
    Ended {
        /// Whose.
        unit: UnitId,
        /// In what way.
        how: End,
    },
    /// The ping of the last [`Effect::Probe`] was answered.
    Answered {
        /// By whom.
        unit: UnitId,
    },
    /// The ping of the last [`Effect::Probe`] cannot be answered any more. An answer that is
    /// late needs no event: the supervisor knows the time.
    Missed {
        /// By whom.
        unit: UnitId,
    },
    /// The node file says something else now.
    Reload(Box<Node>),
    /// Somebody wants something; answered once by [`Effect::Answer`].
    Command {
        /// Comes back in the answer; the loop's choice, not in use by another.
        request: u64,
        /// What.
        command: Command,
        /// A service, a group, or a unit such as `api#2`; looked for in that order.
        name: String,
    },
    /// Stop everything, for good.
    Shutdown,
    /// Time has passed.
    Tick,
}

/// Something to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Start a process as [`Supervisor::service`] says; then [`Event::Spawned`] or
    /// [`Event::SpawnFailed`].
    Spawn {
        /// For whom.
        unit: UnitId,
        /// The how manieth, from 1.
        attempt: u32,
    },
    /// Ask its process to end: `SIGTERM`.
    Terminate {
        /// Whose.
        unit: UnitId,
    },
    /// End its process: `SIGKILL` through its pidfd.
    Kill {
        /// Whose.
        unit: UnitId,
    },
    /// Ping it; then [`Event::Answered`] if it answers.
    Probe {
        /// Whom.
        unit: UnitId,
    },
    /// Tell the log, the audit and those who watch.
    Report {
        /// About whom.
        unit: UnitId,
        /// Its name, since it may be the last that is heard of it.
        name: String,
        /// What.
        notice: Notice,
    },
    /// A command has come to its end.
    Answer {
        /// As in [`Event::Command`].
        request: u64,
        /// What it came to.
        result: Result<(), Refusal>,
    },
    /// Everything has stopped after [`Event::Shutdown`]. The last effect but for refusals.
    Done,
}

/// The supervisor of one node.
#[derive(Debug)]
pub struct Supervisor {
    plan: Plan,
    units: BTreeMap<UnitId, Unit>,
    pending: Vec<Pending>,
    phase: Phase,
    next_unit: u32,
    random: Random,
    /// Where processes write what they were told to at their start.
    log_directory: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before [`Event::Start`]: nothing is spawned.
    New,
    Up,
    ShuttingDown,
    Over,
}

/// One step: when it is, and what comes of it.
struct Turn {
    now_ns: u64,
    out: Vec<Effect>,
}

impl Turn {
    fn report(&mut self, unit: UnitId, name: &str, notice: Notice) {
        self.out.push(Effect::Report { unit, name: name.to_owned(), notice });
    }
}

impl Supervisor {
    /// Starts at `now_ns` with all units waiting for [`Event::Start`]. `seed` is for the jitter of
    /// back-offs.
    pub fn new(node: &Node, seed: u64, now_ns: u64) -> Supervisor {
        let mut supervisor = Supervisor {
            plan: Plan::new(node, Vec::new()),
            units: BTreeMap::new(),
            pending: Vec::new(),
            phase: Phase::New,
            next_unit: 1,
            random: Random::new(seed),
            log_directory: node.log_directory.clone(),
        };
        supervisor.add_missing_units(now_ns);
        supervisor
    }

    /// Takes one event; gives what is to be done about it. `now_ns` never goes back.
    ///
    /// What a unit cannot have done as things stand is ignored, as are events about units that
    /// are gone. Time: linear in services, dependencies and units.
    pub fn step(&mut self, event: Event, now_ns: u64) -> Vec<Effect> {
        let mut turn = Turn { now_ns, out: Vec::new() };
        // A thousand watched services must not cost a pass for each ping and each answer.
        let may_move = !matches!(event, Event::Tick | Event::Answered { .. });
        self.take(event, &mut turn);
        if self.run_timers(&mut turn) || may_move {
            self.settle(&mut turn);
        }
        turn.out
    }

    /// Says when [`Event::Tick`] is needed at the latest.
    pub fn deadline_ns(&self) -> Option<u64> {
        let service = |unit: &Unit| &self.plan.services[unit.service];
        self.units.values().filter_map(|unit| unit.deadline_ns(service(unit))).min()
    }

    /// Says whether [`Effect::Done`] was given.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Gives the unit of a service's replica, which counts from 1.
    pub fn unit(&self, service: &str, replica: u32) -> Option<UnitId> {
        let service = self.plan.index_of(service)?;
        let is_it = |unit: &Unit| unit.service == service && unit.replica == replica;
        self.units.iter().find(|(_, unit)| is_it(unit) && !unit.leaving).map(|(&id, _)| id)
    }

    /// Gives what a unit's next process is to be: its service, and which replica of it.
    pub fn service(&self, unit: UnitId) -> Option<(&Service, u32)> {
        let unit = self.units.get(&unit)?;
        Some((&self.plan.services[unit.service], unit.replica))
    }

    fn take(&mut self, event: Event, turn: &mut Turn) {
        match event {
            Event::Start if self.phase == Phase::New => self.phase = Phase::Up,
            Event::Start | Event::Tick => {}
            Event::Spawned { unit, pid } => self.spawned(unit, pid, turn),
            Event::SpawnFailed { unit, reason } => self.spawn_failed(unit, &reason, turn),
            Event::Adopted { unit, pid } => self.adopted(unit, pid, turn),
            Event::Serves { unit } => self.serves(unit, turn),
            Event::Ended { unit, how } => self.ended(unit, how, turn),
            Event::Answered { unit } => self.answered(unit),
            Event::Missed { unit } => self.missed(unit, turn),
            Event::Reload(node) => self.reload(&node, turn),
            Event::Command { request, command, name } => {
                self.command(request, command, &name, turn);
            }
            Event::Shutdown => self.shut_down(),
        }
    }

    fn shut_down(&mut self) {
        if self.phase == Phase::Over {
            return;
        }
        self.phase = Phase::ShuttingDown;
        for unit in self.units.values_mut().filter(|unit| unit.goal == Goal::Up) {
            unit.goal = Goal::Down(Why::Shutdown);
            unit.cycle = false;
            if let State::Waiting | State::BackingOff = unit.state {
                unit.state = State::Stopped;
            }
        }
    }

    fn add_missing_units(&mut self, now_ns: u64) {
        for service in 0..self.plan.current {
            for replica in 1..=self.plan.services[service].replicas {
                let name = self.plan.services[service].name.as_str();
                if self.unit(name, replica).is_none() {
                    let unit = Unit::new(service, &self.plan.services[service], replica, now_ns);
                    self.units.insert(UnitId(self.next_unit), unit);
                    self.next_unit += 1;
                }
            }
        }
    }
}
