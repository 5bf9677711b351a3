//! What an instance that stands by knows of those before it.

use std::sync::Arc;

use super::rule::{self, Epochs, Evidence};
use crate::{ServiceId, channel::Fate, control::Group, link::Link};

/// Those before an instance that it watches; one that stands further behind waits for the runtime.
const MOST_BEFORE: usize = 16;

/// An instance that stands by, and those before it.
#[derive(Debug)]
pub(crate) struct Standing {
    epochs: Epochs,
    ordered: bool,
    before: Vec<Before>,
}

#[derive(Debug)]
struct Before {
    instance: ServiceId,
    link: Option<Arc<Link>>,
    evidence: Evidence,
}

impl Standing {
    /// As a group stands in which the instance has this rank; `known` is what was known before.
    pub(crate) fn new(group: &Group, rank: usize, known: Option<Standing>) -> Standing {
        let mut old = known.map(|it| it.before).unwrap_or_default();
        let told = group.members[..rank].iter().map(|&before| {
            let place = old.iter().position(|it| it.instance == before);
            place.map_or_else(|| Before::unknown(before), |place| old.swap_remove(place))
        });
        let mut before: Vec<Before> = told.collect();
        // A runtime that has just begun may not have heard of all: who is not heard of and lives
        // counts as before.
        old.retain(|it| !group.members.contains(&it.instance) && it.lives());
        before.extend(old);
        let epochs = Epochs { told: group.epoch, limit: group.limit, seen: 0 };
        let ordered = group.ordered && before.len() <= MOST_BEFORE;
        Standing { epochs, ordered, before }
    }

    /// Reads what the kernel says of those before. Gives the epoch at which to serve, if it is
    /// time.
    pub(crate) fn decide(&mut self) -> Option<u64> {
        for one in &mut self.before {
            one.look(&mut self.epochs);
        }
        let evidence: Vec<_> = self.before.iter().map(|one| one.evidence).collect();
        rule::promotes(&evidence, self.epochs).filter(|_| self.ordered)
    }

    /// Whether there is anybody before it.
    pub(crate) fn is_behind(&self) -> bool {
        !self.before.is_empty()
    }

    /// The channels to those who live.
    pub(crate) fn watched(&self) -> impl Iterator<Item = Arc<Link>> {
        let living = self.before.iter().filter(|one| one.evidence == Evidence::Unknown);
        living.filter_map(|one| one.link.clone())
    }

    /// Those to whom channels are to be opened.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = ServiceId> {
        let unseen = self.before.iter().filter(|_| self.ordered).filter(|one| one.wants());
        unseen.map(|one| one.instance)
    }

    /// Watches one of them from now on.
    pub(crate) fn watch(&mut self, instance: ServiceId, link: Arc<Link>) {
        if let Some(one) = self.before.iter_mut().find(|one| one.instance == instance) {
            one.link = Some(link);
        }
    }
}

impl Before {
    fn unknown(instance: ServiceId) -> Before {
        Before { instance, link: None, evidence: Evidence::Unknown }
    }

    fn wants(&self) -> bool {
        self.evidence == Evidence::Unknown && self.link.is_none()
    }

    fn lives(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.channel.check_life() == Fate::Open)
    }

    /// Reads what the kernel says of it, and the epoch at which it served.
    fn look(&mut self, epochs: &mut Epochs) {
        let Some(link) = &self.link else { return };
        let mark = link.channel.peer_mark();
        if mark != 0 {
            epochs.seen = epochs.seen.max(rule::whole(mark, epochs.told));
        }
        match link.channel.check_life() {
            Fate::Open => {}
            Fate::Died => self.evidence = Evidence::Dead,
            // It closed this channel, which says nothing of the others.
            Fate::Closed | Fate::Poisoned(_) => self.link = None,
        }
    }
}
