//! The rules of a node file: who may do what with whom.

use nix::unistd::User;

use super::{
    Object, Route, Rule, Subject,
    fault::instead,
    fields::{Field, Reading, Span, Table},
    quantity::quoted,
};
use crate::security::Operation;

/// Reads one `[[rule]]`, with the place of its `from`.
pub(super) fn rule(reading: &mut Reading, field: Field<'_>) -> Option<(Rule, Span)> {
    let at = field.span();
    let mut table = Table::open(reading, field, "[[rule]]".to_owned())?;
    let subject = table.read(reading, "from", |reading, field| {
        subject(reading, field).map(|subject| (subject, field.span()))
    });
    let object = table.read(reading, "to", object);
    let allowed = table.read(reading, "allow", operations);
    let denied = table.read(reading, "deny", operations);
    for (key, example) in [("from", "\"service:NAME\""), ("to", "\"name:NAME\"")] {
        if !table.has(key) {
            let what = format!("the rule has no {key}");
            let hint = format!("write {key} = {example}, or {key} = \"any\"");
            reading.fault(at.clone(), what, hint);
        }
    }
    if table.has("allow") == table.has("deny") {
        let what = "the rule must either allow or deny something".to_owned();
        reading.fault(at, what, "write one of allow = [...] and deny = [...]");
    }
    let place = table.place("allow").or(table.place("deny")).unwrap_or_default();
    table.close(reading);
    let allow = allowed.is_some();
    let operations = allowed.or(denied)?;
    let ((subject, from), object) = (subject?, object?);
    if object == Object::Runtime
        && operations != Operation::MASK
        && operations != Operation::Admin.bit()
    {
        let what = "the runtime itself is only administered".to_owned();
        reading.fault(place, what, "write [\"admin\"], or make it a rule on a name");
    }
    Some((Rule { subject, object, operations, allow }, from))
}

/// Reads one `[[route]]`.
pub(super) fn route(reading: &mut Reading, field: Field<'_>) -> Option<Route> {
    let at = field.span();
    let mut table = Table::open(reading, field, "[[route]]".to_owned())?;
    let subject = table.read(reading, "from", subject);
    let object = table.read(reading, "to", object);
    let encrypted = table.read(reading, "session", |reading, field| {
        let (at, text) = (field.span(), reading.text(field)?);
        match text {
            "plain" => Some(false),
            "encrypted" => Some(true),
            _ => {
                let what = format!("{} is no kind of session", quoted(text));
                reading.fault(at, what, "write \"plain\" or \"encrypted\"");
                None
            }
        }
    });
    let examples =
        [("from", "\"service:NAME\""), ("to", "\"name:NAME\""), ("session", "\"encrypted\"")];
    for (key, example) in examples {
        if !table.has(key) {
            let what = format!("the route has no {key}");
            reading.fault(at.clone(), what, format!("write {key} = {example}"));
        }
    }
    table.close(reading);
    let (subject, object, encrypted) = (subject?, object?, encrypted?);
    if object == Object::Runtime {
        let what = "there are no channels to the runtime itself".to_owned();
        reading.fault(at, what, "write \"any\", \"name:NAME\" or \"name:PREFIX*\"");
    }
    Some(Route { subject, object, encrypted })
}

fn subject(reading: &mut Reading, field: Field<'_>) -> Option<Subject> {
    let text = reading.text(field)?;
    match text.split_once(':') {
        None if text == "any" => return Some(Subject::Any),
        Some(("service", name)) => return Some(Subject::Service(name.to_owned())),
        Some(("user", name)) => {
            // A number needs no account.
            if let Ok(id) = name.parse() {
                return Some(Subject::User(id));
            }
            return user_id(reading, field.span(), name).map(Subject::User);
        }
        Some(("executable", path)) if path.starts_with('/') => {
            return Some(Subject::Executable(reading.resolve(path)));
        }
        _ => {}
    }
    let hint = "write \"any\", \"service:NAME\", \"user:NAME\" or \"executable:/PATH\"";
    reading.fault(field.span(), format!("{} is nobody", quoted(text)), hint);
    None
}

