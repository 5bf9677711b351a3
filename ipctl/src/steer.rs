//! `ipctl start`, `stop`, `restart` and `reload`: what the supervisor is told to do.

use std::{fmt, time::Duration};

use clap::{Args, ValueHint};
use ipc::Config;
use serde::Serialize;

use crate::{
    failure::Failure,
    output::{Output, Progress},
    supervised::{self, Reloaded, Supervisor, Unit, harmless},
    units,
};

/// What is meant, and how long it may take.
#[derive(Args)]
pub(crate) struct Named {
    /// Service, group, or unit such as api#2
    #[arg(value_parser = supervised::name, value_hint = ValueHint::Other)]
    name: String,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Args)]
struct Limit {
    /// How long to wait for the supervisor's answer; what it does goes on after that
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = units::duration,
          value_hint = ValueHint::Other)]
    timeout: Duration,
}

pub(crate) const START: &str = "\
Examples:
  ipctl start api                  a service, with all its replicas
  ipctl start front                all members of a group
  ipctl start api#2                one replica
  ipctl start api --timeout 5s

What runs already is left alone. A service that failed, or waits for its next attempt, is started
at once. The services that it depends on are not started with it.";

pub(crate) const STOP: &str = "\
Examples:
  ipctl stop api
  ipctl stop front                 all members of a group
  ipctl stop api#2                 one replica

It stays down, whatever its restart type, until it is told to start. Those that depend on it run
on: their calls fail until it is back.";

pub(crate) const RESTART: &str = "\
Examples:
  ipctl restart api
  ipctl restart front              all members of a group
  ipctl restart api#2              one replica
  ipctl restart api --timeout 2m   a service that is slow to stop or to get ready

It is no failure: it is not delayed, and nothing is counted against its group.";

const RELOAD: &str = "\
Examples:
  ipctl reload
  ipctl reload --json | jq -r .change

A file that is wrong changes nothing, and is told with all its faults. Of one that is taken stderr
has what is hardly meant, as a program that is missing. No more is restarted than must be:
docs/supervision.md says what.";

/// Have the supervisor read its node file again, as SIGHUP does.
#[derive(Args)]
#[command(after_long_help = RELOAD)]
pub(crate) struct Reload {
    #[command(flatten)]
    limit: Limit,
}

/// A command to a service, group or unit.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verb {
    Start,
    Stop,
    Restart,
}

impl Verb {
    /// As the supervisor knows it.
    fn word(self) -> &'static str {
        match self {
            Verb::Start => "start",
            Verb::Stop => "stop",
            Verb::Restart => "restart",
        }
    }
}

pub(crate) fn run(
    verb: Verb,
    arguments: &Named,
    config: &Config,
    output: Output,
) -> Result<(), Failure> {
    let supervisor = Supervisor::connect(config)?;
    let (what, name) = (verb.word(), arguments.name.as_str());
    let progress = waiting(format_args!("waiting for {name} to {what}"));
    supervisor.steer(what, name, arguments.limit.timeout)?;
    let units = supervisor.units_of(name)?;
    drop(progress);
    output.show(&Became(&units))
}

pub(crate) fn reload(arguments: &Reload, config: &Config, output: Output) -> Result<(), Failure> {
    let reloaded = Supervisor::connect(config)?.reload(arguments.limit.timeout)?;
    reloaded.warnings.iter().for_each(|warning| output.remark(&format!("{warning}\n")));
    output.show(&reloaded)
}

fn waiting(text: impl fmt::Display) -> Progress {
    let mut progress = Progress::new();
    progress.show(text);
    progress
}

/// What became of the units.
#[derive(Serialize)]
struct Became<'a>(&'a [Unit]);

impl fmt::Display for Became<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut units = self.0.iter();
        units.try_for_each(|unit| writeln!(f, "{}: {}", unit.name, harmless(&unit.line)))
    }
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the node file is taken: {}", self.change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervised::tests::unit;

    #[test]
    fn each_unit_says_what_became_of_it() {
        let line = "ready since 0.0 s, pid 7".to_owned();
        let units = [Unit { line, ..unit("api#1", "ready", &[]) }, unit("api#2", "stopped", &[])];
        assert_eq!(Became(&units).to_string(), "api#1: ready since 0.0 s, pid 7\napi#2: \n");
        let json = serde_json::to_value(Became(&units)).expect("plain data");
        assert_eq!(json[0]["state"], "ready");
    }

    #[test]
    fn a_reload_tells_what_changed() {
        let warnings = vec!["node.toml:2:14: there is no bin/api".to_owned()];
        let reloaded = Reloaded { change: "restarts api".to_owned(), warnings };
        assert_eq!(reloaded.to_string(), "the node file is taken: restarts api");
        let json = serde_json::to_string(&reloaded).expect("plain data");
        let told =
            r#"{"change":"restarts api","warnings":["node.toml:2:14: there is no bin/api"]}"#;
        assert_eq!(json, told);
    }
}
