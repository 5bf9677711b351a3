//! Any events in any order, with a log that is stored late, fails, and is cut off by crashes:
//! nothing that was acknowledged is lost, nothing is invented, and what is given out is what a
//! naive queue would give.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Deed {
    /// A producer sends its next message, or an earlier number again.
    Put {
        producer: u64,
        back: u64,
        urgent: bool,
    },
    Take {
        consumer: u64,
    },
    Ack {
        consumer: u64,
    },
    Nack {
        consumer: u64,
    },
    Die {
        consumer: u64,
    },
    Pass {
        ms: u64,
    },
    /// Some of what was appended is stored.
    Store {
        share: u64,
    },
    /// None of it can be.
    Fail,
    /// The process dies; of what was not said to be stored, some is.
    Crash {
        share: u64,
    },
    Redrive,
    /// Messages are written down again.
    Move,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let consumer = 1..4_u64;
    let deed = prop_oneof![
        6 => (1..3_u64, 0..3_u64, any::<bool>())
            .prop_map(|(producer, back, urgent)| Deed::Put { producer, back, urgent }),
        6 => consumer.clone().prop_map(|consumer| Deed::Take { consumer }),
        4 => consumer.clone().prop_map(|consumer| Deed::Ack { consumer }),
        2 => consumer.clone().prop_map(|consumer| Deed::Nack { consumer }),
        1 => consumer.prop_map(|consumer| Deed::Die { consumer }),
        2 => (1..900_u64).prop_map(|ms| Deed::Pass { ms }),
        6 => (1..5_u64).prop_map(|share| Deed::Store { share }),
        1 => Just(Deed::Fail),
        1 => (0..5_u64).prop_map(|share| Deed::Crash { share }),
        1 => Just(Deed::Redrive),
        1 => Just(Deed::Move),
    ];
    proptest::collection::vec(deed, 1..120)
}

/// What a naive queue is: a list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Naive {
    producer: u64,
    sequence: u64,
    priority: u8,
}

struct Trial {
    world: World,
    /// Records that are stored for sure.
    stored: usize,
    /// Records appended before the machine that runs now.
    base: u64,
    next_sequence: BTreeMap<u64, u64>,
    /// By ticket.
    sent: BTreeMap<Ticket, Naive>,
    promised: BTreeMap<(u64, u64), u64>,
    /// By the consumer that has it.
    hands: BTreeMap<u64, Delivery>,
    acking: BTreeMap<Ticket, (u64, u64)>,
    done: BTreeSet<(u64, u64)>,
    ids: BTreeMap<u64, (u64, u64)>,
}

impl Trial {
    fn new() -> Trial {
        let mut world = World::new(Limits { messages: 8, attempts: 3, ..small() });
        world.stores = false;
        Trial {
            world,
            stored: 0,
            base: 0,
            next_sequence: BTreeMap::new(),
            sent: BTreeMap::new(),
            promised: BTreeMap::new(),
            hands: BTreeMap::new(),
            acking: BTreeMap::new(),
            done: BTreeSet::new(),
            ids: BTreeMap::new(),
        }
    }

    fn act(&mut self, deed: &Deed) {
        match *deed {
            Deed::Put { producer, back, urgent } => {
                let next = self.next_sequence.entry(producer).or_insert(1);
                let sequence = if *next > back { *next - back } else { *next };
                *next = (*next).max(sequence + 1);
                // One number is one message, however often it is sent.
                let priority = if sequence.is_multiple_of(3) && urgent { 0 } else { 2 };
                let payload = Arc::from(format!("{producer}/{sequence}").as_bytes());
                let put = Put { producer, sequence, priority, payload, ..message("") };
                let ticket = self.world.put_as(put);
                self.sent.insert(ticket, Naive { producer, sequence, priority });
            }
            Deed::Take { consumer } => self.take(consumer),
            Deed::Ack { consumer } => {
                if let Some(it) = self.hands.remove(&consumer) {
                    let ticket = self.world.ticket();
                    let items = vec![(it.id, it.attempt)];
                    self.acking.insert(ticket, (it.producer, it.sequence));
                    let settle =
                        Event::Settle(ticket, 100 + consumer, consumer, Verdict::Ack, items);
                    self.world.step(settle);
                }
            }
            Deed::Nack { consumer } => {
                if let Some(it) = self.hands.remove(&consumer) {
                    self.world.settle(consumer, Verdict::Nack { delay_ms: 0 }, &it);
                }
            }
            Deed::Die { consumer } => {
                self.hands.remove(&consumer);
                self.world.step(Event::Gone(100 + consumer));
            }
            Deed::Pass { ms } => self.world.pass(ms),
            Deed::Store { share } => {
                let waiting = self.world.log.len() - self.stored;
                self.commit(self.stored + waiting.div_ceil(share as usize));
            }
            Deed::Fail => {
                let upto = self.world.machine.appended();
                self.world.step(Event::Failed(upto, Trouble::NoRoom));
                self.world.log.truncate(self.stored);
                self.base = self.stored as u64;
                self.base = self.base.wrapping_sub(upto);
            }
            Deed::Crash { share } => self.crash(share as usize),
            Deed::Redrive => {
                let ticket = self.world.ticket();
                self.world.step(Event::Redrive(ticket, 2));
            }
            Deed::Move => {
                let ids = self.world.machine.pile.peek_ids();
                self.world.step(Event::Move(ids));
            }
        }
        self.hear();
    }

