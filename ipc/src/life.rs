//! Life words: how the kernel itself says that a process died, before its memory is torn down.
//!
//! Each own lane has a life word holding the thread id of a *keeper*, a thread that stays as long
//! as the process does, and a node in private memory through which the keeper's robust list runs.
//! When the keeper dies, with its process or alone, the kernel sets `FUTEX_OWNER_DIED` in each word
//! on the list and wakes one waiter of each. See `get_robust_list(2)`.

#![allow(unsafe_code)] // the robust list is a linked list that the kernel walks

use std::{
    ptr::{self, NonNull},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::Thread,
};

use nix::errno::Errno;

use crate::{
    error::NodeError,
    failpoint::shared,
    lane::{Lane, NODE_TO_LIFE},
    layout::{LIFE_CLOSED, LIFE_DIED, LIFE_WAITERS},
    sync::Ordering,
    wait::{event, futex},
};

/// The kernel walks at most 2048 nodes of a list; the rest would die unnoticed.
const MOST_NODES: usize = 2000;

/// What a life word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Alive,
    /// Closed in order by its owner.
    Closed,
    /// Its owner died.
    Died,
}

impl Life {
    /// Reads the life word of a lane.
    #[inline]
    pub(crate) fn of(lane: &Lane) -> Life {
        Life::from_word(lane.header().life.load(Ordering::Acquire))
    }

    /// Reads a life word's value.
    #[inline]
    pub(crate) fn from_word(word: u32) -> Life {
        if word & LIFE_DIED != 0 {
            Life::Died
        } else if word == LIFE_CLOSED {
            Life::Closed
        } else {
            Life::Alive
        }
    }
}

/// What the robust list runs through: the kernel knows the first member, the second is ours.
#[repr(C)]
#[derive(Debug)]
struct Node {
    next: *mut Node,
    previous: *mut Node,
}

/// `struct robust_list_head`, with the second link of its first member behind it.
#[repr(C)]
#[derive(Debug)]
struct ListHead {
    first: *mut Node,
    futex_offset: isize,
    pending: *mut Node,
}

/// A thread whose life stands for the process's, and the lanes that say so.
#[derive(Debug)]
struct Keeper {
    thread: u32,
    head: NonNull<ListHead>,
    count: usize,
    /// To be woken when the roll is no more; of one that does nothing but keep.
    hired: Option<Thread>,
}

// SAFETY: `head` points at an allocation that only the holder of the roll's lock writes, that the
// kernel reads when the keeper's thread ends, and that is freed when both have done with it.
unsafe impl Send for Keeper {}

/// Lists of keepers whose rolls are gone: the kernel reads each once more, as its thread ends. So
/// each stays until that thread is no more, and whoever keeps, or lets go of a roll, looks.
static LEFT: Mutex<Vec<Left>> = Mutex::new(Vec::new());

/// An empty list that the kernel has yet to read, and the thread at whose end it does.
#[derive(Debug)]
struct Left {
    thread: u32,
    head: NonNull<ListHead>,
}

// SAFETY: as for `Keeper`; nobody but the kernel has `head`.
unsafe impl Send for Left {}

impl Left {
    fn is_read(&self) -> bool {
        has_ended(self.thread)
    }

    /// Frees a list that is read.
    fn free(self) {
        // SAFETY: made by `keep` from a box; the kernel has read it for the last time before the
        // thread was no more, and nobody here has it any more.
        drop(unsafe { Box::from_raw(self.head.as_ptr()) });
    }
}

fn left() -> MutexGuard<'static, Vec<Left>> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees the lists that were left, and are read by now.
fn sweep(left: &mut Vec<Left>) {
    left.extract_if(.., |it| it.is_read()).for_each(Left::free);
}

/// The lanes of a process, by keeper.
#[derive(Debug, Default)]
pub(crate) struct Roll {
    keepers: Mutex<Vec<Keeper>>,
}

impl Roll {
    /// Makes the calling thread a keeper. It must not end while the roll has entries, or they are
    /// marked dead.
    ///
    /// # Errors
    /// [`NodeError::System`] when the kernel refuses the list.
    pub(crate) fn keep(&self) -> Result<(), NodeError> {
        self.keep_as(None)
    }

    fn keep_as(&self, hired: Option<Thread>) -> Result<(), NodeError> {
        // A child of a fork finds it locked for ever, if it was just then.
        if let Ok(mut left) = LEFT.try_lock() {
            sweep(&mut left);
        }
        // The kernel reads it when this thread ends, whenever that is.
        let head = Box::leak(Box::new(ListHead {
            first: ptr::null_mut(),
            futex_offset: NODE_TO_LIFE as isize,
            pending: ptr::null_mut(),
        }));
        let head = NonNull::from(head);
        // SAFETY: an empty list is one that points at itself.
        unsafe { (*head.as_ptr()).first = head.as_ptr().cast() };
        // SAFETY: replaces this thread's list, which is empty: the C library's is for robust
        // mutexes, and a keeper locks none. The head stays valid for ever.
        let result = unsafe {
            libc::syscall(libc::SYS_set_robust_list, head.as_ptr(), size_of::<ListHead>())
        };
        Errno::result(result).map_err(NodeError::system("set_robust_list"))?;
        let thread = nix::unistd::gettid().as_raw() as u32;
        self.lock().push(Keeper { thread, head, count: 0, hired });
        Ok(())
    }

