//! The only door to atomics: the standard ones, or loom's when a model runs.

/// Bytes that a peer may be writing, where no assembly copies them.
#[cfg(all(not(loom), any(test, not(target_arch = "x86_64"))))]
pub(crate) use std::sync::atomic::AtomicU8;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, Ordering, compiler_fence, fence,
};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) fn compiler_fence(ordering: Ordering) {
    // Always paired with a heavy fence on the other side, which acts for both. That this is so is
    // not loom's to show: `wait::event::tso` does.
    fence(ordering);
}

/// Tells the processor that this is a spin loop.
#[inline]
pub(crate) fn pause() {
    #[cfg(not(loom))]
    std::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}
