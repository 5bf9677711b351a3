//! The receiving side of bulk memory: the peer's arenas, and views into them.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::errno::Errno;

use super::{Descriptor, MOST_ARENAS, MOST_BYTES, NOTICE, Notice, arena::PeerArena};
use crate::{
    control::{
        closer::{Closer, Stranger},
        packet::{self, Received},
    },
    error::{CallError, NodeError, PeerCorrupt},
    failpoint::shared,
    lane::Lane,
    sync::{AtomicU32, Ordering},
};

/// Packets read at a time: more than a socket holds, so that a peer that writes without pause
/// keeps nobody here.
const MOST_PACKETS: usize = 1024;

/// Keeps the peer's arenas.
#[derive(Debug)]
pub(crate) struct Borrower {
    desk: Arc<Desk>,
    arenas: Mutex<BTreeMap<u32, Known>>,
    closer: Arc<Closer>,
}

/// An arena that the peer has handed over.
#[derive(Clone, Debug)]
enum Known {
    Mapped(Arc<Shared>),
    /// It may be as it should, but this process has no means for it: what failed, and its bytes.
    Unmapped(Errno, u64),
}

/// A mapped arena, for the channel and for views. The last of them may be the last in the world to
/// have it, and would have all its pages freed: by a thread that has nothing else to do.
#[derive(Debug)]
struct Shared {
    /// There until this is dropped.
    arena: Option<PeerArena>,
    closer: Arc<Closer>,
}

impl Deref for Shared {
    type Target = PeerArena;

    fn deref(&self) -> &PeerArena {
        self.arena.as_ref().expect("there until it is dropped")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(arena) = self.arena.take().filter(PeerArena::is_here) {
            let bytes = arena.size();
            self.closer.unmap(arena, bytes);
        }
    }
}

impl Known {
    fn size(&self) -> u64 {
        match self {
            Known::Mapped(arena) => arena.size(),
            Known::Unmapped(_, bytes) => *bytes,
        }
    }
}

/// Why there is no view of what a descriptor describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// The peer lied.
    Lie(PeerCorrupt),
    /// This process had no descriptor, or no address space, for the arena. The loan was given
    /// back, and the peer is told to send nothing else that way.
    NoMeans(Errno),
}

impl From<PeerCorrupt> for Unread {
    fn from(lie: PeerCorrupt) -> Unread {
        Unread::Lie(lie)
    }
}

/// How a call ends whose answer cannot be read for want of means.
pub(crate) fn no_means(errno: Errno) -> CallError {
    NodeError::system("map the memory of an answer")(errno).into()
}

/// Where loans are given back: the own lane.
#[derive(Debug)]
struct Desk {
    lane: Arc<Lane>,
    /// A bit for each slot whose loan is here.
    out: AtomicU32,
}

impl Desk {
    /// Takes a loan in; false when its slot cannot be lent, as an honest sender would know.
    fn take(&self, slot: usize, generation: u32) -> bool {
        let given_back = self.lane.header().released[slot].load(Ordering::Relaxed);
        let bit = 1 << slot;
        given_back != generation && self.out.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    fn give_back(&self, slot: usize, generation: u32) {
        // Before the peer may lend the slot again.
        self.out.fetch_and(!(1 << slot), Ordering::Relaxed);
        // Release: our reads come before the sender's next writes.
        let released = &self.lane.header().released[slot];
        shared!(Released, released.store(generation, Ordering::Release));
    }
}

impl Borrower {
    pub(crate) fn new(own: &Arc<Lane>, closer: &Arc<Closer>) -> Borrower {
        let desk = Desk { lane: Arc::clone(own), out: AtomicU32::new(0) };
        let (desk, arenas) = (Arc::new(desk), Mutex::default());
        Borrower { desk, arenas, closer: Arc::clone(closer) }
    }

