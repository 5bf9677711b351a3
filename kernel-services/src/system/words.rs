//! What operators say and are told, in JSON: `docs/control.md` lists it.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Refusal;
use crate::{
    security::Ruling,
    supervisor::{End, UnitStatus},
};

/// What an operator wants.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Wish {
    // In braces, or fields that nobody knows would be passed over.
    Status {},
    Reload {},
    Start {
        name: String,
    },
    Stop {
        name: String,
    },
    Restart {
        name: String,
    },
    /// Who may do what: see `ipctl policy check`.
    Policy {
        from: String,
        to: String,
        operation: String,
        /// The user of the process that serves the name, where it is known.
        served_by: Option<u32>,
    },
}

impl Wish {
    /// Reads a command.
    ///
    /// # Errors
    /// What is wrong with it, for the operator.
    pub(super) fn read(text: &str) -> Result<Wish, String> {
        serde_json::from_str(text)
            .map_err(|error| format!("this ipcd does not understand: {error}"))
    }
}

/// What an operator is told.
#[derive(Debug)]
pub(super) struct Answer(Value);

/// What is told of a unit.
pub(super) struct UnitWords<'a> {
    pub(super) status: &'a UnitStatus,
    pub(super) line: String,
    pub(super) now_ns: u64,
    pub(super) serves: Vec<String>,
    pub(super) depends_on: Vec<String>,
    pub(super) log: PathBuf,
    pub(super) last_lines: Vec<String>,
}

impl Answer {
    pub(super) fn of(result: Result<(), Refusal>) -> Answer {
        match result {
            Ok(()) => Answer(json!({})),
            Err(refusal) => Answer::refusal(&refusal.to_string()),
        }
    }

    pub(super) fn refusal(why: &str) -> Answer {
        Answer(json!({ "error": why }))
    }

    pub(super) fn change(change: &str, warnings: impl Iterator<Item = String>) -> Answer {
        Answer(json!({ "change": change, "warnings": warnings.collect::<Vec<_>>() }))
    }

    pub(super) fn policy(ruling: &Ruling) -> Answer {
        Answer(json!(ruling))
    }

    pub(super) fn units<'a>(units: impl Iterator<Item = UnitWords<'a>>) -> Answer {
        Answer(json!({ "units": units.map(|unit| unit.value()).collect::<Vec<_>>() }))
    }

    pub(super) fn text(&self) -> String {
        self.0.to_string()
    }
}

impl UnitWords<'_> {
    fn value(&self) -> Value {
        let status = self.status;
        let ms_since = |at: u64| self.now_ns.saturating_sub(at) / 1_000_000;
        json!({
            "name": status.name,
            "service": status.service,
            "replica": status.replica,
            "group": status.group,
            "state": status.state.to_string(),
            "since_ms": ms_since(status.since_ns),
            "pid": status.pid,
            "attempts": status.attempts,
            "restarts": status.restarts,
            "last_end": status.last_end.as_ref().map(End::to_string),
            "reason": status.reason,
            "waits_for": status.waits_for,
            "next_ms": status.next_ns.map(|at| at.saturating_sub(self.now_ns) / 1_000_000),
            "restarting": status.restarting,
            "line": self.line,
            "serves": self.serves,
            "depends_on": self.depends_on,
            "log": self.log,
            "last_lines": self.last_lines,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_said_to_be() {
        assert_eq!(Wish::read(r#"{"do":"status"}"#), Ok(Wish::Status {}));
        let start = Wish::Start { name: "api".to_owned() };
        assert_eq!(Wish::read(r#"{"do":"start","name":"api"}"#), Ok(start));
        for text in [
            "",
            "{}",
            r#"{"do":"fly"}"#,
            r#"{"do":"start"}"#,
            r#"{"do":"stop","name":1}"#,
            r#"{"do":"status","name":"api"}"#,
        ] {
            let error = Wish::read(text).expect_err("nonsense");
            assert!(error.starts_with("this ipcd does not understand: "), "{error}");
        }
    }
}
