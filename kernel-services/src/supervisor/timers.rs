//! What comes by time alone: ends of back-offs, deadlines, pings.

use super::{
    Effect, Notice, Supervisor, Turn, UnitId,
    unit::{Fault, State, Unit, Watch, after},
};
use crate::node::{Service, Watchdog};

impl Supervisor {
    /// Does what is due. Returns whether a unit has left its state.
    pub(super) fn run_timers(&mut self, turn: &mut Turn) -> bool {
        let mut moved = false;
        for (&id, unit) in &mut self.units {
            let spec = &self.plan.services[unit.service];
            // A ping that is over makes room for the next, which may be due.
            while unit.deadline_ns(spec).is_some_and(|due_ns| due_ns <= turn.now_ns) {
                due(id, unit, spec, turn);
                moved |= !matches!(unit.state, State::Ready { .. });
            }
        }
        moved
    }

    pub(super) fn answered(&mut self, id: UnitId) {
        if let Some(Unit { state: State::Ready { watch: Some(watch) }, .. }) =
            self.units.get_mut(&id)
            && watch.until_ns.take().is_some()
        {
            watch.missed = 0;
        }
    }

    pub(super) fn missed(&mut self, id: UnitId, turn: &mut Turn) {
        let Some(unit) = self.units.get_mut(&id) else { return };
        if let (State::Ready { watch: Some(watch) }, Some(terms)) =
            (unit.state, self.plan.services[unit.service].watchdog)
            && watch.until_ns.is_some()
            && !unit.must_stop()
        {
            miss(id, unit, watch, terms, turn);
        }
    }
}

/// Does what a unit's deadline is for.
fn due(id: UnitId, unit: &mut Unit, spec: &Service, turn: &mut Turn) {
    match (unit.state, spec.watchdog) {
        (State::BackingOff, _) => unit.enter(State::Waiting, turn.now_ns),
        (State::Stopping { .. }, _) => {
            kill(id, unit, None, Notice::Stubborn { within: spec.stop_within }, turn);
        }
        (State::Starting { .. }, _) => {
            let notice = Notice::Late { within: spec.readiness.within };
            kill(id, unit, Some(Fault::Late), notice, turn);
        }
        (State::Ready { watch: Some(watch) }, Some(terms)) => match watch.until_ns {
            Some(_) => miss(id, unit, watch, terms, turn),
            None => probe(id, unit, watch, terms, turn),
        },
        // Has no deadline.
        _ => {}
    }
}

fn probe(id: UnitId, unit: &mut Unit, watch: Watch, terms: Watchdog, turn: &mut Turn) {
    let (next_ns, until_ns) =
        (after(turn.now_ns, terms.interval), Some(after(turn.now_ns, terms.timeout)));
    unit.state = State::Ready { watch: Some(Watch { next_ns, until_ns, ..watch }) };
    turn.out.push(Effect::Probe { unit: id });
}

fn miss(id: UnitId, unit: &mut Unit, watch: Watch, terms: Watchdog, turn: &mut Turn) {
    let missed = watch.missed + 1;
    unit.state = State::Ready { watch: Some(Watch { until_ns: None, missed, ..watch }) };
    if missed >= terms.failures {
        kill(id, unit, Some(Fault::Hung), Notice::Hung { missed }, turn);
    }
}

fn kill(id: UnitId, unit: &mut Unit, fault: Option<Fault>, notice: Notice, turn: &mut Turn) {
    unit.enter(State::Killed { fault }, turn.now_ns);
    turn.report(id, &unit.name, notice);
    turn.out.push(Effect::Kill { unit: id });
}
