//! `ipctl status`: how are the services that the runtime supervises?

use std::fmt;

use clap::{Args, ValueHint};
use ipc::Config;
use serde::Serialize;

use crate::{
    failure::Failure,
    logs,
    output::Output,
    supervised::{self, Supervisor, Unit, ago, harmless},
    table::{Align, Table},
};

/// The exit status when a unit is failed.
const SOME_FAILED: u8 = 6;

/// Show the supervised services: what runs, since when, and what failed.
///
/// Without NAME, one line for each unit, which is one replica of one service; below them why units
/// are failed, with the last lines of their logs, why others ended, and for what the rest waits.
/// With NAME, all that is known of it.
#[derive(Args)]
#[command(verbatim_doc_comment, after_long_help = HELP)]
pub(crate) struct Arguments {
    /// Service, group, or unit such as api#2
    #[arg(value_parser = supervised::name, value_hint = ValueHint::Other)]
    name: Option<String>,
}

const HELP: &str = "\
Columns:
  NAME      the service, or service#replica where there are several
  STATE     stopped, waiting, backing-off, starting, ready, stopping, killed, finished, ended or
            failed; docs/supervision.md says what each means
  SINCE     for how long it has been in this state
  PID       its process
  RESTARTS  processes started after a failure, its own or one of its group
  LAST-END  how its last process ended

Examples:
  ipctl status
  ipctl status api
  ipctl status >/dev/null || echo 'something is wrong'
  ipctl status --json | jq -r '.[] | select(.state != \"ready\") | .name'

The exit status is 6 when one of the units shown is failed.";

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<u8, Failure> {
    let units = Supervisor::connect(config)?.units()?;
    if let Some(name) = &arguments.name {
        let units = supervised::named(&units, name)?;
        output.show(&InFull(&units))?;
        return Ok(exit_status(&units));
    }
    if units.is_empty() {
        output.remark("no services: the node file has none");
    }
    output.show(&Overview(&units))?;
    Ok(exit_status(&units))
}

fn exit_status(units: &[Unit]) -> u8 {
    if units.iter().any(Unit::is_failed) { SOME_FAILED } else { 0 }
}

#[derive(Serialize)]
struct Overview<'a>(&'a [Unit]);

impl fmt::Display for Overview<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            ("NAME", Align::Left),
            ("STATE", Align::Left),
            ("SINCE", Align::Right),
            ("PID", Align::Right),
            ("RESTARTS", Align::Right),
            ("LAST-END", Align::Left),
        ]);
        for unit in self.0 {
            table.row([
                unit.name.clone(),
                unit.state.clone(),
                ago(unit.since_ms),
                or_dash(unit.pid.map(|pid| pid.to_string())),
                unit.restarts.to_string(),
                or_dash(unit.last_end.clone()),
            ]);
        }
        table.fmt(f)?;
        let tells =
            |unit: &&Unit| matches!(unit.state.as_str(), "waiting" | "backing-off" | "ended");
        for unit in self.0.iter().filter(tells) {
            write!(f, "\n{}: {}", unit.name, harmless(&unit.line))?;
        }
        if self.0.iter().any(|unit| tells(&unit)) {
            writeln!(f)?;
        }
        for unit in self.0.iter().filter(|unit| unit.is_failed()) {
            let reason = unit.reason.as_deref().unwrap_or("nobody knows why");
            writeln!(f, "\n{} failed: {}", unit.name, harmless(reason))?;
            lines(f, unit)?;
        }
        Ok(())
    }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// The last lines of a unit's log, set off from what we say ourselves.
fn lines(f: &mut fmt::Formatter<'_>, unit: &Unit) -> fmt::Result {
    unit.last_lines.iter().try_for_each(|line| writeln!(f, "  | {}", logs::pretty(line)))
}

#[derive(Serialize)]
struct InFull<'a>(&'a [Unit]);

impl fmt::Display for InFull<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, unit) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            in_full(f, unit)?;
        }
        Ok(())
    }
}

