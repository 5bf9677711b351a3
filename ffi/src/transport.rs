//! By what calls go, and listening on paths of sockets.

#![allow(unsafe_code)] // exports

use std::{
    collections::HashMap,
    ffi::{c_char, c_int},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ipc_core::{Address, Listening, Status, Transport};

use crate::{
    boundary::{self, guard},
    error::{Failure, IPC_OK},
    runtime,
    types::service_id_t,
};

/// Paths on which a process listens at a time: each has a thread.
const MOST: usize = 64;

/// In routing_info_t and ipc_transport: memory that both ends share.
pub const IPC_TRANSPORT_SHARED_MEMORY: u32 = 0;
/// The same: a Unix socket.
pub const IPC_TRANSPORT_SOCKET: u32 = 1;

/// What C listens on.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    all: Mutex<HashMap<PathBuf, Listening>>,
}

impl Paths {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Listening>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut *self.lock());
        // Without the lock: each waits for its thread.
        drop(all);
    }
}

/// Reads a path: alone, or as an address.
fn path(text: &str) -> Result<PathBuf, Failure> {
    if text.starts_with('/') {
        return Ok(PathBuf::from(text));
    }
    match text.parse() {
        Ok(Address::Unix(path)) => Ok(path),
        _ => Err(Status::INVALID.into()),
    }
}

/// Serves by a socket, too, for callers that reach no runtime or cannot share memory: they connect
/// by the address unix:///path. path is absolute, of at most 107 bytes; "unix://" may stand before
/// it. What comes by it goes to the handler of ipc_receive_async like any other message; its
/// source_service_id is an id that this process alone knows, and that is never used again.
/// Processes of this user, and root's, may connect; security.service_uid says which. The socket is
/// there until ipc_unlisten or the last ipc_shutdown.
///
/// IPC_EINVAL: a NULL, or no such path. IPC_EEXIST: somebody listens there, this process perhaps;
/// or it is a file that is no socket. IPC_EACCES: its directory is missing, or not yours.
/// IPC_EQUOTA: 64 paths already, or no descriptors are left. IPC_ESYS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_listen(path: *const c_char) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 2 of the boundary.
        let path = self::path(unsafe { boundary::name(path)? })?;
        let runtime = runtime::current()?;
        let mut paths = runtime.paths.lock();
        if paths.len() >= MOST {
            return Err(Status::QUOTA.into());
        }
        let listening = runtime.server.listen(&path)?;
        paths.insert(path, listening);
        Ok(IPC_OK)
    })
}

/// Listens on a path no more, and removes it. The channels that came by it close.
///
/// IPC_EINVAL: as for ipc_listen. IPC_ENOENT: this process does not listen there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_unlisten(path: *const c_char) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 2 of the boundary.
        let path = self::path(unsafe { boundary::name(path)? })?;
        let listening = stop(&path)?;
        // Waits for its thread, and holds no lock.
        drop(listening);
        Ok(IPC_OK)
    })
}

fn stop(path: &Path) -> Result<Listening, Failure> {
    let listening = runtime::current()?.paths.lock().remove(path);
    listening.ok_or_else(|| Status::NOT_FOUND.into())
}

/// Says by what calls to a service go: sets *transport to IPC_TRANSPORT_SHARED_MEMORY or
/// IPC_TRANSPORT_SOCKET. Opens a channel to it where there is none. It is a socket where this
/// process or the service cannot share memory, or was told not to (IPC_NO_SHARED_MEMORY), and
/// where dest is the id of a path. After the service was restarted it may be the other.
///
/// IPC_EINVAL: a NULL, or dest is 0. IPC_ENOENT: nobody serves it. IPC_EPEERDIED: nobody does any
/// more. IPC_EACCES: the rules do not allow it. IPC_ENOTSUP: the service can have
/// neither. IPC_EAUTH: it has to be encrypted, and the service does not prove its key.
/// IPC_ETIMEDOUT: the service does not answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_transport(dest: service_id_t, transport: *mut u32) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let transport = unsafe { boundary::out(transport)? };
        let client = runtime::current()?.client(dest)?;
        // The channel now: another than the last, perhaps.
        client.reopen()?;
        transport.set(match client.transport() {
            Transport::SharedMemory => IPC_TRANSPORT_SHARED_MEMORY,
            Transport::Socket => IPC_TRANSPORT_SOCKET,
        });
        Ok(IPC_OK)
    })
}
