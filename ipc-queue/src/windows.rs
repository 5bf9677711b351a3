//! What each producer has sent already: the dedup window.
//!
//! A producer numbers its messages for a queue from 1. Of each producer the last
//! [`SPAN`](Windows::SPAN) numbers are known one by one, so that a number may be refused once and
//! accepted later, and no accepted one is accepted twice. What is older is neither: it is refused.

use std::collections::HashMap;

use crate::identity::owner;

const WORDS: usize = 16;

/// Whether a number was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Never.
    New,
    /// Its message is in the queue, or was.
    Duplicate,
    /// Too old to know.
    Stale,
}

/// The windows of the producers of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    most: usize,
    /// Counts marks: who has marked longest ago is forgotten first.
    marks: u64,
    of: HashMap<u64, Window>,
}

/// One producer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Highest number accepted.
    pub top: u64,
    /// Bit i of word w: whether `top - (64 * w + i)` was accepted.
    pub bits: [u64; WORDS],
    mark: u64,
}

impl Window {
    const NONE: Window = Window { top: 0, bits: [0; WORDS], mark: 0 };

    /// Makes one of what was written down.
    pub fn new(top: u64, bits: [u64; WORDS]) -> Window {
        Window { top, bits, mark: 0 }
    }

    fn has(&self, back: u64) -> bool {
        self.bits[(back / 64) as usize] >> (back % 64) & 1 == 1
    }

    fn rise(&mut self, by: u64) {
        if by >= Windows::SPAN {
            self.bits = [0; WORDS];
            return;
        }
        let (words, bits) = ((by / 64) as usize, (by % 64) as u32);
        for at in (0..WORDS).rev() {
            let low = at.checked_sub(words).map_or(0, |from| self.bits[from]);
            let lower = at.checked_sub(words + 1).map_or(0, |from| self.bits[from]);
            self.bits[at] = low << bits | lower.checked_shr(64 - bits).unwrap_or(0);
        }
    }
}

impl Windows {
    /// How many numbers of a producer are known one by one.
    pub const SPAN: u64 = WORDS as u64 * 64;

    /// Starts with nobody; knows so many producers at most.
    pub fn new(most: usize) -> Windows {
        Windows { most: most.max(1), marks: 0, of: HashMap::new() }
    }

    /// Says whether a number was seen.
    pub fn look(&self, producer: u64, sequence: u64) -> Seen {
        let Some(window) = self.of.get(&producer) else { return Seen::New };
        match window.top.checked_sub(sequence) {
            Some(back) if back >= Windows::SPAN => Seen::Stale,
            Some(back) if window.has(back) => Seen::Duplicate,
            None | Some(_) => Seen::New,
        }
    }

    /// Notes that a number was accepted. When there are too many producers, one of the user who
    /// has most of them is forgotten: the one that sent nothing for longest.
    pub fn mark(&mut self, producer: u64, sequence: u64) {
        if !self.of.contains_key(&producer)
            && self.of.len() >= self.most
            && let Some(one) = self.to_forget(owner(producer))
        {
            self.of.remove(&one);
        }
        self.marks += 1;
        let window = self.of.entry(producer).or_insert(Window::NONE);
        window.mark = self.marks;
        if sequence > window.top {
            window.rise(sequence - window.top);
            window.top = sequence;
        }
        let back = window.top - sequence;
        if back < Windows::SPAN {
            window.bits[(back / 64) as usize] |= 1 << (back % 64);
        }
    }

    /// Whose window makes room for one of that user: nobody's who has fewer than another.
    fn to_forget(&self, newcomer: u64) -> Option<u64> {
        let mut counts: HashMap<u64, usize> = HashMap::new();
        for producer in self.of.keys() {
            *counts.entry(owner(*producer)).or_default() += 1;
        }
        let most = counts.values().max()?;
        let is_own = counts.get(&newcomer) == Some(most);
        let may_go =
            |who: u64| if is_own { who == newcomer } else { counts.get(&who) == Some(most) };
        let candidates = self.of.iter().filter(|(producer, _)| may_go(owner(**producer)));
        candidates.min_by_key(|(_, window)| window.mark).map(|(producer, _)| *producer)
    }

