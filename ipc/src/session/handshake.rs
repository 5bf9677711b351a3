//! The handshake: a Noise pattern, message by message, as a pure state machine.
//!
//! It takes and gives messages; who carries them is not its affair. Every step consumes it: after
//! an error there is nothing left to go on with.

use std::{fmt, sync::Arc};

use snow::{Builder, HandshakeState, params::NoiseParams};
use zeroize::Zeroize;

use super::{
    channel::SecureChannel,
    key::{PublicKey, StaticKey},
    record::{Context, Limits, Opener, Sealer, Way},
    resolver::Primitives,
    vault::{Wiped, sweep_stack},
    x25519::Curve,
};
use crate::{NodeError, Status, control::name_hash};

/// Longest message of any of the patterns.
const LONGEST: usize = 192;

/// Says what the two ends know of each other before they speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Both know the other's key. One message each way.
    Kk,
    /// Neither does; both tell theirs, encrypted. Three messages.
    Xx,
    /// Who opens the channel knows the other's key, and tells its own. One message each way.
    Ik,
}

impl Pattern {
    /// Every pattern.
    pub const ALL: [Pattern; 3] = [Pattern::Kk, Pattern::Xx, Pattern::Ik];

    /// Gives the name, as the Noise specification has it.
    pub fn name(self) -> &'static str {
        match self {
            Pattern::Kk => "Noise_KK_25519_ChaChaPoly_SHA256",
            Pattern::Xx => "Noise_XX_25519_ChaChaPoly_SHA256",
            Pattern::Ik => "Noise_IK_25519_ChaChaPoly_SHA256",
        }
    }

    /// The number by which boards and first messages tell it; never 0.
    pub(crate) fn number(self) -> u8 {
        match self {
            Pattern::Kk => 1,
            Pattern::Xx => 2,
            Pattern::Ik => 3,
        }
    }
}

/// Says which channel a session is for. A handshake succeeds only when both ends say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding<'a> {
    /// The name of who opened the channel, or nothing.
    pub client: &'a str,
    /// The name that is served.
    pub service: &'a str,
    /// The instance, or anonymous id, of who opened the channel.
    pub client_id: u32,
    /// The instance that serves.
    pub service_id: u32,
    /// The epoch of the name that is served.
    pub epoch: u64,
    /// The channel's own number, which the runtime never gives twice.
    pub channel: u64,
}

/// A [`Binding`], with names as their hashes: as the runtime tells them to the ends of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BoundTo {
    pub(crate) client: [u8; 32],
    pub(crate) service: [u8; 32],
    pub(crate) client_id: u32,
    pub(crate) service_id: u32,
    pub(crate) epoch: u64,
    pub(crate) channel: u64,
}

impl From<&Binding<'_>> for BoundTo {
    fn from(it: &Binding<'_>) -> BoundTo {
        let Binding { client_id, service_id, epoch, channel, .. } = *it;
        let (client, service) = (name_hash(it.client), name_hash(it.service));
        BoundTo { client, service, client_id, service_id, epoch, channel }
    }
}

impl BoundTo {
    /// Writes it as the prologue: every field has its length, so no two are alike.
    fn prologue(&self) -> Vec<u8> {
        let mut bytes = b"libipc session 2".to_vec();
        bytes.extend(self.client);
        bytes.extend(self.service);
        bytes.extend(self.client_id.to_le_bytes());
        bytes.extend(self.service_id.to_le_bytes());
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(self.channel.to_le_bytes());
        bytes
    }
}

/// Explains why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// A message does not fit: altered, replayed, of another channel, or by one without the key.
    #[error(
        "the handshake was refused: the other end does not hold the key it should, or the \
             message was altered or is not of this channel"
    )]
    Refused,
    /// The other end proved another key than it should have.
    #[error("the other end has another key ({found}) than it should have ({expected})")]
    Impostor {
        /// The key it should have.
        expected: PublicKey,
        /// The key it has.
        found: PublicKey,
    },
    /// The pattern needs the other end's key.
    #[error("the pattern needs the other end's key")]
    NoKey,
    /// It is the other end's turn, or ours.
    #[error("a message out of turn")]
    Turn,
    /// This is a forked child: the key is its parent's.
    #[error("this process was forked: the key is its parent's")]
    Forked,
    /// The system gives no memory or no random numbers.
    #[error(transparent)]
    System(#[from] NodeError),
}