fn in_full(f: &mut fmt::Formatter<'_>, unit: &Unit) -> fmt::Result {
    writeln!(f, "{}: {}", unit.name, harmless(&unit.line))?;
    let next = unit.next_ms.map(|ms| format!("in {}", ago(ms)));
    let facts = [
        ("group", unit.group.clone()),
        ("state", Some(unit.state.clone())),
        ("since", Some(ago(unit.since_ms))),
        ("pid", unit.pid.map(|pid| pid.to_string())),
        ("serves", joined(&unit.serves)),
        ("depends on", joined(&unit.depends_on)),
        ("waits for", joined(&unit.waits_for)),
        ("next attempt", next),
        ("attempts", Some(unit.attempts.to_string())),
        ("restarts", Some(unit.restarts.to_string())),
        ("last end", unit.last_end.clone()),
        ("reason", unit.reason.clone()),
        ("log", Some(unit.log.clone())),
    ];
    for (what, is) in facts {
        if let Some(is) = is {
            writeln!(f, "  {what:<12}  {}", harmless(&is))?;
        }
    }
    lines(f, unit)
}

fn joined(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervised::tests::unit;

    fn some() -> Vec<Unit> {
        let store = Unit {
            since_ms: 125_000,
            pid: Some(4711),
            serves: vec!["store".to_owned(), "store.admin".to_owned()],
            log: "/run/ipc/logs/store.log".to_owned(),
            attempts: 1,
            line: "ready since 125.0 s, pid 4711".to_owned(),
            ..unit("store", "ready", &["disk"])
        };
        let api = Unit {
            since_ms: 3_000,
            restarts: 5,
            last_end: Some("exit code 1".to_owned()),
            reason: Some("6 restarts within 30 s".to_owned()),
            last_lines: vec![
                "starting".to_owned(),
                "\u{1b}[31mno disk".to_owned(),
                r#"{"level":"error","msg":"end"}"#.to_owned(),
            ],
            ..unit("api#2", "failed", &[])
        };
        let web = Unit {
            line: "waiting since 3.0 s, for api".to_owned(),
            ..unit("web", "waiting", &["api"])
        };
        let job = Unit {
            line: "ended since 3.0 s, last: signal 9; was not ready within 1s".to_owned(),
            ..unit("job", "ended", &[])
        };
        vec![store, api, web, job]
    }

    #[test]
    fn failed_units_say_why_below_the_table() {
        let lines = [
            "NAME   STATE          SINCE   PID  RESTARTS  LAST-END",
            "store  ready    2 min 5 s  4711         0  -",
        ];
        let text = Overview(&some()).to_string();
        let mut shown = text.lines();
        assert_eq!(shown.next().map(words), Some(words(lines[0])));
        assert_eq!(shown.next().map(words), Some(words(lines[1])));
        let below = [
            "",
            "web: waiting since 3.0 s, for api",
            "job: ended since 3.0 s, last: signal 9; was not ready within 1s",
            "",
            "api#2 failed: 6 restarts within 30 s",
            "  | starting",
            "  | \\u{1b}[31mno disk",
            "  | ERROR end",
        ];
        assert_eq!(shown.skip(3).collect::<Vec<_>>(), below);
        assert_eq!(Overview(&[]).to_string(), "");
        assert_eq!((exit_status(&some()), exit_status(&some()[..1])), (6, 0));
    }

    fn words(line: &str) -> Vec<&str> {
        line.split_whitespace().collect()
    }

    #[test]
    fn one_unit_in_full_has_all_that_is_known_and_nothing_else() {
        let lines = [
            "store: ready since 125.0 s, pid 4711",
            "  state         ready",
            "  since         2 min 5 s",
            "  pid           4711",
            "  serves        store, store.admin",
            "  depends on    disk",
            "  attempts      1",
            "  restarts      0",
            "  log           /run/ipc/logs/store.log",
            "",
        ];
        assert_eq!(InFull(&some()[..1]).to_string(), lines.join("\n"));
    }

    #[test]
    fn programs_get_an_array_of_what_the_supervisor_said() {
        let json = serde_json::to_value(Overview(&some())).expect("plain data");
        assert_eq!(json[0]["serves"][1], "store.admin");
        assert_eq!(json[1]["state"], "failed");
        assert_eq!(json[1]["pid"], serde_json::Value::Null);
    }
}
