//! Tables of what becomes of messages, and a comparison with a naive queue.

use std::sync::Arc;

use super::*;

mod ledger;

const MS: u64 = 1_000_000;

/// A machine whose log is stored at once, unless told otherwise, and a clock that is moved.
struct World {
    machine: Machine,
    now: Now,
    stores: bool,
    log: Vec<Record>,
    answers: Vec<(Ticket, Answer)>,
    next_ticket: Ticket,
}

impl World {
    fn new(limits: Limits) -> World {
        World {
            machine: Machine::new(limits),
            now: Now { mono_ns: 0, wall_ms: 1_000_000 },
            stores: true,
            log: Vec::new(),
            answers: Vec::new(),
            next_ticket: 0,
        }
    }

    fn step(&mut self, event: Event) {
        let mut out = Vec::new();
        self.machine.step(event, self.now, &mut out);
        self.carry_out(out);
        if self.stores {
            self.store();
        }
        self.machine.pile.check();
    }

    fn carry_out(&mut self, out: Vec<Effect>) {
        for effect in out {
            match effect {
                Effect::Append(record) => self.log.push(record),
                Effect::Answer(ticket, answer) => self.answers.push((ticket, answer)),
            }
        }
    }

    fn store(&mut self) {
        let mut stored = 0;
        while stored < self.machine.appended() {
            stored = self.machine.appended();
            let mut out = Vec::new();
            self.machine.step(Event::Committed(stored), self.now, &mut out);
            self.carry_out(out);
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn pass(&mut self, ms: u64) {
        self.now.mono_ns += ms * MS;
        self.now.wall_ms += ms;
        self.step(Event::Tick);
    }

    fn answer(&mut self, ticket: Ticket) -> Option<Answer> {
        let index = self.answers.iter().position(|(it, _)| *it == ticket)?;
        Some(self.answers.remove(index).1)
    }

    fn put_as(&mut self, put: Put) -> Ticket {
        let ticket = self.ticket();
        self.step(Event::Put(ticket, 1, put));
        ticket
    }

    fn put(&mut self, text: &str) -> Option<Answer> {
        let ticket = self.put_as(message(text));
        self.answer(ticket)
    }

    fn ask(&mut self, consumer: u64, wait_ms: u64, dead: bool) -> Ticket {
        let ticket = self.ticket();
        let wait_until_ns = self.now.mono_ns + wait_ms * MS;
        let take = Take { consumer, most: 1, bytes: 1 << 20, wait_until_ns, dead };
        // Each consumer has a channel of its own.
        self.step(Event::Take(ticket, 100 + consumer, take));
        ticket
    }

    /// What a consumer gets at once.
    fn take(&mut self, consumer: u64) -> Option<Delivery> {
        let ticket = self.ask(consumer, 0, false);
        self.messages(ticket).pop()
    }

    fn messages(&mut self, ticket: Ticket) -> Vec<Delivery> {
        match self.answer(ticket) {
            Some(Answer::Messages(messages)) => messages,
            other => panic!("{other:?}"),
        }
    }

    fn settle(&mut self, consumer: u64, verdict: Verdict, it: &Delivery) -> bool {
        let ticket = self.ticket();
        let items = vec![(it.id, it.attempt)];
        self.step(Event::Settle(ticket, 100 + consumer, consumer, verdict, items));
        self.answer(ticket) == Some(Answer::Settled(vec![Told::Done]))
    }

    fn text(&mut self, consumer: u64) -> Option<String> {
        self.take(consumer).map(|it| String::from_utf8_lossy(&it.payload).into_owned())
    }
}

fn message(text: &str) -> Put {
    Put {
        producer: 0,
        sequence: 0,
        priority: 2,
        delay_ms: 0,
        wait_until_ns: 0,
        payload: Arc::from(text.as_bytes()),
    }
}

fn small() -> Limits {
    Limits {
        messages: 3,
        bytes: 100,
        message_bytes: 50,
        lease_ms: 1000,
        attempts: 2,
        ..Limits::default()
    }
}

#[test]
fn messages_come_in_their_order_and_go_when_acknowledged() {
    let mut world = World::new(small());
    assert_eq!(world.put("a"), Some(Answer::Stored(1)));
    assert_eq!(world.put("b"), Some(Answer::Stored(2)));
    let a = world.take(1).expect("a");
    assert_eq!((a.id, a.attempt, &*a.payload), (1, 1, &b"a"[..]));
    let b = world.take(2).expect("b");
    assert_eq!(world.take(3), None);
    assert!(!world.settle(2, Verdict::Ack, &a), "it is another's");
    assert!(world.settle(1, Verdict::Ack, &a));
    assert!(!world.settle(1, Verdict::Ack, &a), "it is gone");
    assert!(world.settle(2, Verdict::Ack, &b));
    let facts = world.machine.facts();
    assert_eq!((facts.stored, facts.delivered, facts.acked, facts.bytes), (2, 2, 2, 0));
}

#[test]
fn what_is_not_acknowledged_comes_again_before_what_came_later() {
    let mut world = World::new(Limits { attempts: 9, messages: 9, ..small() });
    for text in ["a", "b", "c"] {
        world.put(text);
    }
    // By its lease, by a nack, by its consumer's death, and by its going.
    let a = world.take(1).expect("a");
    world.pass(999);
    assert_eq!(world.text(2).as_deref(), Some("b"));
    world.pass(1);
    let again = world.take(3).expect("a again");
    assert_eq!((again.id, again.attempt), (a.id, 2));
    assert!(world.settle(3, Verdict::Nack { delay_ms: 0 }, &again));
    assert_eq!(world.text(3).as_deref(), Some("a"));
    world.step(Event::Gone(103));
    assert_eq!(world.text(4).as_deref(), Some("a"));
    let ticket = world.ticket();
    world.step(Event::Leave(ticket, 4));
    assert_eq!(world.answer(ticket), Some(Answer::Count(1)));
    assert_eq!(world.text(5).as_deref(), Some("a"));
    assert_eq!(world.text(6).as_deref(), Some("c"));
    world.pass(999);
    assert_eq!(world.text(7).as_deref(), Some("b"));
}

#[test]
fn a_late_acknowledgement_counts_until_somebody_else_has_the_message() {
    let mut world = World::new(Limits { attempts: 9, ..small() });
    world.put("a");
    let first = world.take(1).expect("a");
    world.pass(1000);
    let second = world.take(2).expect("a again");
    assert!(!world.settle(1, Verdict::Ack, &first));
    world.pass(1000);
    assert!(world.settle(2, Verdict::Ack, &second), "nobody has had it since");
    assert_eq!(world.take(3), None);
}

#[test]
fn a_lease_lasts_as_long_as_its_holder_asks() {
    let mut world = World::new(small());
    world.put("a");
    let a = world.take(1).expect("a");
    world.pass(900);
    assert!(world.settle(1, Verdict::Extend { lease_ms: 5000 }, &a));
    world.pass(4999);
    assert_eq!(world.take(2), None);
    assert_eq!(world.machine.deadline_ns(), Some(5900 * MS));
    world.pass(1);
    assert_eq!(world.text(2).as_deref(), Some("a"));
}

#[test]
fn after_the_last_attempt_it_is_a_dead_letter_until_redriven() {
    let mut world = World::new(small());
    world.put("poison");
    for _ in 0..2 {
        let it = world.take(1).expect("it");
        world.settle(1, Verdict::Nack { delay_ms: 0 }, &it);
    }
    assert_eq!(world.take(1), None);
    assert_eq!(world.machine.facts().dead, 1);
    assert_eq!(world.machine.peek(true, 0, 9).len(), 1);
    let ticket = world.ask(2, 0, true);
    let dead =
        world.messages(ticket).pop().expect("dead letters can be taken by who asks for them");
    assert!(world.settle(2, Verdict::Nack { delay_ms: 0 }, &dead));
    let ticket = world.ticket();
    world.step(Event::Redrive(ticket, 10));
    assert_eq!(world.answer(ticket), Some(Answer::Count(1)));
    let it = world.take(1).expect("once more");
    assert_eq!(it.attempt, 1);
    assert!(world.settle(1, Verdict::Bury, &it));
    assert_eq!((world.machine.facts().dead, world.take(1)), (1, None));
    let ticket = world.ticket();
    world.step(Event::Purge(ticket, true));
    assert_eq!(world.answer(ticket), Some(Answer::Count(1)));
    assert_eq!(world.machine.facts().dead, 0);
}

#[test]
fn a_full_queue_refuses_or_lets_wait() {
    let mut world = World::new(small());
    for _ in 0..3 {
        world.put("x");
    }
    assert_eq!(world.put("x"), Some(Answer::Refused(Refusal::Full)));
    assert_eq!(world.put(&"x".repeat(51)), Some(Answer::Refused(Refusal::TooLarge)));
    let waits = |until: u64| Put { wait_until_ns: until * MS, ..message("w") };
    let first = world.put_as(waits(100));
    let second = world.put_as(waits(500));
    assert_eq!(world.answer(first), None);
    assert_eq!(world.put("x"), Some(Answer::Refused(Refusal::Full)));
    world.pass(100);
    assert_eq!(world.answer(first), Some(Answer::Refused(Refusal::Full)));
    let it = world.take(1).expect("x");
    world.settle(1, Verdict::Ack, &it);
    assert_eq!(world.answer(second), Some(Answer::Stored(4)));
    // Bytes are bounded, too.
    let mut world = World::new(small());
    world.put(&"x".repeat(50));
    world.put(&"x".repeat(50));
    assert_eq!(world.put("x"), Some(Answer::Refused(Refusal::Full)));
}

#[test]
fn who_waits_is_served_in_order_and_not_after_its_time() {
    let mut world = World::new(small());
    let (first, second, third) =
        (world.ask(1, 10, false), world.ask(2, 50, false), world.ask(3, 90, false));
    world.pass(10);
    assert_eq!(world.messages(first), []);
    world.step(Event::Gone(102));
    world.put("a");
    assert_eq!(world.answer(second), None, "its channel is gone");
    assert_eq!(world.messages(third).len(), 1);
    // Who asks again has given up what it asked before.
    let old = world.ask(5, 1000, false);
    let new = world.ask(5, 1000, false);
    assert_eq!(world.messages(old), []);
    world.put("b");
    assert_eq!(world.messages(new).len(), 1);
}

#[test]
fn a_number_is_stored_once() {
    let mut world = World::new(Limits { messages: 9, ..small() });
    let numbered = |sequence| Put { producer: 7, sequence, ..message("n") };
    let ticket = world.put_as(numbered(1));
    assert_eq!(world.answer(ticket), Some(Answer::Stored(1)));
    let ticket = world.put_as(numbered(1));
    assert_eq!(world.answer(ticket), Some(Answer::Stored(0)));
    let it = world.take(1).expect("it");
    world.settle(1, Verdict::Ack, &it);
    let ticket = world.put_as(numbered(1));
    assert_eq!(world.answer(ticket), Some(Answer::Stored(0)), "also when it is gone");
    // While the first is not stored, the second is not answered either; if it fails, both do.
    world.stores = false;
    let first = world.put_as(numbered(2));
    let second = world.put_as(numbered(2));
    assert_eq!((world.answer(first), world.answer(second)), (None, None));
    let upto = world.machine.appended();
    world.step(Event::Failed(upto, Trouble::NoRoom));
    let refused = Some(Answer::Refused(Refusal::Trouble(Trouble::NoRoom)));
    assert_eq!((world.answer(first), world.answer(second)), (refused.clone(), refused));
    world.stores = true;
    let ticket = world.put_as(numbered(2));
    assert_eq!(world.answer(ticket), Some(Answer::Stored(3)));
}

#[test]
fn nothing_is_given_out_or_gone_before_it_is_stored() {
    let mut world = World::new(small());
    world.stores = false;
    let put = world.put_as(message("a"));
    assert_eq!((world.answer(put), world.take(1)), (None, None));
    world.store();
    assert_eq!(world.answer(put), Some(Answer::Stored(1)));
    let it = world.take(1).expect("a");
    world.store();
    let ticket = world.ticket();
    world.step(Event::Settle(ticket, 101, 1, Verdict::Ack, vec![(it.id, it.attempt)]));
    assert_eq!(world.answer(ticket), None);
    // The lease ends meanwhile: it is not given to anybody else.
    world.pass(2000);
    assert_eq!(world.take(2), None);
    let upto = world.machine.appended();
    world.step(Event::Failed(upto, Trouble::NoRoom));
    assert!(matches!(world.answer(ticket), Some(Answer::Refused(_))));
    world.stores = true;
    assert!(world.settle(1, Verdict::Ack, &it), "it can be said again");
}

#[test]
fn what_is_urgent_goes_first_and_what_is_delayed_comes_later() {
    let mut world = World::new(Limits { messages: 9, ..small() });
    world.put_as(Put { priority: 4, ..message("low") });
    world.put_as(Put { delay_ms: 300, priority: 0, ..message("later") });
    world.put_as(Put { priority: 0, ..message("urgent") });
    world.put_as(message("usual"));
    assert_eq!(world.text(1).as_deref(), Some("urgent"));
    assert_eq!(world.text(1).as_deref(), Some("usual"));
    world.pass(300);
    assert_eq!(world.text(1).as_deref(), Some("later"));
    assert_eq!(world.text(1).as_deref(), Some("low"));
}

#[test]
fn who_says_what_it_holds_gives_the_rest_back() {
    let mut world = World::new(small());
    world.put("a");
    world.put("b");
    let a = world.take(1).expect("a");
    world.take(1).expect("b, which never came");
    assert!(world.settle(1, Verdict::Hold, &a));
    assert_eq!(world.text(2).as_deref(), Some("b"));
    assert!(world.settle(1, Verdict::Ack, &a));
}

#[test]
fn a_queue_comes_back_from_its_log() {
    let mut world = World::new(Limits { messages: 9, ..small() });
    world.put_as(Put { producer: 7, sequence: 1, ..message("held") });
    world.put_as(Put { delay_ms: 5000, ..message("later") });
    world.put("dead");
    world.put("gone");
    world.put("ready");
    let held = world.take(1).expect("held");
    for _ in 0..2 {
        let dead = world.take(2).expect("dead");
        world.settle(2, Verdict::Nack { delay_ms: 0 }, &dead);
    }
    let gone = world.take(2).expect("gone");
    world.settle(2, Verdict::Ack, &gone);
    let facts = world.machine.facts();

    // Another boot: the clock begins anew, the date does not.
    let now = Now { mono_ns: 5 * MS, wall_ms: world.now.wall_ms + 1000 };
    let machine = Machine::recover(world.machine.limits(), &world.log, now);
    let found = machine.facts();
    assert_eq!(
        (found.ready, found.delayed, found.leased, found.dead, found.bytes),
        (facts.ready, facts.delayed, facts.leased, facts.dead, facts.bytes)
    );
    world.machine = machine;
    world.now = now;
    let ticket = world.put_as(Put { producer: 7, sequence: 1, ..message("held") });
    assert_eq!(world.answer(ticket), Some(Answer::Stored(0)), "the window is there");
    assert!(world.settle(1, Verdict::Ack, &held), "who had it comes back");
    let ready = world.take(3).expect("ready");
    assert!(world.settle(3, Verdict::Ack, &ready));
    world.pass(3999);
    assert_eq!(world.text(3), None);
    world.pass(1);
    assert_eq!(world.text(3).as_deref(), Some("later"));
    assert_eq!(world.put("next"), Some(Answer::Stored(6)));
}
