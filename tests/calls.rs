//! Calls between two nodes over a real runtime: what is promised of each kind of call.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use ipc::{CallError, CallOptions, Config, Node, Priority, Spin, Status};
use tests::{House, LONG, pattern};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn payloads_of_every_kind_of_size_come_back() {
    for spin in [Spin::Learned, Spin::Never] {
        let house = House::echo(&Config { spin, ..Config::default() });
        let client = house.client();
        let sizes = [0, 1, 7, 8, 47, 48, 49, 63, 64, 65, 255, 1024, 4095, 4096, 4136, 4137, 8192];
        for size in sizes.into_iter().chain([20_000, 100_000, 1 << 20, 5 << 20]) {
            let payload = pattern(size);
            assert!(client.call(&payload, LONG).expect("answered") == payload, "{size} bytes");
        }
        let mut small = [0; 10];
        assert_eq!(client.call_into(b"0123456789", &mut small, LONG).expect("fits"), 10);
        let refused = client.call_into(b"0123456789A", &mut small, LONG);
        assert!(matches!(refused, Err(CallError::TooLarge { size: 11, limit: 10 })));
        assert_eq!(client.call_into(b"again", &mut small, LONG).expect("goes on"), 5);
    }
}

#[test]
fn every_priority_is_served_at_every_size() {
    let house = House::echo(&Config::default());
    let client = house.client();
    for level in 0..5 {
        let priority = Priority::from_level(level).expect("a level");
        for size in [0, 48, 64, 1024, 3000, 50_000] {
            let options = CallOptions::timeout(LONG).priority(priority);
            let payload = pattern(size);
            assert!(client.call(&payload, options).expect("answered") == payload);
        }
    }
    assert!(client.ping(LONG).expect("alive") < LONG);
}

#[test]
fn many_calls_are_outstanding_and_answered_in_any_order() {
    let house = House::echo(&Config::default());
    let client = house.client();
    let pending: Vec<_> =
        (0..200_u64).map(|n| client.start(&n.to_le_bytes(), LONG).expect("sent")).collect();
    for (n, call) in pending.into_iter().enumerate().rev() {
        assert_eq!(call.wait().expect("answered"), (n as u64).to_le_bytes());
    }
    let held: Vec<_> = (0..256).map(|_| client.start(b"", LONG).expect("room")).collect();
    assert!(matches!(client.start(b"", LONG), Err(CallError::Full)));
    drop(held);
    assert!(client.call(b"free again", LONG).is_ok());
}

