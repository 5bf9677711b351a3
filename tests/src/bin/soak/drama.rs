//! The whole run: who is started, and how long it goes on.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use ipc::{Node, control::Entry};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::{
    Arguments, Trouble,
    aims::{Aims, Done},
    cast::{self, CALLERS, GROUPS, LONG},
    finale, now_ns,
    part::{self, Part},
    plan::{Plan, Weather},
    report::{self, Figures},
    sample::Sampler,
};

/// Between two calls of one thread under load, in µs.
pub(crate) const PACE: u64 = 200;
/// Calls of one thread that are under way at once, then. Else it is one, which is what is measured.
const DEPTH: u64 = 16;
/// Acts between two looks at how many effects there are.
const LOOK: u64 = 8;

/// One that serves, or stands by.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) part: Part,
    pub(crate) mib: usize,
}

/// All there is.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) base: PathBuf,
    pub(crate) ipcd: Runtime,
    pub(crate) node: Node,
    pub(crate) notary: Part,
    pub(crate) groups: [Vec<Member>; GROUPS.len()],
    pub(crate) steady: Part,
    pub(crate) callers: Vec<Part>,
    /// Publisher, producer and consumer, which are replaced, and the listener, which is not.
    pub(crate) publisher: Part,
    pub(crate) producer: Part,
    pub(crate) consumer: Part,
    pub(crate) listener: Part,
    pub(crate) hogs: Vec<Part>,
    pub(crate) sampler: Sampler,
    pub(crate) weather: Option<Weather>,
    pub(crate) figures: Figures,
    /// How often each misfortune was brought about.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// Deaths of who served.
    pub(crate) kills: u64,
    diary: File,
}

/// Runs it all. Returns whether nothing was found.
pub(crate) fn run(arguments: &Arguments) -> Result<bool, Trouble> {
    let seed = arguments.seed.unwrap_or_else(now_ns);
    let &Arguments { duration, kills, messages, .. } = arguments;
    let aims = Aims { duration, kills, messages };
    println!("soak: {aims:?}, seed {seed} (--seed {seed} draws the same again)");
    let parent = arguments.evidence.clone().unwrap_or_else(std::env::temp_dir);
    fs::create_dir_all(&parent)?;
    // Whole, since services go to another directory.
    let parent = fs::canonicalize(parent)?;
    let mut directory = tempfile::Builder::new().prefix("libipc-soak-").tempdir_in(parent)?;
    fs::write(directory.path().join("seed"), format!("{seed}\n"))?;
    let open = tests::proc::open_files(std::process::id());
    let outcome = play(directory.path(), &aims, seed, open);
    // Supervised processes outlive a runtime that was killed.
    tests::ipcd::kill_recorded(&cast::runtime(directory.path()));
    let report = match outcome {
        Ok(report) => report,
        Err(trouble) => report::Report::of_trouble(seed, trouble.to_string()),
    };
    print!("{report}");
    fs::write(directory.path().join("report.json"), report.to_json().to_string())?;
    if let Some(file) = &arguments.json {
        fs::write(file, format!("{:#}\n", report.to_json()))?;
    }
    if !report.faults.is_empty() {
        directory.disable_cleanup(true);
        println!("the evidence is in {}", directory.path().display());
    }
    Ok(report.faults.is_empty())
}

fn play(base: &Path, aims: &Aims, seed: u64, open: usize) -> Result<report::Report, Trouble> {
    let duration = aims.duration;
    let every = (duration / 2000).clamp(Duration::from_millis(250), Duration::from_mins(1));
    let mut stage = Stage::set(base, every)?;
    let begun = Instant::now();
    let held = finale::baseline(&mut stage)?;
    let mut plan = if aims.kills > 0 { Plan::deadly(seed) } else { Plan::new(seed) };
    let (mut done, mut from) = (Done::default(), 0.0);
    let mut told = Instant::now();
    let between = (duration / 10).clamp(Duration::from_secs(10), Duration::from_mins(10));
    for turn in 1_u64.. {
        let progress = aims.progress(&done);
        if progress >= 1.0 {
            break;
        }
        let (weather, act) = plan.next();
        // Their deaths come in the first third, so that what they hold can be judged after it.
        let is_early = progress < 1.0 / 3.0;
        if is_early {
            from = stage.sampler.begun.elapsed().as_secs_f64();
        }
        stage.note(&format!("{weather:?}: {act:?}"));
        stage.change(weather)?;
        stage.perform(act, is_early).map_err(|error| format!("{weather:?}, {act:?}: {error}"))?;
        stage.check_all()?;
        if turn.is_multiple_of(LOOK) {
            done.messages = stage.notary.ask("count", "count")?.parse()?;
        }
        (done.time, done.kills) = (begun.elapsed(), stage.kills);
        if told.elapsed() > between {
            told = Instant::now();
            let Done { kills, messages, .. } = done;
            let (seconds, summary) = (done.time.as_secs(), stage.figures.summary());
            println!("{seconds:>6} s: {kills} deaths, {messages} effects; {summary}");
        }
    }
    finale::end(stage, &held, seed, from, open)
}

