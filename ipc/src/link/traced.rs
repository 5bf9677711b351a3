//! Calls of a thread that is within a trace's context.

use super::{Going, Limit, Link, Parcel, Sink};
use crate::{
    board::{Span, SpanKind},
    bulk, clock,
    error::CallError,
    frame::Label,
    layout::EXTENSION,
    table::Waiter,
    trace::{self, Context},
};

/// A payload, or what says where it lies, behind the extension that carries a context.
#[cold]
pub(crate) fn extended(context: Context, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(EXTENSION + payload.len());
    bytes.extend_from_slice(&context.to_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

impl Link {
    /// As `load`, for bytes that are sent within the context.
    #[cold]
    pub(super) fn load_traced(
        &self,
        context: Context,
        label: Label,
        payload: &[u8],
        send: impl FnOnce(Label, &[u8]) -> Result<u64, CallError>,
    ) -> Result<u64, CallError> {
        if payload.len() >= bulk::FROM
            && let Some(loan) = self.channel.lend_copy(payload)
        {
            return super::hand_over(label, loan, send);
        }
        send(label.extended(), &extended(context, payload))
    }

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
        let mut span = self.begin_traced(context, bytes);
        let again = match &parcel {
            Parcel::Bytes(payload) if self.relay.get().is_some() => {
                Some(extended(span.context, payload))
            }
            Parcel::Bytes(_) | Parcel::Loan(_) => None,
        };
        let turn = self.interrupter.turn();
        let (sent, result) = trace::calling(&span, || {
            let sent = self.request(label, parcel, limit, Waiter::Thread);
            let message_id = *sent.as_ref().unwrap_or(&0);
            let result = sent.and_then(|id| match self.wait(id as u32, limit.at(), turn, sink) {
                Err(error) if self.moves_on(id, &error) => {
                    let again = again.as_deref().map(|payload| (label.extended(), payload));
                    self.go_on(Going { id, again, limit, turn }, error, sink)
                }
                result => result,
            });
            (message_id, result)
        });
        span.message_id = sent;
        self.end_traced(span, result.as_ref().err());
        result
    }

    /// What is known of a call within the context before it is made.
    pub(crate) fn begin_traced(&self, context: Context, bytes: usize) -> Span {
        Span {
            context: context.child(),
            parent: context.span,
            kind: SpanKind::Call,
            start_ns: clock::now_ns(),
            bytes: bytes as u64,
            ..self.channel.span()
        }
    }

    /// Writes down how it went.
    pub(crate) fn end_traced(&self, span: Span, error: Option<&CallError>) {
        let duration_ns = clock::now_ns().saturating_sub(span.start_ns);
        let status = error.map_or(0, |error| error.status().code());
        self.channel.write_down(Span { duration_ns, status, ..span });
    }
}
