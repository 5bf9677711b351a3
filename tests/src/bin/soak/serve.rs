//! Who serves: each tells the ledger of an effect before it answers.

use std::{path::Path, sync::OnceLock, time::Duration};

use ipc::{
    CallError, Node, Region, RegionAccess, RegionOptions, RegionRef, Request, Retained, Server,
    Status,
    control::{SERVICE_DEDUP, SERVICE_IDEMPOTENT},
    once::{Gate, Limits},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tests::ledger::{Effect, Entry};

use crate::{
    Trouble,
    cast::{self, GROUPS, Kind, LONG, STEADY},
    notary::Notary,
    part,
};

/// Who asks for the log of a gate, which the next one reads.
const WINDOW: &[u8] = b"window";
/// Who asks for the region that is written all the time.
pub(crate) const REGION: &[u8] = b"region";
/// Bytes of one half of that region; its number stands before them, in a line of its own.
pub(crate) const HALF: usize = 4096;
/// Where the first half begins.
pub(crate) const HALVES: usize = 64;
/// Requests that one who was passed over does not answer, since somebody else will.
const HELD: usize = 1024;

/// A request: who asks, and its number.
pub(crate) fn request(caller: u32, number: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&caller.to_le_bytes());
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// What a request says; nobody here sends another.
fn read(payload: &[u8]) -> Option<(u32, u64)> {
    let (caller, rest) = payload.split_first_chunk()?;
    Some((u32::from_le_bytes(*caller), u64::from_le_bytes(rest.try_into().ok()?)))
}

/// Bytes of an answer: the process, its epoch, and the request.
pub(crate) const ANSWER: usize = 4 + 8 + 12;

fn answer(epoch: u64, payload: &[u8]) -> Vec<u8> {
    [&std::process::id().to_le_bytes()[..], &epoch.to_le_bytes(), payload].concat()
}

/// Serves a group's name, or stands by, until stdin ends.
pub(crate) fn play(base: &Path, book: usize, mib: usize) -> Result<(), Trouble> {
    let group = GROUPS.get(book).ok_or("no such group")?;
    // Who is aborted takes as long to die as one whose memory is written to a file.
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, hard, hard)?;
    std::env::set_current_dir(cast::cores(base))?;
    // Touched, so that the kernel has it to tear down.
    let _fat = vec![1_u8; mib << 20];
    let notary = Notary::connect(base)?;
    let node = part::connect(&cast::config(base, group.sealed))?;
    let server = node.server()?;
    match group.kind {
        Kind::Store => {
            part::patiently(|| server.register(group.name, SERVICE_IDEMPOTENT))?;
            let port = server.clone();
            run(&node, move || Store { book, notary, held: Vec::new() }.serve(&port))
        }
        Kind::Till => {
            let till = Till::join(book, &node, group.name, notary)?;
            part::patiently(|| server.register(group.name, SERVICE_DEDUP))?;
            run(&node, move || server.run(|request| till.handle(&request)))
        }
    }
}

/// Serves in a thread; this one hears what it is told.
fn run(
    node: &Node,
    serve: impl FnOnce() -> Result<(), CallError> + Send + 'static,
) -> Result<(), Trouble> {
    let serving = std::thread::spawn(serve);
    part::say("serving");
    part::obey(|_| ());
    while !serving.is_finished() {
        node.interrupter().fire();
        std::thread::sleep(Duration::from_millis(1));
    }
    match serving.join() {
        Ok(Err(CallError::Canceled)) => Ok(()),
        ended => Err(format!("the loop ended with {ended:?}").into()),
    }
}

/// A service whose store is the ledger: that keeps the record with the effect.
struct Store {
    book: usize,
    notary: Notary,
    held: Vec<Retained>,
}

impl Store {
    /// Takes what is there, tells the ledger of all of it, and only then answers.
    fn serve(&mut self, server: &Server) -> Result<(), CallError> {
        let mut taken = Vec::new();
        loop {
            server.poll(None, &mut |request| taken.push(request.retain()))?;
            self.settle(&mut taken);
        }
    }

