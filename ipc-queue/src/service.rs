//! Requests in, events out: what callers may ask, and what it means to a queue.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ipc::{
    Request, Status,
    queue::wire::{self, Ask, Asked, MAY_MANAGE, MAY_PUT, MAY_TAKE, decode_ask},
};

use crate::{
    answers,
    failpoint::{At, reach},
    house::{House, now, shared},
    machine::{Event, Now, Put, Take, Ticket, Verdict},
};

/// The longest that a request waits here, whatever it says.
const LONGEST_MS: u64 = 60_000;
/// How long before its deadline a request that waits for room is refused, so that its sender hears
/// why: at most, and as a share of what is left.
const NOTICE_NS: u64 = 100_000_000;
const NOTICE_SHARE: u64 = 4;
/// Bytes of messages in one answer.
const MOST_BYTES: u32 = 16 << 20;
/// Bytes of an answer that lists.
const PAGE: usize = 48 << 10;

/// The queues, and the bell by which the steward is called.
#[derive(Debug)]
pub struct Desk {
    house: Mutex<House>,
    /// Rung when there is something for the journals, or due before the steward looks.
    pub(crate) bell: Condvar,
}

impl Desk {
    /// Opens.
    pub fn new(house: House) -> Desk {
        Desk { house: Mutex::new(house), bell: Condvar::new() }
    }

    /// The queues. A panic elsewhere leaves them as they were between two events.
    pub(crate) fn house(&self) -> MutexGuard<'_, House> {
        self.house.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the steward look about.
    pub fn wake_steward(&self) {
        drop(self.house());
        self.bell.notify_one();
    }

    /// A client is gone.
    pub fn gone(&self, channel: u64) {
        let mut house = self.house();
        house.gone(channel, now());
        self.bell.notify_one();
    }

    /// Handles a request.
    pub fn handle(&self, request: Request<'_>) {
        if let Err(status) = self.answer(request) {
            let (request, status) = status;
            let _ = request.reply_error(status);
        }
    }

    fn answer<'a>(&self, request: Request<'a>) -> Result<(), (Request<'a>, Status)> {
        // Owned, since the request is given away where its answer is to wait.
        let payload = request.payload();
        let judged = decode_ask(payload).and_then(|asked| {
            may(&asked.ask, request.permissions())?;
            heard(&asked.ask);
            Ok(asked)
        });
        let asked = match judged {
            Ok(asked) => asked,
            Err(status) => return Err((request, status)),
        };
        let now = now();
        let mut house = self.house();
        match look(&mut house, &asked, request.peer().uid) {
            Ok(Some(answer)) => {
                drop(house);
                let _ = request.reply(&answer);
                return Ok(());
            }
            Ok(None) => {}
            Err(status) => return Err((request, status)),
        }
        let may_make = matches!(asked.ask, Ask::Put { .. } | Ask::Take { .. });
        let maker = may_make.then(|| request.peer().uid);
        let queue = match house.find(asked.queue, maker) {
            Ok(queue) => queue,
            Err(status) => return Err((request, status)),
        };
        let ticket = house.ticket();
        let decided = decided(&asked.ask);
        let producer = house.producer(queue, request.peer().uid, asked.who);
        let event = event(ticket, &request, asked, producer, now);
        let answer = house.tell(queue, event, Some(ticket), now);
        reach(decided);
        match answer {
            Some(answer) => answers::send(&request, &answer),
            None => house.keep_waiting(ticket, request.retain()),
        }
        if house.needs_steward(queue) {
            self.bell.notify_one();
        }
        Ok(())
    }
}

/// Answers what changes nothing.
fn look(house: &mut House, asked: &Asked<'_>, uid: u32) -> Result<Option<Vec<u8>>, Status> {
    let mut bytes = Vec::new();
    match asked.ask {
        Ask::Open => {
            let queue = house.find(asked.queue, Some(uid))?;
            wire::encode_terms(&house.terms(queue), &mut bytes);
        }
        Ask::List { all: true } => house.list(asked.queue, PAGE, &mut bytes),
        Ask::List { all: false } => {
            house.find(asked.queue, None)?;
            house.list(asked.queue, 300, &mut bytes);
        }
        Ask::Peek { above, most, dead } => {
            let queue = house.find(asked.queue, None)?;
            let mut messages = house.machine(queue).peek(dead, above, usize::from(most.min(1024)));
            let mut left = MOST_BYTES as usize;
            messages.retain(|it| {
                let fits = it.payload.len() <= left;
                left = if fits { left - it.payload.len() } else { 0 };
                fits
            });
            answers::lay_out(&messages, &mut bytes);
        }
        _ => return Ok(None),
    }
    Ok(Some(bytes))
}