    /// Ends the calling keeper's duty, at the end of its thread. While lanes are still entered with
    /// it the list stays, and the end of the thread marks them dead.
    pub(crate) fn retire(&self) {
        let thread = nix::unistd::gettid().as_raw() as u32;
        let mut keepers = self.lock();
        let idle = |keeper: &Keeper| keeper.thread == thread && keeper.count == 0;
        let Some(index) = keepers.iter().position(idle) else { return };
        // SAFETY: no list, of the size that the kernel knows: it reads none when the thread ends.
        let result = unsafe {
            libc::syscall(libc::SYS_set_robust_list, ptr::null::<ListHead>(), size_of::<ListHead>())
        };
        if result == 0 {
            let head = keepers.swap_remove(index).head;
            // SAFETY: made by `keep` from a box; neither the kernel, told just now, nor anybody
            // here, since the keeper is off the roll, has it any more.
            drop(unsafe { Box::from_raw(head.as_ptr()) });
        }
    }

    /// Enters a fresh own lane: from now on its life word tells of this process's death.
    ///
    /// # Errors
    /// [`NodeError::System`] when another keeper is needed and cannot be had.
    pub(crate) fn enter(self: &Arc<Self>, lane: &Arc<Lane>) -> Result<Entry, NodeError> {
        if self.lock().iter().all(|keeper| keeper.count >= MOST_NODES) {
            self.hire()?;
        }
        let node = lane.robust_node().expect("an own lane has one").cast::<Node>();
        let mut keepers = self.lock();
        let keeper =
            keepers.iter_mut().find(|keeper| keeper.count < MOST_NODES).ok_or(NodeError::Closed)?;
        let alive = keeper.thread | LIFE_WAITERS;
        shared!(LifeEntered, lane.header().life.store(alive, Ordering::Release));
        shared!(LifeLinked, keeper.link(node));
        Ok(Entry { roll: Arc::clone(self), lane: Arc::clone(lane), keeper: keeper.thread })
    }