/// Reads what rules are about: a name, those that begin alike, all of them, or the runtime.
pub(super) fn object(reading: &mut Reading, field: Field<'_>) -> Option<Object> {
    let text = reading.text(field)?;
    match text {
        "any" => return Some(Object::Any),
        "runtime" => return Some(Object::Runtime),
        _ => {}
    }
    let Some(name) = text.strip_prefix("name:") else {
        let hint = "write \"any\", \"name:NAME\", \"name:PREFIX*\" or \"runtime\"";
        reading.fault(field.span(), format!("{} is nothing to have rights on", quoted(text)), hint);
        return None;
    };
    if let Err(reason) = ipc::control::check_name(name) {
        let what = format!("nobody serves {}: {reason}", quoted(name));
        reading.fault(field.span(), what, "write a name that can be served");
        return None;
    }
    if name.find('*').is_some_and(|star| star + 1 < name.len()) {
        let what = format!("{} has a * that is not at its end", quoted(name));
        reading.fault(field.span(), what, "write a prefix and one * after it, or a whole name");
        return None;
    }
    Some(if name == "*" { Object::Any } else { Object::Name(name.to_owned()) })
}

/// Finds a user by name.
pub(super) fn user_id(reading: &mut Reading, at: Span, name: &str) -> Option<u32> {
    match User::from_name(name) {
        Ok(Some(user)) => return Some(user.uid.as_raw()),
        Ok(None) => {
            let hint = "see `getent passwd` for those that there are";
            reading.fault(at, format!("there is no user {}", quoted(name)), hint);
        }
        Err(errno) => {
            let what = format!("cannot look up the user {}: {errno}", quoted(name));
            reading.fault(at, what, "try again when `getent passwd` answers");
        }
    }
    None
}

/// Reads one operation or a list of them into their bits.
fn operations(reading: &mut Reading, field: Field<'_>) -> Option<u64> {
    let words = if field.value.get_ref().is_array() {
        reading.list(field, Reading::text)
    } else {
        vec![(reading.text(field)?, field.span())]
    };
    let known: Vec<&str> = Operation::ALL.map(Operation::name).into_iter().chain(["all"]).collect();
    let mut bits = 0;
    for (word, at) in &words {
        match Operation::from_name(word) {
            Some(operation) => bits |= operation.bit(),
            None if *word == "all" => bits |= Operation::MASK,
            None => {
                let hint = instead(word, &known, "operations are");
                reading.fault(at.clone(), format!("unknown operation {}", quoted(word)), hint);
            }
        }
    }
    if words.is_empty() {
        let what = format!("{} lists no operation", field.key);
        reading.fault(field.span(), what, "write operations, or \"all\"");
    }
    Some(bits)
}

/// Tells of which earlier rules leave nothing for the last one to decide; none if it has something.
pub(super) fn covering(earlier: &[Rule], rule: &Rule) -> Vec<usize> {
    let mut open = rule.operations;
    let mut by = Vec::new();
    for (index, other) in earlier.iter().enumerate() {
        if open & other.operations != 0
            && covers_subject(&other.subject, &rule.subject)
            && covers_object(&other.object, &rule.object)
        {
            open &= !other.operations;
            by.push(index);
        }
    }
    if open == 0 { by } else { Vec::new() }
}

fn covers_subject(wide: &Subject, narrow: &Subject) -> bool {
    *wide == Subject::Any || wide == narrow
}

fn covers_object(wide: &Object, narrow: &Object) -> bool {
    match (wide, narrow) {
        (Object::Any, Object::Any | Object::Name(_)) => true,
        (Object::Name(wide), Object::Name(narrow)) => {
            wide == narrow
                || wide.strip_suffix('*').is_some_and(|prefix| narrow.starts_with(prefix))
        }
        _ => wide == narrow,
    }
}
