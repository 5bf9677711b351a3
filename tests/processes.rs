//! Real processes call each other: what holds between nodes of one process holds between two.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use tests::{World, ipcd::signal, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const PROBE: &str = env!("CARGO_BIN_EXE_probe");
/// Around every boundary: empty, a cell, a frame with its place, a slab's halves, many frames.
const SIZES: &str = "0,1,47,48,49,64,255,1024,4095,4096,4137,8192,20000,100000,1048576";

#[test]
fn two_processes_call_each_other_at_every_size() {
    for spin in ["spin=never", "spin=learned"] {
        let world = World::new(ACTOR);
        let mut a = world.server("a", &[spin]);
        let mut b = world.server("b", &[spin]);
        a.tell(&format!("calls b 1 20 {SIZES}"));
        b.tell(&format!("calls a 1 20 {SIZES}"));
        a.hear("called");
        b.hear("called");
        a.quit();
        b.quit();
    }
}

#[test]
fn threads_of_a_process_share_a_channel_to_another() {
    for spin in ["spin=never", "spin=learned"] {
        let world = World::new(ACTOR);
        let _server = world.server("echo", &[spin]);
        let mut client = world.actor(&[spin]);
        client.ask("calls echo 8 200 0,8,48,64,300,5000", "called");
    }
}

#[test]
fn ten_client_processes_call_one_server() {
    for (spin, threads) in [("spin=never", 1), ("spin=learned", 3)] {
        let world = World::new(ACTOR);
        let mut server = world.actor(&[spin]);
        server.ask(&format!("serve echo {threads}"), "serving");
        let mut clients: Vec<_> = (0..10).map(|_| world.actor(&[spin])).collect();
        for client in &mut clients {
            client.tell("calls echo 2 100 0,48,64,1000,20000");
        }
        for client in &mut clients {
            client.hear("called");
        }
        clients.into_iter().for_each(tests::Actor::quit);
        server.quit();
    }
}

#[test]
fn the_library_tells_the_server_who_calls() {
    let world = World::new(ACTOR);
    let _server = world.server("echo", &[]);
    let mut client = world.actor(&[]);
    let uid = nix::unistd::getuid();
    let who = client.ask("ask echo 30000 !who", "answer");
    assert!(who.ends_with(&format!(" 0 {} {uid}", client.pid())), "{who}");
    let mut named = world.actor(&[]);
    let serving = named.ask("serve other 1", "serving");
    let who = named.ask("ask echo 30000 !who", "answer");
    assert_eq!(who, format!("{serving} {} {uid}", named.pid()));
}

#[test]
fn one_way_messages_between_processes_keep_their_order() {
    for spin in ["spin=never", "spin=learned"] {
        let world = World::new(ACTOR);
        let _server = world.server("sink", &[spin]);
        let mut client = world.actor(&[spin]);
        for round in 1..=3 {
            assert_eq!(client.ask("number sink 5000 -", "numbered"), "5000 IPC_OK");
            let count = client.ask("ask sink 30000 !count", "answer");
            assert_eq!(count, format!("{} 0", round * 5000));
        }
    }
}

#[test]
fn a_stopped_server_fills_its_ring_and_loses_nothing_when_it_goes_on() {
    let world = World::new(ACTOR);
    let server = world.server("sink", &[]);
    let mut client = world.actor(&["bulk=0"]);
    client.ask("ask sink 30000 hello", "answer");
    server.stop();
    // Half a message that is given up must leave no trace between whole ones.
    assert_eq!(client.ask("number sink 3 0", "numbered"), "3 IPC_OK");
    assert_eq!(client.ask("long sink 500000 20", "failed"), "IPC_EFULL");
    let filled = client.ask("number sink 1000 0", "numbered");
    assert!(filled.ends_with("IPC_EFULL"), "{filled}");
    assert_eq!(client.ask("number sink 1 20", "numbered"), "0 IPC_EFULL");
    assert_eq!(client.ask("ask sink 20 hello", "failed"), "IPC_ETIMEDOUT");
    let sent = 3 + filled.split(' ').next().expect("a number").parse::<u64>().expect("a number");
    client.tell("number sink 3000 -");
    server.go_on();
    assert_eq!(client.hear("numbered"), "3000 IPC_OK");
    let count = client.ask("ask sink 30000 !count", "answer");
    assert_eq!(count, format!("{} 0", sent + 3000));
}

