//! Reliable queues between real processes: what they promise, whoever is killed.

use std::{fs, time::Duration};

use ipc::{
    Node, Spin, Status,
    queue::{
        AsyncQueueConsumer, AsyncQueueProducer, QueueAdmin, QueueConsumer, QueueError,
        QueueProducer, SERVICE, SendOptions,
    },
};
use nix::sys::signal::Signal;
use tests::{
    Ipcd, LONG,
    ipcd::signal,
    post::{PRODUCERS, Post, Programs},
    wait_until,
};

const PROGRAMS: Programs = Programs {
    ipcd: env!("CARGO_BIN_EXE_ipcd-under-test"),
    queue: env!("CARGO_BIN_EXE_ipc-queue-under-test"),
    courier: env!("CARGO_BIN_EXE_courier"),
    actor: env!("CARGO_BIN_EXE_actor"),
};

/// What `ipc-queue`'s entry needs for a journal, and for nothing more.
const JOURNAL: &str = "sandbox = { read = [\"DIR/queues.toml\"], write = [\"DIR/journal\"], \
                       system_calls = [\"io_uring_setup\", \"io_uring_enter\", \
                       \"io_uring_register\", \"rename\", \"unlink\", \"mkdir\"] }";
/// The same without `io_uring`.
const PLAIN: &str = "sandbox = { read = [\"DIR/queues.toml\"], write = [\"DIR/journal\"], \
                     system_calls = [\"rename\", \"unlink\", \"mkdir\"] }";
const MEMORY: &str = "sandbox = { read = [\"DIR/queues.toml\"] }";

/// What an operator has otherwise.
const NO_ADMIN: &str = "[[rule]]\nfrom = \"any\"\nto = \"any\"\ndeny = \"admin\"";

fn options() -> SendOptions {
    SendOptions::default()
}

fn text(consumer: &QueueConsumer) -> Option<String> {
    let it = consumer.receive(Some(Duration::from_millis(1))).expect("asked")?;
    consumer.ack(&it).expect("it is ours");
    Some(String::from_utf8(it.into_payload()).expect("a text"))
}

/// A queue of each kind, and a consumer process's view of them.
fn each(test: impl Fn(&Post, &Ipcd, &Node)) {
    for (durability, entry) in [("memory", MEMORY), ("journalled", JOURNAL), ("journalled", PLAIN)]
    {
        let queues = format!(
            "[queue.load]\ndurability = \"{durability}\"\nattempts = 2\nmessages = 4\n\
             lease_ms = 600000\n"
        );
        let (post, ipcd) = Post::start(PROGRAMS, &queues, entry);
        let node = post.world.node(Spin::Never);
        test(&post, &ipcd, &node);
        drop(node);
        assert_eq!(ipcd.stop().0.code(), Some(0));
    }
}

#[test]
fn messages_go_through_and_are_gone_when_acknowledged() {
    each(|_, _, node| {
        let producer = QueueProducer::open(node, "load").expect("it is declared");
        let consumer = QueueConsumer::open(node, "load").expect("it is declared");
        assert!(matches!(QueueProducer::open(node, "other"), Err(QueueError::NoQueue)));
        let receipts: Vec<u64> = ["a", "b", "c"]
            .map(|it| producer.send(it.as_bytes(), &options()).expect("stored").id)
            .to_vec();
        assert_eq!(receipts, [1, 2, 3]);
        assert_eq!(text(&consumer).as_deref(), Some("a"));
        // A dead letter after two attempts, which can be looked at, and tried again.
        for attempt in 1..=2 {
            let b = consumer.receive(Some(LONG)).expect("asked").expect("b");
            assert_eq!((b.payload(), b.attempt()), (&b"b"[..], attempt));
            consumer.nack(&b, Duration::ZERO).expect("ours");
        }
        assert_eq!(text(&consumer).as_deref(), Some("c"));
        assert_eq!(text(&consumer), None);
        let admin = QueueAdmin::new(node, SERVICE);
        let dead = admin.peek("load", true, 0, 9, LONG).expect("looked at");
        assert_eq!((dead.len(), dead[0].payload()), (1, &b"b"[..]));
        let account = admin.list(LONG).expect("listed").pop().expect("one queue");
        assert_eq!((account.figure("dead"), account.figure("acked")), (Some(1), Some(2)));
        assert_eq!(admin.redrive("load", 9, LONG).expect("redriven"), 1);
        assert_eq!(text(&consumer).as_deref(), Some("b"));
        // It is bounded; a number is stored once.
        let again = QueueProducer::resume(node, SERVICE, "load", 7, 1).expect("a producer");
        let results = again.send_all(&[&b"x"[..]; 6], &options());
        assert_eq!(results.iter().filter(|it| it.is_ok()).count(), 4);
        assert!(matches!(results[5], Err(QueueError::Full)));
        let again = QueueProducer::resume(node, SERVICE, "load", 7, 4).expect("the same");
        assert_eq!(again.send(b"x", &options()).expect("stored before").id, 0);
        assert_eq!(admin.purge("load", false, LONG).expect("purged"), 4);
    });
}

