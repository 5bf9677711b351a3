//! Memory that processes share by name of a number: one writes, or all whom it lets, and others
//! read where it was written.
//!
//! A region is made by its owner, who grants it to services; they map it by its id. The first grant
//! decides for good whether others may write. Where they only read, the kernel makes sure of it;
//! where they may write, what stands in it is arbitrary bytes, and so is its version.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let node = ipc::Node::connect(&ipc::Config::default())?;
//! # let other = ipc::Node::connect(&ipc::Config::default())?;
//! use ipc::{RegionAccess, RegionOptions};
//!
//! let prices = node.create_region(1 << 20, &RegionOptions::default())?;
//! prices.grant(node.discover("trader")?, RegionAccess::Read)?;
//! prices.write_at(0, b"42")?;
//! prices.sync()?;
//!
//! // In the trader, which was told the id:
//! let prices = other.map_region(prices.id())?;
//! let version = prices.wait(0, None)?;
//! let mut price = [0; 2];
//! prices.read_at(0, &mut price)?;
//! # let _ = version;
//! # Ok(())
//! # }
//! ```
//! `docs/regions.md` has what is guaranteed, and what not.

mod memory;
mod terms;

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

pub(crate) use memory::fits;
use memory::{Map, seal};
pub use terms::{Pages, RegionAccess, RegionError, RegionOptions, RegionRef};

use crate::{
    ServiceId,
    channel::Fate,
    clock,
    control::{Ticket, regions::Access},
    error::{NodeError, Status},
    failpoint::shared,
    interrupt::Interrupter,
    link::{time_left, until},
    node::{Core, Shared},
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    wait::{
        futex::{self, Word},
        spin::Spin,
    },
};

/// Grants of one region, as the runtime bounds them.
const GRANTS: usize = 1024;
/// How long a wait polls before it sleeps, where the node may spin: about what a wake-up costs.
const SPIN_NS: u64 = 25_000;

/// A region of shared memory, this process's own or another's. Clones share it; the last one to go
/// unmaps it, and ends it if it is this process's own.
#[derive(Clone, Debug)]
pub struct Region {
    pub(crate) held: Arc<Held>,
    /// Behind it: what is let go of is told by the node.
    pub(crate) node: Arc<Shared>,
}

/// One region of this node, mapped.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) id: u64,
    map: Map,
    fd: OwnedFd,
    share: Share,
    /// Why nothing comes any more: `ENDED_*`. Sleepers look at it.
    fate: AtomicU32,
    spin: Spin,
    interrupter: Arc<Interrupter>,
    pub(crate) core: Weak<Core>,
}

/// Whose it is.
#[derive(Debug)]
enum Share {
    Own {
        /// Proves to the next runtime that it is.
        ticket: Mutex<Ticket>,
        granted: Mutex<Vec<(ServiceId, Access)>>,
        /// Whether anybody else may ever have mapped it, and sleep.
        is_shared: AtomicBool,
    },
    Peers {
        writable: bool,
        owner: ServiceId,
        /// Whether the end of the owner's process is watched here.
        is_watched: bool,
    },
}

const OPEN: u32 = 0;
const ENDED_REVOKED: u32 = 1;
const ENDED_OWNER: u32 = 2;

/// What is needed to hold a region.
pub(crate) struct Parts {
    pub(crate) spin: Spin,
    pub(crate) interrupter: Arc<Interrupter>,
    pub(crate) core: Weak<Core>,
}

/// Memory of a region that the runtime does not know yet.
pub(crate) struct Unentered {
    map: Map,
    pub(crate) fd: OwnedFd,
}

impl Unentered {
    pub(crate) fn create(size: u64, options: &RegionOptions) -> Result<Unentered, NodeError> {
        let (map, fd, _) = Map::create(size, options)?;
        Ok(Unentered { map, fd })
    }

