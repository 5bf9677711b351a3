//! The server's end of a channel: takes requests in their order, and sends the answers.

mod order;
mod outbox;
mod stand;
mod traced;

use std::{
    cell::Cell,
    sync::{Arc, Mutex, OnceLock, Weak},
};

use self::order::{Next, goes_first, pop};
use self::outbox::{Answer, Outbox};
use self::traced::Sent;
use super::{
    hub::Hub,
    request::{Bulk, Meta, Request},
};
use crate::{
    board::{Begun, Tally},
    bulk::{self, Loan, Unread, View},
    channel::{Channel, Fate, Receive, Taken, check_payload},
    clock,
    error::{CallError, PeerCorrupt, Status},
    failover::post::Post,
    frame::{FLAG_EXTENSION, Frame, Head, Kind, Label},
    layout::Ring,
    node::Closing,
    ring::PushError,
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, pause},
    trace::Context,
};

/// Most frames taken from one channel before the loop looks about. The clock is read after 1, 2, 4
/// and so on: the longer a turn, the less of it goes into that.
const BATCH: usize = 256;
const _: () = assert!(BATCH as u64 <= Tally::MOST);
/// Most of them while another channel is polled, too.
const SHARED: usize = 64;
/// Most messages in a turn while others are served, too, by how many are polled: the more there
/// are, the shorter all of their turns, but none is shorter than this.
const FEWEST: usize = 4;
/// Longest turn while nobody else is served, in ns: it bounds what an armed channel waits for.
const ALONE_NS: u64 = 4_000;
/// Longest turn while others are: as long as a short call.
const SHARED_NS: u64 = 250;
/// With a handler as long as this, in ns, going round costs nothing: one message is a turn.
const SLOW_NS: u64 = 20_000;

/// The bits of `operation_type_t` by which a client may call, and send one way.
const MAY_CALL: u64 = 1;
const MAY_SEND: u64 = 1 << 1;

/// What a handler is.
pub(crate) type Handler<'a> = dyn FnMut(Request<'_>) + 'a;

/// A request that was taken before its turn.
#[derive(Debug)]
pub(crate) struct Queued {
    meta: Meta,
    id: u32,
    body: Body,
}

/// What a message that does not lie in the receive buffer consists of.
#[derive(Debug)]
pub(crate) enum Body {
    Bytes(Vec<u8>),
    Bulk(View),
    /// Of a trace: of a handler's payload the bytes, or where they lie.
    Traced(Context, Vec<u8>),
    TracedBulk(Context, View),
}

#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) channel: Channel,
    hub: Weak<Hub>,
    /// This channel's number in the loop.
    pub(crate) token: AtomicU32,
    /// Whether requests wait that were taken from the rings already.
    queued: AtomicBool,
    /// Whether the outbox has anything; looked at before the lock.
    backlog: AtomicBool,
    outbox: Mutex<Outbox>,
    /// Whether this end stands by.
    held: AtomicBool,
    /// The epoch at which the instance serves its name, or 0.
    epoch: AtomicU64,
    /// What the channels of the instance share.
    post: OnceLock<Weak<Post>>,
    /// Whether this client may not call, or not send one way.
    forbidden: Forbidden,
    /// Tells the runtime that this end is closed.
    _closing: Closing,
}

/// What the rules keep from a client, though it may do the other.
#[derive(Clone, Copy, Debug)]
struct Forbidden {
    call: bool,
    send: bool,
}

/// A request that comes so long after the loop last came by finds it at leisure: its handler is
/// timed, and counts for itself; of the others one in 64 is. In ns.
const LEISURE_NS: u64 = 10_000;

/// Pauses, of about 20 ns each, that let a stream of one-way messages get ahead.
const STREAM_PAUSES: u32 = 8;

/// What a channel may take up before the others are looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    is_shared: bool,
    messages: usize,
    ns: u64,
}

impl Turn {
    /// Of the only one that had anything of late.
    pub(crate) const ALONE: Turn = Turn { is_shared: false, messages: BATCH, ns: ALONE_NS };

    /// Of one among so many that are polled.
    #[inline]
    pub(crate) fn among(channels: usize) -> Turn {
        Turn { is_shared: true, messages: (SHARED / channels.max(1)).max(FEWEST), ns: SHARED_NS }
    }
}

