//! The receiving side of an end: takes frames into private memory, and puts long messages together.

use std::{collections::HashMap, sync::Arc};

use super::sealed::Guard;
use crate::{
    board::{Begun, Place, Sampler, Tally},
    bulk::Descriptor,
    clock,
    error::{PeerCorrupt, Status},
    frame::{FLAG_BULK, FLAG_MORE, Frame, Kind, Sender},
    lane::Lane,
    layout::{INLINE, Ring},
    ring::Consumer,
    server::{Queued, RunQueue},
    wait::spin::{Spin, SpinBudget},
};

/// Messages that may be half received at a time.
const MOST_PARTIAL: usize = 64;

/// The receiving side of an end.
#[derive(Debug)]
pub(crate) struct Receive {
    pub(crate) urgent: Consumer,
    pub(crate) ordinary: Consumer,
    /// What every frame of an encrypted channel passes; none on a plain one.
    pub(crate) guard: Option<Box<Guard>>,
    /// How many frames of the ordinary ring there are, as the peer said when it closed its end of
    /// an encrypted channel.
    pub(super) goodbye: Option<u64>,
    /// The plain record that was last opened.
    pub(super) opened: Option<Frame>,
    /// Private copy of the payload last received.
    pub(crate) buffer: Vec<u8>,
    /// Messages of which more frames are to come.
    partial: HashMap<u32, Partial>,
    /// Bytes that these hold.
    partial_bytes: u64,
    /// The message id of the last request, whole: the others are near it.
    last_id: u64,
    /// Whether nothing was received yet.
    pub(crate) is_new: bool,
    /// Requests that were taken and wait for their turn. Only a server has any.
    pub(crate) queue: RunQueue<Queued>,
    /// How long who waits here may spin.
    pub(crate) spin: SpinBudget,
    pub(crate) board: Place,
    /// Which handlers are timed.
    pub(crate) sampler: Sampler,
    /// When a server's loop last came by, in ns.
    pub(crate) last_ns: u64,
    /// How long a client's eager polls took when that was last known, in ns.
    pub(crate) eager_ns: u64,
}

/// A message of which more frames are to come.
#[derive(Debug)]
struct Partial {
    frame: Frame,
    bytes: Vec<u8>,
    /// Bytes that have come.
    length: u64,
    /// Why they are not kept.
    refused: Option<Status>,
}

/// A whole message out of a ring.
#[derive(Debug)]
pub(crate) enum Taken {
    /// One frame, and the status if it is an `Error`; its payload is the start of
    /// `Receive::buffer`.
    Whole(Frame, i32),
    /// The last of several frames; the first one, and the payload of all.
    Long(Frame, Vec<u8>),
    /// One frame, whose payload lies in bulk memory.
    Bulk(Frame, Descriptor),
    /// More frames to come, or one that was dropped.
    Fragment,
    /// A message of the handshake.
    Hello(Vec<u8>),
    /// The first frame of a message that is over a limit, all of whose frames were passed over.
    Refused(Frame, Status),
}

impl Receive {
    pub(super) fn new(
        own: &Arc<Lane>,
        peer: &Arc<Lane>,
        sender: Sender,
        first_id: u64,
        spin: Spin,
        board: Place,
    ) -> Receive {
        let largest = own.geometry().ordinary_slab() as usize / 2 + INLINE;
        Receive {
            urgent: Consumer::new(own, peer, Ring::Urgent, sender),
            ordinary: Consumer::new(own, peer, Ring::Ordinary, sender),
            guard: None,
            goodbye: None,
            opened: None,
            buffer: vec![0; largest],
            partial: HashMap::new(),
            partial_bytes: 0,
            last_id: first_id,
            is_new: true,
            queue: RunQueue::new(),
            spin: SpinBudget::new(spin),
            board,
            sampler: Sampler::new(first_id),
            last_ns: 0,
            eager_ns: 0,
        }
    }

    /// A server's loop comes by: after so long, in ns, that it is at leisure.
    #[inline(always)]
    pub(crate) fn look_in(&mut self, now: u64, leisure_ns: u64) {
        if now.saturating_sub(self.last_ns) > leisure_ns {
            self.sampler.at_leisure();
            self.board.receiver.spins.add(1);
        }
        self.last_ns = now;
    }

