//! The same in tasks of a tokio runtime: handlers, streams and callers that wait without a thread.

use std::{
    fmt,
    future::poll_fn,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context as Waiting, Poll},
    time::{Duration, Instant},
};

use ::tokio::sync::mpsc;

use super::{
    Method, RpcOptions,
    call::{Batch, body, left, message},
    context::Context,
    fault::{Fault, RpcError},
    prost::Message,
    router::{
        MethodCollision, append, begin_batch, check_ids, end_batch, flags, no_method, send,
        write_fault,
    },
    streams::{BATCH_ITEMS, Held, Streams, batch_bytes},
    under_way::{BYTES, TASKS, UnderWay},
    wire::{AnswerHead, CLOSE, NEXT, RequestHead, stream_id},
};
use crate::{
    CallOptions, Client, Request, Retained, Server, ServiceId,
    civil::{Idempotency, RetryConfig, retry_async},
    client::Repeats,
    error::CallError,
};

/// A request being carried out.
pub type Serving = Pin<Box<dyn Future<Output = Result<Served, Fault>> + Send>>;

/// Has methods carried out in tasks: what `ipc-build` makes of each `service`.
pub trait AsyncDispatch: Send + Sync {
    /// Lists the methods.
    fn methods(&self) -> &'static [Method];

    /// Begins a request, by [`serve_unary`] or [`serve_stream`]; nothing if the method is none of
    /// it.
    fn dispatch(&self, method: u32, context: Context, body: &[u8]) -> Option<Serving>;
}

/// What came of a request.
#[derive(Debug)]
pub struct Served(Outcome);

#[derive(Debug)]
enum Outcome {
    Message(Vec<u8>),
    Stream(Source),
}

/// Carries out a method that has one answer.
pub fn serve_unary<Q: Message + Default, R: Message, F>(
    body: &[u8],
    handle: impl FnOnce(Q) -> F,
) -> Serving
where
    F: Future<Output = Result<R, Fault>> + Send + 'static,
{
    serve(body, handle, |response| {
        let mut out = AnswerHead::Message.encode().to_vec();
        response.encode_raw(&mut out);
        Outcome::Message(out)
    })
}

/// Begins a method that has many answers.
pub fn serve_stream<Q: Message + Default, R: Message + 'static, F>(
    body: &[u8],
    handle: impl FnOnce(Q) -> F,
) -> Serving
where
    F: Future<Output = Result<TaskStream<R>, Fault>> + Send + 'static,
{
    serve(body, handle, |stream| Outcome::Stream(Source { feed: Box::new(stream.0), failed: None }))
}

fn serve<Q: Message + Default, T, F>(
    body: &[u8],
    handle: impl FnOnce(Q) -> F,
    outcome: impl FnOnce(T) -> Outcome + Send + 'static,
) -> Serving
where
    F: Future<Output = Result<T, Fault>> + Send + 'static,
{
    match Q::decode(body) {
        Ok(request) => {
            let handled = handle(request);
            Box::pin(async move { Ok(Served(outcome(handled.await?))) })
        }
        Err(error) => Box::pin(async move { Err(error.into()) }),
    }
}

/// Makes a stream that a method returns, and the end at which its messages are put in, by a task
/// of its own. It holds up to `room` of them (0 is as 1).
///
/// ```
/// # use ipc::rpc::{Fault, TaskStream, stream};
/// # fn of() -> Result<TaskStream<String>, Fault> {
/// let (sender, answers) = stream(16);
/// tokio::spawn(async move {
///     for word in ["one", "two", "three"] {
///         if !sender.send(word.to_owned()).await {
///             break; // nobody reads on
///         }
///     }
/// });
/// Ok(answers)
/// # }
/// ```
pub fn stream<R: Message>(room: usize) -> (StreamSender<R>, TaskStream<R>) {
    let (sender, receiver) = mpsc::channel(room.max(1));
    (StreamSender(sender), TaskStream(receiver))
}

/// The end of a stream at which messages are put in. When all of them are dropped, it ends.
#[derive(Debug)]
pub struct StreamSender<R>(mpsc::Sender<Result<R, Fault>>);

impl<R> Clone for StreamSender<R> {
    fn clone(&self) -> StreamSender<R> {
        StreamSender(self.0.clone())
    }
}

