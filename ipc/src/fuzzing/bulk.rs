//! Bulk memory before a liar: what it says of arenas and loans, and what the honest end lends it.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use super::{Claims, End, MOST_BULK, Stage, kind, ring};
use crate::{
    CallError, Loan, NodeError, View,
    bulk::OwnArena,
    channel::check_payload,
    control::packet,
    frame::{DESCRIPTOR, Kind, Label},
    link::{Limit, Parcel, Sink},
    sync::Ordering,
};

/// Makes an arena as it should be, of whole pages; its memfd.
///
/// # Errors
/// Those of making memory and descriptors.
pub fn arena(bytes: u64) -> Result<OwnedFd, NodeError> {
    OwnArena::create(bytes).map(|(_, fd)| fd)
}

impl Stage {
    /// Opens a channel on which the `honest` end is the library's, and lends.
    ///
    /// # Errors
    /// Those of making lanes and descriptors.
    pub fn lending(honest: End) -> Result<Stage, NodeError> {
        Stage::with_bulk(honest, MOST_BULK)
    }

    /// Has the liar say something on the channel's socket.
    pub fn say(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        // Full, or hung up.
        let _ = packet::send(self.bell.as_fd(), bytes, fds);
    }

    /// Has the liar send a message that lies where these words say.
    pub fn describe(&mut self, claims: Claims, words: [u64; 4]) {
        let label = Label::new(kind(claims.kind), u32::from(claims.priority & 7));
        let label = label.with_id(claims.id).with_deadline(claims.deadline).in_bulk();
        let mut bytes = [0; DESCRIPTOR];
        for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *chunk = word.to_le_bytes();
        }
        let _ = self.tx[ring(claims.urgent) as usize].push(label, &bytes, 0);
    }

    /// Has the liar say that it gave a loan back.
    pub fn release(&self, slot: u8, generation: u32) {
        let released = &self.lies.header().released;
        released[usize::from(slot) % released.len()].store(generation, Ordering::Release);
    }

    /// Has the liar say that it cannot map an arena.
    pub fn refuse_arena(&self, number: u32) {
        self.lies.header().identity.unmapped.store(number, Ordering::Release);
    }

    /// Has the honest client take a loan.
    ///
    /// # Errors
    /// As of [`Stage::call`].
    pub fn loan(&self, size: usize) -> Result<Loan, CallError> {
        let link = self.link()?;
        check_payload(size, link.channel.max_payload)?;
        link.channel.lend(size).ok_or(CallError::Full)
    }

    /// Has the honest client send a loan, and wait so long for the answer.
    ///
    /// # Errors
    /// As of [`Stage::call`].
    pub fn call_loaned(&self, loan: Loan, timeout: Duration) -> Result<View, CallError> {
        let (link, label) = (self.link()?, Label::new(Kind::Request, 2));
        let mut answer = None;
        let limit = Limit::after(Some(timeout));
        link.call(label, Parcel::Loan(loan), limit, &mut Sink::View(&mut answer))?;
        Ok(answer.unwrap_or_else(|| View::of(Vec::new())))
    }
}
