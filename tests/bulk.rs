//! Messages in bulk memory: loans, views, copies that go the same way, and the way through the ring
//! when there is no room for them.

use std::sync::{Arc, Mutex, mpsc};

use ipc::{CallError, Config, Loan, Request, Spin, Status, View};
use tests::{House, LONG, World, pattern, wait_until};

const MIB: usize = 1 << 20;

fn filled(mut loan: Loan) -> Loan {
    let payload = pattern(loan.len());
    loan.copy_from_slice(&payload);
    loan
}

#[test]
fn a_loan_is_read_where_it_lies() {
    let house = House::serving(&Config::default(), |request| {
        let view = request.view().expect("in bulk");
        let mut ends = [0; 8];
        assert_eq!(view.read_at(0, &mut ends[..4]), 4);
        assert_eq!(view.read_at(view.len() - 4, &mut ends[4..]), 4);
        assert_eq!(view.read_at(view.len() - 1, &mut [0; 4]), 1);
        assert_eq!(view.read_at(view.len() + 9, &mut [0; 4]), 0);
        request.reply(&ends).expect("answered");
    });
    let client = house.client();
    for size in [16, 100, 4096, MIB, 8 * MIB] {
        let payload = pattern(size);
        let answer = client.call_loaned(filled(client.loan(size).expect("lent")), LONG);
        let answer = answer.expect("answered").into_vec();
        assert_eq!(answer, [&payload[..4], &payload[size - 4..]].concat());
    }
}

#[test]
fn a_response_may_be_lent_too() {
    let house = House::serving(&Config::default(), |request| {
        let size = usize::from_le_bytes(request.payload().try_into().expect("eight bytes"));
        request.reply_loaned(filled(request.loan(size).expect("lent"))).expect("answered");
    });
    let client = house.client();
    for size in [1, MIB, 3 * MIB] {
        let lent = client.call_view(&size.to_le_bytes(), LONG).expect("answered");
        assert!(lent.is_lent() && lent.len() == size && !lent.is_empty());
        assert!(lent.to_vec() == pattern(size));
        // Into private memory, by the ways that know nothing of loans.
        assert!(client.call(&size.to_le_bytes(), LONG).expect("answered") == pattern(size));
        let mut buffer = vec![0; size];
        client.call_into(&size.to_le_bytes(), &mut buffer, LONG).expect("fits");
        assert!(buffer == pattern(size));
        let small = client.call_into(&size.to_le_bytes(), &mut buffer[1..], LONG);
        assert!(matches!(small, Err(CallError::TooLarge { .. })));
    }
    let private = House::echo(&Config::default()).client().call_view(b"small", LONG);
    let private = private.expect("answered");
    assert!(!private.is_lent());
    assert_eq!(private.into_vec(), b"small");
}

#[test]
fn loans_come_back_in_any_order() {
    let kept: Arc<Mutex<Vec<View>>> = Arc::default();
    let house = House::echo(&Config::default());
    let client = house.client();
    let keep = |count: usize| {
        for _ in 0..count {
            let view = client.call_view(&pattern(100_000), LONG).expect("answered");
            kept.lock().expect("no panics").push(view);
        }
    };
    for round in 0..20 {
        keep(8);
        let mut kept = kept.lock().expect("no panics");
        assert!(kept.iter().all(|view| view.to_vec() == pattern(100_000)));
        let keep = kept.len().min(round % 8);
        let middle = kept.len() / 2;
        kept.rotate_left(middle);
        kept.truncate(keep);
    }
}

#[test]
fn when_all_is_lent_messages_go_through_the_ring() {
    let house = House::echo(&Config::default());
    let client = house.client();
    let mut loans = Vec::new();
    while let Ok(loan) = client.loan(1000) {
        loans.push(loan);
    }
    assert_eq!(loans.len(), 32);
    assert!(matches!(client.loan(1000), Err(CallError::Full)));
    let payload = pattern(3 * MIB);
    assert!(client.call(&payload, LONG).expect("answered in pieces") == payload);
    loans.pop();
    assert!(client.loan(1000).is_ok(), "a loan that was dropped is lent again");
}

#[test]
fn a_gigabyte_is_the_most() {
    let config = Config { max_payload: u64::from(u32::MAX), ..Config::default() };
    let house = House::serving(&config, |request| {
        let length = request.view().map_or(request.payload().len(), View::len);
        request.reply(&length.to_le_bytes()).expect("answered");
    });
    let client = house.client();
    let all = client.loan(1 << 30).expect("lent");
    assert!(matches!(client.loan(1), Err(CallError::Full)));
    let length = client.call_loaned(all, LONG).expect("answered").into_vec();
    assert_eq!(length, (1_usize << 30).to_le_bytes());
    let limit = u64::from(u32::MAX);
    let over = client.loan(1 << 32);
    assert!(matches!(over, Err(CallError::TooLarge { limit: told, .. }) if told == limit));
}

#[test]
fn a_retained_request_keeps_its_loan() {
    let (tell, told) = mpsc::channel();
    let house = House::serving(&Config::default(), move |request| {
        tell.send(request.retain()).expect("heard");
    });
    let client = house.client();
    let call = client.start(&pattern(MIB), LONG).expect("sent");
    let retained = told.recv_timeout(LONG).expect("retained");
    assert!(retained.view().is_some_and(View::is_lent));
    assert!(retained.payload() == pattern(MIB));
    retained.reply_loaned(filled(retained.loan(2 * MIB).expect("lent"))).expect("answered");
    assert!(call.wait().expect("answered") == pattern(2 * MIB));
}

