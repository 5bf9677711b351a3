//! Bytes of a log in, lines for whoever reads out.

use serde_json::{Map, Value, json};

use crate::supervised::harmless;

/// The longest line that is waited for; a longer one is shown in pieces.
const LONGEST: usize = 1024 * 1024;

/// What loggers call the time, the level and the message.
const TIMES: [&str; 5] = ["time", "timestamp", "ts", "@timestamp", "datetime"];
const LEVELS: [&str; 4] = ["level", "severity", "lvl", "levelname"];
const MESSAGES: [&str; 3] = ["message", "msg", "event"];

/// How lines are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Pretty,
    Raw,
    Json,
}

/// Cuts what comes into lines, and shows whole ones.
#[derive(Debug)]
pub(super) struct Lines {
    service: String,
    prefix: String,
    form: Form,
    /// The beginning of a line whose end has not come yet.
    begun: Vec<u8>,
}

impl Lines {
    /// `width` is that of the names before the lines, if there are names.
    pub(super) fn new(service: &str, width: Option<usize>, form: Form) -> Lines {
        let prefix = width.map(|width| format!("{service:<width$} | ")).unwrap_or_default();
        Lines { service: service.to_owned(), prefix, form, begun: Vec::new() }
    }

    /// Shows the lines that end in these bytes.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 8);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(piece);
            if self.begun.ends_with(b"\n") {
                self.begun.pop();
                self.show(&mut out);
            } else if self.begun.len() >= LONGEST {
                self.show(&mut out);
            }
        }
        out
    }

    /// Shows a line that has no end, where none is to come.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.begun.is_empty() {
            self.show(&mut out);
        }
        out
    }

    fn show(&mut self, out: &mut Vec<u8>) {
        let line = std::mem::take(&mut self.begun);
        match self.form {
            Form::Raw => {
                out.extend(self.prefix.as_bytes());
                out.extend(line);
            }
            Form::Pretty => {
                out.extend(self.prefix.as_bytes());
                out.extend(pretty(&String::from_utf8_lossy(&line)).as_bytes());
            }
            Form::Json => {
                let line = String::from_utf8_lossy(&line);
                out.extend(json!({ "service": self.service, "line": line }).to_string().as_bytes());
            }
        }
        out.push(b'\n');
    }
}

/// Time, level and message of a line that is a JSON object, then its other fields; else the line.
pub(crate) fn pretty(line: &str) -> String {
    let line = line.strip_suffix('\r').unwrap_or(line);
    if !line.starts_with('{') {
        return harmless(line);
    }
    let Ok(mut fields) = serde_json::from_str::<Map<String, Value>>(line) else {
        return harmless(line);
    };
    // Where `tracing` has the message.
    if let Some(Value::Object(inner)) = fields.remove("fields") {
        fields.extend(inner);
    }
    let mut take = |names: &[&str]| names.iter().find_map(|name| fields.remove(*name));
    let (time, level, message) = (take(&TIMES), take(&LEVELS), take(&MESSAGES));
    let level = level.map(|level| format!("{:<5}", plain(&level).to_uppercase()));
    let mut parts: Vec<String> = [time.as_ref().map(plain), level, message.as_ref().map(plain)]
        .into_iter()
        .flatten()
        .collect();
    parts.extend(fields.iter().map(|(name, value)| format!("{name}={}", field(value))));
    harmless(&parts.join(" "))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

/// With quotes only where it could not be told from what is beside it.
fn field(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '=']) => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(width: Option<usize>, form: Form, pieces: &[&[u8]]) -> String {
        let mut lines = Lines::new("api", width, form);
        let mut out: Vec<u8> = pieces.iter().flat_map(|piece| lines.take(piece)).collect();
        out.extend(lines.rest());
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        assert_eq!(
            shown(None, Form::Raw, &[b"on", b"e\ntw", b"o\n\nthree"]),
            "one\ntwo\n\nthree\n"
        );
        let mut lines = Lines::new("api", None, Form::Raw);
        assert_eq!(lines.take(b"one\ntw"), b"one\n", "what is begun waits for its end");
    }

    #[test]
    fn a_line_without_end_is_shown_in_pieces() {
        let mut lines = Lines::new("api", None, Form::Raw);
        assert_eq!(lines.take(&vec![b'x'; LONGEST]).len(), LONGEST + 1);
        assert!(lines.rest().is_empty());
    }

    #[test]
    fn names_stand_before_lines_of_several_services() {
        assert_eq!(shown(Some(5), Form::Pretty, &[b"a\nb\n"]), "api   | a\napi   | b\n");
        assert_eq!(shown(Some(5), Form::Raw, &[b"a\x1b\n"]), "api   | a\x1b\n");
        let json = "{\"line\":\"a\\u001b\",\"service\":\"api\"}\n";
        assert_eq!(shown(Some(5), Form::Json, &[b"a\x1b\n"]), json);
    }

    #[test]
    fn json_lines_are_time_level_and_message_and_then_the_rest() {
        for (line, expected) in [
            (
                r#"{"time":"12:00:01","level":"info","message":"up","port":80,"to":"a b","k":"v"}"#,
                r#"12:00:01 INFO  up k=v port=80 to="a b""#,
            ),
            (
                r#"{"timestamp":"T","level":"ERROR","fields":{"message":"no","n":1},"on":1}"#,
                "T ERROR no n=1 on=1",
            ),
            (r#"{"ts":1.5,"msg":"\u001b[2J"}"#, r"1.5 \u{1b}[2J"),
            (r#"{"broken"#, r#"{"broken"#),
            ("plain \u{1b}[1m text\r", r"plain \u{1b}[1m text"),
            ("{}", ""),
        ] {
            assert_eq!(pretty(line), expected, "{line}");
        }
    }
}
