//! Where an instance stands: it serves its name at an epoch, or stands by for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::{
    server::Incoming,
    sync::{AtomicU64, Ordering},
};

/// What the channels of an instance share. They tell their clients by their lanes.
#[derive(Debug, Default)]
pub(crate) struct Post {
    /// 0 while it stands by.
    epoch: AtomicU64,
    channels: Mutex<Vec<Weak<Incoming>>>,
}

impl Post {
    /// The epoch at which it serves, or 0.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Takes a channel in, before its client hears of it.
    pub(crate) fn join(&self, incoming: &Arc<Incoming>) {
        let mut channels = self.lock();
        channels.retain(|it| it.strong_count() > 0);
        channels.push(Arc::downgrade(incoming));
        incoming.stand(self.epoch());
    }

    /// Serves from now on, unless it does at this epoch or a later one. Returns whether that is
    /// news. All that waits in the channels is served.
    pub(crate) fn take(&self, epoch: u64) -> bool {
        let channels = self.lock();
        if self.epoch() >= epoch {
            return false;
        }
        self.epoch.store(epoch, Ordering::Release);
        channels.iter().filter_map(Weak::upgrade).for_each(|it| it.stand(epoch));
        true
    }

    /// Stands by from now on: takes nothing more, and returns when what was taken is handled.
    /// Returns whether it served.
    pub(crate) fn leave(&self) -> bool {
        let channels: Vec<_> = {
            let channels = self.lock();
            if self.epoch.swap(0, Ordering::AcqRel) == 0 {
                return false;
            }
            channels.iter().filter_map(Weak::upgrade).collect()
        };
        channels.iter().for_each(|it| it.withdraw());
        true
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Incoming>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
