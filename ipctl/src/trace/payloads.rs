//! What there is of the payloads of traced requests and of their answers.

use std::fmt;

use ipc::Payload;
use serde_json::{Value, json};

use super::route::Route;
use crate::payload::{hex, printable};

/// Writes those of a trace, in its order: as text where they are text, else as hex digits.
pub(super) fn write(f: &mut fmt::Formatter<'_>, route: &Route<'_>) -> fmt::Result {
    let mut gap = "\n";
    for (depth, one) in route.walk() {
        let indent = "  ".repeat(depth);
        for (what, payload) in [("is asked", &one.payload), ("answers", &one.answer)] {
            if let Some(payload) = payload {
                writeln!(f, "{gap}{indent}{} {what} {}", one.process, Shown(payload))?;
                gap = "";
            }
        }
    }
    Ok(())
}

/// Gives one as an argument of a span.
pub(super) fn json(payload: &Payload) -> Value {
    if payload.is_encrypted {
        return json!({ "encrypted": true, "length": payload.length });
    }
    let mut value = json!({ "length": payload.length, "hex": hex(&payload.bytes) });
    if let Some(text) = text(payload) {
        value["text"] = text.into();
    }
    value
}

/// What of it is text: one that is cut may end within a character.
fn text(payload: &Payload) -> Option<&str> {
    let whole = match std::str::from_utf8(&payload.bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => payload.bytes.len(),
    };
    printable(&payload.bytes[..whole])
}

struct Shown<'a>(&'a Payload);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Payload { is_encrypted, length, bytes, .. } = self.0;
        match bytes.len() as u64 {
            _ if *is_encrypted => return write!(f, "{length} bytes, encrypted"),
            0 => return write!(f, "{length} bytes"),
            shown if shown < *length => write!(f, "{length} bytes, of which the first {shown}: ")?,
            _ => write!(f, "{length} bytes: ")?,
        }
        match text(self.0) {
            Some(text) => write!(f, "{text:?}"),
            None => f.write_str(&hex(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Record, tests::done};

    fn payload(length: u64, bytes: &[u8]) -> Payload {
        Payload {
            trace: 7,
            channel: 0,
            message_id: 0,
            is_answer: false,
            is_encrypted: false,
            length,
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn text_is_shown_as_such_and_never_reaches_a_terminal_raw() {
        let shown = |length, bytes| Shown(&payload(length, bytes)).to_string();
        assert_eq!(shown(3, b"a\nb"), "3 bytes: \"a\\nb\"");
        assert_eq!(shown(9, "aä".as_bytes()), "9 bytes, of which the first 3: \"aä\"");
        assert_eq!(shown(9, &"aä".as_bytes()[..2]), "9 bytes, of which the first 2: \"a\"");
        assert_eq!(shown(2, b"\x1b["), "2 bytes: 1b5b");
        assert_eq!(shown(1 << 20, b""), "1048576 bytes");
        let secret = Payload { is_encrypted: true, ..payload(5, b"") };
        assert_eq!(Shown(&secret).to_string(), "5 bytes, encrypted");
        assert_eq!(json(&secret), json!({ "encrypted": true, "length": 5 }));
        assert_eq!(json(&payload(2, b"hi")), json!({ "length": 2, "hex": "6869", "text": "hi" }));
    }

    #[test]
    fn a_trace_has_the_payloads_of_its_handlers() {
        let mut done = done();
        done[0].payload = Some(payload(2, b"hi"));
        done[2].answer = Some(payload(3, b"yes"));
        let record = Record { done };
        let text = record.to_string();
        let lines: Vec<&str> = text.lines().rev().collect();
        assert_eq!(lines[0], "    store answers 3 bytes: \"yes\"");
        assert_eq!(lines[1], "api is asked 2 bytes: \"hi\"");
        let events = record.chrome();
        let args = |index: usize| &events["traceEvents"][index + 2]["args"];
        assert_eq!(args(0)["payload"]["text"], "hi");
        assert_eq!(args(2)["answer"]["hex"], "796573");
        assert!(args(1).get("payload").is_none() && args(0).get("answer").is_none());
    }
}
