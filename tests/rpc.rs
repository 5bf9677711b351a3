//! Typed calls between processes: what is promised of `ipc::rpc` and of the code that `ipc-build`
//! makes, by threads and in tasks, each way.

use std::{sync::Arc, time::Duration};

use ipc::{
    Client, Node, Request, Retry, Spin, Status,
    bus::{EventBus, SubscribeOptions, TypedError},
    civil::{Failure as _, RetryConfig},
    control::SERVICE_IDEMPOTENT,
    rpc::{
        AsyncDispatch, AsyncRouter, Context, Dispatch, Fault, MessageBus, Method, MethodCollision,
        Router, RpcError, RpcOptions, Serving, Trace, prost, serve_unary, wire,
    },
};
use tests::{
    Actor, LONG, World, pattern,
    probe::{
        Announced, AsyncProbeClient, Colour, Counted, Failure, Failures, Item, Number, Onward,
        ProbeClient, Range, Seen, item, probe_methods,
    },
    wait_until,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const PROBER: &str = env!("CARGO_BIN_EXE_prober");

/// The services of `prober`, by threads and in tasks.
const SERVICES: [&str; 2] = ["probe", "probe.tasks"];

/// A world with a prober in it, and this process as a caller of both kinds.
struct Scene {
    node: Node,
    server: ipc::Server,
    runtime: Runtime,
    _prober: Actor,
    world: World,
}

fn prober(world: &World, arguments: &[&str]) -> Actor {
    let mut prober = world.other(PROBER, arguments);
    for service in SERVICES.into_iter().chain(["probe.small"]) {
        prober.hear(&format!("serving {service}"));
    }
    prober
}

impl Scene {
    fn new() -> Scene {
        Scene::of(&[])
    }

    fn of(arguments: &[&str]) -> Scene {
        let world = World::new(ACTOR);
        let prober = prober(&world, arguments);
        let node = world.node(Spin::Learned);
        let server = node.server().expect("a loop");
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let looping = server.clone();
        runtime.spawn(async move {
            let nobody = |_: Request<'_>| unreachable!("this process serves nobody");
            ipc::tokio::serve(&looping, nobody).await
        });
        Scene { node, server, runtime, _prober: prober, world }
    }

    fn raw(&self, service: &str) -> Client {
        client(&self.node, service)
    }

    /// Has it counted by one of two callers, with the method that may be repeated or the other.
    fn count(
        &self,
        (threads, tasks): (&ProbeClient, &AsyncProbeClient),
        kind: &str,
        method: &str,
        failures: &Failures,
        options: RpcOptions,
    ) -> Result<u32, Status> {
        let outcome = match (kind, method) {
            ("threads", "count") => threads.count(failures, options),
            ("threads", _) => threads.count_safely(failures, options),
            (_, "count") => self.runtime.block_on(tasks.count(failures, options)),
            (_, _) => self.runtime.block_on(tasks.count_safely(failures, options)),
        };
        outcome.map(|counted| counted.count).map_err(|error| error.status())
    }

    /// By threads, and in tasks.
    fn callers(&self, service: &str) -> (ProbeClient, AsyncProbeClient) {
        // One client's calls end in one server: the callers of a channel are of one kind.
        let tasks = AsyncProbeClient::new(self.server.clone(), self.raw(service));
        (ProbeClient::new(self.raw(service)), tasks)
    }
}

fn client(node: &Node, service: &str) -> Client {
    node.client(node.discover(service).expect("served")).expect("a channel")
}

fn items() -> Vec<Item> {
    let plain = |size| Item { data: pattern(size), ..Item::default() };
    let nested = Item {
        text: "größer".to_owned(),
        numbers: vec![i64::MIN, -1, 0, i64::MAX],
        items: vec![plain(3), plain(40)],
        choice: Some(item::Choice::Right(Colour::Red.into())),
        prices: [("a".to_owned(), 1.5)].into(),
        nested: Some(item::Nested { flag: true }),
        r#type: Some(0),
        ..Item::default()
    };
    [0, 1, 38, 39, 40, 1000, 100_000, 5_000_000].map(plain).into_iter().chain([nested]).collect()
}

#[test]
fn messages_come_back_by_threads_and_in_tasks_each_way() {
    let scene = Scene::new();
    for service in SERVICES {
        let (threads, tasks) = scene.callers(service);
        for item in items() {
            assert_eq!(threads.echo(&item, LONG).expect("answered"), item);
            let answer = scene.runtime.block_on(tasks.echo(&item, LONG));
            assert_eq!(answer.expect("answered"), item);
        }
    }
}

#[test]
fn a_fault_reaches_the_caller_as_it_is() {
    let scene = Scene::new();
    for service in SERVICES {
        let (threads, tasks) = scene.callers(service);
        for (status, retry) in [(-1001, Retry::Never), (-11, Retry::Idempotent), (0, Retry::Never)]
        {
            let failure = Failure { status, message: "why, précisément".to_owned() };
            let told = Fault {
                // Success cannot be a fault.
                status: if status == 0 { Status::INVALID } else { Status::from_code(status) },
                message: failure.message.clone(),
                retry,
            };
            let outcome = threads.fail(&failure, LONG);
            assert!(matches!(&outcome, Err(RpcError::Fault(fault)) if *fault == told));
            let outcome = scene.runtime.block_on(tasks.fail(&failure, LONG));
            assert!(matches!(&outcome, Err(RpcError::Fault(fault)) if *fault == told));
        }
    }
}

#[test]
fn a_message_bus_sends_and_asks_by_name() {
    let scene = Scene::new();
    let bus = MessageBus::new(&scene.node);
    for service in SERVICES {
        let item = Item { text: service.to_owned(), ..Item::default() };
        let answer: Item =
            bus.request(service, probe_methods::ECHO, &item, LONG).expect("answered");
        assert_eq!(answer, item);
        // One-way: carried out, in order, before what is asked behind it.
        let none = Failures { name: format!("bus {service}"), times: 0 };
        for _ in 0..3 {
            bus.send(service, probe_methods::COUNT, &none, LONG).expect("sent");
        }
        let counted = || bus.request::<Counted>(service, probe_methods::COUNT, &none, LONG);
        let counted = counted().expect("answered").count;
        assert!(counted >= 1, "tasks may overtake one another");
        if service == "probe" {
            assert_eq!(counted, 4);
        }
    }
    let nobody = bus.send("nobody", probe_methods::COUNT, &Failures::default(), LONG);
    assert!(nobody.is_err_and(|error| error.status() == Status::NOT_FOUND));
}

#[test]
fn a_message_of_a_proto_file_is_an_event_between_processes() {
    let scene = Scene::new();
    let mut other = scene.world.actor(&[]);
    other.ask("event-subscribe probe.announced now", "subscribed");
    let bus = EventBus::new(&scene.node);
    let heard = bus.subscribe::<Announced>(SubscribeOptions::default());
    let mut heard = heard.expect("subscribed");
    let said = Announced { text: "größer".to_owned(), number: 7 };
    bus.publish(&said).expect("published");
    assert_eq!(heard.recv(Some(LONG)).expect("an event"), said);
    // To who knows nothing of the type its bytes are protobuf's: field 1, a text.
    let bytes = prost::Message::encode_to_vec(&said);
    let first = u64::from_le_bytes(bytes[..8].try_into().expect("so many"));
    assert_eq!(other.ask("event-next probe.announced 60000", "event"), format!("0 {first}"));
    // And what is none of the type is said to be none.
    other.ask("event-advertise probe.announced", "advertised");
    other.ask("event-publish probe.announced 1 9", "published");
    assert!(matches!(heard.recv(Some(LONG)), Err(TypedError::Undecodable)));
}

/// Bytes by hand, as somebody without the library would write them.
#[test]
fn what_is_no_typed_call_is_answered_with_a_fault() {
    let scene = Scene::new();
    let [a, b, c, d] = probe_methods::ECHO.id.to_le_bytes();
    let table: [(&[u8], Status); 9] = [
        (&[], Status::INVALID),
        (&[a, b, c, d, 1, 0, 0], Status::INVALID),
        (&[a, b, c, d, 2, 0, 0, 0], Status::PROTOCOL),
        (&[a, b, c, d, 1, 0x80, 0, 0], Status::INVALID),
        (&[a, b, c, d, 1, 0, 0, 0, 0xFF], Status::INVALID),
        (&[99, 99, 99, 99, 1, 0, 0, 0], Status::NOT_SUPPORTED),
        (&[1, 0, 0, 0, 1, 0, 0, 0], Status::INVALID),
        (&[1, 0, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9], Status::NOT_FOUND),
        (&[a, b, c, d, 1, 0, 0, 0], Status::OK),
    ];
    for service in SERVICES {
        for (bytes, status) in table {
            let answer = scene.raw(service).call(bytes, LONG).expect("answered");
            let (head, text) = wire::AnswerHead::decode(&answer).expect("an answer");
            match head {
                wire::AnswerHead::Fault { status: told, .. } => {
                    assert_eq!(told, status, "{bytes:?}");
                    assert!(!text.is_empty());
                }
                head => assert_eq!((head, status), (wire::AnswerHead::Message, Status::OK)),
            }
        }
    }
}

/// The end of a stream of so many numbers, as threads and tasks see it.
fn read(scene: &Scene, service: &str, range: &Range) -> Vec<(u64, Option<Status>)> {
    let (threads, tasks) = scene.callers(service);
    let mut ends = Vec::new();
    let mut expected = range.from..;
    let mut error = None;
    for item in threads.numbers(range, LONG).expect("begun") {
        check(item, &mut expected, &mut error);
    }
    ends.push((expected.start, error.take()));
    let mut expected = range.from..;
    scene.runtime.block_on(async {
        let mut items = tasks.numbers(range, LONG).await.expect("begun");
        while let Some(item) = items.next().await {
            check(item, &mut expected, &mut error);
        }
        assert!(items.next().await.is_none(), "it stays at its end");
    });
    ends.push((expected.start, error));
    ends
}

fn check(
    item: Result<Number, RpcError>,
    expected: &mut std::ops::RangeFrom<u64>,
    error: &mut Option<Status>,
) {
    assert_eq!(*error, None, "an error is the last");
    match item {
        Ok(Number { number }) => assert_eq!(Some(number), expected.next()),
        Err(last) => *error = Some(last.status()),
    }
}

#[test]
fn a_stream_comes_in_its_order_and_ends_as_it_should() {
    let scene = Scene::new();
    let failure = Failure { status: -1002, message: "enough".to_owned() };
    for service in SERVICES {
        for to in [1, 2, 64, 65, 20_000] {
            let whole = Range { from: 1, to, failure: None };
            assert_eq!(read(&scene, service, &whole), [(to, None); 2]);
            let (threads, _) = scene.callers(service);
            let failing = Range { failure: Some(failure.clone()), ..whole };
            if to == 1 {
                let refused = threads.numbers(&failing, LONG).expect_err("the first fails");
                assert_eq!(refused.status().code(), -1002);
            } else {
                let end = (to, Some(Status::from_code(-1002)));
                assert_eq!(read(&scene, service, &failing), [end; 2]);
            }
        }
    }
}

#[test]
fn a_stream_that_is_dropped_is_let_go_by_the_service() {
    let scene = Scene::new();
    let endless = Range { from: 0, to: u64::MAX, failure: None };
    for service in SERVICES {
        let (threads, tasks) = scene.callers(service);
        let alive = || threads.undocumented(&Item::default(), LONG).expect("answered").count;
        let mut items = threads.numbers(&endless, LONG).expect("begun");
        assert!(items.by_ref().take(1000).all(|item| item.is_ok()));
        assert_eq!(alive(), 1);
        drop(items);
        wait_until("the service lets go of it", || alive() == 0);
        scene.runtime.block_on(async {
            let mut items = tasks.numbers(&endless, LONG).await.expect("begun");
            assert!(items.next().await.is_some_and(|item| item.is_ok()));
        });
        wait_until("the service lets go of it", || alive() == 0);
    }
}

#[test]
fn a_stream_belongs_to_who_began_it() {
    let scene = Scene::new();
    let endless = Range { from: 0, to: u64::MAX, failure: None };
    let begin = |client: &Client| {
        let mut sent = probe_methods::NUMBERS.id.to_le_bytes().to_vec();
        sent.extend([1, 0, 0, 0]);
        ipc::rpc::prost::Message::encode(&endless, &mut sent).expect("it grows");
        client.call(&sent, LONG).expect("begun")
    };
    for service in SERVICES {
        let mine = scene.raw(service);
        let answer = begin(&mine);
        let next = [&[1, 0, 0, 0, 1, 0, 0, 0], &answer[8..16]].concat();
        let other = scene.world.node(Spin::Learned);
        let refused = client(&other, service).call(&next, LONG).expect("answered");
        assert_eq!(refused[..4], Status::NOT_FOUND.code().to_le_bytes());
        let close = [&[2, 0, 0, 0, 1, 0, 0, 0], &answer[8..16]].concat();
        client(&other, service).call(&close, LONG).expect("answered");
        assert_eq!(mine.call(&next, LONG).expect("answered")[..6], [0, 0, 0, 0, 1, 3]);
        mine.call(&close, LONG).expect("answered");
        let gone = mine.call(&next, LONG).expect("answered");
        assert_eq!(gone[..4], Status::NOT_FOUND.code().to_le_bytes());
    }
}

#[test]
fn nobody_holds_too_many_streams() {
    let scene = Scene::new();
    let endless = Range { from: 0, to: u64::MAX, failure: None };
    for service in SERVICES {
        let (threads, _) = scene.callers(service);
        let mut held = Vec::new();
        let refused = loop {
            match threads.numbers(&endless, LONG) {
                Ok(items) => held.push(items),
                Err(error) => break error,
            }
            assert!(held.len() < 1000, "there is a limit");
        };
        assert_eq!((refused.status(), refused.retry()), (Status::QUOTA, Retry::Always));
        held.pop();
        wait_until("there is room again", || threads.numbers(&endless, LONG).is_ok());
    }
}

fn relayed(seen: Result<Seen, RpcError>, within: Option<Duration>) {
    let seen = seen.expect("answered");
    assert_eq!(seen.trace_id, [7; 16]);
    assert_eq!(seen.key, [0; 0], "a key is one call's");
    match within {
        None => assert_eq!(seen.left_us, None),
        Some(within) => {
            let left = seen.left_us.expect("it has a deadline");
            assert!(left > 0 && u128::from(left) <= within.as_micros());
        }
    }
}

#[test]
fn what_is_left_of_the_time_and_the_trace_pass_through_a_service() {
    let scene = Scene::new();
    let trace = Trace { trace_id: [7; 16], span_id: [8; 8], flags: 1 };
    for (first, second) in [(0, 1), (1, 0)] {
        let (threads, tasks) = scene.callers(SERVICES[first]);
        let onward = Onward { service: SERVICES[second].to_owned() };
        for within in [None, Some(LONG)] {
            let options = RpcOptions::from(within).trace(trace).key([9; 16]);
            relayed(threads.relay(&onward, options), within);
            relayed(scene.runtime.block_on(tasks.relay(&onward, options)), within);
        }
        let seen = threads.look(&Item::default(), RpcOptions::from(LONG).key([9; 16]));
        assert_eq!(seen.expect("answered").key, [9; 16]);
    }
}

#[test]
fn only_what_may_be_repeated_is_repeated() {
    let scene = Scene::new();
    let config = RetryConfig { base_delay: Duration::ZERO, ..RetryConfig::default() };
    for service in SERVICES {
        let (threads, tasks) = scene.callers(service);
        let (threads, tasks) = (threads.with_retry(config), tasks.with_retry(config));
        for kind in ["threads", "tasks"] {
            let count = |method: &str, options: RpcOptions| {
                let name = format!("{service} {kind} {method} {}", options.key.is_some());
                let failures = Failures { name, times: 2 };
                scene.count((&threads, &tasks), kind, method, &failures, options)
            };
            assert_eq!(count("count", LONG.into()), Err(Status::TIMED_OUT), "tried once");
            assert_eq!(count("count", LONG.into()), Err(Status::TIMED_OUT), "and once more");
            assert_eq!(count("count", LONG.into()), Ok(3));
            assert_eq!(count("count", RpcOptions::from(LONG).key([1; 16])), Ok(3));
            assert_eq!(count("count_safely", LONG.into()), Ok(3));
        }
    }
}

/// Has who serves die of a call, with another behind it, and says what the caller hears.
fn outcome_of_a_death(service: &str, kind: &str, method: &str) -> Result<u32, Status> {
    let scene = Scene::of(&["mortal"]);
    let _next = prober(&scene.world, &[]);
    let failures = Failures { name: "last words".to_owned(), times: 0 };
    let (threads, tasks) = scene.callers(service);
    wait_until("the caller has a channel to the next, and that one to the first", || {
        let entries = scene.node.list().expect("a list");
        let members = entries.iter().filter(|it| it.name == service);
        let channels = [1, 2].map(|rank| (rank, members.clone().find(|it| it.rank + 1 == rank)));
        channels.into_iter().all(|(rank, it)| it.is_some_and(|it| it.channels >= 3 - rank))
    });
    scene.count((&threads, &tasks), kind, method, &failures, LONG.into())
}

#[test]
fn a_method_that_may_be_repeated_goes_on_to_the_next_whatever_the_others_of_the_service_are() {
    for service in SERVICES {
        for kind in ["threads", "tasks"] {
            assert_eq!(
                outcome_of_a_death(service, kind, "count_safely"),
                Ok(1),
                "{service} {kind}"
            );
            let unsafely = outcome_of_a_death(service, kind, "count");
            assert_eq!(unsafely, Err(Status::MAYBE), "{service} {kind}");
        }
    }
}

#[test]
fn a_request_that_kills_whoever_takes_it_does_not_end_all_of_a_group() {
    for kind in ["threads", "tasks"] {
        let scene = Scene::of(&["mortal"]);
        let _others: Vec<Actor> = (0..4).map(|_| prober(&scene.world, &["mortal"])).collect();
        let members = || {
            let entries = scene.node.list().expect("a list");
            entries.into_iter().filter(|it| it.name == "probe").collect::<Vec<_>>()
        };
        let (threads, tasks) = scene.callers("probe");
        wait_until("the caller has a channel to the next", || {
            members().iter().any(|it| it.rank == 1 && it.channels >= 4)
        });
        let failures = Failures { name: "last words".to_owned(), times: 0 };
        let callers = (&threads, &tasks);
        let outcome = scene.count(callers, kind, "count_safely", &failures, LONG.into());
        assert_eq!(outcome, Err(Status::MAYBE), "{kind}");
        wait_until("the runtime has heard of the deaths", || members().len() == 2);
    }
}

#[test]
fn a_service_is_idempotent_when_all_its_methods_are() {
    struct Service(&'static [Method]);
    impl Dispatch for Service {
        fn methods(&self) -> &'static [Method] {
            self.0
        }

        fn dispatch(
            &self,
            _: u32,
            _: &ipc::rpc::Context,
            _: &[u8],
            _: &mut ipc::rpc::Answer,
        ) -> Option<Result<(), Fault>> {
            None
        }
    }
    const SAFE: &[Method] = &[probe_methods::ECHO, probe_methods::COUNT_SAFELY];
    const UNSAFE: &[Method] = &[probe_methods::COUNT];
    let safe = Router::new().with(Service(SAFE)).expect("alone");
    assert_eq!(safe.flags(), SERVICE_IDEMPOTENT);
    let both = safe.with(Service(UNSAFE)).expect("different");
    assert_eq!(both.flags(), 0);
    let twice = both.with(Service(SAFE)).expect_err("the same again");
    assert_eq!(twice, MethodCollision(probe_methods::ECHO, probe_methods::ECHO));
}

#[test]
fn an_answer_over_the_services_limit_is_a_fault_and_streams_keep_below_it() {
    let scene = Scene::new();
    let (small, _) = scene.callers("probe.small");
    let grow = |to| small.grow(&Range { to, ..Range::default() }, LONG);
    assert_eq!(grow(4000).expect("it fits").data.len(), 4000);
    let fault = grow(4096).expect_err("too large");
    assert!(matches!(&fault, RpcError::Fault(_)), "{fault}");
    assert_eq!((fault.status(), fault.retry()), (Status::MESSAGE_SIZE, Retry::Never));
    let range = Range { from: u64::MAX - 10_000, to: u64::MAX, failure: None };
    let items = small.numbers(&range, LONG).expect("begun");
    assert_eq!(items.flatten().count(), 10_000);
}

/// A service whose tasks wait until they are let go.
struct Slow(Arc<Semaphore>);

impl AsyncDispatch for Slow {
    fn methods(&self) -> &'static [Method] {
        &[probe_methods::ECHO]
    }

    fn dispatch(&self, _: u32, _: Context, body: &[u8]) -> Option<Serving> {
        let gate = Arc::clone(&self.0);
        Some(serve_unary(body, |item: Item| async move {
            let _passed = gate.acquire().await;
            Ok(item)
        }))
    }
}

