//! Waking subscribers: one event word for each ring, one wake-up for each batch, and none while
//! nobody sleeps.
//!
//! Subscribers cannot write what a publisher reads, and are many. So the runtime tells a publisher
//! once that some subscriber of its topic may sleep: `sleepers` is private to the publisher.
//!
//! ```text
//!  subscriber            publisher's warden        publisher
//!  tells the runtime     sleepers = 1       ─┐ ┌─  head
//!  e = event             heavy fence         │ │   light fence
//!  looks at the head     event += 1, wake   ─┘ └▶  sleepers? event += 1, wake
//!  sleeps while event == e
//! ```
//! The subscriber need not hear that it was heard. An event that was published before `sleepers`
//! was seen was published before the warden moved the event word on, and that wakes whoever has
//! not seen it.

#[cfg(not(loom))]
use crate::wait::futex;
use crate::{
    bus::memory::Ring,
    failpoint::shared,
    sync::{AtomicU32, Ordering},
    wait::Fences,
};

/// After a batch: whether somebody may sleep.
#[inline]
pub(super) fn is_due(fences: Fences, sleepers: &AtomicU32) -> bool {
    fences.light();
    sleepers.load(Ordering::Relaxed) != 0
}

/// Moves the event word on, so that nobody falls asleep on its old value, and wakes who does.
pub(super) fn signal(ring: &Ring) {
    let event = &ring.header().event;
    shared!(BusEvent, event.fetch_add(1, Ordering::Release));
    #[cfg(not(loom))]
    futex::wake(event, true, i32::MAX);
}

/// Notes that somebody may sleep from now on, or does already.
pub(super) fn announce(ring: &Ring, sleepers: &AtomicU32) {
    sleepers.store(1, Ordering::Release);
    Fences::within().heavy();
    signal(ring);
}
