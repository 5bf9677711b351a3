//! A channel: two lanes, one each way, and everything that both of its ends do alike.

mod greeting;
mod mark;
mod receive;
mod sealed;
mod transmit;

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};

use crate::{
    ServiceId,
    board::{Payload, Place, Sampler, Seat, Span, Stats},
    bulk::{Borrower, Lender, Loan},
    claim::Claim,
    control::{
        Introduction,
        closer::{Closer, PeerSocket},
    },
    copy,
    error::{CallError, PeerCorrupt},
    failover::kept::Kept,
    failpoint::shared,
    fork::Birth,
    frame::{Label, Sender},
    lane::{Lane, PeerRing},
    layout::Ring,
    life::{Entry, Life},
    ring::Producer,
    session::record::Sealer,
    socket::Transport,
    sync::{AtomicU32, Ordering},
    wait::{Fences, Sleep, event, futex, spin::Spin},
};

pub(crate) use self::{
    greeting::{Greeting, greeting, is_late, late_at},
    receive::{Receive, Taken},
};
pub(crate) use crate::claim::Claimed;

/// Says who is at the other end of a channel. The kernel proved it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its instance, or its anonymous id.
    pub id: ServiceId,
    /// The id of the name it serves, or 0.
    pub name: ServiceId,
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// What the channel's frames travel by.
    pub transport: Transport,
}

/// How a channel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    /// The peer's process died.
    Died,
    /// One of the ends closed it in order.
    Closed,
    /// The peer broke the protocol.
    Poisoned(PeerCorrupt),
}

/// What is needed to build an end of a channel.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) introduction: Introduction,
    pub(crate) role: Sender,
    pub(crate) own: Arc<Lane>,
    pub(crate) peer: Arc<Lane>,
    pub(crate) entry: Entry,
    pub(crate) bell: PeerSocket,
    pub(crate) closer: Arc<Closer>,
    pub(crate) max_payload: u64,
    pub(crate) max_bulk: u64,
    pub(crate) spin: Spin,
    pub(crate) seat: Seat,
    /// The handshake that comes first; none for a plain channel.
    pub(crate) greeting: Option<Greeting>,
}

/// One end of a channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) introduction: Introduction,
    pub(crate) birth: Birth,
    pub(crate) max_payload: u64,
    own: Arc<Lane>,
    peer: Arc<Lane>,
    fences: Fences,
    pub(crate) tx: Claim<Transmit>,
    pub(crate) rx: Claim<Receive>,
    /// The peer's rings once more, for looks that need no claim.
    alleged: [PeerRing; 2],
    /// `Fate` in 32 bits.
    fate: AtomicU32,
    lender: Arc<Lender>,
    pub(crate) borrower: Borrower,
    /// The last `parked` word of the peer that was answered with a wake-up.
    rung: AtomicU32,
    /// Sleeps so far, for the numbers of `parked` words.
    sleeps: AtomicU32,
    /// Our end of a socket pair: rung for a peer that sleeps in epoll; hung up when the peer goes.
    bell: PeerSocket,
    /// Closes the own lane when dropped.
    entry: Option<Entry>,
    /// Where this end counts; given back when it is dropped.
    seat: Option<Seat>,
    /// The same.
    board: Place,
}

/// The sending side of an end.
#[derive(Debug)]
pub(crate) struct Transmit {
    urgent: Producer,
    ordinary: Producer,
    /// Seals every frame of an encrypted channel, once the handshake is done.
    sealer: Option<Box<Sealer>>,
    /// The next message's id, all 64 bits of it.
    pub(crate) next_id: u64,
    /// Long messages that were given up half sent; the peer is told before anything else.
    aborted: Vec<Label>,
    /// Whether anything has to go before the next message, or nothing goes any more.
    pub(crate) owes: bool,
    /// Of a channel to a name with standbys: what may have to be sent again.
    pub(crate) kept: Option<Box<Kept>>,
    /// Whether another channel has taken the place of this one.
    pub(crate) retired: bool,
    /// Which calls are timed.
    pub(crate) sampler: Sampler,
    board: Place,
}

