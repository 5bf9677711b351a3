//! What befalls whom, in an order that follows from a seed.

use std::{fmt, time::Duration};

use crate::cast::{GROUPS, Kind};

/// What else goes on meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weather {
    /// Nothing but one caller: what is measured is what the machine can do.
    Quiet,
    /// All callers, events and queues.
    Loaded,
    /// Quiet, but for processes that take a CPU each.
    Hogs,
}

impl fmt::Display for Weather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Weather::Quiet => "quiet",
            Weather::Loaded => "loaded",
            Weather::Hogs => "4 hogs",
        })
    }
}

/// How who serves ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Killed,
    /// And the next one so many µs later.
    Twice(u64),
    /// By a signal after which the kernel writes a core dump, or tries to.
    Aborted,
    /// Its process becomes another program.
    Replaced,
    /// It hangs, is passed over, and goes on, or is killed then.
    Stopped {
        goes_on: bool,
    },
    /// `ipcd` is killed at the same time.
    WithRuntime,
}

impl End {
    pub(crate) fn name(self) -> &'static str {
        match self {
            End::Killed => "kill -9",
            End::Twice(_) => "kill -9, twice within 1 ms",
            End::Aborted => "SIGABRT",
            End::Replaced => "exec",
            End::Stopped { .. } => "SIGSTOP",
            End::WithRuntime => "kill -9, and ipcd",
        }
    }
}

/// Who else can be hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bystander {
    Listener,
    Publisher,
    Producer,
    Consumer,
    Caller,
}

/// One misfortune.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Who serves this group ends. Who joins in its place has so many MiB.
    End { book: usize, how: End, mib: usize },
    /// Who serves is stopped for a moment: it may be passed over, or not.
    Stumble { book: usize, pause: Duration },
    /// The name changes hands in order.
    Trigger { book: usize },
    /// `ipcd` is killed, and comes back so much later.
    Runtime { away: Duration },
    /// `ipc-queue` is killed.
    Queue,
    /// Somebody falls behind.
    Pause { who: Bystander, pause: Duration },
    /// Somebody is killed, and replaced.
    Kill { who: Bystander },
}

/// Acts of one kind of weather, one after another.
type Seasons = [(Weather, u64); 3];
const SEASONS: Seasons = [(Weather::Loaded, 30), (Weather::Quiet, 18), (Weather::Hogs, 12)];
/// Those of a run that is to have many deaths: in quiet they come soonest.
const DEADLY: Seasons = [(Weather::Loaded, 30), (Weather::Quiet, 90), (Weather::Hogs, 12)];

