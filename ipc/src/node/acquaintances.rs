//! Whom this node knows, by what it found out itself: names that it looked up, keys that were
//! proved to it, and keys that it was told to expect. What the runtime says when it introduces
//! somebody must not contradict that.

use std::{
    collections::{HashMap, HashSet},
    env,
    path::Path,
    sync::Mutex,
};

use super::{
    Config,
    core::{Core, lock},
};
use crate::{
    Node, ServiceId,
    control::{Introduction, name_hash},
    error::{NodeError, Status},
    frame::Sender,
    session::{KeyError, PublicKey, StaticKey},
};

/// Names looked up, and services met, that are remembered. Beyond that the oldest memories go all
/// at once: what is bound to the handshake is so in any case.
const MOST: usize = 4096;
/// Keys that may be expected.
const MOST_EXPECTED: usize = 1024;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Acquaintances {
    /// The hash of each name, by its id.
    names: Mutex<HashMap<ServiceId, [u8; 32]>>,
    /// Hashes of names, each with a key that was proved under it.
    met: Mutex<HashSet<([u8; 32], PublicKey)>>,
    /// The keys that are to be proved under names.
    expected: Mutex<HashMap<[u8; 32], PublicKey>>,
}

impl Acquaintances {
    /// A name was looked up.
    pub(super) fn note_name(&self, id: ServiceId, name: &str) {
        let mut names = lock(&self.names);
        if names.len() >= MOST {
            names.clear();
        }
        names.insert(id, name_hash(name));
    }

    /// A service has proved its key.
    pub(super) fn note_met(&self, it: &Introduction) {
        let mut met = lock(&self.met);
        if met.len() >= MOST {
            met.clear();
        }
        met.insert((it.bond.dest, PublicKey::from_bytes(it.peer_key)));
    }

    /// Whether it has before.
    pub(super) fn has_met(&self, it: &Introduction) -> bool {
        lock(&self.met).contains(&(it.bond.dest, PublicKey::from_bytes(it.peer_key)))
    }

