//! `ipctl call`: send a message, show the answer.

use std::{fmt, time::Instant};

use clap::{Args, ValueEnum};
use ipc::{CallOptions, Config, Node, Priority};
use serde::Serialize;

use crate::{
    failure::Failure,
    output::{self, Output},
    payload::{self, Dump, Payload},
    service::{self, Patience},
    units,
};

/// Send a message to a service, and print what it answers.
///
/// The answer is printed as text if a terminal can show it, else as a hex dump; --raw writes its
/// bytes as they are.
#[derive(Args)]
#[command(verbatim_doc_comment, after_long_help = HELP)]
pub(crate) struct Arguments {
    /// Service to call, as `ipctl ls` names it
    #[arg(value_parser = service::name)]
    name: String,
    #[command(flatten)]
    payload: Payload,
    /// Write the answer's bytes to stdout as they are
    #[arg(long, conflicts_with_all = ["json", "one_way"])]
    raw: bool,
    /// Send without asking for an answer
    #[arg(long)]
    one_way: bool,
    /// How urgent it is; critical and high overtake what is queued
    #[arg(long, value_enum, default_value_t = Urgency::Normal, value_name = "LEVEL")]
    priority: Urgency,
    #[command(flatten)]
    patience: Patience,
}

const HELP: &str = "\
Examples:
  ipctl call echo hello
  ipctl call echo -- --text that starts with dashes needs the double dash
  ipctl call echo --hex 'de ad be ef'
  ipctl call echo --file request.bin --raw > answer.bin
  date | ipctl call echo --file - --timeout 500ms
  ipctl call echo.sink --one-way tick
  ipctl call echo hello --json | jq .micros

With --json the answer is an object of \"bytes\", \"text\", \"hex\" and \"micros\", without text
where it is not printable; with --one-way {\"bytes\":N,\"message_id\":\"…\"}, of what was sent.";

#[derive(Clone, Copy, ValueEnum)]
enum Urgency {
    Critical,
    High,
    Normal,
    Low,
    Background,
}

impl From<Urgency> for Priority {
    fn from(urgency: Urgency) -> Priority {
        match urgency {
            Urgency::Critical => Priority::Critical,
            Urgency::High => Priority::High,
            Urgency::Normal => Priority::Normal,
            Urgency::Low => Priority::Low,
            Urgency::Background => Priority::Background,
        }
    }
}

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let payload = arguments.payload.read()?;
    let node = Node::connect(config)?;
    let client = arguments.patience.open(&node, &arguments.name)?;
    let options =
        CallOptions::timeout(arguments.patience.timeout).priority(arguments.priority.into());
    if arguments.one_way {
        let message_id = client.send(&payload, options)?;
        return output.show(&Sent { bytes: payload.len(), message_id: message_id.to_string() });
    }
    let called = Instant::now();
    let bytes = client.call(&payload, options)?;
    let micros = units::micros(called.elapsed());
    if arguments.raw {
        return output::write(&bytes);
    }
    if bytes.is_empty() {
        output.remark("the answer is empty");
    }
    output.show(&Answer::new(&bytes, micros))
}

/// A string, since most readers of JSON round numbers of 64 bits.
#[derive(Serialize)]
struct Sent {
    bytes: usize,
    message_id: String,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sent {} bytes as message {}", self.bytes, self.message_id)
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(rename = "bytes")]
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    hex: String,
    micros: f64,
    #[serde(skip)]
    bytes: &'a [u8],
}

impl Answer<'_> {
    fn new(bytes: &[u8], micros: f64) -> Answer<'_> {
        let (text, hex) = (payload::printable(bytes), payload::hex(bytes));
        Answer { size: bytes.len(), text, hex, micros, bytes }
    }
}

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text {
            Some(text) => f.write_str(text),
            None => Dump(self.bytes).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_as_text_and_the_rest_as_a_dump() {
        assert_eq!(Answer::new(b"hello", 1.0).to_string(), "hello");
        assert!(Answer::new(b"\x00\x01", 1.0).to_string().starts_with("00000000  00 01"));
        assert_eq!(Answer::new(b"", 1.0).to_string(), "");
    }

    #[test]
    fn programs_get_hex_always_and_text_where_there_is_one() {
        let json = |bytes| serde_json::to_string(&Answer::new(bytes, 1.5)).expect("plain data");
        assert_eq!(json(b"hi"), r#"{"bytes":2,"text":"hi","hex":"6869","micros":1.5}"#);
        assert_eq!(json(b"\xff"), r#"{"bytes":1,"hex":"ff","micros":1.5}"#);
    }
}
