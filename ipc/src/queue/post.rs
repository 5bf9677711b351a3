//! The way to `ipc-queue`, also over its restarts.

use std::{
    cell::RefCell,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{
    QueueError,
    wire::{self, Account, Ask, Asked, Message, Terms, check_queue},
};
use crate::{CallError, CallOptions, Client, Node, NodeError, Status};

/// The name that `ipc-queue` serves unless it is told otherwise.
pub const SERVICE: &str = "ipc.queue";

/// How long a request may take that waits for nobody.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks whether the service is back.
pub(super) const PAUSE: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];

/// A queue, and how to reach it.
#[derive(Debug)]
pub(super) struct Post {
    node: Node,
    service: String,
    pub(super) queue: String,
    client: Mutex<Option<Client>>,
}

/// How an attempt ended that did not come through.
pub(super) enum Miss {
    /// Nobody heard of it, or nobody knows: it may be sent once more.
    Again,
    /// It came through, or never will.
    Final(QueueError),
}

thread_local! {
    /// The request at hand, and its answer.
    static SCRATCH: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl Post {
    pub(super) fn new(node: &Node, service: &str, queue: &str) -> Result<Post, QueueError> {
        check_queue(queue).map_err(QueueError::Name)?;
        Ok(Post::of_service(node, service, queue))
    }

    fn of_service(node: &Node, service: &str, queue: &str) -> Post {
        let (service, queue) = (service.to_owned(), queue.to_owned());
        Post { node: node.clone(), service, queue, client: Mutex::new(None) }
    }

    /// Asks until it is answered or `until`, and gives the answer to `read`, with whether it was
    /// sent more than once. Only for what may be sent more than once.
    pub(super) fn ask<T>(
        &self,
        who: u64,
        ask: Ask<'_>,
        until: Instant,
        read: impl FnOnce(&[u8], bool) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let asked = Asked { who, queue: &self.queue, ask };
        SCRATCH.with(|scratch| {
            // A callback that sends from within a call would find it taken.
            let mut fresh = (Vec::new(), Vec::new());
            let mut borrowed = scratch.try_borrow_mut();
            let (request, answer) = borrowed.as_deref_mut().unwrap_or(&mut fresh);
            wire::encode_ask(&asked, request);
            let mut pause = PAUSE[0];
            let mut was_sent = false;
            loop {
                match self.try_once(request, answer, until) {
                    Ok(()) => return read(answer, was_sent),
                    Err(Miss::Final(error)) => return Err(error),
                    Err(Miss::Again) => was_sent = true,
                }
                Post::rest(&mut pause, until)?;
            }
        })
    }

    /// As `ask`, once: who gets [`Miss::Again`] decides whether to send it again.
    pub(super) fn ask_once(&self, who: u64, ask: Ask<'_>, until: Instant) -> Result<Vec<u8>, Miss> {
        let (mut request, mut answer) = (Vec::new(), Vec::new());
        wire::encode_ask(&Asked { who, queue: &self.queue, ask }, &mut request);
        self.try_once(&request, &mut answer, until)?;
        Ok(answer)
    }

    fn try_once(&self, request: &[u8], answer: &mut Vec<u8>, until: Instant) -> Result<(), Miss> {
        let client = self.client(until)?;
        let options = CallOptions::timeout(left(until)?);
        client.call_into_vec(request, answer, options).map_err(Post::missed)
    }

    /// The channel, found when it is first needed.
    pub(super) fn client(&self, until: Instant) -> Result<Client, Miss> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let found = self.node.wait_service(&self.service, Some(left(until)?));
        let opened = found.and_then(|service| self.node.client(service));
        let opened = opened.map_err(|error| Post::missed(error.into()))?;
        Ok(client.insert(opened).clone())
    }

    /// The channel, if it was found.
    #[cfg(feature = "tokio")]
    pub(super) fn known(&self) -> Option<Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Judges a failure.
    pub(super) fn missed(error: CallError) -> Miss {
        match error {
            CallError::Remote(Status::NO_REPLY) | CallError::PeerDied { .. } | CallError::Full => {
                Miss::Again
            }
            CallError::Remote(status) => Miss::Final(QueueError::of(status)),
            CallError::TimedOut => Miss::Final(QueueError::TimedOut),
            CallError::Node(error) => match *error {
                NodeError::NoRuntime { .. }
                | NodeError::Refused(
                    Status::NOT_FOUND | Status::PEER_DIED | Status::TIMED_OUT | Status::FULL,
                ) => Miss::Again,
                NodeError::TimedOut => Miss::Final(QueueError::TimedOut),
                other => Miss::Final(QueueError::Call(other.into())),
            },
            other => Miss::Final(QueueError::Call(other)),
        }
    }

    /// Waits a little, and until the service is there.
    pub(super) fn rest(pause: &mut Duration, until: Instant) -> Result<(), QueueError> {
        let left = left(until).map_err(|_| QueueError::TimedOut)?;
        thread::sleep((*pause).min(left));
        *pause = (*pause * 2).min(PAUSE[1]);
        Ok(())
    }
}