impl Stage {
    /// Starts everybody.
    fn set(base: &Path, every: Duration) -> Result<Stage, Trouble> {
        for directory in ["run", "run/journal", "log", "cores"] {
            fs::create_dir(base.join(directory))?;
        }
        let directory = cast::runtime(base);
        let queue = beside("ipc-queue-under-test")?;
        let config = directory.join("queues.toml");
        fs::write(&config, "[queue.load]\ndurability = \"journalled\"\nattempts = 1000\n")?;
        tests::ipcd::write(&directory, &node_file(&queue, &config, &directory));
        let ipcd = start_ipcd(base)?;
        let sampler = Sampler::start(base, every);
        let node = part::connect(&cast::config(base, false))?;
        let started = |name: &str, role: &[&str], word: &str| -> Result<Part, Trouble> {
            let mut part = Part::start(base, name, role)?;
            part.hear(word)?;
            sampler.follow(name, part.pid);
            Ok(part)
        };
        let notary = started("ledger", &["notary"], "ready")?;
        let mut groups: [Vec<Member>; GROUPS.len()] = Default::default();
        for (book, members) in groups.iter_mut().enumerate() {
            for _ in 0..GROUPS[book].members {
                let mut member = member(base, book, 1)?;
                member.part.hear("serving")?;
                members.push(member);
            }
        }
        let steady = started("steady", &["steady"], "serving")?;
        let caller = |index: usize| {
            started(&format!("caller {index}"), &["call", &index.to_string()], "ready")
        };
        let callers = (0..CALLERS).map(caller).collect::<Result<_, _>>()?;
        let listener = started("listener", &["listen"], "ready")?;
        let publisher = started("publisher", &["publish"], "ready")?;
        let producer = started("producer", &["produce"], "ready")?;
        let consumer = started("consumer", &["consume"], "ready")?;
        sampler.follow("ipcd", ipcd.pid());
        let diary = File::options().create(true).append(true).open(base.join("diary"))?;
        Ok(Stage {
            base: base.to_owned(),
            ipcd,
            node,
            notary,
            groups,
            steady,
            callers,
            publisher,
            producer,
            consumer,
            listener,
            hogs: Vec::new(),
            sampler,
            weather: None,
            figures: Figures::default(),
            counts: BTreeMap::new(),
            kills: 0,
            diary,
        })
    }

    /// Writes down what is about to happen.
    pub(crate) fn note(&mut self, text: &str) {
        // A diary on a disk that is full is no reason to end.
        let _ = writeln!(self.diary, "{} {text}", now_ns());
    }

    /// Counts a misfortune.
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Has this weather from now on.
    pub(crate) fn change(&mut self, weather: Weather) -> Result<(), Trouble> {
        if self.weather == Some(weather) {
            return Ok(());
        }
        self.hogs.clear();
        let is_loaded = weather == Weather::Loaded;
        let signal = if is_loaded { Signal::SIGCONT } else { Signal::SIGSTOP };
        self.publisher.signal(signal);
        self.producer.signal(signal);
        let pause = if is_loaded { PACE } else { u64::MAX };
        self.weather = Some(weather);
        for book in 0..=GROUPS.len() {
            for caller in 0..CALLERS {
                self.pace(caller, book, pause)?;
            }
        }
        if weather == Weather::Hogs {
            let hog = |_| Part::start(&self.base, "hog", &["hog"]);
            self.hogs = (0..4).map(hog).collect::<Result<_, _>>()?;
        }
        Ok(())
    }

    /// Has a caller call a group so often; [`u64::MAX`] for not at all.
    pub(crate) fn pace(&mut self, caller: usize, book: usize, us: u64) -> Result<(), Trouble> {
        let depth = if self.weather == Some(Weather::Loaded) { DEPTH } else { 1 };
        self.callers[caller].tell(&format!("pace {book} {us} {depth}"))
    }

    /// The members of a group as the runtime knows them, by rank. `None` while it is away.
    pub(crate) fn list(&self, book: usize) -> Option<Vec<Entry>> {
        let mut entries = self.node.list().ok()?;
        entries.retain(|entry| entry.name == GROUPS[book].name);
        entries.sort_by_key(|entry| entry.rank);
        Some(entries)
    }

