//! A service whose effects happen once, though it dies and its callers send again what it had.
//!
//! An effect is a line in a file, which any of its processes appends to. What was answered stands
//! in a region that the next process maps when it joins.

use std::{
    fs::OpenOptions,
    io::Write,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use ipc::{
    Node, Region, RegionAccess, RegionOptions, RegionRef, Request, Server, Status,
    control::SERVICE_DEDUP,
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
    file: Mutex<std::fs::File>,
}

/// Serves a name, behind whoever serves it now.
pub(crate) fn serve(node: &Node, server: &Server, name: &str, path: &str) {
    let before = node.discover(name).ok().map(|id| {
        let first = node.client(id).expect("a channel");
        let answer = first.call(WINDOW, LONG).expect("a window");
        let passed = RegionRef::from_bytes(&answer).expect("a region");
        node.map_region(passed.id).expect("it was passed to this node")
    });
    let once = Arc::new(Once {
        own: node.create_region(256 << 10, &RegionOptions::default()).expect("a region"),
        before,
        gate: OnceLock::new(),
        has_left: AtomicBool::new(false),
        file: Mutex::new(OpenOptions::new().append(true).open(path).expect("a file")),
    });
    let left = Arc::clone(&once);
    assert!(server.on_demoted(move |_, _| left.has_left.store(true, Ordering::Release)));
    let registration = server.register(name, SERVICE_DEDUP).expect("registered");
    let server = server.clone();
    std::thread::spawn(move || server.run(|request| once.handle(&request)));
    say(&format!("serving {} {}", registration.instance, registration.name));
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
            let what = std::str::from_utf8(payload).map_err(|_| Status::INVALID)?;
            let line = format!("{} {} {what}\n", std::process::id(), request.epoch());
            let mut file = self.file.lock().expect("nobody panicked");
            // In one piece: a process that is killed leaves a whole line, or none.
            file.write_all(line.as_bytes()).map_err(|_| Status::IO)?;
            Ok(payload.to_vec())
        });
    }
}
