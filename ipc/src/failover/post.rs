//! Where an instance stands: it serves its name at an epoch, or stands by for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::standing::Standing;
use crate::{
    ServiceId, clock,
    control::Group,
    failpoint::shared,
    link::Link,
    node::Hearing,
    server::Incoming,
    sync::{AtomicU64, Ordering},
};

/// How long is waited for handlers to end before a name changes hands: what they hold is doubtful
/// to its callers then.
const PATIENCE_NS: u64 = 1_000_000_000;

/// What the channels of an instance share. They tell their clients by their lanes.
#[derive(Debug, Default)]
pub(crate) struct Post {
    /// 0 while it stands by.
    epoch: AtomicU64,
    channels: Mutex<Vec<Weak<Incoming>>>,
    /// What it knows of those before it, while it stands by.
    standing: Mutex<Option<Standing>>,
    /// The last epoch of its own taking, until the runtime is told.
    untold: AtomicU64,
    /// What it has yet to hear of the runtime.
    hearing: Arc<Hearing>,
}

impl Post {
    pub(crate) fn new(hearing: &Arc<Hearing>) -> Post {
        Post { hearing: Arc::clone(hearing), ..Post::default() }
    }

    /// The epoch at which it serves, or 0.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Takes a channel in, before its client hears of it.
    pub(crate) fn join(self: &Arc<Self>, incoming: &Arc<Incoming>) {
        let mut channels = self.lock();
        channels.retain(|it| it.strong_count() > 0);
        channels.push(Arc::downgrade(incoming));
        incoming.belong(self);
        incoming.stand(self.epoch());
    }

    /// Serves from now on, unless it does at this epoch or a later one. Returns whether that is
    /// news. All that waits in the channels is served.
    pub(crate) fn take(&self, epoch: u64) -> bool {
        let channels = self.lock();
        if self.epoch() >= epoch {
            return false;
        }
        shared!(Promoted, self.epoch.store(epoch, Ordering::Release));
        channels.iter().filter_map(Weak::upgrade).for_each(|it| it.stand(epoch));
        true
    }

    /// It was told to let go: it does not serve by itself again before it hears of an order.
    pub(crate) fn void(&self) {
        self.standing().iter_mut().for_each(Standing::void);
    }

    /// Stands by from now on, if it serves at that epoch: takes nothing more, and returns when what
    /// was taken is handled. Returns whether it did; it may serve at a later one by now.
    pub(crate) fn leave(&self, epoch: u64) -> bool {
        let channels: Vec<_> = {
            let channels = self.lock();
            if epoch == 0 || self.epoch() != epoch {
                return false;
            }
            self.epoch.store(0, Ordering::Release);
            let all: Vec<_> = channels.iter().filter_map(Weak::upgrade).collect();
            for it in &all {
                it.hold();
            }
            all
        };
        // One patience for all channels: who waits for this one to let go has not much more.
        let until = clock::now_ns() + PATIENCE_NS;
        let ended: Vec<bool> = channels.iter().map(|it| it.finish(until)).collect();
        let _others = self.lock();
        if self.epoch() != 0 {
            // It was promoted meanwhile, and its channels stand as they should.
            return false;
        }
        for (it, _) in channels.iter().zip(ended).filter(|(_, has_ended)| *has_ended) {
            it.rest();
        }
        true
    }

    /// Hears of the group in which it has this rank.
    pub(crate) fn stand_by(&self, group: &Group, rank: usize) {
        let mut standing = self.standing();
        *standing = Some(Standing::new(group, rank, standing.take()));
    }

    /// Serves from now on if all before it are dead. Returns whether it serves. Another thread may
    /// be looking just now; then that one sees it.
    pub(crate) fn is_due(&self) -> bool {
        if self.epoch() != 0 {
            return true;
        }
        let Ok(mut standing) = self.standing.try_lock() else { return false };
        let epoch = standing.as_mut().and_then(|it| self.decide(it));
        epoch.is_some_and(|epoch| self.take_by_itself(epoch))
    }

    /// The same, and gives the channels to those who live.
    pub(crate) fn look(&self) -> Vec<Arc<Link>> {
        let mut standing = self.standing();
        let Some(it) = standing.as_mut().filter(|_| self.epoch() == 0) else { return Vec::new() };
        match self.decide(it) {
            Some(epoch) => {
                self.take_by_itself(epoch);
                Vec::new()
            }
            None => it.watched().collect(),
        }
    }

    /// The epoch at which to serve, if it is time. What the runtime said before the last of those
    /// before it died is heard first: it may be of another order.
    fn decide(&self, standing: &mut Standing) -> Option<u64> {
        standing.decide().filter(|_| !self.hearing.has_news())
    }

    fn take_by_itself(&self, epoch: u64) -> bool {
        self.untold.store(epoch, Ordering::Release);
        self.take(epoch)
    }

    /// The epoch of which the runtime is to be told, once.
    pub(crate) fn untold(&self) -> Option<u64> {
        // What it has let go of meanwhile is no news; what it is about to take is for another.
        let epoch = self.epoch();
        let told = self.untold.compare_exchange(epoch, 0, Ordering::AcqRel, Ordering::Relaxed);
        (epoch != 0 && told.is_ok()).then_some(epoch)
    }

    /// Whether it stands by, for others before it.
    pub(crate) fn stands_by(&self) -> bool {
        self.epoch() == 0 && self.standing().as_ref().is_some_and(Standing::is_behind)
    }

    /// Those to whom channels are to be opened, to watch them.
    pub(crate) fn wanted(&self) -> Vec<ServiceId> {
        if self.epoch() != 0 {
            return Vec::new();
        }
        self.standing().iter().flat_map(Standing::wanted).collect()
    }

    /// Watches one of them from now on.
    pub(crate) fn watch(&self, instance: ServiceId, link: Arc<Link>) {
        if let Some(standing) = &mut *self.standing() {
            standing.watch(instance, link);
        }
    }

    fn standing(&self) -> MutexGuard<'_, Option<Standing>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Incoming>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