    /// Checks what the runtime says of an encrypted channel that was asked for under an id.
    fn check(&self, it: &Introduction, asked: Option<ServiceId>) -> Result<(), NodeError> {
        if let Some(asked) = asked {
            let names = lock(&self.names);
            let of = |id| names.get(&id).is_none_or(|name| *name == it.bond.dest);
            if !of(asked) || !of(it.dest_name) {
                return Err(NodeError::Introduced("it serves another name than was asked for"));
            }
        }
        let theirs = if asked.is_some() { it.bond.dest } else { it.bond.opener };
        match lock(&self.expected).get(&theirs) {
            Some(key) if *key.as_bytes() != it.peer_key => {
                Err(NodeError::Introduced("it has another key than its name was expected to have"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a plain channel of a client that knows that it has to be encrypted, whatever the
    /// runtime says: a node that has all of its own encrypted, and one that expects a key.
    fn check_plain(&self, asked: Option<ServiceId>, encrypts: bool) -> Result<(), NodeError> {
        let Some(asked) = asked else { return Ok(()) };
        let name = lock(&self.names).get(&asked).copied();
        let is_expected = name.is_some_and(|name| lock(&self.expected).contains_key(&name));
        if encrypts || is_expected {
            return Err(NodeError::Introduced("it has to be encrypted, and would be plain"));
        }
        Ok(())
    }
}

/// The key of a node of that configuration.
///
/// # Errors
/// `AUTH` for a file that others can read, or that holds none; [`NodeError::System`].
pub(super) fn key_of(config: &Config) -> Result<StaticKey, NodeError> {
    let key = match (&config.key_file, env::var_os("IPC_KEY_FILE")) {
        (Some(path), _) => StaticKey::open(path),
        // Made by the supervisor for this service. Where it cannot be read, as by a program of
        // another user that the service has run, there is one that nobody knows.
        (None, Some(path)) => StaticKey::load(Path::new(&path)).or_else(|_| StaticKey::generate()),
        (None, None) => StaticKey::generate(),
    };
    key.map_err(no_key)
}

fn no_key(error: KeyError) -> NodeError {
    match error {
        KeyError::System(error) => error,
        other => NodeError::Refused(other.status()),
    }
}

impl Core {
    /// Checks an introduction by what this node knows. `asked` is the id
    /// that a client asked for.
    ///
    /// # Errors
    /// [`NodeError::Introduced`].
    pub(super) fn check_introduction(
        &self,
        it: &Introduction,
        role: Sender,
        asked: Option<ServiceId>,
    ) -> Result<(), NodeError> {
        if !it.encrypted {
            return self.known.check_plain(asked, self.config.encrypt);
        }
        let (own, alleged) = match role {
            Sender::Client => (it.opener, it.bond.opener),
            Sender::Server => (it.dest, it.bond.dest),
        };
        let is_right = if own == self.id() {
            alleged == name_hash("")
        } else {
            // One that was unregistered meanwhile is not there any more, and proves nothing.
            self.name_of(own).is_none_or(|name| alleged == name_hash(&name))
        };
        if !is_right {
            return Err(NodeError::Introduced("this end is called otherwise"));
        }
        self.known.check(it, asked)
    }
}

impl Node {
    /// Expects whoever serves a name, or comes under it, to prove this key on encrypted channels:
    /// another is refused from here on, whatever the runtime says, and so is a plain channel to
    /// that name. For keys that last, as those of supervised services do, and were learned by a way
    /// that is trusted.
    ///
    /// # Errors
    /// [`NodeError::Name`]; [`NodeError::Refused`] with `QUOTA` after 1024 names.
    pub fn expect_key(&self, name: &str, key: PublicKey) -> Result<(), NodeError> {
        crate::control::check_name(name).map_err(NodeError::Name)?;
        let mut expected = lock(&self.shared.core.known.expected);
        if expected.len() >= MOST_EXPECTED && !expected.contains_key(&name_hash(name)) {
            return Err(NodeError::Refused(Status::QUOTA));
        }
        expected.insert(name_hash(name), key);
        Ok(())
    }

    /// Gives the public half of the key by which this node proves itself.
    pub fn key(&self) -> PublicKey {
        self.shared.core.key.public()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Bond;

    #[test]
    fn what_contradicts_what_is_known_is_refused() {
        let known = Acquaintances::default();
        let (id, other) = (ServiceId::new(7), ServiceId::new(8));
        known.note_name(id, "storage");
        let bond = Bond { dest: name_hash("storage"), ..Bond::default() };
        let honest = Introduction {
            channel: 1,
            session: 1,
            start_ns: 0,
            asymmetric: false,
            peer: ServiceId::new(9),
            peer_name: id,
            peer_pid: 1,
            peer_uid: 0,
            dest: ServiceId::new(9),
            dest_name: id,
            geometry: crate::Geometry::default(),
            permissions: 0,
            opener: ServiceId::new(2),
            encrypted: true,
            peer_key: [1; 32],
            bond,
        };
        assert!(known.check(&honest, Some(id)).is_ok());
        assert!(known.check(&honest, Some(other)).is_ok(), "an id that was not looked up");
        known.note_name(other, "else");
        let rerouted = Introduction { dest_name: other, ..honest };
        let relabelled = Introduction { bond: Bond { dest: name_hash("else"), ..bond }, ..honest };
        for it in [rerouted, relabelled] {
            assert!(matches!(known.check(&it, Some(id)), Err(NodeError::Introduced(_))), "{it:?}");
        }
        assert!(matches!(known.check(&honest, Some(other)), Err(NodeError::Introduced(_))));
        // Who comes back is known by name and key.
        known.note_met(&honest);
        assert!(known.has_met(&honest));
        assert!(!known.has_met(&Introduction { peer_key: [2; 32], ..honest }));
        assert!(!known.has_met(&relabelled));
        // A plain channel, to nobody in particular, and where all are to be encrypted.
        let plain = |asked, encrypts| known.check_plain(asked, encrypts);
        assert!(plain(Some(id), false).is_ok() && plain(None, true).is_ok());
        assert!(matches!(plain(Some(id), true), Err(NodeError::Introduced(_))));
        // A key that was expected.
        lock(&known.expected).insert(bond.dest, PublicKey::from_bytes([2; 32]));
        assert!(matches!(known.check(&honest, Some(id)), Err(NodeError::Introduced(_))));
        assert!(known.check(&Introduction { peer_key: [2; 32], ..honest }, Some(id)).is_ok());
        assert!(matches!(known.check_plain(Some(id), false), Err(NodeError::Introduced(_))));
    }
}
