//! Shared regions: what their owners and those who map them ask, and what becomes of it.
//!
//! The memory is the reactor's, by the region's id; nothing in it is looked at here. A region is
//! freed when nobody has it any more. Who is cut off from the runtime while its process lives tells
//! of its regions when it is back, and proves by a ticket that it is their owner.

use std::borrow::Cow;

use ipc::{
    LaneFacts, ServiceId, Status,
    control::{
        Reply, Ticket,
        regions::{Access, RegionReply, RegionRequest},
    },
};

use super::{Broker, Carried, Effect, Token, Turn};
use crate::{
    notes::{Kind, Note},
    regions::{HEAD, Owner, REGIONS, Region},
    registry::Registered,
    security::{Because, Fallback, Operation, Verdict, What},
};

/// What the ticket of a region is for. No name begins so.
const TICKET: &str = "\0region";

/// What the reactor does with the memory of regions.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RegionEffect {
    /// Keeps the descriptor of the packet at hand as that region's.
    Keep { region: u64 },
    /// Sends a reply with the memory, and a pidfd of the owner.
    Send { to: Token, sequence: u32, region: u64, owner: Token, reply: Reply },
    /// Closes the memory.
    Lose { region: u64 },
}

fn ids(region: u64) -> Registered {
    let [low, high] = [region, region >> 32].map(|half| ServiceId::new(half as u32));
    Registered { instance: low, name: high }
}

fn carried_facts(carried: Carried) -> Option<LaneFacts> {
    match carried {
        Carried::One(facts) => Some(facts),
        Carried::Nothing | Carried::Many => None,
    }
}

impl Broker {
    /// Answers what is asked about regions; nothing where there is no answer, or another effect
    /// gives it.
    pub(super) fn region(
        &mut self,
        from: Token,
        sequence: u32,
        request: RegionRequest,
        carried: Carried,
        turn: &mut Turn,
    ) -> Result<Option<Reply>, Status> {
        match request {
            RegionRequest::Create { size, claim, ticket } => {
                self.create_region(from, (size, claim, ticket), carried, turn).map(Some)
            }
            RegionRequest::Grant { region, to, access } => {
                self.grant_region(from, region, to, access, carried, turn).map(Some)
            }
            RegionRequest::Map { region } => match carried_facts(carried) {
                None => self.map_region(from, sequence, region, turn).map(|()| None),
                Some(facts) => {
                    if self.hold_region(from, region, facts, turn).is_err() {
                        ended(from, region, true, turn);
                    }
                    Ok(None)
                }
            },
            RegionRequest::Unmap { region } => {
                self.unmap_region(from, region, turn);
                Ok(None)
            }
            RegionRequest::List { after } if self.is_operator(from) => {
                let entry = self.regions.after(after).map(RegionReply::Entry);
                Ok(Some(entry.map_or(Reply::Done, Reply::Region)))
            }
            RegionRequest::List { .. } => Err(Status::ACCESS),
        }
    }

    fn create_region(
        &mut self,
        from: Token,
        (size, claim, ticket): (u64, u64, Ticket),
        carried: Carried,
        turn: &mut Turn,
    ) -> Result<Reply, Status> {
        let facts = carried_facts(carried).filter(|it| it.fit_region(size));
        let facts = facts.ok_or(Status::INVALID)?;
        let session = self.sessions.get(&from).ok_or(Status::INVALID)?;
        let (pid, uid) = (session.peer.pid, session.peer.uid);
        let owner = Owner { token: from, node: session.node.ok_or(Status::INVALID)? };
        let known = self.seal(from, ids(claim), TICKET).is_some_and(|it| it == ticket);
        let id = if claim != 0 && known { claim } else { self.next_region()? };
        if self.regions.len() >= REGIONS {
            return Err(Status::QUOTA);
        }
        let charges = self.accounts.memory(from, facts.bytes)?;
        let mut region = Region::new(size, facts, pid, uid, from);
        region.owner = Some(owner);
        region.has_returned = id == claim;
        region.charges = charges;
        // Who has mapped it tells so before its owner or after: it counts if the memory is the
        // same.
        if let Some(mut before) = self.forget_region(id, turn) {
            for holder in before.holders() {
                if before.facts.file == facts.file {
                    region.adopt(&mut before, holder);
                } else {
                    ended(holder, id, true, turn);
                }
            }
        }
        self.regions.insert(id, region);
        turn.out.push(Effect::Region(RegionEffect::Keep { region: id }));
        let ticket = self.seal(from, ids(id), TICKET).unwrap_or_default();
        Ok(Reply::Region(RegionReply::Created { region: id, ticket }))
    }

    fn next_region(&mut self) -> Result<u64, Status> {
        let (epoch, last) = self.region_ids;
        let (epoch, next) = match last.checked_add(1) {
            Some(next) if epoch != 0 => (epoch, next),
            _ => (self.registry.unique()?, 1),
        };
        self.region_ids = (epoch, next);
        Ok(u64::from(epoch) << 32 | u64::from(next))
    }

