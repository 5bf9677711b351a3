//! A claim: exclusive use of something among the threads of one process.
//!
//! Taking it is one compare-and-swap, giving it up one plain store: a locked instruction there
//! would wait until everything stored before it, a frame in a line that the peer polls above all,
//! has reached memory. Who wants to sleep for a claim pays instead, by the asymmetric fence.
//!
//! Unlike a mutex it can be tried and passed over, which is how a waiter learns that somebody else
//! is already reading for it.

#![allow(unsafe_code)] // lends out what is behind an UnsafeCell

use std::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
};

use crate::{
    sync::{AtomicU32, Ordering, pause},
    wait::Fences,
};

const FREE: u32 = 0;
const HELD: u32 = 1;

/// Tries before sleeping: about the length of what a holder does without waiting itself.
const SPINS: u32 = 100;

#[derive(Debug)]
pub(crate) struct Claim<T> {
    state: AtomicU32,
    /// Threads that sleep until it is free, or are about to.
    waiting: AtomicU32,
    fences: Fences,
    value: UnsafeCell<T>,
}

// SAFETY: the value is lent to one thread at a time, by the guard.
unsafe impl<T: Send> Sync for Claim<T> {}

impl<T> Claim<T> {
    pub(crate) fn new(value: T) -> Claim<T> {
        Claim {
            state: AtomicU32::new(FREE),
            waiting: AtomicU32::new(0),
            fences: Fences::within(),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the claim if it is free.
    #[inline]
    pub(crate) fn try_claim(&self) -> Option<Claimed<'_, T>> {
        // Acquire: what the holder before wrote, up to its Release. An announcement made before
        // this (`Claimed::drop` looks for some) is ordered by its maker's heavy fence.
        let taken =
            self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok();
        // Not `then_some`: that would make a guard, and by its drop a release, either way.
        taken.then(|| Claimed { claim: self })
    }

    /// Takes the claim, waiting for it. Holders never wait for anything but memory.
    #[inline]
    pub(crate) fn claim(&self) -> Claimed<'_, T> {
        self.try_claim().unwrap_or_else(|| self.claim_slowly())
    }

    #[cold]
    fn claim_slowly(&self) -> Claimed<'_, T> {
        for _ in 0..SPINS {
            if let Some(claimed) = self.try_claim() {
                return claimed;
            }
            pause();
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // Either the holder's release is seen below, or the holder sees that we wait.
        self.fences.heavy();
        let claimed = loop {
            if let Some(claimed) = self.try_claim() {
                break claimed;
            }
            #[cfg(not(loom))]
            {
                use crate::wait::futex::{Word, wait};
                wait(Word { at: &self.state, value: HELD, shared: false }, None);
            }
            #[cfg(loom)]
            pause();
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        claimed
    }

    /// Whether nobody holds the claim at this moment.
    pub(crate) fn is_free(&self) -> bool {
        self.state.load(Ordering::Acquire) == FREE
    }
}

/// The claim, held; given up when dropped.
#[derive(Debug)]
pub(crate) struct Claimed<'a, T> {
    claim: &'a Claim<T>,
}

impl<T> Deref for Claimed<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: a `Claimed` exists only while its claim is held by it alone.
        unsafe { &*self.claim.value.get() }
    }
}

impl<T> DerefMut for Claimed<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`; `&mut self` makes this the only reference.
        unsafe { &mut *self.claim.value.get() }
    }
}

impl<T> Drop for Claimed<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.claim.state.store(FREE, Ordering::Release);
        // Pairs with the heavy fence of whoever announced, then found the claim held.
        self.claim.fences.light();
        if self.claim.waiting.load(Ordering::Relaxed) > 0 {
            wake(&self.claim.state);
        }
    }
}

#[cold]
fn wake(state: &AtomicU32) {
    #[cfg(not(loom))]
    crate::wait::futex::wake(state, false, 1);
    #[cfg(loom)]
    let _ = state;
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn one_at_a_time() {
        let claim = Arc::new(Claim::new(0_u64));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let claim = Arc::clone(&claim);
                std::thread::spawn(move || {
                    for _ in 0..20_000 {
                        *claim.claim() += 1;
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert_eq!(*claim.claim(), 80_000);
        let held = claim.claim();
        assert!(claim.try_claim().is_none());
        assert!(claim.try_claim().is_none(), "a vain try must not release the claim");
        drop(held);
        assert!(claim.try_claim().is_some());
    }
}
