//! Spans of the `tracing` crate in several processes: one trace, and each span below the right one.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use ipc::{
    Spin,
    trace::{self, Contexts, Placed},
};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{
    Actor, Ipcd, LONG, World,
    ipcd::{open_to_all, signal},
    wait_until,
};
use tracing::{Id, Subscriber, info_span};
use tracing_subscriber::{Layer, layer, prelude::*, registry::LookupSpan};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");
const PROBE: &str = env!("CARGO_BIN_EXE_probe");
const RELAY: &str = env!("CARGO_BIN_EXE_relay");

/// A span that has closed, and where it stood.
#[derive(Clone, Debug)]
struct Seen {
    pid: u32,
    name: String,
    trace: u128,
    span: u64,
    parent: u64,
}

impl Seen {
    /// Reads what a relay says.
    fn of(line: &str) -> Seen {
        let mut words = line.split(' ').skip(1);
        let mut word = || words.next().expect("six words");
        let (pid, name) = (word().parse().expect("a number"), word().to_owned());
        let trace = u128::from_str_radix(word(), 16).expect("hexadecimal");
        let mut id = || u64::from_str_radix(word(), 16).expect("hexadecimal");
        let (span, parent) = (id(), id());
        Seen { pid, name, trace, span, parent }
    }
}

/// Keeps the spans of this process.
#[derive(Clone, Default)]
struct Keep(Arc<Mutex<Vec<Seen>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Keep {
    fn on_close(&self, id: Id, context: layer::Context<'_, S>) {
        let span = context.span(&id).expect("it closes");
        let placed = span.extensions().get::<Placed>().copied();
        let Placed { context, parent } = placed.expect("every one is in a trace");
        let (name, pid) = (span.name().to_owned(), std::process::id());
        let seen = Seen { pid, name, trace: context.trace, span: context.span, parent };
        self.0.lock().expect("nobody panicked").push(seen);
    }
}

fn relay(world: &World, arguments: &[&str]) -> Actor {
    let mut relay = world.other(RELAY, arguments);
    relay.hear("serving");
    relay
}

#[test]
fn the_spans_of_a_chain_of_three_processes_are_one_trace() {
    let world = World::new(ACTOR);
    let mut back = relay(&world, &["back"]);
    let mut front = relay(&world, &["front", "back"]);
    let (_node, client) = world.client("front", Spin::Learned);
    let kept = Keep::default();
    let subscriber = tracing_subscriber::registry().with(Contexts::beginning()).with(kept.clone());
    tracing::subscriber::with_default(subscriber, || {
        let _order = info_span!("order").entered();
        assert_eq!(client.call(b"hello", LONG).expect("an answer"), b"hello");
    });
    assert_eq!(trace::current(), None);
    let mut all = kept.0.lock().expect("nobody panicked").clone();
    // Spans close from the inside out, and the last of a process closes after it has answered.
    for (process, spans) in [(&mut front, 3), (&mut back, 2)] {
        all.extend((0..spans).map(|_| Seen::of(&format!("span {}", process.hear("span")))));
    }
    let own = std::process::id();
    let of = |pid: u32, name: &str| {
        let found = all.iter().find(|it| it.pid == pid && it.name == name);
        found.unwrap_or_else(|| panic!("{name} of {pid}: {all:#?}")).clone()
    };
    let route = [
        of(own, "order"),
        of(own, "call"),
        of(front.pid(), "request"),
        of(front.pid(), "work"),
        of(front.pid(), "call"),
        of(back.pid(), "request"),
        of(back.pid(), "work"),
    ];
    assert_eq!((all.len(), route[0].parent), (route.len(), 0), "{all:#?}");
    for pair in route.windows(2) {
        assert_eq!(pair[1].trace, pair[0].trace, "{route:#?}");
        assert_eq!(pair[1].parent, pair[0].span, "{route:#?}");
    }
    // What is not asked for within a span is in no trace.
    client.call(b"again", LONG).expect("an answer");
    front.kill();
    back.kill();
}

#[test]
fn ipcd_tells_what_it_does_and_for_which_trace() {
    let world = World::without_runtime(ACTOR);
    let node = format!(
        "[service.api]\nexecutable = \"{PROBE}\"\narguments = [\"serve\", \"api\"]\n{}",
        open_to_all()
    );
    std::fs::write(world.directory().join("node.toml"), node).expect("written");
    let command = [IPCD, "--log", "info", "--log-format", "json"];
    let ipcd = Ipcd::unready(&command, world.directory());
    ipcd.hear("ready: ");
    let node = world.node(Spin::Learned);
    let id = node.wait_service("api", None).expect("served");
    let root = trace::Context::root();
    let client = trace::within(root, || node.client(id)).expect("a channel");
    signal(ipcd.pid(), Signal::SIGHUP);
    drop((client, node));
    let told = |name: &str| -> Vec<Value> {
        let lines = ipcd.said();
        // Each of its lines is JSON, whoever wrote it.
        let lines = lines.iter().map(|it| it.parse::<Value>().unwrap_or_else(|_| panic!("{it}")));
        lines.filter(|line| line["span"] == name).collect()
    };
    let of_trace = |line: &Value| line["trace_id"] == format!("{:032x}", root.trace);
    wait_until("the introduction is told", || told("introduction").iter().any(of_trace));
    let all = told("introduction");
    let introduction = all.iter().find(|line| of_trace(line)).expect("told");
    assert_eq!(introduction["parent_id"], format!("{:016x}", root.span));
    assert_eq!(introduction["fields"]["client_pid"], std::process::id());
    assert!(introduction["fields"]["channel"].as_u64() > Some(0), "{introduction}");
    // Others are in traces of their own.
    assert!(told("launch").iter().all(|line| line["fields"]["service"] == "api"));
    assert!(told("launch")[0]["parent_id"].is_null());
    wait_until("the reload is told", || !told("reload").is_empty());
    let own = |line: &Value| line["fields"]["pid"] == std::process::id();
    wait_until("the connection's end is told", || told("connection").iter().any(own));
}

/// The fields of a protobuf message: numbers, and what has a length.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let end = bytes.iter().position(|byte| byte & 0x80 == 0).expect("an end") + 1;
        let (number, rest) = bytes.split_at(end);
        *bytes = rest;
        number.iter().rev().fold(0, |sum, byte| sum << 7 | u64::from(byte & 0x7F))
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (value, rest) = bytes.split_at(length);
        found.push((key >> 3, value.to_vec()));
        bytes = rest;
    }
    found
}

