//! Any node that a file can describe, and its text.

use std::{fmt::Write, path::PathBuf, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select, strategy::Strategy};

use super::super::*;
use crate::security::Operation;

const INTO_TEXT: &str = "a string takes all";

/// Any checked node.
pub(super) fn node() -> impl Strategy<Value = Node> {
    let services = vec((option::weighted(0.7, service()), vec(any::<bool>(), 6)), 6);
    let groups = option::of((strategy(), any::<u8>(), millis()));
    let metrics = option::of(prop_oneof![
        (1..=u16::MAX).prop_map(Listener::Loopback),
        path().prop_map(Listener::Unix),
    ]);
    let seen = (metrics, monitor());
    let parts = (services, groups, vec(rule(), 0..4), topics(), quota(), path(), seen);
    parts.prop_map(|(drawn, group, rules, topics, user_limits, log_directory, seen)| {
        let mut services: Vec<Service> = Vec::new();
        for (index, (service, wanted)) in drawn.into_iter().enumerate() {
            let Some(mut service) = service else { continue };
            service.name = format!("s{index}");
            service.provides = service.provides.iter().map(|it| format!("s{index}/{it}")).collect();
            let earlier = services.iter().zip(wanted).filter(|(_, wanted)| *wanted);
            service.depends_on = earlier.map(|(earlier, _)| earlier.name.clone()).collect();
            services.push(service);
        }
        let members: Vec<String> = services.iter().map(|it| it.name.clone()).take(3).collect();
        let group = group.filter(|_| !members.is_empty());
        let groups = group.into_iter().map(|(strategy, restarts, within)| Group {
            name: "core".to_owned(),
            members: members.clone(),
            strategy,
            intensity: Intensity { restarts: restarts.into(), within },
        });
        let groups = groups.collect();
        let failovers = failovers(&services);
        let ((metrics, monitor), warnings) = (seen, Vec::new());
        Node {
            services,
            groups,
            rules,
            rule_lines: Vec::new(),
            routes: Vec::new(),
            topics,
            failovers,
            user_limits,
            log_directory,
            metrics,
            monitor,
            warnings,
        }
    })
}

fn monitor() -> impl Strategy<Value = Monitor> {
    let names = select(vec!["api", "api*", "*"]).prop_map(|name| match name {
        "*" => Object::Any,
        name => Object::Name(name.to_owned()),
    });
    let otlp = option::of(select(vec!["http://127.0.0.1:4318", "http://[::1]:9/x"]));
    (vec(names, 0..3), otlp).prop_map(|(payloads, otlp)| {
        let otlp = otlp.map(|it| it.parse().expect("a collector"));
        Monitor { payloads, otlp }
    })
}

/// A failover for each second name that is provided.
fn failovers(services: &[Service]) -> Vec<Failover> {
    let provided = services.iter().flat_map(|it| it.provides.iter().map(move |name| (it, name)));
    let each = provided.enumerate().step_by(2).map(|(index, (service, name))| Failover {
        name: name.clone(),
        order: vec![service.name.clone()],
        strategy: ipc::FailoverStrategy::ALL[index % 5],
        health: ipc::HealthCheck { busy_ms: index as u32, ..ipc::HealthCheck::default() },
    });
    each.collect()
}

fn topics() -> impl Strategy<Value = Vec<Topic>> {
    let one = (64_u64..100_000, any::<bool>(), any::<bool>(), any::<bool>());
    vec(one, 0..3).prop_map(|drawn| {
        let topic = |(index, (event_bus_size, retained, reliable, has_id))| Topic {
            name: format!("topic-{index}"),
            id: bool::then_some(has_id, index + 1),
            event_bus_size,
            retained,
            reliable,
        };
        (0_u32..).zip(drawn).map(topic).collect()
    })
}

