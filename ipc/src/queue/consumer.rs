//! Taking messages out.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    QueueError,
    post::{Miss, PATIENCE, Post, SERVICE, draw, open, protocol},
    wire::{self, Ask, MAX_ITEMS, Message, Terms, Verdict},
};
use crate::{
    Node,
    sync::{AtomicBool, AtomicU32, Ordering},
};

/// The longest that one request waits; a longer wait is several.
const SLICE: Duration = Duration::from_secs(10);
/// What the answer may take beyond that.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes of payload that one request fetches, beyond its first message.
const FETCH: u32 = 256 << 10;

/// A message in this consumer's hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    id: u64,
    attempt: u32,
    priority: u8,
    producer: u64,
    sequence: u64,
    payload: Vec<u8>,
}

impl Delivery {
    pub(super) fn of(message: &Message<'_>) -> Delivery {
        Delivery {
            id: message.id,
            attempt: message.attempt,
            priority: message.priority,
            producer: message.producer,
            sequence: message.sequence,
            payload: message.payload.to_vec(),
        }
    }

    /// Makes one of what is known of it, to settle it: C keeps no more.
    pub fn from_parts(id: u64, attempt: u32) -> Delivery {
        let (producer, sequence) = (0, 0);
        Delivery { id, attempt, priority: 2, producer, sequence, payload: Vec::new() }
    }

    /// Its id in the queue: never that of another message, and ascending as they came.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How often it was given to a consumer, with this time: more than 1 for what somebody may
    /// have acted on.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Its priority: 0 to 4.
    pub fn priority(&self) -> u8 {
        self.priority
    }

    /// The number by which the queue knows who sent it, which is not its
    /// [`id`](super::QueueProducer::id), and of no use to send with. With [`sequence`](Delivery::sequence) it is the same each time
    /// that this message is given out, and no other's: by that an effect can be had once.
    pub fn producer(&self) -> u64 {
        self.producer
    }

    /// The producer's own number for it.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What it says.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Takes what it says out of it.
    pub fn into_payload(self) -> Vec<u8> {
        self.payload
    }
}

/// Takes messages of one queue, beside any number of others that do.
///
/// What it has taken and not acknowledged is given to others when it is dropped, and when its
/// process dies. When `ipc-queue` is restarted, it keeps what it has.
#[derive(Debug)]
pub struct QueueConsumer {
    pub(super) post: Post,
    id: u64,
    terms: Terms,
    dead: bool,
    prefetch: u16,
    /// Fetched and not received; held while one thread fetches.
    fetched: Mutex<VecDeque<Delivery>>,
    /// What is in hand, by id.
    held: Mutex<BTreeMap<u64, u32>>,
    /// Whether messages may have been given to it that never came.
    is_unsure: AtomicBool,
}

impl QueueConsumer {
    /// Opens a queue of the service [`SERVICE`].
    ///
    /// # Errors
    /// [`QueueError`]: `Name`, `NoQueue`, `Forbidden`; `TimedOut` when nobody serves for 30 s.
    pub fn open(node: &Node, queue: &str) -> Result<QueueConsumer, QueueError> {
        QueueConsumer::open_at(node, SERVICE, queue)
    }

    /// Opens a queue of any service.
    ///
    /// # Errors
    /// As for [`open`](QueueConsumer::open).
    pub fn open_at(node: &Node, service: &str, queue: &str) -> Result<QueueConsumer, QueueError> {
        let post = Post::new(node, service, queue)?;
        let id = draw()?;
        let terms = open(&post, id)?;
        Ok(QueueConsumer {
            post,
            id,
            terms,
            dead: false,
            prefetch: 1,
            fetched: Mutex::default(),
            held: Mutex::default(),
            is_unsure: AtomicBool::new(false),
        })
    }

    /// Fetches up to so many messages with one request. Others do not get these meanwhile, and
    /// their leases run; 1 unless this is called.
    #[must_use]
    pub fn prefetch(mut self, most: u16) -> QueueConsumer {
        self.prefetch = most.max(1);
        self
    }

    /// Takes dead letters instead of messages.
    #[must_use]
    pub fn of_dead_letters(mut self) -> QueueConsumer {
        self.dead = true;
        self
    }

