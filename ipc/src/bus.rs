//! Events: one write for each, however many listen.
//!
//! A publisher has a ring of memory for each topic, which it alone writes and all subscribers map
//! read-only. Each subscriber has a cursor of its own there; the publisher knows nothing of it. So
//! an event costs its publisher the same for one subscriber as for a thousand, and no subscriber
//! can hold up another.
//!
//! - A subscriber that is slower than a whole ring is told how many events it has missed
//!   ([`EventError::Lagged`]), and goes on with the oldest that is left.
//! - For a *reliable* one publishers wait: for as long as it is less than a ring behind not at all,
//!   from then on for 100 ms; then they cut it off ([`EventError::Cut`]).
//! - A late-comer begins with the next event, with the last, or with the last *n* ([`Start`]).
//!
//! `docs/events.md` says more, and when to use what.

#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod feed;
#[cfg(not(loom))]
mod handled;
#[cfg(not(loom))]
mod listener;
#[cfg(not(loom))]
mod places;
#[cfg(not(loom))]
mod publisher;
#[cfg(not(loom))]
mod subscription;
#[cfg(not(loom))]
mod typed;

mod doorbell;
pub(crate) mod layout;
mod memory;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

#[cfg(not(loom))]
use crate::{ServiceId, control, error::NodeError};
pub(crate) use layout::{HEADER_BYTES, PAGE_BYTES, is_ring_size};
pub use layout::{SLOT, ring_bytes};
#[cfg(not(loom))]
pub use {
    error::{EventError, PublishError},
    handled::{EventHandler, EventResult},
    publisher::{Batch, Publisher},
    subscription::Subscription,
    typed::{EventBus, EventReceiver, TypedError, TypedEvent},
};
#[cfg(not(loom))]
pub(crate) use {
    feed::{Feed, Seat, Source},
    listener::Listener,
    memory::Ring,
    publisher::Outlet,
};
#[cfg(all(feature = "fuzzing", not(loom)))]
pub(crate) use {reader::Cursor, writer::Writer};

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

/// How to publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishOptions {
    /// Events of the usual size ([`SLOT`] bytes with their head) that the ring holds; what the node
    /// file says of the topic by default, and 10,000 where it says nothing.
    pub events: Option<u64>,
}

/// How to subscribe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Where to begin in what is there.
    pub start: Start,
    /// Whether publishers wait for this subscriber; as the node file says of the topic by default,
    /// and not where it says nothing.
    pub reliable: Option<bool>,
}

impl SubscribeOptions {
    /// Has publishers wait for this subscriber.
    #[must_use]
    pub fn reliable(self) -> SubscribeOptions {
        SubscribeOptions { reliable: Some(true), ..self }
    }

    /// Begins there.
    #[must_use]
    pub fn from(self, start: Start) -> SubscribeOptions {
        SubscribeOptions { start, ..self }
    }
}

/// Names a topic: by its name, or by its number as C does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub(crate) id: u32,
    pub(crate) name: String,
}

impl From<u32> for Topic {
    fn from(id: u32) -> Topic {
        Topic { id, name: String::new() }
    }
}

impl From<&str> for Topic {
    fn from(name: &str) -> Topic {
        Topic { id: 0, name: name.to_owned() }
    }
}

#[cfg(not(loom))]
impl Topic {
    /// Refuses what names nothing.
    pub(crate) fn check(&self) -> Result<(), NodeError> {
        if self.id != 0 {
            return Ok(());
        }
        control::check_name(&self.name).map_err(NodeError::Name)
    }
}

/// What is known of an event beside its bytes.
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventHead {
    /// Number of the topic.
    pub topic: u32,
    /// Who published it: an instance that it served when it began, or its anonymous id.
    pub publisher: ServiceId,
    /// The publisher's process.
    pub pid: u32,
    /// Its number among those of this publisher in this topic, from 0.
    pub sequence: u64,
    /// When, as the publisher says: `CLOCK_MONOTONIC` in ns.
    pub at_ns: u64,
}

/// An event.
#[cfg(not(loom))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where it comes from.
    pub head: EventHead,
    /// Its bytes: a private copy.
    pub payload: Vec<u8>,
}
