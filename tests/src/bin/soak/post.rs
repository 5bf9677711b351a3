//! The two ends of a queue with a journal.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use ipc::queue::{QueueConsumer, QueueError, QueueProducer, SERVICE, SendOptions};

use crate::{
    Trouble,
    cast::{self, LONG, PRODUCER},
    notary::Notary,
    part,
};

/// The queue's name.
pub(crate) const QUEUE: &str = "load";

/// Puts messages into the queue until stdin ends. Who is started again goes on behind the last
/// for which the one before had a receipt.
pub(crate) fn produce(base: &Path) -> Result<(), Trouble> {
    static END: AtomicBool = AtomicBool::new(false);
    let notary = Notary::connect(base)?;
    let node = part::connect(&cast::config(base, false))?;
    let next = notary.next();
    let open = || QueueProducer::resume(&node, SERVICE, QUEUE, PRODUCER, next);
    let producer = part::patiently(open)?;
    part::say("ready");
    std::thread::spawn(|| {
        part::obey(|_| ());
        END.store(true, Ordering::Relaxed);
    });
    let options = SendOptions { timeout: LONG, waits_for_room: true, ..SendOptions::default() };
    for sequence in next.. {
        if END.load(Ordering::Relaxed) {
            break;
        }
        let receipt = producer.send(&text(sequence), &options)?;
        if receipt.sequence != sequence {
            return Err(format!("{receipt:?} is not for {sequence}").into());
        }
        notary.promised(sequence, receipt.id);
    }
    Ok(())
}

/// Takes messages out of the queue until stdin ends.
pub(crate) fn consume(base: &Path) -> Result<(), Trouble> {
    static END: AtomicBool = AtomicBool::new(false);
    let notary = Notary::connect(base)?;
    let node = part::connect(&cast::config(base, false))?;
    let consumer = part::patiently(|| QueueConsumer::open(&node, QUEUE))?;
    part::say("ready");
    std::thread::spawn(|| {
        part::obey(|_| ());
        END.store(true, Ordering::Relaxed);
    });
    while !END.load(Ordering::Relaxed) {
        let Some(message) = consumer.receive(Some(Duration::from_millis(100)))? else { continue };
        let sequence = message.sequence();
        if message.payload() != text(sequence) {
            return Err(format!("{sequence} is not what was sent").into());
        }
        notary.delivered(sequence, message.id());
        match consumer.ack(&message) {
            Ok(()) => notary.acked(sequence),
            // It took too long; somebody else has it.
            Err(QueueError::Lost) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What a message says: which it is, and bytes that depend on that.
fn text(sequence: u64) -> Vec<u8> {
    let mut bytes = sequence.to_le_bytes().to_vec();
    bytes.extend((0..sequence % 97).map(|n| (n + sequence) as u8));
    bytes
}
