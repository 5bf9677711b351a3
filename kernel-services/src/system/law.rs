//! What the node file says on rights and quotas, told to the broker; and what is put on record.

use std::path::Path;

use nix::{sys::inotify::AddWatchFlags, unistd::geteuid};

use super::{System, SystemError, failed, say, words::Answer};
use crate::{
    broker::{Law, Place, Plan},
    desk::Order,
    logs::Logs,
    node::{self, Failover, Node},
    notes::{Kind, Note},
    security::{Policy, Question, Terms},
    spans::Open,
    supervisor::{Command, Event, Notice},
};

/// Gives the rules and quotas of a node file.
pub(super) fn law(node: &Node) -> Law {
    let quotas = node.services.iter().map(|it| (it.name.as_str().into(), it.quota));
    Law {
        terms: Terms::of(node, geteuid().as_raw()),
        users: node.user_limits,
        services: quotas.collect(),
        topics: node.topics.clone(),
        failovers: node.failovers.iter().map(plan).collect(),
    }
}

/// Gives what a node file says of who serves a name, and when.
fn plan(failover: &Failover) -> (String, Plan) {
    let Failover { name, order, strategy, health } = failover;
    let order = order.iter().map(|it| Place::Service(it.as_str().into())).collect();
    (name.clone(), Plan { strategy: *strategy, health: *health, order, is_fixed: true })
}

impl System {
    /// Reads the node file again, and changes what it changes. What is wrong changes nothing.
    pub(super) fn reload(&mut self, by: &str) -> Result<String, SystemError> {
        let _span = Open::reload(&self.path, by);
        let mut node = node::reload(&self.path)?;
        settle_paths(&mut node, &self.runtime_dir);
        let logs = Logs::open(&node.log_directory)?;
        if node.log_directory != self.node.log_directory {
            self.log_events
                .add_watch(&node.log_directory, AddWatchFlags::IN_MODIFY)
                .map_err(failed("watch the logs"))?;
        }
        let change = node::Change::between(&self.node, &node).to_string();
        self.logs = logs;
        self.node = node.clone();
        self.move_metrics();
        self.move_spans();
        self.desk.say(Order::Enact(Box::new(law(&self.node))));
        for warning in &node.warnings {
            say(&warning.to_string());
        }
        say(&format!("the node file is taken: {change}"));
        self.note(Kind::Reload, by, &change);
        self.step(Event::Reload(Box::new(node)));
        // Who is to provide less than before may do so already.
        for unit in self.running.keys().copied().collect::<Vec<_>>() {
            self.ask_if_ready(unit);
        }
        Ok(change)
    }

    /// Answers who may do what, by the rules that hold now.
    pub(super) fn explain(
        &self,
        subject: &str,
        object: &str,
        operation: &str,
        served_by: Option<u32>,
    ) -> Answer {
        let uid = geteuid().as_raw();
        let policy = Policy::new(Terms::of(&self.node, uid));
        let services = self.node.services.iter().map(|it| it.name.as_str());
        let question = Question::read(subject, object, operation, uid)
            .and_then(|question| question.check(services).map(|()| question));
        match question {
            Ok(question) => Answer::policy(&question.ask(&policy, served_by)),
            Err(error) => Answer::refusal(&error),
        }
    }

    /// Puts on record what became of a unit.
    pub(super) fn note_report(&self, unit: &str, notice: &Notice) {
        let kind = match notice {
            Notice::Ended { .. } | Notice::SpawnFailed { .. } => Kind::Died,
            Notice::Late { .. } | Notice::Hung { .. } | Notice::Stubborn { .. } => Kind::Killed,
            Notice::RestartsIn { .. } | Notice::RestartsWith { .. } => Kind::Restarted,
            Notice::GaveUp { .. } => Kind::GaveUp,
            Notice::Starts { .. }
            | Notice::Runs { .. }
            | Notice::Adopted { .. }
            | Notice::Ready
            | Notice::Stops
            | Notice::StopsWith { .. } => return,
        };
        self.note(kind, &format!("service {unit}"), &notice.to_string());
    }

    /// Puts on record what an operator did.
    pub(super) fn note_command(&self, by: &str, command: Command, name: &str) {
        let mut note = Note::new(Kind::Admin, by);
        note.object = format!("service {name}");
        note.operation = command.name().into();
        note.verdict = Some(true);
        self.take(note);
    }

    fn note(&self, kind: Kind, subject: &str, because: &str) {
        self.take(Note { because: because.to_owned(), ..Note::new(kind, subject) });
    }

    fn take(&self, note: Note) {
        if let Some(notes) = &self.notes {
            notes.take(note);
        }
    }
}

/// A log directory that is not absolute is in the runtime's. Operators are told of it, wherever
/// they are.
pub(super) fn settle_paths(node: &mut Node, runtime_dir: &Path) {
    let directory = runtime_dir.join(&node.log_directory);
    node.log_directory = std::path::absolute(&directory).unwrap_or(directory);
}
