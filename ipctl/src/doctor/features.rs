//! What the kernel gives, and what is used where it does not.

use ipc::Features;
use kernel_services::process::Unenforced;

use super::{Check, State, machine::Release};

/// Something that a Linux has from some version on.
struct Feature {
    name: &'static str,
    /// Linux major and minor.
    since: (u32, u32),
    /// The system call that a sandbox would have to allow.
    call: &'static str,
}

const MEMBARRIER: Feature = Feature { name: "membarrier", since: (4, 16), call: "membarrier" };
const FUTEX_WAITV: Feature = Feature { name: "futex_waitv", since: (5, 16), call: "futex_waitv" };
const NOEXEC_SEAL: Feature =
    Feature { name: "noexec_seal", since: (6, 3), call: "memfd_create with MFD_NOEXEC_SEAL" };
const FUTURE_WRITE: Feature = Feature {
    name: "future_write",
    since: (5, 1),
    call: "memfd_create and fcntl with F_SEAL_FUTURE_WRITE",
};
const PIDFD: Feature = Feature { name: "pidfd", since: (5, 3), call: "pidfd_open" };
const PEER_PIDFD: Feature =
    Feature { name: "peer_pidfd", since: (6, 5), call: "getsockopt with SO_PEERPIDFD" };

impl Feature {
    fn there(&self) -> Check {
        Check::new(self.name, State::Ok, "there")
    }

    fn fallback(&self, release: &Release, instead: &'static str, cost: &'static str) -> Check {
        Check::fallback(self.name, "not there", instead, cost).hint(self.advice(release))
    }

    /// An old kernel is one thing to do something about, a sandbox another.
    fn advice(&self, release: &Release) -> String {
        let (major, minor) = self.since;
        if release.is_at_least(self.since) {
            format!(
                "Linux {} has it, so a sandbox denies it (let its seccomp profile allow {}), or \
                 this kernel was built without",
                release.text, self.call
            )
        } else {
            format!("Linux {major}.{minor} and later have it; this is {}", release.text)
        }
    }
}

pub(super) fn checks(features: Features, release: &Release) -> Vec<Check> {
    vec![
        clock(features.clock),
        membarrier(features.membarrier, release),
        futex_waitv(features.futex_waitv, release),
        noexec_seal(features.noexec_seal, release),
        future_write(features.seals, release),
        pidfd(features.pidfd || features.peer_pidfd, release),
        peer_pidfd(features, release),
        poller(features.futex_waitv),
        io_uring(features.io_uring),
    ]
}

/// What the sandbox of supervised services lacks here. Nothing else needs it.
pub(super) fn landlock(gaps: &[Unenforced]) -> Check {
    // The first says most: what is newer is missing as well.
    let Some(first) = gaps.first() else {
        return Check::new("landlock", State::Ok, "all that a sandbox asks for");
    };
    let more = match gaps.len() {
        1 => String::new(),
        count => format!("; and {} more", count - 1),
    };
    Check::new("landlock", State::Unused, format!("but by sandboxes: {first}{more}")).hint(
        "a newer kernel, with landlock among its security modules (`lsm=`), or another `user` for \
         each service: docs/security.md, \"On older kernels\"",
    )
}

/// What the sandbox's list of system calls needs, by what the kernel says that filters may do.
pub(super) fn seccomp(actions: &str) -> Check {
    let has = |action: &str| actions.split_whitespace().any(|it| it == action);
    match (has("errno"), has("user_notif")) {
        (true, true) => Check::new("seccomp", State::Ok, "all that a sandbox asks for"),
        (true, false) => Check::new(
            "seccomp",
            State::Unused,
            "but by sandboxes, which cannot tell the first exec from others here",
        )
        .hint("Linux 5.5 or newer: docs/security.md, \"One exec\""),
        (false, _) => Check::new("seccomp", State::Unused, "missing, or /proc does not tell of it")
            .hint(
                "a kernel with CONFIG_SECCOMP_FILTER; services start with `sandbox = false` only",
            ),
    }
}

/// What limits on memory and CPU need, as far as a process like this one may have it.
pub(super) fn cgroup(gaps: &[&str]) -> Check {
    if gaps.is_empty() {
        return Check::new("cgroup", State::Ok, "services' memory and CPU can be limited");
    }
    let found = format!("not for services here: {} would not be enforced", gaps.join(" and "));
    Check::new("cgroup", State::Unused, found).hint(
        "start ipcd in a cgroup that it may write: as root, or with systemd's Delegate=yes; and as \
         the user that starts ipcd, ask again",
    )
}

fn clock(source: &str) -> Check {
    if source == "tsc" {
        return Check::new("clock", State::Ok, "invariant TSC");
    }
    Check::fallback(
        "clock",
        "no invariant TSC",
        "clock_gettime",
        "reading the time, once or twice a call, takes about three times as long",
    )
    .hint("on a virtual machine: let the host pass the invariant TSC on (`invtsc`)")
}

fn membarrier(there: bool, release: &Release) -> Check {
    if there {
        return MEMBARRIER.there();
    }
    MEMBARRIER.fallback(
        release,
        "a full fence at both ends of each channel of such a process",
        "a locked instruction with every message, or burst of messages, that is sent",
    )
}

