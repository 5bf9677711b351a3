//! A service whose effects happen once, though it dies and its callers send again what it had.
//!
//! An effect is a line in a file, which any of its processes appends to. What was answered stands
//! in a region that the next process maps when it joins. A request that ends in `hold` is carried
//! out and never answered. One that is idempotent keeps no record.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ipc::{
    Node, Region, RegionAccess, RegionOptions, RegionRef, Request, Server, Status,
    control::{SERVICE_DEDUP, SERVICE_IDEMPOTENT},
    once::{Gate, Limits},
};
use tests::LONG;

use crate::say;

const WINDOW: &[u8] = b"window";

struct Once {
    own: Region,
    before: Option<Region>,
    gate: OnceLock<Gate<Region>>,
    /// Whether another one served after this one did.
    has_left: AtomicBool,
    file: Mutex<File>,
}

/// Serves a name, behind whoever serves it now.
pub(crate) fn serve(node: &Node, server: &Server, name: &str, path: &str) {
    let before = window(node, name);
    let once = Arc::new(Once {
        own: node.create_region(256 << 10, &RegionOptions::default()).expect("a region"),
        before,
        gate: OnceLock::new(),
        has_left: AtomicBool::new(false),
        file: open(path),
    });
    let left = Arc::clone(&once);
    assert!(server.on_demoted(move |_, _| left.has_left.store(true, Ordering::Release)));
    let registration = server.register(name, SERVICE_DEDUP).expect("registered");
    let server = server.clone();
    std::thread::spawn(move || server.run(|request| once.handle(&request)));
    say(&format!("serving {} {}", registration.instance, registration.name));
}

/// The same, by who is idempotent: each request is carried out as often as it comes.
pub(crate) fn serve_again(server: &Server, name: &str, path: &str) {
    let file = open(path);
    let registration = server.register(name, SERVICE_IDEMPOTENT).expect("registered");
    let server = server.clone();
    std::thread::spawn(move || {
        server.run(|request| {
            let done = write(&file, &request, request.payload());
            // A caller that is gone needs no answer.
            let _ = match done {
                Ok(answer) => request.reply(&answer),
                Err(status) => request.reply_error(status),
            };
        })
    });
    say(&format!("serving {} {}", registration.instance, registration.name));
}

fn open(path: &str) -> Mutex<File> {
    Mutex::new(OpenOptions::new().append(true).open(path).expect("a file"))
}

/// The effect: a line, in one piece, so that a process that is killed leaves all of it, or nothing.
fn write(file: &Mutex<File>, request: &Request<'_>, payload: &[u8]) -> Result<Vec<u8>, Status> {
    let what = std::str::from_utf8(payload).map_err(|_| Status::INVALID)?.trim_end();
    let line = format!("{} {} {what}\n", std::process::id(), request.epoch());
    let mut file = file.lock().expect("nobody panicked");
    file.write_all(line.as_bytes()).map_err(|_| Status::IO)?;
    Ok(payload.to_vec())
}

/// What who serves now has answered; nothing where nobody does. Whoever is asked may die meanwhile.
fn window(node: &Node, name: &str) -> Option<Region> {
    loop {
        let first = node.client(node.discover(name).ok()?);
        let answer = first.ok().and_then(|first| first.call(WINDOW, LONG).ok());
        let passed = answer.and_then(|answer| RegionRef::from_bytes(&answer).ok());
        if let Some(region) = passed.and_then(|it| node.map_region(it.id).ok()) {
            return Some(region);
        }
        // The runtime has not heard of that death.
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Once {
    fn handle(&self, request: &Request<'_>) {
        if self.has_left.load(Ordering::Acquire) {
            // The name was elsewhere and came back: nobody passed this process what was answered
            // there.
            let _ = request.reply_error(Status::MAYBE);
            return;
        }
        // Who is asked serves, so the one before writes no more.
        let gate = self.gate.get_or_init(|| {
            let gate = Gate::with_log(Limits::default(), self.own.clone(), self.before.as_ref());
            gate.expect("the window of the one before")
        });
        if request.payload() == WINDOW {
            let passed = self.own.pass_to(request.source(), RegionAccess::Read).expect("passed");
            return request.reply(&passed.to_bytes()).expect("it waits");
        }
        // A caller that is gone needs no answer.
        let _ = gate.handle(request, |payload| {
            let done = write(&self.file, request, payload)?;
            if payload.ends_with(b"hold") {
                // Nobody is ever told.
                say("held");
                loop {
                    std::thread::park();
                }
            }
            Ok(done)
        });
    }
}