/// The time that is left.
pub(super) fn left(until: Instant) -> Result<Duration, Miss> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Miss::Final(QueueError::TimedOut)) } else { Ok(left) }
}

/// Draws the number by which a producer or consumer is known.
pub(super) fn draw() -> Result<u64, QueueError> {
    let drawn = getrandom::u64().map_err(|_| NodeError::System {
        what: "draw a random number",
        source: std::io::ErrorKind::Unsupported.into(),
    })?;
    // 0 is nobody's.
    Ok(drawn | 1)
}

pub(super) fn protocol(status: Status) -> QueueError {
    QueueError::Call(CallError::Remote(status))
}

/// Looks after queues: for operators' programs. Asking needs `OP_ADMIN` on the service.
#[derive(Debug)]
pub struct QueueAdmin {
    node: Node,
    service: String,
}

impl QueueAdmin {
    /// Makes one, for the service of that name ([`SERVICE`]). Nothing is asked yet.
    pub fn new(node: &Node, service: &str) -> QueueAdmin {
        QueueAdmin { node: node.clone(), service: service.to_owned() }
    }

    fn ask<T>(
        &self,
        queue: &str,
        ask: Ask<'_>,
        timeout: Duration,
        read: impl FnOnce(&[u8], bool) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let post = Post::of_service(&self.node, &self.service, queue);
        post.ask(0, ask, Instant::now() + timeout, read)
    }

    /// Says how all queues stand, by name.
    ///
    /// # Errors
    /// [`QueueError`]: `Forbidden`, `TimedOut`, or the call's.
    pub fn list(&self, timeout: Duration) -> Result<Vec<Account>, QueueError> {
        let mut all: Vec<Account> = Vec::new();
        loop {
            let from = all.last().map_or("", |account| &account.name).to_owned();
            let page = self.ask(&from, Ask::List { all: true }, timeout, |answer, _| {
                wire::decode_accounts(answer).map_err(protocol)
            })?;
            let before = all.len();
            all.extend(page.into_iter().filter(|it| it.name > from));
            if all.len() == before {
                return Ok(all);
            }
        }
    }

    /// Looks at messages, or dead letters, with ids above one; gives at most so many, each with
    /// its attempts so far.
    ///
    /// # Errors
    /// [`QueueError`]: `Name`, `NoQueue`, `Forbidden`, `TimedOut`, or the call's.
    pub fn peek(
        &self,
        queue: &str,
        dead: bool,
        above: u64,
        most: u16,
        timeout: Duration,
    ) -> Result<Vec<super::Delivery>, QueueError> {
        check_queue(queue).map_err(QueueError::Name)?;
        self.ask(queue, Ask::Peek { above, most, dead }, timeout, |answer, _| {
            let messages = wire::decode_messages(answer).map_err(protocol)?;
            Ok(messages.iter().map(|it: &Message<'_>| super::Delivery::of(it)).collect())
        })
    }

    /// Has dead letters given out again, as if they had never been, at most so many; says how many.
    ///
    /// # Errors
    /// As for [`peek`](QueueAdmin::peek), and those of storing.
    pub fn redrive(&self, queue: &str, most: u32, timeout: Duration) -> Result<u64, QueueError> {
        check_queue(queue).map_err(QueueError::Name)?;
        self.ask(queue, Ask::Redrive { most }, timeout, |answer, _| {
            wire::decode_number(answer).map_err(protocol)
        })
    }

    /// Throws away the messages that nobody has, or the dead letters only; says how many.
    ///
    /// # Errors
    /// As for [`peek`](QueueAdmin::peek), and those of storing.
    pub fn purge(&self, queue: &str, dead: bool, timeout: Duration) -> Result<u64, QueueError> {
        check_queue(queue).map_err(QueueError::Name)?;
        self.ask(queue, Ask::Purge { dead }, timeout, |answer, _| {
            wire::decode_number(answer).map_err(protocol)
        })
    }
}

/// Opens a queue: asks what holds for it.
pub(super) fn open(post: &Post, who: u64) -> Result<Terms, QueueError> {
    post.ask(who, Ask::Open, Instant::now() + PATIENCE, |answer, _| {
        wire::decode_terms(answer).map_err(protocol)
    })
}
