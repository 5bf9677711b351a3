//! A supervised system in bad times: node files that cannot be meant, no descriptors, odd names,
//! and a thousand deaths.

use std::{
    fs,
    os::fd::AsRawFd,
    path::Path,
    process::{Command, Output},
};

use ipc::Spin;
use nix::sys::{
    signal::Signal,
    socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
};
use serde_json::json;
use tests::{
    Ipcd, LONG, World,
    ipcd::{children, recorded, signal, write},
    proc, wait_until,
};

const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");
const PROBE: &str = env!("CARGO_BIN_EXE_probe");
const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// Lets everybody call everybody.
const OPEN: &str = "[[rule]]\nfrom = \"any\"\nto = \"any\"\nallow = \"all\"\n";
const AT_ONCE: &str = "backoff = { first = \"1ms\", most = \"1ms\" }";

fn server(service: &str, name: &str, more: &str) -> String {
    let name = json!(name);
    format!(
        "[service.{service}]\nexecutable = \"{PROBE}\"\narguments = [\"serve\", {name}]\n\
         provides = [{name}]\n{AT_ONCE}\n{more}\n"
    )
}

/// It is restarted however often it ends.
fn sturdy(service: &str) -> String {
    format!(
        "[group.sturdy]\nmembers = [\"{service}\"]\n\
         intensity = {{ restarts = 1000, within = \"1ms\" }}\n"
    )
}

fn run(directory: &Path) -> Output {
    let mut ipcd = Command::new(IPCD);
    ipcd.arg("--runtime-dir").arg(directory).arg("--config").arg(directory.join("node.toml"));
    ipcd.output().expect("it ends by itself")
}

#[test]
fn a_node_file_that_cannot_be_meant_starts_nothing() {
    let world = World::without_runtime(ACTOR);
    let mark = world.directory().join("started");
    let first = format!(
        "[service.first]\nexecutable = \"/bin/sh\"\nsandbox = false\n\
         arguments = [\"-c\", \"touch {}\"]\nreadiness = \"runs\"\nprovides = []\n",
        mark.display()
    );
    let circle = "[service.a]\nexecutable = \"/bin/true\"\ndepends_on = [\"b\"]\n\
                  [service.b]\nexecutable = \"/bin/true\"\ndepends_on = [\"a\"]\n";
    let missing = "[service.a]\nexecutable = \"/nowhere/at/all\"\n";
    for (bad, told) in [
        (circle, "dependencies run in a circle: a -> b -> a"),
        (missing, "there is no /nowhere/at/all"),
        ("[service.a]\nexecutabel = \"/bin/true\"\n", "did you mean \"executable\"?"),
        ("[service", "node.toml:7"),
        ("\u{0}", "node.toml:7"),
    ] {
        write(world.directory(), &format!("{first}{bad}"));
        let output = run(world.directory());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(told), "{bad:?}: {said}");
        assert!(!mark.exists() && recorded(world.directory()).is_empty(), "{bad:?}");
        assert!(!world.directory().join("ipcd.sock").exists(), "{bad:?}");
    }
    fs::remove_file(world.directory().join("node.toml")).expect("ours");
    let output = run(world.directory());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("node.toml"));
}

#[test]
fn with_few_descriptors_the_crowd_waits_and_services_are_replaced() {
    let world = World::without_runtime(ACTOR);
    let node = [OPEN, &server("echo", "echo", ""), &server("other", "other", ""), &sturdy("echo")];
    write(world.directory(), &node.concat());
    let few = ["/bin/sh", "-c", "ulimit -n 64 && exec \"$@\"", "few", IPCD];
    let ipcd = Ipcd::by(&few, world.directory());
    let pids = ["echo", "other"].map(|name| {
        ipcd.wait(name, "ready");
        ipcd.pid_of(name)
    });
    let (_node, client) = world.client("other", Spin::Never);
    let before = proc::holdings(ipcd.pid());
    let address = UnixAddr::new(&world.directory().join("ipcd.sock")).expect("short");
    let crowd: Vec<_> = (0..200)
        .map(|_| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let one = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None);
            let one = one.expect("a socket");
            // A backlog that is full refuses some, which is all that this is about.
            let _ = connect(one.as_raw_fd(), &address);
            one
        })
        .collect();
    wait_until("it has no more", || proc::open_files(ipcd.pid()) >= 63);
    assert_eq!(client.call(b"x", LONG).expect("channels go on"), b"x");
    signal(pids[0], Signal::SIGKILL);
    wait_until("its end is seen", || {
        recorded(world.directory()).iter().all(|(pid, _)| *pid != pids[0])
    });
    drop(crowd);
    ipcd.wait_replaced("echo", pids[0]);
    assert_eq!(ipcd.pid_of("other"), pids[1]);
    wait_until("the crowd left nothing", || proc::holdings(ipcd.pid()).is_within(&before));
    assert_eq!(ipcd.act("restart", "other"), None);
    assert_eq!(ipcd.stop().0.code(), Some(0));
}

