//! What a node file says, once it is checked: plain values, with every default filled in.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use ipc::trace::Collector;

use super::Fault;
// A runtime without a node file has rights and quotas, too: they stand with what enforces them.
pub use crate::{
    events::Topic,
    quota::Quota,
    security::{Object, Route, Rule, Subject},
};

/// A whole node file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// In the order of the file. Names are unique; dependencies exist and have no cycle.
    pub services: Vec<Service>,
    /// In the order of the file. A service is in one group at most; one in none is its own, with
    /// the strategy and intensity of [`Group::alone`].
    pub groups: Vec<Group>,
    /// Who may do what with whom; the first that matches decides.
    pub rules: Vec<Rule>,
    /// The line at which each rule begins; may be shorter than the rules.
    pub rule_lines: Vec<u32>,
    /// Which channels are encrypted; the first that matches decides.
    pub routes: Vec<Route>,
    /// Topics of events, in the order of the file.
    pub topics: Vec<Topic>,
    /// Names that fail over otherwise than by default, in the order of the file.
    pub failovers: Vec<Failover>,
    /// What a user's processes may hold together, beside what each service may.
    pub user_limits: Quota,
    /// Where logs stand. Relative, as the default `logs` is, it lies in the runtime directory; what
    /// a file says is absolute by now.
    pub log_directory: PathBuf,
    /// Where metrics are served; nowhere by default.
    pub metrics: Option<Listener>,
    /// What may be seen of it beyond counts and times, and where it goes.
    pub monitor: Monitor,
    /// What was allowed and yet looks wrong, to be shown to whoever wrote the file.
    pub warnings: Vec<Fault>,
}

/// What may be seen of a running node beyond counts and times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Monitor {
    /// Names whose traced requests may be shown with their payloads; none by default.
    pub payloads: Vec<Object>,
    /// Where ipcd sends spans of what it does; nowhere by default.
    pub otlp: Option<Collector>,
}

/// Where ipcd listens for who reads metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listener {
    /// A Unix socket, mode 0600.
    Unix(PathBuf),
    /// A port of 127.0.0.1.
    Loopback(u16),
}

/// One supervised program; as many processes as it has replicas.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// What it is called in the file, in `ipctl`, and in its log's name: 1 to 64 of
    /// `a-z A-Z 0-9 - _ .`, the first a letter or digit.
    pub name: String,
    /// Absolute; a relative one in the file begins at its directory, like every path there.
    pub executable: PathBuf,
    /// Without the executable itself.
    pub arguments: Vec<String>,
    /// All that it gets of an environment, beside `PATH` and what is
    /// `ipcd`'s to set: `IPC_RUNTIME_DIR`, `IPC_SERVICE` and `IPC_KEY_FILE`.
    pub environment: BTreeMap<String, String>,
    /// Its working directory, absolute; that of the node file by default.
    pub directory: PathBuf,
    /// The names that it alone may serve; its own by default.
    pub provides: Vec<String>,
    /// Services that must be ready before it starts, and that stop after it.
    pub depends_on: Vec<String>,
    /// Processes, 1 to 64.
    pub replicas: u32,
    /// When it is started again.
    pub restart: Restart,
    /// How long it waits before that.
    pub backoff: Backoff,
    /// When it counts as started.
    pub readiness: Readiness,
    /// How its hanging is found out, if at all.
    pub watchdog: Option<Watchdog>,
    /// How long it has between SIGTERM and SIGKILL.
    pub stop_within: Duration,
    /// The user it runs as; ipcd's own by default, and any other needs root.
    pub user: Option<String>,
    /// CPUs it may run on; all by default.
    pub cpus: Option<Vec<usize>>,
    /// The NUMA node whose CPUs and memory it uses.
    pub numa_node: Option<u32>,
    /// Limits that the kernel enforces.
    pub limits: Limits,
    /// Limits that ipcd enforces.
    pub quota: Quota,
    /// What it may do beside talking.
    pub sandbox: Sandbox,
    /// How its output is kept.
    pub log: Log,
}

/// When a process that ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// Always.
    #[default]
    Permanent,
    /// Unless it ended with exit code 0.
    Transient,
    /// Never.
    Temporary,
}

