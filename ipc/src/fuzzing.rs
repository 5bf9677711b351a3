//! What a peer writes, laid out by a fuzz target, before the code that has to believe or refuse it.
//!
//! [`check`] and [`plain`] are the two ways in which a cell's words become a frame. A [`Stage`] has
//! one honest end of a channel, the real one with its loop, and at the other end a liar who can
//! write every word of its lane at any time between two steps of the honest end.

mod bulk;
mod events;

pub use self::{
    bulk::arena,
    events::{FalseRing, MOST_EVENT},
};

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, OnceLock},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};

use crate::{
    CallError, Geometry, NodeError, PeerCorrupt, Request, ServiceId, Spin,
    board::OwnBoard,
    channel::{Channel, Fate, Parts},
    clock,
    control::{
        Bond, Introduction,
        closer::{Closer, PeerSocket},
        packet,
    },
    frame::{Frame, Kind, Label, Sender},
    interrupt::Interrupter,
    lane::{self, Lane, OwnRing},
    layout::Ring,
    life::Roll,
    link::{Limit, Link, Parcel, Sink},
    node::Closing,
    ring::{Consumer, Producer},
    server::{Hub, Incoming, Member},
    sync::{AtomicU32, Ordering},
    table::Waiter,
};

/// A frame as it was accepted: where its payload lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Bytes of payload in this frame.
    pub length: u32,
    /// Bytes of the whole message.
    pub total: u64,
    /// Of these bytes, how many lie in the cell.
    pub inline: usize,
    /// The rest, in the slab.
    pub slab: usize,
    /// The first of the cell's eight words that holds payload.
    pub first_word: usize,
    frame: Frame,
}

impl Accepted {
    fn new(frame: Frame) -> Accepted {
        Accepted {
            length: frame.head.length,
            total: frame.total,
            inline: frame.inline_length(),
            slab: frame.slab_length(),
            first_word: frame.first_word(),
            frame,
        }
    }
}

/// Names an end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that calls.
    Client,
    /// The one that serves.
    Server,
}

/// Checks the first four words of a cell, whose stamp is taken for open.
///
/// # Errors
/// [`PeerCorrupt`]: no honest `sender` writes these on that ring.
pub fn check(
    words: [u64; 4],
    sender: End,
    urgent: bool,
    max_slab: u32,
) -> Result<Accepted, PeerCorrupt> {
    let [first, second, more @ ..] = words;
    Frame::check([first, second], || more, role(sender), ring(urgent), max_slab).map(Accepted::new)
}

/// Does the same by the short way for usual frames; nothing when it leaves them to [`check`].
pub fn plain(words: [u64; 4], sender: End, urgent: bool, max_slab: u32) -> Option<Accepted> {
    let [first, second, place, _] = words;
    let kinds = match sender {
        End::Client => [Kind::Request, Kind::OneWay],
        End::Server => [Kind::Response; 2],
    };
    Frame::plain([first, second], || place, kinds, ring(urgent), max_slab).map(Accepted::new)
}

fn role(end: End) -> Sender {
    match end {
        End::Client => Sender::Client,
        End::Server => Sender::Server,
    }
}

fn ring(urgent: bool) -> Ring {
    if urgent { Ring::Urgent } else { Ring::Ordinary }
}

/// Words of the liar's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The life word.
    Life,
    /// The event word.
    Event,
    /// Whether and how the liar sleeps.
    Parked,
    /// Room that the liar says it waits for, on the urgent ring.
    WantUrgent,
    /// The same, on the ordinary ring.
    WantOrdinary,
    /// Frames that the liar says it has taken from the urgent ring.
    TakenUrgent,
    /// The same, from the ordinary ring.
    TakenOrdinary,
    /// Since when the liar says it is busy.
    Busy,
}

/// What a message of the liar says of itself, and on which ring it goes out.
#[derive(Clone, Copy, Debug)]
pub struct Claims {
    /// Kind, of which there are eight; taken modulo 8.
    pub kind: u8,
    /// Priority, 0 to 4 and three that do not exist; taken modulo 8.
    pub priority: u8,
    /// On the urgent ring.
    pub urgent: bool,
    /// Low half of its id.
    pub id: u32,
    /// Deadline field.
    pub deadline: u32,
}

