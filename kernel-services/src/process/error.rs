//! Why a process was not launched.

use std::{ffi::CStr, io, path::PathBuf};

use nix::errno::Errno;

use super::{
    child::{Report, Step},
    plan::Plan,
};
use crate::{numa::NumaError, sandbox::SandboxError};

/// Explains why a process was not launched. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// An argument, path or variable of the environment holds a NUL byte, or a variable's name `=`.
    #[error("{what} cannot be passed on: it holds a NUL byte, or a name holds `=`")]
    Text {
        /// Which.
        what: String,
    },
    /// It could not be written down for the next ipcd, which would have started it once more.
    #[error("cannot write the process down: {0}")]
    Unrecorded(io::Error),
    /// Nobody has the name.
    #[error("there is no user {name:?} here: make one, or change `user`")]
    NoUser {
        /// As in the node file.
        name: String,
    },
    /// The user could not be changed to.
    #[error("cannot run as user {name:?}: {errno}; only root can start services as other users")]
    User {
        /// As in the node file.
        name: String,
        /// What the system said.
        errno: Errno,
    },
    /// The executable does not run.
    #[error("cannot execute {}: {}", path.display(), why_not_executed(*errno))]
    Executable {
        /// The executable.
        path: PathBuf,
        /// What the system said.
        errno: Errno,
    },
    /// The working directory cannot be entered.
    #[error("cannot enter {}: {errno}; make it for the service's user, or change `directory`",
            path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        errno: Errno,
    },
    /// A limit cannot be set.
    #[error("cannot set {limit}: {errno}; only root can set more than ipcd itself has")]
    Limit {
        /// As in the node file.
        limit: &'static str,
        /// What the system said.
        errno: Errno,
    },
    /// The CPUs do not exist, or are not ipcd's to use.
    #[error("cannot run on the CPUs {cpus:?}: {errno}; change `cpus` or `numa_node`")]
    Cpus {
        /// Those asked for, on the NUMA node if one was.
        cpus: Vec<usize>,
        /// What the system said.
        errno: Errno,
    },
    /// The NUMA node cannot be used.
    #[error(transparent)]
    Numa(#[from] NumaError),
    /// The sandbox cannot be made.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The kernel refused the sandbox, which it had not refused to make.
    #[error("the kernel refused {what}: {errno}; `sandbox = false` does without")]
    Refused {
        /// Which part of it.
        what: &'static str,
        /// What the system said.
        errno: Errno,
    },
    /// A system call failed that ought not to: mostly for want of descriptors, processes or memory.
    #[error("cannot {what}: {errno}{}", remedy(*errno))]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        errno: Errno,
    },
}

impl LaunchError {
    pub(super) fn system(what: &'static str, errno: impl Into<Errno>) -> LaunchError {
        LaunchError::System { what, errno: errno.into() }
    }
}

/// What to do where a system call failed for want of something.
pub(crate) fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::EMFILE => "; ipcd has too few: raise `ulimit -n`, or LimitNOFILE= of its unit",
        Errno::ENFILE => "; the machine has too few: raise fs.file-max",
        Errno::EAGAIN => "; too many processes: raise `ulimit -u` or the cgroup's pids.max",
        Errno::ENOMEM => "; memory is short",
        _ => "",
    }
}

fn why_not_executed(errno: Errno) -> String {
    let hint = match errno {
        Errno::ENOENT => "it, or the interpreter that it names, does not exist",
        Errno::EACCES | Errno::EPERM => {
            "it is no executable file, or the service's user may not reach it; `chmod +x` it"
        }
        Errno::ENOEXEC => "it is no program of this machine; a script begins with `#!`",
        Errno::E2BIG => "arguments and environment are too long",
        Errno::EAGAIN => "its user has more processes than `limits.processes`",
        _ => "see execve(2)",
    };
    format!("{errno}: {hint}")
}

/// What kept a new process from its program.
#[derive(Debug)]
pub(super) enum Failure {
    /// It said so itself.
    Reported(Report),
    /// Its report could not be had.
    Unheard(Errno),
    /// Who launches could not write it down.
    Unrecorded(io::Error),
}

impl Failure {
    pub(super) fn explain(self, plan: &Plan) -> LaunchError {
        let (step, detail, errno) = match self {
            Failure::Unrecorded(error) => return LaunchError::Unrecorded(error),
            Failure::Unheard(errno) => return LaunchError::system("hear of the process", errno),
            Failure::Reported(Report { step, detail, errno }) => {
                (step, detail as usize, Errno::from_raw(errno))
            }
        };
        let path = |text: &CStr| PathBuf::from(text.to_string_lossy().into_owned());
        match Step::of(step) {
            Some(Step::Session) => LaunchError::system("begin a session", errno),
            Some(Step::Cgroup) => LaunchError::system("join the cgroup", errno),
            Some(Step::Cpus) => LaunchError::Cpus { cpus: plan.cpus.clone(), errno },
            Some(Step::Memory) => LaunchError::system("bind memory to the NUMA node", errno),
            Some(Step::Limit) => {
                let limit = plan.limits.get(detail).map_or("a limit", |limit| limit.name);
                LaunchError::Limit { limit, errno }
            }
            Some(Step::Descriptors) => LaunchError::system("arrange the descriptors", errno),
            Some(Step::User) => LaunchError::User { name: plan.user_name.clone(), errno },
            Some(Step::Capabilities) => LaunchError::system("give up capabilities", errno),
            Some(Step::Directory) => LaunchError::Directory { path: path(&plan.directory), errno },
            Some(Step::Privileges) => LaunchError::Refused { what: "no_new_privs", errno },
            Some(Step::Landlock) => LaunchError::Refused { what: "landlock's rules", errno },
            Some(Step::Listener) => LaunchError::Refused { what: "seccomp's listener", errno },
            Some(Step::Seccomp) => LaunchError::Refused { what: "seccomp's filter", errno },
            Some(Step::Exec) => LaunchError::Executable { path: path(&plan.executable), errno },
            None => LaunchError::system("understand the new process", Errno::EPROTO),
        }
    }
}
