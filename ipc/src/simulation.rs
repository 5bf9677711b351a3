//! The decisions of failover, for a test that makes up the world around them.
//!
//! A [`Standby`] decides when it serves, by what it sees of those before it. A [`Keeper`] holds
//! what a caller sent, and decides what of it goes elsewhere when a channel ends; [`judge`] does so
//! for a request that its own thread holds. A [`Watcher`] says when it suspects who serves, and
//! [`next_channel`] and [`supersedes`] to whom a caller goes, and when. It is the code
//! that a node runs; only the lanes are another's.

use std::{fmt, rc::Rc};

use crate::{
    ServiceId,
    channel::Fate,
    control::{Group, HealthCheck},
    failover::{
        course,
        detector::{self, Detector},
        kept::{Kept, Left, Payload, Sent},
        replay::{self, Before, Reached, Repeat, Verdict},
        standing::{Standing, Watched},
    },
    frame::{Kind, Label},
    layout::Ring,
    link::{FOREVER, Limit},
};

/// What a lane to one before shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Its owner lives.
    Open,
    /// The kernel marked it: its owner died.
    Died,
    /// This channel was closed.
    Closed,
}

/// A lane to one before, which a world makes up.
pub trait Watch: fmt::Debug {
    /// Gives the low half of the epoch that it shows, or 0.
    fn mark(&self) -> u32;
    /// Tells how it stands.
    fn sight(&self) -> Sight;
}

#[derive(Debug)]
struct Seen<W>(Rc<W>);

impl<W> Clone for Seen<W> {
    fn clone(&self) -> Seen<W> {
        Seen(Rc::clone(&self.0))
    }
}

impl<W: Watch> Watched for Seen<W> {
    fn mark(&self) -> u32 {
        self.0.mark()
    }

    fn fate(&self) -> Fate {
        match self.0.sight() {
            Sight::Open => Fate::Open,
            Sight::Died => Fate::Died,
            Sight::Closed => Fate::Closed,
        }
    }
}

/// An instance that stands by.
#[derive(Debug)]
pub struct Standby<W>(Standing<Seen<W>>);

impl<W: Watch> Standby<W> {
    /// Makes one of this rank; `known` is what it knew before it heard of this group.
    pub fn new(group: &Group, rank: usize, known: Option<Standby<W>>) -> Standby<W> {
        Standby(Standing::new(group, rank, known.map(|it| it.0)))
    }

    /// Gives the epoch at which it serves from now on, if it is time.
    pub fn decide(&mut self) -> Option<u64> {
        self.0.decide()
    }

    /// It was told to let go.
    pub fn void(&mut self) {
        self.0.void();
    }

    /// Lists those to whom it wants channels.
    pub fn wanted(&self) -> Vec<ServiceId> {
        self.0.wanted().collect()
    }

    /// Gives it a channel to one of them.
    pub fn watch(&mut self, instance: ServiceId, lane: Rc<W>) {
        self.0.watch(instance, Seen(lane));
    }
}

/// What is known of a channel that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Frames of the urgent and of the ordinary ring that the service has taken.
    pub taken: [u64; 2],
    /// Whether the service may take more of them.
    pub lives: bool,
    /// What the service registered with: whether it may be asked twice.
    pub flags: u32,
}

impl Ended {
    fn before(self) -> Before {
        if self.lives { Before::Alive } else { Before::Final }
    }
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fortune {
    /// It is sent again.
    Sent,
    /// Its sender is told that it may have been acted on.
    Maybe,
    /// Nobody waits for its end.
    Done,
}

/// Decides about a request whose last frame has this position in its ring, if all of it was sent.
pub fn judge(urgent: bool, position: Option<u64>, ended: Ended) -> Fortune {
    let reached = replay::reached(position, ended.taken[usize::from(!urgent)]);
    match replay::request(reached, ended.before(), Repeat::of(ended.flags)) {
        Verdict::Send => Fortune::Sent,
        Verdict::Maybe => Fortune::Maybe,
        Verdict::Done => Fortune::Done,
    }
}

/// What a caller sent by its channel, and no thread of it holds.
#[derive(Debug, Default)]
pub struct Keeper(Kept);

/// A message that waits to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// Its id.
    pub id: u64,
    /// Whether it goes by the urgent ring.
    pub urgent: bool,
}

