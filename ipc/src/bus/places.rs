//! Where one subscription is in the rings of its topic's publishers.

use std::{collections::VecDeque, sync::Arc};

use super::{
    EventHead, Start,
    error::EventError,
    feed::{Feed, Seat, Source},
    memory::Page,
    reader::{Cursor, Miss},
};
use crate::{
    failpoint::shared,
    node::{BusWord, Shared},
    sync::{AtomicBool, AtomicU64, Ordering},
};

/// Rings that are done with and remembered: a publisher that was away may come back with one.
const REMEMBERED: usize = 128;

/// The rings, and a cursor in each.
#[derive(Debug)]
pub(super) struct Places {
    start: Start,
    /// The subscription's number, where it is reliable.
    reliable: Option<u32>,
    all: Vec<Place>,
    /// Whose turn it is.
    next: usize,
    done: VecDeque<Done>,
}

/// A place in one ring.
#[derive(Debug)]
struct Place {
    source: Arc<Source>,
    state: State,
}

#[derive(Debug)]
enum State {
    Reading(Cursor),
    /// Until its publisher has taken in that it has to wait.
    Seating(Arc<Seat>),
    /// The publisher waits.
    Seated(Cursor, Arc<Seat>),
}

#[derive(Debug)]
struct Done {
    inode: u64,
    /// Where it would go on; nothing for a ring that is not to be read any more.
    cursor: Option<Cursor>,
}

impl Places {
    pub(super) fn new(start: Start, reliable: Option<u32>) -> Places {
        Places { start, reliable, all: Vec::new(), next: 0, done: VecDeque::new() }
    }

    /// Takes in the rings that have come.
    pub(super) fn renew(&mut self, feed: &Arc<Feed>, node: &Shared) {
        for source in feed.sources() {
            let is_known = self.all.iter().any(|place| Arc::ptr_eq(&place.source, &source));
            if !is_known {
                self.take_in(feed, source, node);
            }
        }
    }

    fn take_in(&mut self, feed: &Arc<Feed>, source: Arc<Source>, node: &Shared) {
        let known = self.done.iter().position(|it| it.inode == source.inode);
        if let Some(done) = known.and_then(|index| self.done.remove(index)) {
            match done.cursor {
                Some(cursor) => self.all.push(Place { source, state: State::Reading(cursor) }),
                None => self.done.push_back(done),
            }
            return;
        }
        let state = match self.reliable {
            Some(subscriber) if !source.withdrawn.load(Ordering::Acquire) => {
                self.seat(feed, &source, subscriber, node)
            }
            _ => None,
        };
        let state = match state {
            Some(state) => state,
            None => match begin(&source, self.start) {
                Ok(cursor) => State::Reading(cursor),
                // Found out by the first look.
                Err(_) => State::Reading(Cursor::at(1)),
            },
        };
        self.all.push(Place { source, state });
    }

    /// Asks the publisher to wait for us; without memory for that it does not.
    fn seat(
        &self,
        feed: &Arc<Feed>,
        source: &Arc<Source>,
        subscriber: u32,
        node: &Shared,
    ) -> Option<State> {
        let seat = Arc::new(Seat {
            source: Arc::clone(source),
            subscriber,
            page: Page::create().ok()?,
            from_oldest: source.is_new || self.start != Start::Now,
            held: AtomicU64::new(0),
            cut: AtomicBool::new(false),
        });
        feed.take_seat(&seat);
        node.core.say(BusWord::Cursor { topic: feed.topic, seat: Arc::clone(&seat) });
        Some(State::Seating(seat))
    }

    /// Whether all publishers that are there wait, if they are to.
    pub(super) fn are_seated(&self) -> bool {
        self.all.iter().all(|place| match &place.state {
            State::Seating(seat) => {
                seat.held.load(Ordering::Acquire) != 0 || seat.cut.load(Ordering::Acquire)
            }
            State::Reading(_) | State::Seated(..) => true,
        })
    }

    /// The rings, with what each one's event word is now.
    pub(super) fn words(&self) -> Vec<(Arc<Source>, u32)> {
        let event = |source: &Source| source.ring.header().event.load(Ordering::Acquire);
        self.all.iter().map(|it| (Arc::clone(&it.source), event(&it.source))).collect()
    }

    /// Whether there may be something to read.
    pub(super) fn are_ready(&self) -> bool {
        self.all.iter().any(|place| match &place.state {
            State::Reading(cursor) | State::Seated(cursor, _) => {
                cursor.is_behind(&place.source.ring)
                    || place.source.withdrawn.load(Ordering::Acquire)
            }
            State::Seating(seat) => {
                seat.held.load(Ordering::Acquire) != 0 || seat.cut.load(Ordering::Acquire)
            }
        })
    }

    /// Reads the next event of any publisher, in turn, to the end of `payload`.
    #[inline]
    pub(super) fn next(
        &mut self,
        feed: &Arc<Feed>,
        node: &Shared,
        payload: &mut Vec<u8>,
    ) -> Result<Option<EventHead>, EventError> {
        let mut index = self.next;
        for _ in 0..self.all.len() {
            if index >= self.all.len() {
                index = 0;
            }
            if self.follows_another(index) {
                index += 1;
                continue;
            }
            match self.all[index].read(self.start, payload) {
                Ok(Some(head)) => {
                    let source = &self.all[index].source;
                    self.next = index + 1;
                    return Ok(Some(EventHead {
                        topic: feed.topic,
                        publisher: source.publisher,
                        pid: source.pid,
                        sequence: head.sequence,
                        at_ns: head.at_ns,
                    }));
                }
                Ok(None) => index += 1,
                Err(over) => self.leave(index, over, feed, node)?,
            }
        }
        // Those behind one that has left were passed over.
        Ok(None)
    }

