//! Connections that are used again: opened when needed, up to a bound, and closed when idle.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    ops::{Deref, DerefMut},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Clock, SystemClock};
use crate::{Client, Config, Node, NodeError};

/// Addresses of one pool.
const ADDRESSES: usize = 1024;
/// Threads that wait for a connection to one address.
const WAITERS: usize = 1024;

/// Opens connections, and tells whether one is well.
pub trait Connector {
    /// What it opens.
    type Connection;
    /// Why it could not.
    type Error;

    /// Opens a connection to an address.
    ///
    /// # Errors
    /// Whatever kept it from opening one.
    fn connect(&self, address: &str) -> Result<Self::Connection, Self::Error>;

    /// Asks the other end whether it answers.
    fn is_healthy(&self, connection: &mut Self::Connection) -> bool;
}

/// Opens channels, each with a node of its own, so that each has its own lanes and threads.
#[derive(Clone, Debug)]
pub struct Channels {
    /// Of the nodes.
    pub config: Config,
    /// How long a service may take to be found, and to answer a ping.
    pub patience: Duration,
}

/// A channel of a pool.
#[derive(Debug)]
pub struct Channel {
    client: Client,
    /// Behind the client: what is closed is told by the node.
    _node: Node,
}

impl Deref for Channel {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Connector for Channels {
    type Connection = Channel;
    type Error = NodeError;

    fn connect(&self, address: &str) -> Result<Channel, NodeError> {
        let node = Node::connect(&self.config)?;
        let client = node.client(node.wait_service(address, Some(self.patience))?)?;
        Ok(Channel { client, _node: node })
    }

    fn is_healthy(&self, channel: &mut Channel) -> bool {
        channel.client.ping(self.patience).is_ok()
    }
}

/// How many connections a pool keeps, and how long. The default: none kept open, 8 at most, idle
/// for a minute, looked at after 10 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSizes {
    /// Connections to an address in use that are kept open, though idle.
    pub min_size: usize,
    /// Connections to an address at a time, idle or not; at least 1.
    pub max_size: usize,
    /// How long one may be idle before [`tend`](ConnectionPool::tend) closes it.
    pub idle_timeout: Duration,
    /// How long one may be idle before it is asked whether it is well.
    pub health_interval: Duration,
}

impl Default for PoolSizes {
    fn default() -> PoolSizes {
        PoolSizes {
            min_size: 0,
            max_size: 8,
            idle_timeout: Duration::from_mins(1),
            health_interval: Duration::from_secs(10),
        }
    }
}

/// Why a pool gave no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError<E> {
    /// One could have been opened, and was not.
    #[error("no connection: {0}")]
    Connect(E),
    /// All are in use, and none came back in time.
    #[error("all connections are in use, and none came back in time")]
    TimedOut,
    /// Too many wait already, or too many addresses are in use: try later.
    #[error("too many wait for a connection, or too many addresses are in use")]
    Full,
}

/// Keeps connections per address and lends them out, to one at a time. Who waits for one gets it in
/// the order of asking. All threads of a process may share a pool; it holds its lock for a few
/// instructions, never while it connects or asks after health.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use ipc::civil::{Channels, ConnectionPool, PoolSizes};
/// use std::time::Duration;
///
/// let channels = Channels { config: ipc::Config::default(), patience: Duration::from_secs(1) };
/// let pool = ConnectionPool::new(channels, PoolSizes { max_size: 4, ..PoolSizes::default() });
/// let echo = pool.get("echo", Duration::from_secs(1))?;
/// let answer = echo.call(b"hello", Duration::from_secs(1))?;
/// # let _ = answer;
/// # Ok(())
/// # }
/// ```
pub struct ConnectionPool<K: Connector, C: Clock = SystemClock> {
    connector: K,
    sizes: PoolSizes,
    clock: C,
    connections: Mutex<HashMap<String, Rack<K::Connection>>>,
    changed: Condvar,
}

/// The connections to one address.
struct Rack<T> {
    /// The longest idle first.
    idle: VecDeque<Idle<T>>,
    /// Idle, lent, or being opened.
    open: usize,
    /// In the order of asking.
    waiting: VecDeque<u64>,
    next_ticket: u64,
}

struct Idle<T> {
    connection: T,
    since: Instant,
    checked: Instant,
}

impl<T> Default for Rack<T> {
    fn default() -> Rack<T> {
        Rack { idle: VecDeque::new(), open: 0, waiting: VecDeque::new(), next_ticket: 0 }
    }
}

/// What one who asks may do now.
enum Turn<T> {
    Take(Idle<T>),
    Open,
    Wait,
}

impl<K: Connector> ConnectionPool<K> {
    /// Begins without a connection.
    pub fn new(connector: K, sizes: PoolSizes) -> ConnectionPool<K> {
        ConnectionPool::with_clock(connector, sizes, SystemClock)
    }
}

