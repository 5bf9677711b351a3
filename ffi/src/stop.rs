//! Stopping from anywhere, a signal handler included.
//!
//! A signal handler may take no lock and free nothing. So the interrupter in use stands behind one
//! pointer, and whoever takes it away waits until nobody is between loading and using it.

#![allow(unsafe_code)] // frees what the pointer points to

use std::{
    ptr,
    sync::{
        Arc,
        atomic::{AtomicPtr, AtomicU32, Ordering},
    },
};

use ipc_core::Interrupter;

use crate::wake::Wake;

/// What it takes to end every wait of a runtime.
#[derive(Debug)]
pub(crate) struct Brake {
    pub(crate) interrupter: Arc<Interrupter>,
    pub(crate) wake: Arc<Wake>,
}

/// Where the brake of the runtime in use is found. One for each process: a forked child must not
/// wait for threads that only its parent has.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    brake: AtomicPtr<Brake>,
    /// How many are between loading `brake` and being done with it.
    pulling: AtomicU32,
}

impl Stop {
    /// Puts the brake of a new runtime in place. The one before was removed.
    pub(crate) fn install(&self, brake: Brake) {
        self.brake.store(Box::into_raw(Box::new(brake)), Ordering::SeqCst);
    }

    /// Takes the brake away and frees it. A concurrent [`pull`](Stop::pull) has finished when this
    /// returns, or will find nothing.
    pub(crate) fn remove(&self) {
        // SeqCst, all four: either `pull` counts itself before this swap and is waited for, or it
        // loads the pointer after it and finds NULL.
        let brake = self.brake.swap(ptr::null_mut(), Ordering::SeqCst);
        while self.pulling.load(Ordering::SeqCst) != 0 {
            std::thread::yield_now();
        }
        if !brake.is_null() {
            // SAFETY: made by `install`, taken out by the swap above, which gives it to one thread
            // only; nobody uses it any more.
            drop(unsafe { Box::from_raw(brake) });
        }
    }

    /// Ends every wait; returns false when there is no runtime. Async-signal-safe: atomics, a
    /// futex wake and writes to descriptors that never block.
    pub(crate) fn pull(&self) -> bool {
        self.pulling.fetch_add(1, Ordering::SeqCst);
        let brake = self.brake.load(Ordering::SeqCst);
        // SAFETY: not freed while `pulling` counts this thread; see `remove`.
        let there = unsafe { brake.as_ref() };
        if let Some(brake) = there {
            let errno = nix::errno::Errno::last_raw();
            brake.interrupter.fire();
            brake.wake.ring();
            nix::errno::Errno::set_raw(errno);
        }
        self.pulling.fetch_sub(1, Ordering::SeqCst);
        there.is_some()
    }
}
