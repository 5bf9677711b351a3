//! What is right is read as it was meant; the example and the documentation show every key.

use std::{fs, path::PathBuf, time::Duration};

use proptest::prelude::*;

use super::{super::*, any, node, said, wrong};

#[test]
fn what_is_not_said_has_its_default() {
    let node = node("[service.a]\nexecutable = 'a'");
    let expected = Service {
        name: "a".to_owned(),
        executable: "/etc/ipc/a".into(),
        arguments: vec![],
        environment: std::collections::BTreeMap::new(),
        directory: "/etc/ipc".into(),
        provides: vec!["a".to_owned()],
        depends_on: vec![],
        replicas: 1,
        restart: Restart::Permanent,
        backoff: Backoff {
            first: Duration::from_millis(100),
            most: Duration::from_secs(10),
            factor: 2.0,
            jitter: 0.2,
            forget_after: Duration::from_mins(1),
        },
        readiness: Readiness { when: Ready::Answers, within: Duration::from_secs(10) },
        watchdog: None,
        stop_within: Duration::from_secs(5),
        user: None,
        cpus: None,
        numa_node: None,
        limits: Limits::default(),
        quota: Quota::default(),
        sandbox: Sandbox::On(Grants::default()),
        log: Log { format: LogFormat::Text, rotate_at: 16 << 20, keep: 3 },
    };
    assert_eq!(node.services, [expected]);
    let rest = Node { services: Vec::new(), ..node };
    assert_eq!(rest, Node { log_directory: "logs".into(), ..Node::default() });
}

#[test]
fn there_are_short_ways_to_say_things() {
    let node = node(
        r#"
        [service.prepare]
        executable = "/bin/true"
        readiness = "exits"
        sandbox = false
        watchdog = false
        [service.a]
        executable = "./bin/../a"
        watchdog = true
        sandbox = true
        cpus = "0-1,3"
        limits.core = "1MiB"
        log.rotate_at = 4096
        backoff.first = "20s"
        [[rule]]
        from = "user:root"
        to = "name:*"
        allow = "all"
        [[rule]]
        from = "service:a"
        to = "runtime"
        deny = ["admin"]
        [[route]]
        from = "service:a"
        to = "name:log*"
        session = "plain"
        [[route]]
        from = "any"
        to = "any"
        session = "encrypted"
        "#,
    );
    let [prepare, a] = &node.services[..] else { panic!("two services") };
    // What has ended well is not to begin again.
    assert_eq!(prepare.restart, Restart::Transient);
    assert_eq!((&prepare.sandbox, prepare.watchdog), (&Sandbox::Off, None));
    // `..` may lead through a link, and is left to the kernel.
    assert_eq!(a.executable, PathBuf::from("/etc/ipc/bin/../a"));
    let second = Duration::from_secs(1);
    assert_eq!(a.watchdog, Some(Watchdog { interval: second, timeout: second, failures: 3 }));
    assert_eq!(a.sandbox, Sandbox::default());
    assert_eq!(a.cpus, Some(vec![0, 1, 3]));
    assert_eq!((a.limits.core, a.log.rotate_at), (1 << 20, 4096));
    assert_eq!(
        (a.backoff.first, a.backoff.most),
        (Duration::from_secs(20), Duration::from_secs(20))
    );
    let any_to_all =
        Rule { subject: Subject::User(0), object: Object::Any, operations: 63, allow: true };
    let a_to_runtime = Rule {
        subject: Subject::Service("a".to_owned()),
        object: Object::Runtime,
        operations: 1 << 5,
        allow: false,
    };
    assert_eq!(node.rules, [any_to_all, a_to_runtime]);
    let to_logs = Route {
        subject: Subject::Service("a".to_owned()),
        object: Object::Name("log*".to_owned()),
        encrypted: false,
    };
    let others = Route { subject: Subject::Any, object: Object::Any, encrypted: true };
    assert_eq!(node.routes, [to_logs, others]);
}

#[test]
fn an_empty_table_says_nothing_and_one_key_leaves_the_rest() {
    let plain = "[service.a]\nexecutable = 'a'\n[group.g]\nmembers = ['a']\n";
    let empty = "[service.a]\nexecutable = 'a'\nbackoff = {}\nreadiness = {}\nlimits = {}\n\
                 quota = {}\nsandbox = {}\nlog = {}\n[group.g]\nmembers = ['a']\n\
                 intensity = {}\n[limits]\nuser = {}";
    assert_eq!(node(plain), node(empty));
    let service =
        |text: &str| node(&format!("[service.a]\nexecutable = 'a'\n{text}")).services.remove(0);
    assert_eq!(service("watchdog = {}"), service("watchdog = true"));
    let second = Duration::from_secs(1);
    let otherwise = service("");
    let factor = Backoff { factor: 3.0, ..otherwise.backoff };
    assert_eq!(service("backoff.factor = 3").backoff, factor);
    let keep = Log { keep: 0, ..otherwise.log };
    assert_eq!(service("log.keep = 0").log, keep);
    let within = Readiness { within: second, ..otherwise.readiness };
    assert_eq!(service("readiness.within = '1s'").readiness, within);
}

