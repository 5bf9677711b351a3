//! How long a run goes on: for a time, and until so much has been done.

use std::time::Duration;

/// What a run is to come to. All of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aims {
    pub(crate) duration: Duration,
    /// Deaths of who serves; 0 for any number.
    pub(crate) kills: u64,
    /// Effects in the ledger, each counted once; 0 for any number.
    pub(crate) messages: u64,
}

/// What it has come to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) time: Duration,
    pub(crate) kills: u64,
    pub(crate) messages: u64,
}

impl Aims {
    /// The share that is done of what will take longest: 1 or more at the end.
    pub(crate) fn progress(&self, done: &Done) -> f64 {
        let part = |done: u64, of: u64| if of == 0 { f64::MAX } else { done as f64 / of as f64 };
        let time = done.time.as_secs_f64() / self.duration.as_secs_f64();
        time.min(part(done.kills, self.kills)).min(part(done.messages, self.messages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_over_when_all_is_done() {
        let aims = Aims { duration: Duration::from_mins(1), kills: 100, messages: 0 };
        let at = |seconds, kills, messages| {
            aims.progress(&Done { time: Duration::from_secs(seconds), kills, messages })
        };
        assert!(at(0, 0, 0) < 0.001 && at(600, 0, 9) < 0.001 && at(0, 1000, 9) < 0.001);
        assert!((at(600, 25, 0) - 0.25).abs() < 0.001 && (at(30, 1000, 0) - 0.5).abs() < 0.001);
        assert!(at(60, 100, 0) >= 1.0);
        let all = Aims { messages: 10, ..aims };
        let done = Done { time: Duration::from_hours(1), kills: 1000, messages: 9 };
        assert!(all.progress(&done) < 1.0);
        assert!(all.progress(&Done { messages: 10, ..done }) >= 1.0);
    }
}
