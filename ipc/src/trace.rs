//! Traces: which request led to which, across processes, as W3C Trace Context has it.
//!
//! A thread that runs [`within`] a context, as a handler of a traced request does, sends that
//! context along with each call and message: in an extension before the payload. Whoever takes one
//! writes what it did on its [tape](crate::Board::spans), beside its counters. No other
//! thread, and no call outside, pays more for it than a load of a word that nobody writes.

#[cfg(feature = "otlp")]
mod otlp;
mod payloads;
#[cfg(feature = "tracing")]
mod spans;

use std::{
    cell::Cell,
    fmt,
    hash::{BuildHasher, RandomState},
    marker::PhantomData,
    pin::Pin,
    str::FromStr,
    task::{self, Poll},
};

#[cfg(feature = "otlp")]
pub use self::otlp::{Collector, Exported, NoCollector, Otlp};
pub use self::payloads::MOST_SHOWN;
pub(crate) use self::payloads::{allow, shown};
#[cfg(feature = "tracing")]
pub use self::spans::{Contexts, Placed, TARGET};
use crate::{
    ServiceId,
    board::Span,
    layout::EXTENSION,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// A place in a trace: what a request carries, and what is done for it belongs to.
///
/// ```
/// let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// let context: ipc::trace::Context = text.parse()?;
/// assert_eq!(context.to_string(), text);
/// # Ok::<(), ipc::trace::NoContext>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Context {
    /// The same for all that one request led to. Never 0.
    pub trace: u128,
    /// What was done: the parent of all that is done for it. Never 0.
    pub span: u64,
    /// Of W3C: 1 is sampled.
    pub flags: u8,
}

/// A text is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no traceparent: 00-32 digits-16 digits-2 digits, hexadecimal, and not all zero")]
pub struct NoContext;

impl Context {
    /// Begins a trace.
    pub fn root() -> Context {
        let (high, low) = (u128::from(random()), u128::from(random()));
        Context { trace: high << 64 | low, span: random(), flags: 1 }
    }

    /// Gives the context of something that is done for this.
    #[must_use]
    pub fn child(&self) -> Context {
        Context { span: random(), ..*self }
    }

    /// Has this thread be within this until what it returns is dropped; [`within`] where a function
    /// will do. A context may be entered on any number of threads: that is how work that a handler
    /// gives to other threads goes on with its trace.
    ///
    /// ```
    /// use ipc::trace::{self, Context};
    ///
    /// let context = Context::root();
    /// std::thread::spawn(move || {
    ///     let _scope = context.enter();
    ///     assert_eq!(trace::current(), Some(context));
    /// })
    /// .join()
    /// # .ok();
    /// ```
    pub fn enter(self) -> Scope {
        Scope::enter(self)
    }

    pub(crate) fn to_bytes(self) -> [u8; EXTENSION] {
        let mut bytes = [0; EXTENSION];
        bytes[..16].copy_from_slice(&self.trace.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.span.to_be_bytes());
        bytes[24] = self.flags;
        bytes
    }

    /// Reads what a peer wrote; nothing where it means none.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Context> {
        let trace = u128::from_be_bytes(*bytes.first_chunk()?);
        let span = u64::from_be_bytes(*bytes.get(16..)?.first_chunk()?);
        Context { trace, span, flags: *bytes.get(24)? }.checked()
    }

    fn checked(self) -> Option<Context> {
        (self.trace != 0 && self.span != 0).then_some(self)
    }
}

impl fmt::Display for Context {
    /// Writes the value of a `traceparent` header.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

impl FromStr for Context {
    type Err = NoContext;

