//! The polling path makes no system call and allocates nothing, seen from outside.

use std::process::{Command, Stdio};

use tests::World;

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const CALLS: usize = 100_000;

/// Whether programs can be traced here.
fn can_trace() -> bool {
    let traced = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    matches!(traced, Ok(status) if status.success())
}

/// What a thread asked of the kernel between the last two marks in a trace.
fn between_marks(trace: &str, thread: &str) -> Vec<String> {
    let mine: Vec<&str> = trace
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(id, _)| *id == thread)
        .map(|(_, call)| call.trim_start())
        .collect();
    let marks: Vec<usize> = mine
        .iter()
        .enumerate()
        .filter(|(_, call)| call.starts_with("getppid("))
        .map(|(index, _)| index)
        .collect();
    let [.., from, to] = marks[..] else { panic!("{} marks of {thread}", marks.len()) };
    mine[from + 1..to].iter().map(|call| (*call).to_owned()).collect()
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
    for size in [0, 8, 48, 64, 1000] {
        let said = client.ask(&format!("trace echo {CALLS} {size}"), "traced");
        let said: Vec<_> = said.split(' ').map(str::to_owned).collect();
        assert_eq!(said[2], "0", "allocations of the calling thread, {size} bytes");
        assert_eq!(said[3], "0", "allocations of the serving thread, {size} bytes");
        // Traces are written before the traced thread goes on, but for what strace buffers.
        threads.push((size, said[0].clone(), said[1].clone()));
    }
    client.quit();
    server.quit();
    let read = |path| std::fs::read_to_string(path).expect("a trace");
    let (server_trace, client_trace) = (read(&server_trace), read(&client_trace));
    let last = threads.last().expect("some");
    assert_eq!(between_marks(&client_trace, &last.1), Vec::<String>::new(), "calling");
    assert_eq!(between_marks(&server_trace, &last.2), Vec::<String>::new(), "serving");
}