#[test]
fn services_keep_the_order_of_the_file() {
    let names = |text: &str| -> Vec<String> {
        node(text).services.into_iter().map(|service| service.name).collect()
    };
    assert_eq!(
        names(
            "[service.z]\nexecutable='x'\n[service.a]\nexecutable='x'\n[service.m]\nexecutable='x'"
        ),
        ["z", "a", "m"]
    );
    assert_eq!(names("[service]\nz.executable='x'\na.executable='x'\nz.replicas=2"), ["z", "a"]);
    assert_eq!(names("service = {z={executable='x'}, \"a\"={executable='x'}}"), ["z", "a"]);
}

fn tree(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the keys that a table takes, from what it says to one that it does not.
fn keys_after(text: &str) -> Vec<String> {
    let faults = wrong(&format!("{text}\nxxxxxxxxxxxxxxxx = 1"));
    let of_key = said(&faults).into_iter().find(|it| it.contains("xxxxxxxx")).expect("it is told");
    let (_, keys) = of_key.rsplit_once(" takes ").expect("it lists the keys");
    keys.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_example_and_the_documentation_show_every_key() {
    let example = tree("examples/node.toml");
    let chapter = tree("docs/supervision.md");
    let tables = [
        ("", "", 10),
        ("[monitor]", "monitor.", 2),
        ("[limits]", "limits.", 1),
        ("[limits.user]", "", 6),
        ("[service.a]", "", 19),
        ("[service.a.readiness]", "readiness.", 2),
        ("[service.a.backoff]", "backoff.", 5),
        ("[service.a.watchdog]", "watchdog.", 3),
        ("[service.a.limits]", "limits.", 6),
        ("[service.a.quota]", "", 6),
        ("[service.a.sandbox]", "sandbox.", 6),
        ("[service.a.log]", "log.", 3),
        ("[group.a]", "", 3),
        ("[group.a.intensity]", "intensity.", 2),
        ("[failover.a]", "", 3),
        ("[failover.a.health_check]", "health_check.", 4),
        ("[[rule]]", "", 4),
        ("[[route]]", "", 3),
        ("[[topic]]", "", 5),
    ];
    for (table, prefix, count) in tables {
        let keys = keys_after(table);
        assert_eq!(keys.len(), count, "{table}: {keys:?}");
        for key in keys {
            assert!(example.contains(&key), "examples/node.toml: show {key} of {table}");
            // A table is explained by itself, or by its keys.
            let shown = [
                format!("`{prefix}{key}`"),
                format!("`[{prefix}{key}]`"),
                format!("`[[{key}]]`"),
                format!("`[{key}."),
                format!("`{key}."),
            ];
            assert!(
                shown.iter().any(|shown| chapter.contains(shown)),
                "docs/supervision.md: explain `{prefix}{key}` of {table}"
            );
        }
    }
}

#[test]
fn the_example_is_right() {
    let node = node(&tree("examples/node.toml"));
    assert_eq!(node.warnings, []);
    let names: Vec<&str> = node.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["prepare", "store", "index", "api", "batch"]);
    assert_eq!((node.groups.len(), node.rules.len()), (1, 6));
    assert_eq!(node.metrics, Some(Listener::Loopback(9464)));
    // What it says to be the default is: leaving it out changes nothing.
    let batch = node.services.last().expect("five");
    let parse = |text: &str| super::node(text).services.remove(0);
    let plain = parse("[service.batch]\nexecutable = 'bin/batch'");
    assert_eq!(*batch, plain);
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(node in any::node()) {
        let text = any::written(&node);
        let read = parse(&text, std::path::Path::new(super::FILE));
        let read = read.unwrap_or_else(|error| panic!("{error}\n\n{text}"));
        // Which rules are idle depends on the draw.
        prop_assert_eq!(Node { warnings: Vec::new(), rule_lines: Vec::new(), ..read }, node);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        refuse_or_take(&bytes);
    }

    #[test]
    fn any_text_of_the_format_s_signs_is_read_or_refused(
        text in r#"([a-z]{1,4}|[\[\]{}="'.,#\n\t\r 0-9é-]|service|group|rule|limits|user|=){0,60}"#,
    ) {
        refuse_or_take(text.as_bytes());
    }

    #[test]
    fn a_file_that_was_damaged_is_read_or_refused(
        node in any::node(),
        at in any::<prop::sample::Index>(),
        gone in 0..40_usize,
        instead in "[\\[\\]{}=\"'.,\n a0é-]{0,4}",
    ) {
        let mut bytes = any::written(&node).into_bytes();
        let at = at.index(bytes.len());
        let end = (at + gone).min(bytes.len());
        bytes.splice(at..end, instead.bytes());
        refuse_or_take(&bytes);
    }
}

/// Reads what may be anything, and shows what is wrong with it.
fn refuse_or_take(bytes: &[u8]) {
    match checked(bytes, std::path::Path::new("f"), Some(Absence::Fault)) {
        Ok(_) => {}
        Err(NodeError::Wrong { faults }) => {
            assert!(!faults.is_empty());
            let text = String::from_utf8_lossy(bytes);
            for fault in faults {
                let line = text.split('\n').nth(fault.line - 1).expect("the line is in the file");
                assert!(fault.column <= line.chars().count() + 1, "{fault}");
                assert!(fault.to_string().lines().count() == 4, "{fault}");
                assert!(!fault.hint.is_empty() && !fault.what.is_empty(), "{fault}");
            }
        }
        Err(other) => panic!("{other}"),
    }
}
