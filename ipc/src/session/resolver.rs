//! The primitives of the handshake, as `snow` asks for them: X25519 of `x25519`,
//! `chacha20poly1305`, SHA-256 of `sha2`, and the system's random numbers. `snow` would bring older
//! versions of the same.

use std::{
    cell::Cell,
    sync::{Arc, Mutex, PoisonError},
};

use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Tag, aead::AeadInOut};
use sha2::{Digest, Sha256};
use snow::{
    Error,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::CryptoResolver,
    types::{Cipher, Dh, Hash, Random},
};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::{aead::TAG, key::Pair, vault::Vault, x25519::Curve};
use crate::NodeError;

/// Secrets of 32 bytes that one handshake has at most: of two ends of an agreement, and of three
/// ciphers, by the way that `snow` asks for them.
const SLOTS: usize = 5;

/// The pages of one handshake's secrets.
pub(super) type Shared = Arc<Mutex<Vault<[[u8; 32]; SLOTS]>>>;

/// Gives what the names of the patterns name, and nothing else. What is secret of them lies in
/// pages of the handshake's own.
pub(super) struct Primitives {
    curve: Curve,
    /// The key of this end, should `snow` ask for it: its public half is known already, and its
    /// private half stays where it is.
    own: Option<Arc<Pair>>,
    pages: Shared,
    /// Slots given away.
    taken: Cell<usize>,
}

impl Primitives {
    /// Maps pages for one handshake.
    ///
    /// # Errors
    /// As [`Vault::new`].
    pub(super) fn new(curve: Curve, own: Option<Arc<Pair>>) -> Result<Primitives, NodeError> {
        let pages = Arc::new(Mutex::new(Vault::new()?));
        Ok(Primitives { curve, own, pages, taken: Cell::new(0) })
    }

    fn slot(&self) -> Option<Slot> {
        let index = self.taken.get();
        self.taken.set(index + 1);
        (index < SLOTS).then(|| Slot { pages: Arc::clone(&self.pages), index })
    }

    /// What the pages hold, in tests of where else it lies.
    #[cfg(test)]
    pub(super) fn pages(&self) -> Shared {
        Arc::clone(&self.pages)
    }
}

/// A place for one secret.
struct Slot {
    pages: Shared,
    index: usize,
}

impl Slot {
    fn with<R>(&self, run: impl FnOnce(&mut [u8; 32]) -> R) -> R {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        run(&mut pages.get_mut()[self.index])
    }
}

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(System))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        let slot = self.slot().filter(|_| matches!(choice, DHChoice::Curve25519))?;
        Some(Box::new(X25519::new(self, slot)))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::new(Sha(Sha256::new())) as _)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        let key = self.slot().filter(|_| matches!(choice, CipherChoice::ChaChaPoly))?;
        Some(Box::new(Sealing { key, is_set: false }))
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
    private: Slot,
    public: [u8; 32],
}

impl X25519 {
    fn new(primitives: &Primitives, private: Slot) -> X25519 {
        X25519 {
            curve: primitives.curve,
            own: primitives.own.clone(),
            is_own: false,
            private,
            public: [0; 32],
        }
    }

    fn with_private<R>(&self, run: impl FnOnce(&[u8; 32]) -> R) -> R {
        match &self.own {
            Some(own) if self.is_own => run(own.secret.get()),
            _ => self.private.with(|private| run(private)),
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
            self.public = self.private.with(|it| {
                it.copy_from_slice(private);
                self.curve.public_of(it)
            });
        }
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        self.is_own = false;
        self.public = self.private.with(|it| {
            random.try_fill_bytes(it)?;
            Ok::<_, Error>(self.curve.public_of(it))
        })?;
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    /// Nothing: `snow` asks for it only where it is to make keys that last.
    fn privkey(&self) -> &[u8] {
        &[]
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public: &[u8; 32] = public.first_chunk().ok_or(Error::Dh)?;
        let shared = self.with_private(|private| self.curve.agree(private, public));
        let shared = shared.ok_or(Error::Dh)?;
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
        // A new one in its place: one that is reset keeps the last bytes it was given, and they are
        // of keys.
        let whole = std::mem::replace(&mut self.0, Sha256::new());
        out[..32].copy_from_slice(&whole.finalize());
    }
}

/// The next chaining key and the key that comes with it, as `snow` computes them.
#[cfg(test)]
pub(super) fn mixed(chain: &[u8; 32], shared: &[u8; 32]) -> [[u8; 32]; 2] {
    let mut out = [[0; 32]; 2];
    let [next, key] = &mut out;
    Sha(Sha256::new()).hkdf(chain, shared, 2, next, key, &mut []);
    out
}

/// The AEAD of the handshake's messages; no key at first.
struct Sealing {
    key: Slot,
    is_set: bool,
}

impl Sealing {
    fn with<R>(&self, run: impl FnOnce(&ChaCha20Poly1305) -> R) -> Option<R> {
        // On the stack, which whoever goes on with a handshake sweeps.
        self.is_set.then(|| self.key.with(|key| run(&ChaCha20Poly1305::new((&*key).into()))))
    }
}

impl Cipher for Sealing {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.key.with(|it| *it = *key);
        self.is_set = true;
    }

    fn encrypt(&self, number: u64, head: &[u8], text: &[u8], out: &mut [u8]) -> usize {
        let (body, tag_at) = out[..text.len() + TAG].split_at_mut(text.len());
        body.copy_from_slice(text);
        let nonce = nonce(number).into();
        let sealed = self.with(|it| it.encrypt_inout_detached(&nonce, head, body.into()));
        let tag = sealed
            .expect("snow sets a key before it uses one")
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
        let nonce = nonce(number).into();
        let opened =
            self.with(|it| it.decrypt_inout_detached(&nonce, head, (&mut *text).into(), &tag));
        if !matches!(opened, Some(Ok(()))) {
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
