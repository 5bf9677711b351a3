//! Which of the requests that are there is next.

use super::Body;
use crate::{channel::Receive, layout::Ring, server::request::Meta};

/// What [`Incoming::next`] found.
pub(super) enum Next {
    /// Its payload is so much of the receive buffer.
    Fresh(Meta, usize),
    Owned(Meta, Body),
    /// Something was taken that needs no handler, or has to wait.
    Again,
    Nothing,
}

/// Whether a fresh request may be handled at once: nothing of its level or above waits, and
/// nothing above it can be behind it in its ring.
pub(super) fn goes_first(rx: &mut Receive, ring: Ring, priority: u32) -> bool {
    let is_top_of_its_ring = priority == 0 || priority == 2;
    let nothing_behind = || match ring {
        Ring::Urgent => !rx.urgent.is_ready(),
        Ring::Ordinary => !rx.ordinary.is_ready(),
    };
    (is_top_of_its_ring || nothing_behind()) && rx.queue.yields_to(priority)
}

pub(super) fn pop(rx: &mut Receive, now: u64) -> Next {
    match rx.queue.pop() {
        Some(queued) => {
            rx.board.waited(now.saturating_sub(queued.meta.received_ns));
            Next::Owned(queued.meta, queued.body)
        }
        None => Next::Nothing,
    }
}
