//! A request in the hands of its handler.

use std::{
    cell::{Cell, RefCell},
    sync::{Arc, OnceLock},
};

use super::incoming::Incoming;
use crate::{
    Priority, ServiceId,
    bulk::{Loan, View},
    channel::{Peer, check_payload},
    error::{CallError, Status},
    frame::Kind,
    once::RequestKey,
    sync::{AtomicBool, Ordering},
    trace::{self, Context},
};

/// What is known of a request beside its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    pub(crate) message_id: u64,
    pub(crate) kind: Kind,
    pub(crate) priority: u32,
    pub(crate) deadline_ns: Option<u64>,
    pub(crate) received_ns: u64,
    /// At which the instance served when it was taken.
    pub(crate) epoch: u64,
}

/// A request, or a one-way message, while its handler runs.
///
/// Answer it with [`reply`](Request::reply) or [`reply_error`](Request::reply_error), or
/// [`retain`](Request::retain) it to answer later. Dropped without any of these, it makes the
/// caller's call fail with `IPC_ENOREPLY`.
#[derive(Debug)]
pub struct Request<'a> {
    pub(super) incoming: &'a Arc<Incoming>,
    pub(super) meta: Meta,
    pub(super) payload: &'a [u8],
    /// The payload, if it came in bulk. A reference: a request is cheap to drop.
    pub(super) bulk: Option<&'a Arc<Bulk>>,
    pub(super) answered: Cell<bool>,
}

/// A payload in bulk memory, copied when somebody asks for its bytes.
#[derive(Debug)]
pub(crate) struct Bulk {
    view: View,
    copy: OnceLock<Vec<u8>>,
}

/// Bytes that a thread keeps for its next copy, at most. Beyond, fresh pages cost little beside the
/// copy itself, and would be the process's for good.
const MOST_SPARE: usize = 8 << 20;

thread_local! {
    /// Where copies were before, for the next: fresh pages cost more than the copy.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Bulk {
    pub(super) fn new(view: View) -> Bulk {
        Bulk { view, copy: OnceLock::new() }
    }

    pub(super) fn view(&self) -> &View {
        &self.view
    }

    fn bytes(&self) -> &[u8] {
        self.copy.get_or_init(|| {
            let mut bytes = SPARE.try_with(RefCell::take).unwrap_or_default();
            self.view.copy_into(&mut bytes);
            bytes
        })
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        if let Some(bytes) = self.copy.take().filter(|bytes| bytes.capacity() <= MOST_SPARE) {
            let _ = SPARE.try_with(|spare| spare.replace(bytes));
        }
    }
}

/// A request that outlives its handler: it owns its payload, and may be answered from any thread.
///
/// Dropped without an answer, it makes the caller's call fail with `IPC_ENOREPLY`.
#[derive(Debug)]
pub struct Retained {
    incoming: Arc<Incoming>,
    meta: Meta,
    payload: Vec<u8>,
    bulk: Option<Arc<Bulk>>,
    answered: AtomicBool,
    /// That of its handler.
    trace: Option<Context>,
}

macro_rules! accessors {
    () => {
        /// The message id, unique on its channel, and the same to the caller.
        pub fn message_id(&self) -> u64 {
            self.meta.message_id
        }

        /// Names it, also where it is sent again to another process.
        ///
        /// The sender's part is the number of its process, which the kernel proved: an id that it
        /// was given by the runtime ends with that runtime, unless it serves a name.
        pub fn key(&self) -> RequestKey {
            let process = ServiceId::new(self.peer().pid);
            RequestKey::new(process, self.message_id(), self.priority())
        }

        /// Who sent it: an instance, or an anonymous id. Proved by the kernel.
        pub fn source(&self) -> ServiceId {
            self.peer().id
        }

        /// The id of the name that the sender serves, or 0.
        pub fn source_name(&self) -> ServiceId {
            self.peer().name
        }

        /// Who sent it, in full.
        pub fn peer(&self) -> Peer {
            self.incoming.channel.peer()
        }

        /// The number of the channel that it came over; no other channel ever has it.
        pub fn channel(&self) -> u64 {
            self.incoming.channel.introduction.channel
        }

        /// What the rules let the sender do here: bits `1 << operation_type_t`.
        pub fn permissions(&self) -> u64 {
            self.incoming.channel.introduction.permissions
        }

        /// The fingerprint of the session that it came by; nothing on a plain channel.
        pub fn fingerprint(&self) -> Option<[u8; 32]> {
            self.incoming.channel.fingerprint()
        }

        /// The instance it was sent to.
        pub fn dest(&self) -> ServiceId {
            self.incoming.channel.introduction.dest
        }

        /// The id of the name of that instance.
        pub fn dest_name(&self) -> ServiceId {
            self.incoming.channel.introduction.dest_name
        }

        /// The epoch at which this instance served its name when it took the request, by which a
        /// store that hears of a later one can refuse what this request leads to; 0 where it stood
        /// by, and was called by its own id. It stays, though the name changes hands meanwhile.
        pub fn epoch(&self) -> u64 {
            self.meta.epoch
        }

        /// Its priority.
        pub fn priority(&self) -> Priority {
            Priority::from_level(self.meta.priority).unwrap_or_default()
        }

        /// Whether the sender waits for nothing.
        pub fn is_one_way(&self) -> bool {
            self.meta.kind == Kind::OneWay
        }

        /// When the sender gives up: `CLOCK_MONOTONIC` in ns; nothing when it never does, or later
        /// than in half an hour.
        pub fn deadline_ns(&self) -> Option<u64> {
            self.meta.deadline_ns
        }

        /// When it was taken from the ring: `CLOCK_MONOTONIC` in ns, within a few µs.
        pub fn received_ns(&self) -> u64 {
            self.meta.received_ns
        }

        /// A private copy of what was sent: the sender cannot change it any more. A payload that
        /// came in bulk is copied when this is first called.
        #[inline]
        pub fn payload(&self) -> &[u8] {
            match &self.bulk {
                None => &self.payload,
                Some(bulk) => bulk.bytes(),
            }
        }

        /// The payload where it lies, if it came in bulk: nothing is copied.
        pub fn view(&self) -> Option<&View> {
            self.bulk.as_ref().map(|bulk| &bulk.view)
        }

        /// Lends memory for a response of `size` bytes, which the caller will get without a copy
        /// on the way, by `reply_loaned`.
        ///
        /// # Errors
        /// [`CallError::Full`] when no more can be lent now; [`CallError::TooLarge`].
        pub fn loan(&self, size: usize) -> Result<Loan, CallError> {
            check_payload(size, self.incoming.channel.max_payload)?;
            self.incoming.channel.check_fork()?;
            self.incoming.channel.lend(size).ok_or(CallError::Full)
        }
    };
}

