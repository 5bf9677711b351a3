//! The polling path makes no system call and allocates nothing, seen from outside.

use std::process::{Command, Stdio};

use tests::World;

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
/// Bytes, and how many calls with so many.
const CALLS: [(usize, usize); 5] =
    [(8, 100_000), (0, 20_000), (48, 20_000), (64, 20_000), (1000, 20_000)];

/// Whether programs can be traced here.
fn can_trace() -> bool {
    let traced = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    matches!(traced, Ok(status) if status.success())
}

/// What a thread asked of the kernel between each mark of a trace and the next, by twos.
fn between_marks(trace: &str, thread: &str) -> Vec<Vec<String>> {
    let mine: Vec<&str> = trace
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(id, _)| *id == thread)
        .map(|(_, call)| call.trim_start())
        // The rest of a mark that another thread's call came into the middle of.
        .filter(|call| !call.starts_with("<... getppid resumed>"))
        .collect();
    let is_mark = |index: &usize| mine[*index].starts_with("getppid(");
    let marks: Vec<usize> = (0..mine.len()).filter(is_mark).collect();
    let pairs = marks.chunks_exact(2);
    assert!(pairs.remainder().is_empty(), "{} marks of {thread}", marks.len());
    let between = |pair: &[usize]| &mine[pair[0] + 1..pair[1]];
    pairs.map(|pair| between(pair).iter().map(ToString::to_string).collect()).collect()
}

#[test]
fn calls_that_are_polled_make_no_system_call_and_allocate_nothing() {
    if !can_trace() {
        eprintln!("skipped: needs strace (Debian package `strace`) and the right to trace");
        return;
    }
    let world = World::new(ACTOR);
    let path = |who: &str| {
        let path = world.directory().join(format!("trace-of-{who}"));
        path.to_str().expect("plain").to_owned()
    };
    let (server_trace, client_trace) = (path("server"), path("client"));
    let traced = |to: &str| {
        world.actor_under(&["strace", "-f", "-q", "-e", "trace=all", "-o", to], &["spin=always"])
    };
    let mut server = traced(&server_trace);
    server.ask("serve echo 1", "serving");
    let mut client = traced(&client_trace);
    let mut threads = Vec::new();
    for (size, calls) in CALLS {
        let said = client.ask(&format!("trace echo {calls} {size}"), "traced");
        let said: Vec<_> = said.split(' ').map(str::to_owned).collect();
        assert_eq!(said[2], "0", "allocations of the calling thread, {size} bytes");
        assert_eq!(said[3], "0", "allocations of the serving thread, {size} bytes");
        threads.push((said[0].clone(), said[1].clone()));
    }
    client.quit();
    server.quit();
    threads.dedup();
    let [(calling, serving)] = &threads[..] else { panic!("other threads: {threads:?}") };
    let nothing = vec![Vec::<String>::new(); CALLS.len()];
    for (path, thread) in [(client_trace, calling), (server_trace, serving)] {
        let trace = std::fs::read_to_string(path).expect("a trace");
        assert_eq!(between_marks(&trace, thread), nothing, "by {CALLS:?}");
    }
}