/// How long before the next start: `first * factor^n`, at most `most`, less up to `jitter` of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Before the first restart.
    pub first: Duration,
    /// The longest.
    pub most: Duration,
    /// At least 1.
    pub factor: f64,
    /// The share of each delay that is drawn at random, 0 to 1.
    pub jitter: f64,
    /// After so long alive the next end counts as the first again.
    pub forget_after: Duration,
}

/// When a service counts as started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// What it waits for.
    pub when: Ready,
    /// Later than that, the start has failed.
    pub within: Duration,
}

/// What makes a service ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ready {
    /// It serves all that it provides, and has answered a ping.
    #[default]
    Answers,
    /// Its process runs.
    Runs,
    /// It has ended with exit code 0: for preparations.
    Exits,
}

/// A service is hung once `failures` pings in a row, one each `interval`, had no answer in
/// `timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchdog {
    /// Between pings.
    pub interval: Duration,
    /// For each answer.
    pub timeout: Duration,
    /// In a row.
    pub failures: u32,
}

/// Who serves a name in place of one that does not any more, and when one that does is passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failover {
    /// The name.
    pub name: String,
    /// Services that provide it, the primary first; others that do come behind.
    pub order: Vec<String>,
    /// Who is next.
    pub strategy: ipc::FailoverStrategy,
    /// When who serves is suspected.
    pub health: ipc::HealthCheck,
}

/// Services that share a fate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// As shown.
    pub name: String,
    /// Names of services, in the order of starting.
    pub members: Vec<String>,
    /// Who is restarted when one ends.
    pub strategy: Strategy,
    /// How often, before the group gives up.
    pub intensity: Intensity,
}

impl Group {
    /// Makes the group of a service that is in none.
    pub fn alone(service: &str) -> Group {
        Group {
            name: service.to_owned(),
            members: vec![service.to_owned()],
            strategy: Strategy::OneForOne,
            intensity: Intensity::default(),
        }
    }
}

/// Who is restarted when a member of a group ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// It alone.
    #[default]
    OneForOne,
    /// All members.
    OneForAll,
    /// It, and those after it in the group.
    RestForOne,
}

/// A group gives up when it needs more than `restarts` in any `within`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intensity {
    /// As many are granted.
    pub restarts: u32,
    /// In a window of this length.
    pub within: Duration,
}

impl Default for Intensity {
    fn default() -> Intensity {
        Intensity { restarts: 5, within: Duration::from_secs(30) }
    }
}

/// What the kernel holds a process to; `None` is what ipcd itself has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `RLIMIT_NOFILE`; at least 16.
    pub open_files: Option<u64>,
    /// `RLIMIT_AS`, in bytes.
    pub address_space: Option<u64>,
    /// `RLIMIT_CORE`, in bytes; 0 by default.
    pub core: u64,
    /// `RLIMIT_NPROC`, which counts the user's processes.
    pub processes: Option<u64>,
    /// The cgroup's memory limit, in bytes, where there is one.
    pub memory: Option<u64>,
    /// The cgroup's share of one CPU, in percent, where there is one.
    pub cpu_percent: Option<u32>,
}

/// What a process may do beside talking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Anything its user may.
    Off,
    /// Only what an IPC service needs, and what is listed.
    On(Grants),
}

impl Default for Sandbox {
    fn default() -> Sandbox {
        Sandbox::On(Grants::default())
    }
}

/// What a sandboxed process gets beside talking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Files and directories it may read.
    pub read: Vec<PathBuf>,
    /// Files and directories it may read and write.
    pub write: Vec<PathBuf>,
    /// Files and directories it may execute, beside its own executable and the shared libraries.
    pub execute: Vec<PathBuf>,
    /// TCP ports it may connect to.
    pub connect_tcp: Vec<u16>,
    /// TCP ports it may bind.
    pub bind_tcp: Vec<u16>,
    /// System calls beyond the default profile, by name.
    pub system_calls: Vec<String>,
}

/// How a service's output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// How `ipctl logs` shows its lines.
    pub format: LogFormat,
    /// A file longer than that is rotated.
    pub rotate_at: u64,
    /// Rotated files kept.
    pub keep: u32,
}

/// What the lines of a log are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text.
    #[default]
    Text,
    /// One JSON object a line, with `level`, `message` and whatever else.
    Json,
}
