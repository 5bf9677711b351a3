//! `ipctl events`: which topics are there, and what is said in them?

use std::{fmt, fmt::Write as _};

use clap::{Args, Subcommand};
use ipc::{
    Config, Node,
    bus::{EventError, Start, SubscribeOptions},
    control::{Listener, TopicEntry},
};
use serde::Serialize;

use crate::{
    failure::Failure,
    output::Output,
    sight::program,
    supervised::harmless,
    table::{Align, Table},
};

/// List the topics of events, or watch one.
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    Watch(Watch),
    /// Show who subscribes to a topic, and how many events each has lost
    Subscribers {
        /// Its name, or its number
        topic: String,
    },
}

/// Show the events of a topic as they come, and how many were missed.
#[derive(Args)]
#[command(after_long_help = WATCH)]
struct Watch {
    /// Its name, or its number
    topic: String,
    /// Begin with so many of the last events
    #[arg(long, value_name = "N", default_value_t = 0)]
    last: u64,
    /// End after so many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

const HELP: &str = "\
Columns:
  TOPIC        its name
  ID           its number, event_type_t in C
  PUBLISHERS   rings that are published in
  SUBSCRIBERS  processes that subscribe
  RELIABLE     subscribers that publishers wait for
  RING         bytes of each publisher's ring
  RETAINED     whether the last events stay when their publisher is gone

What each subscriber has missed it knows itself, since publishers do not know of their subscribers.
It tells the runtime, ten times a second at most: see ipctl events subscribers.

Examples:
  ipctl events
  ipctl events subscribers prices
  ipctl events watch prices --last 10
  ipctl events --json | jq -r '.[] | select(.publishers == 0) | .name'";

const WATCH: &str = "\
Bytes that are no text are shown as in a Rust string. With --json an object to a line.

Examples:
  ipctl events watch prices
  ipctl events watch 7 --last 1 --count 1";

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let node = Node::connect(config)?;
    if let Some(What::Watch(watch)) = &arguments.what {
        return follow(watch, &node, output);
    }
    if let Some(What::Subscribers { topic }) = &arguments.what {
        return subscribers(topic, &node, output);
    }
    let list = List(node.topics()?.into_iter().map(Row::new).collect());
    if list.0.is_empty() {
        output.remark("no topics: nobody publishes or subscribes");
    }
    output.show(&list)
}

fn subscribers(topic: &str, node: &Node, output: Output) -> Result<(), Failure> {
    let listeners = match topic.parse::<u32>() {
        Ok(number) => node.listeners(number)?,
        Err(_) => node.listeners(topic)?,
    };
    let entries = node.list()?;
    let row = |it: Listener| {
        let named = entries.iter().find(|entry| entry.pid == it.pid);
        let program = || format!("({})", harmless(&program(it.pid)));
        Subscriber {
            name: named.map_or_else(program, |entry| harmless(&entry.name)),
            node: it.node.get(),
            pid: it.pid,
            uid: it.uid,
            sleeps: it.sleeps,
            reliable: it.reliable,
            lost: it.lost,
        }
    };
    let rows = Subscribers(listeners.into_iter().map(row).collect());
    if rows.0.is_empty() {
        output.remark("nobody subscribes to it");
    }
    output.show(&rows)
}

#[derive(Serialize)]
struct Subscribers(Vec<Subscriber>);

/// A process that subscribes to a topic.
#[derive(Serialize)]
struct Subscriber {
    name: String,
    node: u32,
    pid: u32,
    uid: u32,
    sleeps: bool,
    reliable: u32,
    lost: u64,
}

impl fmt::Display for Subscribers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            ("PROCESS", Align::Left),
            ("NODE", Align::Right),
            ("PID", Align::Right),
            ("UID", Align::Right),
            ("SLEEPS", Align::Left),
            ("RELIABLE", Align::Right),
            ("LOST", Align::Right),
        ]);
        for row in &self.0 {
            table.row([
                row.name.clone(),
                row.node.to_string(),
                row.pid.to_string(),
                row.uid.to_string(),
                if row.sleeps { "yes" } else { "-" }.to_owned(),
                row.reliable.to_string(),
                row.lost.to_string(),
            ]);
        }
        table.fmt(f)
    }
}

