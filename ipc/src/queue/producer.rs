//! Putting messages in.

use std::time::{Duration, Instant};

use super::{
    QueueError,
    post::{Miss, PATIENCE, Post, SERVICE, draw, left, open, protocol},
    wire::{self, Ask, Asked, Terms},
};
use crate::{
    CallOptions, Node, Pending, Priority,
    sync::{AtomicU64, Ordering},
};

/// Messages of one [`QueueProducer::send_all`] that are under way at a time. Fewer than a window
/// of `ipc-queue` knows one by one, and than a channel has calls.
const UNDER_WAY: usize = 128;

/// How a message is sent. The default suits most.
#[derive(Clone, Copy, Debug)]
pub struct SendOptions {
    /// What is more urgent is given out first.
    pub priority: Priority,
    /// Not to be given out before so long; in steps of 1 ms, at most 49 days.
    pub delay: Duration,
    /// How long to go on trying: while `ipc-queue` is restarted, and while the queue is full if
    /// that is to be waited for. Default 30 s.
    pub timeout: Duration,
    /// Whether to wait for room in a full queue, instead of failing at once.
    pub waits_for_room: bool,
}

impl Default for SendOptions {
    fn default() -> SendOptions {
        SendOptions {
            priority: Priority::Normal,
            delay: Duration::ZERO,
            timeout: PATIENCE,
            waits_for_room: false,
        }
    }
}

/// Says that a message is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The message's id in the queue; 0 where it was stored before this was heard of.
    pub id: u64,
    /// The producer's own number for it.
    pub sequence: u64,
}

/// Puts messages into one queue. Messages of one thread are given out in the order in which it
/// sent them, as far as they have the same priority and no delay, and none has to be given out
/// again.
///
/// It numbers its messages. When `ipc-queue` is restarted, or does not answer, it sends again with
/// the same number, and the queue stores each number once.
#[derive(Debug)]
pub struct QueueProducer {
    pub(super) post: Post,
    id: u64,
    /// The next message's.
    sequence: AtomicU64,
    terms: Terms,
}

impl QueueProducer {
    /// Opens a queue of the service [`SERVICE`], as a producer that nobody knows yet.
    ///
    /// # Errors
    /// [`QueueError`]: `Name`, `NoQueue`, `Forbidden`; `TimedOut` when nobody serves for 30 s.
    pub fn open(node: &Node, queue: &str) -> Result<QueueProducer, QueueError> {
        QueueProducer::resume(node, SERVICE, queue, draw()?, 1)
    }

    /// Opens a queue of any service as a producer that was there before: with its
    /// [`id`](QueueProducer::id), and the next of its numbers. A program that writes both down
    /// before it sends can send again what it is not sure of after a crash of its own, under the
    /// number that it had. It is the same producer only for processes of the same user. Who knows
    /// the id can send in its name: it is to be kept like a password.
    ///
    /// # Errors
    /// As for [`open`](QueueProducer::open).
    pub fn resume(
        node: &Node,
        service: &str,
        queue: &str,
        id: u64,
        next_sequence: u64,
    ) -> Result<QueueProducer, QueueError> {
        let post = Post::new(node, service, queue)?;
        let terms = open(&post, id)?;
        let sequence = AtomicU64::new(next_sequence.max(1));
        Ok(QueueProducer { post, id, sequence, terms })
    }

    /// Gives the number by which this producer names itself to the queue. Nobody else is shown it:
    /// consumers know it by another ([`Delivery::producer`](super::Delivery::producer)).
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Gives the number that the next message will have.
    pub fn next_sequence(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// Gives a message its number.
    pub(super) fn number(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Says what held for the queue when it was opened.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Sends a message, and waits until it is stored: in memory that outlives `ipc-queue`, or, in
    /// a journalled queue, on the disk.
    ///
    /// # Errors
    /// [`QueueError`]: `Full`, `TooLarge`, `NoRoom`, `Forbidden`, `Crowded`: it was not stored.
    /// `TimedOut`, `Storage`: it may have been.
    pub fn send(&self, payload: &[u8], options: &SendOptions) -> Result<Receipt, QueueError> {
        let sequence = self.number();
        let until = Instant::now() + options.timeout;
        loop {
            let ask = put(sequence, payload, options);
            let sent = self.post.ask(self.id, ask, until, |answer, _| {
                let id = wire::decode_number(answer).map_err(protocol)?;
                Ok(Receipt { id, sequence })
            });
            match sent {
                // It lets nobody wait for longer than a minute.
                Err(QueueError::Full) if options.waits_for_room && left(until).is_ok_and(long) => {}
                sent => return sent,
            }
        }
    }

    /// Sends many messages in their order, and waits until all are stored or have failed; many are
    /// under way at a time. Gives what came of each.
    pub fn send_all(
        &self,
        payloads: &[&[u8]],
        options: &SendOptions,
    ) -> Vec<Result<Receipt, QueueError>> {
        let until = Instant::now() + options.timeout;
        let first = self.sequence.fetch_add(payloads.len() as u64, Ordering::Relaxed);
        let mut results: Vec<Option<Result<Receipt, QueueError>>> = Vec::new();
        results.resize_with(payloads.len(), || None);
        let mut pause = Duration::from_millis(1);
        let mut request = Vec::new();
        loop {
            let open = results.iter().enumerate().filter(|(_, it)| it.is_none());
            let open: Vec<usize> = open.map(|(index, _)| index).take(UNDER_WAY).collect();
            if open.is_empty() {
                return results.into_iter().flatten().collect();
            }
            let mut under_way = Vec::with_capacity(open.len());
            for &index in &open {
                let sequence = first + index as u64;
                let ask = put(sequence, payloads[index], options);
                wire::encode_ask(
                    &Asked { who: self.id, queue: &self.post.queue, ask },
                    &mut request,
                );
                match self.start(&request, until) {
                    Ok(pending) => under_way.push((index, pending)),
                    Err(Miss::Final(error)) => results[index] = Some(Err(error)),
                    // What comes behind it must not overtake it.
                    Err(Miss::Again) => break,
                }
            }
            let is_short = under_way.len() < open.len();
            let mut missed = false;
            for (index, pending) in under_way {
                match pending.wait().map_err(Post::missed) {
                    Ok(answer) => {
                        let receipt = wire::decode_number(&answer).map_err(protocol);
                        let sequence = first + index as u64;
                        results[index] = Some(receipt.map(|id| Receipt { id, sequence }));
                    }
                    Err(Miss::Final(error)) => results[index] = Some(Err(error)),
                    Err(Miss::Again) => missed = true,
                }
            }
            if (missed || is_short)
                && let Err(_late) = Post::rest(&mut pause, until)
            {
                results.iter_mut().filter(|it| it.is_none()).for_each(|it| {
                    *it = Some(Err(QueueError::TimedOut));
                });
            }
        }
    }

    fn start(&self, request: &[u8], until: Instant) -> Result<Pending, Miss> {
        let client = self.post.client(until)?;
        let options = CallOptions::timeout(left(until)?);
        client.start(request, options).map_err(Post::missed)
    }
}

/// Whether it is worth asking again.
pub(super) fn long(left: Duration) -> bool {
    left > Duration::from_secs(1)
}

pub(super) fn put<'a>(sequence: u64, payload: &'a [u8], options: &SendOptions) -> Ask<'a> {
    Ask::Put {
        sequence,
        delay_ms: u32::try_from(options.delay.as_millis()).unwrap_or(u32::MAX),
        priority: options.priority.level() as u8,
        waits: options.waits_for_room,
        payload,
    }
}
