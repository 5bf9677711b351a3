//! Calls of a thread that is within a trace's context.

use super::{Going, Limit, Link, Parcel, Sink};
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
        let payload = match &parcel {
            Parcel::Bytes(payload) if self.relay.get().is_some() => Some(extended(own, payload)),
            Parcel::Bytes(_) | Parcel::Loan(_) => None,
        };
        let turn = self.interrupter.turn();
        let sent = trace::within(own, || self.request(label, parcel, limit, Waiter::Thread));
        let message_id = *sent.as_ref().unwrap_or(&0);
        let result = sent.and_then(|id| match self.wait(id as u32, limit.at(), turn, sink) {
            Err(error) if self.moves_on(id, &error) => {
                let again = payload.as_deref().map(|payload| (label.extended(), payload));
                self.go_on(Going { id, again, limit, turn }, error, sink)
            }
            result => result,
        });
        self.channel.write_down(Span {
            context: own,
            parent: context.span,
            kind: SpanKind::Call,
            is_one_way: label.is(Kind::OneWay),
            start_ns: begun,
            duration_ns: clock::now_ns().saturating_sub(begun),
            status: result.as_ref().err().map_or(0, |error| error.status().code()),
            bytes: bytes as u64,
            message_id,
            ..self.channel.span()
        });
        result
    }
}
