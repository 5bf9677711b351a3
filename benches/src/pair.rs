//! The second process of a benchmark: this program again, beside the first.
//!
//! ```text
//!   bench ──spawn──▶ bench peer PARENT CPUS ROLE ARGUMENTS...
//!     │                │ standard input   the shared descriptor: memfd or socket
//!     │ ◀── lines ──── │ standard output  what the peer has to say
//! ```
//! A peer works until it is killed by the drop of its [`Peer`]. It dies with its parent, and the
//! parent ends with an error when the peer dies early: nobody is left spinning alone.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::parent_id;
use std::process::{self, Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::pin;

/// The subcommand by which a program of this harness is told that it is the peer.
pub const SUBCOMMAND: &str = "peer";

/// A running peer; dropping it kills the process and reaps it.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    lines: Receiver<String>,
    dismissed: Arc<AtomicBool>,
}

impl Peer {
    /// Starts this program as a peer that plays `role` on `cpus`, with `shared` as its standard
    /// input. Call it on the main thread: the peer dies when the thread that started it ends.
    ///
    /// # Errors
    /// Those of finding this executable and of starting it.
    pub fn spawn(
        role: &str,
        arguments: &[&str],
        cpus: &[usize],
        shared: OwnedFd,
    ) -> io::Result<Self> {
        let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
        let mut child = Command::new(env::current_exe()?)
            .args([SUBCOMMAND, &process::id().to_string(), &cpus.join(","), role])
            .args(arguments)
            .stdin(Stdio::from(shared))
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;

        let dismissed = Arc::new(AtomicBool::new(false));
        let (sender, lines) = mpsc::channel();
        thread::spawn({
            let (role, dismissed) = (role.to_owned(), Arc::clone(&dismissed));
            move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    // Nobody needs to be listening.
                    let _ = sender.send(line);
                }
                if !dismissed.load(Ordering::Acquire) {
                    eprintln!("bench: the peer `{role}` died; there is nothing to measure");
                    process::exit(1);
                }
            }
        });
        Ok(Self { child, lines, dismissed })
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits for the next line that the peer [says](say).
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer is gone.
    pub fn line(&self) -> io::Result<String> {
        self.lines.recv().map_err(|_| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.dismissed.store(true, Ordering::Release);
        // Both fail only for a process that is gone and reaped, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that is stopped, so that it does not disturb; it goes on when this is dropped.
#[derive(Debug)]
pub struct Paused(Pid);

impl Paused {
    /// Stops a process.
    ///
    /// # Errors
    /// Those of `kill(2)`.
    pub fn begin(pid: Pid) -> io::Result<Self> {
        kill(pid, Signal::SIGSTOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // Fails only for a process that is gone, which is noticed elsewhere.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// What a program that was started as a peer was told.
#[derive(Debug)]
pub struct Role {
    /// Which part to play.
    pub name: String,
    /// What else the role needs to know.
    pub arguments: Vec<String>,
    /// The descriptor shared with the parent.
    pub shared: OwnedFd,
}

/// Takes up the part of a peer: ties its life to the parent's, and goes to its CPUs.
///
/// `told` is what followed [`SUBCOMMAND`] on the command line.
///
/// # Errors
/// `InvalidInput` for arguments that [`Peer::spawn`] did not write; those of `prctl(2)`,
/// `sched_setaffinity(2)` and `dup(2)`.
pub fn enter(told: &[String]) -> io::Result<Role> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidInput, "peer PARENT CPUS ROLE ...");
    let [parent, cpus, name, arguments @ ..] = told else { return Err(malformed()) };
    let parent: u32 = parent.parse().map_err(|_| malformed())?;
    let cpus: Vec<usize> =
        cpus.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|_| malformed())?;

    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the line above; then no signal will come.
    if parent_id() != parent {
        process::exit(1);
    }
    pin::pin_to(&cpus)?;
    let shared = io::stdin().as_fd().try_clone_to_owned()?;
    Ok(Role { name: name.clone(), arguments: arguments.to_vec(), shared })
}

/// Says one line to the parent, who gets it by [`Peer::line`].
///
/// # Errors
/// `BrokenPipe` when the parent does not listen any more.
pub fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Sleeps until the parent kills this peer: for a role that is done before its parent is.
pub fn rest() -> ! {
    loop {
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_told_nonsense_refuses() {
        for told in [&[][..], &["1".into()], &["x".into(), "0".into(), "role".into()]] {
            assert_eq!(enter(told).expect_err("nonsense").kind(), io::ErrorKind::InvalidInput);
        }
    }
}