#[test]
fn who_reads_messages_cannot_send_in_the_name_of_who_sent_them() {
    each(|_, ipcd, node| {
        let victim = QueueProducer::open(node, "load").expect("it is declared");
        let consumer = QueueConsumer::open(node, "load").expect("it is declared");
        victim.send(b"one", &options()).expect("stored");
        let it = consumer.receive(Some(LONG)).expect("asked").expect("one");
        // All that a consumer learns of who sent it, and what an operator sees.
        let attack = |next| {
            let attacker = QueueProducer::resume(node, SERVICE, "load", it.producer(), next);
            attacker.expect("a producer").send(b"in its name", &options()).expect("stored")
        };
        attack(2);
        assert_ne!(victim.send(b"two", &options()).expect("stored").id, 0, "taken for sent before");
        consumer.ack(&it).expect("ours");
        assert_eq!(text(&consumer).as_deref(), Some("in its name"));
        assert_eq!(text(&consumer).as_deref(), Some("two"));
        // And it is the same producer after a restart of the queues.
        let again = QueueProducer::resume(node, SERVICE, "load", victim.id(), 2);
        let again = again.expect("the same");
        let pid = ipcd.pid_of("queue");
        signal(pid, Signal::SIGKILL);
        ipcd.wait_replaced("queue", pid);
        assert_eq!(again.send(b"two", &options()).expect("known").id, 0);
        victim.send(b"three", &options()).expect("stored");
        let it = consumer.receive(Some(LONG)).expect("asked").expect("three");
        assert_eq!((it.payload(), it.sequence()), (&b"three"[..], 3));
    });
}

#[test]
fn what_a_dead_consumer_had_is_given_to_the_next_at_once() {
    // The lease is ten minutes: no test waits for that.
    each(|post, _, node| {
        let producer = QueueProducer::open(node, "load").expect("it is declared");
        producer.send(b"mine", &options()).expect("stored");
        let other = post.courier("consume", &["hold"]);
        wait_until("another has it", || other.lines() == 1);
        let consumer = QueueConsumer::open(node, "load").expect("it is declared");
        assert_eq!(consumer.receive(Some(Duration::ZERO)).expect("asked"), None);
        other.kill();
        let it = consumer.receive(Some(LONG)).expect("asked").expect("it came back");
        assert_eq!((it.attempt(), it.payload()), (2, &b"mine"[..]));
        consumer.ack(&it).expect("ours");
    });
}

/// Waits until so many ask for messages.
fn wait_takers(node: &Node, count: u64) {
    let admin = QueueAdmin::new(node, SERVICE);
    wait_until("they wait", || {
        let account = admin.list(LONG).expect("listed").pop().expect("one queue");
        account.figure("takers") == Some(count)
    });
}

