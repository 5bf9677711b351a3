//! All queues of a process, and who waits for their answers. One lock is around it; nobody waits
//! for a disk within.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use ipc::{
    Retained, Status,
    queue::wire::{Account, Terms, encode_account},
};

use crate::{
    answers,
    config::{Config, Declared, Durability},
    identity::Secret,
    log::{
        Ledger, Log,
        memory::{Keeper, MemoryLog},
    },
    machine::{Answer, Effect, Event, Machine, Now, Ticket, Trouble},
    made::Made,
    record::Record,
};

/// What was read of a queue, before anything is served.
#[derive(Debug)]
pub struct Recovered {
    /// The queue's name.
    pub name: String,
    /// What holds for it.
    pub declared: Declared,
    /// The queue as it was.
    pub machine: Machine,
    /// By what its producers are known.
    pub secret: Secret,
    /// Where it is stored; none for a journal, which the steward writes.
    pub memory: Option<MemoryLog>,
}

#[derive(Debug)]
struct Queue {
    name: String,
    declared: Declared,
    machine: Machine,
    secret: Secret,
    memory: Option<MemoryLog>,
    /// Appended, and not yet handed to who stores it.
    staged: VecDeque<Record>,
    segments: usize,
}

/// Records on their way to a journal.
#[derive(Debug)]
pub struct Batch {
    /// Of which queue.
    pub queue: usize,
    /// In their order.
    pub records: VecDeque<Record>,
    /// How many were appended before them, ever.
    pub before: u64,
}

/// All queues.
#[derive(Debug)]
pub struct House {
    config: Config,
    keeper: Keeper,
    queues: Vec<Queue>,
    names: BTreeMap<String, usize>,
    /// Queues that were made because somebody named them.
    made: Made,
    waiting: HashMap<Ticket, Retained>,
    next_ticket: Ticket,
    effects: Vec<Effect>,
    /// When the steward looks next by itself: `CLOCK_MONOTONIC` in ns.
    pub(crate) steward_at: u64,
}

impl House {
    /// Opens with these queues.
    pub fn new(config: Config, keeper: Keeper, found: Vec<Recovered>) -> House {
        let mut house = House {
            keeper,
            queues: Vec::new(),
            names: BTreeMap::new(),
            made: Made::default(),
            waiting: HashMap::new(),
            next_ticket: 1,
            effects: Vec::new(),
            steward_at: 0,
            config,
        };
        for it in found {
            if !house.config.queue.contains_key(&it.name) {
                house.made.found();
            }
            house.add(it);
        }
        house
    }

    fn add(&mut self, it: Recovered) -> usize {
        let Recovered { name, declared, machine, secret, memory } = it;
        let index = self.queues.len();
        self.names.insert(name.clone(), index);
        let segments = memory.as_ref().map_or(0, MemoryLog::segments);
        let staged = VecDeque::new();
        self.queues.push(Queue { name, declared, machine, secret, memory, staged, segments });
        index
    }

    /// Finds a queue; makes it if the user of a process may.
    ///
    /// # Errors
    /// `NOT_FOUND`, also where no more may be made; `SYSTEM` where there are no random bytes.
    pub fn find(&mut self, name: &str, maker: Option<u32>) -> Result<usize, Status> {
        if let Some(index) = self.names.get(name) {
            return Ok(*index);
        }
        let maker = maker.ok_or(Status::NOT_FOUND)?;
        let terms = self.config.declare(crate::config::Terms::default());
        let declared = terms.map_err(|_| Status::NOT_FOUND)?;
        let most = self.config.on_demand;
        let most_of_one = self.config.on_demand_per_user.unwrap_or(most);
        if !self.made.admit(maker, most, most_of_one) {
            return Err(Status::NOT_FOUND);
        }
        // Without a restart's help nobody could tell which directory was whose.
        let declared = Declared { durability: Durability::Memory, ..declared };
        let mut ledger = Ledger::new(declared.limits.producers);
        let secret = ledger.secret().map_err(|_| Status::SYSTEM)?;
        let log = Log::new(ledger, declared.segment_bytes, false);
        let memory = MemoryLog::new(log, self.keeper.clone(), &prefix(name), BTreeMap::new());
        Ok(self.add(Recovered {
            name: name.to_owned(),
            declared,
            machine: Machine::new(declared.limits),
            secret,
            memory: Some(memory),
        }))
    }

    /// Says what holds for a queue.
    pub fn terms(&self, queue: usize) -> Terms {
        let it = &self.queues[queue];
        Terms {
            message_bytes: it.declared.limits.message_bytes,
            lease_ms: it.declared.limits.lease_ms,
            attempts: it.declared.limits.attempts,
            is_journalled: it.declared.durability == Durability::Journalled,
        }
    }

    /// Gives a queue's machine, to look at.
    pub fn machine(&self, queue: usize) -> &Machine {
        &self.queues[queue].machine
    }

    /// The number by which a queue knows the producer of a user that calls itself `who`.
    pub fn producer(&self, queue: usize, uid: u32, who: u64) -> u64 {
        self.queues[queue].secret.producer(uid, who)
    }