prop_compose! {
    fn service()(
        executable in path(),
        arguments in vec(text(), 0..3),
        environment in proptest::collection::btree_map("[A-Z_]{1,5}", text(), 0..3),
        directory in path(),
        provides in proptest::collection::btree_set("[a-z]{1,3}", 0..3),
        (replicas, restart, when) in (1..=64_u32, restart(), ready()),
        (within, stop_within, forget_after) in (millis(), millis(), millis()),
        (first, more, factor, jitter) in (millis(), millis(), 1.0..9.0_f64, 0.0..=1.0_f64),
        watchdog in option::of((millis(), millis(), 1..9_u32)),
        (user, cpus, numa_node) in (
            option::of(Just("root".to_owned())),
            option::of(proptest::collection::btree_set(0..1024_usize, 1..5)),
            option::of(0..4_u32),
        ),
        (limits, quota, sandbox) in (limits(), quota(), sandbox()),
        (json, rotate_at, keep) in (any::<bool>(), 1024..u64::MAX >> 1, 0..=1000_u32),
    ) -> Service {
        let exits = when == Ready::Exits;
        let endless = exits && restart == Restart::Permanent;
        let watchdog = watchdog.filter(|_| !exits);
        Service {
            name: String::new(),
            executable,
            arguments,
            environment,
            directory,
            provides: provides.into_iter().collect(),
            depends_on: Vec::new(),
            replicas,
            restart: if endless { Restart::Temporary } else { restart },
            backoff: Backoff { first, most: first + more, factor, jitter, forget_after },
            readiness: Readiness { when, within },
            watchdog: watchdog.map(|(interval, timeout, failures)| Watchdog {
                interval,
                timeout,
                failures,
            }),
            stop_within,
            user,
            cpus: cpus.map(|cpus| cpus.into_iter().collect()),
            numa_node,
            limits,
            quota,
            sandbox,
            log: Log {
                format: if json { LogFormat::Json } else { LogFormat::Text },
                rotate_at,
                keep,
            },
        }
    }
}

fn text() -> impl Strategy<Value = String> {
    "[ -~é\t\n]{0,6}"
}

fn path() -> impl Strategy<Value = PathBuf> {
    "/[a-z]{1,3}(/[a-zé]{1,3}){0,2}".prop_map(PathBuf::from)
}

fn millis() -> impl Strategy<Value = Duration> {
    (1..100_000_u64).prop_map(Duration::from_millis)
}

fn restart() -> impl Strategy<Value = Restart> {
    select(vec![Restart::Permanent, Restart::Transient, Restart::Temporary])
}

fn ready() -> impl Strategy<Value = Ready> {
    select(vec![Ready::Answers, Ready::Runs, Ready::Exits])
}

fn strategy() -> impl Strategy<Value = super::super::Strategy> {
    use super::super::Strategy::{OneForAll, OneForOne, RestForOne};
    select(vec![OneForOne, OneForAll, RestForOne])
}

