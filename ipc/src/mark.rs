//! The word by which each end of a channel says where it stands, while a name changes hands: what
//! one of them relies on, the other knows.
//!
//! ```text
//!  client, which leaves            service, which begins to serve
//!  mark = GONE       ─┐         ┌─ mark = epoch
//!  full fence         │         │  full fence
//!  its mark?          ┘         └▶ its mark? GONE: takes nothing
//! ```
//! Either the client sees the epoch, and counts on nothing; or the service sees that it left. One
//! that lets go stores 0 after the last frame that it takes: who sees that sees all of them taken.

use crate::{
    failpoint::shared,
    layout::Header,
    sync::{Ordering, fence},
};

/// What a client that has left shows: it wants nothing more. One that wants nothing of a standby
/// shows 1, or the low half of the epoch at which it was served last: none is as small as these.
pub(crate) const GONE: u32 = 2;

/// Whether a client that shows this wants to be served by one that shows that: not by one whose
/// epoch is before the one at which it was served.
fn wants(client: u32, service: u32) -> bool {
    client <= GONE || !is_before(service, client)
}

/// Tells whether one low half is that of an earlier epoch than another.
fn is_before(mark: u32, other: u32) -> bool {
    (mark.wrapping_sub(other) as i32) < 0
}

/// Where an end says that it stands.
pub(crate) fn of(peer: &Header) -> u32 {
    peer.identity.mark.load(Ordering::Acquire)
}

/// Says where this end stands.
pub(crate) fn set(own: &Header, mark: u32) {
    shared!(Mark, own.identity.mark.store(mark, Ordering::Release));
}

/// Says that this end serves at an epoch. Returns whether the peer still wants that: either it
/// sees the mark when it looks after it has left, or was served elsewhere, or this end sees that.
pub(crate) fn show(own: &Header, peer: &Header, mark: u32) -> bool {
    set(own, mark);
    fence(Ordering::SeqCst);
    let peer = of(peer);
    peer != GONE && wants(peer, mark)
}

/// Says, before anything is sent, that this end was served at that epoch: the peer takes nothing at
/// one before it. Returns whether the peer may serve, or stands by.
pub(crate) fn require(own: &Header, peer: &Header, served_at: u32) -> bool {
    set(own, served_at);
    fence(Ordering::SeqCst);
    let peer = of(peer);
    peer == 0 || wants(served_at, peer)
}

/// Leaves: wants nothing more of the peer. Returns the peer's mark after that: where it is 0, the
/// peer takes nothing more, whatever becomes of it.
pub(crate) fn leave(own: &Header, peer: &Header) -> u32 {
    set(own, GONE);
    fence(Ordering::SeqCst);
    of(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_wants_to_be_served_at_an_epoch_before_the_one_at_which_he_was() {
        assert!(wants(0, 65) && wants(1, 65), "it was served nowhere");
        assert!(wants(70, 70) && wants(70, 71) && !wants(70, 69));
        assert!(wants(u32::MAX, 64), "only low halves are shown");
    }
}
