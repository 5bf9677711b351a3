//! Events: one write for each, however many listen.

mod doorbell;
mod layout;
mod memory;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use layout::{HEADER_BYTES, PAGE_BYTES, is_ring_size};
pub use layout::{SLOT, ring_bytes};

/// Where a subscriber begins in what a publisher has in its ring already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the next event.
    #[default]
    Now,
    /// With the last event, where there is one: the state of things, of who publishes that.
    Last,
    /// With so many of the last events, as far as they are there.
    Retained(u64),
}
