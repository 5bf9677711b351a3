//! Calls that wait their turn: for a slot in the table, or for room in the ring. Who makes such a
//! call never waits; the loop sends it.

use std::{
    borrow::Cow,
    collections::VecDeque,
    sync::{Arc, MutexGuard, PoisonError},
};

use super::{FOREVER, Limit, Link, traced::extended};
use crate::{
    bulk,
    channel::{Transmit, check_payload, ring_of},
    error::CallError,
    frame::Label,
    layout::Ring,
    ring::PushError,
    sync::{AtomicU64, Ordering},
    table::{Callback, Waiter},
    trace::{self, Context},
};

/// Calls that may wait in the lines of one channel.
const MOST_CALLS: usize = 65_536;
/// Bytes that may, as a multiple of the largest payload.
const MOST_PAYLOADS: u64 = 4;
/// While calls wait, the loop looks again after so long, in ns: a thread that frees a slot tells
/// nobody, and one that waits for room overwrites the loop's announcement.
const LOOK_AGAIN_NS: u64 = 10_000_000;

/// A line for each ring, first come, first served.
#[derive(Debug)]
pub(super) struct Lines {
    rings: [Line; 2],
    bytes: u64,
    /// The earliest time at which a call without a slot expires; may be too early, never too late.
    soonest: u64,
}

#[derive(Debug, Default)]
struct Line {
    calls: VecDeque<Lined<'static>>,
    /// The ring that the first call waits for, and the count of taken frames at which to try.
    wake_at: Option<(Ring, u64)>,
}

/// A call in line.
struct Lined<'a> {
    ticket: Ticket,
    /// Without an id until there is a slot.
    label: Label,
    /// The same without a deadline.
    bare: Label,
    payload: Cow<'a, [u8]>,
    /// Bytes that it is charged with: those of its payload, without an extension.
    size: u64,
    /// The trace that it was made within.
    context: Option<Context>,
    limit: Limit,
    /// Moves to the slot when there is one.
    callback: Option<Callback>,
    /// Bytes of the payload that are in the ring already.
    sent: usize,
}

/// The message id of a call, once it has one.
type Ticket = Arc<AtomicU64>;

impl std::fmt::Debug for Lined<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lined").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

/// Why a call stays in line.
enum Blocked {
    /// Every slot is taken.
    Slot,
    /// The ring is full until the peer has taken so many frames.
    Room(Ring, u64),
}

/// A call of [`Client::call_queued`](crate::Client::call_queued). Dropped, it leaves the call
/// alone.
#[derive(Debug)]
pub struct Queued {
    link: Arc<Link>,
    ticket: Ticket,
}

impl Queued {
    /// The call's message id, as the service sees it; nothing while it waits for its turn.
    pub fn message_id(&self) -> Option<u64> {
        Some(self.ticket.load(Ordering::Acquire)).filter(|id| *id != 0)
    }

    /// Ends the call with [`CallError::Canceled`], if it has not ended. The service is told, unless
    /// the call is still in line, and may have acted.
    pub fn cancel(&self) {
        if self.link.channel.check_fork().is_err() || self.link.leave(&self.ticket) {
            return;
        }
        if let Some(id) = self.message_id() {
            self.link.cancel(id);
        }
    }
}

impl Link {
    /// Sends a request whose outcome `callback` gets, now or when its turn comes.
    pub(crate) fn enqueue(
        self: &Arc<Self>,
        label: Label,
        payload: &[u8],
        limit: Limit,
        callback: Callback,
    ) -> Result<Queued, CallError> {
        check_payload(payload.len(), self.channel.max_payload)?;
        let ticket = Ticket::default();
        let queued = Queued { link: Arc::clone(self), ticket: Arc::clone(&ticket) };
        let mut call = Lined {
            ticket,
            label: self.with_limit(label, limit),
            bare: label,
            payload: Cow::Borrowed(payload),
            size: payload.len() as u64,
            context: trace::current(),
            limit,
            callback: Some(callback),
            sent: 0,
        };
        let ring = ring_of(label.priority());
        let mut lines = self.lines();
        let (count, size) = (lines.count(), payload.len() as u64);
        let quota = MOST_PAYLOADS * self.channel.max_payload;
        if count >= MOST_CALLS || (count > 0 && lines.bytes + size > quota) {
            return Err(CallError::Full);
        }
        self.calls.callbacks.fetch_add(1, Ordering::Relaxed);
        let line = &mut lines.rings[ring as usize];
        if line.calls.is_empty() {
            match self.advance(&mut call) {
                Ok(()) => return Ok(queued),
                Err(blocked) => line.wake_at = blocked.wake_at(),
            }
        }
        let payload = Cow::Owned(call.payload.into_owned());
        line.calls.push_back(Lined { payload, ..call });
        lines.bytes += size;
        lines.soonest = lines.soonest.min(limit.at());
        self.calls.is_lined.store(true, Ordering::Release);
        self.calls.next_expiry.fetch_min(lines.soonest, Ordering::Relaxed);
        Ok(queued)
    }

