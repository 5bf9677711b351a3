//! The one runtime of a process: made by the first `ipc_init`, ended by the last `ipc_shutdown`.

#![allow(unsafe_code)] // exports

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::c_int,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use ipc_core::{Client, Node, NodeError, Server, ServiceId, Status};
use kernel_services::Succession;

use crate::{
    boundary::guard,
    call,
    demoted::Demotions,
    error::{Failure, IPC_OK},
    event::Events,
    loan::Loans,
    message,
    process::{Active, Process},
    queue::Queues,
    receive::Inbox,
    region::Regions,
    settings::Settings,
    stop::Brake,
    transport::Paths,
    types::Config,
};

/// Tries to run a runtime or else to reach the one that runs, which may end between the two.
const EMBEDDED_TRIES: u32 = 10;

/// Connects this process to the runtime. NULL asks for the defaults. Counted: every successful
/// call needs an ipc_shutdown of its own, and while the runtime is in use another call with an
/// equal configuration succeeds. A forked child calls it anew; it has none of its parent's
/// services, handlers and calls.
///
/// IPC_EINVAL: a value is out of its range, size is wrong, or another configuration is in use.
/// IPC_ENORUNTIME: no ipcd serves the directory (nothing is printed; see ipc_strerror).
/// IPC_EACCES: the directory is not yours, or cannot be used.
/// IPC_EPROTO: ipcd is of another version. IPC_EQUOTA: no descriptors are left. IPC_ESYS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_init(config: *const Config) -> c_int {
    guard(|| {
        // SAFETY: clause 1 of the boundary: as many bytes as the size that the struct names.
        let settings = unsafe { Settings::read(config) }?;
        let process = Process::here_or_new();
        let _turn = process.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(active) = process.active_mut().as_mut() {
            if active.runtime.settings != settings {
                return Err(Status::INVALID.into());
            }
            active.users += 1;
            return Ok(IPC_OK);
        }
        let (succession, node) = connect(&settings)?;
        let server = node.server()?;
        let runtime = Arc::new(Runtime::new(settings, node, server));
        let interrupter = runtime.node.interrupter();
        process.stop.install(Brake { interrupter, wake: Arc::clone(runtime.inbox.wake()) });
        GENERATION.store(runtime.generation, Ordering::Release);
        *process.active_mut() = Some(Active { runtime, succession, users: 1 });
        Ok(IPC_OK)
    })
}

/// Undoes one ipc_init. The last one unregisters this process's services, makes calls that other
/// threads are blocked in return IPC_ECANCELED, and closes all channels. It does not wait for
/// callbacks that other threads run now; callbacks of asynchronous calls that have not ended will
/// not run any more. Messages that were retained stay readable until they are released, and their
/// callers get IPC_ENOREPLY.
///
/// IPC_ENOTINIT: there is nothing to shut down. IPC_EREENTRANT: inside a callback. IPC_EFORK.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_shutdown() -> c_int {
    guard(|| {
        let process = Process::here()?;
        if message::in_callback() {
            return Err(Status::REENTRANT.into());
        }
        let _turn = process.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = {
            let mut state = process.active_mut();
            let active = state.as_mut().ok_or(Status::NOT_INIT)?;
            active.users -= 1;
            if active.users > 0 {
                return Ok(IPC_OK);
            }
            GENERATION.store(0, Ordering::Release);
            state.take()
        };
        process.stop.remove();
        if let Some(Active { runtime, succession, .. }) = ended {
            process.kept.answer_all();
            runtime.end();
            call::forget_clients();
            // In this order: a runtime of our own sees its last node leave.
            drop(runtime);
            if let Some(succession) = succession {
                succession.end();
            }
        }
        Ok(IPC_OK)
    })
}

/// Number of the runtime in use, never given twice; 0 for none. What a thread remembers of a
/// runtime holds for one generation.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Gives the number of the runtime in use; 0 for none.
#[inline]
pub(crate) fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// Gives the runtime in use.
pub(crate) fn current() -> Result<Arc<Runtime>, Failure> {
    let process = Process::here()?;
    let active = process.active();
    Ok(Arc::clone(&active.as_ref().ok_or(Status::NOT_INIT)?.runtime))
}

