//! A caller dies at a store while its calls go over to who serves next, or one of the two ends of a
//! channel as it says that it cannot map what it was handed.

use std::fs;

use ipc::{Config, Node, Spin, Status, failpoint::At};
use tests::{
    Actor, Ipcd, LONG, World,
    ledger::{Account, Ledger, Repeats},
    pattern, proc, wait_until,
};

use super::{
    ACTOR, Doom, IPCD, die_everywhere, node_file,
    serving::{REKEY, assert_nothing_left, client, request},
};

/// What a caller comes by that goes over: it says where its ids go on, leaves the one and is with
/// the other.
const GOES_OVER: &[At] = &[At::FirstHigh, At::HandedOver, At::Mark, At::CellStamp, At::Event];

/// Requests of the caller that dies, which the first never takes.
const REQUESTS: u64 = 8;

#[test]
fn a_caller_may_die_as_its_calls_go_over() {
    let is_meant = |at| GOES_OVER.contains(&at);
    die_everywhere("going over", GOES_OVER, is_meant, |doom| go_over("till", doom));
}

#[test]
fn a_caller_by_encrypted_channels_may_die_as_its_calls_go_over() {
    let all = [At::FirstHigh, At::HandedOver];
    let is_meant = |at| all.contains(&at);
    die_everywhere("going over, encrypted", &all, is_meant, |doom| go_over("sealed.till", doom));
}

/// Who serves next carries out each of its requests at most once and in order, goes on for others,
/// and keeps nothing of it.
fn go_over(name: &str, doom: &Doom) -> bool {
    let world = World::without_runtime(ACTOR);
    let ipcd = Ipcd::start(IPCD, world.directory(), &node_file());
    let effects = world.directory().join("effects");
    fs::write(&effects, "").expect("a file");
    let options = ["spin=never", &format!("rekey={REKEY}")];
    let mut group: Vec<Actor> = (0..3)
        .map(|_| {
            let mut member = world.actor(&options);
            member.ask(&format!("once {name} {}", effects.display()), "serving");
            member
        })
        .collect();
    let config = Config { rekey_records: REKEY, ..world.config(Spin::Never) };
    let node = Node::connect(&config).expect("a node");
    let caller = client(&node, name);
    let mut account = Account::default();
    let mut call = |count: u64| {
        (0..count).for_each(|_| request(&mut account, true, |text| caller.call(text, LONG)));
    };
    call(4);
    let mut doomed = world.actor_under(&doom.words(), &options);
    let is_open = doomed.ask_or_end(&format!("open {name}"), "opened").is_some();
    let is_settled = is_open && found_each_other(&node, &doomed);
    let first = group.remove(0);
    // From here on it takes nothing, so all that is asked for is under way when it dies.
    first.stop();
    let mut sent = 0;
    if is_settled {
        let order = format!("requests {name} 1 {REQUESTS}");
        sent = REQUESTS;
        let has_asked = doomed.ask_or_end(&order, "requested").is_some();
        first.kill();
        if has_asked && let Some(ends) = doomed.ask_or_end("collect", "collected") {
            assert_eq!(ends, format!("IPC_OK={REQUESTS}"));
        }
    } else {
        first.kill();
    }
    call(4);
    let was_killed = doomed.finish();
    call(4);
    let file = fs::read_to_string(&effects).expect("lines");
    let mut ledger = Ledger::of_lines(&file, Repeats::Faults);
    ledger.settle(0, &account);
    assert!(account.maybe.is_empty(), "{:?} are unknown", account.maybe);
    // Of the dead it is not known which they had heard the end of.
    let numbers = (1..=sent).collect();
    let all = Account { sent, ..Account::default() };
    let ends = if was_killed {
        Account { maybe: numbers, ..all }
    } else {
        Account { answered: numbers, ..all }
    };
    ledger.settle(1, &ends);
    assert_eq!(ledger.faults(), [], "{file}");
    assert_nothing_left(&node, &ipcd, &group);
    was_killed
}

/// Waits until those who stand by watch all before them, and both callers have channels to all of
/// the group; false where the one that is to die is dead.
fn found_each_other(node: &Node, doomed: &Actor) -> bool {
    let mut is_settled = false;
    wait_until("all have found each other, or one is dead", || {
        let entries = node.list().expect("a list");
        is_settled = entries.iter().all(|it| it.channels >= 2 - it.rank + 2);
        is_settled || proc::has_ended(doomed.pid())
    });
    is_settled
}

#[test]
fn a_caller_may_die_as_it_says_that_it_cannot_map_an_answer() {
    let must = [At::Unmapped, At::Released];
    die_everywhere("starving", &must, |at| must.contains(&at), starve_caller);
}

/// Who answers it goes on for others, and keeps nothing of it.
fn starve_caller(doom: &Doom) -> bool {
    let world = World::without_runtime(ACTOR);
    let ipcd = Ipcd::start(IPCD, world.directory(), &node_file());
    let server = world.server("echo", &["spin=never"]);
    let (_node, client) = world.client("echo", Spin::Never);
    let call = || assert!(client.call(&pattern(100_000), LONG).expect("answered").len() == 100_000);
    call();
    let before = [server.pid(), ipcd.pid()].map(proc::holdings);
    let mut doomed = world.actor_under(&doom.words(), &["spin=never"]);
    let orders = [
        ("calls echo 1 4 8", "called"),
        ("starve", "starved"),
        ("ask echo 30000 !grow 100000", "failed"),
        ("feed", "fed"),
        ("ask echo 30000 !grow 100", "answer"),
        ("leave echo", "left"),
    ];
    for (order, told) in orders {
        if doomed.ask_or_end(order, told).is_none() {
            break;
        }
    }
    call();
    let was_killed = doomed.finish();
    call();
    wait_until("nothing is kept of the dead", || {
        let now = [server.pid(), ipcd.pid()].map(proc::holdings);
        now.iter().zip(&before).all(|(now, before)| now.is_within(before))
    });
    was_killed
}

#[test]
fn who_serves_may_die_as_it_says_that_it_cannot_map_a_request() {
    let must = [At::Unmapped, At::Released];
    die_everywhere("serving starved", &must, |at| must.contains(&at), starve_server);
}

/// Its caller is told that there was no room, or answered by the next.
fn starve_server(doom: &Doom) -> bool {
    let world = World::without_runtime(ACTOR);
    let _ipcd = Ipcd::start(IPCD, world.directory(), &node_file());
    let mut doomed = world.actor_under(&doom.words(), &["spin=never"]);
    doomed.ask("replica echo", "serving");
    let mut next = world.actor(&["spin=never"]);
    next.ask("replica echo", "serving");
    let (_node, client) = world.client("echo", Spin::Never);
    assert_eq!(client.call(b"small", LONG).expect("answered"), b"small");
    let observer = world.node(Spin::Never);
    world.settled(&observer, 2);
    let is_there = doomed.ask_or_end("starve", "starved").is_some();
    let payload = pattern(100_000);
    match client.call(&payload, LONG) {
        Ok(answer) => assert!(answer == payload),
        Err(error) => assert!(is_there && error.status() == Status::FULL, "{error}"),
    }
    assert_eq!(client.call(b"small", LONG).expect("answered"), b"small");
    let was_killed = doomed.finish();
    assert!(client.call(&payload, LONG).expect("answered") == payload);
    was_killed
}