impl<R> StreamSender<R> {
    /// Puts a message in, when there is room. Returns false when nobody reads any more.
    pub async fn send(&self, item: R) -> bool {
        self.0.send(Ok(item)).await.is_ok()
    }

    /// Ends the stream with an error. Returns false when nobody reads any more.
    pub async fn fail(&self, fault: Fault) -> bool {
        self.0.send(Err(fault)).await.is_ok()
    }
}

/// A stream that a method returns.
#[derive(Debug)]
pub struct TaskStream<R>(mpsc::Receiver<Result<R, Fault>>);

/// Writes the next message of a stream.
trait Feed: Send {
    fn poll_next(
        &mut self,
        waiting: &mut Waiting<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<Option<Result<(), Fault>>>;
}

impl<R: Message> Feed for mpsc::Receiver<Result<R, Fault>> {
    fn poll_next(
        &mut self,
        waiting: &mut Waiting<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<Option<Result<(), Fault>>> {
        self.poll_recv(waiting).map(|item| Some(item?.map(|item| append(&item, out))))
    }
}

struct Source {
    feed: Box<dyn Feed>,
    /// What it failed with behind messages that were sent first.
    failed: Option<Fault>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl Source {
    /// Waits for the first message, and gathers those that are there behind it.
    fn poll_fill(
        &mut self,
        bytes: usize,
        waiting: &mut Waiting<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<Result<bool, Fault>> {
        if let Some(fault) = self.failed.take() {
            return Poll::Ready(Err(fault));
        }
        for count in 0..BATCH_ITEMS {
            match self.feed.poll_next(waiting, out) {
                Poll::Pending if count == 0 => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(false)),
                Poll::Ready(Some(Err(fault))) if count == 0 => return Poll::Ready(Err(fault)),
                Poll::Ready(Some(Err(fault))) => {
                    self.failed = Some(fault);
                    break;
                }
                Poll::Ready(Some(Ok(()))) if out.len() < bytes => {}
                Poll::Ready(Some(Ok(()))) | Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(true))
    }
}

/// Answers requests by the services that it knows, each in a task of its own.
///
/// At most 4096 requests are under way at a time, with at most 64 MiB in their messages; of one
/// caller, half as many ([`with_limits`](AsyncRouter::with_limits)). What comes beyond is not
/// carried out: a call is answered with `FULL`, to be tried again, and a message that is sent one
/// way is dropped. Both are counted ([`refused`](AsyncRouter::refused)).
pub struct AsyncRouter {
    services: Vec<Box<dyn AsyncDispatch>>,
    streams: Streams<Source>,
    under_way: Arc<UnderWay>,
}

impl fmt::Debug for AsyncRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.methods().map(|method| method.path)).finish()
    }
}

impl Default for AsyncRouter {
    fn default() -> AsyncRouter {
        AsyncRouter::new()
    }
}

impl AsyncRouter {
    /// Knows no service yet.
    pub fn new() -> AsyncRouter {
        let under_way = UnderWay::new(TASKS, BYTES);
        AsyncRouter { services: Vec::new(), streams: Streams::new(), under_way }
    }

    /// Bounds what is under way at a time: requests, and the bytes of their messages; half of each
    /// for one caller. One request comes in however long it is, and however low the bounds, where
    /// nothing else is.
    ///
    /// ```
    /// use ipc::rpc::AsyncRouter;
    /// let router = AsyncRouter::new().with_limits(100, 1 << 20);
    /// assert_eq!(router.refused(), 0);
    /// ```
    #[must_use]
    pub fn with_limits(self, requests: usize, bytes: usize) -> AsyncRouter {
        AsyncRouter { under_way: UnderWay::new(requests, bytes), ..self }
    }

    /// Counts the requests that were not carried out, because too many were under way.
    pub fn refused(&self) -> u64 {
        self.under_way.refused()
    }

    /// Adds a service.
    ///
    /// # Errors
    /// [`MethodCollision`].
    pub fn with(
        mut self,
        service: impl AsyncDispatch + 'static,
    ) -> Result<AsyncRouter, MethodCollision> {
        check_ids(self.methods(), service.methods())?;
        self.services.push(Box::new(service));
        Ok(self)
    }