/// An honest end, and a liar at the other.
#[derive(Debug)]
pub struct Stage {
    hub: Arc<Hub>,
    incoming: Option<Arc<Incoming>>,
    link: Option<Arc<Link>>,
    first_id: u32,
    /// The liar's lane, as the liar writes it.
    lies: Arc<Lane>,
    /// The same, as the honest end reads it.
    read: Arc<Lane>,
    raw: [OwnRing; 2],
    tx: [Producer; 2],
    rx: [Consumer; 2],
    bell: OwnedFd,
    /// Calls begun with a callback, and callbacks run.
    calls: Arc<[AtomicU32; 2]>,
}

/// Largest payload that the honest end takes or sends.
pub const MAX_PAYLOAD: u64 = 4096;
/// Calls that the honest end may have outstanding.
const OUTSTANDING: u32 = 8;
const SESSION: u32 = 7;
/// Bytes of arenas that the honest end may have, where it may.
const MOST_BULK: u64 = 64 * 1024;

impl Stage {
    /// Opens a channel on which the `honest` end is the library's.
    ///
    /// # Errors
    /// Those of making lanes and descriptors.
    pub fn new(honest: End) -> Result<Stage, NodeError> {
        // Everything by the ring: what this end sends in bulk is tried elsewhere.
        Stage::with_bulk(honest, 0)
    }

    fn with_bulk(honest: End, max_bulk: u64) -> Result<Stage, NodeError> {
        let geometry = Geometry::new(16, 2048).map_err(|rule| NodeError::Config(rule.into()))?;
        let (own, _) = lane::create(geometry)?;
        let (lies, fd) = lane::create(geometry)?;
        lies.header().life.store(1, Ordering::Release);
        let read = lane::map_peer(fd.as_fd(), geometry)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (bell, end) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(NodeError::system("make a doorbell"))?;
        let role = role(honest);
        let closer = Closer::new().map_err(NodeError::system("make an eventfd"))?;
        let channel = Channel::new(Parts {
            introduction: introduction(geometry),
            role,
            own: Arc::clone(&own),
            peer: Arc::clone(&read),
            entry: roll()?.enter(&own)?,
            bell: PeerSocket::new(end, &closer),
            closer,
            max_payload: MAX_PAYLOAD,
            max_bulk,
            spin: Spin::Never,
            seat: Arc::new(OwnBoard::default()).seat(&introduction(geometry), role),
            greeting: None,
        });
        let first_id = channel.first_id() as u32;
        let interrupter = Arc::new(Interrupter::new()?);
        let hub = Hub::new(Spin::Never, Arc::clone(&interrupter))?;
        let (mut incoming, mut link) = (None, None);
        match honest {
            End::Server => {
                let end =
                    Arc::new(Incoming::new(channel, Arc::downgrade(&hub), Closing::of_nobody()));
                hub.add(Member::Incoming(Arc::clone(&end)));
                incoming = Some(end);
            }
            End::Client => {
                let end =
                    Arc::new(Link::new(channel, OUTSTANDING, interrupter, Closing::of_nobody()));
                end.join(&hub);
                hub.add(Member::Outgoing(Arc::clone(&end)));
                link = Some(end);
            }
        }
        let rings = [Ring::Urgent, Ring::Ordinary];
        Ok(Stage {
            hub,
            incoming,
            link,
            first_id,
            raw: rings.map(|ring| lies.own_ring(ring)),
            tx: rings.map(|ring| Producer::new(&lies, &own, ring)),
            rx: rings.map(|ring| Consumer::new(&lies, &own, ring, role)),
            lies,
            read,
            bell,
            calls: Arc::default(),
        })
    }

    /// The low half of the first id on the channel.
    pub fn first_id(&self) -> u32 {
        self.first_id
    }