#[test]
fn a_receive_keeps_its_time_whatever_another_thread_and_the_queues_do() {
    each(|_, ipcd, node| {
        let producer = QueueProducer::open(node, "load").expect("it is declared");
        let consumer = &QueueConsumer::open(node, "load").expect("it is declared");
        std::thread::scope(|scope| {
            let (patient, heard) = std::sync::mpsc::channel();
            scope.spawn(move || patient.send(consumer.receive(None)));
            wait_takers(node, 1);
            let (hasty, heard_of_nothing) = std::sync::mpsc::channel();
            scope.spawn(move || hasty.send(consumer.receive(Some(Duration::from_millis(9)))));
            let nothing = heard_of_nothing.recv_timeout(LONG / 2);
            // Before anything is judged: the other waits for it.
            producer.send(b"late", &options()).expect("stored");
            assert_eq!(nothing.expect("it is back").expect("asked"), None);
            let late = heard.recv_timeout(LONG).expect("it is back").expect("asked");
            consumer.ack(&late.expect("it came")).expect("ours");
        });
        // The queues are there, and do not answer.
        let pid = ipcd.pid_of("queue");
        signal(pid, Signal::SIGSTOP);
        std::thread::scope(|scope| {
            let patience = SendOptions { timeout: Duration::from_secs(20), ..options() };
            let sending = scope.spawn(move || producer.send(b"later", &patience));
            // The second has to say first what the first may have been given.
            let nothing = [0, 1].map(|_| consumer.receive(Some(Duration::ZERO)));
            let is_under_way = !sending.is_finished();
            signal(pid, Signal::SIGCONT);
            assert!(nothing.iter().all(|it| matches!(it, Ok(None))), "{nothing:?}");
            assert!(is_under_way, "they took longer than 20 s");
            sending.join().expect("it is back").expect("stored");
        });
        let later = consumer.receive(Some(LONG)).expect("asked").expect("it is there");
        assert_eq!(later.payload(), b"later");
    });
}

#[test]
fn who_waits_at_a_consumer_that_is_closed_is_told_and_what_it_had_is_given_to_others() {
    each(|_, _, node| {
        let producer = QueueProducer::open(node, "load").expect("it is declared");
        let consumer = QueueConsumer::open(node, "load").expect("it is declared");
        let other = QueueConsumer::open(node, "load").expect("it is declared");
        producer.send(b"one", &options()).expect("stored");
        let one = consumer.receive(Some(LONG)).expect("asked").expect("one");
        std::thread::scope(|scope| {
            let (waiting, heard) = std::sync::mpsc::channel();
            let blocked = &consumer;
            scope.spawn(move || waiting.send(blocked.receive(Some(2 * LONG))));
            wait_takers(node, 1);
            consumer.close();
            let end = heard.recv_timeout(LONG).expect("it is back");
            assert!(matches!(end, Err(QueueError::Closed)), "{end:?}");
        });
        wait_takers(node, 0);
        // The lease is ten minutes.
        let again = other.receive(Some(LONG)).expect("asked").expect("one");
        assert_eq!((again.id(), again.attempt()), (one.id(), 2));
        assert!(matches!(consumer.ack(&one), Err(QueueError::Lost)));
        assert!(matches!(consumer.receive(None), Err(QueueError::Closed)));
        other.ack(&again).expect("its own");
    });
}

#[test]
fn tasks_put_take_and_acknowledge_over_a_restart_of_the_queues() {
    each(|_, ipcd, node| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime");
        let server = node.server().expect("a loop");
        let looping = server.clone();
        runtime.spawn(async move {
            let nobody = |_: ipc::Request<'_>| unreachable!("this process serves nobody");
            ipc::tokio::serve(&looping, nobody).await
        });
        runtime.block_on(async {
            let producer = AsyncQueueProducer::open(node, &server, "load").await.expect("declared");
            let consumer = AsyncQueueConsumer::open(node, &server, "load").await.expect("declared");
            let none = consumer.receive(Some(Duration::from_millis(1))).await;
            assert_eq!(none.expect("asked"), None);
            // One waits while the other sends.
            let waiting = tokio::spawn({
                let consumer = consumer.clone();
                async move { consumer.receive(Some(LONG)).await }
            });
            // Another waits for its turn, and no longer than it said.
            wait_takers(node, 1);
            let none = consumer.receive(Some(Duration::from_millis(1))).await;
            assert_eq!(none.expect("asked"), None);
            assert_eq!(producer.send(b"one", &options()).await.expect("stored").sequence, 1);
            let one = waiting.await.expect("no panic").expect("asked").expect("one");
            assert_eq!((one.payload(), one.attempt()), (&b"one"[..], 1));
            consumer.nack(&one, Duration::ZERO).await.expect("ours");
            let again = consumer.receive(Some(LONG)).await.expect("asked").expect("one again");
            assert_eq!((again.id(), again.attempt()), (one.id(), 2));
            consumer.ack(&again).await.expect("ours");
            // What is dropped while it waits takes nothing along.
            for text in ["two", "three"] {
                let waits = consumer.receive(None);
                assert!(tokio::time::timeout(Duration::ZERO, waits).await.is_err(), "{text}");
                producer.send(text.as_bytes(), &options()).await.expect("stored");
                let it = consumer.receive(Some(LONG)).await.expect("asked").expect("a message");
                assert_eq!(it.payload(), text.as_bytes());
                consumer.ack(&it).await.expect("ours");
            }
            // Nor does a restart.
            let pid = ipcd.pid_of("queue");
            signal(pid, Signal::SIGKILL);
            producer.send(b"four", &options()).await.expect("stored after all");
            let four = consumer.receive(Some(LONG)).await.expect("asked").expect("four");
            assert_eq!(four.payload(), b"four");
            consumer.extend(&four, LONG).await.expect("ours");
            consumer.ack(&four).await.expect("ours");
            let none = consumer.receive(Some(Duration::from_millis(1))).await;
            assert_eq!(none.expect("asked"), None);
            ipcd.wait_replaced("queue", pid);
        });
        node.interrupter().fire();
    });
}

