//! What processes count, looked at twice: what came between the two looks, of processes and of
//! channels.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    time::{Duration, Instant},
};

use ipc::{Board, Config, Node, NodeError, Role, ServiceId, Stats, Status, control::Entry};

use crate::{
    failure::Failure,
    supervised::{Supervisor, harmless},
};

/// Looks through one connection, again and again.
#[derive(Debug)]
pub(crate) struct Observer {
    node: Node,
    supervisor: Supervisor,
    boards: Vec<Board>,
    last: Option<Look>,
}

/// One look.
#[derive(Debug)]
struct Look {
    at: Instant,
    /// By process, channel and role; the sums of ends that are gone have channel 0.
    ends: HashMap<(u32, u64, Role), End>,
    cpu: HashMap<u32, Duration>,
}

#[derive(Debug)]
struct End {
    dest_name: ServiceId,
    peer_pid: u32,
    stats: Stats,
}

/// What came between two looks.
#[derive(Debug, Default)]
pub(crate) struct Sight {
    pub(crate) over: Duration,
    pub(crate) processes: Vec<Process>,
    pub(crate) channels: Vec<Channel>,
}

/// A process that serves a name, or has a board: one that has, or had, a channel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Of the names that it serves the first; of one that serves none, its program's in
    /// parentheses.
    pub(crate) name: String,
    /// What it counted as a client, and as a server.
    pub(crate) called: Stats,
    pub(crate) served: Stats,
    /// Of a server, what its callers counted.
    pub(crate) callers: Stats,
    /// Of one CPU.
    pub(crate) cpu_share: Option<f64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) restarts: Option<u32>,
}

/// A channel that is open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Channel {
    pub(crate) id: u64,
    pub(crate) caller: String,
    pub(crate) caller_pid: u32,
    pub(crate) service: String,
    pub(crate) service_pid: u32,
    /// What either end counted; nothing where that end shows no board.
    pub(crate) client: Option<Stats>,
    pub(crate) server: Option<Stats>,
}

impl Observer {
    pub(crate) fn connect(config: &Config) -> Result<Observer, Failure> {
        let supervisor = Supervisor::connect(config)?;
        let node = Node::connect(config)?;
        Ok(Observer { node, supervisor, boards: Vec::new(), last: None })
    }

    /// Looks, and gives what came since the look before; the first time, since the beginning.
    pub(crate) fn look(&mut self) -> Result<Sight, Failure> {
        self.node.refresh_boards(&mut self.boards).map_err(|error| match error {
            NodeError::Refused(Status::PROTOCOL) => {
                Failure::Told("this runtime is older, and knows no boards".to_owned())
            }
            error => error.into(),
        })?;
        let own = std::process::id();
        let mut now = Look::take(self.boards.iter().filter(|board| board.pid != own));
        let entries = self.node.list()?;
        now.note(entries.iter().map(|entry| entry.pid));
        let restarts = self.restarts()?;
        let sight = compare(self.last.as_ref(), &now, &entries, &restarts);
        self.last = Some(now);
        Ok(sight)
    }

    /// How often units were restarted, by their processes.
    fn restarts(&self) -> Result<HashMap<u32, u32>, Failure> {
        let units = match self.supervisor.units() {
            Err(Failure::Unsupervised) => return Ok(HashMap::new()),
            units => units?,
        };
        Ok(units.into_iter().filter_map(|unit| Some((unit.pid?, unit.restarts))).collect())
    }
}

impl Look {
    fn take<'a>(boards: impl Iterator<Item = &'a Board>) -> Look {
        let mut look = Look { at: Instant::now(), ends: HashMap::new(), cpu: HashMap::new() };
        for board in boards {
            look.cpu.insert(board.pid, cpu(board.pid).unwrap_or_default());
            for end in board.ends() {
                let key = (board.pid, end.channel, end.role);
                let fresh = End {
                    dest_name: end.dest_name,
                    peer_pid: end.peer_pid,
                    stats: Stats::default(),
                };
                // A process may have several nodes, and so several sums.
                look.ends.entry(key).or_insert(fresh).stats.merge(&end.stats);
            }
        }
        look
    }

    /// Takes in processes that may have no board: they have counted nothing yet.
    fn note(&mut self, pids: impl Iterator<Item = u32>) {
        for pid in pids {
            self.cpu.entry(pid).or_insert_with(|| cpu(pid).unwrap_or_default());
        }
    }

    /// What a process counted on one side of its channels.
    fn total(&self, pid: u32, serves: bool) -> Stats {
        let of_it = |key: &(u32, u64, Role)| key.0 == pid && key.2.serves() == serves;
        self.ends.iter().filter(|(key, _)| of_it(key)).map(|(_, end)| &end.stats).collect()
    }
}

