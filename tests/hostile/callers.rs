//! A hostile service, and who calls it.

use tests::{proc, wait_until};

use super::siege::Siege;

const SPINS: [&str; 2] = ["spin=never", "spin=learned"];

#[test]
fn every_lie_of_a_service_is_an_error_of_its_callers() {
    for spin in SPINS {
        let mut siege = Siege::of(&[spin]);
        let mut villain = siege.trapper();
        let count: u32 = villain.ask("count", "lies").parse().expect("a number");
        assert!(count >= 70, "{count}");
        villain.tell("mislead");
        for _ in 0..count {
            assert_eq!(siege.client.ask("ask trap 30000 hello", "answer"), "hello");
            siege.client.tell("ask trap 30000 hello");
            let failed = siege.client.hear("failed");
            // A life word that says death or the end is believed; whether of a call or of its
            // server is all that it says.
            let known = ["IPC_EPEERCORRUPT", "IPC_EMAYBE", "IPC_EPEERDIED"];
            assert!(known.contains(&&*failed), "{failed}");
        }
        villain.hear("misled");
        siege.end(villain);
    }
}

#[test]
fn progress_that_cannot_be_is_noticed_by_who_sends() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.trapper();
    siege.client.tell("number trap 1000 -");
    villain.ask("admit", "admitted");
    villain.ask("takes-ahead", "lied");
    assert!(siege.client.hear("numbered").ends_with("IPC_EPEERCORRUPT"));
    siege.client.tell("number trap 70 -");
    villain.ask("admit", "admitted");
    villain.ask("takes-all 64", "took");
    assert_eq!(siege.client.hear("numbered"), "70 IPC_OK");
    villain.ask("takes-back", "lied");
    let numbered = siege.client.ask("number trap 1000 -", "numbered");
    assert!(numbered.ends_with("IPC_EPEERCORRUPT"), "{numbered}");
    siege.end(villain);
}

#[test]
fn a_service_that_takes_nothing_fills_its_ring_and_no_more() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.trapper();
    siege.client.tell("number trap 1000 50");
    villain.ask("admit", "admitted");
    assert!(siege.client.hear("numbered").ends_with("IPC_EFULL"));
    assert_eq!(siege.client.ask("ask trap 50 hello", "failed"), "IPC_ETIMEDOUT");
    siege.end(villain);
}

#[test]
fn answers_without_end_keep_no_caller_beyond_its_deadline() {
    for spin in SPINS {
        let mut siege = Siege::of(&[spin]);
        let mut villain = siege.trapper();
        siege.client.tell("ask trap 30000 hello");
        villain.ask("admit", "admitted");
        villain.ask("answer", "answered");
        siege.client.hear("answer");
        villain.ask("feed", "feeding");
        assert_eq!(siege.client.ask("ask trap 100 hello", "failed"), "IPC_ETIMEDOUT");
        siege.client.ask("calls echo 1 10 8", "called");
        siege.client.ask("leave trap", "left");
        villain.hear("fed");
        siege.end(villain);
    }
}

#[test]
fn an_answer_that_changes_while_it_is_read_harms_nobody() {
    for spin in SPINS {
        let mut siege = Siege::of(&[spin]);
        let mut villain = siege.trapper();
        for _ in 0..8 {
            siege.client.tell("start trap 20 hello");
            villain.ask("admit", "admitted");
            siege.client.hear("started");
            villain.tell("flutter 20");
            // Whatever comes of them, each has one end.
            let ends = siege.client.ask("collect", "collected");
            let count = |end: &str| end.split('=').nth(1).and_then(|n| n.parse().ok());
            let counts: Option<Vec<u32>> = ends.split(' ').map(count).collect();
            assert_eq!(counts.expect("counts").iter().sum::<u32>(), 20, "{ends}");
            villain.hear("fluttered");
        }
        siege.end(villain);
    }
}

#[test]
fn wakes_for_nothing_are_no_answers() {
    for spin in SPINS {
        let mut siege = Siege::of(&[spin]);
        let mut villain = siege.trapper();
        siege.client.tell("ask trap 30000 hello");
        villain.ask("admit", "admitted");
        villain.ask("answer", "answered");
        siege.client.hear("answer");
        siege.client.tell("start trap 1 hello");
        siege.client.hear("started");
        siege.client.tell("collect");
        villain.ask("admit-again", "admitted");
        villain.tell("nudge 5000");
        assert_eq!(siege.client.hear("collected"), "IPC_EUSER=1");
        villain.hear("nudged");
        siege.end(villain);
    }
}

#[test]
fn sleepers_that_were_moved_elsewhere_hear_of_the_death() {
    let mut siege = Siege::of(&["spin=never"]);
    let mut villain = siege.trapper();
    siege.client.tell("start trap 2 hello");
    villain.ask("admit", "admitted");
    siege.client.hear("started");
    siege.client.tell("collect");
    let client = siege.client.pid();
    wait_until("it sleeps", || proc::is_asleep(client, client));
    villain.ask("displace", "displaced");
    villain.kill();
    let end = siege.client.hear("collected");
    assert!(end == "IPC_EMAYBE=2" || end == "IPC_EMAYBE=1 IPC_EPEERDIED=1", "{end}");
    let other = siege.villain();
    siege.end(other);
}
