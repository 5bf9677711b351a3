//! Calls that wait for their answer, and the clients that a thread remembers.

#![allow(unsafe_code)] // exports

use std::{
    cell::RefCell,
    ffi::{c_int, c_void},
};

use ipc_core::{CallError, CallOptions, Client, Status};

use crate::{
    boundary::{self, guard},
    error::{Failure, IPC_OK},
    response::Buffer,
    runtime,
    service::limit,
    types::service_id_t,
};

/// Sends a request of req_size bytes and waits at most timeout_ms milliseconds for the response:
/// *response and *resp_size are set, and *response is to be given to ipc_free (by any thread),
/// also when *resp_size is 0. No callbacks run meanwhile.
///
/// dest is a name's id, which leads to whoever serves the name, or an instance's id.
/// IPC_EINVAL: a NULL, dest or timeout_ms is 0. IPC_ENOENT: nobody serves dest. IPC_ETIMEDOUT,
/// IPC_EMSGSIZE, IPC_EFULL. IPC_EPEERDIED: calling again is safe. IPC_EMAYBE: the service may have
/// acted. IPC_ENOREPLY: its handler gave no answer. IPC_ECANCELED: by ipc_stop or ipc_shutdown.
/// IPC_EUSER and below: the service's own errors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_call(
    dest: service_id_t,
    request: *const c_void,
    req_size: usize,
    response: *mut *mut c_void,
    resp_size: *mut usize,
    timeout_ms: u32,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let (request, response, resp_size) = unsafe {
            (
                boundary::bytes(request, req_size)?,
                boundary::out(response)?,
                boundary::out(resp_size)?,
            )
        };
        let options = options(timeout_ms)?;
        let buffer = with_client(dest, |client| Buffer::receive(client, request, options))?;
        resp_size.set(buffer.size());
        response.set(buffer.into_c());
        Ok(IPC_OK)
    })
}

/// As ipc_call, into a buffer of capacity bytes; sets *resp_size. The fastest way to call.
///
/// IPC_EMSGSIZE: the response is larger than the buffer, and lost; *resp_size is set to what was
/// needed. When it is the request that is too large, *resp_size is not written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_call_into(
    dest: service_id_t,
    request: *const c_void,
    req_size: usize,
    buffer: *mut c_void,
    capacity: usize,
    resp_size: *mut usize,
    timeout_ms: u32,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary; C lends the buffer for the response only, though
        // the request may overlap it: it has been sent when the response is written.
        let (request, buffer, resp_size) = unsafe {
            (
                boundary::bytes(request, req_size)?,
                boundary::buffer(buffer, capacity)?,
                boundary::out(resp_size)?,
            )
        };
        let options = options(timeout_ms)?;
        let called =
            with_client(dest, |client| Ok(client.call_into(request, &mut *buffer, options)));
        todo!()
    })
}