    /// Has the liar send a message as an honest peer does, whatever it claims, as far as there is
    /// room. Returns the bytes sent.
    pub fn push(&mut self, claims: Claims, payload: &[u8]) -> usize {
        let label = Label::new(kind(claims.kind), u32::from(claims.priority & 7));
        let label = label.with_id(claims.id).with_deadline(claims.deadline);
        let producer = &mut self.tx[ring(claims.urgent) as usize];
        let mut sent = 0;
        while let Ok(now) = producer.push(label, payload, sent) {
            sent = now;
            if sent >= payload.len() {
                break;
            }
        }
        sent
    }

    /// Changes bits of a word of a cell that the liar has sent, so many before the last.
    pub fn tamper(&mut self, urgent: bool, back: u8, word: u8, bits: u64) {
        let ring = ring(urgent);
        let head = self.tx[ring as usize].head();
        let index = head.wrapping_sub(1 + u64::from(back)) as usize % self.cells(ring);
        let now = self.read.peer_ring(ring);
        let mut words: [u64; 8] = std::array::from_fn(|word| now.word(index, word));
        words[usize::from(word) % 8] ^= bits;
        self.publish(ring, index, words);
    }

    /// Writes a whole cell; `index` is taken modulo their number.
    pub fn write_cell(&mut self, urgent: bool, index: u8, words: [u64; 8]) {
        let ring = ring(urgent);
        let index = usize::from(index) % self.cells(ring);
        self.publish(ring, index, words);
    }

    /// Fills a part of the slab with a byte, as much of it as there is.
    pub fn write_slab(&mut self, urgent: bool, offset: u16, length: u16, byte: u8) {
        let ring = ring(urgent);
        let size = self.lies.geometry().slab(ring) as usize;
        let offset = usize::from(offset) % size;
        let bytes = vec![byte; usize::from(length).min(size - offset)];
        self.raw[ring as usize].write_slab(offset, &bytes);
    }

    /// Writes a word of the liar's header: so much of `value` as it holds.
    pub fn write_word(&mut self, word: Word, value: u64) {
        let header = self.lies.header();
        let (short, attention) = (value as u32, &header.attention);
        match word {
            Word::Life => header.life.store(short, Ordering::Release),
            Word::Event => header.event.store(short, Ordering::Release),
            Word::Parked => attention.parked.store(short, Ordering::Release),
            Word::WantUrgent => attention.want_urgent.store(value, Ordering::Release),
            Word::WantOrdinary => attention.want_ordinary.store(value, Ordering::Release),
            Word::TakenUrgent => header.taken_urgent.store(value, Ordering::Release),
            Word::TakenOrdinary => header.taken_ordinary.store(value, Ordering::Release),
            Word::Busy => header.busy_since.store(value, Ordering::Release),
        }
    }

    /// Has the liar take the next frame of the honest end, as an honest peer does. Returns its
    /// payload's length, if there is one.
    ///
    /// # Errors
    /// [`PeerCorrupt`]: the liar has lied about what it took, and gets what it deserves.
    pub fn take(&mut self, urgent: bool) -> Result<Option<usize>, PeerCorrupt> {
        let consumer = &mut self.rx[ring(urgent) as usize];
        let Some(frame) = consumer.peek()? else { return Ok(None) };
        let mut payload = vec![0; frame.head.length as usize];
        consumer.copy(&frame, &mut payload);
        consumer.release(&frame);
        Ok(Some(payload.len()))
    }

    /// Has the liar ring the doorbell, or hang it up.
    pub fn ring_bell(&self, hang_up: bool) {
        // Both fail when the other end is closed already, and are no news when it rings.
        if hang_up {
            let _ = shutdown(self.bell.as_raw_fd(), Shutdown::Both);
        } else {
            let _ = packet::send(self.bell.as_fd(), &[1], &[]);
        }
    }

