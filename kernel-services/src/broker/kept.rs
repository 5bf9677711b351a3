//! Memory that units had kept for their successors: whose it is, and by which name. The memory is
//! the reactor's; nothing in it is looked at.

use std::{collections::BTreeMap, sync::Arc};

use ipc::{Status, control::Reply};

use super::{Broker, Carried, Effect, Token, Turn};
use crate::quota::Charge;

/// What one unit may have kept, whatever its quota says.
const MOST: usize = 1024;

/// What the reactor does with kept memory, by its number.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stow {
    /// Keeps the descriptor of the packet at hand.
    Keep(u64),
    /// Sends it with a reply.
    Give { key: u64, to: Token, sequence: u32, reply: Reply },
    /// Closes it.
    LetGo(u64),
}

/// All that is kept, by numbers that are never used again.
#[derive(Debug, Default)]
pub(super) struct Kept {
    entries: BTreeMap<u64, Entry>,
    last: u64,
}

#[derive(Debug)]
struct Entry {
    unit: u32,
    service: Arc<str>,
    name: String,
    charges: Vec<Charge>,
}

impl Broker {
    /// Takes memory in; without any, lets go of what has that name.
    pub(super) fn keep_memory(
        &mut self,
        from: Token,
        name: String,
        carried: Carried,
        turn: &mut Turn,
    ) -> Reply {
        let unit = self.sessions.get(&from).and_then(|session| session.peer.unit.as_ref());
        let Some((unit, service)) = unit.map(|it| (it.id, Arc::clone(&it.service))) else {
            return Reply::Refused(Status::ACCESS);
        };
        let is_it = |entry: &Entry| entry.unit == unit && entry.name == name;
        let old = self.kept.entries.iter().find(|(_, it)| is_it(it)).map(|(key, _)| *key);
        let facts = match carried {
            Carried::Nothing => {
                if let Some(key) = old {
                    self.let_go(key, turn);
                }
                return Reply::Done;
            }
            // Whoever reads it must neither fault nor pay for it.
            Carried::One(facts)
                if facts.sealed && facts.bytes > 0 && facts.allocated >= facts.bytes =>
            {
                facts
            }
            Carried::One(_) | Carried::Many => return Reply::Refused(Status::INVALID),
        };
        if self.kept.entries.values().filter(|it| it.unit == unit).count() >= MOST {
            return Reply::Refused(Status::QUOTA);
        }
        let charges = match self.accounts.memory(from, facts.bytes) {
            Ok(charges) => charges,
            Err(status) => return Reply::Refused(status),
        };
        if let Some(key) = old {
            self.let_go(key, turn);
        }
        self.kept.last += 1;
        let key = self.kept.last;
        self.kept.entries.insert(key, Entry { unit, service, name, charges });
        turn.out.push(Effect::Stow(Stow::Keep(key)));
        Reply::Done
    }

    /// Gives the next of what a unit has had kept, to a process of that unit.
    pub(super) fn next_kept(&self, to: Token, sequence: u32, after: u64, turn: &mut Turn) {
        let unit = self.sessions.get(&to).and_then(|session| session.peer.unit.as_ref());
        let Some(unit) = unit.map(|it| it.id) else {
            let reply = Reply::Refused(Status::ACCESS);
            return turn.out.push(Effect::Send { to, sequence, reply });
        };
        let mut above = self.kept.entries.range(after..);
        turn.out.push(match above.find(|(_, it)| it.unit == unit) {
            None => Effect::Send { to, sequence, reply: Reply::Done },
            Some((&key, it)) => {
                let reply = Reply::Kept { next: key + 1, name: it.name.clone() };
                Effect::Stow(Stow::Give { key, to, sequence, reply })
            }
        });
    }

    /// Lets go of what services had kept that are no more.
    pub(super) fn let_go_of_strangers(&mut self, is_there: impl Fn(&str) -> bool, turn: &mut Turn) {
        let gone = self.kept.entries.iter().filter(|(_, it)| !is_there(&it.service));
        let gone: Vec<u64> = gone.map(|(key, _)| *key).collect();
        for key in gone {
            self.let_go(key, turn);
        }
    }

    /// Everything ends.
    pub(super) fn let_go_all(&mut self) {
        for (_, entry) in std::mem::take(&mut self.kept.entries) {
            self.accounts.let_go(entry.charges);
        }
    }

    fn let_go(&mut self, key: u64, turn: &mut Turn) {
        if let Some(entry) = self.kept.entries.remove(&key) {
            self.accounts.let_go(entry.charges);
            turn.out.push(Effect::Stow(Stow::LetGo(key)));
        }
    }
}
