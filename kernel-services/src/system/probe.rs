//! Pings services as anybody would: through a channel, answered by the loop that serves.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::Builder,
    time::{Duration, Instant},
};

use ipc::{Client, Config, Node, ServiceId};
use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::supervisor::UnitId;

/// Bytes of stack for a thread that pings.
const STACK: usize = 128 * 1024;
/// Threads that ping at a time. A service that hangs keeps one for as long as its ping may take;
/// when so many hang at once, others' pings are late, and none is counted as missed for that. Each
/// channel takes memory, which is kept for the next: a thousand services at once would take 30 MB.
const THREADS: usize = 64;

/// What came of a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) unit: UnitId,
    /// Who was pinged, if the unit served anything.
    pub(super) instance: Option<ServiceId>,
    pub(super) answered: bool,
}

/// Pings under way, each by a thread of its own, and those that wait for one. Without pings there
/// are no threads.
#[derive(Debug)]
pub(super) struct Probes {
    shared: Arc<Shared>,
    heard: Receiver<Outcome>,
}

#[derive(Debug)]
struct Shared {
    runtime_dir: PathBuf,
    /// This process as a client of its own runtime, from the first ping on.
    node: Mutex<Option<Node>>,
    /// Kept between pings: a channel takes longer to open than a ping takes.
    clients: Mutex<HashMap<UnitId, (ServiceId, Client)>>,
    orders: Mutex<Orders>,
    tell: Sender<Outcome>,
    bell: EventFd,
}

/// Pings that nobody has begun, and how many there are to begin them.
#[derive(Debug, Default)]
struct Orders {
    waiting: VecDeque<Ping>,
    threads: usize,
}

#[derive(Clone, Copy, Debug)]
struct Ping {
    unit: UnitId,
    instance: ServiceId,
    timeout: Duration,
}

impl Probes {
    pub(super) fn new(runtime_dir: &Path) -> Result<Probes, Errno> {
        let (tell, heard) = channel();
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (runtime_dir, node) = (runtime_dir.to_owned(), Mutex::new(None));
        let (clients, orders) = (Mutex::default(), Mutex::default());
        let shared = Shared { runtime_dir, node, clients, orders, tell, bell };
        Ok(Probes { shared: Arc::new(shared), heard })
    }

    /// A unit's process is gone, or another.
    pub(super) fn forget(&self, unit: UnitId) {
        lock(&self.shared.clients).remove(&unit);
    }

    /// Pings an instance; what comes of it is to be heard.
    pub(super) fn ping(&self, unit: UnitId, instance: ServiceId, timeout: Duration) {
        let mut orders = lock(&self.shared.orders);
        orders.waiting.push_back(Ping { unit, instance, timeout });
        if orders.threads == THREADS {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let thread = Builder::new().name("ipc-probe".to_owned()).stack_size(STACK);
        match thread.spawn(move || shared.work()) {
            Ok(_) => orders.threads += 1,
            // Who is at work takes it next.
            Err(_) if orders.threads > 0 => {}
            Err(_) => {
                orders.waiting.clear();
                drop(orders);
                self.miss(unit);
            }
        }
    }

    /// Has a ping of a unit that serves nothing missed.
    pub(super) fn miss(&self, unit: UnitId) {
        self.shared.tell(Outcome { unit, instance: None, answered: false });
    }

    /// Quiets the bell, and gives what came of pings since.
    pub(super) fn hear(&self) -> Vec<Outcome> {
        // Fails where nothing was told.
        let _ = self.shared.bell.read();
        self.heard.try_iter().collect()
    }
}

impl AsFd for Probes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }
}

impl Shared {
    /// Pings until there is nobody to ping.
    fn work(&self) {
        loop {
            let next = {
                let mut orders = lock(&self.orders);
                let next = orders.waiting.pop_front();
                orders.threads -= usize::from(next.is_none());
                next
            };
            let Some(Ping { unit, instance, timeout }) = next else { return };
            let begun = Instant::now();
            let answered = self.try_ping(unit, instance, timeout).is_some();
            if !answered {
                // One that fails at once is not to be asked again at once.
                std::thread::sleep(Duration::from_millis(20).saturating_sub(begun.elapsed()));
            }
            self.tell(Outcome { unit, instance: Some(instance), answered });
        }
    }

    fn try_ping(&self, unit: UnitId, instance: ServiceId, timeout: Duration) -> Option<Duration> {
        let kept = lock(&self.clients).get(&unit).filter(|(of, _)| *of == instance).cloned();
        let client = if let Some((_, client)) = kept {
            client
        } else {
            let client = self.node()?.client(instance).ok()?;
            lock(&self.clients).insert(unit, (instance, client.clone()));
            client
        };
        client.ping(timeout).ok()
    }

    fn node(&self) -> Option<Node> {
        let mut node = lock(&self.node);
        if node.is_none() {
            let runtime_dir = Some(self.runtime_dir.clone());
            // One ping at a time for each service, and nothing is lent.
            let config = Config { runtime_dir, outstanding: 1, max_bulk: 0, ..Config::default() };
            *node = Node::connect(&config).ok();
        }
        node.clone()
    }

    fn tell(&self, outcome: Outcome) {
        if self.tell.send(outcome).is_ok() {
            // Fails only when it was rung 2^64 times and not heard.
            let _ = self.bell.write(1);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
