//! Receiving events: in place, out of the publishers' memory, at this subscriber's own pace.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::{
    Event, EventHead, Start,
    error::EventError,
    feed::{Feed, Source},
    listener::{Alarm, WORDS, Watch},
    places::Places,
};
use crate::{
    clock,
    link::{FOREVER, time_left, until},
    node::{BusWord, Shared},
    sync::{Ordering, pause},
    wait::{
        futex,
        spin::{Spell, SpinBudget},
    },
};

/// How long a sleep is at most while publishers may not know that they have to end it.
const TICK: Duration = Duration::from_millis(5);
/// Polls without a look at the clock.
const POLLS: u32 = 64;
/// Wake-ups for nothing before a waiter takes its time: a publisher may have nothing else to do.
const FUTILE: u32 = 64;

/// Receives the events of one topic, of all its publishers. What was published before a receive
/// can be received at once, without a system call.
///
/// Events of one publisher come in the order in which it published them; those of several in turn.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use ipc::bus::{EventError, SubscribeOptions};
///
/// let node = ipc::Node::connect(&ipc::Config::default())?;
/// let mut prices = node.subscribe("prices", SubscribeOptions::default())?;
/// loop {
///     match prices.recv(None) {
///         Ok(event) => println!("{} of {}", event.head.sequence, event.head.publisher),
///         Err(EventError::Lagged { count, .. }) => println!("{count} missed"),
///         Err(error) => return Err(error.into()),
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Subscription {
    node: Arc<Shared>,
    feed: Arc<Feed>,
    places: Places,
    /// What of the feed's news was seen.
    seen: u32,
    spin: SpinBudget,
    waker: Option<Arc<TaskAlarm>>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if !self.node.birth.is_here() {
            self.places.forget();
            std::mem::forget(Arc::clone(&self.feed));
            return;
        }
        if let Some(alarm) = self.waker.take() {
            let alarm: Arc<dyn Alarm> = alarm;
            self.node.core.bus.listener.unset(&alarm);
        }
        self.places.clear(&self.feed, &self.node);
        self.node.core.leave_feed(&self.feed);
    }
}

impl Subscription {
    pub(crate) fn new(
        node: Arc<Shared>,
        feed: Arc<Feed>,
        start: Start,
        reliable: Option<u32>,
    ) -> Subscription {
        let spin = SpinBudget::new(node.core.config.spin);
        let seen = feed.news.load(Ordering::SeqCst);
        let mut places = Places::new(start, reliable);
        places.renew(&feed, &node);
        Subscription { node, feed, places, seen, spin, waker: None }
    }

    /// Gives the topic's number.
    pub fn topic(&self) -> u32 {
        self.feed.topic
    }

    /// Gives the topic's name.
    pub fn name(&self) -> &str {
        &self.feed.name
    }

    /// Gives how many publishers there are to read.
    pub fn publishers(&mut self) -> usize {
        self.renew();
        self.places.count()
    }

    /// Takes an event if one is there.
    ///
    /// # Errors
    /// All of [`EventError`] but `TimedOut` and `Canceled`.
    pub fn try_recv(&mut self) -> Result<Option<Event>, EventError> {
        let mut payload = Vec::new();
        let head = self.try_recv_into(&mut payload)?;
        Ok(head.map(|head| Event { head, payload }))
    }

    /// As [`try_recv`](Subscription::try_recv), to the end of `payload`: allocates only where that
    /// has to grow.
    ///
    /// # Errors
    /// As for [`try_recv`](Subscription::try_recv); `payload` is as it was.
    #[inline]
    pub fn try_recv_into(
        &mut self,
        payload: &mut Vec<u8>,
    ) -> Result<Option<EventHead>, EventError> {
        if !self.node.birth.is_here() {
            return Err(EventError::Forked);
        }
        self.renew();
        if let Some(head) = self.places.next(&self.feed, &self.node, payload)? {
            return Ok(Some(head));
        }
        if self.feed.revoked.load(Ordering::Acquire) {
            return Err(EventError::Revoked);
        }
        if self.feed.is_to_say() {
            self.node.core.say(BusWord::Lost { feed: Arc::clone(&self.feed) });
        }
        Ok(None)
    }

    #[inline]
    fn renew(&mut self) {
        let news = self.feed.news.load(Ordering::Acquire);
        if news != self.seen {
            self.seen = news;
            self.places.renew(&self.feed, &self.node);
        }
    }

    /// Waits for the next event up to `timeout` (`None`: for ever).
    ///
    /// # Errors
    /// [`EventError`].
    pub fn recv(&mut self, timeout: Option<Duration>) -> Result<Event, EventError> {
        let mut payload = Vec::new();
        let head = self.recv_into(&mut payload, timeout)?;
        Ok(Event { head, payload })
    }