    /// Hears what stands in the channel's socket: doorbells and arenas. Returns whether the peer
    /// still has its end.
    ///
    /// # Errors
    /// [`PeerCorrupt::Arena`] for an arena that is none, or over the quota, and for descriptors
    /// where none are due: who sends them would fill the closer.
    pub(crate) fn hear(&self, bell: BorrowedFd<'_>) -> Result<bool, PeerCorrupt> {
        let mut arenas = self.arenas();
        let mut packet = [0; NOTICE + 1];
        for _ in 0..MOST_PACKETS {
            let parcel = match packet::receive(bell, &mut packet, &self.closer) {
                Ok(Received::Packet(NOTICE, fds)) => Some(fds),
                Ok(Received::Bereft(NOTICE)) => None,
                Ok(Received::Packet(_, fds) | Received::Oversized(fds)) if fds.is_empty() => {
                    continue; // A doorbell.
                }
                Ok(Received::Closed) => return Ok(false),
                Ok(_) => return Err(PeerCorrupt::Arena),
                Err(_) => return Ok(true),
            };
            let mut notice = [0; NOTICE];
            notice.copy_from_slice(&packet[..NOTICE]);
            admit(&mut arenas, notice, parcel, &self.closer).ok_or(PeerCorrupt::Arena)?;
        }
        Ok(true)
    }

    /// Looks at what a descriptor describes.
    ///
    /// # Errors
    /// [`Unread`]: it is in no arena that the peer has handed over, or in one that could not be
    /// mapped.
    pub(crate) fn view(
        &self,
        bell: BorrowedFd<'_>,
        descriptor: Descriptor,
    ) -> Result<View, Unread> {
        let Descriptor { arena: number, slot, offset, length, generation } = descriptor;
        let known = || self.arenas().get(&number).cloned();
        let known = if let Some(known) = known() {
            known
        } else {
            // Handed over before the frame was published, and not heard yet.
            self.hear(bell)?;
            known().ok_or(PeerCorrupt::Arena)?
        };
        let slot = slot as usize;
        let is_inside = offset.checked_add(length).is_some_and(|end| end <= known.size());
        if !is_inside || !self.desk.take(slot, generation) {
            return Err(PeerCorrupt::Arena.into());
        }
        let arena = match known {
            Known::Mapped(arena) => arena,
            Known::Unmapped(errno, _) => {
                let said = &self.desk.lane.header().identity.unmapped;
                shared!(Unmapped, said.store(number, Ordering::Relaxed));
                self.desk.give_back(slot, generation);
                return Err(Unread::NoMeans(errno));
            }
        };
        let (desk, length) = (Arc::clone(&self.desk), length as usize);
        Ok(View(Source::Lent { arena, offset, length, desk, slot, generation }))
    }

