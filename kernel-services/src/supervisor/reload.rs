//! Another node file: the least change that makes it true.

use super::{
    Notice, Phase, Supervisor, Turn,
    plan::Plan,
    unit::{Goal, State, Unit, Watch, Why},
};
use crate::node::{Node, Ready, Service, needs_restart};

impl Supervisor {
    /// Starts what is new, stops what is gone, restarts what a process would have to be born with.
    /// Other terms change in place. In a shutdown it is too late.
    pub(super) fn reload(&mut self, node: &Node, turn: &mut Turn) {
        if matches!(self.phase, Phase::ShuttingDown | Phase::Over) {
            return;
        }
        let is_gone = |spec: &&Service| !node.services.iter().any(|new| new.name == spec.name);
        let gone: Vec<Service> = self.plan.services.iter().filter(is_gone).cloned().collect();
        // All of them, while one has a process: the order of stopping may lead through others.
        let of_gone = |unit: &Unit| is_gone(&&self.plan.services[unit.service]);
        let ending = self.units.values().any(|unit| unit.has_process() && of_gone(unit));
        let leaving = if ending { gone } else { Vec::new() };
        let mut plan = Plan::new(node, leaving);
        plan.inherit(&self.plan);
        let old = std::mem::replace(&mut self.plan, plan);
        let moved = std::mem::replace(&mut self.log_directory, node.log_directory.clone())
            != node.log_directory;
        self.units.retain(|&id, unit| {
            let was = &old.services[unit.service];
            let Some(now) = self.plan.index_of(&was.name) else { return false };
            unit.service = now;
            let spec = &self.plan.services[now];
            if now >= self.plan.current || unit.replica > spec.replicas {
                return leave(unit);
            }
            unit.name = Unit::name_of(spec, unit.replica);
            if std::mem::replace(&mut unit.leaving, false) || moved || needs_restart(was, spec) {
                restart(unit, turn.now_ns);
            }
            if let Some(notice) = adjust(unit, was, spec, turn.now_ns) {
                turn.report(id, &unit.name, notice);
            }
            true
        });
        self.add_missing_units(turn.now_ns);
    }
}

/// Is not wanted any more. Returns whether there is still something of it.
fn leave(unit: &mut Unit) -> bool {
    (unit.leaving, unit.cycle) = (true, false);
    unit.goal = Goal::Down(Why::Gone);
    unit.reason = Some("gone from the node file".to_owned());
    unit.has_process()
}

fn restart(unit: &mut Unit, now_ns: u64) {
    // Who was stopped by hand stays so.
    if unit.goal != Goal::Down(Why::Asked) {
        unit.renew(now_ns);
        unit.cycle = unit.has_process();
    }
}

/// Takes over the terms under which a unit is in its state.
fn adjust(unit: &mut Unit, was: &Service, spec: &Service, now_ns: u64) -> Option<Notice> {
    let awaits_other = was.readiness.when != spec.readiness.when;
    match &mut unit.state {
        State::Ready { watch } if was.watchdog != spec.watchdog => {
            *watch = spec.watchdog.map(|terms| Watch::new(terms, now_ns));
        }
        State::Starting { .. } if awaits_other && spec.readiness.when == Ready::Runs => {
            return Some(unit.become_ready(spec, now_ns));
        }
        // As a preparation it was done; as what it is now it may not be.
        State::Finished | State::Ended if awaits_other => restart(unit, now_ns),
        _ => {}
    }
    None
}