/// Whether the rules let a caller with these permissions ask that.
fn may(ask: &Ask<'_>, permissions: u64) -> Result<(), Status> {
    let any_of = match ask {
        Ask::Open => MAY_PUT | MAY_TAKE | MAY_MANAGE,
        Ask::Put { .. } => MAY_PUT,
        Ask::Take { .. } | Ask::Settle { .. } | Ask::Leave => MAY_TAKE,
        Ask::List { .. } | Ask::Peek { .. } | Ask::Redrive { .. } | Ask::Purge { .. } => MAY_MANAGE,
    };
    if permissions & any_of == 0 { Err(Status::ACCESS) } else { Ok(()) }
}

fn heard(ask: &Ask<'_>) {
    match ask {
        Ask::Put { .. } => reach(At::PutHeard),
        Ask::Take { .. } => reach(At::TakeHeard),
        Ask::Settle { .. } => reach(At::AckHeard),
        _ => {}
    }
}

/// Where a test may have us die when it is decided.
fn decided(ask: &Ask<'_>) -> At {
    match ask {
        Ask::Take { .. } => At::TakeDecided,
        Ask::Settle { .. } => At::AckDecided,
        _ => At::PutDecided,
    }
}

fn event(
    ticket: Ticket,
    request: &Request<'_>,
    asked: Asked<'_>,
    producer: u64,
    now: Now,
) -> Event {
    let (who, channel) = (asked.who, request.channel());
    match asked.ask {
        Ask::Put { sequence, delay_ms, priority, waits, payload } => {
            let wait_until_ns = if waits { until_notice(request, now) } else { 0 };
            let producer = if sequence == 0 { 0 } else { producer };
            let payload = shared(payload);
            let put = Put { producer, sequence, priority, delay_ms, wait_until_ns, payload };
            Event::Put(ticket, channel, put)
        }
        Ask::Take { most, wait_ms, bytes, dead } => {
            let wait_ms = u64::from(wait_ms).min(LONGEST_MS);
            let wait_until_ns =
                if wait_ms == 0 { 0 } else { now.mono_ns.saturating_add(wait_ms * 1_000_000) };
            let (most, bytes) = (u32::from(most), bytes.min(MOST_BYTES));
            Event::Take(ticket, channel, Take { consumer: who, most, bytes, wait_until_ns, dead })
        }
        Ask::Settle { verdict, items } => {
            let verdict = match verdict {
                wire::Verdict::Ack => Verdict::Ack,
                wire::Verdict::Nack(delay_ms) => Verdict::Nack { delay_ms },
                wire::Verdict::Extend(lease_ms) => Verdict::Extend { lease_ms },
                wire::Verdict::Bury => Verdict::Bury,
                wire::Verdict::Hold => Verdict::Hold,
            };
            Event::Settle(ticket, channel, who, verdict, items)
        }
        Ask::Redrive { most } => Event::Redrive(ticket, most),
        Ask::Purge { dead } => Event::Purge(ticket, dead),
        // The others were answered before.
        Ask::Leave | Ask::Open | Ask::List { .. } | Ask::Peek { .. } => Event::Leave(ticket, who),
    }
}

/// Until when a request may wait for room: a little less than its sender does.
fn until_notice(request: &Request<'_>, now: Now) -> u64 {
    let longest = now.mono_ns.saturating_add(LONGEST_MS * 1_000_000);
    let until = request.deadline_ns().unwrap_or(longest).min(longest);
    let left = until.saturating_sub(now.mono_ns);
    until - (left / NOTICE_SHARE).min(NOTICE_NS)
}
