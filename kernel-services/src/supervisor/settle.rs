//! The pass after each event: stops and starts what is free to.

use super::{
    Effect, Notice, Phase, Supervisor, Turn,
    plan::Plan,
    unit::{Goal, State, Unit, Why, after},
};
use crate::node::Ready;

/// What units and their neighbours may do, as things stand.
pub(super) struct View {
    /// The service is ready: those that need it may start.
    pub(super) ready: Vec<bool>,
    /// It is ready, or on its way, and nothing that is down for good is in its way.
    pub(super) coming: Vec<bool>,
    /// A service that comes after it has still to stop.
    held: Vec<bool>,
    /// An earlier member of its group is on its way up.
    queued: Vec<bool>,
    /// Later members of its group wait for it, or for those that it would wait for.
    pub(super) awaited: Vec<bool>,
    /// Of each group: a member that shares in a restart is not down yet.
    cycling: Vec<bool>,
}

impl Supervisor {
    pub(super) fn settle(&mut self, turn: &mut Turn) {
        if self.phase == Phase::Over {
            return;
        }
        let view = self.view();
        self.stop_what_may(&view, turn);
        if self.phase == Phase::Up {
            self.start_what_may(&view, turn);
        }
        self.answer(&view, turn);
        if self.phase == Phase::ShuttingDown && !self.units.values().any(Unit::has_process) {
            self.phase = Phase::Over;
            turn.out.push(Effect::Done);
        }
    }

    pub(super) fn view(&self) -> View {
        let services = self.plan.services.len();
        let mut view = View {
            ready: vec![false; services],
            coming: vec![false; services],
            held: vec![false; services],
            queued: vec![false; services],
            awaited: vec![false; services],
            cycling: vec![false; self.plan.groups.len()],
        };
        let mut stops = vec![false; services];
        let mut moves = vec![false; services];
        let mut finished: Vec<Option<bool>> = vec![None; services];
        for unit in self.units.values() {
            let at = unit.service;
            stops[at] |= unit.must_stop();
            let with_others = unit.cycle || unit.goal == Goal::Down(Why::Sibling);
            view.cycling[self.plan.group_of[at]] |= unit.must_stop() && with_others;
            if unit.leaving {
                continue;
            }
            view.ready[at] |= unit.is_ready();
            moves[at] |= unit.goal == Goal::Up && (unit.has_process() || is_due(unit));
            let done = unit.state == State::Finished;
            finished[at] = Some(finished[at].unwrap_or(true) && done);
        }
        for (at, finished) in finished.into_iter().enumerate() {
            if self.plan.services[at].readiness.when == Ready::Exits {
                view.ready[at] = finished == Some(true);
            }
        }
        spread(&self.plan, &mut view, &stops, &moves);
        view
    }

    fn stop_what_may(&mut self, view: &View, turn: &mut Turn) {
        for (&id, unit) in &mut self.units {
            let untold = matches!(unit.state, State::Starting { .. } | State::Ready { .. });
            if untold && unit.must_stop() && !view.held[unit.service] {
                let within = self.plan.services[unit.service].stop_within;
                let until_ns = after(turn.now_ns, within);
                unit.enter(State::Stopping { until_ns }, turn.now_ns);
                turn.report(id, &unit.name, Notice::Stops);
                turn.out.push(Effect::Terminate { unit: id });
            }
        }
    }

    fn start_what_may(&mut self, view: &View, turn: &mut Turn) {
        for (&id, unit) in &mut self.units {
            let needs = self.plan.before[unit.service].iter().filter(|edge| edge.needed);
            if unit.state == State::Waiting
                && needs.into_iter().all(|edge| view.ready[edge.service])
                && !view.queued[unit.service]
                && !view.cycling[self.plan.group_of[unit.service]]
            {
                unit.enter(State::Spawning, turn.now_ns);
                unit.attempt = unit.attempt.saturating_add(1);
                turn.report(id, &unit.name, Notice::Starts { attempt: unit.attempt });
                turn.out.push(Effect::Spawn { unit: id, attempt: unit.attempt });
            }
        }
    }
}

fn is_due(unit: &Unit) -> bool {
    matches!(unit.state, State::Waiting | State::BackingOff)
}

/// Carries along the order what a service means for those after and before it.
fn spread(plan: &Plan, view: &mut View, stops: &[bool], moves: &[bool]) {
    for &at in &plan.order {
        let needs = || plan.before[at].iter().filter(|edge| edge.needed);
        let earlier = || plan.before[at].iter().filter(|edge| !edge.needed);
        view.queued[at] = earlier().any(|edge| view.awaited[edge.service]);
        let can_come = || needs().all(|edge| view.coming[edge.service]);
        let coming = view.ready[at] || (moves[at] && can_come());
        view.coming[at] = coming;
        view.awaited[at] = if moves[at] { coming && !view.ready[at] } else { view.queued[at] };
    }
    for &at in plan.order.iter().rev() {
        if stops[at] || view.held[at] {
            for edge in &plan.before[at] {
                view.held[edge.service] = true;
            }
        }
    }
}
