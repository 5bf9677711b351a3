//! Private pages for secrets: left out of core dumps, empty in forked children, locked into memory
//! where the limit allows it, and overwritten before they are given back.

#![allow(unsafe_code)] // maps the pages

use std::{marker::PhantomData, num::NonZeroUsize, ptr::NonNull};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};

use super::chacha::{BLOCKS, Block};
use crate::{error::NodeError, fork::Birth};

/// Data that may be filled with zeros at any time.
///
/// # Safety
/// 1. All zeros is a valid value.
/// 2. It neither owns nor points to anything.
/// 3. It needs no more than the alignment of a page.
pub(crate) unsafe trait Plain {}

/// The secrets of one ring in one direction.
#[repr(C, align(64))]
pub(crate) struct Secrets {
    /// The key of this generation.
    pub(crate) key: [u32; 8],
    /// Blocks 0 and 1 of the nonces of two batches.
    pub(crate) ahead: [[Block; BLOCKS]; 2],
}

// SAFETY: (1) (2) arrays of integers, (3) 64.
unsafe impl Plain for [Secrets; 2] {}
// SAFETY: (1) (2) (3) bytes.
unsafe impl Plain for [u8; 32] {}
// SAFETY: (1) (2) (3) bytes.
unsafe impl<const N: usize> Plain for [[u8; 32]; N] {}

/// Pages of this process alone, overwritten before they are given back.
struct Pages {
    base: NonNull<u8>,
    /// The kernel rounds it up to pages.
    length: NonZeroUsize,
    birth: Birth,
}

// SAFETY: it owns what it points to, which are bytes.
unsafe impl Send for Pages {}
// SAFETY: a shared reference to it gives an address only.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps so many bytes, zeros.
    ///
    /// # Errors
    /// [`NodeError::System`]: no memory, or a kernel that cannot leave pages out of cores or
    /// children.
    fn new(length: NonZeroUsize) -> Result<Pages, NodeError> {
        let failed = NodeError::system("memory for a key");
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh private mapping, which nobody else knows of.
        let pages = unsafe {
            let base =
                mmap_anonymous(None, length, writable, MapFlags::MAP_PRIVATE).map_err(failed)?;
            // From here on dropping it unmaps it.
            let pages = Pages { base: base.cast(), length, birth: Birth::now() };
            for advice in [MmapAdvise::MADV_DONTDUMP, MmapAdvise::MADV_WIPEONFORK] {
                madvise(base, length.get(), advice).map_err(failed)?;
            }
            // Over RLIMIT_MEMLOCK it fails, and the key could be swapped; that is no reason to
            // have none.
            let _ = mlock(base, length.get());
            pages
        };
        Ok(pages)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: all that was asked for, and the mapping, of which no reference is left.
        unsafe {
            for index in 0..self.length.get() {
                self.base.add(index).write_volatile(0);
            }
            let _ = munmap(self.base.cast(), self.length.get());
        }
    }
}

/// A value in pages of its own.
pub(crate) struct Vault<T: Plain> {
    pages: Pages,
    value: PhantomData<T>,
}

impl<T: Plain> Vault<T> {
    const LENGTH: NonZeroUsize = NonZeroUsize::new(size_of::<T>()).expect("not empty");

    /// Maps pages for a value of zeros.
    ///
    /// # Errors
    /// [`NodeError::System`]: no memory, or a kernel that cannot leave pages out of cores or
    /// children.
    pub(crate) fn new() -> Result<Vault<T>, NodeError> {
        Ok(Vault { pages: Pages::new(Self::LENGTH)?, value: PhantomData })
    }

    /// Whether this is still the process that has the value: in its children it is zeros.
    #[inline]
    pub(crate) fn is_here(&self) -> bool {
        self.pages.birth.is_here()
    }

    /// The value; ask [`is_here`](Vault::is_here) before it is relied on.
    #[inline]
    pub(crate) fn get(&self) -> &T {
        // SAFETY: the mapping is as long as the value, and lives as long as self; plain data, so
        // zeros are a value, also when wiped, and no drop is needed.
        unsafe { self.pages.base.cast().as_ref() }
    }

