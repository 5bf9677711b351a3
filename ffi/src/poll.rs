//! The loop: where callbacks run.

#![allow(unsafe_code)] // exports

use std::{
    ffi::c_int,
    time::{Duration, Instant},
};

use ipc_core::{Loop, Status};

use crate::{
    boundary::guard,
    error::{Failure, IPC_OK},
    message,
    process::Process,
    runtime::{self, Runtime},
    service::limit,
};

/// Runs the callbacks that are due: handlers of messages, and the ends of asynchronous calls.
/// Waits for the first at most timeout_ms milliseconds: 0 not at all, IPC_WAIT_FOREVER without
/// limit. Returns how many ran, 0 when the time is over. Several threads may poll: callbacks then
/// run at the same time, those of one source one after another.
///
/// ipc_poll(0) never waits, which is how a foreign event loop uses it: see ipc_fd. It handles at
/// most 64 messages of each sender before it returns.
///
/// IPC_ECANCELED: by ipc_stop or ipc_shutdown. IPC_EREENTRANT: inside a callback.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_poll(timeout_ms: u32) -> c_int {
    guard(|| {
        let runtime = runtime_outside_callbacks()?;
        let handled = runtime.poll(runtime.server.begin_loop(), limit(timeout_ms))?;
        Ok(c_int::try_from(handled).unwrap_or(c_int::MAX))
    })
}

/// Runs callbacks until ipc_stop or ipc_shutdown ends it: returns IPC_ECANCELED then, and never 0.
///
/// IPC_EREENTRANT: inside a callback.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_run() -> c_int {
    guard(|| {
        let runtime = runtime_outside_callbacks()?;
        let begun = runtime.server.begin_loop();
        loop {
            runtime.poll(begun, None)?;
        }
    })
}

/// Makes blocked calls, ipc_poll and ipc_run return IPC_ECANCELED; if none of the latter two runs,
/// the next one does. Async-signal-safe: may be called by a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_stop() -> c_int {
    guard(|| if Process::here()?.stop.pull() { Ok(IPC_OK) } else { Err(Status::NOT_INIT.into()) })
}

/// Gives a file descriptor, for poll, epoll and event loops, that is readable when ipc_poll(0) has
/// work; now and then it is readable for nothing. It belongs to the library: only poll it. It is
/// the same until the last ipc_shutdown, and is closed by that.
///
/// In a foreign loop, watch it for reading, and call ipc_poll(0) once whenever it is readable. It
/// may be watched level-triggered or edge-triggered: what one ipc_poll(0) leaves makes it readable
/// anew, with another edge. Deadlines of asynchronous calls and ipc_stop make it readable, too, so
/// that the loop needs no timer for them, and may sleep without limit. While nothing happens,
/// nothing wakes the loop.
///
/// Loops that must not wait make calls by ipc_send_async and ipc_send_async_ex, not by ipc_call;
/// these two wait only while the ring is full, the latter with a limit.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_fd() -> c_int {
    guard(|| {
        let runtime = runtime::current()?;
        runtime.inbox.wake().fd(runtime.server.fd())
    })
}

fn runtime_outside_callbacks() -> Result<std::sync::Arc<Runtime>, Failure> {
    let runtime = runtime::current()?;
    if message::in_callback() {
        return Err(Status::REENTRANT.into());
    }
    Ok(runtime)
}

/// Longest sleep while messages are held: another thread that polls may hear the bell for us.
const MOST_WAIT: Duration = Duration::from_millis(100);

impl Runtime {
    /// Runs what is due, waiting for it if need be; returns how many callbacks ran, 0 when the
    /// time is over.
    fn poll(&self, begun: Loop, timeout: Option<Duration>) -> Result<usize, Failure> {
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let delivered = self.inbox.flush();
            let left = if delivered > 0 { Some(Duration::ZERO) } else { left(until) };
            // What is held without a handler may get one at any time. That wakes nobody who waits
            // in the core, hence the other wait below.
            let holds = self.inbox.holds();
            let served = self.serve(begun, if holds { Some(Duration::ZERO) } else { left })?;
            if delivered + served > 0 || left == Some(Duration::ZERO) {
                return Ok(delivered + served);
            }
            if holds {
                let left = left.map_or(MOST_WAIT, |left| left.min(MOST_WAIT));
                self.inbox.wake().wait(self.server.fd(), left)?;
            }
        }
    }

    /// Lets the core run what is due; returns how many callbacks ran. Messages without a handler
    /// are held.
    fn serve(&self, begun: Loop, timeout: Option<Duration>) -> Result<usize, Failure> {
        let mut view = self.inbox.view();
        let mut held = 0;
        let handled = self.server.poll_in(begun, timeout, &mut |request| {
            if !self.inbox.take(&mut view, request) {
                held += 1;
            }
        })?;
        Ok(handled.saturating_sub(held))
    }
}

/// The time left until then; nothing for no limit.
fn left(until: Option<Instant>) -> Option<Duration> {
    until.map(|until| until.saturating_duration_since(Instant::now()))
}