/// Gives up the loop's leadership before a handler runs, if another thread waits for it.
pub(crate) trait Yield {
    /// Called before each handler.
    fn before_handler(&mut self);
}

impl Incoming {
    pub(crate) fn new(channel: Channel, hub: Weak<Hub>, closing: Closing) -> Incoming {
        let allowed = channel.introduction.permissions;
        let forbidden = Forbidden { call: allowed & MAY_CALL == 0, send: allowed & MAY_SEND == 0 };
        Incoming {
            channel,
            forbidden,
            _closing: closing,
            hub,
            token: AtomicU32::new(u32::MAX),
            queued: AtomicBool::new(false),
            held: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            post: OnceLock::new(),
            backlog: AtomicBool::new(false),
            outbox: Mutex::default(),
        }
    }

    /// Serves what is there until its turn is over. Returns the number of requests that were
    /// handled, or nothing when another thread is serving this channel.
    #[inline]
    pub(crate) fn serve(
        self: &Arc<Self>,
        mut now: u64,
        turn: Turn,
        loop_: &mut impl Yield,
        handler: &mut Handler<'_>,
    ) -> Option<usize> {
        let mut rx = self.channel.rx.try_claim()?;
        if self.is_apart(&mut rx) {
            self.greet_apart(&mut rx);
            return Some(self.serve_queued(&mut rx, loop_, handler));
        }
        let (mut served, mut streams, mut one_ways) = (0, false, Tally::NOTHING);
        let limit = self.channel.max_payload;
        self.channel.set_busy(now);
        // When the turn began, as of after its first message: most turns are over with that, and
        // need no look at the clock. The looks come after 1, 2, 4, ... messages.
        let (mut begun, mut look_after, mut is_over) = (0, 1, false);
        rx.look_in(now, LEISURE_NS);
        // Where the next message is one to time, or one to look before: so one comparison serves
        // both.
        let mut timed_at = rx.sampler.left as usize - 1;
        let mut stop_at = timed_at.min(look_after);
        for _ in 0..BATCH {
            if served == stop_at {
                if served == look_after {
                    if rx.queue.is_empty() && !rx.is_ready() {
                        break;
                    }
                    let then = clock::now_ns();
                    is_over = if served == 1 {
                        begun = then;
                        then.saturating_sub(now) >= SLOW_NS
                    } else {
                        served >= turn.messages || then.saturating_sub(begun) >= turn.ns
                    };
                    if is_over {
                        break;
                    }
                    look_after *= 2;
                }
                stop_at = timed_at.min(look_after);
            }
            // What is first in its ring, of the highest level that can be there, while nothing
            // waits, is next: the usual case, without a detour.
            let ring = if rx.urgent.is_ready() { Ring::Urgent } else { Ring::Ordinary };
            if rx.queue.is_empty()
                && served != stop_at
                // Once for each ring: what is known of it is compiled in.
                && let Some(frame) = match ring {
                    Ring::Urgent => rx.take_plain(Ring::Urgent, limit),
                    Ring::Ordinary => rx.take_plain(Ring::Ordinary, limit),
                }
            {
                if served > 0 && frame.head.deadline != 0 {
                    // The handlers before it took time of their own.
                    now = clock::now_ns();
                }
                let meta = self.meta(&mut rx, &frame.head, now);
                loop_.before_handler();
                streams = meta.kind == Kind::OneWay;
                let length = u64::from(frame.head.length);
                if streams {
                    // Counted by the batch: counters in shared memory per message are seen in a
                    // stream.
                    one_ways.add(length);
                } else {
                    rx.board.receiver.received(1, length);
                }
                let payload = &rx.buffer[..frame.head.length as usize];
                served += self.dispatch(meta, now, payload, None, handler);
                continue;
            }
            if served > 0 {
                if rx.queue.is_empty() && !rx.is_ready() {
                    break;
                }
                now = clock::now_ns();
            }
            match self.next(&mut rx, ring, now) {
                Ok(Next::Fresh(meta, length)) => {
                    loop_.before_handler();
                    streams = meta.kind == Kind::OneWay;
                    let is_its_turn = served >= timed_at;
                    let begun = rx.begin(is_its_turn, streams);
                    served += self.dispatch_timed(meta, now, length, begun, &rx, handler);
                    if is_its_turn {
                        timed_at = served + rx.sampler.left as usize - 1;
                    }
                }
                Ok(Next::Owned(meta, body)) => {
                    loop_.before_handler();
                    let begun = Begun::alone(clock::now_ns());
                    served += self.dispatch_owned(meta, now, body, handler);
                    rx.time(begun);
                    timed_at = timed_at.max(served);
                }
                Ok(Next::Again) => {}
                Ok(Next::Nothing) => break,
                Err(lie) => {
                    self.channel.end(Fate::Poisoned(lie));
                    break;
                }
            }
            stop_at = timed_at.min(look_after);
        }
        self.queued.store(!rx.queue.is_empty(), Ordering::Release);
        rx.sampler.left = (timed_at + 1 - served) as u32;
        rx.count(one_ways);
        self.channel.set_busy(0);
        self.channel.prepare(&mut rx);
        drop(rx);
        self.channel.after_take();
        if streams && !turn.is_shared && !is_over && served < BATCH {
            linger();
        }
        Some(served)
    }

