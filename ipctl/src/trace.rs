//! `ipctl trace`: which calls do the requests of a service lead to, and where is the time spent?

mod chrome;
mod payloads;
mod route;

use std::{
    collections::HashMap,
    fmt, fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use clap::{Args, ValueHint};
use ipc::{
    Board, Config, Node, NodeError, Payload, ServiceId, Span, SpanKind, Status, control::Entry,
    trace::MOST_SHOWN,
};
use serde::Serialize;

use crate::{
    failure::Failure,
    output::{Output, Progress},
    service,
    supervised::harmless,
    units,
};

/// Between two looks: shorter than a tape takes to be overwritten at this pace.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// As many bytes of a payload as are ever shown.
const MOST: i64 = MOST_SHOWN as i64;

/// Record what requests to a service lead to: its handlers, the calls that they make, and so on.
///
/// Some of the requests that come to it begin a trace, which goes along with the calls that its
/// handlers make, to whatever services those are. Headers and times are recorded; payloads only
/// with --payload, where the node file allows it.
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Arguments {
    /// Service, as `ipctl ls` names it; of replicas each is traced
    #[arg(value_parser = service::name)]
    name: String,
    /// How long to record
    #[arg(long, value_name = "N", default_value = "2", value_parser = units::seconds)]
    seconds: Duration,
    /// At most one request of each process in so long begins a trace
    #[arg(long, value_name = "DURATION", default_value = "10ms", value_parser = units::duration)]
    every: Duration,
    /// Record so many bytes of each request and answer, too, of the services that the node file
    /// lists in monitor.payloads; each use goes on record (ipctl audit show)
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    payload: Option<u32>,
    /// Write all traces there, as JSON for Perfetto (ui.perfetto.dev) or Chrome
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
}

const HELP: &str = "\
What is shown is the longest of the traces; --output and --json have all. A line is a handler, or a
call that one makes, below what it was done for:
  TIME    how long it took; of a handler, without the wait before it
  QUEUED  how long a request was there before its handler began

What a handler calls is part of the trace, in bursts, too. Calls of other threads and of tasks are
where the program has them enter the context (docs/monitoring.md). With --payload what was asked and
answered stands below, as text where it is text.

Examples:
  ipctl trace api
  ipctl trace api --seconds 10 --every 1ms --output api.json
  ipctl trace api --payload 64
  ipctl trace api --json | jq '.traceEvents | length'";

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let node = Node::connect(config)?;
    let instances: Vec<_> =
        node.list()?.into_iter().filter(|entry| entry.name == arguments.name).collect();
    if instances.is_empty() {
        return Err(Failure::NoService(arguments.name.clone()));
    }
    let mut recording = Recording::default();
    // What earlier traces left is none of ours.
    recording.look(&node)?;
    let old = std::mem::take(&mut recording.spans);
    let shown = arguments.payload.map(|bytes| show(&node, &instances[0], bytes, arguments.seconds));
    // Ends, with what there is of payloads, before anybody is told of an error.
    let _shown = shown.transpose()?;
    for entry in &instances {
        node.trace(entry.instance, arguments.every, arguments.seconds)?;
    }
    let mut progress = Progress::new();
    progress.show(format_args!("recording {}", arguments.name));
    let until = Instant::now() + arguments.seconds;
    while Instant::now() < until {
        thread::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
        recording.look(&node)?;
    }
    recording.spans.retain(|key, _| !old.contains_key(key));
    drop(progress);
    let record = recording.finish(&node)?;
    if let Some(path) = &arguments.output {
        let text = record.chrome().to_string();
        fs::write(path, text)
            .map_err(|source| Failure::Store { path: path.display().to_string(), source })?;
    }
    if record.done.is_empty() {
        output.remark("nobody called it meanwhile");
    }
    output.show(&record)
}

/// That payloads are shown, which ends when this is dropped.
struct Shown<'a> {
    node: &'a Node,
    instance: ServiceId,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        // Where it cannot be said, it ends by itself.
        let _ = self.node.show_payloads(self.instance, 0, Duration::ZERO);
    }
}

/// Has payloads shown of a service, and of all others of which they may be.
fn show<'a>(
    node: &'a Node,
    entry: &Entry,
    bytes: u32,
    length: Duration,
) -> Result<Shown<'a>, Failure> {
    match node.show_payloads(entry.instance, bytes, length) {
        Ok(()) => Ok(Shown { node, instance: entry.instance }),
        // An operator, as the boards have shown: it is the node file that does not allow it.
        Err(NodeError::Refused(Status::ACCESS)) => Err(Failure::NoPayloads(entry.name.clone())),
        Err(error) => Err(error.into()),
    }
}

