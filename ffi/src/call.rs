//! Calls that wait for their answer, and the clients that a thread remembers.

#![allow(unsafe_code)] // exports

use std::{
    cell::{RefCell, RefMut},
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
        // SAFETY: clauses 1 and 3 of the boundary.
        let (request, resp_size) =
            unsafe { (boundary::bytes(request, req_size)?, boundary::out(resp_size)?) };
        // C may well use one buffer for both.
        let overlaps = boundary::overlaps(request, buffer, capacity);
        let copy = overlaps.then(|| request.to_vec());
        let request = copy.as_deref().unwrap_or(request);
        // SAFETY: clauses 1 and 3 of the boundary, and the request is elsewhere.
        let buffer = unsafe { boundary::buffer(buffer, capacity) }?;
        let options = options(timeout_ms)?;
        let capacity = buffer.len() as u64;
        let mut needed = None;
        let size = with_client(dest, |client| {
            let called = client.call_into(request, buffer, options);
            if let Err(CallError::TooLarge { size, limit }) = called
                && limit == capacity
            {
                needed = Some(size);
            }
            called
        });
        match (size, needed) {
            (Ok(size), _) => resp_size.set(size),
            (Err(failure), None) => return Err(failure),
            (Err(failure), Some(needed)) => {
                resp_size.set(needed as usize);
                return Err(failure);
            }
        }
        Ok(IPC_OK)
    })
}

pub(crate) fn options(timeout_ms: u32) -> Result<CallOptions, Failure> {
    match timeout_ms {
        0 => Err(Status::INVALID.into()),
        _ => Ok(CallOptions { timeout: limit(timeout_ms), ..CallOptions::default() }),
    }
}

/// Clients that a thread remembers: a power of two, by the low bits of their destinations.
const REMEMBERED: usize = 8;

/// A client that this thread used. It holds for one runtime: see [`runtime::generation`].
#[derive(Debug)]
struct Remembered {
    generation: u64,
    dest: u32,
    client: Client,
}

thread_local! {
    static CLIENTS: RefCell<[Option<Remembered>; REMEMBERED]> =
        const { RefCell::new([const { None }; REMEMBERED]) };
}

/// Lends the client of `dest`. What this thread used before is found without a lock.
// Inlined always, with its body and all that this calls up to the ring: an argument that passes
// through memory is stored by the word and loaded by the pair, and such a load waits until the
// stores before it, those into the peer's lines too, are done.
#[inline(always)]
pub(crate) fn with_client<R>(
    dest: u32,
    body: impl FnOnce(&Client) -> Result<R, CallError>,
) -> Result<R, Failure> {
    // SAFETY: clause 1: the borrow ends in this function, within a call from C.
    let mut place = unsafe { place_of(dest) };
    let fresh;
    if let Some(place) = &mut place
        && !place.as_ref().is_some_and(|known| known.is_for(dest))
    {
        **place = Some(remember(dest)?);
    }
    let client = if let Some(Some(known)) = place.as_deref() {
        &known.client
    } else {
        fresh = runtime::current()?.client(dest)?;
        &fresh
    };
    let called = body(client);
    if called.as_ref().is_err_and(is_over) {
        if let Some(place) = &mut place {
            **place = None;
        }
        forget(dest);
    }
    called.map_err(Failure::from)
}

/// Where this thread remembers the client of `dest`. Nowhere when the thread is ending, or when a
/// signal handler calls, against the rules, what its thread was in.
///
/// # Safety
/// 1. `'a` ends before this thread's destructors run.
#[inline(always)]
unsafe fn place_of<'a>(dest: u32) -> Option<RefMut<'a, Option<Remembered>>> {
    let clients = CLIENTS.try_with(std::ptr::from_ref).ok()?;
    // SAFETY: the value is there until the thread's destructors run (1). No other thread has it,
    // and the cell sees to the rest.
    let clients = unsafe { &*clients }.try_borrow_mut().ok()?;
    Some(RefMut::map(clients, |clients| &mut clients[dest as usize % REMEMBERED]))
}

impl Remembered {
    #[inline]
    fn is_for(&self, dest: u32) -> bool {
        self.dest == dest && self.generation == runtime::generation()
    }
}

#[cold]
fn remember(dest: u32) -> Result<Remembered, Failure> {
    let runtime = runtime::current()?;
    let client = runtime.client(dest)?;
    Ok(Remembered { generation: runtime.generation, dest, client })
}

/// Whether the client's channel ended with this error: its destination may never come back, and
/// if it does, a new client finds it as well.
fn is_over(error: &CallError) -> bool {
    match error {
        CallError::PeerDied { .. } | CallError::PeerCorrupt(_) | CallError::Node(_) => true,
        CallError::TimedOut
        | CallError::Full
        | CallError::TooLarge { .. }
        | CallError::Canceled
        | CallError::Invalid(_)
        | CallError::AlreadyAnswered
        | CallError::Forked
        | CallError::Reentrant
        | CallError::Remote(_) => false,
    }
}

#[cold]
fn forget(dest: u32) {
    if let Ok(runtime) = runtime::current() {
        runtime.forget_client(dest);
    }
}

/// Lets go of the clients of this thread. Those of other threads go when these call again or end.
pub(crate) fn forget_clients() {
    let _ = CLIENTS.try_with(|clients| {
        if let Ok(mut clients) = clients.try_borrow_mut() {
            clients.fill_with(|| None);
        }
    });
}
