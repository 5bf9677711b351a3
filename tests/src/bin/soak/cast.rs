//! Who takes part: the names that are served, and by how many.

use ipc::{Config, Spin};
use std::{path::Path, time::Duration};

/// How effects of a service are had once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The ledger keeps the record with the effect, and refuses epochs that are past. No caller
    /// ever hears of an error.
    Store,
    /// A gate before the handler, with a log in a region which the next reads. A caller may hear
    /// "maybe" when one dies.
    Till,
}

/// A name, and who serves it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) sealed: bool,
    /// Who serves, and those who stand by.
    pub(crate) members: usize,
}

/// A group's place here is the number of its book in the ledger.
pub(crate) const GROUPS: [Group; 4] = [
    Group { name: "store", kind: Kind::Store, sealed: false, members: 3 },
    Group { name: "sealed.store", kind: Kind::Store, sealed: true, members: 3 },
    Group { name: "till", kind: Kind::Till, sealed: false, members: 2 },
    Group { name: "sealed.till", kind: Kind::Till, sealed: true, members: 2 },
];

/// The book of one-way messages to a group, behind those of the groups.
pub(crate) const fn one_way(book: usize) -> usize {
    GROUPS.len() + book
}

/// Books in the ledger.
pub(crate) const BOOKS: usize = 2 * GROUPS.len();

/// Processes that call, each with a thread for each group and one for who never dies.
pub(crate) const CALLERS: usize = 2;

/// What is served by a process that never dies.
pub(crate) const STEADY: &str = "steady";

/// The number by which the queue knows the producer.
pub(crate) const PRODUCER: u64 = 101;

/// Topics, and whether publishers wait for subscribers.
pub(crate) const TOPICS: [(&str, bool); 2] = [("soak.lossy", false), ("soak.reliable", true)];

/// Longer than anything may take that is not lost.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// The directory of the runtime.
pub(crate) fn runtime(base: &Path) -> std::path::PathBuf {
    base.join("run")
}

/// Where the kernel writes what is left of those who are aborted.
pub(crate) fn cores(base: &Path) -> std::path::PathBuf {
    base.join("cores")
}

pub(crate) fn config(base: &Path, encrypt: bool) -> Config {
    let runtime_dir = Some(runtime(base));
    Config { runtime_dir, spin: Spin::Learned, encrypt, ..Config::default() }
}