    pub(crate) fn enter(self, id: u64, ticket: Ticket, parts: Parts) -> Held {
        let Unentered { map, fd } = self;
        let share = Share::Own {
            ticket: Mutex::new(ticket),
            granted: Mutex::default(),
            is_shared: AtomicBool::new(false),
        };
        Held::new(id, map, fd, share, parts)
    }
}

impl Held {
    fn new(id: u64, map: Map, fd: OwnedFd, share: Share, parts: Parts) -> Held {
        let Parts { spin, interrupter, core } = parts;
        Held { id, map, fd, share, fate: AtomicU32::new(OPEN), spin, interrupter, core }
    }

    /// Maps a region of another process.
    pub(crate) fn map(
        id: u64,
        fd: OwnedFd,
        size: u64,
        (writable, owner, is_watched): (bool, ServiceId, bool),
        parts: Parts,
    ) -> Result<Held, NodeError> {
        let map = Map::of_peer(fd.as_fd(), size, writable)?;
        Ok(Held::new(id, map, fd, Share::Peers { writable, owner, is_watched }, parts))
    }

    /// Its memory, for a runtime that knows nothing of it.
    pub(crate) fn memory(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn size(&self) -> u64 {
        self.map.size() as u64
    }

    /// What an owner tells a runtime that knows nothing of it: the ticket, and the grants.
    pub(crate) fn own(&self) -> Option<(Ticket, Vec<(ServiceId, Access)>)> {
        match &self.share {
            Share::Own { ticket, granted, .. } => Some((*lock(ticket), lock(granted).clone())),
            Share::Peers { .. } => None,
        }
    }

    /// Ends the waits for it: its owner is gone, or the grant was taken back.
    pub(crate) fn end(&self, fate: Fate) {
        let fate = if fate == Fate::Closed { ENDED_REVOKED } else { ENDED_OWNER };
        // A grant that was taken back stays so when the owner goes.
        let _ = self.fate.compare_exchange(OPEN, fate, Ordering::AcqRel, Ordering::Acquire);
        futex::wake(&self.fate, false, i32::MAX);
    }

    /// The runtime says that it has ended.
    pub(crate) fn hear_ended(&self, revoked: bool) {
        match &self.share {
            // Its connection may have been cut while it lives. Its process's end will show.
            Share::Peers { is_watched: true, .. } if !revoked && !self.owner_let_go() => {}
            _ => self.end(if revoked { Fate::Closed } else { Fate::Died }),
        }
    }

    fn owner_let_go(&self) -> bool {
        self.map.head().ended.load(Ordering::Acquire) != 0
    }

    /// Whether the grant by which it is mapped stands, as far as is known.
    pub(crate) fn is_held(&self) -> bool {
        self.fate.load(Ordering::Acquire) != ENDED_REVOKED
    }

    fn check(&self) -> Result<(), RegionError> {
        if !self.map.is_here() {
            return Err(NodeError::Forked.into());
        }
        if self.fate.load(Ordering::Relaxed) == ENDED_REVOKED {
            return Err(RegionError::Revoked);
        }
        Ok(())
    }

    fn is_writable(&self) -> bool {
        match &self.share {
            Share::Own { .. } => true,
            Share::Peers { writable, .. } => *writable,
        }
    }

    /// Says that nothing will be published any more.
    fn say_ended(&self) {
        let head = self.map.head();
        shared!(RegionEnded, head.ended.store(1, Ordering::Release));
        shared!(RegionEvent, head.event.fetch_add(1, Ordering::Release));
        futex::wake(&head.event, true, i32::MAX);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.map.is_here() {
            return;
        }
        if let Share::Own { .. } = self.share {
            self.say_ended();
        }
        if let Some(core) = self.core.upgrade() {
            core.say_unmapped(self.id);
        }
    }
}

impl Region {
    /// Gives its id, never used again, by which others map it once they are granted it.
    pub fn id(&self) -> u64 {
        self.held.id
    }

