//! A descriptor that stands for the process at the other end of a control connection.

#![allow(unsafe_code)] // adopts the descriptor that pidfd_open returns

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt::PeerPidfd},
};

/// Gives a pidfd of the process that connected `socket`, where the kernel has one to give.
///
/// `SO_PEERPIDFD` (Linux 6.5) names the process itself. Before that only its number is known, and
/// `pidfd_open` (Linux 5.3) could meet a later process of that number: hence the look at the
/// socket, which hangs up when the process that connected it ends.
pub(crate) fn of_peer(socket: &OwnedFd, pid: u32) -> Option<OwnedFd> {
    if let Ok(pidfd) = getsockopt(socket, PeerPidfd) {
        return Some(pidfd);
    }
    open(pid).filter(|_| is_connected(socket))
}

/// Gives a pidfd of the process that has this number now.
pub(crate) fn open(pid: u32) -> Option<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0)?;
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd).ok()?;
    // SAFETY: the kernel made this descriptor just now; nobody else knows its number.
    Some(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Says when a process started, in clock ticks since boot: with its number this names it for good.
pub(crate) fn process_started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field may hold anything, parentheses too; the 22nd is 20 behind it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn is_connected(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    #[test]
    fn our_own_process_can_be_opened() {
        assert_eq!(open(std::process::id()).is_some(), ipc::features().pidfd);
        assert!(open(0).is_none());
        assert!(open(u32::MAX).is_none());
    }

    #[test]
    fn a_hung_up_socket_is_seen() {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("a pair");
        assert!(is_connected(&ours));
        let features = ipc::features();
        let one_way = features.pidfd || features.peer_pidfd;
        assert_eq!(of_peer(&ours, std::process::id()).is_some(), one_way);
        drop(theirs);
        assert!(!is_connected(&ours));
    }
}
