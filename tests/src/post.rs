//! Queues under load: couriers, which are killed, and the ledgers that they keep. A ledger is what
//! was promised to somebody; what is not in it may be either way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use ipc::{
    Spin,
    queue::{QueueAdmin, SERVICE},
};
use serde_json::json;

use crate::{Ipcd, LONG, World, wait_until};

/// The programs of the tests' own package, which only its tests know the places of.
#[derive(Clone, Copy, Debug)]
pub struct Programs {
    /// The runtime.
    pub ipcd: &'static str,
    /// The queues.
    pub queue: &'static str,
    /// Producers and consumers.
    pub courier: &'static str,
    /// Any other process.
    pub actor: &'static str,
}

/// The number by which the queue knows a producer of these.
pub const PRODUCERS: [u64; 2] = [101, 102];

/// A runtime that supervises `ipc-queue`.
#[derive(Debug)]
pub struct Post {
    /// Its directory, and what else is in it.
    pub world: World,
    programs: Programs,
}

impl Post {
    /// Starts it with what `ipc-queue`'s file and its entry in the node file say beyond the usual.
    pub fn start(programs: Programs, queues: &str, entry: &str) -> (Post, Ipcd) {
        let world = World::without_runtime(programs.actor);
        let directory = world.directory();
        fs::create_dir(directory.join("journal")).expect("a directory");
        fs::write(directory.join("queues.toml"), queues).expect("written");
        let config = json!(directory.join("queues.toml"));
        let node = format!(
            "[[rule]]\nfrom = \"any\"\nto = \"any\"\nallow = \"all\"\n\
             [service.queue]\nexecutable = {}\narguments = [\"--config\", {config}]\n\
             provides = [\"ipc.queue\"]\nbackoff = {{ first = \"1ms\", most = \"1ms\" }}\n{entry}\n\
             [group.sturdy]\nmembers = [\"queue\"]\n\
             intensity = {{ restarts = 1000, within = \"1ms\" }}\n",
            json!(programs.queue)
        );
        let node = node.replace("DIR", directory.to_str().expect("a plain name"));
        let ipcd = Ipcd::start(programs.ipcd, directory, &node);
        ipcd.wait("queue", "ready");
        (Post { world, programs }, ipcd)
    }

    /// Starts a runtime once more.
    pub fn again(&self) -> Ipcd {
        let ipcd = Ipcd::again(self.programs.ipcd, self.world.directory());
        ipcd.wait("queue", "ready");
        ipcd
    }

