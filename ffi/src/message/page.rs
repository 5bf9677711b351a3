//! The struct that C reads, and room for a short payload.

#![allow(unsafe_code)] // memory that C reads

use std::ptr::{self, NonNull};

use ipc_core::trace::{self, Context};

use super::Head;
use crate::session;
use crate::types::{CryptoSignature, Message, MessageType, RoutingInfo, SecurityContext};

/// Payloads up to so many bytes lie in the page, so that they do not move.
pub(super) const INLINE: usize = 64;

/// A message as C sees it, and room for a short payload.
#[repr(C)]
struct Sheet {
    message: Message,
    inline: [u8; INLINE],
}

/// What a message's payload pointer is to say.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    Bytes(&'a [u8]),
    /// So many bytes, to be read by ipc_message_read.
    Elsewhere(usize),
}

impl Payload<'_> {
    fn len(self) -> usize {
        match self {
            Payload::Bytes(bytes) => bytes.len(),
            Payload::Elsewhere(length) => length,
        }
    }
}

/// A sheet on the heap. Its address stays, and outlives the callback if the message is retained.
#[derive(Debug)]
pub(super) struct Page(NonNull<Sheet>);

// SAFETY: the sheet is owned by the page, and written only by `write` and `point_at`, which take
// the page by `&mut`.
unsafe impl Send for Page {}
// SAFETY: as above; through `&Page` only its address is to be had.
unsafe impl Sync for Page {}

impl Page {
    pub(super) fn new() -> Page {
        let sheet = Sheet { message: blank(), inline: [0; INLINE] };
        Page(NonNull::from(Box::leak(Box::new(sheet))))
    }

    pub(super) fn address(&self) -> *const Message {
        self.0.as_ptr().cast()
    }

    /// Fills in a message. A long payload is pointed at, and has to stay where it is. What no
    /// message of this library has stays zero.
    #[inline]
    pub(super) fn write(&mut self, head: &Head, payload: Payload<'_>) {
        let sheet = self.0.as_ptr();
        // SAFETY: the sheet is ours alone: `&mut self`, and no callback has its address now.
        let message = unsafe { &mut (*sheet).message };
        message.message_id = head.message_id;
        message.source_service_id = head.source;
        message.dest_service_id = head.dest;
        message.r#type = head.kind;
        message.priority = head.priority;
        message.timestamp = head.timestamp;
        message.payload_size = payload.len() as u32;
        message.security.service_uid = head.uid;
        match head.fingerprint {
            None if message.security.session_key == [0; 8] => {}
            fingerprint => name_session(&mut message.security, fingerprint),
        }
        message.routing.route_id = (head.message_id >> 32) as u32;
        message.routing.epoch = head.epoch;
        message.routing.deadline_ns = head.deadline_ns;
        message.routing.transport = head.transport as u32;
        match trace::current() {
            None if message.routing.span_id == [0; 8] => {}
            context => name_trace(&mut message.routing, context),
        }
        let Payload::Bytes(payload) = payload else {
            message.payload = ptr::null_mut();
            return;
        };
        if payload.len() <= INLINE {
            // SAFETY: as above; so many bytes fit, and the payload is not of this sheet.
            unsafe {
                let inline = (&raw mut (*sheet).inline).cast::<u8>();
                ptr::copy_nonoverlapping(payload.as_ptr(), inline, payload.len());
                (*sheet).message.payload = inline;
            }
        }
        self.point_at(payload);
    }

    /// Points a long payload's message at where it lies now.
    pub(super) fn point_at(&mut self, payload: &[u8]) {
        if payload.len() > INLINE {
            // SAFETY: the sheet is ours to write, as in `write`; later than that, this is called
            // from inside the callback, by the very thread that reads the sheet.
            unsafe { (*self.0.as_ptr()).message.payload = payload.as_ptr().cast_mut() };
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: leaked by `take`, and owned by this page alone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Says by which session a message came.
#[cold]
fn name_session(security: &mut SecurityContext, fingerprint: Option<[u8; 32]>) {
    security.session_key = fingerprint.map_or([0; 8], |it| session::words(&it));
}

/// Says to which trace a message belongs, in network byte order as a traceparent has it.
#[cold]
fn name_trace(routing: &mut RoutingInfo, context: Option<Context>) {
    let (trace, span) = context.map_or((0, 0), |it| (it.trace, it.span));
    routing.trace_id = trace.to_be_bytes();
    routing.span_id = span.to_be_bytes();
}

/// A message without anything in it.
fn blank() -> Message {
    Message {
        message_id: 0,
        source_service_id: 0,
        dest_service_id: 0,
        r#type: MessageType::REQUEST,
        priority: ipc_core::Priority::Normal.into(),
        timestamp: 0,
        payload_size: 0,
        payload: ptr::null_mut(),
        security: SecurityContext {
            service_uid: 0,
            session_key: [0; 8],
            signature: CryptoSignature { bytes: [0; 64] },
            permissions: 0,
            expiry_time: 0,
        },
        routing: RoutingInfo {
            route_id: 0,
            hop_count: 0,
            epoch: 0,
            deadline_ns: 0,
            trace_id: [0; 16],
            span_id: [0; 8],
            transport: 0,
            flags: 0,
        },
    }
}