#[test]
fn ipctl_shows_queues_looks_at_messages_redrives_and_purges() {
    let (post, ipcd) = Post::start(PROGRAMS, "[queue.load]\nattempts = 1\n", MEMORY);
    let node = post.world.node(Spin::Never);
    let ipctl = std::path::Path::new(PROGRAMS.actor).with_file_name("ipctl");
    assert!(ipctl.exists(), "build it first: cargo build -p ipctl");
    let show = |words: &[&str]| {
        let mut command = std::process::Command::new(&ipctl);
        command.arg("queues").args(words).args(["--json", "--runtime-dir"]);
        let output = command.arg(post.world.directory()).output().expect("ipctl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words:?}: {text} {:?}", output.stderr);
        serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default()
    };
    let producer = QueueProducer::open(&node, "load").expect("it is declared");
    let consumer = QueueConsumer::open(&node, "load").expect("it is declared");
    for text in ["first", "second"] {
        producer.send(text.as_bytes(), &options()).expect("stored");
    }
    let first = consumer.receive(Some(LONG)).expect("asked").expect("first");
    consumer.nack(&first, Duration::ZERO).expect("ours");
    let all = show(&["--interval", "1ms"]);
    assert_eq!(
        (&all[0]["name"], &all[0]["ready"], &all[0]["dead"]),
        (&"load".into(), &1.into(), &1.into()),
        "{all}"
    );
    let live = show(&["peek", "load"]);
    assert!(live.to_string().contains("second") && !live.to_string().contains("first"), "{live}");
    let dead = show(&["peek", "load", "--dead"]);
    assert!(dead.to_string().contains("first"), "{dead}");
    show(&["redrive", "load"]);
    assert_eq!(text(&consumer).as_deref(), Some("first"));
    show(&["purge", "load"]);
    assert_eq!(text(&consumer), None);
    drop((producer, consumer, node));
    assert_eq!(ipcd.stop().0.code(), Some(0));
}

#[test]
fn one_user_s_processes_make_so_many_queues_by_naming_them() {
    let queues = "on_demand = 5\non_demand_per_user = 2\n";
    let (post, ipcd) = Post::start(PROGRAMS, queues, MEMORY);
    let nodes = [post.world.node(Spin::Never), post.world.node(Spin::Never)];
    for (number, node) in nodes.iter().enumerate() {
        QueueProducer::open(node, &format!("of-{number}")).expect("made");
    }
    for node in &nodes {
        assert!(matches!(QueueProducer::open(node, "third"), Err(QueueError::NoQueue)));
        QueueProducer::open(node, "of-1").expect("it is there");
    }
    drop(nodes);
    assert_eq!(ipcd.stop().0.code(), Some(0));
}

