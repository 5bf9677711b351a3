//! Leading and following: how the threads that wait on one channel share its receiving end.

use std::{sync::Weak, time::Duration};

use super::{FOREVER, Link, Sink, time_left};
use crate::{
    board::Begun,
    bulk::{Descriptor, Unread, View, no_means},
    channel::{Fate, Receive, Taken},
    clock,
    error::{CallError, PeerCorrupt, Status},
    frame::{FLAG_BULK, FLAG_MORE, Frame, Kind},
    layout::{Geometry, Ring},
    sync::{Ordering, pause},
    table::bed,
    wait::{Fences, Sleep, futex, spin::Spell},
};

/// Polls between looks at the clock, at the peer's life and for interruptions.
const POLLS_PER_LOOK: u32 = 64;
/// Polls without `pause`, and without asking how many others spin: an answer that is on its way
/// comes within these.
const EAGER_POLLS: u32 = 1000;
/// Frames taken before who takes them looks at the time, and at who else has something.
const BATCH: usize = 256;

/// How a wait ended.
enum Ended {
    /// The result is here, and the slot free.
    Answered(Result<(), CallError>),
    /// Look into the slot, or lead.
    Slot,
    /// It cannot be answered; give the slot up.
    Failed(CallError),
}

impl Link {
    /// Waits until the peer has taken `wake_at` frames; reads for everybody meanwhile, so that two
    /// full rings never wait for each other.
    pub(super) fn wait_for_room(
        &self,
        ring: Ring,
        wake_at: u64,
        until: u64,
        turn: u32,
    ) -> Result<(), CallError> {
        let mut polls = 0_u32;
        // Since when it sleeps now and then, and when it is to look after who serves.
        let (mut since, mut look_at) = (0, FOREVER);
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
            let now = clock::now_ns();
            if since == 0 {
                (since, look_at) = (now, self.first_look(now));
            } else if now >= look_at {
                look_at = self.look_after(now, since);
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
            let slot = self.table.slot(id);
            match ended {
                Ended::Answered(result) => return result,
                // The slot stays: the call goes on elsewhere.
                Ended::Failed(error) if self.moves_on(u64::from(id), &error) => return Err(error),
                Ended::Failed(error) if slot.give_up(id) => {
                    self.failed();
                    return Err(error);
                }
                // What cannot be given up was answered first, even if a lie came behind it.
                Ended::Slot | Ended::Failed(_) => {
                    if let Some(outcome) = slot.take(id) {
                        return outcome.and_then(|bytes| sink.accept_bytes(bytes));
                    }
                }
            }
        }
    }

