//! The system calls of a plain IPC service, and what its grants add.
//!
//! What is not listed fails with EPERM, and the process goes on: libraries try calls that they can
//! do without. `clone3` fails with ENOSYS, since a filter cannot see its flags, which lie in
//! memory; libraries then use `clone`, whose flags lie in a register.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use super::{OWN_PID, SandboxError, names};
use crate::node::Grants;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Harmless whatever their arguments are: they act on the process itself, on descriptors that it
/// has, or on paths, which landlock judges. Names that an architecture lacks are passed over.
const PLAIN: &[&str] = &[
    // Memory.
    "brk",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "msync",
    "mincore",
    "mlock",
    "mlock2",
    "munlock",
    "mlockall",
    "munlockall",
    "memfd_create",
    "membarrier",
    "mseal",
    "mbind",
    "set_mempolicy",
    "get_mempolicy",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    // Descriptors.
    "read",
    "write",
    "readv",
    "writev",
    "pread64",
    "pwrite64",
    "preadv",
    "pwritev",
    "preadv2",
    "pwritev2",
    "lseek",
    "close",
    "close_range",
    "dup",
    "dup2",
    "dup3",
    "pipe",
    "pipe2",
    "eventfd",
    "eventfd2",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "timerfd_create",
    "timerfd_settime",
    "timerfd_gettime",
    "signalfd",
    "signalfd4",
    "fstat",
    "fstatfs",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fallocate",
    "flock",
    "fadvise64",
    "sendfile",
    "fchmod",
    // Files, as landlock lets it.
    "open",
    "openat",
    "openat2",
    "stat",
    "lstat",
    "newfstatat",
    "statx",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "getdents",
    "getdents64",
    "getcwd",
    // Sockets that exist already.
    "connect",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "shutdown",
    "getsockopt",
    "setsockopt",
    "getsockname",
    "getpeername",
    // Threads and waiting.
    "futex",
    "futex_waitv",
    "futex_wait",
    "futex_wake",
    "futex_requeue",
    "set_robust_list",
    "set_tid_address",
    "rseq",
    "arch_prctl",
    "gettid",
    "sched_yield",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getparam",
    "sched_getscheduler",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "getcpu",
    "nanosleep",
    "clock_nanosleep",
    "restart_syscall",
    "pause",
    "exit",
    "exit_group",
    "wait4",
    "waitid",
    // Signals to itself come below.
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigpending",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "sigaltstack",
    "alarm",
    "setitimer",
    "getitimer",
    // Time, numbers, facts.
    "clock_gettime",
    "clock_getres",
    "gettimeofday",
    "time",
    "times",
    "getrandom",
    "getpid",
    "getppid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getresuid",
    "getresgid",
    "getgroups",
    "getpgrp",
    "getpgid",
    "getsid",
    "getrusage",
    "getrlimit",
    "uname",
    "sysinfo",
    "umask",
    // The one that starts the service; after it there is none (see `sandbox.rs`).
    "execve",
];

/// With a path to write.
const WRITING: &[&str] = &[
    "creat",
    "mkdir",
    "mkdirat",
    "unlink",
    "unlinkat",
    "rmdir",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "truncate",
    "utimensat",
    "copy_file_range",
    "chdir",
    "fchdir",
];

/// With a TCP port to bind.
const LISTENING: &[&str] = &["bind", "listen", "accept", "accept4"];

/// With something to execute.
const EXECUTING: &[&str] = &["execveat", "fork", "vfork", "setpgid", "setsid"];

/// What `fcntl` may be asked for: not who gets signals for a descriptor, and which.
const FCNTL: &[i32] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// What `ioctl` may be asked for: whether it is a terminal, and what files and sockets have.
const IOCTL: &[libc::Ioctl] =
    &[libc::TCGETS, libc::TIOCGWINSZ, libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::FIONCLEX];

/// `PR_SET_VMA`, by which allocators name their memory.
const PR_SET_VMA: i32 = 0x5356_4d41;

/// What `prctl` may be asked for, beside giving up being dumpable.
const PRCTL: &[i32] = &[
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_GET_DUMPABLE,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_CAPBSET_READ,
    libc::PR_SET_TIMERSLACK,
    libc::PR_GET_TIMERSLACK,
    PR_SET_VMA,
];