#[test]
fn who_holds_a_message_holds_it_over_a_restart_of_the_queues() {
    each(|_, ipcd, node| {
        let producer = QueueProducer::open(node, "load").expect("it is declared");
        let consumer = QueueConsumer::open(node, "load").expect("it is declared");
        producer.send(b"held", &options()).expect("stored");
        let held = consumer.receive(Some(LONG)).expect("asked").expect("held");
        // Behind the record of who holds it, which nobody waits for by itself.
        producer.send(b"free", &options()).expect("stored");
        let pid = ipcd.pid_of("queue");
        signal(pid, Signal::SIGKILL);
        ipcd.wait_replaced("queue", pid);
        let other = QueueConsumer::open(node, "load").expect("it is there again");
        let free = other.receive(Some(LONG)).expect("asked").expect("free");
        assert_eq!((free.payload(), free.attempt()), (&b"free"[..], 1));
        consumer.ack(&held).expect("it is ours still");
        other.ack(&free).expect("ours");
        producer.send(b"next", &options()).expect("stored");
        assert_eq!(text(&consumer).as_deref(), Some("next"));
    });
}

#[test]
fn each_operation_needs_its_right() {
    let queues = "[queue.load]\n";
    let (post, ipcd) = Post::start(PROGRAMS, queues, MEMORY);
    let node_file = fs::read_to_string(post.file("node.toml")).expect("ours");
    let of =
        |rights: &str| node_file.replacen("allow = \"all\"", &format!("{rights}\n{NO_ADMIN}"), 1);
    ipcd.reload(&of("allow = [\"call\", \"send\"]"));
    let node = post.world.node(Spin::Never);
    let producer = QueueProducer::open(&node, "load").expect("it may put");
    producer.send(b"x", &options()).expect("stored");
    let consumer = QueueConsumer::open(&node, "load").expect("it may ask");
    assert!(matches!(consumer.receive(Some(LONG)), Err(QueueError::Forbidden)));
    let admin = QueueAdmin::new(&node, SERVICE);
    let listed = admin.list(LONG).map_err(|error| error.status());
    assert_eq!(listed, Err(Status::ACCESS));
    drop((producer, consumer, node));
    ipcd.reload(&of("allow = [\"call\", \"subscribe\"]"));
    let node = post.world.node(Spin::Never);
    let producer = QueueProducer::open(&node, "load").expect("it may ask");
    assert!(matches!(producer.send(b"y", &options()), Err(QueueError::Forbidden)));
    let consumer = QueueConsumer::open(&node, "load").expect("it may take");
    assert_eq!(text(&consumer).as_deref(), Some("x"));
}

/// Kills one party after another while two producers and two consumers work.
fn siege(durability: &str, entry: &str) {
    let queues = format!(
        "[queue.load]\ndurability = \"{durability}\"\nattempts = 1000\nlease_ms = 2000\n\
         messages = 500\nsegment_bytes = 131072\n"
    );
    let (post, mut ipcd) = Post::start(PROGRAMS, &queues, entry);
    let produce = |index: usize| {
        let id = PRODUCERS[index].to_string();
        post.courier(&format!("produce{index}"), &["produce", &id, "1000000"])
    };
    let consume = |index: usize| post.courier(&format!("consume{index}"), &["consume", "0"]);
    let mut producers: Vec<_> = [0, 1].map(produce).into();
    let mut consumers: Vec<_> = [0, 1].map(consume).into();
    for round in 0..24 {
        let before = post.progress();
        wait_until("there is progress", || post.progress() > before + 40);
        match round % 4 {
            0 => {
                let pid = ipcd.pid_of("queue");
                signal(pid, Signal::SIGKILL);
                ipcd.wait_replaced("queue", pid);
            }
            1 => {
                consumers.remove(0).kill();
                consumers.push(consume(round / 4 % 2));
            }
            2 => {
                producers.remove(0).kill();
                producers.push(produce(round / 4 % 2));
            }
            _ => {
                ipcd.kill();
                ipcd = post.again();
            }
        }
    }
    drop(producers);
    post.settle();
    drop(consumers);
    let count = post.check();
    println!("{durability}: {count} promised and kept");
    assert!(count > 24 * 40);
    let admin = QueueAdmin::new(&post.world.node(Spin::Never), SERVICE);
    let account = admin.list(LONG).expect("listed").pop().expect("one queue");
    assert!(account.figure("segments").is_some_and(|it| it < 12), "{account:?}");
}

#[test]
fn nothing_in_memory_is_lost_whoever_is_killed() {
    siege("memory", MEMORY);
}

#[test]
fn nothing_journalled_is_lost_whoever_is_killed() {
    siege("journalled", JOURNAL);
}
