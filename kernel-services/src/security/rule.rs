//! What rights are stated in: operations, rules, and the text of both.

use std::{fmt, path::PathBuf};

use super::Who;

/// Something that one may do with a name or the runtime; the numbers are C's `operation_type_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// Call, and have an answer.
    Call = 0,
    /// Send one way.
    Send = 1,
    /// Publish events.
    Publish = 2,
    /// Subscribe to events.
    Subscribe = 3,
    /// Map a shared region.
    MapRegion = 4,
    /// Start, stop, configure, fail over.
    Admin = 5,
}

impl Operation {
    /// All, by ascending number.
    pub const ALL: [Operation; 6] = [
        Operation::Call,
        Operation::Send,
        Operation::Publish,
        Operation::Subscribe,
        Operation::MapRegion,
        Operation::Admin,
    ];
    /// The bits of all.
    pub const MASK: u64 = (1 << Operation::ALL.len()) - 1;

    /// Gives its bit in a `permission_mask_t`.
    pub const fn bit(self) -> u64 {
        1 << self as u32
    }

    /// Finds the operation of a number, where there is one.
    pub fn from_number(number: u32) -> Option<Operation> {
        Operation::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Finds the operation of a name, as [`Operation::name`] gives it.
    pub fn from_name(name: &str) -> Option<Operation> {
        Operation::ALL.into_iter().find(|it| it.name() == name)
    }

    /// Names it, as the node file and `ipctl` do.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Call => "call",
            Operation::Send => "send",
            Operation::Publish => "publish",
            Operation::Subscribe => "subscribe",
            Operation::MapRegion => "map_region",
            Operation::Admin => "admin",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.pad(self.name())
    }
}

/// Names the operations of a mask, separated by a comma and a space.
pub fn names_of(mask: u64) -> String {
    let within = Operation::ALL.into_iter().filter(|it| mask & it.bit() != 0);
    let names: Vec<&str> = within.map(Operation::name).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// One rule on rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Who.
    pub subject: Subject,
    /// With whom.
    pub object: Object,
    /// What: bits `1 << operation_type_t`.
    pub operations: u64,
    /// Whether it may.
    pub allow: bool,
}

/// Says whether the channels of a route are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Who opens them.
    pub subject: Subject,
    /// The names that are served on them.
    pub object: Object,
    /// Whether they are.
    pub encrypted: bool,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Everybody.
    Any,
    /// A supervised service.
    Service(String),
    /// Processes of a user that ipcd did not start.
    User(u32),
    /// Processes of an executable that ipcd did not start.
    Executable(PathBuf),
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// Every name.
    Any,
    /// A name; one that ends in `*` is a prefix.
    Name(String),
    /// ipcd itself: `OP_ADMIN`.
    Runtime,
}

impl Subject {
    /// Tells whether this is the subject. One whose executable is not known is no executable's.
    pub(super) fn is(&self, who: &Who) -> bool {
        match (self, who) {
            (Subject::Any, _) => true,
            (Subject::Service(name), Who::Supervised { service, .. }) => name == service,
            (Subject::User(user), Who::Unsupervised { uid, .. }) => user == uid,
            (Subject::Executable(path), Who::Unsupervised { executable, .. }) => {
                executable.as_ref() == Some(path)
            }
            _ => false,
        }
    }
}

impl Rule {
    /// Writes it as a node file has it.
    pub fn to_toml(&self) -> String {
        let within = Operation::ALL.into_iter().filter(|it| self.operations & it.bit() != 0);
        let words: Vec<String> = within.map(|it| quoted(it.name())).collect();
        let [from, to] = [self.subject.to_string(), self.object.to_string()].map(|it| quoted(&it));
        let (verb, words) = (self.verb(), words.join(", "));
        format!("[[rule]]\nfrom = {from}\nto = {to}\n{verb} = [{words}]\n")
    }

    fn verb(&self) -> &'static str {
        if self.allow { "allow" } else { "deny" }
    }
}

/// Writes a string of TOML. Names have no control characters.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

impl fmt::Display for Rule {
    /// Says it in a line.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule { subject, object, operations, .. } = self;
        write!(to, "{subject} → {object}: {} {}", self.verb(), names_of(*operations))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Any => to.write_str("any"),
            Subject::Service(name) => write!(to, "service:{name}"),
            Subject::User(uid) => write!(to, "user:{uid}"),
            Subject::Executable(path) => {
                write!(to, "executable:{}", path.to_string_lossy().escape_debug())
            }
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Any => to.write_str("any"),
            Object::Name(name) => write!(to, "name:{name}"),
            Object::Runtime => to.write_str("runtime"),
        }
    }
}
