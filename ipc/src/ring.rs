//! A ring of stamped cells and its slab, in a lane that one side writes and the other reads.
//!
//! The pairs of orderings that carry it:
//!
//! | store | load | what becomes visible |
//! |---|---|---|
//! | stamp, `Release` (producer) | stamp, `Acquire` (consumer) | the cell and its piece of slab |
//! | `taken`, `Release` (consumer) | `taken`, `Acquire` (producer) | that both are free again |
//!
//! Nobody spins on an index: a frame is opened by the stamp in its own line, and `taken` is read
//! only by a producer that has used up its credit.

mod consumer;
mod cursor;
mod producer;
#[cfg(not(loom))]
mod sealed;

pub(crate) use consumer::Consumer;
pub(crate) use producer::{Producer, PushError};
#[cfg(all(feature = "bare", not(loom)))]
pub(crate) use sealed::SealError;

#[cfg(all(test, not(loom)))]
mod tests;
