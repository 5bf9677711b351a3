//! The bytes before a protobuf message: `docs/rpc.md` draws them.

use super::prost::bytes::BufMut;
use crate::error::{Retry, Status};

/// The version of what this module describes.
pub const VERSION: u8 = 1;

/// Bytes of the longest head of a request.
pub const LONGEST_HEAD: usize = HEAD + 25 + 16;

/// Bytes of a head, without what its flags add.
pub const HEAD: usize = 8;

/// Asks for more of a stream. The body is the stream's id, 8 bytes.
pub const NEXT: u32 = 1;

/// Ends a stream early. The body is the stream's id, 8 bytes.
pub const CLOSE: u32 = 2;

/// Method ids below this are no service's.
pub const RESERVED: u32 = 16;

/// In a request: a trace context follows the head, 25 bytes.
const TRACE: u8 = 1;
/// In a request: a key follows the head and the trace context, 16 bytes.
const KEY: u8 = 2;

/// In an answer: the body is of a stream.
const STREAM: u8 = 1;
/// In an answer: the stream goes on.
const MORE: u8 = 2;
/// In an answer with an error: what may be repeated can be tried again.
const RETRY_IDEMPOTENT: u8 = 4;
/// In an answer with an error: everything can be tried again.
const RETRY_ALWAYS: u8 = 8;

/// The trace that a request is part of, as in W3C Trace Context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Trace {
    /// Of the whole trace.
    pub trace_id: [u8; 16],
    /// Of the caller's part of it.
    pub span_id: [u8; 8],
    /// Whether it is recorded, and the like.
    pub flags: u8,
}

/// What stands before a request's message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// The id of its method, or [`NEXT`] or [`CLOSE`].
    pub method: u32,
    /// The trace that it is part of.
    pub trace: Option<Trace>,
    /// By which the service knows a repeated request again.
    pub key: Option<[u8; 16]>,
}

/// What an answer's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerHead {
    /// The message.
    Message,
    /// The id of a stream, and messages of it, each after its length.
    Stream {
        /// Whether there may be more.
        more: bool,
    },
    /// A text that explains an error.
    Fault {
        /// The error; never [`Status::OK`].
        status: Status,
        /// Whether to try again.
        retry: Retry,
    },
}

/// Why bytes are no request or answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// They end within the head.
    #[error("too short for the head of a typed call")]
    Short,
    /// The head is of another version.
    #[error("the head of a typed call is of version {0}, not {VERSION}")]
    Version(u8),
    /// The head has flags that are not defined, or contradict each other.
    #[error("the head of a typed call has undefined or contradictory flags")]
    Flags,
    /// The body is not what its head says.
    #[error("the body of a typed call is cut short")]
    Body,
}

impl RequestHead {
    /// Writes it.
    #[inline]
    pub fn encode(&self, out: &mut impl BufMut) {
        RequestHead::write(self.method, self.trace.as_ref(), self.key.as_ref(), out);
    }

    /// Writes one from where its parts are: an optional array that is nothing would be moved by
    /// loads that wait until all stores before them are done, those into a peer's lines as well.
    #[inline]
    pub(super) fn write(
        method: u32,
        trace: Option<&Trace>,
        key: Option<&[u8; 16]>,
        out: &mut impl BufMut,
    ) {
        let flags = if trace.is_some() { TRACE } else { 0 } | if key.is_some() { KEY } else { 0 };
        out.put_slice(&head(method, flags));
        if flags == 0 {
            return;
        }
        if let Some(Trace { trace_id, span_id, flags }) = trace {
            out.put_slice(trace_id);
            out.put_slice(span_id);
            out.put_u8(*flags);
        }
        out.put_slice(key.map_or(&[], |key| &key[..]));
    }

    /// Reads it; gives what follows, too.
    ///
    /// # Errors
    /// [`WireError`].
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<(RequestHead, &[u8]), WireError> {
        let (first, flags, mut rest) = split(bytes)?;
        if flags & !(TRACE | KEY) != 0 {
            return Err(WireError::Flags);
        }
        let mut decoded = RequestHead { method: first, ..Self::default() };
        if flags & TRACE != 0 {
            let trace_id = *take(&mut rest)?;
            let span_id = *take(&mut rest)?;
            let [flags] = *take(&mut rest)?;
            decoded.trace = Some(Trace { trace_id, span_id, flags });
        }
        if flags & KEY != 0 {
            decoded.key = Some(*take(&mut rest)?);
        }
        Ok((decoded, rest))
    }
}

impl AnswerHead {
    /// Gives its bytes.
    #[inline]
    pub fn encode(&self) -> [u8; HEAD] {
        match *self {
            AnswerHead::Message => head(0, 0),
            AnswerHead::Stream { more } => head(0, STREAM | if more { MORE } else { 0 }),
            AnswerHead::Fault { status, retry } => {
                let flags = match retry {
                    Retry::Never => 0,
                    Retry::Idempotent => RETRY_IDEMPOTENT,
                    Retry::Always => RETRY_ALWAYS,
                };
                head(status.code() as u32, flags)
            }
        }
    }

