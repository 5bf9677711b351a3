//! What a router has under way: bounded, since each request that a task carries out keeps its
//! message, and a peer that sends one way waits for nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::fault::Fault;
use crate::{
    ServiceId,
    error::{Retry, Status},
};

/// Requests of one router, unless it says otherwise.
pub(super) const TASKS: usize = 4096;
/// Bytes of their messages.
pub(super) const BYTES: usize = 64 << 20;

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    tasks: usize,
    bytes: usize,
}

impl Load {
    /// Whether a message of this length may come to it. One comes to nothing, however long it is.
    fn has_room(self, length: usize, most: Load) -> bool {
        let fits = self.bytes.checked_add(length).is_some_and(|bytes| bytes <= most.bytes);
        self.tasks == 0 || self.tasks < most.tasks && fits
    }

    fn add(&mut self, length: usize) {
        self.tasks += 1;
        self.bytes += length;
    }

    fn take(&mut self, length: usize) {
        self.tasks -= 1;
        self.bytes -= length;
    }
}

/// What is under way, of all callers and of each.
#[derive(Debug)]
pub(super) struct UnderWay {
    most: Load,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    all: Load,
    /// Of those that have something under way.
    each: HashMap<ServiceId, Load>,
    refused: u64,
}

/// The place of a request that is under way; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<UnderWay>,
    caller: ServiceId,
    length: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut now = self.of.now();
        now.all.take(self.length);
        if let Some(its) = now.each.get_mut(&self.caller) {
            its.take(self.length);
            if its.tasks == 0 {
                now.each.remove(&self.caller);
            }
        }
    }
}

impl UnderWay {
    pub(super) fn new(tasks: usize, bytes: usize) -> Arc<UnderWay> {
        Arc::new(UnderWay { most: Load { tasks, bytes }, now: Mutex::default() })
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a place for a request of this caller. A caller gets half of all that there is, so that
    /// one alone keeps nobody else out.
    ///
    /// # Errors
    /// `FULL`, to be tried again: there is no room, for this caller or at all.
    pub(super) fn enter(
        self: &Arc<Self>,
        caller: ServiceId,
        length: usize,
    ) -> Result<Place, Fault> {
        let half = Load { tasks: self.most.tasks / 2, bytes: self.most.bytes / 2 };
        let mut now = self.now();
        let its = now.each.get(&caller).copied().unwrap_or_default();
        if !now.all.has_room(length, self.most) || !its.has_room(length, half) {
            now.refused += 1;
            let fault = Fault::new(Status::FULL, "too many requests are under way here: wait");
            return Err(fault.retry(Retry::Always));
        }
        now.all.add(length);
        now.each.entry(caller).or_default().add(length);
        drop(now);
        Ok(Place { of: Arc::clone(self), caller, length })
    }

    /// Counts what was refused.
    pub(super) fn refused(&self) -> u64 {
        self.now().refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ServiceId = ServiceId::new(1);
    const OTHER: ServiceId = ServiceId::new(2);
    const THIRD: ServiceId = ServiceId::new(3);

    #[test]
    fn all_have_a_bound_and_each_half_of_it() {
        let under_way = UnderWay::new(6, 1000);
        let enter = |caller, length| under_way.enter(caller, length);
        let mut places = Vec::new();
        for _ in 0..3 {
            places.push(enter(ONE, 10).expect("there is room"));
        }
        let fault = enter(ONE, 10).expect_err("it has its half");
        assert_eq!((fault.status, fault.retry), (Status::FULL, Retry::Always));
        for _ in 0..3 {
            places.push(enter(OTHER, 10).expect("there is room for others"));
        }
        assert!(enter(THIRD, 10).is_err(), "all are taken");
        assert_eq!(under_way.refused(), 2);
        places.remove(0);
        let third = enter(THIRD, 10).expect("one is free again");
        drop((places, third));
        let now = under_way.now();
        assert_eq!((now.all.tasks, now.all.bytes, now.each.len()), (0, 0, 0));
    }

    #[test]
    fn long_messages_count_and_one_alone_is_never_too_long() {
        let under_way = UnderWay::new(100, 1000);
        let enter = |caller, length| under_way.enter(caller, length);
        let long = enter(ONE, 5000).expect("nothing else is there");
        assert!(enter(OTHER, 1).is_err());
        drop(long);
        let first = enter(ONE, 400).expect("there is room");
        assert!(enter(ONE, 101).is_err(), "over its half");
        let second = enter(ONE, 100).expect("there is room");
        assert!(enter(OTHER, 501).is_err(), "over all");
        let third = enter(OTHER, 500).expect("there is room");
        assert!(enter(ONE, usize::MAX).is_err());
        drop((first, second, third));
        assert!(enter(THIRD, usize::MAX).is_ok());
        // Even a router without room goes on, one by one.
        let none = UnderWay::new(0, 0);
        let place = none.enter(ONE, 9).expect("one at a time");
        assert!(none.enter(OTHER, 0).is_err());
        drop(place);
    }
}
