//! Traces in the Trace Event Format, which Perfetto and Chrome show.

use std::collections::BTreeMap;

use ipc::SpanKind;
use serde_json::{Value, json};

use super::{Done, payloads};

/// Times there are µs.
fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// One complete event for each span, an arrow for each that was done for another, and the names
/// of processes.
pub(super) fn events(done: &[Done]) -> Value {
    let mut events = Vec::new();
    let names: BTreeMap<u32, &str> = done.iter().map(|it| (it.pid, it.process.as_str())).collect();
    for (pid, name) in names {
        events.push(json!({
            "ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": { "name": name },
        }));
    }
    for one in done {
        let span = &one.span;
        let (name, category) = match span.kind {
            SpanKind::Call => (format!("call {}", one.service), "call"),
            SpanKind::Handler => (format!("handle {}", one.service), "handler"),
        };
        let mut event = json!({
            "ph": "X", "name": name, "cat": category, "pid": one.pid, "tid": span.thread,
            "ts": us(span.start_ns), "dur": us(span.duration_ns),
            "args": {
                "traceparent": span.context.to_string(),
                "parent": format!("{:016x}", span.parent),
                "queued_us": us(span.queued_ns),
                "bytes": span.bytes,
                "one_way": span.is_one_way,
                "status": span.status,
                "channel": span.channel,
                "message_id": span.message_id,
                "peer_pid": span.peer_pid,
            },
        });
        for (key, payload) in [("payload", &one.payload), ("answer", &one.answer)] {
            if let Some(payload) = payload {
                event["args"][key] = payloads::json(payload);
            }
        }
        events.push(event);
    }
    events.extend(arrows(done));
    json!({ "traceEvents": events, "displayTimeUnit": "ns" })
}

/// From each call to its handler.
fn arrows(done: &[Done]) -> Vec<Value> {
    let key = |it: &Done| (it.span.context.trace, it.span.context.span);
    let calls = done.iter().filter(|it| it.span.kind == SpanKind::Call);
    let calls: BTreeMap<_, _> = calls.map(|it| (key(it), it)).collect();
    let mut arrows = Vec::new();
    for handler in done.iter().filter(|it| it.span.kind == SpanKind::Handler) {
        let parent = (handler.span.context.trace, handler.span.parent);
        let Some(call) = calls.get(&parent) else { continue };
        let id = format!("{:016x}", handler.span.context.span);
        for (phase, end) in [("s", *call), ("f", handler)] {
            arrows.push(json!({
                "ph": phase, "bp": "e", "id": id, "name": "request", "cat": "request",
                "pid": end.pid, "tid": end.span.thread, "ts": us(end.span.start_ns),
            }));
        }
    }
    arrows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::tests::done;

    #[test]
    fn perfetto_gets_spans_arrows_and_names() {
        let events = events(&done());
        let of = |phase: &str| -> Vec<&Value> {
            let events = events["traceEvents"].as_array().into_iter().flatten();
            events.filter(|event| event["ph"] == phase).collect()
        };
        assert_eq!((of("M").len(), of("X").len(), of("s").len(), of("f").len()), (2, 3, 1, 1));
        let call = of("X")[1];
        assert_eq!(
            (&call["name"], &call["ts"], &call["dur"]),
            (&json!("call store"), &json!(2.0), &json!(6.0))
        );
        let whole = "00-00000000000000000000000000000007-0000000000000002-01";
        assert_eq!(call["args"]["traceparent"], whole);
        assert_eq!((&of("s")[0]["pid"], &of("f")[0]["pid"]), (&json!(1), &json!(2)));
    }
}
