//! What a unit's process does, and what follows from it.

use std::time::Duration;

use super::{
    End, Notice, Supervisor, Turn, UnitId, backoff,
    unit::{Fault, Goal, State, Unit, Why, after},
};
use crate::{
    console::count,
    node::{Ready, Restart, Service},
};

impl Supervisor {
    pub(super) fn spawned(&mut self, id: UnitId, pid: u32, turn: &mut Turn) {
        let Some(unit) = self.units.get_mut(&id) else { return };
        if unit.state == State::Spawning {
            let ready = unit.runs(&self.plan.services[unit.service], pid, turn.now_ns);
            for notice in [Some(Notice::Runs { pid }), ready].into_iter().flatten() {
                turn.report(id, &unit.name, notice);
            }
        }
    }

    pub(super) fn adopted(&mut self, id: UnitId, pid: u32, turn: &mut Turn) {
        let over = self.is_over();
        let Some(unit) = self.units.get_mut(&id) else { return };
        if !over && !unit.has_process() {
            let ready = unit.runs(&self.plan.services[unit.service], pid, turn.now_ns);
            for notice in [Some(Notice::Adopted { pid }), ready].into_iter().flatten() {
                turn.report(id, &unit.name, notice);
            }
        }
    }

    pub(super) fn serves(&mut self, id: UnitId, turn: &mut Turn) {
        let Some(unit) = self.units.get_mut(&id) else { return };
        let spec = &self.plan.services[unit.service];
        let awaited = spec.readiness.when == Ready::Answers;
        if let (State::Starting { .. }, true) = (unit.state, awaited) {
            let notice = unit.become_ready(spec, turn.now_ns);
            turn.report(id, &unit.name, notice);
        }
    }

    pub(super) fn spawn_failed(&mut self, id: UnitId, reason: &str, turn: &mut Turn) {
        let Some(unit) = self.units.get_mut(&id) else { return };
        if unit.state != State::Spawning {
            return;
        }
        turn.report(id, &unit.name, Notice::SpawnFailed { reason: reason.to_owned() });
        if unit.must_stop() {
            return self.rest(id, turn);
        }
        let again = self.plan.services[unit.service].restart != Restart::Temporary;
        self.failed(id, format!("cannot be started: {reason}"), again, turn);
    }

    pub(super) fn ended(&mut self, id: UnitId, how: End, turn: &mut Turn) {
        let Some(unit) = self.units.get_mut(&id) else { return };
        if !unit.has_process() || unit.state == State::Spawning {
            return;
        }
        let fault = match unit.state {
            State::Killed { fault } => fault,
            _ => None,
        };
        let asked = unit.must_stop();
        let spec = &self.plan.services[unit.service];
        if after(unit.started_ns, spec.backoff.forget_after) <= turn.now_ns {
            unit.failures = 0;
        }
        unit.last_end = Some(how);
        turn.report(id, &unit.name, Notice::Ended { how, asked });
        if asked {
            return self.rest(id, turn);
        }
        unit.pid = None;
        let succeeded = fault.is_none() && how.is_success();
        let again = match (spec.restart, spec.readiness.when) {
            (Restart::Temporary, _) => false,
            // A preparation that is done stays done.
            (Restart::Permanent, Ready::Exits) | (Restart::Transient, _) => !succeeded,
            (Restart::Permanent, Ready::Answers | Ready::Runs) => true,
        };
        if succeeded && !again {
            unit.reason = None;
            return unit.enter(State::Finished, turn.now_ns);
        }
        let cause = cause(fault, how, spec);
        self.failed(id, cause, again, turn);
    }

    /// It is down, as it was to be.
    fn rest(&mut self, id: UnitId, turn: &mut Turn) {
        let Some(unit) = self.units.get_mut(&id) else { return };
        unit.rest(turn.now_ns);
        if unit.leaving {
            self.units.remove(&id);
        }
    }

