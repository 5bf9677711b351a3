//! Every state with every event: what is not in the table is ignored.

use super::*;

/// How `b`, which needs `a`, comes into each state. `a` is a preparation that is done, but for
/// `waiting`. `b` may be restarted once in 1000 ms.
const STATES: &[(&str, &str)] = &[
    ("stopped", "start, spawned a, exit a 0, spawned b, down b, exit b 0"),
    ("waiting", "down a, start"),
    ("backing-off", "start, spawned a, exit a 0, nospawn b"),
    ("spawning", "start, spawned a, exit a 0"),
    ("starting", "start, spawned a, exit a 0, spawned b"),
    ("ready", "start, spawned a, exit a 0, spawned b, serves b"),
    ("probed", "start, spawned a, exit a 0, spawned b, serves b, due, due, due"),
    ("restarting", "start, spawned a, exit a 0, spawned b, restart b"),
    ("stopping", "start, spawned a, exit a 0, spawned b, down b"),
    ("stubborn", "start, spawned a, exit a 0, spawned b, down b, due"),
    ("late", "start, spawned a, exit a 0, spawned b, due"),
    ("finished", "start, spawned a, exit a 0, reload once, spawned b, exit b 0"),
    ("ended", "start, spawned a, exit a 0, reload never, spawned b, exit b 1"),
    ("failed", "start, spawned a, exit a 0, nospawn b, due, nospawn b"),
];

const EVENTS: &[&str] = &[
    "start",
    "spawned b",
    "nospawn b",
    "adopted b",
    "serves b",
    "exit b 0",
    "exit b 1",
    "answered b",
    "missed b",
    "up b",
    "down b",
    "restart b",
    "due",
    "reload same",
    "reload changed",
    "reload without",
    "shutdown",
];

/// `state + event: effects; what b then is`. A dot stands for no effects.
const TABLE: &str = include_str!("table.txt");

fn two() -> Node {
    let mut node = node(&["a", "b: a"]);
    node.services[0].readiness.when = Ready::Exits;
    let b = &mut node.services[1];
    b.readiness.when = Ready::Answers;
    b.watchdog = Some(Watchdog { interval: ms(20), timeout: ms(5), failures: 2 });
    node.groups = vec![group(&["b"], Strategy::OneForOne, 1, ms(1000))];
    node
}

fn in_state(state: &str) -> Bench {
    let (_, events) = STATES.iter().find(|(name, _)| *name == state).expect("a state");
    let with = |change: &dyn Fn(&mut Node)| {
        let mut node = two();
        change(&mut node);
        node
    };
    let mut bench = Bench::new(&two());
    bench.nodes = BTreeMap::from([
        ("once", with(&|node| node.services[1].restart = Restart::Transient)),
        ("never", with(&|node| node.services[1].restart = Restart::Temporary)),
        ("changed", with(&|node| node.services[1].arguments = vec!["-v".to_owned()])),
        ("without", with(&|node| drop((node.services.pop(), node.groups.pop())))),
    ]);
    let same = match state {
        "finished" => "once",
        "ended" => "never",
        _ => "",
    };
    let same = bench.nodes.get(same).cloned().unwrap_or_else(two);
    if state == "finished" || state == "ended" {
        let changed = bench.nodes.get_mut("changed").expect("just made");
        changed.services[1].restart = same.services[1].restart;
    }
    bench.nodes.insert("same", same);
    bench.all(events);
    // Tells the commands of the table from those before.
    bench.requests = 10;
    bench
}

fn cell(state: &str, event: &str) -> (String, bool) {
    let mut bench = in_state(state);
    let before = bench.status("b");
    let effects = bench.all(event);
    let after = bench.state("b");
    let ignored = effects.is_empty() && bench.status("b") == before && bench.notices_are_old();
    let effects = if effects.is_empty() { "." } else { &effects };
    (format!("{state} + {event}: {effects}; {after}"), ignored)
}

impl Bench {
    /// Says whether the last step told nothing.
    fn notices_are_old(&mut self) -> bool {
        let before = self.notices.len();
        self.step(Event::Tick);
        self.notices.len() == before
    }
}

#[test]
fn every_state_takes_every_event_as_the_table_says() {
    let mut cells = Vec::new();
    for (state, _) in STATES {
        for event in EVENTS {
            let (cell, ignored) = cell(state, event);
            if !ignored {
                cells.push(cell);
            }
        }
    }
    let expected: Vec<&str> = TABLE.lines().filter(|line| !line.is_empty()).collect();
    let missing = expected.iter().filter(|line| !cells.iter().any(|cell| cell == *line));
    let found = cells.iter().filter(|cell| !expected.contains(&cell.as_str()));
    let faults: Vec<String> = missing
        .map(|line| format!("- {line}"))
        .chain(found.map(|cell| format!("+ {cell}")))
        .collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn events_of_nobody_are_ignored() {
    for (state, _) in STATES {
        for event in [
            "spawned x",
            "nospawn x",
            "adopted x",
            "serves x",
            "exit x 1",
            "answered x",
            "missed x",
        ] {
            let mut bench = in_state(state);
            let before = bench.supervisor.status();
            assert_eq!(bench.all(event), "");
            assert_eq!(bench.supervisor.status(), before);
        }
    }
}
