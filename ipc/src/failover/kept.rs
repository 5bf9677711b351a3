//! What was sent to a name with standbys, and nobody holds otherwise: kept until it is known to be
//! done with, in the order in which it was sent. Its memory is the sender's own, and has a limit.

use std::collections::VecDeque;

use super::replay::{self, Before, Reached, Repeat, Verdict};
use crate::{
    channel::{Transmit, ring_of},
    error::CallError,
    frame::{Kind, Label},
    layout::{INLINE, Ring},
    link::Limit,
    ring::PushError,
    table::Table,
};

/// Messages after which those that are done with are looked for.
const SWEEP: usize = 64;
/// Bytes of memory for what is kept of one name. One message is kept however long it is.
const MOST: usize = 64 << 20;

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
    /// Memory of all of them.
    bytes: usize,
}

impl Kept {
    /// Keeps a message. `is_live` says of those before whether they still matter; it is asked now
    /// and then, so that the count of them stays within twice that of those that do.
    pub(crate) fn keep(&mut self, sent: Sent, mut is_live: impl FnMut(&Sent) -> bool) {
        if self.sent.len() >= self.sweep_at.max(SWEEP) {
            self.retain(|it| is_live(it));
            self.sweep_at = self.sent.len() * 2;
        }
        self.bytes += sent.size();
        self.sent.push_back(sent);
    }

    /// Tells whether a message of so many bytes may be kept, too; forgets for it those that do not
    /// matter any more.
    fn has_room(&mut self, length: usize, mut is_live: impl FnMut(&Sent) -> bool) -> bool {
        let size = size_of::<Sent>() + length;
        if self.bytes + size > MOST {
            self.retain(|it| is_live(it));
        }
        self.bytes + size <= MOST || self.sent.is_empty()
    }

    /// Keeps only those for which this is true.
    fn retain(&mut self, mut stays: impl FnMut(&mut Sent) -> bool) {
        let bytes = &mut self.bytes;
        self.sent.retain_mut(|it| {
            let stays = stays(it);
            if !stays {
                *bytes -= it.size();
            }
            stays
        });
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
        self.retain(|it| {
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
    /// What may be sent again.
    pub(crate) repeat: Repeat,
}

impl Sent {
    /// Bytes of memory that it takes.
    fn size(&self) -> usize {
        size_of::<Sent>() + self.payload.bytes().len()
    }

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
            replay::request(reached, left.before, left.repeat)
        } else {
            replay::one_way(reached, left.before, left.repeat)
        }
    }
}

/// Says of messages whether they matter still. How many frames of each ring are taken is looked at
/// once, if at all: it is the peer's to write.
fn is_live(table: &Table, mut taken: impl FnMut() -> [u64; 2]) -> impl FnMut(&Sent) -> bool {
    let mut seen = None;
    move |it| {
        if it.wants_answer() {
            return table.slot(it.id as u32).is_waiting(it.id as u32);
        }
        it.reached(*seen.get_or_insert_with(&mut taken)) != Reached::Taken
    }
}

impl Transmit {
    /// Finds room to keep a message of so many bytes, if this channel is one that may be replaced.
    ///
    /// # Errors
    /// [`CallError::Full`]: it is not to be sent.
    #[cold]
    pub(crate) fn reserve(&mut self, table: &Table, length: usize) -> Result<(), CallError> {
        let Some(mut kept) = self.kept.take() else { return Ok(()) };
        let has_room = kept.has_room(length, is_live(table, || self.taken()));
        self.kept = Some(kept);
        if has_room { Ok(()) } else { Err(CallError::Full) }
    }

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
        kept.keep(sent, is_live(table, || self.taken()));
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
            // On an encrypted channel they are sealed once more, for this one's session.
            outcome = self.push_frames(it.wire, it.payload.bytes(), &mut it.begun);
            if outcome.is_err() {
                break;
            }
            it.place = Some((ring, self.producer(ring).head() - 1));
            self.count(it.label, it.payload.bytes());
        }
        self.kept = Some(kept);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn sent(id: u64, length: usize) -> Sent {
        let label = Label::new(Kind::OneWay, 2);
        let (limit, place) = (Limit::Room(0), Some((Ring::Ordinary, id)));
        let payload = Payload::of(&vec![1; length]);
        Sent { label, limit, id, place, wire: label, begun: 0, payload }
    }

    #[test]
    fn what_is_done_with_does_not_pile_up() {
        let mut kept = Kept::default();
        for id in 0..10_000 {
            kept.keep(sent(id, 60), |it| it.id + 100 > id);
            assert!(kept.sent.len() <= 2 * 100 + 1);
        }
        assert!(kept.sent.iter().map(|it| it.id).is_sorted());
        assert_eq!(kept.sent.back().expect("kept").payload.bytes(), [1; 60]);
    }

    #[test]
    fn one_message_is_kept_however_long_it_is_and_no_other_beside_it() {
        let mut kept = Kept::default();
        assert!(kept.has_room(2 * MOST, |_| true));
        kept.keep(sent(0, 2 * MOST), |_| true);
        assert!(!kept.has_room(0, |_| true), "it is under way");
        assert!(kept.has_room(0, |_| false), "it is done with");
        assert_eq!((kept.bytes, kept.sent.len()), (0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
        /// Whatever comes, and however late it is done with: nothing that matters is forgotten, and
        /// what matters is refused only when there is too much of it.
        #[test]
        fn memory_has_a_limit_and_what_matters_stays(
            steps in prop::collection::vec((0_usize..MOST / 8, 0_u64..4), 1..80),
        ) {
            let (mut kept, mut oldest) = (Kept::default(), 0);
            let mut live: VecDeque<(u64, usize)> = VecDeque::new();
            for (id, (length, done)) in (0..).zip(steps) {
                oldest = (oldest + done).min(id);
                live.retain(|(id, _)| *id >= oldest);
                let matters = |it: &Sent| it.id >= oldest;
                let size = size_of::<Sent>() + length;
                let held: usize = live.iter().map(|(_, size)| size).sum();
                let has_room = kept.has_room(length, matters);
                prop_assert_eq!(has_room, held + size <= MOST);
                if has_room {
                    // Lengths are what counts here; the bytes would only take time.
                    let mut sent = sent(id, 0);
                    sent.payload = Payload::Many(vec![0; length].into());
                    kept.keep(sent, matters);
                    live.push_back((id, size));
                }
                prop_assert!(kept.bytes <= MOST);
                prop_assert_eq!(kept.bytes, kept.sent.iter().map(Sent::size).sum::<usize>());
                let mut there = kept.sent.iter().map(|it| it.id);
                prop_assert!(live.iter().all(|(id, _)| there.any(|it| it == *id)));
            }
        }
    }
}