impl HandshakeError {
    /// Gives the number by which C knows this error.
    pub fn status(&self) -> Status {
        match self {
            HandshakeError::Refused | HandshakeError::Impostor { .. } => Status::AUTH,
            HandshakeError::NoKey | HandshakeError::Turn => Status::INVALID,
            HandshakeError::Forked => Status::FORKED,
            HandshakeError::System(error) => error.status(),
        }
    }
}

/// A handshake that waits for a message, or to send the first.
pub struct Handshake {
    state: Wiped<HandshakeState>,
    /// Where the state has its secrets, for tests of where else they are.
    #[cfg(test)]
    pages: super::resolver::Shared,
    pattern: Pattern,
    epoch: u64,
    is_client: bool,
    expected: Option<PublicKey>,
    limits: Limits,
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut it = f.debug_struct("Handshake");
        it.field("pattern", &self.pattern).field("is_client", &self.is_client);
        it.finish_non_exhaustive()
    }
}

/// What is to be done after a step.
#[derive(Debug)]
pub struct Step {
    /// Send this to the other end.
    pub send: Option<Vec<u8>>,
    /// Then this.
    pub then: Then,
}

/// What comes after a message was sent, or needs not be.
#[derive(Debug)]
pub enum Then {
    /// Wait for a message.
    Receive(Handshake),
    /// The session stands.
    Done(Box<SecureChannel>),
}

impl Handshake {
    /// Prepares the end that opened the channel. `expected` is the other end's key: needed by KK
    /// and IK; with XX whatever other key it proves is refused.
    ///
    /// # Errors
    /// [`HandshakeError::NoKey`], [`Forked`](HandshakeError::Forked) or
    /// [`System`](HandshakeError::System).
    pub fn client(
        pattern: Pattern,
        key: &StaticKey,
        expected: Option<PublicKey>,
        binding: &Binding<'_>,
    ) -> Result<Handshake, HandshakeError> {
        Handshake::bound(pattern, key, expected, &binding.into(), true)
    }

    /// Prepares the end that serves. `expected` is the other end's key: needed by KK; with XX and
    /// IK whatever other key it proves is refused.
    ///
    /// # Errors
    /// [`HandshakeError::NoKey`], [`Forked`](HandshakeError::Forked) or
    /// [`System`](HandshakeError::System).
    pub fn server(
        pattern: Pattern,
        key: &StaticKey,
        expected: Option<PublicKey>,
        binding: &Binding<'_>,
    ) -> Result<Handshake, HandshakeError> {
        Handshake::bound(pattern, key, expected, &binding.into(), false)
    }

    /// Prepares either end, as [`client`](Handshake::client) and [`server`](Handshake::server) do.
    #[inline(never)]
    pub(crate) fn bound(
        pattern: Pattern,
        key: &StaticKey,
        expected: Option<PublicKey>,
        binding: &BoundTo,
        is_client: bool,
    ) -> Result<Handshake, HandshakeError> {
        if !key.is_here() {
            return Err(HandshakeError::Forked);
        }
        let needs_key = pattern == Pattern::Kk || pattern == Pattern::Ik && is_client;
        if needs_key && expected.is_none() {
            return Err(HandshakeError::NoKey);
        }
        let primitives = Primitives::new(Curve::detect(), Some(Arc::clone(key.pair())))?;
        #[cfg(test)]
        let pages = primitives.pages();
        let known = expected.filter(|_| needs_key);
        let state = build(pattern, key, primitives, known, binding, is_client);
        sweep_stack();
        Ok(Handshake {
            state: state?,
            #[cfg(test)]
            pages,
            pattern,
            epoch: binding.epoch,
            is_client,
            expected,
            limits: Limits::default(),
        })
    }

    /// Has the session change the keys that it seals with after so many records.
    pub(crate) fn rekeying_after(mut self, records: u32) -> Handshake {
        self.limits.rekey_records = records.into();
        self
    }

    /// Begins, for the end that opened the channel.
    ///
    /// # Errors
    /// [`HandshakeError::Turn`] for the other.
    pub fn begin(self) -> Result<Step, HandshakeError> {
        if self.state()?.is_my_turn() { self.answer() } else { Err(HandshakeError::Turn) }
    }

