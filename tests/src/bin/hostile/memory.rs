//! What this program needs `unsafe` for: lanes mapped by hand, futex calls on their words, and a
//! child that keeps them. Nothing here knows what the words mean.

#![allow(unsafe_code)] // mmap, futex, fork

use std::{
    num::NonZeroUsize,
    os::fd::{AsFd, FromRawFd, OwnedFd, RawFd},
    ptr::NonNull,
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mprotect},
    unistd::{ForkResult, fork},
};

/// A mapping of a descriptor, never given back: this process is short-lived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: all access is by atomics, whoever makes it.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    pub(crate) fn new(fd: &impl AsFd, length: usize, write: bool) -> Result<Map, Errno> {
        let write = if write { ProtFlags::PROT_WRITE } else { ProtFlags::empty() };
        let whole = NonZeroUsize::new(length).ok_or(Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | write;
        // SAFETY: a fresh shared mapping at an address that the kernel chooses.
        let base = unsafe { mmap(None, whole, protection, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Map { base: base.cast(), length })
    }

    pub(crate) fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.length);
        // SAFETY: within the mapping, which is never given back.
        unsafe { self.base.add(at).cast().as_ref() }
    }

    pub(crate) fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.length);
        // SAFETY: as above, and aligned, as the mapping is to a page.
        unsafe { self.base.add(at).cast().as_ref() }
    }

    pub(crate) fn long(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.length);
        // SAFETY: as for `word`.
        unsafe { self.base.add(at).cast().as_ref() }
    }

    /// Asks for the right to write what was mapped without.
    pub(crate) fn make_writable(&self) -> Result<(), Errno> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: changes the protection of a range of ours; nothing relies on its being less.
        unsafe { mprotect(self.base.cast(), self.length, protection) }
    }

    /// Punches a hole by way of the mapping.
    pub(crate) fn remove(&self) -> Result<(), Errno> {
        // SAFETY: a range of ours, of which nobody expects any values.
        unsafe { madvise(self.base.cast(), self.length, MmapAdvise::MADV_REMOVE) }
    }

    /// Wakes all that sleep on a word.
    pub(crate) fn wake(&self, at: usize) {
        self.futex(at, libc::FUTEX_WAKE, i32::MAX as u32, 0, None);
    }

    /// Sleeps on a word while it has this value.
    pub(crate) fn sleep(&self, at: usize, value: u32, most: Duration) {
        let most = libc::timespec {
            tv_sec: most.as_secs() as libc::time_t,
            tv_nsec: most.subsec_nanos().into(),
        };
        self.futex(at, libc::FUTEX_WAIT, value, (&raw const most).addr(), None);
    }

    /// Moves all that sleep on a word to another one; returns how many.
    pub(crate) fn requeue(&self, at: usize, to: usize) -> i64 {
        self.futex(at, libc::FUTEX_REQUEUE, 0, i32::MAX as usize, Some(to))
    }

    fn futex(&self, at: usize, call: i32, value: u32, more: usize, to: Option<usize>) -> i64 {
        let second = to.map_or(std::ptr::null(), |to| self.word(to).as_ptr().cast_const());
        // SAFETY: both words are inside mappings that are never given back; the time, if it is
        // one, is the caller's and alive.
        unsafe { libc::syscall(libc::SYS_futex, self.word(at).as_ptr(), call, value, more, second) }
    }
}

/// Takes over a descriptor that the kernel handed to this process just now.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: called with what `recvmsg` or a system call made, once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A system call that makes a descriptor, if this kernel has it.
pub(crate) fn descriptor_of(call: i64, argument: i64) -> Option<OwnedFd> {
    // SAFETY: a call that takes a number, perhaps flags, and touches no memory.
    let fd = unsafe { libc::syscall(call, argument, 0) };
    (fd >= 0).then(|| adopt(fd as RawFd))
}

/// Goes on in a child, too; tells whether this is it.
pub(crate) fn is_child() -> bool {
    // SAFETY: the child uses its memory, system calls, and output without a lock.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => true,
        ForkResult::Parent { .. } => false,
    }
}

/// Everything that is read here was written by somebody else at some time.
pub(crate) const READ: Ordering = Ordering::Acquire;
/// What is written here is seen in order.
pub(crate) const WRITE: Ordering = Ordering::SeqCst;
/// What is written here carries what was written before.
pub(crate) const RELEASE: Ordering = Ordering::Release;
