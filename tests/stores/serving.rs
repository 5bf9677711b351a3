//! Who serves a name, or is the next to, dies at a store while callers call.

use std::{
    collections::BTreeSet,
    fs, mem,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use ipc::{
    CallError, CallOptions, Client, Config, Node, NodeError, Priority, Spin, Status, failpoint::At,
};
use tests::{
    Actor, Ipcd, LONG, World, caller_of_tasks,
    ledger::{Account, Ledger, Repeats},
    proc, wait_until,
};

use super::{ACTOR, CHANNEL, Doom, IPCD, SESSION, die_everywhere, node_file};

/// Requests of each caller: more than a log of answers has room for, so that it lets old ones go.
const REQUESTS: u64 = 60;
/// Answers after which the first of the group is killed.
const EARLY: u64 = 8;
/// Keys change after so many records, so that it happens on the way.
pub(super) const REKEY: u32 = 8;

/// Which of the group dies at a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Who serves. Effects happen once.
    First,
    /// Who is next, when the first was killed. Effects may be repeated.
    Second,
    /// The same, and the runtime was killed with the first.
    SecondWithoutRuntime,
}

#[derive(Clone, Copy, Debug)]
struct Serving {
    who: Who,
    name: &'static str,
}

/// What comes of a standby, or of who is the first: it serves, and says so to callers.
const SERVES: &[At] = &[At::Promoted, At::Mark, At::CellStamp, At::Taken];

/// What has effects once, beside that: a gate, whose log is a region.
const GATE: &[At] = &[
    At::RegionIdentity,
    At::RegionBytes,
    At::RegionWord,
    At::LogRecord,
    At::LogHead,
    At::LogTail,
    At::CountsMoved,
    At::SlotGivenBack,
];

#[test]
fn who_serves_may_die_at_every_store() {
    let must = [CHANNEL, SERVES, GATE, &[At::Busy, At::Released]].concat();
    everywhere(Serving { who: Who::First, name: "till" }, &must, |_| true);
}

#[test]
fn who_serves_by_encrypted_channels_may_die_at_every_store() {
    let must = [CHANNEL, SESSION, SERVES, GATE, &[At::Busy]].concat();
    everywhere(Serving { who: Who::First, name: "sealed.till" }, &must, |_| true);
}

#[test]
fn who_is_next_may_die_at_every_store() {
    let must = [CHANNEL, SERVES, &[At::PromotionTold, At::Busy, At::Released]].concat();
    everywhere(Serving { who: Who::Second, name: "till" }, &must, |_| true);
}

#[test]
fn who_is_next_by_encrypted_channels_may_die_at_every_store() {
    let all = [SESSION, SERVES, &[At::PromotionTold]].concat();
    let serving = Serving { who: Who::Second, name: "sealed.till" };
    everywhere(serving, &all, |at| all.contains(&at));
}

#[test]
fn who_is_next_may_die_as_it_takes_over_from_who_died_with_the_runtime() {
    let all = [SERVES, &[At::PromotionTold]].concat();
    let serving = Serving { who: Who::SecondWithoutRuntime, name: "till" };
    everywhere(serving, &all, |at| all.contains(&at));
}

fn everywhere(serving: Serving, must: &[At], is_meant: impl Fn(At) -> bool) {
    let name = format!("{serving:?}");
    die_everywhere(&name, must, is_meant, |doom| Trial::begin(serving).run(doom));
}

struct Trial {
    serving: Serving,
    world: World,
    ipcd: Option<Ipcd>,
    node: Node,
}

/// How the callers' requests went, and whether the group was whole before them.
struct Calls {
    accounts: Vec<Account>,
    is_settled: bool,
}

impl Trial {
    fn begin(serving: Serving) -> Trial {
        let world = World::without_runtime(ACTOR);
        let ipcd = Some(Ipcd::start(IPCD, world.directory(), &node_file()));
        let config = Config { rekey_records: REKEY, ..world.config(Spin::Never) };
        let node = Node::connect(&config).expect("a node");
        fs::write(world.directory().join("effects"), "").expect("a file");
        Trial { serving, world, ipcd, node }
    }

