//! What is asked for of regions, what comes of it, and how one is named in a message.

use crate::error::{NodeError, Status};

/// What is asked for when a region is made. The default suits most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionOptions {
    /// Pages of 2 MiB: from the kernel's pool where there are some, by its advice otherwise.
    /// [`Region::pages`](super::Region::pages) says what came of it.
    pub huge_pages: bool,
    /// The NUMA node on which the memory is to lie.
    pub numa_node: Option<u32>,
}

/// What kind of pages a region has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Ordinary ones.
    Small = 0,
    /// Ordinary ones, which the kernel was asked to make huge where it can.
    Advised = 1,
    /// Of 2 MiB, from the pool.
    Huge = 2,
}

/// What a grant lets others do with a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionAccess {
    /// Read.
    Read,
    /// Read and write: what stands in the region is arbitrary bytes to everybody then.
    Write,
}

/// Explains why an operation on a region failed. Nothing was changed by it.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The runtime, or the system.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The span is not inside.
    #[error("bytes {offset} to {offset} + {length} are not inside a region of {size}")]
    Range {
        /// Where it begins.
        offset: usize,
        /// Its length.
        length: usize,
        /// The region's.
        size: usize,
    },
    /// The region was granted for reading.
    #[error("this region was granted for reading: only its owner writes it")]
    ReadOnly,
    /// It is another process's to grant.
    #[error("only the owner of a region grants it")]
    NotOwner,
    /// The owner died or let go of it: nothing new will be published. It stays readable.
    #[error("the owner of the region is gone: nothing new will be published in it")]
    OwnerGone,
    /// The owner, or the rules, took the grant back. What is mapped stays mapped.
    #[error("the grant of this region was taken back")]
    Revoked,
    /// This process closed it.
    #[error("this process has closed the region")]
    Closed,
    /// No new version in time.
    #[error("timed out: nothing new was published in time")]
    TimedOut,
    /// The node was interrupted or shut down.
    #[error("the wait was interrupted")]
    Canceled,
}

impl RegionError {
    /// Gives the number by which C knows this error.
    pub fn status(&self) -> Status {
        match self {
            RegionError::Node(error) => error.status(),
            RegionError::Range { .. } => Status::INVALID,
            RegionError::ReadOnly | RegionError::NotOwner | RegionError::Revoked => Status::ACCESS,
            RegionError::OwnerGone => Status::PEER_DIED,
            RegionError::Closed => Status::NOT_FOUND,
            RegionError::TimedOut => Status::TIMED_OUT,
            RegionError::Canceled => Status::CANCELED,
        }
    }
}

/// Names a region in a message, for one who is to map it: 16 bytes that say nothing secret, since
/// only whom it is granted to can map it.
///
/// ```no_run
/// # fn of(region: &ipc::Region, client: &ipc::Client, node: &ipc::Node,
/// #       request: &ipc::Request<'_>) -> Result<(), Box<dyn std::error::Error>> {
/// use ipc::{RegionAccess, RegionRef};
///
/// let passed = region.pass_to(client.dest(), RegionAccess::Read)?;
/// client.call(&passed.to_bytes(), std::time::Duration::from_secs(1))?;
///
/// // In the service:
/// let region = node.map_region(RegionRef::from_bytes(request.payload())?.id)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionRef {
    /// Of the region.
    pub id: u64,
    /// Its size as who passes it says; the one that counts is that of the mapped region.
    pub size: u64,
}

impl RegionRef {
    /// Bytes of one.
    pub const BYTES: usize = 16;

    /// Lays it out, little-endian: the id, then the size.
    pub fn to_bytes(self) -> [u8; RegionRef::BYTES] {
        let mut bytes = [0; RegionRef::BYTES];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    /// Reads one from the first bytes of a message.
    ///
    /// # Errors
    /// [`RegionError::Range`] when there are fewer than [`BYTES`](Self::BYTES).
    pub fn from_bytes(bytes: &[u8]) -> Result<RegionRef, RegionError> {
        let short = || RegionError::Range { offset: 0, length: Self::BYTES, size: bytes.len() };
        let (id, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
        let (size, _) = rest.split_first_chunk::<8>().ok_or_else(short)?;
        Ok(RegionRef { id: u64::from_le_bytes(*id), size: u64::from_le_bytes(*size) })
    }
}
