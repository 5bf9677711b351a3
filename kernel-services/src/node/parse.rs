//! From the tables of a node file to its types. What one value alone can have wrong is found here;
//! what concerns several is found in `check`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use toml::de::{DeTable, DeValue};

use super::{
    Backoff, Grants, Group, Intensity, Limits, Listener, Log, LogFormat, Node, Quota, Readiness,
    Ready, Restart, Sandbox, Service, Strategy, Watchdog,
    failover::{FailoverPlaces, failover},
    fields::{Field, Reading, Span, Table, in_order},
    listener::NoListener,
    monitor,
    quantity::quoted,
    rules, topics,
};

/// A node, and where in the text its parts stand.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) node: Node,
    pub(super) services: Vec<ServicePlaces>,
    pub(super) groups: Vec<GroupPlaces>,
    pub(super) rules: Vec<RulePlaces>,
    pub(super) failovers: Vec<FailoverPlaces>,
}

/// Where the parts of a service stand.
#[derive(Default)]
pub(super) struct ServicePlaces {
    pub(super) name: Span,
    pub(super) executable: Span,
    pub(super) directory: Span,
    pub(super) provides: Vec<Span>,
    pub(super) depends_on: Vec<Span>,
    pub(super) system_calls: Vec<Span>,
}

/// Where the parts of a group stand.
pub(super) struct GroupPlaces {
    pub(super) name: Span,
    pub(super) members: Vec<Span>,
}

/// Where a rule stands, and whom it is about.
pub(super) struct RulePlaces {
    pub(super) whole: Span,
    pub(super) from: Span,
}

/// Longest name of a service or group: it names a log file, and stands in tables.
const MAX_NAME: usize = 64;

/// Reads the whole document.
pub(super) fn document(reading: &mut Reading, root: &DeTable<'_>) -> Draft {
    let mut draft = Draft::default();
    let mut table = Table::root(root);
    // Relative to the runtime directory, which the file does not know.
    draft.node.log_directory = table
        .read(reading, "log_directory", Reading::path)
        .unwrap_or_else(|| PathBuf::from("logs"));
    draft.node.metrics = table.read(reading, "metrics", listener);
    draft.node.monitor = table.read(reading, "monitor", monitor::monitor).unwrap_or_default();
    for (at, field, name) in named_tables(reading, &mut table, "service") {
        let (service, places) = service(reading, at, field, name);
        draft.node.services.push(service);
        draft.services.push(places);
    }
    for (at, field, name) in named_tables(reading, &mut table, "group") {
        let (group, places) = group(reading, at, field, &name);
        draft.node.groups.push(group);
        draft.groups.push(places);
    }
    for (at, field, name) in named_tables(reading, &mut table, "failover") {
        let (failover, places) = failover(reading, at, field, &name);
        draft.node.failovers.push(failover);
        draft.failovers.push(places);
    }
    let rules = table.read(reading, "rule", |reading, field| {
        if let DeValue::Array(_) = field.value.get_ref() {
            return Some(reading.list(field, rules::rule));
        }
        reading.mistyped(field, "a list", "begin each with [[rule]]");
        None
    });
    for ((rule, from), whole) in rules.unwrap_or_default() {
        draft.node.rules.push(rule);
        draft.rules.push(RulePlaces { whole, from });
    }
    let routes = table.read(reading, "route", |reading, field| {
        if let DeValue::Array(_) = field.value.get_ref() {
            return Some(reading.list(field, rules::route));
        }
        reading.mistyped(field, "a list", "begin each with [[route]]");
        None
    });
    draft.node.routes = routes.unwrap_or_default().into_iter().map(|(route, _)| route).collect();
    draft.node.topics = topics::topics(reading, &mut table);
    let limits = table.read(reading, "limits", |reading, field| {
        let mut table = Table::open(reading, field, "[limits]".to_owned())?;
        let user = table.read(reading, "user", |reading, field| {
            quota(reading, field, "[limits.user]".to_owned())
        });
        table.close(reading);
        user
    });
    draft.node.user_limits = limits.unwrap_or_default();
    table.close(reading);
    draft
}

/// Reads `[KEY.NAME]` tables in the order of the file, with the places of their names.
fn named_tables<'t>(
    reading: &mut Reading,
    root: &mut Table<'t>,
    key: &'static str,
) -> Vec<(Span, Field<'t>, String)> {
    let entries = root.read(reading, key, |reading, field| {
        if let DeValue::Table(entries) = field.value.get_ref() {
            return Some(in_order(entries));
        }
        let hint = format!("begin each with [{key}.NAME]");
        reading.mistyped(field, "tables with names", &hint);
        None
    });
    let mut tables = Vec::new();
    for (at, field) in entries.unwrap_or_default() {
        // A failover is of a name that is served, which can be any.
        if key != "failover" {
            check_name(reading, key, at.clone(), field.key);
        }
        tables.push((at, field, field.key.to_owned()));
    }
    tables
}

