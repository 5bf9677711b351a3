//! The processes of services: how one is launched, signalled, waited for, and found again.
//!
//! ```text
//!   launch ─▶ plan      all that can be decided, allocated, looked up or refused beforehand
//!          ─▶ system    clone3, and what else the library has no safe call for
//!          ─▶ child     the new process: it waits until it is written down, then makes one
//!                       system call after another, then exec
//!          ◀─ report    a socket that exec closes: (step, errno) of what failed
//! ```

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::Signal,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

mod child;
mod error;
mod plan;
mod report;
mod system;

pub use crate::{
    numa::NumaError,
    sandbox::{SandboxError, Unenforced, gaps as sandbox_gaps},
};
pub use error::LaunchError;
pub(crate) use error::remedy;
pub(crate) use system::landlock_abi;

use crate::{
    cgroup,
    failpoint::{self, At},
    node::Service,
    pidfd::{process_started, runs_no_program},
};
use error::Failure;
use plan::Plan;

/// How long the end of a process without a program is waited for.
const UNBORN: Duration = Duration::from_secs(2);

/// One process to be launched.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What it is to be.
    pub service: &'a Service,
    /// Which of its replicas, from 0.
    pub replica: u32,
    /// Where the runtime's socket stands; it becomes `IPC_RUNTIME_DIR`.
    pub runtime_dir: &'a Path,
    /// Its connection to the runtime; it becomes descriptor 3.
    pub control: OwnedFd,
    /// Its stdout and stderr: a file open for appending.
    pub log: OwnedFd,
    /// The file of its key, which it may read; it becomes `IPC_KEY_FILE`.
    pub key_file: Option<&'a Path>,
}

/// Says when a process started, in clock ticks since boot: with its number this names it for good.
/// Nothing where it is gone or a zombie.
pub fn started(pid: u32) -> Option<u64> {
    process_started(pid)
}

