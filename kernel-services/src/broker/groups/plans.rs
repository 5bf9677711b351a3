//! Who is to serve a name, in which order, and when who serves is passed over: what was said of it,
//! and what follows for who is next.

use std::sync::Arc;

use ipc::{
    FailoverPlan, FailoverStrategy, HealthCheck, ServiceId, Standing, Status,
    control::{Cause, Reply},
};

use super::{Broker, Effect, Hand, Token, Turn, YIELD_NS};

/// Names whose plans are remembered.
const MOST_PLANS: usize = 4096;

/// How a name is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) strategy: FailoverStrategy,
    pub(crate) health: HealthCheck,
    /// Who goes before the others, the first first.
    pub(crate) order: Vec<Place>,
    /// Whether the node file says so: then nobody else does.
    pub(crate) is_fixed: bool,
}

/// A place in the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Instance(ServiceId),
    /// The processes of a supervised service.
    #[cfg_attr(not(feature = "node"), allow(dead_code, reason = "an embedded runtime has none"))]
    Service(Arc<str>),
}

impl Broker {
    /// Begins with what an earlier run was told.
    pub(crate) fn planned(mut self, plans: Vec<(String, Plan)>) -> Broker {
        self.groups.plans.extend(plans);
        self
    }

    /// Takes what the node file says of names.
    pub(in crate::broker) fn plan_by_file(&mut self, plans: Vec<(String, Plan)>, turn: &mut Turn) {
        let mut changed: Vec<String> = plans.iter().map(|(name, _)| name.clone()).collect();
        let fixed = self.groups.plans.iter().filter(|(_, plan)| plan.is_fixed);
        changed.extend(fixed.map(|(name, _)| name.clone()));
        self.groups.plans.retain(|_, plan| !plan.is_fixed);
        self.groups.plans.extend(plans);
        changed.sort();
        changed.dedup();
        for text in changed {
            if let Some(name) = self.registry.discover(&text) {
                self.arrange(name);
                self.tell_group(name, turn);
                self.prefer(name, turn);
            }
        }
    }

    /// Hears who is to serve a name, and when.
    pub(in crate::broker) fn configure(
        &mut self,
        from: Token,
        plan: FailoverPlan,
        turn: &mut Turn,
    ) -> Result<Reply, Status> {
        let FailoverPlan { service, strategy, health, order } = plan;
        let instance = self.registry.resolve(service).ok_or(Status::NOT_FOUND)?;
        let name = self.registry.instance(instance).ok_or(Status::NOT_FOUND)?.name;
        let text = self.registry.name_behind(name).ok_or(Status::NOT_FOUND)?.to_string();
        if !self.may_steer(from, name, turn) {
            return Err(Status::ACCESS);
        }
        if self.groups.plans.get(&text).is_some_and(|plan| plan.is_fixed) {
            return Err(Status::EXISTS);
        }
        let members = self.registry.group(name);
        if order.iter().any(|id| !members.contains(id)) {
            return Err(Status::NOT_FOUND);
        }
        if (1..order.len()).any(|place| order[..place].contains(&order[place])) {
            return Err(Status::INVALID);
        }
        if self.groups.plans.len() >= MOST_PLANS && !self.groups.plans.contains_key(&text) {
            return Err(Status::QUOTA);
        }
        let first = order.first().copied();
        let order = order.into_iter().map(Place::Instance).collect();
        let plan = Plan { strategy, health, order, is_fixed: false };
        turn.out.push(Effect::Plan { name: text.clone(), plan: plan.clone() });
        self.groups.plans.insert(text, plan);
        self.arrange(name);
        self.tell_group(name, turn);
        if let Some(first) = first {
            self.change_to(name, first, turn);
        }
        self.prefer(name, turn);
        Ok(Reply::Done)
    }

    /// How a name is configured, and how it stands.
    pub(in crate::broker) fn standing(&self, service: ServiceId) -> Result<Reply, Status> {
        let instance = self.registry.resolve(service).ok_or(Status::NOT_FOUND)?;
        let name = self.registry.instance(instance).ok_or(Status::NOT_FOUND)?.name;
        let state = self.groups.names.get(&name).ok_or(Status::NOT_FOUND)?;
        let (strategy, health) = self.plan_of(name);
        let serves = state.serving.unwrap_or(ServiceId::NONE);
        Ok(Reply::Standing(Standing {
            name,
            serves,
            epoch: state.served_at,
            strategy,
            health,
            configured: self.plan(name).is_some(),
            suspected: self.groups.suspects.acts_on(serves),
            suspicions: state.suspicions,
        }))
    }

    pub(super) fn plan(&self, name: ServiceId) -> Option<&Plan> {
        self.groups.plans.get(&**self.registry.name_behind(name)?)
    }

