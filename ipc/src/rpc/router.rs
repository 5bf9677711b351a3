//! Serving methods: from a request to its service, and back.

use std::fmt;

use super::{
    Method,
    call::SMALL,
    context::Context,
    fault::Fault,
    prost::{Message, bytes::BufMut},
    streams::{BATCH_ITEMS, BATCH_TIME, Held, Streams, batch_bytes},
    wire::{AnswerHead, CLOSE, HEAD, NEXT, RequestHead, stream_id},
};
use crate::{
    Request,
    civil::Idempotency,
    control::SERVICE_IDEMPOTENT,
    error::{CallError, Status},
};

/// The answers of a method that has many, in their order. What it fails with is the last.
pub type Stream<R> = Box<dyn Iterator<Item = Result<R, Fault>> + Send>;

/// Has methods carried out: what `ipc-build` makes of each `service`, around an implementation.
pub trait Dispatch: Send + Sync {
    /// Lists the methods.
    fn methods(&self) -> &'static [Method];

    /// Carries out a request, by [`unary`] or [`streaming`]; nothing if the method is none of it.
    fn dispatch(
        &self,
        method: u32,
        context: &Context,
        body: &[u8],
        answer: &mut Answer,
    ) -> Option<Result<(), Fault>>;
}

/// Where the answer of a request is put.
pub struct Answer {
    /// A message that is small: fields written to a vector each look for room first.
    small: [u8; SMALL],
    length: usize,
    /// Whatever else is answered; nothing if the above is.
    large: Vec<u8>,
    stream: Option<Source>,
}

impl Answer {
    #[inline]
    fn new() -> Answer {
        Answer { small: [0; SMALL], length: 0, large: Vec::new(), stream: None }
    }

    #[inline]
    fn put(&mut self, message: &impl Message) {
        let length = HEAD + message.encoded_len();
        if length <= SMALL {
            self.length = length;
            let mut room = &mut self.small[..];
            room.put_slice(&AnswerHead::Message.encode());
            message.encode_raw(&mut room);
        } else {
            self.large.reserve_exact(length);
            self.large.extend_from_slice(&AnswerHead::Message.encode());
            message.encode_raw(&mut self.large);
        }
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        if self.large.is_empty() { &self.small[..self.length] } else { &self.large }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("is_stream", &self.stream.is_some()).finish_non_exhaustive()
    }
}

/// Carries out a method that has one answer.
///
/// # Errors
/// What `handle` returns; [`Status::INVALID`] for a body that is no message of its kind.
#[inline]
pub fn unary<Q: Message + Default, R: Message>(
    body: &[u8],
    answer: &mut Answer,
    handle: impl FnOnce(Q) -> Result<R, Fault>,
) -> Result<(), Fault> {
    // Matched, and not passed on by `?`, which moves the messages once more.
    let mut request = Q::default();
    request.merge(body)?;
    match handle(request) {
        Ok(message) => answer.put(&message),
        Err(fault) => return Err(fault),
    }
    Ok(())
}

/// Begins a method that has many answers.
///
/// # Errors
/// What `handle` returns; [`Status::INVALID`] for a body that is no message of its kind.
pub fn streaming<Q: Message + Default, R: Message + 'static>(
    body: &[u8],
    answer: &mut Answer,
    handle: impl FnOnce(Q) -> Result<Stream<R>, Fault>,
) -> Result<(), Fault> {
    let mut items = handle(Q::decode(body)?)?;
    answer.stream = Some(Source {
        next: Box::new(move |out| {
            let item = items.next()?;
            Some(item.map(|item| append(&item, out)))
        }),
        failed: None,
    });
    Ok(())
}

/// Writes a message of a stream.
pub(super) fn append(item: &impl Message, out: &mut Vec<u8>) {
    super::prost::encode_length_delimiter(item.encoded_len(), out)
        .expect("a vector grows: there is always room");
    item.encode_raw(out);
}

/// Writes the next message of a stream, if there is one.
type Next = dyn FnMut(&mut Vec<u8>) -> Option<Result<(), Fault>> + Send;

/// Where the messages of a stream come from.
struct Source {
    next: Box<Next>,
    /// What it failed with behind messages that were sent first.
    failed: Option<Fault>,
}

impl Source {
    /// Gathers messages up to the size of a batch. Returns whether there may be more.
    fn fill(
        &mut self,
        out: &mut Vec<u8>,
        is_enough: impl Fn(usize) -> bool,
    ) -> Result<bool, Fault> {
        if let Some(fault) = self.failed.take() {
            return Err(fault);
        }
        for count in 0..BATCH_ITEMS {
            match (self.next)(out) {
                None => return Ok(false),
                Some(Err(fault)) if count == 0 => return Err(fault),
                Some(Err(fault)) => {
                    self.failed = Some(fault);
                    return Ok(true);
                }
                Some(Ok(())) if is_enough(out.len()) => return Ok(true),
                Some(Ok(())) => {}
            }
        }
        Ok(true)
    }
}

/// Two services have methods with the same id: they cannot be served together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} and {} have the same id, {:#010x}: rename one of them",
    self.0.path, self.1.path, self.0.id
)]
pub struct MethodCollision(pub Method, pub Method);

