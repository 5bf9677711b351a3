//! The services of a node in their order, and the groups that they are in.

use std::collections::HashMap;

use super::backoff::Restarts;
use crate::node::{Group, Node, Service, Strategy};

#[derive(Debug)]
pub(super) struct Plan {
    /// Those of the node file, then those that it has no more but whose processes still end.
    pub(super) services: Vec<Service>,
    /// How many of them are the node file's.
    pub(super) current: usize,
    pub(super) groups: Vec<Fate>,
    /// The group of each service.
    pub(super) group_of: Vec<usize>,
    /// Whom each service starts after and stops before.
    pub(super) before: Vec<Vec<Edge>>,
    /// All services, each after those in its `before`.
    pub(super) order: Vec<usize>,
    index: HashMap<String, usize>,
}

/// A group, and what it has used of its intensity.
#[derive(Debug)]
pub(super) struct Fate {
    pub(super) terms: Group,
    /// It is a service that is in no group.
    pub(super) alone: bool,
    pub(super) restarts: Restarts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) service: usize,
    /// It must be ready. Otherwise it is an earlier member of the group: if it is on its way up,
    /// it comes first.
    pub(super) needed: bool,
}

impl Plan {
    pub(super) fn new(node: &Node, leaving: Vec<Service>) -> Plan {
        let current = node.services.len();
        let services: Vec<Service> = node.services.iter().cloned().chain(leaving).collect();
        let numbered = services.iter().enumerate();
        let index: HashMap<_, _> = numbered.map(|(at, spec)| (spec.name.clone(), at)).collect();
        let (groups, group_of) = fates(node, &services, &index);
        let needs = |spec: &Service| {
            let needed = spec.depends_on.iter().filter_map(|name| index.get(name));
            needed.map(|&service| Edge { service, needed: true }).collect()
        };
        let mut before: Vec<Vec<Edge>> = services.iter().map(needs).collect();
        for group in &groups {
            put_in_order(&group.terms, &index, &mut before);
        }
        let order = sorted(&before);
        Plan { services, current, groups, group_of, before, order, index }
    }

    /// Gives the place of a service, current or leaving.
    pub(super) fn index_of(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// Takes over what groups of the same name have used of their intensity.
    pub(super) fn inherit(&mut self, old: &Plan) {
        for group in &mut self.groups {
            let is_it =
                |was: &&Fate| was.alone == group.alone && was.terms.name == group.terms.name;
            if let Some(was) = old.groups.iter().find(is_it) {
                group.restarts = was.restarts.clone();
            }
        }
    }

    pub(super) fn fate_of(&self, service: usize) -> &Fate {
        &self.groups[self.group_of[service]]
    }

    /// Says whether a restart of `culprit` is one of `other`, another service or another replica.
    pub(super) fn takes_along(&self, culprit: usize, other: usize) -> bool {
        if self.group_of[culprit] != self.group_of[other] {
            return false;
        }
        let terms = &self.fate_of(culprit).terms;
        let place = |service: usize| {
            terms.members.iter().position(|name| *name == self.services[service].name)
        };
        match terms.strategy {
            Strategy::OneForOne => false,
            Strategy::OneForAll => true,
            Strategy::RestForOne => place(other) > place(culprit),
        }
    }
}

fn fates(
    node: &Node,
    services: &[Service],
    index: &HashMap<String, usize>,
) -> (Vec<Fate>, Vec<usize>) {
    let fate = |terms: Group, alone| Fate { terms, alone, restarts: Restarts::default() };
    let mut groups: Vec<Fate> =
        node.groups.iter().map(|terms| fate(terms.clone(), false)).collect();
    let mut group_of: Vec<Option<usize>> = vec![None; services.len()];
    for (number, group) in groups.iter().enumerate() {
        for &service in group.terms.members.iter().filter_map(|name| index.get(name)) {
            group_of[service] = Some(number);
        }
    }
    let group_of = group_of.into_iter().zip(services).map(|(number, spec)| {
        number.unwrap_or_else(|| {
            groups.push(fate(Group::alone(&spec.name), true));
            groups.len() - 1
        })
    });
    let group_of = group_of.collect();
    (groups, group_of)
}

/// Lets each member follow the one before it, unless dependencies say the opposite.
fn put_in_order(group: &Group, index: &HashMap<String, usize>, before: &mut [Vec<Edge>]) {
    if group.strategy == Strategy::OneForOne {
        return;
    }
    let members: Vec<usize> =
        group.members.iter().filter_map(|name| index.get(name).copied()).collect();
    for pair in members.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        let has_it = before[second].iter().any(|edge| edge.service == first);
        if !has_it && !follows(before, first, second) {
            before[second].push(Edge { service: first, needed: false });
        }
    }
}

/// Says whether `late` comes after `early`, directly or not.
fn follows(before: &[Vec<Edge>], late: usize, early: usize) -> bool {
    let (mut seen, mut stack) = (vec![false; before.len()], vec![late]);
    while let Some(service) = stack.pop() {
        if service == early {
            return true;
        }
        if !std::mem::replace(&mut seen[service], true) {
            stack.extend(before[service].iter().map(|edge| edge.service));
        }
    }
    false
}

/// Kahn's algorithm, in the order of the file where there is a choice. A service of a cycle, which
/// the node file cannot have, comes last.
fn sorted(before: &[Vec<Edge>]) -> Vec<usize> {
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); before.len()];
    let mut missing: Vec<usize> = before.iter().map(Vec::len).collect();
    for (service, edges) in before.iter().enumerate() {
        for edge in edges {
            after[edge.service].push(service);
        }
    }
    let mut order: Vec<usize> = (0..before.len()).filter(|&at| missing[at] == 0).collect();
    let mut next = 0;
    while let Some(&service) = order.get(next) {
        next += 1;
        for &later in &after[service] {
            missing[later] -= 1;
            if missing[later] == 0 {
                order.push(later);
            }
        }
    }
    order.extend((0..before.len()).filter(|&at| missing[at] > 0));
    order
}
