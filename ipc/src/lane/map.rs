//! How a lane comes to be: made by its owner, or mapped by its peer.

#![allow(unsafe_code)] // mmap

use std::{
    ffi::c_void,
    num::NonZeroUsize,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap},
        stat::{Mode, fchmod},
    },
    unistd::ftruncate,
};

use super::{Lane, LaneFacts, Memory};
use crate::{
    error::NodeError,
    failpoint::shared,
    layout::{self, Geometry},
    sync::Ordering,
};

/// Bytes of the private page before an own lane. It starts with the lane's robust-list node.
const NODE_PAGE: usize = 4096;
/// From a lane's robust-list node to its life word.
pub(crate) const NODE_TO_LIFE: usize = NODE_PAGE + 0x80;

/// An own lane's address range: a private page, then the shared mapping.
#[derive(Debug)]
pub(super) struct OwnMap {
    base: NonNull<c_void>,
    length: usize,
}

impl OwnMap {
    pub(super) fn node(&self) -> NonNull<u8> {
        self.base.cast()
    }
}

impl Drop for OwnMap {
    fn drop(&mut self) {
        // SAFETY: this range was reserved by `create`, belongs to this value alone, and every
        // pointer into it lives in the Lane that owns this value.
        let _ = unsafe { munmap(self.base, self.length) };
    }
}

/// Makes a lane of this process: allocated, mapped, then sealed. Returns its memfd, to be sent.
///
/// # Errors
/// [`NodeError::System`] when memory or descriptors run out.
pub(crate) fn create(geometry: Geometry) -> Result<(Arc<Lane>, OwnedFd), NodeError> {
    let bytes = geometry.lane_bytes();
    let fd = allocate("ipc-lane", bytes as u64)?;
    let map = map_own(&fd, bytes)?;
    // SAFETY: NODE_PAGE is inside the mapping, which is longer.
    let base = unsafe { map.base.cast::<u8>().add(NODE_PAGE) };
    let lane = Lane::from_memory(base, geometry, Memory::Own(map));
    let identity = &lane.header().identity;
    shared!(LaneIdentity, {
        identity.magic.store(layout::MAGIC, Ordering::Relaxed);
        identity.version.store(layout::VERSION, Ordering::Relaxed);
        identity.ordinary_cells.store(geometry.ordinary_cells(), Ordering::Relaxed);
        identity.ordinary_slab.store(geometry.ordinary_slab(), Ordering::Relaxed);
    });
    seal(&fd)?;
    Ok((Arc::new(lane), fd))
}

/// Makes a memfd of this size, all of it allocated: nobody pays for it, or faults, later.
///
/// # Errors
/// [`NodeError::System`] when memory or descriptors run out.
pub(crate) fn allocate(name: &str, bytes: u64) -> Result<OwnedFd, NodeError> {
    let failed = NodeError::system("allocate shared memory");
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let no_exec = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    let fd = match memfd_create(name, flags | no_exec) {
        // Before Linux 6.3 the flag is unknown; mode 0600 has no execute bit either way.
        Err(Errno::EINVAL) => memfd_create(name, flags),
        other => other,
    }
    .map_err(failed)?;
    let size = i64::try_from(bytes).map_err(|_| failed(Errno::EFBIG))?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?;
    ftruncate(&fd, size).map_err(failed)?;
    fallocate(&fd, FallocateFlags::empty(), 0, size).map_err(failed)?;
    Ok(fd)
}

/// Seals a memfd: writable mappings that exist stay; no other can be made after this.
///
/// # Errors
/// [`NodeError::System`] on a kernel without these seals.
pub(crate) fn seal(fd: &OwnedFd) -> Result<(), NodeError> {
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE)
        | SealFlag::F_SEAL_SEAL;
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals))
        .map(drop)
        .map_err(NodeError::system("seal shared memory"))
}

/// Makes a lane whose both views are this process's own, of ordinary memory: no descriptor, which
/// some processes cannot have, and nothing that anybody else could map. The first view writes.
///
/// # Errors
/// [`NodeError::System`] when memory runs out.
pub(crate) fn create_within(geometry: Geometry) -> Result<[Arc<Lane>; 2], NodeError> {
    let length = NODE_PAGE + geometry.lane_bytes();
    let pages = NonZeroUsize::new(length).expect("a page or more");
    let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
    // SAFETY: a fresh anonymous mapping at an address that the kernel chooses.
    let base = unsafe { mmap_anonymous(None, pages, writable, flags) };
    let base = base.map_err(NodeError::system("allocate a lane"))?;
    let map = OwnMap { base, length };
    guard(base, length)?;
    // SAFETY: NODE_PAGE is inside the mapping, which is longer.
    let header = unsafe { base.cast::<u8>().add(NODE_PAGE) };
    let own = Arc::new(Lane::from_memory(header, geometry, Memory::Own(map)));
    let peer = Lane::from_memory(header, geometry, Memory::Within(Arc::clone(&own)));
    Ok([own, Arc::new(peer)])
}

fn map_own(fd: &OwnedFd, bytes: usize) -> Result<OwnMap, NodeError> {
    let failed = NodeError::system("map a lane");
    let length = NonZeroUsize::new(NODE_PAGE + bytes).expect("a page or more");
    let lane_length = NonZeroUsize::new(bytes).expect("a lane has pages");
    let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh anonymous mapping at an address that the kernel chooses.
    let base = unsafe { mmap_anonymous(None, length, writable, MapFlags::MAP_PRIVATE) };
    let map = OwnMap { base: base.map_err(failed)?, length: length.get() };
    // SAFETY: NODE_PAGE is inside the reservation.
    let lane = unsafe { map.base.byte_add(NODE_PAGE) };
    let at = NonZeroUsize::new(lane.as_ptr().addr());
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED | MapFlags::MAP_POPULATE;
    // SAFETY: replaces pages of the reservation just made, which nobody else knows yet.
    unsafe { mmap(at, lane_length, writable, flags, fd, 0) }
        .map_err(NodeError::system("map a lane"))?;
    guard(map.base, length.get())?;
    Ok(map)
}