    /// Lets the honest end's loop run for so long, or until it found work. Returns the number of
    /// handlers and callbacks run.
    ///
    /// # Errors
    /// Those of a loop; none is due here.
    pub fn serve(
        &self,
        patience: Duration,
        mut handler: impl FnMut(Request<'_>),
    ) -> Result<usize, CallError> {
        let until = clock::now_ns() + patience.as_nanos() as u64;
        self.hub.serve(until, true, &mut handler)
    }

    /// Has the honest client call, and wait so long for the answer.
    ///
    /// # Errors
    /// [`CallError`], as of any call; `Invalid` when the honest end is the server.
    pub fn call(
        &self,
        priority: u8,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let (link, label) = (self.link()?, Label::new(Kind::Request, u32::from(priority % 5)));
        let mut answer = Vec::new();
        let limit = Limit::after(Some(timeout));
        link.call(label, Parcel::Bytes(payload), limit, &mut Sink::Vector(&mut answer))?;
        Ok(answer)
    }

    /// Has the honest client begin a call whose end its loop hears of. Returns its id.
    ///
    /// # Errors
    /// As of [`Stage::call`].
    ///
    /// # Panics
    /// In the loop, when an answer is over the limit.
    pub fn start(&self, priority: u8, payload: &[u8], timeout: Duration) -> Result<u64, CallError> {
        let (link, label) = (self.link()?, Label::new(Kind::Request, u32::from(priority % 5)));
        let calls = Arc::clone(&self.calls);
        let waiter = Waiter::Callback(Box::new(move |outcome| {
            let length = outcome.map_or(0, |answer| answer.len() as u64);
            assert!(length <= MAX_PAYLOAD, "an answer over the limit reached its caller");
            calls[1].fetch_add(1, Ordering::Relaxed);
        }));
        let id =
            link.request(label, Parcel::Bytes(payload), Limit::after(Some(timeout)), waiter)?;
        self.calls[0].fetch_add(1, Ordering::Relaxed);
        // As a client does it.
        self.hub.attend(link);
        if link.channel.check_life() != Fate::Open {
            link.fail_callbacks();
        }
        Ok(id)
    }

    /// Has the honest client send a one-way message, if there is room within `timeout`.
    ///
    /// # Errors
    /// As of [`Stage::call`].
    pub fn send(&self, priority: u8, payload: &[u8], timeout: Duration) -> Result<u64, CallError> {
        let (link, label) = (self.link()?, Label::new(Kind::OneWay, u32::from(priority % 5)));
        link.send(label, Parcel::Bytes(payload), Limit::room(Some(timeout)))
    }

    /// Has the honest client withdraw a call. Returns whether it was outstanding.
    pub fn cancel(&self, id: u64) -> bool {
        self.link().is_ok_and(|link| link.cancel(id))
    }

    /// Ends the liar, and gives how many calls were begun and how many callbacks have run: as many.
    pub fn finish(mut self) -> (u32, u32) {
        self.write_word(Word::Life, 0);
        for _ in 0..2 {
            let _ = self.serve(Duration::ZERO, |_| {});
        }
        drop(self.incoming.take());
        let [begun, ended] = &*self.calls;
        (begun.load(Ordering::Relaxed), ended.load(Ordering::Relaxed))
    }

    /// The client's end, while it is open: a client uses no other.
    fn link(&self) -> Result<&Arc<Link>, CallError> {
        let link = self.link.as_ref();
        let link = link.ok_or(CallError::Invalid("the honest end is the server"))?;
        match link.channel.check_life() {
            Fate::Open => Ok(link),
            _ => Err(link.channel.ended(false)),
        }
    }

    fn cells(&self, ring: Ring) -> usize {
        self.lies.geometry().cells(ring) as usize
    }

    fn publish(&mut self, ring: Ring, index: usize, words: [u64; 8]) {
        let [first, second, payload @ ..] = words;
        self.raw[ring as usize].publish(index, [first, second], payload);
    }
}

fn kind(number: u8) -> Kind {
    match number % 8 {
        0 => Kind::Request,
        1 => Kind::OneWay,
        2 => Kind::Response,
        3 => Kind::Error,
        4 => Kind::Continue,
        5 => Kind::Cancel,
        6 => Kind::Ping,
        _ => Kind::Pong,
    }
}

fn introduction(geometry: Geometry) -> Introduction {
    Introduction {
        channel: 1,
        session: SESSION,
        start_ns: clock::now_ns(),
        asymmetric: false,
        peer: ServiceId::new(2),
        peer_name: ServiceId::NONE,
        peer_pid: std::process::id(),
        peer_uid: 0,
        dest: ServiceId::new(3),
        dest_name: ServiceId::new(4),
        geometry,
        permissions: u64::MAX,
        opener: ServiceId::new(2),
        encrypted: false,
        peer_key: [0; 32],
        bond: Bond::default(),
    }
}

/// The lanes' keeper is the first thread that comes here: it must live as long as its stages.
fn roll() -> Result<&'static Arc<Roll>, NodeError> {
    static ROLL: OnceLock<Arc<Roll>> = OnceLock::new();
    if let Some(roll) = ROLL.get() {
        return Ok(roll);
    }
    let roll = Arc::new(Roll::default());
    roll.keep()?;
    Ok(ROLL.get_or_init(|| roll))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_honest_liar_is_served_and_a_lie_ends_its_channel() {
        let mut stage = Stage::new(End::Server).expect("a stage");
        let id = stage.first_id();
        let claims = Claims { kind: 0, priority: 2, urgent: false, id, deadline: 0 };
        assert_eq!(stage.push(claims, b"hello"), 5);
        let mut heard = Vec::new();
        let serve = |stage: &Stage, heard: &mut Vec<u8>| {
            stage.serve(Duration::ZERO, |request| {
                heard.extend_from_slice(request.payload());
                request.reply(b"answer").expect("room");
            })
        };
        assert_eq!(serve(&stage, &mut heard).expect("a loop"), 1);
        assert_eq!(heard, b"hello");
        assert_eq!(stage.take(false), Ok(Some(6)));
        stage.push(claims, b"again");
        stage.tamper(false, 0, 0, 1 << 63);
        assert_eq!(serve(&stage, &mut heard).expect("a loop"), 0);
        stage.push(claims, b"to nobody");
        assert_eq!(serve(&stage, &mut heard).expect("a loop"), 0);
        assert_eq!(stage.finish(), (0, 0));
    }

