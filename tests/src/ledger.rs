//! What took effect, as a third party saw it, and what must never be found in that.
//!
//! A service that may be failed over tells the ledger of each effect before it answers its caller:
//! its own number, its epoch, who asked, and that caller's number of the request. The ledger
//! refuses whoever comes with an older epoch than it has seen. At the end each caller says how its
//! requests ended, and [`Ledger::settle`] says what is wrong with both accounts together.
//!
//! It keeps what it knows in intervals, so that ten million effects in order cost as much memory
//! as one.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::RangeInclusive,
};

/// Numbers whose neighbours were said, too, as intervals: first to last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers(BTreeMap<u64, u64>);

impl Numbers {
    /// Adds one. Returns whether it was not in there.
    pub fn insert(&mut self, number: u64) -> bool {
        let before = self.0.range(..=number).next_back().map(|(&first, &last)| (first, last));
        if before.is_some_and(|(_, last)| number <= last) {
            return false;
        }
        let joined = number.checked_add(1).and_then(|next| self.0.remove(&next));
        let last = joined.unwrap_or(number);
        let first = before.filter(|(_, last)| last + 1 == number).map_or(number, |before| before.0);
        self.0.insert(first, last);
        true
    }

    /// Tells whether one is in there.
    pub fn contains(&self, number: u64) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, &last)| number <= last)
    }

    /// Gives the highest.
    pub fn highest(&self) -> Option<u64> {
        self.0.last_key_value().map(|(_, &last)| last)
    }

    /// Counts them.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Tells whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives them as intervals, ascending.
    pub fn intervals(&self) -> impl Iterator<Item = RangeInclusive<u64>> {
        self.0.iter().map(|(&first, &last)| first..=last)
    }

    /// Gives the first that is in here and not in `other`.
    pub fn first_outside(&self, other: &Numbers) -> Option<u64> {
        self.intervals().find_map(|interval| {
            let mut number = *interval.start();
            while number <= *interval.end() {
                match other.0.range(..=number).next_back() {
                    Some((_, &last)) if number <= last => number = last.checked_add(1)?,
                    _ => return Some(number),
                }
            }
            None
        })
    }
}

impl FromIterator<u64> for Numbers {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Numbers {
        let mut all = Numbers::default();
        for number in numbers {
            all.insert(number);
        }
        all
    }
}

/// An effect, as the one who serves tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Who serves.
    pub writer: u32,
    /// The epoch in which it does.
    pub epoch: u64,
    /// Who asked for it.
    pub caller: u32,
    /// That caller's number of the request: ascending from 1, in the order of sending.
    pub number: u64,
}

/// What the ledger says to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It is written down.
    Recorded,
    /// It was written down before: the request was carried out again.
    Repeated,
    /// Somebody serves in this epoch, which is higher: the writer was deposed. Nothing is written.
    Stale(u64),
}

/// What must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Two wrote in one epoch.
    TwoPrimaries {
        /// The epoch.
        epoch: u64,
        /// Who wrote first.
        first: u32,
        /// Who wrote as well.
        second: u32,
    },
    /// An effect was carried out twice.
    Duplicated {
        /// Whose request.
        caller: u32,
        /// Which.
        number: u64,
    },
    /// A request took effect after a later one of the same caller.
    Reordered {
        /// Whose request.
        caller: u32,
        /// Which.
        number: u64,
        /// The later one.
        after: u64,
    },
    /// A caller was told that it was done, and it was not.
    Lost {
        /// Whose request.
        caller: u32,
        /// The first such.
        number: u64,
    },
    /// An effect for which nobody asked.
    Invented {
        /// Whose request it was said to be.
        caller: u32,
        /// The first such.
        number: u64,
    },
    /// A caller was told that nothing was done, and it was.
    Denied {
        /// Whose request.
        caller: u32,
        /// The first such.
        number: u64,
    },
    /// A request had no end.
    Unsettled {
        /// Whose request.
        caller: u32,
        /// The first such.
        number: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::TwoPrimaries { epoch, first, second } => {
                write!(f, "{first} and {second} both served in epoch {epoch}")
            }
            Fault::Duplicated { caller, number } => {
                write!(f, "request {number} of {caller} was carried out twice")
            }
            Fault::Reordered { caller, number, after } => {
                write!(f, "request {number} of {caller} was carried out after {after}")
            }
            Fault::Lost { caller, number } => {
                write!(f, "request {number} of {caller} was acknowledged and is lost")
            }
            Fault::Invented { caller, number } => {
                write!(f, "request {number} of {caller} was carried out and never sent")
            }
            Fault::Denied { caller, number } => {
                write!(f, "request {number} of {caller} was said not to be done, and was")
            }
            Fault::Unsettled { caller, number } => {
                write!(f, "request {number} of {caller} ended in no way")
            }
        }
    }
}

