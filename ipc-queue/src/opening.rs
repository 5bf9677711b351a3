//! Finding what a predecessor left, in memory that the runtime kept, and on the disk.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::fd::OwnedFd,
    sync::Arc,
};

use ipc::{Node, NodeError, Status};

use crate::{
    config::{Config, Declared, Durability, Terms},
    house::{House, Recovered, now, prefix},
    identity::Secret,
    log::{
        Ledger, Log,
        files::{self, FileLog},
        memory::{self, Keeper, MemoryLog},
    },
    machine::Machine,
    record::Record,
    scan::{Header, scan},
};

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum Unopened {
    /// The runtime said no.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The system has no random bytes.
    #[error("no secret can be drawn: {0}")]
    Secret(#[from] getrandom::Error),
    /// A journal cannot be used.
    #[error("the journal of {queue:?}: {source}")]
    Journal {
        /// Of that queue.
        queue: String,
        /// What the system said.
        source: io::Error,
    },
}

/// All queues as they were, and the journals of some of them.
#[derive(Debug)]
pub struct Opened {
    /// The queues.
    pub house: House,
    /// Journals, by queue.
    pub journals: HashMap<usize, FileLog>,
    /// What people should know.
    pub remarks: Vec<String>,
}

/// Segments of one queue, by number.
type Segments = BTreeMap<u64, (Header, Vec<u8>)>;

/// Opens all queues.
///
/// # Errors
/// [`Unopened`].
pub fn open(config: Config, node: &Node) -> Result<Opened, Unopened> {
    let mut remarks = Vec::new();
    let (keeper, kept) = match node.kept() {
        Ok(kept) => (Keeper::Runtime(node.clone()), kept),
        Err(NodeError::Refused(Status::ACCESS)) => {
            remarks
                .push("nobody supervises this process: what is in memory ends with it".to_owned());
            (Keeper::Nobody, Vec::new())
        }
        Err(error) => return Err(error.into()),
    };
    let mut in_memory = by_queue(kept);
    let mut found = Vec::new();
    let mut journals = HashMap::new();
    for (name, terms) in config.queue.clone() {
        let Ok(declared) = config.declare(terms) else { continue };
        if declared.durability == Durability::Journalled {
            let (it, log) = open_journal(&config, &name, declared, &mut remarks)?;
            journals.insert(found.len(), log);
            found.push(it);
        } else {
            let kept = in_memory.remove(&name).unwrap_or_default();
            found.push(open_memory(&name, declared, &keeper, kept, &mut remarks)?);
        }
    }
    // Made because somebody named them; or declared otherwise by now.
    let declared = config.declare(Terms::default());
    if let Ok(declared) = declared {
        for (name, kept) in in_memory {
            if found.iter().any(|it| it.name == name) {
                remarks
                    .push(format!("{name}: is journalled now; what was in memory is left there"));
                continue;
            }
            let declared = Declared { durability: Durability::Memory, ..declared };
            found.push(open_memory(&name, declared, &keeper, kept, &mut remarks)?);
        }
    }
    Ok(Opened { house: House::new(config, keeper, found), journals, remarks })
}

type Kept = BTreeMap<u64, Arc<OwnedFd>>;

/// Sorts what was kept by queue and number; what is called otherwise is not ours.
fn by_queue(kept: Vec<(String, Arc<OwnedFd>)>) -> BTreeMap<String, Kept> {
    let mut queues: BTreeMap<String, Kept> = BTreeMap::new();
    for (name, memory) in kept {
        let parts: Vec<&str> = name.split('/').collect();
        if let ["queue", queue, number] = parts[..]
            && let Ok(number) = number.parse()
        {
            queues.entry(queue.to_owned()).or_default().insert(number, memory);
        }
    }
    queues
}

fn open_memory(
    name: &str,
    declared: Declared,
    keeper: &Keeper,
    kept: Kept,
    remarks: &mut Vec<String>,
) -> Result<Recovered, Unopened> {
    let (mut segments, mut unreadable) = (Segments::new(), Vec::new());
    for (number, fd) in &kept {
        match memory::read(fd) {
            Ok(found) => drop(segments.insert(*number, found)),
            Err(error) => {
                remarks.push(format!("{name}: segment {number}: {error}"));
                unreadable.push(*number);
            }
        }
    }
    let (machine, ledger, secret) = recover(name, declared, &segments, &unreadable, remarks)?;
    let log = Log::new(ledger, declared.segment_bytes, false);
    let memory = MemoryLog::new(log, keeper.clone(), &prefix(name), kept);
    Ok(Recovered { name: name.to_owned(), declared, machine, secret, memory: Some(memory) })
}

fn open_journal(
    config: &Config,
    name: &str,
    declared: Declared,
    remarks: &mut Vec<String>,
) -> Result<(Recovered, FileLog), Unopened> {
    let failed = |source| Unopened::Journal { queue: name.to_owned(), source };
    fs::create_dir_all(&config.directory).map_err(failed)?;
    let directory = config.directory.join(name);
    let (lock, found) = files::open(&directory).map_err(failed)?;
    remarks.extend(found.remarks.into_iter().map(|it| format!("{name}: {it}")));
    let segments = found.segments.into_iter().map(|it| (it.header.number, (it.header, it.bytes)));
    let segments: Segments = segments.collect();
    let (machine, ledger, secret) = recover(name, declared, &segments, &found.unreadable, remarks)?;
    let log = Log::new(ledger, declared.segment_bytes, true);
    let log = FileLog::new(log, &directory, lock);
    Ok((Recovered { name: name.to_owned(), declared, machine, secret, memory: None }, log))
}

/// Makes a queue, and its log's ledger, of what its segments say.
fn recover(
    name: &str,
    declared: Declared,
    segments: &Segments,
    unreadable: &[u64],
    remarks: &mut Vec<String>,
) -> Result<(Machine, Ledger, Secret), getrandom::Error> {
    let mut ledger = Ledger::new(declared.limits.producers);
    let mut records: Vec<Record> = Vec::new();
    let mut obscure_ids = 0;
    for (number, (header, bytes)) in segments {
        let scan = scan(bytes, *header);
        // A later segment begins with the id that is next.
        obscure_ids = scan.obscure_ids();
        if scan.damaged > 0 {
            remarks.push(format!(
                "{name}: {} bytes of segment {number} are damaged: what stood there, and nowhere \
                 else, is lost",
                scan.damaged
            ));
        }
        if scan.torn > 0 {
            remarks.push(format!(
                "{name}: {} records that nobody was told of are left out of segment {number}",
                scan.torn
            ));
        }
        ledger.begin(*number);
        scan.records.iter().for_each(|record| ledger.note(record, *number));
        records.extend(scan.records);
    }
    ledger.skip_ids(obscure_ids);
    let secret = ledger.secret()?;
    let now = now();
    for number in unreadable {
        ledger.pass_over(*number, now);
    }
    let mut machine = Machine::recover(declared.limits, &records, now);
    machine.give_no_id_below(ledger.next_id());
    Ok((machine, ledger, secret))
}
