//! A world that obeys effects, late and not always, and sees whether the promises are kept.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    property::{Draw, any_node},
    *,
};

/// How long the outside meddles before it shuts everything down.
const BUSY_NS: u64 = 2_000 * MS;

pub(super) struct World {
    seed: u64,
    now_ns: u64,
    draw: Draw,
    supervisor: Supervisor,
    node: Node,
    /// Of all services that ever were.
    needs: BTreeMap<String, Vec<String>>,
    coming: BTreeMap<(u64, u64), Happening>,
    happenings: u64,
    processes: BTreeMap<UnitId, Process>,
    spawning: BTreeSet<UnitId>,
    units: BTreeMap<UnitId, Record>,
    /// When the restarts of a group were due, by the unit that failed.
    dues: BTreeMap<String, Vec<u64>>,
    requests: BTreeMap<u64, (Command, Vec<UnitId>)>,
    asked: u64,
    shutting_down: bool,
    done: bool,
    history: Vec<String>,
}

/// What the world knows of a unit from what it did itself.
#[derive(Default)]
struct Record {
    spawns: Vec<u64>,
    /// It may not be spawned before.
    due_ns: u64,
    /// Failures in a row, while the world can know.
    streak: Option<u32>,
    /// Its last process ended with 0 without being told to.
    prepared: bool,
}

struct Process {
    pid: u32,
    born_ns: u64,
    ready: bool,
    told: bool,
    dead: bool,
}

enum Happening {
    Event(Event),
    Spawns(UnitId),
    /// To the process of that number.
    Serves(UnitId, u32),
    Dies(UnitId, u32, End),
    Reaped(UnitId, End),
    Meddling,
}

impl World {
    /// Lives through one history.
    pub(super) fn live(seed: u64) {
        let mut draw = Draw::new(seed);
        let node = any_node(&mut draw);
        let mut world = World {
            seed,
            now_ns: draw.delay(1000),
            supervisor: Supervisor::new(&node, seed, 0),
            node: Node::default(),
            needs: BTreeMap::new(),
            coming: BTreeMap::new(),
            happenings: 0,
            processes: BTreeMap::new(),
            spawning: BTreeSet::new(),
            units: BTreeMap::new(),
            dues: BTreeMap::new(),
            requests: BTreeMap::new(),
            asked: 0,
            shutting_down: false,
            done: false,
            history: Vec::new(),
            draw,
        };
        world.learn(node);
        world.adopt_some();
        world.later(5, Happening::Event(Event::Start));
        world.later(20, Happening::Meddling);
        world.run();
        world.look_back();
    }

    fn run(&mut self) {
        let (end_ns, mut steps, mut at_once) = (self.now_ns + BUSY_NS, 0, 0);
        while !self.supervisor.is_over() {
            let next = self.coming.first_key_value().map(|(&(at, _), _)| at);
            let due = self.supervisor.deadline_ns();
            let at = [next, due].into_iter().flatten().min().expect("something is to come");
            at_once = if at > self.now_ns { 0 } else { at_once + 1 };
            steps += 1;
            assert!(at_once < 200 && steps < 100_000, "time stands still");
            self.now_ns = self.now_ns.max(at);
            if !self.shutting_down && self.now_ns >= end_ns {
                self.shutting_down = true;
                self.step(Event::Shutdown);
            } else if next == Some(at) {
                let (_, happening) = self.coming.pop_first().expect("it was there");
                self.happen(happening);
            } else {
                self.step(Event::Tick);
            }
        }
    }

    fn look_back(&mut self) {
        assert!(self.processes.is_empty() && self.spawning.is_empty(), "orphans");
        assert!(self.done && self.requests.is_empty(), "unanswered: {:?}", self.requests.keys());
        self.command();
        assert!(self.requests.is_empty(), "unanswered when all is over");
        assert_eq!(self.supervisor.deadline_ns(), None);
    }