/// Whether a request may be carried out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// It may: the service declared it idempotent.
    Harmless,
    /// It must not.
    Faults,
}

/// How a caller's requests ended, as it was told.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// How many it sent: numbers 1 to this.
    pub sent: u64,
    /// Those that were answered.
    pub answered: Numbers,
    /// Those that ended in "maybe": nothing is known of them.
    pub maybe: Numbers,
    /// Those that were said not to have been done.
    pub refused: Numbers,
}

#[derive(Debug, Default)]
struct Track {
    done: Numbers,
    repeated: u64,
}

/// The effects so far.
#[derive(Debug)]
pub struct Ledger {
    repeats: Repeats,
    epoch: u64,
    /// Who wrote first in that epoch: nothing is written in an older one.
    writer: Option<u32>,
    callers: HashMap<u32, Track>,
    stale: u64,
    faults: Vec<Fault>,
}

/// More faults than this are not kept: the first ones tell.
const KEPT: usize = 64;

impl Ledger {
    /// Begins an empty one.
    pub fn new(repeats: Repeats) -> Ledger {
        Ledger {
            repeats,
            epoch: 0,
            writer: None,
            callers: HashMap::new(),
            stale: 0,
            faults: Vec::new(),
        }
    }

    /// Reads what processes wrote down, a line for each effect in the order in which they had
    /// them: writer, epoch, caller, number. What was wrong with one is asked for at the end.
    ///
    /// # Panics
    /// When a line is none.
    pub fn of_lines(file: &str, repeats: Repeats) -> Ledger {
        let mut ledger = Ledger::new(repeats);
        for line in file.lines() {
            let numbers: Vec<u64> =
                line.split(' ').map(|word| word.parse().expect("a number")).collect();
            let [writer, epoch, caller, number] = numbers[..] else { panic!("no line: {line}") };
            let (writer, caller) = (writer as u32, caller as u32);
            ledger.record(Effect { writer, epoch, caller, number });
        }
        ledger
    }

    /// Somebody begins to serve in this epoch: from here on older ones are refused. Who has a
    /// memory of what was answered says so before it reads that of the one before, who may go on.
    /// Returns whether it is the latest.
    pub fn begin(&mut self, epoch: u64) -> bool {
        self.reach(epoch);
        self.epoch == epoch
    }

