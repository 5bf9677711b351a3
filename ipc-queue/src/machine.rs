//! A queue: what becomes of every message. Pure: `(state, event, now) -> effects`.
//!
//! ```text
//!            ┌── delayed ◀─┐ nack with a delay
//!   Put ─▶ stored          │
//!            └──▶ ready ──Take──▶ leased ──ack──▶ settling ──stored──▶ gone
//!                  ▲  ▲            │  │
//!                  │  └── nack, the consumer's end, the lease's end
//!                redrive              └── the same, after the last attempt ──▶ dead letter
//! ```
//! What is to last is said by [`Effect::Append`]. A message can be taken, and its producer hears
//! of it, once [`Event::Committed`] says that it is stored; so is an acknowledgement. Times of
//! waiting are on `CLOCK_MONOTONIC`; only a message that is to wait over a restart has a date.

mod line;
mod pile;
mod recovery;
mod words;

use std::collections::VecDeque;

use line::{Line, Putter, Taker};
use pile::{Pile, State};
pub use words::{
    Answer, Delivery, Effect, Event, Facts, Limits, Now, Put, Refusal, Take, Ticket, Told, Trouble,
    Verdict,
};

use crate::{
    record::{Record, Stored},
    windows::{Seen, Windows},
};

/// Most messages that one record acknowledges.
const MOST_IDS: usize = 4096;

/// A queue.
#[derive(Debug)]
pub struct Machine {
    limits: Limits,
    pile: Pile,
    windows: Windows,
    next_id: u64,
    /// Records appended so far.
    appended: u64,
    /// What is done once so many records are stored; ascending.
    pending: VecDeque<(u64, Pending)>,
    /// Messages in there, and their bytes.
    coming: (u64, u64),
    line: Line,
    totals: Facts,
}

/// What waits for the log.
#[derive(Debug)]
enum Pending {
    Put(Ticket, Stored),
    Gone(Option<(Ticket, Answer)>, Vec<u64>),
    Tell(Ticket, Answer),
}

/// One step.
struct Turn<'a> {
    now: Now,
    out: &'a mut Vec<Effect>,
}

impl Turn<'_> {
    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        self.out.push(Effect::Answer(ticket, answer));
    }

    fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        self.answer(ticket, Answer::Refused(refusal));
    }
}

impl Machine {
    /// Starts with nothing.
    pub fn new(limits: Limits) -> Machine {
        Machine {
            limits,
            pile: Pile::default(),
            windows: Windows::new(limits.producers as usize),
            next_id: 1,
            appended: 0,
            pending: VecDeque::new(),
            coming: (0, 0),
            line: Line::default(),
            totals: Facts::default(),
        }
    }

    /// Takes one event; appends what is to be done about it to `out`.
    pub fn step(&mut self, event: Event, now: Now, out: &mut Vec<Effect>) {
        let turn = &mut Turn { now, out };
        match event {
            Event::Put(ticket, channel, put) => self.put(ticket, channel, put, turn),
            Event::Take(ticket, channel, take) => self.take(ticket, channel, take, turn),
            Event::Settle(ticket, channel, consumer, verdict, items) => {
                self.pile.bind(consumer, channel);
                self.settle(ticket, consumer, verdict, &items, turn);
            }
            Event::Leave(ticket, consumer) => {
                // What it still asks for would be given to nobody.
                for ticket in self.line.supersede(consumer) {
                    turn.answer(ticket, Answer::Messages(Vec::new()));
                }
                let held = self.pile.held_by(consumer);
                let count = held.len() as u64;
                self.give_all_back(&held, turn);
                turn.answer(ticket, Answer::Count(count));
            }
            Event::Gone(channel) => {
                self.line.leave(channel);
                let held = self.pile.held_over(channel);
                self.give_all_back(&held, turn);
            }
            Event::Committed(upto) => self.committed(upto, turn),
            Event::Failed(upto, trouble) => self.failed(upto, trouble, turn),
            Event::Redrive(ticket, most) => self.redrive(ticket, most as usize, turn),
            Event::Purge(ticket, dead) => self.purge(ticket, dead, turn),
            Event::Move(ids) => self.write_again(ids, turn),
            Event::Tick => self.tick(turn),
        }
        self.admit_waiting(turn);
        self.serve_takers(turn);
    }

    /// Says when [`Event::Tick`] is next needed: `CLOCK_MONOTONIC` in ns.
    pub fn deadline_ns(&self) -> Option<u64> {
        [self.pile.deadline_ns(), self.line.deadline_ns()].into_iter().flatten().min()
    }