    /// Says what held for the queue when it was opened.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Takes the next message, waiting up to `timeout` (`None`: for ever) for one. Nothing when
    /// none came. It is this consumer's for the queue's lease, and then somebody else's, unless it
    /// is acknowledged or [extended](QueueConsumer::extend).
    ///
    /// # Errors
    /// [`QueueError`]: `Forbidden`, `Crowded`, or the call's.
    pub fn receive(&self, timeout: Option<Duration>) -> Result<Option<Delivery>, QueueError> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let mut fetched = lock(&self.fetched);
        loop {
            if let Some(delivery) = fetched.pop_front() {
                return Ok(Some(delivery));
            }
            let now = Instant::now();
            let left = until.map_or(SLICE, |until| until.saturating_duration_since(now));
            let wait = left.min(SLICE);
            match self.fetch(&mut fetched, wait) {
                Ok(()) => {}
                // Given to us, perhaps, and never seen.
                Err(QueueError::TimedOut) => self.is_unsure.store(true, Ordering::Relaxed),
                Err(error) => return Err(error),
            }
            if fetched.is_empty() && until.is_some_and(|until| Instant::now() >= until) {
                return Ok(None);
            }
        }
    }

    /// Takes the next message, waiting as long as one request may; but leaves it for the next who
    /// receives when the word is not 0 any more.
    pub(crate) fn receive_unless(&self, over: &AtomicU32) -> Result<Option<Delivery>, QueueError> {
        let mut fetched = lock(&self.fetched);
        if fetched.is_empty() && over.load(Ordering::SeqCst) == 0 {
            match self.fetch(&mut fetched, SLICE) {
                Ok(()) => {}
                // Given to us, perhaps, and never seen.
                Err(QueueError::TimedOut) => self.is_unsure.store(true, Ordering::Relaxed),
                Err(error) => return Err(error),
            }
        }
        if over.load(Ordering::SeqCst) == 0 { Ok(fetched.pop_front()) } else { Ok(None) }
    }

    fn fetch(&self, fetched: &mut VecDeque<Delivery>, wait: Duration) -> Result<(), QueueError> {
        let mut pause = Duration::from_millis(5);
        if self.is_unsure.swap(false, Ordering::Relaxed) {
            self.say_what_is_held()
                .inspect_err(|_| self.is_unsure.store(true, Ordering::Relaxed))?;
        }
        let ask = self.take_ask(wait);
        let until = Instant::now() + wait + GRACE;
        match self.post.ask_once(self.id, ask, until) {
            Ok(answer) => self.take_in_to(fetched, &answer),
            Err(Miss::Again) => {
                // What the answer had that was lost with its process is ours by now, perhaps.
                self.is_unsure.store(true, Ordering::Relaxed);
                Post::rest(&mut pause, until)
            }
            Err(Miss::Final(error)) => Err(error),
        }
    }

    fn take_ask(&self, wait: Duration) -> Ask<'static> {
        Ask::Take {
            most: self.prefetch,
            wait_ms: wait.as_millis() as u32,
            bytes: FETCH,
            dead: self.dead,
        }
    }

    fn take_in_to(
        &self,
        fetched: &mut VecDeque<Delivery>,
        answer: &[u8],
    ) -> Result<(), QueueError> {
        let messages = wire::decode_messages(answer).map_err(protocol)?;
        fetched.extend(messages.iter().map(Delivery::of));
        lock(&self.held).extend(fetched.iter().map(|it| (it.id, it.attempt)));
        Ok(())
    }

    /// Says what is in hand; nothing where that is too much, and leases end by themselves.
    fn hold_ask(&self) -> Option<Ask<'static>> {
        let held: Vec<(u64, u32)> = lock(&self.held).iter().map(|(id, it)| (*id, *it)).collect();
        (held.len() <= MAX_ITEMS).then_some(Ask::Settle { verdict: Verdict::Hold, items: held })
    }

    /// Gives back what was given to us and never came.
    fn say_what_is_held(&self) -> Result<(), QueueError> {
        let Some(ask) = self.hold_ask() else { return Ok(()) };
        self.post.ask(self.id, ask, Instant::now() + PATIENCE, |_, _| Ok(()))
    }

    /// Acknowledges a message: it is gone, for good, when this returns.
    ///
    /// # Errors
    /// [`QueueError::Lost`] when somebody else has been given it since: it is theirs to
    /// acknowledge. `NoRoom`, `Storage`: it is not acknowledged. `TimedOut`: it may be.
    pub fn ack(&self, delivery: &Delivery) -> Result<(), QueueError> {
        self.settle(Verdict::Ack, std::slice::from_ref(delivery)).and_then(one)
    }

    /// Acknowledges many messages with one request; gives what came of each.
    ///
    /// # Errors
    /// As for [`ack`](QueueConsumer::ack), of all of them.
    pub fn ack_all(
        &self,
        deliveries: &[Delivery],
    ) -> Result<Vec<Result<(), QueueError>>, QueueError> {
        let mut told = Vec::with_capacity(deliveries.len());
        for some in deliveries.chunks(MAX_ITEMS) {
            told.extend(self.settle(Verdict::Ack, some)?);
        }
        Ok(told)
    }

    /// Gives a message back, for somebody to try again, not before `delay`. After the queue's
    /// attempts it is a dead letter instead.
    ///
    /// # Errors
    /// As for [`ack`](QueueConsumer::ack).
    pub fn nack(&self, delivery: &Delivery, delay: Duration) -> Result<(), QueueError> {
        self.settle(Verdict::Nack(ms(delay)), std::slice::from_ref(delivery)).and_then(one)
    }

    /// Makes a dead letter of a message, whatever attempts it has left.
    ///
    /// # Errors
    /// As for [`ack`](QueueConsumer::ack).
    pub fn bury(&self, delivery: &Delivery) -> Result<(), QueueError> {
        self.settle(Verdict::Bury, std::slice::from_ref(delivery)).and_then(one)
    }

    /// Keeps a message for so long from now on, instead of what was left of its lease.
    ///
    /// # Errors
    /// As for [`ack`](QueueConsumer::ack).
    pub fn extend(&self, delivery: &Delivery, lease: Duration) -> Result<(), QueueError> {
        self.settle(Verdict::Extend(ms(lease)), std::slice::from_ref(delivery)).and_then(one)
    }

    fn settle(
        &self,
        verdict: Verdict,
        deliveries: &[Delivery],
    ) -> Result<Vec<Result<(), QueueError>>, QueueError> {
        let until = Instant::now() + PATIENCE;
        let ask = QueueConsumer::settle_ask(verdict, deliveries);
        let told = self
            .post
            .ask(self.id, ask, until, |told, again| Ok(QueueConsumer::told(told, again)))?;
        self.settled(verdict, deliveries);
        Ok(told)
    }

    pub(super) fn settle_ask(verdict: Verdict, deliveries: &[Delivery]) -> Ask<'static> {
        let items = deliveries.iter().map(|it| (it.id, it.attempt)).collect();
        Ask::Settle { verdict, items }
    }

    /// Reads what came of each.
    pub(super) fn told(told: &[u8], again: bool) -> Vec<Result<(), QueueError>> {
        // Gone: by what we had said before, unless this was the first time.
        let result = |told: &u8| match told {
            0 => Ok(()),
            2 if again => Ok(()),
            _ => Err(QueueError::Lost),
        };
        told.iter().map(result).collect()
    }

    /// They are not in hand any more, unless they were to be kept.
    pub(super) fn settled(&self, verdict: Verdict, deliveries: &[Delivery]) {
        if !matches!(verdict, Verdict::Extend(_)) {
            let mut held = lock(&self.held);
            for delivery in deliveries {
                held.remove(&delivery.id);
            }
        }
    }
}