/// Draws the acts.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    seasons: Seasons,
    state: u64,
    drawn: u64,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Plan {
        Plan { seasons: SEASONS, state: seed, drawn: 0 }
    }

    /// One of many deaths.
    pub(crate) fn deadly(seed: u64) -> Plan {
        Plan { seasons: DEADLY, ..Plan::new(seed) }
    }

    /// What comes next, and in which weather.
    pub(crate) fn next(&mut self) -> (Weather, Act) {
        let year: u64 = self.seasons.iter().map(|(_, length)| length).sum();
        let mut day = self.drawn % year;
        self.drawn += 1;
        for (weather, length) in self.seasons {
            if day < length {
                let act = if weather == Weather::Loaded { self.any() } else { self.measured() };
                return (weather, act);
            }
            day -= length;
        }
        unreachable!("a day is within a year")
    }

    /// Anything that can happen under load.
    fn any(&mut self) -> Act {
        let book = self.below(GROUPS.len() as u64) as usize;
        let is_store = GROUPS[book].kind == Kind::Store;
        let end = |how, mib| Act::End { book, how, mib };
        let who = match self.below(5) {
            0 => Bystander::Listener,
            1 => Bystander::Publisher,
            2 => Bystander::Producer,
            3 => Bystander::Consumer,
            _ => Bystander::Caller,
        };
        let (us, ms) = (self.below(1000), self.below(300));
        let mib = if self.below(8) == 0 { 256 } else { 1 };
        match self.below(24) {
            6 | 7 => end(End::Aborted, mib),
            8 | 9 => end(End::Replaced, mib),
            10 | 11 => end(End::Stopped { goes_on: is_store && ms % 2 == 0 }, mib),
            12 | 13 if is_store => end(End::Twice(us), mib),
            14 => end(End::WithRuntime, mib),
            15 => Act::Runtime { away: Duration::from_millis(ms) },
            16 => Act::Queue,
            17 if is_store => Act::Trigger { book },
            18 if is_store => Act::Stumble { book, pause: Duration::from_millis(ms / 8) },
            19 | 20 => Act::Pause { who, pause: Duration::from_millis(ms) },
            21 | 22 if who != Bystander::Caller && who != Bystander::Listener => Act::Kill { who },
            _ => end(End::Killed, mib),
        }
    }

    /// What is measured: services whose callers hear of no error, plain and encrypted, with little
    /// memory and much.
    fn measured(&mut self) -> Act {
        let book = self.below(2) as usize;
        let mib = if self.below(4) == 0 { 256 } else { 1 };
        let is_hang = self.below(8) == 0;
        let how = if is_hang { End::Stopped { goes_on: false } } else { End::Killed };
        Act::End { book, how, mib }
    }

    /// A number below `end`, which is small. `SplitMix64`.
    fn below(&mut self, end: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (word ^ (word >> 31)) % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(seed: u64, count: usize) -> Vec<(Weather, Act)> {
        let mut plan = Plan::new(seed);
        (0..count).map(|_| plan.next()).collect()
    }

    #[test]
    fn a_seed_is_a_plan() {
        assert_eq!(first(7, 500), first(7, 500));
        assert_ne!(first(7, 500), first(8, 500));
    }

    #[test]
    fn a_plan_of_many_deaths_has_most_of_them_in_quiet() {
        let mut plan = Plan::deadly(1);
        let acts: Vec<(Weather, Act)> = (0..1320).map(|_| plan.next()).collect();
        let of = |weather| acts.iter().filter(|(it, _)| *it == weather).count();
        assert_eq!([Weather::Quiet, Weather::Loaded, Weather::Hogs].map(of), [900, 300, 120]);
        let is_kill = |act: &Act| matches!(act, Act::End { how: End::Killed, .. });
        let kills = acts.iter().filter(|(it, act)| *it == Weather::Quiet && is_kill(act)).count();
        assert!((700..=850).contains(&kills), "{kills}");
    }

    #[test]
    fn every_misfortune_comes_and_none_that_a_service_does_not_bear() {
        let acts = first(1, 6000);
        let has = |is: fn(&Act) -> bool| acts.iter().any(|(_, act)| is(act));
        assert!(has(|it| matches!(it, Act::End { how: End::Twice(_), .. })));
        assert!(has(|it| matches!(it, Act::End { how: End::Aborted, mib: 256, .. })));
        assert!(has(|it| matches!(it, Act::End { how: End::Replaced, .. })));
        assert!(has(|it| matches!(it, Act::End { how: End::Stopped { goes_on: true }, .. })));
        assert!(has(|it| matches!(it, Act::End { how: End::WithRuntime, .. })));
        assert!(has(|it| matches!(it, Act::Runtime { .. })));
        assert!(has(|it| matches!(it, Act::Queue)));
        assert!(has(|it| matches!(it, Act::Stumble { .. })));
        assert!(has(|it| matches!(it, Act::Trigger { .. })));
        for who in [Bystander::Listener, Bystander::Consumer, Bystander::Caller] {
            assert!(
                acts.iter().any(|(_, it)| matches!(it, Act::Pause { who: w, .. } if *w == who))
            );
        }
        for who in [Bystander::Publisher, Bystander::Producer, Bystander::Consumer] {
            assert!(acts.iter().any(|(_, act)| *act == Act::Kill { who }), "{who:?}");
        }
        for (weather, act) in &acts {
            if let Act::End { book, how, .. } = act {
                let is_store = GROUPS[*book].kind == Kind::Store;
                let is_harsh = matches!(how, End::Twice(_) | End::Stopped { goes_on: true });
                assert!(is_store || (!is_harsh && *weather == Weather::Loaded), "{act:?}");
            } else {
                assert_eq!(*weather, Weather::Loaded);
            }
        }
    }
}
