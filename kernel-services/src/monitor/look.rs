//! Gathering what services count: boards, the registry's list, `/proc`.

use std::{collections::BTreeMap, fs, time::Duration};

use ipc::{Board, Node, NodeError, Status};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;

use super::{Process, Service, Sight, Unit};

/// How long the supervisor may take to say what it knows by itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// Looks at all services, again and again; each board is mapped once.
#[derive(Debug)]
pub struct Monitor {
    node: Node,
    boards: Vec<Board>,
}

impl Monitor {
    /// Looks through this connection to the runtime.
    pub fn new(node: Node) -> Monitor {
        Monitor { node, boards: Vec::new() }
    }

    /// Gives what each process that serves a name counted, and what a supervisor says of its units.
    ///
    /// # Errors
    /// Those of [`Node::boards`], [`Node::list`] and [`Node::command`].
    pub fn look(&mut self) -> Result<Sight, NodeError> {
        Ok(Sight { services: self.services()?, units: self.units()?, exported: None })
    }

    fn units(&self) -> Result<Vec<Unit>, NodeError> {
        match self.node.command(r#"{"do":"status"}"#, Some(PATIENCE)) {
            Ok(answer) => Ok(units_of(&answer)),
            // Nobody supervises.
            Err(NodeError::Refused(Status::NOT_SUPPORTED)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn services(&mut self) -> Result<Vec<Service>, NodeError> {
        self.node.refresh_boards(&mut self.boards)?;
        // By process, since a board is a process's: the first name that it registered.
        let mut services: BTreeMap<u32, Service> = BTreeMap::new();
        for entry in self.node.list()? {
            services.entry(entry.pid).or_insert_with(|| Service {
                process: process(entry.pid),
                instance: entry.instance,
                name: entry.name,
                ..Service::default()
            });
        }
        for board in &self.boards {
            let Some(service) = services.get_mut(&board.pid) else { continue };
            for end in board.ends() {
                let of = if end.role.serves() { &mut service.served } else { &mut service.called };
                of.merge(&end.stats);
                service.connections += u64::from(!end.role.is_gone());
            }
        }
        let mut services: Vec<Service> = services.into_values().collect();
        services.sort_by(|a, b| (&a.name, a.instance).cmp(&(&b.name, b.instance)));
        Ok(services)
    }
}

/// Reads what `docs/control.md` says of units.
fn units_of(answer: &str) -> Vec<Unit> {
    let answer: Value = serde_json::from_str(answer).unwrap_or_default();
    let units = answer["units"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |unit: &Value, key: &str| unit[key].as_str().unwrap_or_default().to_owned();
    let units = units.iter().map(|unit| Unit {
        name: text(unit, "name"),
        service: text(unit, "service"),
        // One that has done what it is for.
        is_ready: matches!(unit["state"].as_str(), Some("ready" | "finished")),
        restarts: unit["restarts"].as_u64().unwrap_or_default(),
    });
    units.collect()
}

/// Asks the kernel about a process; nothing when it is gone, or hidden.
fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (ticks, pages) = usage(&stat)?;
    let of = |what| sysconf(what).ok().flatten().and_then(|it| u64::try_from(it).ok());
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok().map(Iterator::count);
    Some(Process {
        resident_bytes: pages.saturating_mul(of(SysconfVar::PAGE_SIZE)?),
        cpu_seconds: ticks as f64 / of(SysconfVar::CLK_TCK)?.max(1) as f64,
        open_fds: descriptors.map(|count| count as u64),
    })
}

/// Ticks of processor time and resident pages, of a line of `/proc/PID/stat`: see proc(5).
fn usage(stat: &str) -> Option<(u64, u64)> {
    // The name, in parentheses, may hold anything; behind it stands field 3.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((field(14)?.saturating_add(field(15)?), field(24)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_this_process() {
        let own = process(std::process::id()).expect("it lives");
        assert!(own.resident_bytes > 100_000 && own.open_fds > Some(2), "{own:?}");
        assert_eq!(process(u32::MAX), None);
    }

    #[test]
    fn units_are_what_the_supervisor_says() {
        let answer = r#"{"units":[{"name":"a#2","service":"a","state":"ready","restarts":3},{}]}"#;
        let unit = Unit { name: "a#2".into(), service: "a".into(), is_ready: true, restarts: 3 };
        assert_eq!(units_of(answer), [unit, Unit::default()]);
        assert_eq!(units_of("nonsense"), []);
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 30 12 0 0 20 0 1 0 99 1000 55 18";
        assert_eq!(usage(stat), Some((42, 55)));
        assert_eq!(usage("7 (a) S 1"), None);
        assert_eq!(usage(""), None);
    }
}
