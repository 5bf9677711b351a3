//! A claim: exclusive use of something among the threads of one process.
//!
//! A locked instruction waits until everything stored before it, a frame in a line that the peer
//! polls above all, has reached memory: on a hot path that is most of a message's cost. So:
//!
//! - Giving a claim up is a plain store. Who wants to sleep for it pays, by the asymmetric fence.
//! - A thread that takes it again and again, undisturbed, gets a *turn*: it takes the claim by a
//!   plain store, too. Another thread that wants the claim closes the turn first, and pays that
//!   with the asymmetric fence:
//!
//! ```text
//!  owner of the turn                 another thread
//!  held = HELD       ─┐  ┌─          turn = CLOSING
//!  light fence        │  │           heavy fence
//!  turn still open?  ─┘  └▶          held? not ours yet
//! ```
//! Either the owner sees the closing, or the other sees the claim held. A turn belongs to one
//! thread for ever, and no other writes its `held`; there are a few in a claim's life, and once
//! they are used up all threads compare and swap.
//!
//! Unlike a mutex a claim can be tried and passed over, which is how a waiter learns that somebody
//! else is already reading for it. A vain try means that somebody holds the claim, and will give it
//! up after this: who has only a look (`TRYING`, or a turn that turns out to be closing) is waited
//! for.

#![allow(unsafe_code)] // lends out what is behind an UnsafeCell; asks who this thread is

