//! Ending every wait of a node, from anywhere, a signal handler included.

mod signals;

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{
    error::NodeError,
    sync::{AtomicU32, Ordering},
    wait::futex,
};

pub use self::signals::StopSignals;

/// Ends the blocked calls and loops of one node.
#[derive(Debug)]
pub struct Interrupter {
    /// Counts the interruptions; waiters compare it with what it was when they began.
    turn: AtomicU32,
    /// For those who sleep in epoll: edge-triggered, never read.
    bell: EventFd,
}

impl Interrupter {
    pub(crate) fn new() -> Result<Interrupter, NodeError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = EventFd::from_value_and_flags(0, flags)
            .map_err(NodeError::system("make an eventfd"))?;
        Ok(Interrupter { turn: AtomicU32::new(0), bell })
    }

    /// Makes every blocked call return [`CallError::Canceled`](crate::CallError::Canceled), and
    /// every running loop, or the next one that is entered.
    ///
    /// Async-signal-safe: an atomic increment, a futex wake and a write.
    pub fn fire(&self) {
        self.turn.fetch_add(1, Ordering::SeqCst);
        futex::wake(&self.turn, false, i32::MAX);
        // EAGAIN: the counter is full, so the edge was given long ago.
        let _ = nix::unistd::write(&self.bell, &1_u64.to_ne_bytes());
    }

    #[inline]
    pub(crate) fn turn(&self) -> u32 {
        self.turn.load(Ordering::Acquire)
    }

    /// The word to sleep on while the turn is this one.
    pub(crate) fn word(&self, turn: u32) -> futex::Word<'_> {
        futex::Word { at: &self.turn, value: turn, shared: false }
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
