//! Calling methods: one answer, or a stream of them.

use std::{
    cell::Cell,
    marker::PhantomData,
    time::{Duration, Instant},
};

use super::{
    Method,
    fault::{Fault, RpcError},
    prost::{Message, bytes::BufMut},
    wire::{AnswerHead, CLOSE, LONGEST_HEAD, NEXT, RequestHead, Trace, WireError, stream_id},
};
use crate::{
    CallOptions, Client,
    civil::{Idempotency, RetryConfig, SystemClock, retry},
    client::Repeats,
    error::CallError,
};

/// How a typed call is made.
///
/// ```
/// use ipc::rpc::{RpcOptions, Trace};
/// use std::time::Duration;
///
/// let options = RpcOptions::from(Duration::from_millis(50)).trace(Trace::default());
/// # let _ = options;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RpcOptions {
    /// Its timeout and priority. The timeout of a stream is for all of it.
    pub call: CallOptions,
    /// The trace that it is part of.
    pub trace: Option<Trace>,
    /// By which the service knows a repeated request again, if it looks at such keys.
    pub key: Option<[u8; 16]>,
}

impl RpcOptions {
    /// Makes it part of a trace.
    #[must_use]
    pub fn trace(self, trace: Trace) -> RpcOptions {
        RpcOptions { trace: Some(trace), ..self }
    }

    /// Gives it a key: whoever sends it again sends the same.
    #[must_use]
    pub fn key(self, key: [u8; 16]) -> RpcOptions {
        RpcOptions { key: Some(key), ..self }
    }

    /// Says what it means to carry out such a call of a method twice.
    pub(super) fn idempotency(&self, method: Method) -> Idempotency {
        if self.key.is_some() { Idempotency::Keyed } else { method.idempotency }
    }

    /// Writes a request, and has `send` send it.
    #[inline]
    pub(super) fn encoded<T>(
        &self,
        method: u32,
        message: &impl Message,
        send: impl FnOnce(&[u8]) -> T,
    ) -> T {
        let longest = LONGEST_HEAD + message.encoded_len();
        if longest <= SMALL {
            // A quarter of what it takes in a vector, which looks for room at each field.
            let mut small = [0; SMALL];
            let mut room = &mut small[..];
            self.write_head(method, &mut room);
            message.encode_raw(&mut room);
            let length = SMALL - room.len();
            return send(&small[..length]);
        }
        send(&self.encode(method, message))
    }

    pub(super) fn encode(&self, method: u32, message: &impl Message) -> Vec<u8> {
        let mut out = Vec::with_capacity(LONGEST_HEAD + message.encoded_len());
        self.write_head(method, &mut out);
        // A vector grows: there is always room.
        message.encode_raw(&mut out);
        out
    }

    #[inline]
    fn write_head(&self, method: u32, out: &mut impl BufMut) {
        RequestHead::write(method, self.trace.as_ref(), self.key.as_ref(), out);
    }

    /// With what is left of the time of an attempt.
    pub(super) fn at_most(&self, left: Duration) -> CallOptions {
        let timeout = self.call.timeout.map_or(left, |timeout| timeout.min(left));
        CallOptions { timeout: Some(timeout), ..self.call }
    }
}

impl<T: Into<CallOptions>> From<T> for RpcOptions {
    fn from(call: T) -> RpcOptions {
        RpcOptions { call: call.into(), ..RpcOptions::default() }
    }
}

/// Calls the methods of a service: what clients made by `ipc-build` are made of.
#[derive(Clone, Debug)]
pub struct Caller {
    client: Client,
    retry: Option<RetryConfig>,
}

