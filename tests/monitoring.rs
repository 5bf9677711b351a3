//! What operators see of a running system: metrics that `ipcd` serves, `ipctl top` and `profile`,
//! and of traced requests what the node file lets them see.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use ipc::Spin;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{
    Ipcd, LONG, World,
    ipcd::{open_to_all, signal},
    wait_until,
};

const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");
const PROBE: &str = env!("CARGO_BIN_EXE_probe");
const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

fn node(metrics: &str) -> String {
    format!(
        "metrics = \"{metrics}\"\n[service.api]\nexecutable = \"{PROBE}\"\n\
         arguments = [\"serve\", \"api\"]\nbackoff = {{ first = \"1ms\", most = \"1ms\" }}\n{}",
        open_to_all()
    )
}

/// Asks for a page, until there is one.
fn scrape<S: Read + Write>(mut connect: impl FnMut() -> std::io::Result<S>) -> String {
    let mut page = String::new();
    wait_until("there is a page", || {
        page.clear();
        let Ok(mut stream) = connect() else { return false };
        let asked = stream.write_all(
            b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n",
        );
        asked.is_ok()
            && stream.read_to_string(&mut page).is_ok()
            && page.starts_with("HTTP/1.1 200 ")
    });
    page.split_once("\r\n\r\n").expect("a body").1.to_owned()
}

/// The value of the only sample of this name, of that service.
fn value(page: &str, name: &str, service: &str) -> f64 {
    let label = format!("service=\"{service}\"");
    let is_it = |line: &&str| line.starts_with(&format!("{name}{{")) && line.contains(&label);
    let line = page.lines().find(is_it).unwrap_or_else(|| panic!("no {name}: {page}"));
    line.rsplit(' ').next().and_then(|it| it.parse().ok()).expect("a number")
}

fn ipctl(world: &World, arguments: &[&str]) -> (Option<i32>, String) {
    let ipctl = Path::new(ACTOR).with_file_name("ipctl");
    assert!(ipctl.exists(), "build it first: cargo build -p ipctl");
    let mut command = Command::new(ipctl);
    command.args(arguments).arg("--runtime-dir").arg(world.directory());
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
}

#[test]
fn metrics_are_served_where_the_node_file_says_also_when_it_changes() {
    let world = World::without_runtime(ACTOR);
    let socket = world.directory().join("metrics");
    let at = format!("unix:{}", socket.display());
    let ipcd = Ipcd::start(IPCD, world.directory(), &node(&at));
    ipcd.wait("api", "ready");
    let mut caller = world.actor(&[]);
    caller.ask("calls api 1 100 8", "called");
    let page = scrape(|| UnixStream::connect(&socket));
    // Those of the supervisor's pings are no messages.
    let received = value(&page, "libipc_messages_received_total", "api");
    assert!(received >= 100.0, "{page}");
    assert_eq!(value(&page, "libipc_messages_sent_total", "api").to_bits(), received.to_bits());
    assert!(value(&page, "libipc_active_connections", "api") >= 1.0);
    assert!(value(&page, "process_resident_memory_bytes", "api") > 100_000.0);
    assert!(value(&page, "process_open_fds", "api") > 3.0);
    for name in ["libipc_error_rate", "process_cpu_seconds_total", "libipc_handler_seconds_count"] {
        value(&page, name, "api");
    }
    assert_eq!(value(&page, "libipc_restarts_total", "api").to_bits(), 0.0_f64.to_bits());
    let pid = ipcd.pid_of("api");
    signal(pid, Signal::SIGKILL);
    ipcd.wait_replaced("api", pid);
    let page = scrape(|| UnixStream::connect(&socket));
    assert_eq!(value(&page, "libipc_restarts_total", "api").to_bits(), 1.0_f64.to_bits());
    assert_eq!(value(&page, "libipc_unit_ready", "api").to_bits(), 1.0_f64.to_bits());

    let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
    ipcd.reload(&node(&port.to_string()));
    let page = scrape(|| TcpStream::connect(port));
    assert!(page.ends_with("# EOF\n"));
    assert!(!socket.exists());
    let (status, said) = ipcd.stop();
    assert_eq!(status.code(), Some(0), "{said:#?}");
}

