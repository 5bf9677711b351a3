//! Queues in tasks of a tokio runtime: feature `tokio`.
//!
//! The same producers and consumers, whose requests block no thread. A task runs the loop of a
//! server, as for [`ipc::tokio::call`](crate::tokio::call); the runtime has to have timers
//! (`enable_all`), since a restart of `ipc-queue` is waited for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ::tokio::{
    sync::Mutex,
    task::spawn_blocking,
    time::{sleep, timeout_at},
};

use super::{
    QueueError,
    consumer::{Delivery, QueueConsumer, ms, one},
    post::{Miss, PATIENCE, PAUSE, Post, left, protocol},
    producer::{QueueProducer, Receipt, SendOptions, long, put},
    wire::{self, Ask, Asked, Verdict},
};
use crate::{CallError, CallOptions, Node, Server, tokio::call};

impl Post {
    /// As `ask`, without blocking.
    async fn ask_in_task<T>(
        &self,
        server: &Server,
        who: u64,
        ask: Ask<'_>,
        until: Instant,
        read: impl FnOnce(&[u8], bool) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let request = self.encoded(who, ask);
        let (mut pause, mut was_sent) = (PAUSE[0], false);
        loop {
            match self.try_in_task(server, &request, until).await {
                Ok(answer) => return read(&answer, was_sent),
                Err(Miss::Final(error)) => return Err(error),
                Err(Miss::Again) => was_sent = true,
            }
            rest(&mut pause, until).await?;
        }
    }

    fn encoded(&self, who: u64, ask: Ask<'_>) -> Vec<u8> {
        let mut request = Vec::new();
        wire::encode_ask(&Asked { who, queue: &self.queue, ask }, &mut request);
        request
    }

    async fn try_in_task(
        &self,
        server: &Server,
        request: &[u8],
        until: Instant,
    ) -> Result<Vec<u8>, Miss> {
        // Opening a queue has found it.
        let client = self.known().ok_or(Miss::Again)?;
        let options = CallOptions::timeout(left(until)?);
        call(server, &client, request, options).await.map_err(Post::missed)
    }
}

async fn rest(pause: &mut Duration, until: Instant) -> Result<(), QueueError> {
    let left = left(until).map_err(|_| QueueError::TimedOut)?;
    sleep((*pause).min(left)).await;
    *pause = (*pause * 2).min(PAUSE[1]);
    Ok(())
}

async fn opened<T: Send + 'static>(
    open: impl FnOnce() -> Result<T, QueueError> + Send + 'static,
) -> Result<T, QueueError> {
    let opened = spawn_blocking(open).await;
    opened.unwrap_or(Err(QueueError::Call(CallError::Canceled)))
}

/// Puts messages into one queue, from tasks: see [`QueueProducer`].
///
/// ```no_run
/// # async fn of(node: ipc::Node, server: ipc::Server) -> Result<(), ipc::queue::QueueError> {
/// use ipc::queue::{AsyncQueueConsumer, AsyncQueueProducer, SendOptions};
///
/// let producer = AsyncQueueProducer::open(&node, &server, "orders").await?;
/// producer.send(b"a dozen eggs", &SendOptions::default()).await?;
///
/// let consumer = AsyncQueueConsumer::open(&node, &server, "orders").await?;
/// while let Some(order) = consumer.receive(None).await? {
///     consumer.ack(&order).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct AsyncQueueProducer {
    server: Server,
    producer: Arc<QueueProducer>,
}

impl AsyncQueueProducer {
    /// Opens a queue, in a thread of the runtime's pool. A [`serve`](crate::tokio::serve) of
    /// `server` has to run.
    ///
    /// # Errors
    /// As for [`QueueProducer::open`].
    pub async fn open(
        node: &Node,
        server: &Server,
        queue: &str,
    ) -> Result<AsyncQueueProducer, QueueError> {
        let (node, queue) = (node.clone(), queue.to_owned());
        let producer = opened(move || QueueProducer::open(&node, &queue)).await?;
        Ok(AsyncQueueProducer::of(server, producer))
    }

    /// Makes one of a producer, with its id and numbers.
    pub fn of(server: &Server, producer: QueueProducer) -> AsyncQueueProducer {
        AsyncQueueProducer { server: server.clone(), producer: Arc::new(producer) }
    }

    /// Gives the producer, whose other methods block.
    pub fn producer(&self) -> &QueueProducer {
        &self.producer
    }

    /// Sends a message, and waits until it is stored. The messages of several tasks are under way
    /// at the same time. A future that is dropped may have sent it.
    ///
    /// # Errors
    /// As for [`QueueProducer::send`].
    pub async fn send(&self, payload: &[u8], options: &SendOptions) -> Result<Receipt, QueueError> {
        let AsyncQueueProducer { server, producer } = self;
        let sequence = producer.number();
        let until = Instant::now() + options.timeout;
        loop {
            let ask = put(sequence, payload, options);
            let asked =
                producer.post.ask_in_task(server, producer.id(), ask, until, |answer, _| {
                    let id = wire::decode_number(answer).map_err(protocol)?;
                    Ok(Receipt { id, sequence })
                });
            match asked.await {
                // It lets nobody wait for longer than a minute.
                Err(QueueError::Full) if options.waits_for_room && left(until).is_ok_and(long) => {}
                sent => return sent,
            }
        }
    }
}