impl Channel {
    pub(crate) fn new(parts: Parts) -> Channel {
        let Parts { introduction, role, own, peer, entry, bell, closer, .. } = parts;
        let Parts { max_payload, max_bulk, spin, seat, greeting, .. } = parts;
        let board = seat.place().clone();
        let other = match role {
            Sender::Client => Sender::Server,
            Sender::Server => Sender::Client,
        };
        let first_id = u64::from(introduction.session) << 32 | 1;
        Channel {
            birth: Birth::now(),
            max_payload,
            fences: if introduction.asymmetric { Fences::Asymmetric } else { Fences::Symmetric },
            tx: Claim::new(Transmit {
                urgent: Producer::new(&own, &peer, Ring::Urgent),
                ordinary: Producer::new(&own, &peer, Ring::Ordinary),
                sealer: None,
                next_id: first_id,
                aborted: Vec::new(),
                owes: false,
                kept: None,
                retired: false,
                sampler: Sampler::new(first_id ^ introduction.channel),
                board: board.clone(),
            }),
            rx: Claim::new(
                Receive::new(&own, &peer, other, first_id, spin, board.clone()).guarded(greeting),
            ),
            alleged: [Ring::Urgent, Ring::Ordinary].map(|ring| peer.peer_ring(ring)),
            fate: AtomicU32::new(0),
            lender: Lender::new(&peer, max_bulk),
            borrower: Borrower::new(&own, &closer),
            rung: AtomicU32::new(0),
            sleeps: AtomicU32::new(0),
            introduction,
            own,
            peer,
            bell,
            entry: Some(entry),
            seat: Some(seat),
            board,
        }
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> Peer {
        let it = &self.introduction;
        let transport = Transport::of(it.channel);
        Peer { id: it.peer, name: it.peer_name, pid: it.peer_pid, uid: it.peer_uid, transport }
    }

    /// The first message id of the session.
    pub(crate) fn first_id(&self) -> u64 {
        u64::from(self.introduction.session) << 32 | 1
    }

    /// Our end of the doorbell.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Where this end counts what any thread may: errors and drops.
    pub(crate) fn board(&self) -> &Place {
        &self.board
    }

    /// What this end counted so far.
    pub(crate) fn stats(&self) -> Stats {
        self.seat.as_ref().map(Seat::stats).unwrap_or_default()
    }

    /// What is the same of all spans of this channel.
    pub(crate) fn span(&self) -> Span {
        let it = &self.introduction;
        Span {
            channel: it.channel,
            dest: it.dest,
            dest_name: it.dest_name,
            peer_pid: it.peer_pid,
            ..Span::default()
        }
    }

    /// Writes down, for whoever reads this node's board, what was done.
    #[cold]
    pub(crate) fn write_down(&self, span: Span) {
        if let Some(seat) = &self.seat {
            seat.write_down(&span);
        }
    }

    /// Writes down what an operator may see of a payload.
    #[cold]
    pub(crate) fn show(&self, payload: &Payload) {
        if let Some(seat) = &self.seat {
            seat.show(payload);
        }
    }

    /// How the channel stands, as far as was noticed.
    #[inline]
    pub(crate) fn fate(&self) -> Fate {
        match self.fate.load(Ordering::Acquire) {
            0 => Fate::Open,
            1 => Fate::Died,
            2 => Fate::Closed,
            lie => Fate::Poisoned(LIES[(lie as usize - 3).min(LIES.len() - 1)]),
        }
    }

    /// Ends the channel, once: the first reason stands. Wakes whoever of this process waits on it.
    pub(crate) fn end(&self, fate: Fate) {
        let code = match fate {
            Fate::Open => return,
            Fate::Died => 1,
            Fate::Closed => 2,
            Fate::Poisoned(lie) => 3 + LIES.iter().position(|it| *it == lie).unwrap_or(0) as u32,
        };
        let first = self.fate.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        if let (Err(over @ (1 | 2)), Fate::Poisoned(_)) = (first, fate) {
            // A lie in what was left of it: from there on nobody can read, so nobody may wait for
            // the rest.
            let _ = self.fate.compare_exchange(over, code, Ordering::AcqRel, Ordering::Acquire);
        }
        if first.is_ok() {
            if fate == Fate::Closed {
                self.say_goodbye();
            }
            if let Some(entry) = &self.entry {
                entry.close();
            }
            self.wake_own();
            // The peer learns it from its end of the socket, and our own pollers from ours.
            let _ = shutdown(self.bell().as_raw_fd(), Shutdown::Both);
        }
    }

    /// Looks at the peer's life word; notes and tells what it says.
    #[inline]
    pub(crate) fn check_life(&self) -> Fate {
        match Life::of(&self.peer) {
            Life::Alive => {}
            Life::Closed => self.end(Fate::Closed),
            Life::Died => self.end(Fate::Died),
        }
        self.fate()
    }

    /// Whether the peer's life word says that it closed its end.
    fn is_closed_by_peer(&self) -> bool {
        Life::of(&self.peer) == Life::Closed
    }

    /// Whether the channel was ended from this side, while the peer lives.
    pub(crate) fn is_cut(&self) -> bool {
        self.fate() != Fate::Open && Life::of(&self.peer) == Life::Alive
    }

    /// Refuses in a forked child, where the lanes are not mapped.
    #[inline]
    pub(crate) fn check_fork(&self) -> Result<(), CallError> {
        if self.birth.is_here() { Ok(()) } else { Err(CallError::Forked) }
    }

    /// Converts a time to the channel's deadline field: µs since its start, never 0.
    #[inline]
    pub(crate) fn deadline_field(&self, at_ns: u64) -> u32 {
        ((at_ns.saturating_sub(self.introduction.start_ns) / 1000 + 1) as u32).max(1)
    }

    /// Converts a deadline field back, near `now`.
    pub(crate) fn deadline_ns(&self, field: u32, now_ns: u64) -> Option<u64> {
        if field == 0 {
            return None;
        }
        let passed = now_ns.saturating_sub(self.introduction.start_ns) / 1000;
        let ahead = field.wrapping_sub(passed as u32) as i32;
        let at_us = passed.saturating_add_signed(i64::from(ahead));
        Some(self.introduction.start_ns + at_us * 1000)
    }

    /// After a batch of frames was pushed: wakes the peer if it sleeps. On the hot path this is
    /// one load of a line that changes only around a sleep.
    #[inline]
    pub(crate) fn after_push(&self) {
        if let Some(sleep) = event::to_wake(self.fences, self.peer.header(), &self.rung) {
            self.ring(sleep);
        }
    }

    /// After a batch of frames was taken: wakes the peer if it waits for that much room.
    #[inline]
    pub(crate) fn after_take(&self) {
        let (own, peer) = (self.own.header(), self.peer.header());
        if let Some(sleep) = event::to_wake_for_room(self.fences, own, peer) {
            self.ring(sleep);
        }
    }

    #[cold]
    fn ring(&self, sleep: Sleep) {
        event::signal(self.own.header());
        match sleep {
            Sleep::Futex => futex::wake(&self.own.header().event, true, i32::MAX),
            Sleep::Doorbell => {
                // EAGAIN: it is ringing already. EPIPE: the peer is gone, which others notice.
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let _ = send(self.bell().as_raw_fd(), &[1], flags);
            }
        }
    }

    /// Empties our end of the doorbell. Returns false when the peer hung up.
    pub(crate) fn quiet_bell(&self) -> bool {
        self.borrower.hear(self.bell()).unwrap_or_else(|lie| {
            self.end(Fate::Poisoned(lie));
            true
        })
    }

    /// Lends memory for a message of this size; nothing when no more can be lent now.
    pub(crate) fn lend(&self, size: usize) -> Option<Loan> {
        if self.is_encrypted() {
            return Some(Loan::private(&self.lender, size));
        }
        self.lender.lend(self.bell(), size as u64)
    }

    /// Lends memory and copies a message there; nothing for one that the ring carries better.
    #[cold]
    pub(crate) fn lend_copy(&self, payload: &[u8]) -> Option<Loan> {
        if self.is_encrypted() {
            return None;
        }
        let mut loan = self.lend(payload.len())?;
        copy::fill(&mut loan, payload);
        Some(loan)
    }

    /// Refuses a loan of another channel, or of one that this took the place of.
    pub(crate) fn check_loan(&self, loan: &Loan) -> Result<(), CallError> {
        if loan.is_of(&self.lender) { Ok(()) } else { Err(CallError::PeerDied { taken: false }) }
    }

    /// The event word's value, to be read before [`Channel::park`].
    pub(crate) fn event(&self) -> u32 {
        self.peer.header().event.load(Ordering::Acquire)
    }

    /// Wakes the threads of this process that sleep on the peer's event word.
    pub(crate) fn wake_own(&self) {
        futex::wake(&self.peer.header().event, true, i32::MAX);
    }

    /// Whether a frame is there, without the receiving claim. Exact for who holds it; for others
    /// a hint that may be a moment old.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        [Ring::Urgent, Ring::Ordinary].into_iter().any(|ring| {
            // Our own `taken` word is the consumer's tail.
            let tail = self.own.header().taken(ring).load(Ordering::Relaxed);
            self.alleged[ring as usize].is_open(tail)
        })
    }

    /// Announces a sleep that frames shall end. Pass the barrier [`Channel::barrier`], then look
    /// at the rings once more, then sleep. Only the holder of `rx` parks.
    pub(crate) fn park(&self, sleep: Sleep) {
        self.board.receiver.parks.add(1);
        let number = self.sleeps.fetch_add(1, Ordering::Relaxed) + 1;
        event::announce(self.own.header(), sleep.parked(number));
    }

    /// Takes the announcement back.
    pub(crate) fn unpark(&self) {
        shared!(Unparked, self.own.header().attention.parked.store(0, Ordering::Relaxed));
    }

    /// Announces a sleep that `taken >= count` shall end.
    pub(crate) fn want(&self, ring: Ring, count: u64, sleep: Sleep) {
        event::announce_want(self.own.header(), ring, count, sleep);
    }

    /// Takes that announcement back.
    pub(crate) fn unwant(&self, ring: Ring) {
        shared!(Unwant, self.own.header().want(ring).store(0, Ordering::Relaxed));
    }

    /// The barrier between an announcement and the last look.
    pub(crate) fn barrier(&self) {
        self.fences.heavy();
    }

    /// Whether the barrier of one channel also serves this one.
    pub(crate) fn fences(&self) -> Fences {
        self.fences
    }

    /// Sleeps until the peer's event word leaves `event`, its life word changes, or one of two
    /// words of this process does.
    pub(crate) fn sleep(
        &self,
        event: u32,
        more: [Option<futex::Word<'_>>; 2],
        timeout: Option<Duration>,
    ) {
        let header = self.peer.header();
        let life = header.life.load(Ordering::Acquire);
        if Life::from_word(life) != Life::Alive {
            return;
        }
        let event = futex::Word { at: &header.event, value: event, shared: true };
        let life = futex::Word { at: &header.life, value: life, shared: true };
        futex::wait_words([Some(event), Some(life), more[0], more[1]], timeout);
    }

    /// Frames of a ring that the peer has taken from our lane.
    pub(crate) fn taken_by_peer(&self, ring: Ring) -> u64 {
        self.peer.header().taken(ring).load(Ordering::Acquire)
    }

    /// Tells the peer, should it ask, since when its frames are being handled; 0 for not now.
    #[inline]
    pub(crate) fn set_busy(&self, since_ns: u64) {
        shared!(Busy, self.own.header().busy_since.store(since_ns, Ordering::Relaxed));
    }

    /// The error of an operation that the channel's end cut short.
    pub(crate) fn ended(&self, taken: bool) -> CallError {
        if self.is_encrypted()
            && let Some(rx) = self.rx.try_claim()
            && !rx.is_ready()
        {
            self.judge_end(&rx);
        }
        match self.fate() {
            Fate::Poisoned(lie) => CallError::PeerCorrupt(lie),
            Fate::Open | Fate::Died | Fate::Closed => CallError::PeerDied { taken },
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if self.birth.is_here() {
            self.end(Fate::Closed);
            drop(self.entry.take());
            drop(self.seat.take());
        } else {
            // A forked child has neither the lanes nor the threads of the roll: leave all as is.
            std::mem::forget((self.entry.take(), self.seat.take()));
            std::mem::forget((Arc::clone(&self.own), Arc::clone(&self.peer)));
        }
    }
}

/// The lies, by the number that `Channel::fate` holds.
const LIES: [PeerCorrupt; 14] = [
    PeerCorrupt::Stamp,
    PeerCorrupt::Kind,
    PeerCorrupt::Flags,
    PeerCorrupt::Priority,
    PeerCorrupt::Length,
    PeerCorrupt::Place,
    PeerCorrupt::Taken,
    PeerCorrupt::Fragment,
    PeerCorrupt::Answer,
    PeerCorrupt::Status,
    PeerCorrupt::Arena,
    PeerCorrupt::Record,
    PeerCorrupt::Handshake,
    PeerCorrupt::Cut,
];

/// The ring on which a priority travels.
#[inline]
pub(crate) fn ring_of(priority: u32) -> Ring {
    if priority <= 1 { Ring::Urgent } else { Ring::Ordinary }
}

/// Refuses a payload over the limit agreed on.
pub(crate) fn check_payload(size: usize, limit: u64) -> Result<(), CallError> {
    let size = size as u64;
    if size > limit { Err(CallError::TooLarge { size, limit }) } else { Ok(()) }
}
