//! How publishing and receiving events can fail.

use crate::{ServiceId, error::Status};

/// Explains why an event was not published. Nothing of it can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It is longer than a quarter of the ring.
    #[error("event of {size} bytes is over the limit of {limit}: raise the topic's event_bus_size")]
    TooLarge {
        /// Bytes of the event.
        size: u64,
        /// Most bytes of one.
        limit: u64,
    },
    /// Other rules hold by now, and do not let this process publish here.
    #[error("the rules do not let this process publish this topic any more")]
    Revoked,
    /// The process is a forked child of the one that made the publisher.
    #[error("this process was forked: connect again in the child")]
    Forked,
}

impl PublishError {
    /// Gives the number by which C knows this error.
    pub fn status(&self) -> Status {
        match self {
            PublishError::TooLarge { .. } => Status::MESSAGE_SIZE,
            PublishError::Revoked => Status::ACCESS,
            PublishError::Forked => Status::FORKED,
        }
    }
}

/// Explains why there is no event. Unless it says so, the subscription goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// This subscriber is slower than the publisher: so many events were overwritten before it read
    /// them. It goes on with the oldest that is left.
    #[error("lagged: {count} events of {publisher} were overwritten before they were read")]
    Lagged {
        /// Whose they were.
        publisher: ServiceId,
        /// How many.
        count: u64,
    },
    /// A publisher has waited for this reliable subscriber as long as it does, and given it up:
    /// nothing more comes from that publisher. Subscribe again, and begin anew.
    #[error("cut off: {publisher} does not wait for this subscriber any longer")]
    Cut {
        /// Who.
        publisher: ServiceId,
    },
    /// A publisher's memory is not what an honest one writes; nothing more is read of it.
    #[error("{publisher} does not write what a publisher writes; it is not heard any more")]
    Corrupt {
        /// Who.
        publisher: ServiceId,
    },
    /// Other rules hold by now, and do not let this process subscribe here. Nothing more comes.
    #[error("the rules do not let this process subscribe to this topic any more")]
    Revoked,
    /// None came in time.
    #[error("timed out: no event came in time")]
    TimedOut,
    /// The node was interrupted.
    #[error("cancelled")]
    Canceled,
    /// The process is a forked child of the one that subscribed.
    #[error("this process was forked: connect again in the child")]
    Forked,
}

impl EventError {
    /// Gives the number by which C knows this error.
    pub fn status(&self) -> Status {
        match self {
            EventError::Lagged { .. } | EventError::Cut { .. } => Status::LAGGED,
            EventError::Corrupt { .. } => Status::PEER_CORRUPT,
            EventError::Revoked => Status::ACCESS,
            EventError::TimedOut => Status::TIMED_OUT,
            EventError::Canceled => Status::CANCELED,
            EventError::Forked => Status::FORKED,
        }
    }
}
