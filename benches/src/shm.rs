//! A few words of shared memory, each on lines of its own.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

/// Bytes from one word to the next: the pair of lines that x86 prefetches together.
const STRIDE: usize = 128;

/// Words of a [`Words`]: one page of them.
pub const WORDS: usize = 4096 / STRIDE;

/// A shared page of [`WORDS`] words, zero at first, no two of which share a line.
#[derive(Debug)]
pub struct Words {
    map: MmapRaw,
}

impl Words {
    /// Makes a page, and the descriptor by which a peer [maps](Self::map) it too.
    ///
    /// # Errors
    /// Those of `memfd_create(2)`, `ftruncate(2)` and `mmap(2)`.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let fd = memfd_create("bench-words", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&fd, (WORDS * STRIDE) as i64)?;
        let words = Self::map(fd.try_clone()?)?;
        Ok((words, fd))
    }

    /// Maps and prefaults the page behind `fd`.
    ///
    /// # Errors
    /// `InvalidData` when the file is shorter than a page; those of `mmap(2)`.
    pub fn map(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        if file.metadata()?.len() < (WORDS * STRIDE) as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a page of words"));
        }
        Ok(Self { map: MmapOptions::new().len(WORDS * STRIDE).populate().map_raw(&file)? })
    }

    /// Returns word number `index`.
    ///
    /// # Panics
    /// When `index` is not below [`WORDS`].
    pub fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < WORDS, "word {index} of {WORDS}");
        // SAFETY: index × STRIDE + 4 lies in the mapping, which `self` keeps alive for as long as
        // the returned reference; a page is aligned for it; every access on either side is atomic;
        // and the file is never shortened: both processes run this very program.
        unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(index * STRIDE).cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn two_mappings_show_one_memory_and_words_do_not_overlap() {
        let (ours, fd) = Words::create().expect("a page");
        let theirs = Words::map(fd).expect("the same page");
        for index in 0..WORDS {
            ours.word(index).store(index as u32 + 1, Relaxed);
        }
        for index in 0..WORDS {
            assert_eq!(theirs.word(index).load(Relaxed), index as u32 + 1);
        }
    }
}