    /// Starts a thread that does nothing but keep, and ends when the roll is no more.
    fn hire(self: &Arc<Self>) -> Result<(), NodeError> {
        let roll = Arc::clone(self);
        let (tell, told) = mpsc::channel();
        std::thread::Builder::new()
            .name("ipc-keeper".into())
            .stack_size(32 * 1024)
            .spawn(move || {
                let kept = roll.keep_as(Some(std::thread::current()));
                let keeps = kept.is_ok();
                // Whoever hired it has the roll, too, until it is told.
                let kept_for = Arc::downgrade(&roll);
                drop(roll);
                let _ = tell.send(kept);
                drop(tell);
                while keeps && kept_for.strong_count() > 0 {
                    std::thread::park();
                }
            })
            .map_err(|source| NodeError::System { what: "start a keeper", source })?;
        told.recv().unwrap_or(Err(NodeError::Closed))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Keeper>> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Roll {
    /// Frees the lists, or leaves them until the kernel has read them. None has a lane now: an
    /// entry holds the roll.
    fn drop(&mut self) {
        let keepers = std::mem::take(&mut *self.lock());
        keepers.iter().filter_map(|keeper| keeper.hired.as_ref()).for_each(Thread::unpark);
        let lists = keepers.into_iter().map(|Keeper { thread, head, .. }| Left { thread, head });
        // Where this is a child of a fork no keeper is a thread of it, and nothing is locked.
        let (read, unread): (Vec<_>, Vec<_>) = lists.partition(Left::is_read);
        read.into_iter().for_each(Left::free);
        if !unread.is_empty() {
            let mut left = left();
            left.extend(unread);
            sweep(&mut left);
        }
    }
}

/// Tells whether a thread of this process is no more.
fn has_ended(thread: u32) -> bool {
    // SAFETY: signal 0 is none.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, 0) };
    Errno::result(result) == Err(Errno::ESRCH)
}

impl Keeper {
    /// Links a node in at the front. One pointer store makes it visible, so that the list is whole
    /// at every instant at which the process may die.
    fn link(&mut self, node: NonNull<Node>) {
        let head = self.head.as_ptr();
        let node = node.as_ptr();
        // SAFETY: `node` is the private page before a live own lane, not linked yet; the head and
        // every linked node are alive, since an `Entry` unlinks its node before its lane goes.
        // Volatile: the kernel reads these without a call that the compiler knows of.
        unsafe {
            let first = (*head).first;
            ptr::write_volatile(&raw mut (*node).previous, head.cast());
            ptr::write_volatile(&raw mut (*node).next, first);
            ptr::write_volatile(&raw mut (*head).first, node);
            if first != head.cast() {
                (*first).previous = node;
            }
        }
        self.count += 1;
    }

    fn unlink(&mut self, node: NonNull<Node>) {
        let head = self.head.as_ptr().cast::<Node>();
        let node = node.as_ptr();
        // SAFETY: as for `link`; `node` is linked. `next` is the first member of both kinds, so
        // the store below is right for the head, too.
        unsafe {
            let (next, previous) = ((*node).next, (*node).previous);
            ptr::write_volatile(previous.cast::<*mut Node>(), next);
            if next != head {
                (*next).previous = previous;
            }
        }
        self.count -= 1;
    }
}

/// A lane's place on the roll. Dropping it closes the lane in order: the life word says so, and
/// its waiters wake.
#[derive(Debug)]
pub(crate) struct Entry {
    roll: Arc<Roll>,
    lane: Arc<Lane>,
    keeper: u32,
}

impl Entry {
    /// Says in the life word that the channel is closed, and wakes whoever sleeps on it.
    pub(crate) fn close(&self) {
        let header = self.lane.header();
        let before = shared!(LifeClosed, header.life.swap(LIFE_CLOSED, Ordering::AcqRel));
        if before != LIFE_CLOSED {
            event::signal(header);
            futex::wake(&header.life, true, i32::MAX);
            futex::wake(&header.event, true, i32::MAX);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let node = self.lane.robust_node().expect("an own lane has one").cast::<Node>();
        {
            let mut keepers = self.roll.lock();
            if let Some(keeper) = keepers.iter_mut().find(|keeper| keeper.thread == self.keeper) {
                keeper.unlink(node);
            }
        }
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lane::{create, map_peer},
        layout::Geometry,
    };
    use std::os::fd::AsFd;

    #[test]
    fn the_end_of_the_keeper_marks_every_lane_still_on_the_roll() {
        let (tell, told) = mpsc::channel();
        let keeper = std::thread::spawn(move || {
            let roll = Arc::new(Roll::default());
            roll.keep().expect("a robust list");
            let lanes: Vec<_> =
                (0..5).map(|_| create(Geometry::default()).expect("a lane")).collect();
            let mut entries: Vec<_> =
                lanes.iter().map(|(lane, _)| roll.enter(lane).expect("entered")).collect();
            entries.swap_remove(2);
            entries.swap_remove(0);
            // The others die with this thread: never dropped.
            entries.into_iter().for_each(std::mem::forget);
            tell.send(lanes).expect("told");
        });
        let lanes = told.recv().expect("lanes");
        keeper.join().expect("ended");
        let lives: Vec<_> = lanes
            .iter()
            .map(|(_, fd)| map_peer(fd.as_fd(), Geometry::default()).expect("a peer's view"))
            .map(|peer| Life::of(&peer))
            .collect();
        let expected = [Life::Closed, Life::Died, Life::Closed, Life::Died, Life::Died];
        // swap_remove(2) takes the third; swap_remove(0) the first.
        assert_eq!(lives, expected);
    }

    /// The list of the first keeper.
    fn list_of(roll: &Roll) -> usize {
        roll.lock()[0].head.as_ptr().addr()
    }

    fn is_left(list: usize) -> bool {
        left().iter().any(|it| it.head.as_ptr().addr() == list)
    }

    /// The kernel lets a thread be joined before it is no more.
    fn wait_until(what: impl Fn() -> bool) {
        let until = std::time::Instant::now() + std::time::Duration::from_mins(1);
        while !what() {
            assert!(std::time::Instant::now() < until, "never");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_list_outlives_its_roll_until_the_kernel_has_read_it_and_no_longer() {
        let roll = Arc::new(Roll::default());
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let keeper = std::thread::spawn({
            let roll = Arc::clone(&roll);
            move || {
                roll.keep().expect("a robust list");
                let (lane, _) = create(Geometry::default()).expect("a lane");
                let entry = roll.enter(&lane).expect("entered");
                // With a lane on it, as where a client outlives its node.
                roll.retire();
                drop(roll);
                tell.send(entry).expect("told");
                let _ = ended.recv();
            }
        });
        let entry = told.recv().expect("an entry");
        let list = list_of(&roll);
        drop(roll);
        drop(entry);
        assert!(is_left(list), "its thread has yet to end");
        drop(end);
        keeper.join().expect("ended");
        wait_until(|| {
            sweep(&mut left());
            !is_left(list)
        });
    }

    #[test]
    fn who_does_nothing_but_keep_ends_with_the_roll() {
        let roll = Arc::new(Roll::default());
        roll.hire().expect("a keeper");
        let (list, thread) = (list_of(&roll), roll.lock()[0].thread);
        drop(roll);
        wait_until(|| has_ended(thread));
        sweep(&mut left());
        assert!(!is_left(list));
    }

    #[test]
    fn more_lanes_than_one_list_can_hold_get_more_keepers() {
        let roll = Arc::new(Roll::default());
        roll.keep().expect("a robust list");
        let geometry = Geometry::new(16, 2048).expect("in range");
        let entries: Vec<_> = (0..MOST_NODES + 3)
            .map(|_| roll.enter(&create(geometry).expect("a lane").0).expect("entered"))
            .collect();
        assert_eq!(roll.lock().len(), 2);
        assert_eq!(roll.lock()[1].count, 3);
        drop(entries);
        assert!(roll.lock().iter().all(|keeper| keeper.count == 0));
    }
}
