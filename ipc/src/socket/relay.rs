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
//!
//! Of an encrypted channel it passes records on as they are: it has no key. Each goes into the
//! same place of the same ring, so a record's position is the same for who seals it and for who
//! opens it, and whatever the socket does to it is noticed as in shared memory.

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
    clock,
    error::{NodeError, PeerCorrupt},
    frame::{Frame, Kind, Sender},
    lane::Lane,
    layout::Ring,
    life::{Entry, Life},
    ring::{Consumer, Producer, PushError},
    session::aead::TAG,
    sync::{AtomicU32, Ordering},
    wait::{Fences, Sleep, event, futex},
};

const RINGS: [Ring; 2] = [Ring::Urgent, Ring::Ordinary];
/// Packets read, or frames sent, before the other direction has its turn.
const BATCH: usize = 64;

/// How long a relay goes on for a channel that was closed, while the other end takes what is left.
const LINGER_NS: u64 = 2_000_000_000;
/// How long it waits for the kernel to say whether who hung up has died, in ms.
const DEATH_MS: u16 = 1000;

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
    /// Whether what it passes on is sealed, but for the handshake.
    pub(super) encrypted: bool,
}

pub(super) struct Relay {
    own: Arc<Lane>,
    peer: Arc<Lane>,
    entry: Entry,
    bell: OwnedFd,
    socket: OwnedFd,
    remote: Sender,
    encrypted: bool,
    /// Whether the other end still is there.
    hears: bool,
    /// Whether it has said that it closes its end. It is for who can open that to believe it.
    has_closed: bool,
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
        let Parts { remote, own, entry, peer, bell, socket, encrypted } = parts;
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
            encrypted,
            hears: true,
            has_closed: false,
        }
    }

    /// Says to the other end that this one is ready.
    pub(super) fn greet(&self, session: u32) -> Result<(), NodeError> {
        super::say_hello(self.socket.as_fd(), session)
    }

    /// Relays until either end is gone, then closes both.
    pub(super) fn run(mut self, tell: impl FnOnce(PeerCorrupt)) {
        let end = match self.relay() {
            End::HungUp => self.drain(),
            end => end,
        };
        match end {
            End::Closed => self.linger(),
            End::HungUp => {}
            End::Corrupt(lie) => tell(lie),
        }
        self.entry.close();
        let _ = shutdown(self.bell.as_raw_fd(), Shutdown::Both);
        // Also where a forked child has a copy of it.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    fn relay(&mut self) -> End {
        loop {
            let slept = match self.turn() {
                Ok(true) => Ok(()),
                Ok(false) => self.sleep(),
                Err(end) => Err(end),
            };
            if let Err(end) = slept {
                return end;
            }
        }
    }

    /// After the other end hung up: delivers what had come before, as the channel takes it.
    fn drain(&mut self) -> End {
        self.hears = false;
        while self.arrived.iter().any(|it| !it.is_empty()) {
            let delivered = match self.deliver() {
                Ok(false) => self.sleep(),
                other => other.map(drop),
            };
            if let Err(end) = delivered {
                return end;
            }
        }
        if self.encrypted && !self.has_closed {
            // It died, or somebody has cut the two apart. The kernel tells of a death a moment
            // after the socket does, and the warden ends the channel then.
            self.await_death();
        }
        End::HungUp
    }

    /// Waits a while for the kernel to say that the other end's process has died.
    fn await_death(&self) {
        let until = clock::monotonic_ns() + u64::from(DEATH_MS) * 1_000_000;
        loop {
            let left = until.saturating_sub(clock::monotonic_ns()).div_ceil(1_000_000);
            let mut bell = [PollFd::new(self.bell.as_fd(), PollFlags::empty())];
            let timeout = PollTimeout::from(u16::try_from(left).unwrap_or(DEATH_MS));
            // A signal that is handled on this thread says nothing of a death.
            if poll(&mut bell, timeout) != Err(Errno::EINTR) {
                return;
            }
        }
    }

    /// After the channel was closed on this side: sends what it had to say, the last word, too,
    /// but does not wait for ever for who takes nothing.
    fn linger(&mut self) {
        let until = clock::monotonic_ns() + LINGER_NS;
        while self.send_frames().and_then(|_| self.receive()).is_ok() {
            let has_more = self.stuck.is_some() || self.consumers.iter().any(Consumer::is_ready);
            let left_ms = until.saturating_sub(clock::monotonic_ns()).div_ceil(1_000_000);
            if !has_more || left_ms == 0 {
                return;
            }
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, self.stuck.is_some());
            let mut fds = [PollFd::new(self.socket.as_fd(), events)];
            let _ = poll(&mut fds, PollTimeout::from(left_ms as u16));
        }
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
                let bytes = take(consumer, self.encrypted).map_err(End::Corrupt)?;
                let Some(bytes) = bytes else { break };
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
        loop {
            return match recv(self.socket.as_raw_fd(), &mut [0; 1], flags) {
                Ok(length) if length > 0 => Ok(true),
                Err(Errno::EINTR | Errno::ECONNRESET) => continue,
                _ => Err(End::HungUp),
            };
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
                // That of who went with some of ours unread comes once, before what it had sent.
                Err(Errno::EINTR | Errno::ECONNRESET) => continue,
                Err(_) => return Err(End::HungUp),
            };
            match packet::read(&self.buffer[..length], self.remote, geometry, self.encrypted) {
                Ok(Packet::Frame(frame, payload)) => {
                    self.has_closed |= frame.head.kind == Kind::Close;
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
                let (producer, label) = (&mut self.producers[number], packet::label(&frame.head));
                let relayed = if self.encrypted {
                    producer.relay_record(label, frame, payload)
                } else {
                    producer.relay(label, frame, payload)
                };
                match relayed {
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
        let can_send = |it: usize| self.hears && self.stuck.is_none() && self.credit[it] > 0;
        let frames = (0..RINGS.len()).any(|it| can_send(it) && self.consumers[it].is_ready());
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
            PollFd::new(self.bell.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.socket.as_fd(), events),
        ];
        let count = if self.hears { 2 } else { 1 };
        match poll(&mut fds[..count], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(_) => Err(End::Closed),
        }
    }
}

/// Takes the next frame of a lane, as a packet.
fn take(consumer: &mut Consumer, encrypted: bool) -> Result<Option<Vec<u8>>, PeerCorrupt> {
    let next = if encrypted { consumer.peek_record() } else { consumer.peek() };
    let Some(frame) = next? else { return Ok(None) };
    let mut bytes = Vec::with_capacity(HEAD + frame.head.length as usize + TAG);
    bytes.extend(packet::frame(&frame));
    if encrypted {
        consumer.take_record(&frame, &mut bytes);
    } else {
        bytes.resize(HEAD + frame.head.length as usize, 0);
        consumer.copy(&frame, &mut bytes[HEAD..]);
        consumer.release(&frame);
    }
    Ok(Some(bytes))
}
