//! Closing what peers sent, so that nobody waits for it.
//!
//! The last `close` of a TCP socket with `SO_LINGER` waits for as long as that says; each `close`
//! of a file in a FUSE file system waits for its server; a socket takes along what lies unread in
//! it. Whoever sends such a descriptor, and keeps no other, chooses how long that is. So a
//! descriptor of a peer is a [`Stranger`] until somebody vouches for it, and a socket that a peer
//! writes to is a [`PeerSocket`]: what is not known to close at once goes to threads that may wait.
//!
//! ```text
//!   loop ── is it small sealed memory? ── yes ─▶ close
//!             └─ no ─▶ queue ─▶ up to 4 threads, begun for it, gone a second after the last
//! ```
//!
//! A large mapping of a peer's memory takes as long to be undone as there are pages that nobody
//! else has any more: `Closer::unmap` leaves it to the same threads.
//!
//! Nothing here is without bounds. Where [`FULL`] descriptors wait, nobody who sends more than are
//! ever due, or other than memory, keeps its connection: what it sent stays in its socket, and the
//! socket waits in place of them. Where [`CROWDED`] do, nobody new is let in.

use std::{
    collections::VecDeque,
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{Shutdown, shutdown},
    },
};

use super::packet;
use crate::{fork::Birth, lane::LaneFacts};

/// Threads that wait in `close`, at most.
const MOST_THREADS: usize = 4;
/// Descriptors that wait for a thread before their senders are cut.
pub const FULL: usize = 64;
/// Descriptors that wait for a thread before nobody new is let in.
pub const CROWDED: usize = 512;
/// How long a thread without work stays.
const STAYS: Duration = Duration::from_secs(1);
/// Bytes of memory that are given back in no time: more than the largest lane has.
const QUICK: u64 = 32 << 20;
/// Bytes of mappings that wait for a thread, at most; what is beyond is undone by who has it.
const MOST_MAPPED: u64 = 1 << 30;
/// Of its stack, in bytes: it calls `close`.
const STACK: usize = 64 * 1024;

/// Closes descriptors on threads of its own. It has none while nothing strange comes.
#[derive(Debug)]
pub struct Closer {
    birth: Birth,
    shop: Arc<Shop>,
    /// Given up to see what came where no other descriptor is to be had.
    spare: Mutex<Option<EventFd>>,
}

/// What the threads have of a closer: its queue, and no descriptor.
#[derive(Debug, Default)]
struct Shop {
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whether nothing more will come.
    is_over: bool,
    waiting: VecDeque<Burden>,
    /// Bytes of the mappings among those, and of those that threads have taken.
    mapped: u64,
    threads: usize,
    /// Of the threads those that wait for work.
    idle: usize,
}

/// What takes long to let go of.
enum Burden {
    Descriptor(#[allow(dead_code, reason = "it is dropped")] OwnedFd),
    Mapping(#[allow(dead_code, reason = "it is dropped")] Box<dyn Send>, u64),
}

impl fmt::Debug for Burden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Burden::Descriptor(_) => "Descriptor",
            Burden::Mapping(..) => "Mapping",
        })
    }
}

impl Closer {
    /// Makes one, without threads.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE` or `ENOMEM`: no descriptor is left.
    pub fn new() -> Result<Arc<Closer>, Errno> {
        Ok(Arc::new(Closer {
            birth: Birth::now(),
            shop: Arc::default(),
            spare: Mutex::new(Some(spare()?)),
        }))
    }

    /// Whether so much waits that a peer is cut for more of it.
    pub fn is_full(&self) -> bool {
        self.shop.queue().waiting.len() >= FULL
    }

    /// Whether so much waits that nobody new should be let in.
    pub fn is_crowded(&self) -> bool {
        self.shop.queue().waiting.len() >= CROWDED
    }

    fn take(self: &Arc<Self>, fd: OwnedFd) {
        if !self.birth.is_here() {
            // A forked child has no such threads, and its parent has the descriptor, too.
            return drop(fd);
        }
        let mut queue = self.shop.queue();
        queue.waiting.push_back(Burden::Descriptor(fd));
        self.shop.call(&mut queue);
    }

    /// Lets go of a mapping of so many bytes: at once where that takes no time, or where so much
    /// waits already, else by a thread. Not for a forked child, which has no such mapping.
    pub(crate) fn unmap(self: &Arc<Self>, mapping: impl Send + 'static, bytes: u64) {
        let mut queue = self.shop.queue();
        if bytes <= QUICK || queue.mapped + bytes > MOST_MAPPED {
            // Not under the lock, for which others would wait.
            drop(queue);
            return drop(mapping);
        }
        queue.mapped += bytes;
        queue.waiting.push_back(Burden::Mapping(Box::new(mapping), bytes));
        self.shop.call(&mut queue);
    }

    /// Makes room for one descriptor while `act` runs, in a process that has no other left.
    pub(super) fn with_room<R>(&self, act: impl FnOnce() -> R) -> R {
        let mut kept = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = None;
        let outcome = act();
        // Fails where what came is kept; then there is room again when that is closed.
        *kept = spare().ok();
        outcome
    }
}

impl Drop for Closer {
    /// Lets threads without work go, which stay for more of it. What waits is closed first.
    fn drop(&mut self) {
        // A forked child has none, and may find the queue locked for ever.
        if self.birth.is_here() {
            self.shop.queue().is_over = true;
            self.shop.work.notify_all();
        }
    }
}

