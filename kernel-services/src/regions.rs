//! The shared regions that there are: whose they are, who may map them, and who has. Pure.
//!
//! A region lives as long as anybody holds it: its owner, or a node that has mapped it. It is
//! charged to its owner, and when that is gone to one of those that are left.

use std::collections::{BTreeMap, HashMap};

use ipc::{
    LaneFacts, ServiceId, Status,
    control::regions::{Access, RegionEntry},
};

use crate::{broker::Token, quota::Charge};

/// Regions at a time.
pub(crate) const REGIONS: usize = 65_536;
/// Grants of one region.
pub(crate) const GRANTS: usize = 1024;
/// Nodes that have mapped one region.
pub(crate) const HOLDERS: usize = 4096;
/// Bytes before those that users see, as `ipc::region` lays them out.
pub(crate) const HEAD: u64 = 4096;

/// One region.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) owner: Option<Owner>,
    /// Whether its owner had it under an earlier run of the runtime.
    pub(crate) has_returned: bool,
    /// Who owned it last.
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) size: u64,
    pub(crate) facts: LaneFacts,
    /// What it is granted for; nothing before the first grant.
    pub(crate) access: Access,
    grants: Vec<ServiceId>,
    /// How often each node has mapped it.
    holders: HashMap<Token, u32>,
    pub(crate) charges: Vec<Charge>,
    pub(crate) payer: Token,
}

/// Who made a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) token: Token,
    pub(crate) node: ServiceId,
}

/// All of them, by id.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    all: BTreeMap<u64, Region>,
}

impl Region {
    pub(crate) fn new(size: u64, facts: LaneFacts, pid: u32, uid: u32, payer: Token) -> Region {
        Region {
            owner: None,
            has_returned: false,
            pid,
            uid,
            size,
            facts,
            access: Access::None,
            grants: Vec::new(),
            holders: HashMap::new(),
            charges: Vec::new(),
            payer,
        }
    }

    /// Enters or strikes off a grant, with the memory as its owner shows it then.
    ///
    /// # Errors
    /// `INVALID` when it is other memory, is not sealed for what is granted, or was granted for
    /// something else before; `QUOTA` when there are too many grants.
    pub(crate) fn grant(
        &mut self,
        to: ServiceId,
        access: Access,
        facts: Option<LaneFacts>,
    ) -> Result<(), Status> {
        if access == Access::None {
            self.grants.retain(|&it| it != to);
            return Ok(());
        }
        let sealed = facts.is_some_and(|it| match access {
            Access::Write => it.writable,
            Access::Read | Access::None => it.sealed,
        });
        let same = facts.is_some_and(|it| it.file == self.facts.file);
        if !sealed || !same || (self.access != Access::None && self.access != access) {
            return Err(Status::INVALID);
        }
        if !self.grants.contains(&to) {
            if self.grants.len() >= GRANTS {
                return Err(Status::QUOTA);
            }
            self.grants.push(to);
        }
        self.access = access;
        Ok(())
    }

    /// Whether one of these ids has a grant.
    pub(crate) fn is_granted(&self, ids: &[ServiceId]) -> bool {
        self.grants.iter().any(|it| ids.contains(it))
    }

    /// A node maps it once more.
    ///
    /// # Errors
    /// `QUOTA` when too many have.
    pub(crate) fn hold(&mut self, by: Token) -> Result<(), Status> {
        if self.holders.len() >= HOLDERS && !self.holders.contains_key(&by) {
            return Err(Status::QUOTA);
        }
        let times = self.holders.entry(by).or_default();
        *times = times.checked_add(1).ok_or(Status::QUOTA)?;
        Ok(())
    }

    /// A node lets go of it once.
    pub(crate) fn let_go(&mut self, by: Token) {
        if let Some(times) = self.holders.get_mut(&by) {
            *times -= 1;
            if *times == 0 {
                self.holders.remove(&by);
            }
        }
    }

    /// A node has nothing of it any more; tells whether it had.
    pub(crate) fn drop_holder(&mut self, by: Token) -> bool {
        self.holders.remove(&by).is_some()
    }

