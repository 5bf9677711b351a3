//! The sending side of an end: messages in, and what has to go before them.

use super::{Transmit, ring_of};
use crate::{
    bulk,
    frame::{Kind, Label},
    layout::{EXTENSION, Ring},
    ring::{Producer, PushError},
};

impl Transmit {
    /// The id of a message that needs no slot.
    #[inline]
    pub(crate) fn one_way_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    pub(crate) fn producer(&mut self, ring: Ring) -> &mut Producer {
        match ring {
            Ring::Urgent => &mut self.urgent,
            Ring::Ordinary => &mut self.ordinary,
        }
    }

    /// Pushes as much of a message as there is room for. `sent` says how far it got before, and
    /// is brought up to date.
    #[inline(always)]
    pub(crate) fn push(
        &mut self,
        label: Label,
        payload: &[u8],
        sent: &mut usize,
    ) -> Result<(), PushError> {
        if self.owes {
            self.settle()?;
        }
        self.push_frames(label, payload, sent)
    }

    /// The one way into a ring: sealed, where the channel is encrypted.
    #[inline(always)]
    pub(crate) fn push_frames(
        &mut self,
        label: Label,
        payload: &[u8],
        sent: &mut usize,
    ) -> Result<(), PushError> {
        if self.sealer.is_some() {
            // By value: what is referred to lies in memory on the plain way, too.
            let (now, pushed) = self.push_sealed(label, payload, *sent);
            *sent = now;
            return pushed;
        }
        let producer = self.producer(ring_of(label.priority()));
        loop {
            *sent = producer.push(label, payload, *sent)?;
            if *sent >= payload.len() {
                return Ok(());
            }
        }
    }

    /// Counts a message that was sent.
    #[inline(always)]
    pub(crate) fn count(&self, label: Label, payload: &[u8]) {
        if label.is_message() {
            let bytes =
                if label.is_bare() { payload.len() as u64 } else { odd_length(label, payload) };
            self.board.sender.sent(1, bytes);
        }
    }

    /// Counts so many messages that were sent.
    #[cold]
    pub(crate) fn count_many(&self, (messages, bytes): (u64, u64)) {
        self.board.sender.sent(messages, bytes);
    }

    /// Counts a message that found no room.
    pub(crate) fn count_full(&self) {
        self.board.sender.full.add(1);
    }

    /// The ring on which there was no room for a message, or for what has to go before it.
    pub(crate) fn awaited(&self, label: Label) -> Ring {
        let first = self.aborted.last().copied().or_else(|| self.late()).unwrap_or(label);
        ring_of(first.priority())
    }

    /// Gives up a message of which some frames are sent and others never will be.
    pub(crate) fn abort(&mut self, label: Label) {
        self.aborted.push(Label::new(Kind::Cancel, label.priority()).with_id(label.id()));
        self.owes = true;
        let _ = self.settle();
    }

    /// Sends what has to go before the next message.
    #[cold]
    pub(crate) fn settle(&mut self) -> Result<(), PushError> {
        if self.retired {
            return Err(PushError::Retired);
        }
        self.tell_aborted()?;
        self.send_late()?;
        self.owes = false;
        Ok(())
    }

    fn tell_aborted(&mut self) -> Result<(), PushError> {
        while let Some(cancel) = self.aborted.last().copied() {
            self.push_frames(cancel, &[], &mut 0)?;
            self.aborted.pop();
        }
        Ok(())
    }
}

/// The length of the message whose payload has an extension before it, or lies in bulk memory.
#[cold]
fn odd_length(label: Label, payload: &[u8]) -> u64 {
    let behind = if label.is_extended() { &payload[EXTENSION..] } else { payload };
    if label.is_in_bulk() { bulk::length(behind) } else { behind.len() as u64 }
}
