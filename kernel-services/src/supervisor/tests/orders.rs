//! Orders of starting and stopping, and what changes them: commands and reloads.

use super::*;

/// `api` needs `db` and `auth`, which need `disk`.
fn square() -> Node {
    node(&["api: db auth", "db: disk", "auth: disk", "disk"])
}

#[test]
fn starts_follow_dependencies_and_are_parallel_where_free() {
    let mut bench = Bench::new(&square());
    bench.script(
        "start          => spawn disk
         spawned disk   => spawn db, spawn auth
         spawned auth   =>
         spawned db     => spawn api",
    );
}

#[test]
fn stops_go_the_other_way() {
    let mut bench = Bench::new(&square());
    bench.all("start, spawned disk, spawned db, spawned auth, spawned api");
    bench.script(
        "shutdown       => term api
         exit api 0     => term db, term auth
         exit db 0      =>
         wait 50        => kill auth
         signal auth 9  => term disk
         exit disk 1    => done
         start          =>
         up api         => 1 no: ipcd is shutting down",
    );
    assert!(bench.supervisor.is_over());
}

#[test]
fn those_in_between_that_are_down_do_not_break_the_order() {
    let mut bench = Bench::new(&node(&["api: db", "db: disk", "disk"]));
    bench.all("start, spawned disk, spawned db, spawned api, signal db 11");
    bench.script(
        "shutdown       => term api
         exit api 0     => term disk
         exit disk 0    => done",
    );
}

#[test]
fn a_shutdown_waits_for_a_process_that_is_only_just_coming_to_be() {
    let mut bench = Bench::new(&node(&["db"]));
    bench.script(
        "start, shutdown => spawn db
         spawned db     => term db
         exit db 0      => done",
    );
    let mut bench = Bench::new(&node(&["db"]));
    bench.script("start, shutdown, nospawn db => spawn db, done");
}

#[test]
fn an_order_is_not_a_fate() {
    let mut bench = Bench::new(&node(&["api: db", "db"]));
    bench.all("start, spawned db, spawned api");
    bench.script(
        "signal db 11   => 
         exit api 1     => 
         wait 10        => spawn db
         down db        => 
         spawned db     => term db
         exit db 0      => 1 ok
         up api         => 2 no: api waits for db
         up db          => spawn db
         spawned db     => spawn api, 3 ok",
    );
    bench.all("spawned api, down db");
    assert_eq!((bench.state("api"), bench.state("db")), ("ready".into(), "stopping".into()));
}

#[test]
fn who_waits_says_for_whom() {
    let mut bench = Bench::new(&square());
    bench.all("start, spawned disk, spawned db, nospawn auth, wait 5");
    assert_eq!(
        bench.status("api").expect("a unit").line(bench.now_ns),
        "waiting since 0.0s, for auth"
    );
    let auth = bench.status("auth").expect("a unit").line(bench.now_ns);
    let expected = "backing-off since 0.0s, next attempt in 0.0s, 1 restart; \
                    cannot be started: no such file";
    assert_eq!(auth, expected);
}

#[test]
fn who_never_started_has_waited_since_there_is_a_supervisor() {
    let (hour_ns, second_ns) = (3_600_000_000_000, 1_000_000_000);
    let mut supervisor = Supervisor::new(&square(), 1, hour_ns);
    supervisor.step(Event::Start, hour_ns + second_ns);
    let api = supervisor.status().into_iter().find(|it| it.name == "api").expect("a unit");
    assert_eq!(api.line(hour_ns + 2 * second_ns), "waiting since 2.0s, for db, auth");
}

#[test]
fn one_replica_serves_but_all_prepare() {
    let mut node = node(&["api: db", "db: seed", "seed"]);
    (node.services[1].replicas, node.services[2].replicas) = (2, 2);
    node.services[2].readiness.when = Ready::Exits;
    let mut bench = Bench::new(&node);
    bench.script(
        "start                         => spawn seed#1, spawn seed#2
         spawned seed#1, spawned seed#2, exit seed#2 0 =>
         exit seed#1 0                 => spawn db#1, spawn db#2
         spawned db#2                  => spawn api
         down db#2                     => term db#2
         restart db                    => 1 no: db#2 was told otherwise meanwhile
         spawned db#1                  => term db#1
         exit db#1 0, exit db#2 0      => spawn db#1, spawn db#2
         spawned db#1, spawned db#2    => 2 ok",
    );
}

