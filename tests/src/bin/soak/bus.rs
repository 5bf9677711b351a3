//! Events, and a region, between who writes and who reads.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ipc::{
    Node, RegionRef,
    bus::{EventError, PublishOptions, Start, SubscribeOptions},
};
use serde_json::{Value, json};

use crate::{
    Trouble,
    cast::{self, LONG, STEADY, TOPICS},
    part,
    serve::{HALF, HALVES, REGION},
};

/// Events of one batch, and what is between two.
const BATCH: u64 = 16;
const PAUSE: Duration = Duration::from_millis(2);
/// Publishers that a listener remembers: those that died come no more.
const PUBLISHERS: usize = 16;

/// Publishes numbered events of several sizes until stdin ends. One that cannot any more ends its
/// process, which is a fault.
pub(crate) fn publish(base: &Path) -> Result<(), Trouble> {
    static END: AtomicBool = AtomicBool::new(false);
    let node = part::connect(&cast::config(base, false))?;
    let mut threads = Vec::new();
    for (topic, _) in TOPICS {
        let options = PublishOptions { events: Some(4096) };
        let publisher = part::patiently(|| node.publisher(topic, options))?;
        threads.push(thread::spawn(move || {
            let mut event = [0x5A_u8; 200];
            for number in 0_u64.. {
                if END.load(Ordering::Relaxed) {
                    return;
                }
                event[..8].copy_from_slice(&number.to_le_bytes());
                if let Err(error) = publisher.publish(&event[..8 + (number % 193) as usize]) {
                    eprintln!("{topic}: {error}");
                    std::process::exit(5);
                }
                if number % BATCH == 0 {
                    thread::sleep(PAUSE);
                }
            }
        }));
    }
    part::say("ready");
    part::obey(|_| ());
    END.store(true, Ordering::Relaxed);
    let panicked = threads.into_iter().any(|thread| thread.join().is_err());
    if panicked { Err("a thread panicked".into()) } else { Ok(()) }
}

/// What a listener has heard.
#[derive(Debug, Default)]
struct Heard {
    /// Of each topic.
    events: [u64; TOPICS.len()],
    /// Overwritten before they were read, and said to be.
    lagged: u64,
    /// How often publishers gave this one up.
    cut: u64,
    versions: u64,
    faults: Vec<String>,
}

/// What goes on coming as long as all live, by the name at which a listener's report counts it.
pub(crate) const SOURCES: [&str; TOPICS.len() + 1] = [TOPICS[0].0, TOPICS[1].0, VERSIONS];
const VERSIONS: &str = "versions";

impl Heard {
    fn report(&self) -> Value {
        let Heard { events, lagged, cut, versions, faults } = self;
        let mut report = json!({ "lagged": lagged, "cut": cut, VERSIONS: versions,
                                 "faults": faults });
        for ((topic, _), count) in TOPICS.iter().zip(events) {
            report[*topic] = json!(count);
        }
        report
    }
}

/// Hears both topics and reads the region until stdin ends; `report` has it tell of that.
pub(crate) fn listen(base: &Path) -> Result<(), Trouble> {
    let node = part::connect(&cast::config(base, false))?;
    let heard: Arc<Mutex<Heard>> = Arc::default();
    for (at, (topic, _)) in TOPICS.into_iter().enumerate() {
        let (node, heard) = (node.clone(), Arc::clone(&heard));
        thread::spawn(move || {
            loop {
                if let Err(error) = hear(&node, at, &heard) {
                    fault(&heard, format!("{topic}: {error}"));
                }
            }
        });
    }
    let (reader, of_thread) = (node.clone(), Arc::clone(&heard));
    thread::spawn(move || {
        if let Err(error) = read(&reader, &of_thread) {
            fault(&of_thread, format!("the region: {error}"));
        }
    });
    part::say("ready");
    part::obey(|words| {
        if words == ["report"] {
            part::say(&format!("report {}", lock(&heard).report()));
        }
    });
    Ok(())
}

/// Hears a topic until it is cut off, or finds a fault. What was missed was said to be.
fn hear(node: &Node, at: usize, so_far: &Mutex<Heard>) -> Result<(), Trouble> {
    let (topic, reliable) = TOPICS[at];
    let options = SubscribeOptions { start: Start::Now, reliable: Some(reliable) };
    let mut subscription = part::patiently(|| node.subscribe(topic, options))?;
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    let mut payload = Vec::new();
    loop {
        payload.clear();
        match subscription.recv_into(&mut payload, Some(LONG)) {
            Ok(head) => {
                let awaited = next.insert(head.publisher.get(), head.sequence + 1);
                if awaited.is_some_and(|awaited| awaited != head.sequence) {
                    let (pid, came) = (head.pid, head.sequence);
                    return Err(format!("of {pid} {awaited:?} was next, {came} came").into());
                }
                let number = payload.first_chunk().copied().map_or(u64::MAX, u64::from_le_bytes);
                let length = 8 + (number % 193) as usize;
                let is_filled = |rest: &[u8]| rest.iter().all(|&byte| byte == 0x5A);
                let is_whole = payload.get(8..).is_some_and(is_filled);
                if number != head.sequence || payload.len() != length || !is_whole {
                    return Err(format!("{} of {} is torn", head.sequence, head.pid).into());
                }
                lock(so_far).events[at] += 1;
                if next.len() > PUBLISHERS {
                    next.pop_first();
                }
            }
            Err(EventError::Lagged { publisher, count }) => {
                lock(so_far).lagged += count;
                next.entry(publisher.get()).and_modify(|next| *next += count);
            }
            Err(EventError::Cut { .. }) => {
                lock(so_far).cut += 1;
                return Ok(());
            }
            // The publisher is about to be replaced.
            Err(EventError::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads the region whenever it is written, and never half a change.
fn read(node: &Node, heard: &Mutex<Heard>) -> Result<(), Trouble> {
    let id = part::patiently(|| node.discover(STEADY))?;
    let client = part::patiently(|| node.client(id))?;
    let passed = RegionRef::from_bytes(&client.call(REGION, LONG)?)?;
    let region = part::patiently(|| node.map_region(passed.id))?;
    let (mut seen, mut bytes) = (0, Vec::new());
    loop {
        seen = region.wait(seen, Some(LONG))?;
        let round = region.load(0)?;
        bytes.clear();
        region.copy_to(HALVES + (round % 2) as usize * HALF, HALF, &mut bytes)?;
        // Only then may the owner have begun to write this half anew.
        if region.version() > round {
            continue;
        }
        if bytes.iter().any(|&byte| byte != round as u8) {
            return Err(format!("version {round} is torn").into());
        }
        lock(heard).versions += 1;
    }
}

fn fault(heard: &Mutex<Heard>, text: String) {
    let faults = &mut lock(heard).faults;
    if faults.len() < 32 {
        faults.push(text);
    }
}

fn lock(heard: &Mutex<Heard>) -> std::sync::MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}
