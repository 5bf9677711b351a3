//! A running system of services: carries out what the supervisor decides.
//!
//! ```text
//!   signals, ends of processes, desk, probes, logs ─▶ System (one loop) ─ Event ─▶ Supervisor
//!   launch, signal, kill, ping, answer             ◀─ System ◀────────── Effect ── Supervisor
//! ```
//! It runs beside the runtime's own thread, which introduces processes to each other meanwhile:
//! starting a process takes milliseconds. Nothing here waits for a service.

mod adopt;
mod children;
mod growth;
mod keys;
mod law;
mod metrics;
mod probe;
mod store;
mod words;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    time::Instant,
};

use ipc::{ServiceId, trace::Context};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        inotify::{AddWatchFlags, InitFlags, Inotify},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use crate::{
    Kernel, KernelError,
    console::say,
    desk::{Notice, Order, SupervisorDesk, desk},
    directory::Directory,
    logs::{LogError, Logs},
    node::{self, Node, NodeError, Ready},
    notes::Notes,
    process::Process,
    reactor::monotonic_ns,
    spans::Open,
    supervisor::{Command, Effect, Event, Refusal, Supervisor, UnitId, UnitState},
};
use adopt::{Found, find};
use keys::Keys;
use law::settle_paths;
use probe::{Outcome, Probes};
use store::Store;
use words::{Answer, Wish};

const SIGNALS: u64 = 0;
const DESK: u64 = 1;
const KERNEL: u64 = 2;
const PROBES: u64 = 3;
const LOGS: u64 = 4;
/// A unit's process is told by this and the unit's number.
const FIRST_UNIT: u64 = 1 << 32;

/// Between two looks at processes whose end nothing tells of, in nanoseconds.
const LOOK_AT_UNHEARD_NS: u64 = 1_000_000_000;
/// Lines of its log that a service which failed is shown with.
const LAST_LINES: usize = 10;

