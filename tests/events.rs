//! The event bus between real processes: every event, or a count of what was lost, whoever comes
//! late, is slow, dies, or is forbidden.

use ipc::{
    Spin,
    bus::{EventError, PublishOptions, Start, SubscribeOptions},
};
use tests::{LONG, World, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

#[test]
fn many_processes_each_get_every_event() {
    let world = World::new(ACTOR);
    let mut publisher = world.actor(&[]);
    publisher.ask("event-advertise news", "advertised");
    let mut subscribers: Vec<_> = (0..8).map(|_| world.actor(&[])).collect();
    for subscriber in &mut subscribers {
        subscriber.ask("event-subscribe news now", "subscribed");
        subscriber.tell("event-take news 5000");
    }
    assert_eq!(publisher.ask("event-publish news 5000 100", "published"), "5000");
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.hear("took"), "5000 0");
    }
}

#[test]
fn a_subscriber_gets_all_of_publishers_that_come_after_it_by_name_and_by_number() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Learned);
    let mut by_number = node.subscribe(7, SubscribeOptions::default()).expect("subscribed");
    let mut publishers: Vec<_> = (0..3).map(|_| world.actor(&["spin=never"])).collect();
    for publisher in &mut publishers {
        assert_eq!(publisher.ask("event-advertise event/7", "advertised"), "7");
        publisher.tell("event-publish event/7 1000 8");
    }
    let mut counts = std::collections::HashMap::new();
    for _ in 0..3000 {
        let event = by_number.recv(Some(LONG)).expect("an event");
        let count = counts.entry(event.head.pid).or_insert(0);
        assert_eq!(event.head.sequence, *count);
        *count += 1;
    }
    assert_eq!(counts.len(), 3);
    assert_eq!(by_number.try_recv(), Ok(None));
    assert_eq!(by_number.name(), "event/7");
}

#[test]
fn a_late_comer_begins_where_it_says() {
    let world = World::new(ACTOR);
    let mut publisher = world.actor(&[]);
    publisher.ask("event-advertise state", "advertised");
    publisher.ask("event-publish state 10 8", "published");
    let node = world.node(Spin::Learned);
    let subscribe = |start| {
        let options = SubscribeOptions::default().from(start);
        node.subscribe("state", options).expect("subscribed")
    };
    let mut last = subscribe(Start::Last);
    let mut three = subscribe(Start::Retained(3));
    let mut all = subscribe(Start::Retained(u64::MAX));
    let mut now = subscribe(Start::Now);
    publisher.ask("event-publish state 1 8", "published");
    for (subscription, first) in [(&mut last, 9), (&mut three, 7), (&mut all, 0), (&mut now, 10)] {
        for sequence in first..11 {
            let event = subscription.recv(Some(LONG)).expect("an event");
            assert_eq!(event.head.sequence, sequence, "from {first}");
        }
        assert_eq!(subscription.try_recv(), Ok(None));
    }
}

#[test]
fn a_slow_subscriber_knows_what_it_lost_and_holds_up_nobody() {
    let world = World::new(ACTOR);
    let mut publisher = world.actor(&[]);
    publisher.ask("event-advertise flood 100", "advertised");
    let mut slow = world.actor(&[]);
    slow.ask("event-subscribe flood now", "subscribed");
    slow.tell("event-take flood 20000 100");
    assert_eq!(publisher.ask("event-publish flood 20000 8", "published"), "20000");
    let took = slow.hear("took");
    let counts: Vec<u64> = took.split(' ').map(|it| it.parse().expect(&took)).collect();
    assert_eq!(counts[0] + counts[1], 20_000, "{took}");
    assert!(counts[1] > 0, "it kept up: {took}");
}

#[test]
fn a_reliable_subscriber_loses_nothing_though_it_is_slow() {
    let world = World::new(ACTOR);
    let mut publisher = world.actor(&[]);
    publisher.ask("event-advertise ledger 100", "advertised");
    let mut slow = world.actor(&[]);
    slow.ask("event-subscribe ledger now reliable", "subscribed");
    slow.tell("event-take ledger 3000 50");
    assert_eq!(publisher.ask("event-publish ledger 3000 8", "published"), "3000");
    assert_eq!(slow.hear("took"), "3000 0");
}

#[test]
fn a_reliable_subscriber_that_stops_is_cut_off_and_told() {
    let world = World::new(ACTOR);
    let mut publisher = world.actor(&[]);
    publisher.ask("event-advertise ledger 100", "advertised");
    let mut other = world.actor(&[]);
    other.ask("event-subscribe ledger now reliable", "subscribed");
    let mut stopped = world.actor(&[]);
    stopped.ask("event-subscribe ledger now reliable", "subscribed");
    stopped.stop();
    other.tell("event-take ledger 2000");
    assert_eq!(publisher.ask("event-publish ledger 2000 8", "published"), "2000");
    assert_eq!(other.hear("took"), "2000 0");
    stopped.go_on();
    stopped.tell("event-take ledger 2000");
    let took = stopped.hear("took");
    assert!(took.contains("Cut"), "{took}");
}

