//! A process's place in the runtime: finds services, opens channels, serves names.

mod acquaintances;
mod admit;
mod boards;
mod bus;
mod core;
mod descriptors;
mod dial;
mod groups;
mod health;
mod hearing;
mod inherited;
mod keep;
mod links;
mod peers;
mod regions;
mod rights;
mod sockets;
mod ticket;
mod vigil;
mod warden;

use std::{
    fs::File,
    io::{Read, Seek},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use nix::sys::prctl;

pub(crate) use self::{bus::BusWord, core::Core, health::Probe, hearing::Hearing, links::Closing};
pub use rights::AuthToken;

use crate::{
    Address, Client, Geometry, ServiceId, Spin, bulk,
    control::{self, Reply, Request},
    error::{NodeError, Status},
    fork::Birth,
    interrupt::Interrupter,
    server::{Hub, Registration, Server},
};

/// How long a request to the runtime may take when it waits for nobody else.
const PATIENCE: Duration = Duration::from_secs(5);

/// Records that one key may seal.
const MOST_REKEY_RECORDS: u32 = 1 << 24;

/// Configures a [`Node`]. The default suits most.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the runtime; by default [`runtime_dir`].
    pub runtime_dir: Option<PathBuf>,
    /// Size of the lanes of the channels that this node opens.
    pub geometry: Geometry,
    /// How long waiters spin before they sleep.
    pub spin: Spin,
    /// Largest payload in bytes, sent or received: 1 to 2^32 - 1. Default 64 MiB.
    pub max_payload: u64,
    /// Bytes of bulk memory that a channel of this node may have lent, at most 2^30, the default:
    /// see [`Client::loan`]. 0 for none: all messages go through the rings then.
    pub max_bulk: u64,
    /// Calls that may be outstanding on one channel: 1 to 65,536. Default 256.
    pub outstanding: u32,
    /// The file of the key by which this node proves itself on encrypted channels, mode 0600; made
    /// where it is not there. By default a key is drawn that lasts as long as the node.
    pub key_file: Option<PathBuf>,
    /// Whether every channel of this node is encrypted, whichever end opens it and whatever the
    /// routes of the node file say. Default: they decide. What `ipcd` itself opens, to ping, is
    /// plain in any case.
    pub encrypt: bool,
    /// Whether this node may share memory with others. Default: true; where the kernel then denies
    /// it, channels go over sockets by themselves. Where it is false, all of them do.
    pub share_memory: bool,
    /// Records of an encrypted channel after which this node changes the key that it seals with,
    /// in each ring: 1 to 2^24, the default. Two minutes change it in any case.
    pub rekey_records: u32,
    /// Starts the runtime in this process when nobody else runs it any more. By default nobody:
    /// the node waits for the runtime to come back.
    pub heir: Option<Heir>,
}

/// What a node does when it misses the runtime, before it tries to connect once more.
#[derive(Clone)]
pub struct Heir(Arc<dyn Fn() + Send + Sync>);

impl Heir {
    /// `step_in` runs on any thread, any number of times; it must not use the node.
    pub fn new(step_in: impl Fn() + Send + Sync + 'static) -> Heir {
        Heir(Arc::new(step_in))
    }
}

impl std::fmt::Debug for Heir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Heir")
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            runtime_dir: None,
            geometry: Geometry::default(),
            spin: Spin::default(),
            max_payload: 64 << 20,
            max_bulk: bulk::MOST_BYTES,
            outstanding: 256,
            key_file: None,
            encrypt: false,
            rekey_records: MOST_REKEY_RECORDS,
            share_memory: true,
            heir: None,
        }
    }
}

impl Config {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`NodeError::Config`] with the rule that is broken.
    pub fn validate(&self) -> Result<(), NodeError> {
        if self.max_payload == 0 || self.max_payload > u64::from(u32::MAX) {
            return Err(NodeError::Config("max_payload must be from 1 to 4294967295".into()));
        }
        if self.max_bulk > bulk::MOST_BYTES {
            return Err(NodeError::Config("max_bulk must be at most 1073741824".into()));
        }
        if self.rekey_records == 0 || self.rekey_records > MOST_REKEY_RECORDS {
            return Err(NodeError::Config("rekey_records must be from 1 to 16777216".into()));
        }
        if self.outstanding == 0 || self.outstanding > 65_536 {
            return Err(NodeError::Config("outstanding must be from 1 to 65536".into()));
        }
        Ok(())
    }
}

/// Gives the directory of the runtime: `$IPC_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/ipc`, else
/// `/run/ipc`. Empty variables count as unset.
pub fn runtime_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("IPC_RUNTIME_DIR")
        .or_else(|| set("XDG_RUNTIME_DIR").map(|dir| dir.join("ipc")))
        .unwrap_or_else(|| PathBuf::from("/run/ipc"))
}