    /// Gives its size in bytes.
    pub fn size(&self) -> usize {
        self.held.map.size()
    }

    /// Tells whether this process made it.
    pub fn is_own(&self) -> bool {
        matches!(self.held.share, Share::Own { .. })
    }

    /// Tells whether this process may write it.
    pub fn is_writable(&self) -> bool {
        self.held.is_writable()
    }

    /// Gives the owner's id, as the runtime knew it when this process mapped the region;
    /// [`ServiceId::NONE`] for one of its own.
    pub fn owner(&self) -> ServiceId {
        match &self.held.share {
            Share::Own { .. } => ServiceId::NONE,
            Share::Peers { owner, .. } => *owner,
        }
    }

    /// Says what kind of pages it has; of another's region, as that one says.
    pub fn pages(&self) -> Pages {
        self.held.map.pages()
    }

    /// Gives the address of its data, page-aligned, valid as long as this region is mapped. For
    /// those who keep what Rust cannot check: others may be writing there at any time, so no
    /// reference may be made of it; and it is writable only if [`is_writable`](Self::is_writable).
    pub fn address(&self) -> NonNull<u8> {
        self.held.map.data()
    }

    /// Copies private bytes into the region, from `offset` on. Others may see them at once, in any
    /// order, and only a [`sync`](Self::sync) tells them.
    ///
    /// # Errors
    /// [`RegionError::Range`], [`RegionError::ReadOnly`], [`RegionError::Revoked`];
    /// [`NodeError::Forked`].
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<(), RegionError> {
        self.check(offset, bytes.len())?;
        if !self.held.is_writable() {
            return Err(RegionError::ReadOnly);
        }
        shared!(RegionBytes, self.held.map.copy_in(offset, bytes));
        Ok(())
    }

    /// Copies bytes out of the region, from `offset` on. Each byte is read once; while somebody
    /// writes there, some may be old and some new.
    ///
    /// # Errors
    /// [`RegionError::Range`], [`RegionError::Revoked`]; [`NodeError::Forked`].
    pub fn read_at(&self, offset: usize, target: &mut [u8]) -> Result<(), RegionError> {
        self.check(offset, target.len())?;
        self.held.map.copy_out(offset, target);
        Ok(())
    }

    /// Appends a copy of `length` bytes from `offset` on to a buffer.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    pub fn copy_to(
        &self,
        offset: usize,
        length: usize,
        target: &mut Vec<u8>,
    ) -> Result<(), RegionError> {
        self.check(offset, length)?;
        let before = target.len();
        target.resize(before + length, 0);
        self.held.map.copy_out(offset, &mut target[before..]);
        Ok(())
    }

    fn check(&self, offset: usize, length: usize) -> Result<(), RegionError> {
        self.held.check()?;
        let size = self.size();
        if self.held.map.has(offset, length) {
            Ok(())
        } else {
            Err(RegionError::Range { offset, length, size })
        }
    }

    /// Loads the word at a multiple of 8, with `Acquire`: who sees what was stored by
    /// [`store`](Self::store) sees all that was written before. It is never half of one.
    ///
    /// # Errors
    /// [`RegionError::Range`], also for other offsets; [`RegionError::Revoked`];
    /// [`NodeError::Forked`].
    pub fn load(&self, offset: usize) -> Result<u64, RegionError> {
        Ok(self.word(offset)?.load(Ordering::Acquire))
    }

    /// Stores a word at a multiple of 8, with `Release`.
    ///
    /// # Errors
    /// As for [`load`](Self::load); [`RegionError::ReadOnly`].
    pub fn store(&self, offset: usize, word: u64) -> Result<(), RegionError> {
        let place = self.word(offset)?;
        if !self.held.is_writable() {
            return Err(RegionError::ReadOnly);
        }
        shared!(RegionWord, place.store(word, Ordering::Release));
        Ok(())
    }