/// What was read of tapes so far. A span is told from others by its trace, itself, and what it is.
#[derive(Default)]
struct Recording {
    boards: Vec<Board>,
    spans: HashMap<(u128, u64), (u32, Span)>,
    payloads: HashMap<Sent, Payload>,
}

/// Tells a payload from others: its trace, channel and message, and whether it is the answer.
type Sent = (u128, u64, u64, bool);

/// All that was done, and by whom.
struct Record {
    done: Vec<Done>,
}

/// A span, and whose it is.
#[derive(Clone, Debug)]
struct Done {
    pid: u32,
    /// Of the process that did it.
    process: String,
    /// The service that the channel leads to.
    service: String,
    span: Span,
    /// Of a handler, what there is of its request, and of its answer.
    payload: Option<Payload>,
    answer: Option<Payload>,
}

impl Recording {
    fn look(&mut self, node: &Node) -> Result<(), Failure> {
        node.refresh_boards(&mut self.boards)?;
        for board in &self.boards {
            for span in board.spans() {
                let key = (span.context.trace, span.context.span);
                self.spans.entry(key).or_insert((board.pid, span));
            }
            for payload in board.payloads() {
                let Payload { trace, channel, message_id, is_answer, .. } = payload;
                self.payloads.insert((trace, channel, message_id, is_answer), payload);
            }
        }
        Ok(())
    }

    /// Gives names to all.
    fn finish(mut self, node: &Node) -> Result<Record, Failure> {
        let entries = node.list()?;
        let process = |pid: u32| match entries.iter().find(|entry| entry.pid == pid) {
            Some(entry) => harmless(&entry.name),
            None => format!("pid {pid}"),
        };
        let service = |span: &Span| {
            let entry = entries.iter().find(|entry| entry.name_id == span.dest_name);
            entry.map_or_else(|| format!("service {}", span.dest), |it| harmless(&it.name))
        };
        let mut sent = |span: &Span, is_answer| {
            let key = (span.context.trace, span.channel, span.message_id, is_answer);
            // A call has the same ones; its handler is who shows them.
            (span.kind == SpanKind::Handler).then(|| self.payloads.remove(&key)).flatten()
        };
        let done = self.spans.into_values().map(|(pid, span)| Done {
            pid,
            process: process(pid),
            service: service(&span),
            payload: sent(&span, false),
            answer: sent(&span, true),
            span,
        });
        let mut done: Vec<Done> = done.collect();
        done.sort_by_key(|it| (it.span.start_ns, it.span.context.span));
        Ok(Record { done })
    }
}

impl Record {
    fn chrome(&self) -> serde_json::Value {
        chrome::events(&self.done)
    }
}

impl Serialize for Record {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.chrome().serialize(serializer)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes = route::routes(&self.done);
        let Some(longest) = routes.iter().max_by_key(|it| it.root.span.duration_ns) else {
            return Ok(());
        };
        writeln!(f, "{} traces; the longest, {:032x}:", routes.len(), longest.trace)?;
        longest.fmt(f)?;
        payloads::write(f, longest)
    }
}

#[cfg(test)]
mod tests {
    use ipc::trace::Context;

    use super::*;

    /// A handler of `api` that calls `store`, which handles that.
    pub(super) fn done() -> Vec<Done> {
        let one = |span, parent, kind, start_ns, duration_ns, names: [&str; 2]| Done {
            pid: if kind == SpanKind::Handler && names[1] == "store" { 2 } else { 1 },
            process: names[0].to_owned(),
            service: names[1].to_owned(),
            span: Span {
                context: Context { trace: 7, span, flags: 1 },
                parent,
                kind,
                start_ns,
                duration_ns,
                queued_ns: 500,
                thread: 3,
                bytes: 8,
                ..Span::default()
            },
            payload: None,
            answer: None,
        };
        vec![
            one(1, 0, SpanKind::Handler, 1000, 9000, ["api", "api"]),
            one(2, 1, SpanKind::Call, 2000, 6000, ["api", "store"]),
            one(3, 2, SpanKind::Handler, 4000, 2000, ["store", "store"]),
        ]
    }

    #[test]
    fn the_longest_trace_is_shown_as_a_tree() {
        let record = Record { done: done() };
        let text = record.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "1 traces; the longest, 00000000000000000000000000000007:");
        assert!(lines[2].starts_with("api handles"), "{text}");
        assert!(lines[3].starts_with("  api calls store"), "{text}");
        assert!(lines[4].starts_with("    store handles"), "{text}");
        assert_eq!(Record { done: vec![] }.to_string(), "");
    }
}