/// Describes the state of a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelState {
    /// Process that runs it.
    pub pid: u32,
    /// Time since it started.
    pub uptime: Duration,
    /// Nodes connected.
    pub nodes: u32,
    /// Instances registered.
    pub services: u32,
    /// Channels introduced since the start.
    pub channels: u64,
}

/// A process's connection to the runtime. Clones share it; the last one to go closes it, with all
/// that was opened through it.
///
/// The runtime may die and come back: channels go on meanwhile, and what was registered is
/// registered again.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let node = ipc::Node::connect(&ipc::Config::default())?;
/// let echo = node.client(node.discover("echo")?)?;
/// let answer = echo.call(b"hello", Duration::from_secs(1))?;
/// assert_eq!(answer, b"hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Node {
    shared: Arc<Shared>,
}

/// What a node's handles keep alive.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) core: Arc<Core>,
    pub(crate) birth: Birth,
    warden: Option<std::thread::JoinHandle<()>>,
}

impl Node {
    /// Connects to the runtime and starts this node's warden thread.
    ///
    /// # Errors
    /// [`NodeError::NoRuntime`] when none answers; [`NodeError::Directory`] when its directory is
    /// not ours; [`NodeError::Version`]; [`NodeError::Config`].
    pub fn connect(config: &Config) -> Result<Node, NodeError> {
        Node::start(config, true)
    }

    /// Makes a node without a runtime, for who can reach none, as in a container: it calls services
    /// by the [addresses](crate::Address) of their sockets, and can do nothing else. Whatever needs
    /// the runtime looks for one, and fails with [`NodeError::NoRuntime`] where there is none.
    ///
    /// # Errors
    /// [`NodeError::Config`]; [`NodeError::System`] when descriptors or threads run out.
    pub fn unattached(config: &Config) -> Result<Node, NodeError> {
        Node::start(config, false)
    }

    fn start(config: &Config, attached: bool) -> Result<Node, NodeError> {
        config.validate()?;
        give_up_dumpable();
        let birth = Birth::now();
        let core = Core::connect(config, attached)?;
        let warden = warden::start(Arc::clone(&core))?;
        Ok(Node { shared: Arc::new(Shared { core, birth, warden: Some(warden) }) })
    }

    /// Gives this node's anonymous id: what others see as the source of its messages while it
    /// serves no name. Never 0.
    pub fn id(&self) -> ServiceId {
        self.shared.core.id()
    }

    /// Tells whether this process is a forked child of the one that connected.
    pub fn is_forked(&self) -> bool {
        !self.shared.birth.is_here()
    }

    /// Finds the id of a name that somebody serves now. It leads to whoever serves the name, also
    /// after restarts. An [address](crate::Address) may stand for the name: the id of a socket's
    /// path is this node's own, and means nothing to others.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `NOT_FOUND` when nobody does; [`NodeError::Name`];
    /// [`NodeError::Address`].
    pub fn discover(&self, name: &str) -> Result<ServiceId, NodeError> {
        let name = match Node::locate(name)? {
            Address::Name(name) => name,
            Address::Unix(path) => return self.shared.core.look_at(&path),
        };
        let request = Request::Discover { name: name.clone() };
        let id = found(&self.shared.core.request(&request, &[], Some(PATIENCE))?.0)?;
        self.shared.core.known.note_name(id, &name);
        Ok(id)
    }

    /// Waits until somebody serves a name (`None`: for ever), and gives its id. An address may
    /// stand for the name.
    ///
    /// # Errors
    /// [`NodeError::TimedOut`]; [`NodeError::Closed`] when interrupted; [`NodeError::Name`];
    /// [`NodeError::Address`].
    pub fn wait_service(
        &self,
        name: &str,
        timeout: Option<Duration>,
    ) -> Result<ServiceId, NodeError> {
        let name = match Node::locate(name)? {
            Address::Name(name) => name,
            Address::Unix(path) => return self.shared.core.wait_at(&path, timeout),
        };
        let request = Request::Wait { name: name.clone() };
        let id = found(&self.shared.core.request(&request, &[], timeout)?.0)?;
        self.shared.core.known.note_name(id, &name);
        Ok(id)
    }

    /// Lists what is registered, by instance.
    ///
    /// # Errors
    /// Those of a lost runtime.
    pub fn list(&self) -> Result<Vec<control::Entry>, NodeError> {
        let mut entries = Vec::new();
        let mut after = 0;
        loop {
            let request = Request::List { after };
            match self.shared.core.request(&request, &[], Some(PATIENCE))?.0 {
                Reply::Page { entries: page, next } => {
                    entries.extend(page);
                    if next == 0 {
                        return Ok(entries);
                    }
                    after = next;
                }
                _ => return Err(NodeError::Malformed("another answer than a page")),
            }
        }
    }

