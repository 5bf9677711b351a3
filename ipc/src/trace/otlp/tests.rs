use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    thread,
};

use prost::Message;
use tracing::{field::Empty, info_span};
use tracing_subscriber::prelude::*;

use super::*;
use crate::trace::{Context, Contexts, within};
use message::{ExportTraceServiceRequest, ExportTraceServiceResponse, OneOf, PartialSuccess};

/// Heads and bodies of what was posted.
type Posted = Vec<(String, Vec<u8>)>;

/// Listens; answers each request with the next of these statuses and bodies, and gives what was
/// posted.
fn collector(answers: Vec<(u16, Vec<u8>)>) -> (Collector, thread::JoinHandle<Posted>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let thread = thread::spawn(move || {
        let posted = answers.into_iter().map(|(status, answer)| {
            let (mut stream, _) = listener.accept().expect("somebody");
            let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).expect("a line");
                if let Some(it) = line.strip_prefix("Content-Length: ") {
                    length = it.trim().parse().expect("a number");
                }
                if line == "\r\n" {
                    break;
                }
                head += &line;
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("a body");
            let length = answer.len();
            write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n")
                .expect("sent");
            stream.write_all(&answer).expect("sent");
            (head, body)
        });
        posted.collect()
    });
    (format!("http://{address}").parse().expect("a place"), thread)
}

/// Sends what is done to a collector that answers so.
fn sent(
    answers: Vec<(u16, Vec<u8>)>,
    run: impl FnOnce(),
) -> (Vec<(String, ExportTraceServiceRequest)>, Exported) {
    let (collector, thread) = collector(answers);
    let otlp = Otlp::new("api");
    otlp.send_to(Some(&collector)).expect("a thread");
    let subscriber = tracing_subscriber::registry().with(Contexts::new()).with(otlp.clone());
    tracing::subscriber::with_default(subscriber, run);
    otlp.finish();
    let posted = thread.join().expect("it listens").into_iter().map(|(head, body)| {
        (head, ExportTraceServiceRequest::decode(&body[..]).expect("protobuf"))
    });
    (posted.collect(), otlp.exported())
}

#[test]
fn spans_of_traces_are_posted_with_their_places_times_and_fields() {
    let root = Context::root();
    let (posted, exported) = sent(vec![(200, vec![])], || {
        drop(info_span!("in no trace").entered());
        within(root, || {
            let outer =
                info_span!("outer", count = 7_u64, name = "a", huge = u64::MAX, pid = Empty);
            outer.record("pid", true);
            outer.in_scope(|| drop(info_span!("inner").entered()));
        });
    });
    let [(head, request)] = &posted[..] else { panic!("{posted:#?}") };
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Content-Type: application/x-protobuf\r\n"), "{head}");
    let resource = &request.resource_spans[0];
    let attributes = &resource.resource.as_ref().expect("one").attributes;
    assert_eq!(attributes[0].key, "service.name");
    let spans = &resource.scope_spans[0].spans;
    let [inner, outer] = &spans[..] else { panic!("{spans:#?}") };
    assert_eq!((inner.name.as_str(), outer.name.as_str()), ("inner", "outer"));
    assert_eq!(outer.trace_id, root.trace.to_be_bytes());
    assert_eq!(outer.parent_span_id, root.span.to_be_bytes());
    assert_eq!(inner.parent_span_id, outer.span_id);
    assert!(outer.start_time_unix_nano <= inner.start_time_unix_nano);
    assert!(inner.end_time_unix_nano <= outer.end_time_unix_nano + 1_000_000_000);
    let fields: Vec<_> =
        outer.attributes.iter().map(|it| (&it.key[..], it.value.clone())).collect();
    let value = |value| Some(message::AnyValue { value: Some(value) });
    assert_eq!(
        fields,
        [
            ("count", value(OneOf::Whole(7))),
            ("name", value(OneOf::Text("a".to_owned()))),
            ("huge", value(OneOf::Text(u64::MAX.to_string()))),
            ("pid", value(OneOf::Truth(true))),
        ]
    );
    assert_eq!(exported, Exported { sent: 2, dropped: 0 });
}

#[test]
fn what_a_collector_does_not_take_is_counted_and_sent_again_only_where_that_may_help() {
    let one = || within(Context::root(), || drop(info_span!("one").entered()));
    let (posted, exported) = sent(vec![(400, vec![])], one);
    assert_eq!((posted.len(), exported), (1, Exported { sent: 0, dropped: 1 }));
    let partial = PartialSuccess { rejected_spans: 1 };
    let partial = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    let (_, exported) = sent(vec![(200, partial)], || (0..3).for_each(|_| one()));
    assert_eq!(exported, Exported { sent: 2, dropped: 1 });
    // Later, while there is somebody who ends spans.
    let (there, thread) = collector(vec![(503, vec![]), (200, vec![])]);
    let otlp = Otlp::new("api");
    otlp.send_to(Some(&there)).expect("a thread");
    let subscriber = tracing_subscriber::registry().with(Contexts::new()).with(otlp.clone());
    tracing::subscriber::with_default(subscriber, one);
    let posted = thread.join().expect("it listens");
    assert_eq!(posted[0].1, posted[1].1, "the same again");
    otlp.finish();
    assert_eq!(otlp.exported(), Exported { sent: 1, dropped: 0 });
}

#[test]
fn who_ends_spans_never_waits_for_a_collector_that_is_silent() {
    // It accepts, as the kernel does, and nobody reads.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = format!("http://{}", listener.local_addr().expect("bound"));
    let otlp = Otlp::new("api");
    otlp.send_to(Some(&place.parse().expect("a place"))).expect("a thread");
    let subscriber = tracing_subscriber::registry().with(Contexts::new()).with(otlp.clone());
    tracing::subscriber::with_default(subscriber, || {
        within(Context::root(), || {
            // More than the queue and the thread hold together.
            (0..2 * QUEUE).for_each(|_| drop(info_span!("one").entered()));
        });
    });
    assert!(otlp.exported().dropped > 0, "{:?}", otlp.exported());
    drop(listener);
    otlp.finish();
    let Exported { sent, dropped } = otlp.exported();
    assert_eq!((sent, dropped), (0, 2 * QUEUE as u64), "each is counted once");
}
