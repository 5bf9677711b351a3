//! Encrypted sessions: who is at the other end of a channel, proved by keys, and records that
//! nobody else can read, forge, repeat or leave out.
//!
//! A [`Handshake`] is a Noise pattern over X25519, ChaCha20-Poly1305 and SHA-256. It gives a
//! [`SecureChannel`], whose records are ChaCha20-Poly1305 as in RFC 8439, each under the number of
//! its place as nonce. What a record costs is mostly known before its text is: the keystream of the
//! next sixteen is made ahead, for eight at once, and sealing is an XOR and a short Poly1305 then.
//!
//! ```
//! use ipc::session::{Binding, Handshake, Pattern, StaticKey, Then};
//!
//! let (ours, theirs) = (StaticKey::generate()?, StaticKey::generate()?);
//! let binding = Binding {
//!     client: "api", service: "storage", client_id: 7, service_id: 9, epoch: 3, channel: 12,
//! };
//! let client = Handshake::client(Pattern::Kk, &ours, Some(theirs.public()), &binding)?;
//! let server = Handshake::server(Pattern::Kk, &theirs, Some(ours.public()), &binding)?;
//!
//! let first = client.begin()?;
//! let answer = server.receive(&first.send.expect("a message"))?;
//! let Then::Receive(client) = first.then else { unreachable!("two messages") };
//! let last = client.receive(&answer.send.expect("a message"))?;
//!
//! let (Then::Done(mut client), Then::Done(mut server)) = (last.then, answer.then) else {
//!     unreachable!("two messages")
//! };
//! let sealed = client.encrypt(b"hello", 0)?;
//! assert_eq!(server.decrypt(&sealed, 0)?, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where keys are
//! In pages of their own (`vault`): left out of core dumps, zeros in forked children, overwritten
//! when they are given back. They are never in shared memory. A key that a computation had on the
//! stack is overwritten there before the call returns.

pub(crate) mod aead;
pub(crate) mod chacha;
mod channel;
mod envelope;
mod handshake;
mod key;
#[cfg(test)]
mod leaks;
mod module_auth;
pub(crate) mod poly;
pub(crate) mod record;
mod resolver;
#[cfg(all(test, target_arch = "x86_64"))]
mod steps;
mod vault;
#[cfg(test)]
mod vectors;
mod x25519;

pub(crate) use self::handshake::BoundTo;
pub use self::{
    channel::{RecordError, SecureChannel, SessionFacts},
    envelope::{EnvelopeError, OVERHEAD as ENVELOPE_OVERHEAD, open_envelope, seal_envelope},
    handshake::{Binding, Handshake, HandshakeError, Pattern, Step, Then},
    key::{KeyError, PublicKey, StaticKey},
    module_auth::{ModuleAuth, SignError, VerifyKey},
};