    /// Asks after the runtime's own state.
    ///
    /// # Errors
    /// Those of a lost runtime.
    pub fn state(&self) -> Result<KernelState, NodeError> {
        match self.shared.core.request(&Request::Ping, &[], Some(PATIENCE))?.0 {
            Reply::State { pid, uptime_ms, nodes, services, channels } => Ok(KernelState {
                pid,
                uptime: Duration::from_millis(uptime_ms),
                nodes,
                services,
                channels,
            }),
            _ => Err(NodeError::Malformed("another answer than the state")),
        }
    }

    /// Gives the runtime's supervisor a command, and returns its answer: JSON both, as in
    /// `docs/control.md`. For operators' programs.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `NOT_SUPPORTED` when this runtime supervises nothing, `ACCESS`
    /// when this process may not; [`NodeError::Config`] when the command is too long.
    pub fn command(&self, text: &str, timeout: Option<Duration>) -> Result<String, NodeError> {
        if text.len() > control::MAX_COMMAND {
            return Err(NodeError::Config("a command is at most 4000 bytes".into()));
        }
        let request = Request::Command { text: text.to_owned() };
        let (reply, fds) = self.shared.core.request(&request, &[], timeout)?;
        let (Reply::Answer { length }, Some(fd)) = (&reply, fds.into_iter().next()) else {
            return Err(refused(&reply));
        };
        let mut answer = String::new();
        let mut file = File::from(fd.vouched());
        file.rewind()
            .and_then(|()| file.take(*length).read_to_string(&mut answer))
            .map_err(|source| NodeError::System { what: "read the runtime's answer", source })?;
        Ok(answer)
    }

    /// Opens a channel to a name or an instance, or shares the one that this node has already.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `NOT_FOUND` when nobody serves it, `TIMED_OUT` or `PEER_DIED`
    /// when the service does not answer, `QUOTA` at a limit; [`NodeError::Forbidden`] when the
    /// rules do not allow it; [`NodeError::Forked`].
    pub fn client(&self, dest: ServiceId) -> Result<Client, NodeError> {
        if self.is_forked() {
            return Err(NodeError::Forked);
        }
        Client::open(&self.shared, dest)
    }

    /// Makes a server, which serves names once they are registered with it.
    ///
    /// # Errors
    /// [`NodeError::System`] when descriptors run out.
    pub fn server(&self) -> Result<Server, NodeError> {
        if self.is_forked() {
            return Err(NodeError::Forked);
        }
        let core = &self.shared.core;
        let hub = Hub::new(core.config.spin, Arc::clone(&core.interrupter))?;
        Ok(Server::new(Arc::clone(&self.shared), hub))
    }

    /// Gives what ends this node's blocked calls and loops, from a signal handler too.
    pub fn interrupter(&self) -> Arc<Interrupter> {
        Arc::clone(&self.shared.core.interrupter)
    }
}

impl Shared {
    pub(crate) fn register(
        &self,
        hub: &Arc<Hub>,
        name: &str,
        flags: u32,
    ) -> Result<Registration, NodeError> {
        control::check_name(name).map_err(NodeError::Name)?;
        self.core.register(hub, name, flags)
    }

    pub(crate) fn unregister(&self, hub: &Arc<Hub>, instance: ServiceId) -> Result<(), NodeError> {
        self.core.unregister(hub, instance)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let warden = self.warden.take();
        if self.birth.is_here() {
            self.core.close();
            if let Some(warden) = warden {
                let _ = warden.join();
            }
        } else {
            // A forked child has no such thread, and its copies of the descriptors do no harm.
            std::mem::forget((warden, Arc::clone(&self.core)));
        }
    }
}

fn found(reply: &Reply) -> Result<ServiceId, NodeError> {
    match reply {
        Reply::Found { name } => Ok(*name),
        Reply::Refused(status) => Err(NodeError::Refused(*status)),
        _ => Err(NodeError::Malformed("another answer than an id")),
    }
}

/// The status of a reply that was expected to be another.
pub(crate) fn refused(reply: &Reply) -> NodeError {
    match reply {
        Reply::Refused(status) => NodeError::Refused(*status),
        _ => NodeError::Malformed("an answer to another question"),
    }
}

/// What the runtime's refusal of a channel means to who was refused.
pub(crate) fn is_gone(error: &NodeError) -> bool {
    matches!(error, NodeError::Refused(Status::NOT_FOUND | Status::PEER_DIED))
}

/// In a sandboxed service, keeps every other process of its user out of this one's memory: no
/// ptrace, no `/proc/PID/mem`, no core. The launcher cannot, since exec makes a process dumpable
/// again. Others, who may want to be debugged, are left alone.
fn give_up_dumpable() {
    let is_service = std::env::var_os("IPC_SERVICE").is_some();
    if is_service && prctl::get_no_new_privs() == Ok(true) {
        // Fails in a sandbox stricter than ours only, which is somebody else's business.
        let _ = prctl::set_dumpable(false);
    }
}
