//! `ipctl policy check`: a question in the words of a node file, and its answer in full.

use std::{fmt, path::PathBuf};

use nix::unistd::User;
use serde::{Deserialize, Serialize};

use super::{Because, Explanation, Fallback, Operation, Policy, Terms, What, Who};
use crate::node::Node;

impl Terms {
    /// Gives those of a node file, for a runtime of user `uid`.
    pub fn of(node: &Node, uid: u32) -> Terms {
        let provides = node.services.iter().map(|it| (it.name.clone(), it.provides.clone()));
        Terms {
            uid,
            rules: node.rules.clone(),
            lines: node.rule_lines.clone(),
            provides: provides.collect(),
            routes: node.routes.clone(),
            payloads: node.monitor.payloads.clone(),
        }
    }
}

/// Who may do what with whom?
#[derive(Clone, Debug)]
pub struct Question {
    who: Who,
    /// Nothing for the runtime itself.
    name: Option<String>,
    operation: Operation,
}

impl Question {
    /// Reads a question: `service:NAME`, `user:NAME` (or its number) or `executable:/PATH`, of user
    /// `uid`; `name:NAME` or `runtime`; an operation's name.
    ///
    /// # Errors
    /// A sentence that says which part is wrong, and what to write.
    pub fn read(
        subject: &str,
        object: &str,
        operation: &str,
        uid: u32,
    ) -> Result<Question, String> {
        let who = who(subject, uid)?;
        let name = match object.strip_prefix("name:") {
            Some(name) if !name.ends_with('*') => {
                ipc::control::check_name(name).map_err(|why| format!("{name:?}: {why}"))?;
                Some(name.to_owned())
            }
            None if object == "runtime" => None,
            _ => return Err(format!("{object:?} is no object: write name:NAME or runtime")),
        };
        let operation = Operation::from_name(operation).ok_or_else(|| {
            let all = Operation::ALL.map(Operation::name).join(", ");
            format!("{operation:?} is no operation: write one of {all}")
        })?;
        Ok(Question { who, name, operation })
    }

    /// Gives the name that it is about, unless it is about the runtime.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Checks that the service that it is about, if any, is among those that there are: a rule
    /// about another one would be refused.
    ///
    /// # Errors
    /// A sentence that says that it is not.
    pub fn check<'a>(&self, services: impl IntoIterator<Item = &'a str>) -> Result<(), String> {
        match &self.who {
            Who::Supervised { service, .. } if !services.into_iter().any(|it| it == service) => {
                Err(format!("no service is called {service:?}; see `ipctl status`"))
            }
            _ => Ok(()),
        }
    }

    /// Has a policy answer it. `served_by` is the user of the process that serves the name; a
    /// name that a supervised service provides needs none.
    pub fn ask(&self, policy: &Policy, served_by: Option<u32>) -> Ruling {
        let what = match &self.name {
            Some(text) => What::Name { text, served_by },
            None => What::Runtime,
        };
        Ruling::of(policy.explain(&self.who, what, self.operation))
    }
}

fn who(subject: &str, uid: u32) -> Result<Who, String> {
    let process = |uid, executable| Who::Unsupervised { uid, pid: 0, executable };
    match subject.split_once(':') {
        Some(("service", service)) if !service.is_empty() => {
            Ok(Who::Supervised { service: service.to_owned(), uid, pid: 0 })
        }
        Some(("executable", path)) if path.starts_with('/') => {
            Ok(process(uid, Some(PathBuf::from(path))))
        }
        Some(("user", name)) => match name.parse() {
            Ok(uid) => Ok(process(uid, None)),
            Err(_) => match User::from_name(name) {
                Ok(Some(user)) => Ok(process(user.uid.as_raw(), None)),
                _ => Err(format!("there is no user {name:?}: see `getent passwd`")),
            },
        },
        _ => {
            Err(format!("{subject:?} is nobody: write service:NAME, user:NAME or executable:/PATH"))
        }
    }
}

/// The answer: what is decided, by which rule, and what would hold without rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruling {
    /// Whether it may.
    pub allowed: bool,
    /// Who, in words.
    pub subject: String,
    /// With what, in words.
    pub object: String,
    /// The operation's name.
    pub operation: String,
    /// The rule that decided, from 1; nothing where a default did.
    pub rule: Option<usize>,
    /// The line of the node file at which that begins.
    pub line: Option<u32>,
    /// That rule in words.
    pub text: Option<String>,
    /// The default of such a question.
    pub default: Clause,
    /// What holds without a rule between supervised services, and among other processes of one
    /// user.
    pub defaults: [Clause; 2],
    /// The rule that would allow it, as a node file has it, where a default denies it.
    pub hint: Option<String>,
}

