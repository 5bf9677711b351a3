//! Histograms of times: log-linear, from 128 ns to 2 s. Pure.

/// Times below this are in the first bucket.
const LEAST_LOG2: u32 = 7;
/// Times from this on are in the last.
const MOST_LOG2: u32 = 31;

/// How finely a histogram tells times apart: each octave is cut into so many buckets of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale {
    log2: u32,
}

/// Four buckets an octave: a time is known to 25 %.
pub(crate) const FINE: Scale = Scale { log2: 2 };
/// One bucket an octave.
pub(crate) const WHOLE: Scale = Scale { log2: 0 };

impl Scale {
    /// Buckets, with the two for what is below and above all octaves.
    pub(crate) const fn buckets(self) -> usize {
        2 + ((MOST_LOG2 - LEAST_LOG2) << self.log2) as usize
    }

    /// The bucket of a time.
    pub(crate) fn bucket(self, ns: u64) -> usize {
        let Some(log2) = ns.checked_ilog2().filter(|log2| *log2 >= LEAST_LOG2) else { return 0 };
        if log2 >= MOST_LOG2 {
            return self.buckets() - 1;
        }
        let part = (ns >> (log2 - self.log2)) & ((1 << self.log2) - 1);
        1 + ((log2 - LEAST_LOG2) << self.log2) as usize + part as usize
    }

    /// The least time of a bucket.
    fn from(self, bucket: usize) -> u64 {
        match bucket {
            0 => 0,
            bucket if bucket >= self.buckets() - 1 => 1 << MOST_LOG2,
            bucket => {
                let (octave, part) = ((bucket - 1) >> self.log2, (bucket - 1) & (self.mask()));
                ((1 << self.log2) + part as u64) << (octave as u32 + LEAST_LOG2 - self.log2)
            }
        }
    }

    fn mask(self) -> usize {
        (1 << self.log2) - 1
    }
}

/// How long things took: counts of times, in buckets of which each is at most a quarter wide (in a
/// fine one) or as wide as all before it (in a coarse one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    scale: Scale,
    counts: Vec<u64>,
    sum_ns: u64,
}

impl Histogram {
    pub(super) fn new(scale: Scale) -> Histogram {
        Histogram { scale, counts: vec![0; scale.buckets()], sum_ns: 0 }
    }

    pub(super) fn of(scale: Scale, counts: impl Iterator<Item = u64>, sum_ns: u64) -> Histogram {
        let counts: Vec<u64> = counts.take(scale.buckets()).collect();
        debug_assert_eq!(counts.len(), scale.buckets());
        Histogram { scale, counts, sum_ns }
    }

    /// Counts a time, in ns, so often.
    pub fn record(&mut self, ns: u64, times: u64) {
        let count = &mut self.counts[self.scale.bucket(ns)];
        *count = count.saturating_add(times);
        self.sum_ns = self.sum_ns.saturating_add(ns.saturating_mul(times));
    }

