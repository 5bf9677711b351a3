//! Runs a command as on a kernel, or in a sandbox, that lacks something.
//!
//! ```text
//! without FEATURE[,FEATURE...] -- COMMAND...
//! without --list
//! ```
//!
//! A seccomp filter makes the system calls of each named feature fail with the error that an older
//! kernel gives. The command and all its children inherit it; nobody can take it off again.

use std::{os::unix::process::CommandExt, process::Command};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// What can be taken away, and what that means.
const FEATURES: &[(&str, &[Denial])] = &[
    ("membarrier", &[Denial::call(libc::SYS_membarrier)]),
    ("futex_waitv", &[Denial::call(libc::SYS_futex_waitv)]),
    (
        "io_uring",
        &[
            Denial::call(libc::SYS_io_uring_setup),
            Denial::call(libc::SYS_io_uring_enter),
            Denial::call(libc::SYS_io_uring_register),
        ],
    ),
    ("noexec_seal", &[Denial::of(libc::SYS_memfd_create, libc::EINVAL, &[NOEXEC_SEAL])]),
    (
        "pidfd",
        &[
            Denial::call(libc::SYS_pidfd_open),
            Denial::call(libc::SYS_pidfd_send_signal),
            Denial::call(libc::SYS_pidfd_getfd),
            NO_PEERPIDFD,
        ],
    ),
    ("peerpidfd", &[NO_PEERPIDFD]),
    ("memfd", &[Denial::of(libc::SYS_memfd_create, libc::EPERM, &[])]),
    ("shared_maps", &[Denial::of(libc::SYS_mmap, libc::EACCES, &[MAP_SHARED])]),
    ("future_write", &[Denial::of(libc::SYS_fcntl, libc::EINVAL, &[ADD_SEALS, FUTURE_WRITE])]),
];

/// All for which libipc has something else, in one word.
const ALL: &str = "membarrier,futex_waitv,io_uring,noexec_seal,pidfd";

/// A system call, the arguments with which it fails, and the error.
struct Denial {
    call: i64,
    errno: i32,
    arguments: &'static [Argument],
}

/// An argument that has all the bits of a mask, or is a number.
struct Argument {
    index: u8,
    bits: Option<u64>,
    value: u64,
}

impl Argument {
    const fn is(index: u8, value: i32) -> Argument {
        Argument { index, bits: None, value: value as u64 }
    }

    const fn has(index: u8, bits: u64) -> Argument {
        Argument { index, bits: Some(bits), value: bits }
    }

    fn condition(&self) -> Result<SeccompCondition, seccompiler::Error> {
        let operator = self.bits.map_or(SeccompCmpOp::Eq, SeccompCmpOp::MaskedEq);
        Ok(SeccompCondition::new(self.index, SeccompCmpArgLen::Dword, operator, self.value)?)
    }
}

const NOEXEC_SEAL: Argument = Argument::has(1, libc::MFD_NOEXEC_SEAL as u64);
const MAP_SHARED: Argument = Argument::has(3, libc::MAP_SHARED as u64);
const ADD_SEALS: Argument = Argument::is(1, libc::F_ADD_SEALS);
const FUTURE_WRITE: Argument = Argument::has(2, libc::F_SEAL_FUTURE_WRITE as u64);
const NO_PEERPIDFD: Denial = Denial::of(
    libc::SYS_getsockopt,
    libc::ENOPROTOOPT,
    &[Argument::is(1, libc::SOL_SOCKET), Argument::is(2, libc::SO_PEERPIDFD)],
);

impl Denial {
    /// A system call that the kernel does not know.
    const fn call(call: i64) -> Denial {
        Denial::of(call, libc::ENOSYS, &[])
    }

    const fn of(call: i64, errno: i32, arguments: &'static [Argument]) -> Denial {
        Denial { call, errno, arguments }
    }

    /// Denies it to this thread, and to whatever program it becomes.
    fn install(&self) -> Result<(), seccompiler::Error> {
        let conditions: Result<Vec<_>, _> =
            self.arguments.iter().map(Argument::condition).collect();
        let conditions = conditions?;
        let rules =
            if conditions.is_empty() { vec![] } else { vec![SeccompRule::new(conditions)?] };
        let filter = SeccompFilter::new(
            [(self.call, rules)].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(self.errno.unsigned_abs()),
            std::env::consts::ARCH.try_into()?,
        )?;
        let program: BpfProgram = filter.try_into()?;
        apply_filter(&program)
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["--list"] {
        for (name, _) in FEATURES {
            println!("{name}");
        }
        return;
    }
    let [features, dashes, program, rest @ ..] = &arguments[..] else { usage("") };
    if dashes != "--" {
        usage("")
    }
    for name in features.split(',').flat_map(|name| spelled_out(name).split(',')) {
        let Some((_, denials)) = FEATURES.iter().find(|(known, _)| *known == name) else {
            usage(&format!("no feature {name:?}; "))
        };
        for denial in *denials {
            denial.install().unwrap_or_else(|error| stop(&format!("cannot deny {name}: {error}")));
        }
    }
    let error = Command::new(program).args(rest).exec();
    stop(&format!("cannot run {program}: {error}"));
}

fn spelled_out(name: &str) -> &str {
    if name == "all" { ALL } else { name }
}

fn usage(fault: &str) -> ! {
    let names: Vec<&str> = FEATURES.iter().map(|(name, _)| *name).collect();
    stop(&format!(
        "{fault}usage: without FEATURE[,FEATURE...] -- COMMAND...; features: {}; all: {ALL}",
        names.join(", ")
    ));
}

/// Ends with the status that shells give to commands that could not be run.
fn stop(why: &str) -> ! {
    eprintln!("without: {why}");
    std::process::exit(126)
}