fn check_name(reading: &mut Reading, what: &str, at: Span, name: &str) {
    let is_fit = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let begins_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    if name.len() > MAX_NAME {
        let what = format!("the {what}'s name is {} bytes long", name.len());
        reading.fault(at, what, format!("at most {MAX_NAME} fit: shorten it"));
    } else if !begins_well || !name.chars().all(is_fit) {
        let what = format!("{} cannot name a {what}", quoted(name));
        let hint = "names consist of a-z A-Z 0-9 - _ . and begin with a letter or digit";
        reading.fault(at, what, hint);
    }
}

fn service(
    reading: &mut Reading,
    at: Span,
    field: Field<'_>,
    name: String,
) -> (Service, ServicePlaces) {
    let title = format!("[service.{name}]");
    let mut places = ServicePlaces {
        name: at.clone(),
        provides: vec![at.clone()],
        executable: at.clone(),
        directory: at.clone(),
        ..ServicePlaces::default()
    };
    let mut service = defaults(name, reading.base.clone());
    let Some(mut table) = Table::open(reading, field, title.clone()) else {
        return (service, places);
    };
    program(reading, &mut table, &title, &mut service, &mut places);
    relations(reading, &mut table, &mut service, &mut places);
    life(reading, &mut table, &mut service);
    silence(reading, &table, &service);
    bounds(reading, &mut table, &mut service, &mut places);
    table.close(reading);
    (service, places)
}

/// Returns a service of which the file says nothing but its name.
pub(super) fn defaults(name: String, directory: PathBuf) -> Service {
    Service {
        provides: vec![name.clone()],
        name,
        executable: PathBuf::new(),
        arguments: Vec::new(),
        environment: BTreeMap::new(),
        directory,
        depends_on: Vec::new(),
        replicas: 1,
        restart: Restart::default(),
        backoff: Backoff {
            first: Duration::from_millis(100),
            most: Duration::from_secs(10),
            factor: 2.0,
            jitter: 0.2,
            forget_after: Duration::from_mins(1),
        },
        readiness: Readiness { when: Ready::default(), within: Duration::from_secs(10) },
        watchdog: None,
        stop_within: Duration::from_secs(5),
        user: None,
        cpus: None,
        numa_node: None,
        limits: Limits::default(),
        quota: Quota::default(),
        sandbox: Sandbox::default(),
        log: Log { format: LogFormat::default(), rotate_at: 16 << 20, keep: 3 },
    }
}

/// What is started.
fn program(
    reading: &mut Reading,
    table: &mut Table<'_>,
    title: &str,
    service: &mut Service,
    places: &mut ServicePlaces,
) {
    let executable = table.read(reading, "executable", |reading, field| {
        places.executable = field.span();
        reading.path(field)
    });
    if !table.has("executable") {
        let what = format!("{title} has no executable");
        reading.fault(places.name.clone(), what, "write executable = \"path/of/the/program\"");
    }
    service.executable = executable.unwrap_or_default();
    service.arguments = values(table.list(reading, "arguments", Reading::string));
    service.environment = table.read(reading, "environment", environment).unwrap_or_default();
    let directory = table.read(reading, "directory", |reading, field| {
        places.directory = field.span();
        reading.path(field)
    });
    if let Some(directory) = directory {
        service.directory = directory;
    }
    service.user = table.read(reading, "user", user);
    service.cpus = table.read(reading, "cpus", Reading::cpus);
    let numa_node = table.read(reading, "numa_node", |it, field| it.number(field, (0, 1023)));
    service.numa_node = numa_node.map(|number| number as u32);
}

fn environment(reading: &mut Reading, field: Field<'_>) -> Option<BTreeMap<String, String>> {
    let DeValue::Table(entries) = field.value.get_ref() else {
        reading.mistyped(field, "a table", "write environment = { NAME = \"value\" }");
        return None;
    };
    let mut variables = BTreeMap::new();
    for (at, field) in in_order(entries) {
        let name = field.key;
        if name.is_empty() || name.contains(['=', '\0']) {
            let what = format!("{} cannot name a variable", quoted(name));
            reading.fault(at, what, "use letters, digits and _");
        } else if ["IPC_RUNTIME_DIR", "IPC_SERVICE", "IPC_KEY_FILE"].contains(&name) {
            reading.fault(at, format!("ipcd itself sets {name}"), "take it out");
        } else if let Some(value) = reading.string(field) {
            variables.insert(name.to_owned(), value);
        }
    }
    Some(variables)
}

