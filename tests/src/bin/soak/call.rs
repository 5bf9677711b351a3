//! Who calls: a thread for each name, which keeps an account of how its requests ended.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ipc::{CallError, Client, Node, Pending, Status};
use serde_json::json;
use tests::{ledger::Account, pattern};

use crate::{
    Trouble,
    cast::{self, GROUPS, Kind, LONG, STEADY},
    notary::Notary,
    now_ns, part,
    serve::{self, ANSWER},
};

/// A thread that rests looks again after so long.
const REST: Duration = Duration::from_millis(5);
/// Every so many calls a one-way message goes.
const ONE_WAY_EACH: u64 = 8;
/// More complaints are not told.
const COMPLAINTS: usize = 32;

/// How one thread works, and what it has seen.
#[derive(Debug, Default)]
struct Pace {
    /// Between two calls, in µs; [`u64::MAX`] is rest.
    pause_us: AtomicU64,
    /// So many calls are under way at once.
    depth: AtomicU64,
    /// Who answers next is to be told of, whoever that is.
    anew: AtomicBool,
    calls: AtomicU64,
    maybe: AtomicU64,
    errors: AtomicU64,
    wrong: AtomicU64,
    stale: AtomicU64,
}

/// What all threads share.
#[derive(Debug, Default)]
struct Shared {
    paces: [Pace; GROUPS.len() + 1],
    end: AtomicBool,
    complaints: Mutex<Vec<String>>,
}

impl Shared {
    fn complain(&self, text: String) {
        let mut all = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < COMPLAINTS {
            all.push(text);
        }
    }

    /// Waits as long as it is to; tells whether to go on.
    fn pause(&self, at: usize) -> bool {
        loop {
            if self.end.load(Ordering::Relaxed) {
                return false;
            }
            match self.paces[at].pause_us.load(Ordering::Relaxed) {
                0 => return true,
                u64::MAX => thread::sleep(REST),
                us => {
                    thread::sleep(Duration::from_micros(us));
                    return true;
                }
            }
        }
    }

    fn tally(&self) -> String {
        let sum = |of: fn(&Pace) -> &AtomicU64| -> u64 {
            self.paces.iter().map(|pace| of(pace).load(Ordering::Relaxed)).sum()
        };
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone();
        json!({ "calls": sum(|it| &it.calls), "maybe": sum(|it| &it.maybe),
                "errors": sum(|it| &it.errors), "wrong": sum(|it| &it.wrong),
                "stale": sum(|it| &it.stale), "complaints": complaints })
        .to_string()
    }
}

/// Calls everybody, until stdin ends:
///
/// - `pace BOOK US DEPTH`: from now on so long between two rounds of so many calls at once. The
///   last book is that of who never dies
/// - `tally`: says what was counted so far
/// - `settle`: ends all calls, takes the accounts to the ledger, and says so
pub(crate) fn play(base: &Path, index: u32) -> Result<(), Trouble> {
    let node = part::connect(&cast::config(base, false))?;
    let shared = Arc::new(Shared::default());
    let mut threads = Vec::new();
    for (book, group) in GROUPS.iter().enumerate() {
        let client = open(&node, group.name)?;
        let caller = Caller {
            book,
            number: index * 16 + book as u32,
            client,
            shared: Arc::clone(&shared),
            notary: Notary::connect(base)?,
            epoch: 0,
            serving: 0,
        };
        shared.paces[book].pause_us.store(u64::MAX, Ordering::Relaxed);
        threads.push(thread::spawn(move || caller.work()));
    }
    let (client, of_thread) = (open(&node, STEADY)?, Arc::clone(&shared));
    shared.paces[GROUPS.len()].pause_us.store(u64::MAX, Ordering::Relaxed);
    threads.push(thread::spawn(move || call_steadily(&client, &of_thread)));
    part::say("ready");
    part::obey(|words| match words {
        ["pace", book, pause, depth] => {
            let pace = book.parse().ok().and_then(|book: usize| shared.paces.get(book));
            let pause = pause.parse().unwrap_or(u64::MAX);
            if let Some(pace) = pace {
                pace.anew.store(true, Ordering::Relaxed);
                pace.depth.store(depth.parse().unwrap_or(1), Ordering::Relaxed);
                pace.pause_us.store(pause, Ordering::Relaxed);
            }
        }
        ["tally"] => part::say(&format!("tally {}", shared.tally())),
        ["settle"] => {
            end(&shared, &mut threads);
            part::say("settled");
        }
        _ => {}
    });
    end(&shared, &mut threads);
    Ok(())
}

fn end(shared: &Shared, threads: &mut Vec<JoinHandle<()>>) {
    shared.end.store(true, Ordering::Relaxed);
    for thread in threads.drain(..) {
        if thread.join().is_err() {
            shared.complain("a thread panicked".to_owned());
        }
    }
}

fn open(node: &Node, name: &str) -> Result<Client, Trouble> {
    let id = part::patiently(|| node.discover(name))?;
    part::patiently(|| node.client(id))
}

