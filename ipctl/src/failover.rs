//! `ipctl failover`: which names have standbys, and which changed hands.

use std::{collections::HashMap, fmt};

use clap::{Args, Subcommand, ValueHint};
use ipc::{
    Config, HealthCheck, Node, NodeError, ServiceId, Standing, Status,
    control::{Cause, Change, Entry},
};
use serde::Serialize;

use crate::{
    failure::Failure,
    output::Output,
    service,
    table::{Align, Table},
};

const EXAMPLES: &str = "\
Examples:
  ipctl failover status            who serves, and who stands by, in their order
  ipctl failover trigger store     have the next in the order serve; no caller hears of it
  ipctl failover trigger store --to 17
  ipctl failover history           which names changed hands, why, and how long it took
  ipctl --json failover history | jq -r '.[].cause'

`status` says who is next, when who serves is suspected, and whether it is. `history` says how long
a suspicion took to be confirmed, who served to let go, and who serves to say that it does.

`trigger` returns when the other one serves. Who served finishes what it has taken, and stands by.
One that does not let go within two seconds is passed over.";

/// Show who stands by for a name, have it change hands, and show when it did
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the names that have standbys
    #[command(after_long_help = EXAMPLES)]
    Status,
    /// Have another instance serve a name
    #[command(after_long_help = EXAMPLES)]
    Trigger(Trigger),
    /// List the changes of hands that the runtime remembers
    #[command(after_long_help = EXAMPLES)]
    History,
}

#[derive(Args)]
struct Trigger {
    /// Name of the service
    #[arg(value_parser = service::name, value_hint = ValueHint::Other)]
    name: String,
    /// Instance that is to serve [default: the next in the order]
    #[arg(long, value_name = "INSTANCE")]
    to: Option<u32>,
}

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let node = Node::connect(config)?;
    match &arguments.command {
        Verb::Status => {
            let mut groups = Groups::new(node.list()?);
            for group in &mut groups.0 {
                // One that nobody serves any more has nothing to tell.
                group.standing = node.failover_standing(ServiceId::new(group.id)).ok();
            }
            if groups.0.is_empty() {
                output.remark("no standbys: each name is served by one process, or by none");
            }
            output.show(&groups)
        }
        Verb::Trigger(trigger) => {
            let name = || trigger.name.clone();
            let found = node.discover(&trigger.name);
            let id = found.map_err(|error| missing(error, Failure::NoService(name())))?;
            let done = node.trigger_failover(id, trigger.to.map(ServiceId::new));
            done.map_err(|error| match trigger.to {
                Some(to) => missing(error, Failure::NotStandby { name: name(), to }),
                None => missing(error, Failure::NoStandby(name())),
            })?;
            let changes = node.failovers()?;
            let last = changes.into_iter().rev().filter(|it| it.name == id).take(1);
            output.show(&History::new(last.collect(), node.list()?))
        }
        Verb::History => output.show(&History::new(node.failovers()?, node.list()?)),
    }
}

/// Says what is not there, where that is the error.
fn missing(error: NodeError, what: Failure) -> Failure {
    match error {
        NodeError::Refused(Status::NOT_FOUND) => what,
        error => error.into(),
    }
}

/// Who serves the names that have standbys.
#[derive(Serialize)]
struct Groups(Vec<Group>);

#[derive(Serialize)]
struct Group {
    name: String,
    serves: u32,
    pid: u32,
    standbys: Vec<u32>,
    #[serde(skip)]
    id: u32,
    #[serde(flatten, serialize_with = "stands")]
    standing: Option<Standing>,
}

/// How a name stands, for programs.
#[derive(Serialize)]
struct Stands {
    epoch: u64,
    strategy: &'static str,
    interval_ms: u32,
    timeout_ms: u32,
    threshold: u32,
    busy_ms: u32,
    configured: bool,
    suspected: bool,
    suspicions: u64,
}

