//! Deposits are made once, though who makes them dies again and again, at any step of a
//! transaction: the store says what was done, its callers what they were told, and a ledger finds
//! no fault in both together.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use ipc::{Client, Node, Spin, Status, once::Limits};
use store::{Step, Store};
use tests::{
    Actor, LONG, World,
    ledger::{Account, Effect, Entry, Ledger, Repeats},
    wait_until,
};

const BANK: &str = env!("CARGO_BIN_EXE_bank");
const CALLERS: u64 = 3;
/// Deposits between two deaths.
const BETWEEN: u64 = 25;

/// A bank, its standby, and callers who deposit all the time.
struct Scene {
    world: World,
    node: Node,
    first: Actor,
    second: Actor,
    end: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    callers: Vec<JoinHandle<Account>>,
}

impl Scene {
    fn begin() -> Scene {
        let world = World::new(BANK);
        let (first, second) = (bank(&world), bank(&world));
        let (end, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (node, client) = world.client("bank", Spin::Never);
        let deposits = |account| {
            let (client, end, answered) = (client.clone(), Arc::clone(&end), Arc::clone(&answered));
            thread::spawn(move || deposit_on(&client, account, &end, &answered))
        };
        let callers = (0..CALLERS).map(deposits).collect();
        Scene { world, node, first, second, end, answered, callers }
    }

    /// Lets deposits be made, by a bank whose standby is known to all: only then is it one.
    fn flow(&self) {
        self.world.settled(&self.node, 2);
        let until = self.answered.load(Ordering::Relaxed) + BETWEEN;
        wait_until("deposits are made", || self.answered.load(Ordering::Relaxed) >= until);
    }

    /// Hands the name over in order: who served stands by.
    fn hand_over(&mut self) {
        let name = self.node.discover("bank").expect("it is served");
        self.node.trigger_failover(name, None).expect("it has a standby");
        std::mem::swap(&mut self.first, &mut self.second);
    }

    /// Who stands by is the first now; another joins.
    fn replace(&mut self) -> Actor {
        let next = std::mem::replace(&mut self.second, bank(&self.world));
        std::mem::replace(&mut self.first, next)
    }

    /// Ends everything, and compares the accounts. Returns how many deposits are unknown.
    fn settle(self) -> u64 {
        self.flow();
        self.end.store(true, Ordering::Relaxed);
        let accounts: Vec<Account> =
            self.callers.into_iter().map(|it| it.join().expect("it did not panic")).collect();
        self.first.kill();
        self.second.kill();
        let path = self.world.directory().join("store");
        let store = Store::open(&path, u64::MAX, Limits::default()).expect("nobody has it open");
        let mut ledger = recorded(&store);
        for (caller, account) in (0..).zip(&accounts) {
            ledger.settle(caller, account);
        }
        assert_eq!(ledger.faults(), []);
        assert_eq!((ledger.repeated(), ledger.stale()), (0, 0));
        let balances = (0..CALLERS).map(|account| store.balance(account).expect("a number"));
        assert_eq!(balances.sum::<u64>(), ledger.effects(), "of 1 each");
        accounts.iter().map(|it| it.maybe.len()).sum()
    }
}

fn bank(world: &World) -> Actor {
    let store = world.directory().join("store");
    let mut bank = world.other(BANK, &[store.to_str().expect("a plain name")]);
    bank.hear("serving");
    bank
}

/// Deposits 1, again and again, until told to end. Says how each ended.
fn deposit_on(client: &Client, account: u64, end: &AtomicBool, answered: &AtomicU64) -> Account {
    let mut told = Account::default();
    while !end.load(Ordering::Relaxed) {
        told.sent += 1;
        let request = [account, 1, told.sent].map(u64::to_be_bytes);
        match client.call(request.as_flattened(), LONG) {
            Ok(answer) => {
                let balance = u64::from_be_bytes(answer.try_into().expect("a number"));
                let made = told.sent - told.maybe.len()..=told.sent;
                assert!(made.contains(&balance), "{balance} after {} deposits", told.sent);
                told.answered.insert(told.sent);
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.status() == Status::MAYBE => {
                told.maybe.insert(told.sent);
            }
            Err(error) => panic!("with a standby: {error}"),
        }
    }
    told
}

/// What was done, in the order in which it was.
fn recorded(store: &Store) -> Ledger {
    let mut ledger = Ledger::new(Repeats::Faults);
    for deposit in store.deposits().expect("whole") {
        let (writer, caller) = (deposit.writer as u32, deposit.account as u32);
        let effect = Effect { writer, epoch: deposit.epoch, caller, number: deposit.reference };
        assert_ne!(ledger.record(effect), Entry::Stale(deposit.epoch));
    }
    ledger
}

fn arm(directory: &Path, step: Step) {
    // In one piece: it is read all the time.
    let (made, armed) = (directory.join("store.made"), directory.join("store.dies"));
    fs::write(&made, format!("{step:?}")).expect("a file");
    fs::rename(made, armed).expect("a file");
}

#[test]
fn every_deposit_is_made_once_though_banks_die_at_every_step_of_a_transaction() {
    let mut scene = Scene::begin();
    for step in Step::ALL.into_iter().chain(Step::ALL) {
        scene.flow();
        arm(scene.world.directory(), step);
        let dead = scene.replace();
        assert!(!dead.wait().success(), "it killed itself");
    }
    assert_eq!(scene.settle(), 0, "nothing is unknown");
}

#[test]
fn every_deposit_is_made_once_though_banks_are_killed_at_any_time() {
    let mut scene = Scene::begin();
    for _ in 0..6 {
        scene.flow();
        scene.replace().kill();
    }
    assert_eq!(scene.settle(), 0, "nothing is unknown");
}

#[test]
fn who_lets_go_in_order_closes_the_store_and_opens_it_when_it_serves_again() {
    let mut scene = Scene::begin();
    for _ in 0..3 {
        scene.flow();
        scene.hand_over();
    }
    // Who let go last is the next of this one.
    scene.flow();
    scene.replace().kill();
    assert_eq!(scene.settle(), 0, "nothing is unknown");
}
