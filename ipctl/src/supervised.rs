//! What the supervisor of a runtime says of its units, and how it is asked.

use std::time::Duration;

use ipc::{Config, Node, NodeError, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{failure::Failure, units};

/// How long the supervisor may take to answer what it knows by itself.
const AT_ONCE: Duration = Duration::from_secs(5);

/// One replica of a service, in the supervisor's words: `docs/control.md` has every field.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) service: String,
    pub(crate) replica: u32,
    pub(crate) group: Option<String>,
    pub(crate) state: String,
    pub(crate) since_ms: u64,
    pub(crate) pid: Option<u32>,
    pub(crate) attempts: u32,
    pub(crate) restarts: u32,
    pub(crate) last_end: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) waits_for: Vec<String>,
    pub(crate) next_ms: Option<u64>,
    pub(crate) restarting: bool,
    pub(crate) line: String,
    pub(crate) serves: Vec<String>,
    pub(crate) depends_on: Vec<String>,
    pub(crate) log: String,
    pub(crate) last_lines: Vec<String>,
    /// What a later supervisor says beside that: programs may know it.
    #[serde(flatten)]
    pub(crate) more: Map<String, Value>,
}

impl Unit {
    pub(crate) fn is_failed(&self) -> bool {
        self.state == "failed"
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    units: Vec<Unit>,
    change: Option<String>,
    warnings: Vec<String>,
    error: Option<String>,
}

impl Answer {
    fn read(text: &str) -> Result<Answer, Failure> {
        let answer: Answer = serde_json::from_str(text).map_err(Failure::Answer)?;
        match answer.error {
            Some(why) => Err(Failure::Told(why)),
            None => Ok(answer),
        }
    }
}

/// What came of a node file that was taken.
#[derive(Debug, Serialize)]
pub(crate) struct Reloaded {
    /// What differs, in words.
    pub(crate) change: String,
    /// What is hardly meant, each with its place.
    pub(crate) warnings: Vec<String>,
}

/// The supervisor of a runtime.
#[derive(Debug)]
pub(crate) struct Supervisor {
    node: Node,
}

impl Supervisor {
    pub(crate) fn connect(config: &Config) -> Result<Supervisor, Failure> {
        Ok(Supervisor { node: Node::connect(config)? })
    }

    /// All units: services in the order of the node file, replicas in theirs.
    pub(crate) fn units(&self) -> Result<Vec<Unit>, Failure> {
        Ok(self.ask(&json!({ "do": "status" }), AT_ONCE)?.units)
    }

    /// The units of a service, a group, or one unit.
    pub(crate) fn units_of(&self, name: &str) -> Result<Vec<Unit>, Failure> {
        named(&self.units()?, name)
    }

    /// Has the node file read again.
    pub(crate) fn reload(&self, timeout: Duration) -> Result<Reloaded, Failure> {
        let answer = self.ask(&json!({ "do": "reload" }), timeout)?;
        Ok(Reloaded { change: answer.change.unwrap_or_default(), warnings: answer.warnings })
    }

    /// Commands a service, group or unit, and waits until that is done.
    pub(crate) fn steer(&self, what: &str, name: &str, timeout: Duration) -> Result<(), Failure> {
        match self.ask(&json!({ "do": what, "name": name }), timeout) {
            Ok(_) => Ok(()),
            // Only the list tells a wrong name from a service that fails.
            Err(Failure::Told(why)) => {
                self.units_of(name)?;
                Err(Failure::Told(format!("{why}; `ipctl status {name}` tells more")))
            }
            Err(failure) => Err(failure),
        }
    }

