//! Messages that nobody waits for in place: one-way ones, and calls with a callback.

#![allow(unsafe_code)] // exports, and calls into C

use std::{
    ffi::{c_int, c_void},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ipc_core::{CallError, CallOptions, Peer, Priority, Status};
use nix::time::{ClockId, clock_gettime};

use crate::{
    boundary::{self, UserData, guard},
    call::with_client,
    error::{Failure, IPC_OK},
    message::{self, Body, Desk, Head, Owned},
    runtime,
    service::limit,
    types::{Message, MessageCallback, MessageType, PriorityLevel, service_id_t},
};

/// Sends size bytes to dest, with priority NORMAL. With a callback it is a call: ipc_poll or
/// ipc_run runs the callback exactly once, with the answer or an error, and the user_data of
/// ipc_config_t; it has no deadline, and waits for room in the ring. With NULL it is a one-way
/// message: nobody answers it, and it fails at once when the ring is full.
///
/// IPC_EFULL: the ring is full, or too many calls are outstanding. IPC_EINVAL, IPC_ENOENT,
/// IPC_EMSGSIZE, IPC_EPEERDIED. IPC_EAUTH, IPC_ETIMEDOUT: the channel is to be encrypted, and dest
/// did not prove itself, or not in time. After an error nothing was sent, and the callback will not
/// run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_send_async(
    dest: service_id_t,
    data: *const c_void,
    size: usize,
    callback: MessageCallback,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let payload = unsafe { boundary::bytes(data, size) }?;
        match callback {
            None => one_way(dest, payload, Priority::Normal, 0)?,
            Some(function) => {
                let user_data = runtime::current()?.settings.user_data;
                call(dest, payload, Priority::Normal, 0, Callback { function, user_data })?
            }
        };
        Ok(IPC_OK)
    })
}

/// As ipc_send_async, with a priority, a user_data of its own, and a limit of time: of a call, for
/// all of it, 0 and IPC_WAIT_FOREVER meaning none; of a one-way message, for room in the ring, 0
/// meaning that it fails at once. *message_id, unless message_id is NULL, is what ipc_cancel takes,
/// and what the receiver sees.
///
/// IPC_EFULL: there was no room in time, or too many calls are outstanding. IPC_EINVAL: also when
/// priority is none; otherwise as ipc_send_async. A call whose time is over has its callback run
/// with IPC_ETIMEDOUT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_send_async_ex(
    dest: service_id_t,
    data: *const c_void,
    size: usize,
    priority: PriorityLevel,
    timeout_ms: u32,
    callback: MessageCallback,
    user_data: *mut c_void,
    message_id: *mut u64,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let (payload, message_id) =
            unsafe { (boundary::bytes(data, size)?, boundary::optional_out(message_id)) };
        let priority = priority.priority().ok_or(Status::INVALID)?;
        let id = match callback {
            None => one_way(dest, payload, priority, timeout_ms)?,
            Some(function) => {
                let callback = Callback { function, user_data: UserData(user_data) };
                call(dest, payload, priority, timeout_ms, callback)?
            }
        };
        if let Some(message_id) = message_id {
            message_id.set(id);
        }
        Ok(IPC_OK)
    })
}

/// Ends an outstanding call of ipc_send_async: its callback runs with IPC_ECANCELED, inside
/// ipc_poll or ipc_run as always. The service is told, and may have acted.
///
/// IPC_ENOENT: no call of this id is outstanding; it was answered, or never made.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_cancel(message_id: u64) -> c_int {
    guard(|| {
        if runtime::current()?.cancel(message_id) {
            Ok(IPC_OK)
        } else {
            Err(Status::NOT_FOUND.into())
        }
    })
}

/// What runs when a call ends.
#[derive(Clone, Copy, Debug)]
struct Callback {
    function: unsafe extern "C" fn(c_int, *const Message, *mut c_void),
    user_data: UserData,
}

impl Callback {
    fn run(self, outcome: Result<Vec<u8>, CallError>, head: &Head) {
        match outcome {
            Ok(payload) => {
                let body = Body::Owned(Owned::Response(payload));
                Desk::default().deliver(head, body, |reply| {
                    // SAFETY: C gave this function for this purpose; `reply` is a message until
                    // it returns.
                    unsafe { (self.function)(IPC_OK, reply, self.user_data.0) }
                });
            }
            Err(error) => {
                let status = Failure::from(error).report();
                message::run_callback(|| {
                    // SAFETY: as above; an error comes without a reply.
                    unsafe { (self.function)(status, ptr::null(), self.user_data.0) }
                });
            }
        }
    }
}

// One function for both of its callers, so that everything in it is inlined.
#[inline(never)]
fn one_way(dest: u32, payload: &[u8], priority: Priority, timeout_ms: u32) -> Result<u64, Failure> {
    let options = CallOptions { priority, timeout: limit(timeout_ms) };
    with_client(dest, |client| client.send(payload, options))
}

fn call(
    dest: u32,
    payload: &[u8],
    priority: Priority,
    timeout_ms: u32,
    callback: Callback,
) -> Result<u64, Failure> {
    let runtime = runtime::current()?;
    let timeout = if timeout_ms == 0 { None } else { limit(timeout_ms) };
    let dest_id = runtime.node.id().get();
    // The callback may run, in another thread's loop, before the id is known here.
    let id = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&id);
    with_client(dest, |client| {
        let Peer { uid, transport, .. } = client.peer();
        let fingerprint = client.session().map(|it| it.fingerprint);
        let done = move |outcome| {
            let message_id = loop {
                match told.load(Ordering::Acquire) {
                    0 => std::thread::yield_now(),
                    id => break id,
                }
            };
            let head = Head {
                message_id,
                source: dest,
                dest: dest_id,
                kind: MessageType::RESPONSE,
                priority: priority.into(),
                timestamp: monotonic_ns(),
                deadline_ns: 0,
                epoch: 0,
                uid,
                transport,
                fingerprint,
            };
            callback.run(outcome, &head);
        };
        let options = CallOptions { priority, timeout };
        // What timed out is the wait for room: nothing was sent, and nobody may have acted.
        let sent = client.call_async(&runtime.server, payload, options, done);
        let message_id = sent.map_err(|error| match error {
            CallError::TimedOut => CallError::Full,
            other => other,
        })?;
        id.store(message_id, Ordering::Release);
        Ok(message_id)
    })
}

fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
