//! What a handler knows of a call beside its message.

use std::time::Duration;

use super::{
    RpcOptions,
    wire::{RequestHead, Trace},
};
use crate::{CallOptions, Priority, Request, ServiceId, civil::Deadline, clock, error::CallError};

/// What a handler knows of a call beside its message.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    source: ServiceId,
    message_id: u64,
    priority: Priority,
    deadline_ns: Option<u64>,
    trace: Option<Trace>,
    key: Option<[u8; 16]>,
}

impl Context {
    #[inline]
    pub(super) fn of(request: &Request<'_>, head: &RequestHead) -> Context {
        Context {
            source: request.source(),
            message_id: request.message_id(),
            priority: request.priority(),
            deadline_ns: request.deadline_ns(),
            trace: head.trace,
            key: head.key,
        }
    }

    /// Who calls: an instance, or an anonymous id. Proved by the kernel.
    pub fn source(&self) -> ServiceId {
        self.source
    }

    /// The message id, unique on its channel, and the same to the caller.
    pub fn message_id(&self) -> u64 {
        self.message_id
    }

    /// Its priority.
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// The trace that it is part of.
    pub fn trace(&self) -> Option<Trace> {
        self.trace
    }

    /// The key by which a repeated request is known again.
    pub fn key(&self) -> Option<[u8; 16]> {
        self.key
    }

    /// How long the caller still waits; nothing when it waits for ever.
    pub fn left(&self) -> Option<Duration> {
        let left = |until_ns: u64| until_ns.saturating_sub(clock::monotonic_ns());
        self.deadline_ns.map(left).map(Duration::from_nanos)
    }

    /// Gives the options for a call that this one makes in its turn: what is left of its time, and
    /// its trace.
    ///
    /// # Errors
    /// [`CallError::TimedOut`] when nothing is left.
    pub fn options(&self) -> Result<RpcOptions, CallError> {
        let call = CallOptions::within(self)?;
        Ok(RpcOptions { call, trace: self.trace, key: None })
    }
}

impl Deadline for Context {
    fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns
    }
}
