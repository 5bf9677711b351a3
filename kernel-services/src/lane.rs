//! What can be known of a lane from its descriptor alone.

use std::os::fd::BorrowedFd;

use ipc::Geometry;
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::stat::fstat,
};

/// Facts about a descriptor that a node offers as its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaneFacts {
    /// A memfd that nobody can resize and nobody else can write.
    pub(crate) sealed: bool,
    /// Its length.
    pub(crate) bytes: u64,
    /// How much of it has memory: a hole would be allocated by whoever reads it.
    pub(crate) allocated: u64,
}

impl LaneFacts {
    /// Tells whether this is a whole lane of that geometry, which is at most about 20 MiB.
    pub(crate) fn fit(self, geometry: Geometry) -> bool {
        self.sealed && self.bytes == geometry.lane_bytes() as u64 && self.allocated >= self.bytes
    }
}

/// Looks at a descriptor. What is no memfd has no such seals.
pub(crate) fn inspect(fd: BorrowedFd<'_>) -> LaneFacts {
    const NOTHING: LaneFacts = LaneFacts { sealed: false, bytes: 0, allocated: 0 };
    let required = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_FUTURE_WRITE
        | SealFlag::F_SEAL_SEAL;
    let Ok(seals) = fcntl(fd, FcntlArg::F_GET_SEALS) else { return NOTHING };
    let Ok(stat) = fstat(fd) else { return NOTHING };
    LaneFacts {
        sealed: SealFlag::from_bits_retain(seals).contains(required),
        bytes: u64::try_from(stat.st_size).unwrap_or(0),
        // st_blocks counts 512 bytes each, whatever the file system's own blocks are.
        allocated: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sealed_full_lane_of_that_size_fits() {
        let geometry = Geometry::default();
        let bytes = geometry.lane_bytes() as u64;
        let good = LaneFacts { sealed: true, bytes, allocated: bytes };
        assert!(good.fit(geometry));
        assert!(!LaneFacts { sealed: false, ..good }.fit(geometry));
        assert!(!LaneFacts { bytes: bytes - 1, ..good }.fit(geometry));
        assert!(!LaneFacts { bytes: bytes + 1, allocated: bytes + 1, ..good }.fit(geometry));
        assert!(!LaneFacts { allocated: bytes - 4096, ..good }.fit(geometry));
    }

    #[test]
    fn the_largest_lane_is_bounded() {
        let largest = Geometry::new(*Geometry::CELLS.end(), *Geometry::SLAB.end());
        assert!(largest.expect("in range").lane_bytes() <= 64 << 20);
    }
}
