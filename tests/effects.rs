//! Effects that happen once: processes that serve a name are killed, one after another, while
//! callers call; a ledger of what was done and what was answered finds no fault.

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use ipc::{CallError, Client, Node, Spin, Status};
use nix::sys::signal::Signal;
use tests::{
    Actor, LONG, World, caller_of_tasks,
    ipcd::signal,
    ledger::{Account, Ledger, Repeats},
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

/// The same, as a task of a tokio runtime.
fn call_in_task(node: &Node, client: &Client, caller: u32, end: &AtomicBool) -> Account {
    let (runtime, server) = caller_of_tasks(node);
    let mut account = Account::default();
    while !end.load(Ordering::Relaxed) {
        account.sent += 1;
        let text = format!("{caller} {}", account.sent);
        let call = ipc::tokio::call(&server, client, text.as_bytes(), LONG);
        match runtime.block_on(call) {
            Ok(answer) => {
                assert_eq!(answer, text.as_bytes());
                account.answered.insert(account.sent);
            }
            Err(error) if error.status() == Status::MAYBE => {
                account.maybe.insert(account.sent);
            }
            Err(error) => panic!("{error}"),
        }
    }
    account
}

/// Checks what the processes wrote down against what the callers, who end now, were told.
fn settled(callers: Vec<JoinHandle<Account>>, path: &Path) -> Vec<Account> {
    let callers = callers.into_iter();
    let accounts: Vec<_> = callers.map(|it| it.join().expect("it did not panic")).collect();
    let mut ledger = Ledger::of_lines(&fs::read_to_string(path).expect("lines"), Repeats::Faults);
    for (caller, account) in (0..).zip(&accounts) {
        ledger.settle(caller, account);
    }
    assert_eq!(ledger.faults(), []);
    assert_eq!((ledger.repeated(), ledger.stale()), (0, 0));
    accounts
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
    let accounts = settled(callers, &path);
    let maybe: u64 = accounts.iter().map(|it| it.maybe.len()).sum();
    assert!(maybe <= KILLS as u64 * u64::from(CALLERS), "{maybe} are unknown");
}

#[test]
fn a_request_is_known_again_though_its_caller_has_another_id_since_the_runtime_came_back() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let path = world.directory().join("effects");
    fs::write(&path, "").expect("a file");
    let join = || {
        let mut replica = world.actor(&["spin=never"]);
        replica.ask(&format!("once till {}", path.display()), "serving");
        replica
    };
    let mut first = join();
    let (node, client) = world.client("till", Spin::Never);
    assert_eq!(client.call(b"1 1", LONG).expect("answered"), b"1 1");
    let before = node.id();
    runtime.kill();
    let _runtime = world.runtime();
    wait_until("the name is back", || node.discover("till").is_ok());
    assert_ne!(node.id(), before, "it serves no name");
    // By the channel to this one it has the id that it has now.
    let _second = join();
    wait_until("all have found each other", || {
        node.list().is_ok_and(|all| all.len() == 2 && all.iter().all(|it| it.channels > 0))
    });
    let held = client.start(b"1 2 hold", LONG).expect("sent");
    first.hear("held");
    first.kill();
    let ended = held.wait();
    assert!(matches!(ended, Err(CallError::Remote(Status::MAYBE))), "{ended:?}");
    assert_eq!(client.call(b"1 3", LONG).expect("answered"), b"1 3");
    let done = fs::read_to_string(&path).expect("lines");
    assert_eq!(done.matches("hold").count(), 1, "{done}");
}

/// How who serves ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Killed,
    /// By a signal after which the kernel writes a core dump, or tries to.
    Aborted,
    /// Its process becomes another program.
    Replaced,
    /// It hangs, is passed over, and is killed then.
    Stopped,
    /// And the runtime with it.
    WithTheRuntime,
}

const ENDS: [End; 5] =
    [End::Killed, End::Aborted, End::Replaced, End::Stopped, End::WithTheRuntime];

#[test]
fn nothing_is_lost_or_done_twice_in_whichever_way_who_serves_ends() {
    end_in_every_way(&[]);
}

#[test]
fn nor_on_encrypted_channels_whose_next_ones_know_what_came_by_the_ones_before() {
    end_in_every_way(&["encrypt=yes"]);
}

#[test]
fn nor_when_the_kernel_takes_long_to_tear_down_who_served() {
    end_in_every_way(&["ballast=256"]);
}

