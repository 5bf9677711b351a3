//! Encrypted sessions: who is at the other end of a channel, proved by keys, and records that
//! nobody else can read, forge, repeat or leave out.

pub(crate) mod aead;
pub(crate) mod chacha;
mod poly;
mod record;
mod vault;
