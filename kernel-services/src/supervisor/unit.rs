//! One replica of one service: where it is, and where it is to be.

use std::time::Duration;

use super::{End, Notice};
use crate::node::{Ready, Service, Watchdog};

#[derive(Debug)]
pub(super) struct Unit {
    /// Its place in the plan.
    pub(super) service: usize,
    /// From 1.
    pub(super) replica: u32,
    pub(super) name: String,
    pub(super) state: State,
    pub(super) since_ns: u64,
    pub(super) goal: Goal,
    /// It goes down before it comes up again. Only while it has a process.
    pub(super) cycle: bool,
    /// The node file does not have it any more: forgotten once it is down.
    pub(super) leaving: bool,
    /// Not started before.
    pub(super) not_before_ns: u64,
    /// Failures in a row: the exponent of the back-off.
    pub(super) failures: u32,
    pub(super) attempt: u32,
    pub(super) restarts: u32,
    pub(super) pid: Option<u32>,
    /// When its process was started or adopted.
    pub(super) started_ns: u64,
    pub(super) last_end: Option<End>,
    /// Why it is not as it should be.
    pub(super) reason: Option<String>,
}

/// From `Spawning` on it has a process, or may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Stopped,
    /// For those it depends on.
    Waiting,
    /// Until `not_before_ns`.
    BackingOff,
    /// Ended with exit code 0, and not to be started again.
    Finished,
    /// Ended otherwise, and not to be started again.
    Ended,
    /// Its group gave up.
    Failed,
    Spawning,
    Starting {
        until_ns: u64,
    },
    Ready {
        watch: Option<Watch>,
    },
    /// Asked to end. Whoever is here has a goal other than going on.
    Stopping {
        until_ns: u64,
    },
    Killed {
        fault: Option<Fault>,
    },
}

/// Why a process was killed that was not to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Late,
    Hung,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Up,
    Down(Why),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// A command.
    Asked,
    /// The node file does not have it any more.
    Gone,
    /// It is never restarted, and its group is.
    Sibling,
    GaveUp,
    Shutdown,
}

/// The pings of a ready unit; one is under way at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    /// The next ping.
    pub(super) next_ns: u64,
    /// When the one under way has no answer.
    pub(super) until_ns: Option<u64>,
    /// In a row.
    pub(super) missed: u32,
}

impl Watch {
    pub(super) fn new(terms: Watchdog, now_ns: u64) -> Watch {
        Watch { next_ns: after(now_ns, terms.interval), until_ns: None, missed: 0 }
    }
}

impl Unit {
    pub(super) fn new(service: usize, spec: &Service, replica: u32, now_ns: u64) -> Unit {
        Unit {
            service,
            replica,
            name: Unit::name_of(spec, replica),
            state: State::Waiting,
            since_ns: now_ns,
            goal: Goal::Up,
            cycle: false,
            leaving: false,
            not_before_ns: 0,
            failures: 0,
            attempt: 0,
            restarts: 0,
            pid: None,
            started_ns: 0,
            last_end: None,
            reason: None,
        }
    }

    pub(super) fn name_of(spec: &Service, replica: u32) -> String {
        match spec.replicas {
            1 => spec.name.clone(),
            _ => format!("{}#{replica}", spec.name),
        }
    }

    pub(super) fn enter(&mut self, state: State, now_ns: u64) {
        self.state = state;
        self.since_ns = now_ns;
    }

    /// Has a process, or will have one that was ordered.
    pub(super) fn has_process(&self) -> bool {
        match self.state {
            State::Stopped
            | State::Waiting
            | State::BackingOff
            | State::Finished
            | State::Ended
            | State::Failed => false,
            State::Spawning
            | State::Starting { .. }
            | State::Ready { .. }
            | State::Stopping { .. }
            | State::Killed { .. } => true,
        }
    }

    /// Its process is to end, whether it was told yet or not.
    pub(super) fn must_stop(&self) -> bool {
        self.has_process() && (self.goal != Goal::Up || self.cycle)
    }

    /// Is up, and stays so.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. }) && !self.must_stop()
    }

    /// Its process has come to be.
    pub(super) fn runs(&mut self, spec: &Service, pid: u32, now_ns: u64) -> Option<Notice> {
        self.pid = Some(pid);
        self.started_ns = now_ns;
        match spec.readiness.when {
            Ready::Runs => Some(self.become_ready(spec, now_ns)),
            Ready::Answers | Ready::Exits => {
                let until_ns = after(now_ns, spec.readiness.within);
                self.enter(State::Starting { until_ns }, now_ns);
                None
            }
        }
    }

    pub(super) fn become_ready(&mut self, spec: &Service, now_ns: u64) -> Notice {
        let watch = spec.watchdog.map(|terms| Watch::new(terms, now_ns));
        self.enter(State::Ready { watch }, now_ns);
        self.reason = None;
        Notice::Ready
    }

    /// Is down as was asked.
    pub(super) fn rest(&mut self, now_ns: u64) {
        self.cycle = false;
        self.pid = None;
        let state = match self.goal {
            Goal::Up => return self.queue(now_ns),
            Goal::Down(Why::Asked | Why::Gone | Why::Shutdown) => State::Stopped,
            Goal::Down(Why::Sibling) => State::Ended,
            Goal::Down(Why::GaveUp) => State::Failed,
        };
        self.enter(state, now_ns);
    }

    /// Is to start as soon as may be.
    pub(super) fn queue(&mut self, now_ns: u64) {
        let waits = self.not_before_ns > now_ns;
        self.enter(if waits { State::BackingOff } else { State::Waiting }, now_ns);
    }

    /// Is to run, whatever was before; without a delay, and with no failures counted.
    pub(super) fn renew(&mut self, now_ns: u64) {
        let was_to_stop = self.must_stop();
        self.goal = Goal::Up;
        (self.not_before_ns, self.failures) = (0, 0);
        match self.state {
            State::Stopped | State::BackingOff | State::Finished | State::Ended | State::Failed => {
                self.reason = None;
                self.enter(State::Waiting, now_ns);
            }
            // Told to end already, so it does; what was not told stays.
            State::Stopping { .. } | State::Killed { .. } => self.cycle |= was_to_stop,
            State::Waiting | State::Spawning | State::Starting { .. } | State::Ready { .. } => {}
        }
    }

    /// When something is due that comes by time alone.
    pub(super) fn deadline_ns(&self, spec: &Service) -> Option<u64> {
        match self.state {
            State::BackingOff => Some(self.not_before_ns),
            State::Stopping { until_ns } => Some(until_ns),
            // It is to stop anyway, in its turn.
            _ if self.must_stop() => None,
            State::Starting { until_ns } => Some(until_ns),
            State::Ready { watch: Some(watch) } if spec.watchdog.is_some() => {
                Some(watch.until_ns.unwrap_or(watch.next_ns))
            }
            _ => None,
        }
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn after(now_ns: u64, duration: Duration) -> u64 {
    now_ns.saturating_add(nanos(duration))
}