    /// The same, to change it.
    #[inline]
    pub(crate) fn get_mut(&mut self) -> &mut T {
        // SAFETY: as above, and borrowed for it alone.
        unsafe { self.pages.base.cast().as_mut() }
    }
}

impl<T: Plain> std::fmt::Debug for Vault<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault")
    }
}

/// A value of somebody else's type in pages of its own, which is dropped by its own rules. What it
/// points to lies where its type has put it.
pub(crate) struct Wiped<T> {
    pages: Pages,
    value: PhantomData<T>,
}

impl<T> Wiped<T> {
    const LENGTH: NonZeroUsize = NonZeroUsize::new(size_of::<T>()).expect("not empty");
    const FITS: () = assert!(align_of::<T>() <= 4096, "pages are aligned so far");

    /// Takes a value. What the caller's stack has of it is the caller's to sweep.
    ///
    /// # Errors
    /// As [`Vault::new`]; the value is dropped.
    pub(crate) fn new(value: T) -> Result<Wiped<T>, NodeError> {
        const { Self::FITS };
        let pages = Pages::new(Self::LENGTH)?;
        // SAFETY: fresh pages, as long as the value and aligned for it.
        unsafe { pages.base.cast().write(value) };
        Ok(Wiped { pages, value: PhantomData })
    }

    /// The value; nothing in a child, where it is zeros, and those may be no value of the type.
    /// A child that a handler of signals forks while it is used must not return from that.
    pub(crate) fn get(&self) -> Option<&T> {
        // SAFETY: written by `new`, and not wiped: this is the process that did it.
        self.pages.birth.is_here().then(|| unsafe { self.pages.base.cast().as_ref() })
    }

    /// The same, to change it.
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        // SAFETY: as above, and borrowed for it alone.
        self.pages.birth.is_here().then(|| unsafe { self.pages.base.cast().as_mut() })
    }
}

impl<T> Drop for Wiped<T> {
    /// A child leaves what the value owned: what told where that is, it has not.
    fn drop(&mut self) {
        if self.pages.birth.is_here() {
            // SAFETY: written by `new`, never used again; the pages are overwritten after it.
            unsafe { self.pages.base.cast::<T>().drop_in_place() };
        }
    }
}

/// Words of stack that calls which handle keys take at most. Without optimisation each vector of a
/// block that is made has a place of its own there.
const DEEP: usize = if cfg!(debug_assertions) { 8192 } else { 2048 };

/// Overwrites what calls that just returned have left of keys on the stack below the caller: 16
/// KiB, deeper than any of them goes, and 64 KiB in a build for debugging.
pub(crate) fn sweep_stack() {
    sweep::<DEEP>();
}

/// Words of it that a library takes to seal or open a record.
const SHALLOW: usize = if cfg!(debug_assertions) { DEEP } else { 512 };

/// The same after a record that a library sealed or opened, or blocks that were made: 4 KiB.
pub(crate) fn sweep_shallow() {
    sweep::<SHALLOW>();
}

/// Overwrites the registers that vectors are computed in: nothing else does before they are needed
/// again, and a core dump has those of every thread.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn wipe_registers() {
    if std::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the instructions, as was just asked.
        unsafe { wipe_zmm() }
    } else if std::is_x86_feature_detected!("avx") {
        // SAFETY: as above.
        unsafe { wipe_ymm() }
    }
}

/// Other processors' are left as they are: no code here uses more than their general ones for keys,
/// and libraries keep to their own rules.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(super) fn wipe_registers() {}

