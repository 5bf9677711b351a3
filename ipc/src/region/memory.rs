//! The memory of a region: made by its owner, mapped by those whom the owner lets.
//!
//! ```text
//!   0          8        12        16       24        32       36      40            4096
//!   ┌──────────┬────────┬─────────┬────────┬─────────┬────────┬───────┬─────────────┬─────────┐
//!   │ magic    │ layout │ pages   │ size   │ version │ event  │ ended │ reserved    │ data …  │
//!   └──────────┴────────┴─────────┴────────┴─────────┴────────┴───────┴─────────────┴─────────┘
//! ```
//! `version` counts the syncs; waiters sleep on `event`, which moves with it; `ended` is 1 once the
//! owner has let go of the region. The file is pinned to its length and wholly allocated, so that
//! nobody faults in it, or pays for it by touching it.

#![allow(unsafe_code)] // mmap, mbind, and memory that others write

use std::{
    ffi::c_void,
    num::NonZeroUsize,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap},
        stat::{Mode, fchmod},
    },
    unistd::ftruncate,
};

use super::{Pages, RegionOptions};
use crate::{
    control::regions::Access,
    copy,
    error::NodeError,
    failpoint::shared,
    fork::Birth,
    lane::{LaneFacts, guard},
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// Bytes before the data.
const HEAD: usize = 4096;
/// The largest page, to which the length of the file may be rounded up.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of the largest region: as many as a runtime lets anybody share. More would be allocated,
/// page by page, only to be refused.
const MOST: u64 = 16 << 30;
/// "ipcregio", as the bytes stand in memory.
const MAGIC: u64 = u64::from_le_bytes(*b"ipcregio");
const LAYOUT: u32 = 1;

#[repr(C)]
#[derive(Debug)]
pub(super) struct Head {
    magic: AtomicU64,
    layout: AtomicU32,
    pages: AtomicU32,
    size: AtomicU64,
    pub(super) version: AtomicU64,
    pub(super) event: AtomicU32,
    pub(super) ended: AtomicU32,
}

/// Tells whether memory is that of a region of this size: nobody can resize it, and nobody who
/// touches it pays.
pub(crate) fn fits(facts: LaneFacts, size: u64) -> bool {
    let Some(least) = size.checked_add(HEAD as u64) else { return false };
    facts.pinned
        && size > 0
        && facts.bytes >= least
        && facts.bytes - least < HUGE_PAGE as u64
        && facts.allocated >= facts.bytes
}

/// A region, mapped.
#[derive(Debug)]
pub(super) struct Map {
    base: NonNull<u8>,
    length: NonZeroUsize,
    size: usize,
    writable: bool,
    birth: Birth,
}

// SAFETY: the mapping lives as long as this value. Its head is atomics; its data is only reached by
// copies that tolerate concurrent writes, by whatever thread or process.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Makes a region of this process. Its memfd is pinned to its size, and can be sealed further.
    ///
    /// # Errors
    /// [`NodeError::Config`] for a size or a NUMA node that there is not; [`NodeError::System`]
    /// when memory or descriptors run out.
    pub(super) fn create(
        size: u64,
        options: &RegionOptions,
    ) -> Result<(Map, OwnedFd, Pages), NodeError> {
        if size == 0 || size > MOST {
            return Err(NodeError::Config("a region has from 1 byte to 16 GiB".into()));
        }
        if options.huge_pages
            && let Some(made) = Map::create_of(size, HUGE_PAGE, options)?
        {
            return Ok((made.0, made.1, Pages::Huge));
        }
        let failed = NodeError::system("allocate a region");
        let (map, fd) = Map::create_of(size, 4096, options)?.ok_or(failed(Errno::ENOMEM))?;
        let pages = map.pages();
        Ok((map, fd, pages))
    }

    /// The same, of pages of this length; nothing where there are none of them to be had.
    fn create_of(
        size: u64,
        page: usize,
        options: &RegionOptions,
    ) -> Result<Option<(Map, OwnedFd)>, NodeError> {
        let failed = NodeError::system("allocate a region");
        let is_huge = page == HUGE_PAGE;
        let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        if is_huge {
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        }
        let bytes = (size + HEAD as u64).next_multiple_of(page as u64);
        let fd = match memfd_create("ipc-region", flags) {
            Err(_) if is_huge => return Ok(None),
            other => other.map_err(failed)?,
        };
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?;
        ftruncate(&fd, bytes as i64).map_err(failed)?;
        let map = match Map::of(fd.as_fd(), bytes, size, true) {
            // The pool of huge pages is empty.
            Err(_) if is_huge => return Ok(None),
            other => other?,
        };
        if let Some(node) = options.numa_node {
            map.place(node)?;
        }
        let is_advised = !is_huge && options.huge_pages && map.advise(MmapAdvise::MADV_HUGEPAGE);
        // After their place and kind are chosen: what cannot be mapped now is mapped when touched.
        map.advise(MmapAdvise::MADV_POPULATE_WRITE);
        match fallocate(&fd, FallocateFlags::empty(), 0, bytes as i64) {
            Err(_) if is_huge => return Ok(None),
            other => other.map_err(failed)?,
        }
        let head = map.head();
        head.layout.store(LAYOUT, Ordering::Relaxed);
        head.size.store(size, Ordering::Relaxed);
        let pages = match (is_huge, is_advised) {
            (true, _) => Pages::Huge,
            (false, true) => Pages::Advised,
            (false, false) => Pages::Small,
        };
        shared!(RegionIdentity, {
            head.pages.store(pages as u32, Ordering::Relaxed);
            head.magic.store(MAGIC, Ordering::Release);
        });
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(NodeError::system("seal a region"))?;
        Ok(Some((map, fd)))
    }

    /// Maps another process's region, after checking that it cannot fault.
    ///
    /// # Errors
    /// [`NodeError::Lane`] when it is no region of that size, sealed for that access.
    pub(super) fn of_peer(fd: BorrowedFd<'_>, size: u64, writable: bool) -> Result<Map, NodeError> {
        let facts = LaneFacts::inspect(fd);
        let is_sealed = if writable { facts.writable } else { facts.sealed };
        if !is_sealed || !fits(facts, size) {
            return Err(NodeError::Lane("it is no region, allocated and sealed for its use"));
        }
        let map = Map::of(fd, facts.bytes, size, writable)?;
        let head = map.head();
        if head.magic.load(Ordering::Acquire) != MAGIC
            || head.layout.load(Ordering::Relaxed) != LAYOUT
            || head.size.load(Ordering::Relaxed) != size
        {
            return Err(NodeError::Lane(
                "its head is not that of a region of this version and size",
            ));
        }
        Ok(map)
    }

    fn of(fd: BorrowedFd<'_>, bytes: u64, size: u64, writable: bool) -> Result<Map, NodeError> {
        let length = usize::try_from(bytes).ok().and_then(NonZeroUsize::new);
        let length = length.ok_or(NodeError::Lane("a region of an impossible size"))?;
        let mut access = ProtFlags::PROT_READ;
        access.set(ProtFlags::PROT_WRITE, writable);
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let base = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, fd, 0) };
        let base = base.map_err(NodeError::system("map a region"))?.cast();
        let map = Map { base, length, size: size as usize, writable, birth: Birth::now() };
        guard(base.cast::<c_void>(), length.get())?;
        Ok(map)
    }

    /// Has the memory lie on a NUMA node.
    fn place(&self, node: u32) -> Result<(), NodeError> {
        const MPOL_BIND: i32 = 2;
        let unknown = || NodeError::Config(format!("NUMA node {node} is not online here"));
        let mut mask = [0_u64; 16];
        let word = mask.get_mut(node as usize / 64).ok_or_else(unknown)?;
        *word = 1 << (node % 64);
        // SAFETY: says where pages of a range of ours are to be; the mask has as many bits as told
        // (the kernel counts one more than it reads).
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.base.as_ptr(),
                self.length.get(),
                MPOL_BIND,
                mask.as_ptr(),
                mask.len() * 64 + 1,
                0,
            )
        };
        match Errno::result(result) {
            Ok(_) => Ok(()),
            Err(Errno::EINVAL) => Err(unknown()),
            Err(errno) => Err(NodeError::system("choose a NUMA node")(errno)),
        }
    }

    /// Gives advice about the mapping; tells whether the kernel took it.
    fn advise(&self, advice: MmapAdvise) -> bool {
        // SAFETY: advice about pages of ours, of which none is lost by it.
        unsafe { madvise(self.base.cast(), self.length.get(), advice) }.is_ok()
    }

    pub(super) fn head(&self) -> &Head {
        // SAFETY: the mapping is page-aligned and longer than a Head, which is atomics of at most
        // 8 bytes: of a read-only mapping they are only loaded from.
        unsafe { self.base.cast::<Head>().as_ref() }
    }

    /// What kind of pages it has, as its owner says.
    pub(super) fn pages(&self) -> Pages {
        match self.head().pages.load(Ordering::Relaxed) {
            2 => Pages::Huge,
            1 => Pages::Advised,
            _ => Pages::Small,
        }
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Whether this is the process that mapped it: a forked child has no such memory.
    pub(super) fn is_here(&self) -> bool {
        self.birth.is_here()
    }

    /// Where the data begins.
    pub(super) fn data(&self) -> NonNull<u8> {
        // SAFETY: HEAD is inside the mapping.
        unsafe { self.base.add(HEAD) }
    }

    /// Whether a span is inside the data.
    pub(super) fn has(&self, offset: usize, length: usize) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.size)
    }

    /// Copies out. Panics when the span is not inside.
    pub(super) fn copy_out(&self, offset: usize, target: &mut [u8]) {
        assert!(self.has(offset, target.len()), "callers check spans");
        // SAFETY: (1) inside the mapping, whose size is sealed; (2) `target` is an exclusive slice
        // of private memory.
        unsafe {
            let source = self.data().add(offset);
            copy::from_shared(source.as_ptr(), target.as_mut_ptr(), target.len());
        }
    }

    /// A word of the data that both sides load and store whole; nothing where it is not inside, or
    /// not at a multiple of 8.
    pub(super) fn word(&self, offset: usize) -> Option<&AtomicU64> {
        let is_word = offset.is_multiple_of(8) && self.has(offset, 8);
        // SAFETY: inside the mapping, whose size is sealed, and aligned, as the data begins a page.
        // Others may store there at any time, which atomics are for; whoever stores checks that the
        // mapping is writable.
        is_word.then(|| unsafe { self.data().add(offset).cast().as_ref() })
    }

    /// Copies in. Panics when the span is not inside, or the mapping is not writable.
    pub(super) fn copy_in(&self, offset: usize, source: &[u8]) {
        assert!(self.writable && self.has(offset, source.len()), "callers check spans and rights");
        // SAFETY: (1) `source` is readable; (2) the target is inside the mapping, which is
        // writable, and whose size is sealed.
        unsafe {
            let target = self.data().add(offset);
            copy::into_shared(source.as_ptr(), target.as_ptr(), source.len());
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if !self.birth.is_here() {
            return;
        }
        // SAFETY: mapped by `Map::of` with this length; pointers into it are used within borrows of
        // this value, and those that were given to the user are the user's business.
        let _ = unsafe { munmap(self.base.cast(), self.length.get()) };
    }
}

