//! The primitives of the handshake, as `snow` asks for them: X25519 of `x25519`,
//! `chacha20poly1305`, SHA-256 of `sha2`, and the system's random numbers. `snow` would bring older
//! versions of the same.

use std::sync::Arc;

use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Tag, aead::AeadInOut};
use sha2::{Digest, Sha256};
use snow::{
    Error,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::CryptoResolver,
    types::{Cipher, Dh, Hash, Random},
};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::{aead::TAG, key::Pair, x25519::Curve};

/// Gives what the names of the patterns name, and nothing else.
pub(super) struct Primitives {
    pub(super) curve: Curve,
    /// The key of this end, should `snow` ask for it: its public half is known already, and its
    /// private half stays where it is.
    pub(super) own: Option<Arc<Pair>>,
}

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(System))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519::new(self)) as _)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::new(Sha(Sha256::new())) as _)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly).then(|| Box::new(Sealing(None)) as _)
    }
}

struct System;

impl Random for System {
    fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), Error> {
        getrandom::fill(target).map_err(|_| Error::Rng)
    }
}

/// A key pair of Curve25519 (RFC 7748).
struct X25519 {
    curve: Curve,
    own: Option<Arc<Pair>>,
    /// Whether that is the pair; else it is the one below.
    is_own: bool,
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl X25519 {
    fn new(primitives: &Primitives) -> X25519 {
        X25519 {
            curve: primitives.curve,
            own: primitives.own.clone(),
            is_own: false,
            private: Zeroizing::default(),
            public: [0; 32],
        }
    }

    fn private(&self) -> &[u8; 32] {
        match &self.own {
            Some(own) if self.is_own => own.secret.get(),
            _ => &self.private,
        }
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        let own = self.own.as_ref().filter(|own| own.secret.get()[..].ct_eq(private).into());
        self.is_own = own.is_some();
        if let Some(own) = own {
            self.public = *own.public.as_bytes();
        } else {
            self.private.copy_from_slice(private);
            self.public = self.curve.public_of(&self.private);
        }
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        self.is_own = false;
        random.try_fill_bytes(self.private.as_mut())?;
        self.public = self.curve.public_of(&self.private);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.private()
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public: &[u8; 32] = public.first_chunk().ok_or(Error::Dh)?;
        let shared = self.curve.agree(self.private(), public).ok_or(Error::Dh)?;
        out[..32].copy_from_slice(&*shared);
        Ok(())
    }
}

struct Sha(Sha256);

impl Hash for Sha {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        Digest::reset(&mut self.0);
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(&self.0.finalize_reset());
    }
}

/// The AEAD of the handshake's messages; no key at first.
struct Sealing(Option<ChaCha20Poly1305>);

impl Cipher for Sealing {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = Some(ChaCha20Poly1305::new(key.into()));
    }

    fn encrypt(&self, number: u64, head: &[u8], text: &[u8], out: &mut [u8]) -> usize {
        let (body, tag_at) = out[..text.len() + TAG].split_at_mut(text.len());
        body.copy_from_slice(text);
        let cipher = self.0.as_ref().expect("snow sets a key before it uses one");
        let tag = cipher
            .encrypt_inout_detached(&nonce(number).into(), head, body.into())
            .expect("a handshake's message is short");
        tag_at.copy_from_slice(&tag);
        text.len() + TAG
    }

    fn decrypt(
        &self,
        number: u64,
        head: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let length = sealed.len().checked_sub(TAG).ok_or(Error::Decrypt)?;
        let (body, tag) = sealed.split_at(length);
        let tag = Tag::try_from(tag).map_err(|_| Error::Decrypt)?;
        let text = out.get_mut(..length).ok_or(Error::Decrypt)?;
        text.copy_from_slice(body);
        let cipher = self.0.as_ref().ok_or(Error::Decrypt)?;
        let opened =
            cipher.decrypt_inout_detached(&nonce(number).into(), head, (&mut *text).into(), &tag);
        if opened.is_err() {
            text.zeroize();
            return Err(Error::Decrypt);
        }
        Ok(length)
    }
}

fn nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    nonce
}