/// What holds where no rule matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clause {
    /// Whether it allows.
    pub allows: bool,
    /// Why.
    pub because: String,
}

impl Clause {
    fn of(fallback: Fallback) -> Clause {
        Clause { allows: fallback.allows(), because: fallback.text().to_owned() }
    }
}

impl Ruling {
    fn of(it: Explanation) -> Ruling {
        let (text, line) = it.rule.unzip();
        Ruling {
            allowed: it.allowed,
            subject: it.subject,
            object: it.object,
            operation: it.operation.name().to_owned(),
            rule: match it.because {
                Because::Rule(index) => Some(index + 1),
                Because::Default(_) => None,
            },
            line: line.flatten(),
            text,
            default: Clause::of(it.default),
            defaults: [Fallback::Supervised, Fallback::SameUser].map(Clause::of),
            hint: it.hint,
        }
    }
}

fn verdict(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

impl fmt::Display for Ruling {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ruling { subject, object, operation, .. } = self;
        writeln!(to, "{subject} → {object}: {operation} is {}", verdict(self.allowed))?;
        match (self.rule, &self.text) {
            (Some(rule), Some(text)) => {
                write!(to, "  by rule {rule}")?;
                self.line.map_or(Ok(()), |line| write!(to, ", line {line}"))?;
                writeln!(to, ": {text}")?;
            }
            _ => writeln!(to, "  no rule matches")?,
        }
        writeln!(
            to,
            "  default: {}, since {}",
            verdict(self.default.allows),
            self.default.because
        )?;
        if let Some(hint) = &self.hint {
            writeln!(to, "  to allow it, add to the node file:")?;
            hint.lines().try_for_each(|line| writeln!(to, "    {line}"))?;
        }
        let [supervised, others] = &self.defaults;
        writeln!(to, "defaults, where no rule matches:")?;
        writeln!(to, "  between supervised services: {}", verdict(supervised.allows))?;
        write!(to, "  among other processes of one user: {}", verdict(others.allows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::{Object, Rule, Subject, Terms};

    fn policy() -> Policy {
        let rule = Rule {
            subject: Subject::Service("api".to_owned()),
            object: Object::Name("store".to_owned()),
            operations: Operation::Call.bit(),
            allow: true,
        };
        let provides = ["api", "store"].map(|it| (it.to_owned(), vec![it.to_owned()]));
        Policy::new(Terms {
            uid: 7,
            rules: vec![rule],
            lines: vec![12],
            provides: provides.into(),
            routes: Vec::new(),
            payloads: Vec::new(),
        })
    }

    #[test]
    fn an_answer_says_what_decided_and_both_defaults() {
        let ask = |subject, operation| {
            let question = Question::read(subject, "name:store", operation, 7).expect("a question");
            question.ask(&policy(), None)
        };
        let allowed = ask("service:api", "call");
        assert_eq!((allowed.allowed, allowed.rule, allowed.line), (true, Some(1), Some(12)));
        assert_eq!(
            allowed.to_string(),
            "service api (user 7) → name store (not served): call is allowed\n  \
             by rule 1, line 12: service:api → name:store: allow call\n  \
             default: denied, since a supervised service may do nothing that no rule allows\n\
             defaults, where no rule matches:\n  \
             between supervised services: denied\n  \
             among other processes of one user: allowed"
        );
        let denied = ask("service:api", "send");
        assert_eq!((denied.allowed, denied.rule), (false, None));
        let hint = denied.hint.expect("a hint");
        assert!(hint.contains("allow = [\"send\"]"), "{hint}");
        assert!(!ask("user:7", "call").allowed);
        assert!(ask("user:7", "admin").allowed);
    }

    #[test]
    fn a_service_that_is_not_there_is_no_subject() {
        let read = |subject| Question::read(subject, "name:store", "call", 7).expect("a question");
        assert_eq!(read("service:api").check(["store", "api"]), Ok(()));
        assert_eq!(read("user:7").check([]), Ok(()));
        let error = read("service:apj").check(["store", "api"]).expect_err("a slip");
        assert!(error.contains("no service is called \"apj\""), "{error}");
    }

    #[test]
    fn what_is_no_question_is_said_to_be() {
        for (subject, object, operation) in [
            ("api", "name:a", "call"),
            ("any", "name:a", "call"),
            ("service:", "name:a", "call"),
            ("executable:bin", "name:a", "call"),
            ("user:nobody-is-called-so", "name:a", "call"),
            ("service:api", "a", "call"),
            ("service:api", "name:", "call"),
            ("service:api", "name:a*", "call"),
            ("service:api", "name:a", "all"),
        ] {
            let error = Question::read(subject, object, operation, 7).expect_err(subject);
            assert!(error.len() > 10, "{error}");
        }
    }
}