    fn word(&self, offset: usize) -> Result<&AtomicU64, RegionError> {
        self.held.check()?;
        let size = self.size();
        self.held.map.word(offset).ok_or(RegionError::Range { offset, length: 8, size })
    }

    /// Publishes what was written: the version grows by one, and whoever waits for it wakes. Who
    /// sees the new version sees all that was written before (`Release`; [`version`](Self::version)
    /// is the `Acquire`). No system call as long as the region was never granted, one after that.
    ///
    /// Returns the new version.
    ///
    /// # Errors
    /// [`RegionError::ReadOnly`], [`RegionError::Revoked`]; [`NodeError::Forked`].
    pub fn sync(&self) -> Result<u64, RegionError> {
        self.held.check()?;
        if !self.held.is_writable() {
            return Err(RegionError::ReadOnly);
        }
        let head = self.held.map.head();
        let version = shared!(RegionVersion, head.version.fetch_add(1, Ordering::Release)) + 1;
        shared!(RegionEvent, head.event.fetch_add(1, Ordering::Release));
        let may_be_awaited = match &self.held.share {
            Share::Own { is_shared, .. } => is_shared.load(Ordering::Acquire),
            Share::Peers { .. } => true,
        };
        if may_be_awaited {
            futex::wake(&head.event, true, i32::MAX);
        }
        Ok(version)
    }

    /// Gives the version: how often it was synced, from 0. What was written before that is seen.
    pub fn version(&self) -> u64 {
        if self.held.map.is_here() {
            self.held.map.head().version.load(Ordering::Acquire)
        } else {
            0
        }
    }

    /// Waits until the version is another than `seen` (`None`: for ever), and gives it. A version
    /// that was published before the owner went is still given.
    ///
    /// # Errors
    /// [`RegionError::TimedOut`]; [`RegionError::OwnerGone`] when the owner died or let go of the
    /// region; [`RegionError::Revoked`]; [`RegionError::Canceled`] when interrupted;
    /// [`NodeError::Forked`].
    pub fn wait(&self, seen: u64, timeout: Option<Duration>) -> Result<u64, RegionError> {
        self.wait_or(seen, timeout, None)
    }

    /// As [`wait`](Self::wait), but ends, as interrupted, when the word `over` is not 0 any more.
    pub(crate) fn wait_or(
        &self,
        seen: u64,
        timeout: Option<Duration>,
        over: Option<&AtomicU32>,
    ) -> Result<u64, RegionError> {
        let it = &*self.held;
        let head = it.map.head();
        let until = until(timeout);
        let turn = it.interrupter.turn();
        let mut polls_until = polls_until(it.spin);
        loop {
            it.check()?;
            let event = head.event.load(Ordering::Acquire);
            let version = head.version.load(Ordering::Acquire);
            if version != seen {
                return Ok(version);
            }
            if it.fate.load(Ordering::Acquire) != OPEN || it.owner_let_go() {
                // The last it did may have been to publish.
                let version = self.version();
                return if version == seen { Err(RegionError::OwnerGone) } else { Ok(version) };
            }
            let is_over = over.is_some_and(|over| over.load(Ordering::SeqCst) != 0);
            if is_over || it.interrupter.turn() != turn {
                return Err(RegionError::Canceled);
            }
            let left = time_left(until).map_err(|_| RegionError::TimedOut)?;
            if clock::now_ns() < polls_until {
                std::hint::spin_loop();
                continue;
            }
            // Once asleep, polling has been tried.
            polls_until = 0;
            let words = [
                Some(Word { at: &head.event, value: event, shared: true }),
                Some(Word { at: &it.fate, value: OPEN, shared: false }),
                Some(it.interrupter.word(turn)),
                over.map(|at| Word { at, value: 0, shared: false }),
            ];
            futex::wait_words(words, left);
        }
    }