#[test]
fn a_router_of_slow_tasks_keeps_no_more_than_its_limits() {
    const SENT: u64 = 1000;
    let scene = Scene::new();
    let gate = Arc::new(Semaphore::new(0));
    let router = AsyncRouter::new().with(Slow(Arc::clone(&gate))).expect("alone");
    let router = Arc::new(router.with_limits(20, 1 << 20));
    let server = scene.world.node(Spin::Never).server().expect("a server");
    server.register("slow", router.flags()).expect("registered");
    let serving = Arc::clone(&router);
    scene
        .runtime
        .spawn(async move { ipc::tokio::serve(&server, |request| serving.handle(request)).await });
    // One caller floods it, and has its half.
    let flood = scene.raw("slow");
    let [a, b, c, d] = probe_methods::ECHO.id.to_le_bytes();
    for _ in 0..SENT {
        flood.send(&[a, b, c, d, 1, 0, 0, 0], LONG).expect("taken in time");
    }
    wait_until("what is too much is refused", || router.refused() == SENT - 10);
    let call = |client: Client| {
        ProbeClient::new(client).echo(&Item::default(), LONG).map(drop).map_err(|it| it.status())
    };
    assert_eq!(call(scene.raw("slow")), Err(Status::FULL));
    // Another caller has room still, and all have once the tasks are done.
    let other = scene.world.node(Spin::Never);
    let waits = client(&other, "slow");
    let waiter = std::thread::spawn(move || call(waits));
    assert_eq!(router.refused(), SENT - 9);
    gate.add_permits(1);
    assert_eq!(waiter.join().expect("no panic"), Ok(()));
    wait_until("there is room again", || call(scene.raw("slow")).is_ok());
}
