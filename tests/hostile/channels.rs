//! A hostile client on a channel of its own.

use tests::{proc, wait_for, wait_until};

use super::siege::Siege;

const SPINS: [&str; 2] = ["spin=never", "spin=learned"];

#[test]
fn every_lie_of_a_client_costs_it_its_channel_and_nobody_else_theirs() {
    for spin in SPINS {
        let mut siege = Siege::of(&[spin]);
        let mut villain = siege.villain();
        villain.tell("lie echo");
        siege.client.ask("calls echo 2 200 8,64,1000", "called");
        let told: u32 = villain.hear("lied").parse().expect("a number");
        assert!(told >= 70, "{told}");
        siege.end(villain);
    }
}

#[test]
fn what_is_strange_and_no_lie_is_served() {
    for spin in SPINS {
        let siege = Siege::of(&[spin]);
        let mut villain = siege.intruder();
        let done: u32 = villain.ask("oddities", "odd").parse().expect("a number");
        assert!(done >= 80, "{done}");
        villain.ask("call", "called");
        siege.end(villain);
    }
}

#[test]
fn bytes_that_change_while_a_server_reads_them_harm_nobody() {
    for spin in SPINS {
        let mut siege = Siege::of(&[spin]);
        let mut villain = siege.villain();
        villain.tell("flip echo 8");
        siege.client.ask("calls echo 1 100 8,64,1000", "called");
        villain.hear("flipped");
        siege.end(villain);
    }
}

#[test]
fn a_closed_channel_with_a_lie_left_in_it_is_let_go() {
    let mut siege = Siege::of(&["spin=never"]);
    let mut villains: Vec<_> = (0..3).map(|_| siege.intruder()).collect();
    for villain in &mut villains {
        villain.ask("zombie", "undead");
    }
    // While they live, too; of them the server keeps what tells their end.
    let server = siege.server.pid();
    wait_for("their lanes are gone", &2, || proc::holdings(server).lanes);
    siege.is_served();
    let last = villains.remove(0);
    villains.into_iter().for_each(tests::Actor::kill);
    siege.end(last);
}

#[test]
fn payloads_that_look_like_frames_open_nothing_where_they_are_passed_on() {
    let mut siege = Siege::of(&[]);
    let deep = siege.world.server("deep", &[]);
    let mut villain = siege.intruder();
    // The service is the honest sender here: it passes on what it was given.
    villain.ask("relay deep", "relayed");
    siege.is_served();
    deep.quit();
    siege.end(villain);
}

#[test]
fn a_short_answer_shows_nothing_of_the_one_before() {
    let siege = Siege::of(&[]);
    let mut villain = siege.intruder();
    villain.ask("peek", "nothing");
    siege.end(villain);
}

#[test]
fn frames_without_end_that_are_no_work_hold_up_nobody() {
    for spin in SPINS {
        let mut siege = Siege::of(&[spin]);
        let mut villains: Vec<_> = (0..3).map(|_| siege.intruder()).collect();
        for villain in &mut villains {
            villain.ask("babble", "babbling");
        }
        siege.client.ask("calls echo 2 100 8,64,1000", "called");
        let mut villain = siege.intruder();
        villain.ask("call", "called");
        villains.into_iter().for_each(tests::Actor::kill);
        siege.end(villain);
    }
}

#[test]
fn a_client_that_takes_no_answers_is_cut() {
    let siege = Siege::of(&[]);
    let mut villain = siege.intruder();
    villain.ask("greedy", "cut");
    siege.end(villain);
}

#[test]
fn a_doorbell_that_nobody_hears_hangs_nobody() {
    let mut siege = Siege::of(&["spin=never"]);
    let mut villain = siege.intruder();
    // More than the socket holds, and without O_NONBLOCK on the attacker's end of it.
    villain.tell("deaf 1000");
    siege.client.ask("calls echo 1 100 8,64", "called");
    villain.hear("deaf");
    siege.end(villain);
}

#[test]
fn a_flood_of_the_doorbell_holds_up_nobody() {
    let mut siege = Siege::of(&["spin=never"]);
    let mut villain = siege.intruder();
    villain.ask("flood", "flooding");
    siege.client.ask("calls echo 2 300 8,64,1000", "called");
    villain.ask("call", "called");
    let rung: u64 = villain.ask("rest", "rested").parse().expect("a number");
    assert!(rung > 0);
    siege.end(villain);
}

#[test]
fn a_flood_of_descriptors_costs_the_channel_and_holds_up_nobody() {
    let mut siege = Siege::of(&["spin=never"]);
    let mut villain = siege.intruder();
    villain.ask("parcels", "flooding");
    siege.client.ask("calls echo 2 300 8,64,1000", "called");
    villain.ask("end", "cut");
    let rung: u64 = villain.ask("rest", "rested").parse().expect("a number");
    assert!(rung > 0);
    // The descriptors were not taken in, but for those of a few packets.
    let server = siege.server.pid();
    wait_until("they are closed", || proc::holdings(server).descriptors < 100);
    villain.ask("open echo", "opened");
    villain.ask("call", "called");
    siege.end(villain);
}

#[test]
fn a_client_that_is_stopped_in_the_middle_of_a_message_holds_up_nobody() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.intruder();
    villain.ask("half", "half");
    villain.stop();
    siege.client.ask("calls echo 2 100 8,64,1000,50000", "called");
    let mut other = siege.intruder();
    other.ask("half", "half");
    other.kill();
    siege.end(villain);
}

#[test]
fn a_child_that_plays_its_dead_parent_is_cut() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.intruder();
    villain.ask("fork", "forked");
    siege.is_served();
    // The child holds lanes, doorbell and connection, and says in its life word that it lives.
    siege.end(villain);
}

#[test]
fn two_processes_that_write_one_lane_harm_only_themselves() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.intruder();
    villain.ask("fork", "forked");
    // Each writes over what the other wrote. It is for chance to say whether a lie comes of it, for
    // which the channel is cut, or frames that are as good as others.
    villain.tell("greedy");
    siege.is_served();
    siege.end(villain);
}

#[test]
fn another_program_that_keeps_the_descriptors_holds_up_nobody() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.intruder();
    villain.tell("exec");
    let is_cat = || {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", villain.pid()));
        name.is_ok_and(|name| name.trim() == "cat")
    };
    wait_until("it is another program", is_cat);
    siege.is_served();
    siege.end(villain);
}

#[test]
fn a_stopped_waiter_does_not_swallow_the_wake_at_a_death() {
    let Siege { world, mut server, mut client, runtime: _runtime, .. } = Siege::of(&["spin=never"]);
    let mut villains: Vec<_> =
        (0..3).map(|_| world.other(env!("CARGO_BIN_EXE_hostile"), &[])).collect();
    for villain in &mut villains {
        villain.ask("open echo", "opened");
        let thread = villain.ask("lurk", "lurking").parse().expect("a number");
        wait_until("it lurks", || proc::is_asleep(villain.pid(), thread));
        villain.stop();
    }
    client.ask("start echo 3 !hold", "started");
    (0..3).for_each(|_| drop(server.hear("held")));
    client.tell("collect");
    wait_until("it waits", || proc::is_asleep(client.pid(), client.pid()));
    server.kill();
    assert_eq!(client.hear("collected"), "IPC_EMAYBE=3");
    let _next = world.server("echo", &[]);
    client.ask("calls echo 1 10 8", "called");
}
