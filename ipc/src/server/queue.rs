//! The order in which requests that are there together are served. Pure.

use std::collections::VecDeque;

/// Levels of priority.
const LEVELS: usize = 5;
/// Requests that wait in a queue before its channel is read no further.
const CAPACITY: usize = 64;
/// After so many requests were served before one of a lower level, that one is next.
const PATIENCE: u32 = 16;

/// Requests of one channel by level, first in first out within each; a lower level is served
/// though a higher one is never empty, every [`PATIENCE`] requests.
#[derive(Debug)]
pub(crate) struct RunQueue<T> {
    levels: [VecDeque<T>; LEVELS],
    length: usize,
    /// Requests served since the lowest waiting level last had its turn.
    passed_over: u32,
}

impl<T> RunQueue<T> {
    pub(crate) fn new() -> RunQueue<T> {
        RunQueue { levels: Default::default(), length: 0, passed_over: 0 }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_full(&self) -> bool {
        self.length >= CAPACITY
    }

    /// Adds a request. Levels above 4 count as 4.
    pub(crate) fn push(&mut self, level: u32, item: T) {
        self.levels[(level as usize).min(LEVELS - 1)].push_back(item);
        self.length += 1;
    }

    /// Whether a request that just came may be served before everything that waits here. Counts
    /// it as served if so.
    #[inline]
    pub(crate) fn yields_to(&mut self, level: u32) -> bool {
        if self.length == 0 {
            return true;
        }
        let first = self.levels.iter().position(|queue| !queue.is_empty()).unwrap_or(LEVELS);
        if (level as usize) >= first || self.passed_over >= PATIENCE {
            return false;
        }
        self.passed_over += 1;
        true
    }

    /// Takes the next request.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let first = self.levels.iter().position(|queue| !queue.is_empty())?;
        let last = self.levels.iter().rposition(|queue| !queue.is_empty())?;
        let level = if self.passed_over >= PATIENCE { last } else { first };
        if level == last {
            self.passed_over = 0;
        } else {
            self.passed_over += 1;
        }
        self.length -= 1;
        self.levels[level].pop_front()
    }

    /// Removes the requests for which this holds.
    pub(crate) fn remove(&mut self, mut is_it: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for queue in &mut self.levels {
            for _ in 0..queue.len() {
                if let Some(item) = queue.pop_front() {
                    if is_it(&item) {
                        removed.push(item);
                    } else {
                        queue.push_back(item);
                    }
                }
            }
        }
        self.length -= removed.len();
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_is_lost_levels_come_in_order_and_nobody_starves(
            levels in prop::collection::vec(0_u32..5, 1..60),
        ) {
            let mut queue = RunQueue::new();
            for (index, level) in levels.iter().enumerate() {
                queue.push(*level, (*level, index));
            }
            let mut served = Vec::new();
            while let Some(item) = queue.pop() {
                served.push(item);
            }
            prop_assert_eq!(served.len(), levels.len());
            for level in 0..5 {
                let of_level: Vec<_> = served.iter().filter(|item| item.0 == level).collect();
                prop_assert!(of_level.windows(2).all(|pair| pair[0].1 < pair[1].1));
            }
            // Up to the first turn of patience the order is strict.
            let strict = served.len().min(PATIENCE as usize);
            prop_assert!(served[..strict].windows(2).all(|pair| pair[0].0 <= pair[1].0));
        }
    }

    #[test]
    fn a_low_level_has_its_turn_under_a_flood_of_a_high_one() {
        let mut queue = RunQueue::new();
        queue.push(4, "background");
        let mut flood = 0;
        loop {
            if queue.yields_to(2) {
                flood += 1;
            } else {
                assert_eq!(queue.pop(), Some("background"));
                break;
            }
        }
        assert_eq!(flood, PATIENCE);
    }
}
