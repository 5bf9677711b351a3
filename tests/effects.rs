//! Effects that happen once: processes that serve a name are killed, one after another, while
//! callers call; a ledger of what was done and what was answered finds no fault.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use ipc::{CallError, Client, Spin, Status};
use tests::{
    Actor, LONG, World,
    ledger::{Account, Effect, Entry, Ledger, Repeats},
    wait_until,
};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const CALLERS: u32 = 3;
const KILLS: usize = 8;
/// Calls between two kills.
const BETWEEN: u64 = 200;

/// Calls, one after another, until told to end. Says how each ended.
fn call_on(client: &Client, caller: u32, end: &AtomicBool, answered: &AtomicU64) -> Account {
    let mut account = Account::default();
    while !end.load(Ordering::Relaxed) {
        account.sent += 1;
        let number = account.sent;
        let text = format!("{caller} {number}");
        match client.call(text.as_bytes(), LONG) {
            Ok(answer) => {
                assert_eq!(answer, text.as_bytes());
                account.answered.insert(number);
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.status() == Status::MAYBE => {
                account.maybe.insert(number);
            }
            Err(error @ CallError::PeerDied { taken: false }) => panic!("with a standby: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
    account
}

/// What the processes did, in the order in which they did it.
fn recorded(file: &str) -> Ledger {
    let mut ledger = Ledger::new(Repeats::Faults);
    for line in file.lines() {
        let numbers: Vec<u64> =
            line.split(' ').map(|word| word.parse().expect("a number")).collect();
        let [writer, epoch, caller, number] = numbers[..] else { panic!("not a line: {line}") };
        let (writer, caller) = (writer as u32, caller as u32);
        assert_ne!(ledger.record(Effect { writer, epoch, caller, number }), Entry::Stale(epoch));
    }
    ledger
}

#[test]
fn nothing_is_done_twice_and_nothing_answered_is_lost_though_who_serves_is_killed_again_and_again()
{
    let world = World::new(ACTOR);
    let path = world.directory().join("effects");
    fs::write(&path, "").expect("a file");
    let join = || {
        let mut replica = world.actor(&["spin=never"]);
        replica.ask(&format!("once till {}", path.display()), "serving");
        replica
    };
    let mut first: Actor = join();
    let mut second: Actor = join();
    let (_node, client) = world.client("till", Spin::Never);
    let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (client, end, answered) = (client.clone(), Arc::clone(&end), Arc::clone(&answered));
            thread::spawn(move || call_on(&client, caller, &end, &answered))
        })
        .collect();
    let flow = || {
        let until = answered.load(Ordering::Relaxed) + BETWEEN;
        wait_until("calls are answered", || answered.load(Ordering::Relaxed) >= until);
    };
    for _ in 0..KILLS {
        flow();
        first.kill();
        flow();
        first = std::mem::replace(&mut second, join());
    }
    flow();
    end.store(true, Ordering::Relaxed);
    let accounts: Vec<Account> =
        callers.into_iter().map(|it| it.join().expect("it did not panic")).collect();
    let mut ledger = recorded(&fs::read_to_string(&path).expect("lines"));
    for (caller, account) in (0..).zip(&accounts) {
        ledger.settle(caller, account);
    }
    assert_eq!(ledger.faults(), []);
    assert_eq!((ledger.repeated(), ledger.stale()), (0, 0));
    let maybe: u64 = accounts.iter().map(|it| it.maybe.len()).sum();
    assert!(maybe <= KILLS as u64 * u64::from(CALLERS), "{maybe} are unknown");
}