impl Shop {
    /// There is work.
    fn call(self: &Arc<Self>, queue: &mut Queue) {
        if queue.idle > 0 {
            self.work.notify_one();
        } else {
            self.reinforce(queue);
        }
    }

    /// Starts a thread if something waits for one and there may be more. Where none can be had it
    /// waits on, for the next that comes.
    fn reinforce(self: &Arc<Self>, queue: &mut Queue) {
        if queue.waiting.is_empty() || queue.idle > 0 || queue.threads >= MOST_THREADS {
            return;
        }
        let shop = Arc::clone(self);
        let started = thread::Builder::new()
            .name("ipc-closer".into())
            .stack_size(STACK)
            .spawn(move || shop.run());
        queue.threads += usize::from(started.is_ok());
    }

    fn run(self: Arc<Self>) {
        let mut queue = self.queue();
        loop {
            if let Some(burden) = queue.waiting.pop_front() {
                // The rest must not stand behind one that takes long.
                self.reinforce(&mut queue);
                drop(queue);
                let mapped = if let Burden::Mapping(_, bytes) = burden { bytes } else { 0 };
                drop(burden);
                queue = self.queue();
                queue.mapped -= mapped;
                continue;
            }
            if queue.is_over {
                queue.threads -= 1;
                return;
            }
            queue.idle += 1;
            let waited = self.work.wait_timeout(queue, STAYS);
            let (woken, time) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            queue.idle -= 1;
            if time.timed_out() && queue.waiting.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spare() -> Result<EventFd, Errno> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC)
}

/// A descriptor that a peer sent, whatever it may be. Dropped, it is closed, and nobody waits.
pub struct Stranger {
    /// There until it is dropped or vouched for.
    fd: Option<OwnedFd>,
    closer: Arc<Closer>,
}

impl Stranger {
    /// Takes a descriptor that is to be closed like one of a peer.
    pub fn new(fd: OwnedFd, closer: &Arc<Closer>) -> Stranger {
        Stranger { fd: Some(fd), closer: Arc::clone(closer) }
    }

    /// Takes it for what closes at once wherever it is closed: the caller has looked at it, or has
    /// it from one that does not lie.
    ///
    /// # Panics
    /// Never: it is taken once, by value.
    pub fn vouched(mut self) -> OwnedFd {
        self.fd.take().expect("it is taken once, by value")
    }

    /// Whether it is known to close at once: sealed memory, and not much more of it than the
    /// largest lane has. There is nothing to flush, and nobody can make it larger.
    pub fn is_quick(&self) -> bool {
        is_quick(self.as_fd())
    }
}

fn is_quick(fd: BorrowedFd<'_>) -> bool {
    let facts = LaneFacts::inspect(fd);
    facts.sealed && facts.bytes.max(facts.allocated) <= QUICK
}

impl AsFd for Stranger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("there until it is dropped").as_fd()
    }
}

impl fmt::Debug for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stranger").field(&self.fd).finish()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        if is_quick(fd.as_fd()) {
            drop(fd);
        } else {
            self.closer.take(fd);
        }
    }
}

/// A packet socket of this process to which a peer writes. Dropped, it is hung up for all who have
/// it, and closed where nobody waits for what was left in it.
pub struct PeerSocket {
    /// There until it is dropped.
    fd: Option<OwnedFd>,
    closer: Arc<Closer>,
}

impl PeerSocket {
    /// Takes care of a socket.
    pub fn new(fd: OwnedFd, closer: &Arc<Closer>) -> PeerSocket {
        PeerSocket { fd: Some(fd), closer: Arc::clone(closer) }
    }

    /// Lets go of a socket with which somebody else goes on: it is not hung up. Who has it may
    /// have closed it already, so this may be the last reference.
    pub fn passed_on(mut self) {
        let Some(fd) = self.fd.take() else { return };
        if packet::is_silent(fd.as_fd()) {
            drop(fd);
        } else {
            self.closer.take(fd);
        }
    }
}

impl AsFd for PeerSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("there until it is dropped").as_fd()
    }
}

impl fmt::Debug for PeerSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerSocket").field(&self.fd).finish()
    }
}

impl Drop for PeerSocket {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        if !self.closer.birth.is_here() {
            // A forked child: its parent goes on with it.
            return;
        }
        // From here on nothing comes in; a child that this process forked may have a copy.
        let _ = shutdown(fd.as_raw_fd(), Shutdown::Both);
        if packet::holds_no_descriptor(fd.as_fd()) {
            drop(fd);
        } else {
            self.closer.take(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_thread_that_stays_for_more_keeps_nothing_of_a_closer() {
        let closer = Closer::new().expect("a descriptor");
        closer.take(File::open("/dev/null").expect("it is there").into());
        let shop = Arc::clone(&closer.shop);
        let until = std::time::Instant::now() + Duration::from_mins(1);
        while shop.queue().idle == 0 {
            assert!(std::time::Instant::now() < until, "nobody has closed it");
            thread::yield_now();
        }
        let closer = {
            let weak = Arc::downgrade(&closer);
            drop(closer);
            weak
        };
        // With it goes the descriptor that it has to spare.
        assert_eq!(closer.strong_count(), 0);
        while shop.queue().threads > 0 {
            assert!(std::time::Instant::now() < until, "it waits for ever");
            thread::yield_now();
        }
    }
}