const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Makes the filters, in the order in which they are to be installed.
pub(super) fn filters(grants: &Grants) -> Result<Vec<BpfProgram>, SandboxError> {
    let mut rules = Rules::new();
    let lists = [
        (true, PLAIN),
        (!grants.write.is_empty(), WRITING),
        (!grants.bind_tcp.is_empty(), LISTENING),
        (!grants.execute.is_empty(), EXECUTING),
    ];
    for name in lists.iter().filter(|(is_on, _)| *is_on).flat_map(|(_, list)| *list) {
        rules.extend(names::number(name).map(|number| (number, vec![])));
    }
    judge_by_arguments(&mut rules, grants)?;
    let mut granted_clone3 = false;
    for name in &grants.system_calls {
        let number =
            names::number(name).ok_or_else(|| SandboxError::SystemCall { name: name.clone() })?;
        granted_clone3 |= number == libc::SYS_clone3;
        rules.insert(number, vec![]);
    }
    let eperm = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    if granted_clone3 {
        return Ok(vec![compile(rules, eperm, SeccompAction::Allow)?]);
    }
    rules.insert(libc::SYS_clone3, vec![]);
    let enosys = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let no_clone3 = compile([(libc::SYS_clone3, vec![])].into(), SeccompAction::Allow, enosys)?;
    Ok(vec![no_clone3, compile(rules, eperm, SeccompAction::Allow)?])
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, otherwise, listed, architecture)?.try_into()
}

/// Those that are harmless with some arguments only.
fn judge_by_arguments(rules: &mut Rules, grants: &Grants) -> Result<(), BackendError> {
    // Signals, limits and slices, to nobody but itself; a thread's number alone may be anybody's.
    for call in
        [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo]
    {
        rules.insert(call, vec![all(&[is(0, OWN_PID)])?]);
    }
    let of_itself = [
        libc::SYS_prlimit64,
        libc::SYS_pidfd_open,
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setattr,
    ];
    for call in of_itself {
        rules.insert(call, vec![all(&[is(0, 0)])?, all(&[is(0, OWN_PID)])?]);
    }
    // Threads; processes only where there is something to execute; namespaces never.
    let thread = if grants.execute.is_empty() { libc::CLONE_THREAD } else { 0 };
    let considered = (NAMESPACES | thread) as u32;
    rules.insert(libc::SYS_clone, vec![all(&[masked(0, considered, thread as u32)])?]);
    rules.insert(libc::SYS_fcntl, any_of(1, FCNTL)?);
    rules.insert(libc::SYS_ioctl, any_of(1, &IOCTL.iter().map(|&n| n as i32).collect::<Vec<_>>())?);
    let mut prctl = any_of(0, PRCTL)?;
    prctl.push(all(&[is(0, libc::PR_SET_DUMPABLE as u32), is(1, 0)])?);
    rules.insert(libc::SYS_prctl, prctl);
    // Landlock does not see a connection that is made by sending.
    for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        rules.insert(call, vec![all(&[masked(flags, libc::MSG_FASTOPEN as u32, 0)])?]);
    }
    sockets(rules, grants)
}

/// Packet sockets only, which is what the runtime listens on: message buses, display servers,
/// container engines and the system's log have stream or datagram sockets, and cannot be reached
/// from one of packets. No pair of datagram sockets, whose ends can be connected elsewhere.
fn sockets(rules: &mut Rules, grants: &Grants) -> Result<(), BackendError> {
    let family = |family: i32| is(0, family as u32);
    let kind = |kind: i32| masked(1, 0xf, kind as u32);
    let unix = |of: i32| all(&[family(libc::AF_UNIX), kind(of)]);
    let mut socket = vec![unix(libc::SOCK_SEQPACKET)?];
    if !(grants.connect_tcp.is_empty() && grants.bind_tcp.is_empty()) {
        for internet in [libc::AF_INET, libc::AF_INET6] {
            // Landlock knows of no other protocol: not of MPTCP, not of SMC.
            for protocol in [0, libc::IPPROTO_TCP] {
                let protocol = is(2, protocol as u32);
                socket.push(all(&[family(internet), kind(libc::SOCK_STREAM), protocol])?);
            }
        }
    }
    rules.insert(libc::SYS_socket, socket);
    let pairs = vec![unix(libc::SOCK_SEQPACKET)?, unix(libc::SOCK_STREAM)?];
    rules.insert(libc::SYS_socketpair, pairs);
    Ok(())
}

/// What an argument must be.
#[derive(Clone, Copy)]
struct Argument {
    index: u8,
    mask: Option<u32>,
    value: u32,
}

fn is(index: u8, value: u32) -> Argument {
    Argument { index, mask: None, value }
}

fn masked(index: u8, mask: u32, value: u32) -> Argument {
    Argument { index, mask: Some(mask), value }
}

fn all(arguments: &[Argument]) -> Result<SeccompRule, BackendError> {
    let conditions: Result<Vec<_>, _> = arguments
        .iter()
        .map(|one| {
            let how = one.mask.map_or(SeccompCmpOp::Eq, |bits| SeccompCmpOp::MaskedEq(bits.into()));
            SeccompCondition::new(one.index, SeccompCmpArgLen::Dword, how, one.value.into())
        })
        .collect();
    SeccompRule::new(conditions?)
}

fn any_of(index: u8, values: &[i32]) -> Result<Vec<SeccompRule>, BackendError> {
    values.iter().map(|value| all(&[is(index, *value as u32)])).collect()
}
