//! Traces that cross processes: who carries them on, what is written down, what operators see.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use ipc::{
    Board, Node, Span,
    SpanKind::{Call, Handler},
    Spin,
    trace::{self, Context},
};
use serde_json::Value;
use tests::{LONG, World, pattern, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// A service of this process: it asks another one, and passes the answer on.
struct Front {
    node: Node,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    fn start(world: &World, name: &str, asks: &str) -> Front {
        let node = world.node(Spin::Learned);
        let client =
            node.client(node.wait_service(asks, None).expect("served")).expect("a channel");
        let server = node.server().expect("a server");
        server.register(name, 0).expect("registered");
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let _ = server.poll(None, &mut |request| {
                    // What was sent is what arrives, whatever travels before it.
                    let answer = client.call(request.payload(), LONG).expect("an answer");
                    // A caller that was killed takes none.
                    let _ = request.reply(&answer);
                });
            }
        });
        Front { node, over, thread: Some(thread) }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.node.interrupter().fire();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What is written down of a trace, by any process, in the order of beginning.
fn spans(node: &Node, trace: u128) -> Vec<(u32, Span)> {
    let boards = node.boards().expect("boards");
    let all = boards.iter().flat_map(|board| board.spans().into_iter().map(|it| (board.pid, it)));
    let mut spans: Vec<_> = all.filter(|(_, span)| span.context.trace == trace).collect();
    spans.sort_by_key(|(_, span)| span.start_ns);
    spans
}

#[test]
fn a_trace_goes_from_a_caller_through_a_handler_to_what_that_calls() {
    let world = World::new(ACTOR);
    let back = world.server("back", &[]);
    let front = Front::start(&world, "front", "back");
    let (node, client) = world.client("front", Spin::Learned);
    assert_eq!(client.call(b"untraced", LONG).expect("an answer"), b"untraced");
    // In the cell, in the slab, in pieces, and what would else be lent.
    for size in [0, 8, 16, 17, 48, 100, 5000, 20_000, 300_000] {
        let root = Context::root();
        let payload = pattern(size);
        let answer = trace::within(root, || client.call(&payload, LONG)).expect("an answer");
        assert!(answer == payload, "{size} bytes");
        let mut all = Vec::new();
        wait_until("all is written down", || {
            all = spans(&node, root.trace);
            all.len() >= 4
        });
        let kinds: Vec<_> = all.iter().map(|(_, span)| span.kind).collect();
        assert_eq!(kinds, [Call, Handler, Call, Handler], "{all:#?}");
        let pids: Vec<u32> = all.iter().map(|(pid, _)| *pid).collect();
        let own = std::process::id();
        assert_eq!(pids, [own, own, own, back.pid()]);
        assert_eq!(all[0].1.parent, root.span);
        for pair in all.windows(2) {
            assert_eq!(pair[1].1.parent, pair[0].1.context.span, "{all:#?}");
        }
        assert!(all.iter().all(|(_, span)| span.bytes == size as u64 && span.status == 0));
        // Of the handlers nothing is known but that their calls began before them.
        assert!(all.iter().all(|(_, span)| span.duration_ns > 0), "{all:#?}");
    }
    // Both ends count payloads, and nothing of what goes before them.
    assert_eq!(client.stats().bytes_sent, client.stats().bytes_received);
    // Others than requests and messages carry none.
    trace::within(Context::root(), || client.ping(LONG)).expect("an answer");
    // Of a one-way message there is the handler only, for what sent it.
    let root = Context::root();
    let (node, client) = (front.node.clone(), world.client("back", Spin::Learned).1);
    trace::within(root, || client.send(b"an event", LONG)).expect("room");
    let mut all = Vec::new();
    wait_until("it is written down", || {
        all = spans(&node, root.trace);
        !all.is_empty()
    });
    let [(pid, span)] = all[..] else { panic!("{all:#?}") };
    assert!(span.is_one_way && pid == back.pid() && span.parent == root.span);
}

#[test]
fn an_operator_sees_which_calls_the_requests_of_a_service_lead_to() {
    let world = World::new(ACTOR);
    let back = world.server("back", &[]);
    let _front = Front::start(&world, "front", "back");
    let mut caller = world.actor(&[]);
    caller.tell("calls front 1 1000000000 8");
    let ipctl = Path::new(ACTOR).with_file_name("ipctl");
    assert!(ipctl.exists(), "build it first: cargo build -p ipctl");
    let mut events = Value::Null;
    let each = |events: &Value, phase: &str| -> Vec<Value> {
        let all = events["traceEvents"].as_array().into_iter().flatten();
        all.filter(|event| event["ph"] == phase).cloned().collect()
    };
    wait_until("a whole route is seen", || {
        let mut command = Command::new(&ipctl);
        command.args(["trace", "front", "--seconds", "0.2", "--every", "1ms", "--json"]);
        command.arg("--runtime-dir").arg(world.directory()).stdin(Stdio::null());
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        events = serde_json::from_slice(&output.stdout).expect("JSON");
        each(&events, "f").iter().any(|arrow| arrow["pid"] == back.pid())
    });
    let spans = each(&events, "X");
    let handled = spans.iter().find(|it| it["name"] == "handle back").expect("the last of a route");
    let text = handled["args"]["traceparent"].as_str().expect("a context");
    let trace = &text[..36];
    let route: Vec<&str> = spans
        .iter()
        .filter(|it| it["args"]["traceparent"].as_str().is_some_and(|it| it.starts_with(trace)))
        .filter_map(|it| it["name"].as_str())
        .collect();
    assert_eq!(route, ["handle front", "call back", "handle back"]);
    caller.kill();
    // The order was for a time; nothing is traced for ever.
    let (node, client) = world.client("front", Spin::Learned);
    let newest = || {
        let boards = node.boards().expect("boards");
        boards.iter().flat_map(Board::spans).map(|span| span.start_ns).max()
    };
    wait_until("the order is over", || {
        let before = newest();
        // More than one in 64, so that one would be traced.
        (0..500).for_each(|_| assert!(client.call(b"x", LONG).is_ok()));
        newest() == before
    });
}

