//! SIGTERM and SIGINT end a program's loops in order: a thread waits for them, and nothing runs in
//! a handler.

use std::{sync::Arc, thread};

use nix::sys::signal::{SigSet, Signal};

use super::Interrupter;
use crate::error::NodeError;

/// The signals that stop a service, SIGTERM and SIGINT, blocked in every thread that is made from
/// now on.
///
/// ```no_run
/// use ipc::{CallError, Config, Node, StopSignals};
///
/// // First of all, so that every thread that comes later inherits the mask.
/// let signals = StopSignals::block()?;
/// let node = Node::connect(&Config::default())?;
/// signals.forward(node.interrupter())?;
/// let server = node.server()?;
/// server.register("echo", 0)?;
/// match server.run(|request| drop(request.reply(request.payload()))) {
///     // Somebody sent SIGTERM.
///     Err(CallError::Canceled) => {}
///     other => other?,
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "nobody waits for the signals before `forward`"]
pub struct StopSignals(SigSet);

impl StopSignals {
    /// Blocks them for this thread, and for those that it makes. Call it before there are others:
    /// a signal to a process goes to any thread that does not block it, and kills there.
    ///
    /// # Errors
    /// [`NodeError::System`]; nothing is blocked.
    pub fn block() -> Result<StopSignals, NodeError> {
        let set: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
        set.thread_block().map_err(NodeError::system("block signals"))?;
        Ok(StopSignals(set))
    }

    /// Has a thread wait for them from now on: the first ends what blocks on a node, as
    /// [`Interrupter::fire`] does, and the second ends the process, with 128 and its number.
    ///
    /// # Errors
    /// [`NodeError::System`]: there is no thread to be had. The signals stay blocked.
    pub fn forward(self, interrupter: Arc<Interrupter>) -> Result<(), NodeError> {
        let wait = move || {
            if self.0.wait().is_ok() {
                interrupter.fire();
            }
            if let Ok(signal) = self.0.wait() {
                std::process::exit(128 + signal as i32);
            }
        };
        let thread = thread::Builder::new().name("ipc-signals".to_owned()).stack_size(64 * 1024);
        let thread = thread.spawn(wait);
        let what = "start the thread for signals";
        thread.map(drop).map_err(|source| NodeError::System { what, source })
    }
}
