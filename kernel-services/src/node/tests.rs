//! The node file as a whole: what it says when it is wrong, that what is right is read as it was
//! meant, and that the example and the documentation show every key.

mod any;
mod changes;
mod faults;
mod files;
mod orders;
mod values;

use std::path::Path;

use super::{Fault, Node, NodeError, parse};

const FILE: &str = "/etc/ipc/node.toml";

fn node(text: &str) -> Node {
    parse(text, Path::new(FILE)).unwrap_or_else(|error| panic!("{error}"))
}

fn wrong(text: &str) -> Vec<Fault> {
    match parse(text, Path::new(FILE)) {
        Err(NodeError::Wrong { faults }) => faults,
        other => panic!("{text}\nis taken: {other:?}"),
    }
}

/// Returns the first lines of what is shown, without the file's name.
fn said(faults: &[Fault]) -> Vec<String> {
    let first = |fault: &Fault| {
        let shown = fault.to_string();
        let first = shown.lines().next().expect("it says something");
        first.strip_prefix(&format!("{FILE}:")).expect("it names the file").to_owned()
    };
    faults.iter().map(first).collect()
}