    /// Reads it; gives the body, too.
    ///
    /// # Errors
    /// [`WireError`].
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<(AnswerHead, &[u8]), WireError> {
        let (first, flags, body) = split(bytes)?;
        let status = Status::from_code(first as i32);
        let fault = |retry| AnswerHead::Fault { status, retry };
        let decoded = match (status, flags) {
            (Status::OK, 0) => AnswerHead::Message,
            (Status::OK, STREAM) => AnswerHead::Stream { more: false },
            (Status::OK, _) if flags == STREAM | MORE => AnswerHead::Stream { more: true },
            (Status::OK, _) => return Err(WireError::Flags),
            (_, 0) => fault(Retry::Never),
            (_, RETRY_IDEMPOTENT) => fault(Retry::Idempotent),
            (_, RETRY_ALWAYS) => fault(Retry::Always),
            (_, _) => return Err(WireError::Flags),
        };
        Ok((decoded, body))
    }
}

/// Reads the id of a stream, before whatever follows.
///
/// # Errors
/// [`WireError::Body`].
pub fn stream_id(body: &[u8]) -> Result<(u64, &[u8]), WireError> {
    let (id, rest) = body.split_first_chunk().ok_or(WireError::Body)?;
    Ok((u64::from_le_bytes(*id), rest))
}

/// Made as one word: bytes that are stored one by one and loaded together, as they are next, are
/// waited for.
#[inline]
fn head(first: u32, flags: u8) -> [u8; HEAD] {
    (u64::from(first) | u64::from(VERSION) << 32 | u64::from(flags) << 40).to_le_bytes()
}

/// Gives the first word, the flags, and what follows the head.
#[inline]
fn split(bytes: &[u8]) -> Result<(u32, u8, &[u8]), WireError> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(WireError::Short)?;
    let word = u64::from_le_bytes(*head);
    let [version, flags, 0, 0] = ((word >> 32) as u32).to_le_bytes() else {
        return Err(malformed(word));
    };
    if version != VERSION {
        return Err(malformed(word));
    }
    Ok((word as u32, flags, rest))
}

#[cold]
fn malformed(word: u64) -> WireError {
    match (word >> 32) as u8 {
        VERSION => WireError::Flags,
        version => WireError::Version(version),
    }
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], WireError> {
    let (taken, left) = rest.split_first_chunk().ok_or(WireError::Short)?;
    *rest = left;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_document() {
        let mut out = Vec::new();
        RequestHead { method: 0x0403_0201, ..RequestHead::default() }.encode(&mut out);
        assert_eq!(out, [1, 2, 3, 4, 1, 0, 0, 0]);
        let full = AnswerHead::Fault { status: Status::FULL, retry: Retry::Always };
        assert_eq!(full.encode(), [0xF5, 0xFF, 0xFF, 0xFF, 1, 8, 0, 0]);
        assert_eq!(AnswerHead::Message.encode(), [0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(AnswerHead::Stream { more: true }.encode(), [0, 0, 0, 0, 1, 3, 0, 0]);
    }

    #[test]
    fn what_is_not_defined_is_refused() {
        let request = |bytes: &[u8]| RequestHead::decode(bytes).expect_err("refused");
        assert_eq!(request(&[0; 7]), WireError::Short);
        assert_eq!(request(&[0; 8]), WireError::Version(0));
        assert_eq!(request(&[0, 0, 0, 0, 1, 4, 0, 0]), WireError::Flags);
        assert_eq!(request(&[0, 0, 0, 0, 1, 0, 0, 1]), WireError::Flags);
        assert_eq!(request(&[0, 0, 0, 0, 1, 1, 0, 0]), WireError::Short);
        let answer = |bytes: &[u8]| AnswerHead::decode(bytes).expect_err("refused");
        assert_eq!(answer(&[0, 0, 0, 0, 1, 2, 0, 0]), WireError::Flags);
        assert_eq!(answer(&[0, 0, 0, 0, 1, 4, 0, 0]), WireError::Flags);
        assert_eq!(answer(&[0xFF, 0xFF, 0xFF, 0xFF, 1, 12, 0, 0]), WireError::Flags);
    }

    proptest! {
        #[test]
        fn heads_come_out_as_they_went_in(
            method: u32,
            trace: Option<([u8; 16], [u8; 8], u8)>,
            key: Option<[u8; 16]>,
            body: Vec<u8>,
        ) {
            let trace =
                trace.map(|(trace_id, span_id, flags)| Trace { trace_id, span_id, flags });
            let head = RequestHead { method, trace, key };
            let mut out = Vec::new();
            head.encode(&mut out);
            out.extend_from_slice(&body);
            prop_assert_eq!(RequestHead::decode(&out), Ok((head, &body[..])));
        }

        #[test]
        fn any_bytes_are_a_head_or_an_error(bytes: Vec<u8>) {
            if let Ok((head, body)) = RequestHead::decode(&bytes) {
                let mut out = Vec::new();
                head.encode(&mut out);
                out.extend_from_slice(body);
                prop_assert_eq!(&out, &bytes);
            }
            if let Ok((head, body)) = AnswerHead::decode(&bytes) {
                prop_assert_eq!([&head.encode(), body].concat(), bytes);
            }
        }
    }
}
