//! Who is at the other end of a connection, as the kernel tells.

use std::{
    fs,
    os::{fd::AsFd, fd::OwnedFd, unix::ffi::OsStrExt},
    path::PathBuf,
    sync::Arc,
};

use ipc::ServiceId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    broker::{Peer, Sight, Token},
    desk::Unit,
    pidfd::{self, process_started},
};

/// Describes the process that a connection is of. What `/proc` says by the process's number is
/// only believed while its pidfd shows that it lives: by then the number can be another's.
pub(super) fn describe(
    pid: u32,
    uid: u32,
    unit: Option<Unit>,
    pidfd: Option<&Arc<OwnedFd>>,
    is_inherited: bool,
) -> Peer {
    let descriptors = 1 + u64::from(pidfd.is_some());
    let executable = if unit.is_none() { executable(pid) } else { None };
    let start_time = match &unit {
        Some(unit) => unit.start_time,
        None => process_started(pid).unwrap_or(0),
    };
    let lives = pidfd.is_some_and(|pidfd| lives(pidfd));
    let executable = executable.filter(|_| lives);
    Peer { pid, uid, unit, executable, start_time, descriptors, is_inherited }
}

/// Gives what a process runs; nothing for what has no name any more.
fn executable(pid: u32) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    (!path.as_os_str().as_bytes().ends_with(b" (deleted)")).then_some(path)
}

fn lives(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
}

/// Gives the connections of those processes that have ended, or are being torn down.
pub(super) fn ending(processes: Vec<(Token, u32)>) -> Vec<Token> {
    let ending = processes.into_iter().filter(|(_, pid)| pidfd::is_ending(*pid));
    ending.map(|(token, _)| token).collect()
}

/// Says how the processes of these instances are, by their ids and when they started.
pub(super) fn sights(processes: Vec<(ServiceId, u32, u64)>) -> Vec<(ServiceId, Sight)> {
    let sight = |(instance, pid, started)| {
        let sight = match pidfd::state(pid, started) {
            pidfd::State::Runs => Sight::Runs,
            pidfd::State::Stopped => Sight::Stopped,
            pidfd::State::Dead => Sight::Dead,
        };
        (instance, sight)
    };
    processes.into_iter().map(sight).collect()
}