    /// A file beside the runtime's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.world.directory().join(name)
    }

    /// Starts a courier: `produce ID MOST` or `consume MS`, which work until they are killed.
    pub fn courier(&self, name: &str, words: &[&str]) -> Courier {
        let ledger = self.file(&format!("{name}.ledger"));
        let child = Command::new(self.programs.courier)
            .arg(self.world.directory())
            .arg(&ledger)
            .args(words)
            .spawn()
            .expect("it starts");
        Courier { child, ledger }
    }

    /// Checks the ledgers when all is done: what was promised was kept, and nothing else.
    pub fn check(&self) -> usize {
        let (promised, begun) = self.promises();
        let deliveries = self.deliveries();
        let delivered: BTreeSet<_> =
            deliveries.iter().map(|it| (it.producer, it.sequence)).collect();
        for key in &promised {
            assert!(delivered.contains(key), "{key:?} was promised and never came");
        }
        let mut ids = BTreeMap::new();
        let mut done = BTreeMap::new();
        for it in &deliveries {
            let key = (it.producer, it.sequence);
            assert!(
                begun.get(&it.producer).is_some_and(|last| it.sequence <= *last),
                "{key:?} was not sent"
            );
            let id = *ids.entry(key).or_insert(it.id);
            assert_eq!(id, it.id, "{key:?} was stored twice");
            if let Some(acked) = it.acked {
                let first = done.entry(key).or_insert(acked);
                *first = (*first).min(acked);
            }
        }
        for it in &deliveries {
            let acked = done.get(&(it.producer, it.sequence));
            assert!(
                acked.is_none_or(|acked| it.at <= *acked),
                "{it:?} came after it was acknowledged"
            );
        }
        // What was never given to anybody before comes in its producer's order.
        let mut first: Vec<_> = deliveries.iter().filter(|it| it.attempt == 1).collect();
        first.sort_by_key(|it| it.id);
        for producer in PRODUCERS {
            let of: Vec<u64> =
                first.iter().filter(|it| it.producer == producer).map(|it| it.sequence).collect();
            assert!(of.is_sorted(), "producer {producer}: {of:?}");
        }
        promised.len()
    }

    /// Waits until the queue is empty: all that was promised so far is acknowledged by somebody.
    pub fn settle(&self) {
        let admin = QueueAdmin::new(&self.world.node(Spin::Never), SERVICE);
        wait_until("all is acknowledged", || {
            let account = admin.list(LONG).expect("listed").pop().expect("one queue");
            let left = ["ready", "delayed", "leased", "dead"].map(|name| account.figure(name));
            left == [Some(0); 4]
        });
    }

    /// How many are promised so far.
    pub fn progress(&self) -> usize {
        self.promises().0.len()
    }

    /// What producers were promised, and the last that each began to send.
    fn promises(&self) -> (BTreeSet<(u64, u64)>, BTreeMap<u64, u64>) {
        let mut promised = BTreeSet::new();
        let mut begun = BTreeMap::new();
        for line in self.lines("produce") {
            match &*line {
                [1, producer, sequence] => drop(promised.insert((*producer, *sequence))),
                [0, producer, sequence] => {
                    let last = begun.entry(*producer).or_insert(0);
                    *last = (*last).max(*sequence);
                }
                // Cut off by a kill.
                _ => {}
            }
        }
        (promised, begun)
    }

    fn deliveries(&self) -> Vec<Delivered> {
        let mut deliveries = Vec::new();
        let mut open: BTreeMap<(u64, u64), usize> = BTreeMap::new();
        for line in self.lines("consume") {
            match *line {
                [2, producer, sequence, id, attempt, at] => {
                    open.insert((id, attempt), deliveries.len());
                    deliveries.push(Delivered { producer, sequence, id, attempt, at, acked: None });
                }
                [3, id, attempt, at] => {
                    if let Some(index) = open.get(&(id, attempt)) {
                        deliveries[*index].acked = Some(at);
                    }
                }
                _ => {}
            }
        }
        deliveries
    }

    /// The numbers in the ledgers of that kind, line by line.
    fn lines(&self, kind: &str) -> Vec<Vec<u64>> {
        let mut lines = Vec::new();
        for entry in fs::read_dir(self.world.directory()).expect("ours").flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            if name.starts_with(kind)
                && Path::new(&name).extension().is_some_and(|it| it == "ledger")
            {
                let text = fs::read_to_string(entry.path()).expect("a text");
                let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
                lines.extend(whole.map(|line| {
                    line.split_whitespace().map(|word| word.parse().expect("a number")).collect()
                }));
            }
        }
        lines
    }
}

/// A message in a consumer's ledger.
#[derive(Debug)]
struct Delivered {
    producer: u64,
    sequence: u64,
    id: u64,
    attempt: u64,
    /// When it came; `CLOCK_MONOTONIC` in ns.
    at: u64,
    /// When the acknowledgement was confirmed.
    acked: Option<u64>,
}

/// A producer or consumer in a process of its own. Killed when dropped.
#[derive(Debug)]
pub struct Courier {
    child: Child,
    ledger: PathBuf,
}

impl Courier {
    /// Kills it, without a chance to say anything.
    pub fn kill(mut self) {
        self.end();
    }

    /// Waits until it ends by itself, well.
    pub fn wait(mut self) {
        assert!(self.child.wait().expect("ours").success());
    }

    /// How many lines it has written.
    pub fn lines(&self) -> usize {
        fs::read_to_string(&self.ledger).map_or(0, |text| text.lines().count())
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.end();
    }
}
