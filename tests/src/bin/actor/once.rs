//! A service whose effects happen once, though it dies and its callers send again what it had.
//!
//! An effect is a line in a file, which any of its processes appends to. What was answered stands
//! in a region that the next process maps when it joins.

use std::{
    fs::OpenOptions,
    io::Write,
    sync::{Arc, Mutex},
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
    /// At which epoch it was made, of what the one before had answered until then.
    gate: Mutex<Option<(u64, Arc<Gate<Region>>)>>,
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
    let once = Once {
        own: node.create_region(256 << 10, &RegionOptions::default()).expect("a region"),
        before,
        gate: Mutex::new(None),
        file: Mutex::new(OpenOptions::new().append(true).open(path).expect("a file")),
    };
    let registration = server.register(name, SERVICE_DEDUP).expect("registered");
    let server = server.clone();
    std::thread::spawn(move || server.run(|request| once.handle(&request)));
    say(&format!("serving {} {}", registration.instance, registration.name));
}

impl Once {
    /// The gate for what is taken at this epoch, made at the first such request: the one before
    /// writes no more then. There is none when the name was elsewhere and came back: nobody passed
    /// this process what was answered there.
    fn gate_at(&self, epoch: u64) -> Option<Arc<Gate<Region>>> {
        let mut gate = self.gate.lock().expect("nobody panicked");
        let (made_at, gate) = gate.get_or_insert_with(|| {
            let gate = Gate::with_log(Limits::default(), self.own.clone(), self.before.as_ref());
            (epoch, Arc::new(gate.expect("the window of the one before")))
        });
        (*made_at == epoch).then(|| Arc::clone(gate))
    }

    fn handle(&self, request: &Request<'_>) {
        let Some(gate) = self.gate_at(request.epoch()) else {
            // Whoever served meanwhile may have carried it out.
            let _ = request.reply_error(Status::MAYBE);
            return;
        };
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
