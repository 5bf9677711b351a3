//! `ipctl sessions`: which channels are encrypted, since when, and by which session?

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use clap::Args;
use ipc::{Config, EndStats, Node, ServiceId, SessionStats, control::Entry};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::{
    failure::Failure,
    output::Output,
    sight::program,
    table::{Align, Table},
    units,
};

/// List the encrypted channels: who talks to whom, since when, by which session. Never a key.
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Arguments {}

const HELP: &str = "\
Each end of a channel tells of itself, so a channel between two processes has two rows, which show
the same fingerprint.

Columns:
  PROCESS      who tells: the name that it serves, or its program in parentheses
  ROLE         client or server on this channel
  PEER         who is at the other end
  PATTERN      how they proved who they are: Noise's KK, XX or IK
  HANDSHAKE    how long the client waited for it; - at the server, which waits for none
  AGE          since the handshake
  SENT, TAKEN  messages
  REKEYS       how often this end has changed the keys that it seals with
  REFUSED      records that did not open, and were dropped
  FINGERPRINT  of the session: the first half of its handshake's hash, the same at both ends

Examples:
  ipctl sessions
  ipctl sessions --json | jq '.[] | select(.refused > 0)'
  ipctl sessions --json | jq -r '.[].fingerprint' | sort | uniq -c";

pub(crate) fn run(_: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let node = Node::connect(config)?;
    let (boards, entries) = (node.boards()?, node.list()?);
    let mut rows = Vec::new();
    for board in &boards {
        for end in board.ends() {
            if let Some(session) = end.session {
                rows.push(Row::new(board.pid, &end, &session, &entries));
            }
        }
    }
    rows.sort_by_key(|row| (row.channel, row.role));
    if rows.is_empty() {
        output.remark("no sessions: no open channel is encrypted");
    }
    output.show(&List(rows))
}

#[derive(Serialize)]
struct List(Vec<Row>);

#[derive(Serialize)]
struct Row {
    channel: u64,
    process: String,
    pid: u32,
    role: &'static str,
    peer: String,
    peer_pid: u32,
    peer_id: u32,
    pattern: &'static str,
    age_seconds: f64,
    handshake_us: Option<u32>,
    messages_sent: u64,
    messages_received: u64,
    rekeys: u64,
    refused: u64,
    fingerprint: String,
}

impl Row {
    fn new(pid: u32, end: &EndStats, session: &SessionStats, entries: &[Entry]) -> Row {
        let age_ns = now_ns().saturating_sub(session.since_ns);
        let serves = end.role.serves();
        let (ours, theirs) = if serves {
            (end.dest_name, end.peer_name)
        } else {
            (own_name(pid, entries), end.dest_name)
        };
        Row {
            channel: end.channel,
            process: named(ours, pid, entries),
            pid,
            role: if serves { "server" } else { "client" },
            peer: named(theirs, end.peer_pid, entries),
            peer_pid: end.peer_pid,
            peer_id: end.peer.get(),
            pattern: short(session),
            age_seconds: Duration::from_nanos(age_ns).as_secs_f64(),
            handshake_us: (!serves).then_some(session.handshake_us),
            messages_sent: end.stats.messages_sent,
            messages_received: end.stats.messages_received,
            rekeys: session.rekeys,
            refused: session.refused,
            fingerprint: hex(&session.fingerprint[..16]),
        }
    }
}

/// The name that a process serves, the first of several; none for one that serves none.
fn own_name(pid: u32, entries: &[Entry]) -> ServiceId {
    let own = entries.iter().filter(|entry| entry.pid == pid);
    own.map(|entry| entry.name_id).min().unwrap_or(ServiceId::NONE)
}

fn named(name: ServiceId, pid: u32, entries: &[Entry]) -> String {
    let entry = entries.iter().find(|entry| name != ServiceId::NONE && entry.name_id == name);
    entry.map_or_else(|| format!("({})", program(pid)), |entry| entry.name.clone())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Into a string it never fails.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The two letters of the pattern.
fn short(session: &SessionStats) -> &'static str {
    session.pattern.name().split('_').nth(1).unwrap_or("?")
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    now.map_or(0, |now| now.as_nanos() as u64)
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            ("PROCESS", Align::Left),
            ("ROLE", Align::Left),
            ("PEER", Align::Left),
            ("PATTERN", Align::Left),
            ("HANDSHAKE", Align::Right),
            ("AGE", Align::Right),
            ("SENT", Align::Right),
            ("TAKEN", Align::Right),
            ("REKEYS", Align::Right),
            ("REFUSED", Align::Right),
            ("FINGERPRINT", Align::Left),
        ]);
        for row in &self.0 {
            table.row([
                row.process.clone(),
                row.role.to_owned(),
                row.peer.clone(),
                row.pattern.to_owned(),
                row.handshake_us.map_or_else(|| "-".to_owned(), |us| format!("{us} us")),
                units::uptime(Duration::from_secs_f64(row.age_seconds)),
                row.messages_sent.to_string(),
                row.messages_received.to_string(),
                row.rekeys.to_string(),
                row.refused.to_string(),
                row.fingerprint.clone(),
            ]);
        }
        table.fmt(f)
    }
}
