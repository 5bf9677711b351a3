//! What was done for traced requests, written down where others can read it: the last of it, in a
//! segment of its own.

use super::{layout::TAPE, memory::Segment};
use crate::{
    ServiceId,
    error::NodeError,
    sync::{AtomicU64, Ordering, fence},
    trace::Context,
};

/// What was done for a traced request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its own.
    pub context: Context,
    /// The span for which it was done; 0 at the root.
    pub parent: u64,
    /// What it was.
    pub kind: SpanKind,
    /// Whether nobody waits for an answer.
    pub is_one_way: bool,
    /// When it began: `CLOCK_MONOTONIC` in ns.
    pub start_ns: u64,
    /// How long it took, in ns.
    pub duration_ns: u64,
    /// Of a handler, how long its request was there before, in ns.
    pub queued_ns: u64,
    /// Of a call, how it ended: 0, or a number of `Status`.
    pub status: i32,
    /// The channel.
    pub channel: u64,
    /// The instance that serves on it.
    pub dest: ServiceId,
    /// Its name.
    pub dest_name: ServiceId,
    /// The process at the other end.
    pub peer_pid: u32,
    /// The thread that did it.
    pub thread: u32,
    /// Of the request's payload.
    pub bytes: u64,
    /// The request's.
    pub message_id: u64,
}

/// What a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// A call, as its caller sees it.
    Call,
    /// A handler.
    Handler,
}

impl Default for Span {
    fn default() -> Span {
        Span {
            context: Context { trace: 0, span: 0, flags: 0 },
            parent: 0,
            kind: SpanKind::Call,
            is_one_way: false,
            start_ns: 0,
            duration_ns: 0,
            queued_ns: 0,
            status: 0,
            channel: 0,
            dest: ServiceId::new(0),
            dest_name: ServiceId::new(0),
            peer_pid: 0,
            thread: 0,
            bytes: 0,
            message_id: 0,
        }
    }
}

/// This node's tape.
#[derive(Debug)]
pub(super) struct Tape {
    segment: Segment,
    /// Spans written so far.
    written: AtomicU64,
}

impl Tape {
    pub(super) fn create() -> Result<Tape, NodeError> {
        Ok(Tape { segment: Segment::create(TAPE)?, written: AtomicU64::new(0) })
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Writes a span in place of the oldest.
    pub(super) fn write(&self, span: &Span) {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let records = self.segment.records();
        let record = &records[number as usize % records.len()];
        record.sequence.store(2 * number + 1, Ordering::Relaxed);
        // A reader that sees any of what follows sees that something is written.
        fence(Ordering::Release);
        for (word, value) in record.words.iter().zip(words(span)) {
            word.store(value, Ordering::Relaxed);
        }
        record.sequence.store(2 * number + 2, Ordering::Release);
    }
}

/// Reads the spans of a tape that are whole. What they say is their writer's word.
pub(super) fn read(segment: &Segment) -> impl Iterator<Item = Span> {
    segment.records().iter().filter_map(|record| {
        let sequence = record.sequence.load(Ordering::Acquire);
        if sequence == 0 || !sequence.is_multiple_of(2) {
            return None;
        }
        let words = std::array::from_fn(|index| record.words[index].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (record.sequence.load(Ordering::Relaxed) == sequence).then(|| span(words))
    })
}

fn words(span: &Span) -> [u64; 15] {
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let kind = u32::from(span.kind == SpanKind::Handler) | u32::from(span.is_one_way) << 1;
    let kind = kind | u32::from(span.context.flags) << 8;
    [
        (span.context.trace >> 64) as u64,
        span.context.trace as u64,
        span.context.span,
        span.parent,
        span.start_ns,
        span.duration_ns,
        span.queued_ns,
        pair(kind, span.status.cast_unsigned()),
        span.channel,
        pair(span.dest.get(), span.dest_name.get()),
        pair(span.peer_pid, nix::unistd::gettid().as_raw().cast_unsigned()),
        span.bytes,
        span.message_id,
        0,
        0,
    ]
}

fn span(words: [u64; 15]) -> Span {
    let low = |word: u64| word as u32;
    let high = |word: u64| (word >> 32) as u32;
    Span {
        context: Context {
            trace: u128::from(words[0]) << 64 | u128::from(words[1]),
            span: words[2],
            flags: (words[7] >> 8) as u8,
        },
        parent: words[3],
        kind: if words[7] & 1 == 1 { SpanKind::Handler } else { SpanKind::Call },
        is_one_way: words[7] & 2 == 2,
        start_ns: words[4],
        duration_ns: words[5],
        queued_ns: words[6],
        status: high(words[7]).cast_signed(),
        channel: words[8],
        dest: ServiceId::new(low(words[9])),
        dest_name: ServiceId::new(high(words[9])),
        peer_pid: low(words[10]),
        thread: high(words[10]),
        bytes: words[11],
        message_id: words[12],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(number: u64) -> Span {
        Span {
            context: Context { trace: u128::MAX - 1, span: number + 1, flags: 1 },
            parent: 9,
            kind: SpanKind::Handler,
            is_one_way: true,
            start_ns: 1,
            duration_ns: 2,
            queued_ns: 3,
            status: -3,
            channel: 4,
            dest: ServiceId::new(5),
            dest_name: ServiceId::new(6),
            peer_pid: 7,
            thread: nix::unistd::gettid().as_raw().cast_unsigned(),
            bytes: 8,
            message_id: 10,
        }
    }

    #[test]
    fn the_last_spans_are_read_as_they_were_written() {
        let tape = Tape::create().expect("memory");
        assert_eq!(read(tape.segment()).count(), 0);
        tape.write(&some(0));
        assert_eq!(read(tape.segment()).collect::<Vec<_>>(), [some(0)]);
        let room = tape.segment().records().len() as u64;
        (1..=room).for_each(|number| tape.write(&some(number)));
        let mut spans: Vec<u64> = read(tape.segment()).map(|it| it.context.span).collect();
        spans.sort_unstable();
        assert_eq!(spans, (2..=room + 1).collect::<Vec<_>>(), "the first is overwritten");
    }

    #[test]
    fn a_span_that_is_being_written_is_not_read() {
        let tape = Tape::create().expect("memory");
        tape.write(&some(0));
        tape.segment().records()[0].sequence.store(3, Ordering::Relaxed);
        assert_eq!(read(tape.segment()).count(), 0);
    }
}
