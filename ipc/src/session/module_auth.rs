//! Statements that a service signs with its key, for whoever checks them later: beside sessions,
//! which prove who speaks only to the other end and only now.

use std::{collections::HashMap, fmt};

use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use super::{
    key::StaticKey,
    vault::{Vault, sweep_stack},
};
use crate::{NodeError, ServiceId, Status};

/// Most keys of others that one service knows.
const MOST: usize = 4096;
/// What the signing key is derived with, and what every signed text begins with: so a signature
/// made here is none of anything else.
const SEED: &[u8] = b"libipc module auth seed 1";
const TEXT: &[u8] = b"libipc module auth text 1";

/// By which others check what a service signed: 32 bytes of Ed25519 (RFC 8032).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VerifyKey([u8; 32]);

impl VerifyKey {
    /// Takes the 32 bytes. Nothing is checked: by a key that is none nothing is genuine.
    pub const fn from_bytes(bytes: [u8; 32]) -> VerifyKey {
        VerifyKey(bytes)
    }

    /// Gives the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifyKey(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// Explains why nothing was signed, or why a statement does not count.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Nobody has said which key the sender has.
    #[error("the sender's key is not known: trust it first")]
    Unknown,
    /// It was not signed by the sender's key, or was changed since, or was meant for another.
    #[error("a signature that is not the sender's, or not of this text")]
    Forged,
    /// As many keys as there may be are known.
    #[error("4096 keys are known: forget one first")]
    Full,
    /// This is a forked child: the key is its parent's.
    #[error("this process was forked: the key is its parent's")]
    Forked,
    /// The system gives no memory for the key.
    #[error(transparent)]
    System(#[from] NodeError),
}

impl SignError {
    /// Gives the number by which C knows this error.
    pub fn status(&self) -> Status {
        match self {
            SignError::Unknown => Status::NOT_FOUND,
            SignError::Forged => Status::AUTH,
            SignError::Full => Status::QUOTA,
            SignError::Forked => Status::FORKED,
            SignError::System(error) => error.status(),
        }
    }
}

/// Signs with a service's key, and checks what others have signed.
///
/// The signing key is derived from the service's [`StaticKey`], and is as secret: it lies in a page
/// of its own, which no core dump and no forked child gets. Who a [`VerifyKey`] belongs to is for
/// the caller to know: it comes from the node file, or over a channel whose peer the kernel proved.
///
/// ```
/// use ipc::{ServiceId, session::{ModuleAuth, StaticKey}};
///
/// let (chain, store) = (ServiceId::new(7), ServiceId::new(9));
/// let signer = ModuleAuth::new(chain, &StaticKey::generate()?)?;
/// let mut checker = ModuleAuth::new(store, &StaticKey::generate()?)?;
/// checker.trust(chain, signer.public_key())?;
///
/// let signature = signer.sign_message(b"block 12 is final")?;
/// checker.verify_message(chain, b"block 12 is final", &signature)?;
/// assert!(checker.verify_message(chain, b"block 13 is final", &signature).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ModuleAuth {
    module: ServiceId,
    private_key: Vault<[u8; 32]>,
    public_key: VerifyKey,
    public_keys: HashMap<ServiceId, VerifyKey>,
}

impl fmt::Debug for ModuleAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut it = f.debug_struct("ModuleAuth");
        it.field("module", &self.module).field("public_key", &self.public_key);
        it.field("known", &self.public_keys.len()).finish_non_exhaustive()
    }
}

impl ModuleAuth {
    /// Derives a service's signing key. `module` is the id that the service signs as: of its name,
    /// so that it stays over restarts.
    ///
    /// # Errors
    /// [`SignError::Forked`] or [`SignError::System`].
    pub fn new(module: ServiceId, key: &StaticKey) -> Result<ModuleAuth, SignError> {
        if !key.is_here() {
            return Err(SignError::Forked);
        }
        let made = ModuleAuth::derive(module, key);
        sweep_stack();
        made
    }

    #[inline(never)]
    fn derive(module: ServiceId, key: &StaticKey) -> Result<ModuleAuth, SignError> {
        let mut private_key = Vault::<[u8; 32]>::new()?;
        let mut seed: [u8; 32] =
            Sha256::new().chain_update(SEED).chain_update(key.secret()).finalize().into();
        private_key.get_mut().copy_from_slice(&seed);
        seed.zeroize();
        let public_key = VerifyKey(public_half(&pair(&private_key)));
        Ok(ModuleAuth { module, private_key, public_key, public_keys: HashMap::new() })
    }

    /// Gives the key by which others check what this service signs.
    pub fn public_key(&self) -> VerifyKey {
        self.public_key
    }

    /// Notes a service's key, in place of the one that was known.
    ///
    /// # Errors
    /// [`SignError::Full`] when 4096 are known.
    pub fn trust(&mut self, module: ServiceId, key: VerifyKey) -> Result<(), SignError> {
        if self.public_keys.len() >= MOST && !self.public_keys.contains_key(&module) {
            return Err(SignError::Full);
        }
        self.public_keys.insert(module, key);
        Ok(())
    }