impl Request<'_> {
    accessors!();

    /// The longest response that may be sent.
    #[cfg(feature = "rpc")]
    pub(crate) fn longest_reply(&self) -> u64 {
        self.incoming.channel.max_payload
    }

    /// Sends the response. Never waits: when the caller does not take its answers they are
    /// queued, up to a quota, and then its channel is cut.
    ///
    /// # Errors
    /// [`CallError::AlreadyAnswered`], [`CallError::Invalid`] for a one-way message,
    /// [`CallError::TooLarge`] (the request is still unanswered), [`CallError::PeerDied`].
    #[inline]
    pub fn reply(&self, payload: &[u8]) -> Result<(), CallError> {
        if self.answered.get() {
            return Err(CallError::AlreadyAnswered);
        }
        self.incoming.answer(&self.meta, payload)?;
        self.answered.set(true);
        Ok(())
    }

    /// Ends the caller's call with an error: one of the service's own (at most -1000), or one of
    /// the library's.
    ///
    /// # Errors
    /// As for [`reply`](Request::reply); [`CallError::Invalid`] for a status that is no error.
    pub fn reply_error(&self, status: Status) -> Result<(), CallError> {
        if self.answered.get() {
            return Err(CallError::AlreadyAnswered);
        }
        self.incoming.answer_error(&self.meta, status)?;
        self.answered.set(true);
        Ok(())
    }

    /// Sends a loan of this request as the response.
    ///
    /// # Errors
    /// As for [`reply`](Request::reply); the loan was given back.
    pub fn reply_loaned(&self, loan: Loan) -> Result<(), CallError> {
        if self.answered.get() {
            return Err(CallError::AlreadyAnswered);
        }
        self.incoming.answer_loaned(&self.meta, loan)?;
        self.answered.set(true);
        Ok(())
    }

    /// Keeps the request beyond its handler, with a copy of its payload, or with its loan if it
    /// came in bulk.
    pub fn retain(self) -> Retained {
        let answered = self.answered.replace(true);
        Retained {
            incoming: Arc::clone(self.incoming),
            meta: self.meta,
            payload: self.payload.to_vec(),
            bulk: self.bulk.map(Arc::clone),
            answered: AtomicBool::new(answered),
            trace: trace::current(),
        }
    }

    /// Gives the trace that its handler runs within, if it is traced: what the handler's thread
    /// calls carries it.
    pub fn trace(&self) -> Option<Context> {
        trace::current()
    }
}

impl Drop for Request<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.answered.get() && self.meta.kind == Kind::Request {
            let _ = self.incoming.answer_error(&self.meta, Status::NO_REPLY);
        }
    }
}

impl Retained {
    accessors!();

    /// Gives the trace that its handler ran within, if it was traced. Who answers later enters it,
    /// on whichever thread, or in a [`task`](trace::task): calls made for it carry it then.
    pub fn trace(&self) -> Option<Context> {
        self.trace
    }

    /// The longest response that may be sent.
    #[cfg(all(feature = "rpc", feature = "tokio"))]
    pub(crate) fn longest_reply(&self) -> u64 {
        self.incoming.channel.max_payload
    }

    /// Sends the response. As [`Request::reply`].
    ///
    /// # Errors
    /// As for [`Request::reply`].
    pub fn reply(&self, payload: &[u8]) -> Result<(), CallError> {
        self.once(|| self.incoming.answer(&self.meta, payload))
    }

    /// Ends the caller's call with an error. As [`Request::reply_error`].
    ///
    /// # Errors
    /// As for [`Request::reply_error`].
    pub fn reply_error(&self, status: Status) -> Result<(), CallError> {
        self.once(|| self.incoming.answer_error(&self.meta, status))
    }

    /// Sends a loan of this request as the response. As [`Request::reply_loaned`].
    ///
    /// # Errors
    /// As for [`Request::reply_loaned`].
    pub fn reply_loaned(&self, loan: Loan) -> Result<(), CallError> {
        self.once(|| self.incoming.answer_loaned(&self.meta, loan))
    }

    fn once(&self, answer: impl FnOnce() -> Result<(), CallError>) -> Result<(), CallError> {
        if self.answered.swap(true, Ordering::AcqRel) {
            return Err(CallError::AlreadyAnswered);
        }
        let result = answer();
        if matches!(result, Err(CallError::TooLarge { .. } | CallError::Invalid(_))) {
            self.answered.store(false, Ordering::Release);
        }
        result
    }
}

impl Drop for Retained {
    fn drop(&mut self) {
        let answered = self.answered.load(Ordering::Acquire);
        if !answered && self.meta.kind == Kind::Request {
            let _ = self.incoming.answer_error(&self.meta, Status::NO_REPLY);
        }
    }
}