    /// It is down, and was to be up.
    fn failed(&mut self, id: UnitId, cause: String, again: bool, turn: &mut Turn) {
        let Some(unit) = self.units.get_mut(&id) else { return };
        unit.pid = None;
        unit.reason = Some(cause.clone());
        unit.enter(State::Ended, turn.now_ns);
        if !again {
            return;
        }
        let spec = &self.plan.services[unit.service];
        let delay_ns = backoff::delay_ns(&spec.backoff, unit.failures, &mut self.random);
        let due_ns = turn.now_ns.saturating_add(delay_ns);
        let group = &mut self.plan.groups[self.plan.group_of[unit.service]];
        if !group.restarts.grant(group.terms.intensity, due_ns, turn.now_ns) {
            return self.give_up(id, &cause, turn);
        }
        unit.failures = unit.failures.saturating_add(1);
        unit.restarts = unit.restarts.saturating_add(1);
        unit.not_before_ns = due_ns;
        unit.enter(State::BackingOff, turn.now_ns);
        let delay = Duration::from_nanos(delay_ns);
        turn.report(id, &unit.name, Notice::RestartsIn { delay, reason: cause });
        self.take_along(id, due_ns, turn);
    }

    /// Restarts those whose fate is that of `culprit`, which is due at `due_ns`.
    fn take_along(&mut self, culprit: UnitId, due_ns: u64, turn: &mut Turn) {
        let Some(unit) = self.units.get(&culprit) else { return };
        let (service, name) = (unit.service, unit.name.clone());
        for (&id, unit) in self.units.iter_mut().filter(|(id, _)| **id != culprit) {
            let along = self.plan.takes_along(service, unit.service);
            if !along || unit.leaving || unit.goal != Goal::Up {
                continue;
            }
            let temporary = self.plan.services[unit.service].restart == Restart::Temporary;
            if restart_at(unit, due_ns, temporary, turn.now_ns) {
                let unit_name = name.clone();
                let notice = match unit.goal {
                    Goal::Up => Notice::RestartsWith { unit: unit_name },
                    Goal::Down(_) => Notice::StopsWith { unit: unit_name },
                };
                unit.reason = Some(notice.to_string());
                turn.report(id, &unit.name, notice);
            }
        }
    }

    fn give_up(&mut self, culprit: UnitId, cause: &str, turn: &mut Turn) {
        let Some(unit) = self.units.get(&culprit) else { return };
        let (number, name) = (self.plan.group_of[unit.service], unit.name.clone());
        let group = &mut self.plan.groups[number];
        // A command that starts it again finds nothing used up.
        group.restarts.forget();
        let terms = &group.terms;
        let (most, within) = (terms.intensity.restarts, terms.intensity.within);
        let used = format!("needs more than {most} restarts in {within:?}");
        for (&id, unit) in &mut self.units {
            if self.plan.group_of[unit.service] != number || unit.leaving || unit.goal != Goal::Up {
                continue;
            }
            let whose = if id == culprit { String::new() } else { format!("{name} ") };
            let reason = format!("{whose}{used}: {cause}");
            if unit.has_process() {
                (unit.goal, unit.cycle) = (Goal::Down(Why::GaveUp), false);
                unit.reason = Some(reason);
            } else if id == culprit || matches!(unit.state, State::Waiting | State::BackingOff) {
                unit.goal = Goal::Down(Why::GaveUp);
                unit.reason = Some(reason);
                unit.enter(State::Failed, turn.now_ns);
            }
        }
        let notice =
            Notice::GaveUp { group: terms.name.clone(), reason: format!("{used}: {cause}") };
        turn.report(culprit, &name, notice);
    }
}

/// Has a unit go down and up again, at `due_ns` at the earliest. Returns whether that is news.
fn restart_at(unit: &mut Unit, due_ns: u64, temporary: bool, now_ns: u64) -> bool {
    if unit.has_process() {
        let news = !unit.must_stop();
        if temporary {
            unit.goal = Goal::Down(Why::Sibling);
        } else {
            unit.cycle = true;
            unit.not_before_ns = unit.not_before_ns.max(due_ns);
            unit.restarts = unit.restarts.saturating_add(u32::from(news));
        }
        return news;
    }
    match unit.state {
        State::Waiting | State::BackingOff => {
            unit.not_before_ns = unit.not_before_ns.max(due_ns);
            unit.queue(now_ns);
            false
        }
        State::Finished | State::Ended if !temporary => {
            unit.not_before_ns = due_ns;
            unit.queue(now_ns);
            true
        }
        _ => false,
    }
}

fn cause(fault: Option<Fault>, how: End, spec: &Service) -> String {
    match (fault, spec.watchdog) {
        (Some(Fault::Late), _) => {
            format!("was not ready within {:?}", spec.readiness.within)
        }
        (Some(Fault::Hung), Some(watchdog)) => {
            format!("hung, {} unanswered", count(watchdog.failures, "ping"))
        }
        (Some(Fault::Hung), None) => "hung".to_owned(),
        (None, _) => how.to_string(),
    }
}
