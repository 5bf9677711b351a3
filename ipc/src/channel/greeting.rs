//! What a handshake over a channel is made of: which pattern, by which keys, and bound to what.
//!
//! | the key of who opens the channel | | pattern |
//! |---|---|---|
//! | the registry binds it | | KK |
//! | it does not: a newcomer | that has not met this service | XX |
//! | | that comes back to it | IK |
//!
//! The runtime tells either end the other's key, whatever the pattern: an end that proves another
//! is refused. With XX and IK the newcomer's own key travels encrypted.

use std::sync::Arc;

use crate::{
    clock,
    control::{Bond, Introduction},
    error::{NodeError, Status},
    frame::Sender,
    session::{BoundTo, Handshake, HandshakeError, Pattern, PublicKey, StaticKey, Step},
};

/// How long a handshake may take from the introduction on.
pub(super) const PATIENCE_NS: u64 = 5_000_000_000;

/// Tells the message that begins a handshake from all others.
const BEGUN: u8 = 0;
/// The server's last word, where it has no message of the pattern to say it with.
pub(super) const DONE: [u8; 1] = [BEGUN];

/// A handshake that has not begun.
#[derive(Debug)]
pub(crate) struct Greeting {
    key: Arc<StaticKey>,
    expected: PublicKey,
    bound: BoundTo,
    role: Sender,
    /// Of the client: which it begins. Of the server: which it takes.
    patterns: &'static [Pattern],
    /// Records after which a key is changed.
    rekey_records: u32,
}

/// Prepares the handshake of an end, if its channel is to be encrypted. `has_met` is whether this
/// end has proved itself to that service before, and that to it; `rekey_records` is the
/// configuration's.
///
/// # Errors
/// `AUTH` when the other end has no key.
pub(crate) fn greeting(
    it: &Introduction,
    role: Sender,
    key: &Arc<StaticKey>,
    has_met: bool,
    rekey_records: u32,
) -> Result<Option<Greeting>, NodeError> {
    if !it.encrypted {
        return Ok(None);
    }
    if it.peer_key == [0; 32] {
        return Err(NodeError::Refused(Status::AUTH));
    }
    let Bond { epoch, is_known, opener, dest } = it.bond;
    // The ids of names and instances are never given twice, and neither are channels'; the high
    // half of these says which run of the runtime introduced the two.
    let (client_id, service_id, channel) = (it.opener.get(), it.dest.get(), it.channel);
    let bound = BoundTo { client: opener, service: dest, client_id, service_id, epoch, channel };
    let patterns: &[Pattern] = match (role, is_known, has_met) {
        (_, true, _) => &[Pattern::Kk],
        (Sender::Client, false, false) => &[Pattern::Xx],
        (Sender::Client, false, true) => &[Pattern::Ik],
        (Sender::Server, false, _) => &[Pattern::Xx, Pattern::Ik],
    };
    let expected = PublicKey::from_bytes(it.peer_key);
    Ok(Some(Greeting { key: Arc::clone(key), expected, bound, role, patterns, rekey_records }))
}

impl Greeting {
    /// Begins, at the client's end.
    pub(super) fn begin(&self) -> Result<Step, HandshakeError> {
        let pattern = self.patterns[0];
        let mut step = self.handshake(pattern)?.begin()?;
        if let Some(message) = &mut step.send {
            message.insert(0, pattern.number());
        }
        Ok(step)
    }

    /// Takes the client's first message, at the server's end.
    pub(super) fn receive(&self, message: &[u8]) -> Result<Step, HandshakeError> {
        let (number, message) = message.split_first().ok_or(HandshakeError::Refused)?;
        let pattern = self.patterns.iter().find(|it| it.number() == *number);
        let handshake = self.handshake(*pattern.ok_or(HandshakeError::Refused)?)?;
        Ok(marked(handshake.receive(message)?))
    }

    fn handshake(&self, pattern: Pattern) -> Result<Handshake, HandshakeError> {
        let is_client = self.role == Sender::Client;
        let expected = Some(self.expected);
        Handshake::bound(pattern, &self.key, expected, &self.bound, is_client)
            .map(|it| it.rekeying_after(self.rekey_records))
    }
}

/// Takes a later message, at either end.
pub(super) fn go_on(handshake: Handshake, message: &[u8]) -> Result<Step, HandshakeError> {
    match message.split_first() {
        Some((&BEGUN, message)) => handshake.receive(message).map(marked),
        _ => Err(HandshakeError::Refused),
    }
}

fn marked(mut step: Step) -> Step {
    if let Some(message) = &mut step.send {
        message.insert(0, BEGUN);
    }
    step
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
