//! What a sandboxed service may do: everything is prepared here, in ipcd, and only put on by the
//! service's own process, between its birth and its program (`process/child.rs`).
//!
//! Three layers, each of which holds without the others:
//!
//! ```text
//!   seccomp, the list    which system calls there are, and with which arguments
//!   seccomp, one exec    the first execve is let through by ipcd, then there is none any more
//!   landlock             which files and ports; no signal, no abstract socket beyond itself
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use crate::node::Grants;

mod calls;
mod image;
pub(crate) mod names;
mod rules;

/// Stands in a filter for the process's own number, which is not known before it is born. Above
/// every number that a process can have.
const OWN_PID: u32 = 0x7fff_0001;

/// Explains why a sandbox cannot be made as the node file says.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A granted path does not exist, or cannot be opened.
    #[error("cannot grant {}: {reason}; make it, or take it out of `sandbox`", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// No system call of this architecture has that name.
    #[error("there is no system call {name:?} here: correct `sandbox.system_calls`")]
    SystemCall {
        /// The name.
        name: String,
    },
    /// Landlock refused its rules.
    #[error("landlock refused the rules: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter of system calls cannot be made.
    #[error("the filter of system calls cannot be made: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

/// Something that was asked for and that this machine does not enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unenforced {
    /// The kernel has no landlock, or it is off.
    Files,
    /// Landlock before ABI 3 (Linux 6.2).
    Truncation,
    /// Landlock before ABI 4 (Linux 6.7).
    Ports,
    /// Landlock before ABI 5 (Linux 6.10).
    Devices,
    /// Landlock before ABI 6 (Linux 6.12).
    AbstractSockets,
    /// Landlock before ABI 9 (Linux 7.1).
    SocketFiles,
    /// The process that runs ipcd is itself watched by a listener, of which there can be one, or
    /// the kernel has none (before Linux 5.5).
    SecondExec,
    /// A limit for which no cgroup could be had.
    Limit {
        /// As in the node file.
        limit: &'static str,
        /// What the system said.
        reason: String,
    },
}

impl fmt::Display for Unenforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unenforced::Files => {
                "no landlock here: files, ports and devices are limited by the user's rights only"
            }
            Unenforced::Truncation => {
                "landlock is older than ABI 3: files that its user may write can be truncated"
            }
            Unenforced::Ports => {
                "landlock is older than ABI 4: with one TCP port granted, all are open"
            }
            Unenforced::Devices => "landlock is older than ABI 5: granted devices take any ioctl",
            Unenforced::AbstractSockets => {
                "landlock is older than ABI 6: abstract packet sockets of others can be reached"
            }
            Unenforced::SocketFiles => {
                "landlock is older than ABI 9: packet sockets in the file system can be reached as \
                 its user may"
            }
            Unenforced::SecondExec => {
                "no seccomp listener to be had: its own program can be executed again"
            }
            Unenforced::Limit { limit, reason } => {
                return write!(f, "{limit} is not enforced, no cgroup could be made: {reason}");
            }
        })
    }
}

/// A sandbox, ready to be put on.
#[derive(Debug)]
pub(crate) struct Jail {
    /// Landlock's rules, where there is landlock.
    pub(crate) ruleset: Option<OwnedFd>,
    /// Whether the first program is the last.
    pub(crate) one_exec: bool,
    /// In the order in which they are to be installed.
    pub(crate) filters: Vec<Filter>,
    /// What this machine does not enforce.
    pub(crate) unenforced: Vec<Unenforced>,
}

/// A program for the kernel's packet filter machine, and where it says [`OWN_PID`].
#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) program: Vec<libc::sock_filter>,
    pub(crate) own_pid_at: Vec<usize>,
}

impl Filter {
    fn of(program: &[seccompiler::sock_filter]) -> Filter {
        let own_pid_at = (0..program.len()).filter(|&at| program[at].k == OWN_PID).collect();
        let program = program
            .iter()
            .map(|one| libc::sock_filter { code: one.code, jt: one.jt, jf: one.jf, k: one.k })
            .collect();
        Filter { program, own_pid_at }
    }
}

/// Makes the sandbox of an executable.
pub(crate) fn build(
    executable: &Path,
    environment: &BTreeMap<String, String>,
    runtime_dir: &Path,
    key_file: Option<&Path>,
    grants: &Grants,
) -> Result<Jail, SandboxError> {
    let abi = crate::process::landlock_abi();
    let libraries = environment.get("LD_LIBRARY_PATH").map_or("", String::as_str);
    let libraries: Vec<_> = std::env::split_paths(libraries).filter(|p| p.is_absolute()).collect();
    let ruleset = rules::ruleset(executable, &libraries, runtime_dir, key_file, grants)?;
    let filters = calls::filters(grants)?.iter().map(|one| Filter::of(one)).collect();
    Ok(Jail {
        ruleset,
        one_exec: grants.execute.is_empty(),
        filters,
        unenforced: unenforced(abi, grants),
    })
}

/// Lists what this machine's kernel would not enforce of a sandbox, whatever it grants.
pub fn gaps() -> Vec<Unenforced> {
    let grants = Grants { connect_tcp: vec![1], ..Grants::default() };
    unenforced(crate::process::landlock_abi(), &grants)
}

fn unenforced(abi: i32, grants: &Grants) -> Vec<Unenforced> {
    if abi < 1 {
        return vec![Unenforced::Files];
    }
    let tcp = !(grants.connect_tcp.is_empty() && grants.bind_tcp.is_empty());
    let lacking = [
        (abi < 3, Unenforced::Truncation),
        (abi < 4 && tcp, Unenforced::Ports),
        (abi < 5, Unenforced::Devices),
        (abi < 6, Unenforced::AbstractSockets),
        (abi < 9, Unenforced::SocketFiles),
    ];
    lacking.into_iter().filter(|(lacks, _)| *lacks).map(|(_, what)| what).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_kernel_lacks_is_listed() {
        let plain = Grants::default();
        let tcp = Grants { connect_tcp: vec![443], ..Grants::default() };
        assert_eq!(unenforced(-1, &tcp), [Unenforced::Files]);
        assert!(unenforced(3, &tcp).contains(&Unenforced::Ports));
        assert!(!unenforced(3, &plain).contains(&Unenforced::Ports), "no TCP socket at all");
        assert_eq!(unenforced(7, &tcp), [Unenforced::SocketFiles]);
        assert!(unenforced(9, &tcp).is_empty());
    }

    #[test]
    fn the_filter_has_places_for_the_process_s_own_number() {
        let filters = calls::filters(&Grants::default()).expect("made");
        let places: usize = filters.iter().map(|one| Filter::of(one).own_pid_at.len()).sum();
        assert!(places >= 3, "kill, tgkill and their like: {places}");
    }

    #[test]
    fn unknown_system_calls_are_refused_by_name() {
        let grants = Grants { system_calls: vec!["forc".to_owned()], ..Grants::default() };
        let refused = calls::filters(&grants);
        assert!(matches!(refused, Err(SandboxError::SystemCall { name }) if name == "forc"));
    }
}
