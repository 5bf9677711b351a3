//! Time of every single exchange, in a histogram; items per second, in batches.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest time a histogram tells apart: a minute, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// How long the time stamp counter is compared with the kernel's clock.
const CALIBRATION: Duration = Duration::from_millis(50);

/// A clock that a benchmark can read around a hundred nanoseconds of work.
///
/// It is the invariant time stamp counter where there is one, and `CLOCK_MONOTONIC` otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    source: Source,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// Ticks of the time stamp counter.
    #[cfg(target_arch = "x86_64")]
    Tsc { ns_per_tick: f64 },
    /// Nanoseconds since `origin`.
    Monotonic { origin: Instant },
}

impl Clock {
    /// Chooses the source and calibrates it, which takes 50 ms.
    pub fn calibrated() -> Self {
        #[cfg(target_arch = "x86_64")]
        if tsc_is_invariant() {
            return Self { source: Source::Tsc { ns_per_tick: calibrate() } };
        }
        Self { source: Source::Monotonic { origin: Instant::now() } }
    }

    /// Reads the clock, in its own ticks, after everything before it in the program is done.
    #[inline]
    pub fn now(&self) -> u64 {
        match self.source {
            #[cfg(target_arch = "x86_64")]
            Source::Tsc { .. } => tsc(),
            Source::Monotonic { origin } => origin.elapsed().as_nanos() as u64,
        }
    }

    /// Converts a difference of two readings to nanoseconds.
    #[inline]
    pub fn ns(&self, ticks: u64) -> u64 {
        match self.source {
            #[cfg(target_arch = "x86_64")]
            Source::Tsc { ns_per_tick } => (ticks as f64 * ns_per_tick) as u64,
            Source::Monotonic { .. } => ticks,
        }
    }

    /// Converts a duration to ticks.
    pub fn ticks(&self, time: Duration) -> u64 {
        let ns = time.as_nanos() as f64;
        match self.source {
            #[cfg(target_arch = "x86_64")]
            Source::Tsc { ns_per_tick } => (ns / ns_per_tick) as u64,
            Source::Monotonic { .. } => ns as u64,
        }
    }

    /// Names the source.
    pub fn name(&self) -> &'static str {
        match self.source {
            #[cfg(target_arch = "x86_64")]
            Source::Tsc { .. } => "tsc",
            Source::Monotonic { .. } => "clock_gettime",
        }
    }
}

/// Reads the time stamp counter once all earlier instructions have completed: a reading taken
/// while the last load still flies would flatter the result.
#[cfg(target_arch = "x86_64")]
#[inline]
fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has both instructions, and neither touches memory.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        std::arch::x86_64::_rdtsc()
    }
}

/// Tells whether the counter runs at one rate on all cores, through every sleep state.
#[cfg(target_arch = "x86_64")]
fn tsc_is_invariant() -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpuinfo.lines().find(|line| line.starts_with("flags")).is_some_and(|flags| {
        let has = |flag| flags.split_whitespace().any(|word| word == flag);
        has("constant_tsc") && has("nonstop_tsc")
    })
}

/// Returns the nanoseconds of one tick.
#[cfg(target_arch = "x86_64")]
fn calibrate() -> f64 {
    let (start, from) = (Instant::now(), tsc());
    while start.elapsed() < CALIBRATION {}
    let (elapsed, to) = (start.elapsed(), tsc());
    elapsed.as_nanos() as f64 / (to - from) as f64
}

/// How long to run before measuring, and how long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Time in which nothing is recorded.
    pub warm_up: Duration,
    /// Time in which everything is recorded.
    pub measure: Duration,
}

impl Plan {
    /// Measures for `time`, after a warm-up of a quarter of it.
    pub fn lasting(time: Duration) -> Self {
        Self { warm_up: time / 4, measure: time }
    }
}

/// The distribution of one exchange's time, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Half of all exchanges took no longer.
    pub p50: u64,
    /// 95 of 100 took no longer.
    pub p95: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// The shortest.
    pub min: u64,
    /// The average.
    pub mean: f64,
    /// How many exchanges there were.
    pub n: u64,
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Self {
        Self {
            p50: histogram.value_at_quantile(0.50),
            p95: histogram.value_at_quantile(0.95),
            p99: histogram.value_at_quantile(0.99),
            min: histogram.min(),
            mean: histogram.mean(),
            n: histogram.len(),
        }
    }
}

/// Items moved in a measured time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Throughput {
    /// How many.
    pub items: u64,
    /// In how many seconds.
    pub seconds: f64,
}