thread_local! {
    /// Where answers are read, without an allocation each.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Messages of up to so many bytes are written to the stack.
pub(super) const SMALL: usize = 256;

/// Scratch memory of more than this is given back to the system.
const KEPT: usize = 64 << 10;

impl Caller {
    /// Calls by this client, once each.
    pub fn new(client: Client) -> Caller {
        Caller { client, retry: None }
    }

    /// Tries again, where that is safe: methods that are declared `IDEMPOTENT` or
    /// `NO_SIDE_EFFECTS`, calls with a key, and what was not delivered.
    #[must_use]
    pub fn with_retry(self, config: RetryConfig) -> Caller {
        Caller { retry: Some(config), ..self }
    }

    /// Gives the client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Calls a method that has one answer.
    ///
    /// # Errors
    /// [`RpcError`].
    #[inline]
    pub fn unary<R: Message + Default>(
        &self,
        method: Method,
        request: &impl Message,
        options: impl Into<RpcOptions>,
    ) -> Result<R, RpcError> {
        let options = options.into();
        let mut answer = SCRATCH.take();
        let outcome = options
            .encoded(method.id, request, |sent| self.exchange(method, sent, &mut answer, &options));
        let outcome = match outcome {
            Ok(()) => message(&answer),
            Err(error) => Err(error),
        };
        if answer.capacity() <= KEPT {
            SCRATCH.set(answer);
        }
        outcome
    }

    /// Calls a method that has a stream of answers. The first of them are there when this returns.
    ///
    /// # Errors
    /// [`RpcError`].
    pub fn stream<R: Message + Default>(
        &self,
        method: Method,
        request: &impl Message,
        options: impl Into<RpcOptions>,
    ) -> Result<Items<R>, RpcError> {
        let options = options.into();
        let mut answer = Vec::new();
        let sent = options.encode(method.id, request);
        let until = options.call.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.exchange(method, &sent, &mut answer, &options)?;
        let batch = Batch::of(answer)?;
        Ok(Items { client: self.client.clone(), batch, options, until, kind: PhantomData })
    }

    /// Sends a request until it is answered, and that without a fault.
    #[inline]
    fn exchange(
        &self,
        method: Method,
        sent: &[u8],
        answer: &mut Vec<u8>,
        options: &RpcOptions,
    ) -> Result<(), RpcError> {
        match &self.retry {
            None => {
                let repeats = Repeats::of(method.idempotency == Idempotency::Idempotent);
                Ok(self.client.call_repeatable(sent, answer, options.call, repeats)?)
            }
            Some(config) => self.exchange_again(config, method, sent, answer, options),
        }
    }

    fn exchange_again(
        &self,
        config: &RetryConfig,
        method: Method,
        sent: &[u8],
        answer: &mut Vec<u8>,
        options: &RpcOptions,
    ) -> Result<(), RpcError> {
        let budget = options.call.timeout.map_or(config.budget, |all| all.min(config.budget));
        let config = RetryConfig { budget, ..*config };
        retry(&config, options.idempotency(method), &SystemClock, |attempt| {
            if attempt.left.is_zero() {
                return Err(CallError::TimedOut.into());
            }
            self.client.call_into_vec(sent, answer, options.at_most(attempt.left))?;
            // A fault may be worth another try, so it is looked at here.
            body(answer).map(drop)
        })
    }
}

/// Gives the head and the body of an answer that is no fault.
#[inline]
pub(super) fn body(answer: &[u8]) -> Result<(AnswerHead, &[u8]), RpcError> {
    let (head, body) = AnswerHead::decode(answer)?;
    if let AnswerHead::Fault { status, retry } = head {
        let message = String::from_utf8_lossy(body).into_owned();
        return Err(Fault { status, message, retry }.into());
    }
    Ok((head, body))
}

/// Reads an answer that is a message.
#[inline]
pub(super) fn message<R: Message + Default>(answer: &[u8]) -> Result<R, RpcError> {
    match body(answer)? {
        (AnswerHead::Message, body) => {
            let mut message = R::default();
            message.merge(body)?;
            Ok(message)
        }
        (AnswerHead::Stream { .. } | AnswerHead::Fault { .. }, _) => Err(RpcError::Kind),
    }
}

/// The part of a stream that has come.
#[derive(Debug)]
pub(super) struct Batch {
    stream: u64,
    bytes: Vec<u8>,
    /// Where the next message begins.
    at: usize,
    /// Whether there may be more on the other side.
    pub(super) more: bool,
}

impl Batch {
    pub(super) fn of(bytes: Vec<u8>) -> Result<Batch, RpcError> {
        let (more, stream, at) = match body(&bytes)? {
            (AnswerHead::Stream { more }, body) => {
                let (stream, items) = stream_id(body)?;
                (more, stream, bytes.len() - items.len())
            }
            (AnswerHead::Message | AnswerHead::Fault { .. }, _) => return Err(RpcError::Kind),
        };
        Ok(Batch { stream, bytes, at, more })
    }

    /// Takes the next message, if it has come.
    pub(super) fn next<R: Message + Default>(&mut self) -> Option<Result<R, RpcError>> {
        let mut rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let item = R::decode_length_delimited(&mut rest);
        self.at = self.bytes.len() - rest.len();
        Some(item.map_err(RpcError::from))
    }

    /// Writes the request for more, or the one that ends the stream.
    pub(super) fn ask(&self, method: u32, options: &RpcOptions) -> Vec<u8> {
        let mut sent = Vec::with_capacity(64);
        RequestHead { method, trace: options.trace, key: None }.encode(&mut sent);
        sent.extend_from_slice(&self.stream.to_le_bytes());
        sent
    }

    /// Takes in the answer to that. An answer without messages that says that there are more
    /// would be asked for again and again.
    pub(super) fn refill(&mut self, bytes: Vec<u8>) -> Result<(), RpcError> {
        let next = Batch::of(bytes)?;
        if next.stream != self.stream || (next.more && next.at == next.bytes.len()) {
            return Err(WireError::Body.into());
        }
        *self = next;
        Ok(())
    }

    pub(super) fn end(&mut self) {
        self.at = self.bytes.len();
        self.more = false;
    }
}

/// Says what is left of a stream's time.
pub(super) fn left(options: &RpcOptions, until: Option<Instant>) -> Result<CallOptions, CallError> {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    if left.is_some_and(|left| left.is_zero()) {
        return Err(CallError::TimedOut);
    }
    Ok(CallOptions { timeout: left, ..options.call })
}

/// The answers of a stream, in their order. They are fetched as they are needed, so a slow reader
/// slows the service down, and nothing piles up. Dropped, it ends the stream.
#[derive(Debug)]
pub struct Items<R> {
    client: Client,
    batch: Batch,
    options: RpcOptions,
    until: Option<Instant>,
    kind: PhantomData<fn() -> R>,
}

impl<R: Message + Default> Iterator for Items<R> {
    type Item = Result<R, RpcError>;

    /// An error is the last.
    fn next(&mut self) -> Option<Result<R, RpcError>> {
        loop {
            if let Some(item) = self.batch.next() {
                if item.is_err() {
                    self.close();
                }
                return Some(item);
            }
            if !self.batch.more {
                return None;
            }
            if let Err(error) = self.fetch() {
                self.close();
                return Some(Err(error));
            }
        }
    }
}

impl<R> Items<R> {
    fn fetch(&mut self) -> Result<(), RpcError> {
        let options = left(&self.options, self.until)?;
        let answer = self.client.call(&self.batch.ask(NEXT, &self.options), options)?;
        self.batch.refill(answer)
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.batch.more) {
            // Without it the service lets go of the stream a little later.
            let _ = self.client.send(&self.batch.ask(CLOSE, &self.options), Duration::ZERO);
        }
        self.batch.end();
    }
}

impl<R> Drop for Items<R> {
    fn drop(&mut self) {
        self.close();
    }
}
