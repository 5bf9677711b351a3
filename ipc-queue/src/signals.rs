//! SIGTERM and SIGINT end the loop in order: a thread waits for them, nothing runs in a handler.

use std::{sync::Arc, thread};

use ipc::Interrupter;
use nix::sys::signal::{SigSet, Signal};

use crate::Failure;

/// The signals that stop the process, blocked in every thread made from now on.
#[derive(Debug)]
pub(crate) struct Blocked(SigSet);

/// Blocks them. Call it before any other thread exists.
pub(crate) fn block() -> Result<Blocked, Failure> {
    let set: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    set.thread_block().map_err(|errno| Failure::System { what: "block signals", errno })?;
    Ok(Blocked(set))
}

impl Blocked {
    /// Interrupts the loop at the first signal, and ends the process at the second.
    pub(crate) fn forward(self, interrupter: Arc<Interrupter>) -> Result<(), Failure> {
        let wait = move || {
            if self.0.wait().is_ok() {
                interrupter.fire();
            }
            if let Ok(signal) = self.0.wait() {
                std::process::exit(128 + signal as i32);
            }
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .stack_size(64 * 1024)
            .spawn(wait)
            .map(drop)
            .map_err(|error| Failure::System {
                what: "start the signal thread",
                errno: nix::Error::try_from(error).unwrap_or(nix::Error::UnknownErrno),
            })
    }
}