pub(super) fn check_ids<'a>(
    mut known: impl Iterator<Item = &'a Method>,
    new: &[Method],
) -> Result<(), MethodCollision> {
    let same = |known: &&Method| new.iter().find(|method| method.id == known.id).copied();
    match known.find_map(|known| same(&known).map(|method| MethodCollision(*known, method))) {
        Some(collision) => Err(collision),
        None => Ok(()),
    }
}

pub(super) fn flags<'a>(mut methods: impl Iterator<Item = &'a Method>) -> u32 {
    let repeatable = methods.all(|method| method.idempotency == Idempotency::Idempotent);
    if repeatable { SERVICE_IDEMPOTENT } else { 0 }
}

/// Answers requests by the services that it knows. Any number of threads may use it.
pub struct Router {
    services: Vec<Box<dyn Dispatch>>,
    streams: Streams<Source>,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let methods = self.methods().map(|method| method.path);
        f.debug_list().entries(methods).finish()
    }
}

impl Default for Router {
    fn default() -> Router {
        Router::new()
    }
}

impl Router {
    /// Knows no service yet.
    pub fn new() -> Router {
        Router { services: Vec::new(), streams: Streams::new() }
    }

    /// Adds a service.
    ///
    /// # Errors
    /// [`MethodCollision`].
    pub fn with(mut self, service: impl Dispatch + 'static) -> Result<Router, MethodCollision> {
        check_ids(self.methods(), service.methods())?;
        self.services.push(Box::new(service));
        Ok(self)
    }

    fn methods(&self) -> impl Iterator<Item = &'static Method> {
        self.services.iter().flat_map(|service| service.methods())
    }

    /// Gives the flags for [`Server::register`](crate::Server::register): when all methods may be
    /// repeated, so may what a server that died has taken.
    pub fn flags(&self) -> u32 {
        flags(self.methods())
    }

    /// Carries out a request, and answers it.
    #[inline]
    pub fn handle(&self, request: &Request<'_>) {
        let mut answer = Answer::new();
        if let Err(fault) = self.answer(request, &mut answer) {
            write_fault(&fault, &mut answer.large);
        }
        if !request.is_one_way() {
            send(answer.bytes(), |bytes| request.reply(bytes));
        }
    }

    #[inline]
    fn answer(&self, request: &Request<'_>, answer: &mut Answer) -> Result<(), Fault> {
        let (head, body) = RequestHead::decode(request.payload())?;
        let context = Context::of(request, &head);
        if head.method == NEXT {
            let (id, _) = stream_id(body)?;
            let (place, source) = self.streams.take(id, context.source())?;
            return self.batch(place, source, request, &mut answer.large);
        }
        if head.method == CLOSE {
            let (id, _) = stream_id(body)?;
            self.streams.close(id, context.source());
            answer.large.extend_from_slice(&AnswerHead::Message.encode());
            return Ok(());
        }
        let carried_out = self
            .services
            .iter()
            .find_map(|service| service.dispatch(head.method, &context, body, answer));
        // Of what is no fault only the tag is looked at.
        match carried_out {
            Some(Ok(())) => {}
            Some(Err(fault)) => return Err(fault),
            None => return Err(no_method(head.method)),
        }
        match answer.stream.take() {
            None => Ok(()),
            Some(source) => {
                self.batch(self.streams.open(&context)?, source, request, &mut answer.large)
            }
        }
    }

    /// Answers with what there is of a stream.
    fn batch(
        &self,
        place: Held<'_, Source>,
        mut source: Source,
        request: &Request<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let (begun, bytes) = (self.streams.now(), batch_bytes(request.longest_reply()));
        let is_late = || self.streams.now().saturating_duration_since(begun) >= BATCH_TIME;
        let is_enough = |length| length >= bytes || is_late();
        begin_batch(place.id(), out);
        let more = source.fill(out, is_enough)?;
        if more {
            place.put(source);
        }
        end_batch(more, out);
        Ok(())
    }
}

/// Leaves room for the head, which is known at the end.
pub(super) fn begin_batch(id: u64, out: &mut Vec<u8>) {
    out.resize(HEAD, 0);
    out.extend_from_slice(&id.to_le_bytes());
}

pub(super) fn end_batch(more: bool, out: &mut [u8]) {
    out[..HEAD].copy_from_slice(&AnswerHead::Stream { more }.encode());
}

pub(super) fn no_method(id: u32) -> Fault {
    Fault::new(Status::NOT_SUPPORTED, format!("nobody here has the method {id:#010x}"))
}

/// Writes a fault in place of whatever has been written.
pub(super) fn write_fault(fault: &Fault, out: &mut Vec<u8>) {
    // Success cannot be a fault, whatever the service means by it.
    let status = if fault.status == Status::OK { Status::INVALID } else { fault.status };
    out.clear();
    out.extend_from_slice(&AnswerHead::Fault { status, retry: fault.retry }.encode());
    out.extend_from_slice(fault.message.as_bytes());
}

/// Sends an answer; if it is too large, one that says so.
pub(super) fn send(out: &[u8], reply: impl Fn(&[u8]) -> Result<(), CallError>) {
    if let Err(error @ CallError::TooLarge { .. }) = reply(out) {
        let mut instead = Vec::new();
        write_fault(&error.into(), &mut instead);
        // A caller that is gone needs no answer.
        let _ = reply(&instead);
    }
}
