//! Processes of an earlier run: found, expected by the runtime, and taken over.

use nix::unistd::geteuid;

use super::{
    Running, System,
    keys::Keys,
    store::{Record, Store},
};
use crate::{
    console::say,
    desk::{Order, SupervisorDesk, Unit},
    failpoint::{self, At},
    process::Process,
    supervisor::{Event, Supervisor, UnitId},
};

/// A process of an earlier run.
#[derive(Debug)]
pub(super) struct Found {
    /// Whose it is now; nobody's where the node file has no such service.
    unit: Option<UnitId>,
    process: Process,
    service: String,
}

impl System {
    /// Takes over the processes that an earlier run started, and ends those that nobody wants.
    pub(super) fn adopt(&mut self) {
        for Found { unit, process, service } in std::mem::take(&mut self.found) {
            let pid = process.pid();
            let Some(unit) = unit.filter(|unit| !self.running.contains_key(unit)) else {
                say(&format!("{service}: not in the node file any more: ended"));
                // It may have ended by itself just now.
                let _ = process.kill();
                self.store.forget(|it| it.pid == pid);
                continue;
            };
            self.open_door(uid_of_process(pid).unwrap_or_else(|| geteuid().as_raw()));
            self.watch(unit, &process);
            self.running.insert(unit, Running::new(process));
            self.step(Event::Adopted { unit, pid });
            failpoint::reach(At::AdoptTaken);
        }
    }
}

/// Finds the processes of an earlier run, and has the runtime expect them.
pub(super) fn find(
    store: &mut Store,
    supervisor: &Supervisor,
    desk: &SupervisorDesk,
    keys: &Keys,
) -> Vec<Found> {
    let mut found = Vec::new();
    for record in store.records() {
        let Some(process) = Process::adopt(record.pid, record.start_time) else { continue };
        // Or it would count as one that has ended, when it does: what is `temporary` would never
        // run, though it never ran.
        if process.end_unborn() {
            say(&format!("{}: its program did not run yet: it is started anew", record.service));
            continue;
        }
        let unit = supervisor.unit(&record.service, record.replica);
        if let Some(UnitId(id)) = unit {
            let uid = uid_of_process(record.pid).unwrap_or_else(|| geteuid().as_raw());
            let service = record.service.as_str().into();
            let (pid, start_time) = (record.pid, record.start_time);
            let key = keys.public(&record.service, record.replica).map(|it| *it.as_bytes());
            desk.say(Order::Expect { unit: Unit { id, service, pid, uid, start_time, key } });
        }
        found.push(Found { unit, process, service: record.service.clone() });
    }
    let lives = |record: &Record| found.iter().any(|it| it.process.pid() == record.pid);
    store.forget(|record| !lives(record));
    failpoint::reach(At::AdoptFound);
    found
}

fn uid_of_process(pid: u32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{pid}")).ok().map(|it| it.uid())
}