    fn grant_region(
        &mut self,
        from: Token,
        id: u64,
        to: ServiceId,
        access: Access,
        carried: Carried,
        turn: &mut Turn,
    ) -> Result<Reply, Status> {
        let is_somebody =
            self.registry.node_behind(to).is_some() || self.registry.name_behind(to).is_some();
        let region = self.regions.get_mut(id).filter(|it| it.is_owned_by(from));
        let region = region.ok_or(Status::NOT_FOUND)?;
        // After a restart of the runtime those whom it is for may still be on their way back.
        if !is_somebody && !region.has_returned && access != Access::None {
            return Err(Status::NOT_FOUND);
        }
        region.grant(to, access, carried_facts(carried))?;
        if access == Access::None {
            self.end_ungranted(id, to, turn);
        }
        Ok(Reply::Done)
    }

    /// Strikes off those who have mapped a region by a grant that is no more.
    fn end_ungranted(&mut self, id: u64, by: ServiceId, turn: &mut Turn) {
        let Some(region) = self.regions.get(id) else { return };
        let is_ungranted = |&holder: &Token| {
            let node = self.sessions.get(&holder).and_then(|it| it.node);
            let ids = node.map(|node| self.registry.ids_of(node)).unwrap_or_default();
            ids.contains(&by) && !region.is_granted(&ids)
        };
        let ungranted: Vec<Token> = region.holders().into_iter().filter(is_ungranted).collect();
        for holder in ungranted {
            self.revoke_region(id, holder, turn);
        }
    }

    fn revoke_region(&mut self, id: u64, holder: Token, turn: &mut Turn) {
        if self.regions.get_mut(id).is_some_and(|it| it.drop_holder(holder)) {
            if let Some(session) = self.sessions.get(&holder) {
                let mut note = Note::new(Kind::Revoked, session.who.to_string());
                note.object = format!("region {id}");
                note.operation = Cow::Borrowed(Operation::MapRegion.name());
                note.verdict = Some(false);
                turn.note(note);
            }
            ended(holder, id, true, turn);
            self.settle_region(id, turn);
        }
    }

    fn map_region(
        &mut self,
        from: Token,
        sequence: u32,
        id: u64,
        turn: &mut Turn,
    ) -> Result<(), Status> {
        let region = self.regions.get(id).ok_or(Status::NOT_FOUND)?;
        let owner = region.owner.ok_or(Status::PEER_DIED)?;
        let node = self.sessions.get(&from).and_then(|it| it.node).ok_or(Status::INVALID)?;
        if owner.token == from {
            return Err(Status::EXISTS);
        }
        if self.is_turned_out(from) {
            return Err(Status::STALE);
        }
        if !region.is_granted(&self.registry.ids_of(node)) {
            self.note_region(from, id, false, "its owner granted nothing".to_owned(), turn);
            return Err(Status::ACCESS);
        }
        let verdict = self.may_map(from, owner);
        self.note_region(from, id, verdict.allowed, self.reason(verdict.because), turn);
        if !verdict.allowed {
            return Err(Status::ACCESS);
        }
        let (appearance, _) = self.registry.appearance(owner.node);
        let region = self.regions.get_mut(id).ok_or(Status::NOT_FOUND)?;
        region.hold(from)?;
        let reply = Reply::Region(RegionReply::Mapped {
            region: id,
            size: region.size,
            writable: region.access == Access::Write,
            owner: appearance,
            owner_pid: region.pid,
            owner_uid: region.uid,
        });
        let owner = owner.token;
        turn.out.push(Effect::Region(RegionEffect::Send {
            to: from,
            sequence,
            region: id,
            owner,
            reply,
        }));
        Ok(())
    }

    /// A node has a region since before this run: it goes on, as far as the rules still allow it.
    fn hold_region(
        &mut self,
        from: Token,
        id: u64,
        facts: LaneFacts,
        turn: &mut Turn,
    ) -> Result<(), Status> {
        if self.region_ids.0 == (id >> 32) as u32 && self.regions.get(id).is_none() {
            return Err(Status::NOT_FOUND);
        }
        match self.regions.get(id).map(|it| (it.facts.file == facts.file, it.owner)) {
            Some((false, _)) => return Err(Status::INVALID),
            Some((true, Some(owner))) if !self.may_map(from, owner).allowed => {
                return Err(Status::ACCESS);
            }
            Some(_) => {}
            None => {
                let size = facts.bytes.saturating_sub(HEAD);
                if !facts.fit_region(size) || self.regions.len() >= REGIONS {
                    return Err(Status::INVALID);
                }
                let mut region = Region::new(size, facts, 0, 0, from);
                region.charges = self.accounts.memory(from, facts.bytes)?;
                self.regions.insert(id, region);
                turn.out.push(Effect::Region(RegionEffect::Keep { region: id }));
            }
        }
        self.regions.get_mut(id).ok_or(Status::NOT_FOUND)?.hold(from)
    }

