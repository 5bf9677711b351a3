//! Spans of the `tracing` crate in several processes: one trace, and each span below the right one.

use std::sync::{Arc, Mutex};

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