    /// Starts one of the group. One that is to die may not come to serve.
    fn join(&self, words: &[&str]) -> Actor {
        let how = if self.serving.who == Who::First { "once" } else { "again" };
        let file = self.world.directory().join("effects");
        let mut member = self.world.actor_under(words, &["spin=never", &format!("rekey={REKEY}")]);
        let order = format!("{how} {} {}", self.serving.name, file.display());
        let told = member.ask_or_end(&order, "serving");
        assert!(told.is_some() || !words.is_empty(), "nobody told it to die");
        member
    }

    fn run(mut self, doom: &Doom) -> bool {
        let first = (self.serving.who != Who::First).then(|| self.join(&[]));
        let doomed = self.join(&doom.words());
        let others = if first.is_none() { 2 } else { 1 };
        let others: Vec<Actor> = (0..others).map(|_| self.join(&[])).collect();
        let client = client(&self.node, self.serving.name);
        let (calls, was_killed) = self.call(&client, first, doomed);
        self.check(&client, calls);
        if let Some(runtime) = &self.ipcd {
            assert_nothing_left(&self.node, runtime, &others);
        }
        was_killed
    }

    fn call(&mut self, client: &Client, first: Option<Actor>, doomed: Actor) -> (Calls, bool) {
        let mut is_settled = false;
        let observer = self.world.node(Spin::Never);
        wait_until("the group is whole, or one of it is dead", || {
            is_settled = self.world.is_settled(&observer, 3);
            is_settled || proc::has_ended(doomed.pid())
        });
        drop(observer);
        let (answered, is_over) = (AtomicU64::new(0), AtomicBool::new(first.is_none()));
        let (node, runtime) = (&self.node, &mut self.ipcd);
        let accounts = thread::scope(|scope| {
            let callers = [
                scope.spawn(|| call_on(client, is_settled, &answered, &is_over)),
                scope.spawn(|| call_in_tasks(node, client, is_settled, &answered)),
            ];
            if let Some(first) = first {
                let early = || answered.load(Ordering::Relaxed) >= EARLY;
                wait_until("calls are answered", early);
                if self.serving.who == Who::SecondWithoutRuntime {
                    runtime.take().expect("it runs").kill();
                }
                first.kill();
                is_over.store(true, Ordering::Relaxed);
            }
            callers.map(|it| it.join().expect("it did not panic")).into()
        });
        let was_killed = doomed.finish();
        (Calls { accounts, is_settled }, was_killed)
    }

    fn check(&self, client: &Client, mut calls: Calls) {
        // Whoever is left serves, and knows what was answered.
        let account = &mut calls.accounts[0];
        for _ in 0..3 {
            request(account, calls.is_settled, |text| client.call(text, LONG));
        }
        let repeats = match self.serving.who {
            Who::First => Repeats::Faults,
            Who::Second | Who::SecondWithoutRuntime => Repeats::Harmless,
        };
        let file = fs::read_to_string(self.world.directory().join("effects")).expect("lines");
        let mut ledger = Ledger::of_lines(&file, repeats);
        for (caller, account) in (0..).zip(&calls.accounts) {
            ledger.settle(caller, account);
            let is_declared = repeats == Repeats::Harmless && calls.is_settled;
            assert!(!is_declared || account.maybe.is_empty(), "{:?} are unknown", account.maybe);
        }
        assert_eq!(ledger.faults(), [], "{file}");
        assert_eq!(ledger.stale(), 0, "{file}");
    }
}

