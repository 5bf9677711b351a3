//! What the processes hold, over time.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::cast;

/// What is sampled of a process, and how much more of it is no growth.
pub(crate) const MEASURES: [(&str, f64); 4] =
    [(RESIDENT, 1024.0), ("descriptors", 3.0), ("mappings", 8.0), ("threads", 2.0)];

/// The name of the first.
pub(crate) const RESIDENT: &str = "resident KiB";

/// The samples of one process: when, in seconds, and what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    pid: u32,
    pub(crate) points: Vec<(f64, [f64; MEASURES.len()])>,
}

impl Series {
    /// One measure from then on.
    pub(crate) fn of(&self, measure: usize, from: f64) -> Vec<(f64, f64)> {
        let late = self.points.iter().filter(|(at, _)| *at >= from);
        late.map(|(at, values)| (*at, values[measure])).collect()
    }
}

/// All samples.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    pub(crate) series: BTreeMap<String, Series>,
    /// Files under the runtime directory, and bytes in them.
    pub(crate) files: Vec<(f64, f64)>,
    pub(crate) bytes: Vec<(f64, f64)>,
}

/// Which processes are looked at.
pub(crate) type Roster = Arc<Mutex<BTreeMap<String, u32>>>;

/// A thread that looks every so often.
#[derive(Debug)]
pub(crate) struct Sampler {
    pub(crate) roster: Roster,
    /// From when on the samples' seconds count.
    pub(crate) begun: Instant,
    end: Sender<()>,
    thread: JoinHandle<Samples>,
}

impl Sampler {
    pub(crate) fn start(base: &Path, every: Duration) -> Sampler {
        let roster = Roster::default();
        let (end, told) = mpsc::channel();
        let (of_thread, directory) = (Arc::clone(&roster), cast::runtime(base));
        let begun = Instant::now();
        let thread = std::thread::spawn(move || {
            let mut samples = Samples::default();
            while told.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let at = begun.elapsed().as_secs_f64();
                // The supervisor starts it, and writes down which process it is.
                if let [(pid, _), ..] = tests::ipcd::recorded(&directory)[..] {
                    lock(&of_thread).insert("ipc-queue".to_owned(), pid);
                }
                let roster = lock(&of_thread).clone();
                for (name, pid) in roster {
                    samples.note(name, pid, at);
                }
                let (files, bytes) = files(directory.clone());
                samples.files.push((at, files));
                samples.bytes.push((at, bytes));
            }
            samples
        });
        Sampler { roster, begun, end, thread }
    }

    /// From now on this process goes by that name.
    pub(crate) fn follow(&self, name: &str, pid: u32) {
        lock(&self.roster).insert(name.to_owned(), pid);
    }

    pub(crate) fn end(self) -> Samples {
        drop(self.end);
        self.thread.join().unwrap_or_default()
    }
}

impl Samples {
    fn note(&mut self, name: String, pid: u32, at: f64) {
        let Some(values) = look(pid) else { return };
        let series = self.series.entry(name).or_default();
        if series.pid != pid {
            // Another process: what the one before held is over.
            *series = Series { pid, points: Vec::new() };
        }
        series.points.push((at, values));
    }
}

/// What a process holds, in the order of [`MEASURES`]; nothing for one that has ended.
fn look(pid: u32) -> Option<[f64; MEASURES.len()]> {
    let of = |what: &str| PathBuf::from(format!("/proc/{pid}/{what}"));
    let status = fs::read_to_string(of("status")).ok()?;
    let field = |name: &str| -> Option<f64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let descriptors = fs::read_dir(of("fd")).ok()?.count() as f64;
    let mappings = fs::read_to_string(of("maps")).ok()?.lines().count() as f64;
    Some([field("VmRSS:")?, descriptors, mappings, field("Threads:")?])
}

/// Counts the files below a directory, and their bytes.
pub(crate) fn files(directory: PathBuf) -> (f64, f64) {
    let (mut count, mut bytes) = (0.0, 0.0);
    let mut open = vec![directory];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(what) if what.is_dir() => open.push(entry.path()),
                Ok(what) => {
                    count += 1.0;
                    bytes += what.len() as f64;
                }
                Err(_) => {}
            }
        }
    }
    (count, bytes)
}

fn lock(roster: &Mutex<BTreeMap<String, u32>>) -> MutexGuard<'_, BTreeMap<String, u32>> {
    roster.lock().unwrap_or_else(PoisonError::into_inner)
}