    /// Whether a frame is there, or a request that was taken before its turn. Exact for who holds
    /// the receiving claim.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.channel.is_ready() && (!self.is_held() || self.channel.awaits_greeting())
            || self.queued.load(Ordering::Acquire)
    }

    /// Finds what to handle next: fresh from a ring when nothing better waits, else queued.
    #[inline(never)]
    fn next(self: &Arc<Self>, rx: &mut Receive, ring: Ring, now: u64) -> Result<Next, PeerCorrupt> {
        if rx.queue.is_full() {
            return Ok(pop(rx, now));
        }
        match rx.take(ring, self.channel.max_payload)? {
            None => Ok(pop(rx, now)),
            Some(Taken::Fragment) => Ok(Next::Again),
            Some(Taken::Hello(message)) => {
                // The next turn learns where the ids begin, before the first of them.
                self.channel.greeted(rx, &message).map(|()| Next::Nothing)
            }
            Some(Taken::Refused(frame, status)) => Ok(self.refuse(rx, &frame, now, status)),
            Some(Taken::Whole(frame, _)) => match frame.head.kind {
                Kind::Request | Kind::OneWay => Ok(self.place_whole(rx, ring, &frame, now)),
                _ => {
                    self.control(rx, &frame);
                    Ok(Next::Again)
                }
            },
            Some(Taken::Long(frame, payload)) => {
                let is_traced = frame.head.flags & FLAG_EXTENSION != 0;
                let body = if is_traced { traced::split(&payload) } else { Body::Bytes(payload) };
                Ok(self.place(rx, ring, &frame, now, body))
            }
            Some(Taken::Bulk(frame, descriptor)) => {
                let status = match self.channel.borrower.view(self.channel.bell(), descriptor) {
                    Ok(view) if view.len() as u64 <= self.channel.max_payload => {
                        let body = match traced::before(&frame, &rx.buffer) {
                            Some(context) => Body::TracedBulk(context, view),
                            None => Body::Bulk(view),
                        };
                        return Ok(self.place(rx, ring, &frame, now, body));
                    }
                    Ok(_) => Status::MESSAGE_SIZE,
                    Err(Unread::NoMeans(_)) => Status::FULL,
                    Err(Unread::Lie(lie)) => return Err(lie),
                };
                Ok(self.refuse(rx, &frame, now, status))
            }
        }
    }

    /// Passes over a message that cannot be taken in; who waits for an answer is told why.
    fn refuse(&self, rx: &mut Receive, frame: &Frame, now: u64, status: Status) -> Next {
        self.dropped();
        let meta = self.meta(rx, &frame.head, now);
        if meta.kind == Kind::Request {
            let _ = self.answer_error(&meta, status);
        }
        Next::Again
    }

    fn place_whole(&self, rx: &mut Receive, ring: Ring, frame: &Frame, now: u64) -> Next {
        let length = frame.head.length as usize;
        if frame.head.flags & FLAG_EXTENSION != 0 {
            let body = traced::split(&rx.buffer[..length]);
            return self.place(rx, ring, frame, now, body);
        }
        let meta = self.meta(rx, &frame.head, now);
        if goes_first(rx, ring, meta.priority) {
            return Next::Fresh(meta, length);
        }
        let body = Body::Bytes(rx.buffer[..length].to_vec());
        rx.queue.push(meta.priority, Queued { meta, id: frame.head.id, body });
        Next::Again
    }

    fn place(&self, rx: &mut Receive, ring: Ring, frame: &Frame, now: u64, body: Body) -> Next {
        let meta = self.meta(rx, &frame.head, now);
        if goes_first(rx, ring, meta.priority) {
            return Next::Owned(meta, body);
        }
        rx.queue.push(meta.priority, Queued { meta, id: frame.head.id, body });
        Next::Again
    }

    #[inline(always)]
    fn meta(&self, rx: &mut Receive, head: &Head, now: u64) -> Meta {
        Meta {
            message_id: rx.extend_id(head.id),
            kind: head.kind,
            priority: head.priority,
            deadline_ns: self.channel.deadline_ns(head.deadline, now),
            received_ns: now,
            epoch: self.epoch(),
        }
    }

    /// Handles the frames that are no messages.
    #[cold]
    fn control(self: &Arc<Self>, rx: &mut Receive, frame: &Frame) {
        let id = frame.head.id;
        match frame.head.kind {
            Kind::Ping => self.post(Label::new(Kind::Pong, 0).with_id(id), &[]),
            Kind::Cancel => {
                rx.forget(id);
                for request in rx.queue.remove(|queued| queued.id == id) {
                    if request.meta.kind == Kind::Request {
                        let _ = self.answer_error(&request.meta, Status::CANCELED);
                    }
                }
            }
            // `Frame::check` lets no other kind come from a client.
            Kind::Request
            | Kind::OneWay
            | Kind::Response
            | Kind::Error
            | Kind::Close
            | Kind::Continue
            | Kind::Pong
            | Kind::Hello => {}
        }
    }

    /// Answers a request whose time is over. Takes no reference to a `Meta`: what is referred to
    /// lies in memory, from where it is copied to the handler by larger words than it was stored.
    #[cold]
    fn expire(&self, message_id: u64, kind: Kind, priority: u32) {
        self.dropped();
        if kind == Kind::Request {
            let (deadline_ns, received_ns, epoch) = (None, 0, 0);
            let meta = Meta { message_id, kind, priority, deadline_ns, received_ns, epoch };
            let _ = self.answer_error(&meta, Status::TIMED_OUT);
        }
    }

    /// As `dispatch`, away from the usual path, for the same reason.
    #[inline(never)]
    fn dispatch_timed(
        self: &Arc<Self>,
        meta: Meta,
        now: u64,
        length: usize,
        begun: Begun,
        rx: &Receive,
        handler: &mut Handler<'_>,
    ) -> usize {
        let payload = &rx.buffer[..length];
        let served = self.maybe_traced(meta, Sent::Bytes(payload), || {
            self.dispatch(meta, now, payload, None, handler)
        });
        rx.time(begun);
        served
    }

    #[inline(never)]
    fn dispatch_owned(
        self: &Arc<Self>,
        meta: Meta,
        now: u64,
        body: Body,
        handler: &mut Handler<'_>,
    ) -> usize {
        match body {
            Body::Bytes(payload) => self.maybe_traced(meta, Sent::Bytes(&payload), || {
                self.dispatch(meta, now, &payload, None, handler)
            }),
            Body::Bulk(view) => {
                let bulk = Arc::new(Bulk::new(view));
                self.maybe_traced(meta, Sent::Lent(bulk.view()), || {
                    self.dispatch(meta, now, &[], Some(&bulk), handler)
                })
            }
            Body::TracedBulk(context, view) => {
                let bulk = Arc::new(Bulk::new(view));
                self.traced(context.child(), context.span, meta, Sent::Lent(bulk.view()), || {
                    self.dispatch(meta, now, &[], Some(&bulk), handler)
                })
            }
            Body::Traced(context, payload) => {
                self.traced(context.child(), context.span, meta, Sent::Bytes(&payload), || {
                    self.dispatch(meta, now, &payload, None, handler)
                })
            }
        }
    }

    /// Counts a message that no handler gets.
    #[cold]
    fn dropped(&self) {
        self.channel.board().identity.drops.add_shared(1);
    }

    #[inline(always)]
    fn dispatch(
        self: &Arc<Self>,
        meta: Meta,
        now: u64,
        payload: &[u8],
        bulk: Option<&Arc<Bulk>>,
        handler: &mut Handler<'_>,
    ) -> usize {
        let forbidden = match meta.kind {
            Kind::Request => self.forbidden.call,
            _ => self.forbidden.send,
        };
        if forbidden {
            if meta.kind == Kind::Request {
                let _ = self.answer_error(&meta, Status::ACCESS);
            }
            return 0;
        }
        if meta.deadline_ns.is_some_and(|deadline| deadline < now) {
            self.expire(meta.message_id, meta.kind, meta.priority);
            return 0;
        }
        handler(Request { incoming: self, meta, payload, bulk, answered: Cell::new(false) });
        1
    }

    /// Sends a response.
    #[inline]
    pub(crate) fn answer(&self, meta: &Meta, payload: &[u8]) -> Result<(), CallError> {
        check_payload(payload.len(), self.channel.max_payload)?;
        self.check(meta)?;
        self.maybe_show(meta, || Sent::Bytes(payload));
        if payload.len() >= bulk::FROM
            && let Some(loan) = self.channel.lend_copy(payload)
        {
            return self.hand_over(meta, loan);
        }
        self.post(response(meta), payload);
        Ok(())
    }

    /// Sends a response that was lent.
    pub(crate) fn answer_loaned(&self, meta: &Meta, loan: Loan) -> Result<(), CallError> {
        self.check(meta)?;
        self.maybe_show(meta, || Sent::of(&loan));
        self.hand_over(meta, loan)
    }

    fn hand_over(&self, meta: &Meta, loan: Loan) -> Result<(), CallError> {
        self.channel.check_loan(&loan)?;
        if let Some(bytes) = loan.private_bytes() {
            self.post(response(meta), bytes);
            return Ok(());
        }
        loan.hand_over(|descriptor| {
            self.post(response(meta).in_bulk(), descriptor);
            Ok(())
        })
    }

    /// Sends a status in place of a response.
    pub(crate) fn answer_error(&self, meta: &Meta, status: Status) -> Result<(), CallError> {
        if status.code() >= 0 {
            return Err(CallError::Invalid("an error status is negative"));
        }
        self.check(meta)?;
        self.channel.board().identity.errors.add_shared(1);
        let payload = status.code().to_le_bytes();
        let label = Label::new(Kind::Error, meta.priority).with_id(meta.message_id as u32);
        self.post(label, &payload);
        Ok(())
    }

    #[inline]
    fn check(&self, meta: &Meta) -> Result<(), CallError> {
        self.channel.check_fork()?;
        if meta.kind != Kind::Request {
            return Err(CallError::Invalid("a one-way message has no answer"));
        }
        if self.channel.fate() != Fate::Open {
            return Err(self.channel.ended(false));
        }
        Ok(())
    }

    #[inline]
    fn post(&self, label: Label, payload: &[u8]) {
        let mut sent = 0;
        let pushed = if self.backlog.load(Ordering::Acquire) {
            Err(PushError::Full { wake_at: 0 })
        } else {
            let mut tx = self.channel.tx.claim();
            let pushed = tx.push(label, payload, &mut sent);
            if pushed.is_ok() {
                tx.count(label, payload);
            }
            pushed
        };
        match pushed {
            Ok(()) => self.channel.after_push(),
            Err(PushError::Corrupt(lie)) => self.channel.end(Fate::Poisoned(lie)),
            // Only a client's channel is replaced.
            Err(PushError::Retired) => {}
            Err(PushError::Full { .. }) => {
                self.queue(Answer { label, payload: payload.to_vec(), sent });
            }
        }
    }

    /// Has the loop look at this channel.
    pub(crate) fn summon(&self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.summon(self.token.load(Ordering::Relaxed));
        }
    }
}

/// Lets a stream run on for a moment. Its sender is slower than we are: polled at once, the line
/// that it is about to write would have to come back to it for every single message.
#[inline]
fn linger() {
    (0..STREAM_PAUSES).for_each(|_| pause());
}

#[inline(always)]
fn response(meta: &Meta) -> Label {
    Label::new(Kind::Response, meta.priority).with_id(meta.message_id as u32)
}
