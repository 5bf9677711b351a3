//! The thread between a channel's lanes, both of which are this process's, and a socket.
//!
//! ```text
//!   channel ══ its lane ══▶ relay ── packets ──▶ the other process's relay ══ lane ══▶ channel
//!   channel ◀═ our lane ═══ relay ◀─ packets ───
//! ```
//! To the channel the relay is the other end: it takes frames, says how far it has taken, rings and
//! is rung. So nothing above the lanes knows of the socket. A frame is sent when the other relay
//! has a place for it: there are as many as the ring has cells, and each is given back when its
//! frame has gone into the lane there. So neither relay ever holds more than that, each always
//! reads its socket, and urgent frames do not wait behind ordinary ones.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, Shutdown, recv, send, shutdown},
};

use super::packet::{self, HEAD, Packet};
use crate::{
    error::{NodeError, PeerCorrupt},
    frame::{Frame, Sender},
    lane::Lane,
    layout::Ring,
    life::{Entry, Life},
    ring::{Consumer, Producer, PushError},
    sync::{AtomicU32, Ordering},
    wait::{Fences, Sleep, event, futex},
};

const RINGS: [Ring; 2] = [Ring::Urgent, Ring::Ordinary];
/// Packets read, or frames sent, before the other direction has its turn.
const BATCH: usize = 64;

/// What a relay is made of.
pub(super) struct Parts {
    /// Which end of the channel the other process has.
    pub(super) remote: Sender,
    /// The lane that the relay writes, and its place on the roll.
    pub(super) own: Arc<Lane>,
    pub(super) entry: Entry,
    /// The channel's lane.
    pub(super) peer: Arc<Lane>,
    pub(super) bell: OwnedFd,
    pub(super) socket: OwnedFd,
}

pub(super) struct Relay {
    own: Arc<Lane>,
    peer: Arc<Lane>,
    entry: Entry,
    bell: OwnedFd,
    socket: OwnedFd,
    remote: Sender,
    fences: Fences,
    consumers: [Consumer; 2],
    producers: [Producer; 2],
    /// Frames that the other relay has places for.
    credit: [u32; 2],
    /// Places to be given back.
    returned: [u32; 2],
    /// Frames on their way into the lane.
    arrived: [VecDeque<(Frame, Vec<u8>)>; 2],
    /// The count of taken frames at which the first of them fits.
    wanted: [Option<u64>; 2],
    /// A packet for which the socket had no room.
    stuck: Option<Vec<u8>>,
    rung: AtomicU32,
    sleeps: u32,
    buffer: Vec<u8>,
}

/// Why a relay ends.
enum End {
    /// The channel was closed on this side.
    Closed,
    /// The other process is gone, or closed it.
    HungUp,
    /// The other process lies.
    Corrupt(PeerCorrupt),
}

impl Relay {
    pub(super) fn new(parts: Parts) -> Relay {
        let Parts { remote, own, entry, peer, bell, socket } = parts;
        let geometry = own.geometry();
        let local = match remote {
            Sender::Client => Sender::Server,
            Sender::Server => Sender::Client,
        };
        let cells = RINGS.map(|ring| geometry.cells(ring));
        Relay {
            consumers: RINGS.map(|ring| Consumer::new(&own, &peer, ring, local)),
            producers: RINGS.map(|ring| Producer::new(&own, &peer, ring)),
            credit: cells,
            returned: [0; 2],
            arrived: [VecDeque::new(), VecDeque::new()],
            wanted: [None; 2],
            stuck: None,
            rung: AtomicU32::new(0),
            sleeps: 0,
            buffer: vec![0; packet::largest(geometry) + 1],
            fences: Fences::within(),
            own,
            peer,
            entry,
            bell,
            socket,
            remote,
        }
    }

    /// Says to the other end that this one is ready.
    pub(super) fn greet(&self, session: u32) -> Result<(), NodeError> {
        super::say_hello(self.socket.as_fd(), session)
    }