    /// Counts the records that it had appended.
    pub fn appended(&self) -> u64 {
        self.appended
    }

    /// Says how it stands.
    pub fn facts(&self) -> Facts {
        let (takers, putters) = self.line.lengths();
        self.pile.count(Facts { takers, putters, ..self.totals })
    }

    /// Gives its limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Looks at messages, or dead letters, with ids above one; nobody gets them by that.
    pub fn peek(&self, dead: bool, above: u64, most: usize) -> Vec<Delivery> {
        self.pile.peek(dead, above, most)
    }

    fn append(&mut self, record: Record, turn: &mut Turn<'_>) {
        self.appended += 1;
        turn.out.push(Effect::Append(record));
    }

    fn put(&mut self, ticket: Ticket, channel: u64, put: Put, turn: &mut Turn<'_>) {
        if put.payload.len() > self.limits.message_bytes as usize {
            return turn.refuse(ticket, Refusal::TooLarge);
        }
        if self.is_known(ticket, &put, turn) {
            return;
        }
        if !self.line.has_putters() && self.has_room(put.payload.len()) {
            return self.accept(ticket, put, turn);
        }
        if put.wait_until_ns <= turn.now.mono_ns {
            self.totals.refused += 1;
            return turn.refuse(ticket, Refusal::Full);
        }
        let putter = Putter { ticket, channel, put };
        if let Err(putter) = self.line.wait_for_room(putter, self.limits) {
            turn.refuse(putter.ticket, Refusal::Crowded);
        }
    }

