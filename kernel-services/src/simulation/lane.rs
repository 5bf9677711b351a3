//! The two lanes of a channel, as far as failover looks at them.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    rc::Rc,
};

use ipc::{
    control::Introduction,
    simulation::{Sight, Watch},
};

/// Cells of a ring: few, so that rings are full now and then.
const CELLS: usize = 6;

/// A message, as the caller who sent it counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) id: u64,
    /// The caller, its thread and ring, and the number of the message among those.
    pub(super) caller: u32,
    pub(super) number: u64,
    pub(super) urgent: bool,
    pub(super) wants_answer: bool,
    pub(super) frames: usize,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} ({})", self.caller, self.number, self.id)
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Answered,
    Maybe,
    Refused,
}

#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Frames; the last one of each message carries it.
    frames: VecDeque<Option<Message>>,
    pub(super) pushed: u64,
    pub(super) taken: u64,
}

impl Ring {
    /// The messages of which the last frame is not taken.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Message> {
        self.frames.iter().flatten()
    }
}

/// What the caller's lane says of what it wants.
pub(super) mod wish {
    /// To be served by who serves.
    pub(in crate::simulation) const SERVED: u32 = 1;
    /// Nothing any more.
    pub(in crate::simulation) const NOTHING: u32 = 2;
}

/// A channel between a caller and an instance, or between an instance and one that watches it.
#[derive(Debug)]
pub(super) struct Lane {
    /// Which process serves on it.
    pub(super) server: Cell<usize>,
    /// As the opener was told.
    pub(super) told_opener: Cell<Option<Introduction>>,
    pub(super) told_server: Cell<Option<Introduction>>,
    /// The low half of the epoch, as the server's lane shows it.
    pub(super) mark: Cell<u32>,
    pub(super) wish: Cell<u32>,
    /// The epoch at which the caller was served last.
    pub(super) required: Cell<u64>,
    /// Whether the server takes nothing from it.
    pub(super) held: Cell<bool>,
    /// Whether the kernel marked the server's lane.
    pub(super) died: Cell<bool>,
    /// Whether the opener closed it.
    pub(super) closed: Cell<bool>,
    /// Whether the opener asks if anybody comes round, and whether somebody did.
    pub(super) asked: Cell<bool>,
    pub(super) pulse: Cell<bool>,
    pub(super) rings: RefCell<[Ring; 2]>,
    pub(super) answers: RefCell<VecDeque<(u64, Outcome)>>,
}

impl Lane {
    pub(super) fn new() -> Rc<Lane> {
        Rc::new(Lane {
            server: Cell::new(usize::MAX),
            told_opener: Cell::new(None),
            told_server: Cell::new(None),
            mark: Cell::new(0),
            wish: Cell::new(wish::SERVED),
            required: Cell::new(0),
            held: Cell::new(true),
            died: Cell::new(false),
            closed: Cell::new(false),
            asked: Cell::new(false),
            pulse: Cell::new(false),
            rings: RefCell::default(),
            answers: RefCell::default(),
        })
    }

    /// Pushes the frame of a message after so many others; gives the position of its last frame.
    pub(super) fn push(&self, message: Message, sent: usize) -> Option<u64> {
        let ring = &mut self.rings.borrow_mut()[usize::from(!message.urgent)];
        if ring.frames.len() >= CELLS {
            return None;
        }
        let is_last = sent + 1 == message.frames;
        ring.frames.push_back(is_last.then_some(message));
        ring.pushed += 1;
        Some(ring.pushed - 1)
    }

    /// Takes the next frame, urgent ones first; gives the message that it ends.
    pub(super) fn take(&self) -> Option<Message> {
        let mut rings = self.rings.borrow_mut();
        let ring = rings.iter_mut().find(|ring| !ring.frames.is_empty())?;
        ring.taken += 1;
        ring.frames.pop_front().flatten()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rings.borrow().iter().all(|ring| ring.frames.is_empty())
    }

    pub(super) fn taken(&self) -> [u64; 2] {
        let rings = self.rings.borrow();
        [rings[0].taken, rings[1].taken]
    }

    /// How it stands, for who looks at a history.
    pub(super) fn sketch(&self) -> String {
        let dest = self.told_opener.get().map_or(0, |it| it.dest.get());
        let rings = self.rings.borrow();
        let waits = [&rings[0], &rings[1]].map(|ring| (ring.taken, ring.pushed));
        let (mark, held) = (self.mark.get(), self.held.get());
        let (died, closed, wish) = (self.died.get(), self.closed.get(), self.wish.get());
        format!(
            "to {dest} mark {mark} held {held} died {died} closed {closed} wish {wish} {waits:?}"
        )
    }

    pub(super) fn is_open(&self) -> bool {
        !self.died.get() && !self.closed.get()
    }
}

impl Watch for Lane {
    fn mark(&self) -> u32 {
        self.mark.get()
    }

    fn sight(&self) -> Sight {
        match (self.died.get(), self.closed.get()) {
            (true, _) => Sight::Died,
            (false, true) => Sight::Closed,
            (false, false) => Sight::Open,
        }
    }
}
