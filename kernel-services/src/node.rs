//! The node file: which services make up a system, and on what terms.
//!
//! [`load`] reads a TOML file into a [`Node`] in which every default is filled in and every
//! reference leads somewhere, or says all that is wrong with it at once. [`Change::between`] tells
//! what a new file asks of a system that runs an old one. `docs/supervision.md` has every key.
//!
//! ```text
//!   text ─▶ toml ─▶ parse ─────▶ check ─────▶ Node ─▶ start_order, Change
//!                   one value    together       │
//!                     └─────┬──────┘            └─ warnings
//!                        faults, each with its place
//! ```

mod change;
mod check;
mod failover;
mod fault;
mod fields;
mod listener;
mod monitor;
mod order;
mod parse;
mod quantity;
mod rules;
mod spec;
#[cfg(test)]
mod tests;
mod topics;

use std::{
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::fcntl::OFlag;
use toml::de::DeTable;

pub(crate) use change::needs_restart;
pub use change::{Change, Difference};
pub use fault::{Fault, NodeError};
pub use listener::NoListener;
pub use order::{start_order, stop_order};
pub use spec::{
    Backoff, Failover, Grants, Group, Intensity, Limits, Listener, Log, LogFormat, Monitor, Node,
    Object, Quota, Readiness, Ready, Restart, Route, Rule, Sandbox, Service, Strategy, Subject,
    Topic, Watchdog,
};

use check::Absence;
use fault::Finding;
use fields::Reading;

/// More than any system of services needs, and little enough to read in one go.
const MAX_BYTES: u64 = 1 << 20;

/// Reads a node file for a system that is to be started: its programs must be there.
///
/// # Errors
/// - the file cannot be read → [`NodeError::Read`], or [`NodeError::TooLong`] over 1 MiB
/// - anything in it is wrong, or a program or directory is missing → [`NodeError::Wrong`]
pub fn load(path: &Path) -> Result<Node, NodeError> {
    checked(&read(path)?, path, Some(Absence::Fault))
}

/// Reads a node file for a system that runs. A missing program or directory is a warning: it
/// concerns nobody before the next start, and by then it may be there.
///
/// # Errors
/// As [`load`], but for those.
pub fn reload(path: &Path) -> Result<Node, NodeError> {
    checked(&read(path)?, path, Some(Absence::Warning))
}

/// Reads the text of a node file, wherever it is from. Its relative paths begin where `path` lies.
/// Only users are looked up.
///
/// # Errors
/// Anything in it is wrong → [`NodeError::Wrong`].
pub fn parse(text: &str, path: &Path) -> Result<Node, NodeError> {
    checked(text.as_bytes(), path, None)
}

fn read(path: &Path) -> Result<Vec<u8>, NodeError> {
    let failed = |source| NodeError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    // A pipe would keep its reader waiting, and with it all that runs; and it is read but once.
    let waits_not = OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(waits_not).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        let what = "it is a directory, a pipe or a device, and no file";
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, what)));
    }
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(NodeError::TooLong { path: path.to_owned(), limit: MAX_BYTES });
    }
    Ok(bytes)
}

fn checked(bytes: &[u8], path: &Path, absence: Option<Absence>) -> Result<Node, NodeError> {
    let file = path.display().to_string();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let (what, hint) = ("this is not UTF-8", "save the file in UTF-8");
            let start = error.valid_up_to();
            let finding =
                Finding { span: start..start + 1, what: what.to_owned(), hint: hint.to_owned() };
            // What is no text becomes one sign each, after the place.
            let fault = finding.locate(&file, &String::from_utf8_lossy(bytes));
            return Err(NodeError::Wrong { faults: vec![fault] });
        }
    };
    let located = |findings: Vec<Finding>| -> Vec<Fault> {
        let mut faults: Vec<Fault> =
            findings.into_iter().map(|finding| finding.locate(&file, text)).collect();
        faults.sort_by_key(|fault| (fault.line, fault.column));
        faults
    };
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(NodeError::Wrong { faults: located(misspelt(text, &errors)) });
    }
    let mut reading =
        Reading { base: fields::directory_of(path), faults: Vec::new(), warnings: Vec::new() };
    let mut draft = parse::document(&mut reading, root.get_ref());
    check::text(&mut reading, &draft);
    if let Some(absence) = absence {
        check::files(&mut reading, &draft, absence);
    }
    let faults = located(reading.faults);
    if faults.is_empty() {
        draft.node.warnings = located(reading.warnings);
        let line = |at: usize| text[..text.floor_char_boundary(at)].matches('\n').count() + 1;
        let lines = draft.rules.iter().map(|rule| line(rule.whole.start) as u32);
        draft.node.rule_lines = lines.collect();
        Ok(draft.node)
    } else {
        Err(NodeError::Wrong { faults })
    }
}

/// Says where the text is no TOML: once a line, since one slip makes the rest of it senseless.
fn misspelt(text: &str, errors: &[toml::de::Error]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    let line_of = |at: usize| text[..text.floor_char_boundary(at)].matches('\n').count();
    for error in errors {
        let span = error.span().unwrap_or_default();
        if findings.last().is_some_and(|last| line_of(last.span.start) == line_of(span.start)) {
            continue;
        }
        let (what, hint) = match error.message() {
            "duplicate key" => {
                let key = text.get(span.clone()).unwrap_or_default();
                (format!("{key} is here for the second time"), "leave one of them")
            }
            message if message.starts_with("string values must be quoted") => {
                ("a value is missing, or a text without quotes".to_owned(), "put it in quotes")
            }
            message => (
                format!("this is not TOML: {message}"),
                "write [table] or key = value; https://toml.io has the rest",
            ),
        };
        findings.push(Finding { span, what, hint: hint.to_owned() });
    }
    findings
}
