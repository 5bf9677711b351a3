//! The streams that a server has begun and not ended: bounded, each its opener's alone.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{context::Context, fault::Fault};
use crate::{
    ServiceId,
    civil::{Clock, SystemClock},
    error::{Retry, Status},
};

/// Streams of one router.
const ALL: usize = 1024;
/// Streams of one caller.
const EACH: usize = 64;
/// A stream of which nobody asks for more is let go after so long.
const LEASE: Duration = Duration::from_secs(30);

/// When to send what has been gathered of a stream.
pub(super) const BATCH_ITEMS: usize = 64;
/// In bytes: a message of up to so many is copied once on its way.
const BATCH_BYTES: usize = 12 << 10;
/// The first of a batch waits no longer than this for the others.
pub(super) const BATCH_TIME: Duration = Duration::from_millis(1);

/// Says at how many bytes a batch is sent, where answers have a limit: there is room for one
/// message more.
pub(super) fn batch_bytes(longest_reply: u64) -> usize {
    usize::try_from(longest_reply / 2).map_or(BATCH_BYTES, |half| half.min(BATCH_BYTES))
}

/// Sources of streams, of one kind.
#[derive(Debug)]
pub(super) struct Streams<S, C = SystemClock> {
    table: Mutex<Table<S>>,
    clock: C,
}

#[derive(Debug)]
struct Table<S> {
    next_id: u64,
    streams: HashMap<u64, Entry<S>>,
}

#[derive(Debug)]
struct Entry<S> {
    owner: ServiceId,
    /// When the owner stops waiting, however often it asks.
    deadline: Option<Instant>,
    lease: Instant,
    /// Absent while a batch is made of it.
    source: Option<S>,
}

/// The place of a stream whose source is out. If it is not put back, because it has ended or has
/// panicked, the place is free again.
#[derive(Debug)]
pub(super) struct Held<'a, S, C: Clock = SystemClock> {
    streams: &'a Streams<S, C>,
    id: u64,
    owner: ServiceId,
}

impl<S, C: Clock> Held<'_, S, C> {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn put(self, source: S) {
        self.streams.put(self.id, source);
    }
}

impl<S, C: Clock> Drop for Held<'_, S, C> {
    fn drop(&mut self) {
        self.streams.close_unless_put(self.id, self.owner);
    }
}

impl<S> Entry<S> {
    fn is_over(&self, now: Instant) -> bool {
        self.source.is_some()
            && (now >= self.lease || self.deadline.is_some_and(|deadline| now >= deadline))
    }
}

impl<S> Streams<S> {
    pub(super) fn new() -> Streams<S> {
        Streams::with_clock(SystemClock)
    }
}

impl<S, C: Clock> Streams<S, C> {
    pub(super) fn with_clock(clock: C) -> Streams<S, C> {
        let table = Mutex::new(Table { next_id: 1, streams: HashMap::new() });
        Streams { table, clock }
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Makes a place for a stream of this call.
    pub(super) fn open(&self, context: &Context) -> Result<Held<'_, S, C>, Fault> {
        let now = self.now();
        let deadline = context.left().and_then(|left| now.checked_add(left));
        let id = self.reserve(context.source(), deadline, now)?;
        Ok(Held { streams: self, id, owner: context.source() })
    }

    fn reserve(
        &self,
        owner: ServiceId,
        deadline: Option<Instant>,
        now: Instant,
    ) -> Result<u64, Fault> {
        let mut table = self.lock();
        table.streams.retain(|_, entry| !entry.is_over(now));
        let count = table.streams.values().filter(|entry| entry.owner == owner).count();
        if count >= EACH || table.streams.len() >= ALL {
            let fault = Fault::new(Status::QUOTA, "too many streams are open: end one, or wait");
            return Err(fault.retry(Retry::Always));
        }
        let id = table.next_id;
        table.next_id += 1;
        table.streams.insert(id, Entry { owner, deadline, lease: now + LEASE, source: None });
        Ok(id)
    }

    /// Puts a source back, or there for the first time. One that was closed meanwhile is dropped.
    fn put(&self, id: u64, source: S) {
        let lease = self.now() + LEASE;
        let mut table = self.lock();
        if let Some(entry) = table.streams.get_mut(&id) {
            (entry.source, entry.lease) = (Some(source), lease);
            return;
        }
        // A source may be anything; it is not dropped under the lock.
        drop(table);
    }

