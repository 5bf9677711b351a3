//! Which parts of an arena are free. Pure.

use std::collections::BTreeMap;

/// Spans start at multiples of a cache line.
pub(crate) const ALIGN: u64 = 64;

/// The free spans of an arena, by their start; no two of them touch.
#[derive(Debug)]
pub(crate) struct Space {
    size: u64,
    free: BTreeMap<u64, u64>,
}

impl Space {
    /// All free.
    pub(crate) fn new(size: u64) -> Space {
        Space { size, free: BTreeMap::from([(0, size)]) }
    }

    /// Takes the first span that is long enough. `length` is rounded up to whole cache lines.
    pub(crate) fn take(&mut self, length: u64) -> Option<u64> {
        let length = rounded(length)?;
        let (&start, &free) = self.free.iter().find(|(_, free)| **free >= length)?;
        self.free.remove(&start);
        if free > length {
            self.free.insert(start + length, free - length);
        }
        Some(start)
    }

    /// Gives a span back that was taken with this length.
    pub(crate) fn give_back(&mut self, start: u64, length: u64) {
        let Some(mut length) = rounded(length) else { return };
        let mut start = start;
        if let Some((&before, &free)) = self.free.range(..start).next_back()
            && before + free == start
        {
            self.free.remove(&before);
            (start, length) = (before, free + length);
        }
        if let Some(after) = self.free.remove(&(start + length)) {
            length += after;
        }
        self.free.insert(start, length);
    }

    /// Whether nothing is taken.
    pub(crate) fn is_unused(&self) -> bool {
        self.free.get(&0) == Some(&self.size)
    }
}

/// A length in whole cache lines, at least one.
fn rounded(length: u64) -> Option<u64> {
    length.max(1).checked_next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn spans_never_overlap_and_all_comes_back(
            steps in prop::collection::vec((0_u64..3000, any::<prop::sample::Index>()), 1..200),
        ) {
            let mut space = Space::new(16 * 1024);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (length, which) in steps {
                if length % 3 == 0 && !taken.is_empty() {
                    let (start, length) = taken.swap_remove(which.index(taken.len()));
                    space.give_back(start, length);
                } else if let Some(start) = space.take(length) {
                    prop_assert_eq!(start % ALIGN, 0);
                    prop_assert!(start + length <= 16 * 1024);
                    for (other, long) in &taken {
                        prop_assert!(start + length.max(1) <= *other || other + long <= start);
                    }
                    taken.push((start, length.max(1)));
                }
            }
            for (start, length) in taken {
                space.give_back(start, length);
            }
            prop_assert!(space.is_unused());
            prop_assert_eq!(space.take(16 * 1024), Some(0));
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let mut space = Space::new(4096);
        assert_eq!(space.take(4097), None);
        assert_eq!(space.take(u64::MAX), None);
        assert_eq!(space.take(0), Some(0));
    }
}
