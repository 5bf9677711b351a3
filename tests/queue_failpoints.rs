//! `ipc-queue` dies at every step of what it does, while producers and consumers work.

use std::fs;

use ipc_queue::failpoint::At;
use nix::sys::signal::Signal;
use tests::{
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

/// Steps that only one of the two kinds has.
const OF_MEMORY: [At; 1] = [At::MemoryHalfWritten];
const OF_JOURNALS: [At; 3] = [At::BatchHalfWritten, At::BatchWritten, At::BatchSynced];

fn die_everywhere(durability: &str, has_not: &[At]) {
    let queues = format!(
        "[queue.load]\ndurability = \"{durability}\"\nattempts = 1000\nlease_ms = 1000\n\
         messages = 500\nsegment_bytes = 131072\n"
    );
    let entry = "sandbox = false\nenvironment = { IPC_QUEUE_DIES_AT = \"DIR/order\" }";
    let (post, ipcd) = Post::start(PROGRAMS, &queues, entry);
    let order = post.file("order");
    let [first, second] = PRODUCERS.map(|id| id.to_string());
    let producers = [
        post.courier("produce0", &["produce", &first, "1000000"]),
        post.courier("produce1", &["produce", &second, "1000000"]),
    ];
    let consumers = [0, 1].map(|index| post.courier(&format!("consume{index}"), &["consume", "0"]));
    for at in At::ALL.into_iter().filter(|at| !has_not.contains(at)) {
        // Twice, so that what the first death left is in the second one's way.
        for _ in 0..2 {
            let before = post.progress();
            wait_until("there is progress", || post.progress() > before + 20);
            let pid = ipcd.pid_of("queue");
            // In one piece: it is looked at all the time.
            let fresh = order.with_extension("new");
            fs::write(&fresh, format!("{at:?}"))
                .and_then(|()| fs::rename(&fresh, &order))
                .expect("written");
            if at == At::Recovered {
                signal(pid, Signal::SIGKILL);
            }
            wait_until(&format!("it comes to {at:?}"), || !order.exists());
            ipcd.wait_replaced("queue", pid);
        }
    }
    drop(producers);
    post.settle();
    drop(consumers);
    println!("{durability}: {} promised and kept", post.check());
}

#[test]
fn nothing_in_memory_is_lost_wherever_it_dies() {
    die_everywhere("memory", &OF_JOURNALS);
}

#[test]
fn nothing_journalled_is_lost_wherever_it_dies() {
    die_everywhere("journalled", &OF_MEMORY);
}
