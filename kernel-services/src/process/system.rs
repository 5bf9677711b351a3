//! System calls that have no safe wrapper, on the side of who launches.

#![allow(unsafe_code)] // system calls with pointers to memory of ours

use std::{
    mem::{self, MaybeUninit},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::signal::Signal,
};

use super::{child, plan::Plan};

/// A process that has been made.
pub(super) struct Born {
    pub(super) pid: u32,
    pub(super) pidfd: Option<OwnedFd>,
}

/// Makes the process of a plan, which goes its own way from there ([`child::become_service`]).
///
/// `clone3` gives the pidfd with the process. A kernel or sandbox without it gets `clone`, and
/// `pidfd_open` afterwards: the child keeps its number until it is waited for, so that it is the
/// same process. Either shares nothing with us but copies, as `fork` does; not `fork` itself, which
/// runs what libraries have hung on it.
pub(super) fn start(plan: &mut Plan) -> Result<Born, Errno> {
    let blocked = BlockedSignals::all();
    let mut pidfd: RawFd = -1;
    // SAFETY: all zero is a value of this structure of integers.
    let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
    arguments.flags = libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: 1. the structure is valid and its size is given; 2. without CLONE_VM the child has
    // copies of this stack and of all memory; 3. it calls `become_service` and nothing else.
    let mut pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut arguments, mem::size_of_val(&arguments))
    };
    let no_clone3 = pid < 0 && matches!(Errno::last(), Errno::ENOSYS | Errno::EPERM);
    if no_clone3 {
        // SAFETY: as above; no stack, and no pointer, is given.
        pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    }
    if pid == 0 {
        // SAFETY: this is the new process, with one thread and a prepared plan.
        unsafe { child::become_service(plan) }
    }
    drop(blocked);
    // Ours must be the only end that is left once the new process has closed its own.
    plan.report = None;
    let pid = Errno::result(pid)? as u32;
    // SAFETY: the kernel made this descriptor just now; nobody else knows its number.
    let given = (!no_clone3 && pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
    Ok(Born { pid, pidfd: given.or_else(|| crate::pidfd::open(pid)) })
}

/// All signals, kept from this thread: the new process inherits that, so that no handler of ours
/// runs in it.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn all() -> BlockedSignals {
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: both sets are ours; the first call fills one, the second the other.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            BlockedSignals(before.assume_init())
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set was filled when this was made.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// Duplicates a descriptor to a number above that one.
pub(super) fn duplicate_above(fd: &OwnedFd, last: RawFd) -> Result<OwnedFd, Errno> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(last + 1))?;
    // SAFETY: the kernel made this descriptor just now; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends a signal to the process that a pidfd stands for.
pub(super) fn signal(pidfd: &OwnedFd, signal: Signal) -> Result<(), Errno> {
    let fd = pidfd.as_raw_fd();
    let none = ptr::null::<libc::siginfo_t>();
    // SAFETY: takes integers, and NULL for what there is none of.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as libc::c_int, none, 0) };
    Errno::result(sent).map(drop)
}

/// Lets the one system call through that a seccomp listener has.
pub(super) fn allow_one(listener: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: all zero is a value of these structures of integers, and the kernel wants it so.
    let mut asked: libc::seccomp_notif = unsafe { mem::zeroed() };
    let fd = listener.as_raw_fd();
    // SAFETY: the structure is what this request fills.
    let received = unsafe { libc::ioctl(fd, RECEIVE as libc::Ioctl, &raw mut asked) };
    Errno::result(received)?;
    let mut answer = libc::seccomp_notif_resp {
        id: asked.id,
        val: 0,
        error: 0,
        flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    };
    // SAFETY: the structure is what this request reads.
    let sent = unsafe { libc::ioctl(fd, SEND as libc::Ioctl, &raw mut answer) };
    Errno::result(sent).map(drop)
}

/// `SECCOMP_IOCTL_NOTIF_RECV` and `_SEND`: read and written, of `!`, 0 and 1.
const RECEIVE: u64 = request(0, mem::size_of::<libc::seccomp_notif>());
const SEND: u64 = request(1, mem::size_of::<libc::seccomp_notif_resp>());

const fn request(number: u64, size: usize) -> u64 {
    (3 << 30) | ((size as u64) << 16) | ((b'!' as u64) << 8) | number
}

/// Asks which version of landlock the kernel has; 0 or less where there is none.
pub(crate) fn landlock_abi() -> i32 {
    const VERSION: u32 = 1;
    let none = ptr::null::<u8>();
    // SAFETY: with this flag the call takes no structure, and makes nothing.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    abi as i32
}