    fn ask(&self, wish: &Value, timeout: Duration) -> Result<Answer, Failure> {
        let answer = self.node.command(&wish.to_string(), Some(timeout));
        Answer::read(&answer.map_err(|error| match error {
            NodeError::Refused(Status::NOT_SUPPORTED) => Failure::Unsupervised,
            NodeError::TimedOut => Failure::Unanswered(timeout),
            error => error.into(),
        })?)
    }
}

/// Picks the units that a name means: a service's, else a group's, else one; as commands do.
pub(crate) fn named(units: &[Unit], name: &str) -> Result<Vec<Unit>, Failure> {
    let means: [fn(&Unit, &str) -> bool; 3] = [
        |unit, name| unit.service == name,
        |unit, name| unit.group.as_deref() == Some(name),
        |unit, name| unit.name == name,
    ];
    let found = means.iter().find_map(|means| {
        let found: Vec<Unit> = units.iter().filter(|unit| means(unit, name)).cloned().collect();
        (!found.is_empty()).then_some(found)
    });
    found.ok_or_else(|| Failure::NoUnit(name.to_owned()))
}

/// Reads the name of a service, group or unit, on the command line.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let ends = |c: char| c.is_ascii_alphanumeric();
    let inside = |c: char| ends(c) || "-_.#".contains(c);
    if text.len() <= 80 && text.starts_with(ends) && text.chars().all(inside) {
        return Ok(text.to_owned());
    }
    Err("a name such as store, store-2.eu, or store#2 for one of its replicas".to_owned())
}

/// How long ago, for people.
pub(crate) fn ago(ms: u64) -> String {
    units::uptime(Duration::from_millis(ms))
}

/// Makes what a service wrote harmless to a terminal: what would steer that is spelled out.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if c.is_control() && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        out
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A unit of a service or, as `service#2`, one of its replicas.
    pub(crate) fn unit(name: &str, state: &str, depends_on: &[&str]) -> Unit {
        let (service, replica) = name.split_once('#').unwrap_or((name, "1"));
        Unit {
            name: name.to_owned(),
            service: service.to_owned(),
            replica: replica.parse().expect("a number"),
            state: state.to_owned(),
            depends_on: depends_on.iter().map(|&it| it.to_owned()).collect(),
            ..Unit::default()
        }
    }

    #[test]
    fn a_name_means_a_service_a_group_or_a_unit_in_this_order() {
        let mut units = vec![
            unit("api#1", "ready", &[]),
            unit("api#2", "ready", &[]),
            unit("front", "ready", &[]),
            unit("web", "ready", &[]),
        ];
        for index in [2, 3] {
            units[index].group = Some("front".to_owned());
        }
        units[0].group = Some("back".to_owned());
        let names = |name| -> Vec<String> {
            named(&units, name).expect("a name").into_iter().map(|it| it.name).collect()
        };
        assert_eq!(names("api"), ["api#1", "api#2"]);
        assert_eq!(names("api#2"), ["api#2"]);
        assert_eq!(names("front"), ["front"]);
        assert_eq!(names("back"), ["api#1"]);
        let failure = named(&units, "ap").expect_err("no such name");
        assert_eq!(failure.exit_code(), 4);
    }

    #[test]
    fn answers_are_read_and_what_is_not_known_is_kept_for_programs() {
        let text = r#"{"units":[{"name":"api","state":"ready","pid":7,"mood":"fine"}]}"#;
        let units = Answer::read(text).expect("an answer").units;
        assert_eq!((units[0].name.as_str(), units[0].pid), ("api", Some(7)));
        assert_eq!(serde_json::to_value(&units[0]).expect("plain data")["mood"], "fine");
        assert_eq!(
            Answer::read(r#"{"change":"nothing"}"#).expect("an answer").change.as_deref(),
            Some("nothing")
        );
        Answer::read("{}").expect("done");
        let told = Answer::read(r#"{"error":"api: exit code 1"}"#).expect_err("a refusal");
        assert_eq!((told.to_string().as_str(), told.exit_code()), ("api: exit code 1", 1));
        assert!(matches!(Answer::read("[1]x"), Err(Failure::Answer(_))));
    }

    #[test]
    fn what_steers_a_terminal_is_spelled_out() {
        assert_eq!(harmless("a\tb é \u{1b}[2J\u{9b}"), "a\tb é \\u{1b}[2J\\u{9b}");
    }

    #[test]
    fn names_on_the_command_line_are_those_of_node_files() {
        for text in ["store", "store-2.eu", "store#2", "7"] {
            assert_eq!(name(text).as_deref(), Ok(text));
        }
        for text in ["", "-x", "#1", "a b", "a/b", "é"] {
            assert!(name(text).is_err(), "{text}");
        }
    }
}