    /// Whether calls wait their turn.
    #[inline]
    pub(crate) fn is_lined(&self) -> bool {
        self.calls.is_lined.load(Ordering::Acquire)
    }

    /// The ring whose room a call waits for, and the count of taken frames that makes it.
    pub(crate) fn wants(&self) -> Option<(Ring, u64)> {
        let lines = self.is_lined().then(|| self.lines())?;
        lines.rings.iter().find_map(|line| line.wake_at)
    }

    /// The loop's turn: sends what there is room for, and ends what is too late.
    pub(super) fn serve_lines(&self, now: u64) {
        if !self.is_lined() {
            return;
        }
        let mut lines = self.lines();
        if lines.soonest <= now {
            self.expire_lines(&mut lines, now);
        }
        for index in 0..lines.rings.len() {
            self.flush_line(&mut lines, index);
        }
        let waits = lines.count() > 0;
        self.calls.is_lined.store(waits, Ordering::Release);
        if waits {
            let look_again = lines.soonest.min(now + LOOK_AGAIN_NS);
            self.calls.next_expiry.fetch_min(look_again, Ordering::Relaxed);
        }
    }

    /// Ends every call in line: the peer is gone, and has taken none of them.
    pub(super) fn fail_lines(&self) {
        let mut lines = self.lines();
        let calls: Vec<_> =
            lines.rings.iter_mut().flat_map(|line| std::mem::take(line).calls).collect();
        lines.bytes = 0;
        self.calls.is_lined.store(false, Ordering::Release);
        drop(lines);
        // Those that have a slot end there.
        for callback in calls.into_iter().filter_map(|call| call.callback) {
            self.complete(callback, Err(self.channel.ended(false)));
        }
    }

    /// Takes a call that has no slot yet out of its line, and ends it. Returns whether it stood
    /// there.
    fn leave(&self, ticket: &Ticket) -> bool {
        let mut lines = self.lines();
        for index in 0..lines.rings.len() {
            let calls = &mut lines.rings[index].calls;
            let place = calls.iter().position(|call| Arc::ptr_eq(&call.ticket, ticket));
            let Some(place) = place.filter(|place| calls[*place].callback.is_some()) else {
                continue;
            };
            if let Some(call) = calls.remove(place) {
                lines.bytes -= call.size;
                self.end_lined(call, CallError::Canceled);
                return true;
            }
        }
        false
    }

    /// Ends those whose time is over, of those that have no slot: the others end there.
    fn expire_lines(&self, lines: &mut Lines, now: u64) {
        lines.soonest = FOREVER;
        for line in &mut lines.rings {
            for call in std::mem::take(&mut line.calls) {
                let has_slot = call.callback.is_none();
                if !has_slot && call.limit.at() <= now {
                    lines.bytes -= call.size;
                    self.end_lined(call, CallError::TimedOut);
                    continue;
                }
                if !has_slot {
                    lines.soonest = lines.soonest.min(call.limit.at());
                }
                line.calls.push_back(call);
            }
        }
    }

    fn flush_line(&self, lines: &mut Lines, index: usize) {
        let line = &mut lines.rings[index];
        while let Some(call) = line.calls.front_mut() {
            if line.wake_at.is_some_and(|(ring, at)| self.channel.taken_by_peer(ring) < at) {
                return;
            }
            let advanced = self.advance(call);
            line.wake_at = advanced.as_ref().err().and_then(Blocked::wake_at);
            if advanced.is_err() {
                return;
            }
            let size = line.calls.pop_front().map_or(0, |call| call.size);
            lines.bytes -= size;
        }
        line.wake_at = None;
    }