    /// Answers a message that came before, or is too old to know.
    fn is_known(&mut self, ticket: Ticket, put: &Put, turn: &mut Turn<'_>) -> bool {
        if put.producer == 0 {
            return false;
        }
        match self.windows.look(put.producer, put.sequence) {
            Seen::New => false,
            Seen::Stale => {
                turn.refuse(ticket, Refusal::Stale);
                true
            }
            Seen::Duplicate => {
                self.totals.duplicates += 1;
                // It is stored when all that was appended so far is.
                self.when_stored(Pending::Tell(ticket, Answer::Stored(0)), turn);
                true
            }
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        let (messages, held) = self.pile.size();
        let (coming, coming_bytes) = self.coming;
        messages + coming < u64::from(self.limits.messages)
            && held + coming_bytes + bytes as u64 <= self.limits.bytes
    }

    fn accept(&mut self, ticket: Ticket, put: Put, turn: &mut Turn<'_>) {
        let id = self.next_id;
        self.next_id += 1;
        if put.producer != 0 {
            self.windows.mark(put.producer, put.sequence);
        }
        self.coming.0 += 1;
        self.coming.1 += put.payload.len() as u64;
        let not_before_ms = match put.delay_ms {
            0 => 0,
            delay_ms => turn.now.wall_ms + u64::from(delay_ms),
        };
        let stored = Stored {
            id,
            producer: put.producer,
            sequence: put.sequence,
            priority: put.priority.min(4),
            dead: false,
            attempts: 0,
            not_before_ms,
            payload: put.payload,
        };
        self.append(Record::Put(stored.clone()), turn);
        self.pending.push_back((self.appended, Pending::Put(ticket, stored)));
    }

    /// Does it when all that was appended is stored: now, if it is.
    fn when_stored(&mut self, what: Pending, turn: &mut Turn<'_>) {
        match self.pending.back() {
            Some((at, _)) => self.pending.push_back((*at, what)),
            None => self.finish(what, turn),
        }
    }

    fn committed(&mut self, upto: u64, turn: &mut Turn<'_>) {
        while let Some((_, pending)) = self.pending.pop_front_if(|(at, _)| *at <= upto) {
            self.finish(pending, turn);
        }
    }

    fn finish(&mut self, pending: Pending, turn: &mut Turn<'_>) {
        match pending {
            Pending::Put(ticket, stored) => {
                self.forget_coming(&stored);
                self.totals.stored += 1;
                turn.answer(ticket, Answer::Stored(stored.id));
                self.pile.insert(stored, turn.now);
            }
            Pending::Gone(ticket, ids) => {
                self.totals.acked += ids.len() as u64;
                for id in ids {
                    self.pile.remove(id);
                }
                if let Some((ticket, answer)) = ticket {
                    turn.answer(ticket, answer);
                }
            }
            Pending::Tell(ticket, answer) => turn.answer(ticket, answer),
        }
    }

    fn failed(&mut self, upto: u64, trouble: Trouble, turn: &mut Turn<'_>) {
        let refusal = Refusal::Trouble(trouble);
        while let Some((_, pending)) = self.pending.pop_front_if(|(at, _)| *at <= upto) {
            match pending {
                Pending::Put(ticket, stored) => {
                    self.forget_coming(&stored);
                    self.windows.unmark(stored.producer, stored.sequence);
                    turn.refuse(ticket, refusal);
                }
                Pending::Gone(ticket, ids) => {
                    // Whoever had them has them again, and may say it once more.
                    let until_ns = turn.now.after_ms(self.limits.lease_ms);
                    for id in ids {
                        self.pile.unsettle(id, until_ns, turn.now);
                    }
                    if let Some((ticket, _)) = ticket {
                        turn.refuse(ticket, refusal);
                    }
                }
                Pending::Tell(ticket, _) => turn.refuse(ticket, refusal),
            }
        }
    }

    fn forget_coming(&mut self, stored: &Stored) {
        self.coming.0 -= 1;
        self.coming.1 -= stored.payload.len() as u64;
    }

    fn take(&mut self, ticket: Ticket, channel: u64, take: Take, turn: &mut Turn<'_>) {
        self.pile.bind(take.consumer, channel);
        // Who asks again has given up what it asked before.
        for ticket in self.line.supersede(take.consumer) {
            turn.answer(ticket, Answer::Messages(Vec::new()));
        }
        let taker = Taker { ticket, channel, take };
        if self.pile.has_ready(take.dead) {
            return self.deliver(&taker, turn);
        }
        if take.wait_until_ns <= turn.now.mono_ns {
            return turn.answer(ticket, Answer::Messages(Vec::new()));
        }
        if let Err(taker) = self.line.wait_for_messages(taker, self.limits) {
            turn.refuse(taker.ticket, Refusal::Crowded);
        }
    }

    fn deliver(&mut self, taker: &Taker, turn: &mut Turn<'_>) {
        let Taker { ticket, channel, take } = *taker;
        let mut deliveries = Vec::new();
        let mut bytes = 0;
        while deliveries.len() < take.most.max(1) as usize {
            let Some((id, length)) = self.pile.first_ready(take.dead) else { break };
            bytes += length as u64;
            if !deliveries.is_empty() && bytes > u64::from(take.bytes) {
                break;
            }
            let until_ns = turn.now.after_ms(self.limits.lease_ms);
            let Some(delivery) = self.pile.lease(id, take.consumer, channel, until_ns) else {
                break;
            };
            let attempt = delivery.attempt;
            self.totals.delivered += 1;
            deliveries.push(delivery);
            self.append(Record::Taken { id, attempt, consumer: take.consumer }, turn);
        }
        turn.answer(ticket, Answer::Messages(deliveries));
    }

    fn serve_takers(&mut self, turn: &mut Turn<'_>) {
        for dead in [false, true] {
            while self.pile.has_ready(dead) {
                let Some(taker) = self.line.next_taker(dead) else { break };
                self.deliver(&taker, turn);
            }
        }
    }

    fn admit_waiting(&mut self, turn: &mut Turn<'_>) {
        while let Some(bytes) = self.line.next_putter_bytes() {
            if !self.has_room(bytes) {
                return;
            }
            let Some(Putter { ticket, put, .. }) = self.line.next_putter() else { return };
            // It may have come over another channel meanwhile.
            if !self.is_known(ticket, &put, turn) {
                self.accept(ticket, put, turn);
            }
        }
    }

    fn settle(
        &mut self,
        ticket: Ticket,
        consumer: u64,
        verdict: Verdict,
        items: &[(u64, u32)],
        turn: &mut Turn<'_>,
    ) {
        if verdict == Verdict::Hold {
            let others: Vec<u64> = self.pile.held_by(consumer);
            let is_held = |id: u64| items.iter().any(|(held, _)| *held == id);
            let lost: Vec<u64> = others.into_iter().filter(|id| !is_held(*id)).collect();
            self.give_all_back(&lost, turn);
        }
        let mut gone = Vec::new();
        let mut told = Vec::with_capacity(items.len());
        for &(id, attempt) in items {
            let is_leased = self.pile.is_leased(id, consumer, attempt);
            let is_done = match verdict {
                // Late, but nobody has had it since.
                Verdict::Ack if self.pile.was_last(id, consumer, attempt) => {
                    self.pile.set(id, State::Settling);
                    gone.push(id);
                    true
                }
                Verdict::Nack { delay_ms } if is_leased => {
                    self.give_back(id, delay_ms, turn);
                    true
                }
                Verdict::Extend { lease_ms } if is_leased => {
                    self.pile.set(id, State::Leased(turn.now.after_ms(lease_ms)));
                    true
                }
                Verdict::Bury if is_leased => {
                    self.bury(id, turn);
                    true
                }
                Verdict::Hold => is_leased,
                _ => false,
            };
            told.push(match is_done {
                true => Told::Done,
                false if self.pile.has(id) => Told::Lost,
                false => Told::Gone,
            });
        }
        if gone.is_empty() {
            return turn.answer(ticket, Answer::Settled(told));
        }
        self.append(Record::Gone { ids: gone.clone() }, turn);
        let pending = Pending::Gone(Some((ticket, Answer::Settled(told))), gone);
        self.pending.push_back((self.appended, pending));
    }

    fn give_all_back(&mut self, ids: &[u64], turn: &mut Turn<'_>) {
        for id in ids {
            self.give_back(*id, 0, turn);
        }
    }

    /// A message that was leased can be taken again, or is a dead letter.
    fn give_back(&mut self, id: u64, delay_ms: u32, turn: &mut Turn<'_>) {
        let Some(stored) = self.pile.stored_mut(id) else { return };
        self.totals.returned += 1;
        if !stored.dead && stored.attempts >= self.limits.attempts {
            return self.bury(id, turn);
        }
        stored.not_before_ms = match delay_ms {
            0 => 0,
            delay_ms => turn.now.wall_ms + u64::from(delay_ms),
        };
        let not_before_ms = stored.not_before_ms;
        self.pile.set_waiting(id, turn.now);
        self.append(Record::Back { id, not_before_ms }, turn);
    }

    fn bury(&mut self, id: u64, turn: &mut Turn<'_>) {
        let Some(stored) = self.pile.stored_mut(id) else { return };
        self.totals.died += u64::from(!stored.dead);
        stored.dead = true;
        stored.not_before_ms = 0;
        self.pile.set(id, State::Ready);
        self.append(Record::Dead { id }, turn);
    }

    fn redrive(&mut self, ticket: Ticket, most: usize, turn: &mut Turn<'_>) {
        let ids = self.pile.ready_dead(most);
        for id in &ids {
            self.pile.revive(*id);
        }
        let answer = Answer::Count(ids.len() as u64);
        for ids in ids.chunks(MOST_IDS) {
            self.append(Record::Redriven { ids: ids.to_vec() }, turn);
        }
        if ids.is_empty() {
            return turn.answer(ticket, answer);
        }
        self.pending.push_back((self.appended, Pending::Tell(ticket, answer)));
    }

    fn purge(&mut self, ticket: Ticket, dead: bool, turn: &mut Turn<'_>) {
        let ids = self.pile.unheld(dead);
        let mut answer = Some((ticket, Answer::Count(ids.len() as u64)));
        if ids.is_empty() {
            return turn.answer(ticket, Answer::Count(0));
        }
        for id in &ids {
            self.pile.set(*id, State::Settling);
        }
        for ids in ids.chunks(MOST_IDS) {
            self.append(Record::Gone { ids: ids.to_vec() }, turn);
            self.pending.push_back((self.appended, Pending::Gone(answer.take(), ids.to_vec())));
        }
    }

    fn write_again(&mut self, ids: Vec<u64>, turn: &mut Turn<'_>) {
        for id in ids {
            let Some((stored, leased_to)) = self.pile.as_written(id) else { continue };
            let attempt = stored.attempts;
            self.append(Record::Moved(stored), turn);
            if let Some(consumer) = leased_to {
                self.append(Record::Taken { id, attempt, consumer }, turn);
            }
        }
    }

    fn tick(&mut self, turn: &mut Turn<'_>) {
        for id in self.pile.due(turn.now.mono_ns) {
            self.give_back(id, 0, turn);
        }
        for (ticket, is_taker) in self.line.overdue(turn.now.mono_ns) {
            if is_taker {
                turn.answer(ticket, Answer::Messages(Vec::new()));
            } else {
                self.totals.refused += 1;
                turn.refuse(ticket, Refusal::Full);
            }
        }
    }
}

#[cfg(test)]
mod tests;