    /// Reads the value of a `traceparent` header, of this version or a later one.
    fn from_str(text: &str) -> Result<Context, NoContext> {
        let mut parts = text.split('-');
        let mut part = |digits: usize| {
            let part = parts.next().filter(|it| it.len() == digits).ok_or(NoContext)?;
            let fits = part.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
            if fits {
                u128::from_str_radix(part, 16).map_err(|_| NoContext)
            } else {
                Err(NoContext)
            }
        };
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        if version == 0xFF || (version == 0 && parts.next().is_some()) {
            return Err(NoContext);
        }
        Context { trace, span: span as u64, flags: flags as u8 }.checked().ok_or(NoContext)
    }
}

/// Not secret, and hardly ever the same twice: a process's hashers begin at random. Never 0.
fn random() -> u64 {
    RandomState::new().hash_one(0).max(1)
}

/// Threads that are within a context now.
static WITHIN: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static CURRENT: Cell<Option<Context>> = const { Cell::new(None) };
}

/// Gives the context that this thread is within.
#[inline(always)]
pub fn current() -> Option<Context> {
    // Where no thread is within one, nothing more is looked at.
    if WITHIN.load(Ordering::Relaxed) == 0 { None } else { this_thread_s() }
}

#[cold]
fn this_thread_s() -> Option<Context> {
    CURRENT.try_with(Cell::get).ok().flatten()
}

/// Runs something within a context: each call and one-way message that this thread sends meanwhile
/// carries it. Handlers of traced requests run so by themselves.
///
/// Other threads do not: see [`Context::enter`]. Nor do tasks, which move between threads: see
/// [`task()`].
///
/// ```
/// use ipc::trace::{self, Context};
///
/// let context = Context::root();
/// trace::within(context, || assert_eq!(trace::current(), Some(context)));
/// assert_eq!(trace::current(), None);
/// ```
pub fn within<R>(context: Context, run: impl FnOnce() -> R) -> R {
    let _scope = context.enter();
    run()
}

/// Gives a future that is within a context whenever it is polled, on whichever thread: what its
/// task calls carries it. `None` leaves the future as it is, outside.
///
/// ```
/// # fn of(request: ipc::Retained) {
/// use ipc::trace;
///
/// let context = request.trace();
/// let later = trace::task(context, async move {
///     // Calls to others, for this request.
///     let _ = request.reply(b"late");
/// });
/// # drop(later);
/// # }
/// ```
pub fn task<F: Future>(context: Option<Context>, future: F) -> Task<F> {
    Task { context, future: Box::pin(future) }
}

/// A future within a context; see [`task()`].
#[derive(Debug)]
pub struct Task<F> {
    context: Option<Context>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, waker: &mut task::Context<'_>) -> Poll<F::Output> {
        let _scope = self.context.map(Context::enter);
        self.future.as_mut().poll(waker)
    }
}

/// Runs a traced request's handler.
pub(crate) fn handling<R>(it: &Span, run: impl FnOnce() -> R) -> R {
    #[cfg(feature = "tracing")]
    let _span = spans::request(it).entered();
    within(it.context, run)
}

/// Runs a call that is made within a context.
pub(crate) fn calling<R>(it: &Span, run: impl FnOnce() -> R) -> R {
    #[cfg(feature = "tracing")]
    let _span = spans::call(it).entered();
    within(it.context, run)
}

/// Runs a call that is made within a context by a task.
#[cfg(feature = "tokio")]
pub(crate) async fn calling_in_task<F: Future>(it: &Span, future: F) -> F::Output {
    let future = task(Some(it.context), future);
    #[cfg(feature = "tracing")]
    let future = tracing::Instrument::instrument(future, spans::call(it));
    future.await
}

/// A thread's being within a context: as long as this lives. Made by [`Context::enter`]; several
/// end in the opposite order of their beginnings.
#[derive(Debug)]
#[must_use = "it ends when this is dropped"]
pub struct Scope {
    outer: Option<Context>,
    /// It ends on the thread where it began.
    _here: PhantomData<*const ()>,
}

impl Scope {
    fn enter(context: Context) -> Scope {
        WITHIN.fetch_add(1, Ordering::Relaxed);
        Scope { outer: CURRENT.replace(Some(context)), _here: PhantomData }
    }