    /// Reads the ring until call `id` is answered, or cannot be.
    #[inline]
    fn lead(&self, rx: &mut Receive, id: u32, until: u64, turn: u32, sink: &mut Sink<'_>) -> Ended {
        if rx.guard.is_some() {
            return self.lead_guarded(rx, id, until, turn, sink);
        }
        let polls = if rx.spin.may_poll() { EAGER_POLLS } else { 1 };
        for _ in 0..polls {
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

    /// As `lead`, on an encrypted channel. What a record is shows when it has been taken, so
    /// whoever else it is for gets it here.
    #[inline(never)]
    fn lead_guarded(
        &self,
        rx: &mut Receive,
        id: u32,
        until: u64,
        turn: u32,
        sink: &mut Sink<'_>,
    ) -> Ended {
        self.channel.prepare(rx);
        let polls = if rx.spin.may_poll() { EAGER_POLLS } else { 1 };
        for _ in 0..polls {
            if !rx.ordinary.is_ready() {
                continue;
            }
            let taken = rx.take(Ring::Ordinary, self.channel.max_payload);
            let sorted = match taken {
                Ok(Some(taken)) => self.sort(rx, taken, &mut Some((id, &mut *sink))),
                Ok(None) => break,
                Err(lie) => Err(lie),
            };
            self.channel.after_take();
            match sorted {
                Ok(Some(result)) => return Ended::Answered(result),
                Ok(None) => break,
                Err(lie) => return Ended::Failed(self.poison(lie)),
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
        self.goes_slow(rx, id);
        rx.board.receiver.spins.add(1);
        let mut spin = Some(Spell::begin(&mut rx.spin, clock::now_ns));
        let since = clock::now_ns();
        let mut look_at = self.first_look(since);
        loop {
            if rx.is_ready() {
                if let Some(spell) = spin.take() {
                    spell.paid(&mut rx.spin);
                }
                match self.drain(rx, Some((id, sink))) {
                    Ok(Some(result)) => return Ended::Answered(result),
                    Ok(None) => spin = Some(Spell::begin(&mut rx.spin, clock::now_ns)),
                    Err(lie) => return Ended::Failed(self.poison(lie)),
                }
            }
            let now = clock::now_ns();
            if let Some(ended) = self.look_up(rx, id, until, turn, now, sink) {
                return ended;
            }
            if now >= look_at {
                look_at = self.look_after(now, since);
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
                spell.in_vain(&mut rx.spin);
            }
            let event = self.channel.event();
            // The bed is for what comes from within this process: a cancellation, or a death that
            // the life word did not tell.
            slot.bed.store(bed::ASLEEP, Ordering::SeqCst);
            self.channel.park(Sleep::Futex);
            self.channel.barrier();
            if !rx.is_ready() && !slot.is_done(id) && self.channel.check_life() == Fate::Open {
                let soonest = until.min(look_at);
                let left =
                    (soonest != FOREVER).then(|| Duration::from_nanos(soonest.saturating_sub(now)));
                let called = futex::Word { at: &slot.bed, value: bed::ASLEEP, shared: false };
                self.channel.sleep(event, [Some(self.interrupter.word(turn)), Some(called)], left);
            }
            slot.bed.store(bed::EMPTY, Ordering::SeqCst);
            self.channel.unpark();
        }
    }

    /// From here on a call is timed in any case, and counts for itself alone. When one began that
    /// was not sampled is known by how long the eager polls took another time.
    fn goes_slow(&self, rx: &mut Receive, id: u32) {
        let (slot, now) = (self.table.slot(id), clock::now_ns());
        let begun = slot.begun();
        let at = if begun.is_timed() {
            if begun.is_sampled() && rx.spin.may_poll() {
                rx.eager_ns = now.saturating_sub(begun.at_ns());
            }
            begun.at_ns()
        } else {
            now.saturating_sub(if rx.spin.may_poll() { rx.eager_ns } else { 0 })
        };
        slot.set_begun(Begun::alone(at));
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
            // Answers that were published before the end count: of the largest ring all.
            for _ in 0..=*Geometry::CELLS.end() as usize / BATCH {
                match self.drain(rx, Some((id, &mut *sink))) {
                    Ok(Some(result)) => return Some(Ended::Answered(result)),
                    Ok(None) if rx.is_ready() => {}
                    Ok(None) | Err(_) => break,
                }
            }
            self.channel.judge_end(rx);
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
    pub(super) fn drain(
        &self,
        rx: &mut Receive,
        mut mine: Option<(u32, &mut Sink<'_>)>,
    ) -> Result<Option<Result<(), CallError>>, PeerCorrupt> {
        let mut answer = None;
        let mut took = false;
        for _ in 0..BATCH {
            if answer.is_some() {
                break;
            }
            let ring = if rx.urgent.is_ready() { Ring::Urgent } else { Ring::Ordinary };
            if rx.guard.is_none()
                && let Some((id, sink)) = &mut mine
                && let Some(result) = self.take_mine(rx, ring, *id, sink)?
            {
                answer = Some(result);
                took = true;
                break;
            }
            let Some(taken) = rx.take(ring, self.channel.max_payload)? else { break };
            answer = self.sort(rx, taken, &mut mine)?;
            took = true;
        }
        if took {
            self.channel.after_take();
        }
        Ok(answer)
    }

    /// Gives what was taken to whoever waits for it. Returns the result of the call `mine` when it
    /// was that call's.
    fn sort(
        &self,
        rx: &mut Receive,
        taken: Taken,
        mine: &mut Option<(u32, &mut Sink<'_>)>,
    ) -> Result<Option<Result<(), CallError>>, PeerCorrupt> {
        let mut answer = None;
        match taken {
            Taken::Whole(frame, status) if status == 0 && is_whole_answer(&frame) => {
                let length = frame.head.length as usize;
                let is_mine = mine.as_ref().is_some_and(|(id, _)| *id == frame.head.id);
                let begun = self.table.slot(frame.head.id).begun();
                if is_mine && self.table.slot(frame.head.id).give_up(frame.head.id) {
                    rx.time(begun);
                    answer = mine.as_mut().map(|(_, sink)| {
                        sink.accept(length).map(|to| to.copy_from_slice(&rx.buffer[..length]))
                    });
                } else {
                    let bytes = rx.buffer[..length].to_vec();
                    self.deliver(rx, &frame, status, bytes)?;
                }
            }
            Taken::Whole(frame, status) => {
                let bytes = rx.buffer[..frame.head.length as usize].to_vec();
                self.deliver(rx, &frame, status, bytes)?;
            }
            Taken::Long(frame, bytes) => {
                let is_mine = mine.as_ref().is_some_and(|(id, _)| *id == frame.head.id);
                let begun = self.table.slot(frame.head.id).begun();
                if is_mine && self.table.slot(frame.head.id).give_up(frame.head.id) {
                    rx.time(begun);
                    answer = mine.as_mut().map(|(_, sink)| sink.accept_bytes(bytes));
                } else {
                    self.deliver(rx, &frame, 0, bytes)?;
                }
            }
            Taken::Bulk(frame, descriptor) => {
                let is_mine = mine.as_ref().is_some_and(|(id, _)| *id == frame.head.id);
                let begun = self.table.slot(frame.head.id).begun();
                if let Some(lent) = self.borrow(&frame, descriptor)? {
                    if is_mine && self.table.slot(frame.head.id).give_up(frame.head.id) {
                        rx.time(begun);
                        answer = mine.as_mut().map(|(_, sink)| sink.accept_view(lent));
                    } else {
                        self.deliver(rx, &frame, 0, lent.into_vec())?;
                    }
                }
            }
            Taken::Refused(frame, _) => {
                let (size, limit) = (frame.total, self.channel.max_payload);
                self.failed();
                self.finish(frame.head.id, Err(CallError::TooLarge { size, limit }));
            }
            Taken::Fragment => {}
            Taken::Hello(_) => return Err(PeerCorrupt::Handshake),
        }
        Ok(answer)
    }

    /// Looks at an answer in bulk memory. When it cannot be taken in, its call ends with why, and
    /// there is nothing more to do.
    fn borrow(&self, frame: &Frame, descriptor: Descriptor) -> Result<Option<View>, PeerCorrupt> {
        let error = match self.channel.borrower.view(self.channel.bell(), descriptor) {
            Ok(lent) => {
                let (size, limit) = (lent.len() as u64, self.channel.max_payload);
                if size <= limit {
                    return Ok(Some(lent));
                }
                CallError::TooLarge { size, limit }
            }
            Err(Unread::NoMeans(errno)) => no_means(errno),
            Err(Unread::Lie(lie)) => return Err(lie),
        };
        self.failed();
        self.finish(frame.head.id, Err(error));
        Ok(None)
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
        let frame = match consumer.peek_plain([Kind::Response; 2]) {
            Some(frame) => frame,
            None => match consumer.peek()? {
                Some(frame) if is_whole_answer(&frame) => frame,
                _ => return Ok(None),
            },
        };
        let is_allowed = u64::from(frame.head.length) <= self.channel.max_payload;
        // Once given up, the slot may be another call's.
        let begun = self.table.slot(id).begun();
        if frame.head.id != id || !is_allowed || !self.table.slot(id).give_up(id) {
            return Ok(None);
        }
        self.table.prefer(id);
        let result =
            sink.accept(frame.head.length as usize).map(|target| consumer.copy(&frame, target));
        consumer.release(&frame);
        rx.board.receiver.received(1, u64::from(frame.head.length));
        rx.time(begun);
        Ok(Some(result))
    }

    /// Gives an answer to whoever waits for it.
    fn deliver(
        &self,
        rx: &Receive,
        frame: &Frame,
        status: i32,
        bytes: Vec<u8>,
    ) -> Result<(), PeerCorrupt> {
        let id = frame.head.id;
        let slot = self.table.slot(id);
        if slot.is_waiting(id) {
            rx.time(slot.begun());
        } else if self.is_pulse(frame) {
            return Ok(());
        } else if !self.was_issued(id) {
            return Err(PeerCorrupt::Answer);
        }
        if frame.head.kind == Kind::Error && status >= 0 {
            return Err(PeerCorrupt::Status);
        }
        let outcome = match frame.head.kind {
            Kind::Error => {
                self.failed();
                Err(CallError::Remote(Status::from_code(status)))
            }
            _ => Ok(bytes),
        };
        self.finish(id, outcome);
        Ok(())
    }

    /// Whether a call of this id was ever made. Once the low halves have gone round, it may be.
    fn was_issued(&self, id: u32) -> bool {
        let first = self.calls.first_id;
        let issued = self.calls.issued.load(Ordering::Acquire).max(first);
        issued - first > u64::from(u32::MAX)
            || id.wrapping_sub(first as u32) <= (issued - first) as u32
    }

    /// Sleeps in the slot of call `id` until it is answered, or somebody must lead.
    #[cold]
    fn follow(&self, id: u32, until: u64, turn: u32) -> Ended {
        let slot = self.table.slot(id);
        if !slot.begun().is_timed() {
            // Whoever leads times it for us; what it spent before is not known, and little.
            slot.set_begun(Begun::alone(clock::now_ns()));
        }
        self.followers.fetch_add(1, Ordering::SeqCst);
        slot.bed.store(bed::ASLEEP, Ordering::SeqCst);
        Fences::within().heavy();
        let ended = loop {
            if slot.is_done(id) {
                break Ended::Slot;
            }
            if self.is_retired() {
                break Ended::Failed(self.channel.ended(false));
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
            let word = futex::Word { at: &slot.bed, value: bed::ASLEEP, shared: false };
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

    /// Calls a follower to lead, and tells the loop that it may read again. After every release of
    /// the receiving claim.
    #[inline]
    fn pass_on(&self) {
        // The release of the claim ended with a light fence: a follower that saw it held has
        // announced itself before its heavy one, and is seen here.
        self.left_to_followers();
        if self.calls.callbacks.load(Ordering::Relaxed) > 0
            && let Some(hub) = self.calls.hub.get().and_then(Weak::upgrade)
        {
            // The sleep that the loop had announced on this channel was overwritten by ours.
            hub.summon(self.token.load(Ordering::Relaxed));
        }
    }

    /// Calls a follower, if there are any: nobody else may be reading for them.
    #[inline]
    pub(crate) fn left_to_followers(&self) {
        if self.followers.load(Ordering::Relaxed) > 0 {
            self.call_follower();
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

    /// Withdraws a thread's interest in call `id`.
    pub(crate) fn abandon(&self, id: u32) {
        let slot = self.table.slot(id);
        while !slot.give_up(id) {
            if slot.take(id).is_some() || !slot.is_waiting(id) {
                return;
            }
        }
    }
}

fn is_whole_answer(frame: &Frame) -> bool {
    frame.head.kind == Kind::Response && frame.head.flags & (FLAG_MORE | FLAG_BULK) == 0
}