#[test]
fn a_full_ring_wakes_a_sender_that_sleeps() {
    let world = World::new(ACTOR);
    let server = world.server("sink", &["spin=never"]);
    let mut client = world.actor(&["spin=never"]);
    client.ask("ask sink 30000 hello", "answer");
    server.stop();
    client.tell("number sink 1000 -");
    wait_until("the sender sleeps", || tests::proc::is_asleep(client.pid(), client.pid()));
    server.go_on();
    assert_eq!(client.hear("numbered"), "1000 IPC_OK");
}

#[test]
fn a_client_that_never_takes_its_answers_is_cut_while_others_go_on() {
    let world = World::new(ACTOR);
    let _server = world.server("echo", &["max=1000000", "bulk=0"]);
    let mut greedy = world.actor(&[]);
    let mut other = world.actor(&[]);
    other.ask("calls echo 1 10 8,64,1000", "called");
    // Each answer is longer than a ring; together they are over what may wait for one client.
    greedy.ask("start echo 16 !grow 900000", "started");
    other.ask("calls echo 2 100 8,64,1000,50000", "called");
    let ends = greedy.ask("collect", "collected");
    // Three answers are over the limit. The server took those requests, and of the others as many
    // as were in the same turn.
    let ends = ends.split(' ').map(|end| end.split_once('=').expect("an error and how many"));
    let ends: Vec<(&str, u32)> =
        ends.map(|(name, n)| (name, n.parse().expect("a number"))).collect();
    let count = |error| ends.iter().filter(|(name, _)| *name == error).map(|(_, n)| n).sum::<u32>();
    assert!(count("IPC_EMAYBE") >= 3, "{ends:?}");
    assert_eq!(count("IPC_EMAYBE") + count("IPC_EPEERDIED"), 16, "{ends:?}");
    assert_eq!(greedy.ask("ask echo 30000 again", "answer"), "again");
    other.ask("calls echo 1 10 8,64,1000", "called");
}

#[test]
fn a_cycle_of_calls_ends_by_its_deadlines() {
    let world = World::new(ACTOR);
    let mut a = world.server("a", &[]);
    let mut b = world.server("b", &[]);
    a.ask("ask b 30000 hello", "answer");
    b.ask("ask a 30000 hello", "answer");
    let mut client = world.actor(&[]);
    // a calls b, which calls a, whose one thread waits for b.
    let end = client.ask("ask a 30000 !relay b 30000 !relay a 50 hello", "answer");
    assert_eq!(end, "answer failed IPC_ETIMEDOUT");
    let end = client.ask("ask a 30000 !relay b 50 !relay a 30000 hello", "answer");
    assert_eq!(end, "failed IPC_ETIMEDOUT");
    client.ask("calls a 1 10 8", "called");
    client.ask("calls b 1 10 8", "called");
}

#[test]
fn handlers_that_flood_each_other_end_by_their_deadlines() {
    let world = World::new(ACTOR);
    let mut a = world.server("a", &[]);
    let mut b = world.server("b", &[]);
    // Both loops are in their handlers, both rings full, until one of them gives up.
    let mut client = world.actor(&[]);
    client.ask("start a 1 !flood b 100 10000", "started");
    client.ask("start b 1 !flood a 100 10000", "started");
    assert_eq!(client.ask("collect", "collected"), "IPC_OK=2");
    a.ask("ask b 30000 hello", "answer");
    b.ask("ask a 30000 hello", "answer");
}

#[test]
fn full_rings_both_ways_do_not_deadlock() {
    for spin in ["spin=never", "spin=learned"] {
        let world = World::new(ACTOR);
        let mut a = world.server("a", &[spin]);
        let mut b = world.server("b", &[spin]);
        // More requests than a ring holds, and answers as long as they: neither direction of
        // either channel has room for what is outstanding.
        a.tell("pump b 1000 3000 200");
        b.tell("pump a 1000 3000 200");
        a.hear("pumped");
        b.hear("pumped");
        a.quit();
        b.quit();
    }
}

#[test]
fn the_first_signal_to_stop_ends_a_service_s_loop_and_the_second_its_process() {
    let world = World::new(ACTOR);
    for (first, second) in [(Signal::SIGTERM, Signal::SIGINT), (Signal::SIGINT, Signal::SIGTERM)] {
        let mut command = Command::new(PROBE);
        command.args(["orderly", "echo"]).env("IPC_RUNTIME_DIR", world.directory());
        let mut process = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let mut line = || lines.next().expect("a line").expect("text");
        assert_eq!(line(), "serving");
        signal(process.id(), first);
        assert_eq!(line(), "true", "the loop was interrupted");
        signal(process.id(), second);
        assert_eq!(process.wait().expect("it ends").code(), Some(128 + second as i32));
    }
}
