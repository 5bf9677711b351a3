//! The wall clock jumps, and nobody minds: what is timed is timed by a clock that does not.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ipc::{CallError, Spin};
use tests::{Actor, Ipcd, LONG, World, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");

const DAY: i64 = 24 * 60 * 60;

/// Builds what steps the clock of a process, and gives the words that start a program so.
fn wrapper(directory: &Path) -> Vec<String> {
    let library = directory.join("step.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/clocks/step.c");
    let mut build = Command::new("cc");
    build.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source);
    assert!(build.status().expect("a C compiler").success());
    step(directory, 0);
    let library = format!("LD_PRELOAD={}", library.display());
    let file = format!("CLOCK_STEP={}", directory.join("step").display());
    vec!["/usr/bin/env".to_owned(), library, file]
}

/// From now on the wall clock of all of them is so many seconds off.
fn step(directory: &Path, seconds: i64) {
    let fresh = directory.join("step.new");
    fs::write(&fresh, seconds.to_string()).expect("ours");
    fs::rename(&fresh, directory.join("step")).expect("ours");
}

/// When the runtime says that it recorded something last, in seconds since 1970.
fn recorded(directory: &Path) -> Option<u64> {
    let text = fs::read_to_string(directory.join("audit.log")).ok()?;
    let line = text.lines().rev().find_map(|it| serde_json::from_str::<serde_json::Value>(it).ok());
    Some(line?["time_us"].as_u64()? / 1_000_000)
}

#[test]
fn steps_of_the_wall_clock_disturb_neither_calls_nor_deadlines_nor_failover() {
    let world = World::without_runtime(ACTOR);
    let directory = world.directory();
    let wrapper = wrapper(directory);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let rules = "[[rule]]\nfrom = \"any\"\nto = \"any\"\nallow = \"all\"\n";
    tests::ipcd::write(directory, rules);
    let ipcd = Ipcd::by(&[&wrapper[..], &[IPCD]].concat(), directory);
    let join = || {
        let mut replica = world.actor_under(&wrapper, &["spin=never"]);
        replica.ask("replica echo", "serving");
        replica
    };
    let mut servers: Vec<Actor> = (0..2).map(|_| join()).collect();
    let mut caller = world.actor_under(&wrapper, &["spin=never"]);
    let (node, client) = world.client("echo", Spin::Never);
    for days in [1, -365, 3650, -20, 0] {
        step(directory, days * DAY);
        assert_eq!(caller.ask("ask echo 30000 hello", "answer"), "hello");
        // A deadline is neither over at once nor put off.
        let begun = Instant::now();
        let short = Duration::from_millis(50);
        let ended = client.call(b"!hold", short);
        assert!(matches!(ended, Err(CallError::TimedOut)), "{ended:?}");
        assert!(begun.elapsed() >= short);
        // The caller's process and this one have their channels to both.
        world.settled(&node, 2);
        servers.remove(0).kill();
        assert_eq!(caller.ask("ask echo 30000 again", "answer"), "again");
        assert_eq!(client.call(b"hello", LONG).expect("answered"), b"hello");
        servers.push(join());
        let here = SystemTime::now().duration_since(UNIX_EPOCH).expect("later").as_secs();
        let there = here.checked_add_signed(days * DAY).expect("later than 1970");
        wait_until("the runtime's wall clock has jumped", || {
            recorded(directory).is_some_and(|at| at.abs_diff(there) < 60 * 60)
        });
    }
    drop((caller, servers, client, node));
    let (status, said) = ipcd.stop();
    assert_eq!(status.code(), Some(0), "{said:#?}");
}
