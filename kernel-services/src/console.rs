//! What ipcd says to whoever started it.

use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether it is said in JSON.
static IN_JSON: AtomicBool = AtomicBool::new(false);

/// Has lines be JSON objects, or text.
pub(crate) fn speak(json: bool) {
    IN_JSON.store(json, Ordering::Relaxed);
}

/// Counts things whose plural has an s: "1 ping", "2 pings".
///
/// ```
/// assert_eq!(kernel_services::console::count(2_u32, "ping"), "2 pings");
/// ```
pub fn count(number: impl Into<u64>, thing: &str) -> String {
    let number = number.into();
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Writes one line to stderr, in one piece. Nobody may be listening, which is no reason to end.
pub fn say(line: &str) {
    let line = if IN_JSON.load(Ordering::Relaxed) {
        let fields = serde_json::json!({ "message": line });
        format!("{}\n", serde_json::json!({ "level": "info", "fields": fields }))
    } else {
        format!("ipcd: {line}\n")
    };
    let _ = std::io::stderr().write_all(line.as_bytes());
}
