//! Traces: which request led to which, across processes.

#![allow(unsafe_code)] // exports

use std::{
    cell::RefCell,
    ffi::{c_char, c_int, c_void},
};

use ipc_core::{
    Status,
    trace::{self, Context, Scope},
};

use crate::{
    boundary::{buffer, guard, name},
    error::IPC_OK,
    runtime,
};

/// Bytes of a traceparent, with the NUL behind it.
pub const IPC_TRACEPARENT_SIZE: usize = 56;

/// Contexts that one thread may be within, one inside the other.
const DEEPEST: usize = 64;

thread_local! {
    static BEGUN: RefCell<Vec<Scope>> = const { RefCell::new(Vec::new()) };
}

/// Has this thread be within a trace, until ipc_trace_end: each call and message that it sends
/// meanwhile carries the trace on. traceparent is as W3C Trace Context has it, such as came by HTTP
/// or from ipc_trace_current of another thread; NULL begins a new trace. Handlers of traced
/// requests are within one by themselves. Pair the two within one function: what a callback begins,
/// it ends.
///
/// IPC_EINVAL: it is no traceparent. IPC_EQUOTA: 64 are begun on this thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_trace_begin(traceparent: *const c_char) -> c_int {
    guard(|| {
        runtime::current()?;
        let context = if traceparent.is_null() {
            Context::root()
        } else {
            // SAFETY: clauses 1, 2 and 3 of the boundary; it is used in this call only.
            let text = unsafe { name(traceparent) }?;
            text.parse().map_err(|_| Status::INVALID)?
        };
        BEGUN.with_borrow_mut(|begun| {
            if begun.len() == DEEPEST {
                return Err(Status::QUOTA.into());
            }
            begun.push(context.enter());
            Ok(IPC_OK)
        })
    })
}

/// Ends what this thread began last by ipc_trace_begin.
///
/// IPC_ENOENT: it began none that has not ended.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_trace_end() -> c_int {
    guard(|| {
        let ended = BEGUN.with_borrow_mut(Vec::pop);
        ended.map(|_| IPC_OK).ok_or_else(|| Status::NOT_FOUND.into())
    })
}

/// Writes the traceparent that this thread is within to text, which has room for capacity bytes:
/// IPC_TRACEPARENT_SIZE, with the NUL. For a header of HTTP, or for ipc_trace_begin on another
/// thread, which is how work given to it goes on with the trace.
///
/// IPC_EINVAL: text is NULL. IPC_EMSGSIZE: capacity is less. IPC_ENOENT: it is within none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_trace_current(text: *mut c_char, capacity: usize) -> c_int {
    guard(|| {
        if text.is_null() {
            return Err(Status::INVALID.into());
        }
        // SAFETY: clauses 1 and 3 of the boundary, for this call.
        let text = unsafe { buffer(text.cast::<c_void>(), capacity) }?;
        let context = trace::current().ok_or(Status::NOT_FOUND)?.to_string();
        let room = text.get_mut(..IPC_TRACEPARENT_SIZE).ok_or(Status::MESSAGE_SIZE)?;
        let (end, digits) = room.split_last_mut().ok_or(Status::MESSAGE_SIZE)?;
        digits.copy_from_slice(context.as_bytes());
        *end = 0;
        Ok(IPC_OK)
    })
}