    /// Takes a source out, to make a batch of it.
    pub(super) fn take(&self, id: u64, owner: ServiceId) -> Result<(Held<'_, S, C>, S), Fault> {
        let source = self.take_source(id, owner)?;
        Ok((Held { streams: self, id, owner }, source))
    }

    fn take_source(&self, id: u64, owner: ServiceId) -> Result<S, Fault> {
        let now = self.now();
        let mut table = self.lock();
        let none = || Fault::new(Status::NOT_FOUND, "no such stream: it has ended, or was let go");
        let entry = table.streams.get_mut(&id).filter(|entry| entry.owner == owner);
        let entry = entry.ok_or_else(none)?;
        if entry.is_over(now) {
            let over = table.streams.remove(&id);
            drop(table);
            drop(over);
            return Err(none());
        }
        let asked = || Fault::new(Status::INVALID, "this stream is being asked already");
        entry.source.take().ok_or_else(asked)
    }

    /// Forgets a stream, if it is the caller's.
    pub(super) fn close(&self, id: u64, owner: ServiceId) {
        self.forget(id, |entry| entry.owner == owner);
    }

    fn close_unless_put(&self, id: u64, owner: ServiceId) {
        self.forget(id, |entry| entry.owner == owner && entry.source.is_none());
    }

    fn forget(&self, id: u64, which: impl Fn(&Entry<S>) -> bool) {
        let mut table = self.lock();
        if table.streams.get(&id).is_some_and(which) {
            let forgotten = table.streams.remove(&id);
            drop(table);
            drop(forgotten);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().streams.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table<S>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::civil::ManualClock;

    const ONE: ServiceId = ServiceId::new(1);
    const OTHER: ServiceId = ServiceId::new(2);

    fn streams() -> (Streams<&'static str, ManualClock>, ManualClock) {
        let clock = ManualClock::new();
        (Streams::with_clock(clock.clone()), clock)
    }

    #[test]
    fn a_stream_is_its_openers_alone() {
        let (streams, clock) = streams();
        let id = streams.reserve(ONE, None, clock.now()).expect("room");
        streams.put(id, "source");
        assert_eq!(streams.take_source(id, OTHER).expect_err("not its").status, Status::NOT_FOUND);
        streams.close(id, OTHER);
        assert_eq!(streams.take_source(id, ONE), Ok("source"));
        assert_eq!(streams.take_source(id, ONE).expect_err("taken").status, Status::INVALID);
        streams.close(id, ONE);
        streams.put(id, "closed meanwhile");
        assert_eq!(streams.len(), 0);
    }

    #[test]
    fn nobody_holds_too_many_and_the_forgotten_are_let_go() {
        let (streams, clock) = streams();
        let reserve = |owner| streams.reserve(owner, None, clock.now());
        let ids: Vec<u64> = (0..EACH).map(|_| reserve(ONE).expect("room")).collect();
        let full = reserve(ONE).expect_err("enough");
        assert_eq!((full.status, full.retry), (Status::QUOTA, Retry::Always));
        streams.put(reserve(OTHER).expect("others have room"), "other");
        streams.put(ids[0], "idle");
        clock.advance(LEASE);
        assert_eq!(streams.take_source(ids[0], ONE).expect_err("let go").status, Status::NOT_FOUND);
        reserve(ONE).expect("room again");
        assert_eq!(streams.len(), EACH, "the other's went, too; those in use stay");
        for owner in 3.. {
            if reserve(ServiceId::new(owner)).is_err() {
                break;
            }
        }
        assert_eq!(streams.len(), ALL);
    }

    #[test]
    fn a_place_whose_source_is_lost_is_free_again() {
        let (streams, clock) = streams();
        let id = streams.reserve(ONE, None, clock.now()).expect("room");
        streams.put(id, "source");
        let (held, source) = streams.take(id, ONE).expect("there");
        held.put(source);
        assert_eq!(streams.len(), 1);
        drop(streams.take(id, ONE).expect("there"));
        assert_eq!(streams.len(), 0);
    }

    #[test]
    fn a_deadline_ends_a_stream_that_is_read() {
        let (streams, clock) = streams();
        let deadline = clock.now() + LEASE + LEASE;
        let id = streams.reserve(ONE, Some(deadline), clock.now()).expect("room");
        streams.put(id, "source");
        for _ in 0..3 {
            clock.advance(LEASE / 2);
            let source = streams.take_source(id, ONE).expect("in time");
            streams.put(id, source);
        }
        clock.advance(LEASE / 2);
        assert!(streams.take_source(id, ONE).is_err());
        assert_eq!(streams.len(), 0);
    }
}
