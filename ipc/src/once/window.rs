//! The requests that were answered of late, and how: pure, bounded, by caller.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::RangeInclusive,
};

use super::{Answer, RequestKey};
use crate::ServiceId;

/// How much a [`Window`] keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests of each session of a caller; 1 at least.
    pub each: usize,
    /// Requests of all; 1 at least.
    pub all: usize,
    /// Sessions of callers that are told apart; 1 at least. One caller has at most a sixteenth of
    /// them, or two: more push out its own, the oldest first.
    pub sessions: usize,
    /// Bytes of the answers of all. One answer is kept however long it is.
    pub bytes: usize,
}

impl Default for Limits {
    /// 1024 of each, 65,536 and 64 MiB of all, and 65,536 sessions.
    fn default() -> Limits {
        Limits { each: 1024, all: 65_536, sessions: 65_536, bytes: 64 << 20 }
    }
}

/// One caller has at most this part of all sessions, and two: more push out its own, the oldest
/// first, and nobody else's.
const SHARE: usize = 16;

/// What a [`Window`] knows of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known<'a> {
    /// It was not seen: carry it out.
    New,
    /// It was begun, and nobody knows how it ended: it may have been carried out.
    Begun,
    /// It was answered so: answer the same.
    Done(&'a Answer),
    /// It is older than what is kept: it may have been carried out.
    Forgotten,
}

/// The order in which a caller's ids ascend: one for each of its sessions and rings.
type Sequence = (ServiceId, u32, bool);

#[derive(Debug, Default)]
struct Caller {
    /// By message id; nothing while it is being carried out.
    requests: BTreeMap<u64, Option<Answer>>,
    /// All up to this one were seen or will never come: message ids ascend.
    floor: Option<u64>,
}

/// Remembers requests and their answers, the latest of each caller.
///
/// Message ids of a caller's session ascend on each ring, so what is older than all that is kept
/// was seen, and is [`Known::Forgotten`]. Every operation takes a time logarithmic in what is
/// kept, amortised.
///
/// ```
/// use ipc::{Priority, ServiceId, once::{Known, Limits, RequestKey, Window}};
///
/// let mut window = Window::new(Limits::default());
/// let key = RequestKey::new(ServiceId::new(7), 1, Priority::Normal);
/// assert_eq!(window.look(&key), Known::New);
/// window.begin(key);
/// window.finish(key, Ok(b"done".to_vec()));
/// assert_eq!(window.look(&key), Known::Done(&Ok(b"done".to_vec())));
/// ```
#[derive(Debug)]
pub struct Window {
    limits: Limits,
    callers: BTreeMap<Sequence, Caller>,
    /// How many of them each caller has.
    held: HashMap<ServiceId, usize>,
    /// Those who have no channel any more, the longest gone first, and their places here.
    departed: BTreeMap<u64, ServiceId>,
    places: HashMap<ServiceId, u64>,
    departures: u64,
    /// In the order in which they were seen; may name some that are gone.
    order: VecDeque<RequestKey>,
    count: usize,
    bytes: usize,
}

fn sequence(key: &RequestKey) -> Sequence {
    (key.client, (key.message_id >> 32) as u32, key.is_urgent)
}

/// All of a caller's.
fn sequences(client: ServiceId) -> RangeInclusive<Sequence> {
    (client, 0, false)..=(client, u32::MAX, true)
}

fn size(answer: Option<&Answer>) -> usize {
    answer.and_then(|answer| answer.as_ref().ok()).map_or(0, Vec::len)
}

impl Window {
    /// Makes an empty one.
    pub fn new(limits: Limits) -> Window {
        Window {
            limits: Limits {
                each: limits.each.max(1),
                all: limits.all.max(1),
                sessions: limits.sessions.max(1),
                ..limits
            },
            callers: BTreeMap::new(),
            held: HashMap::new(),
            departed: BTreeMap::new(),
            places: HashMap::new(),
            departures: 0,
            order: VecDeque::new(),
            count: 0,
            bytes: 0,
        }
    }