fn user(reading: &mut Reading, field: Field<'_>) -> Option<String> {
    let name = reading.string(field)?;
    rules::user_id(reading, field.span(), &name).map(|_| name)
}

/// What it is to the others.
fn relations(
    reading: &mut Reading,
    table: &mut Table<'_>,
    service: &mut Service,
    places: &mut ServicePlaces,
) {
    let provides = table.list(reading, "provides", served_name);
    if table.has("provides") {
        (service.provides, places.provides) = provides.into_iter().unzip();
    }
    let depends_on = table.list(reading, "depends_on", Reading::string);
    (service.depends_on, places.depends_on) = depends_on.into_iter().unzip();
    let replicas = table.read(reading, "replicas", |it, field| it.number(field, (1, 64)));
    service.replicas = replicas.unwrap_or(1) as u32;
}

fn served_name(reading: &mut Reading, field: Field<'_>) -> Option<String> {
    let name = reading.string(field)?;
    let fault = ipc::control::check_name(&name).err();
    if let Some(reason) = fault {
        let what = format!("{} cannot be served: {reason}", quoted(&name));
        reading.fault(field.span(), what, "choose another name");
    } else if name.ends_with('*') {
        let what = format!("{} ends in *, which rules take for a prefix", quoted(&name));
        reading.fault(field.span(), what, "choose another name");
    }
    Some(name).filter(|name| fault.is_none() && !name.ends_with('*'))
}

/// When it is started, watched, restarted and stopped.
fn life(reading: &mut Reading, table: &mut Table<'_>, service: &mut Service) {
    const RESTARTS: &[(&str, Restart)] = &[
        ("permanent", Restart::Permanent),
        ("transient", Restart::Transient),
        ("temporary", Restart::Temporary),
    ];
    if let Some(readiness) = table.read(reading, "readiness", readiness) {
        service.readiness = readiness;
    }
    let restart = table.read(reading, "restart", |it, field| it.choice(field, RESTARTS));
    let exits = service.readiness.when == Ready::Exits;
    // What is done when it has ended well must not begin again because it has.
    let otherwise = if exits { Restart::Transient } else { Restart::Permanent };
    service.restart = restart.unwrap_or(otherwise);
    let endless = exits && service.restart == Restart::Permanent;
    if let Some(at) = table.place("restart").filter(|_| endless) {
        let what = "a service that is ready when it exits would be restarted for ever".to_owned();
        reading.fault(at, what, "use restart = \"transient\", or another readiness");
    }
    if let Some(backoff) =
        table.read(reading, "backoff", |reading, field| backoff(reading, field, service.backoff))
    {
        service.backoff = backoff;
    }
    service.watchdog = table.read(reading, "watchdog", watchdog);
    if let Some(at) = table.place("watchdog").filter(|_| exits && service.watchdog.is_some()) {
        let what = "a service that is ready when it exits answers no watchdog".to_owned();
        reading.fault(at, what, "take the watchdog out, or use another readiness");
    }
    if let Some(stop_within) = table.read(reading, "stop_within", Reading::duration) {
        service.stop_within = stop_within;
    }
}

/// Warns where answers are waited for that a service cannot give, since it has no name.
fn silence(reading: &mut Reading, table: &Table<'_>, service: &Service) {
    let Some(at) = table.place("provides").filter(|_| service.provides.is_empty()) else { return };
    if service.readiness.when == Ready::Answers {
        let what = "a service that provides nothing answers nobody: it is never ready".to_owned();
        let hint = "write readiness = \"runs\" or \"exits\", or name what it serves";
        reading.warn(at.clone(), what, hint);
    }
    if service.watchdog.is_some() && service.readiness.when != Ready::Exits {
        let what = "a service that provides nothing answers no watchdog: it is killed".to_owned();
        reading.warn(at, what, "take the watchdog out, or name what it serves");
    }
}

