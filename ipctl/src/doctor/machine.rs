//! The kernel's version, the processors, and the limits of this process.

use std::{fs, thread};

use super::{Check, State};

/// Descriptors below which a runtime of a few dozen nodes has too few.
const FEW_DESCRIPTORS: u64 = 256;

/// A version of Linux, as it names itself.
pub(super) struct Release {
    pub(super) text: String,
    version: (u32, u32),
}

impl Release {
    pub(super) fn of(text: &str) -> Release {
        let mut parts = text.split(|c: char| !c.is_ascii_digit());
        let mut number = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
        Release { text: text.to_owned(), version: (number(), number()) }
    }

    pub(super) fn is_at_least(&self, version: (u32, u32)) -> bool {
        self.version >= version
    }
}

pub(super) fn release() -> Release {
    Release::of(read("/proc/sys/kernel/osrelease").trim())
}

pub(super) fn checks(release: &Release) -> Vec<Check> {
    let limits = read("/proc/self/limits");
    vec![
        Check::new("kernel", State::Ok, format!("Linux {}", release.text)),
        cpus(thread::available_parallelism().map_or(1, std::num::NonZero::get)),
        descriptors(limit(&limits, "Max open files")),
        locked_memory(limit(&limits, "Max locked memory")),
    ]
}

/// A file of `/proc`; nothing where that is not mounted.
pub(super) fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn cpus(count: usize) -> Check {
    if count > 1 {
        return Check::new("cpus", State::Ok, format!("{count} for this process"));
    }
    Check::fallback(
        "cpus",
        "1 for this process",
        "sleeping at once, without spinning",
        "two switches between processes with every call",
    )
    .hint("give the process two processors, by its affinity or its container's cpuset")
}

/// A limit's soft and hard value; `u64::MAX` is none.
type Limit = Option<(u64, u64)>;

/// Finds a limit in the table of `/proc/self/limits`.
fn limit(table: &str, name: &str) -> Limit {
    let line = table.lines().find_map(|line| line.strip_prefix(name))?;
    let mut values = line.split_whitespace().map(|value| match value {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some((values.next()??, values.next()??))
}

fn descriptors(limit: Limit) -> Check {
    let Some((soft, hard)) = limit else {
        return Check::new("nofile", State::Unused, "unknown: /proc/self/limits tells nothing");
    };
    let found = format!("{}, at most {}", show(soft), show(hard));
    if soft >= FEW_DESCRIPTORS {
        return Check::new("nofile", State::Ok, found);
    }
    Check::fallback(
        "nofile",
        found,
        "waiting: newcomers to a runtime get in when others have left",
        "every channel takes a descriptor at both ends, and every peer's process one; ipcd, which \
         takes two for each node, raises its own limit as far as it may",
    )
    .hint("raise it: `ulimit -n 1024`, or LimitNOFILE= of the service's unit")
}

/// Bytes of locked memory that are few: a page for each of a few sessions.
const FEW_LOCKED: u64 = 1 << 16;

fn locked_memory(limit: Limit) -> Check {
    let found = match limit {
        Some((u64::MAX, _)) => "unlimited".to_owned(),
        Some((soft, _)) => format!("{} KiB", soft / 1024),
        None => "unknown".to_owned(),
    };
    // Keys lie in locked pages: the node's, and one page for each encrypted channel.
    if limit.is_none_or(|(soft, _)| soft >= FEW_LOCKED) {
        return Check::new("memlock", State::Ok, format!("{found}, for keys of sessions"));
    }
    Check::fallback(
        "memlock",
        found,
        "memory that is not locked, for the keys of sessions beyond that",
        "no time; but what is swapped out lies on a disk",
    )
    .hint("raise it: `ulimit -l 8192`, or LimitMEMLOCK= of the service's unit; or encrypt the swap")
}

fn show(value: u64) -> String {
    if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units
Max open files            24                   1048576              files
Max locked memory         unlimited            unlimited            bytes
";

    #[test]
    fn versions_are_compared_by_number() {
        let release = Release::of("5.10.0-28-amd64");
        assert!(release.is_at_least((5, 9)) && release.is_at_least((5, 10)));
        assert!(!release.is_at_least((5, 16)) && !release.is_at_least((6, 0)));
        assert!(!Release::of("").is_at_least((4, 16)));
    }

    #[test]
    fn limits_are_found_by_name() {
        assert_eq!(limit(LIMITS, "Max open files"), Some((24, 1_048_576)));
        assert_eq!(limit(LIMITS, "Max locked memory"), Some((u64::MAX, u64::MAX)));
        assert_eq!(limit(LIMITS, "Max nonsense"), None);
    }

    #[test]
    fn few_descriptors_and_one_processor_are_remarked_on() {
        assert_eq!(descriptors(limit(LIMITS, "Max open files")).state, State::Fallback);
        assert_eq!(descriptors(Some((1024, u64::MAX))).state, State::Ok);
        assert_eq!(locked_memory(Some((0, 0))).state, State::Fallback);
        assert_eq!(locked_memory(Some((1 << 23, u64::MAX))).state, State::Ok);
        assert_eq!(cpus(1).state, State::Fallback);
        assert_eq!(cpus(2).state, State::Ok);
    }
}