    fn later(&mut self, most_ms: u64, happening: Happening) {
        self.happenings += 1;
        let at = self.now_ns + self.draw.delay(most_ms);
        self.coming.insert((at, self.happenings), happening);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Event(event) => self.step(event),
            Happening::Spawns(unit) => self.spawns(unit),
            Happening::Serves(unit, pid) => {
                let living = |process: &&mut Process| process.pid == pid && !process.dead;
                if let Some(process) = self.processes.get_mut(&unit).filter(living) {
                    process.ready = true;
                    self.step(Event::Serves { unit });
                }
            }
            Happening::Dies(unit, pid, how) => {
                let living = |process: &&mut Process| process.pid == pid && !process.dead;
                if let Some(process) = self.processes.get_mut(&unit).filter(living) {
                    process.dead = true;
                    self.later(3, Happening::Reaped(unit, how));
                }
            }
            Happening::Reaped(unit, how) => self.reaped(unit, how),
            Happening::Meddling => self.meddle(),
        }
    }

    fn spawns(&mut self, unit: UnitId) {
        self.spawning.remove(&unit);
        if self.draw.percent(10) {
            return self.step(Event::SpawnFailed { unit, reason: "no memory".to_owned() });
        }
        let pid = self.born(unit);
        self.step(Event::Spawned { unit, pid });
    }

    fn born(&mut self, unit: UnitId) -> u32 {
        self.happenings += 1;
        let pid = self.happenings as u32;
        let (spec, _) = self.supervisor.service(unit).expect("a unit with a process is known");
        let when = spec.readiness.when;
        let ready = when == Ready::Runs;
        let process = Process { pid, born_ns: self.now_ns, ready, told: false, dead: false };
        assert!(self.processes.insert(unit, process).is_none(), "two processes of {unit}");
        match when {
            Ready::Exits => {
                let code = i32::from(self.draw.percent(30));
                self.later(60, Happening::Dies(unit, pid, End::Exit { code }));
            }
            Ready::Answers => self.later(60, Happening::Serves(unit, pid)),
            Ready::Runs => {}
        }
        if self.draw.percent(60) {
            let how = [End::Exit { code: 0 }, End::Exit { code: 1 }, End::Unknown];
            let how = self.draw.of(&how);
            let most = self.draw.of(&[5, 100, 1000]);
            self.later(most, Happening::Dies(unit, pid, how));
        }
        pid
    }

    fn reaped(&mut self, unit: UnitId, how: End) {
        let process = self.processes.remove(&unit).expect("reaped once");
        self.note_life(unit, process.born_ns);
        self.units.entry(unit).or_default().prepared = !process.told && how.is_success();
        self.step(Event::Ended { unit, how });
    }

    /// A life of more than the time of forgiveness makes the next failure the first.
    fn note_life(&mut self, unit: UnitId, born_ns: u64) {
        let Some((spec, _)) = self.supervisor.service(unit) else { return };
        let forgiven = born_ns + spec.backoff.forget_after.as_nanos() as u64 <= self.now_ns;
        if forgiven {
            self.units.entry(unit).or_default().streak = Some(0);
        }
    }

    fn adopt_some(&mut self) {
        for unit in self.supervisor.status() {
            if self.draw.percent(15) {
                let pid = self.born(unit.unit);
                self.step(Event::Adopted { unit: unit.unit, pid });
            }
        }
    }

    fn meddle(&mut self) {
        match self.draw.below(10) {
            0..5 => self.command(),
            5..7 => {
                let same = self.draw.percent(30);
                let node = if same { self.node.clone() } else { any_node(&mut self.draw) };
                // In a shutdown it is too late.
                if !self.shutting_down {
                    self.learn(node.clone());
                    self.forgive();
                }
                self.step(Event::Reload(Box::new(node)));
            }
            _ => self.lie(),
        }
        self.later(300, Happening::Meddling);
    }

    /// Says what can come late, or twice, or from nobody.
    fn lie(&mut self) {
        let unit = UnitId(self.draw.below(20) as u32);
        let has_none = !self.processes.contains_key(&unit) && !self.spawning.contains(&unit);
        let event = match self.draw.below(6) {
            0 => Event::Answered { unit },
            1 => Event::Missed { unit },
            2 if has_none => Event::Ended { unit, how: End::Unknown },
            3 if has_none => Event::SpawnFailed { unit, reason: String::new() },
            4 if has_none => Event::Serves { unit },
            5 if has_none => Event::Spawned { unit, pid: 1 },
            _ => Event::Tick,
        };
        self.step(event);
    }

    fn command(&mut self) {
        let command = self.draw.of(&[Command::Start, Command::Stop, Command::Restart]);
        let name = self.draw.of(&["a", "b", "c", "d", "e", "f", "a#2", "core", "edge", "nobody"]);
        let status = self.supervisor.status();
        let is_it = |unit: &&UnitStatus| {
            unit.service == name || unit.name == name || unit.group.as_deref() == Some(name)
        };
        let is_current = |unit: &&UnitStatus| {
            self.supervisor.unit(&unit.service, unit.replica) == Some(unit.unit)
        };
        let units = status.iter().filter(is_it).filter(is_current);
        let units: Vec<UnitId> = units.map(|unit| unit.unit).collect();
        for unit in &units {
            let record = self.units.entry(*unit).or_default();
            (record.due_ns, record.streak) = (0, None);
            record.spawns.clear();
        }
        self.asked += 1;
        self.requests.insert(self.asked, (command, units));
        self.step(Event::Command { request: self.asked, command, name: name.to_owned() });
    }

    fn learn(&mut self, node: Node) {
        let needs = |spec: &Service| (spec.name.clone(), spec.depends_on.clone());
        self.needs.extend(node.services.iter().map(needs));
        self.node = node;
    }

    /// What was bound by the terms of an earlier file is not any more.
    fn forgive(&mut self) {
        self.dues.clear();
        for (&unit, process) in &mut self.processes {
            let Some((spec, _)) = self.supervisor.service(unit) else { continue };
            let now = self.node.services.iter().find(|now| now.name == spec.name);
            let runs = now.is_some_and(|now| now.readiness.when == Ready::Runs);
            process.ready |= runs && !process.told;
        }
        for record in self.units.values_mut() {
            (record.due_ns, record.streak) = (0, None);
            record.spawns.clear();
        }
    }
}

