//! Knowing, with one load, whether this process is still the one that opened a channel.
//!
//! Lanes are not inherited by a forked child (`MADV_DONTFORK`): touching one there would fault.
//! One page is wiped by the kernel in every child (`MADV_WIPEONFORK`, see madvise(2)); it holds
//! the process's id in the process that wrote it, and 0 in its children.

#![allow(unsafe_code)] // maps the page

use std::{num::NonZeroUsize, sync::OnceLock};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

use crate::sync::{AtomicU32, Ordering};

/// The process that made something: whether this is it, or a child that was forked from it since.
///
/// Who keeps a lock or a mapping asks before touching either: in a child nobody will ever let go of
/// the lock, and the mapping may not be there. Asking is one load.
///
/// ```
/// let birth = ipc::Birth::now();
/// assert!(birth.is_here());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth(u32);

impl Birth {
    /// This process, now.
    #[must_use]
    pub fn now() -> Birth {
        let pid = std::process::id();
        page().store(pid, Ordering::Relaxed);
        Birth(pid)
    }

    /// Whether the process is still the same. Async-signal-safe, since [`Birth::now`] has returned.
    ///
    /// Where the kernel has no page to give (`MADV_WIPEONFORK`, Linux 4.14) a child is not told
    /// apart.
    #[inline]
    #[must_use]
    pub fn is_here(self) -> bool {
        page().load(Ordering::Relaxed) == self.0
    }
}

#[inline]
fn page() -> &'static AtomicU32 {
    static PAGE: OnceLock<&'static AtomicU32> = OnceLock::new();
    PAGE.get_or_init(|| {
        let length = NonZeroUsize::new(4096).expect("a page");
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh private mapping, never unmapped, hence 'static; zero is a valid
        // AtomicU32.
        unsafe {
            mmap_anonymous(None, length, writable, MapFlags::MAP_PRIVATE).map_or_else(
                // No page to be had: a word that children inherit. They then fail by SIGSEGV on
                // the lane instead of by a typed error.
                |_| &*Box::leak(Box::new(AtomicU32::new(0))),
                |base| {
                    let _ = madvise(base, length.get(), MmapAdvise::MADV_WIPEONFORK);
                    base.cast().as_ref()
                },
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{
        sys::wait::{WaitStatus, waitpid},
        unistd::{ForkResult, fork},
    };

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
