//! Spans that go to a collector (feature `otlp`): OTLP, as protobuf over HTTP.
//!
//! ```text
//!  span ends ─▶ Otlp (a layer) ─try_send─▶ queue ─▶ thread: batches ─POST /v1/traces─▶ collector
//!                     └── no room: dropped, counted
//! ```
//! Whoever ends a span never waits: the queue has a bound, and so has what the thread holds. A
//! collector that does not answer is asked again, then its batch is dropped, and counted.

mod collector;
mod message;
mod post;
mod sender;

use std::{
    borrow::Cow,
    fmt, io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use tracing::{
    Id, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Record},
};
use tracing_subscriber::{Layer, layer, registry::LookupSpan};

pub use self::collector::{Collector, NoCollector};
use self::sender::{Batches, Sender};
use super::{Placed, TARGET};

/// Spans that wait for the thread.
const QUEUE: usize = 2048;
/// Fields of a span, and bytes of a field's text, that are sent.
const MOST_FIELDS: usize = 32;
const LONGEST: usize = 1024;

/// A layer of a program's subscriber that sends spans to a collector, together with
/// [`Contexts`](super::Contexts), which gives them their places: those in no trace are not sent.
///
/// It sends nowhere until [`send_to`](Otlp::send_to). Clones are the same one.
///
/// ```
/// use ipc::trace::{Collector, Contexts, Otlp};
/// use tracing_subscriber::prelude::*;
///
/// let otlp = Otlp::new("api");
/// let collector: Collector = "http://127.0.0.1:4318".parse()?;
/// otlp.send_to(Some(&collector))?;
/// let subscriber = tracing_subscriber::registry().with(Contexts::new()).with(otlp.clone());
/// tracing::subscriber::with_default(subscriber, || {
///     // What handlers and calls of traced requests do is sent from now on.
/// });
/// // What still waits is sent, if the collector takes it.
/// otlp.finish();
/// assert_eq!(otlp.exported().dropped, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Otlp {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    service: Cow<'static, str>,
    queue: ArcSwapOption<SyncSender<Ended>>,
    sender: Mutex<Option<Sender>>,
    counts: Arc<Counts>,
}

/// What became of the spans that ended.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
}

/// How many spans a collector has taken, and how many it has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Taken.
    pub sent: u64,
    /// Dropped: the queue was full, or the collector was not there or refused them.
    pub dropped: u64,
}

/// A span that has ended.
#[derive(Debug)]
struct Ended {
    name: &'static str,
    is_request: bool,
    is_call: bool,
    placed: Placed,
    begun_ns: u64,
    until_ns: u64,
    fields: Fields,
}

impl Otlp {
    /// Makes a layer for the program of this name, `service.name` to the collector.
    pub fn new(service: impl Into<Cow<'static, str>>) -> Otlp {
        let (queue, sender) = (ArcSwapOption::empty(), Mutex::new(None));
        let service = service.into();
        Otlp { shared: Arc::new(Shared { service, queue, sender, counts: Arc::default() }) }
    }

    /// Sends to that collector from now on, by a thread of its own; with `None` to nobody. What
    /// waits for another goes on to be sent there, in one attempt. Nobody waits for that.
    ///
    /// # Errors
    /// The thread cannot be had; spans go nowhere.
    pub fn send_to(&self, collector: Option<&Collector>) -> io::Result<()> {
        let Shared { service, queue, sender, counts } = &*self.shared;
        let mut sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
        queue.store(None);
        *sender = None;
        if let Some(collector) = collector {
            let (spans, ended) = sync_channel(QUEUE);
            let batches = Batches::new(collector.clone(), service.clone(), Arc::clone(counts));
            *sender = Some(Sender::start(batches, ended)?);
            queue.store(Some(Arc::new(spans)));
        }
        Ok(())
    }

    /// Sends to nobody any more, and waits until what had ended is sent or dropped: at a program's
    /// end. A collector that does not answer has a few seconds.
    pub fn finish(&self) {
        let Shared { queue, sender, .. } = &*self.shared;
        queue.store(None);
        let sender = sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            sender.finish();
        }
    }

    /// Counts what became of spans so far.
    pub fn exported(&self) -> Exported {
        let Counts { sent, dropped } = &*self.shared.counts;
        Exported { sent: sent.load(Ordering::Relaxed), dropped: dropped.load(Ordering::Relaxed) }
    }

    fn end(&self, ended: Ended) {
        if let Some(queue) = &*self.shared.queue.load()
            && queue.try_send(ended).is_err()
        {
            self.shared.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What is noted of a span until it ends.
#[derive(Debug)]
struct Noted {
    begun_ns: u64,
    begun: Instant,
    fields: Fields,
}

/// A field's value.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(String),
    Whole(i64),
    Real(f64),
    Truth(bool),
}

/// Fields, in their order, and how many more there were.
#[derive(Clone, Debug, Default)]
struct Fields {
    list: Vec<(&'static str, Value)>,
    dropped: u32,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        if self.list.len() < MOST_FIELDS {
            self.list.push((field.name(), value));
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::Real(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Whole(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        // Protobuf has no such numbers there.
        let text = |_| Value::Text(value.to_string());
        self.put(field, i64::try_from(value).map_or_else(text, Value::Whole));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Truth(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let end = value.floor_char_boundary(LONGEST);
        self.put(field, Value::Text(value[..end].to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Otlp {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: layer::Context<'_, S>) {
        if self.shared.queue.load().is_none() {
            return;
        }
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let begun_ns = since.as_nanos() as u64;
        span.extensions_mut().insert(Noted { begun_ns, begun: Instant::now(), fields });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: layer::Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(noted) = span.extensions_mut().get_mut::<Noted>() {
            values.record(&mut noted.fields);
        }
    }

    fn on_close(&self, id: Id, context: layer::Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let mut extensions = span.extensions_mut();
        let Some(Noted { begun_ns, begun, fields }) = extensions.remove::<Noted>() else { return };
        // In no trace: nobody could find it again.
        let Some(placed) = extensions.get_mut::<Placed>().map(|it| *it) else { return };
        let is_ours = span.metadata().target() == TARGET;
        self.end(Ended {
            name: span.name(),
            is_request: is_ours && span.name() == "request",
            is_call: is_ours && span.name() == "call",
            placed,
            begun_ns,
            until_ns: begun_ns.saturating_add(begun.elapsed().as_nanos() as u64),
            fields,
        });
    }
}

#[cfg(test)]
mod tests;