/// The judge.
impl World {
    fn step(&mut self, event: Event) {
        let said = match &event {
            Event::Reload(node) => format!("reload {:?}", brief(node)),
            event => format!("{event:?}"),
        };
        self.history.push(format!("{:.3} {said}", self.now_ns as f64 / MS as f64));
        let effects = self.supervisor.step(event, self.now_ns);
        for effect in effects {
            self.history.push(match &effect {
                Effect::Report { name, notice, .. } => format!("    {name} {notice}"),
                effect => format!("    {effect:?}"),
            });
            assert!(!self.done || matches!(effect, Effect::Answer { .. }), "after the end");
            self.obey(effect);
        }
        self.look_around();
    }

    fn obey(&mut self, effect: Effect) {
        match effect {
            Effect::Spawn { unit, .. } => self.spawn(unit),
            Effect::Terminate { unit } => {
                self.judge_stop(unit);
                let process = self.processes.get_mut(&unit).expect("TERM to nobody");
                assert!(!std::mem::replace(&mut process.told, true), "TERM twice");
                process.ready = false;
                let (pid, how) = (process.pid, End::Exit { code: 0 });
                if self.draw.percent(60) {
                    self.later(40, Happening::Dies(unit, pid, how));
                }
            }
            Effect::Kill { unit } => {
                let process = self.processes.get_mut(&unit).expect("KILL to nobody");
                (process.ready, process.told) = (false, true);
                let (pid, how) = (process.pid, End::Signal { number: 9, core: false });
                self.later(10, Happening::Dies(unit, pid, how));
            }
            Effect::Probe { unit } => {
                assert!(self.processes[&unit].ready, "ping to who is not ready");
                match self.draw.below(10) {
                    0 => self.later(4, Happening::Event(Event::Missed { unit })),
                    1 => {}
                    _ => self.later(5, Happening::Event(Event::Answered { unit })),
                }
            }
            Effect::Report { unit, name, notice } => self.judge_report(unit, &name, &notice),
            Effect::Answer { request, result } => self.judge_answer(request, &result),
            Effect::Done => assert!(!std::mem::replace(&mut self.done, true), "done twice"),
        }
    }

    fn spawn(&mut self, unit: UnitId) {
        assert!(!self.shutting_down, "{unit} is spawned in a shutdown");
        assert!(!self.processes.contains_key(&unit), "a second process of {unit}");
        assert!(self.spawning.insert(unit), "{unit} is spawned twice");
        let (spec, _) = self.supervisor.service(unit).expect("it is spawned");
        let spec = spec.clone();
        for needed in &spec.depends_on {
            assert!(self.is_ready(needed), "{unit} is spawned before {needed} is ready");
        }
        let intensity = self.group_of(&spec.name).intensity;
        let now_ns = self.now_ns;
        let record = self.units.entry(unit).or_default();
        assert!(now_ns >= record.due_ns, "{unit} is spawned before its time");
        record.prepared = false;
        record.spawns.push(now_ns);
        let within = intensity.within.as_nanos() as u64;
        let crowd = intensity.restarts as usize + 1;
        let too_fast = |times: &[u64]| times[crowd] - times[0] < within;
        assert!(!record.spawns.windows(crowd + 1).any(too_fast), "{unit} loops");
        self.later(5, Happening::Spawns(unit));
    }

    fn is_ready(&self, service: &str) -> bool {
        let spec = self.node.services.iter().find(|spec| spec.name == service);
        let Some(spec) = spec else { return false };
        let units = (1..=spec.replicas).map(|replica| self.supervisor.unit(service, replica));
        let mut units = units.map(|unit| unit.expect("all replicas are units"));
        match spec.readiness.when {
            Ready::Exits => units.all(|unit| self.units.get(&unit).is_some_and(|it| it.prepared)),
            _ => units.any(|unit| self.processes.get(&unit).is_some_and(|process| process.ready)),
        }
    }