fn follow(watch: &Watch, node: &Node, output: Output) -> Result<(), Failure> {
    let options = SubscribeOptions::default().from(Start::Retained(watch.last));
    let mut subscription = match watch.topic.parse::<u32>() {
        Ok(number) => node.subscribe(number, options)?,
        Err(_) => node.subscribe(watch.topic.as_str(), options)?,
    };
    let mut shown = 0;
    while watch.count.is_none_or(|count| shown < count) {
        let line = match subscription.recv(None) {
            Ok(event) => {
                shown += 1;
                Line {
                    publisher: event.head.publisher.get(),
                    pid: event.head.pid,
                    sequence: event.head.sequence,
                    at_ns: event.head.at_ns,
                    size: event.payload.len(),
                    text: text(&event.payload),
                    missed: None,
                }
            }
            Err(EventError::Lagged { publisher, count }) => {
                Line { publisher: publisher.get(), missed: Some(count), ..Line::default() }
            }
            Err(error) => return Err(error.into()),
        };
        output.show(&line)?;
    }
    Ok(())
}

/// What came, for people.
fn text(payload: &[u8]) -> String {
    let mut text = String::new();
    for chunk in payload.utf8_chunks() {
        text.extend(chunk.valid().chars().flat_map(char::escape_debug));
        for byte in chunk.invalid() {
            // Writing to a String does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[derive(Default, Serialize)]
struct Line {
    publisher: u32,
    pid: u32,
    sequence: u64,
    at_ns: u64,
    size: usize,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    missed: Option<u64>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.missed {
            Some(missed) => write!(f, "{} missed of {}", missed, self.publisher),
            None => write!(f, "{} {} {}", self.publisher, self.sequence, self.text),
        }
    }
}

#[derive(Serialize)]
struct List(Vec<Row>);

#[derive(Serialize)]
struct Row {
    name: String,
    id: u32,
    publishers: u32,
    subscribers: u32,
    reliable: u32,
    ring_bytes: u64,
    retained: bool,
}

impl Row {
    fn new(entry: TopicEntry) -> Row {
        Row {
            name: entry.name,
            id: entry.id,
            publishers: entry.publishers,
            subscribers: entry.subscribers,
            reliable: entry.reliable,
            ring_bytes: entry.bytes,
            retained: entry.retained,
        }
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            ("TOPIC", Align::Left),
            ("ID", Align::Right),
            ("PUBLISHERS", Align::Right),
            ("SUBSCRIBERS", Align::Right),
            ("RELIABLE", Align::Right),
            ("RING", Align::Right),
            ("RETAINED", Align::Left),
        ]);
        for row in &self.0 {
            table.row([
                row.name.clone(),
                row.id.to_string(),
                row.publishers.to_string(),
                row.subscribers.to_string(),
                row.reliable.to_string(),
                row.ring_bytes.to_string(),
                if row.retained { "yes" } else { "-" }.to_owned(),
            ]);
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_as_text_where_they_are() {
        assert_eq!(text("a\nb\u{e9}".as_bytes()), "a\\nb\u{e9}");
        assert_eq!(text(b"a\xff\x00"), "a\\xff\\0");
    }

    #[test]
    fn topics_stand_in_columns() {
        let entry = TopicEntry {
            id: 7,
            bytes: 1 << 20,
            publishers: 1,
            subscribers: 2,
            reliable: 0,
            retained: true,
            name: "prices".to_owned(),
        };
        let lines = [
            "TOPIC   ID  PUBLISHERS  SUBSCRIBERS  RELIABLE     RING  RETAINED",
            "prices   7           1            2         0  1048576  yes",
            "",
        ];
        assert_eq!(List(vec![Row::new(entry)]).to_string(), lines.join("\n"));
    }
}
