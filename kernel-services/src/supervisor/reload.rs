//! Another node file: the least change that makes it true.

use super::{
    Phase, Supervisor, Turn,
    plan::Plan,
    unit::{Goal, State, Unit, Watch, Why},
};
use crate::node::{Node, Service};

impl Supervisor {
    /// Starts what is new, stops what is gone, restarts what runs otherwise now. Terms that only
    /// the supervisor keeps change in place. Too late in a shutdown.
    pub(super) fn reload(&mut self, node: &Node, turn: &mut Turn) {
        if matches!(self.phase, Phase::ShuttingDown | Phase::Over) {
            return;
        }
        let is_gone = |spec: &&Service| !node.services.iter().any(|new| new.name == spec.name);
        let gone: Vec<Service> = self.plan.services.iter().filter(is_gone).cloned().collect();
        let has_processes = |spec: &Service| {
            let of_it = |unit: &Unit| self.plan.services[unit.service].name == spec.name;
            self.units.values().any(|unit| of_it(unit) && unit.has_process())
        };
        let leaving = gone.into_iter().filter(has_processes).collect();
        let mut plan = Plan::new(node, leaving);
        plan.inherit(&self.plan);
        let old = std::mem::replace(&mut self.plan, plan);
        self.units.retain(|_, unit| {
            let was = &old.services[unit.service];
            let Some(now) = self.plan.index_of(&was.name) else { return false };
            unit.service = now;
            let spec = &self.plan.services[now];
            if now >= self.plan.current || unit.replica > spec.replicas {
                return leave(unit);
            }
            unit.name = Unit::name_of(spec, unit.replica);
            adjust(unit, was, spec, turn.now_ns);
            true
        });
        self.add_missing_units(turn.now_ns);
    }
}

/// Is not wanted any more. Returns whether there is still something of it.
fn leave(unit: &mut Unit) -> bool {
    (unit.leaving, unit.cycle) = (true, false);
    unit.goal = Goal::Down(Why::Asked);
    unit.has_process()
}

fn adjust(unit: &mut Unit, was: &Service, spec: &Service, now_ns: u64) {
    let returns = std::mem::replace(&mut unit.leaving, false);
    // Who was stopped by hand stays so.
    let stopped = unit.goal == Goal::Down(Why::Asked) && !returns;
    if (returns || needs_restart(was, spec)) && !stopped {
        unit.renew(now_ns);
        unit.cycle = unit.has_process();
    }
    if let State::Ready { watch } = &mut unit.state
        && was.watchdog != spec.watchdog
    {
        *watch = spec.watchdog.map(|terms| Watch::new(terms, now_ns));
    }
}

/// Says whether a process of the old terms is not one of the new. What is not named here, and
/// whatever a service is given in future, concerns its process.
fn needs_restart(was: &Service, now: &Service) -> bool {
    let mut same = now.clone();
    same.depends_on.clone_from(&was.depends_on);
    same.replicas = was.replicas;
    same.restart = was.restart;
    same.backoff = was.backoff;
    same.readiness.within = was.readiness.within;
    same.watchdog = was.watchdog;
    same.stop_within = was.stop_within;
    same.quota = was.quota;
    same.log = was.log;
    same != *was
}
