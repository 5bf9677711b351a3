//! The ledger, in a process of its own that has nothing to do with libipc: services write effects
//! down over a plain socket before they answer, and the queue's ends what they had and promised.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    ops::RangeInclusive,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use ::tests::ledger::{Account, Effect, Entry, Ledger, Numbers, Repeats};
use serde_json::{Value, json};

use crate::{
    Trouble,
    cast::{BOOKS, GROUPS, Kind},
    part,
};

/// What is said to it: a word, and five numbers.
type Question = [u64; 6];
type Answer = [u64; 2];

/// Bytes of one question, and of one answer.
const QUESTION: usize = 6 * 8;
const ANSWER: usize = 2 * 8;
/// Questions that are asked at once, at most: all fit into a socket.
const BATCH: usize = 128;

/// More ids of the queue's messages are not remembered, nor more of its faults.
const KEPT: usize = 4096;

const BEGIN: u64 = 0;
const EFFECT: u64 = 1;
const ANSWERED: u64 = 2;
const MAYBE: u64 = 3;
const REFUSED: u64 = 4;
const SETTLE: u64 = 5;
const PROMISED: u64 = 6;
const DELIVERED: u64 = 7;
const ACKED: u64 = 8;
const NEXT: u64 = 9;

/// A way to the ledger. Threads take turns.
#[derive(Debug)]
pub(crate) struct Notary(Mutex<UnixStream>);

impl Notary {
    pub(crate) fn connect(base: &Path) -> Result<Notary, Trouble> {
        Ok(Notary(Mutex::new(UnixStream::connect(socket(base))?)))
    }

    /// Somebody serves in this epoch from now on.
    pub(crate) fn begin(&self, book: usize, epoch: u64) -> bool {
        self.ask([BEGIN, book as u64, epoch, 0, 0, 0])[0] == 1
    }

    /// Writes an effect down.
    pub(crate) fn record(&self, book: usize, effect: Effect) -> Entry {
        entry(self.ask(question(book, effect)))
    }

    /// Writes effects down, one after another. Who dies meanwhile has written the first of them.
    pub(crate) fn record_all(&self, effects: &[(usize, Effect)]) -> Vec<Entry> {
        let questions: Vec<Question> =
            effects.iter().map(|&(book, effect)| question(book, effect)).collect();
        let batches = questions.chunks(BATCH);
        batches.flat_map(|batch| self.ask_all(batch)).map(entry).collect()
    }

    /// Compares a caller's account with what was done.
    pub(crate) fn settle(&self, book: usize, caller: u32, account: &Account) {
        let Account { sent, answered, maybe, refused } = account;
        for (word, numbers) in [(ANSWERED, answered), (MAYBE, maybe), (REFUSED, refused)] {
            for interval in numbers.intervals() {
                let (first, last) = (*interval.start(), *interval.end());
                self.ask([word, book as u64, u64::from(caller), first, last, 0]);
            }
        }
        self.ask([SETTLE, book as u64, u64::from(caller), *sent, 0, 0]);
    }

    /// The queue has given a receipt for this number.
    pub(crate) fn promised(&self, sequence: u64, id: u64) {
        self.ask([PROMISED, 0, sequence, id, 0, 0]);
    }

    /// The queue has given out this message.
    pub(crate) fn delivered(&self, sequence: u64, id: u64) {
        self.ask([DELIVERED, 0, sequence, id, 0, 0]);
    }

    /// The queue has confirmed that it is gone.
    pub(crate) fn acked(&self, sequence: u64) {
        self.ask([ACKED, 0, sequence, 0, 0, 0]);
    }

    /// The number behind the last for which there is a receipt.
    pub(crate) fn next(&self) -> u64 {
        self.ask([NEXT, 0, 0, 0, 0, 0])[0]
    }

    fn ask(&self, question: Question) -> Answer {
        self.ask_all(&[question])[0]
    }

    /// Without the ledger nobody may do anything: whoever asks it ends with it.
    fn ask_all(&self, questions: &[Question]) -> Vec<Answer> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = bytes(questions);
        let mut answers = vec![0; questions.len() * ANSWER];
        if stream.write_all(&bytes).and_then(|()| stream.read_exact(&mut answers)).is_err() {
            std::process::exit(3);
        }
        answers.chunks_exact(ANSWER).map(numbers).collect()
    }
}

fn question(book: usize, effect: Effect) -> Question {
    let Effect { writer, epoch, caller, number } = effect;
    [EFFECT, book as u64, u64::from(writer), epoch, u64::from(caller), number]
}

