//! The receiving side of bulk memory: the peer's arenas, and views into them.

use std::{
    collections::BTreeMap,
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Descriptor, MOST_ARENAS, MOST_BYTES, NOTICE, Notice, arena::PeerArena};
use crate::{
    control::packet::{self, Received},
    error::PeerCorrupt,
    lane::Lane,
    sync::Ordering,
};

/// Packets read at a time: more than a socket holds, so that a peer that writes without pause
/// keeps nobody here.
const MOST_PACKETS: usize = 1024;

/// Keeps the peer's arenas.
#[derive(Debug)]
pub(crate) struct Borrower {
    /// The own lane, where loans are given back.
    own: Arc<Lane>,
    arenas: Mutex<BTreeMap<u32, Arc<PeerArena>>>,
}

impl Borrower {
    pub(crate) fn new(own: &Arc<Lane>) -> Borrower {
        Borrower { own: Arc::clone(own), arenas: Mutex::default() }
    }

    /// Hears what stands in the channel's socket: doorbells and arenas. Returns whether the peer
    /// still has its end.
    ///
    /// # Errors
    /// [`PeerCorrupt::Arena`] for an arena that is none, or over the quota.
    pub(crate) fn hear(&self, bell: BorrowedFd<'_>) -> Result<bool, PeerCorrupt> {
        let mut arenas = self.arenas();
        let mut packet = [0; NOTICE + 1];
        for _ in 0..MOST_PACKETS {
            match packet::receive(bell, &mut packet) {
                Ok(Received::Packet(NOTICE, fds)) => {
                    let mut notice = [0; NOTICE];
                    notice.copy_from_slice(&packet[..NOTICE]);
                    admit(&mut arenas, notice, &fds).ok_or(PeerCorrupt::Arena)?;
                }
                // A doorbell; descriptors that came with it are closed.
                Ok(Received::Packet(..) | Received::Oversized) => {}
                Ok(Received::Closed) => return Ok(false),
                // Empty; or out of our own means, which a frame that needs the arena will tell.
                Err(_) => return Ok(true),
            }
        }
        Ok(true)
    }

    /// Looks at what a descriptor describes.
    ///
    /// # Errors
    /// [`PeerCorrupt::Arena`] when it is in no arena that the peer has handed over.
    pub(crate) fn view(
        &self,
        bell: BorrowedFd<'_>,
        descriptor: Descriptor,
    ) -> Result<View, PeerCorrupt> {
        let known = || self.arenas().get(&descriptor.arena).map(Arc::clone);
        let arena = if let Some(arena) = known() {
            arena
        } else {
            // Handed over before the frame was published, and not heard yet.
            self.hear(bell)?;
            known().ok_or(PeerCorrupt::Arena)?
        };
        let Descriptor { slot, offset, length, generation, .. } = descriptor;
        let end = offset.checked_add(length).filter(|end| *end <= arena.size());
        end.ok_or(PeerCorrupt::Arena)?;
        let length = length as usize;
        let own = Arc::clone(&self.own);
        Ok(View(Source::Lent { arena, offset, length, own, slot: slot as usize, generation }))
    }

    fn arenas(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<PeerArena>>> {
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a notice in; nothing when it is a lie.
fn admit(
    arenas: &mut BTreeMap<u32, Arc<PeerArena>>,
    notice: [u8; NOTICE],
    fds: &[OwnedFd],
) -> Option<()> {
    match (Notice::from_bytes(notice)?, fds) {
        (Notice::Arena { number, bytes }, [fd]) => {
            let held: u64 = arenas.values().map(|arena| arena.size()).sum();
            let is_within = held.checked_add(bytes)? <= MOST_BYTES && arenas.len() < MOST_ARENAS;
            if !is_within || arenas.contains_key(&number) {
                return None;
            }
            arenas.insert(number, Arc::new(PeerArena::map(fd.as_fd(), bytes).ok()?));
            Some(())
        }
        (Notice::Gone { number }, []) => arenas.remove(&number).map(drop),
        _ => None,
    }
}

/// A payload where it lies: in bulk memory of the peer, lent until this is dropped, or in private
/// memory when it was small.
///
/// The peer may change what it has lent at any time. So there is no slice of it: bytes are copied
/// out, and each copy may find others. Decide on one copy.
pub struct View(Source);

enum Source {
    Lent {
        arena: Arc<PeerArena>,
        offset: u64,
        length: usize,
        /// Where it is given back.
        own: Arc<Lane>,
        slot: usize,
        generation: u32,
    },
    Private(Vec<u8>),
}

impl View {
    /// Of bytes that are private already.
    pub(crate) fn of(bytes: Vec<u8>) -> View {
        View(Source::Private(bytes))
    }

    /// The bytes, to be filled, of a private view.
    pub(crate) fn private_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Source::Private(bytes) => bytes,
            Source::Lent { .. } => &mut [],
        }
    }

    /// Bytes of the payload.
    pub fn len(&self) -> usize {
        match &self.0 {
            Source::Lent { length, .. } => *length,
            Source::Private(bytes) => bytes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it lies in memory of the peer.
    pub fn is_lent(&self) -> bool {
        matches!(self.0, Source::Lent { .. })
    }

    /// Copies bytes from `offset` on to the front of `target`; returns how many there were, fewer
    /// than its length only at the payload's end.
    pub fn read_at(&self, offset: usize, target: &mut [u8]) -> usize {
        let length = target.len().min(self.len().saturating_sub(offset));
        let target = &mut target[..length];
        match &self.0 {
            _ if length == 0 => {}
            Source::Lent { arena, offset: begin, .. } => arena.copy(begin + offset as u64, target),
            Source::Private(bytes) => target.copy_from_slice(&bytes[offset..offset + length]),
        }
        length
    }

    /// Copies the payload to the front of `target`, as much as fits; returns how much that was.
    pub fn copy_to(&self, target: &mut [u8]) -> usize {
        self.read_at(0, target)
    }

    /// Copies the payload.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.copy_into(&mut bytes);
        bytes
    }

    /// Copies the payload into a vector in place of what it had.
    pub(crate) fn copy_into(&self, bytes: &mut Vec<u8>) {
        bytes.resize(self.len(), 0);
        self.read_at(0, bytes);
    }

    /// Turns it into bytes of one's own, and gives it back.
    pub fn into_vec(mut self) -> Vec<u8> {
        match &mut self.0 {
            Source::Private(bytes) => std::mem::take(bytes),
            Source::Lent { .. } => self.to_vec(),
        }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("len", &self.len()).field("lent", &self.is_lent()).finish()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Source::Lent { own, slot, generation, .. } = &self.0 {
            // Release: our reads come before the sender's next writes.
            own.header().released[*slot].store(*generation, Ordering::Release);
        }
    }
}
