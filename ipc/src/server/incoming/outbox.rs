//! Answers that found no room, kept until there is some.

use std::{
    collections::VecDeque,
    sync::{MutexGuard, PoisonError},
};

use super::Incoming;
use crate::{
    channel::{Fate, ring_of},
    frame::Label,
    layout::Ring,
    ring::PushError,
    sync::Ordering,
};

/// Answers that may wait for a caller that does not take them.
const MOST_ANSWERS: usize = 1024;

/// An answer, or the rest of one, that found no room.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) label: Label,
    pub(super) payload: Vec<u8>,
    pub(super) sent: usize,
}

#[derive(Debug, Default)]
pub(super) struct Outbox {
    answers: VecDeque<Answer>,
    bytes: u64,
    /// The ring that the first answer waits for, and the count of taken frames at which to try.
    wake_at: Option<(Ring, u64)>,
}

impl Incoming {
    /// Keeps an answer until there is room, and has the loop see to it. A caller that takes none
    /// of its answers loses its channel: nobody waits for it, and nothing else is held up.
    #[cold]
    pub(super) fn queue(&self, answer: Answer) {
        let quota = self.channel.max_payload.saturating_mul(2);
        {
            let mut outbox = self.lock();
            outbox.bytes += answer.payload.len() as u64;
            outbox.answers.push_back(answer);
            if outbox.answers.len() > MOST_ANSWERS || outbox.bytes > quota {
                outbox.answers.clear();
                outbox.bytes = 0;
                self.channel.end(Fate::Closed);
                return;
            }
            self.backlog.store(true, Ordering::Release);
        }
        self.flush();
        self.summon();
    }

    /// Whether answers wait for room.
    #[inline]
    pub(crate) fn has_backlog(&self) -> bool {
        self.backlog.load(Ordering::Acquire)
    }

    /// The ring whose room the backlog waits for, and the count of taken frames that makes it.
    pub(crate) fn wants(&self) -> Option<(Ring, u64)> {
        self.has_backlog().then(|| self.lock().wake_at)?
    }

    /// Sends of the backlog what there is room for.
    pub(crate) fn flush(&self) {
        let mut outbox = self.lock();
        let outbox = &mut *outbox;
        let mut tx = self.channel.tx.claim();
        outbox.wake_at = None;
        while let Some(answer) = outbox.answers.front_mut() {
            match tx.push(answer.label, &answer.payload, &mut answer.sent) {
                Ok(()) => {
                    tx.count(answer.label, &answer.payload);
                    outbox.bytes -= answer.payload.len() as u64;
                    outbox.answers.pop_front();
                }
                Err(PushError::Full { wake_at }) => {
                    tx.count_full();
                    outbox.wake_at = Some((ring_of(answer.label.priority()), wake_at));
                    break;
                }
                Err(PushError::Retired) => break,
                Err(PushError::Corrupt(lie)) => {
                    self.channel.end(Fate::Poisoned(lie));
                    break;
                }
            }
        }
        if outbox.answers.is_empty() {
            self.backlog.store(false, Ordering::Release);
        }
        drop(tx);
        self.channel.after_push();
    }

    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
