//! Strategies, intensities, restart types.

use super::*;

fn three(strategy: Strategy, restarts: u32) -> Node {
    let mut node = node(&["a", "b", "c"]);
    node.groups = vec![group(&["a", "b", "c"], strategy, restarts, ms(1000))];
    node
}

fn up(node: &Node) -> Bench {
    let mut bench = Bench::new(node);
    bench.all("start, spawned a, spawned b, spawned c");
    assert!(["a", "b", "c"].iter().all(|name| bench.state(name) == "ready"));
    bench
}

#[test]
fn one_for_one_restarts_one_after_longer_and_longer() {
    let mut bench = up(&three(Strategy::OneForOne, 9));
    bench.script(
        "exit b 0               =>
         wait 9                 =>
         wait 1                 => spawn b
         spawned b, exit b 0    =>
         wait 19                =>
         wait 1                 => spawn b
         nospawn b, wait 39     =>
         wait 1                 => spawn b
         spawned b, wait 500    =>
         exit b 1, wait 10      => spawn b",
    );
}

#[test]
fn one_for_all_stops_all_and_starts_them_in_order() {
    let mut bench = up(&three(Strategy::OneForAll, 9));
    bench.script(
        "signal b 11    => term c
         exit c 0       => term a
         wait 10        =>
         exit a 0       => spawn a
         spawned a      => spawn b
         spawned b      => spawn c
         spawned c      =>
         signal c 11    => term b
         exit b 0       => term a
         exit a 0       =>
         wait 10        => spawn a",
    );
}

#[test]
fn rest_for_one_leaves_those_before_alone() {
    let mut bench = up(&three(Strategy::RestForOne, 9));
    bench.script(
        "signal b 11    => term c
         wait 10        =>
         signal c 11    => spawn b
         spawned b      => spawn c
         spawned c      =>
         exit c 0       =>
         wait 10        => spawn c
         spawned c      =>
         exit a 0       => term c
         exit c 0       => term b
         exit b 0, wait 20 => spawn a",
    );
}

#[test]
fn members_end_in_the_middle_of_each_others_restarts() {
    let mut bench = up(&three(Strategy::OneForAll, 1));
    // Only the first is a failure: the others are to stop anyway.
    bench.script(
        "signal b 11, signal a 11, signal c 11 => term c
         wait 10                 => spawn a
         down a                  => spawn b
         spawned a               => term a
         exit a 0                => 1 ok",
    );
}

#[test]
fn a_group_gives_up_together_and_a_command_starts_it_again() {
    let mut bench = up(&three(Strategy::OneForOne, 1));
    bench.script(
        "exit a 1, wait 10      => spawn a
         spawned a              =>
         exit c 2               => term a, term b
         exit a 3               =>
         exit b 0               =>
         wait 100               =>
         up b                   => spawn b
         spawned b              => 1 ok
         up core                => spawn a, spawn c
         spawned a, spawned c   => 2 ok
         exit c 2, wait 10      => spawn c",
    );
}

#[test]
fn a_failure_says_why() {
    let mut bench = up(&three(Strategy::OneForOne, 0));
    bench.all("signal b 6, exit a 0, exit c 0, wait 90000");
    let line = |name| bench.status(name).expect("a unit").line(bench.now_ns);
    let reason = "needs more than 0 restarts in 1s: signal 6";
    assert_eq!(line("b"), format!("failed since 1m 30s, last: signal 6; {reason}"));
    assert_eq!(line("a"), format!("failed since 1m 30s, last: exit code 0; b {reason}"));
    assert!(bench.notices.contains(&format!("b group core gave up: {reason}")));
}

#[test]
fn old_restarts_are_forgotten() {
    let mut bench = up(&three(Strategy::OneForOne, 1));
    bench.script(
        "exit a 1, wait 10            => spawn a
         spawned a, wait 1000         =>
         exit a 1, wait 10            => spawn a",
    );
}

#[test]
fn restart_types() {
    let mut node = node(&["a", "b", "c"]);
    node.services[1].restart = Restart::Transient;
    node.services[2].restart = Restart::Temporary;
    let mut bench = up(&node);
    bench.script("exit a 0, exit b 0, exit c 0, wait 10 => spawn a");
    assert_eq!((bench.state("b"), bench.state("c")), ("finished".into(), "finished".into()));
    let mut bench = up(&node);
    bench.script("exit a 1, exit b 1, exit c 1, wait 10 => spawn a, spawn b");
    assert_eq!(bench.state("c"), "ended");
    // Nobody knows that it succeeded.
    let mut bench = up(&node);
    bench.script("lost b, wait 10 => spawn b");
}

#[test]
fn a_temporary_sibling_goes_with_the_others_and_does_not_return() {
    let mut node = three(Strategy::OneForAll, 9);
    node.services[2].restart = Restart::Temporary;
    let mut bench = up(&node);
    bench.script(
        "exit a 1               => term c
         exit c 0               => term b
         exit b 0, wait 10      => spawn a
         spawned a              => spawn b
         spawned b              =>
         up c                   => spawn c",
    );
}

#[test]
fn dependencies_are_stronger_than_the_order_of_a_group() {
    let mut node = node(&["a: b", "b", "c: d", "d: a"]);
    let cores = |members: &[&str]| group(members, Strategy::OneForAll, 9, ms(1000));
    node.groups = vec![cores(&["a", "b"]), cores(&["d", "c"])];
    let mut bench = Bench::new(&node);
    bench.script(
        "start      => spawn b
         spawned b  => spawn a
         spawned a  => spawn d
         spawned d  => spawn c
         spawned c  =>
         shutdown   => term c
         exit c 0   => term d
         exit d 0   => term a
         exit a 0   => term b
         exit b 0   => done",
    );
}

#[test]
fn a_member_that_stays_down_is_not_waited_for_but_those_before_it_are() {
    let mut bench = up(&three(Strategy::RestForOne, 9));
    bench.script(
        "down b         => term b
         exit b 0       => 1 ok
         exit a 1       => term c
         exit c 0       =>
         wait 10        => spawn a
         spawned a      => spawn c",
    );
}

#[test]
fn a_reload_keeps_what_a_group_has_used() {
    let mut bench = up(&three(Strategy::OneForOne, 1));
    let mut changed = three(Strategy::OneForOne, 1);
    changed.services[1].arguments = vec!["-v".to_owned()];
    bench.nodes = BTreeMap::from([("changed", changed)]);
    bench.script(
        "exit a 1, wait 10        => spawn a
         spawned a                =>
         reload changed           => term b
         exit b 0                 => spawn b
         spawned b, exit a 1      => term b, term c
         exit b 0, exit c 0       =>
         reload changed           =>",
    );
    // Another program may do better: it gets its chance.
    let mut other = three(Strategy::OneForOne, 1);
    other.services[0].arguments = vec!["-v".to_owned()];
    bench.nodes.insert("other", other);
    bench.script("reload other => spawn a, spawn b");
}