use std::{
    cell::UnsafeCell,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use crate::{
    sync::{AtomicU32, AtomicU64, Ordering, pause},
    wait::Fences,
};

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Somebody looks whether it may have the claim; that is not holding it.
const TRYING: u32 = 2;

/// Added to a turn's number in `Claim::turn` once another thread wants the claim.
const CLOSING: u32 = 1 << 31;

/// Turns in a claim's life, and one that is never given.
const TURNS: u32 = 4;

/// Times that one thread takes the claim, with nobody in between, before it gets a turn.
const STREAK: u32 = if cfg!(loom) { 1 } else { 32 };

/// Tries before sleeping: about the length of what a holder does without waiting itself.
const SPINS: u32 = if cfg!(loom) { 1 } else { 100 };

#[derive(Debug)]
pub(crate) struct Claim<T> {
    /// Of all threads that have no turn.
    state: AtomicU32,
    /// Threads that sleep until it is free, or are about to.
    waiting: AtomicU32,
    /// The number of the turn now, and whether it is closing.
    turn: AtomicU32,
    fences: Fences,
    turns: [Turn; TURNS as usize],
    /// Who held `state` last, and how often in a row. Written by its holder.
    last: AtomicU64,
    streak: AtomicU32,
    value: UnsafeCell<T>,
}

#[derive(Debug)]
struct Turn {
    /// The thread that has it; 0 for none yet.
    owner: AtomicU64,
    /// Written by the owner alone.
    held: AtomicU32,
}

// SAFETY: the value is lent to one thread at a time, by the guard.
unsafe impl<T: Send> Sync for Claim<T> {}

impl<T> Claim<T> {
    pub(crate) fn new(value: T) -> Claim<T> {
        let turn = || Turn { owner: AtomicU64::new(0), held: AtomicU32::new(FREE) };
        Claim {
            state: AtomicU32::new(FREE),
            waiting: AtomicU32::new(0),
            turn: AtomicU32::new(0),
            fences: Fences::within(),
            turns: std::array::from_fn(|_| turn()),
            last: AtomicU64::new(0),
            streak: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the claim, unless somebody holds it, who will give it up later than this.
    #[inline(always)]
    pub(crate) fn try_claim(&self) -> Option<Claimed<'_, T>> {
        let me = this_thread();
        let now = self.turn.load(Ordering::Relaxed);
        let turn = self.turn_of(now);
        // Only this thread wrote its own number there: no fence is needed to read it.
        if turn.owner.load(Ordering::Relaxed) == me && now & CLOSING == 0 {
            if turn.held.load(Ordering::Relaxed) == HELD {
                return None;
            }
            turn.held.store(HELD, Ordering::Relaxed);
            self.fences.light();
            if self.turn.load(Ordering::Acquire) == now {
                return Some(self.claimed(&turn.held));
            }
            self.let_go(&turn.held);
        }
        self.try_without_turn(me, false)
    }

    /// Takes the claim, waiting for it. The library's own holders wait for nothing but memory.
    #[inline(always)]
    pub(crate) fn claim(&self) -> Claimed<'_, T> {
        self.try_claim().unwrap_or_else(|| self.claim_slowly())
    }

    /// Whether nobody holds the claim at this moment. Who only looks whether it may does not count,
    /// but may be about to.
    pub(crate) fn is_free(&self) -> bool {
        let held = &self.turn_of(self.turn.load(Ordering::Acquire)).held;
        held.load(Ordering::Acquire) == FREE && self.state.load(Ordering::Acquire) != HELD
    }

    /// Takes the claim as every thread can, if it is free. Who `insists` has a turn closed even
    /// while its owner holds the claim, to get it by and by.
    #[inline(never)]
    fn try_without_turn(&self, me: u64, insists: bool) -> Option<Claimed<'_, T>> {
        // Acquire: what the holder before wrote, up to its Release. An announcement made before
        // this (`Claim::let_go` looks for some) is ordered by its maker's heavy fence.
        while let Err(state) =
            self.state.compare_exchange(FREE, TRYING, Ordering::Acquire, Ordering::Relaxed)
        {
            if state == HELD {
                return None;
            }
            self.wait_for(TRYING);
        }
        // Nobody else moves the turn on now.
        if self.turn_of(self.turn.load(Ordering::Relaxed)).owner.load(Ordering::Relaxed) != 0
            && !self.end_turn(insists)
        {
            self.let_go(&self.state);
            return None;
        }
        self.state.store(HELD, Ordering::Relaxed);
        self.fences.light();
        if self.waiting.load(Ordering::Relaxed) > 0 {
            // Those who waited to hear whether it would be so.
            wake(&self.state);
        }
        if self.last.load(Ordering::Relaxed) == me {
            let streak = self.streak.load(Ordering::Relaxed) + 1;
            self.streak.store(streak, Ordering::Relaxed);
            if streak >= STREAK {
                return Some(self.give_turn(me));
            }
        } else {
            self.last.store(me, Ordering::Relaxed);
            self.streak.store(0, Ordering::Relaxed);
        }
        Some(self.claimed(&self.state))
    }

    /// Ends another thread's turn, unless that holds the claim. The caller is `TRYING`.
    #[cold]
    fn end_turn(&self, insists: bool) -> bool {
        let now = self.turn.load(Ordering::Relaxed);
        let held = &self.turn_of(now).held;
        if now & CLOSING == 0 {
            if !insists && held.load(Ordering::Relaxed) == HELD {
                return false;
            }
            self.turn.store(now | CLOSING, Ordering::Relaxed);
            self.fences.heavy();
        }
        // Acquire: what the owner wrote, up to its Release. From the fence on, it backs off.
        if held.load(Ordering::Acquire) == HELD {
            return false;
        }
        self.turn.store((now & !CLOSING) + 1, Ordering::Release);
        true
    }

    /// Gives the holder of `state` a turn, if there is one left and nobody waits.
    #[cold]
    fn give_turn(&self, me: u64) -> Claimed<'_, T> {
        self.streak.store(0, Ordering::Relaxed);
        let now = self.turn.load(Ordering::Relaxed);
        let is_spent = now + 1 >= TURNS;
        if is_spent || !self.fences.are_cheap() || self.waiting.load(Ordering::Relaxed) > 0 {
            return self.claimed(&self.state);
        }
        let turn = self.turn_of(now);
        turn.held.store(HELD, Ordering::Relaxed);
        turn.owner.store(me, Ordering::Relaxed);
        // Release: whoever takes `state` next sees the turn.
        self.let_go(&self.state);
        self.claimed(&turn.held)
    }

    #[cold]
    fn claim_slowly(&self) -> Claimed<'_, T> {
        let me = this_thread();
        for _ in 0..SPINS {
            if let Some(claimed) = self.try_claim() {
                return claimed;
            }
            pause();
        }
        loop {
            if let Some(claimed) = self.try_without_turn(me, true) {
                return claimed;
            }
            self.wait_for(HELD);
        }
    }

    /// Waits while somebody holds the claim, or only tries to, as `state` says.
    #[cold]
    fn wait_for(&self, state: u32) {
        let words = || {
            let in_turn = &self.turn_of(self.turn.load(Ordering::Acquire)).held;
            let is = |word: &&AtomicU32| word.load(Ordering::Acquire) == state;
            [&self.state, in_turn].into_iter().find(is)
        };
        for _ in 0..SPINS {
            if words().is_none() {
                return;
            }
            pause();
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // Either the change of the word is seen below, or whoever changes it sees that we wait.
        self.fences.heavy();
        if let Some(at) = words() {
            #[cfg(not(loom))]
            crate::wait::futex::wait(
                crate::wait::futex::Word { at, value: state, shared: false },
                None,
            );
            #[cfg(loom)]
            let _ = at;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    #[inline]
    fn turn_of(&self, number: u32) -> &Turn {
        &self.turns[(number & (TURNS - 1)) as usize]
    }

    #[inline]
    fn claimed<'a>(&'a self, held: &'a AtomicU32) -> Claimed<'a, T> {
        Claimed { claim: self, held, here: PhantomData }
    }

    /// Gives up what `held` says is held.
    #[inline]
    fn let_go(&self, held: &AtomicU32) {
        held.store(FREE, Ordering::Release);
        // Pairs with the heavy fence of whoever announced, then found the claim held.
        self.fences.light();
        if self.waiting.load(Ordering::Relaxed) > 0 {
            wake(held);
        }
    }
}

/// The claim, held; given up when dropped, by the thread that took it.
#[derive(Debug)]
pub(crate) struct Claimed<'a, T> {
    claim: &'a Claim<T>,
    /// Where it says so.
    held: &'a AtomicU32,
    /// Another thread must not write the `held` of a turn.
    here: PhantomData<*const ()>,
}

impl<T> Claimed<'_, T> {
    /// Gives the claim up while `act` runs, and waits for it again.
    pub(crate) fn give_up_while<R>(&mut self, act: impl FnOnce() -> R) -> R {
        struct Again<'g, 'a, T>(&'g mut Claimed<'a, T>);
        impl<T> Drop for Again<'_, '_, T> {
            fn drop(&mut self) {
                let again = self.0.claim.claim();
                self.0.held = again.held;
                std::mem::forget(again);
            }
        }
        self.claim.let_go(self.held);
        let _again = Again(self);
        act()
    }
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
        self.claim.let_go(self.held);
    }
}

