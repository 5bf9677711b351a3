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

mod grants;
mod memory;
mod terms;

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use memory::Map;
pub(crate) use memory::fits;
pub use terms::{Pages, RegionAccess, RegionError, RegionOptions, RegionRef};

use crate::{
    ServiceId,
    channel::Fate,
    clock,
    control::{Ticket, regions::Access},
    error::NodeError,
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
        /// What it was made with.
        options: RegionOptions,
        /// Proves to the next runtime that it is.
        ticket: Mutex<Ticket>,
        granted: Mutex<Vec<(ServiceId, Access)>>,
        /// Whether anybody may ever sleep for it: others, once it was granted, or threads here.
        is_awaited: AtomicBool,
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
/// This process has closed it.
const ENDED_HERE: u32 = 3;

/// What is needed to hold a region.
pub(crate) struct Parts {
    pub(crate) spin: Spin,
    pub(crate) interrupter: Arc<Interrupter>,
    pub(crate) core: Weak<Core>,
}

/// Memory of a region that the runtime does not know yet.
pub(crate) struct Unentered {
    map: Map,
    options: RegionOptions,
    pub(crate) fd: OwnedFd,
}

impl Unentered {
    pub(crate) fn create(size: u64, options: &RegionOptions) -> Result<Unentered, NodeError> {
        let (map, fd, _) = Map::create(size, options)?;
        Ok(Unentered { map, options: *options, fd })
    }

    pub(crate) fn enter(self, id: u64, ticket: Ticket, parts: Parts) -> Held {
        let Unentered { map, options, fd } = self;
        let share = Share::Own {
            options,
            ticket: Mutex::new(ticket),
            granted: Mutex::default(),
            is_awaited: AtomicBool::new(false),
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

    /// Ends the waits for it here, and says to others, of one of its own, that nothing comes any
    /// more. It stays mapped, and counted, until nobody here has it.
    fn close(&self) {
        if !self.map.is_here() || self.fate.swap(ENDED_HERE, Ordering::AcqRel) == ENDED_HERE {
            return;
        }
        futex::wake(&self.fate, false, i32::MAX);
        if let Share::Own { .. } = self.share {
            self.say_ended();
        }
    }

    fn is_closed(&self) -> bool {
        self.fate.load(Ordering::Acquire) == ENDED_HERE
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

    /// Whether it is not closed, and the grant by which it is mapped stands, as far as is known.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.fate.load(Ordering::Acquire), OPEN | ENDED_OWNER)
    }

    fn check(&self) -> Result<(), RegionError> {
        if !self.map.is_here() {
            return Err(NodeError::Forked.into());
        }
        match self.fate.load(Ordering::Relaxed) {
            ENDED_REVOKED => Err(RegionError::Revoked),
            ENDED_HERE => Err(RegionError::Closed),
            _ => Ok(()),
        }
    }

    /// Has each sync wake from now on; tells whether that is new, and all must be looked at again.
    fn is_first_to_sleep(&self) -> bool {
        match &self.share {
            Share::Own { is_awaited, .. } => {
                !is_awaited.load(Ordering::Relaxed) && !is_awaited.swap(true, Ordering::SeqCst)
            }
            Share::Peers { .. } => false,
        }
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
        self.close();
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
    /// is the `Acquire`). No system call as long as the region was never granted, nor waited for
    /// in this process; one after that.
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
        // SeqCst: before the look whether anybody sleeps, who looks at it after saying so.
        shared!(RegionEvent, head.event.fetch_add(1, Ordering::SeqCst));
        let may_be_awaited = match &self.held.share {
            Share::Own { is_awaited, .. } => is_awaited.load(Ordering::SeqCst),
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
    /// region; [`RegionError::Revoked`]; [`RegionError::Closed`]; [`RegionError::Canceled`] when
    /// interrupted; [`NodeError::Forked`].
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
            let event = head.event.load(Ordering::SeqCst);
            let version = head.version.load(Ordering::Acquire);
            if version != seen {
                return Ok(version);
            }
            if it.fate.load(Ordering::Acquire) != OPEN || it.owner_let_go() {
                it.check()?;
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
            if it.is_first_to_sleep() {
                continue;
            }
            let words = [
                Some(Word { at: &head.event, value: event, shared: true }),
                Some(Word { at: &it.fate, value: OPEN, shared: false }),
                Some(it.interrupter.word(turn)),
                over.map(|at| Word { at, value: 0, shared: false }),
            ];
            futex::wait_words(words, left);
        }
    }
}

impl Region {
    /// Closes it for all its clones: their waits end with [`RegionError::Closed`], and whatever is
    /// begun with them fails so. Others are told at once, of one of this process's own, that
    /// nothing will be published any more. Its memory stays mapped, and counts, until the last clone is
    /// dropped. What was published before is seen by who learns of the end. Closing again does
    /// nothing, and nor does it in a forked child.
    ///
    /// ```no_run
    /// # fn of(node: &ipc::Node) -> Result<(), ipc::RegionError> {
    /// let region = node.create_region(100, &ipc::RegionOptions::default())?;
    /// let waits = region.clone();
    /// let waiter = std::thread::spawn(move || waits.wait(0, None));
    /// region.close();
    /// assert!(matches!(waiter.join(), Ok(Err(ipc::RegionError::Closed))));
    /// # Ok(())
    /// # }
    /// ```
    pub fn close(&self) {
        self.held.close();
    }

    /// Tells whether this process has closed it.
    pub fn is_closed(&self) -> bool {
        self.held.is_closed()
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
