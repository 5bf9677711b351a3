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
}

// SAFETY: `head` points at a leaked allocation that only the holder of the roll's lock writes,
// and that the kernel reads when the keeper's thread ends.
unsafe impl Send for Keeper {}

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
        self.lock().push(Keeper { thread, head, count: 0 });
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

    /// Starts a thread that does nothing but keep.
    fn hire(self: &Arc<Self>) -> Result<(), NodeError> {
        let roll = Arc::clone(self);
        let (tell, told) = mpsc::channel();
        std::thread::Builder::new()
            .name("ipc-keeper".into())
            .stack_size(32 * 1024)
            .spawn(move || {
                let kept = roll.keep();
                let keeps = kept.is_ok();
                let _ = tell.send(kept);
                drop(tell);
                if keeps {
                    loop {
                        std::thread::park();
                    }
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
    /// Frees the lists of keepers that ended while lanes were entered with them. None is now: an
    /// entry holds the roll.
    fn drop(&mut self) {
        for keeper in self.lock().drain(..) {
            // A list that the kernel has yet to read stays for ever.
            if has_ended(keeper.thread) {
                // SAFETY: made by `keep` from a box; the kernel has read it for the last time
                // before the thread was no more, and nobody here has it any more.
                drop(unsafe { Box::from_raw(keeper.head.as_ptr()) });
            }
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