#[cfg(feature = "tokio")]
/// One request for messages: what it asks, and until when its answer is waited for.
pub(super) struct Slice {
    pub(super) ask: Ask<'static>,
    pub(super) until: Instant,
}

/// What a task does in steps.
#[cfg(feature = "tokio")]
impl QueueConsumer {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn pop(&self) -> Option<Delivery> {
        lock(&self.fetched).pop_front()
    }

    pub(super) fn has_none(&self) -> bool {
        lock(&self.fetched).is_empty()
    }

    /// The next request, for who waits until then.
    pub(super) fn slice(&self, until: Option<Instant>) -> Slice {
        let now = Instant::now();
        let left = until.map_or(SLICE, |until| until.saturating_duration_since(now));
        let wait = left.min(SLICE);
        Slice { ask: self.take_ask(wait), until: now + wait + GRACE }
    }

    /// What is to be said first, where something may have been given to us that never came.
    pub(super) fn held_ask(&self) -> Option<Ask<'static>> {
        let unsure = self.is_unsure.load(Ordering::Relaxed);
        unsure.then(|| self.hold_ask()).flatten()
    }

    pub(super) fn is_unsure(&self) {
        self.is_unsure.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_sure(&self) {
        self.is_unsure.store(false, Ordering::Relaxed);
    }

    pub(super) fn take_in(&self, answer: &[u8]) -> Result<(), QueueError> {
        self.take_in_to(&mut lock(&self.fetched), answer)
    }
}

impl Drop for QueueConsumer {
    fn drop(&mut self) {
        let held = std::mem::take(&mut *lock(&self.held));
        if !held.is_empty() || self.is_unsure.load(Ordering::Relaxed) {
            // If nobody hears it, the leases end by themselves.
            let until = Instant::now() + Duration::from_secs(1);
            let _ = self.post.ask(self.id, Ask::Leave, until, |_, _| Ok(()));
        }
    }
}

pub(super) fn one(mut told: Vec<Result<(), QueueError>>) -> Result<(), QueueError> {
    told.pop().unwrap_or(Err(QueueError::Lost))
}

pub(super) fn ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