/// A channel to whoever serves. It may die in the handshake, and before the runtime knows it.
pub(super) fn client(node: &Node, name: &str) -> Client {
    loop {
        let id = node.wait_service(name, Some(LONG)).expect("it is served");
        match node.client(id) {
            Ok(client) => return client,
            Err(NodeError::Refused(Status::PEER_DIED | Status::NOT_FOUND)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// The name is who lives, and neither they nor the runtime keep a lane or thread of the dead.
pub(super) fn assert_nothing_left(node: &Node, runtime: &Ipcd, others: &[Actor]) {
    let living: BTreeSet<u32> = others.iter().map(Actor::pid).collect();
    wait_until("the dead have left the group", || {
        let entries = node.list().expect("a list");
        entries.iter().map(|it| it.pid).collect::<BTreeSet<u32>>() == living
    });
    // A channel of the only caller to each, and those by which the later watch the earlier.
    let lanes = 2 * (living.len() + living.len() * (living.len() - 1) / 2 * 2);
    let mut seen = 0;
    wait_until(&format!("{lanes} lanes are mapped"), || {
        let now = living.iter().map(|pid| proc::holdings(*pid).lanes).sum();
        if now != seen {
            seen = now;
            eprintln!("{seen} lanes of {lanes}");
        }
        seen <= lanes
    });
    for other in others {
        let threads = proc::holdings(other.pid()).threads;
        assert!(threads <= 8, "{threads}");
    }
    assert_eq!(tests::ipcd::children(runtime.pid()), 0);
}

/// Makes one request, and notes how it ended.
pub(super) fn request(
    account: &mut Account,
    is_settled: bool,
    call: impl FnOnce(&[u8]) -> Result<Vec<u8>, CallError>,
) {
    account.sent += 1;
    let number = account.sent;
    let mut text = format!("0 {number}").into_bytes();
    // In the cell, in the slab, and in pieces.
    text.resize([9, 60, 3000, 20_000][number as usize % 4], b' ');
    note(account, number, is_settled, call(&text).map(|answer| assert!(answer == text)));
}

fn note(account: &mut Account, number: u64, is_settled: bool, outcome: Result<(), CallError>) {
    let _ = match outcome.map_err(|error| error.status()) {
        Ok(()) => account.answered.insert(number),
        Err(Status::MAYBE) => account.maybe.insert(number),
        // Before its client has heard of a standby a call ends as if there were none.
        Err(Status::PEER_DIED | Status::NOT_FOUND) if !is_settled => account.refused.insert(number),
        Err(status) => panic!("{number}: {status:?}, settled: {is_settled}"),
    };
}

/// Makes all requests, the second half of them when the first of the group is dead: so somebody
/// asks whoever is next, though the others may all be answered by then.
fn call_on(
    client: &Client,
    is_settled: bool,
    answered: &AtomicU64,
    is_over: &AtomicBool,
) -> Account {
    let mut account = Account::default();
    for number in 0..REQUESTS {
        if number == REQUESTS / 2 {
            wait_until("the first is dead", || is_over.load(Ordering::Relaxed));
        }
        request(&mut account, is_settled, |text| match number % 3 {
            0 => client.call(text, LONG),
            1 => client.call(text, CallOptions::timeout(LONG).priority(Priority::High)),
            _ => client.start(text, LONG)?.wait(),
        });
        answered.fetch_add(1, Ordering::Relaxed);
    }
    account
}

/// The same as tasks, some of them at a time.
fn call_in_tasks(node: &Node, client: &Client, is_settled: bool, answered: &AtomicU64) -> Account {
    let (runtime, server) = caller_of_tasks(node);
    let mut account = Account::default();
    while account.sent < REQUESTS {
        let numbers: Vec<u64> = (1..=4).map(|ahead| account.sent + ahead).collect();
        account.sent += 4;
        let texts: Vec<_> = numbers.iter().map(|it| format!("1 {it}").into_bytes()).collect();
        let calls = texts.iter().map(|text| ipc::tokio::call(&server, client, text, LONG));
        let calls: Vec<_> = calls.map(Box::pin).collect();
        for (number, call) in numbers.into_iter().zip(calls) {
            let outcome = runtime.block_on(call).map(mem::drop);
            note(&mut account, number, is_settled, outcome);
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
    account
}