#[test]
fn a_preparation_that_fails_is_tried_again_and_a_late_one_is_killed() {
    let mut node = node(&["seed", "api: seed"]);
    node.services[0].readiness.when = Ready::Exits;
    let mut bench = Bench::new(&node);
    bench.script(
        "start           => spawn seed
         spawned seed    =>
         exit seed 1     =>
         wait 10         => spawn seed
         spawned seed    =>
         wait 100        => kill seed
         exit seed 0     =>
         wait 20         => spawn seed
         spawned seed    =>
         exit seed 0     => spawn api",
    );
    let notice = "seed is restarted in 20.0ms: was not ready within 100ms";
    assert!(bench.notices.iter().any(|told| told == notice), "{:?}", bench.notices);
}

#[test]
fn a_watchdog_counts_what_is_missed_in_a_row() {
    let mut node = node(&["db"]);
    node.services[0].watchdog = Some(Watchdog { interval: ms(20), timeout: ms(5), failures: 2 });
    let mut bench = Bench::new(&node);
    bench.script(
        "start, spawned db => spawn db
         wait 20         => probe db
         wait 5          => 
         answered db     => 
         wait 15         => probe db
         answered db     => 
         wait 20         => probe db
         missed db       => 
         missed db       => 
         wait 20         => probe db
         wait 5          => kill db
         answered db     => 
         signal db 9     =>
         wait 10         => spawn db",
    );
    assert_eq!(bench.status("db").expect("a unit").restarts, 1);
}

#[test]
fn a_reload_changes_what_changed() {
    let mut bench = Bench::new(&node(&["api: db", "db: disk", "disk"]));
    let mut terms = node(&["api: db", "db: disk", "disk"]);
    for service in &mut terms.services {
        service.backoff.first = ms(1);
        service.stop_within = ms(1);
        service.restart = Restart::Transient;
    }
    let mut other = terms.clone();
    other.services[1].arguments = vec!["-v".to_owned()];
    let fewer = node(&["log", "disk"]);
    bench.nodes = BTreeMap::from([("terms", terms), ("other", other), ("fewer", fewer)]);
    bench.all("start, spawned disk, spawned db, spawned api");
    bench.script(
        "reload terms    =>
         reload other    => term db
         reload fewer    => term api, spawn log
         wait 50         => kill api, kill db
         signal api 9    =>
         reload terms    =>
         spawned log     => term log
         signal db 9     => spawn db
         spawned db      => spawn api",
    );
}

#[test]
fn what_is_gone_stops_in_its_old_order() {
    let mut bench = Bench::new(&node(&["api: db", "db: disk", "disk"]));
    bench.nodes = BTreeMap::from([("none", node(&[]))]);
    bench.all("start, spawned disk, spawned db, spawned api, down db, exit db 0");
    bench.script(
        "reload none     => term api
         exit api 0      => term disk
         exit disk 0     =>",
    );
    assert_eq!(bench.supervisor.status(), []);
}

#[test]
fn what_returns_before_it_is_gone_is_the_same_unit() {
    let mut bench = Bench::new(&node(&["db"]));
    bench.nodes = BTreeMap::from([("none", node(&[])), ("again", node(&["db"]))]);
    bench.all("start, spawned db");
    let unit = bench.id("db");
    bench.script(
        "reload none     => term db
         reload again    =>
         exit db 0       => spawn db",
    );
    assert_eq!(bench.supervisor.unit("db", 1), Some(unit));
    bench.script(
        "spawned db, reload none, exit db 0 => term db
         reload again    => spawn db",
    );
    assert_ne!(bench.supervisor.unit("db", 1), Some(unit), "ids are not used again");
}

#[test]
fn replicas_come_and_go() {
    let (one, mut three) = (node(&["db"]), node(&["db"]));
    three.services[0].replicas = 3;
    let mut bench = Bench::new(&one);
    bench.nodes = BTreeMap::from([("one", one), ("three", three)]);
    bench.script(
        "start, spawned db                => spawn db
         reload three                     => spawn db#2, spawn db#3
         spawned db#2, spawned db#3       =>
         reload one                       => term db#2, term db#3
         exit db#2 0, exit db#3 0, down x => 1 no: no service, group or unit is called x",
    );
    assert_eq!(bench.supervisor.status().len(), 1);
}

#[test]
fn who_was_adopted_is_not_started_again() {
    let mut node = node(&["api: db", "db"]);
    node.services[1].readiness.when = Ready::Answers;
    let mut bench = Bench::new(&node);
    bench.script(
        "adopted db, adopted api =>
         start           =>
         adopted db      =>
         lost api        =>
         wait 10         =>
         serves db       => spawn api",
    );
}