    /// Who is next, and when who serves is suspected.
    pub(super) fn plan_of(&self, name: ServiceId) -> (FailoverStrategy, HealthCheck) {
        self.plan(name).map(|plan| (plan.strategy, plan.health)).unwrap_or_default()
    }

    /// Where an instance stands by the plan: those that are named first, then the others.
    fn rank(&self, plan: &Plan, instance: ServiceId) -> usize {
        let is_there = |place: &Place| match place {
            Place::Instance(id) => *id == instance,
            Place::Service(service) => {
                let session = self.token_of(instance).and_then(|it| self.sessions.get(&it));
                let unit = session.and_then(|it| it.peer.unit.as_ref());
                unit.is_some_and(|unit| unit.service == *service)
            }
        };
        plan.order.iter().position(is_there).unwrap_or(usize::MAX)
    }

    /// Brings the group of a name into its order: who serves is the first, those who hang the last.
    pub(super) fn arrange(&mut self, name: ServiceId) {
        let Some(state) = self.groups.names.get(&name) else { return };
        let (serving, hung) = (state.serving, state.hung.clone());
        let has_order = self.plan(name).is_some_and(|plan| !plan.order.is_empty());
        if !has_order && hung.is_empty() {
            return;
        }
        if let Some(plan) = self.plan(name).filter(|plan| !plan.order.is_empty()) {
            let members = self.registry.group(name);
            let ranks: Vec<_> = members.iter().map(|&it| (self.rank(plan, it), it)).collect();
            self.registry.sort(name, &ranks);
        }
        for it in hung {
            self.registry.put_last(it);
        }
        if let Some(serving) = serving {
            self.registry.put_first(serving);
        }
    }

    /// Who is to serve a name in place of one that does not any more, and is none of those.
    pub(super) fn choose(
        &self,
        name: ServiceId,
        from: Option<ServiceId>,
        avoid: &[ServiceId],
    ) -> Option<ServiceId> {
        let state = self.groups.names.get(&name)?;
        let is_fit =
            |it: &ServiceId| Some(*it) != from && !avoid.contains(it) && !state.hung.contains(it);
        let mut fit = self.registry.group(name).iter().copied().filter(is_fit);
        match self.plan_of(name).0 {
            FailoverStrategy::HotStandby | FailoverStrategy::Priority => fit.next(),
            FailoverStrategy::RoundRobin => {
                // In an order that does not change with who serves.
                let plan = self.plan(name);
                let key = |it: ServiceId| (plan.map_or(0, |plan| self.rank(plan, it)), it);
                let last = from.or(state.last).map(key);
                let mut fit: Vec<_> = fit.map(key).collect();
                fit.sort_unstable();
                let next = fit.iter().find(|it| Some(**it) > last).or(fit.first());
                next.map(|(_, it)| *it)
            }
            FailoverStrategy::LeastLoaded => fit.min_by_key(|&it| self.load(it)),
            // The first to come serves: there is nobody to take anything over from.
            FailoverStrategy::Manual if state.last.is_none() => fit.next(),
            FailoverStrategy::Manual => None,
        }
    }

    /// The channels that the process of an instance serves.
    fn load(&self, instance: ServiceId) -> usize {
        self.token_of(instance).map_or(usize::MAX, |token| self.channels.served_by(token))
    }

    /// Gives the name to one that goes before who serves, in order.
    pub(super) fn prefer(&mut self, name: ServiceId, turn: &mut Turn) {
        let Some(plan) = self.plan(name) else { return };
        let Some(state) = self.groups.names.get(&name) else { return };
        let Some(serving) = state.serving else { return };
        if plan.strategy != FailoverStrategy::Priority {
            return;
        }
        let members = self.registry.group(name).iter().copied();
        let well = members.filter(|it| !state.hung.contains(it));
        let best = well.min_by_key(|&it| self.rank(plan, it));
        let goes_before = |best: &ServiceId| self.rank(plan, *best) < self.rank(plan, serving);
        if let Some(best) = best.filter(goes_before) {
            self.change_to(name, best, turn);
        }
    }

    /// Has another one serve a name, in order, unless it does or changes hands already.
    fn change_to(&mut self, name: ServiceId, to: ServiceId, turn: &mut Turn) {
        let Some(state) = self.groups.names.get(&name) else { return };
        let Some(from) = state.serving.filter(|from| *from != to) else { return };
        if state.hand.is_none() {
            let (begun_ns, cause) = (turn.now_ns, Cause::Preferred);
            let until_ns = begun_ns + YIELD_NS;
            let hand = Hand { from, to, begun_ns, until_ns, cause, detected_us: 0, asked: None };
            self.begin_hand(name, hand, turn);
        }
    }
}
