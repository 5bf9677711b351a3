//! The connection that a supervised service gets from who started it.

#![allow(unsafe_code)] // adopts the descriptor that this process was started with

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname},
    sys::socket::{getsockopt, sockopt},
};

use crate::sync::{AtomicBool, Ordering};

/// Set for a supervised service, to its name in the node file.
const SERVICE: &str = "IPC_SERVICE";
/// Where its connection is.
const CONTROL: RawFd = 3;

/// Gives the connection on which the runtime knows this process as a service of its own: once, to
/// the first that asks. Later ones, and those of processes that nobody supervises, connect by path.
pub(super) fn take() -> Option<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    std::env::var_os(SERVICE)?;
    if TAKEN.swap(true, Ordering::AcqRel) {
        return None;
    }
    // SAFETY: the number is only looked at, by system calls that fail where it is no descriptor.
    let found = unsafe { BorrowedFd::borrow_raw(CONTROL) };
    prepare(found).ok()?;
    // SAFETY: who sets SERVICE gives this process a socket of its own at CONTROL, and `prepare`
    // found one; it is taken once.
    Some(unsafe { OwnedFd::from_raw_fd(CONTROL) })
}

/// Checks that this can be it, and makes it what a connection of our own would be.
fn prepare(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let address: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let is_unix = address.family() == Some(AddressFamily::Unix);
    if !is_unix || getsockopt(&fd, sockopt::SockType)? != SockType::SeqPacket {
        return Err(Errno::EPROTOTYPE);
    }
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