/// Ends who serves in every way, while callers call; `options` are those of who serves.
fn end_in_every_way(options: &[&str]) {
    let told = std::env::var("LIBIPC_SEED").ok();
    let seed: usize = told.map_or(1, |text| text.parse().expect("a number"));
    eprintln!("LIBIPC_SEED={seed} runs it again");
    let world = World::without_runtime(ACTOR);
    let mut runtime = world.runtime();
    let path = world.directory().join("effects");
    fs::write(&path, "").expect("a file");
    let join = || {
        let mut replica = world.actor(&[&["spin=never"], options].concat());
        replica.ask(&format!("once till {}", path.display()), "serving");
        replica
    };
    let mut first: Actor = join();
    let mut second: Actor = join();
    let (node, client) = world.client("till", Spin::Never);
    let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let threads = (0..CALLERS).map(|caller| {
        let (client, end, answered) = (client.clone(), Arc::clone(&end), Arc::clone(&answered));
        thread::spawn(move || call_on(&client, caller, &end, &answered))
    });
    let mut callers: Vec<_> = threads.collect();
    callers.push({
        let (node, client, end) = (node.clone(), client.clone(), Arc::clone(&end));
        thread::spawn(move || call_in_task(&node, &client, CALLERS, &end))
    });
    let flow = || {
        let until = answered.load(Ordering::Relaxed) + BETWEEN;
        wait_until("calls are answered", || answered.load(Ordering::Relaxed) >= until);
    };
    for round in 0..2 * ENDS.len() {
        flow();
        // Every end comes twice, in an order that the seed shifts.
        let how = ENDS[(round * (seed % 4 + 1) + seed) % ENDS.len()];
        match how {
            End::Killed => first.kill(),
            End::Aborted => first.abort(),
            End::Replaced => {
                first.tell("exec");
                first.hear("idle");
                flow();
                first.kill();
            }
            End::Stopped => {
                first.stop();
                flow();
                first.kill();
            }
            End::WithTheRuntime => {
                runtime.kill();
                first.kill();
                flow();
                runtime = world.runtime();
                // Who joins reads what the one before has answered, so it has to be found.
                wait_until("the name is back", || node.discover("till").is_ok());
            }
        }
        flow();
        first = std::mem::replace(&mut second, join());
    }
    flow();
    end.store(true, Ordering::Relaxed);
    settled(callers, &path);
}

/// When the second of three dies, after the first was killed.
#[derive(Clone, Copy, Debug)]
enum Second {
    /// At the same instant.
    Together,
    /// And the runtime, too.
    WithTheRuntime,
    /// As soon as it has served one request.
    AsItServes,
}

#[test]
fn nothing_is_lost_when_the_next_dies_with_the_first_or_as_soon_as_it_serves() {
    let world = World::without_runtime(ACTOR);
    let mut runtime = world.runtime();
    let path = world.directory().join("effects");
    fs::write(&path, "").expect("a file");
    let join = || {
        let mut replica = world.actor(&["spin=never"]);
        replica.ask(&format!("again till {}", path.display()), "serving");
        replica
    };
    let mut group: VecDeque<Actor> = (0..3).map(|_| join()).collect();
    let (node, client) = world.client("till", Spin::Never);
    let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let threads = (0..CALLERS).map(|caller| {
        let (client, end, answered) = (client.clone(), Arc::clone(&end), Arc::clone(&answered));
        thread::spawn(move || call_on(&client, caller, &end, &answered))
    });
    let callers: Vec<_> = threads.collect();
    let flow = || {
        let until = answered.load(Ordering::Relaxed) + BETWEEN;
        wait_until("calls are answered", || answered.load(Ordering::Relaxed) >= until);
    };
    for round in 0..9 {
        flow();
        let (first, second) = (group.pop_front().expect("one"), group.pop_front().expect("two"));
        match [Second::Together, Second::WithTheRuntime, Second::AsItServes][round % 3] {
            Second::Together => {
                for pid in [first.pid(), second.pid()] {
                    signal(pid, Signal::SIGKILL);
                }
            }
            Second::WithTheRuntime => {
                for pid in [runtime.pid(), first.pid(), second.pid()] {
                    signal(pid, Signal::SIGKILL);
                }
                flow();
                runtime = world.runtime();
                // Who joins then stands by for who serves.
                wait_until("the name is back", || node.discover("till").is_ok());
            }
            Second::AsItServes => {
                signal(first.pid(), Signal::SIGKILL);
                let line = format!("\n{} ", second.pid());
                let serves = || fs::read_to_string(&path).expect("lines").contains(&line);
                wait_until("it serves", serves);
                signal(second.pid(), Signal::SIGKILL);
            }
        }
        drop((first, second));
        flow();
        group.extend([join(), join()]);
    }
    flow();
    end.store(true, Ordering::Relaxed);
    let accounts: Vec<Account> =
        callers.into_iter().map(|it| it.join().expect("it did not panic")).collect();
    let mut ledger =
        Ledger::of_lines(&fs::read_to_string(&path).expect("lines"), Repeats::Harmless);
    for (caller, account) in (0..).zip(&accounts) {
        assert!(account.maybe.is_empty(), "{:?} are unknown", account.maybe);
        ledger.settle(caller, account);
    }
    assert_eq!(ledger.faults(), []);
    assert_eq!(ledger.stale(), 0);
}
