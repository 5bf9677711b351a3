//! Requests that are traced.

use std::sync::Arc;

use super::{Body, Incoming, Meta};
use crate::{
    board::{Payload, Span, SpanKind},
    bulk::{Loan, View},
    clock,
    frame::{Frame, Kind},
    layout::EXTENSION,
    trace::{self, Context},
};

/// The payload of a request, or of its answer.
#[derive(Clone, Copy)]
pub(super) enum Sent<'a> {
    Bytes(&'a [u8]),
    Lent(&'a View),
    /// An answer in memory that was lent: its length.
    Answer(usize),
}

impl<'a> Sent<'a> {
    pub(super) fn of(answer: &'a Loan) -> Sent<'a> {
        answer.private_bytes().map_or(Sent::Answer(answer.len()), Sent::Bytes)
    }

    fn len(&self) -> usize {
        match self {
            Sent::Bytes(bytes) => bytes.len(),
            Sent::Lent(view) => view.len(),
            Sent::Answer(length) => *length,
        }
    }

    /// Copies its beginning.
    fn first(&self, most: usize) -> Vec<u8> {
        match self {
            Sent::Bytes(bytes) => bytes[..most.min(bytes.len())].to_vec(),
            Sent::Lent(view) => {
                let mut bytes = vec![0; most.min(view.len())];
                let read = view.read_at(0, &mut bytes);
                bytes.truncate(read);
                bytes
            }
            Sent::Answer(_) => Vec::new(),
        }
    }
}

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
        sent: Sent<'_>,
        run: impl FnOnce() -> usize,
    ) -> usize {
        match trace::begins(self.channel.introduction.dest, clock::now_ns()) {
            Some(root) => self.traced(root, 0, meta, sent, run),
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
        sent: Sent<'_>,
        run: impl FnOnce() -> usize,
    ) -> usize {
        self.show(own, meta.message_id, false, sent);
        let begun = clock::now_ns();
        let span = Span {
            context: own,
            parent,
            kind: SpanKind::Handler,
            is_one_way: meta.kind == Kind::OneWay,
            start_ns: begun,
            queued_ns: begun.saturating_sub(meta.received_ns),
            bytes: sent.len() as u64,
            message_id: meta.message_id,
            ..self.channel.span()
        };
        let served = trace::handling(&span, run);
        let duration_ns = clock::now_ns().saturating_sub(begun);
        self.channel.write_down(Span { duration_ns, ..span });
        served
    }

    /// Writes down the beginning of an answer that is given within a trace, where an operator may
    /// see it.
    #[inline(always)]
    pub(super) fn maybe_show<'a>(&self, meta: &Meta, answer: impl FnOnce() -> Sent<'a>) {
        if let Some(context) = trace::current() {
            self.show(context, meta.message_id, true, answer());
        }
    }

    /// Writes down the beginning of a payload, where an operator may see it.
    #[cold]
    #[inline(never)]
    fn show(&self, context: Context, message_id: u64, is_answer: bool, sent: Sent<'_>) {
        let introduction = &self.channel.introduction;
        let most = trace::shown(introduction.dest, clock::now_ns());
        if most == 0 {
            return;
        }
        let is_encrypted = introduction.encrypted;
        self.channel.show(&Payload {
            trace: context.trace,
            channel: introduction.channel,
            message_id,
            is_answer,
            is_encrypted,
            length: sent.len() as u64,
            bytes: if is_encrypted { Vec::new() } else { sent.first(most) },
        });
    }
}
