//! The client's end of a channel: sends requests, and waits for the answers, for all threads.
//!
//! One waiter at a time *leads*: it holds the receiving claim, reads the ring for everybody, and
//! puts the others' answers into their slots. The others *follow*, asleep in their slots, until
//! they are answered or called to lead. A leader that leaves calls a follower.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use crate::{
    channel::{Channel, Claimed, Fate, Receive, Taken, Transmit, check_payload, ring_of},
    clock,
    error::{CallError, PeerCorrupt, Status},
    frame::{Frame, Kind},
    interrupt::Interrupter,
    layout::Ring,
    ring::{Message, PushError},
    server::Hub,
    sync::{AtomicU32, AtomicU64, Ordering, pause},
    table::{Callback, Outcome, Table, Waiter, bed},
    wait::{Fences, Sleep, futex, spin::SpinPermit},
};

/// No deadline.
pub(crate) const FOREVER: u64 = u64::MAX;
/// Polls between looks at the clock, at the peer's life and for interruptions.
const POLLS_PER_LOOK: u32 = 64;
/// Polls without `pause`, and without asking how many others spin: an answer that is on its way
/// comes within these.
const EAGER_POLLS: u32 = 1000;

/// Where an answer goes.
#[derive(Debug)]
pub(crate) enum Sink<'a> {
    /// The front of a slice; its used length is noted.
    Slice(&'a mut [u8], usize),
    /// A vector, whose contents are replaced.
    Vector(&'a mut Vec<u8>),
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
        }
    }

    fn accept_bytes(&mut self, bytes: Vec<u8>) -> Result<(), CallError> {
        if let Sink::Vector(vector) = self {
            **vector = bytes;
            return Ok(());
        }
        self.accept(bytes.len())?.copy_from_slice(&bytes);
        Ok(())
    }
}

/// What is asked of [`Link::request`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order<'a> {
    pub(crate) kind: Kind,
    pub(crate) priority: u8,
    pub(crate) payload: &'a [u8],
    pub(crate) limit: Limit,
}

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// The whole call, at this time in ns of CLOCK_MONOTONIC. The service is told.
    At(u64),
    /// The same, too late for the deadline field of a frame: the service is not told.
    Later(u64),
    /// Waiting for room in the ring, after so long. The clock is read only if there is none.
    Room(Option<Duration>),
}

/// The longest limit that fits the deadline field: 32 bits of µs, of which half are the past.
const LONGEST_TOLD: Duration = Duration::from_secs(30 * 60);

impl Limit {
    /// A call's limit, of this length from now.
    #[inline]
    pub(crate) fn after(timeout: Option<Duration>) -> Limit {
        match timeout {
            Some(timeout) if timeout > LONGEST_TOLD => Limit::Later(until(Some(timeout))),
            timeout => Limit::At(until(timeout)),
        }
    }

    #[inline]
    pub(crate) fn at(self) -> u64 {
        match self {
            Limit::At(at) | Limit::Later(at) => at,
            Limit::Room(timeout) => until(timeout),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) channel: Channel,
    table: Table,
    interrupter: Arc<Interrupter>,
    /// The last id that was issued.
    issued: AtomicU64,
    /// Threads asleep in their slots, or about to be.
    followers: AtomicU32,
    /// Calls that a callback waits for.
    callbacks: AtomicU32,
    /// The earliest time at which one of those expires; may be too early, never too late.
    next_expiry: AtomicU64,
    /// The loop that runs the callbacks.
    hub: OnceLock<Weak<Hub>>,
    /// This channel's number in that loop.
    pub(crate) token: AtomicU32,
}

impl Link {
    pub(crate) fn new(channel: Channel, outstanding: u32, interrupter: Arc<Interrupter>) -> Link {
        Link {
            channel,
            table: Table::new(outstanding),
            interrupter,
            issued: AtomicU64::new(0),
            followers: AtomicU32::new(0),
            callbacks: AtomicU32::new(0),
            next_expiry: AtomicU64::new(FOREVER),
            hub: OnceLock::new(),
            token: AtomicU32::new(u32::MAX),
        }
    }

    /// Sends a request and waits for its answer.
    #[inline]
    pub(crate) fn call(&self, order: Order<'_>, sink: &mut Sink<'_>) -> Result<(), CallError> {
        let turn = self.interrupter.turn();
        let id = self.request(order, Waiter::Thread)?;
        self.wait(id as u32, order.limit.at(), turn, sink)
    }