fn readiness(reading: &mut Reading, field: Field<'_>) -> Option<Readiness> {
    const WHEN: &[(&str, Ready)] =
        &[("answers", Ready::Answers), ("runs", Ready::Runs), ("exits", Ready::Exits)];
    let within = Duration::from_secs(10);
    if let DeValue::String(_) = field.value.get_ref() {
        return Some(Readiness { when: reading.choice(field, WHEN)?, within });
    }
    let mut table = Table::open(reading, field, "readiness".to_owned())?;
    let when = table.read(reading, "when", |it, field| it.choice(field, WHEN));
    let within = table.read(reading, "within", Reading::duration).unwrap_or(within);
    table.close(reading);
    Some(Readiness { when: when.unwrap_or_default(), within })
}

fn backoff(reading: &mut Reading, field: Field<'_>, otherwise: Backoff) -> Option<Backoff> {
    let mut table = Table::open(reading, field, "backoff".to_owned())?;
    let first = table.read(reading, "first", Reading::duration).unwrap_or(otherwise.first);
    let most = table.read(reading, "most", Reading::duration);
    let factor = table.read(reading, "factor", |it, field| it.real(field, (1.0, 1000.0)));
    let jitter = table.read(reading, "jitter", |it, field| it.real(field, (0.0, 1.0)));
    let forget_after = table.read(reading, "forget_after", Reading::duration);
    table.close(reading);
    if let Some(most) = most.filter(|most| *most < first) {
        let what = format!("backoff: the longest, {most:?}, is shorter than the first, {first:?}");
        reading.fault(field.span(), what, "make most at least as long as first");
    }
    Some(Backoff {
        first,
        most: most.unwrap_or(otherwise.most.max(first)),
        factor: factor.unwrap_or(otherwise.factor),
        jitter: jitter.unwrap_or(otherwise.jitter),
        forget_after: forget_after.unwrap_or(otherwise.forget_after),
    })
}

fn watchdog(reading: &mut Reading, field: Field<'_>) -> Option<Watchdog> {
    let second = Duration::from_secs(1);
    let otherwise = Watchdog { interval: second, timeout: second, failures: 3 };
    if let DeValue::Boolean(on) = field.value.get_ref() {
        return on.then_some(otherwise);
    }
    let mut table = Table::open(reading, field, "watchdog".to_owned())?;
    let interval = table.read(reading, "interval", Reading::duration);
    let timeout = table.read(reading, "timeout", Reading::duration);
    let failures = table.read(reading, "failures", |it, field| it.number(field, (1, 1000)));
    table.close(reading);
    Some(Watchdog {
        interval: interval.unwrap_or(otherwise.interval),
        timeout: timeout.unwrap_or(otherwise.timeout),
        failures: failures.map_or(otherwise.failures, |number| number as u32),
    })
}

/// What it may use and do.
fn bounds(
    reading: &mut Reading,
    table: &mut Table<'_>,
    service: &mut Service,
    places: &mut ServicePlaces,
) {
    service.limits = table.read(reading, "limits", limits).unwrap_or_default();
    let quota = table.read(reading, "quota", |it, field| quota(it, field, "quota".to_owned()));
    service.quota = quota.unwrap_or_default();
    if let Some((sandbox, calls)) = table.read(reading, "sandbox", sandbox) {
        service.sandbox = sandbox;
        places.system_calls = calls;
    }
    let otherwise = service.log;
    let log = table.read(reading, "log", |reading, field| log(reading, field, otherwise));
    service.log = log.unwrap_or(otherwise);
}

fn limits(reading: &mut Reading, field: Field<'_>) -> Option<Limits> {
    let mut table = Table::open(reading, field, "limits".to_owned())?;
    let many = (1, u64::from(u32::MAX));
    let limits = Limits {
        // Fewer do not even carry the runtime's socket, a channel and the log.
        open_files: table.read(reading, "open_files", |it, field| it.number(field, (16, many.1))),
        address_space: table.read(reading, "address_space", |it, field| it.size(field, 1 << 20)),
        core: table.read(reading, "core", |it, field| it.size(field, 0)).unwrap_or(0),
        processes: table.read(reading, "processes", |it, field| it.number(field, many)),
        memory: table.read(reading, "memory", |it, field| it.size(field, 1 << 20)),
        cpu_percent: table
            .read(reading, "cpu_percent", |it, field| it.number(field, (1, 102_400)))
            .map(|percent| percent as u32),
    };
    table.close(reading);
    Some(limits)
}

fn quota(reading: &mut Reading, field: Field<'_>, title: String) -> Option<Quota> {
    let mut table = Table::open(reading, field, title)?;
    let mut count = |key, least| {
        let bounds = (least, u64::from(u32::MAX));
        let number = table.read(reading, key, |it, field| it.number(field, bounds));
        number.map(|number| number as u32)
    };
    let mut quota = Quota {
        names: count("names", 0),
        channels: count("channels", 0),
        descriptors: count("descriptors", 0),
        shared_bytes: None,
        // Without any it could not even greet.
        half_open: count("half_open", 1),
        messages_per_second: count("messages_per_second", 1),
    };
    quota.shared_bytes = table.read(reading, "shared_bytes", |it, field| it.size(field, 0));
    table.close(reading);
    Some(quota)
}