    #[test]
    fn a_call_ends_by_an_answer_or_with_its_channel() {
        let mut stage = Stage::new(End::Client).expect("a stage");
        let timeout = Duration::from_secs(10);
        let first = stage.start(2, b"one", timeout).expect("room");
        stage.start(2, b"two", timeout).expect("room");
        let answer = Claims { kind: 2, priority: 2, urgent: false, id: first as u32, deadline: 0 };
        stage.push(answer, b"answer");
        assert_eq!(stage.serve(Duration::ZERO, |_| {}).expect("a loop"), 1);
        assert_eq!(stage.finish(), (2, 2));
    }

    /// Found by the target `lanes`: the call went round and round, past its time.
    #[test]
    fn a_lie_behind_the_answer_does_not_keep_the_caller() {
        let mut stage = Stage::new(End::Client).expect("a stage");
        // The first call's id: that of the first slot, in the first round of ids.
        let claims = Claims { kind: 3, priority: 2, urgent: false, id: OUTSTANDING, deadline: 0 };
        stage.push(claims, &(-9_i32).to_le_bytes());
        stage.push(claims, b"");
        stage.tamper(false, 0, 0, 1 << 63);
        let answer = stage.call(2, b"", Duration::ZERO);
        assert!(matches!(answer, Err(CallError::Remote(_))), "{answer:?}");
    }

    /// Found by the target `lanes`: the call waited for room on its own ring, where there was some,
    /// and went round and round.
    #[test]
    fn a_call_behind_an_aborted_one_on_another_ring_ends_in_time() {
        let stage = Stage::new(End::Client).expect("a stage");
        let short = Duration::from_micros(1);
        // Half of it fits; then the urgent ring is filled, and its withdrawal finds no cell.
        assert!(stage.send(0, &[7; 4000], short).is_err());
        while stage.send(0, b"", short).is_ok() {}
        let aborted = stage.send(0, &[7; 4000], short);
        assert!(matches!(aborted, Err(CallError::Full)), "{aborted:?}");
        let call = stage.call(2, b"", short);
        assert!(call.is_err(), "{call:?}");
    }
}