/// # Safety
/// 1. The processor has AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn wipe_zmm() {
    // SAFETY: it changes registers only, all of which are named.
    unsafe {
        std::arch::asm!(
            "vzeroall",
            "vpxord zmm16, zmm16, zmm16",
            "vpxord zmm17, zmm17, zmm17",
            "vpxord zmm18, zmm18, zmm18",
            "vpxord zmm19, zmm19, zmm19",
            "vpxord zmm20, zmm20, zmm20",
            "vpxord zmm21, zmm21, zmm21",
            "vpxord zmm22, zmm22, zmm22",
            "vpxord zmm23, zmm23, zmm23",
            "vpxord zmm24, zmm24, zmm24",
            "vpxord zmm25, zmm25, zmm25",
            "vpxord zmm26, zmm26, zmm26",
            "vpxord zmm27, zmm27, zmm27",
            "vpxord zmm28, zmm28, zmm28",
            "vpxord zmm29, zmm29, zmm29",
            "vpxord zmm30, zmm30, zmm30",
            "vpxord zmm31, zmm31, zmm31",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("xmm16") _, out("xmm17") _, out("xmm18") _, out("xmm19") _,
            out("xmm20") _, out("xmm21") _, out("xmm22") _, out("xmm23") _,
            out("xmm24") _, out("xmm25") _, out("xmm26") _, out("xmm27") _,
            out("xmm28") _, out("xmm29") _, out("xmm30") _, out("xmm31") _,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// # Safety
/// 1. The processor has AVX.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn wipe_ymm() {
    // SAFETY: as in `wipe_zmm`.
    unsafe {
        std::arch::asm!(
            "vzeroall",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nomem, nostack, preserves_flags),
        );
    }
}

#[inline(never)]
fn sweep<const DEEP: usize>() {
    let words = [0_u64; DEEP];
    // Whoever is told where they are may read them there: so they have to be zeros, and are written
    // by the widest stores that there are. One by one that took as long as sealing 256 bytes.
    // SAFETY: it reads nothing, and changes nothing.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) &raw const words, options(nostack, preserves_flags));
    }
    wipe_registers();
}

/// Runs something in a forked child, which makes no call that another thread of the parent could
/// have stopped in the middle of, and gives what it returned.
#[cfg(test)]
pub(crate) fn in_a_child(run: impl FnOnce() -> i32) -> i32 {
    use nix::{
        sys::wait::{WaitStatus, waitpid},
        unistd::{ForkResult, fork},
    };
    // SAFETY: the child allocates little and takes no lock; then it ends.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            let code = run();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => code,
            other => panic!("the child ended as {other:?}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_zeros_and_knows_it() {
        let mut vault = Vault::<[u8; 32]>::new().expect("a page");
        vault.get_mut().fill(0xA5);
        assert!(vault.is_here());
        let is_right = || !vault.is_here() && vault.get() == &[0; 32];
        assert_eq!(in_a_child(|| i32::from(!is_right())), 0);
        assert_eq!(vault.get(), &[0xA5; 32]);
    }

    #[test]
    fn a_child_has_no_value_of_somebody_else_s_type_and_drops_none() {
        struct Told<'a>(Box<u32>, &'a std::cell::Cell<u32>);
        impl Drop for Told<'_> {
            fn drop(&mut self) {
                self.1.set(self.1.get() + *self.0);
            }
        }
        let dropped = std::cell::Cell::new(0);
        let value = Wiped::new(Told(Box::new(7), &dropped)).expect("a page");
        assert_eq!(value.get().map(|it| *it.0), Some(7));
        check_pages(&value.pages);
        let mut value = Some(value);
        let code = in_a_child(|| {
            let is_nothing = value.as_ref().is_some_and(|it| it.get().is_none());
            drop(value.take());
            i32::from(!is_nothing || dropped.get() != 0)
        });
        assert_eq!(code, 0);
        drop(value);
        assert_eq!(dropped.get(), 7, "here it is dropped, once");
    }

    #[test]
    fn its_pages_are_out_of_cores_and_children() {
        check_pages(&Vault::<[u8; 32]>::new().expect("a page").pages);
    }

    fn check_pages(pages: &Pages) {
        let here = pages.base.as_ptr().addr();
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("proc");
        // Pages with the same flags are one mapping with those of other tests beside them.
        let mut flags = None;
        let mut is_inside = false;
        for line in maps.lines() {
            if let Some((from, to)) = line.split_once(' ').and_then(|(r, _)| r.split_once('-')) {
                let parse = |text| usize::from_str_radix(text, 16).unwrap_or(0);
                is_inside = parse(from) <= here && here < parse(to);
            } else if is_inside && let Some(rest) = line.strip_prefix("VmFlags:") {
                flags = Some(rest.to_owned());
            }
        }
        let flags = flags.unwrap_or_else(|| panic!("{here:x} is nowhere"));
        assert!(flags.contains(" dd") && flags.contains(" wf"), "{flags}");
    }
}
