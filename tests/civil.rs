//! What makes calls civil, over real channels.

use std::{thread, time::Duration};

use ipc::{
    CallError, CallOptions, Node, Request, Server, Spin,
    civil::{
        BreakerError, Channels, CircuitBreaker, CircuitState, CompressError, CompressedTransport,
        CompressionAlgorithm, ConnectionPool, Idempotency, ManualClock, MessageBatcher, PoolError,
        PoolSizes, RetryConfig, SystemClock, retry,
    },
};
use tests::{LONG, World, pattern, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// Serves a name in this process, while `body` runs.
fn serving(world: &World, handler: impl FnMut(Request<'_>) + Send, body: impl FnOnce(&Node)) {
    let node = world.node(Spin::Learned);
    let server: Server = node.server().expect("a server");
    server.register("here", 0).expect("registered");
    thread::scope(|scope| {
        scope.spawn(move || server.run(handler));
        body(&world.node(Spin::Learned));
        node.interrupter().fire();
    });
}

#[test]
fn compressed_messages_cross_a_channel_and_bombs_do_not() {
    let world = World::new(ACTOR);
    let transport = CompressedTransport::new(1000, CompressionAlgorithm::Zstd);
    let small = transport.limits(10_000, 1000);
    let handler = move |request: Request<'_>| {
        let upper = |message: &[u8]| message.to_ascii_uppercase();
        if let Err(CompressError::Bomb { .. }) = small.serve(&request, upper) {
            let _ = request.reply_error(ipc::Status::MESSAGE_SIZE);
        }
    };
    serving(&world, handler, |node| {
        let client = node.client(node.discover("here").expect("served")).expect("a channel");
        for message in [vec![], b"abc".to_vec(), b"abc".repeat(3000)] {
            let answer = transport.call(&client, &message, LONG).expect("answered");
            assert_eq!(answer, message.to_ascii_uppercase());
        }
        let bomb = transport.call(&client, &vec![0; 10_001], LONG).expect_err("refused");
        let refused = |status| status == ipc::Status::MESSAGE_SIZE;
        let CompressError::Call(CallError::Remote(status)) = bomb else { panic!("{bomb}") };
        assert!(refused(status));
    });
}

#[test]
fn a_handlers_calls_get_what_is_left_of_its_request() {
    let world = World::new(ACTOR);
    let handler = |request: Request<'_>| {
        let left = CallOptions::within(&request).expect("in time").timeout;
        let left = left.map_or(0, |left| left.as_nanos() as u64);
        request.reply(&left.to_le_bytes()).expect("it waits");
    };
    serving(&world, handler, |node| {
        let client = node.client(node.discover("here").expect("served")).expect("a channel");
        let left = |options: CallOptions| {
            let answer = client.call(&[], options).expect("answered");
            u64::from_le_bytes(answer.try_into().expect("8 bytes"))
        };
        assert_eq!(left(CallOptions::default()), 0, "for ever");
        let within = left(CallOptions::timeout(LONG));
        assert!(within > 0 && u128::from(within) <= LONG.as_nanos());
    });
}

/// A service dies: what may be repeated is, as soon as somebody serves again; a breaker opens
/// meanwhile, and closes by one call.
#[test]
fn a_service_that_comes_back_is_found_by_trying_again() {
    let world = World::new(ACTOR);
    let server = world.server("echo", &[]);
    let (_node, client) = world.client("echo", Spin::Learned);
    let clock = ManualClock::new();
    let breaker = CircuitBreaker::with_clock(2, Duration::from_secs(5), clock.clone());
    let call = || breaker.call(|| client.call(b"hello", LONG));
    call().expect("answered");
    server.kill();
    wait_until("the death is seen", || client.call(b"hello", LONG).is_err());
    for _ in 0..2 {
        assert!(matches!(call(), Err(BreakerError::Failed(_))));
    }
    assert!(matches!(call(), Err(BreakerError::Open(_))), "not called");

    let config = RetryConfig { max_attempts: u32::MAX, ..RetryConfig::default() };
    let (answer, _server) = thread::scope(|scope| {
        let again = scope.spawn(|| {
            retry(&config, Idempotency::Unknown, &SystemClock, |attempt| {
                client.call(b"hello", attempt.left)
            })
        });
        let server = world.server("echo", &[]);
        (again.join().expect("it does not panic"), server)
    });
    assert_eq!(answer.expect("found again"), b"hello");
    clock.advance(Duration::from_secs(5));
    call().expect("answered");
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[test]
fn a_batch_is_sent_in_one_burst() {
    let world = World::new(ACTOR);
    let mut numbers = Vec::new();
    let handler = |request: Request<'_>| {
        if request.is_one_way() {
            numbers.push(request.payload().to_vec());
        } else {
            request.reply(&numbers.concat()).expect("it waits");
        }
    };
    serving(&world, handler, |node| {
        let client = node.client(node.discover("here").expect("served")).expect("a channel");
        let send = |batch: Vec<Vec<u8>>| {
            let all = |burst: &mut ipc::Burst<'_>| batch.iter().try_for_each(|one| burst.send(one));
            client.burst(all).expect("sent");
        };
        let mut batcher = MessageBatcher::new(7, LONG);
        let message = pattern(100);
        for byte in &message {
            batcher.add(vec![*byte]).into_iter().for_each(send);
        }
        assert_eq!(batcher.len(), 100 % 7);
        send(batcher.flush());
        assert_eq!(client.call(&[], LONG).expect("answered"), message);
    });
}

#[test]
fn a_pool_lends_channels_and_replaces_those_whose_service_has_died() {
    let world = World::new(ACTOR);
    let server = world.server("pooled", &[]);
    let channels = Channels { config: world.config(Spin::Learned), patience: LONG };
    let sizes = PoolSizes { max_size: 2, health_interval: Duration::ZERO, ..PoolSizes::default() };
    let pool = ConnectionPool::new(channels, sizes);
    let first = pool.get("pooled", LONG).expect("a channel");
    let second = pool.get("pooled", LONG).expect("another");
    for client in [&first, &second] {
        assert_eq!(client.call(b"hello", LONG).expect("an answer"), b"hello");
    }
    wait_until("each has a channel of its own", || {
        let entries = world.node(Spin::Never).list().expect("a list");
        entries.iter().any(|it| it.name == "pooled" && it.channels == 2)
    });
    let none = pool.get("pooled", Duration::from_millis(1)).map(drop);
    assert!(matches!(none, Err(PoolError::TimedOut)), "{none:?}");
    drop((first, second));
    assert_eq!(pool.len("pooled"), (2, 2));
    server.kill();
    let _next = world.server("pooled", &[]);
    let fresh = pool.get("pooled", LONG).expect("one that works");
    assert_eq!(fresh.call(b"again", LONG).expect("an answer"), b"again");
}