/// Connects, and, if that is asked for, runs what others connect to as long as nobody else does.
fn connect(settings: &Settings) -> Result<(Option<Succession>, Node), Failure> {
    let core = settings.to_core();
    if !settings.embedded {
        return Ok((None, Node::connect(&core)?));
    }
    let succession = Succession::new(&settings.runtime_dir);
    let core = ipc_core::Config { heir: Some(succession.heir()), ..core };
    let mut tries = 1;
    loop {
        let is_ours = succession.step_in()?;
        match Node::connect(&core) {
            // The one that ran has ended meanwhile, or has only begun to.
            Err(NodeError::NoRuntime { .. }) if !is_ours && tries < EMBEDDED_TRIES => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            node => return Ok((Some(succession), node?)),
        }
    }
}

/// A connection to the runtime and all that hangs on it.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) generation: u64,
    pub(crate) settings: Settings,
    pub(crate) node: Node,
    pub(crate) inbox: Inbox,
    pub(crate) events: Events,
    /// Made at once, though who only calls needs none: an `ipc_stop` is meant for its next loop.
    pub(crate) server: Server,
    /// Clients by the id that was called. They stay, so that what threads remember is shared.
    clients: RwLock<HashMap<u32, Client>>,
    /// Bulk memory that C fills.
    pub(crate) loans: Loans,
    /// Shared regions that C has made or mapped.
    pub(crate) regions: Regions,
    /// Whether C reads payloads in bulk memory by ipc_message_read alone.
    pub(crate) bulk_views: bool,
    /// Queues that C has opened.
    pub(crate) queues: Queues,
    /// What C is to hear of names that went to others.
    pub(crate) demotions: Arc<Demotions>,
    /// Paths on which C listens.
    pub(crate) paths: Paths,
    /// The instances that this process serves.
    instances: Mutex<Vec<ServiceId>>,
}

impl Runtime {
    fn new(settings: Settings, node: Node, server: Server) -> Runtime {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Runtime {
            generation: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            bulk_views: settings.bulk_views,
            settings,
            node,
            inbox: Inbox::new(),
            events: Events::default(),
            server,
            clients: RwLock::default(),
            loans: Loans::default(),
            regions: Regions::default(),
            queues: Queues::default(),
            demotions: Arc::default(),
            paths: Paths::default(),
            instances: Mutex::default(),
        }
    }

    /// Gives the client of an id, opened when first needed.
    pub(crate) fn client(&self, dest: u32) -> Result<Client, Failure> {
        if dest == 0 {
            return Err(Status::INVALID.into());
        }
        let known = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = known.get(&dest) {
            return Ok(client.clone());
        }
        drop(known);
        // Without the lock: this waits for the service's answer.
        let opened = self.node.client(ServiceId::new(dest))?;
        let mut known = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        Ok(match known.entry(dest) {
            Entry::Occupied(first) => first.get().clone(),
            Entry::Vacant(place) => place.insert(opened).clone(),
        })
    }

    /// Forgets a client whose destination is gone for good.
    pub(crate) fn forget_client(&self, dest: u32) {
        self.clients.write().unwrap_or_else(PoisonError::into_inner).remove(&dest);
    }

    /// Whether some client has this call outstanding, and it is cancelled now.
    pub(crate) fn cancel(&self, message_id: u64) -> bool {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        clients.values().any(|client| client.cancel(message_id))
    }

    /// Notes an instance that this process serves.
    pub(crate) fn add_instance(&self, instance: ServiceId) {
        self.instances().push(instance);
    }

    /// Strikes an instance off; returns whether it was this process's.
    pub(crate) fn remove_instance(&self, instance: ServiceId) -> bool {
        let mut instances = self.instances();
        let place = instances.iter().position(|&it| it == instance);
        place.map(|place| instances.swap_remove(place)).is_some()
    }

    fn instances(&self) -> std::sync::MutexGuard<'_, Vec<ServiceId>> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends everything that does not end by itself when the last thread lets go of the runtime.
    fn end(&self) {
        for instance in std::mem::take(&mut *self.instances()) {
            // Fails only when the runtime is gone, and then nobody knows the instance.
            let _ = self.server.unregister(instance);
        }
        self.paths.clear();
        self.demotions.clear();
        self.inbox.clear();
        self.events.clear();
        self.loans.clear();
        self.regions.clear();
        self.queues.clear();
        self.node.interrupter().fire();
        self.clients.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