    fn reach(&mut self, epoch: u64) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.writer = None;
        }
    }

    /// Writes an effect down, or refuses it.
    pub fn record(&mut self, effect: Effect) -> Entry {
        if effect.epoch < self.epoch {
            self.stale += 1;
            return Entry::Stale(self.epoch);
        }
        self.reach(effect.epoch);
        let first = *self.writer.get_or_insert(effect.writer);
        if first != effect.writer {
            let (epoch, second) = (effect.epoch, effect.writer);
            self.fault(Fault::TwoPrimaries { epoch, first, second });
        }
        let Effect { caller, number, .. } = effect;
        let track = self.callers.entry(caller).or_default();
        let highest = track.done.highest().unwrap_or(0);
        if !track.done.insert(number) {
            track.repeated += 1;
            if self.repeats == Repeats::Faults {
                self.fault(Fault::Duplicated { caller, number });
            }
            return Entry::Repeated;
        }
        if number < highest {
            self.fault(Fault::Reordered { caller, number, after: highest });
        }
        Entry::Recorded
    }

    /// Compares a caller's account with what was done for it.
    pub fn settle(&mut self, caller: u32, account: &Account) {
        let done = self.callers.entry(caller).or_default().done.clone();
        let Account { sent, answered, maybe, refused } = account;
        if let Some(number) = answered.first_outside(&done) {
            self.fault(Fault::Lost { caller, number });
        }
        if let Some(number) = done.highest().filter(|highest| highest > sent) {
            self.fault(Fault::Invented { caller, number });
        }
        let denied = refused.intervals().flatten().find(|&number| done.contains(number));
        if let Some(number) = denied {
            self.fault(Fault::Denied { caller, number });
        }
        let ended = |&number: &u64| {
            answered.contains(number) || maybe.contains(number) || refused.contains(number)
        };
        if answered.len() + maybe.len() + refused.len() < *sent
            && let Some(number) = (1..=*sent).find(|number| !ended(number))
        {
            self.fault(Fault::Unsettled { caller, number });
        }
    }

    /// What was found, the first 64 of it.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// How many effects there were, each once.
    pub fn effects(&self) -> u64 {
        self.callers.values().map(|track| track.done.len()).sum()
    }

    /// How often one was carried out again.
    pub fn repeated(&self) -> u64 {
        self.callers.values().map(|track| track.repeated).sum()
    }

    /// How many were refused, as they came with an older epoch.
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    fn fault(&mut self, fault: Fault) {
        if self.faults.len() < KEPT {
            self.faults.push(fault);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn effect(writer: u32, epoch: u64, number: u64) -> Effect {
        Effect { writer, epoch, caller: 7, number }
    }

    fn honest(count: u64) -> Ledger {
        let mut ledger = Ledger::new(Repeats::Faults);
        for number in 1..=count {
            assert_eq!(ledger.record(effect(1, 1, number)), Entry::Recorded);
        }
        ledger
    }

    fn all_answered(count: u64) -> Account {
        Account { sent: count, answered: (1..=count).collect(), ..Account::default() }
    }

    fn verdict(mut ledger: Ledger, account: &Account) -> Vec<Fault> {
        ledger.settle(7, account);
        ledger.faults
    }

    #[test]
    fn an_honest_history_has_no_fault() {
        assert_eq!(verdict(honest(1000), &all_answered(1000)), []);
    }

    #[test]
    fn the_deposed_are_refused_and_nothing_of_theirs_is_kept() {
        let mut ledger = honest(3);
        assert_eq!(ledger.record(effect(2, 2, 4)), Entry::Recorded);
        assert_eq!(ledger.record(effect(1, 1, 5)), Entry::Stale(2));
        assert_eq!((ledger.stale(), ledger.effects(), ledger.epoch()), (1, 4, 2));
        assert_eq!(verdict(ledger, &all_answered(4)), []);
    }

    #[test]
    fn who_begins_is_later_than_all_before_it() {
        let mut ledger = honest(1);
        assert!(ledger.begin(3));
        assert_eq!(ledger.record(effect(1, 1, 2)), Entry::Stale(3));
        assert!(!ledger.begin(2));
        assert_eq!(ledger.record(effect(2, 2, 2)), Entry::Stale(3));
        assert_eq!(ledger.record(effect(3, 3, 2)), Entry::Recorded);
    }

    #[test]
    fn each_fault_is_found() {
        let (caller, fault) = (7, |ledger, account: &Account| verdict(ledger, account));
        let mut two = honest(1);
        two.record(effect(2, 1, 2));
        let both = Fault::TwoPrimaries { epoch: 1, first: 1, second: 2 };
        assert_eq!(fault(two, &all_answered(2)), [both]);
        let mut later = honest(1);
        later.record(effect(2, 2, 2));
        later.record(effect(1, 2, 3));
        let both = Fault::TwoPrimaries { epoch: 2, first: 2, second: 1 };
        assert_eq!(fault(later, &all_answered(3)), [both]);
        let mut twice = honest(2);
        assert_eq!(twice.record(effect(1, 1, 2)), Entry::Repeated);
        assert_eq!(fault(twice, &all_answered(2)), [Fault::Duplicated { caller, number: 2 }]);
        let mut swapped = honest(1);
        swapped.record(effect(1, 1, 3));
        swapped.record(effect(1, 1, 2));
        let reordered = Fault::Reordered { caller, number: 2, after: 3 };
        assert_eq!(fault(swapped, &all_answered(3)), [reordered]);
        assert_eq!(fault(honest(2), &all_answered(3)), [Fault::Lost { caller, number: 3 }]);
        assert_eq!(fault(honest(3), &all_answered(2)), [Fault::Invented { caller, number: 3 }]);
        let denied = Account { refused: [2].into_iter().collect(), ..all_answered(2) };
        assert_eq!(fault(honest(2), &denied), [Fault::Denied { caller, number: 2 }]);
        let silent = Account { sent: 3, ..all_answered(2) };
        assert_eq!(fault(honest(2), &silent), [Fault::Unsettled { caller, number: 3 }]);
    }

    #[test]
    fn what_is_idempotent_may_be_repeated_and_what_is_unknown_may_be_either() {
        let mut ledger = Ledger::new(Repeats::Harmless);
        ledger.record(effect(1, 1, 1));
        assert_eq!(ledger.record(effect(2, 2, 1)), Entry::Repeated);
        let maybe = [2, 3].into_iter().collect();
        ledger.record(effect(2, 2, 3));
        let account = Account { sent: 3, maybe, ..all_answered(1) };
        assert_eq!(ledger.repeated(), 1);
        assert_eq!(verdict(ledger, &account), []);
    }

    proptest! {
        #[test]
        fn numbers_are_a_set(
            first in prop::collection::vec(0_u64..64, 0..80),
            second in prop::collection::vec(0_u64..64, 0..80),
        ) {
            let mut model = BTreeSet::new();
            let mut numbers = Numbers::default();
            for &number in &first {
                prop_assert_eq!(numbers.insert(number), model.insert(number));
            }
            prop_assert_eq!(numbers.len(), model.len() as u64);
            prop_assert_eq!(numbers.highest(), model.last().copied());
            let listed: Vec<u64> = numbers.intervals().flatten().collect();
            prop_assert!(listed.iter().eq(&model));
            let others: Numbers = second.iter().copied().collect();
            let outside = model.iter().find(|number| !second.contains(number)).copied();
            prop_assert_eq!(numbers.first_outside(&others), outside);
            for pair in numbers.intervals().collect::<Vec<_>>().windows(2) {
                prop_assert!(pair[0].end() + 1 < *pair[1].start(), "neighbours are joined");
            }
        }

        #[test]
        fn an_effect_left_out_is_missed_and_one_more_is_noticed(
            count in 2_u64..200, left_out in 1_u64..200, more in 1_u64..200,
        ) {
            let (left_out, more) = (left_out.min(count), more.min(count));
            let mut ledger = Ledger::new(Repeats::Faults);
            for number in (1..=count).filter(|&number| number != left_out) {
                ledger.record(effect(1, 1, number));
            }
            let lost = Fault::Lost { caller: 7, number: left_out };
            prop_assert_eq!(verdict(ledger, &all_answered(count)), [lost]);
            let mut ledger = honest(count);
            ledger.record(effect(1, 1, more));
            let twice = Fault::Duplicated { caller: 7, number: more };
            prop_assert_eq!(verdict(ledger, &all_answered(count)), [twice]);
        }
    }
}
