//! Logs that grow: rotated when they are too long.

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{LOGS, System};
use crate::{console::say, reactor::monotonic_ns};

/// Between two looks at logs that grow, in nanoseconds.
const LOOK_AT_LOGS_NS: u64 = 1_000_000_000;

impl System {
    pub(super) fn hear_logs(&mut self) {
        // What was written does not matter, only that something was.
        while self.log_events.read_events().is_ok_and(|events| !events.is_empty()) {}
        if self.logs_due_ns.is_none() {
            self.logs_due_ns = Some(monotonic_ns() + LOOK_AT_LOGS_NS);
            self.listen_to_logs(EpollFlags::empty());
        }
    }

    /// Rotates what has grown too long. Logs that grow are looked at now and then, not for every
    /// line.
    pub(super) fn look_at_logs(&mut self) {
        if self.logs_due_ns.is_none_or(|due| due > monotonic_ns()) {
            return;
        }
        self.logs_due_ns = None;
        for service in &self.node.services {
            if let Err(error) = self.logs.rotate(&service.name, &service.log) {
                say(&error.to_string());
            }
        }
        self.listen_to_logs(EpollFlags::EPOLLIN);
    }

    fn listen_to_logs(&self, flags: EpollFlags) {
        // Cannot fail: it was added and is open.
        let _ = self.epoll.modify(&self.log_events, &mut EpollEvent::new(flags, LOGS));
    }
}
