//! Reliable queues between real processes: what they promise, whoever is killed.

use std::{fs, time::Duration};

use ipc::{
    Node, Spin, Status,
    queue::{QueueAdmin, QueueConsumer, QueueError, QueueProducer, SERVICE, SendOptions},
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
