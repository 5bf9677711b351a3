//! Envelopes: single messages under a key that both ends have by other means, to be opened
//! anywhere, any time, in any order.
//!
//! ```text
//!  0        4                        28              28 + length      44 + length
//!  ┌────────┬────────────────────────┬────────────────┬────────────────┐
//!  │ "IPE1" │ nonce, random          │ ciphertext     │ tag            │
//!  └────────┴────────────────────────┴────────────────┴────────────────┘
//! ```
//! It is XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha), whose nonce is long enough to be drawn at
//! random under one key for ever. The first four bytes are the version, and authenticated.
//!
//! An envelope says nothing of when, to whom or how often it was sent: whoever can show it once can
//! show it twice. Channels have sessions for that.

use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce, aead::AeadInOut};

use super::aead::TAG;
use crate::{Status, session::vault::sweep_stack};

/// The first bytes of an envelope: what it is, and the version.
const VERSION: [u8; 4] = *b"IPE1";
const NONCE: usize = 24;

/// Bytes that an envelope is longer than its text.
pub const OVERHEAD: usize = VERSION.len() + NONCE + TAG;

/// Explains why there is no envelope, or no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is no envelope, or one of a later version.
    #[error("not an envelope that this version can open")]
    Version,
    /// It was altered, or sealed under another key.
    #[error("an envelope that was altered, or sealed under another key")]
    Altered,
    /// The text is over 256 GiB.
    #[error("too long for one envelope")]
    TooLong,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

impl EnvelopeError {
    /// Gives the number by which C knows this error.
    pub fn status(self) -> Status {
        match self {
            EnvelopeError::Version => Status::PROTOCOL,
            EnvelopeError::Altered => Status::AUTH,
            EnvelopeError::TooLong => Status::MESSAGE_SIZE,
            EnvelopeError::Random => Status::SYSTEM,
        }
    }
}

/// Puts a text into an envelope: [`OVERHEAD`] bytes more. The same text never looks the same twice.
///
/// ```
/// use ipc::session::{open_envelope, seal_envelope};
/// let key = [7; 32];
/// let sealed = seal_envelope(&key, b"for later")?;
/// assert_eq!(open_envelope(&key, &sealed)?, b"for later");
/// assert!(open_envelope(&[8; 32], &sealed).is_err());
/// # Ok::<(), ipc::session::EnvelopeError>(())
/// ```
///
/// # Errors
/// [`EnvelopeError::TooLong`] or [`EnvelopeError::Random`].
pub fn seal_envelope(key: &[u8; 32], text: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(|_| EnvelopeError::Random)?;
    let mut sealed = Vec::with_capacity(OVERHEAD + text.len());
    sealed.extend(VERSION);
    sealed.extend(nonce);
    sealed.extend(text);
    let tag = seal_body(key, nonce, &mut sealed[VERSION.len() + NONCE..]);
    sweep_stack();
    sealed.extend(tag?);
    Ok(sealed)
}

/// Takes the text out of an envelope.
///
/// # Errors
/// [`EnvelopeError::Version`] or [`EnvelopeError::Altered`]; then nothing of the text is told.
pub fn open_envelope(key: &[u8; 32], envelope: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    let rest = envelope.strip_prefix(&VERSION).ok_or(EnvelopeError::Version)?;
    let (nonce, rest) = rest.split_first_chunk::<NONCE>().ok_or(EnvelopeError::Altered)?;
    let (body, tag) = rest.split_last_chunk::<TAG>().ok_or(EnvelopeError::Altered)?;
    let mut text = body.to_vec();
    let is_open = open_body(key, *nonce, &mut text, *tag);
    sweep_stack();
    if is_open { Ok(text) } else { Err(EnvelopeError::Altered) }
}

#[inline(never)]
fn seal_body(
    key: &[u8; 32],
    nonce: [u8; NONCE],
    text: &mut [u8],
) -> Result<[u8; TAG], EnvelopeError> {
    XChaCha20Poly1305::new(key.into())
        .encrypt_inout_detached(&XNonce::from(nonce), &VERSION, text.into())
        .map(Into::into)
        .map_err(|_| EnvelopeError::TooLong)
}

#[inline(never)]
fn open_body(key: &[u8; 32], nonce: [u8; NONCE], text: &mut [u8], tag: [u8; TAG]) -> bool {
    XChaCha20Poly1305::new(key.into())
        .decrypt_inout_detached(&XNonce::from(nonce), &VERSION, text.into(), &Tag::from(tag))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [0x42; 32];

    #[test]
    fn whatever_goes_in_comes_out_and_looks_different_each_time() {
        for length in [0, 1, 16, 63, 64, 65, 5000] {
            let text = vec![9; length];
            let sealed = seal_envelope(&KEY, &text).expect("random numbers");
            assert_eq!(sealed.len(), length + OVERHEAD);
            assert_eq!(open_envelope(&KEY, &sealed).as_deref(), Ok(&text[..]));
            assert_ne!(seal_envelope(&KEY, &text).expect("random numbers"), sealed);
        }
    }

    #[test]
    fn every_flip_of_one_bit_and_every_cut_is_refused() {
        let sealed = seal_envelope(&KEY, &[5; 100]).expect("random numbers");
        for bit in 0..8 * sealed.len() {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let is_version = bit < 32;
            let expected = if is_version { EnvelopeError::Version } else { EnvelopeError::Altered };
            assert_eq!(open_envelope(&KEY, &flipped), Err(expected), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(open_envelope(&KEY, &sealed[..length]).is_err(), "{length} bytes");
        }
        assert!(open_envelope(&KEY, &[sealed, vec![0]].concat()).is_err());
    }

    #[test]
    fn a_draft_s_vector_opens() {
        // draft-irtf-cfrg-xchacha-03, A.3.1, but for the associated data, which is ours.
        let key = std::array::from_fn(|at| 0x80 + at as u8);
        let nonce = std::array::from_fn(|at| 0x40 + at as u8);
        let mut text = *b"Ladies and Gentlemen of the class of '99: If I could offer you";
        seal_body(&key, nonce, &mut text).expect("short");
        assert_eq!(text[..8], [0xbd, 0x6d, 0x17, 0x9d, 0x3e, 0x83, 0xd4, 0x3b]);
    }
}
