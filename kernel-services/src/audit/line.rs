//! One line: its one way to be written, and its check.

use std::{
    fmt::{self, Write},
    str::FromStr,
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{FIELD, Kind, Record};

/// A SHA-256, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(to, "{byte:02x}"))
    }
}

impl FromStr for Hash {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Hash, Fault> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(Fault::Form);
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = [pair[0], pair[1]].map(|it| (it as char).to_digit(16));
            *byte = (high.ok_or(Fault::Form)? * 16 + low.ok_or(Fault::Form)?) as u8;
        }
        Ok(Hash(hash))
    }
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a record as this version writes them.
    #[error("it is no record")]
    Form,
    /// Its hash is not that of its text.
    #[error("it was changed: its hash is another")]
    Changed,
    /// It does not follow the line before it.
    #[error("a record before it was changed, taken out or put in")]
    Chain,
    /// Its number does not follow.
    #[error("its number does not follow the one before it")]
    Number,
    /// It does not end.
    #[error("it is cut off")]
    Torn,
}

/// Where a chain stands: the number and hash of its last record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) hash: Hash,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parsed {
    seq: u64,
    time_us: u64,
    kind: Kind,
    subject: String,
    object: String,
    operation: String,
    verdict: Option<bool>,
    because: String,
    previous: String,
    hash: String,
}

/// A line that was checked by itself.
pub(super) struct Line {
    pub(super) link: Link,
    pub(super) previous: Hash,
    pub(super) kind: Kind,
}

impl Line {
    /// Reads a line without its end, and checks it by itself. A record has one way to be written,
    /// so every byte counts.
    pub(super) fn read(text: &[u8]) -> Result<Line, Fault> {
        let parsed: Parsed = serde_json::from_slice(text).map_err(|_| Fault::Form)?;
        let (previous, hash) = (parsed.previous.parse()?, parsed.hash.parse()?);
        let record = Record {
            kind: parsed.kind,
            subject: parsed.subject.into(),
            object: parsed.object.into(),
            operation: parsed.operation.into(),
            verdict: parsed.verdict,
            because: parsed.because.into(),
        };
        let before = Link { seq: parsed.seq.wrapping_sub(1), hash: previous };
        let mut again = String::new();
        let link = write(&mut again, before, parsed.time_us, &record);
        if link.hash != hash {
            return Err(Fault::Changed);
        }
        if again.strip_suffix('\n').map(str::as_bytes) != Some(text) {
            return Err(Fault::Form);
        }
        Ok(Line { link, previous, kind: parsed.kind })
    }

    /// Checks that it follows.
    pub(super) fn follows(&self, before: Link) -> Result<(), Fault> {
        if self.previous != before.hash {
            Err(Fault::Chain)
        } else if self.link.seq != before.seq.wrapping_add(1) {
            Err(Fault::Number)
        } else {
            Ok(())
        }
    }
}

/// Appends the line of a record, and gives where the chain stands then.
pub(super) fn write(to: &mut String, before: Link, time_us: u64, record: &Record<'_>) -> Link {
    let start = to.len();
    let seq = before.seq.wrapping_add(1);
    let kind = serde_json::to_string(&record.kind).unwrap_or_default();
    let _ = write!(to, r#"{{"seq":{seq},"time_us":{time_us},"kind":{kind}"#);
    let Record { subject, object, operation, verdict, because, .. } = record;
    for (name, text) in [("subject", subject), ("object", object), ("operation", operation)] {
        field(to, name, text);
    }
    let verdict = verdict.map_or("null", |allowed| if allowed { "true" } else { "false" });
    let _ = write!(to, r#","verdict":{verdict}"#);
    field(to, "because", because);
    let _ = write!(to, r#","previous":"{}""#, before.hash);
    let hash = Hash(Sha256::digest(&to.as_bytes()[start..]).into());
    let _ = writeln!(to, r#","hash":"{hash}"}}"#);
    Link { seq, hash }
}

/// Writes a field so that neither a parser, nor a pager, nor a terminal takes it for anything else.
fn field(to: &mut String, name: &str, text: &str) {
    let _ = write!(to, r#","{name}":""#);
    let (kept, rest) = cut(text);
    for character in kept.chars() {
        match character {
            '"' => to.push_str("\\\""),
            '\\' => to.push_str("\\\\"),
            ' ' => to.push(' '),
            '→' => to.push('→'),
            plain if plain.is_ascii_graphic() || plain.is_alphanumeric() => to.push(plain),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    let _ = write!(to, "\\u{unit:04x}");
                }
            }
        }
    }
    to.push_str(if rest { "...\"" } else { "\"" });
}

/// Cuts a text that is longer than a field. What was cut once is not cut again.
fn cut(text: &str) -> (&str, bool) {
    if text.len() <= FIELD {
        return (text, false);
    }
    let mut end = FIELD - 3;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    (&text[..end], true)
}