    /// Takes a mark back: the message could not be stored.
    pub fn unmark(&mut self, producer: u64, sequence: u64) {
        let Some(window) = self.of.get_mut(&producer) else { return };
        if let Some(back) = window.top.checked_sub(sequence).filter(|it| *it < Windows::SPAN) {
            window.bits[(back / 64) as usize] &= !(1 << (back % 64));
        }
    }

    /// Takes in a producer's window as it was written down, as the one that marked last.
    pub fn restore(&mut self, producer: u64, window: Window) {
        self.mark(producer, window.top);
        self.of.insert(producer, Window { mark: self.marks, ..window });
    }

    /// Gives the producers with their windows; who marked longest ago comes first.
    pub fn all(&self) -> Vec<(u64, Window)> {
        let mut all: Vec<_> = self.of.iter().map(|(producer, it)| (*producer, *it)).collect();
        all.sort_by_key(|(_, window)| window.mark);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_known_one_by_one_within_the_span() {
        let mut windows = Windows::new(4);
        windows.mark(7, 1);
        windows.mark(7, 3);
        assert_eq!(windows.look(7, 2), Seen::New);
        windows.mark(7, 2);
        windows.mark(7, 200);
        for seen in [1, 2, 3, 200] {
            assert_eq!(windows.look(7, seen), Seen::Duplicate, "{seen}");
        }
        assert_eq!(windows.look(7, 199), Seen::New);
        windows.unmark(7, 3);
        assert_eq!(windows.look(7, 3), Seen::New);
        windows.mark(7, 2 + Windows::SPAN);
        assert_eq!(windows.look(7, 2), Seen::Stale);
        assert_eq!(windows.look(7, 200), Seen::Duplicate);
        windows.mark(7, 9 * Windows::SPAN);
        assert_eq!(windows.look(7, 9 * Windows::SPAN - 1), Seen::New);
        assert_eq!(windows.look(8, 1), Seen::New);
    }

    #[test]
    fn who_sent_nothing_for_longest_is_forgotten() {
        let mut windows = Windows::new(2);
        windows.mark(1, 1);
        windows.mark(2, 1);
        windows.mark(1, 2);
        windows.mark(3, 1);
        assert_eq!(windows.look(2, 1), Seen::New);
        assert_eq!(windows.look(1, 1), Seen::Duplicate);
        let mut again = Windows::new(2);
        windows.all().into_iter().for_each(|(who, window)| again.restore(who, window));
        assert_eq!(again.look(1, 2), Seen::Duplicate);
        again.mark(4, 1);
        assert_eq!(again.look(1, 2), Seen::New, "it marked before the other");
    }

    #[test]
    fn a_user_with_many_producers_has_none_of_another_forgotten() {
        let of = |user: u64, number: u64| user << 48 | number;
        let mut windows = Windows::new(8);
        windows.mark(of(1, 1), 1);
        windows.mark(of(1, 2), 1);
        for number in 1..1000 {
            windows.mark(of(2, number), 1);
        }
        for number in [1, 2] {
            assert_eq!(windows.look(of(1, number), 1), Seen::Duplicate);
        }
        // Who has fewest gets room from who has most.
        windows.mark(of(3, 1), 1);
        windows.mark(of(3, 2), 1);
        assert_eq!(windows.look(of(1, 1), 1), Seen::Duplicate);
        assert_eq!(windows.look(of(2, 994), 1), Seen::New);
        assert_eq!(windows.look(of(2, 999), 1), Seen::Duplicate);
        // Among equals everybody keeps to what is theirs.
        for number in 5..50 {
            windows.mark(of(2, number), 1);
        }
        assert_eq!(windows.look(of(1, 1), 1), Seen::Duplicate);
        assert_eq!(windows.look(of(3, 1), 1), Seen::Duplicate);
        assert_eq!(windows.of.len(), 8);
    }

    proptest::proptest! {
        #[test]
        fn a_window_is_a_set(numbers in proptest::collection::vec(1_u64..3000, 0..200)) {
            let mut windows = Windows::new(1);
            let mut set = std::collections::BTreeSet::new();
            for number in numbers {
                let top = set.last().copied().unwrap_or(0);
                let expected = if number + Windows::SPAN <= top {
                    Seen::Stale
                } else if set.contains(&number) {
                    Seen::Duplicate
                } else {
                    Seen::New
                };
                proptest::prop_assert_eq!(windows.look(1, number), expected);
                if expected == Seen::New {
                    windows.mark(1, number);
                    set.insert(number);
                }
            }
        }
    }
}
