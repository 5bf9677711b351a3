//! Who may do what with whom. Pure.
//!
//! A [`Policy`] is made of the rules of a node file, or of none, and judges three facts: [`Who`]
//! asks, as the kernel proved it; [`What`] it is about; and the [`Operation`]. The first rule that
//! matches decides. Where none does, a [`Default`](Because::Default) does:
//!
//! | who | what | default |
//! |---|---|---|
//! | a supervised service | a name that it provides itself | allowed |
//! | a supervised service | anything else | denied |
//! | a process that ipcd did not start | a name that a supervised service provides | denied |
//! | the same, of the runtime's user or root | to administer that, or the runtime | allowed |
//! | the same | a name served by a process of its own user | allowed |
//! | the same | a name served by another user, or by nobody; the runtime | denied |
//!
//! The mixed cases are closed, since otherwise a service could lay down its identity by a child
//! that connects anew; whoever is to reach a service from outside needs one rule.
//!
//! # What the broker asks
//! - `Register`: [`Policy::registering`], with the registrant and who serves the name already.
//! - `Connect`: [`Policy::permitted`] once, with the name behind the instance and the uid of the
//!   node that serves it; refused if neither call nor send is in it. The mask is kept with the
//!   channel and told to both ends.
//! - `Command`: [`Policy::judge`] with [`What::Runtime`].
//! - after a reload: [`Policy::revoked`] over the open channels, which are closed and recorded, and
//!   [`Policy::registering`] again for each instance, which ends if it is refused.
//! - `Verify` and tokens: [`Policy::permitted`]. `ipctl policy check`: [`Policy::explain`].
//!
//! [`Who`] is made once per connection: [`Who::Supervised`] by the inherited socket, never by what
//! the process says; the executable by `/proc/PID/exe`, read while the pidfd of the peer shows that
//! the process lives.

mod compiled;
mod explain;
#[cfg(feature = "node")]
mod question;
mod rule;

use std::{collections::HashMap, fmt, path::PathBuf};

use compiled::Compiled;
pub use explain::Explanation;
#[cfg(feature = "node")]
pub use question::{Clause, Question, Ruling};
pub use rule::{Object, Operation, Route, Rule, Subject, names_of};

/// Who asks, as the kernel proved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A process of a service that ipcd started.
    Supervised {
        /// The service's name in the node file.
        service: String,
        /// The user it runs as.
        uid: u32,
        /// The process; 0 for whichever it may be.
        pid: u32,
    },
    /// Any other process.
    Unsupervised {
        /// Its effective user when it connected.
        uid: u32,
        /// The process.
        pid: u32,
        /// What it runs, where that can be read.
        executable: Option<PathBuf>,
    },
}

impl Who {
    /// Gives its user.
    pub fn uid(&self) -> u32 {
        match self {
            Who::Supervised { uid, .. } | Who::Unsupervised { uid, .. } => *uid,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Supervised { service, uid, pid } => {
                write!(to, "service {service} (user {uid}")?;
                if *pid != 0 {
                    write!(to, ", pid {pid}")?;
                }
                to.write_str(")")
            }
            Who::Unsupervised { uid, pid, executable } => {
                write!(to, "user {uid} (")?;
                if *pid != 0 {
                    write!(to, "pid {pid}, ")?;
                }
                match executable {
                    // Whoever named the file may have meant the terminal that shows it.
                    Some(path) => write!(to, "{})", path.to_string_lossy().escape_debug()),
                    None => to.write_str("executable unknown)"),
                }
            }
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// A name.
    Name {
        /// As registered.
        text: &'a str,
        /// The user of the process that serves it, where one does.
        served_by: Option<u32>,
    },
    /// ipcd itself.
    Runtime,
}

impl fmt::Display for What<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Name { text, served_by: Some(uid) } => {
                write!(to, "name {text} (served by user {uid})")
            }
            What::Name { text, served_by: None } => write!(to, "name {text} (not served)"),
            What::Runtime => to.write_str("the runtime"),
        }
    }
}

/// What is decided, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may.
    pub allowed: bool,
    /// What decided.
    pub because: Because,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// The rule of that index, from 0.
    Rule(usize),
    /// No rule matched.
    Default(Fallback),
}

/// What holds where no rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fallback {
    /// A supervised service and its own name.
    Own,
    /// A supervised service and anything else.
    Supervised,
    /// The runtime's own user, or root, and administration.
    Operator,
    /// A process that ipcd did not start, and a supervised name.
    Outsider,
    /// Two processes of one user that ipcd did not start.
    SameUser,
    /// Two users.
    OtherUser,
    /// A name that nobody serves.
    Unserved,
    /// The runtime, which offers nothing but administration, and that to its own user.
    Runtime,
}

