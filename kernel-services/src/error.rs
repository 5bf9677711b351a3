//! Why a runtime could not be started, and what to do about it.

use std::{io, path::PathBuf};

use nix::errno::Errno;

use crate::token::KeyError;

/// Explains why a runtime did not start. Nothing was left behind: no socket, lock or descriptor.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The runtime directory is missing and cannot be created.
    #[error(
        "cannot create the runtime directory {}: {source}; create it yourself (mode 0700), or \
         choose another with IPC_RUNTIME_DIR", path.display()
    )]
    Create {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The runtime directory cannot be opened.
    #[error(
        "cannot open the runtime directory {}: {source}; give a directory of your own with \
         IPC_RUNTIME_DIR", path.display()
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The runtime directory belongs to another user, who could replace what is in it.
    #[error(
        "the runtime directory {} belongs to user {owner}, not to you (user {us}): run as that \
         user, or choose a directory of your own with IPC_RUNTIME_DIR", path.display()
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The effective user of this process.
        us: u32,
    },
    /// Other users may write in the runtime directory.
    #[error(
        "other users may write in the runtime directory {} (mode {mode:04o}): run `chmod go-w` on \
         it, or choose another with IPC_RUNTIME_DIR", path.display()
    )]
    Shared {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Nothing can be written in the runtime directory.
    #[error(
        "cannot write {}: {source}; make the runtime directory writable for you (mode 0700), or \
         choose another with IPC_RUNTIME_DIR", path.display()
    )]
    ReadOnly {
        /// The file that was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path of the socket is longer than a Unix socket's address can hold.
    #[error(
        "the socket path {} has {length} bytes, a Unix socket takes at most {limit}: choose a \
         shorter runtime directory with IPC_RUNTIME_DIR", path.display()
    )]
    PathTooLong {
        /// The socket's path.
        path: PathBuf,
        /// Its bytes.
        length: usize,
        /// Most bytes that fit.
        limit: usize,
    },
    /// A runtime serves this directory already. It goes on undisturbed.
    #[error(
        "a runtime already serves {} (pid {pid}): use that one, stop it with `kill {pid}`, or \
         choose another directory with IPC_RUNTIME_DIR", path.display()
    )]
    Running {
        /// The directory.
        path: PathBuf,
        /// The process that serves it.
        pid: u32,
    },
    /// The file that says which ids were given is damaged.
    #[error(
        "{} is damaged (it should hold one number): stop every service of the former runtime, \
         then remove it", path.display()
    )]
    Ids {
        /// The file.
        path: PathBuf,
    },
    /// The key that signs tokens cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The audit log cannot be opened.
    #[error("{why}")]
    Audit {
        /// Why not, and what to do.
        why: String,
    },
    /// No descriptors are left, in this process or in the system.
    #[error("{what}: {source}; close some files, or raise the limit with `ulimit -n`")]
    Descriptors {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A system call failed that ought not to.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl KernelError {
    /// Wraps the failure of a system call with what was being done.
    pub(crate) fn system(what: &'static str, source: impl Into<io::Error>) -> KernelError {
        let source = source.into();
        if is_exhaustion(&source) {
            KernelError::Descriptors { what, source }
        } else {
            KernelError::System { what, source }
        }
    }

    /// Wraps the failure to write a file of the runtime directory.
    pub(crate) fn write(path: PathBuf, source: impl Into<io::Error>) -> KernelError {
        let source = source.into();
        if is_exhaustion(&source) {
            KernelError::Descriptors { what: "cannot open a file of the runtime directory", source }
        } else {
            KernelError::ReadOnly { path, source }
        }
    }
}

fn is_exhaustion(source: &io::Error) -> bool {
    let errno = source.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE))
}
