//! Time: the invariant time-stamp counter, calibrated against `CLOCK_MONOTONIC`, or that clock.
//!
//! Reading the counter takes a third of `clock_gettime`. Every second of use it is anchored anew,
//! so that an error of calibration never grows beyond a few microseconds.

#![allow(unsafe_code)] // rdtsc and cpuid

use std::sync::OnceLock;

use crate::sync::{AtomicU64, Ordering};

/// Reads the time: `CLOCK_MONOTONIC` in ns, within a few µs. Not monotonic to the nanosecond.
#[inline]
pub(crate) fn now_ns() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        let clock = CLOCK.get_or_init(Clock::calibrate);
        if clock.usable {
            return clock.now();
        }
    }
    monotonic_ns()
}

/// Reads `CLOCK_MONOTONIC` in ns.
pub(crate) fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Reads the same clock as of the kernel's last tick, up to 10 ms ago: a quarter of the cost of
/// [`now_ns`], for ages of minutes.
#[inline]
pub(crate) fn tick_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC_COARSE)
}

#[inline]
fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec of ours; these clocks always exist.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Names the source of [`now_ns`], for people.
pub(crate) fn source() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if CLOCK.get_or_init(Clock::calibrate).usable {
        return "tsc";
    }
    "clock_gettime"
}

static CLOCK: OnceLock<Clock> = OnceLock::new();

/// ns = `anchor_ns` + (ticks − `anchor_ticks`) · `scale` / 2^32.
struct Clock {
    usable: bool,
    /// Odd while somebody writes the three below.
    version: AtomicU64,
    anchor_ticks: AtomicU64,
    anchor_ns: AtomicU64,
    scale: AtomicU64,
    /// Where calibration began: the longer the base line, the better the scale.
    first_ticks: u64,
    first_ns: u64,
    /// Ticks after which to anchor anew: about a second.
    renew: u64,
}

#[cfg(target_arch = "x86_64")]
impl Clock {
    fn calibrate() -> Clock {
        let (first_ticks, first_ns) = sample();
        let mut last = sample();
        while last.1 - first_ns < 1_000_000 {
            last = sample();
        }
        let ticks = last.0.wrapping_sub(first_ticks);
        let scale = scale(ticks, last.1 - first_ns);
        Clock {
            usable: is_invariant() && ticks > 0 && scale > 0,
            version: AtomicU64::new(0),
            anchor_ticks: AtomicU64::new(last.0),
            anchor_ns: AtomicU64::new(last.1),
            scale: AtomicU64::new(scale),
            first_ticks,
            first_ns,
            renew: ticks.saturating_mul(1000),
        }
    }

    #[inline]
    fn now(&self) -> u64 {
        let ticks = ticks();
        loop {
            let version = self.version.load(Ordering::Acquire);
            let anchor_ticks = self.anchor_ticks.load(Ordering::Acquire);
            let anchor_ns = self.anchor_ns.load(Ordering::Acquire);
            let scale = self.scale.load(Ordering::Acquire);
            // The loads above are Acquire, so this one cannot come before them.
            if version & 1 == 1 || version != self.version.load(Ordering::Relaxed) {
                continue;
            }
            let passed = ticks.wrapping_sub(anchor_ticks);
            if passed > self.renew {
                // A reader that raced with a renewal has a count from before the anchor.
                return if passed > u64::MAX / 2 { anchor_ns } else { self.renew(version) };
            }
            return anchor_ns + ((u128::from(passed) * u128::from(scale)) >> 32) as u64;
        }
    }

    #[cold]
    fn renew(&self, version: u64) -> u64 {
        let (ticks, ns) = sample();
        let claim = self.version.compare_exchange(
            version,
            version + 1,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if claim.is_ok() {
            self.anchor_ticks.store(ticks, Ordering::Release);
            self.anchor_ns.store(ns, Ordering::Release);
            let scale = scale(ticks.wrapping_sub(self.first_ticks), ns - self.first_ns);
            self.scale.store(scale, Ordering::Release);
            self.version.store(version + 2, Ordering::Release);
        }
        ns
    }
}

/// ns per tick, times 2^32.
fn scale(ticks: u64, ns: u64) -> u64 {
    ((u128::from(ns) << 32) / u128::from(ticks.max(1))) as u64
}

/// Reads both clocks at nearly the same time: the tightest of three tries.
#[cfg(target_arch = "x86_64")]
fn sample() -> (u64, u64) {
    (0..3)
        .map(|_| {
            let before = ticks();
            let ns = monotonic_ns();
            let width = ticks().wrapping_sub(before);
            (width, before.wrapping_add(width / 2), ns)
        })
        .min()
        .map_or((0, 0), |(_, ticks, ns)| (ticks, ns))
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn ticks() -> u64 {
    // SAFETY: reads a register; every x86-64 has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Whether the counter runs at one rate through every sleep state and frequency.
#[cfg(target_arch = "x86_64")]
fn is_invariant() -> bool {
    use std::arch::x86_64::__cpuid;
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & 1 << 8 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_up_with_the_clock() {
        let allowed = 100_000;
        for _ in 0..1000 {
            let before = monotonic_ns();
            let now = now_ns();
            let after = monotonic_ns();
            assert!(now + allowed >= before && now <= after + allowed);
        }
    }
}
