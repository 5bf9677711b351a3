//! What a new node file asks of a system that runs an old one: no more than it must.

use std::{collections::BTreeMap, fmt};

use super::{Limits, Node, Service, start_order, stop_order};

/// From one node to another: what is stopped, started, restarted, and merely taken over.
///
/// Services that are in none of the lists go on as they are. Dependents of a service that is
/// restarted are not: they find it again as they would after its death.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Services that are gone, in the order of stopping.
    pub stopped: Vec<String>,
    /// Services whose processes cannot become what they should be, in the order of starting; and
    /// the keys that say so, before those that would not.
    pub restarted: Vec<Difference>,
    /// Services that are new, in the order of starting.
    pub started: Vec<String>,
    /// Services that go on under other terms, in the order of the new file. Other `replicas` start
    /// or stop processes and leave the rest alone.
    pub updated: Vec<Difference>,
    /// What differs beside services: keys of the file.
    pub settings: Vec<&'static str>,
}

/// What differs in a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The service.
    pub service: String,
    /// Keys of its table; `log_directory`, too, where that is the reason.
    pub keys: Vec<&'static str>,
}

impl Change {
    /// Compares the node that runs with the one that is wanted.
    pub fn between(old: &Node, new: &Node) -> Change {
        let find = |node: &Node, name: &str| -> bool {
            node.services.iter().any(|service| service.name == name)
        };
        let was: BTreeMap<&str, &Service> =
            old.services.iter().map(|service| (service.name.as_str(), service)).collect();
        let moved = old.log_directory != new.log_directory;
        let mut change = Change { settings: settings(old, new), ..Change::default() };
        let stopping = stop_order(&old.services).into_iter().flatten();
        change.stopped =
            stopping.map(|it| it.name.clone()).filter(|name| !find(new, name)).collect();
        for service in start_order(&new.services).into_iter().flatten() {
            let Some(before) = was.get(service.name.as_str()) else {
                change.started.push(service.name.clone());
                continue;
            };
            let mut keys = restarting(before, service);
            if moved {
                // Its output goes where it was told at its start.
                keys.push("log_directory");
            }
            if !keys.is_empty() {
                keys.extend(lasting(before, service));
                change.restarted.push(Difference { service: service.name.clone(), keys });
            }
        }
        for service in &new.services {
            let Some(before) = was.get(service.name.as_str()) else { continue };
            let keys = lasting(before, service);
            if !keys.is_empty() && restarting(before, service).is_empty() && !moved {
                change.updated.push(Difference { service: service.name.clone(), keys });
            }
        }
        change
    }

    /// Tells whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        *self == Change::default()
    }
}

/// Says in a line what is done.
impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |list: &[Difference]| -> Vec<String> {
            let one = |it: &Difference| format!("{} ({})", it.service, it.keys.join(", "));
            list.iter().map(one).collect()
        };
        let settings: Vec<String> = self.settings.iter().map(|it| (*it).to_owned()).collect();
        let parts = [
            ("stops", self.stopped.clone()),
            ("restarts", listed(&self.restarted)),
            ("starts", self.started.clone()),
            ("updates", listed(&self.updated)),
            ("sets", settings),
        ];
        let said: Vec<String> = parts
            .into_iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(verb, list)| format!("{verb} {}", list.join(", ")))
            .collect();
        if said.is_empty() {
            out.write_str("changes nothing")
        } else {
            out.write_str(&said.join("; "))
        }
    }
}

/// Returns the keys in which two nodes differ beside their services.
fn settings(old: &Node, new: &Node) -> Vec<&'static str> {
    // In full, so that whoever adds a field decides here what its change means.
    let Node {
        groups,
        rules,
        routes,
        topics,
        failovers,
        user_limits,
        log_directory,
        metrics,
        monitor,
        ..
    } = old;
    differing(&[
        ("log_directory", *log_directory != new.log_directory),
        ("metrics", *metrics != new.metrics),
        ("monitor", *monitor != new.monitor),
        ("group", *groups != new.groups),
        ("rule", *rules != new.rules),
        ("route", *routes != new.routes),
        ("topic", *topics != new.topics),
        ("failover", *failovers != new.failovers),
        ("limits.user", *user_limits != new.user_limits),
    ])
}

/// Tells whether a process of the old terms is not one of the new.
pub(crate) fn needs_restart(old: &Service, new: &Service) -> bool {
    !restarting(old, new).is_empty()
}

/// Returns the keys that differ and say what a process is from its start.
fn restarting(old: &Service, new: &Service) -> Vec<&'static str> {
    differing(&[
        ("executable", old.executable != new.executable),
        ("arguments", old.arguments != new.arguments),
        ("environment", old.environment != new.environment),
        ("directory", old.directory != new.directory),
        ("user", old.user != new.user),
        // Threads inherit it from each other; it cannot be set for all of them at once.
        ("cpus", old.cpus != new.cpus),
        ("numa_node", old.numa_node != new.numa_node),
        // A limit that was lowered takes root to raise again.
        ("limits", of_process(old.limits) != of_process(new.limits)),
        ("sandbox", old.sandbox != new.sandbox),
    ])
}

/// Returns the keys that differ and that a process need not know of.
fn lasting(old: &Service, new: &Service) -> Vec<&'static str> {
    // In full, so that whoever adds a field decides here or above what its change means.
    let Service {
        name: _,
        executable: _,
        arguments: _,
        environment: _,
        directory: _,
        provides,
        depends_on,
        replicas,
        restart,
        backoff,
        readiness,
        watchdog,
        stop_within,
        user: _,
        cpus: _,
        numa_node: _,
        limits,
        quota,
        sandbox: _,
        log,
    } = old;
    let of_cgroup = |limits: Limits| (limits.memory, limits.cpu_percent);
    differing(&[
        ("provides", *provides != new.provides),
        ("depends_on", *depends_on != new.depends_on),
        ("replicas", *replicas != new.replicas),
        ("restart", *restart != new.restart),
        ("backoff", *backoff != new.backoff),
        ("readiness", *readiness != new.readiness),
        ("watchdog", *watchdog != new.watchdog),
        ("stop_within", *stop_within != new.stop_within),
        ("limits", {
            of_process(*limits) == of_process(new.limits)
                && of_cgroup(*limits) != of_cgroup(new.limits)
        }),
        ("quota", *quota != new.quota),
        ("log", *log != new.log),
    ])
}

/// Returns the limits that a process is born with.
fn of_process(limits: Limits) -> Limits {
    Limits { memory: None, cpu_percent: None, ..limits }
}

fn differing(list: &[(&'static str, bool)]) -> Vec<&'static str> {
    list.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect()
}