#[test]
fn limits_hold_for_what_is_lent() {
    let small = Config { max_payload: 50_000, ..Config::default() };
    let echo = |request: Request<'_>| request.reply(request.payload()).expect("replied");
    let house = House::of(&Config::default(), &small, 1, echo);
    let client = house.client();
    let refused = client.call(&pattern(60_000), LONG);
    assert!(matches!(refused, Err(CallError::Remote(Status::MESSAGE_SIZE))), "{refused:?}");
    let house = House::of(&small, &Config::default(), 1, echo);
    let client = house.client();
    assert!(matches!(client.loan(50_001), Err(CallError::TooLarge { limit: 50_000, .. })));
    assert!(client.call(&pattern(50_000), LONG).expect("answered") == pattern(50_000));
}

#[test]
fn bulk_works_between_processes_and_without_the_runtime() {
    let world = World::without_runtime(env!("CARGO_BIN_EXE_actor"));
    let runtime = world.runtime();
    let server = world.server("echo", &[]);
    let (_node, client) = world.client("echo", Spin::Learned);
    assert_eq!(client.call(b"small", LONG).expect("answered"), b"small");
    runtime.kill();
    for _ in 0..20 {
        let answer = client.call_loaned(filled(client.loan(5 * MIB).expect("lent")), LONG);
        let answer = answer.expect("answered");
        assert!(answer.is_lent() && answer.to_vec() == pattern(5 * MIB));
    }
    server.kill();
}

#[test]
fn what_was_received_outlives_its_sender_and_what_was_lent_dies_with_its_channel() {
    let world = World::new(env!("CARGO_BIN_EXE_actor"));
    let server = world.server("echo", &[]);
    let (_node, client) = world.client("echo", Spin::Learned);
    let loan = client.loan(MIB).expect("lent");
    let view = client.call_view(&pattern(MIB), LONG).expect("answered");
    server.kill();
    assert!(view.is_lent() && view.to_vec() == pattern(MIB));
    let server = world.server("echo", &[]);
    let late = client.call_loaned(loan, LONG);
    assert!(matches!(late, Err(CallError::PeerDied { taken: false })), "{late:?}");
    let answer = client.call_loaned(filled(client.loan(MIB).expect("lent")), LONG);
    assert!(answer.expect("answered").to_vec() == pattern(MIB));
    server.kill();
}

#[test]
fn many_threads_lend_at_once() {
    let house = House::echo(&Config::default());
    let client = house.client();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let client = &client;
            scope.spawn(move || {
                for round in 0..40 {
                    let size = 20_000 + thread * 7000 + round * 131;
                    let payload = pattern(size);
                    assert!(client.call(&payload, LONG).expect("answered") == payload);
                    if let Ok(loan) = client.loan(size) {
                        let answer = client.call_loaned(filled(loan), LONG).expect("answered");
                        assert!(answer.into_vec() == payload);
                    }
                }
            });
        }
    });
}

#[test]
fn a_service_out_of_descriptors_says_so_and_is_sent_pieces() {
    let world = World::new(env!("CARGO_BIN_EXE_actor"));
    let mut server = world.server("echo", &[]);
    let (_node, client) = world.client("echo", Spin::Learned);
    let payload = pattern(100_000);
    assert_eq!(client.call(b"small", LONG).expect("answered"), b"small");
    server.ask("starve", "starved");
    let full = client.call(&payload, LONG);
    assert!(matches!(full, Err(CallError::Remote(Status::FULL))), "{full:?}");
    // Nobody lied, nothing was cut, and what comes next comes by the ring.
    wait_until("it is answered in pieces", || match client.call(&payload, LONG) {
        Ok(answer) => answer == payload,
        // So much later that it was tried again.
        Err(error) => error.status() != Status::FULL && panic!("{error}"),
    });
    assert_eq!(client.call(b"small", LONG).expect("answered"), b"small");
    server.ask("feed", "fed");
    wait_until("there are loans again", || client.loan(MIB).is_ok());
    let answer = client.call_loaned(filled(client.loan(MIB).expect("lent")), LONG);
    assert!(answer.expect("answered").to_vec() == pattern(MIB));
    server.kill();
}

#[test]
fn a_caller_out_of_descriptors_is_told_so_and_is_answered_in_pieces() {
    let world = World::new(env!("CARGO_BIN_EXE_actor"));
    let server = world.server("echo", &[]);
    let mut client = world.actor(&[]);
    client.ask("calls echo 1 10 8", "called");
    client.ask("starve", "starved");
    assert_eq!(client.ask("ask echo 30000 !grow 100000", "failed"), "IPC_EQUOTA");
    wait_until("it is answered in pieces", || {
        client.ask("start echo 10 !grow 100000", "started");
        client.ask("collect", "collected") == "IPC_OK=10"
    });
    client.ask("calls echo 2 10 8,5000", "called");
    client.ask("feed", "fed");
    wait_until("it has recovered", || {
        client.ask("start echo 10 !grow 100000", "started");
        client.ask("collect", "collected") == "IPC_OK=10"
    });
    client.ask("calls echo 2 10 8,100000", "called");
    client.quit();
    server.quit();
}
