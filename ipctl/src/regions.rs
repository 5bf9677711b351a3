//! `ipctl regions`: which memory is shared, whose it is, and who has it?

use std::fmt;

use clap::Args;
use ipc::{
    Config, Node,
    control::regions::{Access, RegionEntry},
};
use serde::Serialize;

use crate::{
    failure::Failure,
    output::Output,
    table::{Align, Table},
};

/// List the shared regions: whose they are, how large, and how many have mapped them.
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Arguments {}

const HELP: &str = "\
Columns:
  REGION    its id; never used again
  SIZE      bytes that its users see
  MEMORY    bytes that it takes
  OWNER     id of the owner's node; gone: only those who have mapped it keep it
  PID, UID  the owner's process and user, as the kernel attests them
  ACCESS    what it is granted for: read, write; -: it was never granted
  GRANTS    grants made and not taken back
  HOLDERS   nodes other than the owner's that have mapped it

Examples:
  ipctl regions
  ipctl regions --json | jq 'map(.memory) | add'";

pub(crate) fn run(_: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let list = List(Node::connect(config)?.regions()?.into_iter().map(Row::new).collect());
    if list.0.is_empty() {
        output.remark("no regions: nobody shares memory by one now");
    }
    output.show(&list)
}

#[derive(Serialize)]
struct List(Vec<Row>);

#[derive(Serialize)]
struct Row {
    region: u64,
    size: u64,
    memory: u64,
    /// None where the owner is gone.
    owner: Option<u32>,
    pid: u32,
    uid: u32,
    access: Option<&'static str>,
    grants: u32,
    holders: u32,
}

impl Row {
    fn new(entry: RegionEntry) -> Row {
        Row {
            region: entry.region,
            size: entry.size,
            memory: entry.bytes,
            owner: Some(entry.owner.get()).filter(|&owner| owner != 0),
            pid: entry.pid,
            uid: entry.uid,
            access: match entry.access {
                Access::None => None,
                Access::Read => Some("read"),
                Access::Write => Some("write"),
            },
            grants: entry.grants,
            holders: entry.holders,
        }
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            ("REGION", Align::Right),
            ("SIZE", Align::Right),
            ("MEMORY", Align::Right),
            ("OWNER", Align::Right),
            ("PID", Align::Right),
            ("UID", Align::Right),
            ("ACCESS", Align::Left),
            ("GRANTS", Align::Right),
            ("HOLDERS", Align::Right),
        ]);
        for row in &self.0 {
            table.row([
                row.region.to_string(),
                row.size.to_string(),
                row.memory.to_string(),
                row.owner.map_or("gone".to_owned(), |owner| owner.to_string()),
                row.pid.to_string(),
                row.uid.to_string(),
                row.access.unwrap_or("-").to_owned(),
                row.grants.to_string(),
                row.holders.to_string(),
            ]);
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use ipc::ServiceId;

    use super::*;

    #[test]
    fn a_region_whose_owner_is_gone_is_told_from_others() {
        let entry = RegionEntry {
            region: 4_294_967_297,
            size: 5000,
            bytes: 12288,
            owner: ServiceId::new(7),
            pid: 4711,
            uid: 1000,
            grants: 1,
            holders: 2,
            access: Access::Read,
        };
        let orphan = RegionEntry {
            region: 4_294_967_298,
            owner: ServiceId::NONE,
            access: Access::None,
            ..entry
        };
        let list = List([entry, orphan].map(Row::new).into());
        let lines = [
            "    REGION  SIZE  MEMORY  OWNER   PID   UID  ACCESS  GRANTS  HOLDERS",
            "4294967297  5000   12288      7  4711  1000  read         1        2",
            "4294967298  5000   12288   gone  4711  1000  -            1        2",
            "",
        ];
        assert_eq!(list.to_string(), lines.join("\n"));
        let json = serde_json::to_value(&list).expect("plain data");
        assert_eq!((&json[0]["access"], &json[1]["owner"]), (&"read".into(), &().into()));
    }
}
