//! Encrypted channels: the handshake over the channel's own lanes, and frames sealed after it.
//!
//! ```text
//!   client                         server
//!   Hello (e, es, ss)   ─────────▶ its loop; whatever else comes first is a lie
//!                       ◀───────── Hello (e, ee, se), or an empty one: refused
//!   every frame from here on, in both rings and directions, is sealed
//! ```
//! Both know the other's key from the runtime, which introduced them, so the pattern is KK. An end
//! that was told to encrypt takes nothing else, so nobody can talk it down to plain.

use std::time::Duration;

use super::{Channel, Fate, Receive, Taken, Transmit, ring_of};
use crate::{
    board::{Seat, SessionStats},
    clock,
    control::Introduction,
    error::{NodeError, PeerCorrupt, Status},
    frame::{Frame, Kind, Label, Sender},
    layout::Ring,
    ring::PushError,
    session::{
        Binding, Handshake, HandshakeError, Pattern, PublicKey, SecureChannel, SessionFacts,
        StaticKey, Step, Then, record::Opener,
    },
    sync::pause,
    wait::Sleep,
};

/// How long a handshake may take from the introduction on.
const PATIENCE_NS: u64 = 5_000_000_000;
/// Polls before the client sleeps: most handshakes are over within these.
const POLLS: u32 = 1000;

/// What guards the receiving side of an encrypted channel.
#[derive(Debug)]
pub(crate) enum Guard {
    /// The handshake; none while a step of it is being made, and after it has failed.
    Greeting(Option<Handshake>),
    /// Every frame is a record.
    Sealed(Opener),
    /// The peer was caught in a lie, which is still to be told.
    Broken(PeerCorrupt),
}

/// Prepares the handshake of an end, if its channel is to be encrypted.
///
/// # Errors
/// `AUTH` when the other end has no key, and [`NodeError::System`].
pub(crate) fn greeting(
    it: &Introduction,
    role: Sender,
    key: &StaticKey,
) -> Result<Option<Handshake>, NodeError> {
    if !it.encrypted {
        return Ok(None);
    }
    if it.peer_key == [0; 32] {
        return Err(NodeError::Refused(Status::AUTH));
    }
    // The ids of names and instances are never given twice, and neither are channels'; the high
    // half of these says which run of the runtime introduced the two.
    let binding = Binding {
        client: "",
        service: "",
        client_id: it.opener.get(),
        service_id: it.dest.get(),
        epoch: u64::from(it.dest_name.get()) << 32 | it.channel >> 32,
        channel: it.channel,
    };
    let theirs = Some(PublicKey::from_bytes(it.peer_key));
    match role {
        Sender::Client => Handshake::client(Pattern::Kk, key, theirs, &binding),
        Sender::Server => Handshake::server(Pattern::Kk, key, theirs, &binding),
    }
    .map(Some)
    .map_err(refused)
}

/// When a server gives up a client that was introduced at `start_ns`: after twice as long as that
/// waits itself.
pub(crate) fn late_at(start_ns: u64) -> u64 {
    start_ns.saturating_add(2 * PATIENCE_NS)
}

/// Whether that time is over.
pub(crate) fn is_late(start_ns: u64) -> bool {
    clock::now_ns() > late_at(start_ns)
}

fn refused(error: HandshakeError) -> NodeError {
    match error {
        HandshakeError::System(error) => error,
        HandshakeError::Forked => NodeError::Forked,
        other => NodeError::Refused(other.status()),
    }
}

impl Channel {
    /// Whether its frames are sealed, or will be.
    #[inline]
    pub(crate) fn is_encrypted(&self) -> bool {
        self.introduction.encrypted
    }

    /// What this end tells of its session; nothing on a plain channel.
    pub(crate) fn session(&self) -> Option<SessionStats> {
        self.seat.as_ref().and_then(Seat::session)
    }

    /// Names that session.
    #[inline]
    pub(crate) fn fingerprint(&self) -> Option<[u8; 32]> {
        if self.introduction.encrypted { self.session().map(|it| it.fingerprint) } else { None }
    }