fn entry(answer: Answer) -> Entry {
    match answer {
        [0, _] => Entry::Recorded,
        [1, _] => Entry::Repeated,
        [_, epoch] => Entry::Stale(epoch),
    }
}

fn socket(base: &Path) -> std::path::PathBuf {
    base.join("ledger.sock")
}

fn bytes<const N: usize>(all: &[[u64; N]]) -> Vec<u8> {
    all.iter().flatten().copied().flat_map(u64::to_le_bytes).collect()
}

/// So many numbers, of as many times 8 bytes.
fn numbers<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let (words, _) = bytes.as_chunks();
    std::array::from_fn(|at| words.get(at).copied().map_or(0, u64::from_le_bytes))
}

/// What it knows.
struct Books {
    ledgers: Vec<Ledger>,
    accounts: BTreeMap<(usize, u32), Account>,
    mail: Mail,
}

/// What it knows of the queue.
#[derive(Debug, Default)]
struct Mail {
    promised: Numbers,
    delivered: Numbers,
    acked: Numbers,
    /// Under which id the last numbers were stored.
    ids: BTreeMap<u64, u64>,
    deliveries: u64,
    faults: Vec<String>,
}

impl Mail {
    fn deliver(&mut self, sequence: u64, id: u64) {
        self.deliveries += 1;
        self.delivered.insert(sequence);
        if self.acked.contains(sequence) {
            self.fault(format!("message {sequence} was given out after it was acknowledged"));
        }
        let first = *self.ids.entry(sequence).or_insert(id);
        if first != id {
            self.fault(format!("message {sequence} was stored twice: as {first} and {id}"));
        }
        if self.ids.len() > KEPT {
            self.ids.pop_first();
        }
    }

    fn fault(&mut self, fault: String) {
        if self.faults.len() < KEPT {
            self.faults.push(fault);
        }
    }

    fn report(&self) -> Value {
        let lost = self.promised.first_outside(&self.delivered);
        let lost = lost.map(|number| format!("message {number} was promised and never came"));
        let faults: Vec<&String> = self.faults.iter().chain(&lost).collect();
        let again = self.deliveries - self.delivered.len();
        json!({ "promised": self.promised.len(), "delivered": self.delivered.len(),
                "acknowledged": self.acked.len(), "again": again, "faults": faults })
    }
}

impl Books {
    fn new() -> Books {
        let repeats = |book: usize| match GROUPS.get(book).map(|group| group.kind) {
            // It is the ledger itself that knows the request again.
            Some(Kind::Store) => Repeats::Harmless,
            Some(Kind::Till) | None => Repeats::Faults,
        };
        let ledgers = (0..BOOKS).map(|book| Ledger::new(repeats(book))).collect();
        Books { ledgers, accounts: BTreeMap::new(), mail: Mail::default() }
    }

    fn answer(&mut self, question: Question) -> Answer {
        let [word, book, a, b, c, d] = question;
        let book = book as usize % BOOKS;
        let key = (book, a as u32);
        match word {
            BEGIN => return [u64::from(self.ledgers[book].begin(a)), 0],
            EFFECT => {
                let effect = Effect { writer: a as u32, epoch: b, caller: c as u32, number: d };
                return match self.ledgers[book].record(effect) {
                    Entry::Recorded => [0, 0],
                    Entry::Repeated => [1, 0],
                    Entry::Stale(epoch) => [2, epoch],
                };
            }
            ANSWERED => self.add(key, b..=c, |it| &mut it.answered),
            MAYBE => self.add(key, b..=c, |it| &mut it.maybe),
            REFUSED => self.add(key, b..=c, |it| &mut it.refused),
            SETTLE => {
                let account = self.accounts.remove(&key).unwrap_or_default();
                self.ledgers[book].settle(a as u32, &Account { sent: b, ..account });
            }
            PROMISED => drop(self.mail.promised.insert(a)),
            DELIVERED => self.mail.deliver(a, b),
            ACKED => drop(self.mail.acked.insert(a)),
            NEXT => return [self.mail.promised.highest().unwrap_or(0) + 1, 0],
            _ => {}
        }
        [0, 0]
    }

    /// Adds to what a caller says of how its requests ended.
    fn add(
        &mut self,
        key: (usize, u32),
        mut numbers: RangeInclusive<u64>,
        of: fn(&mut Account) -> &mut Numbers,
    ) {
        let all = of(self.accounts.entry(key).or_default());
        numbers.all(|number| all.insert(number));
    }

    /// All effects, each counted once.
    fn count(&self) -> u64 {
        self.ledgers.iter().map(Ledger::effects).sum()
    }