#[test]
fn many_threads_share_a_channel() {
    for spin in [Spin::Learned, Spin::Never] {
        let house = House::echo(&Config { spin, ..Config::default() });
        let client = house.client();
        let threads: Vec<_> = (0..8_u64)
            .map(|thread| {
                let client = client.clone();
                std::thread::spawn(move || {
                    for n in 0..500_u64 {
                        let size = (n % 7 * 40) as usize;
                        let mut payload = pattern(size + 16);
                        payload[..8].copy_from_slice(&thread.to_le_bytes());
                        payload[8..16].copy_from_slice(&n.to_le_bytes());
                        assert!(client.call(&payload, LONG).expect("answered") == payload);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no panic");
        }
    }
}

#[test]
fn many_clients_and_many_serving_threads() {
    let house =
        House::with(&Config::default(), 3, |request| request.reply(request.payload()).expect("ok"));
    let threads: Vec<_> = (0..12)
        .map(|_| {
            let directory = house.directory().to_owned();
            std::thread::spawn(move || {
                let config = Config { runtime_dir: Some(directory), ..Config::default() };
                let node = Node::connect(&config).expect("a node");
                let client = node.client(node.discover("echo").expect("served")).expect("opened");
                for n in 0..200_usize {
                    let payload = pattern(n);
                    assert!(client.call(&payload, LONG).expect("answered") == payload);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
}

static RECEIVED: AtomicU64 = AtomicU64::new(0);

#[test]
fn one_way_messages_arrive_in_order_and_none_is_lost() {
    let house = House::with(&Config::default(), 1, |request| {
        if request.is_one_way() {
            let n = u64::from_le_bytes(request.payload()[..8].try_into().expect("8 bytes"));
            assert_eq!(n, RECEIVED.fetch_add(1, Ordering::Relaxed));
        } else {
            request.reply(&RECEIVED.load(Ordering::Relaxed).to_le_bytes()).expect("replied");
        }
    });
    let client = house.client();
    let mut n = 0_u64;
    for _ in 0..20 {
        client
            .burst(|burst| {
                for _ in 0..1000 {
                    burst.send(&pattern_of(n))?;
                    n += 1;
                }
                Ok(())
            })
            .expect("sent");
        client.send(&pattern_of(n), CallOptions::default()).expect("sent");
        n += 1;
        let count = client.call(b"", LONG).expect("answered");
        assert_eq!(count, n.to_le_bytes());
    }
}

fn pattern_of(n: u64) -> Vec<u8> {
    let mut payload = pattern(8 + (n % 90) as usize);
    payload[..8].copy_from_slice(&n.to_le_bytes());
    payload
}

#[test]
fn a_handler_that_does_not_answer_fails_the_call_at_once() {
    let house = House::with(&Config::default(), 1, |request| drop(request));
    let refused = house.client().call(b"hello", LONG);
    assert!(matches!(refused, Err(CallError::Remote(Status::NO_REPLY))));
}

#[test]
fn errors_of_the_service_reach_the_caller_unchanged() {
    let house = House::with(&Config::default(), 1, |request| {
        request.reply_error(Status::from_code(-1234)).expect("sent");
        assert!(matches!(request.reply(b""), Err(CallError::AlreadyAnswered)));
    });
    match house.client().call(b"hello", LONG) {
        Err(CallError::Remote(status)) => assert_eq!(status.code(), -1234),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_retained_request_is_answered_from_another_thread() {
    let house = House::with(&Config::default(), 1, |request| {
        let retained = request.retain();
        std::thread::spawn(move || retained.reply(retained.payload()).expect("replied"));
    });
    assert_eq!(house.client().call(b"later", LONG).expect("answered"), b"later");
}

#[test]
fn a_deadline_ends_a_call_that_nobody_answers() {
    let house = House::with(&Config::default(), 1, |request| {
        let retained = request.retain();
        if retained.payload() == b"keep" {
            std::mem::forget(retained);
        }
    });
    let client = house.client();
    let late = client.call(b"keep", Duration::from_millis(20));
    assert!(matches!(late, Err(CallError::TimedOut)));
    let refused = client.call(b"drop", LONG);
    assert!(matches!(refused, Err(CallError::Remote(Status::NO_REPLY))));
}

#[test]
fn callbacks_run_in_the_loop_exactly_once() {
    let house = House::echo(&Config::default());
    let client = house.client();
    let port = house.client.server().expect("a loop");
    let (tell, told) = mpsc::channel();
    let tell = Arc::new(tell);
    for n in 0..100_u64 {
        let tell = Arc::clone(&tell);
        client
            .call_async(&port, &n.to_le_bytes(), LONG, move |outcome| {
                assert!(ipc::in_handler());
                tell.send(outcome.expect("answered")).expect("told");
            })
            .expect("sent");
    }
    let mut done = 0;
    while done < 100 {
        done += port.poll(Some(SECOND), &mut |_| unreachable!("no requests here")).expect("polled");
    }
    let mut answers: Vec<_> = told.try_iter().collect();
    answers.sort_unstable();
    let mut expected: Vec<_> = (0..100_u64).map(|n| n.to_le_bytes().to_vec()).collect();
    expected.sort_unstable();
    assert_eq!(answers, expected);
}

#[test]
fn a_callback_hears_of_deadlines_and_cancellation() {
    let house = House::with(&Config::default(), 1, |request| std::mem::forget(request.retain()));
    let client = house.client();
    let port = house.client.server().expect("a loop");
    let (tell, told) = mpsc::channel();
    let start = |options: CallOptions| {
        let tell = tell.clone();
        client
            .call_async(&port, b"x", options, move |outcome| {
                tell.send(outcome.expect_err("no answer").status()).expect("told");
            })
            .expect("sent")
    };
    start(CallOptions::timeout(Duration::from_millis(10)));
    let forever = start(CallOptions::default());
    let mut done = 0;
    while done < 1 {
        done += port.poll(None, &mut |_| {}).expect("polled");
    }
    assert_eq!(told.recv().expect("told"), Status::TIMED_OUT);
    assert!(client.cancel(forever));
    assert!(!client.cancel(forever));
    while done < 2 {
        done += port.poll(None, &mut |_| {}).expect("polled");
    }
    assert_eq!(told.recv().expect("told"), Status::CANCELED);
}

static HELD: AtomicU64 = AtomicU64::new(0);

#[test]
fn a_server_that_goes_ends_the_calls_waiting_on_it() {
    let house = House::with(&Config::default(), 1, |request| {
        std::mem::forget(request.retain());
        HELD.store(1, Ordering::Release);
    });
    let client = house.client();
    let waiting = client.clone();
    let caller = std::thread::spawn(move || waiting.call(b"held", CallOptions::default()));
    while HELD.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    drop(house);
    let ended = caller.join().expect("no panic");
    assert!(matches!(ended, Err(CallError::PeerDied { taken: true })), "{ended:?}");
}

#[test]
fn an_interruption_ends_a_blocked_call() {
    let house = House::with(&Config::default(), 1, |request| std::mem::forget(request.retain()));
    let client = house.client();
    let waiting = client.clone();
    let caller = std::thread::spawn(move || waiting.call(b"held", CallOptions::default()));
    let interrupter = house.client.interrupter();
    while !caller.is_finished() {
        interrupter.fire();
        std::thread::yield_now();
    }
    assert!(matches!(caller.join().expect("no panic"), Err(CallError::Canceled)));
}

/// What one batch leaves in the run queue is served without another frame coming.
#[test]
fn low_priorities_are_served_to_the_last() {
    let house = House::echo(&Config::default());
    let client = house.client();
    let options = CallOptions::timeout(LONG).priority(Priority::Background);
    let pending: Vec<_> =
        (0..200_u64).map(|n| client.start(&n.to_le_bytes(), options).expect("sent")).collect();
    for (n, call) in pending.into_iter().enumerate() {
        assert_eq!(call.wait().expect("answered"), (n as u64).to_le_bytes());
    }
}

#[test]
fn the_descriptor_is_readable_when_there_is_work_and_only_then() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let house = House::with(&Config::default(), 0, |_| {});
    let port = house.server.server().expect("a server");
    port.register("foreign", 0).expect("registered");
    let readable = |timeout: PollTimeout| {
        let mut fds = [PollFd::new(port.fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).expect("polled") == 1
    };
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let config =
                Config { runtime_dir: Some(house.directory().to_owned()), ..Config::default() };
            std::thread::spawn(move || {
                let node = Node::connect(&config).expect("a node");
                let id = node.discover("foreign").expect("served");
                let client = node.client(id).expect("a channel");
                for n in 0..200_u32 {
                    let answer = client.call(&n.to_le_bytes(), LONG).expect("answered");
                    assert_eq!(answer, n.to_le_bytes());
                }
            })
        })
        .collect();
    let mut handled = 0;
    while handled < 600 {
        assert!(readable(PollTimeout::NONE));
        handled += port
            .poll(Some(Duration::ZERO), &mut |request| {
                request.reply(request.payload()).expect("replied");
            })
            .expect("polled");
    }
    for client in clients {
        client.join().expect("no panic");
    }
    // The channels close; once that is taken note of, nothing is left to do.
    while readable(PollTimeout::ZERO) {
        assert_eq!(port.poll(Some(Duration::ZERO), &mut |_| {}).expect("polled"), 0);
    }
}

#[test]
fn every_loop_hears_an_interruption() {
    let house = House::with(&Config::default(), 4, |request| request.reply(b"").expect("replied"));
    let client = house.client();
    for _ in 0..100 {
        client.call(b"x", LONG).expect("answered");
    }
    house.server.interrupter().fire();
    while house.running() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_deadline_of_hours_is_no_deadline_of_the_past() {
    let house = House::echo(&Config::default());
    let client = house.client();
    for hours in [1, 2, 24] {
        let timeout = Duration::from_secs(hours * 3600);
        assert_eq!(client.call(b"patient", timeout).expect("answered"), b"patient");
    }
}

#[test]
fn what_is_over_the_receivers_limit_is_refused_and_the_channel_goes_on() {
    let small = Config { max_payload: 1000, ..Config::default() };
    let house = House::echo(&small);
    let node = Node::connect(&Config {
        runtime_dir: Some(house.directory().to_owned()),
        ..Config::default()
    })
    .expect("a node");
    let client = node.client(node.discover("echo").expect("served")).expect("a channel");
    for size in [1001, 3000, 100_000] {
        let refused = client.call(&pattern(size), LONG);
        assert!(matches!(refused, Err(CallError::Remote(Status::MESSAGE_SIZE))), "{refused:?}");
        assert_eq!(client.call(b"small", LONG).expect("answered"), b"small");
    }
}

/// Two clients that never pause keep neither a third nor an interruption from being heard.
#[test]
fn a_steady_load_starves_nobody() {
    let house = House::with(&Config::default(), 1, |request| {
        if !request.is_one_way() {
            request.reply(request.payload()).expect("replied");
        }
    });
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flooders: Vec<_> = (0..2)
        .map(|_| {
            let (client, done) = (house.other_client(), Arc::clone(&done));
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    client
                        .burst(|burst| (0..200).try_for_each(|_| burst.send(b"more")))
                        .expect("sent");
                }
            })
        })
        .collect();
    for _ in 0..5 {
        assert_eq!(house.other_client().call(b"heard", LONG).expect("answered"), b"heard");
    }
    done.store(true, Ordering::Relaxed);
    for flooder in flooders {
        flooder.join().expect("no panic");
    }
}

#[test]
fn callbacks_on_several_channels_keep_their_deadlines() {
    let house = House::with(&Config::default(), 1, |request| std::mem::forget(request.retain()));
    let port = house.client.server().expect("a loop");
    let second = house.server.server().expect("a server");
    second.register("second", 0).expect("registered");
    let other = house.client.client(house.client.discover("second").expect("served"));
    let (tell, told) = mpsc::channel();
    for (client, ms) in [(house.client(), 30), (other.expect("a channel"), 5)] {
        let tell = tell.clone();
        client
            .call_async(&port, b"x", Duration::from_millis(ms), move |outcome| {
                tell.send(outcome.expect_err("no answer").status()).expect("told");
            })
            .expect("sent");
    }
    let mut done = 0;
    while done < 2 {
        done += port.poll(None, &mut |_| {}).expect("polled");
    }
    assert!(told.try_iter().all(|status| status == Status::TIMED_OUT));
}