impl Throughput {
    /// Returns the rate.
    pub fn per_second(&self) -> f64 {
        self.items as f64 / self.seconds
    }
}

/// Makes an empty histogram of nanoseconds, exact to three digits up to a minute.
#[expect(clippy::missing_panics_doc, reason = "the bounds are constants")]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("1 < 60e9, and 3 digits are allowed")
}

/// Times every call of `once`, from the warm-up's end to the plan's.
///
/// The histogram is written between two readings, so its own cost is in no interval; the cost of
/// one reading is in every one.
///
/// # Errors
/// The first that `once` returns.
pub fn latency(
    clock: &Clock,
    plan: Plan,
    once: impl FnMut() -> io::Result<()>,
) -> io::Result<Latency> {
    distribution(clock, plan, once).map(|histogram| Latency::from(&histogram))
}

/// The same, with the whole distribution.
///
/// # Errors
/// The first that `once` returns.
pub fn distribution(
    clock: &Clock,
    plan: Plan,
    mut once: impl FnMut() -> io::Result<()>,
) -> io::Result<Histogram<u64>> {
    let mut histogram = histogram();
    let warm = clock.now() + clock.ticks(plan.warm_up);
    while clock.now() < warm {
        once()?;
    }
    let end = clock.now() + clock.ticks(plan.measure);
    loop {
        let start = clock.now();
        once()?;
        let stop = clock.now();
        histogram.saturating_record(clock.ns(stop - start).max(1));
        if stop >= end {
            return Ok(histogram);
        }
    }
}

/// As [`latency`], with `before` run before each call of `once`, in none of the times.
///
/// # Errors
/// The first that either returns.
pub fn latency_after(
    clock: &Clock,
    plan: Plan,
    mut before: impl FnMut() -> io::Result<()>,
    mut once: impl FnMut() -> io::Result<()>,
) -> io::Result<Latency> {
    let mut histogram = histogram();
    let warm = clock.now() + clock.ticks(plan.warm_up);
    let end = warm + clock.ticks(plan.measure);
    loop {
        before()?;
        let start = clock.now();
        once()?;
        let stop = clock.now();
        if start >= warm {
            histogram.saturating_record(clock.ns(stop - start).max(1));
        }
        if stop >= end {
            return Ok(Latency::from(&histogram));
        }
    }
}

/// Counts the items that calls of `batch` say they moved, from the warm-up's end to the plan's.
///
/// # Errors
/// The first that `batch` returns.
pub fn throughput(
    clock: &Clock,
    plan: Plan,
    mut batch: impl FnMut() -> io::Result<u64>,
) -> io::Result<Throughput> {
    let warm = clock.now() + clock.ticks(plan.warm_up);
    while clock.now() < warm {
        batch()?;
    }
    let mut items = 0;
    let start = clock.now();
    let end = start + clock.ticks(plan.measure);
    loop {
        items += batch()?;
        let now = clock.now();
        if now >= end {
            return Ok(Throughput { items, seconds: clock.ns(now - start) as f64 / 1e9 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short() -> Plan {
        Plan::lasting(Duration::from_millis(5))
    }

    #[test]
    fn the_clock_follows_the_kernel_s() {
        let clock = Clock::calibrated();
        let (started, from) = (Instant::now(), clock.now());
        while started.elapsed() < Duration::from_millis(5) {}
        let ns = clock.ns(clock.now() - from);
        assert!(ns >= 4_900_000, "{ns} ns by {}", clock.name());
        let ticks = clock.ticks(Duration::from_millis(1));
        assert!(clock.ns(ticks).abs_diff(1_000_000) <= 2);
    }

    #[test]
    fn every_exchange_after_the_warm_up_is_recorded() {
        let mut calls = 0;
        let latency = latency(&Clock::calibrated(), short(), || {
            calls += 1;
            Ok(())
        })
        .expect("no error was returned");
        assert!(0 < latency.n && latency.n < calls);
        assert!(latency.min <= latency.p50 && latency.p50 <= latency.p95);
        assert!(latency.p95 <= latency.p99);
    }

    #[test]
    fn items_are_divided_by_the_time_they_took() {
        let moved = throughput(&Clock::calibrated(), short(), || Ok(7)).expect("no error");
        assert_eq!(moved.items % 7, 0);
        assert!(moved.seconds >= 0.005 && moved.per_second() > 7.0);
    }

    #[test]
    fn an_error_ends_the_measurement() {
        let failed = latency(&Clock::calibrated(), short(), || Err(io::Error::other("gone")));
        assert_eq!(failed.expect_err("an error").to_string(), "gone");
    }
}
