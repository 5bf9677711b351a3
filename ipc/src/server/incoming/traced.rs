//! Requests that are traced.

use std::sync::Arc;

use super::{Body, Incoming, Meta};
use crate::{
    board::{Span, SpanKind},
    clock,
    frame::{Frame, Kind},
    layout::EXTENSION,
    trace::{self, Context},
};

/// Takes the extension off a payload. A context that is none traces nothing.
pub(super) fn split(bytes: &[u8]) -> Body {
    // Long enough, as was checked.
    let (extension, payload) = bytes.split_at_checked(EXTENSION).unwrap_or((bytes, &[]));
    match Context::from_bytes(extension) {
        Some(context) => Body::Traced(context, payload.to_vec()),
        None => Body::Bytes(payload.to_vec()),
    }
}

/// The context before what says where the payload lies, which stands at the start of the buffer.
pub(super) fn before(frame: &Frame, buffer: &[u8]) -> Option<Context> {
    Context::from_bytes(&buffer[..frame.head.extension()])
}

impl Incoming {
    /// Runs a handler that an operator wants to be traced, if it is such a one.
    pub(super) fn maybe_traced(
        self: &Arc<Self>,
        meta: Meta,
        bytes: usize,
        run: impl FnOnce() -> usize,
    ) -> usize {
        match trace::begins(self.channel.introduction.dest, clock::now_ns()) {
            Some(root) => self.traced(root, 0, meta, bytes, run),
            None => run(),
        }
    }

    /// Runs a handler within its own context, and writes down how long it took.
    #[cold]
    #[inline(never)]
    pub(super) fn traced(
        self: &Arc<Self>,
        own: Context,
        parent: u64,
        meta: Meta,
        bytes: usize,
        run: impl FnOnce() -> usize,
    ) -> usize {
        let begun = clock::now_ns();
        let span = Span {
            context: own,
            parent,
            kind: SpanKind::Handler,
            is_one_way: meta.kind == Kind::OneWay,
            start_ns: begun,
            queued_ns: begun.saturating_sub(meta.received_ns),
            bytes: bytes as u64,
            message_id: meta.message_id,
            ..self.channel.span()
        };
        let served = trace::handling(&span, run);
        let duration_ns = clock::now_ns().saturating_sub(begun);
        self.channel.write_down(Span { duration_ns, ..span });
        served
    }
}