/// Where Prometheus' own checker is installed, it is asked, too.
#[test]
fn promtool_finds_nothing_wrong() {
    let promtool = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".to_owned());
    let check = || {
        let mut command = Command::new(&promtool);
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn()
    };
    let Ok(mut check) = check() else { return eprintln!("not checked: no {promtool}") };
    let world = World::without_runtime(ACTOR);
    let socket = world.directory().join("metrics");
    let at = format!("unix:{}", socket.display());
    let ipcd = Ipcd::start(IPCD, world.directory(), &node(&at));
    ipcd.wait("api", "ready");
    let mut caller = world.actor(&[]);
    caller.ask("calls api 1 1000 8", "called");
    let mut stream = UnixStream::connect(&socket).expect("it listens");
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it listens");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("a page");
    let page = page.split_once("\r\n\r\n").expect("a body").1;
    check.stdin.take().expect("piped").write_all(page.as_bytes()).expect("it reads");
    let output = check.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn top_and_profile_tell_what_goes_on() {
    let world = World::new(ACTOR);
    let _server = world.server("echo", &[]);
    let mut caller = world.actor(&[]);
    caller.tell("calls echo 1 1000000000 8");
    let json = |text: &str| -> Value { serde_json::from_str(text).expect("JSON") };
    let mut top = Value::Null;
    wait_until("calls are seen", || {
        let (code, text) = ipctl(&world, &["top", "--once", "--interval", "50ms", "--json"]);
        assert_eq!(code, Some(0), "{text}");
        top = json(&text);
        top["channels"][0]["calls_per_second"].as_f64() > Some(0.0)
    });
    let channel = &top["channels"][0];
    assert_eq!(
        (&channel["service"], &channel["caller_pid"]),
        (&"echo".into(), &caller.pid().into())
    );
    let echo = top["processes"].as_array().into_iter().flatten().find(|it| it["name"] == "echo");
    let echo = echo.unwrap_or_else(|| panic!("no echo: {top:#}"));
    assert!(echo["memory_bytes"].as_u64() > Some(100_000), "{echo:#}");
    let (code, text) = ipctl(&world, &["top", "--once", "--interval", "50ms"]);
    assert!(code == Some(0) && text.contains("echo") && text.contains("CALLER"), "{text}");

    let (code, text) = ipctl(&world, &["profile", "echo", "--seconds", "0.2", "--json"]);
    assert_eq!(code, Some(0), "{text}");
    let profile = json(&text);
    let mean = |part: &str| profile[part]["mean_ns"].as_u64().expect("a number");
    assert!(profile["calls"].as_u64() > Some(0) && mean("call") > 0, "{profile:#}");
    assert_eq!(mean("call"), mean("queue") + mean("handler") + mean("wake"), "{profile:#}");
    let (code, text) = ipctl(&world, &["failover", "trigger", "echo", "--json"]);
    assert!(code == Some(4) && text.contains("nobody stands by for"), "{text}");
    let (code, text) = ipctl(&world, &["failover", "trigger", "nobody", "--json"]);
    assert!(code == Some(4) && text.contains("nobody serves"), "{text}");
    let (code, _) = ipctl(&world, &["profile", "nobody", "--seconds", "0.01"]);
    assert_eq!(code, Some(4));
    caller.kill();
}

#[test]
fn payloads_are_shown_where_the_node_file_says_and_never_of_encrypted_channels() {
    let world = World::without_runtime(ACTOR);
    let service = |(way, name): &(&str, &str)| {
        format!("[service.{name}]\nexecutable = \"{PROBE}\"\narguments = [\"{way}\", \"{name}\"]\n")
    };
    let services = [("relay", "api"), ("serve", "store"), ("serve", "vault")];
    let services = services.iter().map(service).collect::<Vec<_>>().concat();
    let rules = "[[rule]]\nfrom = \"service:api\"\nto = \"any\"\nallow = \"call\"\n\
        [[route]]\nfrom = \"any\"\nto = \"name:vault\"\nsession = \"encrypted\"\n";
    let node = services + rules + &open_to_all();
    let ipcd = Ipcd::start(IPCD, world.directory(), &node);
    for name in ["api", "store", "vault"] {
        ipcd.wait(name, "ready");
    }
    let trace = |name: &str| {
        let arguments = ["trace", name, "--payload", "7", "--seconds", "0.3", "--every", "1ms"];
        ipctl(&world, &[&arguments[..], &["--json"]].concat())
    };
    let (code, text) = trace("api");
    assert_eq!(code, Some(1));
    assert!(text.contains("payloads = [\\\"name:api\\\"]"), "it says what to write: {text}");
    let listed = "[monitor]\npayloads = [\"name:api\", \"name:v*\"]\n";
    ipcd.reload(&(listed.to_owned() + &node));
    ipcd.hear("sets monitor");
    let over = AtomicBool::new(false);
    let mut events = Value::Null;
    let caller = world.node(Spin::Never);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let client = caller.client(caller.wait_service("api", None).expect("served"));
            let client = client.expect("a channel");
            while !over.load(Ordering::Relaxed) {
                for what in ["call store", "call vault"] {
                    assert_eq!(client.call(what.as_bytes(), LONG).expect("an answer"), b"IPC_OK");
                }
            }
        });
        let handled = |events: &Value, name: &str| -> Vec<Value> {
            let all = events["traceEvents"].as_array().into_iter().flatten();
            let name = format!("handle {name}");
            all.filter(|it| it["name"] == name.as_str()).map(|it| it["args"].clone()).collect()
        };
        wait_until("all of a route is shown", || {
            let (code, text) = trace("api");
            assert_eq!(code, Some(0), "{text}");
            events = serde_json::from_str(&text).expect("JSON");
            let of = |name: &str, key: &str| {
                handled(&events, name).into_iter().any(|it| !it[key].is_null())
            };
            !handled(&events, "store").is_empty() && of("api", "answer") && of("vault", "payload")
        });
        over.store(true, Ordering::Relaxed);
        let shown = |name: &str, key: &str| -> Vec<Value> {
            let all = handled(&events, name).into_iter().map(|it| it[key].clone());
            all.filter(|it| !it.is_null()).collect()
        };
        let first = "call store".chars().take(7).collect::<String>();
        let asked = shown("api", "payload");
        assert!(asked.iter().any(|it| it["text"] == first.as_str() && it["length"] == 10));
        assert!(asked.iter().all(|it| it["hex"].as_str().is_some_and(|it| it.len() == 14)));
        assert_eq!(shown("api", "answer")[0]["text"], "IPC_OK");
        // One is not listed; what goes to the other is encrypted.
        assert_eq!((shown("store", "payload"), shown("store", "answer")), (vec![], vec![]));
        let secret = json!({ "encrypted": true, "length": 5 });
        assert!(shown("vault", "payload").iter().all(|it| *it == secret), "{events:#}");
    });
    // Nothing of it is left, and all of it is on record.
    let operator = world.node(Spin::Never);
    wait_until("what was shown is gone", || {
        let boards = operator.boards().expect("boards");
        boards.iter().all(|board| board.payloads().is_empty())
    });
    let (code, text) = ipctl(&world, &["audit", "show", "--last", "100000", "--json"]);
    assert_eq!(code, Some(0), "{text}");
    let records: Vec<Value> = serde_json::from_str(&text).expect("a list");
    let used: Vec<Value> = records.into_iter().filter(|it| it["operation"] == "payloads").collect();
    assert_eq!((&used[0]["kind"], &used[0]["verdict"]), (&json!("denial"), &json!(false)));
    let last = used.last().expect("records");
    assert_eq!((&last["kind"], &last["object"]), (&json!("admin"), &json!("name api")));
    assert_eq!(last["because"], "7 bytes each, for 300 ms; also of vault");
}