    fn arenas(&self) -> MutexGuard<'_, BTreeMap<u32, Known>> {
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a notice in, and what came with it, if there was room for that; nothing when it is a lie.
fn admit(
    arenas: &mut BTreeMap<u32, Known>,
    notice: [u8; NOTICE],
    mut parcel: Option<Vec<Stranger>>,
    closer: &Arc<Closer>,
) -> Option<()> {
    let (number, bytes) = match (Notice::from_bytes(notice)?, parcel.as_deref()) {
        (Notice::Arena { number, bytes }, None | Some([_])) => (number, bytes),
        (Notice::Gone { number }, Some([])) => return arenas.remove(&number).map(drop),
        _ => return None,
    };
    let held: u64 = arenas.values().map(Known::size).sum();
    let is_within = held.checked_add(bytes)? <= MOST_BYTES && arenas.len() < MOST_ARENAS;
    if !is_within || arenas.contains_key(&number) {
        return None;
    }
    let known = match parcel.as_mut().and_then(Vec::pop) {
        Some(fd) => match PeerArena::map(fd.as_fd(), bytes) {
            Ok(arena) => {
                // Sealed memory, which the mapping keeps.
                drop(fd.vouched());
                Known::Mapped(Arc::new(Shared { arena: Some(arena), closer: Arc::clone(closer) }))
            }
            // Without an errno it is no failure of ours.
            Err(error) => Known::Unmapped(Errno::from_raw(error.os_error()?), bytes),
        },
        None => Known::Unmapped(Errno::EMFILE, bytes),
    };
    arenas.insert(number, known);
    Some(())
}

/// A payload where it lies: in bulk memory of the peer, lent until this is dropped, or in private
/// memory when it was small.
///
/// The peer may change what it has lent at any time. So there is no slice of it: bytes are copied
/// out, and each copy may find others. Decide on one copy. A forked child finds none.
pub struct View(Source);

enum Source {
    Lent {
        arena: Arc<Shared>,
        offset: u64,
        length: usize,
        /// Where it is given back.
        desk: Arc<Desk>,
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
            Source::Lent { arena, .. } if !arena.is_here() => return 0,
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
        let length = self.read_at(0, bytes);
        bytes.truncate(length);
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
        let Source::Lent { arena, desk, slot, generation, .. } = &self.0 else { return };
        if arena.is_here() {
            desk.give_back(*slot, *generation);
        } else {
            // A forked child has not got the lane.
            std::mem::forget(Arc::clone(desk));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Geometry, bulk::arena::OwnArena, lane};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::OwnedFd;

    /// A borrower that was handed arenas 1, and 2, for which there was no descriptor.
    fn borrower() -> (Borrower, OwnedFd) {
        let (own, _) = lane::create(Geometry::default()).expect("a lane");
        let closer = Closer::new().expect("a closer");
        let borrower = Borrower::new(&own, &closer);
        let (_arena, fd) = OwnArena::create(4096).expect("an arena");
        let parcels = [Some(vec![Stranger::new(fd, &closer)]), None];
        for (number, parcel) in (1..).zip(parcels) {
            let notice = Notice::Arena { number, bytes: 4096 }.to_bytes();
            admit(&mut borrower.arenas(), notice, parcel, &closer).expect("no lie");
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let bells = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
        (borrower, bells.expect("a pair").0)
    }

    const FIRST: Descriptor = Descriptor { arena: 1, slot: 5, offset: 0, length: 8, generation: 1 };

    #[test]
    fn a_slot_is_lent_once_at_a_time_and_never_as_it_was_last() {
        let (borrower, bell) = borrower();
        let look = |descriptor| borrower.view(bell.as_fd(), descriptor);
        let lie = Some(Unread::Lie(PeerCorrupt::Arena));
        let view = look(FIRST).expect("lent");
        assert_eq!(look(Descriptor { generation: 2, ..FIRST }).err(), lie);
        let other = look(Descriptor { slot: 6, ..FIRST }).expect("another slot");
        drop(view);
        assert_eq!(look(FIRST).err(), lie);
        drop(look(Descriptor { generation: 2, ..FIRST }).expect("lent again"));
        drop(other);
        let released = &borrower.desk.lane.header().released;
        assert_eq!([5, 6].map(|slot| released[slot].load(Ordering::Relaxed)), [2, 1]);
    }

    #[test]
    fn an_arena_without_a_descriptor_to_spare_is_no_lie_of_its_sender() {
        let (borrower, bell) = borrower();
        let lost = Descriptor { arena: 2, ..FIRST };
        let unread = borrower.view(bell.as_fd(), lost).err();
        assert_eq!(unread, Some(Unread::NoMeans(Errno::EMFILE)));
        let header = borrower.desk.lane.header();
        assert_eq!(header.released[5].load(Ordering::Relaxed), 1, "given back at once");
        assert_eq!(header.identity.unmapped.load(Ordering::Relaxed), 2, "and its sender is told");
        let outside = Descriptor { offset: 4096, slot: 6, ..lost };
        let lie = Some(Unread::Lie(PeerCorrupt::Arena));
        assert_eq!(borrower.view(bell.as_fd(), outside).err(), lie);
    }
}
