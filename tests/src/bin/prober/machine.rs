//! What both flavours of the service do.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use ipc::{
    Status,
    rpc::{Context, Fault},
};
use nix::sys::signal::{self, Signal};
use tests::probe::{Counted, Failure, Failures, Seen};

/// Whoever is asked to count by this name dies, if it is mortal.
const LAST: &str = "last words";

/// How often each name was counted.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    counts: Mutex<HashMap<String, u32>>,
    is_mortal: bool,
}

impl Machine {
    pub(crate) fn new(is_mortal: bool) -> Machine {
        Machine { is_mortal, ..Machine::default() }
    }

    /// Counts, and fails the first `times` times: each time it was carried out.
    pub(crate) fn count(&self, request: Failures) -> Result<Counted, Fault> {
        if self.is_mortal && request.name == LAST {
            let _ = signal::raise(Signal::SIGKILL);
        }
        let mut counts = self.counts.lock().expect("nobody panics");
        let count = counts.entry(request.name).or_default();
        *count += 1;
        if *count <= request.times {
            return Err(Fault::new(Status::TIMED_OUT, "what it asked in its turn was late"));
        }
        Ok(Counted { count: *count })
    }
}

pub(crate) fn fail(failure: &Failure) -> Fault {
    Fault::new(Status::from_code(failure.status), failure.message.clone())
}

pub(crate) fn look(context: &Context) -> Seen {
    Seen {
        source: context.source().get(),
        left_us: context.left().map(|left| left.as_micros() as u64),
        trace_id: context.trace().map_or(Vec::new(), |trace| trace.trace_id.to_vec()),
        key: context.key().map_or(Vec::new(), |key| key.to_vec()),
    }
}

/// As long as a stream's source exists.
#[derive(Debug)]
pub(crate) struct Alive;

static ALIVE: AtomicU32 = AtomicU32::new(0);

pub(crate) fn alive() -> u32 {
    ALIVE.load(Ordering::SeqCst)
}

impl Alive {
    pub(crate) fn new() -> Alive {
        ALIVE.fetch_add(1, Ordering::SeqCst);
        Alive
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::SeqCst);
    }
}