#[test]
fn names_may_be_long_and_odd() {
    let world = World::without_runtime(ACTOR);
    let long = "n".repeat(255);
    let names = [&long, "../../etc", "a b\"c'd\\e", "naïve ☃ 名前", "%s%n", "-", "#2", "/", "."];
    let services: String =
        names.iter().enumerate().map(|(n, name)| server(&format!("odd-{n}"), name, "")).collect();
    let ipcd = Ipcd::start(IPCD, world.directory(), &format!("{OPEN}{services}"));
    let node = world.node(Spin::Never);
    for (n, name) in names.iter().enumerate() {
        let unit = ipcd.wait(&format!("odd-{n}"), "ready");
        assert_eq!(unit["serves"], json!([name]));
        let client = node.client(node.discover(name).expect("served")).expect("a channel");
        assert_eq!(client.call(b"x", LONG).expect("answered"), b"x");
    }
    let served: Vec<String> =
        node.list().expect("a list").into_iter().map(|entry| entry.name).collect();
    assert!(names.iter().all(|name| served.iter().any(|it| it == name)));
    for bad in [String::new(), "n".repeat(256), "a\nb".to_owned(), "a\u{0}".to_owned()] {
        let refused = node.server().expect("a server").register(&bad, 0);
        assert!(matches!(refused, Err(ipc::NodeError::Name(_))), "{bad:?}");
        ipcd.reload(&format!("{OPEN}{}", server("odd", &bad, "")));
        let error = ipcd.ask(&json!({ "do": "reload" }))["error"].clone();
        assert!(error.as_str().is_some_and(|it| it.contains("node.toml:")), "{bad:?}: {error}");
    }
    assert_eq!(ipcd.stop().0.code(), Some(0));
}

#[test]
fn a_thousand_deaths_leave_nothing_behind() {
    let world = World::without_runtime(ACTOR);
    let node = format!("{OPEN}{}{}", server("echo", "echo", ""), sturdy("echo"));
    let ipcd = Ipcd::start(IPCD, world.directory(), &node);
    ipcd.wait("echo", "ready");
    let mut pid = ipcd.pid_of("echo");
    // It is killed at whatever it is about, from before its program on; now and then once it is up.
    let mut kill = |rounds: usize| {
        for round in 0..rounds {
            signal(pid, Signal::SIGKILL);
            let old = pid;
            wait_until("it has another process", || {
                let now = recorded(world.directory()).first().map(|(pid, _)| *pid);
                pid = now.unwrap_or(old);
                pid != old
            });
            if round % 25 == 0 {
                ipcd.wait("echo", "ready");
                pid = ipcd.pid_of("echo");
            }
        }
        ipcd.wait("echo", "ready");
        pid = ipcd.pid_of("echo");
    };
    // What is made once, is made by then.
    kill(50);
    let rest = || (proc::holdings(ipcd.pid()), proc::resident_kib(ipcd.pid()));
    let (before, memory) = rest();
    kill(1000);
    wait_until("nothing is left of them", || {
        rest().0.is_within(&before) && children(ipcd.pid()) == 1
    });
    let grown = rest().1.saturating_sub(memory);
    assert!(grown < 1024, "{grown} KiB more than {memory}");
    assert_eq!(recorded(world.directory()).len(), 1);
    assert_eq!(ipcd.stop().0.code(), Some(0));
}
