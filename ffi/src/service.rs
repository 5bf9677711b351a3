//! Names: serving them and finding who serves them.

#![allow(unsafe_code)] // exports

use std::{
    ffi::{c_char, c_int},
    time::Duration,
};

use ipc_core::{NodeError, ServiceId, Status};

use crate::{
    boundary::{self, guard},
    error::{Failure, IPC_OK},
    runtime,
    types::{
        IPC_SERVICE_DEDUP, IPC_SERVICE_EXCLUSIVE, IPC_SERVICE_IDEMPOTENT, IPC_WAIT_FOREVER,
        service_id_t,
    },
};

/// Serves a name: 1 to 255 bytes of UTF-8 without control characters. *id is the id of this
/// instance; it ends with it. Several processes of one user may serve a name: the first answers,
/// the others stand by. Messages wait until ipc_receive_async gives them a handler and ipc_poll or
/// ipc_run is called.
///
/// IPC_EINVAL: a NULL, or no valid name. IPC_EEXIST: the name has an exclusive service.
/// IPC_EQUOTA. IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_register_service(
    service_name: *const c_char,
    id: *mut service_id_t,
) -> c_int {
    // SAFETY: the caller's promises are the same.
    unsafe { ipc_register_service_ex(service_name, 0, id) }
}

/// As ipc_register_service, with flags IPC_SERVICE_IDEMPOTENT, IPC_SERVICE_DEDUP and
/// IPC_SERVICE_EXCLUSIVE, or'ed together. An exclusive service is refused with IPC_EEXIST while
/// anybody serves the name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_register_service_ex(
    service_name: *const c_char,
    flags: u32,
    id: *mut service_id_t,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 to 3 of the boundary.
        let (name, id) = unsafe { (boundary::name(service_name)?, boundary::out(id)?) };
        if flags & !(IPC_SERVICE_IDEMPOTENT | IPC_SERVICE_EXCLUSIVE | IPC_SERVICE_DEDUP) != 0 {
            return Err(Status::INVALID.into());
        }
        let runtime = runtime::current()?;
        let registration = runtime.server.register(name, flags)?;
        runtime.add_instance(registration.instance);
        id.set(registration.instance.get());
        Ok(IPC_OK)
    })
}

/// Ends an instance of this process. Its channels close: callers get IPC_EPEERDIED, or IPC_EMAYBE
/// where their request was taken.
///
/// IPC_ENOENT: this process serves no such instance.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_unregister_service(id: service_id_t) -> c_int {
    guard(|| {
        let runtime = runtime::current()?;
        let instance = ServiceId::new(id);
        if !runtime.remove_instance(instance) {
            return Err(Status::NOT_FOUND.into());
        }
        runtime.server.unregister(instance)?;
        Ok(IPC_OK)
    })
}

/// Finds the id of a name that is served now. The id stays valid when its service restarts or
/// another takes over, and leads to whoever serves the name. An address may stand for the name:
/// shm://name, or unix:///path for who listens on that path. The id of a path is this process's
/// own.
///
/// IPC_EINVAL: a NULL, or no valid name or address. IPC_ENOTSUP: a tcp:// address. IPC_ENOENT:
/// nobody serves it now. IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_discover_service(
    service_name: *const c_char,
    id: *mut service_id_t,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 to 3 of the boundary.
        let (name, id) = unsafe { (boundary::name(service_name)?, boundary::out(id)?) };
        id.set(runtime::current()?.node.discover(name)?.get());
        Ok(IPC_OK)
    })
}

/// As ipc_discover_service, but waits until somebody serves the name, at most timeout_ms
/// milliseconds; 0 looks once, IPC_WAIT_FOREVER waits without limit.
///
/// IPC_ETIMEDOUT: nobody served it in time. IPC_ECANCELED: by ipc_stop or ipc_shutdown.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_wait_service(
    service_name: *const c_char,
    timeout_ms: u32,
    id: *mut service_id_t,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 to 3 of the boundary.
        let (name, id) = unsafe { (boundary::name(service_name)?, boundary::out(id)?) };
        let node = &runtime::current()?.node;
        let found = match timeout_ms {
            0 => match node.discover(name) {
                Err(NodeError::Refused(Status::NOT_FOUND)) => Err(NodeError::TimedOut),
                found => found,
            },
            _ => node.wait_service(name, limit(timeout_ms)),
        };
        id.set(found.map_err(Failure::from)?.get());
        Ok(IPC_OK)
    })
}

/// Reads a `timeout_ms` of C: nothing for no limit.
pub(crate) fn limit(timeout_ms: u32) -> Option<Duration> {
    (timeout_ms != IPC_WAIT_FOREVER).then(|| Duration::from_millis(timeout_ms.into()))
}
