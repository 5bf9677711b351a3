//! Events, and a region, between who writes and who reads.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use ipc::{
    Node, RegionRef,
    bus::{EventError, PublishOptions, Start, SubscribeOptions},
};
use serde_json::json;

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

/// Publishes numbered events of several sizes until stdin ends.
pub(crate) fn publish(base: &Path) -> Result<(), Trouble> {
    let node = part::connect(&cast::config(base, false))?;
    for (topic, _) in TOPICS {
        let options = PublishOptions { events: Some(4096) };
        let publisher = part::patiently(|| node.publisher(topic, options))?;
        thread::spawn(move || {
            let mut event = [0x5A_u8; 200];
            for number in 0_u64.. {
                event[..8].copy_from_slice(&number.to_le_bytes());
                if let Err(error) = publisher.publish(&event[..8 + (number % 193) as usize]) {
                    return eprintln!("{topic}: {error}");
                }
                if number % BATCH == 0 {
                    thread::sleep(PAUSE);
                }
            }
        });
    }
    part::say("ready");
    part::obey(|_| ());
    Ok(())
}

/// What a listener has heard.
#[derive(Debug, Default)]
struct Heard {
    events: u64,
    /// Overwritten before they were read, and said to be.
    lagged: u64,
    /// How often publishers gave this one up.
    cut: u64,
    versions: u64,
    faults: Vec<String>,
}

/// Hears both topics and reads the region until stdin ends; `report` has it tell of that.
pub(crate) fn listen(base: &Path) -> Result<(), Trouble> {
    let node = part::connect(&cast::config(base, false))?;
    let heard: Arc<Mutex<Heard>> = Arc::default();
    for (topic, reliable) in TOPICS {
        let (node, heard) = (node.clone(), Arc::clone(&heard));
        thread::spawn(move || {
            loop {
                if let Err(error) = hear(&node, topic, reliable, &heard) {
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
            let Heard { events, lagged, cut, versions, faults } = &*lock(&heard);
            let report = json!({ "events": events, "lagged": lagged, "cut": cut,
                                 "versions": versions, "faults": faults });
            part::say(&format!("report {report}"));
        }
    });
    Ok(())
}

/// Hears a topic until it is cut off, or finds a fault. What was missed was said to be.
fn hear(node: &Node, topic: &str, reliable: bool, so_far: &Mutex<Heard>) -> Result<(), Trouble> {
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
                let is_whole = payload[8..].iter().all(|&byte| byte == 0x5A);
                if number != head.sequence || payload.len() != length || !is_whole {
                    return Err(format!("{} of {} is torn", head.sequence, head.pid).into());
                }
                lock(so_far).events += 1;
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