    /// Counts what a server's loop took in its turn, and what waits for the next.
    #[inline(always)]
    pub(crate) fn count(&self, mut one_ways: Tally) {
        let (messages, bytes) = one_ways.take();
        self.board.receiver.received(messages, bytes);
        self.board.receiver.depth.set(self.queue.len() as u64);
    }

    /// Begins to time a handler: for many, if it is its turn, else for itself alone.
    #[inline(never)]
    pub(crate) fn begin(&mut self, is_its_turn: bool, streams: bool) -> Begun {
        let now = clock::now_ns();
        if is_its_turn { self.sampler.begin(now, streams) } else { Begun::alone(now) }
    }

    /// Counts how long a call or a handler took that ends now, if it is timed.
    #[inline(always)]
    pub(crate) fn time(&self, begun: Begun) {
        if begun.is_timed() {
            self.time_now(begun);
        }
    }

    #[cold]
    fn time_now(&self, begun: Begun) {
        let (ns, weight) = begun.took(clock::now_ns());
        self.board.took(ns, weight);
    }

    /// Whether anything is there.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.urgent.is_ready() || self.ordinary.is_ready()
    }

    #[inline(always)]
    pub(crate) fn consumer(&mut self, ring: Ring) -> &mut Consumer {
        match ring {
            Ring::Urgent => &mut self.urgent,
            Ring::Ordinary => &mut self.ordinary,
        }
    }

    /// Takes the next frame of a ring into private memory, and puts long messages together.
    pub(crate) fn take(
        &mut self,
        ring: Ring,
        max_payload: u64,
    ) -> Result<Option<Taken>, PeerCorrupt> {
        if self.guard.is_some() {
            return self.take_guarded(ring, max_payload);
        }
        let Some(frame) = self.consumer(ring).peek()? else { return Ok(None) };
        if frame.head.kind == Kind::Continue || frame.head.is_first_of_many() {
            let length = frame.head.length as usize;
            return self.add_fragment(Some(ring), frame, length, max_payload).map(Some);
        }
        let status = match frame.head.kind {
            Kind::Error => self.consumer(ring).status_code(),
            // There is no session on a plain channel.
            Kind::Hello | Kind::Close => return Err(PeerCorrupt::Kind),
            _ => 0,
        };
        self.take_whole(ring, &frame);
        if frame.head.flags & FLAG_BULK != 0 {
            let behind = &self.buffer[frame.head.extension()..];
            let bytes = behind.first_chunk().copied();
            let descriptor = bytes.and_then(Descriptor::from_bytes).ok_or(PeerCorrupt::Arena)?;
            self.board.receiver.received(1, descriptor.length);
            return Ok(Some(Taken::Bulk(frame, descriptor)));
        }
        Ok(Some(self.whole(frame, status, max_payload)))
    }

    /// A message of one frame, which was taken.
    #[inline]
    pub(super) fn whole(&mut self, frame: Frame, status: i32, max_payload: u64) -> Taken {
        if frame.head.kind.is_message() {
            let payload = frame.head.length as usize - frame.head.extension();
            self.board.receiver.received(1, payload as u64);
        }
        let allowed = max_payload.saturating_add(frame.head.extension() as u64);
        if u64::from(frame.head.length) > allowed && frame.head.kind != Kind::Error {
            return Taken::Refused(frame, Status::MESSAGE_SIZE);
        }
        Taken::Whole(frame, status)
    }

    /// Takes a frame that was peeked at and is a message by itself; its payload is the start of
    /// the buffer then.
    #[inline(always)]
    pub(crate) fn take_whole(&mut self, ring: Ring, frame: &Frame) {
        let consumer = match ring {
            Ring::Urgent => &mut self.urgent,
            Ring::Ordinary => &mut self.ordinary,
        };
        consumer.copy(frame, &mut self.buffer);
        consumer.release(frame);
    }

    /// Takes the next frame of a ring, if it is a [plain](Frame::plain) request of at most
    /// `max_payload` bytes, whose payload is the start of the buffer then. Who takes it counts it.
    #[inline(always)]
    pub(crate) fn take_plain(&mut self, ring: Ring, max_payload: u64) -> Option<Frame> {
        if self.guard.is_some() {
            // Through memory: as a value it would take the plain ones there, too.
            return if self.take_plain_record(ring, max_payload) { self.opened } else { None };
        }
        let frame = self.consumer(ring).peek_plain([Kind::Request, Kind::OneWay])?;
        if u64::from(frame.head.length) > max_payload {
            return None;
        }
        self.take_whole(ring, &frame);
        Some(frame)
    }

    /// Adds one of several frames to its message: `length` bytes, of the ring, or where there is
    /// none, which were taken already, of the buffer.
    #[cold]
    pub(super) fn add_fragment(
        &mut self,
        ring: Option<Ring>,
        frame: Frame,
        length: usize,
        max_payload: u64,
    ) -> Result<Taken, PeerCorrupt> {
        let id = frame.head.id;
        let mut partial = if frame.head.kind == Kind::Continue {
            self.partial.remove(&id).ok_or(PeerCorrupt::Fragment)?
        } else {
            if self.partial.len() >= MOST_PARTIAL || self.partial.contains_key(&id) {
                return Err(PeerCorrupt::Fragment);
            }
            Partial { frame, bytes: Vec::new(), length: 0, refused: None }
        };
        let is_last = frame.head.flags & FLAG_MORE == 0;
        let total = partial.frame.total;
        partial.length += length as u64;
        if partial.length > total || is_last != (partial.length == total) {
            return Err(PeerCorrupt::Fragment);
        }
        // Limits are ours, and a peer may not know them: over them a message is passed over, frame
        // by frame, and refused in the end. Memory grows with what arrives, not with claims.
        let extension = partial.frame.head.extension() as u64;
        if total - extension > max_payload {
            partial.refused = Some(Status::MESSAGE_SIZE);
        } else if self.partial_bytes + length as u64 > max_payload.saturating_mul(2) {
            partial.refused = Some(Status::FULL);
        }
        if partial.refused.is_some() {
            self.partial_bytes -= partial.bytes.len() as u64;
            partial.bytes = Vec::new();
        } else {
            let begin = partial.bytes.len();
            partial.bytes.resize(begin + length, 0);
            self.partial_bytes += length as u64;
            match ring {
                Some(ring) => self.consumer(ring).copy(&frame, &mut partial.bytes[begin..]),
                None => partial.bytes[begin..].copy_from_slice(&self.buffer[..length]),
            }
        }
        if let Some(ring) = ring {
            self.consumer(ring).release(&frame);
        }
        if !is_last {
            self.partial.insert(id, partial);
            return Ok(Taken::Fragment);
        }
        self.partial_bytes -= partial.bytes.len() as u64;
        self.board.receiver.received(1, total - extension);
        Ok(match partial.refused {
            Some(status) => Taken::Refused(partial.frame, status),
            None => Taken::Long(partial.frame, partial.bytes),
        })
    }

    /// Drops what arrived of a message that its sender gave up.
    pub(crate) fn forget(&mut self, id: u32) {
        if let Some(partial) = self.partial.remove(&id) {
            self.partial_bytes -= partial.bytes.len() as u64;
        }
    }

    /// The ids of what comes begin with this high half.
    pub(crate) fn begin_ids(&mut self, high: u32) {
        // In the middle of them, so that each is nearest with that half.
        self.last_id = u64::from(high) << 32 | 1 << 31;
    }

    /// Finds the whole message id of a request from its low half.
    pub(crate) fn extend_id(&mut self, id: u32) -> u64 {
        let whole = nearest(self.last_id, id);
        self.last_id = self.last_id.max(whole);
        whole
    }
}

/// The 64-bit number nearest to `near` whose low half is `low`.
fn nearest(near: u64, low: u32) -> u64 {
    let ahead = low.wrapping_sub(near as u32) as i32;
    near.wrapping_add_signed(i64::from(ahead))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_is_found_again_from_its_low_half(near: u64, off in -1000_i64..1000) {
            let whole = near.wrapping_add_signed(off);
            prop_assert_eq!(nearest(near, whole as u32), whole);
        }
    }
}
