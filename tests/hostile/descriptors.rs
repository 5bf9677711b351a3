//! Descriptors that are no lanes, lanes that somebody would write, and bombs of them.

use super::siege::Siege;

#[test]
fn nothing_but_a_lane_is_taken_for_a_clients_lane() {
    let siege = Siege::of(&[]);
    let mut villain = siege.villain();
    let refused: u32 = villain.ask("descriptors echo", "refused").parse().expect("a number");
    assert!(refused >= 15, "{refused}");
    // The connection goes on, and a lane is still welcome.
    villain.ask("open echo", "opened");
    villain.ask("call", "called");
    siege.end(villain);
}

#[test]
fn nothing_but_a_lane_is_taken_for_a_services_lane() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.trapper();
    let count: u32 = villain.ask("impostors", "impostors").parse().expect("a number");
    villain.tell("accept-impostors");
    for _ in 0..count {
        let failed = siege.client.ask("ask trap 30000 hello", "failed");
        assert_eq!(failed, "IPC_EPEERCORRUPT");
    }
    villain.hear("accepted");
    siege.end(villain);
}

#[test]
fn a_lane_that_lies_about_what_it_is_is_refused() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.trapper();
    let refused: u32 = villain.ask("strangers echo", "refused").parse().expect("a number");
    villain.tell("accept-strangers");
    for _ in 0..refused {
        let failed = siege.client.ask("ask trap 30000 hello", "failed");
        assert_eq!(failed, "IPC_EPEERCORRUPT");
    }
    villain.hear("accepted");
    siege.end(villain);
}

#[test]
fn nobody_truncates_punches_or_maps_a_lane_for_writing() {
    let siege = Siege::of(&[]);
    let mut villain = siege.intruder();
    let failed: u32 = villain.ask("break", "failed").parse().expect("a number");
    assert!(failed >= 40, "{failed}");
    villain.ask("call", "called");
    siege.end(villain);
}

#[test]
fn another_user_does_not_even_open_a_lane() {
    let siege = Siege::of(&[]);
    let mut villain = siege.intruder();
    let refused = villain.ask("stranger", "stranger");
    let expected = if nix::unistd::geteuid().is_root() { "refused" } else { "impossible" };
    assert_eq!(refused, expected);
    siege.end(villain);
}

#[test]
fn bombs_of_descriptors_leave_none_behind() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.villain();
    villain.tell("bomb 30");
    siege.client.ask("calls echo 1 100 8,64", "called");
    villain.hear("bombed");
    siege.end(villain);
}