    /// Waits until a group's members are those that live, each watched by those behind it, and
    /// callers have opened their channels ahead. Gives the members' places, by rank.
    pub(crate) fn settled(&mut self, book: usize) -> Result<Vec<usize>, Trouble> {
        let begun = Instant::now();
        loop {
            let members = &self.groups[book];
            let entries = self.list(book).unwrap_or_default();
            let place = |pid: u32| members.iter().position(|it| it.part.pid == pid);
            let places: Vec<usize> = entries.iter().filter_map(|it| place(it.pid)).collect();
            let all = members.len() as u32;
            let has_all = |entry: &Entry| {
                let callers = if entry.rank < 3 { CALLERS as u32 } else { 0 };
                entry.channels >= all - 1 - entry.rank.min(all - 1) + callers
            };
            let is_whole = entries.len() == members.len() && places.len() == members.len();
            if is_whole && entries.iter().all(has_all) {
                // What is opened is about to be watched.
                thread::sleep(Duration::from_millis(20));
                self.spent("until the group is whole", begun);
                return Ok(places);
            }
            self.check_all()?;
            if begun.elapsed() > LONG {
                let pids: Vec<u32> = self.groups[book].iter().map(|it| it.part.pid).collect();
                let name = GROUPS[book].name;
                return Err(format!("{name} {pids:?} does not settle: {entries:?}").into());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whoever ended by itself is a fault.
    pub(crate) fn check_all(&mut self) -> Result<(), Trouble> {
        let members = self.groups.iter_mut().flatten().map(|member| &mut member.part);
        let others = [
            &mut self.notary,
            &mut self.steady,
            &mut self.publisher,
            &mut self.producer,
            &mut self.consumer,
            &mut self.listener,
        ];
        let ended = members.chain(others).chain(&mut self.callers).find_map(Part::ended);
        if let Some(status) = self.ipcd.0.try_wait()? {
            return Err(format!("ipcd ended by itself: {status}").into());
        }
        ended.map_or(Ok(()), |text| Err(text.into()))
    }

    /// Removes what the kernel wrote of who was aborted: it would fill the disk. What it wrote of
    /// another, who was not meant to end, is kept.
    pub(crate) fn remove_cores(&mut self) -> Result<(), Trouble> {
        self.check_all()?;
        for core in fs::read_dir(cast::cores(&self.base))? {
            fs::remove_file(core?.path())?;
        }
        Ok(())
    }

    /// Kills the runtime.
    pub(crate) fn kill_ipcd(&mut self) -> Result<(), Trouble> {
        kill(Pid::from_raw(self.ipcd.pid().cast_signed()), Signal::SIGKILL)?;
        self.ipcd.wait()?;
        Ok(())
    }

    /// Starts it again, and waits until all groups are back.
    pub(crate) fn start_ipcd(&mut self) -> Result<(), Trouble> {
        self.ipcd = start_ipcd(&self.base)?;
        self.sampler.follow("ipcd", self.ipcd.pid());
        for book in 0..GROUPS.len() {
            self.settled(book)?;
        }
        Ok(())
    }

    /// Starts another process that is to join a group; [`Part::hear`] says when it has.
    pub(crate) fn newcomer(&self, book: usize, mib: usize) -> Result<Member, Trouble> {
        member(&self.base, book, mib)
    }

    /// Notes for what time went by.
    pub(crate) fn spent(&mut self, what: &'static str, begun: Instant) {
        let weather = self.weather.unwrap_or(Weather::Loaded);
        self.figures.spent(weather, what, begun.elapsed());
    }
}

/// The process of `ipcd`, killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Runtime(Child);

impl Runtime {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.0.wait()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Who was waited for is not there any more, which is no failure.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn member(base: &Path, book: usize, mib: usize) -> Result<Member, Trouble> {
    let role = ["serve", &book.to_string(), &mib.to_string()];
    Ok(Member { part: Part::start(base, GROUPS[book].name, &role)?, mib })
}

/// A program that was built with this one.
fn beside(name: &str) -> Result<PathBuf, Trouble> {
    let path = std::env::current_exe()?.with_file_name(name);
    let missing = || format!("there is no {}: cargo build -p tests --bins", path.display());
    if path.exists() { Ok(path) } else { Err(missing().into()) }
}

fn start_ipcd(base: &Path) -> Result<Runtime, Trouble> {
    let log = File::options().create(true).append(true).open(part::log(base, "ipcd"))?;
    let directory = cast::runtime(base);
    let ipcd = Command::new(beside("ipcd-under-test")?)
        .arg("--runtime-dir")
        .arg(&directory)
        .arg("--config")
        .arg(directory.join("node.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(Runtime(ipcd))
}

/// Everybody may talk to everybody, and `ipc-queue` is restarted however often it ends.
fn node_file(queue: &Path, config: &Path, directory: &Path) -> String {
    let journal = json!(directory.join("journal"));
    let (queue, config) = (json!(queue), json!(config));
    format!(
        "[[rule]]\nfrom = \"any\"\nto = \"any\"\nallow = \"all\"\n\
         [service.queue]\nexecutable = {queue}\narguments = [\"--config\", {config}]\n\
         provides = [\"ipc.queue\"]\nbackoff = {{ first = \"1ms\", most = \"1ms\" }}\n\
         sandbox = {{ read = [{config}], write = [{journal}], system_calls = [\
         \"io_uring_setup\", \"io_uring_enter\", \"io_uring_register\", \"rename\", \"unlink\", \
         \"mkdir\"] }}\n\
         [group.sturdy]\nmembers = [\"queue\"]\n\
         intensity = {{ restarts = 1000, within = \"1ms\" }}\n"
    )
}