    /// Whether its handshake is not done yet. Any thread may ask.
    pub(crate) fn awaits_greeting(&self) -> bool {
        self.is_encrypted() && self.session().is_none() && self.fate() == Fate::Open
    }

    /// Makes the handshake, at the client's end, before anybody else has the channel. Nothing on a
    /// plain one.
    ///
    /// # Errors
    /// `AUTH` when the other end does not prove its key; `TimedOut` when its loop does not answer;
    /// `PEER_DIED`. The channel has ended then.
    pub(crate) fn greet(&self) -> Result<(), NodeError> {
        if !self.is_encrypted() {
            return Ok(());
        }
        let until = clock::now_ns().saturating_add(PATIENCE_NS);
        let mut rx = self.rx.claim();
        self.greet_as_client(&mut rx, until).inspect_err(|_| self.end(Fate::Closed))
    }

    fn greet_as_client(&self, rx: &mut Receive, until: u64) -> Result<(), NodeError> {
        let handshake = rx.take_greeting().ok_or(NodeError::Refused(Status::AUTH))?;
        let mut step = handshake.begin().map_err(refused)?;
        loop {
            if let Some(session) = self.advance(rx, step) {
                return session.map_err(|_| NodeError::Refused(Status::PEER_CORRUPT));
            }
            let message = self.hear_greeting(rx, until)?;
            let handshake = rx.take_greeting().ok_or(NodeError::Refused(Status::AUTH))?;
            step = handshake.receive(&message).map_err(refused)?;
        }
    }

    /// Waits for the server's next message.
    fn hear_greeting(&self, rx: &mut Receive, until: u64) -> Result<Vec<u8>, NodeError> {
        let mut polls = 0;
        while !rx.is_ready() {
            if self.check_life() != Fate::Open && !rx.is_ready() {
                return Err(NodeError::Refused(Status::PEER_DIED));
            }
            polls += 1;
            if polls < POLLS {
                (0..8).for_each(|_| pause());
                continue;
            }
            let left = until.saturating_sub(clock::now_ns());
            if left == 0 {
                return Err(NodeError::TimedOut);
            }
            let event = self.event();
            self.park(Sleep::Futex);
            self.barrier();
            if !rx.is_ready() {
                self.sleep(event, [None, None], Some(Duration::from_nanos(left)));
            }
            self.unpark();
        }
        let ring = if rx.urgent.is_ready() { Ring::Urgent } else { Ring::Ordinary };
        match rx.take(ring, self.max_payload) {
            Ok(Some(Taken::Hello(message))) if !message.is_empty() => Ok(message),
            Ok(_) | Err(_) => Err(NodeError::Refused(Status::AUTH)),
        }
    }

    /// Takes the client's next message, at the server's end, and answers.
    ///
    /// # Errors
    /// [`PeerCorrupt::Handshake`]: the client was told, and the channel has to end.
    pub(crate) fn greeted(&self, rx: &mut Receive, message: &[u8]) -> Result<(), PeerCorrupt> {
        let is_late = is_late(self.introduction.start_ns);
        let handshake = rx.take_greeting().filter(|_| !is_late);
        let step = handshake.and_then(|it| it.receive(message).ok());
        let done = if let Some(step) = step {
            self.advance(rx, step).unwrap_or(Ok(()))
        } else {
            let _ = say_hello(&mut self.tx.claim(), &[]);
            Err(PeerCorrupt::Handshake)
        };
        self.after_push();
        self.after_take();
        done
    }

    /// Sends what a step has to send, and does what comes then; something when that was the last.
    fn advance(&self, rx: &mut Receive, step: Step) -> Option<Result<(), PeerCorrupt>> {
        let mut tx = self.tx.claim();
        if let Some(message) = &step.send
            && say_hello(&mut tx, message).is_err()
        {
            return Some(Err(PeerCorrupt::Handshake));
        }
        match step.then {
            Then::Receive(handshake) => {
                rx.guard = Some(Box::new(Guard::Greeting(Some(handshake))));
                drop(tx);
                self.after_push();
                None
            }
            Then::Done(session) => {
                seal(&mut tx, rx, *session);
                Some(Ok(()))
            }
        }
    }