    fn settle(&mut self, taken: &mut Vec<Retained>) {
        let effect = |request: &Retained| {
            let (caller, number) = read(request.payload())?;
            let book = if request.is_one_way() { cast::one_way(self.book) } else { self.book };
            let writer = std::process::id();
            Some((book, Effect { writer, epoch: request.epoch(), caller, number }))
        };
        // Who says something else is answered NO_REPLY, which its caller counts as an error.
        taken.retain(|request| effect(request).is_some());
        let effects: Vec<(usize, Effect)> = taken.iter().filter_map(effect).collect();
        let entries = self.notary.record_all(&effects);
        for (request, entry) in taken.drain(..).zip(entries) {
            match entry {
                _ if request.is_one_way() => {}
                // A caller that is gone needs no answer.
                Entry::Recorded | Entry::Repeated => {
                    let _ = request.reply(&answer(request.epoch(), request.payload()));
                }
                // Somebody else serves, and its caller is about to be told so, and to ask that one.
                Entry::Stale(_) => {
                    if self.held.len() == HELD {
                        self.held.clear();
                    }
                    self.held.push(request);
                }
            }
        }
    }
}

/// A service that knows requests again by what it, and the one before it, has answered.
struct Till {
    book: usize,
    notary: Notary,
    own: Region,
    before: Option<Region>,
    gate: OnceLock<Gate<Region>>,
}

impl Till {
    fn join(book: usize, node: &Node, name: &str, notary: Notary) -> Result<Till, Trouble> {
        let before = match node.discover(name) {
            Ok(id) => {
                let first = part::patiently(|| node.client(id))?;
                let window = part::patiently(|| first.call(WINDOW, LONG))?;
                let passed = RegionRef::from_bytes(&window)?;
                Some(part::patiently(|| node.map_region(passed.id))?)
            }
            Err(_) => None,
        };
        let options = RegionOptions::default();
        let own = part::patiently(|| node.create_region(256 << 10, &options))?;
        Ok(Till { book, notary, own, before, gate: OnceLock::new() })
    }

    fn handle(&self, request: &Request<'_>) {
        // Who is asked serves, and has to be known to, before it reads what the one before wrote.
        let gate = self.gate.get_or_init(|| {
            self.notary.begin(self.book, request.epoch());
            let gate = Gate::with_log(Limits::default(), self.own.clone(), self.before.as_ref());
            gate.unwrap_or_else(|error| {
                eprintln!("the log of the one before: {error}");
                std::process::exit(4)
            })
        });
        if request.payload() == WINDOW {
            let passed = self.own.pass_to(request.source(), RegionAccess::Read);
            let _ = match passed {
                Ok(passed) => request.reply(&passed.to_bytes()),
                Err(error) => request.reply_error(error.status()),
            };
            return;
        }
        // A caller that is gone needs no answer.
        let _ = gate.handle(request, |payload| {
            let (caller, number) = read(payload).ok_or(Status::INVALID)?;
            let epoch = request.epoch();
            let effect = Effect { writer: std::process::id(), epoch, caller, number };
            match self.notary.record(self.book, effect) {
                Entry::Recorded | Entry::Repeated => Ok(answer(epoch, payload)),
                Entry::Stale(_) => Err(Status::STALE),
            }
        });
    }
}

/// Serves what never dies: answers the same, and passes a region that it writes all the time.
pub(crate) fn steady(base: &Path) -> Result<(), Trouble> {
    let node = part::connect(&cast::config(base, false))?;
    let server = node.server()?;
    let region = node.create_region((HALVES + 2 * HALF) as u64, &RegionOptions::default())?;
    part::patiently(|| server.register(STEADY, 0))?;
    let written = region.clone();
    std::thread::spawn(move || {
        for round in 1_u64.. {
            // The half that nobody reads, and then its number.
            let at = HALVES + (round % 2) as usize * HALF;
            let wrote = written.write_at(at, &[round as u8; HALF]);
            if wrote.and_then(|()| written.store(0, round)).and_then(|()| written.sync()).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let handler = move |request: Request<'_>| {
        let _ = if request.payload() == REGION {
            match region.pass_to(request.source(), RegionAccess::Read) {
                Ok(passed) => request.reply(&passed.to_bytes()),
                Err(error) => request.reply_error(error.status()),
            }
        } else {
            request.reply(request.payload())
        };
    };
    run(&node, move || server.run(handler))
}