    /// Has those in line begin anew on this channel, in place of another one.
    pub(super) fn restart_lines(&self, lines: &mut Lines, number: u32) {
        for line in &mut lines.rings {
            line.wake_at = None;
            for call in &mut line.calls {
                call.label = self.with_limit(call.bare, call.limit);
                call.sent = 0;
                if call.callback.is_none() {
                    self.table.slot(call.label.id()).move_to(number);
                }
            }
        }
    }

    fn end_lined(&self, call: Lined<'_>, error: CallError) {
        if let Some(callback) = call.callback {
            self.complete(callback, Err(error));
        }
    }

    /// Takes a slot for a call that has none, and pushes what there is room for. Done when all is
    /// sent, or when the call has ended.
    fn advance(&self, call: &mut Lined<'_>) -> Result<(), Blocked> {
        let mut tx = self.channel.tx.claim();
        let is_new = call.callback.is_some();
        if is_new && tx.kept.is_some() && tx.reserve(&self.table, call.payload.len()).is_err() {
            // An answer frees what is kept as it frees a slot.
            return Err(Blocked::Slot);
        }
        if let Some(callback) = call.callback.take() {
            match self.take_slot(&mut tx, Waiter::Callback(callback), call.limit) {
                Ok(id) => {
                    call.label = call.label.with_id(id as u32);
                    call.bare = call.bare.with_id(id as u32);
                    call.ticket.store(id, Ordering::Release);
                }
                Err(refused) => {
                    if let Waiter::Callback(callback) = refused {
                        call.callback = Some(callback);
                    }
                    return Err(Blocked::Slot);
                }
            }
        }
        let slot = self.table.slot(call.label.id());
        if !slot.is_waiting(call.label.id()) {
            if call.sent > 0 {
                tx.abort(call.label);
            }
            drop(tx);
            self.channel.after_push();
            return Ok(());
        }
        let pushed = self.push_lined(&mut tx, call);
        let awaited = tx.awaited(call.label);
        if pushed.is_ok() {
            let ring = ring_of(call.label.priority());
            slot.sent(ring, tx.producer(ring).head() - 1);
            if tx.kept.is_some() {
                let id = call.ticket.load(Ordering::Relaxed);
                tx.keep(&self.table, (call.bare, id), call.limit, &call.payload);
            }
        }
        drop(tx);
        self.channel.after_push();
        match pushed {
            Ok(()) => Ok(()),
            Err(PushError::Full { wake_at }) => Err(Blocked::Room(awaited, wake_at)),
            // By the channel that has taken the place of this one.
            Err(PushError::Retired) => Err(Blocked::Slot),
            Err(PushError::Corrupt(lie)) => {
                self.poison(lie);
                // It stays in line until the loop ends it with all others.
                Err(Blocked::Slot)
            }
        }
    }

    fn push_lined(&self, tx: &mut Transmit, call: &mut Lined<'_>) -> Result<(), PushError> {
        if call.sent == 0
            && call.payload.len() >= bulk::FROM
            && tx.kept.is_none()
            && let Some(loan) = self.channel.lend_copy(&call.payload)
        {
            let label = call.label.in_bulk();
            let context = call.context;
            let mut push = |label: Label, descriptor: &[u8]| {
                tx.push(label, descriptor, &mut 0)?;
                tx.count(label, descriptor);
                Ok(())
            };
            return loan.hand_over(|descriptor| match context {
                Some(context) => push(label.extended(), &extended(context, descriptor)),
                None => push(label, descriptor),
            });
        }
        if let Some(context) = call.context.take() {
            // Here once: what is in the ring of it already has its extension.
            call.label = call.label.extended();
            call.payload = Cow::Owned(extended(context, &call.payload));
        }
        tx.push(call.label, &call.payload, &mut call.sent)?;
        tx.count(call.label, &call.payload);
        Ok(())
    }

    pub(super) fn lines(&self) -> MutexGuard<'_, Lines> {
        self.calls.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Lines {
    fn default() -> Lines {
        Lines { rings: Default::default(), bytes: 0, soonest: FOREVER }
    }
}

impl Lines {
    fn count(&self) -> usize {
        self.rings.iter().map(|line| line.calls.len()).sum()
    }
}

impl Blocked {
    fn wake_at(&self) -> Option<(Ring, u64)> {
        match *self {
            Blocked::Slot => None,
            Blocked::Room(ring, count) => Some((ring, count)),
        }
    }
}
