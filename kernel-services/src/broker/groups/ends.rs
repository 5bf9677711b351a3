//! How supervised processes ended: their parent, the supervisor, tells it once it has reaped them.
//! Who asks what became of such a process waits for that, since it comes for certain; of any other
//! nobody here is told.

use std::collections::VecDeque;

use ipc::{FailureKind, ProcessEnd, ServiceId, control::Reply};

use super::{Broker, Turn};

/// Ends that are remembered, for connections that are found lost later.
const MOST_ENDS: usize = 256;

/// A process: its number, and when it started.
type Process = (u32, u64);

/// The last ends that the supervisor told of.
#[derive(Debug, Default)]
pub(super) struct Ends(VecDeque<(Process, Option<ProcessEnd>)>);

impl Ends {
    /// Whether this process was told to have ended.
    pub(super) fn has(&self, process: Process) -> bool {
        self.0.iter().any(|(it, _)| *it == process)
    }

    /// How it ended, if that was told, and its parent was there to see.
    pub(super) fn of(&self, process: Process) -> Option<ProcessEnd> {
        self.0.iter().find(|(it, _)| *it == process).and_then(|(_, end)| *end)
    }

    fn remember(&mut self, process: Process, end: Option<ProcessEnd>) {
        if self.0.len() >= MOST_ENDS {
            self.0.pop_front();
        }
        self.0.push_back((process, end));
    }
}

impl Broker {
    /// A supervised process has ended. How is not known of one that an earlier runtime started.
    pub(in crate::broker) fn ended(
        &mut self,
        process: Process,
        end: Option<ProcessEnd>,
        turn: &mut Turn,
    ) {
        self.groups.suspects.ends.remember(process, end);
        let mut answers = Vec::new();
        let failed = self.groups.suspects.failed.iter_mut();
        for failed in failed.filter(|it| it.process == process) {
            if failed.failure.kind == FailureKind::Unreachable {
                failed.failure.kind = FailureKind::Crashed;
            }
            (failed.failure.end, failed.is_awaited) = (end, false);
            let asking = std::mem::take(&mut failed.asking);
            answers.extend(asking.into_iter().map(|asked| (asked, failed.failure)));
        }
        for (asked, failure) in answers {
            self.answer_hand(Some(asked), Reply::Failure(failure), turn);
        }
        // Its connection may not be found lost yet.
        let open = self.groups.suspects.open.keys().copied();
        let of_it = |it: &ServiceId| self.process_of(*it) == Some(process);
        for instance in open.filter(of_it).collect::<Vec<_>>() {
            self.close_suspect(instance, FailureKind::Crashed, turn);
        }
    }

    /// Whether somebody asks of an instance whose process is supervised, and has not been told to
    /// have ended.
    pub(super) fn is_awaited(&self, instance: ServiceId) -> bool {
        let suspects = &self.groups.suspects;
        let is_asked = suspects.open.get(&instance).is_some_and(|it| !it.asking.is_empty());
        let session = self.token_of(instance).and_then(|token| self.sessions.get(&token));
        let is_unit = session.is_some_and(|it| it.peer.unit.is_some());
        let process = self.process_of(instance);
        is_asked && is_unit && process.is_some_and(|it| !suspects.ends.has(it))
    }

    /// How the process of an instance ended, where that was told.
    pub(super) fn end_of(&self, instance: ServiceId) -> Option<ProcessEnd> {
        self.groups.suspects.ends.of(self.process_of(instance)?)
    }

    fn process_of(&self, instance: ServiceId) -> Option<Process> {
        let session = self.sessions.get(&self.token_of(instance)?)?;
        Some((session.peer.pid, session.peer.start_time))
    }
}
