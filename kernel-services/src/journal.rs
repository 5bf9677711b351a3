//! What `ipcd` tells of itself when it is asked to: spans and events of the `tracing` crate, a line
//! each on stderr, with the ids of the traces that they are part of.
//!
//! A thread of its own writes, for who reads stderr may be slow, and the runtime waits for nobody.
//! What finds the queue full is counted, and the count is told when there is room again.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ipc::trace::{Collector, Contexts, Exported, Otlp, Placed};
use nix::sys::signal::{SigSet, SigmaskHow};
use serde_json::{Map, Value};
use tracing::{
    Event, Id, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Record},
};
use tracing_subscriber::{
    Layer, Registry,
    filter::Filtered,
    layer::{Context, Layered, SubscriberExt},
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use crate::console;

/// Lines that wait to be written.
const QUEUE: usize = 1024;
/// Bytes of a field's text.
const LONGEST: usize = 1024;

/// What the lines are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object each.
    Json,
}

impl std::str::FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Format, &'static str> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            _ => Err("text or json"),
        }
    }
}

/// What is shown of spans to anybody changes: it has two filters, of what gets a place in a trace,
/// and of what a collector gets.
struct Exporting {
    otlp: Otlp,
    /// Whether there was ever a collector.
    is_used: AtomicBool,
    /// What is told on stderr.
    most: LevelFilter,
    placed: reload::Handle<LevelFilter, Registry>,
    sent: reload::Handle<LevelFilter, Placing>,
}

/// The registry, with places in traces.
type Placing =
    Layered<Filtered<Contexts, reload::Layer<LevelFilter, Registry>, Registry>, Registry>;

static EXPORTING: OnceLock<Exporting> = OnceLock::new();

/// What a collector gets.
const SENT: LevelFilter = LevelFilter::INFO;

/// Sends spans to a collector from now on, or to nobody, where [`tell`] was called before.
///
/// # Errors
/// The thread cannot be had; spans go nowhere.
pub fn export(collector: Option<&Collector>) -> std::io::Result<()> {
    let Some(it) = EXPORTING.get() else { return Ok(()) };
    let (placed, sent) = match collector {
        Some(_) => {
            it.is_used.store(true, Ordering::Relaxed);
            (it.most.max(SENT), SENT)
        }
        None => (it.most, LevelFilter::OFF),
    };
    let done = it.otlp.send_to(collector);
    // Where nobody is told and nothing is sent, a span costs nothing.
    let _ = it.placed.modify(|filter| *filter = placed);
    let _ = it.sent.modify(|filter| *filter = sent);
    done
}

/// Counts what became of the spans that were to go to a collector; nothing where there never were
/// any.
pub fn exported() -> Option<Exported> {
    let exported = EXPORTING.get()?.otlp.exported();
    EXPORTING.get()?.is_used.load(Ordering::Relaxed).then_some(exported)
}

/// Sends what waits for a collector, at the end of the process. Takes seconds where that does not
/// answer.
pub fn finish() {
    if let Some(it) = EXPORTING.get() {
        it.otlp.finish();
    }
}

/// Begins to tell, for the rest of this process's life: spans when they end, and events; and gets
/// ready to [`export`] them.
///
/// # Errors
/// The thread cannot be had. Somebody else in this process tells already.
pub fn tell(most: LevelFilter, format: Format) -> std::io::Result<()> {
    console::speak(format == Format::Json);
    let journal = (most > LevelFilter::OFF).then(|| journal(format)).transpose()?;
    let otlp = Otlp::new("ipcd");
    let (may_place, placed) = reload::Layer::new(most);
    let (may_send, sent) = reload::Layer::new(LevelFilter::OFF);
    let subscriber = tracing_subscriber::registry()
        .with(Contexts::beginning().with_filter(may_place))
        .with(otlp.clone().with_filter(may_send))
        .with(journal.with_filter(most));
    subscriber.try_init().map_err(std::io::Error::other)?;
    let _ = EXPORTING.set(Exporting { otlp, is_used: AtomicBool::new(false), most, placed, sent });
    Ok(())
}

/// Makes the layer that writes lines, and the thread that does.
fn journal(format: Format) -> std::io::Result<Journal> {
    let (lines, written) = sync_channel(QUEUE);
    // Signals are for who waits for them, and must not find this thread first.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let thread = std::thread::Builder::new().name("ipcd-journal".to_owned());
    let thread = thread.spawn(move || write(&written));
    before.thread_set_mask()?;
    thread?;
    Ok(Journal { format, lines, lost: AtomicU64::new(0) })
}