/// Seals the memory for good: for an access that is granted now.
///
/// # Errors
/// [`NodeError::Config`] when it was sealed for the other.
pub(super) fn seal(fd: &OwnedFd, access: Access) -> Result<(), NodeError> {
    let facts = LaneFacts::inspect(fd.as_fd());
    let seals = match access {
        Access::None => return Ok(()),
        Access::Read if facts.sealed => return Ok(()),
        Access::Write if facts.writable => return Ok(()),
        _ if facts.sealed || facts.writable => {
            let text = "a region is granted for reading or for writing: the first grant decides, \
                        and this one is granted for the other";
            return Err(NodeError::Config(text.into()));
        }
        Access::Read => {
            SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE) | SealFlag::F_SEAL_SEAL
        }
        Access::Write => SealFlag::F_SEAL_SEAL,
    };
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals)).map(drop).map_err(NodeError::system("seal a region"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(size: u64) -> (Map, OwnedFd) {
        let (map, fd, _) = Map::create(size, &RegionOptions::default()).expect("a region");
        (map, fd)
    }

    #[test]
    fn what_one_writes_the_other_reads_to_the_last_byte() {
        let (own, fd) = made(5000);
        seal(&fd, Access::Read).expect("sealed");
        let peer = Map::of_peer(fd.as_fd(), 5000, false).expect("verified");
        own.copy_in(4997, b"end");
        let mut read = [0; 3];
        peer.copy_out(4997, &mut read);
        assert_eq!(&read, b"end");
        assert!(own.has(5000, 0) && !own.has(4998, 3) && !own.has(usize::MAX, 2));
    }

    #[test]
    fn the_first_grant_decides_who_may_write() {
        let (_own, fd) = made(100);
        assert!(Map::of_peer(fd.as_fd(), 100, false).is_err(), "not sealed yet");
        seal(&fd, Access::Read).expect("sealed");
        assert!(Map::of_peer(fd.as_fd(), 100, true).is_err(), "nobody else writes");
        assert!(matches!(seal(&fd, Access::Write), Err(NodeError::Config(_))));
        let length = NonZeroUsize::new(4096).expect("a page");
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping, if there were one.
        let again = unsafe { mmap(None, length, writable, MapFlags::MAP_SHARED, &fd, 0) };
        assert_eq!(again.err(), Some(Errno::EPERM), "by the kernel's word");
        let (_own, fd) = made(100);
        seal(&fd, Access::Write).expect("sealed");
        let writer = Map::of_peer(fd.as_fd(), 100, true).expect("may write");
        writer.copy_in(0, b"x");
        assert!(Map::of_peer(fd.as_fd(), 100, false).is_err());
        assert!(matches!(seal(&fd, Access::Read), Err(NodeError::Config(_))));
    }

    #[test]
    fn what_is_no_region_is_refused() {
        let (_own, fd) = made(100);
        seal(&fd, Access::Read).expect("sealed");
        assert!(Map::of_peer(fd.as_fd(), 101, false).is_err(), "its head says 100");
        assert!(Map::of_peer(fd.as_fd(), 1 << 20, false).is_err(), "not as long");
        let file = tempfile::tempfile().expect("a file");
        file.set_len(8192).expect("sized");
        assert!(Map::of_peer(file.as_fd(), 100, false).is_err());
        for size in [0, u64::MAX, i64::MAX as u64] {
            assert!(Map::create(size, &RegionOptions::default()).is_err(), "{size}");
        }
    }

    #[test]
    fn huge_pages_and_numa_nodes_are_asked_for_and_what_came_of_it_is_told() {
        let options = RegionOptions { huge_pages: true, numa_node: Some(0) };
        let (map, fd, pages) = Map::create(3 << 20, &options).expect("a region");
        assert_eq!(map.pages(), pages);
        assert!(fits(LaneFacts::inspect(fd.as_fd()), 3 << 20), "{pages:?}");
        let nowhere = RegionOptions { numa_node: Some(900), ..RegionOptions::default() };
        assert!(matches!(Map::create(100, &nowhere), Err(NodeError::Config(_))));
    }
}
