//! Many one-way messages at a time.

use super::Client;
use crate::{
    Priority,
    board::Tally,
    channel::{Claimed, Transmit, check_payload},
    error::CallError,
    frame::{Kind, Label},
    link::{FOREVER, Limit, Link, extended},
    trace,
};

/// Many one-way messages, of priority NORMAL, under one claim.
#[derive(Debug)]
pub struct Burst<'a> {
    client: &'a Client,
    link: &'a Link,
    /// Given up only while waiting for room.
    tx: Claimed<'a, Transmit>,
    /// Sent, and not yet counted on the board: counters there per message are seen in a stream.
    untold: Tally,
    /// The trace that it was begun within.
    context: Option<trace::Context>,
}

impl<'a> Burst<'a> {
    pub(super) fn begin(client: &'a Client, link: &'a Link) -> Burst<'a> {
        let (tx, context) = (link.channel.tx.claim(), trace::current());
        Burst { client, link, tx, untold: Tally::NOTHING, context }
    }

    /// Sends one message, waiting for room as long as it takes.
    ///
    /// # Errors
    /// [`CallError::TooLarge`]: it was not sent, the burst goes on. [`CallError::Full`]: the same,
    /// of a name with standbys, when what is kept for them takes 64 MiB. [`CallError::PeerDied`],
    /// [`CallError::PeerCorrupt`], [`CallError::Canceled`].
    #[inline(always)]
    pub fn send(&mut self, payload: &[u8]) -> Result<(), CallError> {
        check_payload(payload.len(), self.link.channel.max_payload)?;
        let id = self.tx.one_way_id();
        let label = Label::new(Kind::OneWay, Priority::Normal.level()).with_id(id as u32);
        let is_counted = match self.context {
            None => self.put((label, id), payload, payload)?,
            Some(context) => self.put_traced(context, (label, id), payload)?,
        };
        if !is_counted && self.untold.add(payload.len() as u64) {
            self.tx.count_many(self.untold.take());
        }
        Ok(())
    }

    /// Sends the bytes of a message. Returns whether another channel took it, and counted it.
    #[inline(always)]
    fn put(
        &mut self,
        (label, id): (Label, u64),
        bytes: &[u8],
        payload: &[u8],
    ) -> Result<bool, CallError> {
        if self.tx.kept.is_some() {
            self.link.reserve(&mut self.tx, bytes.len())?;
        }
        match self.link.send_frames(&mut self.tx, label, bytes, Limit::Room(FOREVER)) {
            Ok(()) => {}
            Err(CallError::PeerDied { .. }) if self.client.is_relayed() => {
                self.send_elsewhere(payload)?;
                return Ok(true);
            }
            Err(error) => return Err(error),
        }
        if self.tx.kept.is_some() {
            self.link.keep(&mut self.tx, (label, id), bytes);
        }
        Ok(false)
    }

    #[cold]
    fn put_traced(
        &mut self,
        context: trace::Context,
        (label, id): (Label, u64),
        payload: &[u8],
    ) -> Result<bool, CallError> {
        let bytes = extended(context, payload);
        self.put((label.extended(), id), &bytes, payload)
    }

    /// Sends one by the channel that has taken the place of this one.
    #[cold]
    fn send_elsewhere(&mut self, payload: &[u8]) -> Result<(), CallError> {
        let client = self.client;
        self.tx.give_up_while(|| client.send(payload, None)).map(drop)
    }
}

impl Drop for Burst<'_> {
    fn drop(&mut self) {
        self.tx.count_many(self.untold.take());
        // Under the claim: nothing waits here, and a peer is woken at most once.
        self.link.channel.after_push();
    }
}
