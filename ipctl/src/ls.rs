//! `ipctl ls`: who serves which name?

mod channels;

use std::fmt;

use clap::Args;
use ipc::{
    Config, Node,
    control::{Entry, SERVICE_DEDUP, SERVICE_EXCLUSIVE, SERVICE_IDEMPOTENT},
};
use serde::Serialize;

use crate::{
    failure::Failure,
    output::Output,
    table::{Align, Table},
};

/// List the services, with the replicas of each name in order.
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Arguments {
    /// List the open channels in place of the services: whose, to whom, and by what they go
    #[arg(long)]
    channels: bool,
}

const HELP: &str = "\
Columns:
  NAME      what clients ask for
  INSTANCE  id of this one registration; never used again
  NAME-ID   id of the name; leads to whoever serves it now
  ROLE      serves, or standby N: takes over when all before it are gone
  PID, UID  process and user, as the kernel attests them
  CHANNELS  channels opened to it since it registered
  FLAGS     idempotent: calls may be repeated without harm; exclusive: no replicas

With --channels, a row for each open channel that either end shows:
  SERVICE, INSTANCE, PID  who serves
  CALLER, PID             who opened it: the name that it serves, or its program in parentheses
  TRANSPORT               shared memory; or socket, where either cannot share any, or by a path
  ENCRYPTED               whether its frames are sealed

Examples:
  ipctl ls
  ipctl ls --channels
  ipctl ls --json | jq -r '.[] | select(.rank == 0) | .name'";

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let node = Node::connect(config)?;
    if arguments.channels {
        return channels::run(&node, output);
    }
    let list = List::new(node.list()?);
    if list.0.is_empty() {
        output.remark("no services: nobody has registered a name yet");
    }
    output.show(&list)
}

#[derive(Serialize)]
struct List(Vec<Row>);

#[derive(Serialize)]
struct Row {
    name: String,
    instance: u32,
    name_id: u32,
    role: &'static str,
    rank: u32,
    pid: u32,
    uid: u32,
    channels: u32,
    flags: Vec<String>,
}

impl List {
    fn new(mut entries: Vec<Entry>) -> List {
        entries.sort_by(|a, b| (&a.name, a.rank).cmp(&(&b.name, b.rank)));
        List(entries.into_iter().map(Row::new).collect())
    }
}

impl Row {
    fn new(entry: Entry) -> Row {
        Row {
            name: entry.name,
            instance: entry.instance.get(),
            name_id: entry.name_id.get(),
            role: if entry.rank == 0 { "serves" } else { "standby" },
            rank: entry.rank,
            pid: entry.pid,
            uid: entry.uid,
            channels: entry.channels,
            flags: flags(entry.flags),
        }
    }
}

/// Names the bits; a bit that this version does not know is shown by its value.
fn flags(bits: u32) -> Vec<String> {
    let named = [
        (SERVICE_IDEMPOTENT, "idempotent"),
        (SERVICE_EXCLUSIVE, "exclusive"),
        (SERVICE_DEDUP, "dedup"),
    ];
    let unknown = bits & !named.iter().fold(0, |all, (bit, _)| all | bit);
    let known = named.into_iter().filter(|(bit, _)| bits & bit != 0);
    let mut flags: Vec<String> = known.map(|(_, name)| name.to_owned()).collect();
    if unknown != 0 {
        flags.push(format!("{unknown:#x}"));
    }
    flags
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            ("NAME", Align::Left),
            ("INSTANCE", Align::Right),
            ("NAME-ID", Align::Right),
            ("ROLE", Align::Left),
            ("PID", Align::Right),
            ("UID", Align::Right),
            ("CHANNELS", Align::Right),
            ("FLAGS", Align::Left),
        ]);
        for row in &self.0 {
            table.row([
                row.name.clone(),
                row.instance.to_string(),
                row.name_id.to_string(),
                if row.rank == 0 { row.role.to_owned() } else { format!("standby {}", row.rank) },
                row.pid.to_string(),
                row.uid.to_string(),
                row.channels.to_string(),
                if row.flags.is_empty() { "-".to_owned() } else { row.flags.join(",") },
            ]);
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use ipc::ServiceId;

    use super::*;

    fn entry(name: &str, instance: u32, rank: u32, flags: u32) -> Entry {
        Entry {
            instance: ServiceId::new(instance),
            name_id: ServiceId::new(100),
            pid: 4711,
            uid: 1000,
            rank,
            flags,
            channels: 2,
            name: name.to_owned(),
        }
    }

    #[test]
    fn replicas_stand_in_order_under_their_name() {
        let list = List::new(vec![
            entry("echo", 12, 1, 0),
            entry("clock", 11, 0, SERVICE_EXCLUSIVE | SERVICE_IDEMPOTENT),
            entry("echo", 15, 0, 8),
        ]);
        let lines = [
            "NAME   INSTANCE  NAME-ID  ROLE        PID   UID  CHANNELS  FLAGS",
            "clock        11      100  serves     4711  1000         2  idempotent,exclusive",
            "echo         15      100  serves     4711  1000         2  0x8",
            "echo         12      100  standby 1  4711  1000         2  -",
            "",
        ];
        assert_eq!(list.to_string(), lines.join("\n"));
    }

    #[test]
    fn programs_get_an_array() {
        let list = List::new(vec![entry("echo", 7, 1, SERVICE_IDEMPOTENT)]);
        let json = serde_json::to_value(&list).expect("plain data");
        assert_eq!(json[0]["role"], "standby");
        assert_eq!(json[0]["rank"], 1);
        assert_eq!(json[0]["flags"][0], "idempotent");
        assert_eq!(serde_json::to_string(&List::new(vec![])).expect("plain data"), "[]");
    }
}
