//! Reliable queues: messages that are kept until somebody has acknowledged them.
//!
//! `ipc-queue`, a process that the runtime supervises, keeps them; producers and consumers call it
//! (`docs/queues.md`). A message that [`QueueProducer::send`] has given a [`Receipt`] for is given
//! to a consumer at least once, whoever crashes meanwhile: the producer, consumers, `ipc-queue`,
//! or the runtime; and from a journalled queue, the machine. A consumer has it for a lease. If it
//! neither acknowledges it by then nor asks for longer, or dies, another gets it; after some
//! attempts it is put aside, as a dead letter.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use ipc::queue::{QueueConsumer, QueueProducer, SendOptions};
//! use std::time::Duration;
//!
//! let node = ipc::Node::connect(&ipc::Config::default())?;
//! let producer = QueueProducer::open(&node, "orders")?;
//! producer.send(b"a dozen eggs", &SendOptions::default())?;
//!
//! let consumer = QueueConsumer::open(&node, "orders")?;
//! while let Some(order) = consumer.receive(Some(Duration::from_secs(1)))? {
//!     println!("{:?}, for the {}. time", order.payload(), order.attempt());
//!     consumer.ack(&order)?;
//! }
//! # Ok(())
//! # }
//! ```

mod consumer;
mod hand;
mod post;
mod producer;
#[cfg(feature = "tokio")]
mod tasks;
pub mod wire;

pub use consumer::{Delivery, QueueConsumer};
pub use post::{QueueAdmin, SERVICE};
pub use producer::{QueueProducer, Receipt, SendOptions};
#[cfg(feature = "tokio")]
pub use tasks::{AsyncQueueConsumer, AsyncQueueProducer};
pub use wire::{Account, Terms};

use crate::{CallError, NodeError, Status};

/// Why something was not done with a queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// No queue may be called so. Nothing was asked.
    #[error("{0}")]
    Name(&'static str),
    /// There is no such queue, and none may be made.
    #[error(
        "there is no such queue: declare it in the file of ipc-queue, or allow it to make some"
    )]
    NoQueue,
    /// The rules do not let this process do it.
    #[error("not allowed: the rules of the node file give it no right to that")]
    Forbidden,
    /// The queue holds as much as it may. The message was not stored; it may be sent again.
    #[error("the queue is full; the message was not stored")]
    Full,
    /// Too many requests wait at this queue already. Nothing was done; trying again can help.
    #[error("too many wait at this queue already")]
    Crowded,
    /// The message is larger than the queue takes. It was not stored.
    #[error("the message is larger than the queue takes; it was not stored")]
    TooLarge,
    /// This producer's numbers are too far ahead: whether the message was stored is not known any
    /// more.
    #[error("too old: this producer has sent too many others since")]
    Stale,
    /// There is no memory, or room on the disk, for it. Nothing was done; trying again can help.
    #[error("no room to store it; nothing was done")]
    NoRoom,
    /// The disk failed: nothing is stored any more until `ipc-queue` is restarted. What was asked
    /// may have been done: after a write or sync that failed nobody can say what the disk has. A
    /// message may be in the queue after the restart, and is stored once if it is sent again under
    /// its number ([`QueueProducer::resume`]).
    #[error("the journal failed: it may have been done")]
    Storage,
    /// The time was over before an answer came. It may have been done: a message may be in the
    /// queue.
    #[error("timed out: it may have been done")]
    TimedOut,
    /// The message is not this consumer's any more: its lease ended, and somebody else had it.
    #[error("the message is not this consumer's any more")]
    Lost,
    /// The consumer was [closed](QueueConsumer::close): it receives nothing any more.
    #[error("the consumer was closed")]
    Closed,
    /// The call failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl From<NodeError> for QueueError {
    fn from(error: NodeError) -> QueueError {
        QueueError::Call(error.into())
    }
}

impl QueueError {
    /// Gives the number by which C knows it.
    pub fn status(&self) -> Status {
        match self {
            QueueError::Name(_) => Status::INVALID,
            QueueError::NoQueue => Status::NOT_FOUND,
            QueueError::Forbidden => Status::ACCESS,
            QueueError::Full => Status::FULL,
            QueueError::Crowded => Status::QUOTA,
            QueueError::TooLarge => Status::MESSAGE_SIZE,
            QueueError::Stale | QueueError::Lost => Status::STALE,
            QueueError::NoRoom => Status::NO_MEMORY,
            QueueError::Storage => Status::IO,
            QueueError::TimedOut => Status::TIMED_OUT,
            QueueError::Closed => Status::CANCELED,
            QueueError::Call(error) => error.status(),
        }
    }

    /// Reads what `ipc-queue` answers.
    fn of(status: Status) -> QueueError {
        match status {
            Status::NOT_FOUND => QueueError::NoQueue,
            Status::ACCESS => QueueError::Forbidden,
            Status::FULL => QueueError::Full,
            Status::QUOTA => QueueError::Crowded,
            Status::MESSAGE_SIZE => QueueError::TooLarge,
            Status::STALE => QueueError::Stale,
            Status::NO_MEMORY => QueueError::NoRoom,
            Status::IO => QueueError::Storage,
            Status::TIMED_OUT => QueueError::TimedOut,
            other => QueueError::Call(CallError::Remote(other)),
        }
    }
}
