//! Waiting: spin for a learned budget, then sleep; and the fences that make sure of the wake-up.

pub(crate) mod event;
#[cfg(not(loom))]
pub(crate) mod futex;
#[cfg(not(loom))]
pub(crate) mod spin;

use crate::sync::{Ordering, compiler_fence, fence};

/// Which pair of fences the two ends of a channel agreed on when it was opened.
///
/// The event count needs a store-load barrier on both sides: the sender's between its stamp and
/// its look at `parked`, the receiver's between its `parked` and its last look at the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fences {
    /// The sender pays nothing; the receiver, about to sleep, makes every running thread of every
    /// registered process pass a barrier.
    Asymmetric,
    /// Both sides pay a full fence. Where the kernel has no `membarrier`, or the peer did not
    /// register for it.
    Symmetric,
}

impl Fences {
    /// The pair for words that only this process uses.
    pub(crate) fn within() -> Fences {
        #[cfg(not(loom))]
        if futex::has_membarrier() {
            return Fences::Asymmetric;
        }
        Fences::Symmetric
    }

    /// Whether the light fence costs less than a locked instruction.
    pub(crate) fn are_cheap(self) -> bool {
        #[cfg(not(loom))]
        return self == Fences::Asymmetric && !futex::membarrier_is_lost();
        #[cfg(loom)]
        true
    }

    /// The sender's barrier, after each batch.
    #[inline]
    pub(crate) fn light(self) {
        match self {
            Fences::Asymmetric => compiler_fence(Ordering::SeqCst),
            // SeqCst: orders the stamp's store before the load of `parked`.
            Fences::Symmetric => fence(Ordering::SeqCst),
        }
    }

    /// The receiver's barrier, before each sleep.
    #[cfg_attr(loom, allow(clippy::unused_self, reason = "a model has one kind of fence"))]
    pub(crate) fn heavy(self) {
        // SeqCst: orders the store of `parked` before the loads of the stamps.
        fence(Ordering::SeqCst);
        #[cfg(not(loom))]
        if self == Fences::Asymmetric {
            futex::membarrier();
        }
    }
}

/// How a sleeper wants to be woken: the low two bits of a `parked` word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Sleep {
    /// In a futex wait on the waker's event word.
    Futex = 1,
    /// In an epoll or poll wait on its end of the channel's socket.
    Doorbell = 2,
}

impl Sleep {
    /// The `parked` word of the sleep with this number. Never 0.
    pub(crate) fn parked(self, number: u32) -> u32 {
        number << 2 | self as u32
    }

    /// What a `parked` word asks for; nothing for a word that no honest peer writes.
    pub(crate) fn of(parked: u32) -> Option<Sleep> {
        match parked & 3 {
            1 => Some(Sleep::Futex),
            2 => Some(Sleep::Doorbell),
            _ => None,
        }
    }
}