fn sandbox(reading: &mut Reading, field: Field<'_>) -> Option<(Sandbox, Vec<Span>)> {
    if let DeValue::Boolean(on) = field.value.get_ref() {
        let sandbox = if *on { Sandbox::default() } else { Sandbox::Off };
        return Some((sandbox, Vec::new()));
    }
    let mut table = Table::open(reading, field, "sandbox".to_owned())?;
    let port = |reading: &mut Reading, field: Field<'_>| {
        reading.number(field, (1, 65_535)).map(|port| port as u16)
    };
    let mut grants = Grants {
        read: values(table.list(reading, "read", Reading::path)),
        write: values(table.list(reading, "write", Reading::path)),
        execute: values(table.list(reading, "execute", Reading::path)),
        connect_tcp: values(table.list(reading, "connect_tcp", port)),
        bind_tcp: values(table.list(reading, "bind_tcp", port)),
        system_calls: Vec::new(),
    };
    let calls = table.list(reading, "system_calls", Reading::string);
    table.close(reading);
    let (names, places) = calls.into_iter().unzip();
    grants.system_calls = names;
    Some((Sandbox::On(grants), places))
}

fn log(reading: &mut Reading, field: Field<'_>, otherwise: Log) -> Option<Log> {
    const FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
    let mut table = Table::open(reading, field, "log".to_owned())?;
    let format = table.read(reading, "format", |it, field| it.choice(field, FORMATS));
    let rotate_at = table.read(reading, "rotate_at", |it, field| it.size(field, 1 << 10));
    let keep = table.read(reading, "keep", |it, field| it.number(field, (0, 1000)));
    table.close(reading);
    Some(Log {
        format: format.unwrap_or(otherwise.format),
        rotate_at: rotate_at.unwrap_or(otherwise.rotate_at),
        keep: keep.map_or(otherwise.keep, |number| number as u32),
    })
}

fn group(reading: &mut Reading, at: Span, field: Field<'_>, name: &str) -> (Group, GroupPlaces) {
    const STRATEGIES: &[(&str, Strategy)] = &[
        ("one_for_one", Strategy::OneForOne),
        ("one_for_all", Strategy::OneForAll),
        ("rest_for_one", Strategy::RestForOne),
    ];
    let title = format!("[group.{name}]");
    let mut group = Group { members: Vec::new(), ..Group::alone(name) };
    let mut places = GroupPlaces { name: at.clone(), members: Vec::new() };
    let Some(mut table) = Table::open(reading, field, title.clone()) else {
        return (group, places);
    };
    let members = table.list(reading, "members", Reading::string);
    (group.members, places.members) = members.into_iter().unzip();
    if group.members.is_empty() {
        reading.fault(at, format!("{title} has no members"), "write members = [\"SERVICE\", ...]");
    }
    let strategy = table.read(reading, "strategy", |it, field| it.choice(field, STRATEGIES));
    group.strategy = strategy.unwrap_or_default();
    group.intensity = table.read(reading, "intensity", intensity).unwrap_or_default();
    table.close(reading);
    (group, places)
}

fn intensity(reading: &mut Reading, field: Field<'_>) -> Option<Intensity> {
    let otherwise = Intensity::default();
    let mut table = Table::open(reading, field, "intensity".to_owned())?;
    let restarts = table.read(reading, "restarts", |it, field| it.number(field, (0, 1000)));
    let within = table.read(reading, "within", Reading::duration);
    table.close(reading);
    Some(Intensity {
        restarts: restarts.map_or(otherwise.restarts, |number| number as u32),
        within: within.unwrap_or(otherwise.within),
    })
}

fn listener(reading: &mut Reading, field: Field<'_>) -> Option<Listener> {
    match reading.text(field)?.parse() {
        Ok(Listener::Unix(path)) => Some(Listener::Unix(reading.resolve(&path.to_string_lossy()))),
        Ok(listener) => Some(listener),
        Err(NoListener { what }) => {
            reading.fault(field.span(), what, NoListener::HINT);
            None
        }
    }
}

fn values<T>(list: Vec<(T, Span)>) -> Vec<T> {
    list.into_iter().map(|(value, _)| value).collect()
}