    fn methods(&self) -> impl Iterator<Item = &'static Method> {
        self.services.iter().flat_map(|service| service.methods())
    }

    /// Gives the flags for [`Server::register`]: when all methods may be repeated, so may what a
    /// server that died has taken.
    pub fn flags(&self) -> u32 {
        flags(self.methods())
    }

    /// Has a request carried out by a task, which answers it; refuses it where too many are under
    /// way. It waits for nothing.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn handle(self: &Arc<Self>, request: Request<'_>) {
        let head = RequestHead::decode(request.payload()).map(|(head, _)| head);
        let head = head.unwrap_or_default();
        let context = Context::of(&request, &head);
        // What ends a stream makes room, so it needs none.
        let admitted = match head.method {
            CLOSE => match self.close(&request, context.source()) {
                Ok(()) => return answer_at_once(&request, &AnswerHead::Message.encode()),
                Err(fault) => Err(fault),
            },
            // Its stream has been admitted, and would end.
            NEXT if !request.is_one_way() => Ok(None),
            _ => self.under_way.enter(context.source(), request.payload().len()).map(Some),
        };
        let place = match admitted {
            Ok(place) => place,
            Err(fault) => {
                let mut out = Vec::new();
                write_fault(&fault, &mut out);
                return answer_at_once(&request, &out);
            }
        };
        let (router, request) = (Arc::clone(self), request.retain());
        let within = request.trace();
        let serving = async move {
            let _place = place;
            let mut out = Vec::new();
            if let Err(fault) = router.answer(&request, context, &mut out).await {
                write_fault(&fault, &mut out);
            }
            if !request.is_one_way() {
                send(&out, |bytes| request.reply(bytes));
            }
        };
        match within {
            None => ::tokio::spawn(serving),
            Some(context) => ::tokio::spawn(crate::trace::task(Some(context), serving)),
        };
    }

    /// Ends a stream early.
    fn close(&self, request: &Request<'_>, caller: ServiceId) -> Result<(), Fault> {
        let (_, body) = RequestHead::decode(request.payload())?;
        self.streams.close(stream_id(body)?.0, caller);
        Ok(())
    }

    async fn answer(
        &self,
        request: &Retained,
        context: Context,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let (head, body) = RequestHead::decode(request.payload())?;
        if head.method == NEXT {
            let (place, source) = self.streams.take(stream_id(body)?.0, context.source())?;
            return batch(place, source, request, out).await;
        }
        let serving =
            self.services.iter().find_map(|service| service.dispatch(head.method, context, body));
        match serving.ok_or_else(|| no_method(head.method))?.await?.0 {
            Outcome::Message(message) => *out = message,
            Outcome::Stream(source) => {
                batch(self.streams.open(&context)?, source, request, out).await?;
            }
        }
        Ok(())
    }
}

/// Answers without a task.
fn answer_at_once(request: &Request<'_>, out: &[u8]) {
    if !request.is_one_way() {
        send(out, |bytes| request.reply(bytes));
    }
}

/// Answers with what there is of a stream.
async fn batch(
    place: Held<'_, Source>,
    mut source: Source,
    request: &Retained,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let bytes = batch_bytes(request.longest_reply());
    begin_batch(place.id(), out);
    let more = poll_fn(|waiting| source.poll_fill(bytes, waiting, out)).await?;
    if more {
        place.put(source);
    }
    end_batch(more, out);
    Ok(())
}

/// Calls the methods of a service from tasks. What ends the calls is the loop of a server
/// ([`tokio::serve`](crate::tokio::serve)).
#[derive(Clone, Debug)]
pub struct AsyncCaller {
    server: Server,
    client: Client,
    retry: Option<RetryConfig>,
}

impl AsyncCaller {
    /// Calls by this client, once each, in the loop of this server.
    pub fn new(server: Server, client: Client) -> AsyncCaller {
        AsyncCaller { server, client, retry: None }
    }

    /// Tries again, as [`Caller::with_retry`](super::Caller::with_retry).
    #[must_use]
    pub fn with_retry(self, config: RetryConfig) -> AsyncCaller {
        AsyncCaller { retry: Some(config), ..self }
    }

