//! The audit log: what was granted and denied, who died, who was killed, what an operator did.
//!
//! One record is a line of JSON, and ends with the SHA-256 of itself and of the line before it. So
//! no line can be changed, taken out, put in or moved without [`verify`] saying at which one; what
//! is cut off at the end shows against `audit.head`, or a hash that was noted elsewhere.
//!
//! ```text
//!   audit-00000000000000012840.log   rotated: its last record has that number
//!   audit.log                        the file that grows
//!   audit.head                       number and hash of the last record that is durable
//!   audit-torn-…                     what a crash left unfinished, or somebody damaged: cut off
//! ```
//! Whoever may write these files can write a new, consistent chain: they are of mode 0600, and
//! who wants to be sure keeps a hash elsewhere (`ipctl audit verify --head HASH`).
//!
//! # Who writes
//! The broker and the supervisor pass on what happened and never wait: notes go through a queue of
//! 4096 to a thread of its own, which makes durable together what came together ([`Log::flush`]:
//! one write and one `fdatasync`). What the queue has no room for is counted, and the count is a
//! record ([`Kind::Lost`]). A failed flush stops nothing: it is told on stderr, and the next one
//! writes the same bytes again, in the same place, a second later at the latest.
//!
//! No text breaks out of its field: everything but letters, digits and ASCII punctuation is escaped
//! (`\u000a`), and a field longer than [`FIELD`] bytes is cut.

mod line;
mod log;
mod verify;
mod writer;

use std::borrow::Cow;

pub use crate::notes::Kind;

pub use line::{Fault, Hash};
pub use log::{Keep, Log, OpenError, Unwritten};
pub use verify::{Bad, Found, verify, verify_to};
pub(crate) use writer::Writer;

/// Longest text of a field, in bytes; what is longer is cut and ends in `...`.
pub const FIELD: usize = 1024;
/// Most bytes that wait for a flush.
pub const PENDING: usize = 1 << 20;

/// One thing to be recorded. Fields that do not apply are empty.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// What happened.
    pub kind: Kind,
    /// Who did it, or to whom it happened.
    pub subject: Cow<'a, str>,
    /// With what.
    pub object: Cow<'a, str>,
    /// The operation's name.
    pub operation: Cow<'a, str>,
    /// Whether it was allowed, where that was the question.
    pub verdict: Option<bool>,
    /// The rule or default, the exit status, the reason.
    pub because: Cow<'a, str>,
}

impl<'a> Record<'a> {
    /// Begins a record of somebody; the rest is empty.
    pub fn new(kind: Kind, subject: impl Into<Cow<'a, str>>) -> Record<'a> {
        let none = || Cow::Borrowed("");
        let subject = subject.into();
        Record { kind, subject, object: none(), operation: none(), verdict: None, because: none() }
    }
}

#[cfg(test)]
mod tests;
