//! `ipcd --config`: real services, started, watched, killed, replaced and stopped.

use std::{
    fmt::Write,
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use ipc::{NodeError, Spin, Status};
use nix::sys::signal::Signal;
use serde_json::json;
use tests::{
    Ipcd, LONG, World,
    ipcd::{children, open_to_all, recorded, signal},
    proc::{self, has_ended},
    wait_until,
};

const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");
const PROBE: &str = env!("CARGO_BIN_EXE_probe");
const WITHOUT: &str = env!("CARGO_BIN_EXE_without");
const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// A service that serves its own name. `more` are further lines of its table.
fn server(name: &str, more: &str) -> String {
    format!(
        "[service.{name}]\nexecutable = \"{PROBE}\"\narguments = [\"serve\", \"{name}\"]\n{more}\n"
    )
}

/// A service that is a line of shell, and runs once it is started.
fn shell(name: &str, script: &str, more: &str) -> String {
    format!(
        "[service.{name}]\nexecutable = \"/bin/sh\"\narguments = [\"-c\", '{script}']\n\
         sandbox = false\nprovides = []\n{more}\n"
    )
}

const RUNS: &str = "readiness = \"runs\"";
const AT_ONCE: &str = "backoff = { first = \"1ms\", most = \"1ms\" }";

fn start(node: &str) -> (World, Ipcd) {
    let world = World::without_runtime(ACTOR);
    let ipcd = Ipcd::start(IPCD, world.directory(), &format!("{node}{}", open_to_all()));
    (world, ipcd)
}

/// Ends it in order; nothing may stay behind.
fn stop(world: &World, ipcd: Ipcd) -> Vec<String> {
    let pids: Vec<u32> = recorded(world.directory()).into_iter().map(|(pid, _)| pid).collect();
    let (status, said) = ipcd.stop();
    assert_eq!(status.code(), Some(0), "{said:#?}");
    assert!(pids.iter().all(|&pid| has_ended(pid)), "{pids:?}");
    assert_eq!(recorded(world.directory()), []);
    assert!(!world.directory().join("ipcd.sock").exists());
    said
}

/// Asserts that what is said first has all of it before all of what is said then.
fn assert_order(ipcd: &Ipcd, first: &[&str], then: &[&str]) {
    let last = first.iter().map(|part| ipcd.when(part)).max();
    let next = then.iter().map(|part| ipcd.when(part)).min();
    assert!(last < next, "{first:?} before {then:?}: {:#?}", ipcd.said());
}

/// Ids of a name and of who serves it.
fn ids(world: &World, name: &str) -> (u32, u32) {
    let node = world.node(Spin::Never);
    let id = node.wait_service(name, None).expect("it comes");
    let entries = node.list().expect("a list");
    let entry = entries.iter().find(|entry| entry.name_id == id).expect("it is served");
    (id.get(), entry.instance.get())
}

#[test]
fn services_start_in_order_and_stop_in_reverse() {
    let node = [
        server("top", "depends_on = [\"left\", \"right\"]"),
        server("left", "depends_on = [\"base\"]"),
        server("right", "depends_on = [\"base\"]"),
        server("base", ""),
        shell("once", "exit 0", "readiness = \"exits\""),
    ];
    let (world, ipcd) = start(&node.concat());
    ipcd.wait("top", "ready");
    ipcd.wait("once", "finished");
    assert_order(&ipcd, &["base: is ready"], &["left: starts", "right: starts"]);
    // Neither waits for the other.
    assert_order(&ipcd, &["left: starts", "right: starts"], &["left: is ready", "right: is ready"]);
    assert_order(&ipcd, &["left: is ready", "right: is ready"], &["top: starts"]);
    let unit = ipcd.unit("top");
    assert_eq!(unit["serves"], json!(["top"]));
    assert_eq!(unit["depends_on"], json!(["left", "right"]));
    let mut client = world.actor(&[]);
    client.ask("calls top 2 50 8,1000", "called");
    let pids = ["base", "left", "right", "top"].map(|name| ipcd.pid_of(name));
    assert_eq!(children(ipcd.pid()), 4, "no zombie, nobody else");
    let said = stop(&world, ipcd);
    assert!(pids.iter().all(|&pid| has_ended(pid)));
    let when = |part: &str| {
        said.iter().position(|line| line.contains(part)).unwrap_or_else(|| panic!("{said:#?}"))
    };
    for (gone, told) in [("top", "left"), ("top", "right"), ("left", "base"), ("right", "base")] {
        assert!(when(&format!("{gone}: stopped")) < when(&format!("{told}: is asked to stop")));
    }
}

#[test]
fn who_is_killed_is_replaced_and_callers_go_on() {
    let (world, ipcd) = start(&server("echo", AT_ONCE));
    let pid = ipcd.wait("echo", "ready")["pid"].as_u64().expect("a process") as u32;
    let mut client = world.actor(&[]);
    client.ask("calls echo 1 10 8", "called");
    signal(pid, Signal::SIGKILL);
    let next = ipcd.wait_replaced("echo", pid);
    assert_eq!(client.ask("ask echo 30000 hello", "answer"), "hello");
    let unit = ipcd.unit("echo");
    assert_eq!((unit["restarts"].as_u64(), &unit["last_end"]), (Some(1), &json!("signal 9")));
    assert_eq!(children(ipcd.pid()), 1);
    assert_ne!(pid, next);
    stop(&world, ipcd);
}

#[test]
fn a_loop_of_crashes_comes_to_an_end_and_a_command_begins_it_anew() {
    let node = shell("bad", "echo out of order >&2; exit 3", &format!("{RUNS}\n{AT_ONCE}"))
        + "[group.fragile]\nmembers = [\"bad\"]\nintensity = { restarts = 2, within = \"1min\" }\n";
    let (world, ipcd) = start(&node);
    let unit = ipcd.wait("bad", "failed");
    let reason = unit["reason"].as_str().expect("a reason");
    assert_eq!(reason, "needs more than 2 restarts in 60s: exit code 3");
    assert_eq!(unit["last_end"], "exit code 3");
    assert_eq!(unit["last_lines"], json!(["out of order", "out of order", "out of order"]));
    assert_eq!((unit["pid"].as_u64(), unit["attempts"].as_u64()), (None, Some(3)));
    ipcd.hear("group fragile gave up");
    // It ends as before; but it was started.
    ipcd.act("start", "bad");
    wait_until("it gave up again", || {
        let unit = ipcd.unit("bad");
        unit["state"] == "failed" && unit["attempts"] == 6
    });
    stop(&world, ipcd);
}

#[test]
fn who_hangs_is_killed_and_replaced() {
    let watchdog = "watchdog = { interval = \"50ms\", timeout = \"200ms\", failures = 2 }";
    // A ping that was answered and not heard of would be the end of it.
    let strict = "watchdog = { interval = \"20ms\", timeout = \"2s\", failures = 1 }";
    let runs = format!("{AT_ONCE}\n{RUNS}\n{strict}");
    let node = [server("echo", &format!("{AT_ONCE}\n{watchdog}")), server("other", &runs)];
    let (world, ipcd) = start(&node.concat());
    let pid = ipcd.wait("echo", "ready")["pid"].as_u64().expect("a process") as u32;
    signal(pid, Signal::SIGSTOP);
    let next = ipcd.wait_replaced("echo", pid);
    ipcd.hear("echo: hangs, 2 pings unanswered: killed");
    assert!(has_ended(pid) && !has_ended(next));
    let mut client = world.actor(&[]);
    assert_eq!(client.ask("ask echo 30000 hello", "answer"), "hello");
    wait_until("other has been pinged for long", || {
        let other = ipcd.unit("other");
        assert_eq!(other["attempts"], 1, "{other:#}");
        other["since_ms"].as_u64() > Some(3000)
    });
    stop(&world, ipcd);
}

#[test]
fn who_runs_and_does_not_serve_yet_is_not_taken_to_hang() {
    let world = World::without_runtime(ACTOR);
    let gate = world.directory().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let strict = "watchdog = { interval = \"20ms\", timeout = \"2s\", failures = 1 }";
    let gated = |name: &str, readiness: &str| {
        let script = format!("read line < {}; exec {PROBE} serve {name}", gate.display());
        format!(
            "[service.{name}]\nexecutable = \"/bin/sh\"\narguments = [\"-c\", \"{script}\"]\n\
             sandbox = false\nrestart = \"temporary\"\n{strict}\nreadiness = {readiness}\n"
        )
    };
    let node = [
        gated("slow", "\"runs\""),
        gated("never", "{ when = \"runs\", within = \"300ms\" }"),
        open_to_all(),
    ];
    let ipcd = Ipcd::start(IPCD, world.directory(), &node.concat());
    // Its time is over: it is pinged then, and had twenty pings' time before.
    assert_eq!(ipcd.wait("never", "ended")["reason"], "hung, 1 ping unanswered");
    assert_eq!(ipcd.unit("slow")["state"], "ready");
    let opened = fs::write(&gate, "go\n");
    opened.expect("read by the one who waits");
    wait_until("it serves", || ipcd.unit("slow")["serves"] == json!(["slow"]));
    signal(ipcd.pid_of("slow"), Signal::SIGSTOP);
    ipcd.hear("slow: hangs, 1 ping unanswered: killed");
    stop(&world, ipcd);
}

#[test]
fn what_does_not_come_up_is_said_with_its_reason() {
    let late = "restart = \"temporary\"\nreadiness = { within = \"300ms\" }";
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("program");
    fs::copy("/bin/true", &program).expect("copied");
    let missing = format!(
        "[service.missing]\nexecutable = \"{}\"\nsandbox = false\nrestart = \"temporary\"\n\
         readiness = \"exits\"\ndepends_on = [\"gate\"]\n",
        program.display()
    );
    let node = [
        shell("slow", "exec sleep 1000", late),
        shell("prepares", "exit 7", "restart = \"temporary\"\nreadiness = \"exits\""),
        server("gate", ""),
        missing,
    ];
    let (world, ipcd) = start(&node.concat());
    assert_eq!(ipcd.wait("slow", "ended")["reason"], "was not ready within 300ms");
    assert_eq!(ipcd.wait("prepares", "ended")["reason"], "exit code 7");
    ipcd.wait("missing", "finished");
    fs::remove_file(&program).expect("removed");
    let error = ipcd.act("start", "missing").expect("it is not there");
    assert!(error.contains("cannot be started"), "{error}");
    let unit = ipcd.wait("missing", "ended");
    let reason = unit["reason"].as_str().expect("a reason");
    assert!(reason.contains("program") && reason.contains("ENOENT"), "{reason}");
    stop(&world, ipcd);
}

#[test]
fn services_outlive_ipcd_and_the_next_one_goes_on() {
    let node = [server("echo", AT_ONCE), server("dies", AT_ONCE)];
    let (world, ipcd) = start(&node.concat());
    for name in ["echo", "dies"] {
        ipcd.wait(name, "ready");
    }
    let pids = ["echo", "dies"].map(|name| ipcd.pid_of(name));
    let before = ids(&world, "echo");
    let (done, called) = (AtomicBool::new(false), AtomicU64::new(0));
    let (_node, client) = world.client("echo", Spin::Never);
    let ipcd = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let answer = client.call(b"hello", LONG).expect("not one call fails");
                assert_eq!(&*answer, b"hello");
                called.fetch_add(1, Ordering::Relaxed);
            }
        });
        let more = || {
            let next = called.load(Ordering::Relaxed) + 100;
            wait_until("calls flow", || called.load(Ordering::Relaxed) > next);
        };
        more();
        ipcd.kill();
        more();
        signal(pids[1], Signal::SIGKILL);
        wait_until("it is gone", || has_ended(pids[1]));
        let ipcd = Ipcd::again(IPCD, world.directory());
        for name in ["echo", "dies"] {
            ipcd.wait(name, "ready");
        }
        more();
        done.store(true, Ordering::Relaxed);
        ipcd
    });
    assert_eq!(ipcd.pid_of("echo"), pids[0]);
    assert_ne!(ipcd.pid_of("dies"), pids[1]);
    assert_eq!(ids(&world, "echo"), before);
    ipcd.hear(&format!("echo: still runs as process {}", pids[0]));
    signal(pids[0], Signal::SIGKILL);
    ipcd.wait_replaced("echo", pids[0]);
    assert_eq!(ids(&world, "echo").0, before.0);
    assert_eq!(&*client.call(b"hello", LONG).expect("answered"), b"hello");
    // One that ends with its adopted services, and at once those that it is not to have.
    let [last, unwanted] = ["echo", "dies"].map(|name| ipcd.pid_of(name));
    ipcd.kill();
    let ipcd = Ipcd::start(IPCD, world.directory(), &(server("echo", AT_ONCE) + &open_to_all()));
    ipcd.wait("echo", "ready");
    wait_until("it is gone", || has_ended(unwanted));
    assert_eq!(ipcd.pid_of("echo"), last);
    stop(&world, ipcd);
    assert!(has_ended(last));
}

