//! Which calls are timed: one in 64 on average, and all that are slow.

/// What a sampled call counts for, and after how many the next is sampled, on average.
const MEAN: u32 = 64;
/// The same for handlers in a stream of one-way messages, of which each takes so little that the
/// clock is seen in it.
const MEAN_OF_STREAM: u32 = 512;

/// Counts calls down to the next one to be timed. The distances vary, so that no rhythm of the
/// calls themselves decides which kinds of them are timed.
#[derive(Debug)]
pub(crate) struct Sampler {
    /// Calls up to the next that is timed, and that one.
    pub(crate) left: u32,
    /// What `left` goes back to after a call that is timed out of turn; 0 for none.
    kept: u32,
    /// What the next that is sampled counts for. It was settled before that one was seen, so none
    /// counts for too much or too little on average.
    mean: u32,
    state: u32,
}

impl Sampler {
    /// `seed` tells this one's distances from others'.
    pub(crate) fn new(seed: u64) -> Sampler {
        let mut sampler = Sampler { left: 0, kept: 0, mean: MEAN, state: seed as u32 | 1 };
        sampler.renew();
        sampler
    }

    /// Whether this call is to be timed.
    #[inline(always)]
    pub(crate) fn hits(&mut self) -> bool {
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        self.renew();
        true
    }

    /// Has the next call be timed out of turn; it counts for itself alone.
    pub(crate) fn at_leisure(&mut self) {
        if self.kept == 0 {
            self.kept = std::mem::replace(&mut self.left, 1);
        }
    }

    /// Begins to time the message at which `left` came to 0.
    #[cold]
    pub(crate) fn begin(&mut self, now_ns: u64, streams: bool) -> Begun {
        if self.kept > 0 {
            self.left = std::mem::take(&mut self.kept);
            return Begun::alone(now_ns);
        }
        let is_of_stream = self.mean == MEAN_OF_STREAM;
        self.mean = if streams { MEAN_OF_STREAM } else { MEAN };
        self.renew();
        if is_of_stream { Begun::of_stream(now_ns) } else { Begun::sampled(now_ns) }
    }

    #[cold]
    fn renew(&mut self) {
        // Marsaglia's xorshift, never 0.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 17;
        self.state ^= self.state << 5;
        self.left = 1 + self.state % (2 * self.mean - 1);
    }
}

/// When a call began, and, in the last two bits, what it counts for: 0 for a call that is not
/// timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Begun(pub(crate) u64);

impl Begun {
    pub(crate) const NEVER: Begun = Begun(0);

    /// A sampled call, which began now.
    #[cold]
    pub(crate) fn sampled(now_ns: u64) -> Begun {
        Begun(now_ns & !3 | 1)
    }

    /// A sampled handler of a stream.
    #[cold]
    fn of_stream(now_ns: u64) -> Begun {
        Begun(now_ns & !3 | 2)
    }

    /// A call that counts for itself alone.
    #[cold]
    pub(crate) fn alone(at_ns: u64) -> Begun {
        Begun((at_ns & !3).max(4))
    }

    #[inline(always)]
    pub(crate) fn is_timed(self) -> bool {
        self.0 != 0
    }

    pub(crate) fn is_sampled(self) -> bool {
        self.0 & 3 != 0
    }

    pub(crate) fn at_ns(self) -> u64 {
        self.0 & !3
    }

    /// How long it took until now, and what that counts for.
    pub(crate) fn took(self, now_ns: u64) -> (u64, u64) {
        let weight = match self.0 & 3 {
            0 => 1,
            1 => MEAN,
            _ => MEAN_OF_STREAM,
        };
        (now_ns.saturating_sub(self.at_ns()), u64::from(weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_64_is_sampled_whatever_the_rhythm() {
        let mut sampler = Sampler::new(7);
        let mut hits = [0_u64; 8];
        let calls = 640_000;
        for call in 0..calls {
            hits[call % 8] += u64::from(sampler.hits());
        }
        let all: u64 = hits.iter().sum();
        assert!((9_500..=10_500).contains(&all), "{all} of {calls}");
        assert!(hits.iter().all(|part| (1_000..1_500).contains(part)), "{hits:?}");
    }

    #[test]
    fn what_a_call_counts_for_is_told_by_how_it_began() {
        assert_eq!(Begun::sampled(1000).took(1500), (500, 64));
        assert_eq!(Begun::of_stream(1000).took(1500), (500, 512));
        assert_eq!(Begun::alone(1001).took(1500), (500, 1));
        assert_eq!(Begun::alone(2000).took(1500), (0, 1));
        assert!(!Begun::NEVER.is_timed());
        assert!(Begun::alone(0).is_timed());
    }

    #[test]
    fn a_stream_is_sampled_rarely_and_all_of_it_is_counted_on_average() {
        // Long stretches of either kind, in turn.
        let mut sampler = Sampler::new(7);
        let (mut counted, mut timed) = ([0_u64; 2], [0_u64; 2]);
        for message in 0..2_000_000_u64 {
            let streams = message / 10_000 % 2 == 1;
            sampler.left -= 1;
            if sampler.left == 0 {
                let (_, weight) = sampler.begin(1000, streams).took(1000);
                counted[usize::from(streams)] += weight;
                timed[usize::from(streams)] += 1;
            }
        }
        assert!(counted.iter().all(|it| (900_000..1_100_000).contains(it)), "{counted:?}");
        assert!(timed[0] > 6 * timed[1], "{timed:?}");
    }
}