/// A thread that calls one group.
struct Caller {
    book: usize,
    /// By which the ledger knows it.
    number: u32,
    client: Client,
    shared: Arc<Shared>,
    notary: Notary,
    /// The highest that was answered at, of a store.
    epoch: u64,
    /// Who answered last.
    serving: u32,
}

impl Caller {
    fn work(mut self) {
        let (mut calls, mut messages) = (Account::default(), Account::default());
        let is_store = GROUPS[self.book].kind == Kind::Store;
        while self.shared.pause(self.book) {
            if is_store && messages.sent * ONE_WAY_EACH <= calls.sent {
                self.send(&mut messages);
            }
            self.call(&mut calls);
        }
        self.notary.settle(self.book, self.number, &calls);
        self.notary.settle(cast::one_way(self.book), self.number, &messages);
    }

    fn pace(&self) -> &Pace {
        &self.shared.paces[self.book]
    }

    /// Makes as many calls at once as it is to.
    fn call(&mut self, account: &mut Account) {
        let depth = self.pace().depth.load(Ordering::Relaxed);
        if depth == 1 {
            account.sent += 1;
            let mut answer = [0; ANSWER];
            let request = serve::request(self.number, account.sent);
            let ended = self.client.call_into(&request, &mut answer, LONG);
            return self.note(account, account.sent, ended.map(|length| &answer[..length]));
        }
        let first = account.sent + 1;
        account.sent += depth;
        let start = |number| self.client.start(&serve::request(self.number, number), LONG);
        let begun: Vec<_> = (first..=account.sent).map(start).collect();
        for (number, pending) in (first..).zip(begun) {
            let ended = pending.and_then(Pending::wait);
            self.note(account, number, ended);
        }
    }

    /// Keeps account of how a call ended.
    fn note(
        &mut self,
        account: &mut Account,
        number: u64,
        ended: Result<impl AsRef<[u8]>, CallError>,
    ) {
        match ended {
            Ok(answer) => {
                account.answered.insert(number);
                self.pace().calls.fetch_add(1, Ordering::Relaxed);
                self.check(&serve::request(self.number, number), answer.as_ref());
            }
            Err(error) => {
                let name = GROUPS[self.book].name;
                if matches!(error, CallError::PeerDied { taken: false } | CallError::Full) {
                    account.refused.insert(number);
                } else {
                    account.maybe.insert(number);
                }
                // With a gate, a death between effect and answer leaves a "maybe".
                if GROUPS[self.book].kind == Kind::Till && error.status() == Status::MAYBE {
                    self.pace().maybe.fetch_add(1, Ordering::Relaxed);
                } else {
                    self.pace().errors.fetch_add(1, Ordering::Relaxed);
                    let caller = self.number;
                    let at = now_ns();
                    self.shared.complain(format!("{at}: {name}: {caller}, {number}: {error}"));
                }
            }
        }
    }

    fn check(&mut self, request: &[u8], answer: &[u8]) {
        let (head, echoed) = answer.split_at(answer.len().saturating_sub(request.len()));
        if echoed != request || answer.len() != ANSWER {
            self.pace().wrong.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let (pid, epoch) = head.split_at(4);
        let pid = pid.first_chunk().copied().map_or(0, u32::from_le_bytes);
        let epoch = epoch.first_chunk().copied().map_or(0, u64::from_le_bytes);
        // What a gate remembers was answered by the one before.
        if GROUPS[self.book].kind == Kind::Store && epoch < self.epoch {
            self.pace().stale.fetch_add(1, Ordering::Relaxed);
        }
        if epoch > self.epoch {
            self.epoch = epoch;
        }
        let anew = &self.pace().anew;
        if pid != self.serving
            || (anew.load(Ordering::Relaxed) && anew.swap(false, Ordering::Relaxed))
        {
            self.serving = pid;
            part::say(&format!("answer {} {pid} {epoch} {}", self.book, now_ns()));
        }
    }

    fn send(&self, account: &mut Account) {
        account.sent += 1;
        let request = serve::request(self.number, account.sent);
        match self.client.send(&request, LONG) {
            // Nobody tells whether one that was taken was carried out.
            Ok(_) => drop(account.maybe.insert(account.sent)),
            Err(error) => {
                account.refused.insert(account.sent);
                self.pace().errors.fetch_add(1, Ordering::Relaxed);
                self.shared.complain(format!("{}: one-way: {error}", GROUPS[self.book].name));
            }
        }
    }
}

/// Calls who never dies, with requests of every size.
fn call_steadily(client: &Client, shared: &Shared) {
    let pace = &shared.paces[GROUPS.len()];
    let requests = [0, 8, 48, 500, 5000, 100_000].map(pattern);
    let mut answer = Vec::new();
    for request in requests.iter().cycle() {
        if !shared.pause(GROUPS.len()) {
            return;
        }
        answer.clear();
        match client.call_into_vec(request, &mut answer, LONG) {
            Ok(()) if answer == *request => drop(pace.calls.fetch_add(1, Ordering::Relaxed)),
            Ok(()) => drop(pace.wrong.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                pace.errors.fetch_add(1, Ordering::Relaxed);
                shared.complain(format!("{STEADY}: {error}"));
            }
        }
    }
}