    /// Takes over what a node has mapped of the same memory.
    pub(crate) fn adopt(&mut self, before: &mut Region, holder: Token) {
        if let Some(times) = before.holders.remove(&holder) {
            self.holders.insert(holder, times);
        }
    }

    /// Whose it is, or who has mapped it.
    pub(crate) fn has(&self, token: Token) -> bool {
        self.is_owned_by(token) || self.holders.contains_key(&token)
    }

    pub(crate) fn is_owned_by(&self, token: Token) -> bool {
        self.owner.is_some_and(|it| it.token == token)
    }

    /// The nodes that have mapped it, in order.
    pub(crate) fn holders(&self) -> Vec<Token> {
        let mut holders: Vec<Token> = self.holders.keys().copied().collect();
        holders.sort_unstable();
        holders
    }

    /// Whether nobody has it any more.
    pub(crate) fn is_forlorn(&self) -> bool {
        self.owner.is_none() && self.holders.is_empty()
    }
}

impl Regions {
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn insert(&mut self, id: u64, region: Region) {
        self.all.insert(id, region);
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Region> {
        self.all.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Region> {
        self.all.get_mut(&id)
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Region> {
        self.all.remove(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Region)> {
        self.all.iter().map(|(&id, region)| (id, region))
    }

    /// The regions that a node owns or has mapped.
    pub(crate) fn of(&self, token: Token) -> Vec<u64> {
        self.iter().filter(|(_, region)| region.has(token)).map(|(id, _)| id).collect()
    }

    /// Describes the region after this one.
    pub(crate) fn after(&self, after: u64) -> Option<RegionEntry> {
        let (&region, it) = self.all.range(after.checked_add(1)?..).next()?;
        Some(RegionEntry {
            region,
            size: it.size,
            bytes: it.facts.bytes,
            owner: it.owner.map_or(ServiceId::NONE, |owner| owner.node),
            pid: it.pid,
            uid: it.uid,
            grants: it.grants.len() as u32,
            holders: it.holders.len() as u32,
            access: it.access,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> LaneFacts {
        let bytes = HEAD + 4096;
        LaneFacts { pinned: true, bytes, allocated: bytes, file: (1, 2), ..LaneFacts::default() }
    }

    #[test]
    fn a_region_is_for_reading_or_for_writing_and_stays_so() {
        let mut region = Region::new(4096, facts(), 1, 2, 3);
        let to = ServiceId::new(9);
        let sealed = LaneFacts { sealed: true, ..facts() };
        let open = LaneFacts { writable: true, ..facts() };
        let other = LaneFacts { file: (1, 3), ..sealed };
        for wrong in [None, Some(facts()), Some(open), Some(other)] {
            assert_eq!(region.grant(to, Access::Read, wrong), Err(Status::INVALID));
        }
        assert!(!region.is_granted(&[to]));
        assert_eq!(region.grant(to, Access::Read, Some(sealed)), Ok(()));
        assert_eq!(region.grant(to, Access::Write, Some(open)), Err(Status::INVALID));
        assert!(region.is_granted(&[ServiceId::new(1), to]));
        assert_eq!(region.grant(to, Access::None, None), Ok(()));
        assert!(!region.is_granted(&[to]));
    }

    #[test]
    fn grants_and_holders_have_bounds() {
        let mut region = Region::new(4096, facts(), 1, 2, 3);
        let sealed = Some(LaneFacts { sealed: true, ..facts() });
        for id in 1..=GRANTS as u32 {
            assert_eq!(region.grant(ServiceId::new(id), Access::Read, sealed), Ok(()));
        }
        let more = ServiceId::new(GRANTS as u32 + 1);
        assert_eq!(region.grant(more, Access::Read, sealed), Err(Status::QUOTA));
        assert_eq!(region.grant(ServiceId::new(1), Access::Read, sealed), Ok(()), "it has one");
        (0..HOLDERS as u64).for_each(|it| region.hold(it).expect("room"));
        assert_eq!(region.hold(HOLDERS as u64), Err(Status::QUOTA));
        assert_eq!(region.hold(0), Ok(()), "once more is no more holders");
        region.let_go(0);
        assert!(region.has(0));
        region.let_go(0);
        assert!(!region.has(0));
        assert_eq!(region.hold(HOLDERS as u64), Ok(()));
    }
}
