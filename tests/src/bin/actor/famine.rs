//! A process that is out of descriptors.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::say;

/// All descriptors that there may be, but for those that were in use before.
pub(crate) struct Famine {
    eaten: Vec<OwnedFd>,
    before: (u64, u64),
}

impl Famine {
    pub(crate) fn begin() -> Famine {
        let before = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        let few = 256.min(before.0);
        setrlimit(Resource::RLIMIT_NOFILE, few, before.1).expect("a limit may fall");
        let input = std::io::stdin();
        let another = || nix::unistd::dup(&input).ok();
        let eaten: Vec<OwnedFd> = std::iter::from_fn(another).collect();
        assert!(eaten.iter().all(|fd| (fd.as_raw_fd() as u64) < few));
        say(&format!("starved {}", eaten.len()));
        Famine { eaten, before }
    }

    pub(crate) fn end(self) {
        drop(self.eaten);
        setrlimit(Resource::RLIMIT_NOFILE, self.before.0, self.before.1).expect("as it was");
        say("fed");
    }
}
