//! Scripts of events, and the effects that each has.

mod groups;
mod orders;
mod property;
mod table;
mod world;

use std::time::Duration;

use super::*;
use crate::node::{
    Backoff, Group, Intensity, Limits, Log, LogFormat, Quota, Readiness, Ready, Restart, Sandbox,
    Strategy, Watchdog,
};

const MS: u64 = 1_000_000;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Runs as soon as it is spawned; a failure costs it 10 ms, then 20, 40 and 80.
fn service(name: &str, needs: &[&str]) -> Service {
    Service {
        name: name.to_owned(),
        executable: PathBuf::from("/bin/true"),
        arguments: Vec::new(),
        environment: BTreeMap::new(),
        directory: PathBuf::from("/"),
        provides: vec![name.to_owned()],
        depends_on: needs.iter().map(|&name| name.to_owned()).collect(),
        replicas: 1,
        restart: Restart::Permanent,
        backoff: Backoff {
            first: ms(10),
            most: ms(80),
            factor: 2.0,
            jitter: 0.0,
            forget_after: ms(500),
        },
        readiness: Readiness { when: Ready::Runs, within: ms(100) },
        watchdog: None,
        stop_within: ms(50),
        user: None,
        cpus: None,
        numa_node: None,
        limits: Limits::default(),
        quota: Quota::default(),
        sandbox: Sandbox::Off,
        log: Log { format: LogFormat::Text, rotate_at: 1 << 20, keep: 1 },
    }
}

/// Of services that need each other as in `"api: db auth"`.
fn node(services: &[&str]) -> Node {
    let service = |line: &&str| {
        let (name, needs) = line.split_once(':').unwrap_or((line, ""));
        service(name, &needs.split_whitespace().collect::<Vec<_>>())
    };
    Node { services: services.iter().map(service).collect(), ..Node::default() }
}

fn group(members: &[&str], strategy: Strategy, restarts: u32, within: Duration) -> Group {
    Group {
        name: "core".to_owned(),
        members: members.iter().map(|&name| name.to_owned()).collect(),
        strategy,
        intensity: Intensity { restarts, within },
    }
}

/// A supervisor on a simulated clock, driven by words.
struct Bench {
    supervisor: Supervisor,
    now_ns: u64,
    /// For `reload NAME`.
    nodes: BTreeMap<&'static str, Node>,
    notices: Vec<String>,
    requests: u64,
    /// The names of units, also of those that are gone.
    names: BTreeMap<UnitId, String>,
}

impl Bench {
    fn new(node: &Node) -> Bench {
        let (supervisor, nodes) = (Supervisor::new(node, 1, 0), BTreeMap::new());
        let (names, notices) = (BTreeMap::new(), Vec::new());
        Bench { supervisor, now_ns: 0, nodes, notices, requests: 0, names }
    }

    /// Runs `"event, event => effect, effect"` lines; blank lines and margins do not count.
    #[track_caller]
    fn script(&mut self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (events, expected) = line.split_once("=>").expect("events => effects");
            let happened = self.all(events);
            assert_eq!(happened, expected.trim(), "after {}", events.trim());
        }
    }

    fn all(&mut self, events: &str) -> String {
        let events = events.split(',').map(str::trim).filter(|event| !event.is_empty());
        let effects: Vec<String> = events.flat_map(|event| self.event(event)).collect();
        effects.join(", ")
    }

    fn event(&mut self, text: &str) -> Vec<String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let event = match words[..] {
            ["start"] => Event::Start,
            ["shutdown"] => Event::Shutdown,
            ["spawned", name] => Event::Spawned { unit: self.id(name), pid: 7 },
            ["nospawn", name] => {
                Event::SpawnFailed { unit: self.id(name), reason: "no such file".to_owned() }
            }
            ["adopted", name] => Event::Adopted { unit: self.id(name), pid: 8 },
            ["serves", name] => Event::Serves { unit: self.id(name) },
            ["exit", name, code] => {
                let code = code.parse().expect("a number");
                Event::Ended { unit: self.id(name), how: End::Exit { code } }
            }
            ["signal", name, number] => {
                let number = number.parse().expect("a number");
                Event::Ended { unit: self.id(name), how: End::Signal { number, core: false } }
            }
            ["lost", name] => Event::Ended { unit: self.id(name), how: End::Unknown },
            ["answered", name] => Event::Answered { unit: self.id(name) },
            ["missed", name] => Event::Missed { unit: self.id(name) },
            ["up", name] => self.command(Command::Start, name),
            ["down", name] => self.command(Command::Stop, name),
            ["restart", name] => self.command(Command::Restart, name),
            ["reload", name] => Event::Reload(Box::new(self.nodes[name].clone())),
            ["wait", time] => {
                self.now_ns += MS * time.parse::<u64>().expect("milliseconds");
                Event::Tick
            }
            // The next thing that time alone brings.
            ["due"] => {
                self.now_ns =
                    self.supervisor.deadline_ns().map_or(self.now_ns, |due| due.max(self.now_ns));
                Event::Tick
            }
            _ => panic!("no event: {text}"),
        };
        self.step(event)
    }

    fn command(&mut self, command: Command, name: &str) -> Event {
        self.requests += 1;
        Event::Command { request: self.requests, command, name: name.to_owned() }
    }

    fn step(&mut self, event: Event) -> Vec<String> {
        self.learn_names();
        let effects = self.supervisor.step(event, self.now_ns);
        self.learn_names();
        effects.into_iter().filter_map(|effect| self.word(effect)).collect()
    }

    fn learn_names(&mut self) {
        let status = self.supervisor.status().into_iter();
        self.names.extend(status.map(|unit| (unit.unit, unit.name)));
    }

    fn word(&mut self, effect: Effect) -> Option<String> {
        let name = |unit| self.names[&unit].clone();
        Some(match effect {
            Effect::Spawn { unit, .. } => format!("spawn {}", name(unit)),
            Effect::Terminate { unit } => format!("term {}", name(unit)),
            Effect::Kill { unit } => format!("kill {}", name(unit)),
            Effect::Probe { unit } => format!("probe {}", name(unit)),
            Effect::Answer { request, result: Ok(()) } => format!("{request} ok"),
            Effect::Answer { request, result: Err(refusal) } => format!("{request} no: {refusal}"),
            Effect::Done => "done".to_owned(),
            Effect::Report { name, notice, .. } => {
                self.notices.push(format!("{name} {notice}"));
                return None;
            }
        })
    }

    /// Of a unit by its shown name; one that is gone is still known.
    fn id(&self, name: &str) -> UnitId {
        let found = self.names.iter().rev().find(|(_, known)| *known == name);
        let found = found.map(|(&id, _)| id);
        found.or_else(|| self.supervisor.unit(name, 1)).unwrap_or(UnitId(u32::MAX))
    }

    fn status(&self, name: &str) -> Option<UnitStatus> {
        self.supervisor.status().into_iter().find(|unit| unit.name == name)
    }

    fn state(&self, name: &str) -> String {
        self.status(name).map_or("gone".to_owned(), |unit| unit.state.to_string())
    }
}
