//! Serves accounts by the name `bank`, behind whoever serves it now; a process for tests.
//!
//! ```text
//! bank RUNTIME-DIRECTORY STORE-DIRECTORY
//! ```
//!
//! A request is three numbers: account, amount, the caller's reference; the answer is the balance.
//! It kills itself at the step that a file beside the store, `*.dies`, names, and ends with the
//! process that started it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use ipc::{
    Config, Node, Request, Spin, Status,
    control::SERVICE_DEDUP,
    once::{Answer, Limits},
};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use store::{Step, Store, StoreError};

/// How long the one before may take to end: the kernel marks its death first, and lets go of what
/// it had open when its memory is torn down.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    prctl::set_pdeathsig(Signal::SIGKILL).expect("a valid signal");
    println!("pid {}", std::process::id());
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    let runtime_dir = Some(paths.next().expect("a runtime directory"));
    let directory = paths.next().expect("a directory for the store");
    let config = Config { runtime_dir, spin: Spin::Never, ..Config::default() };
    let node = Node::connect(&config).expect("a node");
    let server = node.server().expect("a server");
    let bank = Arc::new(Mutex::new(Bank { directory, store: None }));
    let left = Arc::clone(&bank);
    // Who serves next could not open it, for as long as this process lives.
    assert!(server.on_demoted(move |_, _| lock(&left).store = None));
    server.register("bank", SERVICE_DEDUP).expect("registered");
    println!("serving");
    server.run(|request| lock(&bank).handle(&request)).expect("it is never stopped");
}

fn lock(bank: &Mutex<Bank>) -> MutexGuard<'_, Bank> {
    bank.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Bank {
    directory: PathBuf,
    /// Opened when this process is first asked, since it serves then, with the epoch in which it
    /// does; closed when the name goes to another.
    store: Option<(u64, Store)>,
}

impl Bank {
    fn handle(&mut self, request: &Request<'_>) {
        let answer = self.deposit(request);
        // A caller that is gone needs no answer.
        let _ = match &answer {
            Ok(payload) => request.reply(payload),
            Err(status) => request.reply_error(*status),
        };
    }

    fn deposit(&mut self, request: &Request<'_>) -> Answer {
        let numbers: &[u8; 24] = request.payload().try_into().map_err(|_| Status::INVALID)?;
        let numbers: &[[u8; 8]; 3] = numbers.as_chunks().0.try_into().expect("24 = 3 times 8");
        let [account, amount, reference] = numbers.map(u64::from_be_bytes);
        let store = self.open(request.epoch()).map_err(|error| error.status())?;
        let made = store.deposit(&request.key(), account, amount, reference);
        made.unwrap_or_else(|error| Err(error.status()))
    }

    /// Waits for the death of the one before to be complete. One that lives has closed it.
    fn open(&mut self, epoch: u64) -> Result<&Store, StoreError> {
        if self.store.as_ref().is_none_or(|(of, _)| *of != epoch) {
            // Closed before it is opened again.
            self.store = None;
            let until = Instant::now() + PATIENCE;
            let store = loop {
                match Store::open(&self.directory, epoch, Limits::default()) {
                    Err(error) if error.is_locked() && Instant::now() < until => {
                        thread::sleep(Duration::from_millis(1));
                    }
                    opened => break opened?,
                }
            };
            let dies = self.directory.with_extension("dies");
            self.store = Some((epoch, store.with_steps(move |step| die_at(step, &dies))));
        }
        Ok(&self.store.as_ref().expect("just opened").1)
    }
}

/// Dies as if it were killed there, if a test wants it.
fn die_at(step: Step, dies: &Path) {
    if fs::read_to_string(dies).is_ok_and(|told| told == format!("{step:?}")) {
        // So that the test sees that it came to this.
        let _ = fs::remove_file(dies);
        let _ = kill(Pid::this(), Signal::SIGKILL);
    }
}