/// Takes messages of one queue, from tasks: see [`QueueConsumer`]. Clones are one consumer.
#[derive(Clone, Debug)]
pub struct AsyncQueueConsumer {
    server: Server,
    consumer: Arc<QueueConsumer>,
    /// One task fetches at a time: what was given to it and what is on its way is one account.
    turn: Arc<Mutex<()>>,
}

impl AsyncQueueConsumer {
    /// Opens a queue, in a thread of the runtime's pool. A [`serve`](crate::tokio::serve) of
    /// `server` has to run.
    ///
    /// # Errors
    /// As for [`QueueConsumer::open`].
    pub async fn open(
        node: &Node,
        server: &Server,
        queue: &str,
    ) -> Result<AsyncQueueConsumer, QueueError> {
        let (node, queue) = (node.clone(), queue.to_owned());
        let consumer = opened(move || QueueConsumer::open(&node, &queue)).await?;
        Ok(AsyncQueueConsumer::of(server, consumer))
    }

    /// Makes one of a consumer, with what was set for it. Dropping the last clone may block for a
    /// moment, when it has messages to give back.
    pub fn of(server: &Server, consumer: QueueConsumer) -> AsyncQueueConsumer {
        let (consumer, turn) = (Arc::new(consumer), Arc::default());
        AsyncQueueConsumer { server: server.clone(), consumer, turn }
    }

    /// Gives the consumer, whose other methods block.
    pub fn consumer(&self) -> &QueueConsumer {
        &self.consumer
    }

    /// Takes the next message, waiting up to `timeout` (`None`: for ever) for one. Nothing when
    /// none came. Of several tasks one after another gets one. A future that is dropped loses
    /// nothing: what was given to it is given out again.
    ///
    /// # Errors
    /// As for [`QueueConsumer::receive`].
    pub async fn receive(&self, timeout: Option<Duration>) -> Result<Option<Delivery>, QueueError> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let _turn = match until {
            None => self.turn.lock().await,
            Some(until) => match timeout_at(until.into(), self.turn.lock()).await {
                Ok(turn) => turn,
                Err(_late) => return Ok(None),
            },
        };
        loop {
            if let Some(delivery) = self.consumer.pop()? {
                return Ok(Some(delivery));
            }
            match self.fetch(until).await {
                // Given to us, perhaps, and never seen: that is noted.
                Ok(()) | Err(QueueError::TimedOut) => {}
                Err(error) => return Err(error),
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return self.consumer.pop();
            }
        }
    }

    async fn fetch(&self, until: Option<Instant>) -> Result<(), QueueError> {
        let AsyncQueueConsumer { server, consumer, .. } = self;
        if let Some(ask) = consumer.held_ask() {
            let (_, until) = QueueConsumer::slice(until);
            let told = consumer.post.ask_in_task(server, consumer.id(), ask, until, |_, _| Ok(()));
            told.await?;
            consumer.is_sure();
        }
        let (wait, answer_by) = QueueConsumer::slice(until);
        let request = consumer.post.encoded(consumer.id(), consumer.take_ask(wait));
        // Until its answer is here it may have given us something.
        consumer.is_unsure();
        match consumer.post.try_in_task(server, &request, answer_by).await {
            Ok(answer) => {
                consumer.is_sure();
                consumer.take_in(&answer)
            }
            Err(Miss::Again) => {
                let mut pause = PAUSE[0];
                rest(&mut pause, answer_by).await
            }
            Err(Miss::Final(error)) => Err(error),
        }
    }

    /// Acknowledges a message: it is gone, for good, when this returns.
    ///
    /// # Errors
    /// As for [`QueueConsumer::ack`].
    pub async fn ack(&self, delivery: &Delivery) -> Result<(), QueueError> {
        self.settle(Verdict::Ack, delivery).await
    }

    /// Gives a message back, not to be given out before `delay`.
    ///
    /// # Errors
    /// As for [`QueueConsumer::nack`].
    pub async fn nack(&self, delivery: &Delivery, delay: Duration) -> Result<(), QueueError> {
        self.settle(Verdict::Nack(ms(delay)), delivery).await
    }

    /// Makes a dead letter of a message.
    ///
    /// # Errors
    /// As for [`QueueConsumer::bury`].
    pub async fn bury(&self, delivery: &Delivery) -> Result<(), QueueError> {
        self.settle(Verdict::Bury, delivery).await
    }

    /// Keeps a message for so long from now on.
    ///
    /// # Errors
    /// As for [`QueueConsumer::extend`].
    pub async fn extend(&self, delivery: &Delivery, lease: Duration) -> Result<(), QueueError> {
        self.settle(Verdict::Extend(ms(lease)), delivery).await
    }

    async fn settle(&self, verdict: Verdict, delivery: &Delivery) -> Result<(), QueueError> {
        let AsyncQueueConsumer { server, consumer, .. } = self;
        let delivery = std::slice::from_ref(delivery);
        let ask = QueueConsumer::settle_ask(verdict, delivery);
        let until = Instant::now() + PATIENCE;
        let id = consumer.id();
        let read = |told: &[u8], again| Ok(QueueConsumer::told(told, again));
        let told = consumer.post.ask_in_task(server, id, ask, until, read).await?;
        consumer.settled(verdict, delivery);
        one(told)
    }
}