    /// Makes keystream for what comes and goes next, on an encrypted channel: for when there is
    /// nothing else to do. Ends the channel of a peer that was caught in a lie.
    #[inline(always)]
    pub(crate) fn prepare(&self, rx: &mut Receive) {
        if rx.guard.is_some() {
            self.prepare_guarded(rx);
        }
    }

    #[inline(never)]
    fn prepare_guarded(&self, rx: &mut Receive) {
        match rx.guard.as_deref_mut() {
            Some(Guard::Sealed(opener)) => opener.prepare(Ring::Ordinary),
            Some(Guard::Broken(lie)) => return self.end(Fate::Poisoned(*lie)),
            Some(Guard::Greeting(_)) | None => return,
        };
        if let Some(mut tx) = self.tx.try_claim()
            && let Some(sealer) = &mut tx.sealer
        {
            sealer.prepare(Ring::Ordinary);
        }
    }
}

/// The priority of the handshake's frames: the first of the ordinary ring.
const HELLO_LEVEL: u32 = 2;

fn say_hello(tx: &mut Transmit, message: &[u8]) -> Result<(), PushError> {
    tx.push(Label::new(Kind::Hello, HELLO_LEVEL), message, &mut 0)
}

/// From here on every frame is sealed. The records' positions are those of the frames, of which
/// the handshake took some.
fn seal(tx: &mut Transmit, rx: &mut Receive, mut session: SecureChannel) {
    let SessionFacts { pattern, fingerprint, .. } = session.facts();
    tx.board.begin_session(pattern, fingerprint, clock::now_ns());
    let (mut sealer, mut opener) = session.into_ends();
    for ring in [Ring::Urgent, Ring::Ordinary] {
        sealer.begin_at(ring, tx.producer(ring).head());
        opener.begin_at(ring, rx.consumer(ring).tail());
    }
    tx.sealer = Some(Box::new(sealer));
    rx.guard = Some(Box::new(Guard::Sealed(opener)));
}

impl Transmit {
    /// As `push`, with every frame sealed.
    #[inline(never)]
    pub(super) fn push_sealed(
        &mut self,
        label: Label,
        payload: &[u8],
        mut sent: usize,
    ) -> (usize, Result<(), PushError>) {
        let ring = ring_of(label.priority());
        let now = clock::tick_ns();
        let producer = match ring {
            Ring::Urgent => &mut self.urgent,
            Ring::Ordinary => &mut self.ordinary,
        };
        let Some(sealer) = &mut self.sealer else { return (sent, Ok(())) };
        let outcome = loop {
            match producer.push_sealed(sealer, label, payload, sent, now) {
                Ok(now) => sent = now,
                Err(error) => break Err(error.into()),
            }
            if sent >= payload.len() {
                break Ok(());
            }
        };
        if sealer.has_rekeyed() {
            self.board.sender.rekeys.add(1);
        }
        (sent, outcome)
    }
}

impl Receive {
    /// Takes nothing but what this handshake lets in, if there is one.
    pub(super) fn guarded(mut self, greeting: Option<Handshake>) -> Receive {
        self.guard = greeting.map(|it| Box::new(Guard::Greeting(Some(it))));
        self
    }

    fn take_greeting(&mut self) -> Option<Handshake> {
        match self.guard.as_deref_mut() {
            Some(Guard::Greeting(handshake)) => handshake.take(),
            _ => None,
        }
    }

    /// As `take`, on an encrypted channel. After a lie there is nothing more to take: what came
    /// behind it may open.
    pub(super) fn take_guarded(
        &mut self,
        ring: Ring,
        max_payload: u64,
    ) -> Result<Option<Taken>, PeerCorrupt> {
        self.take_record(ring, max_payload)
            .inspect_err(|lie| self.guard = Some(Box::new(Guard::Broken(*lie))))
    }

