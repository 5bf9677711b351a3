//! What a new process tells before its program runs, and how it is let through to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipc::control::{
    closer::Closer,
    packet::{self, Received},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    child::{Report, Step},
    error::Failure,
    plan::Plan,
    system,
};
use crate::{
    failpoint::{self, At},
    sandbox::Unenforced,
};

/// Lets the new process go on, which waits for that first of all.
pub(super) fn let_go(plan: &Plan) -> Result<(), Failure> {
    match packet::send(plan.reports.as_fd(), &[1], &[]) {
        // Gone is who was killed meanwhile: that is heard next.
        Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET) => failpoint::reach(At::SpawnLetGo),
        Err(errno) => return Err(Failure::Unheard(errno)),
    }
    Ok(())
}

/// Waits until the program runs, or not. What the process could not put on is given back.
pub(super) fn until_exec(plan: &mut Plan) -> Result<Option<Unenforced>, Failure> {
    let reports = plan.reports.as_fd();
    // The child is ours until its program runs: nothing that it sends is slow to close.
    let closer = Closer::new().map_err(Failure::Unheard)?;
    let mut gap = None;
    loop {
        readable(&[reports])?;
        let mut bytes = [0; Report::SIZE];
        match packet::receive(reports, &mut bytes, &closer) {
            // exec closed the other end, and so would its death: then `try_wait` tells of it.
            Ok(Received::Closed) => return Ok(gap),
            Ok(Received::Packet(_, mut fds)) => {
                let report = Report::from_bytes(bytes);
                match (Step::of(report.step), fds.pop()) {
                    (Some(Step::Listener), Some(listener)) => {
                        let_through(&listener.vouched(), reports)?;
                    }
                    (Some(Step::Listener), None) => gap = Some(Unenforced::SecondExec),
                    _ => return Err(Failure::Reported(report)),
                }
            }
            // There is no descriptor left here for the listener.
            Ok(Received::Bereft(_) | Received::Overloaded) => {
                return Err(Failure::Unheard(Errno::EMFILE));
            }
            Ok(Received::Oversized(_)) => return Err(Failure::Unheard(Errno::EPROTO)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(Failure::Unheard(errno)),
        }
    }
}

/// Lets one exec through. The listener is closed after that, and every later exec fails with
/// ENOSYS, whoever asks for it, and whatever becomes of us.
fn let_through(listener: &OwnedFd, reports: BorrowedFd<'_>) -> Result<(), Failure> {
    loop {
        // The report first: of a process that died both have hung up, and there is nothing to let
        // through, now or ever.
        if readable(&[reports, listener.as_fd()])? == 0 {
            return Ok(());
        }
        match system::allow_one(listener) {
            Err(Errno::EINTR | Errno::ENOENT) => {}
            result => return result.map_err(Failure::Unheard),
        }
    }
}

/// Waits until one can be read, or has hung up; tells which.
fn readable(fds: &[BorrowedFd<'_>]) -> Result<usize, Failure> {
    loop {
        let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::Unheard(errno)),
        }
        if let Some(first) = polled.iter().position(|fd| fd.any().unwrap_or(false)) {
            return Ok(first);
        }
    }
}
