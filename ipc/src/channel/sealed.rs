//! Encrypted channels: the handshake over the channel's own lanes, and frames sealed after it.
//!
//! ```text
//!   client                              server
//!   Hello (pattern, e …)     ─────────▶ its loop; whatever else comes first is a lie
//!                            ◀───────── Hello (e, ee …), or an empty one: refused
//!   Hello (s, se), with XX   ─────────▶
//!                            ◀───────── Hello (done), with XX
//!   every frame from here on, in both rings and directions, is sealed
//! ```
//! `greeting` says which pattern it is. An end that was told to encrypt takes nothing else, so
//! nobody can talk it down to plain.

use std::time::Duration;

use super::{
    Channel, Fate, Receive, Taken, Transmit,
    greeting::{self, DONE, Greeting, PATIENCE_NS, is_late},
    ring_of,
};
use crate::{
    board::{Seat, SessionStats},
    clock,
    error::{NodeError, PeerCorrupt, Status},
    failpoint::shared,
    frame::{Frame, Kind, Label},
    layout::Ring,
    ring::PushError,
    session::{Handshake, HandshakeError, SecureChannel, SessionFacts, Step, Then, record::Opener},
    sync::pause,
    wait::Sleep,
};

/// Polls before the client sleeps: most handshakes are over within these.
const POLLS: u32 = 1000;

/// What guards the receiving side of an encrypted channel.
#[derive(Debug)]
pub(crate) enum Guard {
    /// A handshake that has not begun; nothing once it has.
    Awaited(Option<Greeting>),
    /// The handshake; none while a step of it is being made, and after it has failed.
    Greeting(Option<Handshake>),
    /// Every frame is a record.
    Sealed(Opener),
    /// The peer was caught in a lie, which is still to be told.
    Broken(PeerCorrupt),
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
        let greeting = rx.take_awaited().ok_or(NodeError::Refused(Status::AUTH))?;
        let began_ns = clock::now_ns();
        let mut step = greeting.begin().map_err(refused)?;
        loop {
            let Step { send, then } = step;
            if let Some(message) = &send {
                let said = say_hello(&mut self.tx.claim(), message);
                said.map_err(|_| NodeError::Refused(Status::PEER_CORRUPT))?;
                self.after_push();
            }
            let handshake = match then {
                Then::Receive(handshake) => handshake,
                Then::Done(session) => {
                    // Who had the last word waits for the server's: it may refuse.
                    if send.is_some() && self.hear_greeting(rx, until)? != DONE {
                        return Err(NodeError::Refused(Status::AUTH));
                    }
                    let waited_ns = clock::now_ns().saturating_sub(began_ns);
                    seal(&mut self.tx.claim(), rx, *session, waited_ns);
                    return Ok(());
                }
            };
            let message = self.hear_greeting(rx, until)?;
            step = greeting::go_on(handshake, &message).map_err(refused)?;
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
        let step = if is_late(self.introduction.start_ns) {
            None
        } else if let Some(greeting) = rx.take_awaited() {
            greeting.receive(message).ok()
        } else {
            rx.take_greeting().and_then(|it| greeting::go_on(it, message).ok())
        };
        let mut tx = self.tx.claim();
        let done = answer(&mut tx, rx, step);
        if done.is_err() {
            let _ = say_hello(&mut tx, &[]);
        }
        drop(tx);
        self.after_push();
        self.after_take();
        done
    }

    /// Tells the peer that this end is closed in order, and how much it has sent: sealed, so that
    /// nobody else can say so. Nothing on a channel without a session. Whoever holds the sending
    /// side for long keeps it from being said; the peer takes that for a cut then.
    #[cold]
    pub(super) fn say_goodbye(&self) {
        if !self.is_encrypted() || !self.birth.is_here() {
            return;
        }
        let tx = (0..GOODBYE_TRIES).find_map(|_| {
            self.tx.try_claim().or_else(|| {
                pause();
                None
            })
        });
        let Some(mut tx) = tx else { return };
        let count = tx.ordinary.head();
        let Transmit { urgent, sealer: Some(sealer), .. } = &mut *tx else { return };
        urgent.keep_last(false);
        let label = Label::new(Kind::Close, 0);
        // Where it finds no room the peer has not taken the frames before it for long.
        let _ = urgent.push_sealed(sealer, label, &count.to_le_bytes(), 0, clock::now_ns());
    }