/// Wakes all: who sleeps on a turn's word would not be found at another one, and not all who sleep
/// on `state` want the claim.
#[cold]
fn wake(held: &AtomicU32) {
    #[cfg(not(loom))]
    crate::wait::futex::wake(held, false, i32::MAX);
    #[cfg(loom)]
    let _ = held;
}

/// A number that no other living thread has, never 0. A thread that ended gave up its claims, and
/// its successor under the same number may well have its turn.
#[inline]
fn this_thread() -> u64 {
    #[cfg(all(not(loom), target_arch = "x86_64"))]
    {
        let number;
        // SAFETY: reads the first word of the thread control block, which holds its own address
        // (System V ABI, "Thread-Local Storage"): what a thread-local variable's address costs a
        // function call for, in a shared library.
        unsafe {
            std::arch::asm!("mov {n}, qword ptr fs:[0]", n = out(reg) number,
                            options(nostack, preserves_flags, readonly, pure));
        }
        number
    }
    #[cfg(all(not(loom), not(target_arch = "x86_64")))]
    {
        thread_local!(static HERE: u8 = const { 0 });
        HERE.with(|here| std::ptr::from_ref(here) as u64)
    }
    #[cfg(loom)]
    {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        loom::thread::current().id().hash(&mut hasher);
        hasher.finish() | 1
    }
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

    #[test]
    fn a_turn_passes_from_thread_to_thread() {
        let claim = Arc::new(Claim::new(0_u64));
        for _ in 0..TURNS + 2 {
            let claim = Arc::clone(&claim);
            let thread = std::thread::spawn(move || {
                for _ in 0..3 * STREAK {
                    *claim.claim() += 1;
                }
                let held = claim.claim();
                assert!(claim.try_claim().is_none(), "the owner cannot take it twice");
                drop(held);
                assert!(claim.is_free());
            });
            thread.join().expect("no panic");
        }
        assert_eq!(*claim.claim(), u64::from((TURNS + 2) * 3 * STREAK));
    }

    #[test]
    fn who_gives_a_claim_up_for_a_while_has_it_again() {
        let claim = Claim::new(1);
        let mut held = claim.claim();
        held.give_up_while(|| *claim.try_claim().expect("free meanwhile") += 1);
        assert!(claim.try_claim().is_none());
        assert_eq!(*held, 2);
    }
}
