//! The client's end of a channel: sends requests, and waits for the answers, for all threads.
//!
//! One waiter at a time *leads*: it holds the receiving claim, reads the ring for everybody, and
//! puts the others' answers into their slots. The others *follow*, asleep in their slots, until
//! they are answered or called to lead. A leader that leaves calls a follower.

mod callbacks;
mod line;
mod pulse;
mod relay;
mod traced;
mod wait;

use std::{
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use self::line::Lines;
pub use self::line::Queued;
pub(crate) use self::relay::Going;
pub(crate) use self::traced::extended;
use crate::{
    board::Begun,
    bulk::{self, Loan, View},
    channel::{Channel, Claimed, Fate, Transmit, check_payload, ring_of},
    client::ClientState,
    clock,
    error::{CallError, PeerCorrupt},
    frame::{Kind, Label},
    interrupt::Interrupter,
    node::Closing,
    ring::PushError,
    server::Hub,
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    table::{Outcome, Table, Waiter},
    trace,
};

/// No deadline.
pub(crate) const FOREVER: u64 = u64::MAX;

/// Where an answer goes.
#[derive(Debug)]
pub(crate) enum Sink<'a> {
    /// The front of a slice; its used length is noted.
    Slice(&'a mut [u8], usize),
    /// A vector, whose contents are replaced.
    Vector(&'a mut Vec<u8>),
    /// A view, if it comes in bulk, without a copy.
    View(&'a mut Option<View>),
}

impl Sink<'_> {
    #[inline]
    fn accept(&mut self, length: usize) -> Result<&mut [u8], CallError> {
        match self {
            Sink::Slice(slice, used) => {
                *used = length;
                let limit = slice.len() as u64;
                slice.get_mut(..length).ok_or(CallError::TooLarge { size: length as u64, limit })
            }
            Sink::Vector(vector) => {
                vector.resize(length, 0);
                Ok(vector)
            }
            Sink::View(view) => Ok(view.insert(View::of(vec![0; length])).private_mut()),
        }
    }

    /// Takes what lies in bulk memory.
    fn accept_view(&mut self, lent: View) -> Result<(), CallError> {
        match self {
            Sink::Slice(..) => {
                lent.copy_to(self.accept(lent.len())?);
            }
            Sink::Vector(vector) => lent.copy_into(vector),
            Sink::View(view) => **view = Some(lent),
        }
        Ok(())
    }

    fn accept_bytes(&mut self, bytes: Vec<u8>) -> Result<(), CallError> {
        match self {
            Sink::Vector(vector) => **vector = bytes,
            Sink::View(view) => **view = Some(View::of(bytes)),
            Sink::Slice(..) => self.accept(bytes.len())?.copy_from_slice(&bytes),
        }
        Ok(())
    }
}

/// What a message carries.
#[derive(Debug)]
pub(crate) enum Parcel<'a> {
    Bytes(&'a [u8]),
    /// What was lent by the same channel.
    Loan(Loan),
}

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// The whole call, at this time in ns of `CLOCK_MONOTONIC`. The service is told.
    At(u64),
    /// The same, too late for the deadline field of a frame: the service is not told.
    Later(u64),
    /// Waiting for room in the ring, after so many ns. The clock is read only if there is none.
    Room(u64),
}

/// The longest limit that fits the deadline field: 32 bits of µs, of which half are the past.
const LONGEST_TOLD: Duration = Duration::from_mins(30);

impl Limit {
    /// A call's limit, of this length from now.
    #[inline]
    pub(crate) fn after(timeout: Option<Duration>) -> Limit {
        match timeout {
            Some(timeout) if timeout > LONGEST_TOLD => Limit::Later(until(Some(timeout))),
            timeout => Limit::At(until(timeout)),
        }
    }

    /// A wait for room, of this length at most.
    #[inline(always)]
    pub(crate) fn room(timeout: Option<Duration>) -> Limit {
        Limit::Room(timeout.map_or(FOREVER, whole_ns))
    }

    #[inline]
    pub(crate) fn at(self) -> u64 {
        match self {
            Limit::At(at) | Limit::Later(at) => at,
            Limit::Room(FOREVER) => FOREVER,
            Limit::Room(length) => clock::now_ns().saturating_add(length),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) channel: Channel,
    table: Table,
    interrupter: Arc<Interrupter>,
    calls: Arc<Calls>,
    /// Threads asleep in their slots, or about to be.
    followers: AtomicU32,
    /// This channel's number in the loop that runs the callbacks.
    pub(crate) token: AtomicU32,
    /// Whose it is, if others may take its place.
    relay: OnceLock<Weak<ClientState>>,
    /// Whether another one has.
    retired: AtomicBool,
    /// After how long who waits looks after who serves, in ns; `FOREVER` where it does not.
    interval_ns: AtomicU64,
    _closing: Closing,
}

/// What the calls of a client have in common, whichever channel they go by.
#[derive(Debug)]
struct Calls {
    /// The first id.
    first_id: u64,
    /// The last id that was issued.
    issued: AtomicU64,
    /// Calls that a callback waits for.
    callbacks: AtomicU32,
    /// The earliest time at which one of those expires; may be too early, never too late.
    next_expiry: AtomicU64,
    /// When the loop looks after who serves, for those.
    look_at: AtomicU64,
    /// Calls that wait for a slot or for room, and whether there are any.
    lines: Mutex<Lines>,
    is_lined: AtomicBool,
    /// The loop that runs the callbacks.
    hub: OnceLock<Weak<Hub>>,
}

impl Link {
    pub(crate) fn new(
        channel: Channel,
        outstanding: u32,
        interrupter: Arc<Interrupter>,
        closing: Closing,
    ) -> Link {
        let calls = Calls {
            first_id: channel.first_id(),
            issued: AtomicU64::new(0),
            callbacks: AtomicU32::new(0),
            next_expiry: AtomicU64::new(FOREVER),
            look_at: AtomicU64::new(FOREVER),
            lines: Mutex::default(),
            is_lined: AtomicBool::new(false),
            hub: OnceLock::new(),
        };
        Link::of(channel, Table::new(outstanding), Arc::new(calls), interrupter, closing)
    }

    fn of(
        channel: Channel,
        table: Table,
        calls: Arc<Calls>,
        interrupter: Arc<Interrupter>,
        closing: Closing,
    ) -> Link {
        Link {
            channel,
            table,
            interrupter,
            calls,
            followers: AtomicU32::new(0),
            token: AtomicU32::new(u32::MAX),
            relay: OnceLock::new(),
            retired: AtomicBool::new(false),
            interval_ns: AtomicU64::new(FOREVER),
            _closing: closing,
        }
    }

    /// Makes a link by which the calls of this one can go on.
    pub(crate) fn beside(&self, channel: Channel, closing: Closing) -> Link {
        let (table, calls) = (self.table.share(), Arc::clone(&self.calls));
        Link::of(channel, table, calls, Arc::clone(&self.interrupter), closing)
    }

    /// Sends a request and waits for its answer.
    #[inline(always)]
    pub(crate) fn call(
        &self,
        label: Label,
        parcel: Parcel<'_>,
        limit: Limit,
        sink: &mut Sink<'_>,
    ) -> Result<(), CallError> {
        // A ping is for nobody's sake, and its frame has no room for whose.
        if let Some(context) = trace::current().filter(|_| !label.is(Kind::Ping)) {
            return self.call_traced(context, label, parcel, limit, sink);
        }
        let turn = self.interrupter.turn();
        let payload = match &parcel {
            Parcel::Bytes(payload) => Some(*payload),
            Parcel::Loan(_) => None,
        };
        let id = self.request(label, parcel, limit, Waiter::Thread)?;
        match self.wait(id as u32, limit.at(), turn, sink) {
            Err(error) if self.moves_on(id, &error) => {
                let again = payload.map(|payload| (label, payload));
                self.go_on(Going { id, again, limit, turn }, error, sink)
            }
            result => result,
        }
    }

    /// Sends a request whose answer its waiter will get. Returns the message id.
    ///
    /// # Errors
    /// [`CallError`]; then nothing will come, and a callback was dropped.
    #[inline(always)]
    pub(crate) fn request(
        &self,
        label: Label,
        parcel: Parcel<'_>,
        limit: Limit,
        waiter: Waiter,
    ) -> Result<u64, CallError> {
        let keeps = !matches!(waiter, Waiter::Thread) && self.relay.get().is_some();
        self.load(label, parcel, keeps, |label, bytes| {
            self.request_frames(label, bytes, limit, waiter)
        })
    }

    /// Finds out which bytes travel by the ring: the payload, or where it lies.
    #[inline(always)]
    fn load(
        &self,
        label: Label,
        parcel: Parcel<'_>,
        keeps: bool,
        send: impl FnOnce(Label, &[u8]) -> Result<u64, CallError>,
    ) -> Result<u64, CallError> {
        match parcel {
            Parcel::Bytes(payload) => {
                check_payload(payload.len(), self.channel.max_payload)?;
                if let Some(context) = trace::current().filter(|_| !label.is(Kind::Ping)) {
                    return self.load_traced(context, label, payload, send);
                }
                if payload.len() >= bulk::FROM
                    // What is kept is to be sent as it was.
                    && !keeps
                    && let Some(loan) = self.channel.lend_copy(payload)
                {
                    return hand_over(label, loan, send);
                }
                send(label, payload)
            }
            Parcel::Loan(loan) => {
                self.channel.check_loan(&loan)?;
                if let Some(bytes) = loan.private_bytes() {
                    return send(label, bytes);
                }
                hand_over(label, loan, send)
            }
        }
    }

    #[inline(always)]
    fn request_frames(
        &self,
        label: Label,
        payload: &[u8],
        limit: Limit,
        waiter: Waiter,
    ) -> Result<u64, CallError> {
        let is_callback = matches!(waiter, Waiter::Callback(_));
        let is_kept = !matches!(waiter, Waiter::Thread);
        let mut tx = self.channel.tx.claim();
        if is_kept && tx.kept.is_some() {
            self.reserve(&mut tx, payload.len())?;
        }
        let id =
            self.take_slot(&mut tx, waiter, limit).map_err(|_| self.dropped(CallError::Full))?;
        let slot = self.table.slot(id as u32);
        if is_callback {
            self.calls.callbacks.fetch_add(1, Ordering::Relaxed);
        }
        let ring = ring_of(label.priority());
        match self.send_frames(&mut tx, label.with_id(id as u32), payload, limit) {
            Ok(()) => {
                slot.sent(ring, tx.producer(ring).head() - 1);
                tx.count(label, payload);
                if is_kept && tx.kept.is_some() {
                    tx.keep(&self.table, (label.with_id(id as u32), id), limit, payload);
                    if is_callback {
                        self.have_looked_after();
                    }
                }
                drop(tx);
                self.channel.after_push();
                Ok(id)
            }
            Err(error) => {
                drop(tx);
                if !is_callback {
                    self.abandon(id as u32);
                    return Err(error);
                }
                // Nothing was sent whole, so nothing will answer, and the callback is dropped here;
                // unless it was ended meanwhile, and runs with that.
                if slot.fill(id as u32, Err(CallError::Canceled)).is_none() {
                    return Ok(id);
                }
                self.calls.callbacks.fetch_sub(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Takes a slot for a call. Returns its id, or gives the waiter back when there is none.
    #[inline(always)]
    fn take_slot(&self, tx: &mut Transmit, waiter: Waiter, limit: Limit) -> Result<u64, Waiter> {
        let is_callback = matches!(waiter, Waiter::Callback(_));
        // A power of two: a division would cost more than all the rest of this.
        let stride = self.table.stride();
        let base = (tx.next_id + (stride - 1)) & !(stride - 1);
        let id = self.table.reserve(base, waiter)?;
        tx.next_id = base + stride;
        self.calls.issued.store(id, Ordering::Release);
        let timed = tx.sampler.hits();
        let begun = if timed { Begun::sampled(clock::now_ns()) } else { Begun::NEVER };
        self.table.slot(id as u32).set_begun(begun);
        if is_callback {
            let at = limit.at();
            self.table.slot(id as u32).set_expiry(at);
            self.calls.next_expiry.fetch_min(at, Ordering::Relaxed);
        }
        Ok(id)
    }

    /// Sends a message that nobody answers. Returns its id.
    #[inline(always)]
    pub(crate) fn send(
        &self,
        label: Label,
        parcel: Parcel<'_>,
        limit: Limit,
    ) -> Result<u64, CallError> {
        let keeps = self.relay.get().is_some();
        self.load(label, parcel, keeps, |label, bytes| self.send_one_way(label, bytes, limit))
    }

    #[inline(always)]
    fn send_one_way(&self, label: Label, payload: &[u8], limit: Limit) -> Result<u64, CallError> {
        let mut tx = self.channel.tx.claim();
        if tx.kept.is_some() {
            self.reserve(&mut tx, payload.len())?;
        }
        let id = tx.one_way_id();
        let labelled = label.with_id(id as u32);
        self.send_frames(&mut tx, labelled, payload, limit)?;
        tx.count(label, payload);
        if tx.kept.is_some() {
            tx.keep(&self.table, (labelled, id), limit, payload);
        }
        drop(tx);
        self.channel.after_push();
        Ok(id)
    }

    /// Pushes all frames of a message, waiting for room as long as the limit allows.
    #[inline(always)]
    pub(crate) fn send_frames(
        &self,
        tx: &mut Claimed<'_, Transmit>,
        label: Label,
        payload: &[u8],
        limit: Limit,
    ) -> Result<(), CallError> {
        let label = self.with_limit(label, limit);
        let mut sent = 0;
        match tx.push(label, payload, &mut sent) {
            Ok(()) => Ok(()),
            Err(refusal) => self.send_slowly(tx, label, payload, limit, sent, refusal),
        }
    }

    /// Tells the service when we give up, if it can be told.
    #[inline(always)]
    fn with_limit(&self, label: Label, limit: Limit) -> Label {
        match limit {
            Limit::At(at) if at != FOREVER => label.with_deadline(self.channel.deadline_field(at)),
            Limit::At(_) | Limit::Later(_) | Limit::Room(_) => label,
        }
    }

    #[cold]
    fn send_slowly(
        &self,
        tx: &mut Claimed<'_, Transmit>,
        label: Label,
        payload: &[u8],
        limit: Limit,
        mut sent: usize,
        mut refusal: PushError,
    ) -> Result<(), CallError> {
        let turn = self.interrupter.turn();
        let until = limit.at();
        loop {
            let wake_at = match refusal {
                PushError::Full { wake_at } => wake_at,
                PushError::Corrupt(lie) => return Err(self.poison(lie)),
                PushError::Retired => return Err(CallError::PeerDied { taken: false }),
            };
            tx.count_full();
            let ring = tx.awaited(label);
            let streams = label.is(Kind::OneWay);
            let wake_at = if streams { tx.producer(ring).ample(wake_at) } else { wake_at };
            let waited = tx.give_up_while(|| {
                self.channel.after_push();
                self.wait_for_room(ring, wake_at, until, turn)
            });
            let gave_up = matches!(waited, Err(CallError::TimedOut));
            // Room for this message is less than a stream waits for, and may be there in the end.
            if waited.is_ok() || (gave_up && streams) {
                match tx.push(label, payload, &mut sent) {
                    Ok(()) => return Ok(()),
                    Err(again) => refusal = again,
                }
            }
            if let Err(error) = waited {
                self.channel.board().identity.drops.add_shared(1);
                if sent > 0 {
                    tx.abort(label);
                    self.channel.after_push();
                }
                return Err(if gave_up && streams { CallError::Full } else { error });
            }
        }
    }

    /// Counts a message that was given up.
    #[cold]
    fn dropped(&self, error: CallError) -> CallError {
        self.channel.board().identity.drops.add_shared(1);
        error
    }

    /// Counts a call that ended with an error.
    #[cold]
    fn failed(&self) {
        self.channel.board().identity.errors.add_shared(1);
    }

    /// Calls that have no answer yet.
    pub(crate) fn outstanding(&self) -> u64 {
        self.table.slots().iter().filter(|slot| slot.is_taken()).count() as u64
    }

    /// Ends a call, if it still waits: wakes its thread, or hands its callback to the loop.
    fn finish(&self, id: u32, outcome: Outcome) {
        let slot = self.table.slot(id);
        if let Some((callback, outcome)) = slot.fill(id, outcome) {
            self.complete(callback, outcome);
        } else {
            slot.call();
        }
    }

    /// Wakes every thread that sleeps on this channel, to look again.
    pub(crate) fn wake_all(&self) {
        self.table.slots().iter().for_each(|slot| {
            slot.call();
        });
        if let Some(hub) = self.calls.hub.get().and_then(Weak::upgrade) {
            hub.summon(self.token.load(Ordering::Relaxed));
        }
    }

    /// Ends a call before its answer. Returns false when no such call is outstanding.
    pub(crate) fn cancel(&self, message_id: u64) -> bool {
        let id = message_id as u32;
        let slot = self.table.slot(id);
        if !slot.is_waiting(id) || slot.message_id() != message_id {
            return false;
        }
        let place = slot.position();
        self.finish(id, Err(CallError::Canceled));
        if let Some((ring, _)) = place {
            let label = Label::new(Kind::Cancel, ring.first_level()).with_id(id);
            // When there is no room the service answers for nobody: no harm.
            let told = self.channel.tx.claim().push(label, &[], &mut 0);
            if told.is_ok() {
                self.channel.after_push();
            }
        }
        true
    }

    /// Cuts the channel of a peer that was caught in a lie.
    #[cold]
    fn poison(&self, lie: PeerCorrupt) -> CallError {
        self.channel.end(Fate::Poisoned(lie));
        self.channel.ended(false)
    }

    fn check_turn(&self, turn: u32) -> Result<(), CallError> {
        if self.interrupter.turn() == turn { Ok(()) } else { Err(CallError::Canceled) }
    }
}

/// Sends a loan: what travels by the ring is where it lies.
#[inline(never)]
fn hand_over(
    label: Label,
    loan: Loan,
    send: impl FnOnce(Label, &[u8]) -> Result<u64, CallError>,
) -> Result<u64, CallError> {
    loan.hand_over(|descriptor| match trace::current() {
        Some(context) => send(label.in_bulk().extended(), &traced::extended(context, descriptor)),
        None => send(label.in_bulk(), descriptor),
    })
}

/// How long until then; `TimedOut` when it is past.
pub(crate) fn time_left(until: u64) -> Result<Option<Duration>, CallError> {
    if until == FOREVER {
        return Ok(None);
    }
    let now = clock::now_ns();
    if now >= until {
        return Err(CallError::TimedOut);
    }
    Ok(Some(Duration::from_nanos(until - now)))
}

/// The time at which a wait of this length, begun now, is over.
pub(crate) fn until(timeout: Option<Duration>) -> u64 {
    timeout.map_or(FOREVER, |timeout| clock::now_ns().saturating_add(whole_ns(timeout)))
}

#[inline(always)]
fn whole_ns(time: Duration) -> u64 {
    let seconds = time.as_secs().saturating_mul(1_000_000_000);
    seconds.saturating_add(u64::from(time.subsec_nanos()))
}
