//! A descriptor that stands for the process at the other end of a control connection.

#![allow(unsafe_code)] // adopts the descriptor that pidfd_open returns

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

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
pub(crate) fn of_peer(socket: &impl AsFd, pid: u32) -> Option<OwnedFd> {
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
/// Nothing where the process is gone or a zombie.
pub(crate) fn process_started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    start_time_in(&stat)
}

/// Tells whether a process was born by `fork` and runs no program of its own yet.
#[cfg(feature = "node")]
pub(crate) fn runs_no_program(pid: u32) -> bool {
    const PF_FORKNOEXEC: u64 = 0x40;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The flags are the seventh field behind the name.
    let flags =
        stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(6)?.parse().ok());
    flags.is_some_and(|flags: u64| flags & PF_FORKNOEXEC != 0)
}

/// Tells whether a process has ended, or is being torn down: it runs nothing of its program any
/// more. Its pidfd says so only after its memory is gone.
pub(crate) fn is_ending(pid: u32) -> bool {
    const PF_EXITING: u64 = 4;
    // 0 is a process of another pid namespace, of which nothing is known.
    if pid == 0 {
        return false;
    }
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let mut fields = fields.split(' ');
    let is_zombie = fields.next().is_some_and(|state| matches!(state, "Z" | "X"));
    let flags = fields.nth(5).and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
    is_zombie || flags & PF_EXITING != 0 || is_killed(pid)
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It runs, sleeps, or cannot be seen.
    Runs,
    /// It was stopped by a signal, or by a debugger.
    Stopped,
    /// It has ended, or is being torn down.
    Dead,
}

/// Says what the process does that had this number, and started then (0: not known).
pub(crate) fn state(pid: u32, started: u64) -> State {
    if pid == 0 {
        return State::Runs;
    }
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return State::Dead;
    };
    let is_it = start_time_in(&stat).is_some_and(|now| started == 0 || now == started);
    if !is_it || is_ending(pid) {
        return State::Dead;
    }
    let state = stat.rsplit_once(") ").and_then(|(_, fields)| fields.chars().next());
    if matches!(state, Some('T' | 't')) { State::Stopped } else { State::Runs }
}

/// Kills the process that a pidfd stands for.
pub(crate) fn kill(pidfd: &impl AsFd) -> Result<(), Errno> {
    let (fd, none) = (pidfd.as_fd().as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: takes integers, and NULL for what there is none of.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, none, 0) };
    Errno::result(sent).map(drop)
}

/// Whether SIGKILL is on its way to a process: it may be on a processor still, but not for long.
fn is_killed(pid: u32) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let pending = status.lines().filter_map(|line| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    pending.fold(0, |all, one| all | one) & KILL != 0
}

/// Reads field 22.
fn start_time_in(stat: &str) -> Option<u64> {
    // The second field, in parentheses, may hold anything, also parentheses.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn is_connected(socket: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time_in(&format!("7 (a) ) S (b) {tail}\n")), Some(4711));
        assert_eq!(start_time_in(&format!("7 (a) {}", tail.replace('S', "Z"))), None);
        assert_eq!(start_time_in("7 (a"), None);
        let ours = process_started(std::process::id()).expect("we live");
        assert!(ours > 0);
    }

    #[test]
    fn our_own_process_can_be_opened() {
        assert_eq!(open(std::process::id()).is_some(), ipc::features().pidfd);
        assert!(open(0).is_none());
        assert!(open(u32::MAX).is_none());
    }

    #[test]
    fn a_stopped_process_is_told_from_one_that_runs_and_from_one_that_died() {
        use nix::sys::{
            signal::{Signal, kill as send},
            wait::{WaitPidFlag, waitpid},
        };
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("a child");
        let pid = nix::unistd::Pid::from_raw(child.id() as libc::pid_t);
        let started = process_started(child.id()).expect("it lives");
        assert_eq!(state(child.id(), started), State::Runs);
        assert_eq!(state(child.id(), started + 1), State::Dead);
        send(pid, Signal::SIGSTOP).expect("sent");
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("stopped");
        assert_eq!(state(child.id(), started), State::Stopped);
        let Some(pidfd) = open(child.id()) else {
            assert!(!ipc::features().pidfd, "this kernel has pidfds");
            child.kill().expect("ours");
            child.wait().expect("ended");
            return assert_eq!(state(child.id(), started), State::Dead);
        };
        kill(&pidfd).expect("sent");
        child.wait().expect("ended");
        assert_eq!(state(child.id(), started), State::Dead);
        assert!(kill(&pidfd).is_err());
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
