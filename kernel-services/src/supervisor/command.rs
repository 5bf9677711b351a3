//! What operators ask for, and when it is answered.

use super::{
    Effect, Phase, Supervisor, Turn, UnitId,
    settle::View,
    unit::{Goal, State, Unit, Why},
};

/// What may be asked of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run, also after a stop or a failure for good. Answered when all are ready or finished.
    Start,
    /// Be down until started. Answered when no process is left.
    Stop,
    /// Stop, and start; not a failure, and without a delay. Answered as a start.
    Restart,
}

impl Command {
    /// Gives the word for it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Command::Start => "start",
            Command::Stop => "stop",
            Command::Restart => "restart",
        }
    }
}

/// Why a command did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing was done.
    #[error("no service, group or unit is called {0}")]
    Unknown(String),
    /// Nothing was done, or what was done is being undone.
    #[error("ipcd is shutting down")]
    ShuttingDown,
    /// A later command or reload wants the opposite.
    #[error("{0} was told otherwise meanwhile")]
    Superseded(String),
    /// It starts by itself once that is ready.
    #[error("{unit} waits for {needs}")]
    Waits {
        /// Who.
        unit: String,
        /// For whom, which does not come up by itself.
        needs: String,
    },
    /// It did not become ready. Whether it is tried again, its status says.
    #[error("{unit}: {reason}")]
    Failed {
        /// Who.
        unit: String,
        /// Why.
        reason: String,
    },
}

/// A command under way.
#[derive(Debug)]
pub(super) struct Pending {
    request: u64,
    command: Command,
    units: Vec<UnitId>,
    name: String,
}

impl Supervisor {
    pub(super) fn command(&mut self, request: u64, command: Command, name: &str, turn: &mut Turn) {
        let units = self.named(name);
        let going_down = matches!(self.phase, Phase::ShuttingDown | Phase::Over);
        let refusal = if units.is_empty() {
            Refusal::Unknown(name.to_owned())
        } else if self.phase == Phase::Over || going_down && command != Command::Stop {
            Refusal::ShuttingDown
        } else {
            for id in &units {
                if let Some(unit) = self.units.get_mut(id) {
                    obey(unit, command, turn.now_ns);
                }
            }
            return self.pending.push(Pending { request, command, units, name: name.to_owned() });
        };
        turn.out.push(Effect::Answer { request, result: Err(refusal) });
    }

    fn named(&self, name: &str) -> Vec<UnitId> {
        let of = |is_it: &dyn Fn(&Unit) -> bool| -> Vec<UnitId> {
            let found = self.units.iter().filter(|(_, unit)| !unit.leaving && is_it(unit));
            found.map(|(&id, _)| id).collect()
        };
        let service = self.plan.index_of(name);
        let group = |unit: &Unit| {
            let group = self.plan.fate_of(unit.service);
            !group.alone && group.terms.name == name
        };
        [of(&|unit| Some(unit.service) == service), of(&group), of(&|unit| unit.name == name)]
            .into_iter()
            .find(|units| !units.is_empty())
            .unwrap_or_default()
    }

    /// Answers the commands that have come to their end.
    pub(super) fn answer(&mut self, view: &View, turn: &mut Turn) {
        let mut pending = std::mem::take(&mut self.pending);
        pending.retain(|command| {
            let Some(result) = self.result(command, view) else { return true };
            turn.out.push(Effect::Answer { request: command.request, result });
            false
        });
        self.pending = pending;
    }

    /// Gives what a command came to, if it has come to its end.
    fn result(&self, pending: &Pending, view: &View) -> Option<Result<(), Refusal>> {
        let mut under_way = false;
        for id in &pending.units {
            let verdict = match (self.units.get(id), pending.command) {
                // Gone from the node file, and down.
                (None, Command::Stop) => Some(Ok(())),
                (None, _) => Some(Err(Refusal::Superseded(pending.name.clone()))),
                (Some(unit), Command::Stop) => stopped(unit),
                (Some(unit), Command::Start | Command::Restart) => self.started(unit, view),
            };
            match verdict {
                Some(Ok(())) => {}
                Some(Err(refusal)) => return Some(Err(refusal)),
                None => under_way = true,
            }
        }
        (!under_way).then_some(Ok(()))
    }

    fn started(&self, unit: &Unit, view: &View) -> Option<Result<(), Refusal>> {
        let refused = |refusal| Some(Err(refusal));
        let failed = || {
            let reason = unit.reason.clone().unwrap_or_else(|| "is not up".to_owned());
            Refusal::Failed { unit: unit.name.clone(), reason }
        };
        match (unit.goal, unit.state) {
            (Goal::Down(Why::Shutdown), _) => refused(Refusal::ShuttingDown),
            (Goal::Down(Why::Asked | Why::Gone), _) => {
                refused(Refusal::Superseded(unit.name.clone()))
            }
            (Goal::Down(Why::GaveUp | Why::Sibling), _)
            | (Goal::Up, State::BackingOff | State::Ended | State::Failed | State::Stopped) => {
                refused(failed())
            }
            (Goal::Up, State::Finished) => Some(Ok(())),
            (Goal::Up, State::Ready { .. }) if unit.is_ready() => Some(Ok(())),
            (Goal::Up, State::Waiting) if self.phase == Phase::Up => {
                let needs = self.plan.before[unit.service].iter().filter(|edge| edge.needed);
                let mut lost = needs.filter(|edge| !view.coming[edge.service]);
                let needs = self.plan.services[lost.next()?.service].name.clone();
                refused(Refusal::Waits { unit: unit.name.clone(), needs })
            }
            (Goal::Up, _) => None,
        }
    }
}

fn obey(unit: &mut Unit, command: Command, now_ns: u64) {
    match command {
        Command::Start => unit.renew(now_ns),
        Command::Restart => {
            unit.renew(now_ns);
            unit.cycle = unit.has_process();
        }
        Command::Stop => {
            (unit.goal, unit.cycle) = (Goal::Down(Why::Asked), false);
            if !unit.has_process() && unit.state != State::Stopped {
                unit.enter(State::Stopped, now_ns);
            }
        }
    }
}

fn stopped(unit: &Unit) -> Option<Result<(), Refusal>> {
    match unit.goal {
        Goal::Up => Some(Err(Refusal::Superseded(unit.name.clone()))),
        Goal::Down(_) => (!unit.has_process()).then_some(Ok(())),
    }
}
