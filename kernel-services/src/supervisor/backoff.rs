//! How long a failed unit waits, and how often its group may fail.

use super::unit::nanos;
use crate::node::{Backoff, Intensity};

/// `SplitMix64` (Steele, Lea and Flood, 2014): spreads delays. Nothing secret comes of it.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// From 0 to below 1.
    pub(super) fn share(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The delay after `failures` failures in a row before this one:
/// `min(most, first * factor^failures) * (1 - jitter * r)`, `r` in `[0, 1)`.
pub(super) fn delay_ns(terms: &Backoff, failures: u32, random: &mut Random) -> u64 {
    let exponent = i32::try_from(failures).unwrap_or(i32::MAX);
    let full = nanos(terms.first) as f64 * terms.factor.powi(exponent);
    let full = full.min(nanos(terms.most) as f64);
    (full * (1.0 - terms.jitter * random.share())) as u64
}

/// The restarts of a group, by when each is due.
#[derive(Clone, Debug, Default)]
pub(super) struct Restarts(Vec<u64>);

impl Restarts {
    /// Grants a restart at `due_ns`, unless some window would then hold more than it may.
    pub(super) fn grant(&mut self, terms: Intensity, due_ns: u64, now_ns: u64) -> bool {
        let within = nanos(terms.within);
        self.0.retain(|&due| due.saturating_add(within) > now_ns);
        self.0.insert(self.0.partition_point(|&due| due <= due_ns), due_ns);
        let most = terms.restarts as usize;
        !self.0.windows(most + 1).any(|dues| dues[most] - dues[0] < within)
    }

    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn delays_double_to_the_most() {
        let terms = Backoff {
            first: Duration::from_nanos(100),
            most: Duration::from_micros(1),
            factor: 2.0,
            jitter: 0.0,
            forget_after: Duration::ZERO,
        };
        let mut random = Random::new(1);
        let delays = [0, 1, 2, 3, 4, 5, u32::MAX].map(|n| delay_ns(&terms, n, &mut random));
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000, 1000]);
    }

    proptest! {
        #[test]
        fn delays_stay_in_their_bounds(
            first in 0_u64..1 << 50, most in 0_u64..1 << 50, factor in 1.0..10.0,
            jitter in 0.0..=1.0, failures: u32, seed: u64,
        ) {
            let terms = Backoff {
                first: Duration::from_nanos(first),
                most: Duration::from_nanos(most),
                factor,
                jitter,
                forget_after: Duration::ZERO,
            };
            let delay = delay_ns(&terms, failures, &mut Random::new(seed));
            prop_assert!(delay <= most);
            let least = first.min(most) as f64 * (1.0 - jitter);
            prop_assert!(delay as f64 >= least - 1.0, "{} < {}", delay, least);
        }

        #[test]
        fn no_window_holds_more_than_granted(
            restarts in 0_u32..5, within in 0_u64..50,
            asked in proptest::collection::vec((0_u64..20, 0_u64..60), 0..60),
        ) {
            let terms = Intensity { restarts, within: Duration::from_nanos(within) };
            let (mut history, mut now, mut granted) = (Restarts::default(), 0, Vec::new());
            for (pause, delay) in asked {
                now += pause;
                let all: Vec<u64> = granted.iter().copied().chain([now + delay]).collect();
                let fits = |&from: &u64| {
                    let held = all.iter().filter(|&&due| due >= from && due < from + within);
                    held.count() <= restarts as usize
                };
                // Granted exactly when it fits: neither a restart too many nor too few.
                prop_assert_eq!(history.grant(terms, now + delay, now), all.iter().all(fits));
                if !all.iter().all(fits) {
                    break;
                }
                granted.push(now + delay);
            }
        }
    }
}
