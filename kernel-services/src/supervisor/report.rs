//! What is told about units.

use std::{fmt, time::Duration};

use crate::console::count;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By its own will.
    Exit {
        /// 0 is success.
        code: i32,
    },
    /// By a signal.
    Signal {
        /// Which.
        number: i32,
        /// It left a core dump.
        core: bool,
    },
    /// It was adopted, so that only its parent knows.
    Unknown,
}

impl End {
    /// Says whether it ended as it should.
    pub fn is_success(self) -> bool {
        self == End::Exit { code: 0 }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Exit { code } => write!(f, "exit code {code}"),
            End::Signal { number, core: false } => write!(f, "signal {number}"),
            End::Signal { number, core: true } => write!(f, "signal {number}, core dumped"),
            End::Unknown => f.write_str("nobody knows how"),
        }
    }
}

/// Something worth telling about a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A process is being started.
    Starts {
        /// The how manieth.
        attempt: u32,
    },
    /// Its process runs.
    Runs {
        /// Its number.
        pid: u32,
    },
    /// A process that an earlier ipcd started is its own again.
    Adopted {
        /// Its number.
        pid: u32,
    },
    /// It is ready.
    Ready,
    /// Its process could not be started.
    SpawnFailed {
        /// Why.
        reason: String,
    },
    /// It was not ready in time, and is killed.
    Late {
        /// As it had.
        within: Duration,
    },
    /// It did not answer pings, and is killed.
    Hung {
        /// In a row.
        missed: u32,
    },
    /// It is asked to stop.
    Stops,
    /// It did not stop in time, and is killed.
    Stubborn {
        /// As it had.
        within: Duration,
    },
    /// Its process ended.
    Ended {
        /// In what way.
        how: End,
        /// It was to stop.
        asked: bool,
    },
    /// It is started again later.
    RestartsIn {
        /// As it waits.
        delay: Duration,
        /// Of the failure.
        reason: String,
    },
    /// It is restarted because another is.
    RestartsWith {
        /// The other.
        unit: String,
    },
    /// It is stopped because another is restarted, and is itself never restarted.
    StopsWith {
        /// The other.
        unit: String,
    },
    /// Its group has used up its restarts, and stops.
    GaveUp {
        /// Its group; its own name if it is in none.
        group: String,
        /// With the last failure.
        reason: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Starts { attempt: 1 } => f.write_str("starts"),
            Notice::Starts { attempt } => write!(f, "starts, attempt {attempt}"),
            Notice::Runs { pid } => write!(f, "runs as process {pid}"),
            Notice::Adopted { pid } => write!(f, "still runs as process {pid}"),
            Notice::Ready => f.write_str("is ready"),
            Notice::SpawnFailed { reason } => write!(f, "cannot be started: {reason}"),
            Notice::Late { within } => write!(f, "was not ready within {within:?}: killed"),
            Notice::Hung { missed } => {
                write!(f, "hangs, {} unanswered: killed", count(*missed, "ping"))
            }
            Notice::Stops => f.write_str("is asked to stop"),
            Notice::Stubborn { within } => write!(f, "did not stop within {within:?}: killed"),
            Notice::Ended { how, asked: true } => write!(f, "stopped: {how}"),
            Notice::Ended { how, asked: false } => write!(f, "ended: {how}"),
            Notice::RestartsIn { delay, reason } => {
                write!(f, "is restarted in {delay:.1?}: {reason}")
            }
            Notice::RestartsWith { unit } => write!(f, "is restarted with {unit}"),
            Notice::StopsWith { unit } => write!(f, "is stopped with {unit}, which is restarted"),
            Notice::GaveUp { group, reason } => write!(f, "group {group} gave up: {reason}"),
        }
    }
}