/// Starts a process, and returns when its program runs.
///
/// `record` is given the process's number and start time, and writes them down for whoever comes
/// after us. The process does nothing before that is done: if we end first, it ends, too, so that
/// no program runs of which nobody knows.
///
/// What this machine could not enforce of what the node file asks is no error: see
/// [`Process::unenforced`].
///
/// # Errors
/// Whatever fails before the program runs, also in the new process: nothing is left of it then, no
/// process, descriptor or cgroup.
pub fn launch(
    launch: Launch<'_>,
    record: impl FnOnce(u32, u64) -> io::Result<()>,
) -> Result<Process, LaunchError> {
    let mut plan = Plan::of(launch)?;
    let born = system::start(&mut plan).map_err(|errno| LaunchError::system("start", errno))?;
    let start_time = process_started(born.pid).unwrap_or(0);
    let mut process = Process {
        pid: born.pid,
        start_time,
        pidfd: born.pidfd,
        is_child: true,
        ended: None,
        groups: std::mem::take(&mut plan.groups.directories),
        unenforced: std::mem::take(&mut plan.unenforced),
    };
    failpoint::reach(At::SpawnBorn);
    let run = match record(process.pid, start_time) {
        Ok(()) => report::let_go(&plan).and_then(|()| report::until_exec(&mut plan)),
        Err(error) => Err(Failure::Unrecorded(error)),
    };
    match run {
        Ok(None) => Ok(process),
        Ok(Some(gap)) => {
            process.unenforced.push(gap);
            Ok(process)
        }
        Err(failure) => {
            // It ends by itself after a report; and where the report itself failed it must not
            // live on.
            let _ = process.kill();
            process.wait_to_the_end();
            Err(failure.explain(&plan))
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It is not our child, so that nobody told us.
    Unknown,
}

/// A process that was launched, by this ipcd or an earlier one.
///
/// Dropping it leaves the process alone; but a child that ended stays a zombie until
/// [`Process::try_wait`] has seen its end.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_time: u64,
    pidfd: Option<OwnedFd>,
    is_child: bool,
    ended: Option<Exit>,
    groups: Vec<PathBuf>,
    unenforced: Vec<Unenforced>,
}

impl Process {
    /// Finds a process that an earlier ipcd launched, by what it wrote down; `None` where it has
    /// ended, though another may have its number now.
    ///
    /// The start time counts from the boot of the machine: what is written down must not outlive
    /// that.
    pub fn adopt(pid: u32, start_time: u64) -> Option<Process> {
        // First the descriptor, then the look: a descriptor names one process for ever.
        let pidfd = crate::pidfd::open(pid);
        if start_time == 0 || process_started(pid) != Some(start_time) {
            return None;
        }
        let groups = cgroup::Hierarchy::of(&pid.to_string()).made();
        let adopted = Process {
            pid,
            start_time,
            pidfd,
            is_child: false,
            ended: None,
            groups,
            unenforced: Vec::new(),
        };
        (!adopted.has_left()).then_some(adopted)
    }

    /// Ends an adopted process that has not come so far as to run its program, and never will: its
    /// ipcd, which was to let it, is gone. Says whether it was such a one, and is gone.
    ///
    /// One that is just about to run it may be ended, too: it has done nothing.
    pub fn end_unborn(&self) -> bool {
        if self.is_child || !runs_no_program(self.pid) || self.kill() == Err(Errno::EPERM) {
            return false;
        }
        // It has nothing to tear down that takes long.
        let until = Instant::now() + UNBORN;
        while !self.has_left() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.has_left()
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, in clock ticks since the machine did (field 22 of `/proc/PID/stat`); with
    /// the number it names one process. 0 where `/proc` is not to be had.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// A descriptor that becomes readable when the process has ended, for epoll; `None` on a kernel
    /// without pidfds, where SIGCHLD or a look now and then has to do.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// What the node file asks for and this machine does not enforce, for an operator to read.
    /// Empty for an adopted process.
    pub fn unenforced(&self) -> &[Unenforced] {
        &self.unenforced
    }

    /// Sends a signal. A process that has ended gets none, though another may have its number.
    ///
    /// # Errors
    /// [`Errno::ESRCH`] when it has ended; [`Errno::EPERM`].
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        if self.ended.is_some() {
            return Err(Errno::ESRCH);
        }
        if let Some(pidfd) = &self.pidfd {
            match system::signal(pidfd, signal) {
                Err(Errno::ENOSYS) => {}
                sent => return sent,
            }
        }
        // Our own child keeps its number until it is waited for; of any other this is the nearest
        // to certainty that there is.
        if !self.is_child && process_started(self.pid) != Some(self.start_time) {
            return Err(Errno::ESRCH);
        }
        nix::sys::signal::kill(self.number(), signal)
    }

    /// Ends it at once (SIGKILL).
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn kill(&self) -> Result<(), Errno> {
        self.signal(Signal::SIGKILL)
    }

    /// Tells how it ended, once it has; from then on always the same. Never waits.
    pub fn try_wait(&mut self) -> Option<Exit> {
        self.look(WaitPidFlag::WNOHANG)
    }

    fn wait_to_the_end(&mut self) {
        while self.ended.is_none() {
            self.look(WaitPidFlag::empty());
        }
    }

    fn look(&mut self, how: WaitPidFlag) -> Option<Exit> {
        if self.ended.is_none() {
            self.ended = if self.is_child {
                self.reap(how)
            } else {
                self.has_left().then_some(Exit::Unknown)
            };
            if self.ended.is_some() {
                cgroup::remove(&self.groups);
            }
        }
        self.ended
    }

    fn reap(&self, how: WaitPidFlag) -> Option<Exit> {
        let how = how | WaitPidFlag::WEXITED;
        // By number: a child that was not waited for keeps it, and a kernel may know pidfds and
        // not how to wait for them.
        match waitid(Id::Pid(self.number()), how) {
            Ok(WaitStatus::Exited(_, code)) => Some(Exit::Code(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(Exit::Signal(signal as i32)),
            // EINVAL: it ended by a real-time signal, which has no name, and was reaped. ECHILD:
            // somebody else waited for it, or SIGCHLD is ignored.
            Err(Errno::EINVAL | Errno::ECHILD) => Some(Exit::Unknown),
            Ok(_) | Err(_) => None,
        }
    }

    fn has_left(&self) -> bool {
        match &self.pidfd {
            Some(pidfd) => {
                let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
            }
            None => process_started(self.pid) != Some(self.start_time),
        }
    }

    fn number(&self) -> Pid {
        Pid::from_raw(self.pid.cast_signed())
    }
}

/// Makes a descriptor that is none of those that the new process is given numbers of.
fn out_of_the_way(fd: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    if fd.as_raw_fd() > child::LAST_FD {
        return Ok(fd);
    }
    Ok(system::duplicate_above(&fd, child::LAST_FD)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_adopted_for_another() {
        let us = std::process::id();
        let ours = process_started(us).expect("we live");
        assert!(Process::adopt(us, ours).is_some_and(|mut us| us.try_wait().is_none()));
        assert!(Process::adopt(us, ours + 1).is_none());
        assert!(Process::adopt(us, 0).is_none());
        assert!(Process::adopt(u32::MAX, ours).is_none());
    }
}
