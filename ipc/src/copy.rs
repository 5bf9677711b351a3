//! Copies out of memory that a peer may be writing.
//!
//! `ptr::copy` from such memory would be a data race in the language's eyes, and the compiler may
//! read a byte twice. Inline assembly is opaque to it: each byte is read once, into private memory.

#![allow(unsafe_code)] // inline assembly

/// Below this many bytes `rep movsb` costs more to start than it saves.
#[cfg(target_arch = "x86_64")]
const STRING_MOVE: usize = 2048;

/// Below this many bytes there is nothing to gain from asking for the lines ahead.
const FEW: usize = 128;
/// Lines asked for ahead: about what a core can have on its way at a time.
const AHEAD: usize = 2048;

/// Asks for a line of an own lane, for writing, before it is written: it is in the peer's cache.
#[inline]
pub(crate) fn ask_for(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, without an effect on memory, whatever the address.
    unsafe {
        std::arch::asm!("prefetchw [{t}]", t = in(reg) line,
                        options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// From this size on `rep movsb` is quicker into an arena, too: 1 MiB there and back 67 us instead
/// of 74; 64 KiB 5.3 instead of 5.2.
#[cfg(any(target_arch = "x86_64", test))]
const LONG: usize = 512 * 1024;

/// Copies a message into an arena. The slices are equally long.
pub(crate) fn fill(target: &mut [u8], source: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if source.len() >= LONG && source.len() == target.len() {
        // SAFETY: both are as long, the target is borrowed for it alone, and the direction flag is
        // clear by the ABI.
        unsafe {
            std::arch::asm!("rep movsb", inout("rcx") source.len() => _,
                            inout("rsi") source.as_ptr() => _,
                            inout("rdi") target.as_mut_ptr() => _,
                            options(nostack, preserves_flags));
        }
        return;
    }
    target.copy_from_slice(source);
}

/// Copies `length` bytes from private memory into an own lane.
///
/// The lines are asked for first, all at once and for writing: they are in the peer's cache, and
/// stores, which retire in order, would fetch them one after another.
///
/// # Safety
/// 1. `source` is readable for `length` bytes, `target` writable; they do not overlap.
/// 2. No other thread of this process touches `target` meanwhile.
#[inline]
pub(crate) unsafe fn to_shared(source: *const u8, target: *mut u8, length: usize) {
    if length >= FEW {
        for line in (0..length.min(AHEAD)).step_by(64) {
            ask_for(target.wrapping_add(line));
        }
    }
    // SAFETY: (1), (2).
    unsafe { std::ptr::copy_nonoverlapping(source, target, length) };
}

/// Copies `length` bytes from shared to private memory. Concurrent writes to the source give
/// arbitrary bytes, and nothing worse.
///
/// # Safety
/// 1. `source` is readable for `length` bytes, in a mapping that nobody can shrink.
/// 2. `target` is writable for `length` bytes, and private.
#[inline]
pub(crate) unsafe fn from_shared(source: *const u8, target: *mut u8, length: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the same contract.
    unsafe {
        x86_64(source, target, length);
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the same contract.
    unsafe {
        portable(source, target, length);
    }
}

/// Copies `length` bytes from private memory to memory that others read and write meanwhile. They
/// see each byte as it was or as it is.
///
/// # Safety
/// 1. `source` is readable for `length` bytes, and private.
/// 2. `target` is writable for `length` bytes, in a mapping that nobody can shrink.
#[inline]
pub(crate) unsafe fn into_shared(source: *const u8, target: *mut u8, length: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the same contract; each byte is loaded once and stored by instructions that the
    // compiler does not look into, whichever side is shared.
    unsafe {
        x86_64(source, target, length);
    }
    #[cfg(not(target_arch = "x86_64"))]
    for index in 0..length {
        use crate::sync::{AtomicU8, Ordering};
        // SAFETY: below `length`; an atomic store to shared memory is no data race.
        unsafe {
            let byte = &*target.add(index).cast::<AtomicU8>();
            byte.store(source.add(index).read(), Ordering::Relaxed);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn x86_64(mut source: *const u8, mut target: *mut u8, mut length: usize) {
    use std::arch::asm;
    if length >= STRING_MOVE {
        // SAFETY: (1), (2); the direction flag is clear by the ABI.
        unsafe {
            asm!("rep movsb", inout("rcx") length => _, inout("rsi") source => _,
                 inout("rdi") target => _, options(nostack, preserves_flags));
        }
        return;
    }
    if length >= FEW {
        for line in (0..length).step_by(64) {
            // SAFETY: a hint about an address inside the source.
            unsafe {
                asm!("prefetcht0 [{s}]", s = in(reg) source.add(line),
                     options(nostack, preserves_flags, readonly));
            }
        }
    }
    if length < 16 {
        // SAFETY: the same contract.
        unsafe { short(source, target, length) };
        return;
    }
    // SAFETY: every access is below `length`: 64 at a time while 64 remain, 16 while 16 remain,
    // then the last 16 once more, which is inside since `length` was at least 16.
    unsafe {
        while length >= 64 {
            asm!("movups {a}, [{s}]", "movups {b}, [{s} + 16]", "movups {c}, [{s} + 32]",
                 "movups {d}, [{s} + 48]", "movups [{t}], {a}", "movups [{t} + 16], {b}",
                 "movups [{t} + 32], {c}", "movups [{t} + 48], {d}",
                 s = in(reg) source, t = in(reg) target, a = out(xmm_reg) _, b = out(xmm_reg) _,
                 c = out(xmm_reg) _, d = out(xmm_reg) _, options(nostack, preserves_flags));
            source = source.add(64);
            target = target.add(64);
            length -= 64;
        }
        while length >= 16 {
            asm!("movups {a}, [{s}]", "movups [{t}], {a}", s = in(reg) source, t = in(reg) target,
                 a = out(xmm_reg) _, options(nostack, preserves_flags));
            source = source.add(16);
            target = target.add(16);
            length -= 16;
        }
        if length > 0 {
            let (source, target) = (source.add(length).sub(16), target.add(length).sub(16));
            asm!("movups {a}, [{s}]", "movups [{t}], {a}", s = in(reg) source, t = in(reg) target,
                 a = out(xmm_reg) _, options(nostack, preserves_flags));
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn short(source: *const u8, target: *mut u8, length: usize) {
    use std::arch::asm;
    if length >= 8 {
        // SAFETY: two words, the second ending at `length`.
        unsafe {
            asm!("mov {a}, [{s}]", "mov {b}, [{s} + {n} - 8]", "mov [{t}], {a}",
                 "mov [{t} + {n} - 8], {b}", s = in(reg) source, t = in(reg) target,
                 n = in(reg) length, a = out(reg) _, b = out(reg) _,
                 options(nostack, preserves_flags));
        }
        return;
    }
    for index in 0..length {
        // SAFETY: below `length`.
        unsafe {
            asm!("mov {a}, byte ptr [{s} + {i}]", "mov byte ptr [{t} + {i}], {a}",
                 s = in(reg) source, t = in(reg) target, i = in(reg) index, a = out(reg_byte) _,
                 options(nostack, preserves_flags));
        }
    }
}

/// The same with relaxed atomic loads, for other processors.
#[cfg(any(test, not(target_arch = "x86_64")))]
unsafe fn portable(source: *const u8, target: *mut u8, length: usize) {
    use crate::sync::{AtomicU8, Ordering};
    for index in 0..length {
        // SAFETY: below `length`; an atomic load of shared memory is no data race.
        unsafe {
            let byte = &*source.add(index).cast::<AtomicU8>();
            target.add(index).write(byte.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment_is_copied_exactly() {
        let source: Vec<u8> = (0..6000_u32).map(|n| (n * 7 + n / 256) as u8).collect();
        let lengths = (0..300).chain([2047, 2048, 2049, 4096, 5000]);
        for length in lengths {
            for offset in 0..17 {
                for copy in [from_shared, portable] {
                    let mut target = vec![0xEE; length + 2];
                    // SAFETY: both ranges are inside their vectors.
                    unsafe {
                        copy(source.as_ptr().add(offset), target.as_mut_ptr().add(1), length);
                    }
                    assert_eq!(&target[1..=length], &source[offset..offset + length]);
                    assert_eq!((target[0], target[length + 1]), (0xEE, 0xEE));
                }
            }
        }
    }

    #[test]
    fn an_arena_gets_the_whole_message() {
        let source: Vec<u8> = (0..600_000_u32).map(|n| (n * 7 + n / 256) as u8).collect();
        for length in [0, 1, LONG - 1, LONG, LONG + 1, source.len()] {
            let mut target = vec![0xEE; length];
            fill(&mut target, &source[..length]);
            assert_eq!(target, &source[..length]);
        }
    }
}