fn write(lines: &Receiver<String>) {
    for line in lines {
        // Nobody may be listening, which is no reason to end.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// The layer that makes lines of spans and events.
#[derive(Debug)]
struct Journal {
    format: Format,
    lines: SyncSender<String>,
    /// Lines for which there was no room, and that were not told of.
    lost: AtomicU64,
}

/// What is noted of a span until it ends.
#[derive(Debug)]
struct Noted {
    begun: Instant,
    fields: Fields,
}

/// Fields, in their order.
#[derive(Clone, Debug, Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.push((field.name(), value));
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let end = value.floor_char_boundary(LONGEST);
        self.put(field, value[..end].into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// A line to be.
struct Line<'a> {
    level: Level,
    /// Of a span; nothing for an event.
    span: Option<(&'static str, Duration)>,
    placed: Option<Placed>,
    fields: &'a Fields,
}

impl Line<'_> {
    fn of(&self, format: Format, now: SystemTime) -> String {
        let mut line = match format {
            Format::Text => self.text(),
            Format::Json => self.json(now),
        };
        line.push('\n');
        line
    }

    fn text(&self) -> String {
        let mut line = format!("ipcd: {}", self.level.as_str().to_lowercase());
        if let Some((name, took)) = self.span {
            let _ = write!(line, " {name} ({took:.1?})");
        }
        for (name, value) in &self.fields.0 {
            let shown = match value {
                Value::String(text) if *name == "message" => text.escape_debug().to_string(),
                Value::String(text) => format!("{name}={text:?}"),
                value => format!("{name}={value}"),
            };
            let _ = write!(line, " {shown}");
        }
        if let Some(Placed { context, parent }) = self.placed {
            let _ = write!(line, " trace={context}");
            if parent != 0 {
                let _ = write!(line, " parent={parent:016x}");
            }
        }
        line
    }

    fn json(&self, now: SystemTime) -> String {
        let mut line = Map::new();
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        line.insert("time_us".into(), (now.as_micros() as u64).into());
        line.insert("level".into(), self.level.as_str().to_lowercase().into());
        if let Some((name, took)) = self.span {
            line.insert("span".into(), name.into());
            line.insert("duration_ns".into(), (took.as_nanos() as u64).into());
        }
        if let Some(Placed { context, parent }) = self.placed {
            line.insert("trace_id".into(), format!("{:032x}", context.trace).into());
            line.insert("span_id".into(), format!("{:016x}", context.span).into());
            if parent != 0 {
                line.insert("parent_id".into(), format!("{parent:016x}").into());
            }
        }
        let fields = self.fields.0.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        line.insert("fields".into(), Value::Object(fields.collect()));
        Value::Object(line).to_string()
    }
}

impl Journal {
    fn put(&self, line: &Line<'_>) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let fields = Fields(vec![("message", "lines were lost".into()), ("lost", lost.into())]);
            let told = Line { level: Level::WARN, span: None, placed: None, fields: &fields };
            if self.lines.try_send(told.of(self.format, SystemTime::now())).is_err() {
                self.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
        if self.lines.try_send(line.of(self.format, SystemTime::now())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn level(of: &Metadata<'_>) -> Level {
    *of.level()
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(Noted { begun: Instant::now(), fields });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(noted) = span.extensions_mut().get_mut::<Noted>() {
            values.record(&mut noted.fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let placed = context.event_span(event);
        let placed = placed.and_then(|span| span.extensions().get::<Placed>().copied());
        self.put(&Line { level: level(event.metadata()), span: None, placed, fields: &fields });
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let extensions = span.extensions();
        let Some(Noted { begun, fields }) = extensions.get::<Noted>() else { return };
        let placed = extensions.get::<Placed>().copied();
        let span_ = Some((span.name(), begun.elapsed()));
        self.put(&Line { level: level(span.metadata()), span: span_, placed, fields });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use tracing::{info, info_span};

    use super::*;

    fn told(format: Format, room: usize, run: impl FnOnce()) -> Receiver<String> {
        let (lines, told) = sync_channel(room);
        let journal = Journal { format, lines, lost: AtomicU64::new(0) };
        let journal = journal.with_filter(LevelFilter::INFO);
        let subscriber = tracing_subscriber::registry().with(Contexts::beginning()).with(journal);
        tracing::subscriber::with_default(subscriber, run);
        told
    }

    #[test]
    fn spans_and_events_are_lines_of_json_with_their_ids() {
        let context = ipc::trace::Context::root();
        let lines = told(Format::Json, 8, || {
            ipc::trace::within(context, || {
                let span = info_span!("launch", service = "a\nb", pid = tracing::field::Empty);
                span.record("pid", 7);
                span.in_scope(|| info!(count = 2, "begun"));
            });
        });
        let lines: Vec<Value> = lines.iter().map(|it| it.parse().expect("JSON")).collect();
        let [event, span] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(span["span"], "launch");
        assert_eq!(span["fields"], serde_json::json!({ "service": "a\nb", "pid": 7 }));
        assert_eq!(span["trace_id"], format!("{:032x}", context.trace));
        assert_eq!(span["parent_id"], format!("{:016x}", context.span));
        assert_eq!(event["fields"]["message"], "begun");
        assert_eq!(event["span_id"], span["span_id"]);
    }

    #[test]
    fn a_line_is_one_line_whatever_is_in_it() {
        let lines = told(Format::Text, 8, || {
            info!(name = "a\nb", "c\nd");
            tracing::debug!("not asked for");
        });
        let lines: Vec<String> = lines.iter().collect();
        assert_eq!(lines, ["ipcd: info c\\nd name=\"a\\nb\"\n"]);
    }

    #[test]
    fn who_does_not_read_loses_lines_and_is_told_how_many() {
        let (lines, told) = sync_channel(1);
        let journal = Journal { format: Format::Text, lines, lost: AtomicU64::new(0) };
        let fields = Fields(vec![("message", "x".into())]);
        let line = Line { level: Level::INFO, span: None, placed: None, fields: &fields };
        (0..3).for_each(|_| journal.put(&line));
        assert_eq!(told.recv().as_deref(), Ok("ipcd: info x\n"));
        journal.put(&line);
        assert_eq!(told.recv().as_deref(), Ok("ipcd: warn lines were lost lost=2\n"));
    }
}
