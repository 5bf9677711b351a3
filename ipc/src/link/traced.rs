//! Calls of a thread that is within a trace's context.

use super::{Limit, Link, Parcel, Sink};
use crate::{
    board::{Span, SpanKind},
    clock,
    error::CallError,
    frame::{Kind, Label},
    layout::EXTENSION,
    table::Waiter,
    trace::{self, Context},
};

/// A payload behind the extension that carries a context. It travels by the ring, whatever its
/// length: what is lent lies where the sender put it.
#[cold]
pub(super) fn extended(context: Context, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(EXTENSION + payload.len());
    bytes.extend_from_slice(&context.to_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

impl Link {
    /// Calls as something that is done within the context, and writes down how it went.
    #[cold]
    #[inline(never)]
    pub(super) fn call_traced(
        &self,
        context: Context,
        label: Label,
        parcel: Parcel<'_>,
        limit: Limit,
        sink: &mut Sink<'_>,
    ) -> Result<(), CallError> {
        let bytes = match &parcel {
            Parcel::Bytes(payload) => payload.len(),
            Parcel::Loan(loan) => loan.len(),
        };
        let (own, begun) = (context.child(), clock::now_ns());
        let mut span = Span {
            context: own,
            parent: context.span,
            kind: SpanKind::Call,
            start_ns: begun,
            bytes: bytes as u64,
            ..self.channel.span()
        };
        let turn = self.interrupter.turn();
        let (sent, result) = trace::calling(&span, || {
            let sent = self.request(label, parcel, limit, Waiter::Thread);
            let message_id = *sent.as_ref().unwrap_or(&0);
            (message_id, sent.and_then(|id| self.wait(id as u32, limit.at(), turn, sink)))
        });
        span.message_id = sent;
        span.duration_ns = clock::now_ns().saturating_sub(begun);
        span.status = result.as_ref().err().map_or(0, |error| error.status().code());
        self.channel.write_down(span);
        result
    }
}
