//! The keys of supervised services: made here, read by their processes alone.
//!
//! ```text
//!   keys/            ipcd's own, mode 0700; 0711, which lists nothing, for services of others
//!     api#1.key      of the user that the service runs as, mode 0600: its private half
//!     api#1.pub      ipcd's own: the public half, for the next run, which has to know it
//! ```
//! A unit's key stays the same for as long as the runtime directory does, so that who has met the
//! service knows it again. This process has the private half only while the unit is started, in
//! pages that are overwritten then.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use ipc::session::{KeyError, PublicKey, StaticKey};
use nix::unistd::geteuid;

/// Their directory.
#[derive(Debug)]
pub(super) struct Keys {
    directory: PathBuf,
}

impl Keys {
    pub(super) fn of(runtime_dir: &Path) -> Keys {
        Keys { directory: runtime_dir.join("keys") }
    }

    /// Gives the file of a unit's key, which `uid` alone can read, and its public half. A file that
    /// others could have read, or of another user, is replaced by a new key.
    ///
    /// # Errors
    /// A sentence for people.
    pub(super) fn make(
        &self,
        service: &str,
        replica: u32,
        uid: u32,
    ) -> Result<(PathBuf, PublicKey), String> {
        let path = self.file(service, replica, "key");
        let public = self.find_or_draw(&path, uid);
        let public = public.map_err(|error| format!("cannot make its key: {error}"))?;
        let known = self.file(service, replica, "pub");
        fs::write(&known, public.to_string())
            .map_err(|error| format!("cannot write {}: {error}", known.display()))?;
        Ok((path, public))
    }

    /// The public half of the key that a unit was started with.
    pub(super) fn public(&self, service: &str, replica: u32) -> Option<PublicKey> {
        let text = fs::read_to_string(self.file(service, replica, "pub")).ok()?;
        PublicKey::from_hex(&text)
    }

    fn file(&self, service: &str, replica: u32, kind: &str) -> PathBuf {
        self.directory.join(format!("{service}#{replica}.{kind}"))
    }

    fn find_or_draw(&self, path: &Path, uid: u32) -> Result<PublicKey, KeyError> {
        match StaticKey::load_of(path, uid) {
            Ok(key) => return Ok(key.public()),
            Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(KeyError::Exposed { .. } | KeyError::Damaged { .. }) => {
                fs::remove_file(path).map_err(|source| failed(path, source))?;
            }
            Err(error) => return Err(error),
        }
        let made = DirBuilder::new().mode(0o700).recursive(true).create(&self.directory);
        made.map_err(|source| failed(&self.directory, source))?;
        let key = StaticKey::generate()?;
        key.store(path)?;
        if uid != geteuid().as_raw() {
            chown(path, Some(uid), None).map_err(|source| failed(path, source))?;
            let passable = fs::Permissions::from_mode(0o711);
            fs::set_permissions(&self.directory, passable)
                .map_err(|source| failed(&self.directory, source))?;
        }
        Ok(key.public())
    }
}

fn failed(path: &Path, source: io::Error) -> KeyError {
    KeyError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_unit_keeps_its_key_until_others_could_have_read_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let keys = Keys::of(directory.path());
        let uid = geteuid().as_raw();
        assert_eq!(keys.public("api", 1), None);
        let (path, public) = keys.make("api", 1, uid).expect("made");
        let file = fs::metadata(&path).expect("there");
        assert_eq!((file.mode() & 0o7777, file.uid(), file.len()), (0o600, uid, 32));
        let around = fs::metadata(directory.path().join("keys")).expect("there");
        assert_eq!(around.mode() & 0o7777, 0o700);
        assert_eq!(keys.make("api", 1, uid).expect("there"), (path.clone(), public));
        assert_eq!(Keys::of(directory.path()).public("api", 1), Some(public), "the next run");
        assert_ne!(keys.make("api", 2, uid).expect("made").1, public, "one of each replica");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("ours");
        let (_, other) = keys.make("api", 1, uid).expect("made anew");
        assert_ne!(other, public);
        assert_eq!(keys.public("api", 1), Some(other));
    }

    #[test]
    fn the_key_of_a_service_of_another_user_is_that_user_s() {
        if !geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let keys = Keys::of(directory.path());
        let (path, public) = keys.make("api", 1, 65_534).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").uid(), 65_534);
        let around = fs::metadata(directory.path().join("keys")).expect("there");
        assert_eq!(around.mode() & 0o7777, 0o711);
        assert!(matches!(StaticKey::load(&path), Err(KeyError::Exposed { .. })), "not ours");
        assert_eq!(keys.make("api", 1, 65_534).expect("there").1, public);
        assert_ne!(keys.make("api", 1, 65_533).expect("another's").1, public);
    }
}
