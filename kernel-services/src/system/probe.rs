//! Pings services as anybody would: through a channel, answered by the loop that serves.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
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
/// Threads that ping at a time, beside those whose service seems to hang. Each channel takes
/// memory, which is kept for the next: a thousand services at once would take 30 MB.
const THREADS: usize = 64;
/// From then on a service seems to hang, and its thread is not counted among those: whoever waits
/// for one has its ping in time, however many others hang.
const SLOW: Duration = Duration::from_millis(100);
/// Threads that may be there together, with those.
const MOST_THREADS: usize = 4096;

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
    /// Something was ordered or begun, for who oversees those that wait.
    moved: Condvar,
    tell: Sender<Outcome>,
    bell: EventFd,
}

/// Pings that nobody has begun, and how many there are to begin them.
#[derive(Debug, Default)]
struct Orders {
    waiting: VecDeque<Ping>,
    threads: usize,
    /// When each thread that pings began with what it is at.
    begun: HashMap<UnitId, Instant>,
    /// Whether a thread oversees those that wait.
    is_overseen: bool,
}

impl Orders {
    /// Whether another thread may ping, and else when to look again.
    fn may_begin(&self) -> Result<(), Duration> {
        let ages = self.begun.values().map(Instant::elapsed);
        let brisk: Vec<Duration> = ages.filter(|age| *age < SLOW).collect();
        if self.threads >= MOST_THREADS || self.threads - self.slow(&brisk) >= THREADS {
            let oldest = brisk.into_iter().max().unwrap_or_default();
            return Err(SLOW.saturating_sub(oldest).max(Duration::from_millis(1)));
        }
        Ok(())
    }

    fn slow(&self, brisk: &[Duration]) -> usize {
        self.begun.len() - brisk.len()
    }
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
        let (clients, orders, moved) = (Mutex::default(), Mutex::default(), Condvar::new());
        let shared = Shared { runtime_dir, node, clients, orders, moved, tell, bell };
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
        if orders.may_begin().is_ok() {
            self.shared.begin(&mut orders);
        } else if !orders.is_overseen {
            let shared = Arc::clone(&self.shared);
            let thread = Builder::new().name("ipc-probes".to_owned()).stack_size(STACK);
            // Without one, who is at work takes it next.
            orders.is_overseen = thread.spawn(move || shared.oversee()).is_ok();
        }
        if orders.threads == 0 {
            // No thread is to be had.
            orders.waiting.clear();
            drop(orders);
            self.miss(unit);
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
    /// Starts a thread for who waits.
    fn begin(self: &Arc<Self>, orders: &mut Orders) {
        let shared = Arc::clone(self);
        let thread = Builder::new().name("ipc-probe".to_owned()).stack_size(STACK);
        orders.threads += usize::from(thread.spawn(move || shared.work()).is_ok());
    }

    /// Sees to it that those who wait are not kept by those who hang, as long as somebody waits.
    fn oversee(self: &Arc<Self>) {
        let mut orders = lock(&self.orders);
        while !orders.waiting.is_empty() {
            let pause = match orders.may_begin() {
                Ok(()) => {
                    self.begin(&mut orders);
                    SLOW
                }
                Err(pause) => pause,
            };
            let waited = self.moved.wait_timeout(orders, pause);
            orders = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        orders.is_overseen = false;
    }

    /// Pings until there is nobody to ping.
    fn work(&self) {
        loop {
            let next = {
                let mut orders = lock(&self.orders);
                let next = orders.waiting.pop_front();
                match &next {
                    Some(ping) => drop(orders.begun.insert(ping.unit, Instant::now())),
                    None => orders.threads -= 1,
                }
                next
            };
            self.moved.notify_one();
            let Some(Ping { unit, instance, timeout }) = next else { return };
            let begun = Instant::now();
            let answered = self.try_ping(unit, instance, timeout).is_some();
            lock(&self.orders).begun.remove(&unit);
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

#[cfg(test)]
mod tests {
    use ipc::Server;

    use super::*;
    use crate::Kernel;

    /// Serves as many names, or says so and hangs.
    fn serve(directory: &Path, prefix: &str, count: u32) -> (Node, Server, Vec<ServiceId>) {
        let runtime_dir = Some(directory.to_owned());
        let node = Node::connect(&Config { runtime_dir, ..Config::default() }).expect("a node");
        let server = node.server().expect("a server");
        let names = (0..count).map(|number| format!("{prefix}{number}"));
        let ids =
            names.map(|name| server.register(&name, 0).expect("registered").instance).collect();
        (node, server, ids)
    }

    #[test]
    fn those_who_hang_do_not_delay_the_pings_of_others() {
        let directory = tempfile::tempdir().expect("a directory");
        let kernel = Kernel::embedded(directory.path()).expect("a runtime");
        let (_node, _server, hanging) = serve(directory.path(), "hangs", THREADS as u32 + 8);
        let (node, server, ids) = serve(directory.path(), "answers", 1);
        let serving = std::thread::spawn(move || server.run(|_| {}));
        let probes = Probes::new(directory.path()).expect("an eventfd");
        let long = Duration::from_mins(10);
        for (number, &id) in (0..).zip(&hanging) {
            probes.ping(UnitId(number), id, long);
        }
        probes.ping(UnitId(1000), ids[0], long);
        // None of the others is over before.
        let heard = probes.heard.recv_timeout(Duration::from_mins(1)).expect("an answer");
        assert_eq!(heard, Outcome { unit: UnitId(1000), instance: Some(ids[0]), answered: true });
        node.interrupter().fire();
        let _ = serving.join().expect("no panic");
        drop(kernel);
    }
}
