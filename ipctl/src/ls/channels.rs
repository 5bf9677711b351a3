//! `ipctl ls --channels`: who has a channel to whom, and by what does it go?

use std::{collections::BTreeMap, fmt};

use ipc::{EndStats, Node, ServiceId, Transport, control::Entry};
use serde::Serialize;

use crate::{
    failure::Failure,
    output::Output,
    sight::program,
    supervised::harmless,
    table::{Align, Table},
};

pub(super) fn run(node: &Node, output: Output) -> Result<(), Failure> {
    let entries = node.list()?;
    let boards = node.boards()?;
    let ends = boards.iter().flat_map(|board| {
        let own = board.pid;
        board.ends().into_iter().map(move |end| (own, end))
    });
    let list = List::new(ends, &entries);
    if list.0.is_empty() {
        output.remark("no channels are open that either end shows");
    }
    output.show(&list)
}

#[derive(Debug, Serialize)]
struct List(Vec<Row>);

#[derive(Debug, Serialize)]
struct Row {
    channel: u64,
    service: String,
    instance: u32,
    service_pid: u32,
    caller: String,
    caller_pid: u32,
    transport: &'static str,
    encrypted: bool,
}

impl List {
    /// Makes a row of each channel, whichever of its ends tells of it.
    fn new(ends: impl Iterator<Item = (u32, EndStats)>, entries: &[Entry]) -> List {
        let mut rows: BTreeMap<u64, Row> = BTreeMap::new();
        for (pid, end) in ends.filter(|(_, end)| end.channel != 0) {
            let encrypted = end.session.is_some();
            rows.entry(end.channel)
                .and_modify(|row| row.encrypted |= encrypted)
                .or_insert_with(|| Row::new(pid, &end, entries));
        }
        let mut rows: Vec<Row> = rows.into_values().collect();
        rows.sort_by(|a, b| {
            (&a.service, a.instance, a.channel).cmp(&(&b.service, b.instance, b.channel))
        });
        List(rows)
    }
}

impl Row {
    fn new(pid: u32, end: &EndStats, entries: &[Entry]) -> Row {
        let (caller_pid, service_pid) =
            if end.role.serves() { (end.peer_pid, pid) } else { (pid, end.peer_pid) };
        let of = |matches: &dyn Fn(&&Entry) -> bool, pid| match entries.iter().find(matches) {
            Some(entry) => harmless(&entry.name),
            None => format!("({})", harmless(&program(pid))),
        };
        let is_named = end.dest_name != ServiceId::NONE;
        Row {
            channel: end.channel,
            service: of(&|it| is_named && it.name_id == end.dest_name, service_pid),
            instance: end.dest.get(),
            service_pid,
            caller: of(&|it| it.pid == caller_pid, caller_pid),
            caller_pid,
            transport: Transport::of(end.channel).name(),
            encrypted: end.session.is_some(),
        }
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            ("SERVICE", Align::Left),
            ("INSTANCE", Align::Right),
            ("PID", Align::Right),
            ("CALLER", Align::Left),
            ("PID", Align::Right),
            ("TRANSPORT", Align::Left),
            ("ENCRYPTED", Align::Left),
        ]);
        for row in &self.0 {
            table.row([
                row.service.clone(),
                row.instance.to_string(),
                row.service_pid.to_string(),
                row.caller.clone(),
                row.caller_pid.to_string(),
                row.transport.to_owned(),
                if row.encrypted { "yes" } else { "no" }.to_owned(),
            ]);
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use ipc::{Role, Stats, control::BY_SOCKET};

    use super::*;

    fn end(channel: u64, role: Role, peer_pid: u32) -> EndStats {
        EndStats {
            channel,
            role,
            peer: ServiceId::new(5),
            peer_name: ServiceId::NONE,
            peer_pid,
            dest: ServiceId::new(11),
            dest_name: ServiceId::new(10),
            session: None,
            stats: Stats::default(),
        }
    }

    #[test]
    fn a_channel_has_one_row_whoever_tells_of_it() {
        let entry = Entry {
            instance: ServiceId::new(11),
            name_id: ServiceId::new(10),
            pid: u32::MAX,
            uid: 1000,
            rank: 0,
            flags: 0,
            channels: 2,
            name: "echo".to_owned(),
        };
        let nobody = u32::MAX - 1;
        let ends = [
            (u32::MAX, end(7, Role::Server, nobody)),
            (nobody, end(7, Role::Client, u32::MAX)),
            (u32::MAX, end(BY_SOCKET | 8, Role::Server, nobody)),
            (u32::MAX, end(0, Role::GoneServers, 0)),
        ];
        let list = List::new(ends.into_iter(), &[entry]);
        let seen: Vec<_> = list.0.iter().map(|row| (&*row.service, row.transport)).collect();
        assert_eq!(seen, [("echo", "shared memory"), ("echo", "socket")]);
        assert_eq!((list.0[0].caller_pid, list.0[0].service_pid), (nobody, u32::MAX));
        assert!(list.to_string().contains("shared memory  no"), "{list}");
    }
}
