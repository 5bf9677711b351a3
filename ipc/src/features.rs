//! What the kernel of this machine gives this process.

#![allow(unsafe_code)] // system calls that only tell whether they are there

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{AddressFamily, SockFlag, SockType, getsockopt, socketpair, sockopt::PeerPidfd},
    },
};

use crate::wait::futex;

/// What the kernel, and what filters system calls before it, gives this process. What is lacking
/// has a fallback, but for [`seals`](Features::seals).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "a list of what is there and what is not")]
pub struct Features {
    /// `membarrier(GLOBAL_EXPEDITED)`: senders pay no fence. Without, both sides do.
    pub membarrier: bool,
    /// `futex_waitv`: a sleeper hears answers, deaths and interruptions at once. Without, it looks
    /// every 5 ms.
    pub futex_waitv: bool,
    /// `MFD_NOEXEC_SEAL`: nobody can ever make a lane executable. Without, its mode has no execute
    /// bit, but its owner could give it one.
    pub noexec_seal: bool,
    /// `F_SEAL_FUTURE_WRITE`: a lane can be made that its peer cannot write. Without, none is made.
    pub seals: bool,
    /// `pidfd_open`: a descriptor of a process tells of its death. Without, life words and sockets
    /// that hang up do.
    pub pidfd: bool,
    /// `SO_PEERPIDFD`: the descriptor of whoever connected, asked of the socket. Without, it is
    /// opened by number, and the socket looked at.
    pub peer_pidfd: bool,
    /// `io_uring`, which nothing here uses: `docs/adr/0014-epoll-hears-the-doorbells.md`.
    pub io_uring: bool,
    /// The source of time: `tsc` or `clock_gettime`.
    pub clock: &'static str,
}

/// Tells which features of the kernel this process can use. What must be tried is tried now: a few
/// system calls.
pub fn features() -> Features {
    Features {
        membarrier: futex::has_membarrier(),
        futex_waitv: futex::has_waitv(),
        noexec_seal: has_noexec_seal(),
        seals: has_seals().is_ok(),
        pidfd: has_pidfd(),
        peer_pidfd: has_peer_pidfd(),
        io_uring: has_io_uring(),
        clock: crate::clock::source(),
    }
}

fn has_noexec_seal() -> bool {
    let flags = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    memfd_create("ipc-probe", MFdFlags::MFD_CLOEXEC | flags).is_ok()
}

fn has_seals() -> Result<(), Errno> {
    let fd = memfd_create("ipc-probe", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE))?;
    Ok(())
}

fn has_pidfd() -> bool {
    // No process has this number: a kernel that knows the call says that it is not valid.
    // SAFETY: takes two integers, and makes no descriptor.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, 0, 0) };
    Errno::result(result) == Err(Errno::EINVAL)
}

fn has_peer_pidfd() -> bool {
    let flags = SockFlag::SOCK_CLOEXEC;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .is_ok_and(|(ours, _theirs)| getsockopt(&ours, PeerPidfd).is_ok())
}

fn has_io_uring() -> bool {
    // SAFETY: of its parameters the kernel finds that there are none, and makes no ring.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
    Errno::result(result) == Err(Errno::EFAULT)
}