/// Keeps a mapping out of forked children and out of core dumps.
pub(crate) fn guard(base: NonNull<c_void>, length: usize) -> Result<(), NodeError> {
    for advice in [MmapAdvise::MADV_DONTFORK, MmapAdvise::MADV_DONTDUMP] {
        // SAFETY: changes how the kernel treats a range of ours, not what stands in it.
        unsafe { madvise(base, length, advice) }
            .map_err(NodeError::system("guard shared memory"))?;
    }
    Ok(())
}

/// Maps a peer's lane read-only, after checking that it can be trusted not to fault.
///
/// # Errors
/// [`NodeError::Lane`] when it is no proper lane of that geometry.
pub(crate) fn map_peer(fd: BorrowedFd<'_>, geometry: Geometry) -> Result<Arc<Lane>, NodeError> {
    if !LaneFacts::inspect(fd).fit(geometry) {
        return Err(NodeError::Lane("it is no sealed, allocated memfd of the size agreed on"));
    }
    let bytes = geometry.lane_bytes();
    let fd = fd.as_fd();
    let mut options = memmap2::MmapOptions::new();
    let map = options.len(bytes).populate().map_raw_read_only(&fd);
    let map = map.map_err(|source| NodeError::System { what: "map a peer's lane", source })?;
    let base = NonNull::new(map.as_mut_ptr()).expect("mmap succeeded");
    guard(base.cast(), bytes)?;
    let lane = Lane::from_memory(base, geometry, Memory::Peer(map));
    let identity = &lane.header().identity;
    let fits = identity.magic.load(Ordering::Relaxed) == layout::MAGIC
        && identity.version.load(Ordering::Relaxed) == layout::VERSION
        && identity.ordinary_cells.load(Ordering::Relaxed) == geometry.ordinary_cells()
        && identity.ordinary_slab.load(Ordering::Relaxed) == geometry.ordinary_slab();
    if !fits {
        return Err(NodeError::Lane("its header is not that of a lane of this version and size"));
    }
    Ok(Arc::new(lane))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_lane_is_made_sealed_and_mapped_by_a_peer() {
        let geometry = Geometry::default();
        let (own, fd) = create(geometry).expect("a lane");
        let peer = map_peer(fd.as_fd(), geometry).expect("verified");
        own.header().event.store(7, Ordering::Relaxed);
        assert_eq!(peer.header().event.load(Ordering::Relaxed), 7);
        let node = own.robust_node().expect("an own lane").as_ptr().addr();
        let life = std::ptr::from_ref(&own.header().life).addr();
        assert_eq!(life - node, NODE_TO_LIFE);
    }

    #[test]
    fn a_lane_within_a_process_is_seen_from_both_sides_and_outlives_its_first_view() {
        let [own, peer] = create_within(Geometry::default()).expect("a lane");
        own.header().event.store(7, Ordering::Relaxed);
        assert!(own.robust_node().is_some() && peer.robust_node().is_none());
        drop(own);
        assert_eq!(peer.header().event.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn nobody_can_write_shrink_or_punch_a_lane_once_it_is_made() {
        let geometry = Geometry::default();
        let (_own, fd) = create(geometry).expect("a lane");
        assert_eq!(ftruncate(&fd, 0), Err(Errno::EPERM));
        assert_eq!(ftruncate(&fd, 1 << 20), Err(Errno::EPERM));
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        assert_eq!(fallocate(&fd, punch, 0, 4096), Err(Errno::EPERM));
        assert_eq!(nix::unistd::write(&fd, b"x"), Err(Errno::EPERM));
        let bytes = NonZeroUsize::new(geometry.lane_bytes()).expect("pages");
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping, if there were one.
        let again = unsafe { mmap(None, bytes, writable, MapFlags::MAP_SHARED, &fd, 0) };
        assert_eq!(again.err(), Some(Errno::EPERM));
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let reopened = std::fs::OpenOptions::new().read(true).write(true).open(path);
        if let Ok(reopened) = reopened {
            // SAFETY: as above.
            let again = unsafe { mmap(None, bytes, writable, MapFlags::MAP_SHARED, &reopened, 0) };
            assert_eq!(again.err(), Some(Errno::EPERM));
        }
    }

    #[test]
    fn what_is_no_lane_is_refused() {
        let geometry = Geometry::default();
        let unsealed = allocate("test", geometry.lane_bytes() as u64).expect("a memfd");
        assert!(matches!(map_peer(unsealed.as_fd(), geometry), Err(NodeError::Lane(_))));
        let file = tempfile::tempfile().expect("a file");
        assert!(matches!(map_peer(file.as_fd(), geometry), Err(NodeError::Lane(_))));
        let (_own, fd) = create(geometry).expect("a lane");
        let larger = Geometry::new(128, 8192).expect("in range");
        assert!(matches!(map_peer(fd.as_fd(), larger), Err(NodeError::Lane(_))));
        let other = Geometry::new(16, 8192 * 2).expect("in range");
        assert!(matches!(map_peer(fd.as_fd(), other), Err(NodeError::Lane(_))));
    }
}