impl Fallback {
    /// All of them.
    pub const ALL: [Fallback; 8] = [
        Fallback::Own,
        Fallback::Supervised,
        Fallback::Operator,
        Fallback::Outsider,
        Fallback::SameUser,
        Fallback::OtherUser,
        Fallback::Unserved,
        Fallback::Runtime,
    ];

    /// Tells whether it allows.
    pub const fn allows(self) -> bool {
        matches!(self, Fallback::Own | Fallback::Operator | Fallback::SameUser)
    }

    /// Says it in a clause.
    pub const fn text(self) -> &'static str {
        match self {
            Fallback::Own => "a service may use the names that it provides",
            Fallback::Supervised => "a supervised service may do nothing that no rule allows",
            Fallback::Operator => "the runtime's own user, and root, may administer it",
            Fallback::Outsider => {
                "a process that ipcd did not start may not use supervised names unless a rule \
                 allows it"
            }
            Fallback::SameUser => "processes of one user that ipcd did not start may talk",
            Fallback::OtherUser => "processes of different users may not talk unless a rule allows",
            Fallback::Unserved => "nobody serves the name, so it is not known whose it would be",
            Fallback::Runtime => "the runtime takes administration only, from its own user or root",
        }
    }
}

/// What a policy is made of. The embedded runtime's has nothing but the user.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// The runtime's own user.
    pub uid: u32,
    /// In the order of the file.
    pub rules: Vec<Rule>,
    /// The line at which each rule stands; may be shorter than the rules.
    pub lines: Vec<u32>,
    /// Each supervised service, with the names that it provides.
    pub provides: Vec<(String, Vec<String>)>,
    /// In the order of the file.
    pub routes: Vec<Route>,
    /// Names whose payloads operators may see.
    pub payloads: Vec<Object>,
}

/// Judges by rules and defaults; never changes. A reload makes another one.
#[derive(Debug)]
pub struct Policy {
    uid: u32,
    rules: Vec<Rule>,
    lines: Vec<u32>,
    compiled: Compiled,
    routes: Vec<Route>,
    payloads: Vec<Object>,
    /// Which service provides a name.
    providers: HashMap<Box<str>, Box<str>>,
}

impl Policy {
    /// Prepares the rules so that a judgement looks only at those about its subject and object.
    ///
    /// A name that two services provide is the first one's; the node file's checks refuse that.
    pub fn new(terms: Terms) -> Policy {
        let mut providers: HashMap<Box<str>, Box<str>> = HashMap::new();
        for (service, names) in terms.provides {
            for name in names {
                providers.entry(name.into()).or_insert_with(|| service.as_str().into());
            }
        }
        let Terms { uid, rules, lines, routes, payloads, .. } = terms;
        Policy { uid, compiled: Compiled::new(&rules), rules, lines, routes, payloads, providers }
    }

    /// Gives the rules, in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Gives the line at which a rule stands, where it is known.
    pub fn line(&self, rule: usize) -> Option<u32> {
        self.lines.get(rule).copied()
    }

    /// Gives the service that alone may serve a name.
    pub fn provider(&self, name: &str) -> Option<&str> {
        self.providers.get(name).map(AsRef::as_ref)
    }

    /// Decides whether a channel between a client and who serves a name is encrypted: by the first
    /// route that matches, and otherwise where the two are of different users.
    pub fn encrypts(&self, who: &Who, what: What<'_>) -> bool {
        let route = self.routes.iter().find(|it| it.subject.is(who) && concerns(&it.object, what));
        route.map_or_else(
            || !matches!(what, What::Name { served_by: Some(uid), .. } if uid == who.uid()),
            |route| route.encrypted,
        )
    }

    /// Decides whether operators may see payloads of what is sent to a name.
    pub fn shows_payloads(&self, name: &str) -> bool {
        let what = What::Name { text: name, served_by: None };
        self.payloads.iter().any(|it| concerns(it, what))
    }

    /// Decides one operation. Takes time by the rules about this subject and object, not by all.
    pub fn judge(&self, who: &Who, what: What<'_>, operation: Operation) -> Verdict {
        match self.compiled.first(&self.rules, who, what, operation) {
            Some(index) => {
                Verdict { allowed: self.rules[index].allow, because: Because::Rule(index) }
            }
            None => by_default(self.fallback(who, what, operation)),
        }
    }