#[test]
fn bursts_loans_tasks_and_other_threads_carry_traces() {
    let world = World::new(ACTOR);
    let back = world.server("back", &[]);
    let (node, client) = world.client("back", Spin::Learned);
    let seen = |trace: u128, count: usize| {
        let mut all = Vec::new();
        wait_until("all is written down", || {
            all = spans(&node, trace);
            all.len() >= count
        });
        assert_eq!(all.len(), count, "{all:#?}");
        all.into_iter().filter(|(_, span)| span.kind == Handler).map(|(_, span)| span)
    };
    // A burst: each of its messages, of the cell and of the slab.
    let root = Context::root();
    trace::within(root, || {
        client.burst(|burst| [8, 100, 5000].iter().try_for_each(|size| burst.send(&pattern(*size))))
    })
    .expect("sent");
    let sizes: Vec<u64> = seen(root.trace, 3).map(|span| span.bytes).collect();
    assert_eq!(sizes, [8, 100, 5000]);
    // Memory that the program lent, in a call and in a one-way message.
    let root = Context::root();
    trace::within(root, || {
        let payload = pattern(200_000);
        let mut loan = client.loan(payload.len()).expect("memory");
        loan.copy_from_slice(&payload);
        assert!(client.call_loaned(loan, LONG).expect("an answer").to_vec() == payload);
        let mut loan = client.loan(payload.len()).expect("memory");
        loan.copy_from_slice(&payload);
        client.send_loaned(loan, LONG).expect("room");
    });
    let handlers: Vec<Span> = seen(root.trace, 3).collect();
    assert_eq!(handlers.iter().map(|it| it.bytes).collect::<Vec<_>>(), [200_000; 2]);
    assert_eq!(handlers[1].parent, root.span);
    // A thread of the program's own.
    let root = Context::root();
    let (client, of_thread) = (client.clone(), client.clone());
    let thread = std::thread::spawn(move || {
        let _scope = root.enter();
        of_thread.call(b"from a thread", LONG).expect("an answer");
    });
    thread.join().expect("no panic");
    assert_eq!(seen(root.trace, 2).count(), 1);
    // A task, on any thread of its runtime; small, and such that it is lent.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let server = node.server().expect("a server");
    let looping = server.clone();
    runtime.spawn(async move { ipc::tokio::serve(&looping, |_| {}).await });
    for size in [8, 200_000] {
        let root = Context::root();
        let (server, client) = (server.clone(), client.clone());
        let call = async move {
            tokio::task::yield_now().await;
            ipc::tokio::call(&server, &client, &pattern(size), LONG).await
        };
        let answer = runtime.block_on(runtime.spawn(trace::task(Some(root), call)));
        assert!(answer.expect("no panic").expect("an answer") == pattern(size));
        assert_eq!(seen(root.trace, 2).next().expect("a handler").bytes, size as u64);
    }
    let counted = client.stats();
    assert_eq!((counted.errors, counted.drops), (0, 0));
    node.interrupter().fire();
    back.kill();
}

#[test]
fn who_answers_later_goes_on_with_the_trace() {
    let world = World::new(ACTOR);
    let back = world.server("back", &[]);
    let node = world.node(Spin::Learned);
    let to_back = node.client(node.discover("back").expect("served")).expect("a channel");
    let server = node.server().expect("a server");
    server.register("late", 0).expect("registered");
    let serving = std::thread::spawn(move || {
        let _ = server.run(|request| {
            let (request, to_back) = (request.retain(), to_back.clone());
            std::thread::spawn(move || {
                let context = request.trace().expect("it is traced");
                let answer = trace::within(context, || to_back.call(request.payload(), LONG));
                request.reply(&answer.expect("an answer")).expect("it waits");
            });
        });
    });
    let (_other, client) = world.client("late", Spin::Learned);
    let root = Context::root();
    trace::within(root, || client.call(b"late", LONG)).expect("an answer");
    let mut all = Vec::new();
    wait_until("all is written down", || {
        all = spans(&node, root.trace);
        all.len() == 4
    });
    let of = |kind, parent| {
        let found = all.iter().find(|(_, it)| it.kind == kind && it.parent == parent);
        found.unwrap_or_else(|| panic!("{all:#?}")).1.context.span
    };
    of(Handler, of(Call, of(Handler, of(Call, root.span))));
    node.interrupter().fire();
    serving.join().expect("no panic");
    back.kill();
}