    /// Forgets a service's key; returns whether one was known.
    pub fn distrust(&mut self, module: ServiceId) -> bool {
        self.public_keys.remove(&module).is_some()
    }

    /// Signs a message as this service: 64 bytes, the same each time.
    ///
    /// # Errors
    /// [`SignError::Forked`].
    pub fn sign_message(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        if !self.private_key.is_here() {
            return Err(SignError::Forked);
        }
        let signature = self.sign(&statement(self.module, message));
        sweep_stack();
        Ok(signature)
    }

    #[inline(never)]
    fn sign(&self, statement: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(pair(&self.private_key).sign(statement).as_ref());
        bytes
    }

    /// Checks that a service has signed a message.
    ///
    /// # Errors
    /// [`SignError::Unknown`] when its key is not known, [`SignError::Forged`] when it has not.
    pub fn verify_message(
        &self,
        sender: ServiceId,
        message: &[u8],
        signature: &[u8; 64],
    ) -> Result<(), SignError> {
        let key = self.public_keys.get(&sender).ok_or(SignError::Unknown)?;
        UnparsedPublicKey::new(&ED25519, key.0)
            .verify(&statement(sender, message), signature)
            .map_err(|_| SignError::Forged)
    }
}

/// What is signed: who says it, and what.
fn statement(module: ServiceId, message: &[u8]) -> Vec<u8> {
    [TEXT, &module.get().to_le_bytes(), message].concat()
}

fn pair(seed: &Vault<[u8; 32]>) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed.get()).expect("any 32 bytes are a seed")
}

fn public_half(pair: &Ed25519KeyPair) -> [u8; 32] {
    use ring::signature::KeyPair;
    let mut bytes = [0; 32];
    bytes.copy_from_slice(pair.public_key().as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::vault::in_a_child;

    const CHAIN: ServiceId = ServiceId(7);
    const STORE: ServiceId = ServiceId(9);

    fn auth(module: ServiceId) -> ModuleAuth {
        ModuleAuth::new(module, &StaticKey::generate().expect("a key")).expect("a page")
    }

    #[test]
    fn only_what_the_sender_signed_is_genuine() {
        let (chain, store) = (auth(CHAIN), auth(STORE));
        let mut checker = auth(ServiceId(1));
        let signature = chain.sign_message(b"final").expect("here");
        let check = |checker: &ModuleAuth, sender, text: &[u8], signature: &[u8; 64]| {
            checker.verify_message(sender, text, signature)
        };
        let unknown = check(&checker, CHAIN, b"final", &signature);
        assert!(matches!(unknown, Err(SignError::Unknown)), "{unknown:?}");
        checker.trust(CHAIN, chain.public_key()).expect("room");
        checker.trust(STORE, store.public_key()).expect("room");
        check(&checker, CHAIN, b"final", &signature).expect("it is genuine");
        let forged = [
            check(&checker, STORE, b"final", &signature),
            check(&checker, CHAIN, b"Final", &signature),
            check(&checker, CHAIN, b"", &signature),
        ];
        assert!(forged.iter().all(|it| matches!(it, Err(SignError::Forged))), "{forged:?}");
        for bit in 0..512 {
            let mut other = signature;
            other[bit / 8] ^= 1 << (bit % 8);
            let outcome = check(&checker, CHAIN, b"final", &other);
            assert!(matches!(outcome, Err(SignError::Forged)), "bit {bit}: {outcome:?}");
        }
        // One key under two names signs two different things.
        checker.trust(STORE, chain.public_key()).expect("room");
        assert!(check(&checker, STORE, b"final", &signature).is_err());
        assert!(checker.distrust(CHAIN) && !checker.distrust(CHAIN));
        assert!(check(&checker, CHAIN, b"final", &signature).is_err());
    }

    #[test]
    fn the_key_is_the_service_s_and_stays_over_restarts() {
        let key = StaticKey::generate().expect("a key");
        let [before, after] = [0, 1].map(|_| ModuleAuth::new(CHAIN, &key).expect("a page"));
        assert_eq!(before.public_key(), after.public_key());
        assert_ne!(before.public_key().as_bytes(), key.public().as_bytes());
        assert_ne!(before.public_key(), auth(CHAIN).public_key());
        let shown = format!("{before:?}");
        assert!(shown.contains("VerifyKey(") && !shown.contains("private"), "{shown}");
    }

    #[test]
    fn the_keys_of_others_have_a_bound() {
        let mut checker = auth(STORE);
        let key = VerifyKey::from_bytes([1; 32]);
        (1..=4096).for_each(|id| checker.trust(ServiceId(id), key).expect("room"));
        assert!(matches!(checker.trust(ServiceId(5000), key), Err(SignError::Full)));
        checker.trust(ServiceId(1), key).expect("it takes the place of its own");
    }

    #[test]
    fn a_forked_child_signs_nothing() {
        let chain = auth(CHAIN);
        let refused = || matches!(chain.sign_message(b"final"), Err(SignError::Forked));
        assert_eq!(in_a_child(|| i32::from(!refused())), 0);
        assert!(chain.sign_message(b"final").is_ok());
    }
}