/// Tells what came between two looks. Pure but for what the kernel says of memory.
fn compare(
    then: Option<&Look>,
    now: &Look,
    entries: &[Entry],
    restarts: &HashMap<u32, u32>,
) -> Sight {
    let over = then.map_or(Duration::ZERO, |then| now.at - then.at);
    let name_of = |pid: u32| match entries.iter().find(|entry| entry.pid == pid) {
        Some(entry) => harmless(&entry.name),
        None => format!("({})", harmless(&program(pid))),
    };
    let service_of = |id: ServiceId, pid: u32| {
        let entry = entries.iter().find(|entry| entry.name_id == id);
        entry.map_or_else(|| name_of(pid), |entry| harmless(&entry.name))
    };
    let mut processes: BTreeMap<u32, Process> = BTreeMap::new();
    for (&pid, &cpu) in &now.cpu {
        let before = then.and_then(|then| then.cpu.get(&pid));
        let used = before.map(|before| cpu.saturating_sub(*before).as_secs_f64());
        let process = Process {
            pid,
            name: name_of(pid),
            cpu_share: used.map(|used| used / over.as_secs_f64().max(1e-9)),
            memory_bytes: memory(pid),
            restarts: restarts.get(&pid).copied(),
            ..Process::default()
        };
        processes.insert(pid, process);
    }
    for process in processes.values_mut() {
        // All ends together: one that closed left its counts to a sum.
        let total = |look: &Look, serves| look.total(process.pid, serves);
        let since = |serves| match then {
            Some(then) => total(now, serves).since(&total(then, serves)),
            None => total(now, serves),
        };
        (process.called, process.served) = (since(false), since(true));
    }
    let mut channels: BTreeMap<u64, Channel> = BTreeMap::new();
    for (&(pid, id, role), end) in now.ends.iter().filter(|((.., role), _)| !role.is_gone()) {
        let before = then.and_then(|then| then.ends.get(&(pid, id, role)));
        let stats = before.map_or_else(|| end.stats.clone(), |it| end.stats.since(&it.stats));
        let serves = role.serves();
        let (caller_pid, service_pid) =
            if serves { (end.peer_pid, pid) } else { (pid, end.peer_pid) };
        if let Some(server) = processes.get_mut(&service_pid).filter(|_| !serves) {
            server.callers.merge(&stats);
        }
        let channel = channels.entry(id).or_insert_with(|| Channel {
            id,
            caller: name_of(caller_pid),
            caller_pid,
            service: service_of(end.dest_name, service_pid),
            service_pid,
            ..Channel::default()
        });
        *if serves { &mut channel.server } else { &mut channel.client } = Some(stats);
    }
    Sight {
        over,
        processes: processes.into_values().collect(),
        channels: channels.into_values().collect(),
    }
}

/// What the kernel calls the process' program.
pub(crate) fn program(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.is_empty() { format!("pid {pid}") } else { name.trim_end().to_owned() }
}

/// Resident memory.
fn memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.saturating_mul(1024))
}

/// Processor time, of all its threads that live.
fn cpu(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let spent = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    let ns: u64 = threads.flatten().filter_map(spent).sum();
    Some(Duration::from_nanos(ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(ends: &[(u32, u64, Role, u64)]) -> Look {
        let mut look = Look { at: Instant::now(), ends: HashMap::new(), cpu: HashMap::new() };
        for &(pid, channel, role, count) in ends {
            let stats =
                Stats { messages_sent: count, messages_received: count, ..Stats::default() };
            // Process 1 calls, 2 serves.
            let end = End { dest_name: ServiceId::new(9), peer_pid: 3 - pid, stats };
            look.cpu.insert(pid, Duration::ZERO);
            look.ends.insert((pid, channel, role), end);
        }
        look
    }

    fn seen(then: &Look, now: &Look) -> Sight {
        let entry = Entry {
            instance: ServiceId::new(8),
            name_id: ServiceId::new(9),
            pid: 2,
            uid: 0,
            rank: 0,
            flags: 0,
            channels: 1,
            name: "echo".to_owned(),
        };
        compare(Some(then), now, &[entry], &HashMap::from([(2, 5)]))
    }

    #[test]
    fn what_came_between_two_looks_is_told_of_processes_and_channels() {
        let then = look(&[(1, 7, Role::Client, 100), (2, 7, Role::Server, 100)]);
        let now = look(&[(1, 7, Role::Client, 130), (2, 7, Role::Server, 120)]);
        let sight = seen(&then, &now);
        let [caller, service] = &sight.processes[..] else { panic!("{sight:?}") };
        assert_eq!((service.name.as_str(), service.restarts), ("echo", Some(5)));
        assert_eq!((caller.called.messages_sent, caller.served.messages_sent), (30, 0));
        assert_eq!((service.served.messages_received, service.callers.messages_sent), (20, 30));
        let [channel] = &sight.channels[..] else { panic!("{sight:?}") };
        assert_eq!(
            (channel.service.as_str(), channel.caller_pid, channel.service_pid),
            ("echo", 1, 2)
        );
        let count = |end: &Option<Stats>| end.as_ref().map(|it| it.messages_received);
        assert_eq!((count(&channel.client), count(&channel.server)), (Some(30), Some(20)));
    }

    #[test]
    fn a_service_without_a_board_is_shown_and_has_counted_nothing() {
        let (mut then, mut now) = (look(&[]), look(&[]));
        then.note([2].into_iter());
        now.note([2].into_iter());
        let sight = seen(&then, &now);
        let [service] = &sight.processes[..] else { panic!("{sight:?}") };
        assert_eq!((service.name.as_str(), service.restarts), ("echo", Some(5)));
        assert_eq!(service.served, Stats::default());
    }

    #[test]
    fn an_end_that_closes_is_not_counted_twice() {
        let then = look(&[(1, 7, Role::Client, 100), (1, 0, Role::GoneClients, 1000)]);
        let now = look(&[(1, 0, Role::GoneClients, 1105)]);
        let sight = seen(&then, &now);
        assert_eq!(sight.processes[0].called.messages_sent, 5);
        assert!(sight.channels.is_empty());
    }

    #[test]
    fn the_kernel_knows_this_process() {
        let own = std::process::id();
        assert!(memory(own) > Some(100_000));
        assert!(cpu(own).is_some());
        assert_eq!((memory(u32::MAX), program(u32::MAX)), (None, format!("pid {}", u32::MAX)));
    }
}