impl<K: Connector, C: Clock> ConnectionPool<K, C> {
    /// The same, by another clock.
    pub fn with_clock(connector: K, sizes: PoolSizes, clock: C) -> ConnectionPool<K, C> {
        let max_size = sizes.max_size.max(1);
        let sizes = PoolSizes { max_size, min_size: sizes.min_size.min(max_size), ..sizes };
        let (connections, changed) = (Mutex::default(), Condvar::new());
        ConnectionPool { connector, sizes, clock, connections, changed }
    }

    /// Lends a connection to an address: one that is idle, or a new one while there is room, or the
    /// next that comes back within `timeout`. One that was idle for long is asked first whether it
    /// is well, and closed if not.
    ///
    /// # Errors
    /// [`PoolError::Connect`] when a new one could not be opened; [`PoolError::TimedOut`] when none
    /// came back in time; [`PoolError::Full`] when 1024 wait already, or 1024 addresses are in use.
    pub fn get(
        &self,
        address: &str,
        timeout: Duration,
    ) -> Result<Lent<'_, K, C>, PoolError<K::Error>> {
        // A time that no clock reaches stands for no limit.
        let until = self.clock.now().checked_add(timeout);
        let mut ticket = None;
        loop {
            match self.turn(address, &mut ticket, until)? {
                Turn::Open => return self.open(address).map(|it| self.lend(address, it)),
                Turn::Take(mut idle) => {
                    let idle_for = self.clock.now().saturating_duration_since(idle.checked);
                    if idle_for < self.sizes.health_interval
                        || self.connector.is_healthy(&mut idle.connection)
                    {
                        return Ok(self.lend(address, idle.connection));
                    }
                    drop(idle);
                    self.closed(address);
                }
                Turn::Wait => {}
            }
        }
    }

    /// Waits for this one's turn, or for the end of its time.
    fn turn(
        &self,
        address: &str,
        ticket: &mut Option<u64>,
        until: Option<Instant>,
    ) -> Result<Turn<K::Connection>, PoolError<K::Error>> {
        let mut table = self.lock();
        if table.len() >= ADDRESSES && !table.contains_key(address) {
            return Err(PoolError::Full);
        }
        let rack = table.entry(address.to_owned()).or_default();
        let is_first = rack.waiting.front().copied() == *ticket;
        if is_first && let Some(turn) = rack.take(self.sizes.max_size) {
            if ticket.take().is_some() {
                rack.waiting.pop_front();
            }
            // Whoever is next may have a turn at once.
            self.changed.notify_all();
            return Ok(turn);
        }
        let now = self.clock.now();
        if until.is_some_and(|until| until <= now) {
            rack.waiting.retain(|it| Some(*it) != *ticket);
            self.changed.notify_all();
            return Err(PoolError::TimedOut);
        }
        if ticket.is_none() {
            if rack.waiting.len() >= WAITERS {
                return Err(PoolError::Full);
            }
            rack.next_ticket += 1;
            rack.waiting.push_back(rack.next_ticket);
            *ticket = Some(rack.next_ticket);
        }
        let left = until.map(|until| until.saturating_duration_since(now));
        let waited = match left {
            Some(left) => self.changed.wait_timeout(table, left).map(|it| it.0).map_err(|_| ()),
            None => self.changed.wait(table).map_err(|_| ()),
        };
        drop(waited);
        Ok(Turn::Wait)
    }

    /// Opens a connection whose place is taken already.
    fn open(&self, address: &str) -> Result<K::Connection, PoolError<K::Error>> {
        // Should it panic, the place is free again.
        let place = Place { pool: self, address };
        let connection = self.connector.connect(address).map_err(PoolError::Connect)?;
        std::mem::forget(place);
        Ok(connection)
    }

    fn lend(&self, address: &str, connection: K::Connection) -> Lent<'_, K, C> {
        Lent { connection: Some(connection), address: address.to_owned(), pool: self }
    }

    /// Does what is due: closes what was idle for too long, beyond the smallest number; asks those
    /// that are idle for long whether they are well; and opens as many as are to be there. Call it
    /// now and then, from any thread. Nothing of a pool happens by itself.
    pub fn tend(&self) {
        let addresses: Vec<String> = self.lock().keys().cloned().collect();
        for address in addresses {
            drop(self.expired(&address));
            self.check_idle(&address);
            while self.wants_more(&address) {
                match self.open(&address) {
                    Ok(connection) => self.put_back(&address, connection),
                    Err(_) => break,
                }
            }
        }
        self.lock().retain(|_, rack| rack.open > 0 || !rack.waiting.is_empty());
        // Those whose time is over by a clock that was moved look at it.
        self.changed.notify_all();
    }

    /// Takes what was idle for too long off the rack.
    fn expired(&self, address: &str) -> Vec<Idle<K::Connection>> {
        let now = self.clock.now();
        let mut expired = Vec::new();
        let mut table = self.lock();
        let Some(rack) = table.get_mut(address) else { return expired };
        while rack.open > self.sizes.min_size
            && let Some(longest) = rack.idle.front()
            && now.saturating_duration_since(longest.since) >= self.sizes.idle_timeout
        {
            expired.extend(rack.idle.pop_front());
            rack.open -= 1;
        }
        expired
    }

    /// Asks those that were not looked at for long, one by one.
    fn check_idle(&self, address: &str) {
        let began = self.clock.now();
        loop {
            let due = |idle: &Idle<K::Connection>| {
                began.saturating_duration_since(idle.checked) >= self.sizes.health_interval
            };
            let found = self.lock().get_mut(address).and_then(|rack| {
                let index = rack.idle.iter().position(due)?;
                rack.idle.remove(index)
            });
            let Some(mut idle) = found else { return };
            if self.connector.is_healthy(&mut idle.connection) {
                let checked = self.clock.now().max(began);
                let mut table = self.lock();
                if let Some(rack) = table.get_mut(address) {
                    let at = rack.idle.partition_point(|other| other.since <= idle.since);
                    rack.idle.insert(at, Idle { checked, ..idle });
                }
                drop(table);
                self.changed.notify_all();
                if self.sizes.health_interval.is_zero() {
                    return;
                }
            } else {
                drop(idle);
                self.closed(address);
            }
        }
    }

    /// Takes a place for one more, where there are too few.
    fn wants_more(&self, address: &str) -> bool {
        let mut table = self.lock();
        let rack = table.get_mut(address).filter(|rack| rack.open < self.sizes.min_size);
        rack.map(|rack| rack.open += 1).is_some()
    }

    fn put_back(&self, address: &str, connection: K::Connection) {
        let since = self.clock.now();
        if let Some(rack) = self.lock().get_mut(address) {
            rack.idle.push_back(Idle { connection, since, checked: since });
        }
        self.changed.notify_all();
    }

    fn closed(&self, address: &str) {
        if let Some(rack) = self.lock().get_mut(address) {
            rack.open -= 1;
        }
        self.changed.notify_all();
    }

    /// Forgets an address at which nothing is open, and for which nobody waits.
    fn forget(&self, address: &str) {
        let mut table = self.lock();
        if table.get(address).is_some_and(|rack| rack.open == 0 && rack.waiting.is_empty()) {
            table.remove(address);
        }
    }

    /// Counts the connections to an address: idle ones, and all.
    pub fn len(&self, address: &str) -> (usize, usize) {
        self.lock().get(address).map_or((0, 0), |rack| (rack.idle.len(), rack.open))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Rack<K::Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Rack<T> {
    /// Takes the one that was idle last, which is warm, or a place for a new one.
    fn take(&mut self, max_size: usize) -> Option<Turn<T>> {
        if let Some(idle) = self.idle.pop_back() {
            return Some(Turn::Take(idle));
        }
        (self.open < max_size).then(|| {
            self.open += 1;
            Turn::Open
        })
    }
}

/// A place for a connection that is being opened.
struct Place<'a, K: Connector, C: Clock> {
    pool: &'a ConnectionPool<K, C>,
    address: &'a str,
}