    fn commit(&mut self, stored: usize) {
        self.stored = stored;
        let upto = (stored as u64).wrapping_sub(self.base);
        self.world.step(Event::Committed(upto));
    }

    /// What it gets is what a list in order of arrival would give.
    fn take(&mut self, consumer: u64) {
        if self.hands.contains_key(&consumer) {
            return;
        }
        let first = self.world.machine.pile.naive_first();
        let ticket = self.world.ask(consumer, 0, false);
        let got = self.world.messages(ticket).pop();
        assert_eq!(got.as_ref().map(|it| it.id), first);
        if let Some(it) = got {
            let key = (it.producer, it.sequence);
            assert_eq!(&*it.payload, format!("{}/{}", key.0, key.1).as_bytes(), "nothing invented");
            let known = self.ids.entry(it.id).or_insert(key);
            assert_eq!(*known, key, "an id is one message's");
            assert!(!self.done.contains(&key), "{key:?} was acknowledged for good");
            self.hands.insert(consumer, it);
        }
    }

    fn crash(&mut self, share: usize) {
        let waiting = self.world.log.len() - self.stored;
        let survives = self.stored + (waiting * share).div_ceil(5);
        self.world.log.truncate(survives);
        self.stored = survives;
        self.base = survives as u64;
        let limits = self.world.machine.limits();
        self.world.now.mono_ns += 7 * MS;
        self.world.machine = Machine::recover(limits, &self.world.log, self.world.now);
        self.world.machine.pile.check();
        // Nobody hears the answers that were due.
        self.sent.clear();
        self.acking.clear();
    }

    fn hear(&mut self) {
        for (ticket, answer) in std::mem::take(&mut self.world.answers) {
            match answer {
                Answer::Stored(id) => {
                    let Some(it) = self.sent.remove(&ticket) else { continue };
                    let key = (it.producer, it.sequence);
                    if id != 0 {
                        let old = self.promised.insert(key, id);
                        assert_eq!(old, None, "stored twice, as {old:?} and {id}");
                    }
                    self.promised.entry(key).or_insert(0);
                }
                Answer::Settled(told) => {
                    if let Some(key) = self.acking.remove(&ticket)
                        && told == [Told::Done]
                    {
                        self.done.insert(key);
                    }
                }
                _ => {}
            }
        }
        for (key, id) in &self.promised {
            let is_there = self.world.machine.pile.has_message(key.0, key.1);
            let is_it = |id: &u64| self.ids.get(id) == Some(key);
            let is_gone = |it: &Record| matches!(it, Record::Gone { ids } if ids.iter().any(is_it));
            let may_be_gone = self.world.log[..self.stored].iter().any(is_gone);
            assert!(is_there || may_be_gone, "{key:?} ({id}) was promised, and is lost");
        }
    }
}

impl Pile {
    fn peek_ids(&self) -> Vec<u64> {
        self.messages().map(|(it, _)| it.id).collect()
    }

    fn has_message(&self, producer: u64, sequence: u64) -> bool {
        self.messages().any(|(it, _)| it.producer == producer && it.sequence == sequence)
    }

    /// The next, found by looking at all.
    fn naive_first(&self) -> Option<u64> {
        self.messages()
            .filter(|(it, state)| *state == State::Ready && !it.dead)
            .min_by_key(|(it, _)| (it.priority, it.id))
            .map(|(it, _)| it.id)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_promised_is_lost_and_nothing_is_invented(deeds in deeds()) {
        let mut trial = Trial::new();
        for deed in &deeds {
            trial.act(deed);
        }
    }
}