    /// Gives the client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Calls a method that has one answer.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn unary<R: Message + Default>(
        &self,
        method: Method,
        request: &impl Message,
        options: impl Into<RpcOptions>,
    ) -> Result<R, RpcError> {
        let options = options.into();
        let sent = options.encode(method.id, request);
        message(&self.exchange(method, &sent, options).await?)
    }

    /// Calls a method that has a stream of answers. The first of them are there when this is done.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn stream<R: Message + Default>(
        &self,
        method: Method,
        request: &impl Message,
        options: impl Into<RpcOptions>,
    ) -> Result<AsyncItems<R>, RpcError> {
        let options = options.into();
        let sent = options.encode(method.id, request);
        let until = options.call.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let batch = Batch::of(self.exchange(method, &sent, options).await?)?;
        Ok(AsyncItems { caller: self.clone(), batch, options, until, kind: PhantomData })
    }

    /// Goes on to whoever serves next when it may have been carried out, and may be repeated.
    async fn exchange_once(
        &self,
        method: Method,
        sent: &[u8],
        options: CallOptions,
    ) -> Result<Vec<u8>, CallError> {
        let until = options.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut repeats = Repeats::of(method.idempotency == Idempotency::Idempotent);
        let mut left = options.timeout;
        loop {
            let options = CallOptions { timeout: left, ..options };
            let outcome = crate::tokio::call(&self.server, &self.client, sent, options).await;
            left = until.map(|until| until.saturating_duration_since(Instant::now()));
            match outcome {
                Err(CallError::PeerDied { taken: true })
                    if self.client.is_relayed()
                        && repeats.go_on(true)
                        && left != Some(Duration::ZERO) => {}
                Err(CallError::PeerDied { taken }) => {
                    return Err(CallError::PeerDied { taken: taken || repeats.is_taken });
                }
                outcome => return outcome,
            }
        }
    }

    async fn exchange(
        &self,
        method: Method,
        sent: &[u8],
        options: RpcOptions,
    ) -> Result<Vec<u8>, RpcError> {
        let Some(config) = &self.retry else {
            return Ok(self.exchange_once(method, sent, options.call).await?);
        };
        let budget = options.call.timeout.map_or(config.budget, |all| all.min(config.budget));
        let config = RetryConfig { budget, ..*config };
        retry_async(&config, options.idempotency(method), async |attempt| {
            if attempt.left.is_zero() {
                return Err(CallError::TimedOut.into());
            }
            let call = options.at_most(attempt.left);
            let answer = crate::tokio::call(&self.server, &self.client, sent, call).await?;
            // A fault may be worth another try, so it is looked at here.
            body(&answer)?;
            Ok(answer)
        })
        .await
    }
}

/// The answers of a stream, in their order, fetched as they are needed. Dropped, it ends the
/// stream.
#[derive(Debug)]
pub struct AsyncItems<R> {
    caller: AsyncCaller,
    batch: Batch,
    options: RpcOptions,
    until: Option<Instant>,
    kind: PhantomData<fn() -> R>,
}

impl<R: Message + Default> AsyncItems<R> {
    /// Waits for the next one; nothing when the stream has ended. An error is the last.
    pub async fn next(&mut self) -> Option<Result<R, RpcError>> {
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
            if let Err(error) = self.fetch().await {
                self.close();
                return Some(Err(error));
            }
        }
    }
}

impl<R> AsyncItems<R> {
    async fn fetch(&mut self) -> Result<(), RpcError> {
        let options = left(&self.options, self.until)?;
        let AsyncCaller { server, client, .. } = &self.caller;
        let sent = self.batch.ask(NEXT, &self.options);
        self.batch.refill(crate::tokio::call(server, client, &sent, options).await?)
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.batch.more) {
            let AsyncCaller { server, client, .. } = &self.caller;
            let sent = self.batch.ask(CLOSE, &self.options);
            // It never waits. Without it the service lets go of the stream a little later.
            let _ = client.call_queued(server, &sent, CLOSED_WITHIN, |_| {});
        }
        self.batch.end();
    }
}

/// Nobody waits for the answer.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);

impl<R> Drop for AsyncItems<R> {
    fn drop(&mut self) {
        self.close();
    }
}