    /// Draws a ticket.
    pub fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Tells a queue something; gives the answer of that ticket, if it has come. All others are
    /// sent.
    pub fn tell(
        &mut self,
        queue: usize,
        event: Event,
        ticket: Option<Ticket>,
        now: Now,
    ) -> Option<Answer> {
        let mut answer = None;
        self.step(queue, event, ticket, now, &mut answer);
        // What is in memory is stored at once, and what comes of that as well.
        while let Some((stored, appended, trouble)) = self.store_in_memory(queue) {
            self.step(queue, Event::Committed(stored), ticket, now, &mut answer);
            if let Some(trouble) = trouble {
                self.step(queue, Event::Failed(appended, trouble), ticket, now, &mut answer);
            }
            let it = &mut self.queues[queue];
            let to_move = it.memory.as_mut().map(MemoryLog::to_move).unwrap_or_default();
            it.segments = it.memory.as_ref().map_or(0, MemoryLog::segments);
            if !to_move.is_empty() {
                self.step(queue, Event::Move(to_move), ticket, now, &mut answer);
            }
        }
        answer
    }

    fn store_in_memory(&mut self, queue: usize) -> Option<(u64, u64, Option<Trouble>)> {
        let it = &mut self.queues[queue];
        let memory = it.memory.as_mut().filter(|_| !it.staged.is_empty())?;
        let records = std::mem::take(&mut it.staged);
        let appended = it.machine.appended();
        let before = appended - records.len() as u64;
        let (stored, trouble) = memory.commit(records);
        Some((before + stored, appended, trouble))
    }

    fn step(
        &mut self,
        queue: usize,
        event: Event,
        ticket: Option<Ticket>,
        now: Now,
        answer: &mut Option<Answer>,
    ) {
        let mut effects = std::mem::take(&mut self.effects);
        self.queues[queue].machine.step(event, now, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Append(record) => self.queues[queue].staged.push_back(record),
                Effect::Answer(to, given) if Some(to) == ticket => *answer = Some(given),
                Effect::Answer(to, given) => {
                    if let Some(request) = self.waiting.remove(&to) {
                        answers::send(&request, &given);
                    }
                }
            }
        }
        self.effects = effects;
    }

    /// Keeps a request until its answer comes.
    pub fn keep_waiting(&mut self, ticket: Ticket, request: Retained) {
        self.waiting.insert(ticket, request);
    }

    /// A channel has ended.
    pub fn gone(&mut self, channel: u64, now: Now) {
        self.waiting.retain(|_, request| request.channel() != channel);
        for queue in 0..self.queues.len() {
            self.tell(queue, Event::Gone(channel), None, now);
        }
    }

    /// Lets time pass where something is due.
    pub fn tick(&mut self, now: Now) {
        for queue in 0..self.queues.len() {
            if self.queues[queue].machine.deadline_ns().is_some_and(|at| at <= now.mono_ns) {
                self.tell(queue, Event::Tick, None, now);
            }
        }
    }

    /// Says when something is due next.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.queues.iter().filter_map(|it| it.machine.deadline_ns()).min()
    }

    /// Whether a queue has something for its journal, or is due before the steward looks.
    pub fn needs_steward(&self, queue: usize) -> bool {
        let it = &self.queues[queue];
        !it.staged.is_empty() || it.machine.deadline_ns().is_some_and(|at| at < self.steward_at)
    }

    /// Takes out what is to go into journals.
    pub fn take_batches(&mut self) -> Vec<Batch> {
        let staged = self.queues.iter_mut().enumerate().filter(|(_, it)| !it.staged.is_empty());
        let batch = |(queue, it): (usize, &mut Queue)| {
            let records = std::mem::take(&mut it.staged);
            let before = it.machine.appended() - records.len() as u64;
            Batch { queue, records, before }
        };
        staged.map(batch).collect()
    }

    /// A batch is stored, as far as it says.
    pub fn stored(
        &mut self,
        queue: usize,
        upto: u64,
        failed: Option<(u64, Trouble)>,
        segments: usize,
        now: Now,
    ) {
        self.queues[queue].segments = segments;
        self.tell(queue, Event::Committed(upto), None, now);
        if let Some((upto, trouble)) = failed {
            self.tell(queue, Event::Failed(upto, trouble), None, now);
        }
    }

    /// Lays out how queues stand, from a name on, as many as fit into so many bytes.
    pub fn list(&self, from: &str, most: usize, out: &mut Vec<u8>) {
        out.clear();
        for (_, index) in self.names.range(from.to_owned()..) {
            let it = &self.queues[*index];
            let facts = it.machine.facts();
            let figures = [
                facts.ready,
                facts.delayed,
                facts.leased,
                facts.dead,
                facts.bytes,
                facts.takers,
                facts.putters,
                it.segments as u64,
                facts.stored,
                facts.delivered,
                facts.acked,
                facts.returned,
                facts.died,
                facts.duplicates,
                facts.refused,
            ];
            let is_journalled = it.declared.durability == Durability::Journalled;
            let account = Account { name: it.name.clone(), is_journalled, figures };
            if out.len() + 256 > most {
                return;
            }
            encode_account(&account, out);
        }
    }
}

/// Under which a queue's segments are kept.
pub fn prefix(name: &str) -> String {
    format!("queue/{name}")
}

/// Reads what time it is.
pub fn now() -> Now {
    let mono = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    let mono = mono.map(std::time::Duration::from).unwrap_or_default();
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Now {
        mono_ns: mono.as_nanos() as u64,
        wall_ms: wall.map_or(0, |since| since.as_millis() as u64),
    }
}

/// A payload of which others may have copies.
pub fn shared(payload: &[u8]) -> Arc<[u8]> {
    Arc::from(payload)
}
