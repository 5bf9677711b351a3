//! A hostile lender and a hostile borrower. Lies about arenas and descriptors are told with all
//! others, in `channels.rs` and `callers.rs`.

use ipc::Spin;
use tests::{LONG, proc, wait_for, wait_until};

use super::siege::Siege;

/// Loans that may be outstanding.
const SLOTS: &str = "32";

#[test]
fn what_is_strange_about_loans_and_no_lie_is_served() {
    for spin in ["spin=never", "spin=learned"] {
        let siege = Siege::of(&[spin]);
        let mut villain = siege.intruder();
        let done: u32 = villain.ask("arenas", "odd").parse().expect("a number");
        assert!(done >= 18, "{done}");
        villain.ask("call", "called");
        siege.end(villain);
    }
}

#[test]
fn ten_thousand_arenas_leave_nothing_behind() {
    let mut siege = Siege::of(&["spin=never"]);
    let mut villain = siege.intruder();
    villain.tell("parade 10000");
    siege.client.ask("calls echo 1 100 8,64,20000", "called");
    villain.hear("paraded");
    // Of all these there is one, and the lanes of two channels.
    wait_for("the others are gone", &5, || proc::holdings(siege.server.pid()).lanes);
    siege.end(villain);
}

#[test]
fn arenas_without_pause_hold_up_nobody() {
    let mut siege = Siege::of(&["spin=never"]);
    let mut villain = siege.intruder();
    villain.ask("throng", "thronging");
    siege.client.ask("calls echo 2 300 8,64,20000", "called");
    villain.ask("call", "called");
    let said: u64 = villain.ask("rest", "rested").parse().expect("a number");
    assert!(said > 100, "{said}");
    siege.end(villain);
}

#[test]
fn bytes_in_bulk_that_change_do_not_change_what_was_copied() {
    for spin in ["spin=never", "spin=learned"] {
        let mut siege = Siege::of(&[spin]);
        let mut villain = siege.intruder();
        villain.tell("steady 200");
        siege.client.ask("calls echo 1 100 8,64,20000", "called");
        villain.hear("steady");
        siege.end(villain);
    }
}

#[test]
fn nobody_takes_an_arena_away_from_under_its_reader() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.intruder();
    villain.tell("sink 2000");
    siege.client.ask("calls echo 1 100 8,64,20000", "called");
    let tried: u64 = villain.hear("sunk").parse().expect("a number");
    assert!(tried > 0);
    siege.end(villain);
}

#[test]
fn a_view_of_what_changes_is_read_to_its_end() {
    const SIZE: usize = 1 << 20;
    let siege = Siege::of(&[]);
    let mut villain = siege.trapper();
    let (node, client, view) = std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            let (node, client) = siege.world.client("trap", Spin::Learned);
            let view = client.call_view(b"hello", LONG).expect("answered");
            (node, client, view)
        });
        villain.ask("admit", "admitted");
        villain.ask("answer-there", "answering");
        call.join().expect("no panic")
    });
    assert!(view.is_lent() && view.len() == SIZE);
    for _ in 0..20 {
        let copy = view.to_vec();
        wait_until("it changes", || view.to_vec() != copy);
    }
    assert_eq!(view.read_at(SIZE - 1, &mut [0; 8]), 1);
    // What was received outlives its channel, whoever sent it.
    drop((client, node));
    siege.end(villain);
    assert_eq!(view.to_vec(), view.to_vec());
}

#[test]
fn a_borrower_that_gives_nothing_back_is_answered_in_pieces() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.intruder();
    assert_eq!(villain.ask("hoard 50", "hoarded"), format!("{SLOTS} 18"));
    siege.client.ask("calls echo 2 50 8,20000,50000", "called");
    // Nor does it get any by saying that it gave back what it had not.
    villain.ask("misreturn", "misreturned");
    assert_eq!(villain.ask("return", "returned"), SLOTS);
    assert_eq!(villain.ask("hoard 5", "hoarded"), "5 0");
    siege.end(villain);
}

#[test]
fn a_service_that_gives_nothing_back_is_sent_pieces() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.trapper();
    villain.tell("keep 40");
    siege.client.tell("long trap 20000 30000");
    siege.client.hear("sent");
    for _ in 1..40 {
        siege.client.ask("long trap 20000 30000", "sent");
    }
    assert_eq!(villain.hear("kept"), format!("{SLOTS} 8"));
    siege.end(villain);
}

#[test]
fn loans_given_back_before_they_were_sent_disturb_nobody() {
    for spin in ["spin=never", "spin=learned"] {
        let mut siege = Siege::of(&[spin]);
        let mut villain = siege.intruder();
        villain.tell("flap 300");
        siege.client.ask("calls echo 2 100 8,20000,50000", "called");
        villain.hear("flapped");
        siege.end(villain);
    }
}

#[test]
fn a_borrower_that_is_stopped_holds_up_nobody() {
    let mut siege = Siege::of(&["bulk=4000000"]);
    let mut villain = siege.intruder();
    villain.ask("hoard 32", "hoarded");
    villain.stop();
    siege.client.ask("calls echo 2 50 8,64,20000,50000", "called");
    villain.go_on();
    assert_eq!(villain.ask("return", "returned"), SLOTS);
    assert_eq!(villain.ask("hoard 5", "hoarded"), "5 0");
    villain.stop();
    // Killed as it stands.
    siege.end(villain);
}

#[test]
fn an_arena_that_is_gone_is_there_for_who_still_reads_it() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.intruder();
    villain.ask("hold", "holding");
    siege.server.hear("held");
    siege.is_served();
    villain.ask("hold-again", "cut");
    // What was lent on a channel that was cut is read, and let go of.
    siege.server.tell("release");
    siege.end(villain);
}