impl Keeper {
    /// Keeps a message whose last frame has this position. `is_live` says of those before, by id,
    /// whether somebody waits for their answers; `taken` is as in [`Ended`].
    pub fn keep(
        &mut self,
        (late, position): (Late, u64),
        wants_answer: bool,
        taken: [u64; 2],
        is_live: impl Fn(u64) -> bool,
    ) {
        let kind = if wants_answer { Kind::Request } else { Kind::OneWay };
        let label = Label::new(kind, if late.urgent { 0 } else { 2 });
        let sent = Sent {
            label,
            limit: Limit::Room(FOREVER),
            id: late.id,
            place: Some((ring(late.urgent), position)),
            wire: label,
            begun: 0,
            payload: Payload::of(&[]),
        };
        self.0.keep(sent, |it| {
            if it.wants_answer() { is_live(it.id) } else { it.reached(taken) != Reached::Taken }
        });
    }

    /// The channel has ended: leaves what goes elsewhere, and tells of which nobody can know.
    pub fn reconsider(
        &mut self,
        ended: Ended,
        is_waiting: impl Fn(u64) -> bool,
        doubtful: impl FnMut(u64),
    ) {
        let Ended { taken, flags, .. } = ended;
        let left = Left { taken, before: ended.before(), repeat: Repeat::of(flags) };
        self.0.reconsider(&left, is_waiting, doubtful, |_| {});
    }

    /// Gives the first that waits to be sent again.
    pub fn late(&self) -> Option<Late> {
        let late = self.0.sent.iter().find(|it| it.place.is_none())?;
        Some(Late { id: late.id, urgent: late.label.priority() < 2 })
    }

    /// That one was sent, and its last frame has this position.
    pub fn sent(&mut self, position: u64) {
        if let Some(late) = self.0.sent.iter_mut().find(|it| it.place.is_none()) {
            late.place = Some((ring(late.label.priority() < 2), position));
        }
    }

    /// Counts what it holds.
    pub fn len(&self) -> usize {
        self.0.sent.len()
    }

    /// Tells whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.sent.is_empty()
    }
}

fn ring(urgent: bool) -> Ring {
    if urgent { Ring::Urgent } else { Ring::Ordinary }
}

/// Chooses among channels that were opened ahead, each to an instance and with the mark that it
/// shows, in place of one that has ended; `served_at` is the latest epoch that the caller knows of.
pub fn next_channel(
    group: &Group,
    served_at: u64,
    is_dead: impl Fn(ServiceId) -> bool,
    open: impl Iterator<Item = (ServiceId, u32)>,
) -> Option<usize> {
    course::next(group, served_at, is_dead, open)
}

/// Tells whether a caller that was served at that epoch refuses one that shows this mark, as the
/// one refuses the caller.
pub fn is_past(mark: u32, served_at: u64) -> bool {
    course::is_past(mark, served_at)
}

/// The later of an epoch and the one that a lane shows.
pub fn later(served_at: u64, mark: u32) -> u64 {
    course::later(served_at, mark)
}

/// Tells whether a caller leaves the channel to `current`, which shows this mark, as it hears of a
/// group.
pub fn supersedes(
    group: &Group,
    is_dead: impl Fn(ServiceId) -> bool,
    current: ServiceId,
    mark: u32,
) -> bool {
    course::supersedes(group, is_dead, current, mark)
}

/// What a caller that waits is to do about who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Nothing.
    Wait,
    /// Ask whether anybody is there.
    Ask,
    /// Tell the runtime.
    Suspect,
}

/// Watches over who serves, for a caller that waits.
#[derive(Debug)]
pub struct Watcher(Detector);

impl Default for Watcher {
    fn default() -> Watcher {
        Watcher(Detector::new(HealthCheck::default()))
    }
}

impl Watcher {
    /// Goes by this check from now on.
    pub fn adopt(&mut self, health: HealthCheck) {
        self.0.adopt(health);
    }

    /// Forgets what it knows: somebody else is watched.
    pub fn restart(&mut self) {
        self.0.restart();
    }

    /// An answer has come.
    pub fn answered(&mut self, now_ns: u64) {
        self.0.answered(now_ns);
    }

    /// Looks, for a caller that has waited since then; `count` counts all that has come.
    pub fn look(&mut self, now_ns: u64, since_ns: u64, count: u64) -> Advice {
        match self.0.look(now_ns, since_ns, count) {
            detector::Advice::Wait(_) => Advice::Wait,
            detector::Advice::Ask(_) => Advice::Ask,
            detector::Advice::Suspect(_) => Advice::Suspect,
        }
    }
}