    /// Sends a request whose answer its waiter will get. Returns the message id.
    ///
    /// # Errors
    /// [`CallError`]; then nothing will come, and a callback was dropped.
    #[inline]
    pub(crate) fn request(&self, order: Order<'_>, waiter: Waiter) -> Result<u64, CallError> {
        check_payload(order.payload.len(), self.channel.max_payload)?;
        let is_callback = matches!(waiter, Waiter::Callback(_));
        let mut tx = self.channel.tx.claim();
        let base = tx.next_id.next_multiple_of(self.table.stride());
        let id = self.table.reserve(base, waiter).map_err(|_| CallError::Full)?;
        tx.next_id = base + self.table.stride();
        self.issued.store(id, Ordering::Release);
        let slot = self.table.slot(id as u32);
        if is_callback {
            let at = order.limit.at();
            slot.set_expiry(at);
            self.callbacks.fetch_add(1, Ordering::Relaxed);
            self.next_expiry.fetch_min(at, Ordering::Relaxed);
        }
        let ring = ring_of(order.priority);
        match self.send_frames(tx, order, id as u32) {
            Ok(mut tx) => {
                slot.sent(ring, tx.producer(ring).head() - 1);
                drop(tx);
                self.channel.after_push();
                Ok(id)
            }
            Err(error) => {
                if is_callback {
                    // Nothing was sent whole, so nothing will answer; the waiter is dropped here.
                    drop(slot.fill(id as u32, Err(CallError::Canceled)));
                    self.callbacks.fetch_sub(1, Ordering::Relaxed);
                } else if !slot.give_up(id as u32) {
                    slot.take(id as u32);
                }
                Err(error)
            }
        }
    }

    /// Sends a message that nobody answers. Returns its id.
    #[inline]
    pub(crate) fn send(&self, order: Order<'_>) -> Result<u64, CallError> {
        check_payload(order.payload.len(), self.channel.max_payload)?;
        let mut tx = self.channel.tx.claim();
        let id = self.one_way_id(&mut tx);
        drop(self.send_frames(tx, order, id as u32)?);
        self.channel.after_push();
        Ok(id)
    }

    /// The id of a message that needs no slot.
    #[inline]
    pub(crate) fn one_way_id(&self, tx: &mut Transmit) -> u64 {
        let id = tx.next_id;
        tx.next_id += 1;
        id
    }