/// Explains why a system could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// The runtime could not start.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The node file is no good.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The log directory is no good.
    #[error(transparent)]
    Logs(#[from] LogError),
    /// What was known of processes that may still run cannot be read.
    #[error("{}: {what}; if no service of this node runs any more, remove it", path.display())]
    Units {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// It must not happen.
    #[error("the runtime's thread ended by itself; please report it, and start ipcd again")]
    Ended,
}

fn failed(what: &'static str) -> impl Fn(Errno) -> SystemError {
    move |errno| SystemError::System { what, source: errno.into() }
}

/// A system of services, from its node file.
#[derive(Debug)]
pub struct System {
    path: PathBuf,
    runtime_dir: PathBuf,
    node: Node,
    supervisor: Supervisor,
    running: HashMap<UnitId, Running>,
    /// Processes of an earlier run that are not taken over yet.
    found: Vec<Found>,
    /// Commands that the supervisor has not answered.
    asked: HashMap<u64, Asked>,
    next_request: u64,
    probes: Probes,
    store: Store,
    keys: Keys,
    /// What this machine does not enforce, as far as that was said.
    gaps: HashSet<String>,
    logs: Logs,
    log_events: Inotify,
    /// When to look at the logs next, if they grow.
    logs_due_ns: Option<u64>,
    epoll: Epoll,
    signals: SignalFd,
    desk: SupervisorDesk,
    metrics: metrics::Metrics,
    notes: Option<Notes>,
    // Dropped last: it has the lock on the directory.
    kernel: Kernel,
}

/// A command that goes on.
#[derive(Debug)]
struct Asked {
    /// Who asked, and under which sequence.
    to: u64,
    sequence: u32,
    /// What it is about: a service, a unit, a group.
    name: String,
    span: Open,
}

/// A unit's process, and what is known of it.
#[derive(Debug)]
struct Running {
    process: Process,
    /// When it was started, or taken over.
    since: Instant,
    /// The names that it serves, by instance.
    serves: HashMap<ServiceId, String>,
    /// Whether it served any, ever.
    has_served: bool,
    /// Whether the supervisor knows that it answers.
    told_ready: bool,
}

impl System {
    /// Reads the node file, starts the runtime, and finds the processes of an earlier run.
    ///
    /// The calling thread's signals SIGTERM, SIGINT, SIGHUP and SIGCHLD must be blocked before any
    /// other thread is started: see [`signals`].
    ///
    /// # Errors
    /// [`SystemError`]; nothing was started.
    pub fn open(path: &Path, runtime_dir: &Path, signals: SignalFd) -> Result<System, SystemError> {
        let mut node = node::load(path)?;
        settle_paths(&mut node, runtime_dir);
        let (desk, other) = desk().map_err(failed("make an eventfd"))?;
        let now_ns = monotonic_ns();
        let supervisor = Supervisor::new(&node, now_ns, now_ns);
        // Before anything is read that an ipcd which still runs might write.
        let directory = Directory::open(runtime_dir)?;
        let mut store = Store::open(runtime_dir)?;
        desk.say(Order::Enact(Box::new(law::law(&node))));
        // They come back to the runtime as soon as it is there, and are to be known then.
        let keys = Keys::of(runtime_dir);
        let found = find(&mut store, &supervisor, &desk, &keys);
        let kernel = Kernel::start(directory, Some(other))?;
        let logs = Logs::open(&node.log_directory)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(failed("make an epoll instance"))?;
        let log_events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(failed("watch the logs"))?;
        log_events
            .add_watch(&node.log_directory, AddWatchFlags::IN_MODIFY)
            .map_err(failed("watch the logs"))?;
        let probes = Probes::new(runtime_dir).map_err(failed("make an eventfd"))?;
        let reads = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll
            .add(&signals, reads(SIGNALS))
            .and_then(|()| epoll.add(&desk, reads(DESK)))
            .and_then(|()| epoll.add(&kernel, reads(KERNEL)))
            .and_then(|()| epoll.add(&probes, reads(PROBES)))
            .and_then(|()| epoll.add(&log_events, reads(LOGS)))
            .map_err(failed("set up epoll"))?;
        Ok(System {
            path: path.to_owned(),
            runtime_dir: runtime_dir.to_owned(),
            node,
            supervisor,
            running: HashMap::new(),
            found,
            asked: HashMap::new(),
            next_request: 1,
            probes,
            store,
            keys,
            gaps: HashSet::new(),
            logs,
            log_events,
            logs_due_ns: None,
            epoll,
            signals,
            desk,
            metrics: metrics::Metrics::default(),
            notes: kernel.notes(),
            kernel,
        })
    }

    /// Gives the path of the socket to which nodes connect.
    pub fn socket_path(&self) -> &Path {
        self.kernel.socket_path()
    }

    /// Gives what the node file has that is allowed, and hardly meant.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        self.node.warnings.iter().map(ToString::to_string)
    }

    /// Runs the system until SIGTERM or SIGINT has stopped all of it.
    ///
    /// # Errors
    /// [`SystemError::Ended`], [`SystemError::System`]: the services go on.
    pub fn run(&mut self) -> Result<(), SystemError> {
        self.adopt();
        self.step(Event::Start);
        let mut ready = [EpollEvent::empty(); 64];
        while !self.supervisor.is_over() {
            let count = match self.epoll.wait(&mut ready, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(failed("wait for events")(errno)),
            };
            for event in &ready[..count] {
                match event.data() {
                    SIGNALS => self.hear_signals(),
                    DESK => self.hear_notices(),
                    KERNEL => return Err(SystemError::Ended),
                    PROBES => self.hear_probes(),
                    LOGS => self.hear_logs(),
                    unit => self.reap(UnitId((unit - FIRST_UNIT) as u32)),
                }
            }
            for unit in self.unheard().collect::<Vec<_>>() {
                self.reap(unit);
            }
            self.look_at_logs();
            self.step(Event::Tick);
        }
        Ok(())
    }

    fn timeout(&self) -> EpollTimeout {
        let look = self.unheard().next().map(|_| monotonic_ns() + LOOK_AT_UNHEARD_NS);
        let next = [self.supervisor.deadline_ns(), self.logs_due_ns, look];
        let Some(next) = next.into_iter().flatten().min() else { return EpollTimeout::NONE };
        // Rounded up, so as not to wake before the deadline and spin until it.
        let ms = next.saturating_sub(monotonic_ns()).div_ceil(1_000_000);
        EpollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX))
    }

    /// Tells the supervisor, and does what it says.
    fn step(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.supervisor.step(event, monotonic_ns()) {
                events.extend(self.perform(effect));
            }
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Spawn { unit, .. } => Some(match self.spawn(unit) {
                Ok(pid) => Event::Spawned { unit, pid },
                Err(reason) => Event::SpawnFailed { unit, reason },
            }),
            Effect::Terminate { unit } => {
                self.signal(unit, Signal::SIGTERM);
                None
            }
            Effect::Kill { unit } => {
                self.signal(unit, Signal::SIGKILL);
                None
            }
            // Who has not got so far as to serve is not taken to hang while it may be starting.
            Effect::Probe { unit } if self.may_be_starting(unit) => Some(Event::Answered { unit }),
            Effect::Probe { unit } => {
                self.probe(unit);
                None
            }
            Effect::Report { unit: _, name, notice } => {
                say(&format!("{name}: {notice}"));
                self.note_report(&name, &notice);
                None
            }
            Effect::Answer { request, result } => {
                if let Some(asked) = self.asked.remove(&request) {
                    self.answer(asked.to, asked.sequence, &Answer::of(result));
                }
                None
            }
            Effect::Done => None,
        }
    }

    fn hear_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match Signal::try_from(signal.ssi_signo.cast_signed()) {
                Ok(Signal::SIGHUP) => {
                    if let Err(error) = self.reload("SIGHUP") {
                        say(&not_taken(&error));
                    }
                }
                Ok(Signal::SIGCHLD) => {
                    let units: Vec<_> = self.running.keys().copied().collect();
                    for unit in units {
                        self.reap(unit);
                    }
                }
                _ => self.step(Event::Shutdown),
            }
        }
    }

    fn hear_notices(&mut self) {
        for notice in self.desk.hear() {
            match notice {
                Notice::Registered { unit, instance, name } => {
                    let unit = UnitId(unit);
                    if let Some(running) = self.running.get_mut(&unit) {
                        running.serves.insert(instance, name);
                        running.has_served = true;
                    }
                    self.ask_if_ready(unit);
                }
                Notice::Unregistered { unit, instance } => {
                    if let Some(running) = self.running.get_mut(&UnitId(unit)) {
                        running.serves.remove(&instance);
                    }
                }
                Notice::Command { from, sequence, by, text, trace } => {
                    let _scope = trace.map(Context::enter);
                    self.obey(from, sequence, &by, &text);
                }
            }
        }
    }

    /// Pings a unit that serves all its names for the first time.
    fn ask_if_ready(&mut self, unit: UnitId) {
        let Some((service, _)) = self.supervisor.service(unit) else { return };
        let Some(running) = self.running.get(&unit) else { return };
        let serves_all =
            service.provides.iter().all(|name| running.serves.values().any(|it| it == name));
        if service.readiness.when == Ready::Answers && serves_all && !running.told_ready {
            self.probe(unit);
        }
    }

    /// Whether a unit's process, which may count as started, has served nothing yet and still has
    /// time to. An adopted one has its time anew: it serves again once it has found this runtime.
    fn may_be_starting(&self, unit: UnitId) -> bool {
        let Some((service, _)) = self.supervisor.service(unit) else { return false };
        self.running
            .get(&unit)
            .is_some_and(|it| !it.has_served && it.since.elapsed() < service.readiness.within)
    }

    /// Pings a unit, through a channel like anybody's.
    fn probe(&self, unit: UnitId) {
        let Some((service, _)) = self.supervisor.service(unit) else { return };
        let timeout = match service.watchdog {
            Some(watchdog) => watchdog.timeout,
            None => service.readiness.within,
        };
        let instance = self.running.get(&unit).and_then(|it| it.serves.keys().next());
        match instance {
            Some(&instance) => self.probes.ping(unit, instance, timeout),
            None => self.probes.miss(unit),
        }
    }

    fn hear_probes(&mut self) {
        for Outcome { unit, instance, answered } in self.probes.hear() {
            let Some(running) = self.running.get_mut(&unit) else { continue };
            // News of a process that is gone is none of the one that took its place.
            if instance.is_some_and(|it| !running.serves.contains_key(&it)) {
                continue;
            }
            let was_ready = running.told_ready;
            running.told_ready |= answered;
            let is_watched =
                self.supervisor.service(unit).is_some_and(|it| it.0.watchdog.is_some());
            if answered && !is_watched {
                // It is not pinged again: a channel would be kept for nothing.
                self.probes.forget(unit);
            }
            // Who is ready as soon as it runs is pinged by its watchdog first.
            self.step(if answered { Event::Answered { unit } } else { Event::Missed { unit } });
            match (answered, was_ready) {
                (true, false) => self.step(Event::Serves { unit }),
                // Until it is late.
                (false, false) => self.ask_if_ready(unit),
                (_, true) => {}
            }
        }
    }

    fn obey(&mut self, from: u64, sequence: u32, by: &str, text: &str) {
        let wish = match Wish::read(text) {
            Ok(wish) => wish,
            Err(error) => return self.answer(from, sequence, &Answer::refusal(&error)),
        };
        let (command, name) = match wish {
            Wish::Status {} => {
                let answer = self.status();
                return self.answer(from, sequence, &answer);
            }
            Wish::Reload {} => {
                let answer = match self.reload(by) {
                    Ok(change) => Answer::change(&change, self.warnings()),
                    Err(error) => Answer::refusal(&not_taken(&error)),
                };
                return self.answer(from, sequence, &answer);
            }
            Wish::Policy { from: subject, to, operation, served_by } => {
                let answer = self.explain(&subject, &to, &operation, served_by);
                return self.answer(from, sequence, &answer);
            }
            Wish::Start { name } => (Command::Start, name),
            Wish::Stop { name } => (Command::Stop, name),
            Wish::Restart { name } => (Command::Restart, name),
        };
        self.note_command(by, command, &name);
        let request = self.next_request;
        self.next_request += 1;
        let span = Open::command(command.name(), &name, by);
        let asked = Asked { to: from, sequence, name: name.clone(), span };
        self.asked.insert(request, asked);
        self.step(Event::Command { request, command, name });
    }

    fn answer(&self, to: u64, sequence: u32, answer: &Answer) {
        self.desk.say(Order::Answer { to, sequence, text: answer.text() });
    }

    fn status(&self) -> Answer {
        let now_ns = monotonic_ns();
        let units = self.supervisor.status();
        let units = units.iter().map(|unit| {
            let shows_lines = matches!(unit.state, UnitState::Failed | UnitState::BackingOff);
            let lines = shows_lines.then(|| self.logs.last_lines(&unit.service, LAST_LINES));
            let provides = self.running.get(&unit.unit).map(|it| it.serves.values().cloned());
            let service = self.node.services.iter().find(|it| it.name == unit.service);
            words::UnitWords {
                status: unit,
                line: unit.line(now_ns),
                now_ns,
                serves: provides.into_iter().flatten().collect(),
                depends_on: service.map(|it| it.depends_on.clone()).unwrap_or_default(),
                log: self.node.log_directory.join(format!("{}.log", unit.service)),
                last_lines: lines.and_then(Result::ok).unwrap_or_default(),
            }
        });
        Answer::units(units)
    }
}

fn not_taken(error: &SystemError) -> String {
    format!("the node file is not taken, and all goes on:\n{error}")
}

impl Running {
    fn new(process: Process) -> Running {
        let (serves, since) = (HashMap::new(), Instant::now());
        Running { process, since, serves, has_served: false, told_ready: false }
    }
}

/// Blocks the signals that a [`System`] hears, and gives it its ear for them. Call it before any
/// other thread starts.
///
/// # Errors
/// Those of `signalfd`.
pub fn signals() -> Result<SignalFd, SystemError> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        mask.add(signal);
    }
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    mask.thread_block()
        .and_then(|()| SignalFd::with_flags(&mask, flags))
        .map_err(failed("wait for signals"))
}