/// What a message has under these numbers, one below the other; the first of each but the last.
fn below(message: &[u8], path: &[u64]) -> Vec<Vec<u8>> {
    let (first, rest) = path.split_first().expect("a number");
    let all = fields(message).into_iter().filter(|(number, _)| number == first);
    let all = all.map(|(_, value)| value);
    if rest.is_empty() { all.collect() } else { all.flat_map(|it| below(&it, rest)).collect() }
}

/// A collector: takes whatever is posted, and keeps it.
fn collector() -> (String, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = format!("http://{}", listener.local_addr().expect("bound"));
    let bodies: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let keep = Arc::clone(&bodies);
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
            let head: Vec<String> = reader
                .by_ref()
                .lines()
                .map_while(Result::ok)
                .take_while(|it| !it.is_empty())
                .collect();
            assert_eq!(head[0], "POST /v1/traces HTTP/1.1");
            assert!(head.iter().any(|it| it == "Content-Type: application/x-protobuf"));
            let length = head.iter().find_map(|it| it.strip_prefix("Content-Length: "));
            let mut body = vec![0; length.expect("a length").parse().expect("a number")];
            reader.read_exact(&mut body).expect("a body");
            keep.lock().unwrap_or_else(PoisonError::into_inner).push(body);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("sent");
        }
    });
    (place, bodies)
}

#[test]
fn a_collector_gets_the_spans_of_ipcd_and_commands_lead_to_launches() {
    let (place, bodies) = collector();
    let world = World::without_runtime(ACTOR);
    let service = format!(
        "[service.api]\nexecutable = \"{PROBE}\"\narguments = [\"serve\", \"api\"]\n{}",
        open_to_all()
    );
    let metrics = world.directory().join("metrics");
    let node_file =
        format!("metrics = \"unix:{}\"\n[monitor]\notlp = \"{place}\"\n", metrics.display())
            + &service;
    let ipcd = Ipcd::start(IPCD, world.directory(), &node_file);
    ipcd.wait("api", "ready");
    let node = world.node(Spin::Learned);
    let root = trace::Context::root();
    let restart = serde_json::json!({ "do": "restart", "name": "api" }).to_string();
    let answer = trace::within(root, || node.command(&restart, Some(LONG))).expect("an answer");
    assert_eq!(answer, "{}", "no error");
    // Name; trace, own id and the parent's.
    let spans = || -> Vec<(String, [Vec<u8>; 3])> {
        let bodies = bodies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let spans = bodies.iter().flat_map(|body| below(body, &[1, 2, 2]));
        let one = |span: &[u8], number| below(span, &[number]).pop().unwrap_or_default();
        let spans = spans.map(|it| {
            let name = String::from_utf8(one(&it, 5)).expect("text");
            (name, [one(&it, 1), one(&it, 2), one(&it, 4)])
        });
        spans.collect()
    };
    let of_trace = |name: &str| {
        let trace = root.trace.to_be_bytes();
        spans().into_iter().find(|it| it.0 == name && it.1[0] == trace)
    };
    wait_until("the command and its launch are sent", || {
        of_trace("command").is_some() && of_trace("launch").is_some()
    });
    let (command, launch) =
        (of_trace("command").expect("sent").1, of_trace("launch").expect("sent").1);
    let [[_, command, above], [trace, _, parent]] = [command, launch];
    assert_eq!((above, parent), (root.span.to_be_bytes().to_vec(), command));
    // The first start was nobody's command.
    let alone = spans().into_iter().find(|it| it.0 == "launch" && it.1[0] != trace);
    assert_eq!(alone.expect("sent").1[2], b"");
    // Whose they are, and that they are counted.
    let bodies = || bodies.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let names = below(&bodies()[0], &[1, 1, 1, 2, 1]);
    assert_eq!(names[0], b"ipcd");
    let mut page = String::new();
    wait_until("they are counted", || {
        let mut stream = std::os::unix::net::UnixStream::connect(&metrics).expect("served");
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("asked");
        page.clear();
        stream.read_to_string(&mut page).expect("a page");
        page.contains("libipc_spans_exported_total ")
    });
    assert!(page.contains("\nlibipc_spans_dropped_total 0\n"), "{page}");
    // Another node file, without a collector: nothing more is sent.
    ipcd.reload(&service);
    ipcd.hear("sets metrics, monitor");
    let other = trace::Context::root();
    let id = node.wait_service("api", None).expect("served");
    drop(trace::within(other, || node.client(id)).expect("a channel"));
    drop(node);
    // It sends what it has to before it ends.
    let (status, _) = ipcd.stop();
    assert!(status.success(), "{status}");
    assert!(spans().iter().all(|it| it.1[0] != other.trace.to_be_bytes()), "it had no collector");
}
