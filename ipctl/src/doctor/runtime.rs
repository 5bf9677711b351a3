//! The runtime directory, and whether somebody answers there.

use std::{
    fs,
    io::ErrorKind,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use ipc::{Config, KernelState, Node, NodeError};

use super::{Check, State, leftovers};
use crate::units;

/// Longest path of a socket, in bytes.
const SOCKET_PATH: usize = 107;

pub(super) fn checks(config: &Config) -> [Check; 3] {
    let path = config.runtime_dir.clone().unwrap_or_else(ipc::runtime_dir);
    let state = Node::connect(config).and_then(|node| node.state());
    let is_served = state.is_ok();
    [directory(&path, is_served), leftovers::check(&path, is_served), runtime(state)]
}

/// Looks at the directory as `ipcd` would. Where a runtime answers, it has done so.
fn directory(path: &Path, is_served: bool) -> Check {
    let shown = path.display();
    let failed = |why: String, hint: &str| {
        Check::new("directory", State::Failed, format!("{shown}: {why}")).hint(hint)
    };
    let own = "choose a directory of your own with --runtime-dir or IPC_RUNTIME_DIR";
    if path.join("ipcd.sock").as_os_str().as_bytes().len() > SOCKET_PATH {
        return failed("its path is too long for a socket".into(), "choose a shorter one");
    }
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Check::new("directory", State::Ok, format!("{shown}: not yet made; ipcd will"));
        }
        Err(error) => return failed(error.to_string(), own),
    };
    if !found.is_dir() {
        return failed("it is no directory".into(), own);
    }
    let mode = found.mode() & 0o7777;
    let text = format!("{shown}: user {}, mode {mode:04o}", found.uid());
    // The owner of a process's own directory in /proc is its effective user.
    let us = fs::metadata("/proc/self").map_or(found.uid(), |process| process.uid());
    if is_served || (found.uid() == us && mode & 0o022 == 0) {
        Check::new("directory", State::Ok, text)
    } else if found.uid() == us {
        failed(format!("mode {mode:04o}: others may write in it"), "run `chmod go-w` on it")
    } else {
        failed(format!("it belongs to user {}, you are user {us}", found.uid()), own)
    }
}

fn runtime(state: Result<KernelState, NodeError>) -> Check {
    match state {
        Ok(state) => Check::new(
            "runtime",
            State::Ok,
            format!("answers: pid {}, up for {}", state.pid, units::uptime(state.uptime)),
        ),
        Err(NodeError::NoRuntime { path }) => {
            let directory = path.parent().unwrap_or(&path).display();
            Check::new("runtime", State::Absent, format!("nobody answers at {}", path.display()))
                .hint(format!(
                    "start one with `ipcd --runtime-dir {directory}`, or embed one: IPC_EMBEDDED \
                     in ipc_init"
                ))
        }
        Err(error) => {
            Check::new("runtime", State::Failed, "does not answer").hint(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_to_be_made_will_do() {
        assert_eq!(directory(Path::new("/nowhere/at/all"), false).state, State::Ok);
    }

    #[test]
    fn a_directory_that_ipcd_would_refuse_has_failed() {
        let long = "x".repeat(SOCKET_PATH);
        for path in ["/tmp", "/proc/version", &format!("/{long}")] {
            let check = directory(Path::new(path), false);
            assert_eq!((check.state, check.hint.is_some()), (State::Failed, true), "{path}");
        }
    }

    #[test]
    fn no_runtime_is_absent_and_a_broken_one_failed() {
        let absent = runtime(Err(NodeError::NoRuntime { path: "/run/ipc/ipcd.sock".into() }));
        assert_eq!(absent.state, State::Absent);
        assert!(absent.hint.is_some_and(|hint| hint.contains("ipcd --runtime-dir /run/ipc`")));
        assert_eq!(runtime(Err(NodeError::TimedOut)).state, State::Failed);
    }
}
