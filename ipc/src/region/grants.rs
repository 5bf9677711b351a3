//! Whom a region is granted to: by its owner, who can take grants back, and have the others go on
//! with other memory.

use std::sync::Arc;

use super::{Region, RegionAccess, RegionError, RegionRef, Share, lock, memory::seal};
use crate::{
    ServiceId,
    control::regions::Access,
    error::{NodeError, Status},
    sync::Ordering,
};

/// Grants of one region, as the runtime bounds them.
const GRANTS: usize = 1024;

impl Region {
    /// Lets a service map this region: an instance, whoever serves a name, or a node by its
    /// anonymous id. Where the rules do not let it map regions of this process, it still cannot.
    ///
    /// The first grant decides for good whether those who map the region may write it.
    ///
    /// # Errors
    /// [`RegionError::NotOwner`]; [`NodeError::Config`] when it is granted for the other access
    /// already; [`NodeError::Refused`] with `NOT_FOUND` when it is nobody's id, `QUOTA` after 1024
    /// grants; those of a lost runtime.
    pub fn grant(&self, to: ServiceId, access: RegionAccess) -> Result<(), RegionError> {
        let Share::Own { granted, is_awaited, .. } = &self.held.share else {
            return Err(RegionError::NotOwner);
        };
        if self.held.is_closed() {
            return Err(RegionError::Closed);
        }
        let access = match access {
            RegionAccess::Read => Access::Read,
            RegionAccess::Write => Access::Write,
        };
        seal(&self.held.fd, access)?;
        // Before anybody can have mapped it: from here on every sync wakes.
        is_awaited.store(true, Ordering::Release);
        self.node.core.grant(&self.held, to, access)?;
        let mut granted = lock(granted);
        if !granted.iter().any(|(id, _)| *id == to) && granted.len() < GRANTS {
            granted.push((to, access));
        }
        Ok(())
    }

    /// Takes a grant back. Whoever mapped the region by it is told, its waits end, and it cannot
    /// map the region again. What it has mapped cannot be taken away from it: see
    /// [`rotate`](Self::rotate).
    ///
    /// # Errors
    /// [`RegionError::NotOwner`]; those of a lost runtime.
    pub fn revoke(&self, from: ServiceId) -> Result<(), RegionError> {
        let Share::Own { granted, .. } = &self.held.share else {
            return Err(RegionError::NotOwner);
        };
        lock(granted).retain(|(id, _)| *id != from);
        Ok(self.node.core.grant(&self.held, from, Access::None)?)
    }

    /// Makes a region with the same contents, options and grants, on other memory and with another
    /// id. Who had a grant of this one that was taken back sees nothing of the new one.
    ///
    /// # Errors
    /// As for [`Node::create_region`](crate::Node::create_region) and [`grant`](Self::grant).
    pub fn rotate(&self) -> Result<Region, RegionError> {
        let Share::Own { granted, options, .. } = &self.held.share else {
            return Err(RegionError::NotOwner);
        };
        if self.held.is_closed() {
            return Err(RegionError::Closed);
        }
        let held = self.node.core.create_region(self.held.size(), options)?;
        let fresh = Region { held, node: Arc::clone(&self.node) };
        let mut part = vec![0; self.size().min(1 << 20)];
        for offset in (0..self.size()).step_by(1 << 20) {
            let length = part.len().min(self.size() - offset);
            self.held.map.copy_out(offset, &mut part[..length]);
            fresh.held.map.copy_in(offset, &part[..length]);
        }
        let granted = lock(granted).clone();
        for (to, access) in granted {
            let access =
                if access == Access::Write { RegionAccess::Write } else { RegionAccess::Read };
            match fresh.grant(to, access) {
                // Whoever it was, it is gone.
                Err(RegionError::Node(NodeError::Refused(Status::NOT_FOUND))) => {}
                other => other?,
            }
        }
        fresh.sync()?;
        Ok(fresh)
    }

    /// Grants this region to a service and names it for a message to it, so that whoever gets the
    /// message can map it at once.
    ///
    /// # Errors
    /// As for [`grant`](Self::grant).
    pub fn pass_to(&self, to: ServiceId, access: RegionAccess) -> Result<RegionRef, RegionError> {
        self.grant(to, access)?;
        Ok(RegionRef { id: self.id(), size: self.size() as u64 })
    }
}
