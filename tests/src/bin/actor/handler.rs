//! What a serving actor does with requests: an echo, unless the payload says otherwise.

use std::{
    cell::Cell,
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipc::{CallError, CallOptions, Node, Request, Retained};

use crate::{raw, say};

/// What the handlers of this process keep.
#[derive(Default)]
pub(crate) struct Kept {
    /// Requests to be answered later.
    held: Vec<Retained>,
    /// One-way messages by sender: how many, and how many of them out of order.
    received: HashMap<u32, (u64, u64)>,
}

static KEPT: Mutex<Option<Kept>> = Mutex::new(None);

thread_local! {
    /// Allocations of this thread up to its last mark.
    static MARKED: Cell<u64> = const { Cell::new(0) };
}

fn with_kept<R>(act: impl FnOnce(&mut Kept) -> R) -> R {
    let mut kept: MutexGuard<'_, _> = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    act(kept.get_or_insert_with(Kept::default))
}

/// Answers the requests that were held.
pub(crate) fn release() {
    let held = with_kept(|kept| std::mem::take(&mut kept.held));
    for request in held {
        // A caller that is gone needs no answer.
        let _ = request.reply(request.payload());
    }
}

/// Handles one request.
///
/// - `!hold`: says `held`, and answers when told to `release`
/// - `!count`: answers how many one-way messages came from the caller, and how many of them not
///   in order; each begins with its number, in 8 bytes
/// - `!grow BYTES`: answers with so many
/// - `!who`: answers the sender's instance, name, process and user, as the library tells them
/// - `!serving`: answers its process, and the epoch at which it serves
/// - `!thread`: answers this thread's id
/// - `!mark`: makes the call by which a trace shows this thread, and answers how often the thread
///   has allocated since the last one
/// - `!steady TEXT`: reads its payload again and again, and answers whether it ever changed
/// - `!relay NAME TIMEOUT_MS TEXT`: calls NAME with TEXT, and answers what came of it
/// - `!flood NAME TIMEOUT_MS COUNT`: sends one-way messages to NAME until one fails, and answers
///   how many were sent
/// - anything else: answers the same
pub(crate) fn handle(node: &Node, request: Request<'_>) {
    if request.is_one_way() {
        return count(&request);
    }
    if request.payload().first() != Some(&b'!') {
        let _ = request.reply(request.payload());
        return;
    }
    if request.payload() == b"!mark" {
        return mark(&request);
    }
    let text = String::from_utf8_lossy(request.payload()).into_owned();
    let mut words = text.splitn(4, ' ');
    let mut word = || words.next().unwrap_or_default();
    let answer = match word() {
        "!hold" => {
            with_kept(|kept| kept.held.push(request.retain()));
            return say("held");
        }
        "!count" => {
            let source = request.source().get();
            let (count, disorder) =
                with_kept(|kept| kept.received.get(&source).copied().unwrap_or_default());
            format!("{count} {disorder}").into_bytes()
        }
        "!grow" => vec![7; word().parse().expect("a size")],
        "!who" => {
            let peer = request.peer();
            format!("{} {} {} {}", peer.id, peer.name, peer.pid, peer.uid).into_bytes()
        }
        "!steady" => {
            let first = request.payload().to_vec();
            let is_same = (0..200).all(|_| std::hint::black_box(request.payload()) == first);
            if is_same { b"steady".to_vec() } else { b"torn".to_vec() }
        }
        "!serving" => format!("{} {}", std::process::id(), request.epoch()).into_bytes(),
        "!work" => {
            let ms = word().parse().expect("a time in ms");
            std::thread::sleep(std::time::Duration::from_millis(ms));
            b"worked".to_vec()
        }
        "!thread" => nix::unistd::gettid().to_string().into_bytes(),
        "!relay" => {
            let (name, timeout) = (word(), timeout(word()));
            outcome(client_of(node, name).call(word().as_bytes(), timeout)).into_bytes()
        }
        "!flood" => {
            let (name, timeout) = (word(), timeout(word()));
            let count = word().parse().expect("a count");
            flood(&client_of(node, name), timeout, count).to_string().into_bytes()
        }
        other => panic!("no such request: {other}"),
    };
    let _ = request.reply(&answer);
}

fn mark(request: &Request<'_>) {
    let _ = nix::unistd::getppid();
    let allocations = raw::allocations() - MARKED.get();
    let _ = request.reply(allocations.to_string().as_bytes());
    MARKED.set(raw::allocations());
}

fn count(request: &Request<'_>) {
    let number = request.payload().get(..8).and_then(|bytes| bytes.try_into().ok());
    let number = u64::from_le_bytes(number.expect("a number"));
    with_kept(|kept| {
        let (count, disorder) = kept.received.entry(request.source().get()).or_default();
        *disorder += u64::from(number != *count);
        *count += 1;
    });
}

fn client_of(node: &Node, name: &str) -> ipc::Client {
    node.client(node.discover(name).expect("served")).expect("a channel")
}

fn flood(client: &ipc::Client, timeout: Duration, count: u64) -> u64 {
    let send = |n: &u64| client.send(&n.to_le_bytes(), CallOptions::timeout(timeout)).is_err();
    (0..count).find(send).unwrap_or(count)
}

fn timeout(word: &str) -> Duration {
    Duration::from_millis(word.parse().expect("milliseconds"))
}

/// Describes what came of a call: `answer TEXT`, or `failed STATUS`.
pub(crate) fn outcome(result: Result<Vec<u8>, CallError>) -> String {
    match result {
        Ok(answer) => format!("answer {}", String::from_utf8_lossy(&answer)),
        Err(error) => format!("failed {}", error.status().name()),
    }
}