fn rule() -> impl Strategy<Value = Rule> {
    // A service's existence is not to be arranged here: faults of it are tabled.
    let subject = prop_oneof![
        Just(Subject::Any),
        any::<u32>().prop_map(Subject::User),
        path().prop_map(Subject::Executable),
    ];
    let object = prop_oneof![
        Just(Object::Any),
        "[a-z]{1,3}[*]?".prop_map(Object::Name),
        Just(Object::Runtime),
    ];
    (subject, object, 1..64_u64, any::<bool>()).prop_map(|(subject, object, operations, allow)| {
        let operations = if object == Object::Runtime { 1 << 5 } else { operations };
        Rule { subject, object, operations, allow }
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    let size = || option::of(1 << 20..u64::MAX >> 1);
    let count = || option::of(16..u64::from(u32::MAX));
    (count(), size(), 0..1_u64 << 40, count(), size(), option::of(1..1000_u32)).prop_map(
        |(open_files, address_space, core, processes, memory, cpu_percent)| Limits {
            open_files,
            address_space,
            core,
            processes,
            memory,
            cpu_percent,
        },
    )
}

fn quota() -> impl Strategy<Value = Quota> {
    let count = || option::of(1..=u32::MAX);
    let bytes = option::of(0..u64::MAX >> 1);
    (count(), count(), count(), bytes, count(), count()).prop_map(
        |(names, channels, descriptors, shared_bytes, half_open, messages_per_second)| Quota {
            names,
            channels,
            descriptors,
            shared_bytes,
            half_open,
            messages_per_second,
        },
    )
}

fn sandbox() -> impl Strategy<Value = Sandbox> {
    let paths = || vec(path(), 0..3);
    let ports = || vec(1..=u16::MAX, 0..3);
    let calls = vec(select(vec!["openat", "socket", "clone3"]).prop_map(str::to_owned), 0..2);
    let grants = (paths(), paths(), paths(), ports(), ports(), calls);
    option::of(grants).prop_map(|grants| {
        let Some((read, write, execute, connect_tcp, bind_tcp, system_calls)) = grants else {
            return Sandbox::Off;
        };
        Sandbox::On(Grants { read, write, execute, connect_tcp, bind_tcp, system_calls })
    })
}

/// Writes a node as a file that says everything.
pub(super) fn written(node: &Node) -> String {
    let mut out = format!("log_directory = {}\n", quoted(path_text(&node.log_directory)));
    match &node.metrics {
        Some(Listener::Unix(path)) => {
            put(&mut out, "metrics", &quoted(&format!("unix:{}", path_text(path))));
        }
        Some(Listener::Loopback(port)) => {
            put(&mut out, "metrics", &format!("\"127.0.0.1:{port}\""));
        }
        None => {}
    }
    let name = |object: &Object| match object {
        Object::Name(name) => format!("name:{name}"),
        _ => "any".to_owned(),
    };
    let payloads: Vec<String> = node.monitor.payloads.iter().map(name).collect();
    put(&mut out, "monitor.payloads", &list(&payloads));
    if let Some(collector) = &node.monitor.otlp {
        put(&mut out, "monitor.otlp", &quoted(&collector.to_string()));
    }
    for service in &node.services {
        write_service(&mut out, service);
    }
    for group in &node.groups {
        writeln!(out, "[group.{}]", group.name).expect(INTO_TEXT);
        put(&mut out, "members", &list(&group.members));
        put(&mut out, "strategy", &format!("\"{}\"", snake(&format!("{:?}", group.strategy))));
        let Intensity { restarts, within } = group.intensity;
        let within = time(within);
        put(&mut out, "intensity", &format!("{{ restarts = {restarts}, within = {within} }}"));
    }
    for failover in &node.failovers {
        writeln!(out, "[failover.{}]", quoted(&failover.name)).expect(INTO_TEXT);
        put(&mut out, "order", &list(&failover.order));
        put(&mut out, "strategy", &quoted(failover.strategy.word()));
        let ipc::HealthCheck { interval_ms, timeout_ms, threshold, busy_ms } = failover.health;
        let busy = if busy_ms == 0 { String::new() } else { format!(", busy = '{busy_ms}ms'") };
        let health = format!(
            "{{ interval = '{interval_ms}ms', timeout = '{timeout_ms}ms', \
             threshold = {threshold}{busy} }}"
        );
        put(&mut out, "health_check", &health);
    }
    for rule in &node.rules {
        write_rule(&mut out, rule);
    }
    for topic in &node.topics {
        out.push_str("[[topic]]\n");
        put(&mut out, "name", &quoted(&topic.name));
        if let Some(id) = topic.id {
            put(&mut out, "id", &id.to_string());
        }
        put(&mut out, "event_bus_size", &topic.event_bus_size.to_string());
        put(&mut out, "retained", if topic.retained { "'always'" } else { "'publisher'" });
        put(&mut out, "mode", if topic.reliable { "'reliable'" } else { "'lossy'" });
    }
    write!(out, "[limits]\nuser = {}", quota_text(node.user_limits)).expect(INTO_TEXT);
    out
}

fn write_service(out: &mut String, it: &Service) {
    writeln!(out, "[service.{}]", it.name).expect(INTO_TEXT);
    put(out, "executable", &quoted(path_text(&it.executable)));
    put(out, "arguments", &list(&it.arguments));
    for (name, value) in &it.environment {
        writeln!(out, "environment.{name} = {}", quoted(value)).expect(INTO_TEXT);
    }
    put(out, "directory", &quoted(path_text(&it.directory)));
    put(out, "provides", &list(&it.provides));
    put(out, "depends_on", &list(&it.depends_on));
    put(out, "replicas", &it.replicas.to_string());
    put(out, "restart", &format!("\"{}\"", snake(&format!("{:?}", it.restart))));
    let Backoff { first, most, factor, jitter, forget_after } = it.backoff;
    put(out, "backoff.first", &time(first));
    put(out, "backoff.most", &time(most));
    put(out, "backoff.factor", &format!("{factor:?}"));
    put(out, "backoff.jitter", &format!("{jitter:?}"));
    put(out, "backoff.forget_after", &time(forget_after));
    put(out, "readiness.when", &format!("\"{}\"", snake(&format!("{:?}", it.readiness.when))));
    put(out, "readiness.within", &time(it.readiness.within));
    if let Some(Watchdog { interval, timeout, failures }) = it.watchdog {
        put(out, "watchdog.interval", &time(interval));
        put(out, "watchdog.timeout", &time(timeout));
        put(out, "watchdog.failures", &failures.to_string());
    }
    put(out, "stop_within", &time(it.stop_within));
    if let Some(user) = &it.user {
        put(out, "user", &quoted(user));
    }
    if let Some(cpus) = &it.cpus {
        put(out, "cpus", &format!("{cpus:?}"));
    }
    let numa_node = it.numa_node.map(u64::from);
    number(out, "numa_node", numa_node);
    let Limits { open_files, address_space, core, processes, memory, cpu_percent } = it.limits;
    number(out, "limits.open_files", open_files);
    number(out, "limits.address_space", address_space);
    number(out, "limits.core", Some(core));
    number(out, "limits.processes", processes);
    number(out, "limits.memory", memory);
    number(out, "limits.cpu_percent", cpu_percent.map(u64::from));
    put(out, "quota", &quota_text(it.quota));
    write_sandbox(out, &it.sandbox);
    put(out, "log.format", &format!("\"{}\"", snake(&format!("{:?}", it.log.format))));
    put(out, "log.rotate_at", &format!("\"{}B\"", it.log.rotate_at));
    put(out, "log.keep", &it.log.keep.to_string());
}

fn write_sandbox(out: &mut String, sandbox: &Sandbox) {
    let Sandbox::On(grants) = sandbox else {
        return put(out, "sandbox", "false");
    };
    let paths = |paths: &[PathBuf]| {
        list(&paths.iter().map(|it| path_text(it).to_owned()).collect::<Vec<_>>())
    };
    put(out, "sandbox.read", &paths(&grants.read));
    put(out, "sandbox.write", &paths(&grants.write));
    put(out, "sandbox.execute", &paths(&grants.execute));
    put(out, "sandbox.connect_tcp", &format!("{:?}", grants.connect_tcp));
    put(out, "sandbox.bind_tcp", &format!("{:?}", grants.bind_tcp));
    put(out, "sandbox.system_calls", &list(&grants.system_calls));
}

fn write_rule(out: &mut String, rule: &Rule) {
    let from = match &rule.subject {
        Subject::Any => "any".to_owned(),
        Subject::Service(name) => format!("service:{name}"),
        Subject::User(id) => format!("user:{id}"),
        Subject::Executable(path) => format!("executable:{}", path_text(path)),
    };
    let to = match &rule.object {
        Object::Any => "any".to_owned(),
        Object::Name(name) => format!("name:{name}"),
        Object::Runtime => "runtime".to_owned(),
    };
    let within = Operation::ALL.into_iter().filter(|it| rule.operations & it.bit() != 0);
    let words = within.map(|it| it.name().to_owned());
    let verb = if rule.allow { "allow" } else { "deny" };
    out.push_str("[[rule]]\n");
    put(out, "from", &quoted(&from));
    put(out, "to", &quoted(&to));
    put(out, verb, &list(&words.collect::<Vec<_>>()));
}

fn quota_text(quota: Quota) -> String {
    let Quota { names, channels, descriptors, shared_bytes, half_open, messages_per_second } =
        quota;
    let parts = [
        ("names", names.map(u64::from)),
        ("channels", channels.map(u64::from)),
        ("descriptors", descriptors.map(u64::from)),
        ("shared_bytes", shared_bytes),
        ("half_open", half_open.map(u64::from)),
        ("messages_per_second", messages_per_second.map(u64::from)),
    ];
    let said = parts.iter().filter_map(|(key, value)| Some(format!("{key} = {}", (*value)?)));
    format!("{{ {} }}", said.collect::<Vec<_>>().join(", "))
}

fn put(out: &mut String, key: &str, value: &str) {
    writeln!(out, "{key} = {value}").expect(INTO_TEXT);
}

fn number(out: &mut String, key: &str, value: Option<u64>) {
    if let Some(value) = value {
        put(out, key, &value.to_string());
    }
}

fn time(duration: Duration) -> String {
    format!("\"{}ms\"", duration.as_millis())
}

fn list(items: &[String]) -> String {
    format!("[{}]", items.iter().map(|it| quoted(it)).collect::<Vec<_>>().join(", "))
}

/// Quotes as TOML does, which Rust does likewise for what is drawn here.
fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn path_text(path: &std::path::Path) -> &str {
    path.to_str().expect("paths are drawn as text")
}

/// From `OneForAll` to `one_for_all`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for (index, letter) in name.char_indices() {
        if index > 0 && letter.is_uppercase() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}
