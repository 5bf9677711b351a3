//! Messages in bulk memory, which C fills where their receiver will read them.

#![allow(unsafe_code)] // exports

use std::{
    collections::HashMap,
    ffi::{c_int, c_void},
    sync::{Mutex, PoisonError},
};

use ipc_core::{CallOptions, Loan, Status};

use crate::{
    boundary::{self, Out, guard},
    call::{options, with_client},
    error::{Failure, IPC_OK},
    message::{self, Answer},
    response::Buffer,
    runtime,
    service::limit,
    types::{Message, service_id_t},
};

/// Lends size bytes of shared memory for a message to dest, and sets *data: fill them all, and pass
/// them to ipc_call_loaned or ipc_send_loaned, which copy nothing; or to ipc_return_loan. What was
/// sent before lies there. Up to 32 loans to a destination may be outstanding, of 1 GiB together:
/// lent, or sent and still being read.
///
/// IPC_EINVAL: a NULL, or size is 0. IPC_EFULL: no more can be lent now. IPC_EMSGSIZE: over
/// max_payload. IPC_ENOENT, IPC_EPEERDIED. IPC_EAUTH, IPC_ETIMEDOUT: as ipc_send_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_loan(
    dest: service_id_t,
    size: usize,
    data: *mut *mut c_void,
) -> c_int {
    // SAFETY: clauses 1 and 3 of the boundary.
    guard(|| keep(size, unsafe { boundary::out(data) }?, || with_client(dest, |it| it.loan(size))))
}

/// Gives a loan back that was not sent. NULL is ignored.
///
/// IPC_EINVAL: data is no loan.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_return_loan(data: *mut c_void) -> c_int {
    guard(|| {
        if !data.is_null() {
            drop(take(data)?);
        }
        Ok(IPC_OK)
    })
}

/// As ipc_call, with a loan for dest as the request. It is not yours any more, whatever this
/// returns.
///
/// IPC_EINVAL: also when data is no loan. IPC_EPEERDIED: also when it was lent before the service
/// died. Otherwise as ipc_call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_call_loaned(
    dest: service_id_t,
    data: *mut c_void,
    response: *mut *mut c_void,
    resp_size: *mut usize,
    timeout_ms: u32,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let (response, resp_size) =
            unsafe { (boundary::out(response)?, boundary::out(resp_size)?) };
        let options = options(timeout_ms)?;
        let loan = take(data)?;
        let answer = with_client(dest, |client| client.call_loaned(loan, options))?;
        let buffer = Buffer::of_view(&answer);
        resp_size.set(buffer.size());
        response.set(buffer.into_c());
        Ok(IPC_OK)
    })
}

/// Sends a loan for dest as a one-way message, which nobody answers. timeout_ms is for room in the
/// ring; 0 fails at once. The loan is not yours any more, whatever this returns.
///
/// IPC_EINVAL: data is no loan. Otherwise as ipc_call_loaned and ipc_send_async_ex.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_send_loaned(dest: service_id_t, data: *mut c_void, timeout_ms: u32) -> c_int {
    guard(|| {
        let loan = take(data)?;
        let options = CallOptions { timeout: limit(timeout_ms), ..CallOptions::default() };
        with_client(dest, |client| client.send_loaned(loan, options))?;
        Ok(IPC_OK)
    })
}

/// As ipc_loan, for the answer to a request.
///
/// IPC_EINVAL: also when request is not the pointer that a handler got, or one that was retained.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_reply_loan(
    request: *const Message,
    size: usize,
    data: *mut *mut c_void,
) -> c_int {
    // SAFETY: clauses 1 and 3 of the boundary.
    guard(|| keep(size, unsafe { boundary::out(data) }?, || message::lend(request, size)))
}

/// As ipc_reply, with a loan of ipc_reply_loan for the same request. It is not yours any more,
/// whatever this returns.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_reply_loaned(request: *const Message, data: *mut c_void) -> c_int {
    guard(|| message::answer(request, Answer::Loan(take(data)?)))
}

/// Copies up to size bytes of a message's payload, from offset on, into buffer; sets *copied, less
/// than size only at the payload's end. With IPC_BULK_VIEWS it is how a payload in bulk memory is
/// read. Its sender may change it meanwhile: decide on one copy.
///
/// IPC_EINVAL: a NULL, or msg is not the pointer that a callback got, or one that was retained.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_message_read(
    msg: *const Message,
    offset: usize,
    buffer: *mut c_void,
    size: usize,
    copied: *mut usize,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary; the payload is the library's own.
        let (buffer, copied) = unsafe { (boundary::buffer(buffer, size)?, boundary::out(copied)?) };
        copied.set(message::read(msg, offset, buffer)?);
        Ok(IPC_OK)
    })
}

/// The loans in the hands of C, by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Loans(Mutex<HashMap<usize, Loan>>);

impl Loans {
    /// Gives all back.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Lends so many bytes into the hands of C.
fn keep(
    size: usize,
    data: Out<'_, *mut c_void>,
    lend: impl FnOnce() -> Result<Loan, Failure>,
) -> Result<c_int, Failure> {
    if size == 0 {
        return Err(Status::INVALID.into());
    }
    let mut loan = lend()?;
    let address = loan.as_mut_ptr();
    let runtime = runtime::current()?;
    let mut loans = runtime.loans.0.lock().unwrap_or_else(PoisonError::into_inner);
    loans.insert(address.addr(), loan);
    data.set(address.cast());
    Ok(IPC_OK)
}

fn take(data: *mut c_void) -> Result<Loan, Failure> {
    let runtime = runtime::current()?;
    let mut loans = runtime.loans.0.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(loans.remove(&data.addr()).ok_or(Status::INVALID)?)
}
