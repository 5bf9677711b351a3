//! The error numbers of `ipc.h`, and how the core's errors become them.

use std::{cell::Cell, ffi::c_int};

use ipc_core::{
    CallError, NodeError, RegionError, Status, queue::QueueError, session::EnvelopeError,
};
use kernel_services::{KernelError, token::KeyError};

/// Success.
pub const IPC_OK: c_int = 0;
/// An argument is wrong: a required pointer is NULL, or a value is out of its range.
pub const IPC_EINVAL: c_int = -1;
/// Out of memory.
pub const IPC_ENOMEM: c_int = -2;
/// No answer came before the deadline. A request may still be carried out.
pub const IPC_ETIMEDOUT: c_int = -3;
/// No such service, region, queue or outstanding call.
pub const IPC_ENOENT: c_int = -4;
/// The name is taken by an exclusive service.
pub const IPC_EEXIST: c_int = -5;
/// A right is missing, or the runtime directory is not yours.
pub const IPC_EACCES: c_int = -6;
/// A token or a handshake was refused.
pub const IPC_EAUTH: c_int = -7;
/// The peer died or left before it took the request. Calling again is safe.
pub const IPC_EPEERDIED: c_int = -8;
/// The peer died holding the request. It may or may not have acted.
pub const IPC_EMAYBE: c_int = -9;
/// The peer broke the protocol, and the channel was cut.
pub const IPC_EPEERCORRUPT: c_int = -10;
/// A ring or a table is full. Nothing was sent.
pub const IPC_EFULL: c_int = -11;
/// The message is over max_payload, or over the buffer given.
pub const IPC_EMSGSIZE: c_int = -12;
/// A quota is used up: names, channels, descriptors, bytes.
pub const IPC_EQUOTA: c_int = -13;
/// No runtime answers. Start ipcd, or use IPC_EMBEDDED.
pub const IPC_ENORUNTIME: c_int = -14;
/// ipc_init was not called, or ipc_shutdown was.
pub const IPC_ENOTINIT: c_int = -15;
/// The process is a forked child that has not called ipc_init.
pub const IPC_EFORK: c_int = -16;
/// Not allowed inside a callback.
pub const IPC_EREENTRANT: c_int = -17;
/// The handler returned without an answer.
pub const IPC_ENOREPLY: c_int = -18;
/// The request was answered before.
pub const IPC_EALREADY: c_int = -19;
/// Ended by ipc_cancel, ipc_stop or ipc_shutdown.
pub const IPC_ECANCELED: c_int = -20;
/// It carries an older epoch.
pub const IPC_ESTALE: c_int = -21;
/// Events were overwritten before they were read.
pub const IPC_ELAGGED: c_int = -22;
/// Not supported by this version, this kernel or this configuration.
pub const IPC_ENOTSUP: c_int = -23;
/// Input or output failed.
pub const IPC_EIO: c_int = -24;
/// The versions of the library and of the runtime do not fit.
pub const IPC_EPROTO: c_int = -25;
/// An internal error was caught at the boundary. Please report it.
pub const IPC_EPANIC: c_int = -26;
/// A system call failed: see ipc_last_os_error.
pub const IPC_ESYS: c_int = -27;
/// The highest number of a service's own errors: they are at most this.
pub const IPC_EUSER: c_int = -1000;

const _: () = {
    let numbers = [
        (IPC_OK, Status::OK),
        (IPC_EINVAL, Status::INVALID),
        (IPC_ENOMEM, Status::NO_MEMORY),
        (IPC_ETIMEDOUT, Status::TIMED_OUT),
        (IPC_ENOENT, Status::NOT_FOUND),
        (IPC_EEXIST, Status::EXISTS),
        (IPC_EACCES, Status::ACCESS),
        (IPC_EAUTH, Status::AUTH),
        (IPC_EPEERDIED, Status::PEER_DIED),
        (IPC_EMAYBE, Status::MAYBE),
        (IPC_EPEERCORRUPT, Status::PEER_CORRUPT),
        (IPC_EFULL, Status::FULL),
        (IPC_EMSGSIZE, Status::MESSAGE_SIZE),
        (IPC_EQUOTA, Status::QUOTA),
        (IPC_ENORUNTIME, Status::NO_RUNTIME),
        (IPC_ENOTINIT, Status::NOT_INIT),
        (IPC_EFORK, Status::FORKED),
        (IPC_EREENTRANT, Status::REENTRANT),
        (IPC_ENOREPLY, Status::NO_REPLY),
        (IPC_EALREADY, Status::ALREADY),
        (IPC_ECANCELED, Status::CANCELED),
        (IPC_ESTALE, Status::STALE),
        (IPC_ELAGGED, Status::LAGGED),
        (IPC_ENOTSUP, Status::NOT_SUPPORTED),
        (IPC_EIO, Status::IO),
        (IPC_EPROTO, Status::PROTOCOL),
        (IPC_EPANIC, Status::PANIC),
        (IPC_ESYS, Status::SYSTEM),
    ];
    assert!(numbers.len() == Status::ALL.len());
    let mut at = 0;
    while at < numbers.len() {
        assert!(numbers[at].0 == numbers[at].1.code());
        at += 1;
    }
    assert!(IPC_EUSER == Status::USER.code());
};

/// Why a function of the C API failed: what it returns, and the errno behind it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    os_error: Option<i32>,
}