    /// Gives the bits of all operations that are allowed.
    pub fn permitted(&self, who: &Who, what: What<'_>) -> u64 {
        let allowed = Operation::ALL.into_iter().filter(|&it| self.judge(who, what, it).allowed);
        allowed.fold(0, |mask, it| mask | it.bit())
    }

    /// Decides whether somebody may serve a name, beside those of user `served_by` who do already.
    ///
    /// Rules have no say: a provided name is its service's alone, a service serves what it provides
    /// and nothing else, and a group of replicas has one user.
    pub fn registering(&self, who: &Who, name: &str, served_by: Option<u32>) -> Verdict {
        by_default(match (who, self.provider(name)) {
            (Who::Supervised { service, .. }, Some(provider)) if service == provider => {
                Fallback::Own
            }
            (Who::Supervised { .. }, _) => Fallback::Supervised,
            (Who::Unsupervised { .. }, Some(_)) => Fallback::Outsider,
            (Who::Unsupervised { uid, .. }, None) => match served_by {
                Some(other) if other != *uid => Fallback::OtherUser,
                Some(_) | None => Fallback::SameUser,
            },
        })
    }

    /// Finds, after a reload, the channels that this policy would not open as they are, in their
    /// order. Each is named with the first operation that it has lost.
    pub fn revoked<'a>(&self, open: impl IntoIterator<Item = Open<'a>>) -> Vec<Revoked> {
        let lost = |channel: Open<'a>| {
            let granted = Operation::ALL.into_iter().filter(|it| channel.granted & it.bit() != 0);
            granted.into_iter().find_map(|operation| {
                let verdict = self.judge(channel.who, channel.what, operation);
                let because = verdict.because;
                (!verdict.allowed).then_some(Revoked { channel: channel.id, operation, because })
            })
        };
        open.into_iter().filter_map(lost).collect()
    }

    /// Judges, and says why in words.
    pub fn explain(&self, who: &Who, what: What<'_>, operation: Operation) -> Explanation {
        Explanation::of(self, who, what, operation)
    }

    fn fallback(&self, who: &Who, what: What<'_>, operation: Operation) -> Fallback {
        let operates = operation == Operation::Admin && self.is_operator(who);
        match (who, what) {
            (Who::Supervised { service, .. }, What::Name { text, .. })
                if self.provider(text) == Some(service) =>
            {
                Fallback::Own
            }
            (Who::Supervised { .. }, _) => Fallback::Supervised,
            (Who::Unsupervised { .. }, What::Runtime) if operates => Fallback::Operator,
            (Who::Unsupervised { .. }, What::Runtime) => Fallback::Runtime,
            (Who::Unsupervised { uid, .. }, What::Name { text, served_by }) => {
                match (self.provider(text), served_by) {
                    (Some(_), _) if operates => Fallback::Operator,
                    (Some(_), _) => Fallback::Outsider,
                    (None, None) => Fallback::Unserved,
                    (None, Some(other)) if other == *uid => Fallback::SameUser,
                    (None, Some(_)) => Fallback::OtherUser,
                }
            }
        }
    }

    fn is_operator(&self, who: &Who) -> bool {
        matches!(who, Who::Unsupervised { uid, .. } if *uid == self.uid || *uid == 0)
    }
}

/// An open channel, to be judged again.
#[derive(Clone, Copy, Debug)]
pub struct Open<'a> {
    /// The channel's id.
    pub id: u64,
    /// Who opened it.
    pub who: &'a Who,
    /// What it leads to.
    pub what: What<'a>,
    /// The operations for which it was opened, as [`Policy::permitted`] gave them.
    pub granted: u64,
}

/// A channel that has to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The channel's id.
    pub channel: u64,
    /// What it may no longer do.
    pub operation: Operation,
    /// Why.
    pub because: Because,
}

fn by_default(fallback: Fallback) -> Verdict {
    Verdict { allowed: fallback.allows(), because: Because::Default(fallback) }
}

/// Tells whether a rule is about something.
fn concerns(object: &Object, what: What<'_>) -> bool {
    match (object, what) {
        (Object::Any, What::Name { .. }) | (Object::Runtime, What::Runtime) => true,
        (Object::Name(pattern), What::Name { text, .. }) => match pattern.strip_suffix('*') {
            Some(prefix) => text.starts_with(prefix),
            None => pattern == text,
        },
        (Object::Any | Object::Name(_), What::Runtime) | (Object::Runtime, What::Name { .. }) => {
            false
        }
    }
}

#[cfg(test)]
mod tests;
