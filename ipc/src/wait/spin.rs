//! How long to spin before sleeping: learned from whether spinning paid.

use std::{sync::OnceLock, time::Duration};

use crate::sync::{AtomicU32, Ordering};

/// What a configuration says about spinning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Spin {
    /// Up to 50 µs, learned: nothing once spinning has not paid for a while.
    #[default]
    Learned,
    /// Up to so long, learned likewise.
    UpTo(Duration),
    /// Never: sleep at once.
    Never,
    /// Until something comes. Burns a core; for dedicated cores and benchmarks.
    Always,
}

/// Default limit of a spin: a wake-up costs the caller 25 to 45 µs.
const LIMIT_NS: u64 = 50_000;
/// After so many vain spins in a row, at most 2^this waits sleep at once before the next trial.
const MOST_DOUBLINGS: u32 = 4;

/// Decides, wait by wait. Pure: it is told what happened.
#[derive(Debug)]
pub(crate) struct SpinBudget {
    policy: Spin,
    /// Vain spins in a row, up to `MOST_DOUBLINGS`.
    vain: u32,
    /// Waits left that sleep at once.
    skip: u32,
}

impl SpinBudget {
    pub(crate) fn new(policy: Spin) -> SpinBudget {
        SpinBudget { policy, vain: 0, skip: 0 }
    }

    /// Whether a wait may poll at all before it sleeps.
    #[inline]
    pub(crate) fn may_poll(&self) -> bool {
        self.policy != Spin::Never
    }

    /// How long the coming wait may spin, in ns.
    fn next_ns(&mut self) -> u64 {
        let limit = match self.policy {
            Spin::Never => return 0,
            Spin::Always => return u64::MAX,
            Spin::Learned => LIMIT_NS,
            Spin::UpTo(limit) => u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX),
        };
        if self.skip > 0 {
            self.skip -= 1;
            return 0;
        }
        limit
    }

    /// A spin ended with what it waited for.
    fn paid(&mut self) {
        self.vain = 0;
    }

    /// A spin used up its budget.
    fn in_vain(&mut self) {
        self.skip = (1 << self.vain) - 1;
        self.vain = (self.vain + 1).min(MOST_DOUBLINGS);
    }
}

/// Threads of this process that spin now.
static SPINNERS: AtomicU32 = AtomicU32::new(0);

/// A place among the spinners, given back on drop.
#[derive(Debug)]
struct SpinPermit(());

impl SpinPermit {
    /// Grants a place unless every core but one has a spinner of this process already; on a
    /// single core, where the awaited thread could not run, never.
    fn get() -> Option<SpinPermit> {
        let most = cores().saturating_sub(1);
        let taken = SPINNERS.fetch_add(1, Ordering::Relaxed);
        let permit = SpinPermit(());
        (taken < most).then_some(permit)
    }
}

impl Drop for SpinPermit {
    fn drop(&mut self) {
        SPINNERS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A spin under way.
#[derive(Debug)]
pub(crate) struct Spell {
    /// When it ends; 0 when this wait does not spin.
    until: u64,
    _permit: Option<SpinPermit>,
}

impl Spell {
    /// Begins one, if the budget and the other spinners allow it; then asks for the time, in ns.
    pub(crate) fn begin(budget: &mut SpinBudget, now: impl FnOnce() -> u64) -> Spell {
        let length = budget.next_ns();
        // One who said "always" has a core for it, and asks nobody.
        let permit = (length != u64::MAX && length > 0).then(SpinPermit::get);
        let denied = matches!(permit, Some(None));
        let until = if denied || length == 0 { 0 } else { now().saturating_add(length) };
        Spell { until, _permit: permit.flatten() }
    }

    pub(crate) fn goes_on(&self, now: u64) -> bool {
        now < self.until
    }

    /// It ended with what it waited for.
    pub(crate) fn paid(self, budget: &mut SpinBudget) {
        if self.until > 0 {
            budget.paid();
        }
    }

    /// It ended without.
    pub(crate) fn in_vain(self, budget: &mut SpinBudget) {
        if self.until > 0 {
            budget.in_vain();
        }
    }
}

/// Cores of the machine, whatever this process is pinned to: its peer may run on another.
fn cores() -> u32 {
    static CORES: OnceLock<u32> = OnceLock::new();
    *CORES.get_or_init(|| {
        let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
        online.ok().flatten().and_then(|n| u32::try_from(n).ok()).unwrap_or(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_stops_when_it_does_not_pay_and_is_tried_again() {
        let mut budget = SpinBudget::new(Spin::Learned);
        let mut spins = 0;
        for _ in 0..170 {
            if budget.next_ns() > 0 {
                spins += 1;
                budget.in_vain();
            }
        }
        assert!((10..=16).contains(&spins), "{spins} vain spins in 170 waits");
        while budget.next_ns() == 0 {}
        budget.paid();
        assert_eq!(budget.next_ns(), LIMIT_NS);
    }

    #[test]
    fn never_and_always_mean_what_they_say() {
        assert_eq!(SpinBudget::new(Spin::Never).next_ns(), 0);
        let mut always = SpinBudget::new(Spin::Always);
        always.in_vain();
        always.in_vain();
        assert_eq!(always.next_ns(), u64::MAX);
    }
}
