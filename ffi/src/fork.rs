//! Knowing, with one load, whether this process still is the one that called `ipc_init`.
//!
//! It has to be known before any lock is touched: a thread of the parent may have held it at the
//! fork, and nobody in the child will ever let go of it. One page is wiped by the kernel in every
//! child (`MADV_WIPEONFORK`, see madvise(2)). The core does the same for its channels.

#![allow(unsafe_code)] // maps the page

use std::{
    num::NonZeroUsize,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

const PAGE_BYTES: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// The process that made something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Birth(u32);

impl Birth {
    /// This process, now.
    pub(crate) fn now() -> Birth {
        let pid = std::process::id();
        page().store(pid, Ordering::Relaxed);
        Birth(pid)
    }

    /// Whether the process is still the same. Async-signal-safe, once [`Birth::now`] has returned.
    #[inline]
    pub(crate) fn is_here(self) -> bool {
        page().load(Ordering::Relaxed) == self.0
    }
}

#[inline]
fn page() -> &'static AtomicU32 {
    static PAGE: OnceLock<&'static AtomicU32> = OnceLock::new();
    PAGE.get_or_init(|| {
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a private mapping at an address of the kernel's choice touches nothing of ours.
        let mapped = unsafe { mmap_anonymous(None, PAGE_BYTES, writable, MapFlags::MAP_PRIVATE) };
        let Ok(base) = mapped else {
            // No page to be had. Children then inherit the word, and learn it from the core.
            return Box::leak(Box::new(AtomicU32::new(0)));
        };
        // SAFETY: the whole of the mapping just made, which nobody uses yet.
        let _ = unsafe { madvise(base, PAGE_BYTES.get(), MmapAdvise::MADV_WIPEONFORK) };
        // SAFETY: page-aligned, never unmapped, and zero is a valid AtomicU32.
        unsafe { base.cast().as_ref() }
    })
}

#[cfg(test)]
mod tests {
    use nix::{
        sys::wait::{WaitStatus, waitpid},
        unistd::{ForkResult, fork},
    };

    use super::*;

    #[test]
    fn a_child_knows_that_it_is_one() {
        let birth = Birth::now();
        assert!(birth.is_here());
        // SAFETY: the child makes no call but `_exit`.
        match unsafe { fork() }.expect("fork") {
            // SAFETY: ends the child at once.
            ForkResult::Child => unsafe { libc::_exit(i32::from(birth.is_here())) },
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
        }
    }
}