    fn report(&self) -> Value {
        let book = |ledger: &Ledger| {
            let faults: Vec<String> = ledger.faults().iter().map(ToString::to_string).collect();
            json!({ "effects": ledger.effects(), "repeated": ledger.repeated(),
                    "stale": ledger.stale(), "epoch": ledger.epoch(), "faults": faults })
        };
        let books: Vec<Value> = self.ledgers.iter().map(book).collect();
        json!({ "books": books, "queue": self.mail.report() })
    }
}

/// Is the ledger, until it is told to end: `report` has it tell what it found, and `count` how
/// many effects there are.
pub(crate) fn play(base: &Path) -> Result<(), Trouble> {
    let listener = UnixListener::bind(socket(base))?;
    let books = Arc::new(Mutex::new(Books::new()));
    let known = Arc::clone(&books);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let books = Arc::clone(&known);
            thread::spawn(move || attend(stream, &books));
        }
    });
    part::say("ready");
    part::obey(|words| match words {
        ["report"] => part::say(&format!("report {}", lock(&books).report())),
        ["count"] => part::say(&format!("count {}", lock(&books).count())),
        _ => {}
    });
    Ok(())
}

/// Hears one connection to its end. Who is killed in the middle of a question has not asked it, but
/// those before it.
fn attend(mut stream: UnixStream, books: &Mutex<Books>) {
    let (mut buffer, mut filled) = ([0; BATCH * QUESTION], 0);
    while let Ok(more @ 1..) = stream.read(&mut buffer[filled..]) {
        filled += more;
        let whole = filled - filled % QUESTION;
        let questions = buffer[..whole].chunks_exact(QUESTION).map(numbers);
        let answers: Vec<Answer> = {
            let mut books = lock(books);
            questions.map(|question| books.answer(question)).collect()
        };
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
        if stream.write_all(&bytes(&answers)).is_err() {
            return;
        }
    }
}

fn lock(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_promised_and_never_came_is_lost_and_what_came_again_is_not_always_wrong() {
        let mut mail = Mail { promised: (1..=3).collect(), ..Mail::default() };
        mail.deliver(1, 11);
        mail.deliver(1, 11);
        mail.acked.insert(1);
        mail.deliver(2, 12);
        assert!(mail.faults.is_empty());
        assert_eq!(mail.report()["again"], 1);
        assert_eq!(mail.report()["faults"].as_array().map(Vec::len), Some(1), "3 is lost");
        mail.deliver(3, 13);
        assert_eq!(mail.report()["faults"], json!([]));
        mail.deliver(3, 14);
        mail.deliver(1, 11);
        assert_eq!(mail.faults.len(), 2, "{:?}", mail.faults);
    }

    #[test]
    fn questions_are_answered_in_their_order_and_one_that_is_cut_short_is_none() {
        let (ours, theirs) = UnixStream::pair().expect("two sockets");
        let books = Arc::new(Mutex::new(Books::new()));
        let known = Arc::clone(&books);
        let attending = thread::spawn(move || attend(theirs, &known));
        let effect = |number| (2, Effect { writer: 7, epoch: 1, caller: 5, number });
        let notary = Notary(Mutex::new(ours));
        let effects: Vec<_> = (1..=300).chain([300]).map(effect).collect();
        let entries = notary.record_all(&effects);
        assert_eq!(entries.len(), 301);
        assert!(entries[..300].iter().all(|entry| *entry == Entry::Recorded));
        assert_eq!(entries[300], Entry::Repeated);
        let cut = bytes(&[301, 302, 303].map(|number| question(2, effect(number).1)));
        let mut stream = notary.0.into_inner().expect("nobody panicked");
        stream.write_all(&cut[..2 * QUESTION + 47]).expect("there is room");
        drop(stream);
        attending.join().expect("it ends");
        assert_eq!(lock(&books).count(), 302);
    }

    #[test]
    fn an_account_is_compared_with_what_was_done() {
        let mut books = Books::new();
        assert_eq!(books.answer([EFFECT, 2, 7, 1, 5, 1]), [0, 0]);
        assert_eq!(books.answer([EFFECT, 2, 7, 1, 5, 1]), [1, 0]);
        books.answer([BEGIN, 2, 3, 0, 0, 0]);
        assert_eq!(books.answer([EFFECT, 2, 7, 1, 5, 2]), [2, 3]);
        books.answer([ANSWERED, 2, 5, 1, 2, 0]);
        books.answer([SETTLE, 2, 5, 2, 0, 0]);
        let report = books.report();
        assert_eq!(report["books"][2]["faults"].as_array().map(Vec::len), Some(2), "{report}");
        assert_eq!(report["books"][0]["faults"], json!([]));
    }
}