#[test]
fn a_dead_reliable_subscriber_holds_nobody_up() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Learned);
    let options = PublishOptions { events: Some(100) };
    let publisher = node.publisher("ledger", options).expect("a publisher");
    let mut dead = world.actor(&[]);
    dead.ask("event-subscribe ledger now reliable", "subscribed");
    assert_eq!(publisher.reliable(), 1);
    dead.kill();
    wait_until("its publisher hears of it", || publisher.reliable() == 0);
    for n in 0..10_000_u64 {
        publisher.publish(&n.to_le_bytes()).expect("published");
    }
}

#[test]
fn what_a_killed_publisher_said_is_heard_to_the_end() {
    let world = World::new(ACTOR);
    let mut publisher = world.actor(&[]);
    publisher.ask("event-advertise news", "advertised");
    let node = world.node(Spin::Never);
    let mut news = node.subscribe("news", SubscribeOptions::default()).expect("subscribed");
    publisher.ask("event-publish news 1000 8", "published");
    publisher.kill();
    for sequence in 0..1000 {
        assert_eq!(news.recv(Some(LONG)).expect("an event").head.sequence, sequence);
    }
    wait_until("the ring is let go of", || {
        assert_eq!(news.try_recv(), Ok(None));
        news.publishers() == 0
    });
    // Another one is heard like the first.
    let mut next = world.actor(&[]);
    next.ask("event-advertise news", "advertised");
    next.ask("event-publish news 1 8", "published");
    assert_eq!(news.recv(Some(LONG)).expect("an event").head.sequence, 0);
}

#[test]
fn events_go_on_while_there_is_no_runtime_and_both_ends_join_the_next_one() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let mut publisher = world.actor(&["spin=never"]);
    publisher.ask("event-advertise news 100", "advertised");
    let mut subscriber = world.actor(&["spin=never"]);
    subscriber.ask("event-subscribe news now", "subscribed");
    let mut reliable = world.actor(&["spin=never"]);
    reliable.ask("event-subscribe news now reliable", "subscribed");
    for actor in [&mut subscriber, &mut reliable] {
        actor.tell("event-take news 100");
    }
    publisher.ask("event-publish news 100 8", "published");
    assert_eq!(subscriber.hear("took"), "100 0");
    assert_eq!(reliable.hear("took"), "100 0");
    runtime.kill();
    for actor in [&mut subscriber, &mut reliable] {
        actor.tell("event-take news 100");
    }
    assert_eq!(publisher.ask("event-publish news 100 8", "published"), "200");
    assert_eq!(subscriber.hear("took"), "100 0");
    assert_eq!(reliable.hear("took"), "100 0");
    let _runtime = world.runtime();
    let node = world.node(Spin::Never);
    wait_until("all are back", || {
        let topics = node.topics().expect("topics");
        topics.iter().any(|it| (it.publishers, it.subscribers, it.reliable) == (1, 2, 1))
    });
    // The slow one is still waited for, over the same memory.
    subscriber.tell("event-take news 2000");
    reliable.tell("event-take news 2000 20");
    assert_eq!(publisher.ask("event-publish news 2000 8", "published"), "2200");
    assert_eq!(reliable.hear("took"), "2000 0");
    subscriber.hear("took");
    // And a newcomer hears both the old and the new.
    let mut late =
        node.subscribe("news", SubscribeOptions::default().from(Start::Last)).expect("subscribed");
    assert_eq!(late.recv(Some(LONG)).expect("the last").head.sequence, 2199);
}

#[test]
fn threads_tasks_and_many_subscriptions_of_one_process_sleep_and_are_woken() {
    let world = World::new(ACTOR);
    let mut publisher = world.actor(&[]);
    publisher.ask("event-advertise news", "advertised");
    let node = world.node(Spin::Never);
    let runtime = tokio::runtime::Builder::new_multi_thread().build().expect("a runtime");
    let subscribe = || node.subscribe("news", SubscribeOptions::default()).expect("subscribed");
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let mut news = subscribe();
            std::thread::spawn(move || {
                (0..200_u64).all(|n| news.recv(Some(LONG)).expect("an event").head.sequence == n)
            })
        })
        .collect();
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let mut news = subscribe();
            runtime.spawn(async move {
                for n in 0..200_u64 {
                    assert_eq!(news.recv_async().await.expect("an event").head.sequence, n);
                }
            })
        })
        .collect();
    for n in 1..=200 {
        assert_eq!(publisher.ask("event-publish news 1 8", "published"), n.to_string());
    }
    assert!(threads.into_iter().all(|it| it.join().expect("no panic")));
    for task in tasks {
        runtime.block_on(task).expect("no panic");
    }
}

#[test]
fn an_event_is_as_long_as_its_ring_allows_and_no_longer() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Learned);
    let publisher =
        node.publisher("large", PublishOptions { events: Some(1000) }).expect("a publisher");
    let mut large = node.subscribe("large", SubscribeOptions::default()).expect("subscribed");
    let longest = usize::try_from(publisher.longest()).expect("fits");
    publisher.publish(&vec![7; longest]).expect("published");
    let error = publisher.publish(&vec![7; longest + 1]).expect_err("too long");
    assert_eq!(error.status(), ipc::Status::MESSAGE_SIZE);
    publisher.publish(&[]).expect("published");
    assert_eq!(large.recv(Some(LONG)).expect("an event").payload, vec![7; longest]);
    assert!(large.recv(Some(LONG)).expect("an event").payload.is_empty());
    drop(publisher);
    let timeout = Some(std::time::Duration::from_millis(1));
    assert_eq!(large.recv(timeout), Err(EventError::TimedOut));
}
