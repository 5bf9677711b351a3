//! Sealing by itself, without a session around it: what records cost at the least.

use crate::{
    frame,
    session::{
        aead::{self, Cipher, Head, SHORT},
        chacha::{BLOCKS, Backend, Block, NONCES, key_words},
    },
};

const HEAD: Head = [1, 2, 3, 4];

/// Seals and opens under one key, over and over with the same nonces: for measurements only.
#[derive(Debug)]
pub struct Seals {
    backend: Backend,
    key: [u32; 8],
    ahead: [Block; BLOCKS],
}

impl Seals {
    /// Takes a key; one for each core that this processor can run, the fastest first.
    pub fn all(key: &[u8; 32]) -> Vec<Seals> {
        let made = Backend::all().map(|backend| {
            let mut seals = Seals { backend, key: key_words(key), ahead: [[0; 8]; BLOCKS] };
            seals.prepare();
            seals
        });
        made.collect()
    }

    /// Names the core.
    pub fn name(&self) -> &'static str {
        self.backend.name()
    }

    /// Makes the keystream of the next few records; returns how many.
    #[inline]
    pub fn prepare(&mut self) -> usize {
        self.backend.ahead(&self.key, 0, &mut self.ahead);
        NONCES
    }

    /// Seals up to 64 bytes with the keystream of the `nth` record.
    ///
    /// # Panics
    /// When `text` is longer, or `nth` is out of range.
    #[inline]
    pub fn seal_ready(&mut self, nth: usize, text: &mut [u8]) -> [u64; 2] {
        assert!(text.len() <= SHORT);
        let pad = [self.ahead[2 * nth], self.ahead[2 * nth + 1]];
        let (sealed, tag) = aead::seal_words(&pad, &HEAD, frame::pack::<8>(text), text.len());
        frame::unpack(|word| sealed[word], text);
        tag
    }

    /// Opens it; returns whether it was sealed so.
    ///
    /// # Panics
    /// As [`Seals::seal_ready`].
    #[inline]
    pub fn open_ready(&mut self, nth: usize, sealed: &mut [u8], tag: [u64; 2]) -> bool {
        assert!(sealed.len() <= SHORT);
        let pad = [self.ahead[2 * nth], self.ahead[2 * nth + 1]];
        let words = frame::pack::<8>(sealed);
        let Some(text) = aead::open_words(&pad, &HEAD, words, sealed.len(), tag) else {
            return false;
        };
        frame::unpack(|word| text[word], sealed);
        true
    }

    /// Seals any length as longer records are, with nothing made ahead, and opens it again.
    #[inline]
    pub fn seal_and_open(&mut self, text: &mut [u8]) -> bool {
        let cipher = Cipher { key: &self.key };
        let tag = cipher.seal(0, &HEAD, text);
        cipher.open(0, &HEAD, text, tag)
    }
}
