//! Taking messages out.

use std::time::{Duration, Instant};

use super::{
    QueueError,
    hand::{Hand, Next},
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
/// What it may take beyond the time that its receiver has.
const LATE: Duration = Duration::from_secs(1);
/// How long others are told that we go.
const FAREWELL: Duration = Duration::from_secs(1);
/// Between two times that it is said to a request under way.
const AGAIN: Duration = Duration::from_millis(20);
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
    /// [`id`](super::QueueProducer::id), and of no use to send with. With
    /// [`sequence`](Delivery::sequence) it is the same each time that this message is
    /// given out, and no other's: by that an effect can be had once.
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
    hand: Hand,
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
            hand: Hand::new(Duration::from_millis(terms.lease_ms.into())),
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

    /// Takes the next message, waiting up to `timeout` (`None`: for ever) for one, and a second
    /// more at most where `ipc-queue` is there and does not answer. Nothing when none came. It is
    /// this consumer's for the queue's lease, and then somebody else's, unless it is acknowledged
    /// or [extended](QueueConsumer::extend). Of several threads one fetches at a time; the others
    /// wait for it, and no longer than they said.
    ///
    /// # Errors
    /// [`QueueError`]: `Forbidden`, `Crowded`, `Closed`, or the call's.
    pub fn receive(&self, timeout: Option<Duration>) -> Result<Option<Delivery>, QueueError> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let _turn = match self.hand.next(until) {
                Next::Delivery(delivery) => return Ok(Some(delivery)),
                Next::Late => return Ok(None),
                Next::Closed => return Err(QueueError::Closed),
                Next::Turn(turn) => turn,
            };
            self.fetch(until)?;
            if let Some(delivery) = self.hand.pop() {
                return Ok(Some(delivery));
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(None);
            }
        }
    }

    /// Takes the next message, waiting as long as one request may; but leaves it for the next who
    /// receives when the word is not 0 any more.
    pub(crate) fn receive_unless(&self, over: &AtomicU32) -> Result<Option<Delivery>, QueueError> {
        let is_over = || over.load(Ordering::SeqCst) != 0;
        let until = Instant::now() + SLICE;
        let _turn = match self.hand.next(Some(until)) {
            Next::Delivery(delivery) => return Ok(Some(delivery)),
            Next::Late => return Ok(None),
            Next::Closed => return Err(QueueError::Closed),
            Next::Turn(turn) => turn,
        };
        if !is_over() {
            self.fetch(Some(until))?;
        }
        if is_over() { Ok(None) } else { Ok(self.hand.pop()) }
    }

    /// Makes one request for messages; one that is not answered in time is none.
    fn fetch(&self, until: Option<Instant>) -> Result<(), QueueError> {
        match self.fetch_in_time(until) {
            // Given to us, perhaps, and never seen.
            Err(QueueError::TimedOut) => {
                self.is_unsure.store(true, Ordering::Relaxed);
                Ok(())
            }
            fetched => fetched,
        }
    }

    fn fetch_in_time(&self, until: Option<Instant>) -> Result<(), QueueError> {
        if self.is_unsure.swap(false, Ordering::Relaxed) {
            self.say_what_is_held(QueueConsumer::slice(until).1)
                .inspect_err(|_| self.is_unsure.store(true, Ordering::Relaxed))?;
        }
        let (wait, answer_by) = QueueConsumer::slice(until);
        match self.post.ask_once(self.id, self.take_ask(wait), answer_by) {
            Ok(answer) => self.take_in(&answer),
            Err(Miss::Again) => {
                // What the answer had that was lost with its process is ours by now, perhaps.
                self.is_unsure.store(true, Ordering::Relaxed);
                Post::rest(&mut Duration::from_millis(5), answer_by)
            }
            Err(Miss::Final(error)) => Err(error),
        }
    }

    /// How long the next request waits, and until when its answer is waited for, for who has time
    /// until then.
    pub(super) fn slice(until: Option<Instant>) -> (Duration, Instant) {
        let now = Instant::now();
        let left = until.map_or(SLICE, |until| until.saturating_duration_since(now));
        let wait = left.min(SLICE);
        let answer_by = now + wait + GRACE;
        (wait, until.map_or(answer_by, |until| answer_by.min(until + LATE)))
    }

    pub(super) fn take_in(&self, answer: &[u8]) -> Result<(), QueueError> {
        let messages = wire::decode_messages(answer).map_err(protocol)?;
        self.hand.take_in(messages.iter().map(Delivery::of).collect(), Instant::now());
        Ok(())
    }

    pub(super) fn take_ask(&self, wait: Duration) -> Ask<'static> {
        Ask::Take {
            most: self.prefetch,
            wait_ms: wait.as_millis() as u32,
            bytes: FETCH,
            dead: self.dead,
        }
    }

    /// Says what is in hand; nothing where that is too much, and leases end by themselves.
    fn hold_ask(&self) -> Option<Ask<'static>> {
        let items = self.hand.held(Instant::now());
        (items.len() <= MAX_ITEMS).then_some(Ask::Settle { verdict: Verdict::Hold, items })
    }

    /// Gives back what was given to us and never came.
    fn say_what_is_held(&self, until: Instant) -> Result<(), QueueError> {
        let Some(ask) = self.hold_ask() else { return Ok(()) };
        self.post.ask(self.id, ask, until, |_, _| Ok(()))
    }

    /// Lets nothing more be received: who waits in [`receive`](QueueConsumer::receive), in any
    /// thread, is told [`QueueError::Closed`], and so is who calls it later. What was taken and not
    /// acknowledged is given to others at once. It may take a second where `ipc-queue` does not
    /// answer; leases end by themselves then.
    pub fn close(&self) {
        self.hand.close();
        let until = Instant::now() + FAREWELL;
        // Of a request under way it is the end; one that is on its way yet may come behind it.
        while self.hand.is_fetching() && Instant::now() < until {
            let _ = self.post.ask(self.id, Ask::Leave, until, |_, _| Ok(()));
            self.hand.wait_idle(AGAIN);
        }
        self.leave(until);
    }

    fn leave(&self, until: Instant) {
        if self.hand.forget() | self.is_unsure.swap(false, Ordering::Relaxed) {
            // If nobody hears it, the leases end by themselves.
            let _ = self.post.ask(self.id, Ask::Leave, until, |_, _| Ok(()));
        }
    }

    /// Acknowledges a message: it is gone, for good, when this returns.
    ///
    /// # Errors
    /// [`QueueError::Lost`] when somebody else has been given it since: it is theirs to
    /// acknowledge. `NoRoom`: it is not acknowledged. `TimedOut`, `Storage`: it may be.
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
        match verdict {
            Verdict::Extend(ms) => {
                let lease = Duration::from_millis(ms.into());
                self.hand.extend(deliveries, lease, Instant::now());
            }
            _ => self.hand.let_go(deliveries),
        }
    }
}

/// What a task does in steps.
#[cfg(feature = "tokio")]
impl QueueConsumer {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The next of what was fetched.
    pub(super) fn pop(&self) -> Result<Option<Delivery>, QueueError> {
        if self.hand.is_closed() { Err(QueueError::Closed) } else { Ok(self.hand.pop()) }
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
}

impl Drop for QueueConsumer {
    fn drop(&mut self) {
        self.leave(Instant::now() + FAREWELL);
    }
}

pub(super) fn one(mut told: Vec<Result<(), QueueError>>) -> Result<(), QueueError> {
    told.pop().unwrap_or(Err(QueueError::Lost))
}

pub(super) fn ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
