//! Suspects one that does not answer. Pure: it is told the time.
//!
//! Nobody is asked while all goes well. A caller that has heard nothing for the interval of the
//! [`HealthCheck`] asks; what comes of its own accord counts as an answer. So many answers missed
//! are a suspicion, unless this one is known to answer late: then it is waited for until its
//! silence is improbable (phi-accrual, over the answers that it gave), but never beyond a bound.
//!
//! A suspicion is no finding: whoever has it tells the runtime, which looks for itself.

use crate::control::HealthCheck;

/// Answers that are remembered.
const WINDOW: usize = 32;
/// So many at least before they say anything.
const FEWEST: usize = 4;
/// An answer is given up when only one in 10^8 would come later.
const PHI: f64 = 8.0;
/// The least deviation that is believed, in ns: answers pass a scheduler.
const LEAST_DEVIATION_NS: f64 = 500_000.0;
/// However late one is known to be: so many times the silence that the check allows.
const MOST_PATIENCE: u64 = 4;
/// The longest pause before a suspicion is told again, in ns.
const MOST_PAUSE_NS: u64 = 1_000_000_000;

/// What is to be done, and when to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Nothing.
    Wait(u64),
    /// Ask whether anybody is there.
    Ask(u64),
    /// Tell the runtime.
    Suspect(u64),
}

impl Advice {
    /// When to look again.
    pub(crate) fn until_ns(self) -> u64 {
        match self {
            Advice::Wait(until) | Advice::Ask(until) | Advice::Suspect(until) => until,
        }
    }
}

/// Watches over one that others wait for.
#[derive(Debug)]
pub(crate) struct Detector {
    health: HealthCheck,
    answers: Answers,
    /// What was heard last, as a count of all that came, and when.
    count: u64,
    heard_ns: u64,
    asked: Option<Asked>,
}

/// A question that is not answered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    first_ns: u64,
    last_ns: u64,
    missed: u32,
    /// How often the runtime was told.
    told: u32,
}

impl Detector {
    pub(crate) fn new(health: HealthCheck) -> Detector {
        Detector { health, answers: Answers::default(), count: 0, heard_ns: 0, asked: None }
    }

    /// Goes by this check from now on.
    pub(crate) fn adopt(&mut self, health: HealthCheck) {
        self.health = health;
    }

    /// Forgets what it knows: somebody else is watched.
    pub(crate) fn restart(&mut self) {
        *self = Detector::new(self.health);
    }

    /// How long a caller waits before it looks.
    pub(crate) fn interval_ns(&self) -> u64 {
        ms(self.health.interval_ms)
    }

    /// An answer has come.
    pub(crate) fn answered(&mut self, now_ns: u64) {
        if let Some(asked) = self.asked.take() {
            // One that was found late says little, and must not buy much patience.
            let took = now_ns.saturating_sub(asked.first_ns);
            self.answers.push(took.min(ms(self.health.silence_ms())));
        }
        self.heard_ns = now_ns;
    }

    /// Looks, for a caller that has waited since then; `count` counts all that has come.
    pub(crate) fn look(&mut self, now_ns: u64, since_ns: u64, count: u64) -> Advice {
        if count != self.count {
            self.count = count;
            self.heard_ns = now_ns;
            self.asked = None;
        }
        let timeout = ms(self.health.timeout_ms);
        let Some(asked) = &mut self.asked else {
            let due = self.heard_ns.max(since_ns).saturating_add(ms(self.health.interval_ms));
            if now_ns < due {
                return Advice::Wait(due);
            }
            let asked = Asked { first_ns: now_ns, last_ns: now_ns, missed: 0, told: 0 };
            self.asked = Some(asked);
            return Advice::Ask(now_ns.saturating_add(timeout));
        };
        let due = asked.last_ns.saturating_add(pause_ns(asked, timeout));
        if now_ns < due {
            return Advice::Wait(due);
        }
        asked.last_ns = now_ns;
        asked.missed = asked.missed.saturating_add(1);
        if asked.missed < self.health.threshold {
            return Advice::Ask(now_ns.saturating_add(timeout));
        }
        let silence = now_ns.saturating_sub(asked.first_ns);
        let most = ms(self.health.silence_ms()).saturating_mul(MOST_PATIENCE);
        if self.answers.phi(silence) < PHI && silence < most {
            return Advice::Wait(now_ns.saturating_add(timeout));
        }
        asked.told = asked.told.saturating_add(1);
        Advice::Suspect(now_ns.saturating_add(pause_ns(asked, timeout)))
    }
}

/// How long until the next look: longer each time that the runtime was told and did nothing.
fn pause_ns(asked: &Asked, timeout: u64) -> u64 {
    let times = u64::from(asked.missed.max(1)) << asked.told.min(20);
    if asked.told == 0 { timeout } else { timeout.saturating_mul(times).min(MOST_PAUSE_NS) }
}

fn ms(ms: u32) -> u64 {
    u64::from(ms) * 1_000_000
}

/// How long the last answers took.
#[derive(Debug, Default)]
struct Answers {
    took: [u64; WINDOW],
    count: usize,
}

impl Answers {
    fn push(&mut self, took_ns: u64) {
        self.took[self.count % WINDOW] = took_ns;
        // Beyond the window only the remainder counts.
        self.count = if self.count >= 2 * WINDOW { WINDOW + 1 } else { self.count + 1 };
    }

    /// How improbable it is that an answer comes after so long: 1 is one in ten, 8 one in 10^8.
    fn phi(&self, silence_ns: u64) -> f64 {
        let known = &self.took[..self.count.min(WINDOW)];
        if known.len() < FEWEST {
            return f64::INFINITY;
        }
        let many = known.len() as f64;
        let mean = known.iter().map(|took| *took as f64).sum::<f64>() / many;
        let spread = known.iter().map(|took| (*took as f64 - mean).powi(2)).sum::<f64>() / many;
        let deviation = spread.sqrt().max(mean / 4.0).max(LEAST_DEVIATION_NS);
        // The logistic approximation of the normal distribution's tail.
        let y = (silence_ns as f64 - mean) / deviation;
        let exponent = y * (1.5976 + 0.070_566 * y * y);
        let later = if exponent > 0.0 {
            let e = (-exponent).exp();
            e / (1.0 + e)
        } else {
            1.0 / (1.0 + exponent.exp())
        };
        // So far out that nothing is left of it.
        if later <= f64::MIN_POSITIVE { f64::INFINITY } else { -later.log10() }
    }
}

#[cfg(test)]
mod tests;