    /// Gives what was counted since an earlier look at the same.
    #[must_use]
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let pairs = self.counts.iter().zip(&earlier.counts);
        Histogram {
            scale: self.scale,
            counts: pairs.map(|(now, then)| now.saturating_sub(*then)).collect(),
            sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns),
        }
    }

    /// Gives their mean, in ns; 0 when there are none.
    pub fn mean(&self) -> u64 {
        self.sum_ns.checked_div(self.count()).unwrap_or(0)
    }

    /// How many times are counted. Sums of what others wrote stop at the largest number.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum: u64, count| sum.saturating_add(*count))
    }

    /// Their sum, in ns.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// Gives the time, in ns, below which this share (0 to 1) of all lies; 0 when there are none.
    /// From 128 ns to 2 s it is wrong by the width of a bucket at most; what is above counts as
    /// 2^31 ns.
    pub fn quantile(&self, share: f64) -> u64 {
        let all = self.count();
        if all == 0 {
            return 0;
        }
        let rank = ((all as f64 * share.clamp(0.0, 1.0)).ceil() as u64).clamp(1, all);
        let mut below = 0_u64;
        for (bucket, &count) in self.counts.iter().enumerate() {
            if count > 0 && below.saturating_add(count) >= rank {
                let from = self.scale.from(bucket);
                let width = self.scale.from(bucket + 1) - from;
                let part = u128::from(width) * u128::from(rank - below) / u128::from(count);
                return from + part as u64;
            }
            below = below.saturating_add(count);
        }
        1 << MOST_LOG2
    }

    /// Gives for each octave from 128 ns to 2^31 ns its upper end, in ns, and how many times lie
    /// below that: what a cumulative histogram needs. Those above are in [`count`](Self::count).
    pub fn octaves(&self) -> Vec<(u64, u64)> {
        let mut below = self.counts[0];
        let mut octaves = vec![(1 << LEAST_LOG2, below)];
        let within = &self.counts[1..self.counts.len() - 1];
        for (octave, counts) in within.chunks(1 << self.scale.log2).enumerate() {
            below = counts.iter().fold(below, |sum, count| sum.saturating_add(*count));
            octaves.push((1 << (octave as u32 + LEAST_LOG2 + 1), below));
        }
        octaves
    }

    /// Adds another of the same kind.
    pub fn merge(&mut self, other: &Histogram) {
        debug_assert_eq!(self.scale, other.scale);
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counted(scale: Scale, times: &[u64]) -> Histogram {
        let mut histogram = Histogram::new(scale);
        for &ns in times {
            histogram.record(ns, 1);
        }
        histogram
    }

    #[test]
    fn buckets_have_the_ends_that_are_documented() {
        assert_eq!((FINE.buckets(), WHOLE.buckets()), (98, 26));
        assert_eq!(FINE.bucket(0), 0);
        assert_eq!(FINE.bucket(127), 0);
        assert_eq!(FINE.bucket(128), 1);
        assert_eq!(FINE.bucket(159), 1);
        assert_eq!(FINE.bucket(160), 2);
        assert_eq!(FINE.bucket((1 << 31) - 1), 96);
        assert_eq!(FINE.bucket(1 << 31), 97);
        assert_eq!(FINE.bucket(u64::MAX), 97);
        for bucket in 0..97 {
            assert_eq!(FINE.bucket(FINE.from(bucket)), bucket);
            assert_eq!(FINE.bucket(FINE.from(bucket + 1) - 1), bucket);
        }
    }

    #[test]
    fn what_is_recorded_is_counted_and_summed() {
        let mut histogram = Histogram::new(WHOLE);
        histogram.record(1000, 64);
        histogram.record(u64::MAX, 2);
        assert_eq!((histogram.count(), histogram.sum_ns()), (66, u64::MAX));
    }

    #[test]
    fn what_came_since_is_the_difference_and_never_less_than_nothing() {
        let (earlier, mut now) = (counted(FINE, &[200]), counted(FINE, &[200]));
        now.record(1000, 3);
        assert_eq!((now.since(&earlier).count(), now.since(&earlier).mean()), (3, 1000));
        assert_eq!((earlier.since(&now).count(), earlier.since(&now).mean()), (0, 0));
    }

    #[test]
    fn nothing_has_no_quantile_and_much_is_the_most() {
        assert_eq!(Histogram::new(FINE).quantile(0.5), 0);
        assert_eq!(counted(FINE, &[u64::MAX / 2]).quantile(0.5), 1 << 31);
        let mut liar = Histogram::new(FINE);
        liar.counts.fill(u64::MAX);
        assert_eq!(liar.count(), u64::MAX);
        let _ = (liar.quantile(0.0), liar.quantile(1.0), liar.octaves());
        liar.merge(&liar.clone());
    }

    #[test]
    fn octaves_are_cumulative_and_complete() {
        let histogram = counted(FINE, &[1, 128, 255, 256, 3_000_000_000]);
        let octaves = histogram.octaves();
        assert_eq!(octaves.len(), 25);
        assert_eq!(octaves[..3], [(128, 1), (256, 3), (512, 4)]);
        assert_eq!(octaves[24], (1 << 31, 4));
        assert_eq!(histogram.count(), 5);
    }

    proptest! {
        #[test]
        fn a_quantile_is_wrong_by_a_bucket_s_width_at_most(
            mut times in prop::collection::vec(128_u64..1 << 31, 1..300),
            share in 0.0_f64..=1.0,
        ) {
            let alleged = counted(FINE, &times).quantile(share);
            times.sort_unstable();
            let rank = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len());
            let exact = times[rank - 1];
            prop_assert!(alleged.abs_diff(exact) * 4 <= exact, "{alleged} for {exact}");
        }
    }
}
