//! `ipctl policy check`: who may do what with whom, and which rule says so?

use std::{fmt, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueHint};
use ipc::{Config, Node, NodeError, Status};
use kernel_services::{
    node,
    security::{Policy, Question, Ruling, Terms},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{failure::Failure, output::Output};

/// How long the supervisor may take.
const AT_ONCE: Duration = Duration::from_secs(5);
/// The exit status where it is denied.
const DENIED: u8 = 6;

/// Say who may do what with whom, and which rule of the node file decides.
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Check(Check),
}

/// Say whether somebody may do something, and which rule of the node file decides.
#[derive(Args)]
#[command(after_long_help = HELP)]
#[allow(clippy::doc_markdown, reason = "these comments are the help text")]
pub(crate) struct Check {
    /// Who: service:NAME, user:NAME, user:UID or executable:/PATH
    #[arg(value_hint = ValueHint::Other)]
    subject: String,
    /// With what: name:NAME, or runtime
    #[arg(value_hint = ValueHint::Other)]
    object: String,
    /// What: call, send, publish, subscribe, map_region or admin
    #[arg(value_hint = ValueHint::Other)]
    operation: String,
    /// A node file to ask, instead of the runtime
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
}

const HELP: &str = "\
Examples:
  ipctl policy check service:api name:store call
  ipctl policy check user:1000 name:api call
  ipctl policy check executable:/usr/bin/report runtime admin
  ipctl policy check service:api name:store call --config node.toml    before it is taken
  ipctl policy check service:api name:store call --json | jq .allowed

Both defaults are shown: what holds between supervised services, and among other processes of one
user, where no rule matches. A denial by default says which rule would allow it.

Exit status 0: it may. 6: it may not.";

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<u8, Failure> {
    let Verb::Check(check) = &arguments.verb;
    let uid = nix::unistd::geteuid().as_raw();
    let Check { subject, object, operation, .. } = check;
    let question = Question::read(subject, object, operation, uid).map_err(Failure::Usage)?;
    let ruling = match &check.config {
        Some(file) => {
            let node = node::reload(file).map_err(|error| Failure::Told(error.to_string()))?;
            let services = node.services.iter().map(|it| it.name.as_str());
            question.check(services).map_err(|_| unknown(check))?;
            question.ask(&Policy::new(Terms::of(&node, uid)), None)
        }
        None => ask(check, &question, uid, config)?,
    };
    output.show(&Shown(&ruling))?;
    Ok(if ruling.allowed { 0 } else { DENIED })
}

/// Asks the runtime: it knows its rules, and who serves the name now.
fn ask(check: &Check, question: &Question, uid: u32, config: &Config) -> Result<Ruling, Failure> {
    let node = Node::connect(config)?;
    let entries = node.list()?;
    let serving = entries.iter().find(|it| Some(it.name.as_str()) == question.name());
    let served_by = serving.map(|it| it.uid);
    let Check { subject, object, operation, .. } = check;
    let wish = json!({
        "do": "policy",
        "from": subject,
        "to": object,
        "operation": operation,
        "served_by": served_by,
    });
    match node.command(&wish.to_string(), Some(AT_ONCE)) {
        Ok(answer) => match serde_json::from_str(&answer).map_err(Failure::Answer)? {
            Answer::Ruling(ruling) => Ok(*ruling),
            Answer::Error { error } if error.starts_with("no service is called") => {
                Err(unknown(check))
            }
            Answer::Error { error } => Err(Failure::Told(error)),
        },
        // A runtime without a node file has no rules.
        Err(NodeError::Refused(Status::NOT_SUPPORTED)) => {
            let policy = Policy::new(Terms { uid, ..Terms::default() });
            Ok(question.ask(&policy, served_by))
        }
        Err(NodeError::TimedOut) => Err(Failure::Unanswered(AT_ONCE)),
        Err(error) => Err(error.into()),
    }
}

/// There is no such service.
fn unknown(check: &Check) -> Failure {
    let name = check.subject.strip_prefix("service:").unwrap_or(&check.subject);
    Failure::NoUnit(name.to_owned())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Ruling(Box<Ruling>),
    Error { error: String },
}

#[derive(Serialize)]
#[serde(transparent)]
struct Shown<'a>(&'a Ruling);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