fn futex_waitv(there: bool, release: &Release) -> Check {
    if there {
        return FUTEX_WAITV.there();
    }
    FUTEX_WAITV.fallback(
        release,
        "sleeping on the word that answers change, and looking at all else every 5 ms",
        "whoever waits for an answer wakes 200 times a second, and hears of a death or an \
         interruption up to 5 ms late; answers come at once",
    )
}

fn noexec_seal(there: bool, release: &Release) -> Check {
    if there {
        return NOEXEC_SEAL.there();
    }
    NOEXEC_SEAL.fallback(
        release,
        "mode 0600, without an execute bit",
        "no time; the user who runs the processes could give the bit back to a lane",
    )
}

fn future_write(there: bool, release: &Release) -> Check {
    if there {
        return FUTURE_WRITE.there();
    }
    FUTURE_WRITE.fallback(
        release,
        "sockets that the runtime passes, for all calls and messages",
        "a call takes four wake-ups of threads more; events, shared regions and loans are not to \
         be had",
    )
}

fn pidfd(there: bool, release: &Release) -> Check {
    if there {
        return PIDFD.there();
    }
    PIDFD.fallback(
        release,
        "life words that the kernel marks, and sockets that hang up",
        "the runtime, and servers asleep, miss a death while a forked child holds the sockets of \
         the dead",
    )
}

fn peer_pidfd(features: Features, release: &Release) -> Check {
    match (features.peer_pidfd, features.pidfd) {
        (true, _) => PEER_PIDFD.there(),
        (false, true) => PEER_PIDFD.fallback(
            release,
            "pidfd_open, and a look whether the socket is still connected",
            "two system calls more when a process connects",
        ),
        (false, false) => {
            PEER_PIDFD.fallback(release, "what is used for pidfd", "what that costs, no more")
        }
    }
}

fn poller(has_waitv: bool) -> Check {
    let found = if has_waitv { "epoll; with one channel, futex_waitv" } else { "epoll" };
    Check::new("poller", State::Ok, found)
}

fn io_uring(there: bool) -> Check {
    if there {
        return Check::new("io_uring", State::Ok, "there: ipc-queue writes its journals by it");
    }
    let found = "not there: ipc-queue writes its journals by pwrite and fdatasync";
    Check::new("io_uring", State::Unused, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: Features = Features {
        membarrier: true,
        futex_waitv: true,
        noexec_seal: true,
        seals: true,
        pidfd: true,
        peer_pidfd: true,
        io_uring: true,
        clock: "tsc",
    };

    fn states(features: Features) -> Vec<(&'static str, State)> {
        let checks = checks(features, &Release::of("6.18.1"));
        let odd = checks.iter().filter(|check| check.state > State::Unused);
        odd.map(|check| (check.name, check.state)).collect()
    }

    #[test]
    fn what_is_there_needs_no_fallback() {
        assert_eq!(states(EVERYTHING), []);
        assert_eq!(states(Features { io_uring: false, ..EVERYTHING }), []);
    }

    #[test]
    fn what_is_not_there_has_one_with_its_cost_and_a_hint() {
        let nothing = Features {
            membarrier: false,
            futex_waitv: false,
            noexec_seal: false,
            pidfd: false,
            peer_pidfd: false,
            clock: "clock_gettime",
            ..EVERYTHING
        };
        let checks = checks(nothing, &Release::of("4.4.0"));
        let fallbacks: Vec<_> =
            checks.iter().filter(|check| check.state == State::Fallback).collect();
        assert_eq!(fallbacks.len(), 6);
        for check in fallbacks {
            assert!(check.instead.is_some() && check.cost.is_some() && check.hint.is_some());
        }
    }

    #[test]
    fn without_seals_calls_go_over_sockets() {
        let without = Features { seals: false, ..EVERYTHING };
        assert_eq!(states(without), [("future_write", State::Fallback)]);
    }

    #[test]
    fn what_sandboxes_lack_is_said_and_hinders_nothing_else() {
        assert_eq!(landlock(&[]).state, State::Ok);
        assert_eq!(seccomp("kill_process errno user_notif allow").state, State::Ok);
        assert_eq!(seccomp("errno allow").state, State::Unused);
        assert_eq!(seccomp("").state, State::Unused);
        assert_eq!(cgroup(&[]).state, State::Ok);
        assert!(cgroup(&["limits.memory"]).found.contains("limits.memory"));
        let check = landlock(&[Unenforced::Truncation, Unenforced::SocketFiles]);
        assert_eq!(check.state, State::Unused);
        assert!(check.found.contains("older than ABI 3") && check.found.ends_with("and 1 more"));
        assert!(check.hint.is_some());
    }

    #[test]
    fn an_old_kernel_and_a_sandbox_are_told_apart() {
        let on = |release| FUTEX_WAITV.advice(&Release::of(release));
        assert_eq!(
            on("5.15.0-91-generic"),
            "Linux 5.16 and later have it; this is 5.15.0-91-generic"
        );
        assert!(on("5.16.0").contains("let its seccomp profile allow futex_waitv"));
        assert!(on("6.1.0").contains("sandbox"));
    }
}