    /// Pushes all frames of a message, waiting for room as long as the order allows.
    #[inline]
    pub(crate) fn send_frames<'a>(
        &'a self,
        mut tx: Claimed<'a, Transmit>,
        order: Order<'_>,
        id: u32,
    ) -> Result<Claimed<'a, Transmit>, CallError> {
        let deadline = match order.limit {
            Limit::At(at) if at != FOREVER => self.channel.deadline_field(at),
            Limit::At(_) | Limit::Later(_) | Limit::Room(_) => 0,
        };
        let message = Message {
            kind: order.kind,
            priority: order.priority,
            id,
            deadline,
            payload: order.payload,
        };
        let mut sent = 0;
        match tx.push(&message, &mut sent) {
            Ok(()) => Ok(tx),
            Err(refusal) => self.send_slowly(tx, order, &message, sent, refusal),
        }
    }

    #[cold]
    fn send_slowly<'a>(
        &'a self,
        mut tx: Claimed<'a, Transmit>,
        order: Order<'_>,
        message: &Message<'_>,
        mut sent: usize,
        mut refusal: PushError,
    ) -> Result<Claimed<'a, Transmit>, CallError> {
        let turn = self.interrupter.turn();
        let until = order.limit.at();
        loop {
            drop(tx);
            let wake_at = match refusal {
                PushError::Full { wake_at } => wake_at,
                PushError::Corrupt(lie) => return Err(self.poison(lie)),
            };
            self.channel.after_push();
            let waited = self.wait_for_room(ring_of(order.priority), wake_at, until, turn);
            tx = self.channel.tx.claim();
            if let Err(error) = waited {
                if sent > 0 {
                    tx.abort(order.priority, message.id);
                    drop(tx);
                    self.channel.after_push();
                }
                let gave_up = matches!(error, CallError::TimedOut);
                let full = gave_up && order.kind == Kind::OneWay;
                return Err(if full { CallError::Full } else { error });
            }
            match tx.push(message, &mut sent) {
                Ok(()) => return Ok(tx),
                Err(again) => refusal = again,
            }
        }
    }

    /// Waits until the peer has taken `wake_at` frames; reads for everybody meanwhile, so that two
    /// full rings never wait for each other.
    pub(crate) fn wait_for_room(
        &self,
        ring: Ring,
        wake_at: u64,
        until: u64,
        turn: u32,
    ) -> Result<(), CallError> {
        let mut polls = 0_u32;
        loop {
            if self.channel.taken_by_peer(ring) >= wake_at {
                return Ok(());
            }
            self.read_for_others();
            if self.channel.check_life() != Fate::Open {
                return Err(self.channel.ended(false));
            }
            self.check_turn(turn)?;
            let left = time_left(until)?;
            polls += 1;
            if polls < 1000 {
                (0..8).for_each(|_| pause());
                continue;
            }
            let event = self.channel.event();
            self.channel.want(ring, wake_at, Sleep::Futex);
            self.channel.barrier();
            if self.channel.taken_by_peer(ring) < wake_at {
                // An answer for a follower wakes nobody here, hence the limit on this sleep when
                // nobody else leads: the next round reads.
                let most = Duration::from_millis(10);
                let left = left.map_or(most, |left| left.min(most));
                self.channel.sleep(event, [Some(self.interrupter.word(turn)), None], Some(left));
            }
            self.channel.unwant(ring);
        }
    }

    fn read_for_others(&self) {
        if let Some(mut rx) = self.channel.rx.try_claim() {
            let drained = self.drain(&mut rx, None);
            drop(rx);
            if let Err(lie) = drained {
                self.poison(lie);
            }
            self.pass_on();
        }
    }

    /// Waits for the answer to call `id`, which this thread alone waits for.
    #[inline]
    pub(crate) fn wait(
        &self,
        id: u32,
        until: u64,
        turn: u32,
        sink: &mut Sink<'_>,
    ) -> Result<(), CallError> {
        loop {
            let ended = match self.channel.rx.try_claim() {
                Some(mut rx) => {
                    let ended = self.lead(&mut rx, id, until, turn, sink);
                    drop(rx);
                    self.pass_on();
                    ended
                }
                None => self.follow(id, until, turn),
            };
            match ended {
                Ended::Answered(result) => return result,
                Ended::Slot => {
                    if let Some(outcome) = self.table.slot(id).take(id) {
                        return outcome.and_then(|bytes| sink.accept_bytes(bytes));
                    }
                }
                Ended::Failed(error) => {
                    if self.table.slot(id).give_up(id) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Reads the ring until call `id` is answered, or cannot be.
    #[inline]
    fn lead(&self, rx: &mut Receive, id: u32, until: u64, turn: u32, sink: &mut Sink<'_>) -> Ended {
        for _ in 0..EAGER_POLLS {
            if rx.ordinary.is_ready() {
                match self.take_mine(rx, Ring::Ordinary, id, sink) {
                    Ok(Some(result)) => {
                        self.channel.after_take();
                        return Ended::Answered(result);
                    }
                    Ok(None) => break,
                    Err(lie) => return Ended::Failed(self.poison(lie)),
                }
            }
        }
        self.lead_on(rx, id, until, turn, sink)
    }

    #[inline(never)]
    fn lead_on(
        &self,
        rx: &mut Receive,
        id: u32,
        until: u64,
        turn: u32,
        sink: &mut Sink<'_>,
    ) -> Ended {
        let slot = self.table.slot(id);
        let mut spin = Some(Spell::begin(rx));
        loop {
            if rx.is_ready() {
                if let Some(spell) = spin.take() {
                    spell.paid(rx);
                }
                match self.drain(rx, Some((id, sink))) {
                    Ok(Some(result)) => return Ended::Answered(result),
                    Ok(None) => spin = Some(Spell::begin(rx)),
                    Err(lie) => return Ended::Failed(self.poison(lie)),
                }
                continue;
            }
            let now = clock::now_ns();
            if let Some(ended) = self.look_up(rx, id, until, turn, now, sink) {
                return ended;
            }
            if spin.as_ref().is_some_and(|spell| spell.goes_on(now)) {
                for _ in 0..POLLS_PER_LOOK {
                    pause();
                    if rx.is_ready() {
                        break;
                    }
                }
                continue;
            }
            if let Some(spell) = spin.take() {
                spell.in_vain(rx);
            }
            let event = self.channel.event();
            // The bed is for what comes from within this process: a cancellation, or a death that
            // the life word did not tell.
            slot.bed.store(bed::ASLEEP, Ordering::SeqCst);
            self.channel.park(Sleep::Futex);
            self.channel.barrier();
            if !rx.is_ready() && !slot.is_done(id) && self.channel.check_life() == Fate::Open {
                let left =
                    (until != FOREVER).then(|| Duration::from_nanos(until.saturating_sub(now)));
                let called = futex::Word { word: &slot.bed, value: bed::ASLEEP, shared: false };
                self.channel.sleep(event, [Some(self.interrupter.word(turn)), Some(called)], left);
            }
            slot.bed.store(bed::EMPTY, Ordering::SeqCst);
            self.channel.unpark();
        }
    }

    /// Looks at everything but the ring: the slot, the peer's life, interruptions, the clock.
    fn look_up(
        &self,
        rx: &mut Receive,
        id: u32,
        until: u64,
        turn: u32,
        now: u64,
        sink: &mut Sink<'_>,
    ) -> Option<Ended> {
        let slot = self.table.slot(id);
        if slot.is_done(id) {
            return Some(Ended::Slot);
        }
        if self.channel.check_life() != Fate::Open {
            // Answers that were published before the end count.
            if let Ok(Some(result)) = self.drain(rx, Some((id, sink))) {
                return Some(Ended::Answered(result));
            }
            let taken = slot
                .position()
                .is_some_and(|(ring, position)| self.channel.taken_by_peer(ring) > position);
            return Some(Ended::Failed(self.channel.ended(taken)));
        }
        if self.interrupter.turn() != turn {
            return Some(Ended::Failed(CallError::Canceled));
        }
        (now >= until).then_some(Ended::Failed(CallError::TimedOut))
    }

    /// Takes every frame that is there. Returns the result of the call `mine` when its answer was
    /// among them; that call's slot is free then.
    #[inline]
    fn drain(
        &self,
        rx: &mut Receive,
        mut mine: Option<(u32, &mut Sink<'_>)>,
    ) -> Result<Option<Result<(), CallError>>, PeerCorrupt> {
        let mut answer = None;
        let mut took = false;
        while answer.is_none() {
            let ring = if rx.urgent.is_ready() { Ring::Urgent } else { Ring::Ordinary };
            if let Some((id, sink)) = &mut mine
                && let Some(result) = self.take_mine(rx, ring, *id, sink)?
            {
                answer = Some(result);
                took = true;
                break;
            }
            match rx.take(ring, self.channel.max_payload)? {
                None => break,
                Some(Taken::Whole(frame, status)) => {
                    let bytes = rx.buffer[..frame.head.length as usize].to_vec();
                    self.deliver(&frame, status, bytes)?;
                }
                Some(Taken::Long(frame, bytes)) => {
                    let is_mine = mine.as_ref().is_some_and(|(id, _)| *id == frame.head.id);
                    if is_mine && self.table.slot(frame.head.id).give_up(frame.head.id) {
                        answer = mine.as_mut().map(|(_, sink)| sink.accept_bytes(bytes));
                    } else {
                        self.deliver(&frame, 0, bytes)?;
                    }
                }
                Some(Taken::Refused(frame, _)) => {
                    let (size, limit) = (frame.total, self.channel.max_payload);
                    self.finish(frame.head.id, Err(CallError::TooLarge { size, limit }));
                }
                Some(Taken::Fragment) => {}
            }
            took = true;
        }
        if took {
            self.channel.after_take();
        }
        Ok(answer)
    }

    /// Takes the next frame straight to where it goes, if it is the whole answer to call `id`.
    #[inline(always)]
    fn take_mine(
        &self,
        rx: &mut Receive,
        ring: Ring,
        id: u32,
        sink: &mut Sink<'_>,
    ) -> Result<Option<Result<(), CallError>>, PeerCorrupt> {
        let consumer = rx.consumer(ring);
        let Some(frame) = consumer.peek()? else { return Ok(None) };
        let is_whole = frame.head.kind == Kind::Response && !frame.head.is_first_of_many();
        if frame.head.id != id || !is_whole || !self.table.slot(id).give_up(id) {
            return Ok(None);
        }
        self.table.prefer(id);
        let result =
            sink.accept(frame.head.length as usize).map(|target| consumer.copy(&frame, target));
        consumer.release(&frame);
        Ok(Some(result))
    }

    /// Gives an answer to whoever waits for it.
    fn deliver(&self, frame: &Frame, status: i32, bytes: Vec<u8>) -> Result<(), PeerCorrupt> {
        let id = frame.head.id;
        if !self.table.slot(id).is_waiting(id) && !self.was_issued(id) {
            return Err(PeerCorrupt::Answer);
        }
        if frame.head.kind == Kind::Error && status >= 0 {
            return Err(PeerCorrupt::Status);
        }
        let outcome = match frame.head.kind {
            Kind::Error => Err(CallError::Remote(Status::from_code(status))),
            _ => Ok(bytes),
        };
        self.finish(id, outcome);
        Ok(())
    }

    /// Whether a call of this id was ever made. Once the low halves have gone round, it may be.
    fn was_issued(&self, id: u32) -> bool {
        let first = self.channel.first_id();
        let issued = self.issued.load(Ordering::Acquire).max(first);
        issued - first > u64::from(u32::MAX)
            || id.wrapping_sub(first as u32) <= (issued - first) as u32
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

    fn complete(&self, callback: Callback, outcome: Outcome) {
        self.callbacks.fetch_sub(1, Ordering::Relaxed);
        if let Some(hub) = self.hub.get().and_then(Weak::upgrade) {
            hub.complete(callback, outcome);
        }
    }

    /// Calls a follower to lead, and tells the loop that it may read again. After every release of
    /// the receiving claim.
    #[inline]
    pub(crate) fn pass_on(&self) {
        // The release of the claim ended with a light fence: a follower that saw it held has
        // announced itself before its heavy one, and is seen here.
        if self.followers.load(Ordering::Relaxed) > 0 {
            self.call_follower();
        }
        if self.callbacks.load(Ordering::Relaxed) > 0
            && let Some(hub) = self.hub.get().and_then(Weak::upgrade)
        {
            // The sleep that the loop had announced on this channel was overwritten by ours.
            hub.summon(self.token.load(Ordering::Relaxed));
        }
    }

    /// Wakes every thread that sleeps on this channel, to look again.
    pub(crate) fn wake_all(&self) {
        self.table.slots().iter().for_each(|slot| {
            slot.call();
        });
        if let Some(hub) = self.hub.get().and_then(Weak::upgrade) {
            hub.summon(self.token.load(Ordering::Relaxed));
        }
    }

    #[cold]
    fn call_follower(&self) {
        for slot in self.table.slots() {
            if slot.bed.load(Ordering::SeqCst) == bed::ASLEEP && slot.call() {
                return;
            }
        }
    }

    /// Sleeps in the slot of call `id` until it is answered, or somebody must lead.
    #[cold]
    fn follow(&self, id: u32, until: u64, turn: u32) -> Ended {
        let slot = self.table.slot(id);
        self.followers.fetch_add(1, Ordering::SeqCst);
        slot.bed.store(bed::ASLEEP, Ordering::SeqCst);
        Fences::within().heavy();
        let ended = loop {
            if slot.is_done(id) {
                break Ended::Slot;
            }
            if self.channel.rx.is_free() {
                // Nobody leads: go and try.
                break Ended::Slot;
            }
            if self.interrupter.turn() != turn {
                break Ended::Failed(CallError::Canceled);
            }
            let left = match time_left(until) {
                Ok(left) => left,
                Err(error) => break Ended::Failed(error),
            };
            let word = futex::Word { word: &slot.bed, value: bed::ASLEEP, shared: false };
            let interrupted = self.interrupter.word(turn);
            futex::wait_words([Some(word), Some(interrupted), None, None], left);
            if slot.bed.load(Ordering::SeqCst) == bed::CALLED {
                break Ended::Slot;
            }
        };
        let called = slot.bed.swap(bed::EMPTY, Ordering::SeqCst) == bed::CALLED;
        self.followers.fetch_sub(1, Ordering::SeqCst);
        let leaves = matches!(ended, Ended::Failed(_)) || slot.is_done(id);
        if called && leaves && self.channel.rx.is_free() {
            self.pass_on();
        }
        ended
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
            let priority = if ring == Ring::Urgent { 0 } else { 2 };
            let payload = &[];
            let limit = Limit::At(0);
            let order = Order { kind: Kind::Cancel, priority, payload, limit };
            // When there is no room the service answers for nobody: no harm.
            if let Ok(tx) = self.try_send_frames(order, id) {
                drop(tx);
                self.channel.after_push();
            }
        }
        true
    }

    fn try_send_frames(
        &self,
        order: Order<'_>,
        id: u32,
    ) -> Result<Claimed<'_, Transmit>, PushError> {
        let mut tx = self.channel.tx.claim();
        let message = Message {
            kind: order.kind,
            priority: order.priority,
            id,
            deadline: 0,
            payload: order.payload,
        };
        let mut sent = 0;
        tx.push(&message, &mut sent)?;
        Ok(tx)
    }

    /// Withdraws a thread's interest in call `id`.
    pub(crate) fn abandon(&self, id: u32) {
        let slot = self.table.slot(id);
        while !slot.give_up(id) {
            if slot.take(id).is_some() || !slot.is_waiting(id) {
                return;
            }
        }
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

    /// Takes part in a loop, which from now on runs this link's callbacks.
    pub(crate) fn join(&self, hub: &Arc<Hub>) -> bool {
        let mut first = false;
        self.hub.get_or_init(|| {
            first = true;
            Arc::downgrade(hub)
        });
        first
    }

    /// Whether that loop is this one.
    pub(crate) fn is_on(&self, hub: &Arc<Hub>) -> bool {
        self.hub.get().is_some_and(|of| std::ptr::eq(of.as_ptr(), Arc::as_ptr(hub)))
    }

    /// The loop's turn: reads what is there unless a thread leads. Returns whether the ring was
    /// seen empty by this call.
    pub(crate) fn serve_callbacks(&self, now: u64) -> bool {
        let Some(mut rx) = self.channel.rx.try_claim() else { return false };
        let fate = self.channel.check_life();
        let drained = self.drain(&mut rx, None);
        drop(rx);
        if let Err(lie) = drained {
            self.poison(lie);
        }
        if self.followers.load(Ordering::SeqCst) > 0 {
            self.call_follower();
        }
        if fate != Fate::Open {
            self.fail_callbacks();
        } else if now >= self.next_expiry.load(Ordering::Relaxed) {
            self.expire_callbacks(now);
        }
        true
    }

    /// The earliest time at which [`Link::serve_callbacks`] must be called again.
    pub(crate) fn next_expiry(&self) -> u64 {
        self.next_expiry.load(Ordering::Relaxed)
    }

    /// Ends every call that a callback waits for: the peer is gone.
    pub(crate) fn fail_callbacks(&self) {
        for slot in self.table.slots().iter().filter(|slot| slot.awaits_callback()) {
            let taken = slot
                .position()
                .is_some_and(|(ring, position)| self.channel.taken_by_peer(ring) > position);
            self.finish(slot.message_id() as u32, Err(self.channel.ended(taken)));
        }
    }

    fn expire_callbacks(&self, now: u64) {
        self.next_expiry.store(FOREVER, Ordering::Relaxed);
        for slot in self.table.slots().iter().filter(|slot| slot.awaits_callback()) {
            if slot.expiry() <= now {
                self.finish(slot.message_id() as u32, Err(CallError::TimedOut));
            } else {
                self.next_expiry.fetch_min(slot.expiry(), Ordering::Relaxed);
            }
        }
    }
}

/// How a wait ended.
enum Ended {
    /// The result is here, and the slot free.
    Answered(Result<(), CallError>),
    /// Look into the slot, or lead.
    Slot,
    /// It cannot be answered; give the slot up.
    Failed(CallError),
}

/// A spin under way.
struct Spell {
    until: u64,
    _permit: Option<SpinPermit>,
}

impl Spell {
    fn begin(rx: &mut Receive) -> Spell {
        let budget = rx.spin.next_ns();
        // One who said "always" has a core for it, and asks nobody.
        let permit = (budget != FOREVER && budget > 0).then(SpinPermit::get);
        let denied = matches!(permit, Some(None));
        let budget = if denied { 0 } else { budget };
        let until = if budget == 0 { 0 } else { clock::now_ns().saturating_add(budget) };
        Spell { until, _permit: permit.flatten() }
    }

    fn goes_on(&self, now: u64) -> bool {
        now < self.until
    }

    fn paid(self, rx: &mut Receive) {
        if self.until > 0 {
            rx.spin.paid();
        }
    }

    fn in_vain(self, rx: &mut Receive) {
        if self.until > 0 {
            rx.spin.in_vain();
        }
    }
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
    timeout.map_or(FOREVER, |timeout| {
        let length = u64::try_from(timeout.as_nanos()).unwrap_or(FOREVER);
        clock::now_ns().saturating_add(length)
    })
}