    /// Whether a ring comes after one that is not read to its end yet.
    #[inline]
    fn follows_another(&self, index: usize) -> bool {
        let Some(before) = &self.all[index].source.follows else { return false };
        self.all.iter().any(|it| std::ptr::eq(Arc::as_ptr(&it.source), before.as_ptr()))
    }

    #[cold]
    fn leave(
        &mut self,
        index: usize,
        over: Over,
        feed: &Arc<Feed>,
        node: &Shared,
    ) -> Result<(), EventError> {
        let publisher = self.all[index].source.publisher;
        if let Over::Lagged(count) = over {
            if feed.lose(count) {
                node.core.say(BusWord::Lost { feed: Arc::clone(feed) });
            }
            return Err(EventError::Lagged { publisher, count });
        }
        let Place { source, state } = self.all.swap_remove(index);
        let cursor = match state {
            State::Reading(cursor) => Some(cursor),
            State::Seating(seat) => {
                give_up(&seat, feed, node);
                None
            }
            State::Seated(cursor, seat) => {
                give_up(&seat, feed, node);
                Some(cursor)
            }
        };
        let cursor = cursor.filter(|_| over == Over::Ended);
        self.done.push_back(Done { inode: source.inode, cursor });
        if self.done.len() > REMEMBERED {
            self.done.pop_front();
        }
        match over {
            Over::Cut => Err(EventError::Cut { publisher }),
            Over::Corrupt => Err(EventError::Corrupt { publisher }),
            Over::Ended | Over::Lagged(_) => Ok(()),
        }
    }

    /// Leaves all rings.
    pub(super) fn clear(&mut self, feed: &Arc<Feed>, node: &Shared) {
        for place in std::mem::take(&mut self.all) {
            if let State::Seating(seat) | State::Seated(_, seat) = place.state {
                give_up(&seat, feed, node);
            }
        }
    }

    /// Forgets them, in a forked child, which has no such memory.
    pub(super) fn forget(&mut self) {
        std::mem::forget(std::mem::take(&mut self.all));
    }

    /// Publishers that are read.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }
}

fn give_up(seat: &Arc<Seat>, feed: &Arc<Feed>, node: &Shared) {
    feed.leave_seat(seat);
    node.core.say(BusWord::Left { topic: feed.topic, seat: Arc::clone(seat) });
}

/// Why a place yields nothing, and is left but for a lag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Ended,
    Lagged(u64),
    Cut,
    Corrupt,
}

/// Begins to read a ring: from its first event where it came after us, or follows another.
fn begin(source: &Source, start: Start) -> Result<Cursor, Miss> {
    if source.is_new || source.follows.is_some() {
        return Ok(Cursor::origin(&source.ring));
    }
    Cursor::start(&source.ring, start)
}

impl Place {
    #[inline]
    fn read(
        &mut self,
        start: Start,
        payload: &mut Vec<u8>,
    ) -> Result<Option<super::reader::Head>, Over> {
        let Place { source, state } = self;
        let (cursor, seat) = match state {
            State::Reading(cursor) => (cursor, None),
            State::Seated(cursor, seat) => (cursor, Some(seat)),
            State::Seating(_) => {
                self.sit_down(start)?;
                return Ok(None);
            }
        };
        match cursor.next(&source.ring, payload) {
            Ok(head) => {
                if let Some(seat) = seat {
                    let next = cursor.position() + 1;
                    shared!(Cursor, seat.page.header().cursor.store(next, Ordering::Release));
                }
                Ok(Some(head))
            }
            Err(Miss::Empty) if source.withdrawn.load(Ordering::Acquire) => {
                // What was published before it went was there before that was said.
                if cursor.is_behind(&source.ring) { Ok(None) } else { Err(Over::Ended) }
            }
            Err(Miss::Empty) => match seat {
                Some(seat) if seat.cut.load(Ordering::Acquire) => Err(Over::Cut),
                _ => Ok(None),
            },
            Err(Miss::Closed) => Err(Over::Ended),
            Err(Miss::Corrupt) => Err(Over::Corrupt),
            Err(Miss::Lagged(count)) => match seat {
                // Before the publisher had heard of us it could not wait.
                Some(seat) if !seat.cut.load(Ordering::Acquire) && cursor.has_read_nothing() => {
                    Err(Over::Lagged(count))
                }
                Some(_) => Err(Over::Cut),
                None => Err(Over::Lagged(count)),
            },
        }
    }

    /// Begins, once the publisher waits.
    fn sit_down(&mut self, start: Start) -> Result<(), Over> {
        let State::Seating(seat) = &self.state else { return Ok(()) };
        let source = &self.source;
        if seat.cut.load(Ordering::Acquire) {
            return Err(Over::Cut);
        }
        let held = seat.held.load(Ordering::Acquire);
        if held == 0 {
            if source.withdrawn.load(Ordering::Acquire) {
                // It will not wait any more, and overwrite nothing either.
                let cursor = begin(source, start).map_err(|_| Over::Corrupt)?;
                self.state = State::Seated(cursor, Arc::clone(seat));
            }
            return Ok(());
        }
        let from_start = source.is_new || source.follows.is_some();
        let cursor = if !from_start && start == Start::Now {
            Cursor::at(held - 1)
        } else {
            begin(source, start).map_err(|_| Over::Corrupt)?
        };
        let next = held.max(cursor.position() + 1);
        shared!(Cursor, seat.page.header().cursor.store(next, Ordering::Release));
        self.state = State::Seated(cursor, Arc::clone(seat));
        Ok(())
    }
}
