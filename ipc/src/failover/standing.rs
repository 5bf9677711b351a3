//! What an instance that stands by knows of those before it.

use std::sync::Arc;

use super::rule::{self, Evidence, Place};
use crate::{
    ServiceId,
    channel::Fate,
    control::{Group, MOST_PLACES},
    link::Link,
};

/// A channel to one before, as a standby looks at it: a link, or what a simulation makes up.
pub(crate) trait Watched {
    /// The low half of the epoch at which it serves, by its lane; 0 while it stands by.
    fn mark(&self) -> u32;
    /// How the channel stands, and its peer's life word.
    fn fate(&self) -> Fate;
}

impl Watched for Arc<Link> {
    fn mark(&self) -> u32 {
        self.channel.peer_mark()
    }

    fn fate(&self) -> Fate {
        self.channel.check_life()
    }
}

/// An instance that stands by, and those before it.
#[derive(Debug)]
pub(crate) struct Standing<L = Arc<Link>> {
    place: Place,
    ordered: bool,
    before: Vec<Before<L>>,
}

#[derive(Debug)]
struct Before<L> {
    instance: ServiceId,
    link: Option<L>,
    evidence: Evidence,
}

impl<L: Watched + Clone> Standing<L> {
    /// As a group stands in which the instance has this rank; `known` is what was known before.
    pub(crate) fn new(group: &Group, rank: usize, known: Option<Standing<L>>) -> Standing<L> {
        let mut old = known.map(|it| it.before).unwrap_or_default();
        let told = group.members[..rank].iter().map(|&before| {
            let place = old.iter().position(|it| it.instance == before);
            place.map_or_else(|| Before::unknown(before), |place| old.swap_remove(place))
        });
        let mut before: Vec<Before<L>> = told.collect();
        // A runtime that has just begun may not have heard of all: who is not heard of and lives
        // counts as before.
        old.retain(|it| !group.members.contains(&it.instance) && it.lives());
        before.extend(old);
        let epoch = group.epoch.saturating_add(rank as u64);
        let place = Place { epoch, limit: group.limit, seen: 0 };
        let ordered = group.ordered && before.len() <= MOST_PLACES;
        Standing { place, ordered, before }
    }

    /// Reads what the kernel says of those before. Gives the epoch at which to serve, if it is
    /// time.
    pub(crate) fn decide(&mut self) -> Option<u64> {
        for one in &mut self.before {
            one.look(&mut self.place);
        }
        let evidence: Vec<_> = self.before.iter().map(|one| one.evidence).collect();
        rule::promotes(&evidence, self.place).filter(|_| self.ordered)
    }

    /// It was told to let go: another order holds, of which it will hear.
    pub(crate) fn void(&mut self) {
        self.ordered = false;
    }

    /// Whether there is anybody before it.
    pub(crate) fn is_behind(&self) -> bool {
        !self.before.is_empty()
    }

    /// The channels to those who live.
    pub(crate) fn watched(&self) -> impl Iterator<Item = L> {
        let living = self.before.iter().filter(|one| one.evidence == Evidence::Unknown);
        living.filter_map(|one| one.link.clone())
    }

    /// Those to whom channels are to be opened.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = ServiceId> {
        let unseen = self.before.iter().filter(|_| self.ordered).filter(|one| one.wants());
        unseen.map(|one| one.instance)
    }

    /// Watches one of them from now on.
    pub(crate) fn watch(&mut self, instance: ServiceId, link: L) {
        if let Some(one) = self.before.iter_mut().find(|one| one.instance == instance) {
            one.link = Some(link);
        }
    }
}

impl<L: Watched> Before<L> {
    fn unknown(instance: ServiceId) -> Before<L> {
        Before { instance, link: None, evidence: Evidence::Unknown }
    }

    fn wants(&self) -> bool {
        self.evidence == Evidence::Unknown && self.link.is_none()
    }

    fn lives(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.fate() == Fate::Open)
    }

    /// Reads what the kernel says of it, and the epoch at which it served.
    fn look(&mut self, place: &mut Place) {
        let Some(link) = &self.link else { return };
        let mark = link.mark();
        if mark != 0 {
            place.seen = place.seen.max(rule::whole(mark, place.epoch));
        }
        match link.fate() {
            Fate::Open => {}
            Fate::Died => self.evidence = Evidence::Dead,
            // It closed this channel, which says nothing of the others.
            Fate::Closed | Fate::Poisoned(_) => self.link = None,
        }
    }
}
