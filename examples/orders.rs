//! A reliable queue: one takes orders, another works them off, either may be killed at any time.
//! Start `ipcd --config examples/orders.toml`, which starts `ipc-queue`; then these, in any order.
//!
//!     rust-orders put TEXT...     puts an order for each TEXT; each is stored when this says so
//!     rust-orders work [COUNT]    works off COUNT of them, or all that come

use std::{env, process::ExitCode, time::Duration};

use ipc::{
    Config, Node,
    queue::{QueueConsumer, QueueError, QueueProducer, SendOptions},
};

const QUEUE: &str = "orders";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((verb, orders)) if verb == "put" && !orders.is_empty() => put(orders),
        Some((verb, count)) if verb == "work" => work(count.first().and_then(|it| it.parse().ok())),
        _ => {
            eprintln!("usage: rust-orders put TEXT... | rust-orders work [COUNT]");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rust-orders: {error}");
            ExitCode::FAILURE
        }
    }
}

fn put(orders: &[String]) -> Result<(), QueueError> {
    let node = Node::connect(&Config::default())?;
    let producer = QueueProducer::open(&node, QUEUE)?;
    for order in orders {
        // Returns when it is stored. A full queue is waited for, and a restart of ipc-queue too.
        let options = SendOptions { waits_for_room: true, ..SendOptions::default() };
        let receipt = producer.send(order.as_bytes(), &options)?;
        println!("order {} is stored: {order}", receipt.id);
    }
    Ok(())
}

fn work(count: Option<usize>) -> Result<(), QueueError> {
    let node = Node::connect(&Config::default())?;
    let consumer = QueueConsumer::open(&node, QUEUE)?;
    let mut done = 0;
    while count.is_none_or(|count| done < count) {
        let Some(order) = consumer.receive(Some(Duration::from_secs(60)))? else { continue };
        // Were this process killed here, another would get the order at once.
        println!("done, at attempt {}: {}", order.attempt(), order.payload().escape_ascii());
        consumer.ack(&order)?;
        done += 1;
    }
    Ok(())
}
