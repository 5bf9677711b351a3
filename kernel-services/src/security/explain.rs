//! A verdict in words, for `ipctl policy check`.

use std::fmt;

use super::{Because, Fallback, Object, Operation, Policy, Subject, What, Who};

/// What is decided, by which rule at which line, and what would hold without rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Who asked, in words.
    pub subject: String,
    /// What about, in words.
    pub object: String,
    /// What for.
    pub operation: Operation,
    /// Whether it may.
    pub allowed: bool,
    /// What decided.
    pub because: Because,
    /// The rule that decided, in words, and its line where that is known.
    pub rule: Option<(String, Option<u32>)>,
    /// What holds without a rule.
    pub default: Fallback,
    /// The rule that would allow it, as a node file has it, where it is denied by default.
    pub hint: Option<String>,
}

impl Explanation {
    pub(super) fn of(
        policy: &Policy,
        who: &Who,
        what: What<'_>,
        operation: Operation,
    ) -> Explanation {
        let verdict = policy.judge(who, what, operation);
        let rule = match verdict.because {
            Because::Rule(index) => Some((policy.rules()[index].to_string(), policy.line(index))),
            Because::Default(_) => None,
        };
        let helpless = verdict.allowed || rule.is_some();
        Explanation {
            subject: who.to_string(),
            object: what.to_string(),
            operation,
            allowed: verdict.allowed,
            because: verdict.because,
            rule,
            default: policy.fallback(who, what, operation),
            hint: (!helpless).then(|| remedy(who, what, operation)),
        }
    }
}

/// Writes the narrowest rule that would allow it.
fn remedy(who: &Who, what: What<'_>, operation: Operation) -> String {
    let subject = match who {
        Who::Supervised { service, .. } => Subject::Service(service.clone()),
        Who::Unsupervised { uid, .. } => Subject::User(*uid),
    };
    let object = match what {
        What::Name { text, .. } => Object::Name(text.to_owned()),
        What::Runtime => Object::Runtime,
    };
    super::Rule { subject, object, operations: operation.bit(), allow: true }.to_toml()
}

impl fmt::Display for Explanation {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = |allowed: bool| if allowed { "allowed" } else { "denied" };
        let Explanation { subject, object, operation, allowed, .. } = self;
        writeln!(to, "{subject} → {object}: {operation} is {}", verdict(*allowed))?;
        match (&self.rule, self.because) {
            (Some((rule, line)), Because::Rule(index)) => {
                write!(to, "  by rule {}", index + 1)?;
                if let Some(line) = line {
                    write!(to, ", line {line}")?;
                }
                writeln!(to, ": {rule}")?;
            }
            (_, Because::Rule(_) | Because::Default(_)) => writeln!(to, "  no rule matches")?,
        }
        let default = self.default;
        write!(to, "  default: {}, since {}", verdict(default.allows()), default.text())?;
        if let Some(hint) = &self.hint {
            write!(to, "\n  to allow it, add to the node file:")?;
            hint.lines().try_for_each(|line| write!(to, "\n    {line}"))?;
        }
        Ok(())
    }
}
