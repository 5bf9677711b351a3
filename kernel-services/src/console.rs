//! What ipcd says to whoever started it.

use std::io::Write;

/// Writes one line to stderr, in one piece. Nobody may be listening, which is no reason to end.
pub fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("ipcd: {line}\n").as_bytes());
}