    #[inline(never)]
    fn take_record(&mut self, ring: Ring, max_payload: u64) -> Result<Option<Taken>, PeerCorrupt> {
        let now = clock::tick_ns();
        let consumer = match ring {
            Ring::Urgent => &mut self.urgent,
            Ring::Ordinary => &mut self.ordinary,
        };
        let opener = match self.guard.as_deref_mut() {
            Some(Guard::Sealed(opener)) => opener,
            Some(Guard::Broken(lie)) => return Err(*lie),
            Some(Guard::Greeting(_)) | None => return self.take_hello(ring),
        };
        let it = match consumer.take_sealed(opener, &mut self.buffer, now)? {
            None => return Ok(None),
            Some(Err(_)) => {
                self.drop_record();
                return Ok(Some(Taken::Fragment));
            }
            Some(Ok(it)) => it,
        };
        let lossy = opener.refused() > 0;
        let (frame, length) = (it.frame, it.length);
        if frame.head.kind == Kind::Hello {
            return Err(PeerCorrupt::Kind);
        }
        if frame.head.kind == Kind::Continue || frame.head.is_first_of_many() {
            let id = frame.head.id;
            return match self.add_fragment(None, frame, length, max_payload) {
                // A frame of that message was refused, and with it the message.
                Err(PeerCorrupt::Fragment) if lossy => {
                    self.forget(id);
                    self.board.identity.drops.add_shared(1);
                    Ok(Some(Taken::Fragment))
                }
                other => other.map(Some),
            };
        }
        let status = match (frame.head.kind, self.buffer.first_chunk()) {
            (Kind::Error, Some(bytes)) if length >= 4 => i32::from_le_bytes(*bytes),
            _ => 0,
        };
        Ok(Some(self.whole(frame, status, max_payload)))
    }

    /// As `take_plain`, on an encrypted channel; the frame is `opened` then. A record that does not
    /// open is dropped, and a lie kept for whoever looks next.
    #[inline(never)]
    pub(super) fn take_plain_record(&mut self, ring: Ring, max_payload: u64) -> bool {
        let now = self.last_ns;
        let consumer = match ring {
            Ring::Urgent => &mut self.urgent,
            Ring::Ordinary => &mut self.ordinary,
        };
        let Some(Guard::Sealed(opener)) = self.guard.as_deref_mut() else { return false };
        let is_plain = |frame: &Frame| {
            frame.is_plain_record(ring) && u64::from(frame.head.length) <= max_payload
        };
        if !consumer.peek_sealed().as_ref().is_some_and(is_plain) {
            return false;
        }
        let lie = match consumer.take_sealed(opener, &mut self.buffer, now) {
            Ok(Some(Ok(it))) if is_plain(&it.frame) => {
                self.opened = Some(it.frame);
                return true;
            }
            // It was another frame when it was looked at.
            Ok(Some(Ok(_))) => PeerCorrupt::Stamp,
            Ok(Some(Err(_))) => {
                self.drop_record();
                return false;
            }
            Ok(None) => return false,
            Err(lie) => lie,
        };
        self.guard = Some(Box::new(Guard::Broken(lie)));
        false
    }

    /// Counts a record that did not open.
    #[cold]
    fn drop_record(&self) {
        self.board.identity.drops.add_shared(1);
        self.board.receiver.refused.add(1);
    }

    /// Takes a frame of the handshake; whatever else comes before its end is a lie.
    #[cold]
    fn take_hello(&mut self, ring: Ring) -> Result<Option<Taken>, PeerCorrupt> {
        let Some(frame) = self.consumer(ring).peek()? else { return Ok(None) };
        if frame.head.kind != Kind::Hello || frame.head.flags != 0 {
            return Err(PeerCorrupt::Handshake);
        }
        self.take_whole(ring, &frame);
        Ok(Some(Taken::Hello(self.buffer[..frame.head.length as usize].to_vec())))
    }
}

#[cfg(test)]
mod tests;