    /// Takes the place of one that was entered before, and ends while this goes on.
    #[cfg(feature = "tracing")]
    fn inherit(&mut self, before: Scope) {
        self.outer = before.outer;
        std::mem::forget(before);
        WITHIN.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.outer);
        WITHIN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an operator asked of this process: traces of requests that carry none.
#[derive(Debug)]
struct Order {
    /// The instance whose requests are meant; 0 for none.
    instance: AtomicU32,
    until_ns: AtomicU64,
    every_ns: AtomicU64,
    next_ns: AtomicU64,
}

static ORDER: Order = Order {
    instance: AtomicU32::new(0),
    until_ns: AtomicU64::new(0),
    every_ns: AtomicU64::new(0),
    next_ns: AtomicU64::new(0),
};

/// Begins a trace at a request of that instance, at most one each `every_ns`, until `until_ns`. The
/// last order stands.
pub(crate) fn order(instance: ServiceId, every_ns: u64, until_ns: u64) {
    ORDER.until_ns.store(until_ns, Ordering::Relaxed);
    ORDER.every_ns.store(every_ns, Ordering::Relaxed);
    ORDER.next_ns.store(0, Ordering::Relaxed);
    ORDER.instance.store(instance.get(), Ordering::Release);
}

/// The root of a trace, if one is to begin at this request of that instance.
pub(crate) fn begins(instance: ServiceId, now_ns: u64) -> Option<Context> {
    if ORDER.instance.load(Ordering::Acquire) != instance.get() {
        return None;
    }
    if now_ns >= ORDER.until_ns.load(Ordering::Relaxed) {
        // A newer order stays.
        let (old, none) = (instance.get(), 0);
        let _ = ORDER.instance.compare_exchange(old, none, Ordering::Relaxed, Ordering::Relaxed);
        return None;
    }
    let next = ORDER.next_ns.load(Ordering::Relaxed);
    let after = now_ns + ORDER.every_ns.load(Ordering::Relaxed);
    let is_due = now_ns >= next
        && ORDER
            .next_ns
            .compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok();
    is_due.then(Context::root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_read_as_w3c_writes_them() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context: Context = good.parse().expect("a context");
        assert_eq!((context.span, context.flags), (0xb7ad_6b71_6920_3331, 1));
        assert_eq!(context.to_string(), good);
        assert_eq!(good.replace("00-0", "01-0").parse().as_ref(), Ok(&context), "a later version");
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ] {
            assert_eq!(bad.parse::<Context>(), Err(NoContext), "{bad}");
        }
        assert_eq!(Context::from_bytes(&context.to_bytes()), Some(context));
        assert_eq!(Context::from_bytes(&[0; EXTENSION]), None);
        assert_eq!(Context::from_bytes(&[1; 20]), None);
    }

    #[test]
    fn contexts_nest_on_one_thread_and_are_left_by_a_panic() {
        let (outer, inner) = (Context::root(), Context::root());
        assert_ne!(outer.trace, inner.trace);
        assert_eq!(outer.child().trace, outer.trace);
        within(outer, || {
            within(inner, || assert_eq!(current(), Some(inner)));
            assert_eq!(current(), Some(outer));
            std::thread::scope(|scope| {
                scope.spawn(|| assert_eq!(current(), None));
            });
        });
        let panicked = std::panic::catch_unwind(|| within(outer, || panic!("in a handler")));
        assert!(panicked.is_err());
        assert_eq!(current(), None);
    }

    #[test]
    fn an_order_begins_traces_at_its_pace_and_ends() {
        let (instance, other) = (ServiceId::new(7), ServiceId::new(8));
        order(instance, 100, 1000);
        assert!(begins(other, 500).is_none());
        assert!(begins(instance, 500).is_some());
        assert!(begins(instance, 550).is_none());
        assert!(begins(instance, 600).is_some());
        assert!(begins(instance, 1000).is_none());
        assert!(begins(instance, 999).is_none(), "it is over");
    }
}
