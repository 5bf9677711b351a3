//! Why a command failed: a sentence, a status of `ipc.h`, and an exit status for scripts.

use std::{io, time::Duration};

use ipc::{CallError, NodeError, Status, bus::EventError, queue::QueueError};

use crate::units;

/// Ends a command. Each sentence says what can be done, in terms of this program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no such service: nobody serves {0:?} now; see `ipctl ls`")]
    NoService(String),
    #[error(
        "no such service: nobody serves {0:?} now; see `ipctl ls`, or wait for it with --wait 10s"
    )]
    NotYetServed(String),
    #[error(
        "no such service: nobody serves {0:?} now; start ipc-queue (docs/queues.md), or say with \
         --service NAME by which name it serves"
    )]
    NoQueues(String),
    #[error("nobody stands by for {0:?}; see `ipctl failover status`, or give it `replicas = 2`")]
    NoStandby(String),
    #[error("instance {to} does not stand by for {name:?}; see `ipctl failover status`")]
    NotStandby { name: String, to: u32 },
    #[error("nobody served {name:?} within {}", units::show(*waited))]
    NeverServed { name: String, waited: Duration },
    #[error("{0:?} did not accept a channel in time: its process is stopped or stuck")]
    NeverOpened(String),
    #[error(
        "{name:?} did not answer a ping within {}: its loop is busy or stuck",
        units::show(*timeout)
    )]
    Silent { name: String, timeout: Duration },
    #[error("{name:?} took no messages for {}: its loop is busy or stuck", units::show(*timeout))]
    Stalled { name: String, timeout: Duration },
    #[error("this runtime supervises nothing: start ipcd with --config FILE")]
    Unsupervised,
    #[error("no service, group or unit is called {0:?}; see `ipctl status`")]
    NoUnit(String),
    #[error(
        "the supervisor did not answer within {}; what it was told goes on: see `ipctl status`, or \
         wait longer with --timeout 5m",
        units::show(*.0)
    )]
    Unanswered(Duration),
    #[error("{0}")]
    Told(String),
    #[error("{0}")]
    Usage(String),
    #[error(
        "the payloads of {0:?} may not be shown: the node file must say so, under [monitor]: \
         payloads = [\"name:{0}\"]; then `ipctl reload`"
    )]
    NoPayloads(String),
    #[error("no queue is called {0:?}; see `ipctl queues`")]
    NoQueue(String),
    #[error(transparent)]
    Queue(QueueError),
    #[error("the supervisor's answer is no JSON that this ipctl understands: {0}")]
    Answer(serde_json::Error),
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Store { path: String, source: io::Error },
    #[error("cannot write the answer: {0}")]
    Write(io::Error),
    #[error("cannot keep {what}: {why}")]
    Histogram { what: &'static str, why: hdrhistogram::CreationError },
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Event(#[from] EventError),
}

impl Failure {
    /// The number by which C knows it.
    pub(crate) fn status(&self) -> Status {
        match self {
            Failure::NoService(_)
            | Failure::NotYetServed(_)
            | Failure::NoQueues(_)
            | Failure::NoStandby(_)
            | Failure::NotStandby { .. }
            | Failure::NoUnit(_)
            | Failure::NoQueue(_) => Status::NOT_FOUND,
            Failure::Queue(error) => error.status(),
            Failure::Unsupervised => Status::NOT_SUPPORTED,
            Failure::NoPayloads(_) => Status::ACCESS,
            // What was commanded did not come to its end.
            Failure::Told(_) => Status::CANCELED,
            Failure::Answer(_) => Status::PROTOCOL,
            Failure::NeverServed { .. }
            | Failure::NeverOpened(_)
            | Failure::Silent { .. }
            | Failure::Stalled { .. }
            | Failure::Unanswered(_) => Status::TIMED_OUT,
            Failure::Read { .. } | Failure::Store { .. } | Failure::Write(_) => Status::IO,
            Failure::Histogram { .. } | Failure::Usage(_) => Status::INVALID,
            Failure::Node(error) => error.status(),
            Failure::Call(error) => error.status(),
            Failure::Event(error) => error.status(),
        }
    }

    /// What the shell sees; `ipctl --help` lists the numbers.
    pub(crate) fn exit_code(&self) -> u8 {
        if let Failure::Call(CallError::Remote(status)) = self {
            // The service's own opinion, except that its side too may find the deadline passed.
            return if *status == Status::TIMED_OUT { 5 } else { 1 };
        }
        if let Failure::Usage(_) = self {
            return 2;
        }
        match self.status() {
            Status::NO_RUNTIME => 3,
            Status::NOT_FOUND => 4,
            Status::TIMED_OUT => 5,
            _ => 1,
        }
    }

    /// Whether the reader of our output went away.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Failure::Write(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_tell_failures_apart() {
        let no_runtime = NodeError::NoRuntime { path: "/run/ipc/socket".into() };
        assert_eq!(Failure::from(no_runtime).exit_code(), 3);
        assert_eq!(Failure::NoService("echo".to_owned()).exit_code(), 4);
        assert_eq!(Failure::from(CallError::TimedOut).exit_code(), 5);
        assert_eq!(Failure::from(CallError::Remote(Status::TIMED_OUT)).exit_code(), 5);
        assert_eq!(Failure::from(CallError::Full).exit_code(), 1);
        assert_eq!(Failure::Unsupervised.exit_code(), 1);
        assert_eq!(Failure::NoUnit("api".to_owned()).exit_code(), 4);
        assert_eq!(Failure::Unanswered(Duration::from_mins(1)).exit_code(), 5);
        assert_eq!(Failure::Told("api: exit code 1".to_owned()).exit_code(), 1);
        assert_eq!(Failure::Usage("\"fly\" is no operation".to_owned()).exit_code(), 2);
    }

    #[test]
    fn a_service_that_answers_not_found_is_not_a_missing_service() {
        let failure = Failure::from(CallError::Remote(Status::NOT_FOUND));
        assert_eq!(failure.exit_code(), 1);
        assert_eq!(failure.status(), Status::NOT_FOUND);
    }

    #[test]
    fn only_a_broken_pipe_is_forgiven() {
        assert!(Failure::Write(io::ErrorKind::BrokenPipe.into()).is_broken_pipe());
        assert!(!Failure::Write(io::ErrorKind::StorageFull.into()).is_broken_pipe());
    }
}