    /// Lets a service map this region: an instance, whoever serves a name, or a node by its
    /// anonymous id. Where the rules do not let it map regions of this process, it still cannot.
    ///
    /// The first grant decides for good whether those who map the region may write it.
    ///
    /// # Errors
    /// [`RegionError::NotOwner`]; [`NodeError::Config`] when it is granted for the other access
    /// already; [`NodeError::Refused`] with `NOT_FOUND` when it is nobody's id, `QUOTA` after 1024
    /// grants; those of a lost runtime.
    pub fn grant(&self, to: ServiceId, access: RegionAccess) -> Result<(), RegionError> {
        let Share::Own { granted, is_shared, .. } = &self.held.share else {
            return Err(RegionError::NotOwner);
        };
        let access = match access {
            RegionAccess::Read => Access::Read,
            RegionAccess::Write => Access::Write,
        };
        seal(&self.held.fd, access)?;
        // Before anybody can have mapped it: from here on every sync wakes.
        is_shared.store(true, Ordering::Release);
        self.node.core.grant(&self.held, to, access)?;
        let mut granted = lock(granted);
        if !granted.iter().any(|(id, _)| *id == to) && granted.len() < GRANTS {
            granted.push((to, access));
        }
        Ok(())
    }

    /// Takes a grant back. Whoever mapped the region by it is told, its waits end, and it cannot
    /// map the region again. What it has mapped cannot be taken away from it: see
    /// [`rotate`](Self::rotate).
    ///
    /// # Errors
    /// [`RegionError::NotOwner`]; those of a lost runtime.
    pub fn revoke(&self, from: ServiceId) -> Result<(), RegionError> {
        let Share::Own { granted, .. } = &self.held.share else {
            return Err(RegionError::NotOwner);
        };
        lock(granted).retain(|(id, _)| *id != from);
        Ok(self.node.core.grant(&self.held, from, Access::None)?)
    }

    /// Makes a region with the same contents and the same grants, on other memory and with another
    /// id. Who had a grant of this one that was taken back sees nothing of the new one.
    ///
    /// # Errors
    /// As for [`Node::create_region`](crate::Node::create_region) and [`grant`](Self::grant).
    pub fn rotate(&self) -> Result<Region, RegionError> {
        let Share::Own { granted, .. } = &self.held.share else {
            return Err(RegionError::NotOwner);
        };
        let options =
            RegionOptions { huge_pages: self.pages() != Pages::Small, ..RegionOptions::default() };
        let held = self.node.core.create_region(self.held.size(), &options)?;
        let fresh = Region { held, node: Arc::clone(&self.node) };
        let mut part = vec![0; self.size().min(1 << 20)];
        for offset in (0..self.size()).step_by(1 << 20) {
            let length = part.len().min(self.size() - offset);
            self.held.map.copy_out(offset, &mut part[..length]);
            fresh.held.map.copy_in(offset, &part[..length]);
        }
        let granted = lock(granted).clone();
        for (to, access) in granted {
            let access =
                if access == Access::Write { RegionAccess::Write } else { RegionAccess::Read };
            match fresh.grant(to, access) {
                // Whoever it was, it is gone.
                Err(RegionError::Node(NodeError::Refused(Status::NOT_FOUND))) => {}
                other => other?,
            }
        }
        fresh.sync()?;
        Ok(fresh)
    }
}

/// Until when a wait polls.
fn polls_until(spin: Spin) -> u64 {
    let ns = match spin {
        Spin::Never => return 0,
        Spin::Always => return u64::MAX,
        Spin::Learned => SPIN_NS,
        Spin::UpTo(limit) => u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX),
    };
    clock::now_ns().saturating_add(ns)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Region {
    /// Grants this region to a service and names it for a message to it, so that whoever gets the
    /// message can map it at once.
    ///
    /// # Errors
    /// As for [`grant`](Self::grant).
    pub fn pass_to(&self, to: ServiceId, access: RegionAccess) -> Result<RegionRef, RegionError> {
        self.grant(to, access)?;
        Ok(RegionRef { id: self.id(), size: self.size() as u64 })
    }
}