    /// Once all that the peer has sent was taken: whether the end that it has come to is the peer's
    /// own. On an encrypted channel one that is not is a lie, and told as such.
    #[cold]
    pub(crate) fn judge_end(&self, rx: &Receive) {
        let is_sealed = matches!(rx.guard.as_deref(), Some(Guard::Sealed(_)));
        if is_sealed && self.fate() == Fate::Closed && self.is_closed_by_peer() && !rx.has_all() {
            self.board().identity.errors.add_shared(1);
            self.end(Fate::Poisoned(PeerCorrupt::Cut));
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
            Some(Guard::Awaited(_) | Guard::Greeting(_)) | None => return,
        };
        if let Some(mut tx) = self.tx.try_claim()
            && let Some(sealer) = &mut tx.sealer
        {
            sealer.prepare(Ring::Ordinary);
        }
    }
}

/// Looks at who holds the sending side before the last word is left unsaid.
const GOODBYE_TRIES: u32 = 10_000;

/// The priority of the handshake's frames: the first of the ordinary ring.
const HELLO_LEVEL: u32 = 2;

/// Longest frame of the handshake: a pattern's longest message is half of that.
const MOST_HELLO: usize = 192;

fn say_hello(tx: &mut Transmit, message: &[u8]) -> Result<(), PushError> {
    shared!(Hello, tx.push(Label::new(Kind::Hello, HELLO_LEVEL), message, &mut 0))
}

/// Sends what a step has to send, and does what comes then.
fn answer(tx: &mut Transmit, rx: &mut Receive, step: Option<Step>) -> Result<(), PeerCorrupt> {
    let Step { send, then } = step.ok_or(PeerCorrupt::Handshake)?;
    let message = send.as_deref().unwrap_or(&DONE);
    say_hello(tx, message).map_err(|_| PeerCorrupt::Handshake)?;
    match then {
        Then::Receive(handshake) => {
            rx.guard = Some(Box::new(Guard::Greeting(Some(handshake))));
        }
        Then::Done(session) => seal(tx, rx, *session, 0),
    }
    Ok(())
}

/// From here on every frame is sealed. The records' positions are those of the frames, of which
/// the handshake took some.
fn seal(tx: &mut Transmit, rx: &mut Receive, mut session: SecureChannel, waited_ns: u64) {
    let SessionFacts { pattern, fingerprint, .. } = session.facts();
    tx.board.begin_session(pattern, fingerprint, clock::now_ns(), waited_ns);
    let (mut sealer, mut opener) = session.into_ends();
    for ring in [Ring::Urgent, Ring::Ordinary] {
        sealer.begin_at(ring, tx.producer(ring).head());
        opener.begin_at(ring, rx.consumer(ring).tail());
    }
    tx.urgent.keep_last(true);
    shared!(Sealed, {
        tx.sealer = Some(Box::new(sealer));
        rx.guard = Some(Box::new(Guard::Sealed(opener)));
    });
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
    pub(super) fn guarded(mut self, greeting: Option<Greeting>) -> Receive {
        self.guard = greeting.map(|it| Box::new(Guard::Awaited(Some(it))));
        self
    }

    /// Whether the peer has said that it closed its end, and all that it sent before was taken.
    fn has_all(&self) -> bool {
        self.goodbye.is_some_and(|count| self.ordinary.tail() >= count)
    }

    fn take_awaited(&mut self) -> Option<Greeting> {
        match self.guard.as_deref_mut() {
            Some(Guard::Awaited(greeting)) => greeting.take(),
            _ => None,
        }
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
            Some(Guard::Awaited(_) | Guard::Greeting(_)) | None => {
                return self.take_hello(ring);
            }
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
        match (frame.head.kind, self.buffer.first_chunk()) {
            (Kind::Hello, _) => return Err(PeerCorrupt::Kind),
            (Kind::Close, Some(count)) if length == size_of::<u64>() && ring == Ring::Urgent => {
                self.goodbye = Some(u64::from_le_bytes(*count));
                return Ok(Some(Taken::Fragment));
            }
            (Kind::Close, _) => return Err(PeerCorrupt::Length),
            _ => {}
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
        if frame.head.kind != Kind::Hello || frame.head.length as usize > MOST_HELLO {
            return Err(PeerCorrupt::Handshake);
        }
        self.take_whole(ring, &frame);
        Ok(Some(Taken::Hello(self.buffer[..frame.head.length as usize].to_vec())))
    }
}

#[cfg(test)]
mod tests;
