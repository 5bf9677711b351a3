//! What was sent to a name with standbys, and nobody holds otherwise: kept until it is known to be
//! done with, in the order in which it was sent.

use std::collections::VecDeque;

use super::replay::{self, Before, Reached, Verdict};
use crate::{
    channel::{Transmit, ring_of},
    frame::{Kind, Label},
    layout::{INLINE, Ring},
    link::Limit,
    ring::PushError,
    table::Table,
};

/// Messages after which those that are done with are looked for.
const SWEEP: usize = 64;

/// A message that was sent.
#[derive(Debug)]
pub(crate) struct Sent {
    /// With its id, and without a deadline.
    pub(crate) label: Label,
    pub(crate) limit: Limit,
    /// The whole of its id.
    pub(crate) id: u64,
    /// The ring and position of its last frame; nothing while it waits to be sent again.
    pub(crate) place: Option<(Ring, u64)>,
    /// As it goes by the channel now: with the deadline in that channel's time.
    pub(crate) wire: Label,
    /// Bytes of it that are sent, while not all are.
    pub(crate) begun: usize,
    pub(crate) payload: Payload,
}

/// Bytes, without an allocation where they are few.
#[derive(Debug)]
pub(crate) enum Payload {
    Few([u8; INLINE], u8),
    Many(Box<[u8]>),
}

impl Payload {
    pub(crate) fn of(bytes: &[u8]) -> Payload {
        if bytes.len() > INLINE {
            return Payload::Many(bytes.into());
        }
        let mut few = [0; INLINE];
        few[..bytes.len()].copy_from_slice(bytes);
        Payload::Few(few, bytes.len() as u8)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Payload::Few(few, length) => &few[..usize::from(*length)],
            Payload::Many(many) => many,
        }
    }
}

/// The messages, by ascending id.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) sent: VecDeque<Sent>,
    sweep_at: usize,
}

impl Kept {
    /// Keeps a message. `is_live` says of those before whether they still matter; it is asked now
    /// and then, so that the count of them stays within twice that of those that do.
    pub(crate) fn keep(&mut self, sent: Sent, is_live: impl FnMut(&Sent) -> bool) {
        if self.sent.len() >= self.sweep_at.max(SWEEP) {
            self.sent.retain(is_live);
            self.sweep_at = self.sent.len() * 2;
        }
        self.sent.push_back(sent);
    }

    /// The channel has ended: leaves what is to go by another, from its first byte on, and of the
    /// rest tells which may have been acted on, though somebody waits for the end.
    pub(crate) fn reconsider(
        &mut self,
        left: &Left,
        is_waiting: impl Fn(u64) -> bool,
        mut doubtful: impl FnMut(u64),
        mut goes: impl FnMut(&mut Sent),
    ) {
        self.sent.retain_mut(|it| {
            if it.wants_answer() && !is_waiting(it.id) {
                return false;
            }
            let verdict = it.verdict(left);
            match verdict {
                Verdict::Send => {
                    (it.place, it.begun) = (None, 0);
                    goes(it);
                }
                Verdict::Maybe => doubtful(it.id),
                Verdict::Done => {}
            }
            verdict == Verdict::Send
        });
    }
}

/// A channel that has ended, as far as it says what may go by another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    /// Frames of each ring that the service had taken.
    pub(crate) taken: [u64; 2],
    pub(crate) before: Before,
    /// Whether the service may be asked twice.
    pub(crate) repeatable: bool,
}

impl Sent {
    /// Whether somebody waits for its end.
    pub(crate) fn wants_answer(&self) -> bool {
        self.label.is(Kind::Request)
    }

    /// How far it has come, when of each ring so many frames are taken.
    pub(crate) fn reached(&self, taken: [u64; 2]) -> Reached {
        let ring = ring_of(self.label.priority());
        replay::reached(self.place.map(|(_, position)| position), taken[ring as usize])
    }

    fn verdict(&self, left: &Left) -> Verdict {
        let reached = self.reached(left.taken);
        if self.wants_answer() {
            replay::request(reached, left.before, left.repeatable)
        } else {
            replay::one_way(reached, left.before, left.repeatable)
        }
    }
}

impl Transmit {
    /// Keeps a message that was just sent whole, if this channel is one that may be replaced.
    #[cold]
    pub(crate) fn keep(
        &mut self,
        table: &Table,
        (label, id): (Label, u64),
        limit: Limit,
        payload: &[u8],
    ) {
        let Some(mut kept) = self.kept.take() else { return };
        let ring = ring_of(label.priority());
        let place = Some((ring, self.producer(ring).head() - 1));
        let payload = Payload::of(payload);
        let sent = Sent { label, limit, id, place, wire: label, begun: 0, payload };
        let mut taken = None;
        kept.keep(sent, |it| {
            if it.wants_answer() {
                return table.slot(it.id as u32).is_waiting(it.id as u32);
            }
            let taken = taken.get_or_insert_with(|| self.taken());
            it.reached(*taken) != Reached::Taken
        });
        self.kept = Some(kept);
    }

    /// Frames of each ring that the peer has taken; none of them if it tells nonsense, which is
    /// found out when room is needed.
    pub(crate) fn taken(&mut self) -> [u64; 2] {
        [Ring::Urgent, Ring::Ordinary].map(|ring| self.producer(ring).refresh_taken().unwrap_or(0))
    }

    /// The first message that waits to be sent again.
    pub(crate) fn late(&self) -> Option<Label> {
        let late = self.kept.as_ref()?.sent.iter().find(|it| it.place.is_none())?;
        Some(late.label)
    }

    /// Sends again, in their order, those that wait for it.
    pub(crate) fn send_late(&mut self) -> Result<(), PushError> {
        let Some(mut kept) = self.kept.take() else { return Ok(()) };
        let late = kept.sent.iter_mut().filter(|it| it.place.is_none());
        let mut outcome = Ok(());
        for it in late {
            let ring = ring_of(it.label.priority());
            let producer = self.producer(ring);
            while it.begun < it.payload.bytes().len() || it.place.is_none() {
                match producer.push(it.wire, it.payload.bytes(), it.begun) {
                    Ok(begun) => it.begun = begun,
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
                if it.begun >= it.payload.bytes().len() {
                    it.place = Some((ring, producer.head() - 1));
                }
            }
            if outcome.is_err() {
                break;
            }
            self.count(it.label, it.payload.bytes());
        }
        self.kept = Some(kept);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_with_does_not_pile_up() {
        let mut kept = Kept::default();
        for id in 0..10_000 {
            let label = Label::new(Kind::OneWay, 2);
            let (limit, place) = (Limit::Room(0), Some((Ring::Ordinary, id)));
            let payload = Payload::of(&[1; 60]);
            let sent = Sent { label, limit, id, place, wire: label, begun: 0, payload };
            kept.keep(sent, |it| it.id + 100 > id);
            assert!(kept.sent.len() <= 2 * 100 + 1);
        }
        assert!(kept.sent.iter().map(|it| it.id).is_sorted());
        assert_eq!(kept.sent.back().expect("kept").payload.bytes(), [1; 60]);
    }
}