    /// Relays until either end is gone, then closes both.
    pub(super) fn run(mut self, tell: impl FnOnce(PeerCorrupt)) {
        let end = loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => {
                    if let Err(end) = self.sleep() {
                        break end;
                    }
                }
                Err(end) => break end,
            }
        };
        if matches!(end, End::HungUp) {
            // What came before the end is still delivered, as far as there is room.
            let _ = self.deliver();
        }
        if let End::Corrupt(lie) = end {
            tell(lie);
        }
        self.entry.close();
        let _ = shutdown(self.bell.as_raw_fd(), Shutdown::Both);
        // Also where a forked child has a copy of it.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Does what there is to do in either direction, but not for ever in one; tells whether there
    /// was anything.
    fn turn(&mut self) -> Result<bool, End> {
        let sent = self.send_frames()?;
        let received = self.receive()?;
        let delivered = self.deliver()?;
        let told = self.send_credit()?;
        Ok(sent || received || delivered || told)
    }

    /// Takes frames out of the channel's lane, as many as there are places for.
    fn send_frames(&mut self) -> Result<bool, End> {
        if let Some(bytes) = self.stuck.take()
            && !self.try_send(&bytes)?
        {
            self.stuck = Some(bytes);
            return Ok(false);
        }
        let mut any = false;
        for number in 0..RINGS.len() {
            for _ in 0..BATCH {
                if self.credit[number] == 0 || self.stuck.is_some() {
                    break;
                }
                let consumer = &mut self.consumers[number];
                let Some(frame) = consumer.peek().map_err(End::Corrupt)? else { break };
                let mut bytes = vec![0; HEAD + frame.head.length as usize];
                bytes[..HEAD].copy_from_slice(&packet::frame(&frame));
                consumer.copy(&frame, &mut bytes[HEAD..]);
                consumer.release(&frame);
                self.credit[number] -= 1;
                any = true;
                if !self.try_send(&bytes)? {
                    self.stuck = Some(bytes);
                }
            }
        }
        if any {
            let (own, peer) = (self.own.header(), self.peer.header());
            if let Some(sleep) = event::to_wake_for_room(self.fences, own, peer) {
                self.ring(sleep);
            }
        }
        Ok(any)
    }

    /// Sends a packet; false where the socket has no room.
    fn try_send(&self, bytes: &[u8]) -> Result<bool, End> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            return match send(self.socket.as_raw_fd(), bytes, flags) {
                Ok(_) => Ok(true),
                Err(Errno::EAGAIN) => Ok(false),
                Err(Errno::EINTR) => continue,
                // What it sent before it went is yet to be read.
                Err(_) => self.drained(),
            };
        }
    }

    /// After the other end was found gone: it is, once nothing of it is left to be read.
    fn drained(&self) -> Result<bool, End> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
        match recv(self.socket.as_raw_fd(), &mut [0; 1], flags) {
            Ok(length) if length > 0 => Ok(true),
            _ => Err(End::HungUp),
        }
    }

    /// Reads packets, and keeps the frames in them.
    fn receive(&mut self) -> Result<bool, End> {
        let geometry = self.own.geometry();
        for count in 0..BATCH {
            let flags = MsgFlags::MSG_DONTWAIT;
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Ok(0) => return Err(End::HungUp),
                Ok(length) => length,
                Err(Errno::EAGAIN) => return Ok(count > 0),
                Err(Errno::EINTR) => continue,
                Err(_) => return Err(End::HungUp),
            };
            match packet::read(&self.buffer[..length], self.remote, geometry) {
                Ok(Packet::Frame(frame, payload)) => {
                    let number = usize::from(frame.head.priority > 1);
                    let arrived = &mut self.arrived[number];
                    let cells = geometry.cells(RINGS[number]) as usize;
                    if arrived.len() + self.returned[number] as usize >= cells {
                        // More than it has places for.
                        return Err(End::Corrupt(PeerCorrupt::Taken));
                    }
                    arrived.push_back((frame, payload.to_vec()));
                }
                Ok(Packet::Credit(more)) => {
                    for (number, more) in more.into_iter().enumerate() {
                        let cells = geometry.cells(RINGS[number]);
                        let sum = self.credit[number].checked_add(more).filter(|it| *it <= cells);
                        self.credit[number] = sum.ok_or(End::Corrupt(PeerCorrupt::Taken))?;
                    }
                }
                Ok(Packet::Hello { .. }) => return Err(End::Corrupt(PeerCorrupt::Kind)),
                Err(lie) => return Err(End::Corrupt(lie)),
            }
        }
        Ok(true)
    }

    /// Puts what has come into the lane, as far as there is room.
    fn deliver(&mut self) -> Result<bool, End> {
        let mut any = false;
        for number in 0..RINGS.len() {
            self.wanted[number] = None;
            while let Some((frame, payload)) = self.arrived[number].front() {
                match self.producers[number].relay(packet::label(&frame.head), frame, payload) {
                    Ok(()) => {
                        self.arrived[number].pop_front();
                        self.returned[number] += 1;
                        any = true;
                    }
                    Err(PushError::Full { wake_at }) => {
                        self.wanted[number] = Some(wake_at);
                        break;
                    }
                    Err(PushError::Corrupt(_) | PushError::Retired) => return Err(End::Closed),
                }
            }
        }
        if any && let Some(sleep) = event::to_wake(self.fences, self.peer.header(), &self.rung) {
            self.ring(sleep);
        }
        Ok(any)
    }

    /// Gives places back: many at a time, or what there is when nothing else is under way.
    fn send_credit(&mut self) -> Result<bool, End> {
        if self.returned == [0; 2] || self.stuck.is_some() {
            return Ok(false);
        }
        if self.try_send(&packet::credit(self.returned))? {
            self.returned = [0; 2];
            Ok(true)
        } else {
            // To be tried again when there is room.
            self.stuck = Some(packet::credit(std::mem::take(&mut self.returned)).to_vec());
            Ok(false)
        }
    }

    fn ring(&self, sleep: Sleep) {
        event::signal(self.own.header());
        match sleep {
            Sleep::Futex => futex::wake(&self.own.header().event, true, i32::MAX),
            Sleep::Doorbell => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let _ = send(self.bell.as_raw_fd(), &[1], flags);
            }
        }
    }

    /// Sleeps until the channel rings, or the socket has something or room.
    fn sleep(&mut self) -> Result<(), End> {
        let header = self.own.header();
        self.sleeps = self.sleeps.wrapping_add(1);
        event::announce(header, Sleep::Doorbell.parked(self.sleeps));
        for (ring, wanted) in RINGS.into_iter().zip(self.wanted) {
            if let Some(count) = wanted {
                event::announce_want(header, ring, count, Sleep::Doorbell);
            }
        }
        self.fences.heavy();
        let slept = if self.has_work() { Ok(()) } else { self.wait() };
        let header = self.own.header();
        header.attention.parked.store(0, Ordering::Relaxed);
        for ring in RINGS {
            header.want(ring).store(0, Ordering::Relaxed);
        }
        slept?;
        let flags = MsgFlags::MSG_DONTWAIT;
        loop {
            match recv(self.bell.as_raw_fd(), &mut [0; 64], flags) {
                Ok(0) => return Err(End::Closed),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => return Err(End::Closed),
            }
        }
        match Life::of(&self.peer) {
            Life::Alive => Ok(()),
            Life::Closed | Life::Died => Err(End::Closed),
        }
    }

    /// Whether the channel has given something to do since the last look.
    fn has_work(&self) -> bool {
        let frames = (0..RINGS.len())
            .any(|it| self.credit[it] > 0 && self.stuck.is_none() && self.consumers[it].is_ready());
        let room = (0..RINGS.len()).any(|number| {
            let taken = self.peer.header().taken(RINGS[number]).load(Ordering::Acquire);
            self.wanted[number].is_some_and(|count| taken >= count)
        });
        frames || room || Life::of(&self.peer) != Life::Alive
    }

    fn wait(&self) -> Result<(), End> {
        let mut events = PollFlags::POLLIN;
        events.set(PollFlags::POLLOUT, self.stuck.is_some());
        let mut fds = [
            PollFd::new(self.socket.as_fd(), events),
            PollFd::new(self.bell.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(_) => Err(End::Closed),
        }
    }
}