impl Failure {
    /// Makes the number the result of the function that fails, and its errno that of the thread.
    pub(crate) fn report(&self) -> c_int {
        if let Some(errno) = self.os_error {
            set_last_os_error(errno);
        }
        self.status.code()
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure { status, os_error: None }
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Failure {
        Failure { status: error.status(), os_error: error.os_error() }
    }
}

impl From<RegionError> for Failure {
    fn from(error: RegionError) -> Failure {
        match error {
            RegionError::Node(error) => error.into(),
            other => other.status().into(),
        }
    }
}

impl From<EnvelopeError> for Failure {
    fn from(error: EnvelopeError) -> Failure {
        error.status().into()
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        match error {
            CallError::Node(error) => (*error).into(),
            other => other.status().into(),
        }
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Failure {
        match error {
            QueueError::Call(error) => error.into(),
            other => other.status().into(),
        }
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Failure {
        let (status, source) = match error {
            KernelError::Create { source, .. }
            | KernelError::Open { source, .. }
            | KernelError::ReadOnly { source, .. } => (Status::ACCESS, Some(source)),
            KernelError::Owner { .. } | KernelError::Shared { .. } => (Status::ACCESS, None),
            KernelError::PathTooLong { .. } => (Status::INVALID, None),
            KernelError::Running { .. } => (Status::EXISTS, None),
            KernelError::Ids { .. } | KernelError::Audit { .. } => (Status::IO, None),
            KernelError::Key(KeyError::File { source, .. } | KeyError::System { source, .. }) => {
                (Status::IO, Some(source))
            }
            KernelError::Key(KeyError::Exposed { .. } | KeyError::Damaged { .. }) => {
                (Status::ACCESS, None)
            }
            KernelError::Descriptors { source, .. } => (Status::QUOTA, Some(source)),
            KernelError::System { source, .. } => (Status::SYSTEM, Some(source)),
        };
        Failure { status, os_error: source.and_then(|source| source.raw_os_error()) }
    }
}

impl From<nix::errno::Errno> for Failure {
    fn from(errno: nix::errno::Errno) -> Failure {
        Failure { status: Status::SYSTEM, os_error: Some(errno as i32) }
    }
}

thread_local! {
    static LAST_OS_ERROR: Cell<i32> = const { Cell::new(0) };
}

fn set_last_os_error(errno: i32) {
    // A thread that is ending has nobody left to ask.
    let _ = LAST_OS_ERROR.try_with(|last| last.set(errno));
}

/// The errno behind the last failure of this thread that had one; 0 for none.
pub(crate) fn last_os_error() -> i32 {
    LAST_OS_ERROR.try_with(Cell::get).unwrap_or(0)
}

/// The errno of `<errno.h>` that says nearly the same; 0 for success.
pub(crate) fn nearest_errno(status: Status) -> i32 {
    match status {
        Status::OK => 0,
        Status::NO_MEMORY => libc::ENOMEM,
        Status::TIMED_OUT => libc::ETIMEDOUT,
        Status::NOT_FOUND => libc::ENOENT,
        Status::EXISTS => libc::EEXIST,
        Status::ACCESS => libc::EACCES,
        Status::AUTH => libc::EPERM,
        Status::PEER_DIED => libc::ECONNRESET,
        Status::MAYBE => libc::ECONNABORTED,
        Status::PEER_CORRUPT => libc::EBADMSG,
        Status::FULL => libc::EAGAIN,
        Status::MESSAGE_SIZE => libc::EMSGSIZE,
        Status::QUOTA => libc::EDQUOT,
        Status::NO_RUNTIME => libc::ECONNREFUSED,
        Status::NOT_INIT | Status::FORKED => libc::ENOTCONN,
        Status::REENTRANT => libc::EDEADLK,
        Status::NO_REPLY => libc::ENOMSG,
        Status::ALREADY => libc::EALREADY,
        Status::CANCELED => libc::ECANCELED,
        Status::STALE => libc::ESTALE,
        Status::LAGGED => libc::EOVERFLOW,
        Status::NOT_SUPPORTED => libc::ENOTSUP,
        Status::IO => libc::EIO,
        Status::PROTOCOL => libc::EPROTO,
        Status::PANIC => libc::ENOTRECOVERABLE,
        Status::SYSTEM => match last_os_error() {
            0 => libc::EIO,
            errno => errno,
        },
        user if user.is_user() => libc::EREMOTEIO,
        _ => libc::EINVAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_an_errno() {
        for &status in Status::ALL {
            assert_eq!(nearest_errno(status) == 0, status == Status::OK, "{status:?}");
        }
        assert_eq!(nearest_errno(Status::INVALID), libc::EINVAL);
        assert_eq!(nearest_errno(Status::from_code(-5000)), libc::EREMOTEIO);
        assert_eq!(nearest_errno(Status::from_code(7)), libc::EINVAL);
    }

    #[test]
    fn the_errno_behind_a_failure_is_kept_for_the_thread() {
        let failure = Failure::from(nix::errno::Errno::EMFILE);
        assert_eq!(failure.report(), IPC_ESYS);
        assert_eq!(last_os_error(), libc::EMFILE);
        assert_eq!(nearest_errno(Status::SYSTEM), libc::EMFILE);
        assert_eq!(Failure::from(Status::FULL).report(), IPC_EFULL);
        assert_eq!(last_os_error(), libc::EMFILE);
    }
}
