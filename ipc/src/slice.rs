//! Short slices: how a thread that is woken gets its CPU though another is in the middle of a long
//! stretch of work there.
//!
//! A kernel that does not preempt itself lets whoever runs go on until its slice is over, and finds
//! that out at a tick: up to 4 ms later where there are 250 in a second. One that is torn down with
//! much memory runs for tens of them. Who is woken and has a *shorter* slice goes first. It gets no
//! more of the CPU by that, but in smaller pieces.

#![allow(unsafe_code)] // two system calls that nobody wraps

use std::time::Duration;

use nix::errno::Errno;

use crate::error::NodeError;

/// The shortest that the kernel gives.
const SHORT: Duration = Duration::from_micros(100);

/// Has the calling thread run soon after it is woken, though another is busy on its CPU: asks the
/// kernel for slices of 100 µs. Threads and processes that it starts afterwards inherit that; the
/// thread's share of the CPU, its policy and its niceness stay as they are.
///
/// It is for threads that sleep most of the time and must answer at once: who calls a service with
/// standbys, or stands by. A thread that computes is interrupted more often by it, and gains
/// nothing. Ask after [`Node::connect`](crate::Node::connect), which starts a thread that is better
/// off without. The one that watches others has short slices unasked. `docs/failover.md` has what
/// all that is worth.
///
/// A kernel before Linux 6.12 takes the wish and does nothing. So does one whose policy for this
/// thread is a real-time one, which has no slices.
///
/// # Errors
/// [`NodeError::System`] when a filter of system calls forbids it; then all is as before. The
/// sandbox of `ipcd` allows it.
///
/// # Example
/// ```
/// std::thread::spawn(|| {
///     // Without it answers come later at times, and that is all.
///     let _ = ipc::wake_promptly();
///     // Calls, or serves.
/// })
/// # .join().expect("no panic");
/// ```
pub fn wake_promptly() -> Result<(), NodeError> {
    shorten().map_err(NodeError::system("ask for short slices"))
}

fn shorten() -> Result<(), Errno> {
    let mut attributes = attributes()?;
    if !matches!(attributes.sched_policy.cast_signed(), libc::SCHED_OTHER | libc::SCHED_BATCH) {
        return Ok(());
    }
    attributes.sched_runtime = SHORT.as_nanos() as u64;
    // SAFETY: the kernel reads a structure of the size that it says, and changes this thread only.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    Errno::result(result).map(drop)
}

/// How the calling thread is scheduled. Its slice is 0 where the kernel tells none.
fn attributes() -> Result<libc::sched_attr, Errno> {
    // SAFETY: integers, of which all are valid when zero.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes no more than that size into a structure of ours.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    Errno::result(result).map(|_| attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a thread of its own, whose slice nobody has changed, comes to.
    fn of_thread<T: Send>(act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(act).join().expect("no panic"))
    }

    #[test]
    fn who_asks_has_short_slices_and_keeps_the_rest() {
        let (before, after, child) = of_thread(|| {
            let before = attributes().expect("told");
            wake_promptly().expect("not forbidden");
            (before, attributes().expect("told"), of_thread(|| attributes().expect("told")))
        });
        let rest = |it: &libc::sched_attr| (it.sched_policy, it.sched_flags, it.sched_nice);
        assert_eq!(rest(&before), rest(&after));
        // Before Linux 6.12 there is none to be told.
        let short = if before.sched_runtime == 0 { 0 } else { SHORT.as_nanos() as u64 };
        assert_eq!((after.sched_runtime, child.sched_runtime), (short, short));
        assert_eq!(of_thread(attributes).expect("told").sched_runtime, before.sched_runtime);
    }

    #[test]
    fn who_runs_only_when_nobody_else_does_is_left_alone() {
        of_thread(|| {
            let mut idle = attributes().expect("told");
            idle.sched_policy = libc::SCHED_IDLE.cast_unsigned();
            // SAFETY: as for `shorten`.
            let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const idle, 0) };
            assert_eq!(set, 0);
            let before = attributes().expect("told").sched_runtime;
            wake_promptly().expect("nothing to do");
            let after = attributes().expect("told");
            assert_eq!(after.sched_policy, libc::SCHED_IDLE.cast_unsigned());
            assert_eq!(after.sched_runtime, before);
        });
    }
}
