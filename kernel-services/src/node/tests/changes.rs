//! From one node to another.

use proptest::prelude::*;

use super::{super::*, any, node};

const OLD: &str = r#"
[service.store]
executable = "store"
[service.chain]
executable = "chain"
depends_on = ["store"]
limits = { open_files = 64 }
[service.api]
executable = "api"
depends_on = ["chain"]
"#;

fn said(new: &str) -> String {
    Change::between(&node(OLD), &node(new)).to_string()
}

#[test]
fn only_what_must_be_is_restarted() {
    assert_eq!(said(OLD), "changes nothing");
    assert_eq!(said(""), "stops api, chain, store");
    let add = |text: &str| said(&format!("{OLD}{text}"));
    assert_eq!(add("replicas = 2\nlog.keep = 1"), "updates api (replicas, log)");
    assert_eq!(add("arguments = ['x']\nquota.names = 1"), "restarts api (arguments, quota)");
    assert_eq!(add("limits.memory = '1GiB'"), "updates api (limits)");
    assert_eq!(add("limits = { memory = '1GiB', core = 1 }"), "restarts api (limits)");
    assert_eq!(
        add("[service.b]\nexecutable='b'\ndepends_on=['a']\n[service.a]\nexecutable='a'"),
        "starts a, b"
    );
    assert_eq!(
        add("[group.g]\nmembers=['api']\n[limits.user]\nnames=1\n[[rule]]\nfrom='any'\nto='any'\n\
             deny='call'"),
        "sets group, rule, limits.user"
    );
    assert_eq!(
        said(&format!("log_directory = 'x'\nmetrics = '127.0.0.1:1'\n{OLD}replicas = 2")),
        "restarts store (log_directory), chain (log_directory), api (log_directory, replicas); \
         sets log_directory, metrics"
    );
    // Neither comments nor order are anything to act on.
    let moved = "[service.api]\nexecutable='api'\ndepends_on=['chain']\n[service.chain]\n\
                 executable='./chain'\ndepends_on=['store']\nlimits.open_files=64 # a comment\n\
                 [service.store]\nexecutable='store'";
    assert_eq!(said(moved), "changes nothing");
}

proptest! {
    #[test]
    fn equal_nodes_ask_for_nothing(node in any::node()) {
        prop_assert!(Change::between(&node, &node.clone()).is_empty());
    }

    #[test]
    fn the_old_becomes_the_new_by_its_change(
        old in any::node(),
        other in any::node(),
        taken in any::<[u32; 7]>(),
    ) {
        let new = mixed(&old, &other, &taken);
        let change = Change::between(&old, &new);
        let mut became = applied(&old, &change, &new);
        became.services.sort_by(|one, another| one.name.cmp(&another.name));
        prop_assert_eq!(&became, &new);
        let mut touched: Vec<&String> = change.stopped.iter().chain(&change.started).collect();
        let differences = change.restarted.iter().chain(&change.updated);
        touched.extend(differences.clone().map(|it| &it.service));
        let all = touched.len();
        touched.sort();
        touched.dedup();
        prop_assert_eq!(touched.len(), all, "a service is in two lists: {:?}", change);
        prop_assert!(differences.clone().all(|it| !it.keys.is_empty()));
        // What must start anew says why, in a key of which that is known.
        let born = ["executable", "arguments", "environment", "directory", "user", "cpus",
            "numa_node", "limits", "sandbox", "log_directory"];
        prop_assert!(change.restarted.iter().all(|it| born.contains(&it.keys[0])));
    }
}

/// Returns the old node with some parts of the other one; services stay sorted by name.
fn mixed(old: &Node, other: &Node, taken: &[u32; 7]) -> Node {
    let mut services = Vec::new();
    for (index, mask) in taken.iter().take(6).enumerate() {
        let name = format!("s{index}");
        let find = |node: &Node| node.services.iter().find(|it| it.name == name).cloned();
        match (find(old), find(other)) {
            (Some(mut service), Some(other)) => {
                // Mostly few keys, so that each decides now and then.
                for (bit, key) in KEYS.iter().enumerate().filter(|_| mask % 3 > 0) {
                    if mask.rotate_left(7) & mask & (1 << bit) != 0 {
                        copy(&mut service, key, &other);
                    }
                }
                services.push(service);
            }
            (one, another) => services.extend(one.or(another).filter(|_| mask % 2 == 0)),
        }
    }
    let mut new = Node { services, warnings: Vec::new(), ..old.clone() };
    for (bit, key) in SETTINGS.iter().enumerate() {
        if taken[6] & (1 << bit) != 0 {
            set(&mut new, key, other);
        }
    }
    new
}

/// Does what the change says, and nothing else.
fn applied(old: &Node, change: &Change, new: &Node) -> Node {
    let find = |name: &String| {
        new.services.iter().find(|it| it.name == *name).expect("the change speaks of it")
    };
    let mut node = old.clone();
    node.services.retain(|service| !change.stopped.contains(&service.name));
    node.services.extend(change.started.iter().map(|name| find(name).clone()));
    for difference in change.restarted.iter().chain(&change.updated) {
        let mut services = node.services.iter_mut();
        let service =
            services.find(|it| it.name == difference.service).expect("the change speaks of it");
        for key in difference.keys.iter().filter(|key| **key != "log_directory") {
            copy(service, key, find(&difference.service));
        }
    }
    for key in &change.settings {
        set(&mut node, key, new);
    }
    node
}

const KEYS: [&str; 19] = [
    "executable",
    "arguments",
    "environment",
    "directory",
    "provides",
    "depends_on",
    "replicas",
    "restart",
    "backoff",
    "readiness",
    "watchdog",
    "stop_within",
    "user",
    "cpus",
    "numa_node",
    "limits",
    "quota",
    "sandbox",
    "log",
];

fn copy(service: &mut Service, key: &str, from: &Service) {
    let from = from.clone();
    match key {
        "executable" => service.executable = from.executable,
        "arguments" => service.arguments = from.arguments,
        "environment" => service.environment = from.environment,
        "directory" => service.directory = from.directory,
        "provides" => service.provides = from.provides,
        "depends_on" => service.depends_on = from.depends_on,
        "replicas" => service.replicas = from.replicas,
        "restart" => service.restart = from.restart,
        "backoff" => service.backoff = from.backoff,
        "readiness" => service.readiness = from.readiness,
        "watchdog" => service.watchdog = from.watchdog,
        "stop_within" => service.stop_within = from.stop_within,
        "user" => service.user = from.user,
        "cpus" => service.cpus = from.cpus,
        "numa_node" => service.numa_node = from.numa_node,
        "limits" => service.limits = from.limits,
        "quota" => service.quota = from.quota,
        "sandbox" => service.sandbox = from.sandbox,
        "log" => service.log = from.log,
        other => panic!("no service has {other}"),
    }
}

const SETTINGS: [&str; 6] = ["log_directory", "metrics", "monitor", "group", "rule", "limits.user"];

fn set(node: &mut Node, key: &str, from: &Node) {
    let from = from.clone();
    match key {
        "log_directory" => node.log_directory = from.log_directory,
        "metrics" => node.metrics = from.metrics,
        "monitor" => node.monitor = from.monitor,
        "group" => node.groups = from.groups,
        "rule" => node.rules = from.rules,
        "limits.user" => node.user_limits = from.user_limits,
        other => panic!("no node has {other}"),
    }
}