#[test]
fn the_end_of_an_adopted_service_is_seen_without_pidfds() {
    let (world, ipcd) = start(&server("echo", AT_ONCE));
    ipcd.wait("echo", "ready");
    let pid = ipcd.pid_of("echo");
    ipcd.kill();
    let ipcd = Ipcd::by(&[WITHOUT, "pidfd", "--", IPCD], world.directory());
    ipcd.wait("echo", "ready");
    assert_eq!(ipcd.pid_of("echo"), pid);
    signal(pid, Signal::SIGKILL);
    ipcd.wait_replaced("echo", pid);
    stop(&world, ipcd);
}

#[test]
fn another_process_with_a_recorded_number_is_not_touched() {
    let world = World::without_runtime(ACTOR);
    let other = World::without_runtime(ACTOR);
    let _kernel = kernel_services::Kernel::embedded(other.directory()).expect("a runtime");
    let stranger = other.actor(&[]);
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux");
    let units = json!({ "version": 1, "boot": boot, "units": [
        { "service": "echo", "replica": 1, "pid": stranger.pid(), "start_time": 1 },
        { "service": "gone", "replica": 1, "pid": stranger.pid(), "start_time": 2 },
    ]});
    fs::write(world.directory().join("units"), units.to_string()).expect("written");
    let ipcd = Ipcd::start(IPCD, world.directory(), &server("echo", ""));
    ipcd.wait("echo", "ready");
    assert_ne!(ipcd.pid_of("echo"), stranger.pid());
    stop(&world, ipcd);
    stranger.quit();
}

