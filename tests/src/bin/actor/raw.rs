//! What this program needs `unsafe` for: counting its allocations, and forking itself.

#![allow(unsafe_code)] // an allocator, and fork

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork},
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Tells how often the calling thread has allocated so far.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.get()
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does the work, under the same contract. The counter allocates
// nothing and has no destructor, so it can be touched at any time in a thread's life.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as for `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as for `alloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs `child` in a forked child, which ends when it returns, and waits for its end.
pub(crate) fn in_child(child: impl FnOnce()) -> WaitStatus {
    // SAFETY: the child has only this thread. What it uses of the others' is what is under test:
    // it must find typed errors. The C library's allocator survives a fork, and output is written
    // without a lock.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => {
            child();
            std::process::exit(0);
        }
        ForkResult::Parent { child } => waitpid(child, None).expect("it was not waited for"),
    }
}