    /// Says what is known of a request.
    pub fn look(&self, key: &RequestKey) -> Known<'_> {
        let Some(caller) = self.callers.get(&sequence(key)) else { return Known::New };
        match caller.requests.get(&key.message_id) {
            Some(Some(answer)) => Known::Done(answer),
            Some(None) => Known::Begun,
            None if caller.floor >= Some(key.message_id) => Known::Forgotten,
            None => Known::New,
        }
    }

    /// Notes that a request is about to be carried out. Nothing changes if it is known. Returns
    /// whether that was noted: not where it is of a session that was never seen, there are as many
    /// sessions as there may be, and nobody has [departed](Window::depart).
    ///
    /// ```
    /// use ipc::{Priority, ServiceId, once::{Limits, RequestKey, Window}};
    ///
    /// let mut window = Window::new(Limits { sessions: 1, ..Limits::default() });
    /// let key = |client| RequestKey::new(ServiceId::new(client), 1, Priority::Normal);
    /// assert!(window.begin(key(7)));
    /// assert!(!window.begin(key(8)), "there is room for one session");
    /// window.depart(ServiceId::new(7));
    /// assert!(window.begin(key(8)));
    /// ```
    pub fn begin(&mut self, key: RequestKey) -> bool {
        if let Some(place) = self.places.remove(&key.client) {
            // It is back.
            self.departed.remove(&place);
        }
        if self.look(&key) != Known::New {
            return true;
        }
        if !self.callers.contains_key(&sequence(&key)) {
            if !self.has_session_for(key.client) {
                return false;
            }
            *self.held.entry(key.client).or_default() += 1;
        }
        let caller = self.callers.entry(sequence(&key)).or_default();
        caller.requests.insert(key.message_id, None);
        self.count += 1;
        self.order.push_back(key);
        if caller.requests.len() > self.limits.each
            && let Some((&oldest, _)) = caller.requests.first_key_value()
        {
            self.forget(&RequestKey { message_id: oldest, ..key });
        }
        self.make_room();
        true
    }

    /// Makes room for a session of a caller, at the cost of its own or of those who are gone.
    fn has_session_for(&mut self, client: ServiceId) -> bool {
        let most = (self.limits.sessions / SHARE).max(2);
        if self.held.get(&client).is_some_and(|&held| held >= most)
            && let Some((&oldest, _)) = self.callers.range(sequences(client)).next()
        {
            self.drop_session(oldest);
        }
        while self.callers.len() >= self.limits.sessions {
            let Some((_, longest)) = self.departed.pop_first() else { return false };
            self.leave(longest);
        }
        true
    }

    fn drop_session(&mut self, sequence: Sequence) {
        let Some(caller) = self.callers.remove(&sequence) else { return };
        self.count -= caller.requests.len();
        self.bytes -= caller.requests.values().map(|a| size(a.as_ref())).sum::<usize>();
        if let Some(held) = self.held.get_mut(&sequence.0) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&sequence.0);
            }
        }
    }

    /// Whatever is below all that is kept of a caller may have been begun by who wrote that down.
    pub(super) fn close_below(&mut self) {
        for caller in self.callers.values_mut() {
            let below = caller.requests.first_key_value().and_then(|(id, _)| id.checked_sub(1));
            caller.floor = caller.floor.max(below);
        }
    }

    /// Notes how it was answered. A request that was not begun, or is forgotten, stays so; of two
    /// answers the first counts.
    pub fn finish(&mut self, key: RequestKey, answer: Answer) {
        let caller = self.callers.get_mut(&sequence(&key));
        let place = caller.and_then(|caller| caller.requests.get_mut(&key.message_id));
        if let Some(place @ None) = place {
            self.bytes += size(Some(&answer));
            *place = Some(answer);
            self.make_room();
        }
    }

    /// Gives what is kept, in the order in which it was begun.
    pub fn records(&self) -> impl Iterator<Item = (&RequestKey, Option<&Answer>)> {
        self.order.iter().filter_map(|key| {
            let caller = self.callers.get(&sequence(key))?;
            caller.requests.get(&key.message_id).map(|answer| (key, answer.as_ref()))
        })
    }

    /// How many requests are kept.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Tells whether none is.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Counts a caller among those who are forgotten when there is no room for others, the longest
    /// gone first: it has no channel any more, and may come back. What it sends again after it was
    /// forgotten is new.
    pub fn depart(&mut self, client: ServiceId) {
        let is_known = self.callers.range(sequences(client)).next().is_some();
        if is_known && !self.places.contains_key(&client) {
            self.departures += 1;
            self.departed.insert(self.departures, client);
            self.places.insert(client, self.departures);
        }
    }

    /// Forgets a caller that cannot send anything again.
    pub fn leave(&mut self, client: ServiceId) {
        if let Some(place) = self.places.remove(&client) {
            self.departed.remove(&place);
        }
        let gone = self.callers.range(sequences(client));
        let gone: Vec<Sequence> = gone.map(|(sequence, _)| *sequence).collect();
        for sequence in gone {
            self.drop_session(sequence);
        }
        self.make_room();
    }

    /// Forgets the oldest, until the rest is within the limits for all.
    fn make_room(&mut self) {
        while self.count > self.limits.all || (self.bytes > self.limits.bytes && self.count > 1) {
            let Some(oldest) = self.order.pop_front() else { return };
            self.forget(&oldest);
        }
        // Those that left, or that their caller's own limit pushed out, are named still.
        if self.order.len() > 2 * self.count + 16 {
            let callers = &self.callers;
            self.order.retain(|key| {
                callers
                    .get(&sequence(key))
                    .is_some_and(|c| c.requests.contains_key(&key.message_id))
            });
        }
    }

    fn forget(&mut self, key: &RequestKey) {
        let Some(caller) = self.callers.get_mut(&sequence(key)) else { return };
        if let Some(answer) = caller.requests.remove(&key.message_id) {
            self.count -= 1;
            self.bytes -= size(answer.as_ref());
            caller.floor = caller.floor.max(Some(key.message_id));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Priority, error::Status};

    fn key(client: u32, id: u64) -> RequestKey {
        RequestKey::new(ServiceId::new(client), id, Priority::Normal)
    }

    fn done(window: &mut Window, key: RequestKey, answer: &[u8]) {
        window.begin(key);
        window.finish(key, Ok(answer.to_vec()));
    }

    #[test]
    fn the_first_answer_counts() {
        let mut window = Window::new(Limits::default());
        window.finish(key(1, 1), Ok(vec![1]));
        assert_eq!(window.look(&key(1, 1)), Known::New, "it was not begun");
        window.begin(key(1, 1));
        assert_eq!(window.look(&key(1, 1)), Known::Begun);
        window.finish(key(1, 1), Err(Status::FULL));
        window.finish(key(1, 1), Ok(vec![1]));
        window.begin(key(1, 1));
        assert_eq!(window.look(&key(1, 1)), Known::Done(&Err(Status::FULL)));
        let urgent = RequestKey { is_urgent: true, ..key(1, 1) };
        assert_eq!(window.look(&urgent), Known::New, "another ring, another order");
        assert_eq!(window.look(&key(2, 1)), Known::New);
    }

    #[test]
    fn who_is_over_its_own_limit_pushes_nobody_else_out() {
        let mut window = Window::new(Limits { each: 2, ..Limits::default() });
        done(&mut window, key(1, 1), b"kept");
        for id in 1..=1000 {
            done(&mut window, key(2, id), b"");
        }
        assert_eq!(window.look(&key(1, 1)), Known::Done(&Ok(b"kept".to_vec())));
        assert_eq!(window.look(&key(2, 998)), Known::Forgotten);
        assert_eq!(window.look(&key(2, 999)), Known::Done(&Ok(vec![])));
        assert_eq!((window.len(), window.records().count()), (3, 3));
        assert!(window.order.len() < 40, "names of the forgotten are dropped");
    }

    #[test]
    fn the_oldest_of_all_make_room_and_one_answer_always_stays() {
        let limits = Limits { each: 8, all: 3, bytes: 10, ..Limits::default() };
        let mut window = Window::new(limits);
        for client in 1..=4 {
            done(&mut window, key(client, 1), b"abc");
        }
        assert_eq!(window.look(&key(1, 1)), Known::Forgotten);
        done(&mut window, key(5, 1), &[0; 100]);
        assert_eq!(window.look(&key(4, 1)), Known::Forgotten);
        assert_eq!(window.look(&key(5, 1)), Known::Done(&Ok(vec![0; 100])));
        assert_eq!(window.len(), 1);
    }

    #[test]
    fn who_leaves_takes_its_records_along() {
        let mut window = Window::new(Limits::default());
        done(&mut window, key(1, 1), b"one");
        done(&mut window, key(2, 1), b"other");
        window.leave(ServiceId::new(1));
        assert_eq!((window.len(), window.bytes), (1, 5));
        assert_eq!(window.look(&key(2, 1)), Known::Done(&Ok(b"other".to_vec())));
    }

    #[test]
    fn who_begins_sessions_without_end_pushes_out_nobody_else() {
        let mut window = Window::new(Limits { sessions: 64, ..Limits::default() });
        done(&mut window, key(1, 1), b"one");
        done(&mut window, key(2, 1), b"gone");
        window.depart(ServiceId::new(2));
        for session in 0..5000_u64 {
            done(&mut window, key(7, session << 32 | 1), b"");
            assert!(window.callers.len() <= 2 + 4, "{}", window.callers.len());
            assert!(window.order.len() <= 32, "{}", window.order.len());
        }
        assert_ne!(window.look(&key(1, 1)), Known::New);
        assert_ne!(window.look(&key(2, 1)), Known::New);
        assert_ne!(window.look(&key(7, 4999 << 32 | 1)), Known::New);
        assert!(window.begin(key(3, 1)));
        window.leave(ServiceId::new(7));
        assert_eq!((window.held.len(), window.callers.len()), (3, 3));
    }

    #[test]
    fn sessions_have_a_bound_and_the_longest_gone_make_room() {
        let limits = Limits { sessions: 3, ..Limits::default() };
        let mut window = Window::new(limits);
        (1..=3).for_each(|client| done(&mut window, key(client, 1), b""));
        assert!(!window.begin(key(4, 1)), "nobody is gone");
        assert_eq!(window.look(&key(4, 1)), Known::New);
        for client in [2, 1, 2, 9] {
            window.depart(ServiceId::new(client));
        }
        assert!(window.begin(key(2, 2)), "it is back");
        assert!(window.begin(key(4, 1)), "in place of the first");
        assert_eq!(window.look(&key(1, 1)), Known::New);
        assert_ne!(window.look(&key(2, 1)), Known::New);
        assert!(!window.begin(key(5, 1)));
        // Thousands that come and go leave nothing behind.
        for client in 10..5000 {
            window.depart(ServiceId::new(client - 1));
            window.depart(ServiceId::new(4));
            assert!(window.begin(key(client, 1)));
        }
        assert!(window.callers.len() <= 3 && window.departed.len() <= 3);
        assert_eq!(window.departed.len(), window.places.len());
    }

    proptest! {
        /// Whatever comes, in the order that callers keep: nothing that was seen is ever new.
        #[test]
        fn what_was_seen_is_never_new_again(
            each in 1_usize..5,
            all in 1_usize..12,
            bytes in 0_usize..40,
            steps in prop::collection::vec((0_u32..3, 0_u64..3, 0_usize..9, any::<bool>()), 0..200),
        ) {
            let mut window = Window::new(Limits { each, all, bytes, ..Limits::default() });
            let mut seen: HashMap<RequestKey, Option<Answer>> = HashMap::new();
            let mut next = [0_u64; 3];
            for (client, step, length, is_finished) in steps {
                next[client as usize] += step;
                let key = key(client, next[client as usize]);
                if !seen.contains_key(&key) {
                    prop_assert_eq!(window.look(&key), Known::New);
                }
                window.begin(key);
                let answer = seen.entry(key).or_default();
                if is_finished {
                    let new = Ok(vec![0; length]);
                    // A request that is forgotten while it is carried out is not kept.
                    window.finish(key, new.clone());
                    answer.get_or_insert(new);
                }
                prop_assert!(window.len() <= all);
                prop_assert!(window.bytes <= bytes || window.len() <= 1);
                prop_assert_eq!(window.records().count(), window.len());
                for (key, answer) in &seen {
                    match (window.look(key), answer) {
                        (Known::New, _) => prop_assert!(false, "{:?} is new again", key),
                        (Known::Done(known), Some(answer)) => prop_assert_eq!(known, answer),
                        (Known::Done(_), None) => prop_assert!(false, "{:?} was not answered", key),
                        (Known::Begun | Known::Forgotten, _) => {}
                    }
                }
            }
        }
    }
}