#[test]
fn a_reload_does_no_more_than_it_must() {
    let four = |changed: &str| {
        [server("kept", ""), server("gone", ""), server("changed", changed)].concat()
    };
    let (world, ipcd) = start(&four(""));
    let names = ["kept", "gone", "changed"];
    let pids = names.map(|name| {
        ipcd.wait(name, "ready");
        ipcd.pid_of(name)
    });
    ipcd.reload("[service.kept]\nexecutabel = \"x\"\n");
    ipcd.hear("the node file is not taken, and all goes on");
    ipcd.hear("node.toml:2:1");
    ipcd.hear("did you mean \"executable\"?");
    assert_eq!(names.map(|name| ipcd.pid_of(name)), pids);
    let node = [
        server("kept", "stop_within = \"7s\""),
        server("changed", "environment = { A = \"B\" }"),
        server("new", "depends_on = [\"kept\"]"),
    ];
    ipcd.reload(&node.concat());
    ipcd.hear("the node file is taken");
    ipcd.wait("new", "ready");
    ipcd.wait_replaced("changed", pids[2]);
    assert_eq!(ipcd.pid_of("kept"), pids[0]);
    wait_until("it is gone", || has_ended(pids[1]));
    let status = ipcd.ask(&json!({ "do": "status" }));
    assert_eq!(status["units"].as_array().map(Vec::len), Some(3));
    // The same by a command; and it is told what is wrong.
    let answer = ipcd.ask(&json!({ "do": "reload" }));
    assert_eq!(answer, json!({ "change": "changes nothing", "warnings": [] }));
    let missing = "[service.late]\nexecutable = \"/nowhere\"\n";
    tests::ipcd::write(world.directory(), &(node.concat() + missing));
    let answer = ipcd.ask(&json!({ "do": "reload" }));
    let warning = answer["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("node.toml:") && warning.contains("/nowhere"), "{warning}");
    tests::ipcd::write(world.directory(), "nonsense");
    let answer = ipcd.ask(&json!({ "do": "reload" }));
    assert!(answer["error"].as_str().is_some_and(|it| it.contains("node.toml:1:")), "{answer}");
    stop(&world, ipcd);
}

#[test]
fn commands_do_as_they_say_or_say_why_not() {
    let (world, ipcd) = start(&(server("echo", AT_ONCE) + &server("pair", "replicas = 2")));
    ipcd.wait("echo", "ready");
    let pid = ipcd.pid_of("echo");
    assert_eq!(ipcd.act("restart", "echo"), None);
    let next = ipcd.pid_of("echo");
    assert!(next != pid && has_ended(pid));
    assert_eq!(ipcd.act("stop", "echo"), None);
    assert!(has_ended(next));
    // Stopped stays stopped, whatever else happens.
    assert_eq!(ipcd.act("restart", "pair"), None);
    assert!(ipcd.ask(&json!({ "do": "reload" }))["error"].is_null());
    assert_eq!(ipcd.unit("echo")["state"], "stopped");
    assert_eq!(ipcd.act("start", "echo"), None);
    ipcd.wait("echo", "ready");
    let first = ipcd.pid_of("pair#1");
    assert_eq!(ipcd.act("restart", "pair#2"), None);
    assert_eq!(ipcd.pid_of("pair#1"), first);
    for verb in ["start", "stop", "restart"] {
        let error = ipcd.act(verb, "nobody").expect("nobody is called so");
        assert!(error.contains("nobody"), "{error}");
    }
    for text in ["", "{", "[]", r#"{"do":"fly"}"#, r#"{"do":"start"}"#, r#"{"do":"status","x":1}"#]
    {
        let answer = ipcd.ask_text(text);
        let error = answer["error"].as_str().expect("refused");
        assert!(error.starts_with("this ipcd does not understand: "), "{text}: {error}");
    }
    stop(&world, ipcd);
    let bare = World::new(ACTOR);
    let refused = bare.node(Spin::Never).command(r#"{"do":"status"}"#, Some(LONG));
    assert!(matches!(refused, Err(NodeError::Refused(Status::NOT_SUPPORTED))), "{refused:?}");
}

#[test]
fn output_is_kept_and_rotated() {
    let node = shell(
        "chatty",
        "while :; do printf %01000d 7; sleep 0.01; done",
        &format!("{RUNS}\nlog = {{ rotate_at = \"16KiB\", keep = 2 }}"),
    );
    let (world, ipcd) = start(&(node + &shell("says", "echo hello", "readiness = \"exits\"")));
    let logs = world.directory().join("logs");
    ipcd.wait("says", "finished");
    assert_eq!(fs::read_to_string(logs.join("says.log")).expect("a log"), "hello\n");
    assert_eq!(ipcd.unit("says")["log"], json!(logs.join("says.log")));
    let length = |name: &str| fs::metadata(logs.join(name)).map_or(0, |it| it.len());
    let inode = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(logs.join(name)).map_or(0, |it| it.ino())
    };
    wait_until("it was rotated twice", || length("chatty.log.2") > 0);
    let oldest = inode("chatty.log.2");
    wait_until("it was rotated once more", || inode("chatty.log.2") != oldest);
    ipcd.act("stop", "chatty");
    let names = fs::read_dir(&logs).expect("a directory").flatten();
    let count = names.filter(|it| it.file_name().to_string_lossy().contains("chatty")).count();
    assert_eq!(count, 3);
    stop(&world, ipcd);
}

#[test]
fn an_idle_system_sleeps() {
    let node: String = (0..3).fold(String::new(), |mut node, n| {
        let _ = write!(node, "{}", server(&format!("idle-{n}"), ""));
        node
    });
    let (world, ipcd) = start(&node);
    (0..3).for_each(|n| drop(ipcd.wait(&format!("idle-{n}"), "ready")));
    let pids: Vec<u32> =
        [ipcd.pid()].into_iter().chain((0..3).map(|n| ipcd.pid_of(&format!("idle-{n}")))).collect();
    let sleeps = || pids.iter().map(|&pid| proc::sleeps(pid)).collect::<Vec<_>>();
    let mut before = sleeps();
    // A log that was written to is looked at a second later, once.
    wait_until("all are at rest", || {
        std::thread::sleep(Duration::from_millis(1500));
        let now = sleeps();
        now == std::mem::replace(&mut before, now.clone())
    });
    // The one wait for a time: nothing can be observed but that nothing happens.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(sleeps(), before, "somebody woke up");
    stop(&world, ipcd);
}
