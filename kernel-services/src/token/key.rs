//! The key that signs tokens: 32 random bytes, in a file of mode 0600 and in a page of their own.
//!
//! The page stays out of core dumps and swap, and a forked child has it not. The key is expanded on
//! the stack for each signature, and wiped there.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use ed25519_dalek::{Signer, SigningKey};
use memmap2::{Advice, MmapMut};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::PublicKey;
use crate::directory::is_private;

/// Bytes of a key in its file.
const KEY: usize = 32;
const PAGE: usize = 4096;

/// A key that signs.
pub struct TokenKey {
    /// Mapped in the process `pid` alone.
    page: Option<MmapMut>,
    pid: u32,
    public: PublicKey,
}

impl fmt::Debug for TokenKey {
    /// Shows the public half only.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("TokenKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Why there is no key. No token can be issued or verified; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("cannot use {}: {source}; make the runtime directory yours, mode 0700", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could have read or written it.
    #[error(
        "{} is not a file that its owner alone can read (mode 0600): others may know the key; \
         remove the file, and a new key is made, which ends all tokens", path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// It holds no key.
    #[error(
        "{} is damaged (it should hold 32 bytes): remove it, and a new key is made, which ends \
         all tokens", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The system gives no memory, or no random bytes.
    #[error("cannot {what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl TokenKey {
    /// Reads `token.key` in a directory that is ours alone, or makes it. Its caller holds the
    /// directory's lock, so nobody else makes it meanwhile.
    ///
    /// # Errors
    /// [`KeyError`], by its variants.
    pub fn open(directory: &Path) -> Result<TokenKey, KeyError> {
        let path = directory.join("token.key");
        let mut page = page()?;
        match read(&path, &mut page) {
            Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                draw(&mut page)?;
                write(directory, &path, &page[..KEY])
                    .map_err(|source| KeyError::File { path, source })?;
            }
            other => other?,
        }
        Ok(TokenKey::of(page))
    }

    /// Draws a key that is kept nowhere.
    ///
    /// # Errors
    /// [`KeyError::System`].
    pub fn ephemeral() -> Result<TokenKey, KeyError> {
        let mut page = page()?;
        draw(&mut page)?;
        Ok(TokenKey::of(page))
    }

    /// Gives the public half, for everybody.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs; `None` in a forked child, which has no key.
    pub(super) fn sign(&self, statement: &[u8]) -> Option<[u8; 64]> {
        let page = self.page.as_ref().filter(|_| self.is_ours())?;
        Some(expand(page).sign(statement).to_bytes())
    }

    /// Makes the authentication code of a statement that only this runtime directory's runtimes
    /// are to make and check: HMAC-SHA-256 (RFC 2104) under a key of its own; `None` in a forked
    /// child.
    pub(crate) fn mac(&self, statement: &[u8]) -> Option<[u8; KEY]> {
        let page = self.page.as_ref().filter(|_| self.is_ours())?;
        // The signing key itself serves nothing but signatures.
        let key = Zeroizing::new(hmac(&page[..KEY], b"libipc key of tickets v1"));
        Some(hmac(&*key, statement))
    }

    fn of(page: MmapMut) -> TokenKey {
        let public = PublicKey(expand(&page).verifying_key());
        TokenKey { page: Some(page), pid: std::process::id(), public }
    }

    fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl Drop for TokenKey {
    /// Touches nothing in a forked child, where something else may be mapped at that place by now.
    fn drop(&mut self) {
        let ours = self.is_ours();
        match self.page.take() {
            Some(mut page) if ours => page[..].zeroize(),
            other => std::mem::forget(other),
        }
    }
}

/// HMAC-SHA-256; the key is at most a block long.
fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let padded = |with: u8| {
        let mut block = Zeroizing::new([with; BLOCK]);
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(*padded(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(*padded(0x5c)).chain_update(inner).finalize().into()
}

/// Makes the signing key, which wipes itself when it is dropped.
fn expand(page: &MmapMut) -> SigningKey {
    let mut seed = Zeroizing::new([0; KEY]);
    seed.copy_from_slice(&page[..KEY]);
    SigningKey::from_bytes(&seed)
}

fn page() -> Result<MmapMut, KeyError> {
    let failed = |what| move |source| KeyError::System { what, source };
    let page = MmapMut::map_anon(PAGE).map_err(failed("map a page for the token key"))?;
    page.advise(Advice::DontDump).map_err(failed("keep the token key out of core dumps"))?;
    page.advise(Advice::DontFork).map_err(failed("keep the token key from forked children"))?;
    // Over RLIMIT_MEMLOCK it fails, and the key could be swapped; that is no reason to have none.
    let _ = page.lock();
    Ok(page)
}

fn draw(page: &mut MmapMut) -> Result<(), KeyError> {
    getrandom::fill(&mut page[..KEY]).map_err(|error| KeyError::System {
        what: "draw random bytes for the token key",
        source: io::Error::other(error.to_string()),
    })
}

fn read(path: &Path, page: &mut MmapMut) -> Result<(), KeyError> {
    let failed = |source| KeyError::File { path: path.to_owned(), source };
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !is_private(&found) {
        return Err(KeyError::Exposed { path: path.to_owned() });
    }
    if found.len() != KEY as u64 {
        return Err(KeyError::Damaged { path: path.to_owned() });
    }
    file.read_exact(&mut page[..KEY]).map_err(failed)
}

/// Makes the file whole or not at all, and durable before a token is signed by it.
fn write(directory: &Path, path: &Path, key: &[u8]) -> io::Result<()> {
    let temporary = directory.join("token.key.new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(key)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
impl TokenKey {
    /// Uses the key of a test vector.
    pub(super) fn from_seed(seed: &[u8; KEY]) -> TokenKey {
        let mut page = page().expect("memory");
        page[..KEY].copy_from_slice(seed);
        TokenKey::of(page)
    }

    pub(super) fn page_address(&self) -> usize {
        self.page.as_ref().map_or(0, |page| page.as_ptr() as usize)
    }

    /// Makes it what it is in a forked child.
    pub(super) fn fork(&mut self) {
        self.pid = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test cases 1 and 2.
    #[test]
    fn codes_are_those_of_the_standard() {
        let hex = |bytes: [u8; 32]| bytes.map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(
            hex(hmac(&[0x0b; 20], b"Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            hex(hmac(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn each_key_makes_other_codes_and_a_forked_child_makes_none() {
        let mut one = TokenKey::ephemeral().expect("a key");
        let other = TokenKey::ephemeral().expect("a key");
        assert_eq!(one.mac(b"echo"), one.mac(b"echo"));
        assert_ne!(one.mac(b"echo"), one.mac(b"ech0"));
        assert_ne!(one.mac(b"echo"), other.mac(b"echo"));
        one.fork();
        assert_eq!(one.mac(b"echo"), None);
    }
}
