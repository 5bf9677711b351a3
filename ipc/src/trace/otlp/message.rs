//! The messages of OTLP that are sent, as far as they are (opentelemetry-proto 1, `trace/v1`).

use prost::Message;

use super::{Ended, Value};

#[derive(Clone, PartialEq, Message)]
pub(super) struct ExportTraceServiceRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub(super) resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub(super) scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub(super) attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    pub(super) scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub(super) spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Scope {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
}

#[derive(Clone, PartialEq, Message)]
#[allow(clippy::struct_field_names, reason = "as OTLP has them")]
pub(super) struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(super) name: String,
    #[prost(int32, tag = "6")]
    pub(super) kind: i32,
    #[prost(fixed64, tag = "7")]
    pub(super) start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub(super) end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub(super) attributes: Vec<KeyValue>,
    #[prost(uint32, tag = "10")]
    pub(super) dropped_attributes_count: u32,
    #[prost(fixed32, tag = "16")]
    pub(super) flags: u32,
}

/// Within the process, of a request, of a call.
pub(super) const INTERNAL: i32 = 1;
pub(super) const SERVER: i32 = 2;
pub(super) const CLIENT: i32 = 3;

#[derive(Clone, PartialEq, Message)]
pub(super) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AnyValue {
    #[prost(oneof = "OneOf", tags = "1, 2, 3, 4")]
    pub(super) value: Option<OneOf>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum OneOf {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Truth(bool),
    #[prost(int64, tag = "3")]
    Whole(i64),
    #[prost(double, tag = "4")]
    Real(f64),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ExportTraceServiceResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub(super) rejected_spans: i64,
}

/// Lays spans of a service out as one request.
pub(super) fn request(service: &str, spans: Vec<Ended>) -> Vec<u8> {
    let text = |key: &str, value: &str| pair(key, Value::Text(value.to_owned()));
    let whole = pair("process.pid", Value::Whole(std::process::id().into()));
    let scope = Scope { name: "libipc".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let spans = spans.into_iter().map(span).collect();
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: vec![text("service.name", service), whole] }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
        }],
    }
    .encode_to_vec()
}

fn span(it: Ended) -> Span {
    let context = it.placed.context;
    let parent = it.placed.parent;
    Span {
        trace_id: context.trace.to_be_bytes().to_vec(),
        span_id: context.span.to_be_bytes().to_vec(),
        parent_span_id: if parent == 0 { Vec::new() } else { parent.to_be_bytes().to_vec() },
        name: it.name.to_owned(),
        kind: match (it.is_request, it.is_call) {
            (true, _) => SERVER,
            (_, true) => CLIENT,
            _ => INTERNAL,
        },
        start_time_unix_nano: it.begun_ns,
        end_time_unix_nano: it.until_ns,
        attributes: it.fields.list.into_iter().map(|(key, value)| pair(key, value)).collect(),
        dropped_attributes_count: it.fields.dropped,
        flags: context.flags.into(),
    }
}

fn pair(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => OneOf::Text(text),
        Value::Whole(number) => OneOf::Whole(number),
        Value::Real(number) => OneOf::Real(number),
        Value::Truth(truth) => OneOf::Truth(truth),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

/// How many spans a collector has refused of those that it was sent, by its answer.
pub(super) fn refused(answer: &[u8]) -> u64 {
    let answer = ExportTraceServiceResponse::decode(answer).ok();
    let partial = answer.and_then(|it| it.partial_success);
    partial.map_or(0, |it| it.rejected_spans.max(0).cast_unsigned())
}
