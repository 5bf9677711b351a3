//! Processes of an earlier run: found, expected by the runtime, and taken over.

use nix::unistd::geteuid;

use super::{
    Running, System, say,
    store::{Record, Store},
};
use crate::{
    desk::{Order, SupervisorDesk, Unit},
    process::Process,
    supervisor::{Event, Supervisor, UnitId},
};

/// A process of an earlier run.
#[derive(Debug)]
pub(super) struct Found {
    /// Whose it is now; nobody's where the node file has no such service.
    unit: Option<UnitId>,
    process: Process,
    record: Record,
}

impl System {
    /// Takes over the processes that an earlier run started, and ends those that nobody wants.
    pub(super) fn adopt(&mut self) {
        for Found { unit, process, record } in std::mem::take(&mut self.found) {
            let Some(unit) = unit.filter(|unit| !self.running.contains_key(unit)) else {
                say(&format!("{}: not in the node file any more: ended", record.service));
                // It may have ended by itself just now.
                let _ = process.kill();
                continue;
            };
            let pid = process.pid();
            self.watch(unit, &process);
            self.store.remember(record);
            self.running.insert(unit, Running::new(process));
            self.step(Event::Adopted { unit, pid });
        }
    }
}

/// Finds the processes of an earlier run, and has the runtime expect them.
pub(super) fn find(
    store: &mut Store,
    supervisor: &Supervisor,
    desk: &SupervisorDesk,
) -> Vec<Found> {
    let mut found = Vec::new();
    for record in store.take() {
        let Some(process) = Process::adopt(record.pid, record.start_time) else { continue };
        let unit = supervisor.unit(&record.service, record.replica);
        if let Some(UnitId(id)) = unit {
            let uid = uid_of_process(record.pid).unwrap_or_else(|| geteuid().as_raw());
            let service = record.service.as_str().into();
            let (pid, start_time) = (record.pid, record.start_time);
            desk.say(Order::Expect { unit: Unit { id, service, pid, uid, start_time } });
        }
        found.push(Found { unit, process, record });
    }
    found
}

fn uid_of_process(pid: u32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{pid}")).ok().map(|it| it.uid())
}