impl<K: Connector, C: Clock> Drop for Place<'_, K, C> {
    fn drop(&mut self) {
        self.pool.closed(self.address);
        self.pool.forget(self.address);
    }
}

impl<K: Connector, C: Clock> fmt::Debug for ConnectionPool<K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.lock().len();
        f.debug_struct("ConnectionPool")
            .field("sizes", &self.sizes)
            .field("addresses", &addresses)
            .finish_non_exhaustive()
    }
}

/// A connection of a pool, which goes back when dropped.
pub struct Lent<'a, K: Connector, C: Clock = SystemClock> {
    /// Taken when dropped or discarded, and not before.
    connection: Option<K::Connection>,
    address: String,
    pool: &'a ConnectionPool<K, C>,
}

impl<K: Connector, C: Clock> Lent<'_, K, C> {
    /// Closes it, instead of giving it back: it does not work any more.
    pub fn discard(mut self) {
        if self.connection.take().is_some() {
            self.pool.closed(&self.address);
        }
    }
}

impl<K: Connector, C: Clock> Deref for Lent<'_, K, C> {
    type Target = K::Connection;

    fn deref(&self) -> &K::Connection {
        self.connection.as_ref().expect("it is there until dropped")
    }
}

impl<K: Connector, C: Clock> DerefMut for Lent<'_, K, C> {
    fn deref_mut(&mut self) -> &mut K::Connection {
        self.connection.as_mut().expect("it is there until dropped")
    }
}

impl<K: Connector, C: Clock> Drop for Lent<'_, K, C> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.put_back(&self.address, connection);
        }
    }
}

impl<K: Connector<Connection: fmt::Debug>, C: Clock> fmt::Debug for Lent<'_, K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lent").field(&self.connection).finish()
    }
}

#[cfg(test)]
mod tests;
