//! Keys that last: a service's own, and those by which it knows others.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::unistd::geteuid;

use super::{
    vault::{Vault, sweep_stack},
    x25519::Curve,
};
use crate::{NodeError, Status};

/// Bytes of a key in its file.
const KEY: usize = 32;

/// Names a service by its key, to whoever trusts the one who told it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; KEY]);

impl PublicKey {
    /// Takes the 32 bytes of an X25519 key (RFC 7748). Nothing is checked: a key that is none
    /// opens no session.
    pub const fn from_bytes(bytes: [u8; KEY]) -> PublicKey {
        PublicKey(bytes)
    }

    /// Gives the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY] {
        &self.0
    }

    /// Reads what `Display` writes: 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<PublicKey> {
        let digits = text.as_bytes();
        if digits.len() != 2 * KEY || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut bytes = [0; KEY];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        Some(PublicKey(bytes))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// Proves who a service is: the private half of its key.
///
/// It lies in a page of its own, which no core dump and no forked child gets, and is overwritten
/// when it is dropped. `Debug` shows the public half.
///
/// ```
/// use ipc::session::StaticKey;
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("session.key");
/// let key = StaticKey::open(&path)?;
/// assert_eq!(StaticKey::open(&path)?.public(), key.public());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct StaticKey {
    pair: Arc<Pair>,
}

/// Both halves, which handshakes that are under way have as well.
pub(super) struct Pair {
    pub(super) secret: Vault<[u8; KEY]>,
    pub(super) public: PublicKey,
}

impl fmt::Debug for StaticKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticKey").field("public", &self.public()).finish_non_exhaustive()
    }
}

/// Explains why there is no key. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could have read or written it.
    #[error(
        "{} is not a file that its owner alone can read (mode 0600): others may know the key; \
         remove the file, and a new key is made", path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// It holds no key.
    #[error("{} is damaged (it should hold 32 bytes)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The system gives no memory.
    #[error(transparent)]
    System(#[from] NodeError),
}

impl KeyError {
    /// Gives the number by which C knows this error.
    pub fn status(&self) -> Status {
        match self {
            KeyError::File { .. } => Status::IO,
            KeyError::Exposed { .. } | KeyError::Damaged { .. } => Status::AUTH,
            KeyError::System(error) => error.status(),
        }
    }
}

impl StaticKey {
    /// Draws a key that is kept nowhere.
    ///
    /// # Errors
    /// [`KeyError::System`]: no memory, or no random numbers.
    pub fn generate() -> Result<StaticKey, KeyError> {
        let mut secret = Vault::<[u8; KEY]>::new()?;
        getrandom::fill(secret.get_mut()).map_err(|error| NodeError::System {
            what: "random bytes for a key",
            source: io::Error::other(error.to_string()),
        })?;
        Ok(StaticKey::of(secret))
    }