    /// A node lets go of a region once; if it is the owner, for good.
    fn unmap_region(&mut self, from: Token, id: u64, turn: &mut Turn) {
        let Some(region) = self.regions.get_mut(id) else { return };
        if region.is_owned_by(from) {
            region.owner = None;
            for holder in region.holders() {
                ended(holder, id, false, turn);
            }
        } else {
            region.let_go(from);
        }
        self.settle_region(id, turn);
    }

    /// A connection is gone, and its share of every region.
    pub(super) fn leave_regions(&mut self, token: Token, turn: &mut Turn) {
        for id in self.regions.of(token) {
            let Some(region) = self.regions.get_mut(id) else { continue };
            region.drop_holder(token);
            if region.is_owned_by(token) {
                region.owner = None;
                for holder in region.holders() {
                    ended(holder, id, false, turn);
                }
            }
            self.settle_region(id, turn);
        }
    }

    /// A node loses what it has mapped of others.
    pub(super) fn lose_regions(&mut self, token: Token, turn: &mut Turn) {
        for id in self.regions.of(token) {
            self.revoke_region(id, token, turn);
        }
    }

    /// Judges again who may have what it has mapped, after the rules have changed.
    pub(super) fn judge_regions(&mut self, turn: &mut Turn) {
        let mut revoked = Vec::new();
        for (id, region) in self.regions.iter() {
            let Some(owner) = region.owner else { continue };
            let denied = |holder: &Token| !self.may_map(*holder, owner).allowed;
            revoked.extend(region.holders().into_iter().filter(denied).map(|it| (id, it)));
        }
        for (id, holder) in revoked {
            self.revoke_region(id, holder, turn);
        }
    }

    /// Frees a region that nobody has any more, and finds who pays for one whose payer is gone.
    fn settle_region(&mut self, id: u64, turn: &mut Turn) {
        let Some(region) = self.regions.get(id) else { return };
        if region.is_forlorn() {
            self.forget_region(id, turn);
            return turn.out.push(Effect::Region(RegionEffect::Lose { region: id }));
        }
        if region.has(region.payer) {
            return;
        }
        let (bytes, holders) = (region.facts.bytes, region.holders());
        for payer in holders {
            // Where nobody who has it has room, it stays with whose it was.
            if let Ok(charges) = self.accounts.memory(payer, bytes)
                && let Some(region) = self.regions.get_mut(id)
            {
                region.payer = payer;
                let before = std::mem::replace(&mut region.charges, charges);
                return self.accounts.release_all(before);
            }
        }
    }

    /// Takes a region out of the table, and releases what it was charged with.
    fn forget_region(&mut self, id: u64, _: &mut Turn) -> Option<Region> {
        let mut region = self.regions.remove(id)?;
        self.accounts.release_all(std::mem::take(&mut region.charges));
        Some(region)
    }

    /// Decides whether a node may map regions of an owner: if it may those of one of its names. An
    /// owner without a name is judged as its user's process.
    fn may_map(&self, who: Token, owner: Owner) -> Verdict {
        let denied = Verdict { allowed: false, because: Because::Default(Fallback::Unserved) };
        let Some(asks) = self.sessions.get(&who) else { return denied };
        let Some(session) = self.sessions.get(&owner.token) else { return denied };
        let served_by = Some(session.peer.uid);
        let judge = |text: &str| {
            let what = What::Name { text, served_by };
            self.policy.judge(&asks.who, what, Operation::MapRegion)
        };
        let names = self.registry.served_by_node(owner.node);
        let mut verdicts = names.iter().map(|(_, name)| judge(name));
        if names.is_empty() && session.peer.unit.is_none() {
            return judge("");
        }
        let first = verdicts.next().unwrap_or(denied);
        if first.allowed { first } else { verdicts.find(|it| it.allowed).unwrap_or(first) }
    }

    fn note_region(&self, who: Token, id: u64, allowed: bool, because: String, turn: &mut Turn) {
        let Some(session) = self.sessions.get(&who) else { return };
        let kind = if allowed { Kind::Grant } else { Kind::Denial };
        let mut note = Note::new(kind, session.who.to_string());
        note.object = format!("region {id}");
        note.operation = Cow::Borrowed(Operation::MapRegion.name());
        note.verdict = Some(allowed);
        note.because = because;
        turn.note(note);
    }
}

fn ended(to: Token, region: u64, revoked: bool, turn: &mut Turn) {
    let reply = Reply::Region(RegionReply::Ended { region, revoked });
    turn.out.push(Effect::Send { to, sequence: 0, reply });
}