    fn group_of(&self, service: &str) -> Group {
        let has_it = |group: &&Group| group.members.iter().any(|name| name == service);
        self.node.groups.iter().find(has_it).cloned().unwrap_or_else(|| Group::alone(service))
    }

    /// In a shutdown everything that comes after a unit is gone before it is told.
    fn judge_stop(&self, unit: UnitId) {
        if !self.shutting_down {
            return;
        }
        let name = |unit| self.supervisor.service(unit).expect("it has a process").0.name.clone();
        let stopped = name(unit);
        for &other in self.processes.keys().chain(&self.spawning) {
            assert!(!self.comes_after(&name(other), &stopped), "{unit} stops before {other}");
        }
    }

    fn comes_after(&self, late: &str, early: &str) -> bool {
        self.needs[late].iter().any(|need| need == early || self.comes_after(need, early))
    }

    fn judge_report(&mut self, unit: UnitId, name: &str, notice: &Notice) {
        let Some((spec, _)) = self.supervisor.service(unit) else { return };
        let (terms, service) = (spec.backoff, spec.name.clone());
        let group = self.group_of(&service);
        match notice {
            Notice::RestartsIn { delay, .. } => {
                let record = self.units.entry(unit).or_default();
                let full = terms.first.as_nanos() as f64;
                let most = terms.most.as_nanos() as f64;
                let streak = record.streak.map(|streak| i32::try_from(streak).expect("few"));
                let least = (full * terms.factor.powi(streak.unwrap_or(0))).min(most);
                let most = if streak.is_some() { least } else { most };
                let delay = delay.as_nanos() as f64;
                assert!(delay <= most, "{name} waits {delay}, at most {most}");
                assert!(delay + 1.0 >= least * (1.0 - terms.jitter), "{name} waits only {delay}");
                record.streak = record.streak.map(|streak| streak + 1);
                record.due_ns = self.now_ns + delay as u64;
                let dues = self.dues.entry(group.name.clone()).or_default();
                dues.push(self.now_ns + delay as u64);
                dues.sort_unstable();
                let crowd = group.intensity.restarts as usize;
                let within = group.intensity.within.as_nanos() as u64;
                let too_many = |dues: &[u64]| dues[crowd] - dues[0] < within;
                assert!(!dues.windows(crowd + 1).any(too_many), "{} loops", group.name);
            }
            // Whoever starts it again starts afresh.
            Notice::GaveUp { .. } => {
                self.dues.remove(&group.name);
                let members = self.supervisor.status().into_iter();
                for unit in members.filter(|unit| group.members.contains(&unit.service)) {
                    self.units.entry(unit.unit).or_default().spawns.clear();
                }
            }
            _ => {}
        }
    }

    fn judge_answer(&mut self, request: u64, result: &Result<(), Refusal>) {
        let (command, units) = self.requests.remove(&request).expect("asked, and not answered");
        if result.is_err() {
            return;
        }
        let status = self.supervisor.status();
        for unit in units {
            let has_one = self.processes.contains_key(&unit) || self.spawning.contains(&unit);
            let state = status.iter().find(|status| status.unit == unit).map(|unit| unit.state);
            match command {
                Command::Stop => assert!(!has_one, "{unit} still runs"),
                Command::Start | Command::Restart => assert!(
                    matches!(state, Some(UnitState::Ready | UnitState::Finished)),
                    "{unit} is {state:?}"
                ),
            }
        }
    }

    /// Every process is somebody's, and nobody has one that is gone.
    fn look_around(&self) {
        let status = self.supervisor.status();
        let theirs: BTreeMap<UnitId, u32> =
            status.iter().filter_map(|unit| Some((unit.unit, unit.pid?))).collect();
        let ours = self.processes.iter().map(|(&unit, process)| (unit, process.pid)).collect();
        assert_eq!(theirs, ours, "orphans or zombies");
        for unit in &self.spawning {
            assert!(status.iter().any(|status| status.unit == *unit), "{unit} is forgotten");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let tail = self.history.len().saturating_sub(80);
            eprintln!("seed {}: {:?}", self.seed, brief(&self.node));
            eprintln!("{}", self.history[tail..].join("\n"));
        }
    }
}

fn brief(node: &Node) -> Vec<String> {
    let service = |spec: &Service| {
        let (name, needs, count) = (&spec.name, spec.depends_on.join(" "), spec.replicas);
        format!("{name}*{count}: {needs} {:?} {:?}", spec.readiness.when, spec.restart)
    };
    let group = |group: &Group| {
        let Intensity { restarts, within } = group.intensity;
        format!("{:?} {:?} {restarts} in {within:?}", group.members, group.strategy)
    };
    node.services.iter().map(service).chain(node.groups.iter().map(group)).collect()
}