    /// Takes a message of the other end.
    ///
    /// # Errors
    /// [`HandshakeError`]; then the handshake has failed, and nothing of it is left.
    pub fn receive(mut self, message: &[u8]) -> Result<Step, HandshakeError> {
        if self.state()?.is_my_turn() {
            return Err(HandshakeError::Turn);
        }
        let mut payload = [0; LONGEST];
        let read = self.state_mut()?.read_message(message, &mut payload);
        sweep_stack();
        // The patterns carry nothing else.
        if read.map_err(|_| HandshakeError::Refused)? != 0 {
            return Err(HandshakeError::Refused);
        }
        if self.state()?.is_handshake_finished() {
            let then = Then::Done(Box::new(self.finish()?));
            return Ok(Step { send: None, then });
        }
        self.check_key()?;
        self.answer()
    }

    fn answer(mut self) -> Result<Step, HandshakeError> {
        let mut message = [0; LONGEST];
        let written = self.state_mut()?.write_message(&[], &mut message);
        sweep_stack();
        let length = written.map_err(|_| HandshakeError::Refused)?;
        let send = Some(message[..length].to_vec());
        let then = if self.state()?.is_handshake_finished() {
            Then::Done(Box::new(self.finish()?))
        } else {
            Then::Receive(self)
        };
        Ok(Step { send, then })
    }

    /// What lies in its pages beside the state.
    #[cfg(test)]
    pub(super) fn secrets(&self) -> Vec<[u8; 32]> {
        let pages = self.pages.lock().expect("no panic");
        pages.get().iter().filter(|it| **it != [0; 32]).copied().collect()
    }

    fn state(&self) -> Result<&HandshakeState, HandshakeError> {
        self.state.get().ok_or(HandshakeError::Forked)
    }

    fn state_mut(&mut self) -> Result<&mut HandshakeState, HandshakeError> {
        self.state.get_mut().ok_or(HandshakeError::Forked)
    }

    /// Compares the other end's key, as soon as it is known.
    fn check_key(&self) -> Result<Option<PublicKey>, HandshakeError> {
        let found = self.state()?.get_remote_static().and_then(|key| key.try_into().ok());
        let found = found.map(PublicKey::from_bytes);
        match (self.expected, found) {
            (Some(expected), Some(found)) if expected != found => {
                Err(HandshakeError::Impostor { expected, found })
            }
            _ => Ok(found),
        }
    }

    #[inline(never)]
    fn finish(mut self) -> Result<SecureChannel, HandshakeError> {
        let peer = self.check_key()?.ok_or(HandshakeError::Refused)?;
        let mut hash = [0; 32];
        hash.copy_from_slice(self.state()?.get_handshake_hash());
        let channel = self.derive(hash, peer);
        sweep_stack();
        channel
    }

    #[inline(never)]
    fn derive(&mut self, hash: [u8; 32], peer: PublicKey) -> Result<SecureChannel, HandshakeError> {
        let (mut from_client, mut from_server) = self.state_mut()?.dangerously_get_raw_split();
        let (session, _) = hash.split_first_chunk::<8>().expect("of 32 bytes");
        let context =
            |way| Context { session: u64::from_le_bytes(*session), epoch: self.epoch, way };
        let (ours, theirs) = if self.is_client {
            ((&from_client, Way::FromClient), (&from_server, Way::FromServer))
        } else {
            ((&from_server, Way::FromServer), (&from_client, Way::FromClient))
        };
        let limits = self.limits;
        let sealer = Sealer::new(ours.0, context(ours.1), limits);
        let opener = Opener::new(theirs.0, context(theirs.1), limits);
        from_client.zeroize();
        from_server.zeroize();
        Ok(SecureChannel::new(self.pattern, peer, hash, sealer?, opener?))
    }
}

#[inline(never)]
fn build(
    pattern: Pattern,
    key: &StaticKey,
    primitives: Primitives,
    known: Option<PublicKey>,
    binding: &BoundTo,
    is_client: bool,
) -> Result<Wiped<HandshakeState>, HandshakeError> {
    let prologue = binding.prologue();
    let params: NoiseParams = pattern.name().parse().expect("the name of a pattern");
    let known = known.map(|key| *key.as_bytes());
    let mut builder = Builder::with_resolver(params, Box::new(primitives))
        .prologue(&prologue)
        .and_then(|builder| builder.local_private_key(key.secret()))
        .map_err(|_| HandshakeError::Refused)?;
    if let Some(known) = &known {
        builder = builder.remote_public_key(known).map_err(|_| HandshakeError::Refused)?;
    }
    let built = if is_client { builder.build_initiator() } else { builder.build_responder() };
    Ok(Wiped::new(built.map_err(|_| HandshakeError::Refused)?)?)
}

#[cfg(test)]
mod tests;