#[allow(clippy::ref_option)] // as serde calls it
fn stands<S: serde::Serializer>(it: &Option<Standing>, to: S) -> Result<S::Ok, S::Error> {
    let told = it.map(|it| {
        let HealthCheck { interval_ms, timeout_ms, threshold, busy_ms } = it.health;
        let Standing { epoch, configured, suspected, suspicions, .. } = it;
        let strategy = it.strategy.word();
        Stands {
            epoch,
            strategy,
            interval_ms,
            timeout_ms,
            threshold,
            busy_ms,
            configured,
            suspected,
            suspicions,
        }
    });
    told.serialize(to)
}

impl Groups {
    fn new(mut entries: Vec<Entry>) -> Groups {
        entries.sort_by(|a, b| (&a.name, a.rank).cmp(&(&b.name, b.rank)));
        let mut groups: Vec<Group> = Vec::new();
        for entry in entries {
            let instance = entry.instance.get();
            match groups.last_mut() {
                Some(group) if group.name == entry.name => group.standbys.push(instance),
                _ => groups.push(Group {
                    name: entry.name,
                    serves: instance,
                    pid: entry.pid,
                    standbys: Vec::new(),
                    id: entry.name_id.get(),
                    standing: None,
                }),
            }
        }
        groups.retain(|group| !group.standbys.is_empty());
        Groups(groups)
    }
}

impl fmt::Display for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = [
            ("NAME", Align::Left),
            ("SERVES", Align::Right),
            ("PID", Align::Right),
            ("STANDBYS", Align::Left),
            ("STRATEGY", Align::Left),
            ("HEALTH CHECK", Align::Left),
            ("SUSPECTED", Align::Left),
        ];
        let mut table = Table::new(columns);
        for group in &self.0 {
            let standbys: Vec<String> = group.standbys.iter().map(u32::to_string).collect();
            table.row([
                group.name.clone(),
                group.serves.to_string(),
                group.pid.to_string(),
                standbys.join(" "),
                group.standing.map_or("-", |it| it.strategy.word()).to_owned(),
                group.standing.map_or_else(|| "-".to_owned(), |it| check(&it)),
                group.standing.map_or_else(|| "-".to_owned(), |it| suspected(&it)),
            ]);
        }
        table.fmt(f)
    }
}

/// When who serves is suspected, and when passed over.
fn check(standing: &Standing) -> String {
    let HealthCheck { interval_ms, timeout_ms, threshold, busy_ms } = standing.health;
    let busy = if busy_ms == 0 { String::new() } else { format!(", busy {busy_ms} ms") };
    let origin = if standing.configured { "" } else { " (default)" };
    format!("{interval_ms} ms, {threshold} x {timeout_ms} ms{busy}{origin}")
}

/// Whether it is, and how often it was.
fn suspected(standing: &Standing) -> String {
    let now = if standing.suspected { "now, " } else { "" };
    format!("{now}{} times", standing.suspicions)
}

/// What became of names.
#[derive(Serialize)]
struct History(Vec<Row>);

#[derive(Serialize)]
struct Row {
    number: u64,
    name: String,
    from: Option<u32>,
    to: u32,
    epoch: u64,
    cause: &'static str,
    /// From the order to the word that it is done; none where a standby went first.
    took_us: Option<u32>,
    /// From the first word of a suspicion to the runtime's own finding.
    detected_us: Option<u32>,
    /// From the runtime's word to that of who serves now that it does.
    promoted_us: Option<u32>,
}

impl History {
    /// Names that nobody serves any more are shown by their ids.
    fn new(changes: Vec<Change>, entries: Vec<Entry>) -> History {
        let names: HashMap<ServiceId, String> =
            entries.into_iter().map(|entry| (entry.name_id, entry.name)).collect();
        let row = |change: Change| Row {
            number: change.number,
            name: names.get(&change.name).cloned().unwrap_or_else(|| change.name.to_string()),
            from: Some(change.from.get()).filter(|id| *id != 0),
            to: change.to.get(),
            epoch: change.epoch,
            cause: cause(change.cause),
            took_us: Some(change.took_us).filter(|us| *us != 0),
            detected_us: Some(change.detected_us).filter(|us| *us != 0),
            promoted_us: Some(change.promoted_us).filter(|us| *us != 0),
        };
        History(changes.into_iter().map(row).collect())
    }
}

fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::First => "first",
        Cause::Died => "died",
        Cause::Left => "left",
        Cause::Triggered => "triggered",
        Cause::Hung => "hung",
        Cause::Preferred => "preferred",
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            ("NUMBER", Align::Right),
            ("NAME", Align::Left),
            ("FROM", Align::Right),
            ("TO", Align::Right),
            ("EPOCH", Align::Right),
            ("CAUSE", Align::Left),
            ("DETECTED", Align::Right),
            ("LET GO", Align::Right),
            ("PROMOTED", Align::Right),
        ]);
        for row in &self.0 {
            table.row([
                row.number.to_string(),
                row.name.clone(),
                row.from.map_or_else(|| "-".to_owned(), |id| id.to_string()),
                row.to.to_string(),
                row.epoch.to_string(),
                row.cause.to_owned(),
                time(row.detected_us),
                time(row.took_us),
                time(row.promoted_us),
            ]);
        }
        table.fmt(f)
    }
}

fn time(us: Option<u32>) -> String {
    us.map_or_else(|| "-".to_owned(), |us| format!("{us} us"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, instance: u32, rank: u32) -> Entry {
        Entry {
            instance: ServiceId::new(instance),
            name_id: ServiceId::new(100),
            pid: 4711,
            uid: 1000,
            rank,
            flags: 0,
            channels: 2,
            name: name.to_owned(),
        }
    }

    #[test]
    fn only_names_with_standbys_are_shown_in_their_order() {
        let groups =
            Groups::new(vec![entry("echo", 9, 2), entry("clock", 5, 0), entry("echo", 12, 0)]);
        let lines = [
            "NAME  SERVES   PID  STANDBYS  STRATEGY  HEALTH CHECK  SUSPECTED",
            "echo      12  4711  9         -         -             -",
            "",
        ];
        assert_eq!(groups.to_string(), lines.join("\n"));
    }

    #[test]
    fn a_name_is_shown_with_its_strategy_its_check_and_its_suspicions() {
        let mut groups = Groups::new(vec![entry("echo", 9, 1), entry("echo", 12, 0)]);
        groups.0[0].standing = Some(Standing {
            name: ServiceId::new(100),
            serves: ServiceId::new(12),
            epoch: 66,
            strategy: ipc::FailoverStrategy::RoundRobin,
            health: HealthCheck { busy_ms: 500, ..HealthCheck::default() },
            configured: true,
            suspected: true,
            suspicions: 7,
        });
        let shown = groups.to_string();
        let expected = "round_robin  10 ms, 3 x 5 ms, busy 500 ms  now, 7 times\n";
        assert!(shown.ends_with(expected), "{shown}");
        let json = serde_json::to_value(&groups).expect("plain data");
        assert_eq!(
            (&json[0]["strategy"], &json[0]["suspicions"]),
            (&"round_robin".into(), &7.into())
        );
    }

    #[test]
    fn a_change_is_told_with_its_cause_and_its_time() {
        let change = |from, cause, took_us| Change {
            number: 1,
            name: ServiceId::new(100),
            from: ServiceId::new(from),
            to: ServiceId::new(9),
            epoch: 66,
            cause,
            at_ns: 1,
            took_us,
            detected_us: took_us / 2,
            promoted_us: 0,
        };
        let changes = vec![change(0, Cause::First, 0), change(5, Cause::Triggered, 120)];
        let history = History::new(changes, vec![entry("echo", 9, 0)]);
        let lines = [
            "NUMBER  NAME  FROM  TO  EPOCH  CAUSE      DETECTED  LET GO  PROMOTED",
            "     1  echo     -   9     66  first             -       -         -",
            "     1  echo     5   9     66  triggered     60 us  120 us         -",
            "",
        ];
        assert_eq!(history.to_string(), lines.join("\n"));
        let json = serde_json::to_value(&history).expect("plain data");
        assert_eq!((&json[1]["cause"], &json[1]["took_us"]), (&"triggered".into(), &120.into()));
    }
}