    /// As [`recv`](Subscription::recv), to the end of `payload`.
    ///
    /// # Errors
    /// As for [`recv`](Subscription::recv); `payload` is as it was.
    pub fn recv_into(
        &mut self,
        payload: &mut Vec<u8>,
        timeout: Option<Duration>,
    ) -> Result<EventHead, EventError> {
        if let Some(head) = self.try_recv_into(payload)? {
            return Ok(head);
        }
        let interrupter = Arc::clone(&self.node.core.interrupter);
        let (turn, until) = (interrupter.turn(), until(timeout));
        let mut futile = 0;
        loop {
            if let Some(head) = self.spin(payload, until)? {
                return Ok(head);
            }
            if interrupter.turn() != turn {
                return Err(EventError::Canceled);
            }
            let Ok(left) = time_left(until) else { return Err(EventError::TimedOut) };
            let sure = self.announce(left);
            // What is slept on first, then the last look.
            let rings = self.places.words();
            if !self.is_quiet() {
                futile += 1;
                if let Some(head) = self.try_recv_into(payload)? {
                    return Ok(head);
                }
                continue;
            }
            if futile > FUTILE {
                std::thread::sleep(Duration::from_millis(1));
            }
            futile += 1;
            let private = |at, value| futex::Word { at, value, shared: false };
            let mut words = vec![private(&self.feed.news, self.seen), interrupter.word(turn)];
            words.extend(rings.iter().map(|(source, event)| word(source, *event)));
            // Who wakes none of the words that are slept on is looked for every now and then.
            let sure = sure && words.len() <= WORDS;
            words.truncate(WORDS);
            let limit = if sure { left } else { Some(left.map_or(TICK, |it| it.min(TICK))) };
            futex::wait_many(&words, limit);
            if let Some(head) = self.try_recv_into(payload)? {
                return Ok(head);
            }
        }
    }

    /// Polls as long as that is likely to pay.
    fn spin(&mut self, payload: &mut Vec<u8>, until: u64) -> Result<Option<EventHead>, EventError> {
        let spell = Spell::begin(&mut self.spin, clock::now_ns);
        loop {
            for _ in 0..POLLS {
                if let Some(head) = self.try_recv_into(payload)? {
                    spell.paid(&mut self.spin);
                    return Ok(Some(head));
                }
                pause();
            }
            let now = clock::now_ns();
            if !spell.goes_on(now) || (until != FOREVER && now >= until) {
                spell.in_vain(&mut self.spin);
                return Ok(None);
            }
        }
    }

    /// Makes sure that publishers wake us; says whether they do.
    pub(crate) fn announce(&self, left: Option<Duration>) -> bool {
        self.node.core.announce_sleep(&self.feed, left)
    }

    /// Whether nothing is there, nor new.
    pub(crate) fn is_quiet(&self) -> bool {
        self.feed.news.load(Ordering::SeqCst) == self.seen
            && !self.places.are_ready()
            && !self.feed.revoked.load(Ordering::Acquire)
    }

    /// Has an alarm ring when something comes; false, and it rings not, if something is there.
    pub(crate) fn set_alarm(&mut self, alarm: Arc<dyn Alarm>) -> bool {
        self.renew();
        let sure = self.announce(Some(TICK));
        let rings = self.places.words();
        let feed = Arc::clone(&self.feed);
        let watch = Watch { alarm, feed, news: self.seen, rings, sure };
        self.is_quiet() && self.node.core.bus.listener.set(watch)
    }

    /// Waits, in a task of any executor, for the next event.
    ///
    /// # Errors
    /// As for [`try_recv`](Subscription::try_recv).
    pub async fn recv_async(&mut self) -> Result<Event, EventError> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`recv_async`](Subscription::recv_async), for who implements futures and streams.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Event, EventError>> {
        loop {
            match self.try_recv() {
                Ok(Some(event)) => return Poll::Ready(Ok(event)),
                Err(error) => return Poll::Ready(Err(error)),
                Ok(None) => {}
            }
            let alarm = self.waker.get_or_insert_default();
            alarm.set(context.waker());
            let alarm: Arc<dyn Alarm> = Arc::<TaskAlarm>::clone(alarm);
            if self.set_alarm(alarm) {
                return Poll::Pending;
            }
            if self.is_quiet() {
                // There is no thread to be had: try again when it is our turn.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Whether all publishers that are there wait for this subscription, if they are to.
    pub(crate) fn is_seated(&self) -> bool {
        self.places.are_seated()
    }

    pub(crate) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }
}

/// Ends when the subscription can yield nothing any more: after [`EventError::Revoked`],
/// [`EventError::Canceled`] or [`EventError::Forked`].
impl Iterator for Subscription {
    type Item = Result<Event, EventError>;

    /// Waits for the next event, as [`recv`](Subscription::recv) does, for ever.
    fn next(&mut self) -> Option<Self::Item> {
        match self.recv(None) {
            Err(EventError::Revoked | EventError::Canceled | EventError::Forked) => None,
            received => Some(received),
        }
    }
}

fn word(source: &Source, value: u32) -> futex::Word<'_> {
    futex::Word { at: &source.ring.header().event, value, shared: true }
}

/// Wakes a task.
#[derive(Debug, Default)]
struct TaskAlarm(Mutex<Option<Waker>>);

impl TaskAlarm {
    fn set(&self, waker: &Waker) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
    }
}

impl Alarm for TaskAlarm {
    fn ring(&self) {
        if let Some(waker) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }
}
