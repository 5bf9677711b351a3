//! The units' processes: started, watched, signalled, and seen to end.

use std::sync::Arc;

use ipc::ProcessEnd;
use nix::{
    sys::{
        epoll::{EpollEvent, EpollFlags},
        signal::Signal,
        socket::{AddressFamily, SockFlag, SockType, socketpair},
    },
    unistd::{User, geteuid},
};

use super::{FIRST_UNIT, Running, System, store::Record};
use crate::{
    console::say,
    desk::{Order, Unit},
    failpoint::{self, At},
    process::{Exit, Launch, Process, launch, remedy},
    spans::Open,
    supervisor::{End, Event, UnitId},
};

impl System {
    pub(super) fn spawn(&mut self, unit: UnitId) -> Result<u32, String> {
        let Some((service, replica)) = self.supervisor.service(unit) else {
            return Err("it is gone from the node file".to_owned());
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (socket, control) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
                .map_err(|errno| format!("cannot make its connection: {errno}{}", remedy(errno)))?;
        let log = self.logs.append(&service.name).map_err(|error| error.to_string())?;
        let uid = user_of(service.user.as_deref())?;
        let (name, replica): (Arc<str>, u32) = (service.name.as_str().into(), replica);
        let span = match self.asked_for(&name, replica) {
            Some(command) => command.within(|| Open::launch(&name, replica)),
            None => Open::launch(&name, replica),
        };
        let (key_file, key) = self.keys.make(&name, replica, uid)?;
        // Before it runs: only then may its user look for the key.
        self.open_door(uid);
        let Some((service, _)) = self.supervisor.service(unit) else {
            return Err("it is gone from the node file".to_owned());
        };
        let (runtime_dir, key_file) = (&*self.runtime_dir, Some(&*key_file));
        let order = Launch { service, replica: replica - 1, runtime_dir, control, log, key_file };
        let (mut recorded, store) = (None, &mut self.store);
        failpoint::reach(At::SpawnBegun);
        let process = launch(order, |pid, start_time| {
            recorded = Some(pid);
            span.launched(pid);
            store.remember(Record { service: name.to_string(), replica, pid, start_time })?;
            failpoint::reach(At::SpawnRecorded);
            Ok(())
        })
        .map_err(|error| {
            store.forget(|it| Some(it.pid) == recorded);
            error.to_string()
        })?;
        failpoint::reach(At::SpawnRuns);
        for gap in process.unenforced().iter().map(ToString::to_string) {
            if self.gaps.insert(gap.clone()) {
                say(&format!("not enforced on this machine: {gap}"));
            }
        }
        let (pid, start_time) = (process.pid(), process.start_time());
        self.watch(unit, &process);
        let key = Some(*key.as_bytes());
        let known = Unit { id: unit.0, service: name, pid, uid, start_time, key };
        self.desk.say(Order::Admit { unit: known, socket });
        failpoint::reach(At::SpawnSaid);
        self.running.insert(unit, Running::new(process));
        Ok(pid)
    }

    /// The command that goes on and is about this replica, if there is one: what starts it then.
    fn asked_for(&self, service: &str, replica: u32) -> Option<&Open> {
        let groups = self.node.groups.iter();
        let group = groups.into_iter().find(|it| it.members.iter().any(|it| it == service));
        let about = |name: &str| match name.strip_prefix(service) {
            Some("") => true,
            Some(rest) => rest.strip_prefix('#') == Some(&*replica.to_string()),
            None => group.is_some_and(|it| it.name == name),
        };
        self.asked.values().find(|it| about(&it.name)).map(|it| &it.span)
    }

    /// Makes a way back for the services of another user, for when this ipcd has died.
    pub(super) fn open_door(&mut self, uid: u32) {
        if uid == geteuid().as_raw() {
            return;
        }
        match self.kernel.open_door(uid) {
            Ok(None) => {}
            Ok(Some(listener)) => self.desk.say(Order::Listen { listener }),
            Err(error) => say(&format!("services of user {uid} cannot come back: {error}")),
        }
    }

    /// Has the loop hear of the process' end. Without pidfds it looks now and then: see `unheard`.
    pub(super) fn watch(&self, unit: UnitId, process: &Process) {
        if let Some(pidfd) = process.pidfd() {
            let token = FIRST_UNIT + u64::from(unit.0);
            // Without it SIGCHLD tells of a child.
            let _ = self.epoll.add(pidfd, EpollEvent::new(EpollFlags::EPOLLIN, token));
        }
    }

    pub(super) fn signal(&self, unit: UnitId, signal: Signal) {
        if let Some(running) = self.running.get(&unit) {
            // It ended by itself: that is heard next.
            let _ = running.process.signal(signal);
        }
    }

    pub(super) fn reap(&mut self, unit: UnitId) {
        let Some(running) = self.running.get_mut(&unit) else { return };
        let Some(exit) = running.process.try_wait() else { return };
        failpoint::reach(At::ReapSeen);
        if let Some(running) = self.running.remove(&unit) {
            if let Some(pidfd) = running.process.pidfd() {
                let _ = self.epoll.delete(pidfd);
            }
            let pid = running.process.pid();
            self.store.forget(|it| it.pid == pid);
        }
        failpoint::reach(At::ReapForgotten);
        self.probes.forget(unit);
        let end = match exit {
            Exit::Code(code) => Some(ProcessEnd::Exit(code as u8)),
            Exit::Signal(number) => Some(ProcessEnd::Signal(number as u8)),
            Exit::Unknown => None,
        };
        self.desk.say(Order::Forget { unit: unit.0, end });
        self.step(Event::Ended { unit, how: end_of(exit) });
    }

    /// Gives the units of which no descriptor tells the end: where there are no pidfds. SIGCHLD
    /// does not tell of adopted ones either.
    pub(super) fn unheard(&self) -> impl Iterator<Item = UnitId> {
        let unheard = self.running.iter().filter(|(_, it)| it.process.pidfd().is_none());
        unheard.map(|(&unit, _)| unit)
    }
}

fn user_of(name: Option<&str>) -> Result<u32, String> {
    let Some(name) = name else { return Ok(geteuid().as_raw()) };
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(format!("there is no user {name}")),
        Err(errno) => Err(format!("cannot look up user {name}: {errno}")),
    }
}

fn end_of(exit: Exit) -> End {
    match exit {
        Exit::Code(code) => End::Exit { code },
        Exit::Signal(number) => End::Signal { number, core: false },
        Exit::Unknown => End::Unknown,
    }
}