    /// Reads a key from its file, or draws one and writes it there, mode 0600, whole or not at
    /// all. The directory should be ours alone.
    ///
    /// # Errors
    /// [`KeyError`], by its variants.
    pub fn open(path: &Path) -> Result<StaticKey, KeyError> {
        match StaticKey::load(path) {
            Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let key = StaticKey::generate()?;
                match key.store(path) {
                    // Another process was quicker: its key it is.
                    Err(KeyError::File { source, .. })
                        if source.kind() == io::ErrorKind::AlreadyExists =>
                    {
                        StaticKey::load(path)
                    }
                    stored => stored.map(|()| key),
                }
            }
            other => other,
        }
    }

    /// Reads a key from its file, which has to be this process's user's.
    ///
    /// # Errors
    /// [`KeyError`], by its variants.
    pub fn load(path: &Path) -> Result<StaticKey, KeyError> {
        StaticKey::load_of(path, geteuid().as_raw())
    }

    /// Reads a key from its file, which has to be that user's: for who makes keys for others.
    ///
    /// # Errors
    /// [`KeyError`], by its variants.
    pub fn load_of(path: &Path, owner: u32) -> Result<StaticKey, KeyError> {
        let failed = |source| KeyError::File { path: path.to_owned(), source };
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut file =
            OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let is_private =
            found.is_file() && found.uid() == owner && found.mode() & 0o7777 & !0o700 == 0;
        if !is_private {
            return Err(KeyError::Exposed { path: path.to_owned() });
        }
        if found.len() != KEY as u64 {
            return Err(KeyError::Damaged { path: path.to_owned() });
        }
        let mut secret = Vault::<[u8; KEY]>::new()?;
        file.read_exact(secret.get_mut()).map_err(failed)?;
        Ok(StaticKey::of(secret))
    }

    /// Writes the key to a file that is not there yet, mode 0600, whole or not at all.
    ///
    /// # Errors
    /// [`KeyError::File`]; of kind `AlreadyExists` where there is one.
    pub fn store(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |source| KeyError::File { path: path.to_owned(), source };
        let mut number = [0; 8];
        getrandom::fill(&mut number).map_err(|_| failed(io::ErrorKind::Other.into()))?;
        let temporary = path.with_extension(format!("{:016x}", u64::from_le_bytes(number)));
        let written = self.write(&temporary).and_then(|()| {
            // A link, not a rename: it never takes the place of another key.
            fs::hard_link(&temporary, path)?;
            let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
        });
        let _ = fs::remove_file(&temporary);
        written.map_err(failed)
    }

    fn write(&self, temporary: &Path) -> io::Result<()> {
        if !self.is_here() {
            return Err(io::Error::other("the key is the parent process's"));
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        file.write_all(self.secret())?;
        file.sync_all()
    }

    /// Gives the public half, for everybody.
    pub fn public(&self) -> PublicKey {
        self.pair.public
    }

    /// Whether this process has the key: a forked child has not.
    pub(super) fn is_here(&self) -> bool {
        self.pair.secret.is_here()
    }

    pub(super) fn secret(&self) -> &[u8; KEY] {
        self.pair.secret.get()
    }

    pub(super) fn pair(&self) -> &Arc<Pair> {
        &self.pair
    }

    fn of(secret: Vault<[u8; KEY]>) -> StaticKey {
        let public = public_of(&secret);
        sweep_stack();
        StaticKey { pair: Arc::new(Pair { secret, public }) }
    }

    /// Uses the key of a test vector.
    #[cfg(test)]
    pub(super) fn from_bytes(bytes: [u8; KEY]) -> StaticKey {
        let mut secret = Vault::new().expect("memory");
        *secret.get_mut() = bytes;
        StaticKey::of(secret)
    }
}

#[inline(never)]
fn public_of(secret: &Vault<[u8; KEY]>) -> PublicKey {
    PublicKey(Curve::detect().public_of(secret.get()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_comes_back_from_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("session.key");
        let key = StaticKey::open(&path).expect("made");
        assert_eq!(StaticKey::open(&path).expect("read").public(), key.public());
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 1, "no remains");
        let other = StaticKey::generate().expect("random");
        assert!(matches!(other.store(&path), Err(KeyError::File { source, .. })
            if source.kind() == io::ErrorKind::AlreadyExists));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("session.key");
        StaticKey::open(&path).expect("made");
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
            assert!(matches!(StaticKey::open(&path), Err(KeyError::Exposed { .. })), "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        assert!(matches!(StaticKey::open(&link), Err(KeyError::File { .. })));
        fs::write(&path, [0; 31]).expect("ours");
        assert!(matches!(StaticKey::open(&path), Err(KeyError::Damaged { .. })));
    }

    #[test]
    fn nothing_of_the_private_half_is_shown() {
        let key = StaticKey::from_bytes([0xAB; 32]);
        let shown = format!("{key:?} {key:#?}");
        assert!(shown.contains(&key.public().to_string()));
        assert!(!shown.contains("abab") && !shown.contains("171, 171"), "{shown}");
        assert_eq!(PublicKey::from_hex(&key.public().to_string()), Some(key.public()));
        assert_eq!(PublicKey::from_hex("+1"), None);
    }
}
