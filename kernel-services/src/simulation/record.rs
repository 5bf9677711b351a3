//! What really happened, and what of it must not have.

use std::collections::{HashMap, HashSet};

use super::{
    lane::{Message, Outcome},
    ledger::{Account, Effect, Entry, Ledger, Repeats},
};

/// What a service declares of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing: a request is carried out once, or "maybe".
    Plain,
    /// It may be asked twice.
    Idempotent,
    /// It may be asked twice, and carries out once.
    Gated,
}

#[derive(Debug)]
pub(super) struct Record {
    pub(super) kind: Kind,
    ledger: Ledger,
    /// Who took a name at which epoch.
    primaries: HashMap<u64, usize>,
    /// Messages that somebody took: by caller and number.
    taken: HashSet<(u32, u64)>,
    accounts: HashMap<u32, Account>,
    one_ways: HashMap<u32, Vec<u64>>,
    /// Requests whose outcome was left open while who had them lived.
    left_open: HashSet<(u32, u64)>,
    faults: Vec<String>,
    pub(super) tally: Tally,
    /// Whether each event is told as it comes.
    is_told: bool,
    pub(super) now_us: u64,
}

/// How often what happened: a simulation in which nothing does proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: u64,
    pub(super) answered: u64,
    pub(super) maybe: u64,
    pub(super) refused: u64,
    pub(super) repeated: u64,
    pub(super) stale: u64,
    pub(super) deaths: u64,
    pub(super) falls: u64,
    pub(super) promotions: u64,
    pub(super) handovers: u64,
    pub(super) farewells: u64,
    pub(super) suspicions: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Tally) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.maybe += other.maybe;
        self.refused += other.refused;
        self.repeated += other.repeated;
        self.stale += other.stale;
        self.deaths += other.deaths;
        self.falls += other.falls;
        self.promotions += other.promotions;
        self.handovers += other.handovers;
        self.farewells += other.farewells;
        self.suspicions += other.suspicions;
    }
}

impl Record {
    pub(super) fn new(kind: Kind) -> Record {
        let repeats = if kind == Kind::Idempotent { Repeats::Harmless } else { Repeats::Faults };
        Record {
            kind,
            ledger: Ledger::new(repeats),
            primaries: HashMap::new(),
            taken: HashSet::new(),
            accounts: HashMap::new(),
            one_ways: HashMap::new(),
            left_open: HashSet::new(),
            faults: Vec::new(),
            tally: Tally::default(),
            is_told: std::env::var_os("LIBIPC_SEED").is_some(),
            now_us: 0,
        }
    }

    /// Tells of an event to who looks at one history.
    pub(super) fn say(&self, what: impl FnOnce() -> String) {
        if self.is_told {
            eprintln!("{:>10} us  {}", self.now_us, what());
        }
    }

    pub(super) fn fault(&mut self, what: String) {
        self.faults.push(what);
    }

    /// A process serves at an epoch.
    pub(super) fn serves(&mut self, process: usize, epoch: u64) {
        self.tally.promotions += 1;
        self.say(|| format!("{process} serves at {epoch}"));
        let first = *self.primaries.entry(epoch).or_insert(process);
        if first != process {
            self.fault(format!("{first} and {process} both took epoch {epoch}"));
        }
    }

    /// A caller gives a message its number.
    pub(super) fn sent(&mut self, caller: u32, wants_answer: bool) -> u64 {
        let account = self.accounts.entry(caller).or_default();
        account.sent += 1;
        self.tally.sent += 1;
        if !wants_answer {
            self.one_ways.entry(caller).or_default().push(account.sent);
        }
        account.sent
    }

    /// A service took a message.
    pub(super) fn taken(&mut self, process: usize, message: &Message) {
        self.say(|| format!("{process} takes {message}"));
        self.taken.insert((message.caller, message.number));
    }

    /// A service is about to read what the one before it has answered.
    pub(super) fn begins(&mut self, epoch: u64) {
        self.ledger.begin(epoch);
    }

    /// A service acts on a message, and the ledger allows it or does not.
    pub(super) fn effect(&mut self, process: usize, epoch: u64, message: &Message) -> Outcome {
        let Message { caller, number, .. } = *message;
        self.say(|| format!("{process} at {epoch} does {message}"));
        match self.ledger.record(Effect { writer: process as u32, epoch, caller, number }) {
            Entry::Recorded | Entry::Repeated => Outcome::Answered,
            Entry::Stale(_) => Outcome::Refused,
        }
    }

    /// A request went to one that lives and serves on, so that nobody can know.
    pub(super) fn left_open(&mut self, message: &Message) {
        self.left_open.insert((message.caller, message.number));
    }

    /// A caller hears how a request ended.
    pub(super) fn ended(&mut self, message: &Message, outcome: Outcome) {
        let Message { caller, number, .. } = *message;
        let account = self.accounts.entry(caller).or_default();
        let (ends, count) = match outcome {
            Outcome::Answered => (&mut account.answered, &mut self.tally.answered),
            Outcome::Maybe => (&mut account.maybe, &mut self.tally.maybe),
            Outcome::Refused => (&mut account.refused, &mut self.tally.refused),
        };
        *count += 1;
        if self.is_told {
            eprintln!("{:>10} us  {message} ends: {outcome:?}", self.now_us);
        }
        if !ends.insert(number) {
            self.fault(format!("request {number} of {caller} ended twice"));
        }
        let known =
            self.taken.contains(&(caller, number)) || self.left_open.contains(&(caller, number));
        if outcome == Outcome::Maybe && !known {
            self.fault(format!("request {number} of {caller} is doubtful, though nobody took it"));
        }
        if outcome == Outcome::Maybe && self.kind == Kind::Idempotent {
            self.fault(format!(
                "request {number} of {caller} is doubtful, though it may be repeated"
            ));
        }
    }

    /// A caller is dead: of what it had heard no end nobody can know.
    pub(super) fn left(&mut self, number: u32) {
        self.tally.farewells += 1;
        for caller in number * 4..number * 4 + 4 {
            let Some(account) = self.accounts.get_mut(&caller) else { continue };
            for message in 1..=account.sent {
                self.left_open.insert((caller, message));
                if !account.answered.contains(message) && !account.refused.contains(message) {
                    account.maybe.insert(message);
                }
            }
        }
    }

    /// Looks at all of it together.
    pub(super) fn settle(&mut self) -> Vec<String> {
        for (&caller, account) in &mut self.accounts {
            // Nobody hears of the end of a one-way message. One that nobody took must not be lost.
            for &number in self.one_ways.get(&caller).into_iter().flatten() {
                let which = (caller, number);
                if !self.taken.contains(&which) && !self.left_open.contains(&which) {
                    self.faults.push(format!("message {number} of {caller} came to nobody"));
                }
                account.maybe.insert(number);
            }
            self.ledger.settle(caller, account);
        }
        self.faults.extend(self.ledger.faults().iter().map(ToString::to_string));
        self.tally.repeated = self.ledger.repeated();
        self.tally.stale = self.ledger.stale();
        std::mem::take(&mut self.faults)
    }
}
