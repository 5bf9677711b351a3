//! The event bus between real processes: every event, or a count of what was lost, whoever comes
//! late, is slow, dies, or is forbidden.

use ipc::{
    Spin,
    bus::{EventError, PublishOptions, Start, SubscribeOptions},
};
use tests::{Ipcd, LONG, World, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const HOSTILE: &str = env!("CARGO_BIN_EXE_hostile");
const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");

fn start(node: &str) -> (World, Ipcd) {
    let world = World::without_runtime(ACTOR);
    let ipcd = Ipcd::start(IPCD, world.directory(), node);
    (world, ipcd)
}

/// A rule about the actors, and not about this process.
fn actors(verb: &str, what: &str) -> String {
    format!(
        "[[rule]]\nfrom = \"executable:{ACTOR}\"\nto = \"name:secret\"\n{verb} = [\"{what}\"]\n"
    )
}

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
    let slow_pid = slow.pid();
    slow.ask("event-subscribe flood now", "subscribed");
    slow.tell("event-take flood 20000 100");
    assert_eq!(publisher.ask("event-publish flood 20000 8", "published"), "20000");
    let took = slow.hear("took");
    let counts: Vec<u64> = took.split(' ').map(|it| it.parse().expect(&took)).collect();
    assert_eq!(counts[0] + counts[1], 20_000, "{took}");
    assert!(counts[1] > 0, "it kept up: {took}");
    // Whoever looks sees who it is: it tells the runtime, at the latest when it finds nothing.
    let node = world.node(Spin::Never);
    let mut listener = || {
        slow.ask("event-next flood 1", "event");
        let all = node.listeners("flood").expect("somebody uses it");
        assert_eq!(all.len(), 1, "{all:?}");
        (all[0].pid, all[0].reliable, all[0].lost)
    };
    let expected = (slow_pid, 0, counts[1]);
    wait_until("all that was lost is told", || listener() == expected);
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

#[test]
fn who_may_not_publish_or_subscribe_is_refused_and_on_record() {
    let (world, _ipcd) = start(&(actors("deny", "publish") + &actors("deny", "subscribe")));
    let mut actor = world.actor(&[]);
    actor.tell("event-subscribe secret now");
    assert_eq!(actor.hear("failed"), "IPC_EACCES");
    actor.tell("event-advertise secret");
    assert_eq!(actor.hear("failed"), "IPC_EACCES");
    actor.ask("event-subscribe open now", "subscribed");
    let node = world.node(Spin::Never);
    node.publisher("secret", PublishOptions::default()).expect("no rule is about this process");
    wait_until("both are on record", || {
        let text = std::fs::read_to_string(world.directory().join("audit.log"));
        let text = text.unwrap_or_default();
        let of = |word: &str| text.lines().any(|it| it.contains("denial") && it.contains(word));
        of("\"publish\"") && of("\"subscribe\"")
    });
}

#[test]
fn who_loses_the_right_to_subscribe_reads_what_was_published_and_no_more() {
    let (world, ipcd) = start("");
    let node = world.node(Spin::Never);
    // Fewer than are published: who is reliable has to be waited for in the other ring, too.
    let options = PublishOptions { events: Some(64) };
    let publisher = node.publisher("secret", options).expect("a publisher");
    let subscribe = |options| world.node(Spin::Never).subscribe("secret", options);
    let mut lossy = subscribe(SubscribeOptions::default()).expect("subscribed");
    let reliable = subscribe(SubscribeOptions::default().reliable()).expect("subscribed");
    let mut actor = world.actor(&["spin=never"]);
    actor.ask("event-subscribe secret now", "subscribed");
    let mut also = world.actor(&["spin=never"]);
    also.ask("event-subscribe secret now reliable", "subscribed");
    let publish = |from: u64, to: u64| {
        (from..to).for_each(|n| publisher.publish(&n.to_le_bytes()).expect("published"));
    };
    publish(0, 10);
    assert_eq!(actor.ask("event-take secret 5", "took"), "5 0");
    ipcd.reload(&actors("deny", "subscribe"));
    ipcd.hear("the node file is taken");
    // Once the runtime has said so to one subscriber it has said so to the publisher, too: it goes
    // on in another ring as soon as it hears that.
    wait_until("who may not is not waited for", || publisher.reliable() == 1);
    assert_eq!(actor.ask("event-take secret 5", "took"), "5 0");
    assert_eq!(actor.ask("event-next secret 20000", "event"), "Revoked");
    wait_until("the publisher has another ring", || lossy.publishers() == 2);
    let reads = |mut subscription: ipc::bus::Subscription| {
        std::thread::spawn(move || {
            for sequence in 0..1000_u64 {
                let event = subscription.recv(Some(LONG)).expect("an event");
                assert_eq!(event.head.sequence, sequence);
                assert_eq!(event.payload, sequence.to_le_bytes());
                std::thread::sleep(std::time::Duration::from_micros(20));
            }
        })
    };
    let reader = reads(reliable);
    publish(10, 1000);
    reader.join().expect("it gets every event");
    assert_eq!(actor.ask("event-next secret 100", "event"), "Revoked");
    for sequence in 0..10 {
        assert_eq!(lossy.recv(Some(LONG)).expect("an event").head.sequence, sequence);
    }
    let Err(EventError::Lagged { count, .. }) = lossy.recv(Some(LONG)) else { panic!("no lag") };
    assert_eq!(lossy.recv(Some(LONG)).expect("an event").head.sequence, 10 + count);
    // Nothing of the new ring is in the memory that the others have.
    actor.tell("event-subscribe secret 1000");
    assert_eq!(actor.hear("failed"), "IPC_EACCES");
    // Who may not publish any more hears of it, and so do those who listened.
    let mut told = world.actor(&[]);
    ipcd.reload("[[rule]]\nfrom = \"any\"\nto = \"name:secret\"\ndeny = [\"publish\"]\n");
    wait_until("the publisher hears of it", || publisher.publish(b"no").is_err());
    told.tell("event-advertise secret");
    assert_eq!(told.hear("failed"), "IPC_EACCES");
}

#[test]
fn the_node_file_gives_topics_numbers_sizes_modes_and_a_life_beyond_their_publishers() {
    let (world, _ipcd) = start(
        "[[topic]]\nname = \"state\"\nid = 7\nevent_bus_size = 100\nretained = \"always\"\n\
         [[topic]]\nname = \"ledger\"\nevent_bus_size = 100\nmode = \"reliable\"\n",
    );
    let node = world.node(Spin::Never);
    let mut publisher = world.actor(&[]);
    assert_eq!(publisher.ask("event-advertise state", "advertised"), "7");
    publisher.ask("event-publish state 50 8", "published");
    publisher.kill();
    let topics = || node.topics().expect("topics");
    wait_until("it is gone", || topics().iter().any(|it| (it.id, it.publishers) == (7, 0)));
    let subscribe =
        |start| node.subscribe(7, SubscribeOptions::default().from(start)).expect("subscribed");
    assert_eq!(subscribe(Start::Last).recv(Some(LONG)).expect("the last").head.sequence, 49);
    let mut tail = subscribe(Start::Retained(5));
    for sequence in 45..50 {
        assert_eq!(tail.recv(Some(LONG)).expect("an event").head.sequence, sequence);
    }
    assert_eq!(tail.try_recv(), Ok(None));
    let refused = node.publisher("event/7", PublishOptions::default()).expect_err("it is taken");
    assert_eq!(refused.status(), ipc::Status::EXISTS);
    let ledger = node.publisher("ledger", PublishOptions::default()).expect("a publisher");
    assert_eq!(ledger.longest(), 8192 / 4 - 24);
    let _waited_for = node.subscribe("ledger", SubscribeOptions::default()).expect("subscribed");
    assert_eq!(ledger.reliable(), 1);
}

#[test]
fn a_publisher_that_lies_is_not_heard_any_more_and_the_others_are() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let mut events = node.subscribe(7, SubscribeOptions::default()).expect("subscribed");
    let honest = world.node(Spin::Never);
    let honest = honest.publisher(7, PublishOptions::default()).expect("a publisher");
    let mut villain = world.other(HOSTILE, &[]);
    let mut said = 0;
    for number in 0.. {
        villain.ask("false-ring 7", "advertised");
        let event = events.recv(Some(LONG)).expect("a true event");
        assert_eq!((event.head.pid, event.payload.len()), (villain.pid(), 8));
        if villain.ask(&format!("false-event {number}"), "lied") == "false" {
            break;
        }
        match events.recv(Some(LONG)) {
            Err(EventError::Corrupt { .. }) => {}
            other => panic!("lie {number}: {other:?}"),
        }
        honest.publish(b"honest").expect("published");
        assert_eq!(events.recv(Some(LONG)).expect("an event").head.sequence, said);
        said += 1;
    }
    assert!(said >= 10, "{said}");
    // The last ring is true so far. Who sleeps is woken for nothing, and hears the others.
    villain.tell("pester");
    for _ in 0..50 {
        honest.publish(b"honest").expect("published");
        assert_eq!(events.recv(Some(LONG)).expect("an event").head.sequence, said);
        said += 1;
    }
    villain.hear("pestered");
    // Nor does a late-comer believe it.
    let late = SubscribeOptions::default().from(Start::Retained(3));
    let mut late = world.node(Spin::Never).subscribe(7, late).expect("subscribed");
    for _ in 0..4 {
        match late.recv(Some(LONG)) {
            Ok(event) => assert!(event.payload == b"honest" || event.payload == [0; 8]),
            Err(error) => assert!(matches!(error, EventError::Corrupt { .. }), "{error:?}"),
        }
    }
}
